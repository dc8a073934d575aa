//! After the cluster's objects were lost, in one way or another: nobody starts empty, nobody
//! gets another's data, and `tenantry adopt` gives each Tenant what was its own.

use std::collections::BTreeSet;

use devcluster::{Options, Postgres, PostgresOptions};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tenantry::api::{DatabaseServer, Pool, Tenant};

use super::{
    bulkheads::elsewhere,
    cli::{Ran, tenantry},
    ground::{
        Ground, Operator, apply, await_tenant, credentials, documents, eventually, is, ready_tenant, root, tenant,
    },
    steps::{healed, stalled},
    verbs::{application, await_condition, id, log_in, of, ours, patch, place, read, rows, superuser},
};

/// The tenants of these tests: of each tier, and with a policy of which nothing is left where
/// only the Tenant is deleted.
const TENANTS: [(&str, &str, &str); 4] = [
    ("acme", "pooled", "Retain"),
    ("bolt", "pooled", "Delete"),
    ("corp", "bridge", "Retain"),
    ("duke", "dedicated", "Delete"),
];

fn spec((_, tier, policy): (&str, &str, &str)) -> Value {
    let plan = if tier == "dedicated" { "enterprise" } else { "smb" };
    json!({"spec": {"plan": plan, "tier": tier, "deletionPolicy": policy}})
}

/// A control plane and an operator of a test's own, with Ready tenants that have a row each.
async fn before_the_loss() -> (Ground, Operator, Client, Vec<Tenant>) {
    let ground = Ground::start(Options::default()).await;
    let operator = ground.operator(&[]);
    ground.examples().await;
    let client = ground.client.clone();
    let mut tenants = Vec::new();
    for entry in TENANTS {
        let name = entry.0;
        let tenant = ready_tenant(&client, name, spec(entry)).await;
        let session = log_in(&credentials(&client, &tenant).await).await.expect("the tenant logs in");
        let email = format!("one@{name}.example");
        session.execute("INSERT INTO users (email, name) VALUES ($1, 'One')", &[&email]).await.expect("a row");
        session.query("SELECT record_usage('users', 1, 'one')", &[]).await.expect("counted");
        tenants.push(tenant);
    }
    (ground, operator, client, tenants)
}

/// Every Tenant is Ready again, sees its old row and its old count, and has its old id.
async fn assert_old_rows(client: &Client, before: &[Tenant]) {
    for old in before {
        let name = old.name_any();
        let tenant = healed(client, &name).await;
        assert_eq!(id(&tenant), id(old), "{name} has the id that it had");
        assert!(tenant.status.as_ref().is_some_and(|status| status.conflict.is_none()), "the conflict is over");
        let revision = |tenant: &Tenant| tenant.status.as_ref().and_then(|status| status.plan_revision.clone());
        assert_eq!(revision(&tenant), revision(old), "{name} pays what it paid");
        let session = log_in(&credentials(client, &tenant).await).await.expect("the tenant logs in");
        assert_eq!(rows(&session, "SELECT email FROM users").await, [format!("one@{name}.example")]);
        let users = "SELECT value::text FROM my_limits() WHERE meter = 'users'";
        assert_eq!(rows(&session, users).await, ["1"], "what was counted is still counted");
    }
}

/// Waits until each Tenant says whose data it waits for.
async fn await_conflicts(client: &Client, before: &[Tenant]) {
    for old in before {
        let uid = old.uid().expect("a UID");
        let name = old.name_any();
        stalled(client, &name, "DataOfAnotherTenant", &["tenantry.io/restore-from", "tenantry.io/abandon", &uid]).await;
        await_tenant(client, &name, "in conflict", |tenant| {
            let conflict = tenant.status.as_ref().and_then(|status| status.conflict.as_ref());
            conflict.is_some_and(|conflict| conflict.uid == uid && conflict.cluster.is_none())
        })
        .await;
    }
}

fn adopt(ground: &Ground, more: &[&str]) -> Ran {
    let args: Vec<&str> = ["adopt", "--output", "json"].iter().chain(more).copied().collect();
    tenantry(ground, &args)
}

fn all() -> Vec<String> {
    TENANTS.map(|(name, ..)| name.to_owned()).to_vec()
}

/// The names of the Tenants that `adopt` says it did something with.
fn names(ran: &Ran, action: &str) -> Vec<String> {
    let items = ran.json()["items"].as_array().expect("items").clone();
    let of_action = items.iter().filter(|item| item["action"] == action);
    of_action.map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test]
