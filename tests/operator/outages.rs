//! The database server goes, the API server goes, the definition of Tenant goes: everything
//! waits, and goes on when they are back.

use devcluster::Options;
use futures::future::join_all;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, api::DeleteParams};
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    ground::{
        Ground, apply, await_tenant, credentials, delete_tenant, documents, eventually, is, ready_tenant, root, tenant,
    },
    verbs::{await_condition, id, log_in, named, ours, patch, place, read, rows, superuser},
};

fn finalizers(tenant: &Tenant) -> &[String] {
    tenant.metadata.finalizers.as_deref().unwrap_or_default()
}

async fn create_many(client: &Client, names: &[String]) {
    for name in names {
        apply(client, &tenant(name, json!({"spec": {"deletionPolicy": "Delete"}}))).await.expect("a Tenant");
    }
}

async fn all_ready(client: &Client, names: &[String]) {
    join_all(names.iter().map(|name| await_tenant(client, name, "Ready", |tenant| is(tenant, "Ready", "True")))).await;
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// Deletions wait while the database is away, and are done when it is back.
async fn a_deletion_waits_for_the_database(ground: &Ground) {
    let client = &ground.client;
    let dropped = ready_tenant(client, "dropped", json!({"spec": {"deletionPolicy": "Delete"}})).await;
    let kept = ready_tenant(client, "kept", json!({})).await;
    let session = log_in(&credentials(client, &dropped).await).await.expect("a session");
    session.query("SELECT record_usage('users', 1, 'somebody')", &[]).await.expect("counted");
    drop(session);
    ground.cluster.postgres().stop();
    let tenants = Api::<Tenant>::all(client.clone());
    for name in ["dropped", "kept"] {
        tenants.delete(name, &DeleteParams::default()).await.expect("a deletion");
    }
    for name in ["dropped", "kept"] {
        let message = await_condition(client, &ours("Tenant", name), "DatabaseReady", "False", "").await;
        assert!(message.contains("localhost") || message.contains("main"), "it says what it waits for: {message}");
        let waiting = await_tenant(client, name, "waiting", |tenant| is(tenant, "Ready", "False")).await;
        assert!(finalizers(&waiting).iter().any(|finalizer| finalizer == "tenantry.io/finalizer"));
    }
    // While it goes down, it says so itself; then nobody answers.
    await_condition(client, &ours("DatabaseServer", "main"), "Reachable", "False", "can't be reached").await;
    await_condition(client, &ours("Pool", "crm-1"), "DatabaseReady", "False", "main").await;
    ground.cluster.postgres().start_again().expect("the server starts again");
    for name in ["dropped", "kept"] {
        let gone = eventually(async || tenants.get_opt(name).await.expect("an answer").is_none().then_some(())).await;
        assert!(gone.is_some(), "{name} does not go: {:#?}", tenants.get(name).await);
    }
    await_condition(client, &ours("Pool", "crm-1"), "Ready", "True", "").await;
    let admin = superuser(ground, &place(&kept).0).await;
    let roles = |tenant: &Tenant| format!("SELECT rolname::text FROM pg_roles WHERE rolname ~ '{}'", id(tenant));
    assert_eq!(rows(&admin, &roles(&dropped)).await, [""; 0]);
    assert_eq!(rows(&admin, &roles(&kept)).await.len(), 5);
}

/// PostgreSQL crashes while tenants are made.
async fn a_crash_under_load(ground: &Ground) {
    let client = &ground.client;
    let crowd = names("crowd", 30);
    let (first, second) = crowd.split_at(15);
    create_many(client, first).await;
    ground.cluster.postgres().kill();
    create_many(client, second).await;
    ground.cluster.postgres().start_again().expect("the server starts again");
    all_ready(client, &crowd).await;
    for name in ["crowd-0", "crowd-29"] {
        let tenant = Api::<Tenant>::all(client.clone()).get(name).await.expect("a Tenant");
        log_in(&credentials(client, &tenant).await).await.expect("it works");
    }
}

/// The API server is killed while tenants are made and others are being deleted.
async fn the_api_server_is_away(ground: &Ground) {
    let client = &ground.client;
    let late = names("late", 10);
    create_many(client, &late).await;
    let tenants = Api::<Tenant>::all(client.clone());
    for name in names("crowd", 28) {
        tenants.delete(&name, &DeleteParams::default()).await.expect("a deletion");
    }
    ground.cluster.program("kube-apiserver").kill();
    ground.cluster.program("kube-apiserver").start_again().expect("it starts again");
    ground.cluster.await_api().await.expect("it answers");
    all_ready(client, &late).await;
    for name in names("crowd", 28) {
        let gone = eventually(async || tenants.get_opt(&name).await.ok()?.is_none().then_some(())).await;
        assert!(gone.is_some(), "{name} does not go");
    }
    // Watches work on as before.
    let secret = named("v1", "Secret", Some("pool-crm-1"), "late-3-database");
    super::verbs::delete(client, &secret).await;
    assert!(eventually(async || read(client, &secret).await).await.is_some(), "a deleted Secret comes back");
    ready_tenant(client, "afterwards", json!({})).await;
}

/// Once what it counted was sent, the record of a dropped tenant goes as well.
async fn a_record_goes_once_its_events_were_sent(ground: &Ground) {
    let admin = superuser(ground, "pool_crm_1").await;
    let dropped = "SELECT name FROM tenantry.tenant WHERE state = 'Dropped'";
    assert_eq!(rows(&admin, dropped).await, ["dropped"], "kept until then");
    let unsent = "SELECT count(*)::text FROM tenantry.outbox WHERE acked_at IS NULL";
    assert_eq!(rows(&admin, unsent).await, ["1"]);
    admin.execute("UPDATE tenantry.outbox SET acked_at = now() WHERE acked_at IS NULL", &[]).await.expect("sent");
    // A leader looks for what is due when it starts.
    let _operator = ground.operator(&["--health-interval", "1s"]);
    let gone = eventually(async || rows(&admin, dropped).await.is_empty().then_some(())).await;
    assert!(gone.is_some(), "the record stays");
    ready_tenant(&ground.client, "again", json!({})).await;
    the_definition_goes(ground, &admin).await;
}

/// The definition of Tenant is deleted, and all Tenants with it: their data stays, whatever
/// their policy; Tenants of the same names don't start empty.
async fn the_definition_goes(ground: &Ground, admin: &tokio_postgres::Client) {
    let client = &ground.client;
    let live = "SELECT name FROM tenantry.tenant WHERE state = 'Live' ORDER BY 1";
    let before = rows(admin, live).await;
    assert!(before.len() > 10, "{before:?}");
    let survivor = Api::<Tenant>::all(client.clone()).get("late-0").await.expect("a Tenant");
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let definition = "tenants.tenantry.io";
    definitions.delete(definition, &DeleteParams::default()).await.expect("a deletion");
    let gone =
        eventually(async || definitions.get_opt(definition).await.expect("an answer").is_none().then_some(())).await;
    assert!(gone.is_some(), "the definition does not go");
    assert_eq!(rows(admin, live).await, [""; 0]);
    let retained =
        "SELECT name FROM tenantry.tenant WHERE state = 'Retained' AND name NOT IN ('afterwards', 'kept') ORDER BY 1";
    assert_eq!(rows(admin, retained).await, before, "every Tenant was finalized as Retain");

    let definition = documents(&root().join("crds/tenants.tenantry.io.yaml")).remove(0);
    apply(client, &definition).await.expect("the definition");
    let made = eventually(async || apply(client, &tenant("late-0", json!({}))).await.ok()).await;
    assert!(made.is_some(), "Tenants can be made again");
    let uid = survivor.metadata.uid.as_deref().expect("a UID");
    let object = ours("Tenant", "late-0");
    await_condition(client, &object, "Stalled", "True", uid).await;
    patch(client, &object, &json!({"metadata": {"annotations": {"tenantry.io/restore-from": uid}}})).await;
    let back = await_tenant(client, "late-0", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    assert_eq!(id(&back), id(&survivor));
    ready_tenant(client, "fresh", Value::Object(serde_json::Map::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_waits_and_goes_on() {
    let ground = Ground::start(Options::default()).await;
    let operator = ground.operator(&["--health-interval", "1s"]);
    ground.examples().await;
    a_deletion_waits_for_the_database(&ground).await;
    a_crash_under_load(&ground).await;
    the_api_server_is_away(&ground).await;
    delete_tenant(&ground.client, "afterwards").await;
    operator.kill();
    a_record_goes_once_its_events_were_sent(&ground).await;
}
