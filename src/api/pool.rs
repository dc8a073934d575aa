//! Pool: one cell of shared compute and one shared database.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// One cell of shared compute and one shared database, serving many pooled tenants.
///
/// The operator makes pools on demand; one may also be written by hand.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "tenantry.io",
    version = "v1alpha1",
    kind = "Pool",
    plural = "pools",
    shortname = "tpool",
    category = "tenantry",
    doc = "One cell of shared compute and one shared database, serving many pooled tenants.",
    status = "PoolStatus",
    derive = "PartialEq",
    selectable = ".spec.application",
    selectable = ".spec.server",
    printcolumn(name = "Application", type_ = "string", json_path = ".spec.application"),
    printcolumn(name = "Server", type_ = "string", json_path = ".spec.server"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Tenants", type_ = "integer", json_path = ".status.tenants"),
    printcolumn(name = "Capacity", type_ = "integer", json_path = ".status.capacity"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".status.namespace", priority = 1),
    printcolumn(name = "Database", type_ = "string", json_path = ".status.database", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$') && !self.metadata.name.startsWith('xn--')").message("a Pool's name has at most 40 characters: lower-case letters, digits and '-', beginning with a letter, ending with a letter or digit, and not beginning with xn--"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.application == oldSelf.application && self.server == oldSelf.server").message("application and server of a Pool can't be changed: make another Pool"),
)]
pub struct PoolSpec {
    /// The Application that runs here.
    #[schemars(length(min = 1, max = 63))]
    pub application: String,
    /// The DatabaseServer that has the pool's database.
    #[schemars(length(min = 1, max = 63))]
    pub server: String,
    /// How many tenants it takes; what the Application says when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 5_000))]
    pub max_tenants: Option<i32>,
}

/// What the operator observed of a Pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many Tenants are placed here.
    #[serde(default)]
    pub tenants: i64,
    /// How many Tenants it takes.
    #[serde(default)]
    pub capacity: i64,
    /// The pool's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The pool's database on the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// What is true of the Pool, and since when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

impl Pool {
    /// The pool's namespace, from its name.
    pub fn namespace_name(name: &str) -> String {
        format!("pool-{name}")
    }

    /// The pool's database, from its name: at most 45 bytes, so never cut by PostgreSQL.
    pub fn database_name(name: &str) -> String {
        format!("pool_{}", name.replace('-', "_"))
    }
}
