//! Copies of what an Application shares with its namespaces.

use std::collections::BTreeMap;

use super::{Fault, Kind, Object, namespace::Scope};
use crate::api::Application;

/// A shared Secret or ConfigMap, as it is in the operator's namespace. (Not `Debug`: it may
/// have secrets.)
#[derive(Clone, PartialEq)]
pub struct SharedContent {
    /// Secret or ConfigMap.
    pub kind: Kind,
    /// Its name there and in every namespace of the Application.
    pub name: String,
    /// A Secret's type.
    pub type_: Option<String>,
    /// A ConfigMap's text, or a Secret's base64, by key.
    pub data: BTreeMap<String, String>,
    /// A ConfigMap's base64, by key.
    pub binary_data: BTreeMap<String, String>,
}

/// Copies of what the Application shares; a fault for each that is not there.
pub(super) fn shared_objects(
    scope: Scope<'_>,
    application: &Application,
    contents: &[SharedContent],
    faults: &mut Vec<Fault>,
) -> Vec<Object> {
    let Some(shared) = &application.spec.shared else { return Vec::new() };
    let list = |kind, field, names: &Option<Vec<String>>| {
        let names = names.iter().flatten().enumerate();
        names.map(|(index, name)| (kind, format!("spec.shared.{field}[{index}]"), name.clone())).collect::<Vec<_>>()
    };
    let wanted = list(Kind::Secret, "secrets", &shared.secrets).into_iter().chain(list(
        Kind::ConfigMap,
        "configMaps",
        &shared.config_maps,
    ));
    let mut objects = Vec::new();
    for (kind, path, name) in wanted {
        match contents.iter().find(|content| content.kind == kind && content.name == name) {
            Some(content) => objects.push(scope.shared(content)),
            None => faults.push(Fault::new(
                "SharedObjectMissing",
                path,
                format!("there is no {kind} {name} in the operator's namespace: create it, or remove it here"),
            )),
        }
    }
    objects
}
