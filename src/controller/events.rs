//! Kubernetes Events, on transitions only and off the path of every reconcile: a reconcile
//! puts a line into a bounded queue and goes on. A task of its own waits until a trouble has
//! lasted for a moment, says the same thing once in a while, and not too much at a time.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime},
};
use kube::{Api, Client, Resource, ResourceExt as _, api::PostParams};
use prometheus_client::metrics::{counter::Counter, family::Family};
use tokio::sync::mpsc;
use tracing::debug;

use super::metrics::OfOutcome;
use crate::api::{ConditionType, find_condition, is_true};

/// Who says it.
const CONTROLLER: &str = "tenantry.io/operator";
/// Events of resources without a namespace stand in this one.
const NAMESPACE: &str = "default";
/// The longest text that the API server takes is 1,024 bytes.
const LONGEST: usize = 1_000;
/// How many lines may wait to be looked at, and how many to be said.
const WAITING: usize = 1_024;
/// How long a concern must have failed to be worth an Event: what the next look mends is not.
const SETTLE: Duration = Duration::from_secs(5);
/// The same for what a person has to mend, and for good news.
const SOON: Duration = Duration::from_secs(1);
/// For how long the same thing is not said again of the same object.
const AGAIN: Duration = Duration::from_secs(600);
/// The time from one Event to the next, where many wait.
const PACE: Duration = Duration::from_millis(50);
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of an Event, as the metric counts it.
pub(super) type Outcomes = Family<OfOutcome, Counter>;

/// Whether something is amiss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Normal,
    Warning,
}

/// What an Event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    tone: Tone,
    /// One word for programs.
    reason: String,
    /// What the operator did, or was about to do.
    action: &'static str,
    /// A sentence for people.
    text: String,
}

impl Note {
    /// Something was done.
    pub(super) fn normal(reason: &str, action: &'static str, text: impl Into<String>) -> Self {
        Self { tone: Tone::Normal, reason: reason.to_owned(), action, text: text.into() }
    }

    /// Something is amiss.
    pub(super) fn warning(reason: &str, action: &'static str, text: impl Into<String>) -> Self {
        Self { tone: Tone::Warning, ..Self::normal(reason, action, text) }
    }
}

/// What is to be said about one subject, or no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Turn {
    Say(Note, Duration),
    Unsay,
}

/// A line of the queue.
struct Line {
    regarding: ObjectReference,
    subject: String,
    turn: Turn,
}

/// Where Events are put.
#[derive(Clone)]
pub(super) struct Events {
    lines: mpsc::Sender<Line>,
    outcomes: Outcomes,
}

/// What comes out, for [`send`].
pub(super) struct Lines(mpsc::Receiver<Line>);

impl Events {
    pub(super) fn new(outcomes: Outcomes) -> (Self, Lines) {
        let (lines, receiver) = mpsc::channel(WAITING);
        (Self { lines, outcomes }, Lines(receiver))
    }

    /// Says something about an object.
    pub(super) fn say<K: Resource<DynamicType = ()>>(&self, object: &K, note: Note) {
        let subject = note.reason.clone();
        self.put(Line { regarding: reference(object), subject, turn: Turn::Say(note, Duration::ZERO) });
    }

    /// Says something about one of several subjects of an object: it takes the place of what was
    /// said about the same subject and nobody has heard yet, and of nothing else.
    pub(super) fn say_of<K: Resource<DynamicType = ()>>(&self, object: &K, subject: &str, note: Note) {
        let turn = Turn::Say(note, Duration::ZERO);
        self.put(Line { regarding: reference(object), subject: subject.to_owned(), turn });
    }

    /// Says what changed in an object's conditions, where somebody would want to hear of it.
    pub(super) fn transitions<K: Resource<DynamicType = ()>>(&self, object: &K, old: &[Condition], new: &[Condition]) {
        for (subject, turn) in transitions(old, new) {
            self.put(Line { regarding: reference(object), subject, turn });
        }
    }

    fn put(&self, line: Line) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.lines.try_send(line) {
            count(&self.outcomes, "dropped");
        }
    }
}

fn count(outcomes: &Outcomes, outcome: &'static str) {
    outcomes.get_or_create(&OfOutcome { outcome }).inc();
}

fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: Some(object.name_any()),
        uid: object.meta().uid.clone(),
        ..ObjectReference::default()
    }
}

