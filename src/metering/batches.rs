//! Many posts become few statements: what is posted waits in a bounded queue, and a few writers
//! take it from there in batches, so that single events go through as fast as large batches do.
//! Whoever posted is answered when the ledger has committed.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{info, warn};

use super::{
    counts::Counts,
    judge::Item,
    ledger::{LedgerError, Outcome},
    store::Store,
};

/// How much is written at a time, and how much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSettings {
    /// How many events may wait.
    pub queue: usize,
    /// How many are written at a time, at most.
    pub batch: usize,
    /// How many batches are written at a time. More wait for each other (facts: 2 are the best on
    /// two processors).
    pub writers: usize,
    /// How long a writer waits for more where it has few.
    pub linger: Duration,
    /// How long the ledger may take for a batch.
    pub patience: Duration,
    /// For how long nothing is taken after the ledger failed.
    pub pause: Duration,
}

impl Default for BatchSettings {
    fn default() -> Self {
        Self {
            queue: 40_000,
            batch: 1_000,
            writers: 2,
            linger: Duration::from_millis(2),
            patience: Duration::from_secs(10),
            pause: Duration::from_secs(1),
        }
    }
}

/// What became of something that was posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is in the ledger: of an event, how it came to be there.
    Kept(Option<Outcome>),
    /// The ledger can't store it, and never will.
    Unfit(String),
}

/// Why nothing of what was posted is known to be stored: it may be posted again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Too much waits already.
    #[error("too many events wait for the ledger")]
    Full,
    /// The ledger is away, or refuses.
    #[error("{0}")]
    Ledger(String),
}

/// The queue and its writers. Cheap to clone; the writers end with the runtime.
pub struct Batches<S> {
    shared: Arc<Shared<S>>,
}

impl<S> Clone for Batches<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<S> {
    store: S,
    settings: BatchSettings,
    counts: Counts,
    queue: Mutex<VecDeque<Job>>,
    work: Notify,
    room: Arc<Semaphore>,
    /// Since when the ledger fails, and when it last did.
    failing: Mutex<Option<Instant>>,
}

/// What was posted together, or a part of it that fits in a batch.
struct Job {
    items: Vec<Item>,
    answer: oneshot::Sender<Result<Vec<Fate>, Unavailable>>,
    /// Its room in the queue, and whatever else whoever posted it holds for as long.
    held: (OwnedSemaphorePermit, Arc<dyn Send + Sync>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Store> Batches<S> {
    /// Starts the writers.
    pub fn start(store: S, settings: BatchSettings, counts: Counts) -> Self {
        let shared = Arc::new(Shared {
            store,
            settings,
            counts,
            queue: Mutex::default(),
            work: Notify::new(),
            room: Arc::new(Semaphore::new(settings.queue)),
            failing: Mutex::default(),
        });
        for _ in 0..settings.writers {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                loop {
                    let jobs = shared.gather().await;
                    shared.write(jobs).await;
                }
            });
        }
        Self { shared }
    }

    /// Posts items; their fates are in their order. `held` is dropped when all of it is done,
    /// which may be later than whoever posted it stops waiting.
    ///
    /// # Errors
    /// When it may not be stored, and can be posted again.
    pub async fn post(&self, items: Vec<Item>, held: Arc<dyn Send + Sync>) -> Result<Vec<Fate>, Unavailable> {
        let shared = &self.shared;
        if items.is_empty() {
            return Ok(Vec::new());
        }
        if lock(&shared.failing).is_some_and(|last| last.elapsed() < shared.settings.pause) {
            return Err(Unavailable::Ledger("the ledger could not be used a moment ago".to_owned()));
        }
        let total = items.len();
        let mut items = items.into_iter().peekable();
        let mut answers = Vec::new();
        let mut jobs = Vec::new();
        while items.peek().is_some() {
            let items: Vec<Item> = items.by_ref().take(shared.settings.batch).collect();
            let size = u32::try_from(items.len()).unwrap_or(u32::MAX);
            // Without room for all of it, what was taken is given back with the jobs.
            let room = Arc::clone(&shared.room).try_acquire_many_owned(size).map_err(|_| Unavailable::Full)?;
            let (answer, answered) = oneshot::channel();
            jobs.push(Job { items, answer, held: (room, Arc::clone(&held)) });
            answers.push(answered);
        }
        lock(&shared.queue).extend(jobs);
        for _ in &answers {
            shared.work.notify_one();
        }
        shared.tell_waiting();
        let mut fates = Vec::with_capacity(total);
        for answered in answers {
            let gone = |_| Err(Unavailable::Ledger("the program is about to end".to_owned()));
            fates.extend(answered.await.unwrap_or_else(gone)?);
        }
        Ok(fates)
    }
}

impl<S: Store> Shared<S> {
    fn tell_waiting(&self) {
        self.counts.waiting(self.settings.queue.saturating_sub(self.room.available_permits()));
    }

    /// Waits for something to write.
    async fn gather(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        loop {
            // Made before the look, so that nothing comes between the two.
            let work = self.work.notified();
            let mut size = self.take(&mut jobs, 0);
            if size == 0 {
                work.await;
                continue;
            }
            if size < self.settings.batch / 10 {
                tokio::time::sleep(self.settings.linger).await;
                size = self.take(&mut jobs, size);
            }
            if size > 0 {
                return jobs;
            }
        }
    }

