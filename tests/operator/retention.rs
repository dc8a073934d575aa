//! What is kept of deleted tenants: until when, and what becomes of it, and of the databases it
//! was in, when its time is over.

use devcluster::Options;
use jiff::{SignedDuration, Timestamp};
use kube::{Client, api::DeleteParams};
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    bridge::bridge,
    dedicated::dedicated,
    ground::{Ground, Operator, credentials, delete_tenant, dynamic, eventually, ready_tenant},
    steps::plan,
    verbs::{application, id, log_in, of, ours, place, read, rows, superuser},
};

/// How often it is looked for what is due: as often as a test wants to see it.
const FLAGS: [&str; 4] = ["--retention-interval", "500ms", "--health-interval", "1s"];

/// Waits until the server has none of these: a database with its tenants' role, or what is a
/// tenant's.
async fn await_none(admin: &tokio_postgres::Client, pattern: &str) {
    let all = format!(
        "SELECT 'database ' || datname FROM pg_database WHERE datname ~ '{pattern}'
         UNION ALL SELECT 'role ' || rolname FROM pg_roles WHERE rolname ~ '{pattern}'"
    );
    let mut left = Vec::new();
    let none = eventually(async || {
        left = rows(admin, &all).await;
        left.is_empty().then_some(())
    });
    assert!(none.await.is_some(), "still there: {left:?}");
}

/// What is recorded of a tenant in a database, and what of its usage nobody has taken.
async fn recorded(session: &tokio_postgres::Client, tenant: &Tenant) -> Vec<String> {
    let id = id(tenant);
    let all = format!(
        "SELECT 'record ' || state FROM tenantry.tenant WHERE id = '{id}'
         UNION ALL SELECT concat_ws(' ', 'event', meter, value) FROM tenantry.outbox
                    WHERE tenant = '{id}' AND acked_at IS NULL AND dead_at IS NULL ORDER BY 1"
    );
    rows(session, &all).await
}

async fn await_recorded(session: &tokio_postgres::Client, tenant: &Tenant, wanted: &[&str]) {
    let mut last = Vec::new();
    let found = eventually(async || {
        last = recorded(session, tenant).await;
        (last == wanted).then_some(())
    });
    assert!(found.await.is_some(), "recorded is {last:?}, not {wanted:?}");
}

/// One usage event that nobody takes: there is no relay.
async fn count_one(client: &Client, tenant: &Tenant) {
    let session = log_in(&credentials(client, tenant).await).await.expect("the tenant logs in");
    session.query("SELECT record_usage('users', 1, 'one')", &[]).await.expect("counted");
}

/// Deletes what nothing uses any more, once its status says so, and waits until it is gone.
async fn delete_unused(client: &Client, object: &Value) {
    let name = object["metadata"]["name"].as_str().expect("a name");
    let gone = eventually(async || {
        let _ = dynamic(client, object).delete(name, &DeleteParams::default()).await;
        read(client, object).await.is_none().then_some(())
    });
    assert!(gone.await.is_some(), "{name} does not go: {:#?}", read(client, object).await);
}

