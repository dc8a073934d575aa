//! Who may send what, and what can't be true.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::*;

const TENANT: &str = "t_abcdefghijkl";
const OTHER: &str = "t_mnopqrstuvwx";

fn now() -> Timestamp {
    "2026-11-28T12:00:00Z".parse().expect("a time")
}

fn window() -> Window {
    Window { back: SignedDuration::from_hours(35 * 24), ahead: SignedDuration::from_mins(5) }
}

fn facts() -> TenantFacts {
    let meter = |is_total, from_api| MeterFacts { is_total, from_api };
    TenantFacts {
        servers: vec!["before".into(), "main".into()],
        periods: Periods::new("2026-01-31T00:00:00Z".parse().expect("a time"), "UTC").expect("a zone"),
        meters: Arc::new(BTreeMap::from([
            ("users".to_owned(), meter(false, false)),
            ("exports".to_owned(), meter(true, true)),
            ("seats".to_owned(), meter(false, true)),
        ])),
    }
}

fn relay() -> Sender {
    Sender::Relay { namespace: "tenantry-relay-main".into() }
}

fn workload() -> Sender {
    Sender::Workload { tenant: TENANT.into() }
}

/// A usage event that a relay sends.
fn counted() -> Value {
    json!({
        "id": "e1", "source": "/tenantry/main/pool_crm_1", "type": USAGE_TYPE, "subject": TENANT,
        "time": "2026-11-28T11:59:00Z",
        "data": {"meter": "users", "delta": 1, "kind": "Add", "epoch": 1, "sequence": 7, "value": 42},
    })
}

/// One that a workload sends.
fn plain() -> Value {
    json!({"id": "e1", "source": "/exporter", "type": USAGE_TYPE, "time": "2026-11-28T11:59:00Z", "data": {"meter": "exports", "delta": 3}})
}

/// An event with other values at these pointers; null takes away.
fn with(mut event: Value, more: &[(&str, Value)]) -> CloudEvent<'static> {
    for (pointer, value) in more {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = event.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
        match value {
            Value::Null => drop(parent.remove(key)),
            value => drop(parent.insert((*key).to_owned(), value.clone())),
        }
    }
    let text = |name: &str| event[name].as_str().map(|text| Cow::Owned(text.to_owned()));
    CloudEvent {
        id: text("id").expect("an id"),
        source: text("source").expect("a source"),
        event_type: text("type").expect("a type"),
        subject: text("subject"),
        time: event["time"].as_str().map(|time| time.parse().expect("a time")),
        data: event.get("data").map(|data| Cow::Owned(data.to_string())),
    }
}

fn of(sender: &Sender, event: &CloudEvent<'_>) -> Result<Item, Objection> {
    judge(event, sender, now(), window(), Some(&facts()))
}

fn kept(sender: &Sender, event: &CloudEvent<'_>) -> LedgerEvent {
    match of(sender, event) {
        Ok(Item::Usage(event)) => event,
        other => panic!("{event:?}: {other:?}"),
    }
}

fn refused(sender: &Sender, event: &CloudEvent<'_>, reason: Reason, says: &str) {
    let objection = of(sender, event).expect_err("an objection");
    assert_eq!(objection.reason, reason, "{event:?}: {objection:?}");
    assert!(objection.message.contains(says), "{event:?}: {objection:?}");
}

#[test]
fn what_a_relay_sends_goes_to_the_period_of_its_time() {
    let event = kept(&relay(), &with(counted(), &[]));
    assert_eq!((event.id.as_str(), event.tenant.as_str()), ("e1", TENANT));
    assert_eq!(event.usage.counted.as_ref().map(|counted| counted.sequence), Some(7));
    assert_eq!(event.period_start.to_string(), "2026-10-31T00:00:00Z");
    assert_eq!(event.period_end.to_string(), "2026-11-30T00:00:00Z");
    // A meter that the Application no longer declares was counted all the same.
    kept(&relay(), &with(counted(), &[("/data/meter", json!("gone"))]));
}

