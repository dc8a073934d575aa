//! Sending a batch: what is too large is cut in two, and so is what is refused as a whole, until
//! the event is found that is to blame.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::Shared;
use super::api::Reply;
use super::batch::{Fate, body, fates};
use super::gate::Pass;
use super::metrics::Sent;
use crate::cluster;
use crate::database::{LeasedEvent, Settlement};

/// How often an event may be sent that the API refuses as a whole, where nothing shows that
/// others are taken: a proxy's refusal must not make dead letters of everything.
const PATIENCE: i32 = 10;

/// After so many refusals without one answer that speaks of events, it isn't the events.
const REFUSALS: usize = 32;

/// The pauses between attempts of an event that is to be sent later.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// After so many batches that were taken, a larger one is tried again.
const GROW_AFTER: usize = 50;

/// How many events the API takes in one batch, as far as is known.
pub(super) struct Limit {
    most: usize,
    now: AtomicUsize,
    taken: AtomicUsize,
}

impl Limit {
    pub(super) fn new(most: usize) -> Self {
        Self { most, now: AtomicUsize::new(most), taken: AtomicUsize::new(0) }
    }

    pub(super) fn get(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    fn too_large(&self, events: usize) {
        self.now.fetch_min((events / 2).max(1), Ordering::Relaxed);
        self.taken.store(0, Ordering::Relaxed);
    }

    fn taken(&self) {
        if self.get() < self.most && self.taken.fetch_add(1, Ordering::Relaxed) + 1 >= GROW_AFTER {
            self.taken.store(0, Ordering::Relaxed);
            self.now.store((self.get() * 2).min(self.most), Ordering::Relaxed);
        }
    }
}

/// What is known of an event after sending.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    /// The API spoke of this event.
    Fate(Fate),
    /// It was refused in a batch of its own, by an answer that spoke of the whole.
    Alone(String),
    /// The API was away.
    Away(String, Duration),
}

/// Sends parts of batches, and says of each what the API said. The pass is used up.
async fn send(shared: &Shared, pass: Pass<'_>, parts: &[Box<RawValue>]) -> Vec<Told> {
    let nothing = Told::Away("not sent".to_owned(), Duration::ZERO);
    let mut told = vec![nothing; parts.len()];
    let most = shared.limit.get().max(1);
    let mut todo: Vec<Range<usize>> =
        (0..parts.len()).step_by(most).map(|from| from..(from + most).min(parts.len())).rev().collect();
    let (mut refusals, mut answered) = (0, false);
    while let Some(range) = todo.pop() {
        let started = Instant::now();
        let reply = shared.api.post(body(&parts[range.clone()])).await;
        let took = started.elapsed();
        let reply = match reply {
            Reply::Answered(answer) => match fates(range.len(), &answer) {
                Ok(fates) => {
                    shared.metrics.answered(&answer, took);
                    shared.limit.taken();
                    answered = true;
                    for (at, fate) in range.zip(fates) {
                        told[at] = Told::Fate(fate);
                    }
                    continue;
                }
                Err(error) => Reply::Away { error, pause: None },
            },
            Reply::Refused(text) if !answered && refusals >= REFUSALS => {
                Reply::Away { error: format!("everything is refused: {text}"), pause: None }
            }
            reply => reply,
        };
        refusals += usize::from(matches!(reply, Reply::Refused(_)));
        match reply {
            Reply::Answered(_) => {}
            Reply::TooLarge(text) | Reply::Refused(text) if range.len() == 1 => {
                shared.metrics.posted(Sent::Refused, took);
                told[range.start] = Told::Alone(text);
            }
            Reply::TooLarge(_) | Reply::Refused(_) => {
                if matches!(reply, Reply::TooLarge(_)) {
                    shared.limit.too_large(range.len());
                }
                shared.metrics.posted(Sent::Split, took);
                let middle = range.start + range.len() / 2;
                todo.push(middle..range.end);
                todo.push(range.start..middle);
            }
            Reply::Away { error, pause } => {
                shared.metrics.posted(Sent::Failed, took);
                let was_open = shared.gate.is_open();
                let pause = pass.failed(pause);
                if was_open {
                    tracing::warn!(?pause, "the API can't be used; events wait in their outboxes: {error}");
                } else {
                    tracing::debug!(?pause, "the API still can't be used: {error}");
                }
                for range in todo.into_iter().chain([range]) {
                    told[range].fill(Told::Away(error.clone(), pause));
                }
                return told;
            }
        }
    }
    let was_open = shared.gate.is_open();
    // That each was refused alone says that somebody answers, and nothing of the API.
    if !told.is_empty() && told.iter().all(|told| matches!(told, Told::Alone(_))) {
        drop(pass);
        return told;
    }
    pass.succeeded();
    if !was_open && shared.gate.is_open() {
        tracing::info!("the API can be used again");
    }
    told
}

