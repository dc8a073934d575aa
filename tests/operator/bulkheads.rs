//! One server stands still (its connections open, nothing answered) while tenants of another are
//! made: they become Ready, what the frozen one holds is bounded, and its tenants come back.
//! How much slower the others are is measured by `make bench`.

use devcluster::{Options, Postgres, PostgresOptions};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use serde_json::json;

use super::{
    ground::{Ground, NAMESPACE, Operator, apply, await_tenant, eventually, is, secret, tenant},
    steps::metric,
    verbs::{application, await_condition, of, ours, patch},
};

/// Tenants of the server that stands still: more than there are places for reconciles.
const FROZEN: usize = 60;
/// Tenants of the other one, made meanwhile.
const LIVELY: usize = 25;
/// The operator's reconciles at a time; half of them may be at work on one server.
const CONCURRENCY: u64 = 16;

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

async fn make(client: &Client, names: &[String], application: &str) {
    for name in names {
        apply(client, &tenant(name, of(application, json!({})))).await.expect("a Tenant");
    }
}

async fn all_ready(client: &Client, names: &[String]) {
    join_all(names.iter().map(|name| await_tenant(client, name, "Ready", |tenant| is(tenant, "Ready", "True")))).await;
}

/// A DatabaseServer that is another PostgreSQL than the ground's, and an Application on it.
pub async fn elsewhere(ground: &Ground, name: &str, postgres: &Postgres) {
    let client = &ground.client;
    let way = json!({"admin": {"host": postgres.host(), "port": postgres.port()}});
    ground.server(client, name, way).await;
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let admin = postgres.admin();
    secret(&secrets, &format!("{name}-admin"), &[("username", &admin.user), ("password", &admin.password)]).await;
    secret(&secrets, &format!("{name}-ca"), &[("ca.crt", postgres.ca_pem())]).await;
    application(client, name, json!({"database": {"pooled": {"servers": [name]}}})).await;
}

/// Looks at what a server holds until `done`; returns the most of it: connections, reconciles.
async fn most_held(operator: &Operator, server: &str, done: impl Future<Output = ()>) -> (u64, u64) {
    let most = std::sync::Mutex::new((0, 0));
    let look = eventually(async || {
        let connections = metric(operator, "tenantry_database_connections", server);
        let reconciles = metric(operator, "tenantry_database_reconciles_running", server);
        let mut most = most.lock().expect("no panic");
        *most = (most.0.max(connections), most.1.max(reconciles));
        None::<()>
    });
    tokio::select! {
        () = done => {}
        _ = look => panic!("the others are not done in time"),
    }
    *most.lock().expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_holds_up_nobody_elses_tenants() {
    let ground = Ground::start(Options::default()).await;
    let client = &ground.client;
    let postgres = Postgres::start(PostgresOptions::default()).expect("a second server");
    let concurrency = CONCURRENCY.to_string();
    let operator = ground.operator(&["--concurrency", &concurrency, "--health-interval", "1s"]);
    ground.examples().await;
    elsewhere(&ground, "frozen", &postgres).await;
    let (frozen, late, lively) = (names("frozen", FROZEN), names("late", 5), names("lively", LIVELY));
    make(client, &frozen, "frozen").await;
    make(client, &names("first", 1), "crm").await;
    all_ready(client, &frozen).await;
    all_ready(client, &names("first", 1)).await;

    postgres.freeze();
    // All of them want something of their server, and some want to be made there.
    let rotate = json!({"metadata": {"annotations": {"tenantry.io/rotate": "once"}}});
    for name in &frozen {
        patch(client, &ours("Tenant", name), &rotate).await;
    }
    make(client, &late, "frozen").await;
    make(client, &lively, "crm").await;
    let (connections, reconciles) = most_held(&operator, "frozen", all_ready(client, &lively)).await;
    println!("the frozen server held {connections} connections and {reconciles} reconciles at most");
    assert!(connections <= 12, "its own bound, and half as many for migrations");
    assert!((1..=CONCURRENCY / 2).contains(&reconciles), "{reconciles} reconciles were at work on it");
    await_condition(client, &ours("DatabaseServer", "frozen"), "Reachable", "False", "doesn't answer").await;
    let let_go = eventually(async || {
        let held = metric(&operator, "tenantry_database_connections", "frozen");
        let away = metric(&operator, "tenantry_database_breaker_open", "frozen");
        // One of them may be trying whether it is back.
        (held <= 1 && away == 1).then_some(())
    });
    assert!(let_go.await.is_some(), "nobody holds a connection to it");

    postgres.thaw();
    all_ready(client, &late).await;
    let rotated = |name: &String| {
        let name = name.clone();
        async move {
            await_tenant(client, &name, "rotated", |tenant| {
                let database = tenant.status.as_ref().and_then(|status| status.database.as_ref());
                database.and_then(|database| database.rotated.as_deref()) == Some("once") && is(tenant, "Ready", "True")
            })
            .await
        }
    };
    join_all(frozen.iter().map(rotated)).await;
}