#[test]
fn a_total_goes_to_the_period_that_its_database_says() {
    let event = kept(&relay(), &with(counted(), &[("/data/periodStart", json!("2026-09-30T00:00:00Z"))]));
    assert_eq!(event.period_start.to_string(), "2026-09-30T00:00:00Z");
    assert_eq!(event.period_end.to_string(), "2026-10-31T00:00:00Z");
    let later = with(counted(), &[("/data/periodStart", json!("2026-11-28T11:59:01Z"))]);
    refused(&relay(), &later, Reason::BadData, "periodStart");
}

#[test]
fn a_relay_sends_for_what_its_server_has_or_had_and_for_nothing_else() {
    let before = Sender::Relay { namespace: "tenantry-relay-before".into() };
    kept(&before, &with(counted(), &[("/source", json!("/tenantry/before/pool_crm_1"))]));
    refused(&before, &with(counted(), &[]), Reason::Forbidden, "whose relay doesn't run in tenantry-relay-before");
    let other = Sender::Relay { namespace: "tenantry-relay-other".into() };
    let source = [("/source", json!("/tenantry/other/pool_crm_1"))];
    refused(&other, &with(counted(), &source), Reason::Forbidden, "is not on DatabaseServer other, and never was");
    for source in [
        "/tenantry/main",
        "/tenantry/main/a/b",
        "/tenantry//a",
        "tenantry/main/a",
        "https://x/tenantry/main/a",
        "/tenantry/ma%69n/a",
    ] {
        refused(&relay(), &with(counted(), &[("/source", json!(source))]), Reason::Forbidden, "source");
    }
    for subject in
        [json!(null), json!("acme"), json!("t_ABCDEFGHIJKL"), json!("t_abcdefghijk"), json!("t_abcdefghijk1")]
    {
        refused(&relay(), &with(counted(), &[("/subject", subject)]), Reason::BadSubject, "t_ and 12");
    }
}

#[test]
fn a_tenant_that_is_not_known_yet_is_waited_for() {
    for (sender, event) in [(relay(), counted()), (workload(), plain())] {
        let event = with(event, &[]);
        assert_eq!(tenant_of(&event, &sender), Some(TENANT));
        let objection = judge(&event, &sender, now(), window(), None).expect_err("unknown");
        assert_eq!(objection.reason, Reason::UnknownTenant);
        assert!(objection.reason.passes());
    }
}

#[test]
fn only_events_of_the_accept_window_are_taken() {
    for (time, reason) in [
        (Some("2026-10-24T12:00:00Z"), None),
        (Some("2026-10-24T11:59:59.999999Z"), Some(Reason::TooOld)),
        (Some("2026-11-28T12:05:00Z"), None),
        (Some("2026-11-28T12:05:00.000001Z"), Some(Reason::TooEarly)),
        (None, Some(Reason::MissingTime)),
    ] {
        for (sender, event) in [(relay(), counted()), (workload(), plain()), (relay(), mark()), (relay(), report())] {
            let event = with(event, &[("/time", json!(time))]);
            let answer = of(&sender, &event).err().map(|objection| objection.reason);
            assert_eq!(answer, reason, "{event:?}");
        }
    }
    assert!(Reason::TooEarly.passes() && !Reason::TooOld.passes());
}

