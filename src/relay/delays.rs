//! Pauses between attempts.

use std::time::Duration;

/// Pauses that double from `first` to `most`, each shortened by up to a half at random, so that
/// those who failed together don't come back together.
#[derive(Clone, Debug)]
pub(super) struct Delays {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Delays {
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// The next pause.
    pub(super) fn take(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.most);
        jittered(delay)
    }

    /// Begins anew, after a success.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A pause, shortened by up to a half at random.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}

/// The pause after so many attempts, of which the first was followed by `first`.
pub(super) fn after(attempts: u32, first: Duration, most: Duration) -> Duration {
    let doubled = first.checked_mul(2_u32.saturating_pow(attempts.saturating_sub(1))).unwrap_or(most);
    jittered(doubled.min(most))
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
}