async fn after_the_definitions_were_deleted_every_tenant_gets_its_old_rows() {
    let (ground, _operator, client, before) = before_the_loss().await;
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let kinds =
        ["tenants", "pools", "plans", "applications", "databaseservers"].map(|kind| format!("{kind}.tenantry.io"));
    for name in &kinds {
        definitions.delete(name, &DeleteParams::default()).await.expect("a deletion");
    }
    for name in &kinds {
        let gone =
            eventually(async || definitions.get_opt(name).await.expect("an answer").is_none().then_some(())).await;
        assert!(gone.is_some(), "{name} does not go: {:#?}", definitions.get(name).await.map(|it| it.status));
    }
    // Nobody meant to drop all customers' data, whatever a policy says.
    for tenant in &before {
        let admin = superuser(&ground, &place(tenant).0).await;
        let state = format!("SELECT state FROM tenantry.tenant WHERE id = '{}'", id(tenant));
        assert_eq!(rows(&admin, &state).await, ["Retained"], "{}", tenant.name_any());
    }

    for entry in std::fs::read_dir(root().join("crds")).expect("crds/") {
        for definition in documents(&entry.expect("an entry").path()) {
            apply(&client, &definition).await.expect("a definition");
        }
    }
    for name in &kinds {
        let served = eventually(async || {
            let conditions = definitions.get(name).await.ok()?.status?.conditions?;
            conditions.iter().any(|it| it.type_ == "Established" && it.status == "True").then_some(())
        })
        .await;
        assert!(served.is_some(), "{name} is not served");
    }
    ground.examples().await;
    for entry in TENANTS {
        apply(&client, &tenant(entry.0, spec(entry))).await.expect("a Tenant");
    }
    await_conflicts(&client, &before).await;

    let asked = adopt(&ground, &["--all", "--dry-run"]);
    assert_eq!((asked.code, names(&asked, "Adopted")), (0, all()));
    let untouched = read(&client, &ours("Tenant", "acme")).await.expect("a Tenant");
    assert_eq!(untouched["metadata"]["annotations"], Value::Null, "a dry run writes nothing");
    let done = adopt(&ground, &["--all"]);
    assert_eq!((done.code, names(&done, "Adopted")), (0, all()));
    assert_old_rows(&client, &before).await;
    let again = adopt(&ground, &["--all"]);
    assert_eq!((again.code, again.json()["items"].as_array().map(Vec::len)), (0, Some(0)), "nothing is left to decide");
}

