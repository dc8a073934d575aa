//! The CustomResourceDefinitions, as `tenantry crds` writes them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSON};
use kube::CustomResourceExt as _;

use super::{Application, DatabaseServer, Plan, Pool, Tenant};

/// Every CustomResourceDefinition, in the order in which they are applied.
pub fn all_crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![Plan::crd(), Application::crd(), DatabaseServer::crd(), Pool::crd(), Tenant::crd()];
    crds.iter_mut().for_each(unobserved_at_first);
    crds
}

/// Gives an object that the operator hasn't seen yet a status that says so. kstatus takes a
/// resource without `observedGeneration` for finished, and who waits for a new Tenant (Flux,
/// say) would go on at once.
fn unobserved_at_first(crd: &mut CustomResourceDefinition) {
    let schemas =
        crd.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut());
    for schema in schemas {
        if let Some(status) = schema.properties.as_mut().and_then(|properties| properties.get_mut("status")) {
            status.default = Some(JSON(serde_json::json!({"observedGeneration": -1})));
        }
    }
}

/// One CustomResourceDefinition as a YAML document.
///
/// # Errors
/// When it can't be written as YAML, which no definition of this module does.
pub fn crd_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::ser::Error> {
    let mut value = serde_json::to_value(crd).unwrap_or_default();
    remove_number_formats(&mut value);
    serde_saphyr::to_string(&value)
}

/// Takes out formats such as `uint32`, which Kubernetes doesn't know and warns of.
fn remove_number_formats(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            if map.get("format").and_then(|format| format.as_str()).is_some_and(|format| format.starts_with("uint")) {
                map.remove("format");
            }
            map.values_mut().for_each(remove_number_formats);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(remove_number_formats),
        _ => {}
    }
}
