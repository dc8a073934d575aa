use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn finding(holds: bool) -> Finding {
    Finding { holds: Some(holds), reason: "Some", message: "words that take a few dozen bytes, as most do".into() }
}

fn usage(meters: Vec<MeterNow>) -> Usage {
    let period = Period { start: at("2026-11-01T00:00:00Z"), end: at("2026-12-01T00:00:00Z") };
    Usage {
        period,
        meters,
        history: Vec::new(),
        within_limits: finding(true),
        complete: finding(true),
        reconciled: None,
        degraded: None,
        next: period.end,
    }
}

fn now_of(name: &str, current: i64, limit: Option<i64>) -> MeterNow {
    MeterNow { name: name.into(), current, peak: Some(current), average: None, limit, complete: true }
}

fn of(current: i64, limit: i64, second: i64) -> TenantMetering {
    let moment = Timestamp::from_second(second).expect("a time");
    metering(&TenantMetering::default(), &usage(vec![now_of("users", current, Some(limit))]), moment)
}

#[test]
fn people_read_value_and_limit_and_programs_exact_numbers() {
    let huge = now_of("huge", i64::MAX, Some(i64::MAX));
    let mut level = now_of("users", 42, Some(50));
    level.average = Some("41.5".parse().expect("a number"));
    let metering = metering(
        &TenantMetering::default(),
        &usage(vec![level, now_of("free", 310, None), huge]),
        at("2026-11-05T06:07:08.9Z"),
    );
    let usage = metering.usage.expect("usage");
    assert_eq!(usage.as_of, Time(at("2026-11-05T06:07:08Z")), "whole seconds");
    let shown: Vec<_> = usage.meters.iter().map(|meter| meter.display.as_str()).collect();
    assert_eq!(shown, ["42/50", "310", "9223372036854775807/9223372036854775807"]);
    assert_eq!(usage.meters[0].average.as_deref(), Some("41.50"));
    assert_eq!((usage.meters[2].current, usage.meters[2].limit), (9_007_199_254_740_991, Some(9_007_199_254_740_991)));
}

#[test]
fn time_alone_changes_nothing_and_a_count_does() {
    let (first, later) = (of(3, 50, 1), of(3, 50, 99));
    assert_ne!(first.usage, later.usage, "another time");
    let conditions = TenantMetering { conditions: first.conditions.clone(), ..later };
    assert!(is_same(&first, &conditions));
    assert!(!is_same(&first, &of(4, 50, 1)));
}

#[test]
fn a_first_look_and_another_share_of_the_limit_are_urgent() {
    assert!(is_urgent(&TenantMetering::default(), &of(1, 50, 1)));
    for (before, after, wanted) in
        [(1, 39, false), (39, 40, true), (40, 41, false), (50, 49, true), (49, 50, true), (50, 51, true)]
    {
        assert_eq!(is_urgent(&of(before, 50, 1), &of(after, 50, 1)), wanted, "{before} -> {after}");
    }
    let mut closed = of(3, 50, 1);
    closed.history.push(ClosedUsage {
        start: Time(at("2026-10-01T00:00:00Z")),
        end: Time(at("2026-11-01T00:00:00Z")),
        estimated: None,
        meters: Vec::new(),
    });
    assert!(is_urgent(&of(3, 50, 1), &closed), "a period was closed");
}

#[test]
fn a_threshold_is_said_once_on_the_way_up() {
    let said = |before: i64, after: i64| -> Vec<(i64, bool)> {
        let crossings = crossings(&of(before, 50, 1), &of(after, 50, 1));
        crossings.into_iter().map(|it| (it.current, it.is_reached)).collect()
    };
    assert_eq!(said(39, 40), [(40, false)]);
    assert_eq!(said(0, 50), [(50, true)], "both at once are one");
    assert_eq!(said(40, 49), []);
    assert_eq!(said(49, 50), [(50, true)]);
    assert_eq!(said(50, 51), []);
    assert_eq!(said(50, 41), []);
    // A lower limit crosses it as well.
    assert_eq!(crossings(&of(30, 50, 1), &of(30, 30, 1)).len(), 1);
    assert_eq!(crossings(&TenantMetering::default(), &of(45, 50, 1)).len(), 1, "nothing was said before");
}

#[test]
fn a_ledger_that_is_away_changes_one_condition() {
    let before = of(3, 50, 1);
    let said = away(&before, &finding(true), at("2026-11-05T00:00:00Z"));
    assert_eq!((&said.usage, said.conditions.len()), (&before.usage, before.conditions.len() + 1));
    let again = away(&said, &finding(true), at("2026-11-06T00:00:00Z"));
    assert_eq!(again, said, "its transition was then");
}

/// Bytes of a status with so many meters, their names so long, and 13 closed periods.
fn size(meters: usize, length: usize, count: i64) -> usize {
    let name = |number: usize| format!("{number:02}{}", "m".repeat(length - 2));
    let average = Some(Decimal::new(count, 2));
    let limit = Some(count);
    let now: Vec<_> = (0..meters).map(|at| MeterNow { average, ..now_of(&name(at), count, limit) }).collect();
    let mut usage = usage(now);
    let then = |at| MeterThen {
        name: name(at),
        closing: count,
        is_total: false,
        peak: Some(count),
        average,
        adjusted: Decimal::ONE,
    };
    // As many as the projection leaves: 40 / 13.
    usage.history = (1..=13)
        .map(|month| PeriodThen {
            period: Period {
                start: at(&format!("20{month}-01-01T00:00:00Z", month = month + 10)),
                end: at(&format!("20{month}-02-01T00:00:00Z", month = month + 10)),
            },
            estimated: true,
            meters: (0..meters.min(3)).map(then).collect(),
        })
        .collect();
    usage.reconciled = Some(finding(true));
    usage.degraded = Some(finding(true));
    let metering = metering(&TenantMetering::default(), &usage, at("2026-11-05T00:00:00Z"));
    serde_json::to_vec(&metering).expect("JSON").len()
}

#[test]
fn a_status_stays_small() {
    let (usual, many, most) = (size(3, 12, 4_200), size(8, 12, 4_200_000), size(32, 40, i64::MAX));
    assert!(usual < 7 * 1_024, "{usual}");
    assert!(many < 9 * 1_024, "{many}");
    assert!(most < 24 * 1_024, "{most}");
}