/// Takes objects away as a lost etcd would: no finalizer is heard.
async fn lose<K>(client: &Client)
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let api = Api::<K>::all(client.clone());
    for object in api.list(&Default::default()).await.expect("a list") {
        let name = object.name_any();
        let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        // In use by nobody, as far as the API server is concerned.
        let unused = Patch::Merge(json!({"status": null}));
        api.patch_status(&name, &PatchParams::default(), &unused).await.expect("no status");
        api.delete(&name, &DeleteParams::default()).await.expect("a deletion");
        match api.patch(&name, &PatchParams::default(), &free).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

/// What a backup of the Tenants brings back: specs and annotations, no UID and no status.
async fn bring_back(client: &Client, tenants: &[Value]) {
    for tenant in tenants {
        let annotations = tenant["metadata"]["annotations"].clone();
        let restored = json!({
            "apiVersion": tenant["apiVersion"], "kind": tenant["kind"], "spec": tenant["spec"],
            "metadata": {"name": tenant["metadata"]["name"], "annotations": annotations, "finalizers": ["tenantry.io/finalizer"]},
        });
        apply(client, &without_null_annotations(restored)).await.expect("a Tenant");
    }
}

fn without_null_annotations(mut object: Value) -> Value {
    super::verbs::without_nulls(&mut object);
    object
}

/// When each tenant's first period began.
async fn anchors(ground: &Ground, tenants: &[Tenant]) -> Vec<String> {
    let mut anchors = Vec::new();
    for tenant in tenants {
        let anchor = format!("SELECT period_anchor::text FROM tenantry.tenant WHERE id = '{}'", id(tenant));
        anchors.extend(rows(&superuser(ground, &place(tenant).0).await, &anchor).await);
    }
    anchors
}

async fn raise_price(client: &Client, base: &str) {
    let change = json!({"spec": {"price": {"base": base}}});
    patch(client, &ours("Plan", "smb"), &change).await;
}

async fn backup(client: &Client) -> Vec<Value> {
    let mut tenants = Vec::new();
    for (name, ..) in TENANTS {
        tenants.push(read(client, &ours("Tenant", name)).await.expect("a Tenant"));
    }
    tenants
}

#[tokio::test]
async fn objects_that_come_back_with_new_uids_and_no_status_get_their_old_rows_again_and_again() {
    let (ground, operator, client, before) = before_the_loss().await;
    let mut secrets = Vec::new();
    for tenant in &before {
        secrets.push(credentials(&client, tenant).await);
    }
    let began = anchors(&ground, &before).await;
    let mut operator = Some(operator);
    let mut known = before.clone();
    // Twice: what the annotations of the first restore say is of no account in the second.
    for price in ["555000", "666000"] {
        operator.take().expect("an operator").kill();
        let saved = backup(&client).await;
        // A price for new customers: who came back is none.
        raise_price(&client, price).await;
        lose::<Tenant>(&client).await;
        lose::<Pool>(&client).await;
        bring_back(&client, &saved).await;
        operator = Some(ground.operator(&[]));
        await_conflicts(&client, &known).await;
        // By name, and the rest all together.
        let done = adopt(&ground, &["acme"]);
        assert_eq!((done.code, names(&done, "Adopted")), (0, vec!["acme".to_owned()]));
        healed(&client, "acme").await;
        let done = adopt(&ground, &["--all"]);
        assert_eq!((done.code, names(&done, "Adopted")), (0, all()[1..].to_vec()));
        assert_old_rows(&client, &before).await;
        known = futures::future::join_all(TENANTS.map(|(name, ..)| healed(&client, name))).await;
    }
    assert_eq!(anchors(&ground, &before).await, began, "periods are counted from where they began");
    // Their Secrets were there all the time, and so the logins of those who use them.
    for (tenant, secret) in known.iter().zip(&secrets) {
        assert_eq!(credentials(&client, tenant).await, *secret, "nothing was rotated for it");
    }
}

/// Marks a database and all in it as another cluster's; returns whose it was.
async fn belongs_to(ground: &Ground, database: &str, cluster: &str) -> String {
    let admin = superuser(ground, database).await;
    let here = rows(&admin, "SELECT cluster_id FROM tenantry.database").await.remove(0);
    let mark = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()";
    let mark = rows(&admin, mark).await.remove(0).replace(&here, cluster);
    let change = format!(
        "UPDATE tenantry.database SET cluster_id = '{cluster}'; UPDATE tenantry.tenant SET cluster_id = '{cluster}'; \
         COMMENT ON DATABASE \"{database}\" IS '{mark}'"
    );
    admin.batch_execute(&change).await.expect("another cluster's marks");
    here
}

/// All that the operator could have changed in these databases.
async fn contents(ground: &Ground, databases: &BTreeSet<String>) -> Vec<String> {
    let all = "SELECT t::text FROM tenantry.tenant t UNION ALL SELECT d::text FROM tenantry.database d
               UNION ALL SELECT l::text FROM tenantry.login l UNION ALL SELECT m::text FROM tenantry.meter_limit m
               UNION ALL SELECT nspname || nspacl::text FROM pg_namespace UNION ALL SELECT r::text FROM pg_roles r
               UNION ALL SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()
               ORDER BY 1";
    let mut found = Vec::new();
    for database in databases {
        let rows = superuser(ground, database).await.query(all, &[]).await.expect("rows");
        found.extend(rows.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_default()));
    }
    found
}

