//! Pauses between attempts, of the programs that wait for somebody else: agent and relay.

use std::time::{Duration, Instant};

use kube::runtime::utils::Backoff;

/// Pauses that double from `first` to `most`, each shortened by up to a half at random, so that
/// those who failed together don't come back together.
#[derive(Clone, Debug)]
pub struct Delays {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Delays {
    /// Begins with `first`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// The next pause.
    pub fn take(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.most);
        jittered(delay)
    }

    /// Begins anew, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A pause, shortened by up to a half at random.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}

/// The pause after so many attempts, of which the first was followed by `first`.
pub fn after(attempts: u32, first: Duration, most: Duration) -> Duration {
    let doubled = first.checked_mul(2_u32.saturating_pow(attempts.saturating_sub(1))).unwrap_or(most);
    jittered(doubled.min(most))
}

/// The backoff of a watch. Kube's own goes up to half a minute; a new tenant or database should
/// not wait that long once the API server is back.
pub struct Reconnect {
    delays: Delays,
    last: Option<Instant>,
}

impl Reconnect {
    /// A connection that held this long was a good one. A shorter one may be a server that accepts
    /// and then fails, which the watcher reports as success first.
    const STEADY: Duration = Duration::from_secs(20);
}

impl Default for Reconnect {
    fn default() -> Self {
        Self { delays: Delays::new(Duration::from_millis(200), Duration::from_secs(5)), last: None }
    }
}

impl Iterator for Reconnect {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) > Self::STEADY) {
            self.delays.reset();
        }
        self.last = Some(now);
        Some(self.delays.take())
    }
}

impl Backoff for Reconnect {
    /// Success alone doesn't reset; see [`Reconnect::STEADY`].
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew() {
        let mut delays = Delays::new(Duration::from_millis(100), Duration::from_millis(300));
        for (least, most) in [(50, 100), (100, 200), (150, 300), (150, 300)] {
            let delay = delays.take();
            assert!(delay >= Duration::from_millis(least) && delay <= Duration::from_millis(most), "{delay:?}");
        }
        delays.reset();
        assert!(delays.take() <= Duration::from_millis(100));
    }

    #[test]
    fn the_pause_after_many_attempts_is_the_longest_one() {
        let (first, most) = (Duration::from_secs(1), Duration::from_secs(300));
        assert!(after(1, first, most) <= first);
        for attempts in [10, 40, u32::MAX] {
            let pause = after(attempts, first, most);
            assert!(pause >= most / 2 && pause <= most, "{attempts}: {pause:?}");
        }
    }

    #[test]
    fn a_list_that_fails_after_its_beginning_does_not_reset_the_backoff() {
        let mut backoff = Reconnect::default();
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            last = backoff.next().expect("never gives up");
            backoff.reset();
        }
        assert!(last >= Duration::from_millis(2500), "{last:?}");
    }
}
