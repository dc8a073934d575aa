//! `GET /v1/tenants/NAME/usage`: what is read, and who may.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tenantry::web::UsageReading;

use super::ground::{
    Ground, Reply, ago, counted, eventually, let_get, own_server, plain, relay, settings, tenant_id, token_for, with,
    workload,
};

/// The token of a billing job that may read every tenant.
async fn billing() -> String {
    let_get("billing", "invoicer", &[]).await;
    token_for("billing", "invoicer", "tenantry").await
}

/// Reads until the reader's right is known: the authorizer hears of it by a watch of its own.
async fn allowed(ground: &Ground, token: &str, name: &str) -> Reply {
    let answer = eventually(async || {
        let reply = ground.usage(Some(token), name).await;
        (reply.status != 403).then_some(reply)
    });
    answer.await.expect("the right is known")
}

fn name_of(id: &str) -> String {
    format!("name-{}", &id[2..])
}

fn read(reply: &Reply) -> UsageReading {
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.head.contains("\r\ncache-control: no-store"), "{reply:?}");
    serde_json::from_value(reply.json()).unwrap_or_else(|error| panic!("{error}: {reply:?}"))
}

/// The current counts, as `meter value`.
fn counts(reading: &UsageReading) -> Vec<String> {
    let usage = reading.usage.as_ref().expect("usage");
    usage.meters.iter().map(|meter| format!("{} {}", meter.name, meter.display)).collect()
}

