//! The outbox on its way out: the relay's login, leases, acknowledgements, marks, folding, dead
//! letters, corrections.

use std::{collections::BTreeMap, time::Duration};

use jiff::{Timestamp, ToSpan};
use tenantry::database::{LeasedEvent, Outbox, RelayAccess, Settlement, Tls};
use tenantry::event::UsageKind;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::{Ground, Guest, connect, one, refused, rows, shared_server, until};

const LEASE: Duration = Duration::from_secs(60);

async fn access(ground: &Ground) -> RelayAccess {
    ground.server.ensure_relay(&ground.database, None).await.expect("made").expect("issued")
}

async fn outbox(access: &RelayAccess) -> Outbox {
    let tls = Tls::VerifyFull { ca_pem: shared_server().ca_pem().to_owned() };
    Outbox::connect(access, &tls, Duration::from_secs(10)).await.expect("the relay logs in")
}

async fn ground() -> (Ground, Guest, Client, Outbox) {
    let ground = Ground::new("relay").await;
    let guest = ground.tenant("acme").await;
    let client = ground.client(&guest.login).await;
    let outbox = outbox(&access(&ground).await).await;
    (ground, guest, client, outbox)
}

async fn count(client: &Client, meter: &str, delta: i64) {
    client.batch_execute(&format!("SELECT record_usage('{meter}', {delta}, 'x')")).await.expect("counted");
}

fn all(events: &[LeasedEvent], outcome: &Settlement) -> Vec<(LeasedEvent, Settlement)> {
    events.iter().map(|event| (event.clone(), outcome.clone())).collect()
}

