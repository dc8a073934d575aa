//! Tenant: a customer of the SaaS product.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ClosedUsage, Money, Resources, TenantUsage, Tier};

/// A customer of the SaaS product.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tenantry.io",
    version = "v1alpha1",
    kind = "Tenant",
    plural = "tenants",
    shortname = "tn",
    category = "tenantry",
    doc = "A customer of the SaaS product.",
    status = "TenantStatus",
    derive = "PartialEq",
    selectable = ".spec.application",
    selectable = ".spec.plan",
    selectable = ".spec.tier",
    printcolumn(name = "Plan", type_ = "string", json_path = ".spec.plan"),
    printcolumn(name = "Tier", type_ = "string", json_path = ".status.tier"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Users", type_ = "string", json_path = ".status.usage.meters[?(@.name==\"users\")].display"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    printcolumn(name = "Pool", type_ = "string", json_path = ".status.pool", priority = 1),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$') && !self.metadata.name.startsWith('xn--')").message("a Tenant's name has at most 40 characters: lower-case letters, digits and '-', beginning with a letter, ending with a letter or digit, and not beginning with xn--"),
    // Of the whole object, since what isn't in effect has to be corrected, and only the operator knows that: a name
    // that is no time zone, or what differs from the periods that the tenant has.
    validation = Rule::new("!has(oldSelf.spec.billing) || !has(oldSelf.spec.billing.start) || (has(self.spec.billing) && has(self.spec.billing.start) && self.spec.billing.start == oldSelf.spec.billing.start) || (has(oldSelf.status) && has(oldSelf.status.conditions) && oldSelf.status.conditions.exists(c, c.type == 'Stalled' && c.reason in ['UnknownTimeZone', 'PeriodsFixed']))").message("billing.start can't be changed once it is set: every period is counted from it"),
    validation = Rule::new("!has(oldSelf.spec.billing) || !has(oldSelf.spec.billing.timeZone) || (has(self.spec.billing) && has(self.spec.billing.timeZone) && self.spec.billing.timeZone == oldSelf.spec.billing.timeZone) || (has(oldSelf.status) && has(oldSelf.status.conditions) && oldSelf.status.conditions.exists(c, c.type == 'Stalled' && c.reason in ['UnknownTimeZone', 'PeriodsFixed']))").message("billing.timeZone can't be changed once it is set: every period ends in it"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.application == oldSelf.application").message("application can't be changed, since the data is that application's: make another Tenant"),
)]
pub struct TenantSpec {
    /// The name that people see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub display_name: Option<String>,
    /// The Application that the tenant uses.
    #[schemars(length(min = 1, max = 63))]
    pub application: String,
    /// The Plan that the tenant bought; its tier holds unless `tier` says otherwise.
    #[schemars(length(min = 1, max = 63))]
    pub plan: String,
    /// The tier to run at; the plan's when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// The tenant's own people, who get rights in its namespace (tiers bridge and dedicated).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub owners: Option<Vec<Owner>>,
    /// How the tenant is billed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub billing: Option<Billing>,
    /// Logins are closed and routes removed while this is true; the data stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<bool>,
    /// What happens to the data when the Tenant is deleted; Retain when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// Hosts of the tenant's own, beside the one under the Application's domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15), inner(length(max = 253)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(host, host.matches('^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?[.])+[a-z]([-a-z0-9]{0,61}[a-z0-9])?$'))").message("a host is a DNS name in lower case with at least one dot, such as crm.acme.example; no wildcard, port, scheme or address"),
    )]
    pub hosts: Option<Vec<String>>,
    /// Settings of single components that differ from the plan's (tiers bridge and dedicated).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["component".into()]))]
    pub overrides: Option<Vec<ComponentOverride>>,
}

/// A person or group of the tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// User or Group.
    pub kind: OwnerKind,
    /// The name as the cluster's authentication knows it.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("!self.startsWith('system:')").message("an owner can't be one of Kubernetes' own identities (system:…): name a user or group of your identity provider"))]
    pub name: String,
}

/// What an owner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OwnerKind {
    /// One person.
    User,
    /// Several.
    Group,
}

