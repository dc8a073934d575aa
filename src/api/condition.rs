//! Conditions: what is true of an object, and since when.
//!
//! `Ready` is always there. `Reconciling`, `Stalled` and `MeteringDegraded` are there only while
//! true, as kstatus wants them. Every other condition is positive and stands for one concern.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The types of conditions that the operator writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConditionType {
    /// All that the spec asks for is there and works.
    Ready,
    /// The operator is at work, or waits for something that will come.
    Reconciling,
    /// The spec can't be fulfilled until somebody changes it; the last good state runs on.
    Stalled,
    /// A place (pool, namespace, database) is chosen and written down.
    Placed,
    /// The database, or the tenant's part of it, is there and proven to be isolated.
    DatabaseReady,
    /// The credentials in the Secret are the ones that the database server knows.
    CredentialsReady,
    /// The application's tables are at the newest version.
    Migrated,
    /// The tenant's own namespace is there, with everything in it but its containers.
    NamespaceReady,
    /// The containers that serve are available.
    WorkloadReady,
    /// The route leads to the tenant, and its parent has accepted it.
    RouteReady,
    /// The containers that serve are available, of a Pool.
    Available,
    /// Every component runs with the newest template, of a Pool or Tenant; every pool and
    /// tenant does, of an Application.
    RolledOut,
    /// The route's API is served by the cluster.
    RouteApiAvailable,
    /// Egress to the database is allowed by a declared peer.
    NetworkDeclared,
    /// The database server answers and its admin may do what is needed.
    Reachable,
    /// The relay's objects and logins are as they should be, of a DatabaseServer.
    RelayReady,
    /// What was counted in a server's databases gets into the ledger.
    UsageDelivered,
    /// No meter of a Tenant is above its limit.
    WithinLimits,
    /// Every usage event of a Tenant is known to have arrived.
    UsageComplete,
    /// What an application counted, and its own count when it compared the two last, agreed. Only
    /// where it compares.
    UsageReconciled,
    /// Usage doesn't get into the ledger, or out of it, as it should: what status says of it may
    /// be old.
    MeteringDegraded,
}

/// The conditions of a Tenant that speak of its usage, which a writer of their own looks after.
pub const METERING: [ConditionType; 4] = [
    ConditionType::WithinLimits,
    ConditionType::UsageComplete,
    ConditionType::UsageReconciled,
    ConditionType::MeteringDegraded,
];

impl ConditionType {
    /// The condition's type as it is written in status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::Placed => "Placed",
            Self::DatabaseReady => "DatabaseReady",
            Self::CredentialsReady => "CredentialsReady",
            Self::Migrated => "Migrated",
            Self::NamespaceReady => "NamespaceReady",
            Self::WorkloadReady => "WorkloadReady",
            Self::RouteReady => "RouteReady",
            Self::Available => "Available",
            Self::RolledOut => "RolledOut",
            Self::RouteApiAvailable => "RouteApiAvailable",
            Self::NetworkDeclared => "NetworkDeclared",
            Self::Reachable => "Reachable",
            Self::RelayReady => "RelayReady",
            Self::UsageDelivered => "UsageDelivered",
            Self::WithinLimits => "WithinLimits",
            Self::UsageComplete => "UsageComplete",
            Self::UsageReconciled => "UsageReconciled",
            Self::MeteringDegraded => "MeteringDegraded",
        }
    }
}

/// Why a condition is as it is: one CamelCase word for programs.
pub type Reason = &'static str;

/// What one check found out about one concern; it becomes a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The concern.
    pub kind: ConditionType,
    /// Whether it holds; `None` is Unknown.
    pub holds: Option<bool>,
    /// One word for programs.
    pub reason: Reason,
    /// A sentence for people: what is, and where it is bad, what to change.
    pub message: String,
}

impl Verdict {
    /// The concern holds.
    pub fn yes(kind: ConditionType, reason: Reason, message: impl Into<String>) -> Self {
        Self { kind, holds: Some(true), reason, message: message.into() }
    }

    /// The concern does not hold (yet).
    pub fn no(kind: ConditionType, reason: Reason, message: impl Into<String>) -> Self {
        Self { kind, holds: Some(false), reason, message: message.into() }
    }

    /// Nothing is known of the concern.
    pub fn unknown(kind: ConditionType, reason: Reason, message: impl Into<String>) -> Self {
        Self { kind, holds: None, reason, message: message.into() }
    }
}

