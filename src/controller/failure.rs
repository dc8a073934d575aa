//! Why a reconcile could not finish, and when to try again.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    api::Reason,
    cluster, database,
    desired::{Fault, join_faults},
};

/// How long the first retry waits, and the longest that any waits.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How long something that is on its way is waited for, at most, before it is looked at again.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// The first wait, and the longest, until something is looked at again that a person has to
/// change. What they change is seen at once; this is for changes that no watch tells of, such as
/// those of an admission webhook. The first ones are soon: such a refusal may be a mishap.
const FIRST_REFUSED: Duration = Duration::from_secs(1);
const LONGEST_REFUSED: Duration = Duration::from_secs(300);

/// How to react to a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Try again, later and later.
    Transient,
    /// Look again soon.
    Waiting,
    /// A person has to change something.
    Permanent,
    /// A person has to take something away, which no watch may tell of.
    Obstructed,
}

impl Class {
    /// As logs and metrics name it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Waiting => "waiting",
            Self::Permanent => "permanent",
            Self::Obstructed => "obstructed",
        }
    }
}

/// Why a reconcile could not finish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) class: Class,
    /// One word for programs, for the condition.
    pub(super) reason: Reason,
    /// A sentence for people, for the condition.
    pub(super) message: String,
}

impl Failure {
    pub(super) fn waiting(reason: Reason, message: impl Into<String>) -> Self {
        Self { class: Class::Waiting, reason, message: message.into() }
    }

    pub(super) fn permanent(reason: Reason, message: impl Into<String>) -> Self {
        Self { class: Class::Permanent, reason, message: message.into() }
    }

    /// What is on a server can't be judged yet: its records are being read.
    pub(super) fn being_read(server: &str) -> Self {
        Self::waiting("DatabaseBeingRead", format!("the records on DatabaseServer {server} are being read"))
    }

    /// What is wrong with a resource; nothing without faults.
    pub(super) fn of(faults: &[Fault]) -> Option<Self> {
        faults.first().map(|fault| Self::permanent(fault.reason, join_faults(faults)))
    }

    pub(super) fn transient(reason: Reason, message: impl Into<String>) -> Self {
        Self { class: Class::Transient, reason, message: message.into() }
    }
}

impl From<cluster::Error> for Failure {
    fn from(error: cluster::Error) -> Self {
        let (class, reason) = match (&error, error.class()) {
            (cluster::Error::Foreign { .. }, _) => (Class::Obstructed, "ForeignObject"),
            (_, cluster::ErrorClass::Permanent) => (Class::Permanent, "ObjectRefused"),
            (_, cluster::ErrorClass::Waiting) => (Class::Waiting, "RightsPending"),
            (_, cluster::ErrorClass::Transient) => (Class::Transient, "ApiServerError"),
        };
        Self { class, reason, message: error.to_string() }
    }
}

impl From<database::Error> for Failure {
    fn from(error: database::Error) -> Self {
        let (class, reason) = match error.class() {
            database::ErrorClass::Transient => (Class::Transient, "DatabaseUnavailable"),
            database::ErrorClass::Waiting => (Class::Waiting, "DatabaseWaiting"),
            database::ErrorClass::Permanent => (Class::Permanent, "DatabaseError"),
        };
        Self { class, reason, message: error.to_string() }
    }
}

/// How many times in a row each object has failed.
#[derive(Default)]
pub(super) struct Backoff {
    failures: Mutex<HashMap<String, Failures>>,
}

/// The failures of one object.
#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    /// How many of them were reconciles that exceeded their deadline.
    overdue: u32,
    /// When the last wait is over. What fails before that was not a retry: something else
    /// called for a look, and a server that is away for a second must not cost minutes only
    /// because much happened in that second.
    until: Instant,
}

impl Failures {
    fn none(now: Instant) -> Self {
        Self { count: 0, overdue: 0, until: now }
    }
}

