//! Whatever the order, however often and however interrupted events come: what the ledger says is
//! what the distinct events add up to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use tenantry::metering::ledger::{Ledger, LedgerError, LedgerEvent, MeterState, Outcome};
use tokio::task::JoinSet;

use crate::support::{Ground, Source, Sums, counted, day_of, days_ago, fold, integer, now, sums, superuser};

/// How often each property is tried; each time on a database of its own.
const CASES: u32 = 8;

/// What happened to some meters, in order, over the last three weeks: two usage periods, many days.
fn history(random: &mut SmallRng) -> Vec<(Source, Vec<LedgerEvent>)> {
    let anchor = days_ago(40);
    let meters = [("t_1", "users"), ("t_1", "mails"), ("t_2", "users"), ("t_3", "accounts")];
    meters
        .iter()
        .map(|(tenant, meter)| {
            let mut source = Source::new(tenant, meter, anchor);
            let mut at = days_ago(21);
            let events = (0..random.random_range(1..60))
                .map(|_| {
                    // Sometimes two in one microsecond, sometimes none for days.
                    let pause = *[0, 1, 1_000_000, 3_600_000_000, 30_000_000_000].choose(random).expect("some");
                    at = (at + SignedDuration::from_micros(random.random_range(0..=pause))).min(now());
                    let delta = random.random_range(if source.is_total { 0..=9 } else { -5..=9 });
                    source.count(delta, at)
                })
                .collect();
            (source, events)
        })
        .collect()
}

/// Some neighbours of each meter folded into one, as an outbox does where nobody fetches.
fn folded(random: &mut SmallRng, events: &[LedgerEvent]) -> Vec<LedgerEvent> {
    let alike =
        |one: &LedgerEvent, other: &LedgerEvent| (day_of(one), one.period_start) == (day_of(other), other.period_start);
    events
        .chunk_by(alike)
        .flat_map(|run| {
            let cut = random.random_range(0..=run.len());
            let (some, rest) = run.split_at(cut);
            let some = if some.len() > 1 { vec![fold(some)] } else { some.to_vec() };
            some.into_iter().chain(rest.to_vec()).collect::<Vec<_>>()
        })
        .collect()
}

/// Every event at least once, some more often, in any order, in batches cut anywhere.
fn deliveries(random: &mut SmallRng, events: &[LedgerEvent]) -> Vec<Vec<LedgerEvent>> {
    let mut all = events.to_vec();
    all.extend((0..events.len() / 3).filter_map(|_| events.choose(random).cloned()));
    all.shuffle(random);
    let mut batches = Vec::new();
    while !all.is_empty() {
        let size = random.random_range(1..=all.len().min(40));
        batches.push(all.split_off(all.len() - size));
    }
    batches
}

/// Sends until it is known to be stored, as a relay does.
async fn send(ledger: &Ledger, batch: &[LedgerEvent]) -> Vec<Outcome> {
    loop {
        match ledger.ingest(batch).await {
            Ok(outcomes) => return outcomes,
            Err(LedgerError::Away(_)) => tokio::task::yield_now().await,
            Err(other) => panic!("{other}"),
        }
    }
}

/// Sends batches from several sides at a time; returns how many events were accepted, as was said.
async fn deliver(ground: &Ground, batches: Vec<Vec<LedgerEvent>>, sides: usize) -> usize {
    let mut tasks = JoinSet::new();
    for side in 0..sides {
        let mine: Vec<_> = batches.iter().skip(side).step_by(sides).cloned().collect();
        let ledger = ground.ledger.clone();
        tasks.spawn(async move {
            let mut accepted = 0;
            for batch in mine {
                let outcomes = send(&ledger, &batch).await;
                assert_eq!(outcomes.len(), batch.len());
                assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Accepted | Outcome::Duplicate)));
                accepted += outcomes.iter().filter(|outcome| **outcome == Outcome::Accepted).count();
            }
            accepted
        });
    }
    tasks.join_all().await.into_iter().sum()
}

fn assert_state(state: &MeterState, source: &Source, events: &[LedgerEvent]) {
    let known = (state.epoch, state.sequence, state.value, state.missing, state.restored);
    assert_eq!(known, (1, source.sequence, source.value, None, false), "{state:?}");
    assert_eq!(state.occurred_at, events.last().map(|event| event.at));
    let expected: Vec<_> = sums(events, |event| event.period_start).into_iter().collect();
    let found: Vec<(Timestamp, Sums)> = state
        .open
        .iter()
        .zip(&expected)
        .map(|(period, (_, sums))| {
            let sums = Sums {
                events: sums.events,
                delta: integer(period.delta),
                moment: integer(period.moment),
                low: period.low,
                high: period.high,
                opening: period.opening,
                closing: period.closing,
            };
            (period.start, sums)
        })
        .collect();
    assert_eq!(found, expected, "{} {}", source.tenant, source.meter);
    assert_eq!(state.open.len(), expected.len());
}

