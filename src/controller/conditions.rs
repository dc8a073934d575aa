//! From what a reconcile found out to conditions.

use jiff::Timestamp;

use super::failure::{Class, Failure};
use crate::api::{ConditionType, Verdict};

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
            Class::Permanent | Class::Obstructed => ConditionType::Stalled,
            Class::Transient | Class::Waiting => ConditionType::Reconciling,
        };
        vec![
            Verdict::no(ConditionType::Ready, failure.reason, failure.message.clone()),
            Verdict::yes(progress, failure.reason, failure.message.clone()),
        ]
    }
}
