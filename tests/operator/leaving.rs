//! Tenants with a namespace of their own that are deleted: what goes, what stays, and what is
//! in the way.

use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, DynamicObject, ListParams},
    discovery::{Discovery, Scope, verbs::LIST},
};
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    bridge::bridge,
    dedicated::dedicated,
    events::said,
    ground::{apply, await_pool, create, credentials, delete_tenant, eventually, merge, ready_tenant, shared, tenant},
    steps::{healed, plan, stalled},
    verbs::{application, await_condition, delete, id, log_in, named, of, ours, patch, place, read, rows, superuser},
};

/// Puts a row into a tenant's own table.
async fn add_user(client: &Client, tenant: &Tenant, email: &str) {
    let session = log_in(&credentials(client, tenant).await).await.expect("the tenant logs in");
    session.execute("INSERT INTO users (email, name) VALUES ($1, 'A User')", &[&email]).await.expect("a row");
}

async fn users(client: &Client, tenant: &Tenant) -> Vec<String> {
    let session = log_in(&credentials(client, tenant).await).await.expect("the tenant logs in");
    rows(&session, "SELECT email FROM users ORDER BY 1").await
}

/// Every object of every kind that the cluster serves, in one namespace or with one label.
pub async fn objects(client: &Client, namespace: Option<&str>, selector: &str) -> Vec<String> {
    let discovery = Discovery::new(client.clone()).run().await.expect("the kinds that are served");
    let mut found = Vec::new();
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            let fits = namespace.is_none() || capabilities.scope == Scope::Namespaced;
            if !capabilities.supports_operation(LIST) || !fits {
                continue;
            }
            let api: Api<DynamicObject> = match namespace {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                None => Api::all_with(client.clone(), &resource),
            };
            let list = api.list(&ListParams::default().labels(selector)).await.unwrap_or_else(|error| {
                panic!("{}: {error}", resource.kind);
            });
            found.extend(list.items.into_iter().map(|object| format!("{} {}", resource.kind, object.name_any())));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Without what the cluster itself puts into each namespace, or says of what happened there.
fn of_people(objects: Vec<String>) -> Vec<String> {
    let own = ["ConfigMap kube-root-ca.crt", "ServiceAccount default"];
    objects.into_iter().filter(|object| !own.contains(&object.as_str()) && !object.starts_with("Event ")).collect()
}

fn claim(namespace: &str, name: &str) -> Value {
    let mut claim = named("v1", "PersistentVolumeClaim", Some(namespace), name);
    claim["spec"] = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    claim
}

async fn await_no_namespace(client: &Client, name: &str) {
    let namespace = named("v1", "Namespace", None, name);
    let gone = eventually(async || read(client, &namespace).await.is_none().then_some(())).await;
    assert!(gone.is_some(), "namespace {name} does not go: {:#?}", read(client, &namespace).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_bridge_and_dedicated_tenants_are_taken_back_with_their_rows() {
    let (ground, client) = shared().await;
    application(&client, "moving", json!({})).await;
    for (name, spec) in [("mover-b", bridge("moving", json!({}))), ("mover-d", dedicated("moving", json!({})))] {
        let first = ready_tenant(&client, name, spec.clone()).await;
        add_user(&client, &first, "one@mover.example").await;
        let old = credentials(&client, &first).await;
        let session = log_in(&old).await.expect("a session");
        let (database, namespace) = place(&first);
        delete_tenant(&client, name).await;
        // Nothing is left but the data, locked, before the Tenant is gone.
        assert!(session.query("SELECT 1", &[]).await.is_err() && log_in(&old).await.is_err(), "{name} is locked out");
        assert_eq!(read(&client, &named("v1", "Namespace", None, &namespace)).await, None, "its namespace is gone");
        assert_eq!(objects(&client, None, &format!("tenantry.io/tenant={name}")).await, [""; 0]);
        let admin = superuser(ground, &database).await;
        assert_eq!(rows(&admin, &format!("SELECT email FROM d_{}.users", id(&first))).await, ["one@mover.example"]);

        apply(&client, &tenant(name, spec)).await.expect("a Tenant");
        let uid = first.uid().expect("a UID");
        stalled(&client, name, "DataOfAnotherTenant", &[&uid]).await;
        assert_eq!(read(&client, &named("v1", "Namespace", None, &namespace)).await, None, "nothing is made meanwhile");
        let asked = json!({"metadata": {"annotations": {"tenantry.io/restore-from": uid}}});
        patch(&client, &ours("Tenant", name), &asked).await;
        let second = healed(&client, name).await;
        assert_eq!((id(&second), place(&second)), (id(&first), (database, namespace)));
        assert_eq!(users(&client, &second).await, ["one@mover.example"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_leaves_neither_schema_nor_database_and_neighbours_work_on() {
    let (ground, client) = shared().await;
    application(&client, "ending", json!({})).await;
    let policy = |spec: Value| {
        let mut spec = spec;
        merge(&mut spec, json!({"spec": {"deletionPolicy": "Delete"}}));
        spec
    };
    let shares = ready_tenant(&client, "ender-b", policy(bridge("ending", json!({})))).await;
    let neighbour = ready_tenant(&client, "ender-n", bridge("ending", json!({}))).await;
    let alone = ready_tenant(&client, "ender-d", policy(dedicated("ending", json!({})))).await;
    for tenant in [&shares, &neighbour, &alone] {
        add_user(&client, tenant, "one@ender.example").await;
    }
    let admin = superuser(ground, &place(&neighbour).0).await;
    // Somebody's own data in the namespace was to go as well: nothing of it is left.
    create(&client, &claim(&place(&shares).1, "cache")).await;
    for tenant in [&shares, &alone] {
        delete_tenant(&client, &tenant.name_any()).await;
        await_no_namespace(&client, &place(tenant).1).await;
        let left = format!(
            "SELECT 'role ' || rolname FROM pg_roles WHERE rolname ~ '{id}' OR rolname ~ '{database}_tenants'
             UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname ~ '{id}'
             UNION ALL SELECT 'record of ' || name FROM tenantry.tenant WHERE id = '{id}'",
            id = id(tenant),
            database = if place(tenant).0 == place(&neighbour).0 { "none".to_owned() } else { place(tenant).0 },
        );
        assert_eq!(rows(&admin, &left).await, [""; 0]);
    }
    let databases = format!("SELECT datname::text FROM pg_database WHERE datname = '{}'", place(&alone).0);
    assert_eq!(rows(&admin, &databases).await, [""; 0], "its database is dropped");
    assert_eq!(users(&client, &neighbour).await, ["one@ender.example"]);
}

/// The UIDs of objects that others made.
async fn uids(client: &Client, objects: &[&Value]) -> Vec<Value> {
    let mut uids = Vec::new();
    for object in objects {
        let found = read(client, object).await.unwrap_or_else(|| panic!("{object} is gone"));
        assert_eq!(found["metadata"]["deletionTimestamp"], Value::Null, "{object} is being deleted");
        uids.push(found["metadata"]["uid"].clone());
    }
    uids
}

/// Waits until nothing but what others made is in a namespace.
async fn cleared(client: &Client, namespace: &str, others: &[&str]) {
    let mut left = Vec::new();
    // The pods end a moment after their Deployments.
    let cleared = eventually(async || {
        left = of_people(objects(client, Some(namespace), "").await);
        (left == others).then_some(())
    })
    .await;
    assert!(cleared.is_some(), "more than that is left: {left:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_and_what_others_made_survive_retain_and_nothing_of_ours_stays_beside_them() {
    let (_, client) = shared().await;
    application(&client, "keeping", json!({})).await;
    for (name, spec) in [("hoarder", bridge("keeping", json!({}))), ("hoarder-d", dedicated("keeping", json!({})))] {
        let first = ready_tenant(&client, name, spec.clone()).await;
        add_user(&client, &first, "one@hoarder.example").await;
        let namespace = place(&first).1;
        let claim = claim(&namespace, "archive");
        create(&client, &claim).await;
        let mut notes = named("v1", "ConfigMap", Some(&namespace), "notes");
        notes["data"] = json!({"a": "b"});
        create(&client, &notes).await;
        let before = uids(&client, &[&claim, &notes]).await;
        let kept = async || {
            let kept = read(&client, &named("v1", "Namespace", None, &namespace)).await.expect("the namespace stays");
            let why = &kept["metadata"]["annotations"]["tenantry.io/kept-for"];
            assert_eq!(*why, json!("PersistentVolumeClaim archive, ConfigMap notes"));
            assert_eq!(uids(&client, &[&claim, &notes]).await, before, "what others made was not touched");
            cleared(&client, &namespace, &["ConfigMap notes", "PersistentVolumeClaim archive"]).await;
        };
        delete_tenant(&client, name).await;
        kept().await;
        let event = "Warning NamespaceKept".to_owned();
        let told = eventually(async || said(&client, &first).await.contains(&event).then_some(())).await;
        assert!(told.is_some(), "{:?}", said(&client, &first).await);

        // One that only waited for a word about the data takes nothing with it.
        let uid = first.uid().expect("a UID");
        let mut waits = spec.clone();
        merge(&mut waits, json!({"spec": {"deletionPolicy": "Delete"}}));
        apply(&client, &tenant(name, waits)).await.expect("a Tenant");
        stalled(&client, name, "DataOfAnotherTenant", &[&uid]).await;
        delete_tenant(&client, name).await;
        kept().await;
        // Nor does one that started empty in a pool.
        let mut empty = tenant(name, of("keeping", json!({"spec": {"tier": "pooled", "deletionPolicy": "Delete"}})));
        empty["metadata"]["annotations"] = json!({"tenantry.io/abandon": uid});
        apply(&client, &empty).await.expect("a Tenant");
        assert!(place(&healed(&client, name).await).1.starts_with("pool-keeping-"));
        delete_tenant(&client, name).await;
        kept().await;

        // It comes back to the same namespace.
        apply(&client, &tenant(name, spec)).await.expect("a Tenant");
        stalled(&client, name, "DataOfAnotherTenant", &[]).await;
        let asked = json!({"metadata": {"annotations": {"tenantry.io/restore-from": uid}}});
        patch(&client, &ours("Tenant", name), &asked).await;
        let second = healed(&client, name).await;
        assert_eq!(users(&client, &second).await, ["one@hoarder.example"]);
        assert_eq!(uids(&client, &[&claim, &notes]).await, before);
        let used = read(&client, &named("v1", "Namespace", None, &namespace)).await.expect("a namespace");
        assert_eq!(used["metadata"]["annotations"]["tenantry.io/kept-for"], Value::Null, "it is in use again");

        // Without them, it goes.
        delete(&client, &claim).await;
        delete(&client, &notes).await;
        delete_tenant(&client, name).await;
        await_no_namespace(&client, &namespace).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_somebody_took_away_keep_no_tenant_from_going() {
    let (_, client) = shared().await;
    application(&client, "stripped", json!({})).await;
    let first = ready_tenant(&client, "stripped", bridge("stripped", json!({}))).await;
    let (namespace, object) = (place(&first).1, ours("Tenant", "stripped"));
    create(&client, &claim(&namespace, "archive")).await;
    // A paused Tenant's rights don't come back at once.
    patch(&client, &object, &json!({"metadata": {"annotations": {"tenantry.io/paused": "true"}}})).await;
    delete(&client, &named("rbac.authorization.k8s.io/v1", "RoleBinding", Some(&namespace), "tenantry-namespace"))
        .await;
    Api::<Tenant>::all(client.clone()).delete("stripped", &DeleteParams::default()).await.expect("a deletion");
    patch(&client, &object, &json!({"metadata": {"annotations": {"tenantry.io/paused": null}}})).await;
    await_gone(&client, &object).await;
    cleared(&client, &namespace, &["PersistentVolumeClaim archive"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_tier_leaves_what_others_have_in_the_namespace() {
    let (ground, client) = shared().await;
    application(&client, "rooted", json!({})).await;
    plan(&client, "rooted", json!({"allowedTiers": ["pooled", "bridge"]})).await;
    // A database of somebody else's has the name: there are namespaces, and never any data.
    let admin = superuser(ground, "postgres").await;
    admin.batch_execute("CREATE DATABASE bridge_rooted_1").await.expect("a database");
    for name in ["rooted-a", "rooted-b"] {
        let spec = bridge("rooted", json!({"spec": {"plan": "rooted", "deletionPolicy": "Delete"}}));
        apply(&client, &tenant(name, spec)).await.expect("a Tenant");
        await_condition(&client, &ours("Tenant", name), "NamespaceReady", "True", "").await;
        await_condition(&client, &ours("Tenant", name), "DatabaseReady", "False", "bridge_rooted_1").await;
    }
    let claim = claim("tenant-rooted-a", "archive");
    create(&client, &claim).await;
    let before = uids(&client, &[&claim]).await;
    let mut map = named("v1", "ConfigMap", Some("tenant-rooted-b"), "somebodys");
    map["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "tenantry"});
    create(&client, &map).await;
    hold(&client, &map).await;
    for name in ["rooted-a", "rooted-b"] {
        patch(&client, &ours("Tenant", name), &json!({"spec": {"tier": "pooled"}})).await;
    }
    // What is in the way is said.
    await_condition(&client, &ours("Tenant", "rooted-b"), "Stalled", "True", HOLD).await;
    let_go(&client, &map).await;
    for name in ["rooted-a", "rooted-b"] {
        assert_eq!(place(&healed(&client, name).await).1, "pool-rooted-1");
    }
    await_no_namespace(&client, "tenant-rooted-b").await;
    cleared(&client, "tenant-rooted-a", &["PersistentVolumeClaim archive"]).await;
    delete_tenant(&client, "rooted-a").await;
    assert_eq!(uids(&client, &[&claim]).await, before);
    admin.batch_execute("DROP DATABASE bridge_rooted_1 WITH (FORCE)").await.expect("no database");
}

const HOLD: &str = "example.com/hold";

async fn hold(client: &Client, object: &Value) {
    let mut finalizers = read(client, object).await.expect("an object")["metadata"]["finalizers"].clone();
    match finalizers.as_array_mut() {
        Some(all) => all.push(HOLD.into()),
        None => finalizers = json!([HOLD]),
    }
    patch(client, object, &json!({"metadata": {"finalizers": finalizers}})).await;
}

async fn let_go(client: &Client, object: &Value) {
    let held = read(client, object).await.unwrap_or_else(|| panic!("the finalizer of {object} was removed"));
    let mut finalizers = held["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    assert!(finalizers.contains(&HOLD.into()), "it was removed: {finalizers:?}");
    finalizers.retain(|finalizer| *finalizer != HOLD);
    patch(client, object, &json!({"metadata": {"finalizers": finalizers}})).await;
}

async fn await_gone(client: &Client, object: &Value) {
    let gone = eventually(async || read(client, object).await.is_none().then_some(())).await;
    assert!(gone.is_some(), "{object} does not go: {:#?}", read(client, object).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_of_others_are_named_and_left() {
    let (_, client) = shared().await;
    application(&client, "holding", json!({})).await;
    let (pooled, own) = tokio::join!(
        ready_tenant(&client, "held-p", of("holding", json!({}))),
        ready_tenant(&client, "held-b", bridge("holding", json!({}))),
    );
    let route = named("gateway.networking.k8s.io/v1", "HTTPRoute", Some(&place(&pooled).1), "held-p");
    // In a namespace of a tenant's own, only what ends with the namespace can be in the way.
    let mut map = named("v1", "ConfigMap", Some(&place(&own).1), "somebodys");
    map["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "tenantry"});
    create(&client, &map).await;
    let objects = [ours("Tenant", "held-p"), ours("Tenant", "held-b")];
    for object in [&objects[0], &objects[1], &route, &map] {
        hold(&client, object).await;
    }
    let tenants = Api::<Tenant>::all(client.clone());
    for name in ["held-p", "held-b"] {
        tenants.delete(name, &DeleteParams::default()).await.expect("a deletion");
    }
    let says = await_condition(&client, &objects[0], "Ready", "False", HOLD).await;
    assert!(says.contains(&format!("HTTPRoute {}/held-p is held by finalizer", place(&pooled).1)), "{says}");
    await_condition(&client, &objects[0], "Stalled", "True", HOLD).await;
    let says = await_condition(&client, &objects[1], "Ready", "False", HOLD).await;
    assert!(says.contains(&place(&own).1) && says.contains("can't end"), "{says}");
    let_go(&client, &route).await;
    let_go(&client, &map).await;
    // Then nothing of ours is left, and the Tenants themselves say who holds them.
    for object in &objects {
        let says = await_condition(&client, object, "Ready", "False", "the Tenant is held by").await;
        assert!(says.contains(HOLD), "{says}");
        let left = read(&client, object).await.expect("a Tenant");
        assert_eq!(left["metadata"]["finalizers"], json!([HOLD]), "ours is gone");
        assert_eq!(left["status"]["database"], Value::Null, "it is nowhere any more");
    }
    await_no_namespace(&client, &place(&own).1).await;
    for object in &objects {
        let_go(&client, object).await;
        await_gone(&client, object).await;
    }
}

#[tokio::test]
async fn an_object_of_somebody_else_stays_when_the_tenant_of_its_name_goes() {
    let (_, client) = shared().await;
    application(&client, "lending", json!({"migrations": null})).await;
    let neighbour = ready_tenant(&client, "lender-a", of("lending", json!({}))).await;
    let mut foreign = named("v1", "Secret", Some(&place(&neighbour).1), "lender-b-database");
    foreign["stringData"] = json!({"mine": "mine"});
    create(&client, &foreign).await;
    apply(&client, &tenant("lender-b", of("lending", json!({})))).await.expect("a Tenant");
    await_condition(&client, &ours("Tenant", "lender-b"), "CredentialsReady", "False", "lender-b-database").await;
    delete_tenant(&client, "lender-b").await;
    let left = read(&client, &foreign).await.expect("it is nobody's but its owner's");
    assert_eq!(left["metadata"]["deletionTimestamp"], Value::Null);
}

#[tokio::test]
async fn a_pools_namespace_stays_where_others_have_something_in_it() {
    let (_, client) = shared().await;
    application(&client, "lodging", json!({})).await;
    let lodger = ready_tenant(&client, "lodger", of("lodging", json!({"spec": {"deletionPolicy": "Delete"}}))).await;
    let namespace = place(&lodger).1;
    create(&client, &claim(&namespace, "luggage")).await;
    delete_tenant(&client, "lodger").await;
    await_pool(&client, "lodging-1", "empty", |pool| pool.status.as_ref().is_some_and(|it| it.tenants == 0)).await;
    delete(&client, &ours("Pool", "lodging-1")).await;
    let pool = eventually(async || read(&client, &ours("Pool", "lodging-1")).await.is_none().then_some(())).await;
    assert!(pool.is_some(), "the Pool does not go: {:#?}", read(&client, &ours("Pool", "lodging-1")).await);
    let kept = read(&client, &named("v1", "Namespace", None, &namespace)).await.expect("the namespace stays");
    assert_eq!(kept["metadata"]["annotations"]["tenantry.io/kept-for"], json!("PersistentVolumeClaim luggage"));
    cleared(&client, &namespace, &["PersistentVolumeClaim luggage"]).await;
}
