//! Limits: none is passed by one, a change reaches everybody at once, and grace ends.

use std::collections::BTreeSet;

use tenantry::database::Policy;

use crate::support::{Ground, limit, one, refused, rows, settings};
use crate::usage::{detail, ground};

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
    let (code, detail) = crate::usage::detail(&client, "SELECT record_usage('users', 1, 'x')").await;
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