impl Backoff {
    /// The object is well.
    pub(super) fn reset(&self, object: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(object);
    }

    /// A reconcile exceeded its deadline; returns how many have since the object was well.
    pub(super) fn overdue(&self, object: &str, now: Instant) -> u32 {
        let mut all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = all.entry(object.to_owned()).or_insert(Failures::none(now));
        failures.overdue = failures.overdue.saturating_add(1);
        failures.overdue
    }

    /// How many times in a row an object has failed.
    pub(super) fn failures(&self, object: &str) -> u32 {
        let all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(object).map_or(0, |failures| failures.count)
    }

    /// How long to wait after this failure: doubled with each retry, spread by a quarter
    /// around, so that a thousand objects that failed together don't come back together.
    pub(super) fn next(&self, object: &str, class: Class, now: Instant) -> Duration {
        let mut all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = all.entry(object.to_owned()).or_insert(Failures::none(now));
        if now >= failures.until {
            failures.count = failures.count.saturating_add(1);
        }
        let factor = 2_u32.saturating_pow((failures.count - 1).min(16));
        let doubled = FIRST_RETRY.saturating_mul(factor);
        let wait = match class {
            Class::Transient => doubled.min(LONGEST_RETRY),
            Class::Waiting => doubled.min(LONGEST_WAIT),
            Class::Obstructed => LONGEST_WAIT,
            Class::Permanent => FIRST_REFUSED.saturating_mul(factor).min(LONGEST_REFUSED),
        };
        let wait = spread(wait, object, failures.count);
        failures.until = now + wait;
        wait
    }
}

fn spread(delay: Duration, object: &str, count: u32) -> Duration {
    let mut hasher = DefaultHasher::new();
    (object, count).hash(&mut hasher);
    let percent = 75 + u32::try_from(hasher.finish() % 51).unwrap_or(0);
    delay * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The waits of retries that come just when they are due.
    fn waits(backoff: &Backoff, object: &str, count: usize) -> Vec<Duration> {
        let mut now = Instant::now();
        let mut wait = || {
            let wait = backoff.next(object, Class::Transient, now);
            now += wait;
            wait
        };
        (0..count).map(|_| wait()).collect()
    }

    #[test]
    fn retries_wait_longer_each_time_and_start_anew_after_a_success() {
        let backoff = Backoff::default();
        let found = waits(&backoff, "a", 20);
        assert!(found[0] < Duration::from_millis(320), "{:?}", found[0]);
        assert!(found.windows(2).take(6).all(|pair| pair[0] < pair[1]), "{found:?}");
        assert!(found[19] <= LONGEST_RETRY * 5 / 4);
        backoff.reset("a");
        assert!(waits(&backoff, "a", 1)[0] < Duration::from_millis(320));
    }

    #[test]
    fn what_fails_before_its_time_does_not_wait_longer() {
        let (backoff, now) = (Backoff::default(), Instant::now());
        let found: Vec<_> = (0..20).map(|_| backoff.next("a", Class::Waiting, now)).collect();
        assert!(found.iter().all(|wait| *wait < Duration::from_millis(320)), "{found:?}");
    }

    #[test]
    fn deadlines_are_counted_until_an_object_is_well() {
        let (backoff, now) = (Backoff::default(), Instant::now());
        assert_eq!(backoff.overdue("a", now), 1);
        assert!(backoff.next("a", Class::Transient, now) < Duration::from_millis(320), "as after any first failure");
        assert_eq!((backoff.overdue("a", now), backoff.overdue("b", now)), (2, 1));
        backoff.reset("a");
        assert_eq!(backoff.overdue("a", now), 1);
    }

    #[test]
    fn objects_that_fail_together_do_not_come_back_together() {
        let backoff = Backoff::default();
        let found: std::collections::BTreeSet<_> = (0..50).flat_map(|n| waits(&backoff, &format!("t{n}"), 1)).collect();
        assert!(found.len() > 10, "{}", found.len());
    }
}
