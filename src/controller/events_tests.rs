use super::*;
use crate::api::{Verdict, merge_conditions};

fn conditions(verdicts: &[Verdict]) -> Vec<Condition> {
    merge_conditions(&[], verdicts, Some(1), Timestamp::UNIX_EPOCH)
}

fn ready() -> Vec<Condition> {
    conditions(&[
        Verdict::yes(ConditionType::Ready, "Ready", "served"),
        Verdict::yes(ConditionType::DatabaseReady, "Proven", "isolated"),
    ])
}

fn away() -> Vec<Condition> {
    conditions(&[
        Verdict::no(ConditionType::Ready, "DatabaseUnavailable", "away"),
        Verdict::yes(ConditionType::Reconciling, "DatabaseUnavailable", "away"),
        Verdict::no(ConditionType::DatabaseReady, "DatabaseUnavailable", "away"),
    ])
}

fn stalled(reason: &'static str) -> Vec<Condition> {
    conditions(&[
        Verdict::no(ConditionType::Ready, reason, "no such plan"),
        Verdict::yes(ConditionType::Stalled, reason, "no such plan"),
    ])
}

/// What is said, as "subject: tone reason", and in how long; `-` for what is not said any more.
fn said(old: &[Condition], new: &[Condition]) -> Vec<String> {
    let text = |(subject, turn): (String, Turn)| match turn {
        Turn::Say(note, delay) => format!("{subject}: {:?} {} after {delay:?}", note.tone, note.reason),
        Turn::Unsay => format!("{subject}: -"),
    };
    transitions(old, new).into_iter().map(text).collect()
}

#[test]
fn only_what_changed_is_said() {
    assert_eq!(said(&[], &ready()), ["Ready: Normal Ready after 1s", "DatabaseReady: -"]);
    assert_eq!(said(&ready(), &ready()), Vec::<String>::new());
    assert_eq!(said(&ready(), &away()), ["Ready: -", "DatabaseReady: Warning DatabaseUnavailable after 5s"]);
    assert_eq!(said(&away(), &away()), Vec::<String>::new());
    assert_eq!(said(&away(), &ready()), ["Ready: Normal Ready after 1s", "DatabaseReady: -"]);
}

#[test]
fn what_a_person_has_to_mend_is_said_once_and_again_when_it_is_something_else() {
    assert_eq!(said(&ready(), &stalled("UnknownPlan")), ["Ready: -", "Stalled: Warning UnknownPlan after 1s"]);
    let other = said(&stalled("UnknownPlan"), &stalled("PlanUnfit"));
    assert_eq!(other, ["Ready: -", "Stalled: Warning PlanUnfit after 1s"]);
    assert_eq!(
        said(&stalled("UnknownPlan"), &ready()),
        ["Ready: Normal Ready after 1s", "DatabaseReady: -", "Stalled: -"]
    );
}

#[test]
fn what_is_as_it_should_be_is_no_warning() {
    let suspended = conditions(&[
        Verdict::no(ConditionType::Ready, "Suspended", "the data stays"),
        Verdict::no(ConditionType::WorkloadReady, "Suspended", "the data stays"),
    ]);
    assert_eq!(said(&ready(), &suspended), ["Ready: Normal Suspended after 1s", "WorkloadReady: -"]);
}

fn line(uid: &str, subject: &str, turn: Turn) -> Line {
    let regarding = ObjectReference { uid: Some(uid.into()), ..ObjectReference::default() };
    Line { regarding, subject: subject.into(), turn }
}

fn warning(reason: &str) -> Turn {
    Turn::Say(Note::warning(reason, "Reconcile", ""), SETTLE)
}

#[test]
fn a_trouble_that_is_over_in_a_moment_is_not_said() {
    let (mut pending, now) = (Pending::default(), Instant::now());
    assert!(pending.take(line("a", "DatabaseReady", warning("Away")), now));
    assert!(pending.take(line("b", "DatabaseReady", warning("Away")), now));
    assert_eq!(pending.due(), Some(now + SETTLE));
    assert!(pending.take(line("a", "DatabaseReady", Turn::Unsay), now));
    let (regarding, _) = pending.next(now + SETTLE).expect("b has it still");
    assert_eq!(regarding.uid.as_deref(), Some("b"));
    assert_eq!((pending.due(), pending.when.len()), (None, 0));
}

#[test]
fn the_same_is_said_again_only_after_a_while_and_what_was_done_each_time() {
    let (mut pending, now) = (Pending::default(), Instant::now());
    let mut say = |turn: Turn, at: Instant| {
        pending.take(line("a", "Ready", turn), at);
        pending.next(at).is_some()
    };
    assert!(say(warning("Away"), now));
    assert!(!say(warning("Away"), now + Duration::from_secs(60)));
    assert!(say(warning("Other"), now + Duration::from_secs(60)));
    assert!(say(warning("Away"), now + AGAIN));
    let rotated = || Turn::Say(Note::normal("CredentialsRotated", "RotateCredentials", ""), Duration::ZERO);
    assert!(say(rotated(), now));
    assert!(say(rotated(), now));
}

#[test]
fn what_is_too_much_is_dropped_and_takes_no_memory() {
    let (mut pending, now) = (Pending::default(), Instant::now());
    let taken = (0..WAITING + 10).filter(|n| pending.take(line(&n.to_string(), "Ready", warning("Away")), now)).count();
    assert_eq!((taken, pending.notes.len(), pending.when.len()), (WAITING, WAITING, WAITING));
}

#[test]
fn the_queue_never_waits() {
    let outcomes = Outcomes::default();
    let (events, _lines) = Events::new(outcomes.clone());
    let mut tenant =
        crate::api::Tenant::new("a", serde_json::from_str(r#"{"application": "crm", "plan": "smb"}"#).expect("a spec"));
    tenant.metadata.uid = Some("1".into());
    for _ in 0..WAITING + 3 {
        events.say(&tenant, Note::normal("Ready", "Reconcile", ""));
    }
    assert_eq!(outcomes.get_or_create(&OfOutcome { outcome: "dropped" }).get(), 3);
}

#[test]
fn an_event_is_one_that_the_api_server_takes() {
    let (tenant, long) = (ObjectReference { name: Some("acme".into()), ..ObjectReference::default() }, "é".repeat(900));
    let event = event(&tenant, Note::warning("Away", "Reconcile", long), "tenantry-0");
    assert!(event.note.expect("a note").len() <= 1_024);
    assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert!(event.metadata.name.is_some_and(|name| name.starts_with("acme.") && name.len() == "acme.".len() + 16));
}
