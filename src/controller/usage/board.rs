//! Whose usage is to be read, and what of it is to be written, in which order and when.
//!
//! What changes is read soon, since only that tells whether a limit was crossed. It is written at
//! once where somebody waits for it, and else not before the tenant's last write is long enough ago.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// What waits, by the tenants' names. `W` is what is to be written.
pub(super) struct Board<W> {
    inner: Mutex<Inner<W>>,
    /// There is something to read.
    news: Notify,
    /// There is something to write.
    ready: Notify,
}

struct Inner<W> {
    fresh: VecDeque<String>,
    is_fresh: HashSet<String>,
    /// When a tenant is to be read though nothing is heard of it.
    timers: BTreeSet<(Instant, String)>,
    timer_of: HashMap<String, Instant>,
    urgent: VecDeque<String>,
    others: VecDeque<String>,
    planned: HashMap<String, Planned<W>>,
    /// Those whose status is being written; true where one was looked at meanwhile, by a status
    /// that is over.
    writing: HashMap<String, bool>,
    written: HashMap<String, Instant>,
}

struct Planned<W> {
    what: W,
    is_urgent: bool,
}

impl<W> Default for Board<W> {
    fn default() -> Self {
        let inner = Inner {
            fresh: VecDeque::new(),
            is_fresh: HashSet::new(),
            timers: BTreeSet::new(),
            timer_of: HashMap::new(),
            urgent: VecDeque::new(),
            others: VecDeque::new(),
            planned: HashMap::new(),
            writing: HashMap::new(),
            written: HashMap::new(),
        };
        Self { inner: Mutex::new(inner), news: Notify::new(), ready: Notify::new() }
    }
}

impl<W> Inner<W> {
    fn push(&mut self, name: &str) {
        if self.is_fresh.insert(name.to_owned()) {
            self.fresh.push_back(name.to_owned());
        }
    }

    /// Whether a tenant's status is being written: then it is looked at anew after that.
    fn waits_for_write(&mut self, name: &str) -> bool {
        self.writing.get_mut(name).map(|again| *again = true).is_some()
    }

    fn clear_timer(&mut self, name: &str) {
        if let Some(at) = self.timer_of.remove(name) {
            self.timers.remove(&(at, name.to_owned()));
        }
    }
}

impl<W> Board<W> {
    /// A tenant is to be read.
    pub(super) fn push(&self, name: &str) {
        self.lock().push(name);
        self.news.notify_one();
    }

    /// A tenant is to be read at a time, if not sooner.
    pub(super) fn push_at(&self, name: &str, at: Instant) {
        let mut inner = self.lock();
        if inner.timer_of.get(name).is_some_and(|earlier| *earlier <= at) {
            return;
        }
        inner.clear_timer(name);
        inner.timer_of.insert(name.to_owned(), at);
        inner.timers.insert((at, name.to_owned()));
        drop(inner);
        self.news.notify_one();
    }

