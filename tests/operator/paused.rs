//! A paused object is left alone, in the cluster and in the database, until it is not paused.

use devcluster::{Options, Postgres, PostgresOptions};
use kube::{Api, api::DeleteParams};
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    bulkheads::elsewhere,
    ground::{Ground, NAMESPACE, OPERATOR, apply, await_tenant, credentials, eventually, is, ready_tenant},
    steps::{migrations, plan, route},
    verbs::{
        application, await_condition, delete, id, named, of, ours, patch, place, read, rows, superuser, superuser_of,
    },
};

fn paused(value: Option<&str>) -> Value {
    json!({"metadata": {"annotations": {"tenantry.io/paused": value}}})
}

/// All of a tenant in PostgreSQL: what rotation, sweeps, migrations and deletion would change.
async fn in_database(root: &tokio_postgres::Client, tenant: &Tenant) -> Vec<String> {
    let id = id(tenant);
    let all = format!(
        "SELECT concat_ws(' ', 'role', rolname, rolcanlogin, rolconnlimit, shobj_description(oid, 'pg_authid')) FROM pg_roles WHERE rolname LIKE '{id}%'
         UNION ALL SELECT concat_ws(' ', 'setting', setrole::regrole, setconfig) FROM pg_db_role_setting WHERE setrole::regrole::text LIKE '{id}%'
         UNION ALL SELECT concat_ws(' ', 'login', l) FROM tenantry.login l WHERE tenant = '{id}'
         UNION ALL SELECT concat_ws(' ', 'tenant', t) FROM tenantry.tenant t WHERE id = '{id}'
         UNION ALL SELECT concat_ws(' ', 'schema', nspname, nspacl) FROM pg_namespace WHERE nspname LIKE '{id}%'
         UNION ALL SELECT concat_ws(' ', 'migration', m) FROM tenantry.migration m WHERE tenant = '{id}' ORDER BY 1"
    );
    rows(root, &all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_for_what_is_paused_and_everything_once_it_is_not() {
    let ground = Ground::start(Options { audit: true, ..Options::default() }).await;
    let client = &ground.client;
    let operator =
        ground.operator(&["--sweep-interval", "1s", "--watchdog-interval", "200ms", "--rotation-overlap", "1s"]);
    ground.examples().await;
    let still = ready_tenant(client, "still", json!({"spec": {"deletionPolicy": "Delete"}})).await;
    let busy = ready_tenant(client, "busy", json!({"spec": {"deletionPolicy": "Delete"}})).await;
    let root = superuser(&ground, &place(&still).0).await;
    // One login is still open from a rotation.
    let held = super::verbs::log_in(&credentials(client, &still).await).await.expect("a session");
    let rotate = |value: &str| json!({"metadata": {"annotations": {"tenantry.io/rotate": value}}});
    patch(client, &ours("Tenant", "still"), &rotate("1")).await;
    let rotated = |tenant: &Tenant, value: &str| {
        let database = tenant.status.as_ref().and_then(|status| status.database.clone());
        database.and_then(|database| database.rotated).as_deref() == Some(value)
    };
    await_tenant(client, "still", "rotated", |tenant| rotated(tenant, "1") && is(tenant, "Ready", "True")).await;

    patch(client, &ours("Tenant", "still"), &paused(Some("true"))).await;
    // Whatever was under way when the annotation came has ended when a later one has been seen.
    patch(client, &ours("Tenant", "busy"), &rotate("0")).await;
    await_tenant(client, "busy", "rotated", |tenant| rotated(tenant, "0") && is(tenant, "Ready", "True")).await;
    drop(held);
    let before = read(client, &ours("Tenant", "still")).await.expect("a Tenant")["status"].clone();
    let mark = ground.cluster.audit().mark().expect("a mark");

    // The same is done to both; the one that isn't paused shows when the operator was there.
    let mut disturbed = Vec::new();
    for tenant in [&still, &busy] {
        let name = tenant.metadata.name.as_deref().expect("a name");
        let id = id(tenant);
        root.batch_execute(&format!(
            "ALTER ROLE {id}_app_a SET search_path = pg_catalog; ALTER ROLE {id}_app_b CONNECTION LIMIT 77; \
             REVOKE USAGE ON SCHEMA {id} FROM {id}_rw"
        ))
        .await
        .expect("a superuser's changes");
        if name == "still" {
            disturbed = in_database(&root, tenant).await;
        }
        delete(client, &route(tenant)).await;
        patch(client, &ours("Tenant", name), &rotate("2")).await;
        patch(client, &ours("Tenant", name), &json!({"spec": {"plan": "soho"}})).await;
    }
    await_tenant(client, "busy", "moved", |tenant| {
        rotated(tenant, "2")
            && is(tenant, "Ready", "True")
            && tenant.status.as_ref().is_some_and(|it| it.plan.as_deref() == Some("soho"))
    })
    .await;
    let repaired = eventually(async || {
        let limit = format!("SELECT (rolconnlimit = 77)::text FROM pg_roles WHERE rolname = '{}_app_b'", id(&busy));
        (rows(&root, &limit).await == ["false"]).then_some(())
    });
    assert!(repaired.await.is_some(), "the sweep repairs what is not paused");
    let tenants = Api::<Tenant>::all(client.clone());
    for name in ["still", "busy"] {
        tenants.delete(name, &DeleteParams::default()).await.expect("a deletion");
    }
    let gone = eventually(async || tenants.get_opt("busy").await.expect("an answer").is_none().then_some(()));
    assert!(gone.await.is_some(), "the other one goes");

    let live = read(client, &ours("Tenant", "still")).await.expect("a Tenant");
    assert_eq!(live["status"], before);
    assert!(read(client, &route(&still)).await.is_none(), "its route is not put back");
    assert_eq!(in_database(&root, &still).await, disturbed);
    let events = ground.cluster.audit().events(mark).expect("events");
    // What happened before the pause may be told after it: Events come seconds later.
    let written: Vec<_> = events
        .iter()
        .filter(|event| event.user == OPERATOR && event.is_write() && event.resource != "events")
        .filter(|event| event.name.starts_with("still"))
        .collect();
    assert!(written.is_empty(), "{written:#?}");

    patch(client, &ours("Tenant", "still"), &paused(None)).await;
    let gone = eventually(async || tenants.get_opt("still").await.expect("an answer").is_none().then_some(()));
    assert!(gone.await.is_some(), "it goes once it is not paused");
    assert_eq!(in_database(&root, &still).await, Vec::<String>::new());
    others(&ground).await;
    a_plan_without_limits(&ground).await;
    an_application(&ground).await;
    a_server(&ground).await;
    drop(operator);
}

/// Waits until a tenant, which is not paused, was given this plan with all that is in it.
async fn moved_to(client: &kube::Client, name: &str, plan: &str) {
    patch(client, &ours("Tenant", name), &json!({"spec": {"plan": plan}})).await;
    await_tenant(client, name, "moved", |tenant| {
        is(tenant, "Ready", "True") && tenant.status.as_ref().is_some_and(|it| it.plan.as_deref() == Some(plan))
    })
    .await;
}

async fn await_rows(root: &tokio_postgres::Client, statement: &str, wanted: &[&str]) {
    let mut last = Vec::new();
    let found = eventually(async || {
        last = rows(root, statement).await;
        (last == wanted).then_some(())
    });
    assert!(found.await.is_some(), "{statement}: {last:?}, not {wanted:?}");
}

/// Limits that a Plan gets while it is paused reach none of the tenants that it has.
async fn a_plan_without_limits(ground: &Ground) {
    let client = &ground.client;
    plan(client, "bare", json!({"limits": null})).await;
    let tenant = ready_tenant(client, "unlimited", json!({"spec": {"plan": "bare"}})).await;
    let root = superuser(ground, &place(&tenant).0).await;
    patch(client, &ours("Plan", "bare"), &paused(Some("true"))).await;
    // It was seen: what came after it was done.
    moved_to(client, "elsewhere", "soho").await;
    patch(client, &ours("Plan", "bare"), &json!({"spec": {"limits": {"users": {"max": 3, "policy": "Hard"}}}})).await;
    // Its tenant is not paused, and is looked at with the Plan as it is now.
    patch(client, &ours("Tenant", "unlimited"), &json!({"spec": {"suspended": true}})).await;
    await_condition(client, &ours("Tenant", "unlimited"), "Ready", "False", "suspended").await;
    let limits = "SELECT concat_ws(' ', meter, max) FROM tenantry.meter_limit WHERE plan = 'bare' ORDER BY 1";
    assert_eq!(rows(&root, limits).await, [""; 0]);
    patch(client, &ours("Plan", "bare"), &paused(None)).await;
    await_rows(&root, limits, &["users 3"]).await;
}

/// Meters and migrations of an Application that is paused change for no tenant that is there.
async fn an_application(ground: &Ground) {
    let client = &ground.client;
    let files = named("v1", "ConfigMap", Some(NAMESPACE), "resting");
    apply(client, &migrations("resting", &[("001.sql", "CREATE TABLE one (id int);")])).await.expect("a ConfigMap");
    let migrated = json!({"migrations": {"sql": {"configMaps": [{"name": "resting"}]}}});
    application(client, "resting", migrated).await;
    let tenant = ready_tenant(client, "rests", of("resting", json!({}))).await;
    let root = superuser(ground, &place(&tenant).0).await;
    let tables = format!("SELECT tablename::text FROM pg_tables WHERE schemaname = '{}' ORDER BY 1", id(&tenant));
    let meters = "SELECT meter FROM tenantry.meter_definition ORDER BY 1";
    let before = rows(&root, meters).await;
    let object = ours("Application", "resting");
    patch(client, &object, &paused(Some("true"))).await;
    let mut more = read(client, &object).await.expect("an Application")["spec"]["meters"].clone();
    more.as_array_mut().expect("meters").push(json!({"name": "seats", "kind": "Level"}));
    patch(client, &object, &json!({"spec": {"meters": more}})).await;
    patch(client, &files, &json!({"data": {"002.sql": "CREATE TABLE two (id int);"}})).await;
    // Its Pool and its Tenant are not paused: both are looked at with the Application as it is now.
    let pool = ours("Pool", "resting-1");
    patch(client, &pool, &json!({"spec": {"maxTenants": 17}})).await;
    let counted =
        eventually(async || (read(client, &pool).await.expect("a Pool")["status"]["capacity"] == 17).then_some(()));
    assert!(counted.await.is_some(), "the Pool is reconciled");
    moved_to(client, "rests", "soho").await;
    assert_eq!((rows(&root, meters).await, rows(&root, &tables).await), (before.clone(), vec!["one".to_owned()]));
    let live = read(client, &object).await.expect("an Application");
    assert_ne!(live["status"]["observedGeneration"], live["metadata"]["generation"], "nor is its status written");

    patch(client, &object, &paused(None)).await;
    await_rows(&root, &tables, &["one", "two"]).await;
    let mut all: Vec<&str> = before.iter().map(String::as_str).chain(["seats"]).collect();
    all.sort_unstable();
    await_rows(&root, meters, &all).await;
}

/// What is done on a server from time to time is not done on one that is paused.
async fn a_server(ground: &Ground) {
    let client = &ground.client;
    let postgres = Postgres::start(PostgresOptions::default()).expect("a second server");
    elsewhere(ground, "second", &postgres).await;
    let other = ready_tenant(client, "awake", of("second", json!({}))).await;
    let awake = superuser_of(&postgres, &place(&other).0).await;
    let still = read(client, &ours("Tenant", "elsewhere")).await.expect("a Tenant");
    let database = still["status"]["database"]["database"].as_str().expect("a database").to_owned();
    let root = superuser(ground, &database).await;
    patch(client, &ours("DatabaseServer", "main"), &paused(Some("true"))).await;
    // It was seen: what came after it was done, and a sweep that was under way is over.
    moved_to(client, "elsewhere", "free").await;
    swept(&awake, &id(&other)).await;

    let grant = format!("GRANT CONNECT ON DATABASE {database} TO PUBLIC");
    root.batch_execute(&grant).await.expect("a superuser's change");
    // Sweeps are as often on both: two of them on one are at least one on the other.
    swept(&awake, &id(&other)).await;
    swept(&awake, &id(&other)).await;
    let open = format!("SELECT has_database_privilege('public', '{database}', 'CONNECT')::text");
    assert_eq!(rows(&root, &open).await, ["true"]);
    patch(client, &ours("DatabaseServer", "main"), &paused(None)).await;
    await_rows(&root, &open, &["false"]).await;
}

/// Disturbs a tenant and waits until a sweep has repaired it.
async fn swept(root: &tokio_postgres::Client, id: &str) {
    root.batch_execute(&format!("ALTER ROLE {id}_app_b CONNECTION LIMIT 77")).await.expect("a superuser's change");
    let limit = format!("SELECT (rolconnlimit = 77)::text FROM pg_roles WHERE rolname = '{id}_app_b'");
    await_rows(root, &limit, &["false"]).await;
}

/// A Plan, an Application, a Pool and a DatabaseServer.
async fn others(ground: &Ground) {
    let client = &ground.client;
    let tenant = ready_tenant(client, "witness", json!({})).await;
    let root = superuser(ground, &place(&tenant).0).await;
    let kinds = [("Plan", "smb"), ("Application", "crm"), ("Pool", "crm-1"), ("DatabaseServer", "main")];
    for (kind, name) in kinds {
        patch(client, &ours(kind, name), &paused(Some("true"))).await;
    }
    // The annotations were seen: what came after them was done.
    let bolt = ready_tenant_elsewhere(client).await;
    let mark = ground.cluster.audit().mark().expect("a mark");
    let limits = "SELECT concat_ws(' ', plan, meter, max) FROM tenantry.meter_limit WHERE plan = 'smb' ORDER BY 1";
    let before = rows(&root, limits).await;
    patch(client, &ours("Plan", "smb"), &json!({"spec": {"limits": {"users": {"max": 7}}}})).await;
    let web = named("apps/v1", "Deployment", Some("pool-crm-1"), "web");
    patch(client, &web, &json!({"spec": {"replicas": 4}})).await;
    root.batch_execute(&format!("GRANT CONNECT ON DATABASE {} TO PUBLIC", place(&tenant).0)).await.expect("a grant");
    let open = format!("SELECT has_database_privilege('public', '{}', 'CONNECT')::text", place(&tenant).0);
    // Somebody who isn't paused is served meanwhile.
    patch(client, &ours("Tenant", "witness"), &json!({"spec": {"suspended": true}})).await;
    await_condition(client, &ours("Tenant", "witness"), "Ready", "False", "suspended").await;
    assert_eq!(rows(&root, limits).await, before);
    assert_eq!(rows(&root, &open).await, ["true"]);
    assert_eq!(read(client, &web).await.expect("a Deployment")["spec"]["replicas"], 4);
    let events = ground.cluster.audit().events(mark).expect("events");
    let written: Vec<_> = events
        .iter()
        .filter(|event| event.user == OPERATOR && event.is_write())
        .filter(|event| {
            kinds.iter().any(|(_, name)| event.name == *name) || event.namespace == "pool-crm-1" && event.name == "web"
        })
        .collect();
    assert!(written.is_empty(), "{written:#?}");

    for (kind, name) in kinds {
        patch(client, &ours(kind, name), &paused(None)).await;
    }
    let done = eventually(async || {
        let replicas = read(client, &web).await?["spec"]["replicas"] != 4;
        let limit = rows(&root, limits).await.contains(&"smb users 7".to_owned());
        (replicas && limit && rows(&root, &open).await == ["false"]).then_some(())
    });
    assert!(done.await.is_some(), "everything is done once nothing is paused");
    drop(bolt);
}

/// A tenant of another Application and plan, which nothing of what is paused concerns but the
/// server.
async fn ready_tenant_elsewhere(client: &kube::Client) -> Tenant {
    super::verbs::application(client, "elsewhere", json!({})).await;
    let spec = json!({"spec": {"application": "elsewhere", "plan": "free"}});
    ready_tenant(client, "elsewhere", spec).await
}
