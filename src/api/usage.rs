//! What a tenant uses, as its status says it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What a tenant uses. It is written when something changes, a little later than that happened:
/// for invoices and programs, read it from the operator's API (`GET /v1/tenants/NAME/usage`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantUsage {
    /// When this was so. It changes only where something else does.
    pub as_of: Time,
    /// The usage period that this is in.
    pub period: UsagePeriod,
    /// Each meter that the Application declares, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub meters: Vec<MeterUsage>,
}

/// A usage period: from its start until before its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsagePeriod {
    /// Its first moment.
    pub start: Time,
    /// The first moment of the next one.
    pub end: Time,
}

/// What a tenant uses of one meter. A count beyond 9007199254740991 (2^53 - 1, the most that every
/// reader of JSON takes exactly) is shown as that number, except in `display`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeterUsage {
    /// The meter.
    pub name: String,
    /// Of a Level meter, how many there are; of a Total, how much was used in the period.
    pub current: i64,
    /// Of a Level meter, the most that there were at a time in the period. Of source API, whose
    /// events come in no order, only `history` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak: Option<i64>,
    /// Of a Level meter, how many there were on average over the period's time until `asOf`, as a
    /// decimal string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average: Option<String>,
    /// The Plan's limit; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// For people: `42/50`, or `310` without a limit.
    pub display: String,
    /// Whether every event up to then is known to have arrived. Never true of a meter of source
    /// API, since nobody can say what didn't arrive of these.
    pub complete: bool,
}

/// What a tenant used in a period that is closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClosedUsage {
    /// The period's first moment.
    pub start: Time,
    /// The first moment of the next one.
    pub end: Time,
    /// True where it was closed without proof that everything had arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated: Option<bool>,
    /// The Application's first meters, in its order: so many that all periods together have 40 at
    /// most, and each 3 in any case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub meters: Vec<ClosedMeterUsage>,
}

/// What a tenant used of one meter in a period that is closed. Counts are shown as in `usage`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClosedMeterUsage {
    /// The meter.
    pub name: String,
    /// Of a Level meter, how many there were at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing: Option<i64>,
    /// Of a Level meter, the most that there were at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak: Option<i64>,
    /// Of a Level meter, how many there were on average over time, as a decimal string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average: Option<String>,
    /// Of a Total, how much was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<i64>,
    /// What was counted for the period after it was closed, in all; the other figures are without
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adjusted: Option<i64>,
}
