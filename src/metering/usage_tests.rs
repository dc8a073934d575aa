use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;
use crate::metering::ledger::{Adjustment, ClosedPeriod, MissingRange};

/// A period of 30 days, in microseconds.
const SPAN: i64 = 30 * 86_400 * 1_000_000;

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn periods() -> Periods {
    Periods::new(at("2026-11-01T00:00:00Z"), "UTC").expect("a zone")
}

fn start() -> Timestamp {
    at("2026-11-01T00:00:00Z")
}

fn meter(name: &str, limit: Option<Limit>) -> MeterTerms {
    MeterTerms { name: name.into(), is_total: false, from_api: false, limit }
}

fn hard(max: i64) -> Option<Limit> {
    Some(Limit { max, policy: Policy::Hard })
}

fn level(open: &[(i64, i64)]) -> OpenPeriod {
    sums(7, open)
}

/// What events, each a time after the start in microseconds and a delta, add up to. They may
/// stand in any order, as they may arrive.
fn sums(opening: i64, events: &[(i64, i64)]) -> OpenPeriod {
    let mut in_order = events.to_vec();
    in_order.sort_by_key(|(time, _)| *time);
    let (mut value, mut low, mut high) = (opening, i64::MAX, i64::MIN);
    for (_, delta) in &in_order {
        value += delta;
        (low, high) = (low.min(value), high.max(value));
    }
    if events.is_empty() {
        (low, high) = (opening, opening);
    }
    OpenPeriod {
        start: start(),
        end: at("2026-12-01T00:00:00Z"),
        opening,
        closing: value,
        low,
        high,
        delta: events.iter().map(|(_, delta)| Decimal::from(*delta)).sum(),
        moment: events.iter().map(|(time, delta)| Decimal::from(*delta) * Decimal::from(*time)).sum(),
    }
}

fn state(name: &str, value: i64, open: Vec<OpenPeriod>) -> MeterState {
    MeterState {
        tenant: "t_000000000000".into(),
        meter: name.into(),
        epoch: 1,
        sequence: 3,
        value,
        occurred_at: Some(at("2026-11-10T00:00:00Z")),
        marked_at: Some(at("2026-11-10T00:00:30Z")),
        missing: None,
        restored: false,
        open,
        closed: Vec::new(),
        drift: None,
    }
}

fn projected(states: &[MeterState], meters: &[MeterTerms], delivery: &Delivery, now: Timestamp) -> Usage {
    let periods = periods();
    let seconds = SignedDuration::from_secs;
    let patience = Patience { gap: seconds(60), mark: seconds(180), silent: seconds(180) };
    let terms =
        Terms { periods: &periods, meters, delivery, patience, drift_percent: 1, history_meters: HISTORY_METERS };
    project(states, &terms, now)
}

/// The area below a step function, one step after the other.
fn naive(opening: i64, events: &[(i64, i64)], until: i64) -> i128 {
    let mut in_order = events.to_vec();
    in_order.sort_by_key(|(time, _)| *time);
    let (mut area, mut value, mut last) = (0_i128, i128::from(opening), 0_i64);
    for (time, delta) in in_order {
        area += value * i128::from(time - last);
        value += i128::from(delta);
        last = time;
    }
    area + value * i128::from(until - last)
}

