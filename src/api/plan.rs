//! Plan: what a tenant bought.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, Money, Quantities, Resources, Size, Tier};

/// What a tenant bought: limits, price, quota and the tier it runs at.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tenantry.io",
    version = "v1alpha1",
    kind = "Plan",
    plural = "plans",
    shortname = "tplan",
    category = "tenantry",
    doc = "What a tenant bought: limits, price, quota and the tier it runs at.",
    status = "PlanStatus",
    derive = "PartialEq",
    printcolumn(name = "Tier", type_ = "string", json_path = ".spec.tier"),
    printcolumn(name = "Currency", type_ = "string", json_path = ".spec.price.currency"),
    printcolumn(name = "Base", type_ = "string", json_path = ".spec.price.base"),
    printcolumn(name = "Tenants", type_ = "integer", json_path = ".status.tenants"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("a Plan's name has at most 63 characters, lower-case letters, digits and '-', and begins and ends with a letter or digit"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.allowedTiers) || size(self.allowedTiers) == 0 || self.tier in self.allowedTiers").message("tier is not among allowedTiers: add it there, or choose one of them"),
    validation = Rule::new("!has(self.trial) || !has(self.trial.downgradeTo) || self.trial.onEnd == 'Downgrade'").message("trial.downgradeTo is for trial.onEnd Downgrade alone: remove it, or set onEnd to Downgrade"),
)]
pub struct PlanSpec {
    /// The name that people see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub display_name: Option<String>,
    /// The tier of a tenant that names none.
    pub tier: Tier,
    /// The tiers that a tenant may choose; only `tier` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 3))]
    pub allowed_tiers: Option<Vec<Tier>>,
    /// Limits by meter; a meter that is not named is unlimited. Limits are live: a change
    /// reaches every tenant of the plan at once, refuses new use and removes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("self.all(name, name.size() <= 40 && name.matches('^[a-z]([a-z0-9_]*[a-z0-9])?$'))").message("a meter's name has at most 40 characters: lower-case letters, digits and '_', beginning with a letter"))]
    pub limits: Option<BTreeMap<String, Limit>>,
    /// What it costs; free when left out. A published price never changes under a paying
    /// tenant: revisions are kept, and a tenant is pinned to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// The free time at the start; none when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
    /// How a change within a period is charged: by the second, by the day, or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proration: Option<Proration>,
    /// The ResourceQuota of the tenant's namespace (tiers bridge and dedicated). It needs room
    /// for every replica and for those that a rollout adds; where there is none, the Tenant's
    /// condition says how much is missing, and nothing is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quantities>,
    /// The LimitRange of the tenant's namespace, for containers (tiers bridge and dedicated).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_range: Option<LimitRangeSettings>,
    /// Resources and replicas by component (tiers bridge and dedicated).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 16))]
    pub components: Option<BTreeMap<String, PlanComponent>>,
    /// What one tenant may take of a database server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<PlanDatabase>,
    /// How long the data of a deleted tenant is kept (deletionPolicy Retain); 30d when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Duration>,
}

/// The most that a tenant may have of a meter, and what happens beyond it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.policy)").message("a limit needs a policy: set it to Hard (refuse), Soft (only report) or Grace (refuse after days, or beyond percent)"),
    validation = Rule::new("!has(self.policy) || self.policy == 'Grace' || (!has(self.days) && !has(self.percent))").message("days and percent are for policy Grace alone: remove them, or set policy to Grace"),
    validation = Rule::new("!has(self.policy) || self.policy != 'Grace' || (has(self.days) && has(self.percent))").message("policy Grace needs days (how long) and percent (how far) beyond max"),
)]
pub struct Limit {
    /// The most, in the meter's unit.
    #[schemars(range(min = 0, max = 9_000_000_000_000_000_i64))]
    pub max: i64,
    /// What happens beyond `max`. Required; optional in the schema so that its absence gets
    /// a message that says what to write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<LimitPolicy>,
    /// Grace: days beyond `max` are accepted for this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 365))]
    pub days: Option<i32>,
    /// Grace: never more than `max` and this many percent of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000))]
    pub percent: Option<i32>,
}

