//! Counts what the operator writes for one tenant, to the API server and to PostgreSQL alike,
//! and lets something happen at one of these writes.

use std::{
    future::pending,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// What happens at a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// It is done, nobody hears of it, and nothing more passes, until the gate is opened: the
    /// operator is to be killed now.
    Last,
    /// The connection is cut before the write gets anywhere.
    CutBefore,
    /// The connection is cut when half of it was sent.
    CutHalfway,
    /// The connection is cut when it is done, before the answer.
    CutAfter,
}

/// What is to be done with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Happens(Happening),
    /// The gate is shut: it never gets an answer.
    Hold,
}

#[derive(Default)]
struct State {
    /// The names of the tenant whose writes are counted.
    marks: Vec<String>,
    writes: Vec<String>,
    at: Option<(usize, Happening)>,
    shut: bool,
}

/// Stands in both ways of the operator, the one to the API server and the one to PostgreSQL.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    happened: Notify,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the writes of the tenant with these names from now on, and lets something happen
    /// at the `at`th.
    pub fn arm(&self, marks: &[String], at: Option<(usize, Happening)>) {
        *self.lock() = State { marks: marks.to_vec(), at, ..State::default() };
    }

    /// More names of the same tenant.
    pub fn also(&self, marks: &[String]) {
        self.lock().marks.extend_from_slice(marks);
    }

    /// Lets everything through again; tells which writes there were.
    pub fn open(&self) -> Vec<String> {
        std::mem::take(&mut *self.lock()).writes
    }

    /// What is to be done with a call. `text` is all of it in which a name may stand.
    pub fn judge(&self, is_write: bool, text: &str, describe: impl Fn() -> String) -> Verdict {
        let mut state = self.lock();
        if state.shut {
            return Verdict::Hold;
        }
        if !is_write || !state.marks.iter().any(|mark| text.contains(mark.as_str())) {
            return Verdict::Pass;
        }
        state.writes.push(describe());
        match state.at {
            Some((at, happening)) if at == state.writes.len() => {
                state.shut = happening == Happening::Last;
                Verdict::Happens(happening)
            }
            _ => Verdict::Pass,
        }
    }

    /// It has happened.
    pub fn happened(&self) {
        self.happened.notify_one();
    }

    /// Waits until it has happened.
    pub async fn reached(&self) {
        self.happened.notified().await;
    }

    /// For a call that never gets an answer.
    pub async fn hold<T>() -> T {
        pending().await
    }
}
