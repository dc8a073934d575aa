//! Before a tenant's data is dropped, what it counted and nobody carried is in the ledger.

use devcluster::{Options, Postgres, PostgresOptions};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, Client, api::ListParams};
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    dedicated::dedicated,
    ground::{Ground, credentials, delete_tenant, eventually, merge, ready_tenant},
    steps::plan,
    usage::ledger::{ledger_on, operator},
    verbs::{id, log_in, place, rows, superuser, superuser_of},
};

async fn counts(client: &Client, tenant: &Tenant, times: u32) {
    let session = log_in(&credentials(client, tenant).await).await.expect("a login");
    for _ in 0..times {
        session.simple_query("SELECT record_usage('users', 1, 'x')").await.expect("counted");
    }
}

/// How many events of a tenant the ledger has, their sum, and how many of them differ.
async fn in_ledger(ledger: &tokio_postgres::Client, tenant: &Tenant) -> String {
    let sql = format!(
        "SELECT concat_ws(' ', count(*), sum(delta), count(DISTINCT sequence)) FROM ledger.event WHERE tenant = '{}'",
        id(tenant)
    );
    rows(ledger, &sql).await.remove(0)
}

/// A PostgreSQL beside the ground's, which can be away alone.
async fn another_server() -> Postgres {
    let starting = tokio::task::spawn_blocking(|| Postgres::start(PostgresOptions::default()));
    starting.await.expect("a thread").expect("a server of its own")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_carried_is_in_the_ledger_before_the_data_is_dropped() {
    let ground = Ground::start(Options::default()).await;
    let postgres = another_server().await;
    let url = ledger_on(&postgres).await;
    let _operator = operator(&ground, &url, &["--retention-interval", "1s"]);
    ground.examples().await;
    let client = ground.client.clone();
    at_once(&ground, &client, &postgres).await;
    when_the_retention_ends(&ground, &client, &postgres).await;
}

/// Tenants that nothing is to be kept of.
async fn at_once(ground: &Ground, client: &Client, postgres: &Postgres) {
    let drops = |more: Value| {
        let mut tenant = json!({"spec": {"deletionPolicy": "Delete"}});
        merge(&mut tenant, more);
        tenant
    };
    let pooled = ready_tenant(client, "saved-p", drops(json!({}))).await;
    let alone = ready_tenant(client, "saved-d", drops(dedicated("crm", json!({})))).await;
    counts(client, &pooled, 4).await;
    counts(client, &alone, 3).await;
    refuse_one(ground, &alone).await;
    for name in ["saved-p", "saved-d"] {
        delete_tenant(client, name).await;
    }
    let ledger = superuser_of(postgres, "ledger").await;
    for (tenant, expected) in [(&pooled, 4), (&alone, 3)] {
        assert_eq!(in_ledger(&ledger, tenant).await, format!("{expected} {expected} {expected}"));
    }
    assert!(databases(ground, &alone).await.is_empty(), "its database is gone");
}

/// One event was refused for good; it is no less counted.
async fn refuse_one(ground: &Ground, tenant: &Tenant) {
    let dead = format!(
        "UPDATE tenantry.outbox SET dead_at = now(), last_error = 'refused' WHERE sequence = 2 AND tenant = '{}'",
        id(tenant)
    );
    superuser(ground, &place(tenant).0).await.batch_execute(&dead).await.expect("a dead letter");
}

async fn databases(ground: &Ground, tenant: &Tenant) -> Vec<String> {
    let sql = format!("SELECT datname::text FROM pg_database WHERE datname = '{}'", place(tenant).0);
    rows(&superuser(ground, "postgres").await, &sql).await
}

/// Tenants whose data is kept for a while, which is over while the ledger is away.
async fn when_the_retention_ends(ground: &Ground, client: &Client, postgres: &Postgres) {
    plan(client, "brief", json!({"retention": "1s", "allowedTiers": ["pooled", "dedicated"]})).await;
    let spec = json!({"spec": {"plan": "brief"}});
    let pooled = ready_tenant(client, "kept-p", spec.clone()).await;
    let alone = ready_tenant(client, "kept-d", dedicated("crm", spec)).await;
    let both = [(&pooled, 5), (&alone, 3)];
    for (tenant, times) in both {
        counts(client, tenant, times).await;
    }
    refuse_one(ground, &pooled).await;
    postgres.stop();
    // To be kept, nothing has to be saved yet: they go.
    for name in ["kept-p", "kept-d"] {
        delete_tenant(client, name).await;
    }
    // Their time is over, which the server says, since they are gone.
    for (tenant, times) in both {
        let name = tenant.metadata.name.as_deref().expect("a name");
        let text = said_of_server(client, "DataNotDropped", name).await;
        assert!(text.contains("wait to be saved"), "{text}");
        let session = superuser(ground, &place(tenant).0).await;
        let kept = format!(
            "SELECT concat_ws(' ', t.state, count(o.sequence), (SELECT count(*) FROM pg_namespace WHERE nspname ~ t.id))
               FROM tenantry.tenant t LEFT JOIN tenantry.outbox o ON o.tenant = t.id AND o.acked_at IS NULL
              WHERE t.id = '{}' GROUP BY t.id",
            id(tenant)
        );
        assert_eq!(rows(&session, &kept).await, [format!("Retained {times} 1")], "all of it is there");
    }

    postgres.start_again().expect("the ledger is back");
    for (tenant, times) in both {
        said_of_server(client, "DataDropped", tenant.metadata.name.as_deref().expect("a name")).await;
        let ledger = superuser_of(postgres, "ledger").await;
        assert_eq!(in_ledger(&ledger, tenant).await, format!("{times} {times} {times}"));
    }
    let session = superuser(ground, &place(&pooled).0).await;
    let left = format!(
        "SELECT 'record' FROM tenantry.tenant WHERE id = '{0}' UNION ALL
         SELECT nspname::text FROM pg_namespace WHERE nspname ~ '{0}'",
        id(&pooled)
    );
    let gone = eventually(async || rows(&session, &left).await.is_empty().then_some(())).await;
    assert!(gone.is_some(), "left: {:?}", rows(&session, &left).await);
    let gone = eventually(async || databases(ground, &alone).await.is_empty().then_some(())).await;
    assert!(gone.is_some(), "its database stays");
}

/// Waits for an Event of the DatabaseServer about a Tenant; what it says.
async fn said_of_server(client: &Client, reason: &str, tenant: &str) -> String {
    let events = Api::<Event>::namespaced(client.clone(), "default");
    let about = format!("Tenant {tenant} ");
    let heard = eventually(async || {
        let all = events.list(&ListParams::default()).await.expect("Events").items;
        all.into_iter().find_map(|event| {
            let of_server = event.regarding.is_some_and(|it| it.kind.as_deref() == Some("DatabaseServer"));
            (of_server && event.reason.as_deref() == Some(reason))
                .then_some(event.note?)
                .filter(|it| it.contains(&about))
        })
    });
    heard.await.unwrap_or_else(|| panic!("no Event {reason} of {tenant}"))
}
