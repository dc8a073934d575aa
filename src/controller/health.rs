//! Whether this process does what it is for.

use std::{
    sync::{Mutex, PoisonError},
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
    /// How long the oldest object in a queue has waited.
    pub(super) oldest: Option<Duration>,
    /// How long ago a reconcile ended.
    pub(super) idle: Duration,
    /// How long a reconcile may take.
    pub(super) deadline: Duration,
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
    match signs.oldest {
        Some(oldest) if oldest > patience && signs.idle > patience => Err(format!(
            "reconciling has stopped: an object has waited for {oldest:.0?}, and none was done for {:.0?}: restart this pod and report its log",
            signs.idle
        )),
        _ => Ok("leading"),
    }
}

/// The state that [`Signs`] are taken from.
pub(super) struct Health {
    phase: Mutex<Phase>,
    last: Mutex<Instant>,
}

impl Default for Health {
    fn default() -> Self {
        Self { phase: Mutex::new(Phase::Waiting), last: Mutex::new(Instant::now()) }
    }
}

impl Health {
    pub(super) fn phase(&self) -> Phase {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.did_something();
    }

    /// A reconcile ended.
    pub(super) fn did_something(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long ago a reconcile ended.
    pub(super) fn idle(&self) -> Duration {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(phase: Phase) -> Signs {
        let deadline = Duration::from_secs(60);
        Signs { phase, definitions: None, dead_watch: None, oldest: None, idle: Duration::ZERO, deadline }
    }

    #[test]
    fn a_standby_and_a_leader_at_rest_are_ready() {
        assert_eq!(judge(&signs(Phase::Standby)), Ok("standing by"));
        let at_rest = Signs { idle: Duration::from_secs(86_400), ..signs(Phase::Reconciling) };
        assert_eq!(judge(&at_rest), Ok("leading"));
        for phase in [Phase::Waiting, Phase::Learning, Phase::Ending] {
            assert!(judge(&signs(phase)).is_err(), "{phase:?}");
        }
    }

    #[test]
    fn a_leader_that_does_nothing_of_what_waits_is_not_ready() {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        let at = |oldest, idle| judge(&Signs { oldest: Some(oldest), idle, ..signs(Phase::Reconciling) });
        assert!(at(minutes(4), minutes(4)).is_err_and(|why| why.contains("reconciling has stopped")));
        assert_eq!(at(minutes(4), minutes(1)), Ok("leading"), "it is slow, and at work");
        assert_eq!(at(minutes(1), minutes(4)), Ok("leading"), "it was at rest until a moment ago");
    }

    #[test]
    fn definitions_and_watches_say_what_is_wrong() {
        let old = Signs { definitions: Some("older".into()), ..signs(Phase::Standby) };
        assert_eq!(judge(&old), Err("older".into()), "a standby could not take over");
        let deaf = Signs { dead_watch: Some(("Tenant".into(), "forbidden".into())), ..signs(Phase::Reconciling) };
        assert!(judge(&deaf).is_err_and(|why| why.contains("Tenant") && why.contains("forbidden")));
    }
}