fn mark(tenant: &str, sequence: i64, value: i64) -> Value {
    let mark = json!({"meter": "users", "epoch": 1, "sequence": sequence, "value": value});
    let event = with(counted("main", tenant, sequence, 1, value), "/data", mark);
    let event = with(event, "/time", json!(ago(0).to_string()));
    with(with(event, "/id", json!(format!("mark-{tenant}-{sequence}"))), "/type", json!("io.tenantry.mark.v1"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_read_at_once() {
    let ground = Ground::new().await;
    let namespace = "tenant-fresh";
    let (relay, own, billing) = (relay("main").await, workload(namespace).await, billing().await);
    let tenant = ground.tenant(&["main"], Some(namespace)).await;
    let name = name_of(&tenant);
    let first = read(&allowed(&ground, &billing, &name).await);
    assert_eq!(
        (first.tenant.as_str(), first.id.as_str(), first.gone_at.as_ref()),
        (name.as_str(), tenant.as_str(), None)
    );
    assert_eq!(counts(&first), ["exports 0", "mails 0", "users 0"]);
    for value in 1..=20 {
        ground.batch(&relay, &[counted("main", &tenant, value, 1, value)]).await.took(200, 1, 0, 0);
        ground.batch(&own, &[plain(&value.to_string(), 2)]).await.took(200, 1, 0, 0);
        for token in [&billing, &own] {
            let reading = read(&ground.usage(Some(token), &name).await);
            assert_eq!(
                counts(&reading),
                [format!("exports {}", 2 * value), "mails 0".into(), format!("users {value}")]
            );
        }
    }
    // Nothing says yet that this is all.
    let users = |reading: &UsageReading| reading.usage.as_ref().expect("usage").meters[2].clone();
    let reading = read(&ground.usage(Some(&billing), &name).await);
    assert!(!users(&reading).complete);
    assert_eq!(
        (reading.conditions[0].status.as_str(), reading.conditions[0].reason.as_str()),
        ("Unknown", "NotReported")
    );
    ground.batch(&relay, &[mark(&tenant, 20, 20)]).await.took(200, 1, 0, 0);
    let reading = read(&ground.usage(Some(&billing), &name).await);
    let users = users(&reading);
    assert_eq!((users.current, users.peak, users.limit, users.complete), (20, Some(20), None, true));
    assert!(users.average.is_some());
    let period = reading.usage.expect("usage").period;
    assert!(period.start.0 <= ago(0) && ago(0) < period.end.0, "{period:?}");
    assert_eq!(ground.metric("access_reviews_total{result=\"failed\"}"), 0.0);
    assert_eq!(ground.metric("access_reviews_total{result=\"allowed\"}"), 1.0, "it is remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_period_has_what_was_used_in_it() {
    let ground = Ground::new().await;
    let (relay, billing) = (relay("main").await, billing().await);
    let tenant = ground.tenant(&["main"], None).await;
    let name = name_of(&tenant);
    let now = ago(0);
    let before = read(&allowed(&ground, &billing, &name).await).usage.expect("usage").period;
    // The last second of the period before.
    let last = before.start.0 - jiff::SignedDuration::from_secs(1);
    let event = with(counted("main", &tenant, 1, 7, 7), "/time", json!(last.to_string()));
    ground.batch(&relay, &[event, mark(&tenant, 1, 7)]).await.took(200, 2, 0, 0);
    let closed = ground.ledger.close_periods(now, Duration::from_secs(72 * 3_600)).await.expect("closed");
    assert_eq!(closed, std::slice::from_ref(&tenant));
    let reading = read(&ground.usage(Some(&billing), &name).await);
    let [closed] = &reading.history[..] else { panic!("one closed period: {reading:?}") };
    // Nobody can prove how much of exports, which is counted over HTTP, there was: it has an entry too.
    assert_eq!((closed.end.0, closed.estimated), (before.start.0, Some(true)));
    let users = closed.meters.iter().find(|meter| meter.name == "users").expect("users");
    assert_eq!((users.closing, users.peak, users.used), (Some(7), Some(7), None));
    assert_eq!(counts(&reading), ["exports 0", "mails 0", "users 7"]);
    // It is gone: what it used is still there for its last invoice.
    ground.ledger.depart(std::slice::from_ref(&tenant)).await.expect("gone");
    let after = read(&ground.usage(Some(&billing), &name).await);
    assert!(after.gone_at.is_some_and(|at| at.0.as_second() >= now.as_second()));
    assert_eq!((after.history, after.id), (reading.history, tenant));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_with_one_name_the_one_that_is_there_is_read() {
    let ground = Ground::new().await;
    let (old, billing) = (ground.tenant(&["main"], None).await, billing().await);
    let name = name_of(&old);
    assert_eq!(read(&allowed(&ground, &billing, &name).await).id, old);
    ground.ledger.depart(std::slice::from_ref(&old)).await.expect("gone");
    let new = tenant_id();
    ground.register_named(&new, &name, &["main"], None).await;
    let reading = read(&ground.usage(Some(&billing), &name).await);
    assert_eq!((reading.id, reading.gone_at), (new, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_get_a_tenant_reads_it_and_nobody_else() {
    let ground = Ground::new().await;
    let (tenant, other) = (ground.tenant(&["main"], None).await, ground.tenant(&["main"], None).await);
    let (name, other) = (name_of(&tenant), name_of(&other));
    let_get("support", "desk", &[&name, "nobody"]).await;
    let (desk, beside) =
        (token_for("support", "desk", "tenantry").await, token_for("support", "another", "tenantry").await);
    read(&allowed(&ground, &desk, &name).await);
    ground.usage(Some(&desk), &other).await.problem(403, "Forbidden");
    ground.usage(Some(&beside), &name).await.problem(403, "Forbidden");
    // A relay may send for it, and read nothing.
    ground.usage(Some(&relay("main").await), &name).await.problem(403, "Forbidden");
    // Whether there is one is told to those alone who may read it.
    ground.usage(Some(&desk), "nobody").await.problem(404, "UnknownTenant");
    ground.usage(Some(&desk), "somebody").await.problem(403, "Forbidden");
    for impossible in ["No-Name", "a%2Fb", "%ff", "a_b"] {
        ground.usage(Some(&desk), impossible).await.problem(400, "Malformed");
        ground.usage(None, impossible).await.problem(401, "NoToken");
    }
    // A token for the API server itself is not for us, whatever its user may.
    let foreign = token_for("support", "desk", "").await;
    let reply = ground.usage(Some(&foreign), &name).await;
    reply.problem(401, "BadToken");
    assert!(reply.head.contains("\r\nwww-authenticate: bearer"), "{reply:?}");
    assert_eq!(ground.metric("ingest_denied_total{reason=\"BadToken\"}"), 1.0);
    assert_eq!(ground.metric("ingest_denied_total{reason=\"NoToken\"}"), 4.0);
    assert!(ground.metric("ingest_denied_total{reason=\"Forbidden\"}") >= 4.0);
    assert_eq!(ground.metric("ingest_requests_total{code=\"404\"}"), 1.0);
    assert_eq!(ground.metric("ingest_requests_total{code=\"200\"}"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_reads_its_own_tenant_alone() {
    let ground = Ground::new().await;
    let own = workload("tenant-reads-own").await;
    let tenant = ground.tenant(&["main"], Some("tenant-reads-own")).await;
    let neighbour = ground.tenant(&["main"], Some("tenant-reads-neighbour")).await;
    let pooled = ground.tenant(&["main"], None).await;
    assert_eq!(read(&ground.usage(Some(&own), &name_of(&tenant)).await).id, tenant);
    for foreign in [neighbour, pooled, "t_nobody".to_owned()] {
        ground.usage(Some(&own), &name_of(&foreign)).await.problem(403, "Forbidden");
    }
    assert_eq!(ground.metric("access_reviews_total{result=\"denied\"}"), 3.0, "of its own nobody was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_away_is_said_and_come_back_to() {
    let postgres = own_server().await;
    let mut quick = settings();
    quick.facts_patience = Duration::from_millis(500);
    let ground = Ground::with(&postgres, quick).await;
    let (billing, tenant) = (billing().await, ground.tenant(&["main"], None).await);
    let name = name_of(&tenant);
    read(&allowed(&ground, &billing, &name).await);
    postgres.freeze();
    ground.usage(Some(&billing), &name).await.problem(503, "LedgerAway");
    postgres.thaw();
    let back = eventually(async || (ground.usage(Some(&billing), &name).await.status == 200).then_some(()));
    back.await.expect("the ledger is back");
    postgres.kill();
    ground.usage(Some(&billing), &name).await.problem(503, "LedgerAway");
    postgres.start_again().expect("it starts");
    let back = eventually(async || (ground.usage(Some(&billing), &name).await.status == 200).then_some(()));
    back.await.expect("the ledger is back");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_leave_room_for_each_other_and_for_events() {
    let mut narrow = settings();
    (narrow.caller_requests, narrow.reads) = (4, 1);
    let postgres = own_server().await;
    let ground = Ground::with(&postgres, narrow).await;
    let (relay, billing, tenant) = (relay("main").await, billing().await, ground.tenant(&["main"], None).await);
    let name = name_of(&tenant);
    read(&allowed(&ground, &billing, &name).await);
    ground.batch(&relay, &[counted("main", &tenant, 1, 1, 1)]).await.took(200, 1, 0, 0);
    // While the ledger stands still all of them are under way, and one more is too much.
    postgres.freeze();
    let reads = join_all((0..5).map(|_| ground.usage(Some(&billing), &name)));
    let answers = reads.await;
    postgres.thaw();
    let statuses = |status: u16| answers.iter().filter(|reply| reply.status == status).count();
    assert_eq!((statuses(429), statuses(503)), (1, 4), "{answers:?}");
    answers.iter().find(|reply| reply.status == 429).expect("one").problem(429, "TooMuchUnderWay");
    let back = eventually(async || (ground.usage(Some(&billing), &name).await.status == 200).then_some(()));
    back.await.expect("its share is given back");
    ground.batch(&relay, &[counted("main", &tenant, 2, 1, 2)]).await.took(200, 1, 0, 0);
}
