//! DatabaseServer: a PostgreSQL server that tenants are placed on.

use k8s_openapi::{api::networking::v1::NetworkPolicyPeer, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A PostgreSQL server (15 to 18) that tenants are placed on.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tenantry.io",
    version = "v1alpha1",
    kind = "DatabaseServer",
    plural = "databaseservers",
    shortname = "dbs",
    category = "tenantry",
    doc = "A PostgreSQL server (15 to 18) that tenants are placed on.",
    status = "DatabaseServerStatus",
    derive = "PartialEq",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Databases", type_ = "integer", json_path = ".status.databases"),
    printcolumn(name = "Tenants", type_ = "integer", json_path = ".status.tenants"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    printcolumn(name = "Host", type_ = "string", json_path = ".spec.admin.host", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("a DatabaseServer's name has at most 63 characters, lower-case letters, digits and '-', and begins and ends with a letter or digit"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.tls)").message("tls is missing: name the Secret with the server's CA certificates in tls.caSecret"),
)]
pub struct DatabaseServerSpec {
    /// How the operator connects.
    pub admin: AdminConnection,
    /// TLS of every connection. Required; optional in the schema so that its absence gets a
    /// message that says what to write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Where tenants connect, if not where the operator does (a pooler, say).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Where the server is in the network, for the tenants' NetworkPolicies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<ServerNetwork>,
    /// How much the server takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// The tiers that may be placed here; every tier when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 3))]
    pub accepts: Option<Vec<Accepts>>,
    /// The one Tenant that this server is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    pub reserved_for: Option<String>,
}

/// How the operator connects: a role with LOGIN, CREATEDB and CREATEROLE, no superuser.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdminConnection {
    /// Host name or address.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// Port; 5432 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,
    /// The database to connect to first; `postgres` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub database: Option<String>,
    /// A Secret of the operator's namespace with the keys `username` and `password`.
    pub credentials_secret: super::LocalReference,
}

/// TLS of the connections to a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode == 'Disable' || has(self.caSecret)").message("tls.caSecret is missing: name the Secret with the server's CA certificates (key ca.crt)"),
)]
pub struct Tls {
    /// VerifyFull when left out.
    #[serde(default)]
    pub mode: TlsMode,
    /// A Secret of the operator's namespace whose key `ca.crt` has the certificates to trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret: Option<super::LocalReference>,
}

/// How the server's certificate is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsMode {
    /// The chain and the host name.
    #[default]
    VerifyFull,
    /// No TLS; for tests on one machine alone.
    Disable,
}

/// Where tenants connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Host name or address.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// Port; the admin's when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,
}

/// Where the server is in the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerNetwork {
    /// NetworkPolicy peers of the endpoint.
    #[schemars(length(min = 1, max = 16))]
    pub to: Vec<NetworkPolicyPeer>,
}

/// How much a server takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// The most databases that the operator makes; 100 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub databases: Option<i32>,
    /// The most schemas in one database; 1000 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5_000))]
    pub schemas_per_database: Option<i32>,
    /// The most connections that the operator itself holds; 8 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 100))]
    pub operator_connections: Option<i32>,
}

/// What may be placed on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Accepts {
    /// Databases of pools.
    Pooled,
    /// Schemas of bridge tenants.
    Bridge,
    /// Databases of dedicated tenants.
    Dedicated,
}

/// What the operator observed of a DatabaseServer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseServerStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The server's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How many databases the operator has here.
    #[serde(default)]
    pub databases: i64,
    /// How many Tenants have their data here.
    #[serde(default)]
    pub tenants: i64,
    /// The value of annotation tenantry.io/adopt-cluster that was honoured last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted_cluster: Option<String>,
    /// What is true of the server, and since when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