#[test]
fn numbers_that_cant_be_true_are_named() {
    let folded = || json!({"firstSequence": 5, "firstAt": "2026-11-28T11:00:00Z", "low": 40, "high": 44, "moment": "-7000000000000000000000"});
    kept(&relay(), &with(counted(), &[("/data/folded", folded())]));
    for (pointer, value, says) in [
        ("/data/epoch", json!(0), "epoch is 0"),
        ("/data/sequence", json!(0), "sequence is 0"),
        ("/data/value", json!(-1), "value is -1"),
        ("/data/value", json!(1.5), "data.value: invalid type: floating point"),
        ("/data/value", json!("42"), "data.value: invalid type: string"),
        ("/data/delta", json!(i64::MIN), "can't have led to value 42"),
        ("/data/delta", json!(9_223_372_036_854_775_808_u64), "data.delta: invalid value"),
        ("/data/delta", json!(null), "missing field `delta`"),
        ("/data/kind", json!(null), "kind missing"),
        ("/data/meter", json!(""), "meter \"\""),
        ("/data/meter", json!("Users"), "meter \"Users\""),
        ("/data/meter", json!("a".repeat(41)), "at most 40"),
        ("/data/reason", json!("x".repeat(2_001)), "reason has 2001 bytes"),
        ("/data/actor", json!("nul\u{0}"), "actor has 4 bytes"),
        ("/data/folded/firstSequence", json!(8), "comes after sequence 7"),
        ("/data/folded/firstSequence", json!(0), "folded.firstSequence is 0"),
        ("/data/folded/firstAt", json!("2026-11-28T11:59:01Z"), "folded.firstAt"),
        ("/data/folded/low", json!(43), "not between"),
        ("/data/folded/low", json!(-1), "folded.low is -1"),
        ("/data/folded/high", json!(41), "not between"),
        ("/data/folded/moment", json!("1e3"), "folded.moment"),
        ("/data/folded/moment", json!(5), "data.folded.moment: invalid type"),
        ("/data/folded/moment", json!(null), "data.folded: missing field `moment`"),
    ] {
        let event = with(counted(), &[("/data/folded", folded()), (pointer, value)]);
        refused(&relay(), &event, Reason::BadData, says);
    }
    let bare = with(counted(), &[("/data", json!({"meter": "users", "delta": 1}))]);
    refused(&relay(), &bare, Reason::BadData, "kind, epoch, sequence and value are missing");
    refused(&relay(), &with(counted(), &[("/data", json!(null))]), Reason::BadData, "data is missing");
    refused(&relay(), &with(counted(), &[("/data", json!("text"))]), Reason::BadData, "data: invalid type: string");
    let mut broken = with(counted(), &[]);
    broken.data = Some("{\"meter\": \"users\"".into());
    refused(&relay(), &broken, Reason::BadData, "EOF");
    broken.data = Some(format!("{} x", counted()["data"]).into());
    refused(&relay(), &broken, Reason::BadData, "something follows");
}

#[test]
fn names_that_no_index_holds_are_refused() {
    refused(&relay(), &with(counted(), &[("/id", json!("i".repeat(257)))]), Reason::Malformed, "id has 257 bytes");
    refused(
        &workload(),
        &with(plain(), &[("/source", json!(format!("/{}", "s".repeat(512))))]),
        Reason::Malformed,
        "source has 513",
    );
    kept(&workload(), &with(plain(), &[("/id", json!("i".repeat(256)))]));
}

fn mark() -> Value {
    json!({
        "id": "m1", "source": "/tenantry/main/pool_crm_1", "type": MARK_TYPE, "subject": TENANT,
        "time": "2026-11-28T11:59:00Z", "data": {"meter": "users", "epoch": 1, "sequence": 0, "value": 0},
    })
}

fn report() -> Value {
    json!({
        "id": "r1", "source": "/tenantry/main/pool_crm_1", "type": OUTBOX_TYPE, "subject": "pool_crm_1",
        "time": "2026-11-28T11:59:00Z", "data": {"waiting": 3},
    })
}