async fn settle(outbox: &Outbox, outcomes: &[(LeasedEvent, Settlement)]) {
    let outcomes: Vec<_> = outcomes.iter().map(|(event, outcome)| (event, outcome.clone())).collect();
    outbox.settle(&outcomes).await.expect("settled");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_may_do_what_it_needs_and_nothing_else() {
    let ground = Ground::new("relay").await;
    let guest = ground.tenant("acme").await;
    let migrator = ground.migrator(&guest).await;
    migrator
        .batch_execute("CREATE TABLE customers (name text); INSERT INTO customers VALUES ('x')")
        .await
        .expect("data");
    count(&ground.client(&guest.login).await, "users", 1).await;
    let access = access(&ground).await;
    assert_eq!(
        ground.server.ensure_relay(&ground.database, Some(&access.password.digest())).await.expect("same"),
        None
    );
    let session = async || {
        connect(&ground.host, ground.port, &access.user, access.password.expose(), &ground.database)
            .await
            .expect("the relay's login works")
    };
    let relay = session().await;
    let sets = ["lease_until = now()", "attempts = 1", "last_error = 'x'", "dead_at = NULL", "acked_at = now()"];
    for set in sets {
        let update = format!("BEGIN; UPDATE tenantry.outbox SET {set} WHERE acked_at IS NULL; ROLLBACK");
        relay.batch_execute(&update).await.unwrap_or_else(|error| panic!("{set}: {error}"));
    }
    for denied in [
        "UPDATE tenantry.outbox SET delta = 5",
        "UPDATE tenantry.outbox SET event_id = gen_random_uuid()",
        "UPDATE tenantry.outbox SET tenant = 't'",
        "DELETE FROM tenantry.outbox",
        "TRUNCATE tenantry.outbox",
        "INSERT INTO tenantry.outbox (tenant) VALUES ('x')",
        "SELECT FROM tenantry.outbox_pending",
        "SELECT FROM tenantry.tenant",
        "SELECT FROM tenantry.login",
        "SELECT FROM tenantry.meter",
        "SELECT FROM tenantry.meter_limit",
        "SELECT FROM tenantry.relay",
        "SELECT FROM tenantry.database",
        "SELECT tenantry.correct_usage('t', 'users', 1, 'r', 'a')",
        "SELECT tenantry.fold_outbox('t', 0)",
        "SELECT tenantry.keep_outbox(0, 0)",
        "SELECT tenantry.record_usage('users', 1, 'x')",
        "SELECT tenantry.hold_fence(1)",
        "CREATE TABLE tenantry.mine ()",
        "CREATE SCHEMA mine",
        "CREATE TEMPORARY TABLE mine ()",
        &format!("SELECT FROM {}.customers", guest.id),
    ] {
        let code = refused(&session().await, denied).await;
        assert_eq!(code, "42501", "{denied}");
    }
    let elsewhere = Ground::new("relay").await;
    let other = connect(&ground.host, ground.port, &access.user, access.password.expose(), &elsewhere.database).await;
    assert_eq!(other.expect_err("refused").code().expect("by the server").code(), "42501");
    let report = ground.server.sweep(&ground.database).await.expect("swept");
    let of_relay = report.repaired.iter().find(|finding| finding.what.contains("_relay"));
    assert!(of_relay.is_none(), "what the relay may do is right: {report:?}");

    // Somebody gave it more, and took something away.
    let superuser = ground.superuser().await;
    let (user, more) = (&access.user, "GRANT SELECT ON tenantry.tenant TO");
    superuser
        .batch_execute(&format!("{more} {user}; REVOKE SELECT ON tenantry.outbox FROM {user}"))
        .await
        .expect("changed");
    ground.server.sweep(&ground.database).await.expect("swept");
    assert_eq!(refused(&session().await, "SELECT FROM tenantry.tenant").await, "42501");
    let known = access.password.digest();
    assert_eq!(ground.server.ensure_relay(&ground.database, Some(&known)).await.expect("repaired"), None);
    session().await.batch_execute("SELECT FROM tenantry.outbox").await.expect("given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_leased_goes_to_one_and_what_is_acknowledged_goes_to_its_day() {
    let (ground, guest, client, outbox) = ground().await;
    for _ in 0..10 {
        count(&client, "users", 1).await;
    }
    client.batch_execute("BEGIN; SELECT record_usage('users', 1, 'x'); ROLLBACK").await.expect("rolled back");
    let first = outbox.lease(4, LEASE).await.expect("leased");
    let second = outbox.lease(100, LEASE).await.expect("leased");
    assert_eq!((first.len(), second.len()), (4, 6));
    assert!(outbox.lease(100, LEASE).await.expect("nothing").is_empty(), "all of them are leased");
    let mut sequences: Vec<_> = first.iter().chain(&second).map(|event| event.counted.sequence).collect();
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=10).collect::<Vec<_>>());
    let event = first.iter().find(|event| event.counted.sequence == 1).expect("the first");
    assert_eq!((&event.tenant, event.meter.as_str(), event.counted.epoch), (&guest.id, "users", 1));
    assert_eq!((event.counted.kind, event.delta, event.counted.value, event.attempts), (UsageKind::Add, 1, 1, 1));
    assert_eq!((event.counted.period_start, &event.counted.folded), (None, &None));

    settle(&outbox, &all(&first, &Settlement::Acknowledged)).await;
    // Once more changes nothing: they are gone from here.
    settle(&outbox, &all(&first, &Settlement::Acknowledged)).await;
    let later = Settlement::Later { pause: Duration::ZERO, error: "503".into() };
    settle(&outbox, &all(&second[..5], &later)).await;
    settle(&outbox, &all(&second[5..], &Settlement::Dead { error: "unknown meter".into() })).await;
    let size = outbox.size(1000).await.expect("measured");
    assert_eq!((size.waiting, size.dead), (5, 1));
    assert!(size.oldest.is_some_and(|oldest| oldest <= Timestamp::now()));
    let again = outbox.lease(100, LEASE).await.expect("leased again");
    assert_eq!(again.iter().map(|event| event.attempts).collect::<Vec<_>>(), [2; 5]);
    let superuser = ground.superuser().await;
    let today = one(&superuser, "SELECT 'outbox_sent_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')").await;
    let places = "SELECT DISTINCT tableoid::regclass FROM tenantry.outbox WHERE acked_at IS NOT NULL";
    assert_eq!(rows(&superuser, places).await, [format!("tenantry.{today}")]);
    assert_eq!(one(&superuser, "SELECT count(*) FROM tenantry.outbox_pending").await, "6");

    let letters = ground.server.dead_letters(&ground.database, 10).await.expect("listed");
    assert_eq!(letters.len(), 1);
    assert_eq!((&letters[0].tenant, letters[0].error.as_str()), (&guest.id, "unknown meter"));
    assert_eq!(ground.server.redrive(&ground.database, Some(&[Uuid::nil()])).await.expect("none of these"), 0);
    assert_eq!(ground.server.redrive(&ground.database, Some(&[letters[0].id])).await.expect("again"), 1);
    assert_eq!(outbox.lease(100, LEASE).await.expect("leased").len(), 1);

    // After the ledger was restored, what was acknowledged is read once more, in pages.
    let since = Timestamp::now() - 1.hour();
    let mut sent = outbox.acknowledged(since, Uuid::nil(), 3).await.expect("read");
    let last = sent.last().expect("some").id;
    sent.extend(outbox.acknowledged(since, last, 3).await.expect("read"));
    let ids = |events: &[LeasedEvent]| events.iter().map(|event| event.id).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(&sent), ids(&first));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_one_holds_for_a_moment_is_settled_when_it_lets_go() {
    let (ground, _, client, outbox) = ground().await;
    for _ in 0..5 {
        count(&client, "users", 1).await;
    }
    let leased = outbox.lease(5, LEASE).await.expect("leased");
    let looks = ground.superuser().await;
    looks.batch_execute("BEGIN; SELECT FROM tenantry.outbox WHERE sequence IN (2, 4) FOR UPDATE").await.expect("held");
    let watches = ground.superuser().await;
    let lets_go = async {
        let waiting = "SELECT count(*) FROM tenantry.outbox WHERE acked_at IS NULL";
        until("the others are settled", async || one(&watches, waiting).await == "2").await;
        looks.batch_execute("COMMIT").await.expect("let go");
    };
    let outcomes = all(&leased, &Settlement::Acknowledged);
    tokio::join!(settle(&outbox, &outcomes), lets_go);
    assert_eq!(one(&watches, "SELECT count(*) FROM tenantry.outbox WHERE acked_at IS NOT NULL").await, "5");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_runs_out_is_given_anew_and_who_comes_late_changes_nothing() {
    let (_ground, _, client, outbox) = ground().await;
    count(&client, "users", 1).await;
    let late = outbox.lease(10, Duration::ZERO).await.expect("leased");
    let next = outbox.lease(10, LEASE).await.expect("leased by another");
    assert_eq!((late.len(), next.len(), next[0].attempts), (1, 1, 2));
    settle(&outbox, &all(&next, &Settlement::Acknowledged)).await;
    settle(&outbox, &all(&late, &Settlement::Dead { error: "too late".into() })).await;
    let size = outbox.size(1000).await.expect("measured");
    assert_eq!((size.waiting, size.dead), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_many_events_leaves_room_for_the_others() {
    let (ground, busy, client, outbox) = ground().await;
    let flood = "SELECT record_usage('mails', 1, NULL) FROM generate_series(1, 500)";
    client.batch_execute(flood).await.expect("counted");
    let mut quiet = Vec::new();
    for name in ["bolt", "cool", "dune"] {
        let guest = ground.tenant(name).await;
        count(&ground.client(&guest.login).await, "users", 1).await;
        quiet.push(guest.id);
    }
    let leased = outbox.lease(100, LEASE).await.expect("leased");
    let mut of: BTreeMap<_, usize> = BTreeMap::new();
    for event in &leased {
        *of.entry(event.tenant.clone()).or_default() += 1;
    }
    assert!(quiet.iter().all(|id| of.get(id) == Some(&1)), "{of:?}");
    assert_eq!(of[&busy.id], 25, "a quarter of the batch: {of:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_into_a_table_that_was_small_is_never_read_as_a_whole() {
    let (ground, _guest, client, outbox) = ground().await;
    let superuser = ground.superuser().await;
    // As after the last look of autovacuum: nothing was there.
    superuser
        .batch_execute(
            "ALTER TABLE tenantry.outbox_pending SET (autovacuum_enabled = off); ANALYZE tenantry.outbox_pending",
        )
        .await
        .expect("analyzed");
    // One statement, however long it takes where others are at work.
    let burst = "SET statement_timeout = 0;
                 SELECT count(record_usage('accounts', n % 2, NULL)) FROM generate_series(1, 20000) AS n";
    client.batch_execute(burst).await.expect("counted");
    drop(client);
    let scanned = "SELECT seq_tup_read + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes i WHERE i.relid = t.relid)
                     FROM pg_stat_user_tables t WHERE relid = 'tenantry.outbox_pending'::regclass";
    let read = async || one(&superuser, scanned).await.parse::<i64>().expect("a number");
    let before = read().await;
    for _ in 0..3 {
        let leased = outbox.lease(100, LEASE).await.expect("leased");
        assert_eq!(leased.len(), 100);
        settle(&outbox, &all(&leased, &Settlement::Acknowledged)).await;
    }
    // A session that has ended has told what it did.
    drop(outbox);
    let moved = "SELECT n_tup_ins >= 300 FROM pg_stat_user_tables
                  WHERE relname = to_char(now() AT TIME ZONE 'UTC', '\"outbox_sent_\"YYYYMMDD')";
    until("what it did is told", async || one(&superuser, moved).await == "t").await;
    let rows = read().await - before;
    assert!(rows < 10_000, "{rows} of 20,000 rows were read to send 300");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_share_the_work() {
    let (ground, _, client, one_of_them) = ground().await;
    client.batch_execute("SELECT record_usage('mails', 1, NULL) FROM generate_series(1, 2000)").await.expect("counted");
    let known = ground.server.ensure_relay(&ground.database, None).await.expect("made").expect("issued anew");
    let other = outbox(&known).await;
    let drain = async |outbox: &Outbox| {
        let mut seen = Vec::new();
        loop {
            let leased = outbox.lease(100, LEASE).await.expect("leased");
            if leased.is_empty() {
                return seen;
            }
            settle(outbox, &all(&leased, &Settlement::Acknowledged)).await;
            seen.extend(leased.iter().map(|event| event.counted.sequence));
        }
    };
    let (mut seen, rest) = tokio::join!(drain(&one_of_them), drain(&other));
    seen.extend(rest);
    seen.sort_unstable();
    assert_eq!(seen, (1..=2000).collect::<Vec<_>>(), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_is_never_ahead_of_what_is_committed() {
    let (ground, guest, client, outbox) = ground().await;
    let marks = outbox.progress(None).await.expect("read");
    let meters: Vec<_> = marks.iter().map(|mark| (mark.meter.as_str(), mark.sequence)).collect();
    assert_eq!(meters.len(), 4, "also of meters that nobody used, and not of those of the API: {meters:?}");
    assert!(meters.iter().all(|(_, sequence)| *sequence == 0));

    count(&client, "users", 2).await;
    let open = ground.client(&guest.login).await;
    open.batch_execute("BEGIN; SELECT record_usage('users', 1, 'y')").await.expect("open");
    let of_users = async || {
        let marks = outbox.progress(None).await.expect("read");
        marks.into_iter().find(|mark| mark.meter == "users")
    };
    assert_eq!(of_users().await, None, "its transaction may yet commit with an earlier time");
    open.batch_execute("COMMIT").await.expect("committed");
    let mark = of_users().await.expect("a mark");
    assert_eq!((mark.sequence, mark.value, mark.epoch), (2, 3, 1));
    count(&client, "users", 1).await;
    let later = outbox.lease(10, LEASE).await.expect("leased");
    let last = later.iter().find(|event| event.counted.sequence == 3).expect("the third");
    assert!(last.occurred_at >= mark.as_of, "what the mark does not cover is later");
    let since = outbox.progress(Some(mark.as_of)).await.expect("read");
    assert_eq!(since.iter().map(|mark| mark.meter.as_str()).collect::<Vec<_>>(), ["users"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_fetched_is_folded_and_says_all_the_same() {
    let (ground, guest, client, outbox) = ground().await;
    let superuser = ground.superuser().await;
    for delta in [5, 3, -6, 4, 1, 1] {
        count(&client, "users", delta).await;
    }
    // The first was tried already: the API may have it.
    let tried = outbox.lease(1, Duration::ZERO).await.expect("leased");
    let id = &guest.id;
    let moment = "SELECT sum(delta * (extract(epoch FROM occurred_at) * 1000000)::numeric)::text FROM tenantry.outbox";
    let moment = one(&superuser, &format!("{moment} WHERE tenant = '{id}' AND sequence BETWEEN 2 AND 4")).await;
    superuser.batch_execute("SET ROLE tenantry_owner").await.expect("as the operator does");
    assert_eq!(one(&superuser, &format!("SELECT tenantry.fold_outbox('{id}', 2)")).await, "2");
    let leased = outbox.lease(100, LEASE).await.expect("leased");
    let mut events: Vec<_> =
        leased.iter().map(|event| (event.counted.sequence, event.delta, event.counted.value)).collect();
    events.sort_unstable();
    assert_eq!(events, [(1, 5, 5), (4, 1, 6), (5, 1, 7), (6, 1, 8)]);
    let folded = leased.iter().find_map(|event| event.counted.folded.clone()).expect("a folded one");
    assert_eq!((folded.first_sequence, folded.low, folded.high), (2, 2, 8));
    assert_eq!(folded.moment, moment);
    assert_eq!(tried[0].id, leased.iter().find(|event| event.counted.sequence == 1).expect("the first").id);
    assert_eq!(ground.server.fold_outbox(&ground.database, 1000).await.expect("nothing to do"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_correction_changes_what_the_limit_sees_and_says_who() {
    let (ground, guest, client, outbox) = ground().await;
    count(&client, "users", 50).await;
    assert_eq!(refused(&client, "SELECT record_usage('users', 1, 'x')").await, "TN001");
    let correct = async |meter: &str, delta| {
        ground.server.correct_usage(&ground.database, &guest.id, meter, delta, "double import", "ann@example.com").await
    };
    assert_eq!(correct("users", -10).await.expect("corrected"), 40);
    count(&client, "users", 10).await;
    assert_eq!(correct("users", 5).await.expect("beyond the limit: a person says so"), 55);
    assert_eq!(correct("users", -100).await.expect_err("below zero").sqlstate(), Some("TN004"));
    assert_eq!(correct("nothing", 1).await.expect_err("no meter").sqlstate(), Some("TN002"));
    let leased = outbox.lease(100, LEASE).await.expect("leased");
    let corrections: Vec<_> = leased.iter().filter(|event| event.counted.kind == UsageKind::Correct).collect();
    assert_eq!(corrections.len(), 2);
    assert_eq!(corrections[0].counted.reason.as_deref(), Some("double import"));
    assert_eq!(corrections[0].counted.actor.as_deref(), Some("ann@example.com"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_since_a_moment_is_sent_once_more_and_never_folded() {
    let (ground, _guest, client, outbox) = ground().await;
    let send = async |count: usize| -> Vec<Uuid> {
        let leased = outbox.lease(100, LEASE).await.expect("leased");
        assert_eq!(leased.len(), count);
        settle(&outbox, &all(&leased, &Settlement::Acknowledged)).await;
        let mut ids: Vec<_> = leased.iter().map(|event| event.id).collect();
        ids.sort_unstable();
        ids
    };
    for _ in 0..3 {
        count(&client, "users", 1).await;
    }
    send(3).await;
    let superuser = ground.superuser().await;
    let backup: Timestamp = superuser.query_one("SELECT clock_timestamp()", &[]).await.expect("a time").get(0);
    for _ in 0..5 {
        count(&client, "users", 1).await;
    }
    let lost = send(5).await;
    // In pages that don't divide it evenly.
    assert_eq!(ground.server.resend(&ground.database, backup, 2).await.expect("again"), 5);
    assert_eq!(ground.server.resend(&ground.database, backup, 2).await.expect("again"), 0, "they wait already");
    // The ledger may have them: under other ids they would count twice.
    assert_eq!(ground.server.fold_outbox(&ground.database, 1).await.expect("folded"), []);
    assert_eq!(send(5).await, lost, "the same events");
    assert_eq!(ground.server.resend(&ground.database, backup, 100).await.expect("again"), 5, "as often as need be");
    let moment = Timestamp::now() + std::time::Duration::from_secs(3_600);
    assert_eq!(ground.server.resend(&ground.database, moment, 100).await.expect("none"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_begins_a_new_epoch_with_what_it_has() {
    let (ground, guest, client, outbox) = ground().await;
    count(&client, "users", 7).await;
    let begin =
        async |after| ground.server.begin_epoch(&ground.database, &guest.id, "users", after, 12).await.expect("begun");
    assert!(begin(1).await);
    assert!(!begin(1).await, "only once");
    count(&client, "users", 1).await;
    let leased = outbox.lease(100, LEASE).await.expect("leased");
    let mut events: Vec<_> = leased
        .iter()
        .map(|event| {
            (event.counted.epoch, event.counted.sequence, event.counted.kind, event.delta, event.counted.value)
        })
        .collect();
    events.sort_unstable_by_key(|event| (event.0, event.1));
    let expected = [(1, 1, UsageKind::Add, 7, 7), (2, 1, UsageKind::Restore, -5, 7), (2, 2, UsageKind::Add, 1, 8)];
    assert_eq!(events, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn days_that_are_over_go_as_a_whole_and_a_database_goes_with_its_relay() {
    let (ground, guest, client, outbox) = ground().await;
    count(&client, "users", 1).await;
    let leased = outbox.lease(100, LEASE).await.expect("leased");
    settle(&outbox, &all(&leased, &Settlement::Acknowledged)).await;
    let superuser = ground.superuser().await;
    superuser
        .batch_execute(
            "SET ROLE tenantry_owner;
             CREATE TABLE tenantry.outbox_sent_20200101 PARTITION OF tenantry.outbox_sent
                 FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00');
             UPDATE tenantry.outbox SET acked_at = '2020-01-01 12:00:00+00' WHERE acked_at IS NOT NULL",
        )
        .await
        .expect("long ago");
    ground.server.keep_outbox(&ground.database).await.expect("kept");
    assert_eq!(one(&superuser, "SELECT count(*) FROM tenantry.outbox").await, "0");
    let days = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'tenantry.outbox_sent'::regclass";
    assert_eq!(one(&superuser, days).await, "9", "today, and eight more");
    drop((superuser, client));
    ground.server.drop_tenant(&ground.database, &guest.id).await.expect("dropped");
    crate::support::until("the database is dropped, although a relay is in it", async || {
        ground.server.drop_database(&ground.database, crate::support::CLUSTER).await.is_ok()
    })
    .await;
    let roles = format!("SELECT count(*) FROM pg_roles WHERE rolname LIKE '{}%'", ground.database);
    let elsewhere = Ground::new("relay").await;
    assert_eq!(one(&elsewhere.superuser().await, &roles).await, "0");
    assert!(outbox.lease(1, LEASE).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_acknowledged_is_read_and_saved_by_the_operator() {
    let (ground, guest, client, outbox) = ground().await;
    let neighbour = ground.tenant("bolt").await;
    for _ in 0..4 {
        count(&client, "users", 1).await;
    }
    count(&ground.client(&neighbour.login).await, "users", 1).await;
    let leased = outbox.lease(100, LEASE).await.expect("leased");
    let of = |sequence| {
        leased.iter().find(|event| event.tenant == guest.id && event.counted.sequence == sequence).expect("it is")
    };
    let dead = Settlement::Dead { error: "refused".into() };
    outbox.settle(&[(of(1), Settlement::Acknowledged), (of(2), dead)]).await.expect("settled");
    assert_eq!(outbox.dead_by_tenant().await.expect("counted"), [(guest.id.clone(), 1)]);
    assert_eq!(ground.server.unsent(&ground.database, &guest.id, 2).await.expect("a page").len(), 2);
    let unsent = ground.server.unsent(&ground.database, &guest.id, 100).await.expect("all");
    let sequences: Vec<_> = unsent.iter().map(|event| event.counted.sequence).collect();
    assert_eq!(sequences, [2, 3, 4], "dead ones and leased ones too");
    assert_eq!((unsent[1].id, unsent[1].counted.value), (of(3).id, 3));
    ground.server.saved(&ground.database, &guest.id, &unsent).await.expect("saved");
    ground.server.saved(&ground.database, &guest.id, &unsent).await.expect("once more, as nothing");
    assert!(ground.server.unsent(&ground.database, &guest.id, 100).await.expect("none").is_empty());
    assert_eq!(ground.server.unsent(&ground.database, &neighbour.id, 100).await.expect("one").len(), 1);
    // The relay that had them under way finds nothing to note.
    settle(&outbox, &all(&leased, &Settlement::Dead { error: "late".into() })).await;
    let superuser = ground.superuser().await;
    let acked = format!("SELECT count(*) FROM tenantry.outbox WHERE acked_at IS NOT NULL AND tenant = '{}'", guest.id);
    assert_eq!(one(&superuser, &acked).await, "4");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_relays_the_oldest_that_lives_speaks_for_the_database() {
    let ground = Ground::new("relay").await;
    let access = access(&ground).await;
    let first = outbox(&access).await;
    assert!(first.standing().await.expect("alone").is_first);
    let second = outbox(&access).await;
    assert!(!second.standing().await.expect("the second").is_first);
    let tls = Tls::VerifyFull { ca_pem: shared_server().ca_pem().to_owned() };
    let further = Outbox::connect_as("another name", &access, &tls, Duration::from_secs(10)).await.expect("logged in");
    assert!(first.standing().await.expect("still").is_first);
    drop((first, further));
    crate::support::until("the second comes after it", async || second.standing().await.expect("asked").is_first).await;
}