async fn assert_all(ground: &Ground, history: &[(Source, Vec<LedgerEvent>)]) {
    for (source, events) in history {
        let state = ground.state(&source.tenant, &source.meter).await;
        assert_state(&state, source, events);
        assert_eq!(days(ground, source).await, expected_days(events), "{} {}", source.tenant, source.meter);
    }
}

fn expected_days(events: &[LedgerEvent]) -> BTreeMap<Timestamp, Sums> {
    sums(events, day_of)
}

async fn days(ground: &Ground, source: &Source) -> BTreeMap<Timestamp, Sums> {
    let sql = "SELECT day::timestamp AT TIME ZONE 'UTC', events, delta::text, moment::text, least(low, first_event[3]),
                      greatest(high, first_event[3]), first_event[3], last_event[3]
                 FROM ledger.day WHERE tenant = $1 AND meter = $2";
    let rows = ground.owner().await.query(sql, &[&source.tenant, &source.meter]).await.expect("days");
    let number = |text: &str| text.parse::<i128>().expect("an integer");
    rows.iter()
        .map(|row| {
            let sums = Sums {
                events: row.get(1),
                delta: number(row.get(2)),
                moment: number(row.get(3)),
                low: row.get(4),
                high: row.get(5),
                opening: row.get(6),
                closing: row.get(7),
            };
            (row.get(0), sums)
        })
        .collect()
}

/// Tries a property with random numbers from seeds that proptest chooses and reports.
fn property(check: impl AsyncFn(SmallRng)) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut runner =
        TestRunner::new(Config { cases: CASES, max_shrink_iters: 0, failure_persistence: None, ..Config::default() });
    let tried = runner.run(&any::<u64>(), |seed| {
        runtime.block_on(check(SmallRng::seed_from_u64(seed)));
        Ok(())
    });
    tried.expect("holds");
}

#[test]
fn sums_are_those_of_the_distinct_events_in_any_order_from_any_side() {
    property(async |mut random| {
        let ground = Ground::new().await;
        let history = history(&mut random);
        let events: Vec<_> = history.iter().flat_map(|(_, events)| events.clone()).collect();
        let accepted = deliver(&ground, deliveries(&mut random, &events), 4).await;
        assert_eq!(accepted, events.len());
        assert_all(&ground, &history).await;
        // All of it once more changes nothing.
        assert_eq!(deliver(&ground, deliveries(&mut random, &events), 2).await, 0);
        assert_all(&ground, &history).await;
    });
}

#[test]
fn sums_are_the_same_when_sessions_are_killed_between_any_two_steps() {
    property(async |mut random| {
        let ground = Ground::new().await;
        let history = history(&mut random);
        let events: Vec<_> = history.iter().flat_map(|(_, events)| events.clone()).collect();
        let batches = deliveries(&mut random, &events);
        let killer = superuser(ground.postgres, &ground.database).await;
        let done = AtomicBool::new(false);
        let killing = async {
            let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE datname = current_database() AND usename = 'ledger_operator' ORDER BY random() LIMIT 1";
            while !done.load(Ordering::Relaxed) {
                killer.batch_execute(kill).await.expect("killed");
                tokio::time::sleep(Duration::from_millis(random.random_range(0..60))).await;
            }
        };
        let delivering = async {
            deliver(&ground, batches, 4).await;
            done.store(true, Ordering::Relaxed);
        };
        futures::join!(killing, delivering);
        assert_all(&ground, &history).await;
        let stored: i64 = ground.one("SELECT count(*) FROM ledger.event").await;
        assert_eq!(usize::try_from(stored).expect("few"), events.len());
    });
}

#[test]
fn folded_events_add_up_to_the_same() {
    property(async |mut random| {
        let ground = Ground::new().await;
        let history = history(&mut random);
        let events: Vec<_> = history.iter().flat_map(|(_, events)| folded(&mut random, events)).collect();
        let accepted = deliver(&ground, deliveries(&mut random, &events), 3).await;
        assert_eq!(accepted, events.len());
        assert_all(&ground, &history).await;
    });
}

