//! What is amiss with usage, and what is not held up by it.

use devcluster::{Options, Postgres, PostgresOptions};
use serde_json::json;
use tenantry::metering::{
    event::{DeadEvents, OutboxReport},
    ledger::Outcome,
};

use super::{
    super::{
        ground::{Ground, await_tenant, eventually, ready_tenant},
        verbs::{await_condition, id, of, ours},
    },
    ledger::{Metered, Relay, counting, ledger_on, operator, shared},
    says, shows,
};

#[tokio::test(flavor = "multi_thread")]
async fn refused_events_show_on_the_tenant_and_on_its_server() {
    // A server of its own, so that no other test's tenants speak of it.
    let metered = Metered::start(&["--health-interval", "1s"]).await;
    let client = metered.ground.client.clone();
    counting(&client, "refused").await;
    let tenant = ready_tenant(&client, "refused", of("refused", json!({"spec": {"plan": "refused"}}))).await;
    let relay = Relay::of(&metered, &tenant).await;
    let server = ours("DatabaseServer", "main");
    await_condition(&client, &server, "UsageDelivered", "Unknown", "not said yet").await;
    let nothing = OutboxReport { waiting: 0, oldest: None, dead: Vec::new() };
    relay.reports(&nothing).await;
    await_condition(&client, &server, "UsageDelivered", "True", "gets into the ledger").await;

    let dead = vec![DeadEvents { tenant: id(&tenant), events: 2 }];
    relay.reports(&OutboxReport { dead, ..nothing.clone() }).await;
    let message = await_condition(&client, &server, "UsageDelivered", "False", "2 events").await;
    assert!(message.contains("deadletters list --server main"), "{message}");
    await_tenant(&client, "refused", "degraded", |tenant| {
        says(tenant, "MeteringDegraded").as_deref() == Some("True DeadLetters")
    })
    .await;
    let undelivered = "tenantry_usage_undelivered{server=\"main\"}";
    assert_eq!(metered.operator.metric(undelivered), Some(1.0));
    relay.reports(&nothing).await;
    await_tenant(&client, "refused", "well", |tenant| says(tenant, "MeteringDegraded").is_none()).await;
    await_condition(&client, &server, "UsageDelivered", "True", "gets into the ledger").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_begins_a_new_epoch_by_itself() {
    let (metered, client) = shared().await;
    counting(&client, "restored").await;
    let tenant = ready_tenant(&client, "restored", of("restored", json!({"spec": {"plan": "restored"}}))).await;
    let relay = Relay::of(metered, &tenant).await;
    let now = jiff::Timestamp::now();
    // The ledger has heard more than the database remembers, and then the same sequence again.
    assert_eq!(relay.says(now, "users", 1, 5, 5).await, Outcome::Accepted);
    assert_eq!(relay.says(now, "users", 2, 2, 7).await, Outcome::Accepted);
    shows(&client, "restored", "users", "7/10").await;
    assert_eq!(relay.says(now, "users", 2, 1, 6).await, Outcome::Restored);
    // The database, which counted nothing, says so in its new epoch.
    let carried = eventually(async || (relay.carries().await > 0).then_some(())).await;
    assert!(carried.is_some(), "no new epoch begins");
    let tenant = shows(&client, "restored", "users", "0/10").await;
    assert_ne!(says(&tenant, "UsageComplete").as_deref(), Some("False EventsMissing"));
    await_tenant(&client, "restored", "complete again", |tenant| {
        says(tenant, "UsageComplete").as_deref() == Some("True Complete")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_stands_still_holds_no_tenant_up() {
    let ground = Ground::start(Options { audit: true, ..Options::default() }).await;
    let postgres = tokio::task::spawn_blocking(|| Postgres::start(PostgresOptions::default()));
    let postgres = postgres.await.expect("a thread").expect("a server of its own");
    let url = ledger_on(&postgres).await;
    let running = operator(&ground, &url, &["--usage-interval", "10ms"]);
    ground.examples().await;
    let client = ground.client.clone();
    counting(&client, "frozen").await;
    let spec = || of("frozen", json!({"spec": {"plan": "frozen"}}));
    ready_tenant(&client, "before", spec()).await;
    shows(&client, "before", "users", "0/10").await;
    let away = async |wanted: f64| {
        let found = eventually(async || (running.metric("tenantry_ledger_away") == Some(wanted)).then_some(())).await;
        assert!(found.is_some(), "the metric doesn't become {wanted}");
    };
    away(0.0).await;
    postgres.freeze();
    ready_tenant(&client, "meanwhile", spec()).await;
    away(1.0).await;
    ready_tenant(&client, "still", spec()).await;
    assert_eq!(running.get("/readyz").map(|(code, _)| code), Some(200));
    postgres.thaw();
    away(0.0).await;
    for name in ["meanwhile", "still"] {
        shows(&client, name, "users", "0/10").await;
    }
}