#[test]
fn marks_and_reports_are_the_relays() {
    let Ok(Item::Mark(kept)) = of(&relay(), &with(mark(), &[])) else { panic!("no mark") };
    assert_eq!((kept.tenant.as_str(), kept.as_of.to_string().as_str()), (TENANT, "2026-11-28T11:59:00Z"));
    for (pointer, value, says) in [
        ("/data/sequence", json!(-1), "sequence is -1"),
        ("/data/epoch", json!(0), "epoch is 0"),
        ("/data/value", json!(-1), "value is -1"),
        ("/data/meter", json!("a b"), "meter"),
    ] {
        refused(&relay(), &with(mark(), &[(pointer, value)]), Reason::BadData, says);
    }
    let event = with(report(), &[]);
    assert_eq!(tenant_of(&event, &relay()), None);
    let Ok(Item::Report { server, database, report: said }) = of(&relay(), &event) else { panic!("no report") };
    assert_eq!((server.as_str(), database.as_str(), said.waiting), ("main", "pool_crm_1", 3));
    refused(&relay(), &with(report(), &[("/subject", json!("other"))]), Reason::BadSubject, "pool_crm_1");
    refused(&relay(), &with(report(), &[("/data/waiting", json!(-1))]), Reason::BadData, "data.waiting");
    for event in [mark(), report()] {
        refused(&workload(), &with(event, &[]), Reason::Forbidden, "is the relays'");
    }
    let unknown = with(counted(), &[("/type", json!("com.example.other"))]);
    for sender in [relay(), workload()] {
        refused(&sender, &unknown, Reason::UnknownType, "com.example.other");
    }
}

#[test]
fn what_a_newer_relay_sends_waits_for_a_newer_operator() {
    let folded = json!({"firstSequence": 5, "firstAt": "2026-11-28T11:00:00Z", "low": 40, "high": 44, "moment": "7", "median": 41});
    for (event, says) in [
        (with(counted(), &[("/data/region", json!("eu"))]), "unknown field `region`"),
        (with(counted(), &[("/data/kind", json!("Move"))]), "unknown variant `Move`"),
        (with(counted(), &[("/data/folded", folded)]), "data.folded.median: unknown field `median`"),
        (with(mark(), &[("/data/region", json!("eu"))]), "unknown field `region`"),
        (with(report(), &[("/data/region", json!("eu"))]), "unknown field `region`"),
        (with(counted(), &[("/type", json!("io.tenantry.usage.v2"))]), "io.tenantry.usage.v2"),
    ] {
        refused(&relay(), &event, Reason::TooNew, says);
    }
    assert!(Reason::TooNew.passes());
    // A workload is nobody's newer version: somebody mistyped.
    for (pointer, value) in [("/data/detla", json!(1)), ("/data/kind", json!("Guess"))] {
        refused(&workload(), &with(plain(), &[(pointer, value)]), Reason::BadData, "unknown");
    }
    let newer = with(plain(), &[("/type", json!("io.tenantry.usage.v2"))]);
    refused(&workload(), &newer, Reason::UnknownType, "io.tenantry.usage.v2");
}

#[test]
fn a_workload_counts_its_own_tenants_meters_of_source_api() {
    let event = kept(&workload(), &with(plain(), &[]));
    assert_eq!((event.tenant.as_str(), event.usage.counted), (TENANT, None));
    assert_eq!(event.period_start.to_string(), "2026-10-31T00:00:00Z");
    kept(&workload(), &with(plain(), &[("/subject", json!(TENANT))]));
    kept(&workload(), &with(plain(), &[("/data/meter", json!("seats")), ("/data/delta", json!(-2))]));
    for (pointer, value, reason, says) in [
        ("/subject", json!(OTHER), Reason::Forbidden, "is not this namespace's tenant"),
        ("/data/meter", json!("users"), Reason::Forbidden, "is counted in the database"),
        ("/data/meter", json!("imports"), Reason::UnknownMeter, "of source API: exports, seats"),
        ("/data/delta", json!(-1), Reason::BadData, "only counts up"),
        ("/data", counted()["data"].clone(), Reason::Forbidden, "a workload sends meter and delta"),
    ] {
        refused(&workload(), &with(plain(), &[(pointer, value)]), reason, says);
    }
}
