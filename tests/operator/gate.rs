//! Counts what the operator writes for one object and another, to the API server and to
//! PostgreSQL alike, and lets something happen at one of these writes.

use std::{
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::future::select_all;
use tokio::sync::watch;

/// What happens at a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// It is done, nobody hears of it, and no further write of the same object passes until the
    /// gate is opened: the operator is to be killed now.
    Last,
    /// A transaction has done everything but its COMMIT, and stays so: the server is to be
    /// killed now.
    Open,
    /// The connection is cut before the write gets anywhere.
    CutBefore,
    /// The connection is cut when half of it was sent.
    CutHalfway,
    /// The connection is cut when a transaction has done everything but its COMMIT. The server
    /// doesn't notice, and commits it when the object's next write is under way.
    CutWithin,
    /// The connection is cut when it is done, before the answer.
    CutAfter,
}

/// A write in few words, without the names of its object; and which of those in the same words
/// it is, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub what: String,
    pub time: usize,
}

/// What is to be done with a call.
pub enum Verdict {
    Pass,
    Happens(Event),
    /// It is a write of an object that is held: it never gets an answer.
    Hold,
}

/// What happens at a write, and to whom: a statement may be for several objects at once.
pub struct Event {
    pub happening: Happening,
    of: Vec<Arc<Counted>>,
}

impl Event {
    /// It has happened.
    pub fn happened(&self) {
        for counted in &self.of {
            counted.happened.send_replace(true);
        }
    }

    /// Ready when one of the objects has its next write under way.
    pub fn next_write(&self) -> impl Future<Output = ()> + Send + use<> {
        let counts = self.of.iter().map(|counted| counted.count.subscribe());
        let next = counts.map(|mut count| {
            let now = *count.borrow_and_update();
            Box::pin(async move {
                // An error means that nobody counts any more.
                let _ = count.wait_for(|count| *count > now).await;
            })
        });
        let next = select_all(next.collect::<Vec<_>>());
        async move { drop(next.await) }
    }
}

/// One object whose writes are counted.
pub struct Counted {
    /// The names by which a write is known to be its.
    marks: Vec<String>,
    at: Option<(Write, Happening)>,
    writes: Mutex<Vec<Write>>,
    count: watch::Sender<usize>,
    held: AtomicBool,
    happened: watch::Sender<bool>,
}

impl Counted {
    /// The writes so far, in their order.
    pub fn writes(&self) -> Vec<Write> {
        self.lock().clone()
    }

    /// Waits until what is to happen at one of the writes has happened.
    pub async fn reached(&self) {
        let mut happened = self.happened.subscribe();
        happened.wait_for(|happened| *happened).await.expect("its sender is here");
    }

    /// Whether it has.
    pub fn is_reached(&self) -> bool {
        *self.happened.borrow()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Write>> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_in(&self, text: &str) -> bool {
        self.marks.iter().any(|mark| text.contains(mark.as_str()))
    }

    fn without_names(&self, described: &str) -> String {
        self.marks.iter().fold(described.to_owned(), |what, mark| what.replace(mark.as_str(), "NAME"))
    }

    fn take_back(&self, described: &str) {
        let what = self.without_names(described);
        let mut writes = self.lock();
        if let Some(at) = writes.iter().rposition(|write| write.what == what) {
            writes.remove(at);
            self.held.store(false, Ordering::SeqCst);
        }
    }

    /// Counts a write; returns what happens at it.
    fn count(&self, described: &str) -> Option<Happening> {
        let what = self.without_names(described);
        let mut writes = self.lock();
        let before = writes.iter().filter(|write| write.what == what).count();
        // What is ending is asked to end again and again; how often depends on how long it takes.
        if before > 0 && ["DELETE ", "SQL DROP "].iter().any(|end| what.starts_with(end)) {
            return None;
        }
        let write = Write { what, time: before + 1 };
        let happening = self.at.as_ref().filter(|(at, _)| *at == write).map(|(_, happening)| *happening);
        writes.push(write);
        self.count.send_modify(|count| *count += 1);
        happening
    }
}

/// Stands in both ways of the operator, the one to the API server and the one to PostgreSQL.
#[derive(Default)]
pub struct Gate {
    counted: Mutex<Vec<Arc<Counted>>>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Counted>>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the writes of the object with these names from now on, and lets something happen
    /// at one of them. What was counted for the same names before is over.
    pub fn arm(&self, marks: Vec<String>, at: Option<(Write, Happening)>) -> Arc<Counted> {
        let counted = Arc::new(Counted {
            marks,
            at,
            writes: Mutex::default(),
            count: watch::Sender::default(),
            held: AtomicBool::default(),
            happened: watch::Sender::default(),
        });
        let mut all = self.lock();
        all.retain(|other| other.marks != counted.marks);
        all.push(Arc::clone(&counted));
        counted
    }

    /// Lets everything through again, and counts nothing.
    pub fn open(&self) {
        self.lock().clear();
    }

    /// What is to be done with a call. `text` is all of it in which a name may stand.
    pub fn judge(&self, is_write: bool, text: &str, describe: impl Fn() -> String) -> Verdict {
        let all = self.lock();
        if !is_write {
            return Verdict::Pass;
        }
        let concerned: Vec<_> = all.iter().filter(|counted| counted.is_in(text)).collect();
        if concerned.iter().any(|counted| counted.held.load(Ordering::SeqCst)) {
            return Verdict::Hold;
        }
        let mut event: Option<Event> = None;
        for counted in concerned {
            if let Some(happening) = counted.count(&describe()) {
                counted.held.store(happening == Happening::Last, Ordering::SeqCst);
                let event = event.get_or_insert_with(|| Event { happening, of: Vec::new() });
                event.of.push(Arc::clone(counted));
            }
        }
        event.map_or(Verdict::Pass, Verdict::Happens)
    }

    /// A write was refused: it counts for nothing, and what was to happen at it happens when it is
    /// tried again.
    pub fn refused(&self, text: &str, described: &str) {
        for counted in self.lock().iter().filter(|counted| counted.is_in(text)) {
            counted.take_back(described);
        }
    }

    /// For a call that never gets an answer.
    pub async fn hold<T>() -> T {
        pending().await
    }
}
