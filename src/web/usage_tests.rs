//! What a reading says of what the ledger knows; over HTTP, with a real ledger, in tests/api.

use jiff::SignedDuration;
use rust_decimal::Decimal;

use super::*;
use crate::metering::ledger::{ClosedPeriod, LedgerTenant, MeterDefinition, OpenPeriod};

const PATIENCE: Patience = Patience {
    gap: SignedDuration::from_secs(60),
    mark: SignedDuration::from_secs(180),
    silent: SignedDuration::from_secs(180),
};

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn acme() -> MeteredTenant {
    let meter = |name: &str, is_total| MeterDefinition { name: name.into(), is_total, from_api: false };
    MeteredTenant {
        tenant: LedgerTenant {
            id: "t_abcdefghijkl".into(),
            uid: "uid".into(),
            name: "acme".into(),
            application: "crm".into(),
            plan: "smb".into(),
            namespace: None,
            anchor: at("2025-01-01T00:00:00Z"),
            time_zone: "UTC".into(),
        },
        gone_at: None,
        meters: vec![meter("mails", true), meter("users", false)],
        server: Some("main".into()),
        heard_at: Some(at("2026-11-10T00:00:00Z")),
    }
}

fn state(meter: &str, value: i64) -> MeterState {
    MeterState {
        tenant: "t_abcdefghijkl".into(),
        meter: meter.into(),
        epoch: 1,
        sequence: 3,
        value,
        occurred_at: Some(at("2026-11-09T00:00:00Z")),
        marked_at: Some(at("2026-11-10T00:00:00Z")),
        missing: None,
        restored: false,
        open: Vec::new(),
        closed: Vec::new(),
        drift: None,
    }
}

fn read(metered: MeteredTenant, states: &[MeterState], as_of: &str) -> UsageReading {
    reading(metered, states, PATIENCE, at(as_of)).unwrap_or_else(|_| panic!("a reading"))
}

#[test]
fn only_what_can_be_a_tenants_name_is_looked_for() {
    let (longest, longer) = ("a".repeat(40), "a".repeat(41));
    for name in ["a", "acme", "a-1", "x1-", "", "1a", "-a", "a_b", "A", "a.b", "a/b", "xn--a", "é", &longest, &longer]
    {
        let may = ["a", "acme", "a-1", &longest].contains(&name);
        assert_eq!(is_name(name), may, "{name:?}");
    }
}

#[test]
fn every_closed_period_has_every_meter() {
    let mut metered = acme();
    let names: Vec<String> = (0..30).map(|number| format!("meter{number:02}")).collect();
    metered.meters =
        names.iter().map(|name| MeterDefinition { name: name.clone(), is_total: true, from_api: false }).collect();
    let closed = |month: usize| {
        let (start, end) = (format!("2026-{month:02}-01T00:00:00Z"), format!("2026-{:02}-01T00:00:00Z", month + 1));
        let sums = OpenPeriod {
            start: at(&start),
            end: at(&end),
            opening: 0,
            closing: 7,
            low: 0,
            high: 7,
            delta: Decimal::from(7),
            moment: Decimal::from(0),
        };
        ClosedPeriod { sums, estimated: false, adjustments: Vec::new() }
    };
    let of = |name: &String| MeterState { closed: (1..=10).rev().map(closed).collect(), ..state(name, 7) };
    let states: Vec<MeterState> = names.iter().map(of).collect();
    let reading = read(metered, &states, "2026-11-10T00:00:10Z");
    assert_eq!(reading.history.len(), 10);
    for closed in &reading.history {
        let used: Vec<_> = closed.meters.iter().map(|meter| (meter.name.clone(), meter.used)).collect();
        let wanted: Vec<_> = names.iter().map(|name| (name.clone(), Some(7))).collect();
        assert_eq!(used, wanted);
    }
}

#[test]
fn who_was_gone_before_the_period_has_a_history_alone() {
    let states = [state("users", 42)];
    let mut metered = acme();
    metered.gone_at = Some(at("2026-11-05T00:00:00Z"));
    let reading = read(metered.clone(), &states, "2026-11-30T00:00:00Z");
    assert_eq!(reading.gone_at, metered.gone_at.map(Time));
    let users = reading.usage.expect("it was there in this period").meters.remove(1);
    assert_eq!((users.name.as_str(), users.current, users.display.as_str()), ("users", 42, "42"));
    assert_eq!(read(metered, &states, "2026-12-01T00:00:00Z").usage, None);
}

#[test]
fn what_nobody_has_heard_of_for_long_is_not_complete() {
    let states = [state("mails", 1), state("users", 2)];
    let said = |after: SignedDuration| {
        let reading = read(acme(), &states, &(at("2026-11-10T00:00:00Z") + after).to_string());
        let complete = reading.usage.expect("usage").meters.iter().all(|meter| meter.complete);
        let [condition] = &reading.conditions[..] else { panic!("one condition: {:?}", reading.conditions) };
        (complete, condition.type_.clone(), condition.status.clone(), condition.reason.clone())
    };
    let complete = "UsageComplete".to_owned();
    let soon = said(SignedDuration::from_mins(3));
    assert_eq!(soon, (true, complete.clone(), "True".to_owned(), "Complete".to_owned()));
    let late = said(SignedDuration::from_mins(4));
    assert_eq!(late, (false, complete, "False".to_owned(), "RelaySilent".to_owned()));
}

#[test]
fn a_zone_that_isnt_known_is_no_zone_at_all() {
    let mut metered = acme();
    metered.tenant.time_zone = "Mars/Olympus".into();
    let response =
        reading(metered, &[], PATIENCE, at("2026-11-10T00:00:00Z")).map(drop).expect_err("no periods").response();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}
