//! How the watches do: which of them fail, and since when.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

/// Failures of a watch that are further apart than this have nothing to do with each other: a
/// watch that fails is tried again sooner. (One that works may be silent for hours, so that
/// nothing is heard of one that works again.)
const APART: Duration = Duration::from_secs(120);

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Watched {
    /// The kind of the objects.
    pub kind: String,
}

/// All watches of the process. Clones are the same ones.
#[derive(Clone, Default)]
pub struct Watches(Arc<Inner>);

#[derive(Default)]
struct Inner {
    restarts: Family<Watched, Counter>,
    failing: Mutex<HashMap<String, Failing>>,
}

/// A watch that fails again and again.
struct Failing {
    since: Instant,
    last: Instant,
    error: String,
}

impl Watches {
    /// A watch of all objects of a kind that there are, or that are of concern.
    pub fn of(&self, kind: impl Into<String>) -> Watch {
        let kind = kind.into();
        // Counted from 0 on, so that a rate sees the first failure too.
        drop(self.0.restarts.get_or_create(&Watched { kind: kind.clone() }));
        Watch { watches: self.clone(), kind, is_of_one_namespace: false }
    }

    /// A watch of a kind in one of many namespaces: that it fails concerns only what is there.
    pub fn of_one_namespace(&self, kind: impl Into<String>) -> Watch {
        Watch { is_of_one_namespace: true, ..self.of(kind) }
    }

    /// How often a watch failed and was begun again, by kind.
    pub fn restarts(&self) -> Family<Watched, Counter> {
        self.0.restarts.clone()
    }

    /// A watch that has failed for at least so long without a success, other than of one
    /// namespace: its kind and the last error.
    pub fn dead(&self, now: Instant, patience: Duration) -> Option<(String, String)> {
        let failing = self.failing();
        let mut dead: Vec<_> = failing
            .iter()
            .filter(|(_, it)| now.duration_since(it.last) < APART && it.last.duration_since(it.since) >= patience)
            .collect();
        dead.sort_by_key(|(kind, it)| (it.since, (*kind).clone()));
        dead.first().map(|(kind, it)| ((*kind).clone(), it.error.clone()))
    }

    fn failing(&self) -> MutexGuard<'_, HashMap<String, Failing>> {
        self.0.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, kind: &str, error: &str, now: Instant) {
        let mut failing = self.failing();
        let since = match failing.get(kind) {
            Some(before) if now.duration_since(before.last) < APART => before.since,
            _ => now,
        };
        failing.insert(kind.to_owned(), Failing { since, last: now, error: error.to_owned() });
    }
}

/// One watch.
#[derive(Clone)]
pub struct Watch {
    watches: Watches,
    kind: String,
    is_of_one_namespace: bool,
}

impl Watch {
    /// The kind that is watched.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Something came.
    pub(super) fn works(&self) {
        if !self.is_of_one_namespace {
            self.watches.failing().remove(&self.kind);
        }
    }

    /// It failed, and is begun again.
    pub(super) fn failed(&self, error: &str) {
        self.watches.0.restarts.get_or_create(&Watched { kind: self.kind.clone() }).inc();
        if !self.is_of_one_namespace {
            self.watches.failed(&self.kind, error, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(180);

    #[test]
    fn a_watch_is_dead_when_it_has_failed_for_long_and_still_does() {
        let (watches, begin) = (Watches::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        for seconds in (0..180).step_by(30) {
            watches.failed("Tenant", "refused", at(seconds));
            assert_eq!(watches.dead(at(seconds), PATIENCE), None);
        }
        watches.failed("Tenant", "gone", at(180));
        assert_eq!(watches.dead(at(181), PATIENCE), Some(("Tenant".into(), "gone".into())));
        assert_eq!(watches.dead(at(180) + APART, PATIENCE), None, "it works, and nothing has happened since");
        watches.failed("Tenant", "refused", at(180) + APART);
        assert_eq!(watches.dead(at(180) + APART, PATIENCE), None, "another failure");
    }

    #[test]
    fn what_comes_ends_a_failure_and_one_namespace_is_not_everything() {
        let watches = Watches::default();
        let (all, one) = (watches.of("Tenant"), watches.of_one_namespace("Secret"));
        all.failed("refused");
        one.failed("forbidden");
        assert!(watches.dead(Instant::now(), Duration::ZERO).is_some_and(|(kind, _)| kind == "Tenant"));
        all.works();
        assert_eq!(watches.dead(Instant::now(), Duration::ZERO), None);
        assert_eq!(watches.restarts().get_or_create(&Watched { kind: "Secret".into() }).get(), 1);
    }
}