    /// Takes as many jobs as fit in a batch that has `size` items already; returns how many it has then.
    fn take(&self, jobs: &mut Vec<Job>, mut size: usize) -> usize {
        let mut queue = lock(&self.queue);
        while let Some(next) =
            queue.front().map(|job| job.items.len()).filter(|next| size + next <= self.settings.batch)
        {
            // Whoever has given up will post it again.
            if let Some(job) = queue.pop_front().filter(|job| !job.answer.is_closed()) {
                size += next;
                jobs.push(job);
            }
        }
        size
    }

    async fn write(&self, jobs: Vec<Job>) {
        let began = Instant::now();
        let (mut items, mut waiting) = (Vec::new(), Vec::new());
        for Job { items: own, answer, held } in jobs {
            waiting.push((own.len(), answer, held));
            items.extend(own);
        }
        let size = items.len();
        let fates = tokio::time::timeout(self.settings.patience, self.fates(items)).await;
        let fates = fates.unwrap_or_else(|_| {
            let patience = self.settings.patience;
            Err(LedgerError::Away(format!("it did not answer within {patience:?}")))
        });
        self.note(fates.as_ref().err());
        if fates.is_ok() {
            self.counts.batch(size, began.elapsed());
        }
        let mut fates = fates.map(Vec::into_iter).map_err(|error| Unavailable::Ledger(error.to_string()));
        for (own, answer, held) in waiting {
            let own = fates.as_mut().map(|fates| fates.by_ref().take(own).collect()).map_err(|error| error.clone());
            // What it held is free before its answer asks for more. An error means that nobody waits any more.
            drop(held);
            let _ = answer.send(own);
        }
        self.tell_waiting();
    }

    /// Remembers whether the ledger can be used, and says so when that changes.
    fn note(&self, error: Option<&LedgerError>) {
        let mut failing = lock(&self.failing);
        match error {
            Some(error) if failing.is_none() => warn!(%error, "usage events can't be stored"),
            None if failing.is_some() => info!("usage events can be stored again"),
            _ => {}
        }
        *failing = error.map(|_| Instant::now());
        self.counts.ledger_away(failing.is_some());
    }

    async fn fates(&self, items: Vec<Item>) -> Result<Vec<Fate>, LedgerError> {
        let mut fates = vec![Fate::Kept(None); items.len()];
        let (mut events, mut marks, mut reports) = (Vec::new(), Vec::new(), Vec::new());
        for (place, item) in items.into_iter().enumerate() {
            match item {
                Item::Usage(event) => events.push((place, event)),
                Item::Mark(mark) => marks.push((place, mark)),
                Item::Report { server, database, report } => reports.push((place, server, database, report)),
            }
        }
        let (places, events): (Vec<usize>, Vec<_>) = events.into_iter().unzip();
        let stored = each(&events, |events| {
            let store = self.store.clone();
            async move { store.ingest(events).await.map(|outcomes| outcomes.into_iter().map(Some).collect()) }.boxed()
        });
        for (place, fate) in places.into_iter().zip(stored.await?) {
            fates[place] = fate;
        }
        // After the events: a mark says what has to be there.
        let (places, marks): (Vec<usize>, Vec<_>) = marks.into_iter().unzip();
        let stored = each(&marks, |marks| {
            let store = self.store.clone();
            async move { store.mark(marks).await.map(|()| vec![None; marks.len()]) }.boxed()
        });
        for (place, fate) in places.into_iter().zip(stored.await?) {
            fates[place] = fate;
        }
        for (place, server, database, report) in reports {
            match self.store.report(&server, &database, &report).await {
                Err(LedgerError::Unfit(message)) => fates[place] = Fate::Unfit(message),
                answer => answer?,
            }
        }
        Ok(fates)
    }
}

/// Stores things together, and where one of them can't be stored, all others: halves are tried,
/// and halves of these.
async fn each<T, F>(things: &[T], store: F) -> Result<Vec<Fate>, LedgerError>
where
    F: for<'t> Fn(&'t [T]) -> BoxFuture<'t, Result<Vec<Option<Outcome>>, LedgerError>>,
{
    let mut fates = vec![Fate::Kept(None); things.len()];
    let mut ranges: Vec<Range<usize>> = Vec::from_iter((!things.is_empty()).then_some(0..things.len()));
    while let Some(range) = ranges.pop() {
        match store(&things[range.clone()]).await {
            Ok(outcomes) if outcomes.len() == range.len() => {
                for (fate, outcome) in fates[range].iter_mut().zip(outcomes) {
                    *fate = Fate::Kept(outcome);
                }
            }
            Ok(outcomes) => {
                let message = format!("it tells of {} events where {} were sent", outcomes.len(), range.len());
                return Err(LedgerError::Refused(message));
            }
            Err(LedgerError::Unfit(message)) if range.len() == 1 => fates[range.start] = Fate::Unfit(message),
            Err(LedgerError::Unfit(_)) => {
                let middle = range.start + range.len() / 2;
                ranges.extend([middle..range.end, range.start..middle]);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(fates)
}

#[cfg(test)]
#[path = "batches_tests.rs"]
mod tests;
