//! From what a reconcile found out to conditions.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::failure::{Class, Failure};
use crate::api::{ConditionType, Verdict, find_condition};

/// The time, for conditions' transitions.
pub(super) fn now() -> Timestamp {
    Timestamp::now()
}

/// The concerns of an object, each looked at in turn, and how they come to `Ready`.
#[derive(Debug, Default)]
pub(super) struct Concerns {
    verdicts: Vec<Verdict>,
    /// The first concern that doesn't hold, with how to react.
    blocked: Option<Failure>,
}

impl Concerns {
    /// A concern holds.
    pub(super) fn holds(&mut self, kind: ConditionType, reason: &'static str, message: impl Into<String>) {
        self.verdicts.push(Verdict::yes(kind, reason, message));
    }

    /// A concern doesn't hold. The first one that doesn't gives `Ready` its reason.
    pub(super) fn fails(&mut self, kind: ConditionType, failure: Failure) {
        self.verdicts.push(Verdict::no(kind, failure.reason, failure.message.clone()));
        self.blocked.get_or_insert(failure);
    }

    /// What every concern comes to: `Ready`, with `Reconciling` or `Stalled` while true.
    pub(super) fn verdicts(&self, ready_message: &str) -> Vec<Verdict> {
        let mut verdicts = match &self.blocked {
            None => vec![Verdict::yes(ConditionType::Ready, "Ready", ready_message)],
            Some(failure) => Self::not_ready(failure),
        };
        verdicts.extend(self.verdicts.iter().cloned());
        verdicts
    }

    /// The first concern that doesn't hold.
    pub(super) fn blocked(self) -> Option<Failure> {
        self.blocked
    }

    /// `Ready` is false; `Stalled` where a person has to act, `Reconciling` elsewhere.
    pub(super) fn not_ready(failure: &Failure) -> Vec<Verdict> {
        let progress = match failure.class {
            Class::Permanent => ConditionType::Stalled,
            Class::Transient | Class::Waiting => ConditionType::Reconciling,
        };
        vec![
            Verdict::no(ConditionType::Ready, failure.reason, failure.message.clone()),
            Verdict::yes(progress, failure.reason, failure.message.clone()),
        ]
    }
}

/// Adds the old conditions of those `concerns` that this reconcile didn't come to: they stay
/// as they were, and speak of the generation that they were found with.
pub(super) fn keep_unreached(old: &[Condition], conditions: &mut Vec<Condition>, concerns: &[ConditionType]) {
    for &kind in concerns {
        if find_condition(conditions, kind).is_none()
            && let Some(condition) = find_condition(old, kind)
        {
            conditions.push(condition.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::merge_conditions;

    #[test]
    fn what_was_not_reached_stays_as_it_was() {
        let verdicts = [
            Verdict::yes(ConditionType::Ready, "Ready", ""),
            Verdict::yes(ConditionType::RouteReady, "Accepted", "a"),
            Verdict::yes(ConditionType::Migrated, "Current", "b"),
        ];
        let old = merge_conditions(&[], &verdicts, Some(1), now());
        let mut new = merge_conditions(&old, &[Verdict::no(ConditionType::Ready, "HostTaken", "c")], Some(2), now());
        keep_unreached(&old, &mut new, &[ConditionType::Ready, ConditionType::RouteReady]);
        assert_eq!(new.len(), 2);
        assert_eq!((new[0].status.as_str(), new[0].observed_generation), ("False", Some(2)));
        assert_eq!(new[1], old[1]);
    }
}
