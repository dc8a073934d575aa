//! Whether the API may be asked now: while it is away, the whole relay waits, and then asks once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::cluster;

/// The pause after the first failure, and the longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The longest pause that an answer may ask for (Retry-After).
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// Closed by a failure, for a pause that doubles with each; then one may try, and the others go
/// on when that has worked.
pub(super) struct Gate {
    first: Duration,
    most: Duration,
    state: Mutex<State>,
    changed: Notify,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new(FIRST_PAUSE, LONGEST_PAUSE)
    }
}

#[derive(Default)]
struct State {
    failures: u32,
    /// When it was closed last, and until when; nothing while it is open.
    closed: Option<(Instant, Instant)>,
    /// Whether somebody tries at the moment.
    trying: bool,
}

/// Leave to ask the API. Dropped without a word of what came of it, it changes nothing.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    entered: Instant,
    is_trial: bool,
}

impl Gate {
    fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, state: Mutex::default(), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the API could be used when it was asked last.
    pub(super) fn is_open(&self) -> bool {
        self.lock().closed.is_none()
    }

    /// Leave to ask, where there is any now.
    pub(super) fn try_enter(&self) -> Option<Pass<'_>> {
        let mut state = self.lock();
        let now = Instant::now();
        let is_trial = match state.closed {
            None => false,
            Some((_, until)) if until <= now && !state.trying => true,
            Some(_) => return None,
        };
        state.trying |= is_trial;
        Some(Pass { gate: self, entered: now, is_trial })
    }

    /// Leave to ask, as soon as there is any.
    pub(super) async fn enter(&self) -> Pass<'_> {
        loop {
            let changed = self.changed.notified();
            if let Some(pass) = self.try_enter() {
                return pass;
            }
            let until = self.lock().closed.filter(|(_, until)| *until > Instant::now()).map(|(_, until)| until);
            match until {
                Some(until) => tokio::select! { () = sleep_until(until) => {} () = changed => {} },
                None => changed.await,
            }
        }
    }
}

impl Pass<'_> {
    /// Whether the API failed when it was asked last, so that little is to be risked.
    pub(super) fn is_trial(&self) -> bool {
        self.is_trial
    }

    /// The API works.
    pub(super) fn succeeded(self) {
        let mut state = self.gate.lock();
        // Who asked before it failed knows nothing new.
        if state.closed.is_some_and(|(since, _)| since <= self.entered) {
            state.closed = None;
            state.failures = 0;
        }
    }

    /// The API failed, and may have said for how long. Returns in how long it is asked again.
    pub(super) fn failed(self, asked: Option<Duration>) -> Duration {
        let mut state = self.gate.lock();
        let now = Instant::now();
        // Those that were under way together fail together: that is one failure.
        let is_new = state.closed.is_none_or(|(since, _)| since <= self.entered);
        if is_new {
            state.failures = state.failures.saturating_add(1);
        }
        let own = match is_new {
            true => now + cluster::after(state.failures, self.gate.first, self.gate.most),
            false => now,
        };
        let asked = now + asked.unwrap_or_default().min(LONGEST_ASKED);
        let (since, before) = state.closed.unwrap_or((now, now));
        let until = own.max(asked).max(before);
        state.closed = Some((if is_new { now } else { since }, until));
        until.saturating_duration_since(now)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_trial {
            self.gate.lock().trying = false;
        }
        self.gate.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const FIRST: Duration = Duration::from_millis(40);

    fn gate() -> Gate {
        Gate::new(FIRST, Duration::from_secs(10))
    }

    #[tokio::test]
    async fn while_the_api_is_away_one_tries_and_the_others_wait_for_it() {
        let gate = gate();
        let pause = gate.try_enter().expect("open").failed(None);
        assert!(pause >= FIRST / 2 && pause <= FIRST, "{pause:?}");
        assert!(gate.try_enter().is_none(), "closed");
        let trial = gate.enter().await;
        assert!(trial.is_trial());
        assert!(gate.enter().now_or_never().is_none(), "one tries");
        drop(trial);
        let trial = gate.enter().now_or_never().expect("it was given back");
        let next = trial.failed(None);
        assert!(next >= FIRST && next <= 2 * FIRST, "{next:?}");
        let trial = gate.enter().await;
        let waiting = gate.enter();
        let mut waiting = std::pin::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        trial.succeeded();
        assert!(!waiting.await.is_trial() && gate.is_open());
    }

    #[tokio::test]
    async fn what_fails_together_is_one_failure_and_the_longest_wish_counts() {
        let gate = gate();
        let begun = Instant::now();
        let passes: Vec<_> = (0..8).map(|_| gate.try_enter().expect("open")).collect();
        for pass in passes {
            assert!(pass.failed(None) <= FIRST);
        }
        let late = || Pass { gate: &gate, entered: begun, is_trial: false };
        let asked = 4 * FIRST;
        let told = Instant::now();
        assert!(late().failed(Some(asked)) >= asked);
        // Somebody who asked before that was lucky.
        late().succeeded();
        assert!(!gate.is_open());
        gate.enter().await.succeeded();
        assert!(told.elapsed() >= asked, "Retry-After is honoured");
        assert!(gate.is_open());
        assert!(gate.try_enter().expect("open").failed(None) <= FIRST, "a success begins anew");
        let asked = gate.enter().await.failed(Some(Duration::from_secs(86_400)));
        assert!(asked <= LONGEST_ASKED, "{asked:?}");
    }
}
