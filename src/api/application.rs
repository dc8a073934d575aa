//! Application: the SaaS product that tenants use.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::Condition, util::intstr::IntOrString},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, LocalReference, PodTemplate, Tier};

/// The SaaS product: its container components, how they are reached, what is counted.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tenantry.io",
    version = "v1alpha1",
    kind = "Application",
    plural = "applications",
    shortname = "tapp",
    category = "tenantry",
    doc = "The SaaS product: its container components, how they are reached, what is counted.",
    status = "ApplicationStatus",
    derive = "PartialEq",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Tenants", type_ = "integer", json_path = ".status.tenants"),
    printcolumn(name = "Pools", type_ = "integer", json_path = ".status.pools"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 34 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("an Application's name has at most 34 characters (its pools are named after it): lower-case letters, digits and '-', beginning with a letter"),
    // A meter that was taken out may come back: the rule of a meter itself sees only the object before.
    validation = Rule::new("!has(self.status) || !has(self.status.meters) || !has(self.spec.meters) || self.spec.meters.all(m, self.status.meters.all(known, known.name != m.name || (known.kind == m.kind && known.source == m.source)))").message("kind and source of a meter can't be changed, since past counts would lose their meaning (status.meters has all that tenants were counted by): declare a meter of another name"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.route) || self.components.exists(c, c.name == self.route.component && has(c.port))").message("route.component must name a component that has a port"),
)]
pub struct ApplicationSpec {
    /// The name that people see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub display_name: Option<String>,
    /// The containers that make up the product.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub components: Vec<Component>,
    /// How a tenant's host reaches a component; tenants have no URL when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
    /// Where the containers may connect to, beside the database and DNS. A wide network such as
    /// 0.0.0.0/0 leaves out the node's own addresses (169.254.0.0/16 and the like); a network
    /// within these has to be named by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub egress: Option<Vec<EgressRule>>,
    /// What is counted for each tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub meters: Option<Vec<Meter>>,
    /// The servers that tenants' data is placed on, by tier.
    pub database: ApplicationDatabase,
    /// How pools are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pools: Option<PoolSettings>,
    /// Objects of the operator's namespace that are copied into every namespace of this
    /// Application and kept equal, such as image pull Secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedObjects>,
    /// How the application's tables are made in each tenant's schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrations: Option<Migrations>,
    /// How a change reaches the tenants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

/// One container workload of the product; it becomes a Deployment and a Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Component {
    /// The component's name.
    #[schemars(length(max = 20))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z]([-a-z0-9]{0,18}[a-z0-9])?$')").message("a component's name has at most 20 characters: lower-case letters, digits and '-', beginning with a letter"))]
    pub name: String,
    /// The pod template, as in a Deployment.
    pub template: PodTemplate,
    /// The port that the component serves; it has no Service when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<i32>,
    /// Whether the containers get the tenants' database credentials.
    #[serde(default)]
    pub database: bool,
    /// Replicas by tier; 1 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<PerTier<Replicas>>,
    /// A HorizontalPodAutoscaler by tier, instead of fixed replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<PerTier<Autoscaling>>,
    /// How many pods an eviction may take away at a time; 1 when left out. It makes a
    /// PodDisruptionBudget wherever the component has, or an autoscaler may give it, more than
    /// one replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrString>,
}

/// A number of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Replicas(#[schemars(range(min = 0, max = 1_000))] pub i32);

/// A setting for each tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PerTier<T> {
    /// For pools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooled: Option<T>,
    /// For tenants of tier bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<T>,
    /// For tenants of tier dedicated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dedicated: Option<T>,
}

impl<T> PerTier<T> {
    /// The setting for a tier.
    pub fn get(&self, tier: Tier) -> Option<&T> {
        match tier {
            Tier::Pooled => self.pooled.as_ref(),
            Tier::Bridge => self.bridge.as_ref(),
            Tier::Dedicated => self.dedicated.as_ref(),
        }
    }
}

/// Bounds and target of a HorizontalPodAutoscaler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas").message("autoscaling.minReplicas must not be above maxReplicas"))]
pub struct Autoscaling {
    /// The fewest replicas.
    #[schemars(range(min = 1, max = 1_000))]
    pub min_replicas: i32,
    /// The most replicas.
    #[schemars(range(min = 1, max = 1_000))]
    pub max_replicas: i32,
    /// The mean CPU use, in percent of what is requested, that it steers to.
    #[schemars(range(min = 1, max = 1_000))]
    pub target_cpu_percent: i32,
}

/// How a tenant's host reaches a component.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.parentRefs) && size(self.parentRefs) > 0) != has(self.ingressClassName)").message("a route needs either parentRefs (Gateway API) or ingressClassName (Ingress), not both"))]
pub struct Route {
    /// The component that serves.
    #[schemars(length(max = 20))]
    pub component: String,
    /// The host of a tenant: `{tenant}` and a domain, such as `{tenant}.crm.example.com`.
    #[schemars(length(max = 200))]
    #[x_kube(validation = Rule::new("self.matches('^[{]tenant[}]([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)+$')").message("hostTemplate is {tenant} followed by a domain in lower case, such as {tenant}.crm.example.com"))]
    pub host_template: String,
    /// The Gateways that tenants' HTTPRoutes attach to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub parent_refs: Option<Vec<ParentReference>>,
    /// The class of tenants' Ingresses, where there is no Gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub ingress_class_name: Option<String>,
    /// Annotations of every route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: Option<BTreeMap<String, String>>,
    /// TLS of an Ingress; a Gateway has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RouteTls>,
    /// Who may connect to the component; NetworkPolicy peers. Nobody when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub from: Option<Vec<NetworkPolicyPeer>>,
    /// Whether a tenant is Ready only when its route's parent has accepted it.
    #[serde(default = "yes")]
    pub require_accepted: bool,
}