/// Sends usage events, and says what is to be noted of each. The pass is used up.
pub(super) async fn deliver(shared: &Shared, pass: Pass<'_>, source: &str, events: &[LeasedEvent]) -> Vec<Settlement> {
    let parts: Vec<_> = events.iter().map(|event| super::batch::usage(source, event)).collect();
    let told = send(shared, pass, &parts).await;
    let others_pass = told.iter().any(|told| matches!(told, Told::Fate(_)));
    let settlements: Vec<_> =
        events.iter().zip(told).map(|(event, told)| settlement(event.attempts, told, others_pass)).collect();
    for (event, settlement) in events.iter().zip(&settlements) {
        if let Settlement::Dead { error } = settlement {
            let (tenant, meter, sequence) = (&event.tenant, &event.meter, event.counted.sequence);
            tracing::warn!(%tenant, meter, sequence, event = %event.id, "refused for good, a dead letter now: {error}");
        }
    }
    settlements
}

/// Sends what isn't in the outbox. Returns which of them the API has spoken of: those need not be
/// sent again.
pub(super) async fn tell(shared: &Shared, pass: Pass<'_>, parts: &[Box<RawValue>]) -> Vec<bool> {
    let is_told = |told: Told| match told {
        Told::Fate(Fate::Taken) => true,
        Told::Fate(Fate::Rejected(error)) | Told::Alone(error) => {
            tracing::debug!("a mark or report is refused: {error}");
            true
        }
        Told::Fate(Fate::Deferred(_)) | Told::Away(..) => false,
    };
    send(shared, pass, parts).await.into_iter().map(is_told).collect()
}

fn settlement(attempts: i32, told: Told, others_pass: bool) -> Settlement {
    let pause = || cluster::after(u32::try_from(attempts).unwrap_or(1), FIRST_PAUSE, LONGEST_PAUSE);
    match told {
        Told::Fate(Fate::Taken) => Settlement::Acknowledged,
        Told::Fate(Fate::Deferred(error)) => Settlement::Later { pause: pause(), error },
        Told::Fate(Fate::Rejected(error)) => Settlement::Dead { error },
        Told::Alone(error) if others_pass || attempts >= PATIENCE => Settlement::Dead { error },
        Told::Alone(error) => Settlement::Later { pause: pause(), error },
        Told::Away(error, pause) => Settlement::Later { pause, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_as_a_whole_is_dead_only_where_others_pass_or_patience_ends() {
        let alone = || Told::Alone("400 Bad Request".to_owned());
        let is_dead = |attempts, others| matches!(settlement(attempts, alone(), others), Settlement::Dead { .. });
        assert!(is_dead(1, true));
        assert!(!is_dead(1, false) && !is_dead(PATIENCE - 1, false));
        assert!(is_dead(PATIENCE, false));
        let pause = Duration::from_secs(9);
        let away = settlement(50, Told::Away("503".to_owned(), pause), true);
        assert_eq!(away, Settlement::Later { pause, error: "503".to_owned() });
    }

    #[test]
    fn a_batch_that_was_too_large_makes_the_next_ones_smaller_for_a_while() {
        let limit = Limit::new(1000);
        limit.too_large(1000);
        limit.too_large(3);
        limit.too_large(1);
        assert_eq!(limit.get(), 1);
        for doubled in [2, 4, 8] {
            (0..GROW_AFTER).for_each(|_| limit.taken());
            assert_eq!(limit.get(), doubled);
        }
        (0..GROW_AFTER * 20).for_each(|_| limit.taken());
        assert_eq!(limit.get(), 1000);
    }
}