#[test]
fn what_is_missing_is_named_until_it_comes() {
    property(async |mut random| {
        let ground = Ground::new().await;
        let mut source = Source::new("t_1", "users", days_ago(40));
        let count = random.random_range(2..30);
        let events: Vec<_> = (0..count).map(|n| source.count(1, days_ago(1) + SignedDuration::from_secs(n))).collect();
        ground.ledger.mark(&[source.mark(now())]).await.expect("marked");
        let mut left: BTreeSet<i64> = (1..=count).collect();
        let mut order = events.clone();
        order.shuffle(&mut random);
        for event in order {
            let missing = ground.state("t_1", "users").await.missing.expect("some are missing");
            let bounds = (left.first().copied(), left.last().copied());
            assert_eq!((Some(missing.first), Some(missing.last)), bounds);
            assert_eq!((missing.epoch, usize::try_from(missing.count)), (1, Ok(left.len())));
            left.remove(&counted(&event).sequence);
            ground.ingest(&[event]).await;
        }
        assert_eq!(ground.state("t_1", "users").await.missing, None);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_without_a_mark_shows_too() {
    let ground = Ground::new().await;
    let mut source = Source::new("t_1", "users", days_ago(40));
    let events: Vec<_> = (0..5).map(|_| source.count(1, now())).collect();
    ground.ingest(&[events[0].clone(), events[3].clone()]).await;
    let missing = ground.state("t_1", "users").await.missing.expect("a gap");
    assert_eq!((missing.first, missing.last, missing.count), (2, 3, 2));
    let since = missing.since;
    // Known for as long as the lowest one is missing, whatever comes behind it.
    ground.ingest(&[events[4].clone()]).await;
    assert_eq!(ground.state("t_1", "users").await.missing.expect("a gap").since, since);
    ground.ingest(&[events[1].clone()]).await;
    assert!(ground.state("t_1", "users").await.missing.expect("a gap").since > since);
    ground.ingest(&[events[2].clone()]).await;
    assert_eq!(ground.state("t_1", "users").await.missing, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_with_other_content_is_put_aside() {
    let ground = Ground::new().await;
    let mut users = Source::new("t_1", "users", days_ago(40));
    let mut mails = Source::new("t_1", "mails", days_ago(40));
    let first = users.count(3, now());
    // Its own sequence is new, only the id tells.
    let mut second = users.count(4, first.at);
    second.id.clone_from(&first.id);
    let mut other_meter = mails.count(4, first.at);
    other_meter.id.clone_from(&first.id);
    // In one batch, and with what is there.
    let outcomes = ground.ingest(&[first.clone(), second.clone(), first.clone()]).await;
    assert_eq!(outcomes, [Outcome::Accepted, Outcome::Conflict, Outcome::Duplicate]);
    assert_eq!(ground.ingest(&[second, first.clone()]).await, [Outcome::Conflict, Outcome::Duplicate]);
    assert_eq!(ground.ingest(&[other_meter]).await, [Outcome::Conflict]);
    assert_eq!(ground.state("t_1", "users").await.value, 3);
    let aside = ground.ledger.quarantined(&["t_1".to_owned()]).await.expect("read");
    assert_eq!(aside.iter().map(|some| (some.why.as_str(), some.events)).collect::<Vec<_>>(), [("conflict", 1)]);
    // One id of two tenants is two ids.
    let mut foreign = Source::new("t_2", "users", days_ago(40));
    let mut theirs = foreign.count(1, first.at);
    theirs.id.clone_from(&first.id);
    assert_eq!(ground.ingest(&[theirs]).await, [Outcome::Accepted]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_comes_again_after_midnight_is_known() {
    let ground = Ground::new().await;
    let mut source = Source::new("t_1", "users", days_ago(40));
    // What decides is the event's own day, not that of its arrival.
    let event = source.count(1, days_ago(2));
    assert_eq!(ground.ingest(std::slice::from_ref(&event)).await, [Outcome::Accepted]);
    assert_eq!(ground.ingest(&[event]).await, [Outcome::Duplicate]);
}

#[tokio::test(flavor = "multi_thread")]
async fn meters_of_the_api_add_up_without_an_order() {
    let ground = Ground::new().await;
    let anchor = days_ago(40);
    ground.register("t_1", anchor).await;
    let mut source = Source::new("t_1", "calls", anchor);
    let mut events: Vec<_> =
        [(15, 5), (14, 7), (3, 2), (2, 4)].map(|(days, by)| source.count(by, days_ago(days))).to_vec();
    for event in &mut events {
        event.usage.counted = None;
    }
    events.reverse();
    assert_eq!(ground.ingest(&events).await, [Outcome::Accepted; 4]);
    assert_eq!(ground.ingest(&events).await, [Outcome::Duplicate; 4]);
    let state = ground.state("t_1", "calls").await;
    let periods: Vec<_> =
        state.open.iter().map(|period| (period.opening, period.closing, integer(period.delta))).collect();
    assert_eq!((state.value, periods), (6, vec![(0, 12, 12), (0, 6, 6)]));
    assert_eq!(state.missing, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciliation_shows_its_drift() {
    let ground = Ground::new().await;
    let mut source = Source::new("t_1", "users", days_ago(40));
    let mut events = vec![source.count(9, days_ago(2))];
    for (reason, delta, days) in [("import", 5, 2), ("reconcile nightly", -2, 1)] {
        let mut event = source.event(tenantry::metering::event::UsageKind::Set, delta, days_ago(days));
        event.usage.counted.as_mut().expect("counted").reason = Some(reason.to_owned());
        events.push(event);
    }
    ground.ingest(&events[..2]).await;
    assert_eq!(ground.state("t_1", "users").await.drift, None);
    ground.ingest(&events[2..]).await;
    assert_eq!(ground.state("t_1", "users").await.drift, Some((-2, events[2].at)));
}
