//! The CustomResourceDefinitions, as `tenantry crds` writes them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

use super::{Application, DatabaseServer, Plan, Pool, Tenant};

/// Every CustomResourceDefinition, in the order in which they are applied.
pub fn all_crds() -> Vec<CustomResourceDefinition> {
    vec![Plan::crd(), Application::crd(), DatabaseServer::crd(), Pool::crd(), Tenant::crd()]
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
