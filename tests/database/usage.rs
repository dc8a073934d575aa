//! What applications call: counts, limits, and what is refused.

use std::collections::BTreeSet;

use jiff::Timestamp;
use tenantry::database::{Policy, TenantSettings};
use tokio_postgres::Client;

use crate::support::{Ground, Guest, limit, one, refused, rows, settings};

async fn ground() -> (Ground, Guest, Client) {
    let ground = Ground::new("usage").await;
    let guest = ground.tenant("acme").await;
    let client = ground.client(&guest.login).await;
    (ground, guest, client)
}

async fn detail(client: &Client, sql: &str) -> (String, serde_json::Value) {
    let error = client.batch_execute(sql).await.expect_err("refused");
    let error = error.as_db_error().expect("by the server");
    (error.code().code().to_owned(), serde_json::from_str(error.detail().expect("a detail")).expect("JSON"))
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_and_writes_one_event_each() {
    let (ground, guest, client) = ground().await;
    assert_eq!(one(&client, "SELECT record_usage('users', 1, 'user-4711')").await, "1");
    assert_eq!(one(&client, "SELECT record_usage('users', 2, NULL)").await, "3");
    assert_eq!(one(&client, "SELECT record_usage('users', -1, 'user-4711')").await, "2");
    assert_eq!(one(&client, "SELECT set_usage('users', 7, 'recount')").await, "7");
    assert_eq!(
        one(&client, "SELECT record_usages('{opportunities,accounts}', '{1,5}', 'deal-17')").await,
        "{1,5}",
        "in the order of the meters given"
    );
    assert_eq!(
        rows(&client, "SELECT * FROM my_limits()").await,
        ["accounts|5|NULL|NULL", "mails|0|NULL|NULL", "opportunities|1|NULL|NULL", "users|7|50|Hard"]
    );
    let outbox = ground.superuser().await;
    let tenant = &guest.id;
    assert_eq!(
        rows(
            &outbox,
            &format!(
                "SELECT meter, epoch, sequence, kind, delta, value, reason FROM tenantry.outbox
                  WHERE tenant = '{tenant}' ORDER BY meter, sequence"
            )
        )
        .await,
        [
            "accounts|1|1|Add|5|5|NULL",
            "opportunities|1|1|Add|1|1|NULL",
            "users|1|1|Add|1|1|NULL",
            "users|1|2|Add|2|3|NULL",
            "users|1|3|Add|-1|2|NULL",
            "users|1|4|Set|5|7|recount",
        ]
    );
    let subjects =
        rows(&outbox, "SELECT DISTINCT subject FROM tenantry.outbox WHERE meter = 'users' AND subject IS NOT NULL")
            .await;
    assert_eq!(subjects.len(), 1, "one subject, one hash");
    assert_eq!(subjects[0].len(), 64);
    assert!(!subjects[0].contains("4711"));
    assert_eq!(one(&outbox, "SELECT count(*) = count(DISTINCT event_id) FROM tenantry.outbox").await, "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_count_lives_and_dies_with_the_transaction() {
    let (_ground, _, client) = ground().await;
    client.batch_execute("BEGIN; SELECT record_usage('users', 5, 'x'); ROLLBACK").await.expect("rolled back");
    assert_eq!(one(&client, "SELECT value FROM my_limits() WHERE meter = 'users'").await, "0");
    assert_eq!(one(&client, "SELECT record_usage('users', 1, 'x')").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_code() {
    let (ground, _, client) = ground().await;
    client.batch_execute("SELECT record_usage('users', 50, 'all')").await.expect("up to the limit");

    let (code, detail) = detail(&client, "SELECT record_usage('users', 1, 'one-more')").await;
    assert_eq!(code, "TN001");
    assert_eq!((&detail["meter"], &detail["limit"], &detail["value"]), (&"users".into(), &50.into(), &50.into()));

    for (sql, code) in [
        ("SELECT set_usage('users', 51, 'recount')", "TN001"),
        ("SELECT record_usages('{accounts,users}', '{1,1}', 'x')", "TN001"),
        ("SELECT record_usage('unicorns', 1, 'x')", "TN002"),
        ("SELECT record_usage('requests', 1, 'x')", "TN002"),
        ("SELECT record_usage('users', -51, 'x')", "TN004"),
        ("SELECT set_usage('users', -1, 'x')", "TN004"),
        ("SELECT record_usage('mails', -1, 'x')", "TN004"),
        ("SELECT record_usage('accounts', 1, 'x'), record_usage('accounts', 9223372036854775807, 'x')", "22003"),
        ("SELECT record_usage('users', -9223372036854775808, 'x')", "TN004"),
        ("SELECT record_usage(NULL, 1, 'x')", "22004"),
        ("SELECT record_usage('', 1, 'x')", "22004"),
        ("SELECT record_usage('users', NULL, 'x')", "22004"),
        ("SELECT record_usage('users', 1, '')", "22023"),
        ("SELECT set_usage('users', NULL, 'x')", "22004"),
        ("SELECT set_usage('users', 1, NULL)", "22004"),
        ("SELECT set_usage('users', 1, '')", "22004"),
        ("SELECT set_usage('users', 1, repeat('x', 201))", "22023"),
        ("SELECT record_usages('{}', '{}', 'x')", "22004"),
        ("SELECT record_usages(NULL, '{1}', 'x')", "22004"),
        ("SELECT record_usages('{users}', '{1,2}', 'x')", "22023"),
        ("SELECT record_usages('{accounts,accounts}', '{1,2}', 'x')", "22023"),
        ("SELECT record_usages('{accounts}', '{NULL}', 'x')", "22004"),
        ("SELECT record_usages('{NULL}', '{1}', 'x')", "22004"),
        ("SELECT record_usages('{{accounts,users}}', '{{1,-1}}', 'x')", "22023"),
    ] {
        assert_eq!(refused(&client, sql).await, code, "{sql}");
    }
    assert_eq!(
        one(&client, "SELECT value FROM my_limits() WHERE meter = 'accounts'").await,
        "0",
        "nothing was left behind"
    );

    let superuser = ground.superuser().await;
    assert_eq!(refused(&superuser, "SELECT tenantry.record_usage('users', 1, 'x')").await, "TN003");
    assert_eq!(refused(&superuser, "SELECT * FROM tenantry.my_limits()").await, "TN003");
    assert_eq!(refused(&superuser, "SELECT tenantry.record_migration('x', 'y')").await, "TN003");
    assert_eq!(refused(&client, "SELECT tenantry.record_migration('x', 'y')").await, "TN003", "not the runtime login");
}

#[tokio::test(flavor = "multi_thread")]
async fn below_a_lowered_limit_nothing_is_removed_and_less_is_always_possible() {
    let (ground, _, client) = ground().await;
    client.batch_execute("SELECT record_usage('users', 40, 'x')").await.expect("below the limit");
    ground.server.set_plan_limits(&ground.database, "smb", &[limit("users", 10, Policy::Hard)]).await.expect("lowered");
    assert_eq!(refused(&client, "SELECT record_usage('users', 1, 'x')").await, "TN001");
    assert_eq!(one(&client, "SELECT record_usage('users', 0, 'x')").await, "40");
    assert_eq!(one(&client, "SELECT record_usage('users', -5, 'x')").await, "35");
    assert_eq!(one(&client, "SELECT set_usage('users', 20, 'recount')").await, "20");
    ground.server.set_plan_limits(&ground.database, "smb", &[]).await.expect("lifted");
    assert_eq!(one(&client, "SELECT record_usage('users', 1000, 'x')").await, "1020");
}

#[tokio::test(flavor = "multi_thread")]
async fn soft_limits_only_inform() {
    let (ground, _, client) = ground().await;
    ground.server.set_plan_limits(&ground.database, "smb", &[limit("users", 2, Policy::Soft)]).await.expect("soft");
    assert_eq!(one(&client, "SELECT record_usage('users', 9, 'x')").await, "9");
    assert_eq!(rows(&client, "SELECT * FROM my_limits() WHERE meter = 'users'").await, ["users|9|2|Soft"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn grace_gives_percent_for_days_and_then_is_hard() {
    let (ground, guest, client) = ground().await;
    let grace = Policy::Grace { days: 7, percent: 20 };
    ground.server.set_plan_limits(&ground.database, "smb", &[limit("users", 10, grace)]).await.expect("grace");
    assert_eq!(one(&client, "SELECT record_usage('users', 12, 'x')").await, "12", "20 % more");
    let (code, detail) = detail(&client, "SELECT record_usage('users', 1, 'x')").await;
    assert_eq!((code.as_str(), &detail["limit"], &detail["max"]), ("TN001", &12.into(), &10.into()));

    // Eight days later.
    let superuser = ground.superuser().await;
    let later = format!(
        "UPDATE tenantry.meter SET over_since = over_since - interval '8 days' WHERE tenant = '{id}';
         UPDATE tenantry.meter_limit SET since = since - interval '8 days';
         UPDATE tenantry.tenant SET plan_since = plan_since - interval '8 days' WHERE id = '{id}'",
        id = guest.id
    );
    superuser.batch_execute(&later).await.expect("the clock moved");
    assert_eq!(one(&client, "SELECT record_usage('users', -1, 'x')").await, "11");
    let (code, detail) = self::detail(&client, "SELECT record_usage('users', 1, 'x')").await;
    assert_eq!((code.as_str(), &detail["limit"]), ("TN001", &10.into()), "the days are over");

    // Down to the limit and up again: a new grace.
    assert_eq!(one(&client, "SELECT record_usage('users', -1, 'x')").await, "10");
    assert_eq!(one(&client, "SELECT record_usage('users', 1, 'x')").await, "11");

    // Another eight days, then a lower limit: its grace begins when it came to apply.
    superuser.batch_execute(&later).await.expect("the clock moved");
    assert_eq!(refused(&client, "SELECT record_usage('users', 1, 'x')").await, "TN001");
    ground
        .server
        .set_plan_limits(&ground.database, "smb", &[limit("users", 11, Policy::Grace { days: 7, percent: 20 })])
        .await
        .expect("changed");
    assert_eq!(one(&client, "SELECT record_usage('users', 2, 'x')").await, "13");
    superuser.batch_execute(&later).await.expect("the clock moved");
    assert_eq!(refused(&client, "SELECT record_usage('users', 0, 'x'), record_usage('users', 1, 'x')").await, "TN001");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_total_starts_again_at_each_period_and_only_counts_up() {
    let (ground, guest, client) = ground().await;
    ground.server.set_plan_limits(&ground.database, "smb", &[limit("mails", 10, Policy::Hard)]).await.expect("limits");
    let zone = "Asia/Seoul";
    let anchored = TenantSettings {
        period_anchor: "2024-01-31T15:00:00Z".parse::<Timestamp>().expect("a time"),
        time_zone: zone.to_owned(),
        ..settings("smb")
    };
    assert!(ground.server.apply_settings(&ground.database, &guest.id, &anchored).await.expect("applied"));
    assert_eq!(one(&client, "SELECT record_usage('mails', 10, 'x')").await, "10");
    let superuser = ground.superuser().await;
    let start = |at: &str| format!("SELECT tenantry.period_start('{}', '{zone}', {at})::text", anchored.period_anchor);
    let first = one(&superuser, &start("clock_timestamp()")).await;
    assert_eq!(
        one(
            &superuser,
            &format!("SELECT period_start::text FROM tenantry.meter WHERE meter = 'mails' AND tenant = '{}'", guest.id)
        )
        .await,
        first
    );
    // The boundary, reached by moving the stored period back by one.
    let earlier = one(&superuser, &start(&format!("'{first}'::timestamptz - interval '1 second'"))).await;
    assert_ne!(first, earlier);
    superuser
        .batch_execute(&format!(
            "UPDATE tenantry.meter SET period_start = '{earlier}' WHERE meter = 'mails' AND tenant = '{}'",
            guest.id
        ))
        .await
        .expect("moved");
    assert_eq!(
        one(&client, "SELECT value FROM my_limits() WHERE meter = 'mails'").await,
        "0",
        "shown as started again"
    );
    assert_eq!(one(&client, "SELECT record_usage('mails', 4, 'x')").await, "4");
    assert_eq!(refused(&client, "SELECT set_usage('mails', 3, 'less')").await, "TN004");
    assert_eq!(one(&client, "SELECT set_usage('mails', 9, 'more')").await, "9");
    assert_eq!(refused(&client, "SELECT record_usage('mails', 2, 'x')").await, "TN001");
    assert_eq!(
        rows(
            &superuser,
            &format!("SELECT sequence, delta, value FROM tenantry.outbox WHERE tenant = '{}' ORDER BY 1", guest.id)
        )
        .await,
        ["1|10|10", "2|4|4", "3|5|9"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn periods_begin_on_the_anchors_day_in_its_zone() {
    let ground = Ground::new("usage").await;
    let superuser = ground.superuser().await;
    for (anchor, zone, moment, start) in [
        ("2026-01-31 00:00+00", "UTC", "2026-02-27 23:59+00", "2026-01-31 00:00+00"),
        ("2026-01-31 00:00+00", "UTC", "2026-02-28 00:00+00", "2026-02-28 00:00+00"),
        ("2026-01-31 00:00+00", "UTC", "2026-03-30 12:00+00", "2026-02-28 00:00+00"),
        ("2026-01-31 00:00+00", "UTC", "2026-03-31 12:00+00", "2026-03-31 00:00+00"),
        // Midnight in Seoul is 15:00 UTC on the day before.
        ("2026-01-31 15:00+00", "Asia/Seoul", "2026-02-28 14:59+00", "2026-01-31 15:00+00"),
        ("2026-01-31 15:00+00", "Asia/Seoul", "2026-02-28 15:00+00", "2026-02-28 15:00+00"),
        // Summer time begins on 29 March 2026: local midnight is an hour earlier in UTC.
        ("2026-03-01 00:00+01", "Europe/Berlin", "2026-03-31 21:59+00", "2026-02-28 23:00+00"),
        ("2026-03-01 00:00+01", "Europe/Berlin", "2026-03-31 22:00+00", "2026-03-31 22:00+00"),
        // Before the anchor the periods go on backwards.
        ("2026-05-10 00:00+00", "UTC", "2026-05-09 00:00+00", "2026-04-10 00:00+00"),
    ] {
        let sql = format!("SELECT tenantry.period_start('{anchor}', '{zone}', '{moment}') = '{start}'::timestamptz");
        assert_eq!(one(&superuser, &sql).await, "t", "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_import_is_not_held_up_by_limits() {
    let (ground, guest, client) = ground().await;
    let migrator = ground.migrator(&guest).await;
    assert_eq!(one(&migrator, "SELECT set_usage('users', 400, 'import')").await, "400");
    assert_eq!(refused(&migrator, "SELECT record_usage('users', 1, 'x')").await, "TN001");
    assert_eq!(refused(&client, "SELECT set_usage('users', 401, 'recount')").await, "TN001");
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_writers_never_pass_a_hard_limit() {
    let ground = Ground::new("usage").await;
    let guest = ground.tenant("acme").await;
    let limits = [limit("users", 200, Policy::Hard), limit("accounts", 300, Policy::Hard)];
    ground.server.set_plan_limits(&ground.database, "smb", &limits).await.expect("limits");
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..32 {
        let client = ground.client(&guest.login).await;
        writers.spawn(async move {
            let (mut accepted, mut refusals) = (0, 0);
            for round in 0..20 {
                // Two meters in one transaction, in both orders: no deadlock comes of it.
                let order = if round % 2 == 0 { "'{users,accounts}', '{1,1}'" } else { "'{accounts,users}', '{1,1}'" };
                match client.batch_execute(&format!("SELECT record_usages({order}, 'writer-{writer}')")).await {
                    Ok(()) => accepted += 1,
                    Err(error) if error.code().is_some_and(|code| code.code() == "TN001") => refusals += 1,
                    Err(error) => panic!("{error:?}"),
                }
            }
            (accepted, refusals)
        });
    }
    let (mut accepted, mut refusals) = (0, 0);
    while let Some(result) = writers.join_next().await {
        let (yes, no) = result.expect("no writer failed");
        accepted += yes;
        refusals += no;
    }
    assert_eq!((accepted, refusals), (200, 440), "not one too many, not one too few");
    let superuser = ground.superuser().await;
    for meter in ["users", "accounts"] {
        let sql = format!(
            "SELECT count(*), min(sequence), max(sequence), max(value), bool_and(value = sequence) FROM tenantry.outbox
              WHERE tenant = '{}' AND meter = '{meter}'",
            guest.id
        );
        assert_eq!(rows(&superuser, &sql).await, ["200|1|200|200|t"], "{meter}: no gap, in order of the counts");
    }
    let sql = "SELECT count(*) FROM (SELECT occurred_at < lag(occurred_at) OVER (PARTITION BY tenant, meter ORDER BY sequence)
                 AS back FROM tenantry.outbox) AS o WHERE back";
    assert_eq!(one(&superuser, sql).await, "0", "time never runs backwards");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_limits_reach_a_tenant_that_holds_a_transaction_open() {
    let (ground, guest, client) = ground().await;
    let other = ground.client(&guest.login).await;
    client.batch_execute("BEGIN; SELECT record_usage('users', 10, 'x')").await.expect("holds its meter's row");

    let started = std::time::Instant::now();
    ground
        .server
        .set_plan_limits(&ground.database, "smb", &[limit("users", 12, Policy::Hard)])
        .await
        .expect("not held up");
    println!("a change of limits beside an open transaction: {:?}", started.elapsed());
    assert_eq!(one(&client, "SELECT max FROM my_limits() WHERE meter = 'users'").await, "12");
    assert_eq!(one(&other, "SELECT max FROM my_limits() WHERE meter = 'users'").await, "12");
    assert_eq!(one(&client, "SELECT record_usage('users', 2, 'x')").await, "12");
    assert_eq!(refused(&client, "SELECT record_usage('users', 1, 'x')").await, "TN001");

    client.batch_execute("ROLLBACK; BEGIN; SELECT record_usage('users', 10, 'x')").await.expect("again");
    ground
        .server
        .set_plan_limits(&ground.database, "tiny", &[limit("users", 1, Policy::Hard)])
        .await
        .expect("another plan");
    ground.server.apply_settings(&ground.database, &guest.id, &settings("tiny")).await.expect("not held up");
    assert_eq!(refused(&client, "SELECT record_usage('users', 1, 'x')").await, "TN001", "the other plan's limit");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_all_plans_are_read_back() {
    let ground = Ground::new("usage").await;
    let limits = vec![
        limit("accounts", 5, Policy::Soft),
        limit("mails", 7, Policy::Grace { days: 3, percent: 10 }),
        limit("users", 1 << 40, Policy::Hard),
    ];
    ground.server.set_plan_limits(&ground.database, "big's", &limits).await.expect("set");
    ground.server.set_plan_limits(&ground.database, "smb", &[]).await.expect("cleared");
    let plans = ground.server.plan_limits(&ground.database).await.expect("read");
    assert_eq!(plans.keys().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(["big's"]));
    assert_eq!(plans["big's"], limits);
    let error = ground.server.set_plan_limits(&ground.database, "smb", &[limit("users", u64::MAX, Policy::Hard)]).await;
    assert!(error.expect_err("too much").to_string().contains("more than can be counted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn repeatable_read_fails_cleanly_when_another_was_faster() {
    let (ground, guest, client) = ground().await;
    client.batch_execute("SELECT record_usage('users', 1, 'x')").await.expect("a first count");
    let other = ground.client(&guest.login).await;
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.expect("a snapshot");
    other.batch_execute("SELECT record_usage('users', 1, 'x')").await.expect("faster");
    assert_eq!(refused(&client, "SELECT record_usage('users', 1, 'x')").await, "40001");
    client.batch_execute("ROLLBACK").await.expect("again");
    assert_eq!(one(&client, "SELECT record_usage('users', 1, 'x')").await, "3");
}
