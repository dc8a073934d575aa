//! Usage periods end: proven by a mark, or estimated after a while; and are never changed again.

use std::time::Duration;

use jiff::Timestamp;
use rust_decimal::Decimal;
use tenantry::billing::Periods;
use tenantry::metering::event::UsageKind;
use tenantry::metering::ledger::{MeterDefinition, MeterState, Outcome};
use tenantry::metering::usage::average;
use tokio_postgres::error::SqlState;

use crate::support::{Ground, Source, ZONE, days_ago, integer, known, now};

const PATIENCE: Duration = Duration::from_secs(72 * 3600);
const LONG: Duration = Duration::from_secs(60 * 86_400);

async fn close(ground: &Ground, patience: Duration) -> Vec<String> {
    ground.ledger.close_periods(now(), patience).await.expect("closed")
}

/// Starts, openings and closings of the periods that are closed, the newest first.
fn closed(state: &MeterState) -> Vec<(i64, i64, bool)> {
    state.closed.iter().map(|period| (period.sums.opening, period.sums.closing, period.estimated)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_period_closes_when_all_up_to_a_mark_after_its_end_is_there() {
    let ground = Ground::new().await;
    // Its first period ended some days ago.
    ground.register("t_1", days_ago(35)).await;
    let mut source = Source::new("t_1", "users", days_ago(35));
    let events = [(20, 5), (19, 2), (18, -3), (1, 4)].map(|(days, by)| source.count(by, days_ago(days)));
    ground.ingest(&events[..2]).await;
    ground.ingest(&events[3..]).await;
    assert!(close(&ground, LONG).await.is_empty());
    ground.ledger.mark(&[source.mark(now())]).await.expect("marked");
    // One is missing.
    assert!(close(&ground, LONG).await.is_empty());
    ground.ingest(&events[2..3]).await;
    assert_eq!(close(&ground, LONG).await, ["t_1"]);
    let state = ground.state("t_1", "users").await;
    assert_eq!(closed(&state), [(0, 4, false)]);
    assert_eq!((state.closed[0].sums.low, state.closed[0].sums.high), (0, 7));
    assert_eq!(state.open.iter().map(|period| (period.opening, period.closing)).collect::<Vec<_>>(), [(4, 8)]);
    assert!(close(&ground, LONG).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_before_the_end_proves_nothing_about_the_rest() {
    let ground = Ground::new().await;
    ground.register("t_1", days_ago(35)).await;
    let mut source = Source::new("t_1", "users", days_ago(35));
    ground.ingest(&[source.count(5, days_ago(20))]).await;
    ground.ledger.mark(&[source.mark(days_ago(15))]).await.expect("marked");
    assert!(close(&ground, LONG).await.is_empty());
    ground.ledger.mark(&[source.mark(now())]).await.expect("marked");
    assert_eq!(close(&ground, LONG).await, ["t_1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_mark_a_period_is_estimated_after_a_while_and_what_is_late_is_an_adjustment() {
    let ground = Ground::new().await;
    ground.register("t_1", days_ago(35)).await;
    let mut source = Source::new("t_1", "mails", days_ago(35));
    let first = source.count(5, days_ago(20));
    let late = [source.count(2, days_ago(19)), source.event(UsageKind::Correct, 1, days_ago(18))];
    ground.ingest(&[first]).await;
    assert_eq!(close(&ground, PATIENCE).await, ["t_1"]);
    let before = ground.state("t_1", "mails").await.closed;
    assert_eq!(closed(&ground.state("t_1", "mails").await), [(0, 5, true)]);

    assert_eq!(ground.ingest(&late).await, [Outcome::Accepted; 2]);
    assert_eq!(ground.ingest(&late).await, [Outcome::Duplicate; 2]);
    let state = ground.state("t_1", "mails").await;
    assert_eq!(state.closed[0].sums, before[0].sums);
    let mut adjusted: Vec<_> =
        state.closed[0].adjustments.iter().map(|some| (some.reason.clone(), integer(some.delta))).collect();
    adjusted.sort();
    assert_eq!(adjusted, [("correction".to_owned(), 1), ("late".to_owned(), 2)]);
    // The days have them.
    let days: String = ground.one("SELECT sum(delta)::text FROM ledger.day").await;
    assert_eq!(days, "8");
    assert!(close(&ground, PATIENCE).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_a_time_before_all_that_is_known_has_a_period_of_its_own() {
    let ground = Ground::new().await;
    ground.register("t_1", days_ago(70)).await;
    let mut source = Source::new("t_1", "users", days_ago(70));
    let early = source.count(2, days_ago(34));
    let (start, end) = (early.period_start, early.period_end);
    ground.ingest(&[source.count(3, days_ago(1))]).await;
    close(&ground, PATIENCE).await;
    assert_eq!(ground.ingest(&[early]).await, [Outcome::Accepted]);
    let state = ground.state("t_1", "users").await;
    let periods: Vec<_> = state.open.iter().map(|period| (period.start, period.opening, period.closing)).collect();
    assert_eq!(periods, [(start, 0, 2), (end.max(state.open[1].start), 2, 5)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn periods_go_on_without_any_event() {
    let ground = Ground::new().await;
    let anchor = days_ago(100);
    ground.register("t_1", anchor).await;
    // As if the operator had last been there 70 days ago.
    let then = days_ago(70);
    ground.ledger.close_periods(then, LONG).await.expect("opened");
    let state = ground.state("t_1", "users").await;
    assert_eq!((state.open.len(), state.value), (1, 0));
    let mut users = Source::new("t_1", "users", anchor);
    let mut mails = Source::new("t_1", "mails", anchor);
    ground.ingest(&[users.count(7, days_ago(34)), mails.count(7, days_ago(34))]).await;
    close(&ground, PATIENCE).await;

    let periods = Periods::new(anchor, ZONE).expect("a zone");
    for (meter, level, value) in [("users", 7, 7), ("mails", 0, 0), ("calls", 0, 0)] {
        let state = ground.state("t_1", meter).await;
        assert_eq!(state.value, value, "{meter}");
        let (open, last) = (&state.open[0], &state.closed[0]);
        assert_eq!((state.open.len(), open.start), (1, periods.containing(now()).start));
        assert_eq!((open.opening, open.closing), (level, level), "{meter}");
        // One after the other, from where it was first looked.
        let mut starts: Vec<_> = state.closed.iter().rev().map(|period| period.sums.start).collect();
        starts.push(open.start);
        let ends: Vec<_> = state.closed.iter().rev().map(|period| period.sums.end).collect();
        assert_eq!(starts[1..], ends, "{meter}");
        assert_eq!(starts[0], periods.containing(then).start);
        assert!(last.estimated);
    }
}

/// Where a period began that is over, so short ago that an event from before it is still taken.
fn boundary() -> Timestamp {
    days_ago(33)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_period_in_which_nothing_happened_is_in_the_history_at_its_level() {
    let ground = Ground::new().await;
    let anchor = boundary();
    ground.register("t_1", anchor).await;
    let mut users = Source::new("t_1", "users", anchor);
    let mut mails = Source::new("t_1", "mails", anchor);
    ground.ingest(&[users.count(7, days_ago(34)), mails.count(7, days_ago(34)), users.count(-2, days_ago(1))]).await;
    for source in [&users, &mails] {
        ground.ledger.mark(&[source.mark(now())]).await.expect("marked");
    }
    close(&ground, LONG).await;
    for (meter, level) in [("users", 7), ("mails", 0)] {
        let state = ground.state("t_1", meter).await;
        assert_eq!(closed(&state), [(level, level, false), (0, 7, false)], "{meter}");
        let sums = &state.closed[0].sums;
        assert_eq!((sums.start, sums.low, sums.high), (anchor, level, level), "{meter}");
        assert_eq!(average(sums, sums.end), Some(Decimal::from(level)), "{meter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_period_that_one_meter_of_a_tenant_has_all_of_them_have() {
    let ground = Ground::new().await;
    // Its first event is older than what the ledger knows of it.
    let anchor = boundary();
    ground.register("t_1", anchor).await;
    let mut users = Source::new("t_1", "users", anchor);
    ground.ingest(&[users.count(7, days_ago(34)), users.count(1, days_ago(1))]).await;
    close(&ground, Duration::ZERO).await;
    let periods = |state: &MeterState| -> Vec<_> {
        state.closed.iter().map(|period| (period.sums.start, period.sums.end)).collect()
    };
    let of_users = periods(&ground.state("t_1", "users").await);
    assert_eq!(of_users.len(), 2);
    for meter in ["mails", "calls"] {
        let state = ground.state("t_1", meter).await;
        assert_eq!(periods(&state), of_users, "{meter}");
        assert_eq!(closed(&state), [(0, 0, true); 2], "{meter}");
        assert_eq!(state.open.len(), 1);
    }
    // And no period twice.
    let before: String = ground.one("SELECT string_agg(p::text, ';' ORDER BY p::text) FROM ledger.period p").await;
    close(&ground, Duration::ZERO).await;
    let after: String = ground.one("SELECT string_agg(p::text, ';' ORDER BY p::text) FROM ledger.period p").await;
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_extremes_of_a_level_without_order_are_those_of_its_events_own_times() {
    let ground = Ground::new().await;
    let anchor = boundary();
    ground.register("t_1", anchor).await;
    let seats = MeterDefinition { name: "seats".to_owned(), is_total: false, from_api: true };
    ground.ledger.define("crm", &[seats]).await.expect("defined");
    let mut source = Source::new("t_1", "seats", anchor);
    // 4 in the first period; then 1, 11, 3, and in one microsecond up and down again.
    let at = days_ago(10);
    let steps = [(days_ago(34), 4), (days_ago(30), -3), (days_ago(29), 10), (days_ago(28), -8), (at, 90), (at, -90)];
    let mut events = steps.map(|(at, by)| source.count(by, at)).to_vec();
    events.iter_mut().for_each(|event| event.usage.counted = None);
    assert!(events[1..].iter().all(|event| event.period_start == anchor), "all but the first are of one period");
    for event in [3, 5, 0, 2, 4, 1] {
        ground.ingest(&events[event..=event]).await;
    }
    let open = ground.state("t_1", "seats").await.open.into_iter().find(|period| period.start == anchor);
    let open = open.expect("open");
    assert_eq!((open.opening, open.low, open.high, open.closing), (4, 3, 4, 3), "what is known without an order");
    close(&ground, Duration::ZERO).await;
    let state = ground.state("t_1", "seats").await;
    assert_eq!(closed(&state), [(4, 3, true), (0, 4, true)]);
    let extremes: Vec<_> = state.closed.iter().map(|period| (period.sums.low, period.sums.high)).collect();
    assert_eq!(extremes, [(1, 11), (0, 4)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kind_of_a_meter_is_what_its_application_declares_until_a_period_is_closed() {
    let ground = Ground::new().await;
    let anchor = days_ago(35);
    ground.ledger.register(&[known("t_1", anchor)], &[]).await.expect("registered");
    let mut source = Source::new("t_1", "mails", anchor);
    let event = source.count(5, days_ago(20));
    // A mark knows no kind, and comes before the meter is declared.
    ground.ledger.mark(&[source.mark(days_ago(19))]).await.expect("marked");
    ground.ingest(&[event]).await;
    let kind = "SELECT kind FROM ledger.meter WHERE tenant = 't_1' AND meter = 'mails'";
    assert_eq!(ground.one::<String>(kind).await, "Level");
    ground.register("t_1", anchor).await;
    assert_eq!(ground.one::<String>(kind).await, "Total");
    close(&ground, PATIENCE).await;
    let state = ground.state("t_1", "mails").await;
    assert_eq!((closed(&state), state.value), (vec![(0, 5, true)], 0));
    let other = MeterDefinition { name: "mails".to_owned(), is_total: false, from_api: false };
    ground.ledger.define("crm", &[other]).await.expect("defined");
    assert_eq!(ground.one::<String>(kind).await, "Total");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_is_gone_has_no_further_periods() {
    let ground = Ground::new().await;
    ground.register("t_1", days_ago(100)).await;
    ground.ledger.close_periods(days_ago(50), LONG).await.expect("opened");
    ground.ledger.depart(&["t_1".to_owned()]).await.expect("noted");
    close(&ground, PATIENCE).await;
    close(&ground, PATIENCE).await;
    // It was there until now, so all that ended before go by; the last one isn't over.
    let state = ground.state("t_1", "users").await;
    let last = state.open.last().expect("still open");
    assert!(last.start <= now() && now() < last.end);
    let much_later = now() + jiff::SignedDuration::from_hours(24 * 90);
    ground.ledger.close_periods(much_later, PATIENCE).await.expect("closed");
    let state = ground.state("t_1", "users").await;
    assert_eq!((state.open.len(), state.closed[0].sums.start), (0, last.start));
    // Taken back, it goes on.
    ground.ledger.register(&[known("t_1", days_ago(100))], &[]).await.expect("registered");
    ground.ledger.close_periods(much_later, PATIENCE).await.expect("opened");
    assert_eq!(ground.state("t_1", "users").await.open.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_period_is_changed_by_no_function() {
    let ground = Ground::new().await;
    ground.register("t_1", days_ago(35)).await;
    let mut source = Source::new("t_1", "users", days_ago(35));
    ground.ingest(&[source.count(5, days_ago(20))]).await;
    close(&ground, PATIENCE).await;
    let image = "SELECT string_agg(p::text, ';' ORDER BY p::text) FROM ledger.period p WHERE closed_at IS NOT NULL";
    let before: String = ground.one(image).await;
    let operator = ground.operator().await;
    for sql in [
        "SELECT ledger.close_periods(array_agg(tenant), array_agg(meter), array_agg(start_at), array_agg(now()), now() + interval '1 year', '0')
           FROM ledger.period WHERE closed_at IS NOT NULL",
        "SELECT ledger.open_periods(array_agg(tenant), array_agg(meter), array_agg('Total'::text), array_agg('Api'::text),
                array_agg(start_at), array_agg(end_at + interval '1 day')) FROM ledger.period WHERE closed_at IS NOT NULL",
    ] {
        operator.batch_execute(sql).await.expect("nothing to be done");
    }
    ground.ingest(&[source.count(9, days_ago(19))]).await;
    ground.ledger.mark(&[source.mark(now())]).await.expect("marked");
    close(&ground, PATIENCE).await;
    ground.register("t_1", days_ago(3)).await;
    assert_eq!(ground.one::<String>(image).await, before);
    // And not by its owner, by mistake.
    for sql in [
        "UPDATE ledger.period SET closing = 1",
        "DELETE FROM ledger.period WHERE closed_at IS NOT NULL",
        "UPDATE ledger.event SET delta = 1",
        "DELETE FROM ledger.event",
        "UPDATE ledger.adjustment SET delta = 1",
        "DELETE FROM ledger.placement",
    ] {
        let error = ground.owner().await.batch_execute(sql).await.expect_err(sql);
        assert_eq!(error.code().map(SqlState::code), Some("TN020"), "{sql}");
    }
}