/// What happens beyond `max`; required. Hard: use beyond it is refused, exactly. Soft: it is
/// counted and reported. Grace: it is accepted for `days` and up to `percent`, then refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LimitPolicy {
    /// Use beyond it is refused, exactly.
    Hard,
    /// Use beyond it is counted and reported.
    Soft,
    /// Use beyond it is accepted for some days and up to some percent, then refused.
    Grace,
}

/// What a plan costs, in decimal strings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// ISO 4217 code.
    #[schemars(length(max = 3))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Z]{3}$')").message("write the currency as its ISO 4217 code of three capital letters, such as KRW, USD or EUR"))]
    pub currency: String,
    /// Per month.
    pub base: Money,
    /// Per unit of a meter and month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["meter".into()]))]
    pub per_unit: Option<Vec<UnitPrice>>,
    /// Percent taken off when paid for a year.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^(100|[0-9]{1,2}([.][0-9]{1,2})?)$')").message("write a percentage between \"0\" and \"100\" as a decimal number in quotes, such as \"10\" or \"12.5\""))]
    #[schemars(length(max = 8))]
    pub annual_discount_percent: Option<String>,
}

/// The price of one unit of a meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnitPrice {
    /// The meter's name.
    #[schemars(length(min = 1, max = 40))]
    pub meter: String,
    /// For each unit beyond those included.
    pub amount: Money,
    /// Units that the base price covers.
    #[serde(default)]
    #[schemars(range(min = 0, max = 9_000_000_000_000_000_i64))]
    pub included: i64,
}

/// Free time at the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.onEnd != 'Downgrade' || has(self.downgradeTo)").message("trial.onEnd Downgrade needs trial.downgradeTo: name the Plan to move to"))]
pub struct Trial {
    /// How long it lasts.
    #[schemars(range(min = 1, max = 730))]
    pub days: i32,
    /// What happens at its end.
    pub on_end: TrialEnd,
    /// The Plan to move to, for `Downgrade`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub downgrade_to: Option<String>,
}

/// What happens at the end of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrialEnd {
    /// The tenant pays from then on.
    Convert,
    /// The tenant is suspended.
    Suspend,
    /// The tenant moves to another plan.
    Downgrade,
}

/// How a change within a period is charged: by the Second (when left out), by the Day, or
/// None: from the next period on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Proration {
    /// By the second.
    Second,
    /// By the day.
    Day,
    /// From the next period on.
    None,
}

/// The LimitRange of a tenant's namespace, for containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitRangeSettings {
    /// The limits of a container that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Quantities>,
    /// The requests of a container that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_request: Option<Quantities>,
    /// The most that a container may name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Quantities>,
    /// The least that a container may name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Quantities>,
}

/// What a plan says of one component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanComponent {
    /// Replicas, instead of the Application's; instead of its autoscaler, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000))]
    pub replicas: Option<i32>,
    /// Amounts, written over those of the component's main container: the one of the
    /// component's name, else the first. What isn't named here stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// What one tenant may take of a database server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanDatabase {
    /// The most connections at a time; 10 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub connection_limit: Option<i32>,
    /// The most temporary disk space of one session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temp_file_limit: Option<Size>,
    /// The longest that one statement may run; 30s when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement_timeout: Option<Duration>,
    /// The longest that one transaction may stay open; 60s when left out. A session beyond
    /// it is ended, since one open snapshot slows every tenant of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_transaction: Option<Duration>,
}

/// What the operator observed of a Plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many Tenants name this Plan.
    #[serde(default)]
    pub tenants: i64,
    /// The newest revision of price and trial; new tenants are pinned to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What is true of the Plan, and since when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