fn yes() -> bool {
    true
}

/// A Gateway, or one of its listeners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentReference {
    /// The Gateway's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The Gateway's namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// One listener of the Gateway; all of them when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}

/// TLS of an Ingress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteTls {
    /// The Secret with the certificate, in the namespace of the route; `{tenant}` stands
    /// for the tenant's name. Name one wildcard Secret under `shared` to have it copied.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// Where containers may connect to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressRule {
    /// NetworkPolicy peers.
    #[schemars(length(min = 1, max = 16))]
    pub to: Vec<NetworkPolicyPeer>,
    /// Ports; every port when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub ports: Option<Vec<NetworkPolicyPort>>,
}

/// A thing that is counted for each tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.kind == oldSelf.kind && self.source == oldSelf.source").message("kind and source of a meter can't be changed, since past counts would lose their meaning: declare a meter of another name"))]
pub struct Meter {
    /// The meter's name, as limits, prices and `record_usage` call it.
    #[schemars(length(max = 40))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z]([a-z0-9_]*[a-z0-9])?$')").message("a meter's name has at most 40 characters: lower-case letters, digits and '_', beginning with a letter"))]
    pub name: String,
    /// What one of it is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub unit: Option<String>,
    /// Level: how many there are now. Total: how much was used in the period.
    pub kind: MeterKind,
    /// Where counts come from; the tenant's own database transaction when left out.
    #[serde(default)]
    pub source: MeterSource,
}

/// What a meter was declared as when tenants were counted by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KnownMeter {
    /// The meter's name.
    #[schemars(length(max = 40))]
    pub name: String,
    /// Level or Total.
    pub kind: MeterKind,
    /// Where its counts came from.
    pub source: MeterSource,
}

/// How a meter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum MeterKind {
    /// How many there are now.
    Level,
    /// How much was used in the period.
    Total,
}

/// Where a meter's counts come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum MeterSource {
    /// `record_usage` in the tenant's own transaction.
    #[default]
    Database,
    /// Events that a workload posts; no hard limit and no gap-free promise.
    #[serde(rename = "API")]
    Api,
}

/// The servers that tenants' data is placed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationDatabase {
    /// For pools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooled: Option<DatabaseChoice>,
    /// For tenants of tier bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<DatabaseChoice>,
    /// For tenants of tier dedicated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedicated: Option<DatabaseChoice>,
}

impl ApplicationDatabase {
    /// The choice for a tier.
    pub fn get(&self, tier: Tier) -> Option<&DatabaseChoice> {
        match tier {
            Tier::Pooled => self.pooled.as_ref(),
            Tier::Bridge => self.bridge.as_ref(),
            Tier::Dedicated => self.dedicated.as_ref(),
        }
    }
}

/// The servers of one tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseChoice {
    /// DatabaseServers by name, in the order in which they are filled.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 63)))]
    pub servers: Vec<String>,
    /// Tier dedicated: a database on a shared server, or a server of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
}

/// What a dedicated tenant has for itself: a Database on one of the servers (when left out),
/// or a Server that is reserved for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Placement {
    /// A database.
    Database,
    /// A server.
    Server,
}

/// How pools are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolSettings {
    /// How many tenants a pool takes; 500 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5_000))]
    pub max_tenants: Option<i32>,
    /// The ResourceQuota of a pool's namespace; none when left out. It needs room for every
    /// replica, for those that a rollout adds, and for a Secret and a route of each tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<super::Quantities>,
}

/// Objects of the operator's namespace that are copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SharedObjects {
    /// Secrets by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub secrets: Option<Vec<String>>,
    /// ConfigMaps by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub config_maps: Option<Vec<String>>,
}

/// How the application's tables are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.sql) != has(self.job)").message("migrations are either sql (ConfigMaps) or a job (an image with its own migrator), not both"))]
pub struct Migrations {
    /// SQL files, run by the operator as the tenant's migration login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<SqlMigrations>,
    /// A Job for each tenant, for frameworks that bring a migrator of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobMigrations>,
}

/// SQL files in ConfigMaps of the operator's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SqlMigrations {
    /// The ConfigMaps. Every key that ends in `.sql` is a file; files run in the order of
    /// their names over all ConfigMaps, each once, each in a transaction of its own.
    #[schemars(length(min = 1, max = 16))]
    pub config_maps: Vec<LocalReference>,
}

/// A Job for each tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobMigrations {
    /// The image with the migrator.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// The command to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), inner(length(max = 1024)))]
    pub command: Option<Vec<String>>,
}

/// How a change reaches the tenants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// How many namespaces are changed at a time (tiers bridge and dedicated); 5 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000))]
    pub max_unavailable: Option<i32>,
    /// How long a change may make no progress in a namespace before it counts as failed; 10m
    /// when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Duration>,
    /// How many seconds the new pods of a rollout must stay ready before old ones go and the
    /// next pool or namespace gets the change, so that a template which starts and then ends
    /// reaches nobody else; 10 when left out, and at most half of `deadline`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3_600))]
    pub min_ready_seconds: Option<i32>,
}

/// What the operator observed of an Application.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many Tenants name this Application.
    #[serde(default)]
    pub tenants: i64,
    /// How many Pools serve this Application.
    #[serde(default)]
    pub pools: i64,
    /// The meters that tenants are or were counted by, also those that are no longer declared: what
    /// each counts stays, so that a name means one thing. At most 128, the oldest left out first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 128))]
    pub meters: Vec<KnownMeter>,
    /// What is true of the Application, and since when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
