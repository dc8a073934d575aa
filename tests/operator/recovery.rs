//! After the cluster's objects were lost, in one way or another: nobody starts empty, nobody
//! gets another's data, and `tenantry adopt` gives each Tenant what was its own.

use devcluster::Options;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tenantry::api::{DatabaseServer, Pool, Tenant};

use super::{
    cli::{Ran, tenantry},
    ground::{
        Ground, Operator, apply, await_tenant, credentials, documents, eventually, is, ready_tenant, root, tenant,
    },
    steps::{healed, stalled},
    verbs::{await_condition, id, log_in, ours, patch, place, read, rows, superuser},
};

/// The tenants of these tests, with their deletion policies.
const TENANTS: [(&str, &str); 2] = [("acme", "Retain"), ("bolt", "Delete")];

/// A control plane and an operator of a test's own, with two Ready tenants that have a row each.
async fn before_the_loss() -> (Ground, Operator, Client, Vec<Tenant>) {
    let ground = Ground::start(Options::default()).await;
    let operator = ground.operator(&[]);
    ground.examples().await;
    let client = ground.client.clone();
    let mut tenants = Vec::new();
    for (name, policy) in TENANTS {
        let tenant = ready_tenant(&client, name, json!({"spec": {"deletionPolicy": policy}})).await;
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

/// The names of the Tenants that `adopt` says it did something with.
fn names(ran: &Ran, action: &str) -> Vec<String> {
    let items = ran.json()["items"].as_array().expect("items").clone();
    let of_action = items.iter().filter(|item| item["action"] == action);
    of_action.map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test]
async fn after_the_definitions_were_deleted_every_tenant_gets_its_old_rows() {
    let (ground, _operator, client, before) = before_the_loss().await;
    let database = place(&before[0]).0;
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
    let admin = superuser(&ground, &database).await;
    let states = rows(&admin, "SELECT name || ' ' || state FROM tenantry.tenant ORDER BY 1").await;
    assert_eq!(states, ["acme Retained", "bolt Retained"]);

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
    for (name, policy) in TENANTS {
        apply(&client, &tenant(name, json!({"spec": {"deletionPolicy": policy}}))).await.expect("a Tenant");
    }
    await_conflicts(&client, &before).await;

    let asked = adopt(&ground, &["--all", "--dry-run"]);
    assert_eq!((asked.code, names(&asked, "Adopted")), (0, vec!["acme".to_owned(), "bolt".to_owned()]));
    let untouched = read(&client, &ours("Tenant", "acme")).await.expect("a Tenant");
    assert_eq!(untouched["metadata"]["annotations"], Value::Null, "a dry run writes nothing");
    let done = adopt(&ground, &["--all"]);
    assert_eq!((done.code, names(&done, "Adopted")), (0, vec!["acme".to_owned(), "bolt".to_owned()]));
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

async fn backup(client: &Client) -> Vec<Value> {
    let mut tenants = Vec::new();
    for (name, _) in TENANTS {
        tenants.push(read(client, &ours("Tenant", name)).await.expect("a Tenant"));
    }
    tenants
}

#[tokio::test]
async fn objects_that_come_back_with_new_uids_and_no_status_get_their_old_rows_again_and_again() {
    let (ground, operator, client, before) = before_the_loss().await;
    let secrets = [credentials(&client, &before[0]).await, credentials(&client, &before[1]).await];
    let mut operator = Some(operator);
    let mut known = before.clone();
    // Twice: what the annotations of the first restore say is of no account in the second.
    for _ in 0..2 {
        operator.take().expect("an operator").kill();
        let saved = backup(&client).await;
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
        assert_eq!((done.code, names(&done, "Adopted")), (0, vec!["bolt".to_owned()]));
        assert_old_rows(&client, &before).await;
        known = vec![healed(&client, "acme").await, healed(&client, "bolt").await];
    }
    // Their Secrets were there all the time, and so the logins of those who use them.
    for (tenant, secret) in known.iter().zip(&secrets) {
        assert_eq!(credentials(&client, tenant).await, *secret, "nothing was rotated for it");
    }
}

#[tokio::test]
async fn a_record_of_another_cluster_is_never_touched_until_it_is_taken_over_as_a_whole() {
    let (ground, operator, client, before) = before_the_loss().await;
    let database = place(&before[0]).0;
    operator.kill();
    lose::<Tenant>(&client).await;
    lose::<Pool>(&client).await;
    lose::<DatabaseServer>(&client).await;
    // As if a cluster that is gone had made all this.
    let gone = "00000000-0000-4000-8000-00000000dead";
    let admin = superuser(&ground, &database).await;
    let mark = rows(
        &admin,
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()",
    )
    .await;
    let here = rows(&admin, "SELECT cluster_id FROM tenantry.database").await.remove(0);
    let foreign_mark = mark[0].replace(&here, gone);
    admin
        .batch_execute(&format!(
            "UPDATE tenantry.database SET cluster_id = '{gone}'; UPDATE tenantry.tenant SET cluster_id = '{gone}'; \
             COMMENT ON DATABASE \"{database}\" IS '{foreign_mark}'"
        ))
        .await
        .expect("another cluster's marks");
    let all = "SELECT t::text FROM tenantry.tenant t UNION ALL SELECT d::text FROM tenantry.database d
               UNION ALL SELECT rolname::text FROM pg_roles UNION ALL SELECT nspname::text FROM pg_namespace ORDER BY 1";
    let untouched = rows(&admin, all).await;

    let _operator = ground.operator(&[]);
    ground.examples().await;
    for (name, policy) in TENANTS {
        apply(&client, &tenant(name, json!({"spec": {"deletionPolicy": policy}}))).await.expect("a Tenant");
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
    assert_eq!((refused.code, names(&refused, "Skipped")), (3, vec!["acme".to_owned(), "bolt".to_owned()]));
    let listed = tenantry(&ground, &["retained", "--all-clusters", "--output", "json"]).json();
    let clusters: Vec<&Value> =
        listed["items"].as_array().expect("items").iter().map(|item| &item["cluster"]).collect();
    assert_eq!(clusters, [gone, gone]);
    assert_eq!(rows(&admin, all).await, untouched, "not a byte of it changed");

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
    assert_eq!((done.code, names(&done, "Adopted")), (0, vec!["bolt".to_owned()]));
    assert_old_rows(&client, &before).await;
    // What the annotation said was done: more of that cluster, should it live, stays its own.
    await_condition(&client, &ours("DatabaseServer", "main"), "Ready", "True", "").await;
    let again = adopt(&ground, &["--from-cluster", gone]);
    assert_eq!((again.code, names(&again, "Unchanged")), (0, vec!["main".to_owned()]));
}