/// What is to be said of a change of conditions, by the condition's type.
fn transitions(old: &[Condition], new: &[Condition]) -> Vec<(String, Turn)> {
    let name = |kind: ConditionType| kind.as_str();
    let mut turns = Vec::new();
    let stalled = find_condition(new, ConditionType::Stalled);
    for condition in new.iter().filter(|condition| condition.type_ != name(ConditionType::Reconciling)) {
        let before = old.iter().find(|before| before.type_ == condition.type_);
        if before.is_some_and(|it| (&it.status, &it.reason) == (&condition.status, &condition.reason)) {
            continue;
        }
        let (reason, text) = (condition.reason.as_str(), condition.message.as_str());
        let is_ready = condition.type_ == name(ConditionType::Ready);
        let is_stalled = condition.type_ == name(ConditionType::Stalled);
        let turn = match condition.status.as_str() {
            "True" if is_stalled => Turn::Say(Note::warning(reason, "Reconcile", text), SOON),
            "True" if is_ready && before.is_some_and(|before| before.status == "True") => continue,
            "True" if is_ready => Turn::Say(Note::normal("Ready", "Reconcile", text), SOON),
            // As it should be: suspended, say.
            "False" if is_ready && stalled.is_none() && !is_true(new, ConditionType::Reconciling) => {
                Turn::Say(Note::normal(reason, "Reconcile", text), SOON)
            }
            // What makes it so is said of the concern, or of being stalled.
            "False" if !is_ready && !is_at_rest(new) && stalled.is_none_or(|it| it.reason != reason) => {
                Turn::Say(Note::warning(reason, "Reconcile", text), SETTLE)
            }
            _ => Turn::Unsay,
        };
        turns.push((condition.type_.clone(), turn));
    }
    if stalled.is_none() && find_condition(old, ConditionType::Stalled).is_some() {
        turns.push((name(ConditionType::Stalled).to_owned(), Turn::Unsay));
    }
    turns
}

/// Whether an object is not ready because that is just what its spec asks for.
fn is_at_rest(conditions: &[Condition]) -> bool {
    find_condition(conditions, ConditionType::Stalled).is_none() && !is_true(conditions, ConditionType::Reconciling)
}

/// What waits to be said.
#[derive(Default)]
struct Pending {
    /// By object and subject: what is said last about something counts.
    when: HashMap<(String, String), (Instant, u64)>,
    notes: BTreeMap<(Instant, u64), (ObjectReference, String, Note)>,
    number: u64,
    /// When what was said last, by object, subject and reason.
    said: HashMap<(String, String, String), Instant>,
}

impl Pending {
    /// Takes a line in; false if there is no room for it.
    fn take(&mut self, line: Line, now: Instant) -> bool {
        let uid = line.regarding.uid.clone().unwrap_or_default();
        let key = (uid, line.subject.clone());
        if let Some(at) = self.when.remove(&key) {
            self.notes.remove(&at);
        }
        let Turn::Say(note, delay) = line.turn else { return true };
        if self.notes.len() >= WAITING {
            return false;
        }
        self.number += 1;
        let at = (now + delay, self.number);
        self.when.insert(key, at);
        self.notes.insert(at, (line.regarding, line.subject, note));
        true
    }

    /// When the next one is due.
    fn due(&self) -> Option<Instant> {
        self.notes.keys().next().map(|(due, _)| *due)
    }

    /// Takes out the one that is due; nothing if it was said lately.
    fn next(&mut self, now: Instant) -> Option<(ObjectReference, Note)> {
        let (_, (regarding, subject, note)) = self.notes.pop_first()?;
        let uid = regarding.uid.clone().unwrap_or_default();
        self.when.remove(&(uid.clone(), subject.clone()));
        if self.said.len() >= WAITING * 4 {
            self.said.retain(|_, said| now.duration_since(*said) < AGAIN);
        }
        let key = (uid, subject, note.reason.clone());
        // What was done is said each time that it was; what is, once in a while.
        let lasts = note.action == "Reconcile";
        if lasts && self.said.get(&key).is_some_and(|said| now.duration_since(*said) < AGAIN) {
            return None;
        }
        if lasts && self.said.len() < WAITING * 4 {
            self.said.insert(key, now);
        }
        Some((regarding, note))
    }
}

/// Says what is put in, for as long as there is somebody who puts in.
pub(super) async fn send(client: Client, instance: String, mut lines: Lines, outcomes: Outcomes) {
    let api = Api::<Event>::namespaced(client, NAMESPACE);
    let mut pending = Pending::default();
    let mut free = Instant::now();
    loop {
        let due = async {
            match pending.due() {
                Some(due) => tokio::time::sleep_until(due.max(free).into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            line = lines.0.recv() => {
                let Some(line) = line else { return };
                if !pending.take(line, Instant::now()) {
                    count(&outcomes, "dropped");
                }
            }
            () = due => {
                let Some((regarding, note)) = pending.next(Instant::now()) else {
                    count(&outcomes, "suppressed");
                    continue;
                };
                let event = event(&regarding, note, &instance);
                free = Instant::now() + PACE;
                let sent = tokio::time::timeout(PATIENCE, api.create(&PostParams::default(), &event)).await;
                match sent {
                    Ok(Ok(_)) => count(&outcomes, "sent"),
                    Ok(Err(error)) => {
                        debug!(%error, "an Event is lost");
                        count(&outcomes, "failed");
                    }
                    Err(_) => count(&outcomes, "failed"),
                }
            }
        }
    }
}

fn event(regarding: &ObjectReference, note: Note, instance: &str) -> Event {
    let mut event = Event {
        action: Some(note.action.to_owned()),
        event_time: Some(MicroTime(Timestamp::now())),
        note: Some(cut(note.text)),
        reason: Some(note.reason),
        regarding: Some(regarding.clone()),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(format!("{:?}", note.tone)),
        ..Event::default()
    };
    event.metadata.namespace = Some(NAMESPACE.to_owned());
    // Not generateName: the API server takes none that ends in a dot.
    let number = rand::random::<u64>();
    event.metadata.name = Some(format!("{}.{number:016x}", regarding.name.as_deref().unwrap_or("tenantry")));
    event
}

fn cut(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
