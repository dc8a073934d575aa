//! Stops asking a server that can't be reached, so that it holds nobody up.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::error::{Error, ErrorClass, Result};

const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// After a failed connection, everybody fails at once until one attempt, made after a pause that
/// doubles up to `longest`, succeeds.
#[derive(Debug)]
pub(super) struct Breaker {
    longest: Duration,
    state: Mutex<State>,
    /// How many times it opened, for those who wait.
    opened: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Set while the server counts as away.
    away: Option<Away>,
    probing: bool,
}

#[derive(Debug, Clone)]
struct Away {
    until: Instant,
    why: Error,
}

/// Leave to open a connection. Dropped without an outcome, it lets the next one try.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Breaker {
    pub(super) fn new(longest: Duration) -> Self {
        Self { longest, state: Mutex::default(), opened: watch::Sender::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave to try, or the reason why not to.
    pub(super) fn attempt(&self) -> Result<Attempt<'_>> {
        let mut state = self.state();
        let Some(away) = &state.away else {
            return Ok(Attempt { breaker: self, probe: false });
        };
        let wait = away.until.saturating_duration_since(Instant::now());
        if !wait.is_zero() || state.probing {
            return Err(refused(&away.why));
        }
        state.probing = true;
        Ok(Attempt { breaker: self, probe: true })
    }

    /// Whether nobody is let through but to try.
    pub(super) fn is_open(&self) -> bool {
        self.state().away.is_some()
    }

    /// Waits for something; gives up when the server is found to be away.
    pub(super) async fn unless_away<T>(&self, waits: impl Future<Output = T>) -> Result<T> {
        let mut opened = self.opened.subscribe();
        tokio::select! {
            biased;
            found = waits => Ok(found),
            // The sender lives as long as this.
            _ = opened.changed() => Err(self.refusal()),
        }
    }

    fn refusal(&self) -> Error {
        let away = self.state().away.as_ref().map(|away| away.why.clone());
        away.map_or_else(|| Error::transient("the server was away for a moment"), |why| refused(&why))
    }

    /// A connection that stood was lost, or no longer answers.
    pub(super) fn lost(&self, why: &Error) {
        let mut state = self.state();
        // Many connections are lost at once when a server goes: that is one failure, and its
        // pause must not be as long as after as many attempts.
        if state.away.as_ref().is_some_and(|away| away.until > Instant::now()) {
            return;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << state.failures.min(16)).min(self.longest);
        state.failures = state.failures.saturating_add(1);
        state.away = Some(Away { until: Instant::now() + pause, why: why.clone() });
        drop(state);
        self.opened.send_modify(|times| *times += 1);
    }
}

/// The same words each time: they stand in conditions, which are written when they change.
fn refused(why: &Error) -> Error {
    let message = format!("{why} (not tried again yet)");
    match why.class() {
        ErrorClass::Permanent => Error::permanent(message),
        ErrorClass::Transient | ErrorClass::Waiting => Error::transient(message),
    }
}

impl Attempt<'_> {
    pub(super) fn succeeded(self) {
        let mut state = self.breaker.state();
        state.failures = 0;
        state.away = None;
    }

    pub(super) fn failed(self, why: &Error) {
        self.breaker.lost(why);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.breaker.state().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fails_fast_until_a_probe_succeeds() {
        let breaker = Breaker::new(Duration::from_millis(20));
        breaker.attempt().expect("closed at first").failed(&Error::transient("down"));
        let refused = breaker.attempt().expect_err("open");
        assert_eq!(refused.class(), ErrorClass::Transient);
        assert!(refused.to_string().starts_with("down (not tried again yet"), "{refused}");

        let probe = loop {
            if let Ok(probe) = breaker.attempt() {
                break probe;
            }
            std::thread::yield_now();
        };
        assert!(breaker.attempt().is_err(), "one probe at a time");
        drop(probe);
        breaker.attempt().expect("a probe that was given up makes room").succeeded();
        breaker.attempt().expect("closed again");
        breaker.attempt().expect("for everybody");
    }

    #[test]
    fn what_fails_together_counts_once() {
        let breaker = Breaker::new(Duration::from_secs(60));
        let attempts: Vec<_> = (0..10).map(|_| breaker.attempt().expect("closed at first")).collect();
        for attempt in attempts {
            attempt.failed(&Error::transient("down"));
        }
        breaker.lost(&Error::transient("reset"));
        let away = breaker.state().away.clone().expect("open");
        assert!(away.until.saturating_duration_since(Instant::now()) <= FIRST_PAUSE);
    }

    #[tokio::test]
    async fn who_waits_is_told_when_the_server_is_away() {
        let breaker = Breaker::new(Duration::from_secs(10));
        assert_eq!(breaker.unless_away(std::future::ready(7)).await.expect("nothing happens"), 7);
        let (waiting, ()) = tokio::join!(breaker.unless_away(std::future::pending::<()>()), async {
            breaker.lost(&Error::transient("down"));
        });
        assert!(waiting.expect_err("it opened").to_string().starts_with("down"));
        assert_eq!(breaker.unless_away(std::future::ready(7)).await.expect("that was before"), 7);
    }

    #[test]
    fn what_needs_a_person_stays_so() {
        let breaker = Breaker::new(Duration::from_secs(10));
        breaker.attempt().expect("closed").failed(&Error::permanent("wrong CA"));
        assert_eq!(breaker.attempt().expect_err("open").class(), ErrorClass::Permanent);
    }
}