/// A status with conditions.
pub trait HasConditions {
    /// The conditions.
    fn conditions(&self) -> &[Condition];
    /// The conditions, to be changed.
    fn conditions_mut(&mut self) -> &mut Vec<Condition>;
}

macro_rules! has_conditions {
    ($($status:ident),*) => {$(
        impl HasConditions for super::$status {
            fn conditions(&self) -> &[Condition] {
                &self.conditions
            }

            fn conditions_mut(&mut self) -> &mut Vec<Condition> {
                &mut self.conditions
            }
        }
    )*};
}

has_conditions!(ApplicationStatus, DatabaseServerStatus, PlanStatus, PoolStatus, TenantStatus);

/// The longest message that the API server takes, in bytes (its own limit is 32 KiB).
const MESSAGE_LIMIT: usize = 4_096;

/// The new list of conditions: one for each verdict, in the order of the verdicts.
///
/// The time of transition is kept where the status of a condition did not change, so that
/// equal verdicts give equal conditions; it has whole seconds, as Kubernetes stores it.
pub fn merge_conditions(
    old: &[Condition],
    verdicts: &[Verdict],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    verdicts
        .iter()
        .map(|verdict| {
            let status = match verdict.holds {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let since = find_condition(old, verdict.kind)
                .filter(|condition| condition.status == status)
                .map(|condition| condition.last_transition_time.clone());
            Condition {
                type_: verdict.kind.as_str().to_owned(),
                status: status.to_owned(),
                reason: verdict.reason.to_owned(),
                message: truncate(&verdict.message),
                observed_generation: generation,
                last_transition_time: since.unwrap_or_else(|| Time(whole_seconds(now))),
            }
        })
        .collect()
}

/// Keeps conditions of these types as they were where the new list doesn't have them: a
/// concern that was not looked at this time. Their generation stays that of the last look.
pub fn keep_conditions(new: &mut Vec<Condition>, old: &[Condition], kinds: &[ConditionType]) {
    for &kind in kinds.iter().filter(|kind| find_condition(old, **kind).is_some()) {
        if find_condition(new, kind).is_none() {
            new.extend(find_condition(old, kind).cloned());
        }
    }
}

/// The condition of a type, if it is there.
pub fn find_condition(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == kind.as_str())
}

/// Whether a condition is there and True.
pub fn is_true(conditions: &[Condition], kind: ConditionType) -> bool {
    find_condition(conditions, kind).is_some_and(|condition| condition.status == "True")
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn truncate(message: &str) -> String {
    if message.len() <= MESSAGE_LIMIT {
        return message.to_owned();
    }
    let end = (0..=MESSAGE_LIMIT).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
    format!("{}…", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a valid second")
    }

    #[test]
    fn the_time_of_transition_changes_with_the_status_alone() {
        let first = merge_conditions(&[], &[Verdict::no(ConditionType::Ready, "Waiting", "a")], Some(1), at(10));
        let second = merge_conditions(&first, &[Verdict::no(ConditionType::Ready, "Other", "b")], Some(2), at(20));
        assert_eq!(second[0].last_transition_time, Time(at(10)));
        let third = merge_conditions(&second, &[Verdict::yes(ConditionType::Ready, "Ready", "")], Some(2), at(30));
        assert_eq!(third[0].last_transition_time, Time(at(30)));
    }

    #[test]
    fn a_condition_without_a_verdict_goes() {
        let first = merge_conditions(&[], &[Verdict::yes(ConditionType::Stalled, "X", "x")], None, at(1));
        assert!(merge_conditions(&first, &[], None, at(2)).is_empty());
    }

    #[test]
    fn a_concern_that_was_not_looked_at_stays_as_it_was() {
        let old = merge_conditions(&[], &[Verdict::yes(ConditionType::Placed, "X", "x")], Some(1), at(1));
        let mut new = merge_conditions(&old, &[Verdict::no(ConditionType::Ready, "Y", "y")], Some(2), at(2));
        keep_conditions(&mut new, &old, &[ConditionType::Placed, ConditionType::Migrated, ConditionType::Ready]);
        assert_eq!(new.len(), 2);
        assert_eq!(find_condition(&new, ConditionType::Placed).and_then(|placed| placed.observed_generation), Some(1));
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let long = "é".repeat(MESSAGE_LIMIT);
        let cut = merge_conditions(&[], &[Verdict::yes(ConditionType::Ready, "X", long)], None, at(1));
        assert!(cut[0].message.len() <= MESSAGE_LIMIT + '…'.len_utf8());
        assert!(cut[0].message.ends_with('…'));
    }
}
