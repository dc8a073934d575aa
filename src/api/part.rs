//! Who says what in a status that more than one writer has.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;

use super::{
    ApplicationStatus, ClosedUsage, DatabaseServerStatus, FIELD_MANAGER, FIELD_MANAGER_METERING, METERING, PlanStatus,
    PoolStatus, TenantStatus, TenantUsage,
};

/// What one writer says in a status. What the others say is none of its business: it neither
/// writes that nor takes it away.
pub trait StatusPart: Clone + PartialEq + Serialize {
    /// The whole status.
    type Whole: Clone + Default + Serialize;

    /// As whom it is written.
    const MANAGER: &'static str;

    /// This writer's part of a status.
    #[must_use]
    fn of(whole: &Self::Whole) -> Self;

    /// The status with this in place of the writer's part.
    #[must_use]
    fn within(self, whole: Self::Whole) -> Self::Whole;
}

/// A status that has one writer.
pub trait OneWriter: Clone + Default + PartialEq + Serialize {}

impl OneWriter for ApplicationStatus {}
impl OneWriter for DatabaseServerStatus {}
impl OneWriter for PlanStatus {}
impl OneWriter for PoolStatus {}

impl<T: OneWriter> StatusPart for T {
    type Whole = Self;
    const MANAGER: &'static str = FIELD_MANAGER;

    fn of(whole: &Self) -> Self {
        whole.clone()
    }

    fn within(self, _: Self) -> Self {
        self
    }
}

/// What a Tenant's status says of its usage: all else is the Tenant's controller's.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantMetering {
    /// What it uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<TenantUsage>,
    /// The periods that are closed, the newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<ClosedUsage>,
    /// The conditions that speak of usage.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

fn is_of_metering(condition: &Condition) -> bool {
    METERING.iter().any(|kind| kind.as_str() == condition.type_)
}

impl StatusPart for TenantMetering {
    type Whole = TenantStatus;
    const MANAGER: &'static str = FIELD_MANAGER_METERING;

    fn of(whole: &TenantStatus) -> Self {
        Self {
            usage: whole.usage.clone(),
            history: whole.history.clone(),
            conditions: whole.conditions.iter().filter(|condition| is_of_metering(condition)).cloned().collect(),
        }
    }

    fn within(self, mut whole: TenantStatus) -> TenantStatus {
        whole.usage = self.usage;
        whole.history = self.history;
        whole.conditions.retain(|condition| !is_of_metering(condition));
        whole.conditions.extend(self.conditions);
        whole
    }
}

impl StatusPart for TenantStatus {
    type Whole = Self;
    const MANAGER: &'static str = FIELD_MANAGER;

    fn of(whole: &Self) -> Self {
        TenantMetering::default().within(whole.clone())
    }

    fn within(self, whole: Self) -> Self {
        TenantMetering::of(&whole).within(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ConditionType, Verdict, merge_conditions};

    #[test]
    fn two_writers_of_a_status_keep_each_others_part() {
        let verdicts = [
            Verdict::yes(ConditionType::Ready, "Ready", "it is"),
            Verdict::yes(ConditionType::WithinLimits, "WithinLimits", "it is"),
        ];
        let at = |second| jiff::Timestamp::from_second(second).expect("a time");
        let whole = TenantStatus {
            pool: Some("crm-1".into()),
            conditions: merge_conditions(&[], &verdicts, None, at(1)),
            ..TenantStatus::default()
        };
        let (own, metering) = (TenantStatus::of(&whole), TenantMetering::of(&whole));
        let kinds = |conditions: &[Condition]| conditions.iter().map(|it| it.type_.clone()).collect::<Vec<_>>();
        assert_eq!(kinds(&own.conditions), ["Ready"]);
        assert_eq!(kinds(&metering.conditions), ["WithinLimits"]);
        assert_eq!(own.clone().within(whole.clone()), whole);
        assert_eq!(metering.clone().within(whole.clone()), whole);
        let moved = TenantStatus { pool: Some("crm-2".into()), ..own }.within(whole.clone());
        assert_eq!((moved.pool.as_deref(), TenantMetering::of(&moved)), (Some("crm-2"), metering));
        let emptied = TenantMetering::default().within(whole);
        assert_eq!((emptied.pool.as_deref(), kinds(&emptied.conditions)), (Some("crm-1"), vec!["Ready".to_owned()]));
    }
}
