//! Before a tenant's data is dropped, what it counted and nobody carried is in the ledger.

use devcluster::Options;
use serde_json::{Value, json};
use tenantry::{api::Tenant, metering::ledger::Ledger};

use super::{
    dedicated::dedicated,
    ground::{Ground, credentials, delete_tenant, ready_tenant},
    verbs::{id, log_in, place, rows, superuser},
};

const LOGIN: &str = "ledger_operator";
const PASSWORD: &str = "a-password";

/// A ledger on the ground's own server; its URL as the operator has it.
async fn ledger(ground: &Ground) -> String {
    let postgres = ground.cluster.postgres();
    let admin = postgres.admin();
    let make = format!("CREATE DATABASE ledger OWNER {}", admin.user);
    superuser(ground, "postgres").await.batch_execute(&make).await.expect("a database");
    let owner = postgres.url(&admin.user, &admin.password, "ledger");
    Ledger::migrate(&owner, LOGIN, Some(PASSWORD)).await.expect("migrated");
    postgres.url(LOGIN, PASSWORD, "ledger")
}

async fn counts(client: &kube::Client, tenant: &Tenant, times: u32) {
    let session = log_in(&credentials(client, tenant).await).await.expect("a login");
    for _ in 0..times {
        session.simple_query("SELECT record_usage('users', 1, 'x')").await.expect("counted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_carried_is_in_the_ledger_before_the_data_is_dropped() {
    let ground = Ground::start(Options::default()).await;
    let url = ledger(&ground).await;
    let _operator =
        ground.operator(&["--ledger-url", &url, "--api-listen", "127.0.0.1:0", "--retention-interval", "1s"]);
    ground.examples().await;
    let client = ground.client.clone();
    let drops = |more: Value| {
        let mut tenant = json!({"spec": {"deletionPolicy": "Delete"}});
        super::ground::merge(&mut tenant, more);
        tenant
    };
    let pooled = ready_tenant(&client, "saved-p", drops(json!({}))).await;
    let alone = ready_tenant(&client, "saved-d", drops(dedicated("crm", json!({})))).await;
    counts(&client, &pooled, 4).await;
    counts(&client, &alone, 3).await;
    // One was refused for good; it is no less counted.
    let dead = "UPDATE tenantry.outbox SET dead_at = now(), last_error = 'refused' WHERE sequence = 2";
    superuser(&ground, &place(&alone).0).await.batch_execute(dead).await.expect("a dead letter");
    for name in ["saved-p", "saved-d"] {
        delete_tenant(&client, name).await;
    }
    let ledger = superuser(&ground, "ledger").await;
    for (tenant, expected) in [(&pooled, 4), (&alone, 3)] {
        let sql = format!(
            "SELECT count(*)::text || ' ' || sum(delta)::text || ' ' || count(DISTINCT sequence)::text FROM ledger.event WHERE tenant = '{}'",
            id(tenant)
        );
        assert_eq!(rows(&ledger, &sql).await, [format!("{expected} {expected} {expected}")]);
    }
    let database = format!("SELECT datname::text FROM pg_database WHERE datname = '{}'", place(&alone).0);
    assert!(rows(&ledger, &database).await.is_empty(), "its database is gone");
}
