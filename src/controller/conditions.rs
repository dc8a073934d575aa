//! From what a reconcile found out to conditions.

use jiff::Timestamp;

use super::failure::{Class, Failure};
use crate::api::{ConditionType, Reason, Verdict};

/// The time, for conditions' transitions.
pub(super) fn now() -> Timestamp {
    Timestamp::now()
}

/// The concerns of an object, each looked at in turn, and how they come to `Ready`.
#[derive(Debug, Default)]
pub(super) struct Concerns {
    verdicts: Vec<Verdict>,
    /// What is wrong with the spec, or what it refers to. What runs runs on, so that there is
    /// nothing to try again, and all else is looked at as ever.
    fault: Option<Failure>,
    /// The first concern that doesn't hold, with how to react.
    blocked: Option<Failure>,
    /// Why the object is not to be ready, where that is just what its spec asks for.
    rest: Option<(Reason, &'static str)>,
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

    /// The spec has a fault, which gives `Ready` its reason before all concerns.
    pub(super) fn stalls(&mut self, fault: Failure) {
        self.fault.get_or_insert(fault);
    }

    /// A concern doesn't hold, since the spec, or what it refers to, has a fault.
    pub(super) fn is_at_fault(&mut self, kind: ConditionType, fault: Failure) {
        self.verdicts.push(Verdict::no(kind, fault.reason, fault.message.clone()));
        self.stalls(fault);
    }

    /// A concern that says nothing about `Ready`, whether it holds or not.
    pub(super) fn notes(&mut self, verdict: Verdict) {
        self.verdicts.push(verdict);
    }

    /// A concern doesn't hold, as it should be: nobody has to act, and nothing is under way.
    pub(super) fn rests(&mut self, kind: ConditionType, reason: Reason, message: &'static str) {
        self.verdicts.push(Verdict::no(kind, reason, message));
        self.rest = Some((reason, message));
    }

    /// What every concern comes to: `Ready`, with `Reconciling` or `Stalled` while true.
    pub(super) fn verdicts(&self, ready_message: &str) -> Vec<Verdict> {
        let mut verdicts = match (self.fault.as_ref().or(self.blocked.as_ref()), self.rest) {
            (Some(failure), _) => Self::not_ready(failure),
            (None, Some((reason, message))) => vec![Verdict::no(ConditionType::Ready, reason, message)],
            (None, None) => vec![Verdict::yes(ConditionType::Ready, "Ready", ready_message)],
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