proptest! {
    #[test]
    fn an_average_is_the_area_below_the_steps_whatever_order_they_arrived_in(
        opening in 0_i64..1_000_000_000,
        events in proptest::collection::vec((0..SPAN, -1_000_i64..1_000_000), 0..40),
        more in 0..SPAN,
    ) {
        let last = events.iter().map(|(time, _)| *time).max().unwrap_or(0);
        let until = last + 1 + more;
        let sums = sums(opening, &events);
        let found = average(&sums, start() + SignedDuration::from_micros(until)).expect("an average");
        // Two decimals of it: not farther than half of the last one from the exact quotient.
        let scaled = found.mantissa() * 10_i128.pow(2 - found.scale());
        let exact = naive(opening, &events, until) * 100;
        let difference = (scaled * i128::from(until) - exact).abs();
        prop_assert!(2 * difference <= i128::from(until), "{found} of {exact}/{until}");
    }

    #[test]
    fn a_level_has_its_value_its_peak_and_its_average(
        opening in 0_i64..100,
        events in proptest::collection::vec((0..SPAN, 0_i64..9), 1..20),
        now in 1..SPAN,
    ) {
        let before: Vec<_> = events.into_iter().filter(|(time, _)| *time < now).collect();
        let sums = sums(opening, &before);
        let closing = sums.closing;
        let moment = start() + SignedDuration::from_micros(now);
        let mut state = state("users", closing, vec![sums.clone()]);
        state.occurred_at = before.iter().map(|(time, _)| start() + SignedDuration::from_micros(*time)).max();
        let usage = projected(&[state], &[meter("users", None)], &Delivery::default(), moment);
        let users = &usage.meters[0];
        prop_assert_eq!((users.current, users.peak), (closing, Some(closing.max(opening))));
        prop_assert_eq!(users.average, average(&sums, moment));
    }
}

#[test]
fn what_came_and_went_is_in_the_peak_and_an_hour_of_it_in_the_average() {
    let hour = 3_600 * 1_000_000;
    let open = level(&[(0, 3), (hour, -8), (2 * hour, 1)]);
    let usage = projected(
        &[state("users", 3, vec![open])],
        &[meter("users", hard(50))],
        &Delivery::default(),
        at("2026-11-01T04:00:00Z"),
    );
    let users = &usage.meters[0];
    // 10 for an hour, 2 for an hour, 3 since: the event's time is after `now`, whose clock is late.
    assert_eq!((users.current, users.peak, users.limit), (3, Some(10), Some(50)));
    let mut state = state("users", 3, vec![level(&[(0, 3), (hour, -8), (2 * hour, 1)])]);
    state.occurred_at = Some(at("2026-11-01T02:00:00Z"));
    let usage = projected(&[state], &[meter("users", None)], &Delivery::default(), at("2026-11-01T04:00:00Z"));
    assert_eq!(usage.meters[0].average, Some("4.50".parse().expect("a number")));
}

#[test]
fn a_period_without_events_carries_a_level_and_starts_a_total_again() {
    let before = OpenPeriod { start: at("2026-10-01T00:00:00Z"), end: start(), ..level(&[]) };
    let total = MeterTerms { is_total: true, ..meter("emails", hard(9)) };
    let states = [state("users", 7, vec![before.clone()]), state("emails", 7, vec![before])];
    let usage = projected(&states, &[meter("users", None), total], &Delivery::default(), at("2026-11-03T00:00:00Z"));
    let [users, emails] = usage.meters.as_slice() else { panic!("{usage:?}") };
    assert_eq!((users.current, users.peak, users.average), (7, Some(7), Some(Decimal::from(7))));
    assert_eq!((emails.current, emails.peak, emails.average), (0, None, None));
}

#[test]
fn a_meter_that_the_ledger_never_heard_of_is_0_and_nobody_knows_whether_that_is_all() {
    let usage = projected(&[], &[meter("users", hard(3))], &Delivery::default(), at("2026-11-03T00:00:00Z"));
    assert_eq!((usage.meters[0].current, usage.meters[0].complete), (0, false));
    assert_eq!((usage.complete.holds, usage.complete.reason), (None, "NotReported"));
    assert_eq!(usage.within_limits.holds, Some(true));
    assert_eq!(usage.next, at("2026-12-01T00:00:00Z"), "the period's end");
}

#[test]
fn a_gap_is_said_when_two_leases_are_over_and_not_before() {
    let since = at("2026-11-10T01:00:00Z");
    let missing = Some(MissingRange { epoch: 1, first: 4, last: 9, count: 5, since });
    let states = [MeterState { missing, ..state("users", 7, Vec::new()) }];
    let meters = [meter("users", None)];
    let soon = since + SignedDuration::from_secs(59);
    let usage = projected(&states, &meters, &Delivery::default(), soon);
    assert_eq!((usage.complete.holds, usage.next), (Some(true), since + SignedDuration::from_secs(60)));
    let usage = projected(&states, &meters, &Delivery::default(), usage.next);
    assert_eq!((usage.complete.holds, usage.complete.reason), (Some(false), "EventsMissing"));
    let message = &usage.complete.message;
    for part in ["users", "events 4 to 9 (5 of them)", "epoch 1", "2026-11-10T01:00:00Z"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!usage.meters[0].complete);
}

