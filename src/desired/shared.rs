//! Copies of what an Application shares with its namespaces.

use std::collections::BTreeMap;

use super::{
    Fault, Kind,
    naming::{RESERVED_PREFIX, SECRET_SUFFIX},
};
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

/// A Secret or ConfigMap that an Application shares.
pub(super) struct Wanted<'a> {
    pub kind: Kind,
    pub name: &'a str,
    path: String,
}

impl Wanted<'_> {
    /// Why it can't be shared, if something else in the namespaces has its name or may get it.
    pub(super) fn reserved(&self) -> Option<Fault> {
        let Self { kind, name, path } = self;
        let why = match kind {
            Kind::Secret if name.ends_with(SECRET_SUFFIX) => {
                format!("names that end in {SECRET_SUFFIX} are those of tenants' Secrets")
            }
            Kind::ConfigMap if *name == "kube-root-ca.crt" => "Kubernetes itself has it in every namespace".to_owned(),
            _ if name.starts_with(RESERVED_PREFIX) => {
                format!("names that begin with {RESERVED_PREFIX} are Tenantry's own")
            }
            _ => return None,
        };
        let message = format!("{kind} {name} can't be shared, since {why}: give it another name");
        Some(Fault::new("ReservedName", path, message))
    }

    /// Its content.
    pub(super) fn find<'c>(&self, contents: &'c [SharedContent]) -> Result<&'c SharedContent, Fault> {
        if let Some(fault) = self.reserved() {
            return Err(fault);
        }
        let Self { kind, name, path } = self;
        let content = contents.iter().find(|content| content.kind == *kind && content.name == *name);
        content.ok_or_else(|| {
            let message =
                format!("there is no {kind} {name} in the operator's namespace: create it, or remove it here");
            Fault::new("SharedObjectMissing", path, message)
        })
    }
}

/// What an Application shares.
pub(super) fn wanted(application: &Application) -> impl Iterator<Item = Wanted<'_>> {
    fn list<'a>(kind: Kind, field: &'static str, names: Option<&'a Vec<String>>) -> impl Iterator<Item = Wanted<'a>> {
        let names = names.into_iter().flatten().enumerate();
        names.map(move |(index, name)| Wanted { kind, name, path: format!("spec.shared.{field}[{index}]") })
    }
    let shared = application.spec.shared.as_ref();
    let secrets = list(Kind::Secret, "secrets", shared.and_then(|shared| shared.secrets.as_ref()));
    secrets.chain(list(Kind::ConfigMap, "configMaps", shared.and_then(|shared| shared.config_maps.as_ref())))
}
