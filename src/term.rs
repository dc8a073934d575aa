//! A term of leadership: by which number this process leads, and until when.
//!
//! One process at a time writes, to the API server and to databases. Who may is settled by a
//! lease, but a process can be held up between looking at its lease and writing (a pause of
//! the machine, SIGSTOP), so each write is checked where it happens: calls to the API server
//! by the monotonic clock, and transactions in a database also by the number, of which each
//! database keeps the highest that it has seen.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::watch;

/// A term of leadership. Clones are the same term.
#[derive(Clone, Debug)]
pub struct Term(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    number: AtomicU64,
    until: RwLock<Until>,
    /// The highest number of another leader that a database has answered with.
    overtaken: watch::Sender<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Until {
    /// Nobody else can lead: leader election is off.
    Unlimited,
    /// As long as the lease is surely ours.
    Instant(Instant),
    /// It has not begun, or it has ended.
    Over,
}

impl Term {
    /// The term of a process that has no rivals, and no number.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::with(Until::Unlimited)
    }

    /// A term that has not [begun](Self::begin).
    #[must_use]
    pub fn of_standby() -> Self {
        Self::with(Until::Over)
    }

    fn with(until: Until) -> Self {
        Self(Arc::new(Inner { number: AtomicU64::new(0), until: RwLock::new(until), overtaken: watch::Sender::new(0) }))
    }

    /// Begins, or goes on under a higher number.
    pub fn begin(&self, number: u64, until: Instant) {
        self.0.number.store(number, Ordering::Release);
        self.extend(until);
    }

    /// Goes on until then, on the monotonic clock.
    pub fn extend(&self, until: Instant) {
        self.set(Until::Instant(until));
    }

    /// Ends: nothing may be written from here on.
    pub fn end(&self) {
        self.set(Until::Over);
    }

    fn set(&self, until: Until) {
        *self.0.until.write().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Whether this process may write now.
    #[must_use]
    pub fn is_current(&self) -> bool {
        match *self.0.until.read().unwrap_or_else(PoisonError::into_inner) {
            Until::Unlimited => true,
            Until::Instant(until) => Instant::now() < until,
            Until::Over => false,
        }
    }

    /// The number that tells this leader from those before it; 0 where there is no election.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.number.load(Ordering::Acquire)
    }

    /// A database has seen a leader of a higher number than this one's.
    pub fn overtaken(&self, seen: u64) {
        self.0.overtaken.send_if_modified(|highest| {
            let is_news = seen > *highest;
            *highest = seen.max(*highest);
            is_news
        });
    }

    /// Waits until a database has seen a higher number than this term's, and tells it.
    pub async fn until_overtaken(&self) -> u64 {
        let mut overtaken = self.0.overtaken.subscribe();
        let seen = overtaken.wait_for(|seen| *seen > self.number()).await;
        // The sender lives as long as this term does.
        seen.map_or(u64::MAX, |seen| *seen)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_term_is_current_from_its_begin_to_its_end() {
        let term = Term::of_standby();
        assert!(!term.is_current());
        term.begin(3, Instant::now() + Duration::from_secs(60));
        assert!(term.is_current() && term.number() == 3);
        term.extend(Instant::now());
        assert!(!term.is_current(), "its time is over");
        term.extend(Instant::now() + Duration::from_secs(60));
        assert!(term.is_current());
        term.clone().end();
        assert!(!term.is_current(), "clones are the same term");
        assert!(Term::unlimited().is_current());
    }

    #[tokio::test]
    async fn only_a_higher_number_overtakes() {
        let term = Term::of_standby();
        term.begin(5, Instant::now());
        term.overtaken(5);
        term.overtaken(9);
        term.overtaken(7);
        assert_eq!(term.until_overtaken().await, 9);
        term.begin(10, Instant::now());
        let waits = tokio::time::timeout(Duration::ZERO, term.until_overtaken()).await;
        assert!(waits.is_err(), "a term above all that was seen");
    }
}