#[test]
fn an_old_mark_matters_only_where_something_was_counted_since() {
    let meters = [meter("users", None)];
    let month_later = at("2026-11-29T00:00:00Z");
    let idle = state("users", 7, Vec::new());
    assert_eq!(
        projected(std::slice::from_ref(&idle), &meters, &Delivery::default(), month_later).complete.holds,
        Some(true)
    );
    let counted = MeterState { occurred_at: Some(at("2026-11-10T00:01:00Z")), ..idle };
    let soon = at("2026-11-10T00:02:00Z");
    let usage = projected(std::slice::from_ref(&counted), &meters, &Delivery::default(), soon);
    assert_eq!((usage.complete.holds, usage.next), (Some(true), at("2026-11-10T00:04:00Z")));
    let usage = projected(&[counted], &meters, &Delivery::default(), usage.next);
    assert_eq!((usage.complete.holds, usage.complete.reason), (Some(false), "MarkIsOld"));
}

#[test]
fn a_restored_database_comes_first_and_a_silent_relay_degrades() {
    let states = [MeterState { restored: true, ..state("users", 7, Vec::new()) }, state("accounts", 1, Vec::new())];
    let meters = [meter("users", None), meter("accounts", None)];
    let silent = at("2026-11-10T00:30:00Z");
    let delivery = Delivery { server: "main".into(), silent_since: Some(silent), ..Delivery::default() };
    let usage = projected(&states, &meters, &delivery, at("2026-11-11T00:00:00Z"));
    assert_eq!((usage.complete.holds, usage.complete.reason), (Some(false), "Restored"));
    let usage = projected(&states[1..], &meters[1..], &delivery, at("2026-11-11T00:00:00Z"));
    assert_eq!(usage.complete.reason, "RelaySilent");
    let degraded = usage.degraded.expect("degraded");
    assert_eq!((degraded.holds, degraded.reason), (Some(true), "RelaySilent"));
    assert!(degraded.message.contains("main") && degraded.message.contains("2026-11-10T00:30:00Z"), "{degraded:?}");
    let fine = projected(&states[1..], &meters[1..], &Delivery::default(), at("2026-11-11T00:00:00Z"));
    assert_eq!(fine.degraded, None);
}

#[test]
fn a_meter_of_the_api_promises_nothing() {
    let api = MeterTerms { from_api: true, ..meter("calls", None) };
    let states = [state("users", 7, Vec::new()), MeterState { marked_at: None, ..state("calls", 2, Vec::new()) }];
    let usage = projected(&states, &[meter("users", None), api], &Delivery::default(), at("2026-11-11T00:00:00Z"));
    assert_eq!(usage.meters.iter().map(|meter| meter.complete).collect::<Vec<_>>(), [true, false]);
    assert_eq!(usage.meters.iter().map(|meter| meter.peak).collect::<Vec<_>>(), [Some(7), None]);
    assert_eq!(usage.complete.holds, Some(true));
    assert!(usage.complete.message.contains("calls"), "{}", usage.complete.message);
}

#[test]
fn the_strictest_limit_that_is_exceeded_gives_the_reason() {
    let soft = Some(Limit { max: 1, policy: Policy::Soft });
    let grace = Some(Limit { max: 2, policy: Policy::Grace { days: 7, percent: 10 } });
    let meters = [meter("a", soft), meter("b", grace), meter("c", hard(7)), meter("d", hard(3))];
    let states: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| state(name, 7, Vec::new())).collect();
    let now = at("2026-11-11T00:00:00Z");
    let over = |count: usize| projected(&states, &meters[..count], &Delivery::default(), now).within_limits;
    assert_eq!((over(1).holds, over(1).reason), (Some(false), "OverSoftLimit"));
    assert_eq!(over(3).reason, "OverGraceLimit", "7 of 7 is within a limit");
    assert_eq!(over(4).reason, "OverHardLimit");
    for part in ["a: 7 of 1", "b: 7 of 2", "10 %", "7 days", "d: 7 of 3"] {
        assert!(over(4).message.contains(part), "{part}: {}", over(4).message);
    }
}

