//! Whether this process does what it is for.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// After how many deadlines of a reconcile without one that ended, while some wait, reconciling
/// counts as stopped: each of them ends within one.
const DEADLINES: u32 = 3;

/// For how long a watch may fail until the operator is no longer ready.
pub(super) const WATCH_PATIENCE: Duration = Duration::from_secs(180);

/// How far this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It can't work with the definitions that are installed.
    Waiting,
    /// Another one leads, or none yet.
    Standby,
    /// It leads, and learns what is there.
    Learning,
    /// It leads and reconciles.
    Reconciling,
    /// It was asked to end.
    Ending,
}

/// What health is judged by.
#[derive(Clone, Debug)]
pub(super) struct Signs {
    pub(super) phase: Phase,
    /// What is wrong with the definitions.
    pub(super) definitions: Option<String>,
    /// A watch that has failed for long, and why.
    pub(super) dead_watch: Option<(String, String)>,
    /// How each queue does in which an object waits.
    pub(super) queues: Vec<Progress>,
    /// How long a reconcile may take.
    pub(super) deadline: Duration,
}

/// How a queue does. Each by itself: that one goes on says nothing about another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) kind: &'static str,
    /// How long its oldest object has waited.
    pub(super) oldest: Duration,
    /// How long ago a reconcile of this kind came to its end, or all of them began.
    pub(super) idle: Duration,
}

/// Whether the process is ready.
///
/// # Errors
/// Why it is not, and what to do.
pub(super) fn judge(signs: &Signs) -> Result<&'static str, String> {
    if let Some(fault) = &signs.definitions {
        return Err(fault.clone());
    }
    match signs.phase {
        Phase::Waiting => return Err("the definitions are being looked at".into()),
        Phase::Standby => return Ok("standing by"),
        Phase::Ending => return Err("ending".into()),
        Phase::Learning | Phase::Reconciling => {}
    }
    if let Some((kind, error)) = &signs.dead_watch {
        return Err(format!(
            "the watch of {kind} has failed for more than {WATCH_PATIENCE:?}: {error}: see to the API server and to ClusterRole tenantry"
        ));
    }
    if signs.phase == Phase::Learning {
        return Err("not all resources are known yet".into());
    }
    let patience = signs.deadline * DEADLINES;
    let stopped = signs.queues.iter().find(|queue| queue.oldest > patience && queue.idle > patience);
    stopped.map_or(Ok("leading"), |Progress { kind, oldest, idle }| {
        Err(format!(
            "reconciling has stopped: a {kind} has waited for {oldest:.0?}, and none was done for {idle:.0?}: see to what its log says is slow, or restart this pod and report its log"
        ))
    })
}

/// The state that [`Signs`] are taken from.
pub(super) struct Health {
    /// The phase, and since when it is that.
    phase: Mutex<(Phase, Instant)>,
}

impl Default for Health {
    fn default() -> Self {
        Self { phase: Mutex::new((Phase::Waiting, Instant::now())) }
    }
}

impl Health {
    pub(super) fn phase(&self) -> Phase {
        self.lock().0
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        *self.lock() = (phase, Instant::now());
    }

    /// For how long the phase has been what it is.
    pub(super) fn in_phase(&self) -> Duration {
        self.lock().1.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, (Phase, Instant)> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(phase: Phase) -> Signs {
        let deadline = Duration::from_secs(60);
        Signs { phase, definitions: None, dead_watch: None, queues: Vec::new(), deadline }
    }

    #[test]
    fn a_standby_and_a_leader_at_rest_are_ready() {
        assert_eq!(judge(&signs(Phase::Standby)), Ok("standing by"));
        assert_eq!(judge(&signs(Phase::Reconciling)), Ok("leading"));
        for phase in [Phase::Waiting, Phase::Learning, Phase::Ending] {
            assert!(judge(&signs(phase)).is_err(), "{phase:?}");
        }
    }

    #[test]
    fn a_leader_that_does_nothing_of_what_waits_is_not_ready() {
        let queue = |kind, oldest: u64, idle: u64| Progress {
            kind,
            oldest: Duration::from_secs(oldest * 60),
            idle: Duration::from_secs(idle * 60),
        };
        let at = |queues: &[Progress]| judge(&Signs { queues: queues.to_vec(), ..signs(Phase::Reconciling) });
        assert!(at(&[queue("Tenant", 4, 4)]).is_err_and(|why| why.contains("reconciling has stopped: a Tenant")));
        assert_eq!(at(&[queue("Tenant", 4, 1)]), Ok("leading"), "it is slow, and at work");
        assert_eq!(at(&[queue("Tenant", 1, 4)]), Ok("leading"), "it was at rest until a moment ago");
        let beside = [queue("DatabaseServer", 0, 0), queue("Tenant", 4, 4)];
        assert!(at(&beside).is_err_and(|why| why.contains("a Tenant")), "that another queue goes on changes nothing");
        assert_eq!(at(&[queue("DatabaseServer", 4, 0), queue("Tenant", 0, 4)]), Ok("leading"), "each by itself");
    }

    #[test]
    fn definitions_and_watches_say_what_is_wrong() {
        let old = Signs { definitions: Some("older".into()), ..signs(Phase::Standby) };
        assert_eq!(judge(&old), Err("older".into()), "a standby could not take over");
        let deaf = Signs { dead_watch: Some(("Tenant".into(), "forbidden".into())), ..signs(Phase::Reconciling) };
        assert!(judge(&deaf).is_err_and(|why| why.contains("Tenant") && why.contains("forbidden")));
    }
}