#[tokio::test]
async fn a_record_of_another_cluster_is_never_touched_until_it_is_taken_over_as_a_whole() {
    let (ground, operator, client, before) = before_the_loss().await;
    operator.kill();
    lose::<Tenant>(&client).await;
    lose::<Pool>(&client).await;
    lose::<DatabaseServer>(&client).await;
    // As if a cluster that is gone had made all this.
    let gone = "00000000-0000-4000-8000-00000000dead";
    let databases: BTreeSet<String> = before.iter().map(|tenant| place(tenant).0).collect();
    let mut here = String::new();
    for database in &databases {
        here = belongs_to(&ground, database, gone).await;
    }
    let untouched = contents(&ground, &databases).await;

    let _operator = ground.operator(&[]);
    ground.examples().await;
    for entry in TENANTS {
        apply(&client, &tenant(entry.0, spec(entry))).await.expect("a Tenant");
    }
    for old in &before {
        let uid = old.uid().expect("a UID");
        let parts = [gone, uid.as_str(), "tenantry adopt --from-cluster", "tenantry.io/abandon"];
        stalled(&client, &old.name_any(), "DataOfAnotherCluster", &parts).await;
    }
    // An annotation that was meant for this cluster's records takes nothing of another's.
    let uid = before[0].uid().expect("a UID");
    let asked = json!({"metadata": {"annotations": {"tenantry.io/restore-from": uid}}});
    patch(&client, &ours("Tenant", "acme"), &asked).await;
    stalled(&client, "acme", "DataOfAnotherCluster", &[gone]).await;
    let refused = adopt(&ground, &["--all"]);
    assert_eq!((refused.code, names(&refused, "Skipped")), (3, all()));
    let listed = tenantry(&ground, &["retained", "--all-clusters", "--output", "json"]).json();
    let clusters: Vec<&Value> =
        listed["items"].as_array().expect("items").iter().map(|item| &item["cluster"]).collect();
    assert_eq!(clusters, [gone; 4]);
    assert_eq!(contents(&ground, &databases).await, untouched, "not a byte of it changed");

    let here = tenantry(&ground, &["adopt", "--from-cluster", &here]);
    assert!(here.code == 1 && here.stderr.contains("this cluster's own id"), "{here:?}");
    let asked = adopt(&ground, &["--from-cluster", gone, "--dry-run"]);
    assert_eq!((asked.code, names(&asked, "Adopted")), (0, vec!["main".to_owned()]));
    let done = adopt(&ground, &["--from-cluster", gone]);
    assert_eq!((done.code, names(&done, "Adopted")), (0, vec!["main".to_owned()]));
    let taken = eventually(async || {
        let server = Api::<DatabaseServer>::all(client.clone()).get("main").await.expect("a server");
        (server.status?.adopted_cluster.as_deref() == Some(gone)).then_some(())
    })
    .await;
    assert!(taken.is_some(), "the server does not say that it was taken over");
    // `acme` asked for its data already; the other one is asked.
    await_tenant(&client, "acme", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    await_conflicts(&client, &before[1..]).await;
    let done = adopt(&ground, &["--all"]);
    assert_eq!((done.code, names(&done, "Adopted")), (0, all()[1..].to_vec()));
    assert_old_rows(&client, &before).await;
    // What the annotation said was done: more of that cluster, should it live, stays its own.
    await_condition(&client, &ours("DatabaseServer", "main"), "Ready", "True", "").await;
    let again = adopt(&ground, &["--from-cluster", gone]);
    assert_eq!((again.code, names(&again, "Unchanged")), (0, vec!["main".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_starts_empty_while_a_server_that_may_have_the_data_was_not_reached() {
    let ground = Ground::start(Options::default()).await;
    let client = &ground.client;
    let postgres = Postgres::start(PostgresOptions::default()).expect("a second server");
    let operator = ground.operator(&["--health-interval", "1s"]);
    ground.examples().await;
    elsewhere(&ground, "attic", &postgres).await;
    // Nobody listens there, and nobody was ever placed there: it keeps nobody waiting.
    ground.server(client, "unborn", json!({"admin": {"host": "127.0.0.1", "port": 1}})).await;
    let before = ready_tenant(client, "acme", of("attic", json!({}))).await;
    await_condition(client, &ours("DatabaseServer", "attic"), "Ready", "True", "").await;
    let counted = eventually(async || {
        let attic = Api::<DatabaseServer>::all(client.clone()).get("attic").await.expect("a server");
        (attic.status?.databases == 1).then_some(())
    })
    .await;
    assert!(counted.is_some(), "its databases are not counted");
    // New tenants go elsewhere, and what is there stays.
    application(client, "attic", json!({"database": {"pooled": {"servers": ["main"]}}})).await;

    operator.kill();
    lose::<Tenant>(client).await;
    lose::<Pool>(client).await;
    postgres.stop();
    let _operator = ground.operator(&["--health-interval", "1s"]);
    apply(client, &tenant("acme", of("attic", json!({})))).await.expect("a Tenant");
    await_condition(client, &ours("Tenant", "acme"), "Placed", "False", "DatabaseServer attic was not reached").await;
    // Whoever knows that a name is new says so for the server, until it is back.
    apply(client, &tenant("fresh", json!({}))).await.expect("a Tenant");
    await_condition(client, &ours("Tenant", "fresh"), "Placed", "False", "DatabaseServer attic was not reached").await;
    patch(client, &ours("Tenant", "acme"), &json!({"metadata": {"annotations": {"tenantry.io/paused": "true"}}})).await;
    let skip = |value: Value| json!({"metadata": {"annotations": {"tenantry.io/skip-lookup": value}}});
    patch(client, &ours("DatabaseServer", "attic"), &skip("true".into())).await;
    healed(client, "fresh").await;
    patch(client, &ours("DatabaseServer", "attic"), &skip(Value::Null)).await;
    patch(client, &ours("Tenant", "acme"), &json!({"metadata": {"annotations": {"tenantry.io/paused": null}}})).await;

    postgres.start_again().expect("the server starts again");
    stalled(client, "acme", "DataOfAnotherTenant", &[&before.uid().expect("a UID")]).await;
    // One that was reached once and is away now keeps nobody waiting.
    postgres.stop();
    await_condition(client, &ours("DatabaseServer", "attic"), "Reachable", "False", "").await;
    ready_tenant(client, "later", json!({})).await;
}
