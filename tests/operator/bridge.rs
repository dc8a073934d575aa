//! Tenants of tier bridge: compute and a namespace of their own, a schema in a database that
//! they share.

use std::collections::BTreeSet;

use kube::Api;
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    ground::{apply, await_tenant, condition, credentials, delete_tenant, is, merge, ready_tenant, shared, tenant},
    steps::calm,
    verbs::{application, id, log_in, named, of, ours, patch, place, read, rows, superuser},
};

/// What a tenant of tier bridge has beside `more`.
pub fn bridge(application: &str, more: Value) -> Value {
    let mut spec = of(application, json!({"spec": {"tier": "bridge"}}));
    merge(&mut spec, more);
    spec
}

/// A login of one tenant sees nothing of another one in the same database, and can't enter
/// any other database of the operator's.
pub async fn assert_isolated(client: &kube::Client, one: &Tenant, other: &Tenant) {
    let session = log_in(&credentials(client, one).await).await.expect("the login in the Secret works");
    assert_eq!(rows(&session, "SELECT current_schema()::text").await, [id(one)]);
    let reached = session.query(&format!("SELECT * FROM {}.users", id(other)), &[]).await;
    assert!(reached.is_err(), "the users of {} are open to {}", id(other), id(one));
    let mut elsewhere = credentials(client, one).await;
    elsewhere.insert("database".into(), place(other).0);
    if place(one).0 != place(other).0 {
        let refused = log_in(&elsewhere).await.expect_err("the other one's database is closed");
        assert_eq!(refused.code().map(tokio_postgres::error::SqlState::code), Some("42501"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bridge_tenants_share_a_database_and_nothing_else() {
    let (ground, client) = shared().await;
    application(&client, "across", json!({})).await;
    let first = ready_tenant(&client, "across-a", bridge("across", json!({}))).await;
    let second = ready_tenant(&client, "across-b", bridge("across", json!({}))).await;
    for (tenant, name) in [(&first, "across-a"), (&second, "across-b")] {
        let namespace = format!("tenant-{name}");
        assert_eq!(place(tenant), ("bridge_across_1".to_owned(), namespace.clone()));
        let status = tenant.status.as_ref().expect("a status");
        assert_eq!((status.pool.as_deref(), status.tier), (None, Some(tenantry::api::Tier::Bridge)));
        let database = status.database.as_ref().expect("a database");
        let reference = database.secret_ref.as_ref().expect("a Secret");
        assert_eq!(
            (reference.namespace.as_str(), reference.name.as_str()),
            (&*namespace, &*format!("{name}-database"))
        );
        assert_eq!((database.schema.as_str(), database.server.as_str()), (&*id(tenant), "main"));
        for kind in ["Placed", "NamespaceReady", "DatabaseReady", "CredentialsReady", "Migrated", "WorkloadReady"] {
            assert!(is(tenant, kind, "True"), "{kind}: {:#?}", status.conditions);
        }
        // The pods mount the tenant's own Secret, where the agent would have put it.
        let web = named("apps/v1", "Deployment", Some(&namespace), "web");
        let web = read(&client, &web).await.expect("a Deployment").to_string();
        assert!(web.contains(&format!("{name}-database")) && web.contains("/var/run/tenantry"), "{web}");
        assert!(!web.contains("tenantry-agent"), "no agent runs beside one tenant: {web}");
        // And the route leads there.
        let route = named("gateway.networking.k8s.io/v1", "HTTPRoute", Some(&namespace), name);
        let route = read(&client, &route).await.expect("a route");
        assert_eq!(route["spec"]["hostnames"], json!([format!("{name}.across.example.com")]));
    }
    assert_isolated(&client, &first, &second).await;
    assert_isolated(&client, &second, &first).await;
    let pooled = ready_tenant(&client, "across-c", of("across", json!({}))).await;
    assert_isolated(&client, &first, &pooled).await;
    assert_isolated(&client, &pooled, &first).await;
    let marks = "SELECT kind || ' ' || object FROM tenantry.database";
    assert_eq!(rows(&superuser(ground, "bridge_across_1").await, marks).await, ["Bridge across"]);
}

#[tokio::test]
async fn bridge_databases_fill_up_one_after_the_other() {
    let ((ground, _), client) = calm().await;
    let capacity = json!({"databases": 2, "schemasPerDatabase": 2});
    ground.server(&client, "narrow", json!({"capacity": capacity})).await;
    application(&client, "planks", json!({"database": {"bridge": {"servers": ["narrow"]}}})).await;
    let names: Vec<String> = (0..5).map(|number| format!("plank-{number}")).collect();
    for name in &names {
        apply(&client, &tenant(name, bridge("planks", json!({})))).await.expect("a Tenant");
    }
    // They are chosen for at the same time, and nobody is placed beyond what there is room for.
    let tenants = Api::<Tenant>::all(client.clone());
    let placed = super::ground::eventually(async || {
        let mut placed = Vec::new();
        for name in &names {
            let tenant = tenants.get(name).await.expect("a Tenant");
            match is(&tenant, "Ready", "True") {
                true => placed.push((name.clone(), place(&tenant).0)),
                false if is(&tenant, "Placed", "False") => {}
                false => return None,
            }
        }
        (placed.len() == 4).then_some(placed)
    })
    .await
    .expect("four of five are Ready, and one waits");
    let mut databases: Vec<&str> = placed.iter().map(|(_, database)| database.as_str()).collect();
    databases.sort_unstable();
    assert_eq!(databases, ["bridge_planks_1", "bridge_planks_1", "bridge_planks_2", "bridge_planks_2"]);
    let ready: BTreeSet<&String> = placed.iter().map(|(name, _)| name).collect();
    let waits = names.iter().find(|name| !ready.contains(name)).expect("one waits");
    let waiting = await_tenant(&client, waits, "waiting", |tenant| is(tenant, "Placed", "False")).await;
    let conditions = &waiting.status.as_ref().expect("a status").conditions;
    let message = &condition(conditions, "Placed").expect("Placed").message;
    for part in ["2 bridge databases are full", "DatabaseServer narrow has 2 of 2 databases"] {
        assert!(message.contains(part), "{message}");
    }
    // What a deleted tenant leaves keeps its room until it is dropped.
    delete_tenant(&client, &placed[0].0).await;
    patch(&client, &ours("Tenant", waits), &json!({"spec": {"displayName": "Waits"}})).await;
    await_tenant(&client, waits, "still waiting", |tenant| is(tenant, "Placed", "False")).await;
    patch(&client, &ours("Tenant", &placed[1].0), &json!({"spec": {"deletionPolicy": "Delete"}})).await;
    delete_tenant(&client, &placed[1].0).await;
    let tenant = await_tenant(&client, waits, "Ready", |tenant| is(tenant, "Ready", "True")).await;
    assert_eq!(place(&tenant).0, placed[1].1);
}