#[test]
fn shares_of_a_limit() {
    let cases = [
        (0, Some(0), Share::Below),
        (1, Some(0), Share::Over),
        (39, Some(50), Share::Below),
        (40, Some(50), Share::Near),
        (50, Some(50), Share::Reached),
        (51, Some(50), Share::Over),
        (i64::MAX, Some(i64::MAX), Share::Reached),
        (9, None, Share::Below),
    ];
    for (current, limit, wanted) in cases {
        assert_eq!(Share::of(current, limit), wanted, "{current} of {limit:?}");
    }
}

#[test]
fn a_drift_counts_beyond_a_few_and_beyond_its_percentage() {
    let found = |drift, value| {
        let states = [MeterState { drift: Some((drift, at("2026-11-10T00:00:00Z"))), ..state("users", value, vec![]) }];
        projected(&states, &[meter("users", None)], &Delivery::default(), at("2026-11-11T00:00:00Z")).reconciled
    };
    let holds = |drift, value| found(drift, value).expect("compared").holds;
    assert_eq!(holds(0, 0), Some(true));
    assert_eq!(holds(-5, 7), Some(true), "a few");
    assert_eq!(holds(6, 600), Some(true), "one percent");
    assert_eq!(holds(-7, 600), Some(false));
    assert!(found(-7, 600).expect("compared").message.contains("users: -7"));
    let never = projected(&[state("users", 1, vec![])], &[meter("users", None)], &Delivery::default(), start());
    assert_eq!(never.reconciled, None);
}

#[test]
fn history_is_the_newest_first_and_never_more_than_there_is_room_for() {
    let month = |number: i8| -> Timestamp {
        let (year, month) = (2024 + i16::from((number - 1) / 12), (number - 1) % 12 + 1);
        at(&format!("{year}-{month:02}-01T00:00:00Z"))
    };
    let closed = |number: i8| ClosedPeriod {
        sums: OpenPeriod { start: month(number), end: month(number + 1), ..level(&[]) },
        estimated: number == 5,
        adjustments: vec![
            Adjustment { delta: Decimal::from(number), reason: "late".into() },
            Adjustment { delta: Decimal::from(-1), reason: "correction".into() },
        ],
    };
    let names: Vec<String> = (0..8).map(|number| format!("meter{number}")).collect();
    let meters: Vec<_> = names.iter().map(|name| meter(name, None)).collect();
    let of = |months: std::ops::Range<i8>| -> Vec<MeterState> {
        let closed: Vec<_> = months.rev().map(closed).collect();
        names.iter().map(|name| MeterState { closed: closed.clone(), ..state(name, 7, vec![]) }).collect()
    };
    let now = at("2026-11-11T00:00:00Z");
    let all = projected(&of(1..21), &meters, &Delivery::default(), now).history;
    assert_eq!(all.len(), HISTORY);
    assert!(all.windows(2).all(|pair| pair[0].period.start == pair[1].period.end), "{all:?}");
    assert_eq!(all[0].period.start, month(20));
    assert!(all.iter().all(|then| then.meters.iter().map(|meter| &meter.name).eq(&names[..3])), "40 / 13");
    let few = projected(&of(3..6), &meters, &Delivery::default(), now).history;
    assert_eq!(
        few.iter().map(|then| (then.estimated, then.meters.len())).collect::<Vec<_>>(),
        [(true, 8), (false, 8), (false, 8)]
    );
    assert_eq!(few[0].meters[0].adjusted, Decimal::from(4));
    assert_eq!((few[0].meters[0].closing, few[0].meters[0].peak), (7, Some(7)));
}