/// How a tenant is billed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Billing {
    /// Where the first usage period begins; when the Tenant was made, when left out. Fixed with the
    /// tenant's first placement: one that is set later, to something else, is Stalled (`PeriodsFixed`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Time>,
    /// The IANA time zone in which usage periods end; UTC when left out. Fixed in the same way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$')").message("timeZone is an IANA name, such as Asia/Seoul"))]
    pub time_zone: Option<String>,
    /// Monthly when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycle: Option<BillingCycle>,
    /// Percent taken off, as a decimal string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    #[x_kube(validation = Rule::new("self.matches('^(100|[0-9]{1,2}([.][0-9]{1,2})?)$')").message("write a percentage between \"0\" and \"100\" as a decimal number in quotes, such as \"10\" or \"12.5\""))]
    pub discount: Option<String>,
    /// How long the contract runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Term>,
    /// The customer in your accounting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub customer_ref: Option<String>,
    /// The least that is invoiced for a period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<Money>,
    /// A base price of the tenant's own, instead of the plan's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_override: Option<Money>,
    /// Whether the tenant pays; Current when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<Standing>,
    /// Where the trial ends, if not where the plan says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial_end: Option<Time>,
    /// Leave this tenant out of key figures (a test account, say).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude_from_kpis: Option<bool>,
}

/// How often the tenant pays: Monthly (when left out), or Annual: a year in advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BillingCycle {
    /// Each month.
    Monthly,
    /// A year in advance.
    Annual,
}

/// How long a contract runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Term {
    /// Months from the start.
    #[schemars(range(min = 1, max = 120))]
    pub months: i32,
    /// Whether it goes on for as long again.
    #[serde(default)]
    pub auto_renew: bool,
}

/// Whether the tenant pays: Current (it does; when left out), PastDue (it is late) or Unpaid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Standing {
    /// It does.
    Current,
    /// It is late.
    PastDue,
    /// It does not.
    Unpaid,
}

/// What happens to the data when the Tenant is deleted: Retain (when left out) locks it and
/// keeps it for the plan's retention, Delete drops it at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It is locked and kept for the plan's retention.
    #[default]
    Retain,
    /// It is dropped at once.
    Delete,
}

/// Settings of one component for one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentOverride {
    /// The component's name.
    #[schemars(length(min = 1, max = 20))]
    pub component: String,
    /// Replicas, instead of the Plan's and the Application's; instead of an autoscaler, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000))]
    pub replicas: Option<i32>,
    /// Amounts, written over the Plan's and the template's: of the component's main container,
    /// the one of the component's name, else the first. What isn't named here stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// What the operator observed of a Tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The opaque id that names everything of this tenant in PostgreSQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The plan in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// The revision of the plan's price and trial that this tenant is pinned to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_revision: Option<String>,
    /// The tier in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Whether the tenant is suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<bool>,
    /// The Pool that the tenant is placed in (tier pooled).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The namespace that has the tenant's objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Where the tenant is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The hosts that lead to the tenant: the one under its Application's domain, then its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// Where the tenant's data is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<TenantDatabase>,
    /// Data that an earlier Tenant of this name left, while nobody has said what becomes of it:
    /// the Tenant waits, Stalled, and `tenantry adopt` gives it that data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<TenantConflict>,
    /// What the tenant uses, as far as the ledger knows; absent where nothing is metered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<TenantUsage>,
    /// The usage periods that are closed: at most 13, the newest first. The ledger has all of
    /// them, exactly and for longer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["start".into()]))]
    #[schemars(length(max = 13))]
    pub history: Vec<ClosedUsage>,
    /// What is true of the Tenant, and since when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Where a tenant's data is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantDatabase {
    /// The DatabaseServer.
    pub server: String,
    /// The database on it.
    pub database: String,
    /// The tenant's schema in it.
    pub schema: String,
    /// The Secret with the tenant's credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
    /// The value of annotation tenantry.io/rotate that was honoured last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated: Option<String>,
}

/// Data that an earlier Tenant of the same name left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantConflict {
    /// The DatabaseServer that has it.
    pub server: String,
    /// The database on it.
    pub database: String,
    /// UID of the Tenant that left it: the value for annotation tenantry.io/restore-from or
    /// tenantry.io/abandon.
    pub uid: String,
    /// The Application whose data it is.
    pub application: String,
    /// Whether the data is in use as far as its record knows, or was retained.
    pub state: ConflictState,
    /// From when on retained data may be dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_after: Option<Time>,
    /// The cluster that the data belongs to (UID of its namespace kube-system), where that is
    /// another one: `tenantry adopt --from-cluster` takes over all that it left on a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Since when this is known.
    pub since: Time,
}

/// How an ownership record stands: Live (its Tenant was lost, not deleted) or Retained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConflictState {
    /// Its Tenant was lost, not deleted.
    Live,
    /// Its Tenant was deleted, and the data is kept.
    Retained,
}

/// A Secret in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// The namespace.
    pub namespace: String,
    /// The Secret's name.
    pub name: String,
}