    /// Takes out those that are to be read now, at most so many. Their timers are over.
    fn take(&self, most: usize, now: Instant) -> Vec<String> {
        let mut inner = self.lock();
        while inner.timers.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, name)) = inner.timers.pop_first() else { break };
            inner.timer_of.remove(&name);
            inner.push(&name);
        }
        let count = most.min(inner.fresh.len());
        let taken: Vec<String> = inner.fresh.drain(..count).collect();
        for name in &taken {
            inner.is_fresh.remove(name);
            inner.clear_timer(name);
        }
        taken
    }

    /// Waits until there is something to read, and takes it out, at most so much.
    pub(super) async fn to_read(&self, most: usize) -> Vec<String> {
        loop {
            let taken = self.take(most, Instant::now());
            if !taken.is_empty() {
                return taken;
            }
            let timer = self.lock().timers.first().map(|(at, _)| *at);
            let due = async {
                match timer {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.news.notified() => {}
                () = due => {}
            }
        }
    }

    /// How long a tenant's next write has to wait, so that `interval` is between two; nothing if
    /// it may be made now.
    pub(super) fn wait(&self, name: &str, interval: Duration, now: Instant) -> Option<Duration> {
        let last = self.lock().written.get(name).copied()?;
        let wait = (last + interval).saturating_duration_since(now);
        (!wait.is_zero()).then_some(wait)
    }

    /// Says what is to be written of a tenant, instead of what was to be written before.
    pub(super) fn plan(&self, name: &str, what: W, is_urgent: bool) {
        let mut inner = self.lock();
        if inner.waits_for_write(name) {
            return;
        }
        let before = inner.planned.insert(name.to_owned(), Planned { what, is_urgent });
        // What has become urgent stands in both: whichever comes first takes it.
        if before.is_none_or(|before| is_urgent && !before.is_urgent) {
            let queue = if is_urgent { &mut inner.urgent } else { &mut inner.others };
            queue.push_back(name.to_owned());
        }
        drop(inner);
        self.ready.notify_one();
    }

    /// Nothing is to be written of a tenant any more.
    pub(super) fn unplan(&self, name: &str) {
        let mut inner = self.lock();
        if !inner.waits_for_write(name) {
            inner.planned.remove(name);
        }
    }

    fn next(&self) -> Option<(String, W)> {
        let mut inner = self.lock();
        loop {
            let name = inner.urgent.pop_front().or_else(|| inner.others.pop_front())?;
            if let Some(planned) = inner.planned.remove(&name) {
                inner.writing.insert(name.clone(), false);
                return Some((name, planned.what));
            }
        }
    }

    /// Waits until there is something to write, and takes it out. Until it is [done](Self::done),
    /// nothing else is written of that tenant.
    pub(super) async fn to_write(&self) -> (String, W) {
        loop {
            if let Some(next) = self.next() {
                return next;
            }
            self.ready.notified().await;
        }
    }

    /// A tenant's status was written.
    pub(super) fn wrote(&self, name: &str, now: Instant) {
        self.lock().written.insert(name.to_owned(), now);
    }

    /// The write of a tenant's status has ended, whatever came of it.
    pub(super) fn done(&self, name: &str) {
        if self.lock().writing.remove(name) == Some(true) {
            self.push(name);
        }
    }

    /// A tenant is gone.
    pub(super) fn forget(&self, name: &str) {
        let mut inner = self.lock();
        inner.clear_timer(name);
        inner.planned.remove(name);
        inner.written.remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, Inner<W>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_tenant_is_read_once_for_many_changes_in_the_order_of_the_first() {
        let board = Board::<u8>::default();
        for name in ["a", "b", "a", "c"] {
            board.push(name);
        }
        assert_eq!(board.to_read(2).await, ["a", "b"]);
        board.push("a");
        assert_eq!(board.to_read(9).await, ["c", "a"]);
        assert!(board.take(9, Instant::now()).is_empty());
    }

    #[tokio::test]
    async fn the_earliest_timer_counts_and_is_over_when_the_tenant_is_read() {
        let (board, now) = (Board::<u8>::default(), Instant::now());
        board.push_at("a", now + 9 * SECOND);
        board.push_at("a", now + 3 * SECOND);
        board.push_at("a", now + 5 * SECOND);
        board.push_at("b", now + 4 * SECOND);
        assert!(board.take(9, now + 2 * SECOND).is_empty());
        assert_eq!(board.take(9, now + 3 * SECOND), ["a"]);
        board.push("b");
        assert_eq!(board.take(9, now + 3 * SECOND), ["b"]);
        assert!(board.take(9, now + 100 * SECOND).is_empty(), "no timer is left");
        board.push_at("c", now + 4 * SECOND);
        board.forget("c");
        assert!(board.take(9, now + 100 * SECOND).is_empty());
        board.push_at("soon", now + SECOND / 100);
        assert_eq!(board.to_read(9).await, ["soon"], "who waits is woken");
    }

    #[tokio::test]
    async fn what_is_urgent_comes_first_and_the_newest_plan_is_written_once() {
        let board = Board::default();
        board.plan("a", 1, false);
        board.plan("b", 2, false);
        board.plan("c", 3, true);
        board.plan("b", 4, true);
        board.plan("a", 5, false);
        board.plan("d", 6, false);
        board.unplan("d");
        assert_eq!(board.to_write().await, ("c".to_owned(), 3));
        assert_eq!(board.to_write().await, ("b".to_owned(), 4));
        assert_eq!(board.to_write().await, ("a".to_owned(), 5));
        assert_eq!(board.next(), None);
    }

    #[tokio::test]
    async fn what_is_found_during_a_write_is_looked_at_after_it() {
        let board = Board::default();
        board.plan("a", 1, true);
        board.plan("b", 1, true);
        assert_eq!(board.to_write().await, ("a".to_owned(), 1));
        board.plan("a", 2, true);
        board.unplan("b");
        assert_eq!(board.next(), None, "one at a time, of each");
        board.wrote("a", Instant::now());
        assert!(board.take(9, Instant::now()).is_empty());
        board.done("a");
        assert_eq!(board.take(9, Instant::now()), ["a"]);
        board.plan("a", 3, true);
        assert_eq!(board.to_write().await, ("a".to_owned(), 3));
        board.unplan("a");
        board.done("a");
        assert_eq!(board.take(9, Instant::now()), ["a"], "it may have gone back to what it was");
        board.plan("a", 4, false);
        assert_eq!(board.to_write().await, ("a".to_owned(), 4));
        board.done("a");
        assert!(board.take(9, Instant::now()).is_empty(), "nobody has looked at it");
    }

    #[test]
    fn two_writes_of_one_tenant_are_an_interval_apart() {
        let (board, now) = (Board::<u8>::default(), Instant::now());
        assert_eq!(board.wait("a", 10 * SECOND, now), None, "never written");
        board.wrote("a", now);
        assert_eq!(board.wait("a", 10 * SECOND, now + 4 * SECOND), Some(6 * SECOND));
        assert_eq!(board.wait("b", 10 * SECOND, now), None);
        assert_eq!(board.wait("a", 10 * SECOND, now + 10 * SECOND), None);
    }
}