async fn acknowledge(session: &tokio_postgres::Client, tenant: &Tenant) {
    let ack = format!("UPDATE tenantry.outbox SET acked_at = now() WHERE tenant = '{}'", id(tenant));
    session.batch_execute(&ack).await.expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_is_dropped_by_the_operator_that_runs() {
    let ground = Ground::start(Options::default()).await;
    let client = &ground.client;
    let operator = ground.operator(&FLAGS);
    ground.examples().await;
    kept_for_as_long_as_the_plan_says(&ground).await;
    dropped_when_due(&ground).await;
    a_pools_database_goes_after_its_pool(&ground, operator).await;
    let _operator = ground.operator(&FLAGS);
    a_shared_database_goes_after_its_application(&ground).await;
    // Only databases that something is for are left, and no other takes a place on the server.
    let admin = superuser(&ground, "postgres").await;
    let mut last = Default::default();
    let counted = eventually(async || {
        let databases = "SELECT count(*)::text FROM pg_database WHERE datdba = 'tenantry_owner'::regrole";
        let here = rows(&admin, databases).await.remove(0);
        let server = read(client, &ours("DatabaseServer", "main")).await.expect("a server");
        last = (here, server["status"]["databases"].to_string());
        (last.0 == last.1).then_some(())
    });
    assert!(counted.await.is_some(), "there are {} databases, and the status says {}", last.0, last.1);
}

async fn kept_for_as_long_as_the_plan_says(ground: &Ground) {
    let client = &ground.client;
    plan(client, "lasting", json!({"retention": "90m"})).await;
    let tenant = ready_tenant(client, "lasts", json!({"spec": {"plan": "lasting"}})).await;
    let before = Timestamp::now();
    delete_tenant(client, "lasts").await;
    let kept = SignedDuration::from_mins(90);
    let session = superuser(ground, &place(&tenant).0).await;
    let until = format!(
        "SELECT (extract(epoch FROM drop_after) * 1000000)::bigint::text FROM tenantry.tenant WHERE id = '{}'",
        id(&tenant)
    );
    let until: i64 = rows(&session, &until).await.remove(0).parse().expect("microseconds");
    let (earliest, latest) = ((before + kept).as_microsecond(), (Timestamp::now() + kept).as_microsecond());
    assert!((earliest..=latest).contains(&until), "{until} is not from {earliest} to {latest}");
    assert_eq!(recorded(&session, &tenant).await, ["record Retained"]);
}

async fn dropped_when_due(ground: &Ground) {
    let client = &ground.client;
    let tiers = json!(["pooled", "bridge", "dedicated"]);
    plan(client, "brief", json!({"retention": "1s", "allowedTiers": tiers})).await;
    let spec = json!({"spec": {"plan": "brief"}});
    let pooled = ready_tenant(client, "brief-pooled", spec.clone()).await;
    let own = ready_tenant(client, "brief-own", dedicated("crm", spec.clone())).await;
    let counted = ready_tenant(client, "brief-counted", dedicated("crm", spec)).await;
    count_one(client, &pooled).await;
    count_one(client, &counted).await;
    for name in ["brief-pooled", "brief-own", "brief-counted"] {
        delete_tenant(client, name).await;
    }
    let admin = superuser(ground, "postgres").await;
    // Of one that counted nothing, nothing at all is left.
    await_none(&admin, id(&own).trim_start_matches("t_")).await;
    // What nobody has acknowledged is kept, with the record that says whose it is.
    for tenant in [&pooled, &counted] {
        let session = superuser(ground, &place(tenant).0).await;
        await_recorded(&session, tenant, &["event users 1", "record Dropped"]).await;
        await_none(&admin, &format!("^{}", id(tenant))).await;
        acknowledge(&session, tenant).await;
        if tenant.metadata.name == pooled.metadata.name {
            await_recorded(&session, tenant, &[]).await;
        }
    }
    await_none(&admin, id(&counted).trim_start_matches("t_")).await;
    let pool = rows(&admin, &format!("SELECT datname FROM pg_database WHERE datname = '{}'", place(&pooled).0)).await;
    assert_eq!(pool, [place(&pooled).0], "a Pool that is there has its database");
}

/// The Pool goes while data is retained in its database, and the time comes later.
async fn a_pools_database_goes_after_its_pool(ground: &Ground, operator: Operator) {
    let client = &ground.client;
    application(client, "leaker", json!({})).await;
    let tenant = ready_tenant(client, "leaks", of("leaker", json!({}))).await;
    let database = place(&tenant).0;
    delete_tenant(client, "leaks").await;
    delete_unused(client, &ours("Pool", "leaker-1")).await;
    let session = superuser(ground, &database).await;
    assert_eq!(recorded(&session, &tenant).await, ["record Retained"], "its database stays, with the data");

    operator.kill();
    let due = "UPDATE tenantry.tenant SET drop_after = now() - interval '1 hour'";
    session.batch_execute(due).await.expect("its time is over");
    drop(session);
    let operator = ground.operator(&FLAGS);
    let admin = superuser(ground, "postgres").await;
    await_none(&admin, &format!("^{database}")).await;
    await_none(&admin, &format!("^{}", id(&tenant))).await;
    operator.kill();
}

async fn a_shared_database_goes_after_its_application(ground: &Ground) {
    let client = &ground.client;
    application(client, "bridged", json!({})).await;
    let spec = json!({"spec": {"deletionPolicy": "Delete"}});
    let tenant = ready_tenant(client, "bridges", bridge("bridged", spec.clone())).await;
    let database = place(&tenant).0;
    delete_tenant(client, "bridges").await;
    // While its Application is there, the next tenant finds it.
    let next = ready_tenant(client, "bridges-too", bridge("bridged", spec)).await;
    assert_eq!(place(&next).0, database);
    delete_tenant(client, "bridges-too").await;
    delete_unused(client, &ours("Application", "bridged")).await;
    await_none(&superuser(ground, "postgres").await, &format!("^{database}")).await;
}
