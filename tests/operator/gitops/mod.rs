//! What GitOps tools make of our objects, in every state that they really have: kstatus' rules,
//! Argo CD's health checks, Flux' expressions; and that applying the same again changes nothing.

mod health;

use std::{fs, path::Path};

use devcluster::Options;
use kube::{Client, ResourceExt as _, api::ListParams};
use serde_json::{Value, json};

use self::health::{argo, flux, kstatus};
use super::{
    ground::{
        Ground, NAMESPACE, apply, await_tenant, delete_tenant, documents, dynamic, eventually, is, output,
        ready_tenant, root, secret, tenant,
    },
    steps::stalled,
    verbs::{application, of, ours, patch, read},
};

/// What is made of an object: by kstatus, and by Argo CD.
fn judged(object: &Value) -> (&'static str, String) {
    (kstatus(object), argo(object).0)
}

#[track_caller]
fn assert_judged(object: &Value, by_kstatus: &str, by_argo: &str) {
    let what = format!("{} {}: {:#}", object["kind"], object["metadata"]["name"], object["status"]["conditions"]);
    assert_eq!(judged(object), (by_kstatus, by_argo.to_owned()), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_state_of_a_tenant_is_told_right() {
    // With a PostgreSQL of its own: what other tests leave there counts for a second server too.
    let ground = Ground::start(Options::default()).await;
    let client = ground.client.clone();
    let _operator = ground.operator(&[]);
    ground.examples().await;
    ready_tenant(&client, "git-ready", json!({})).await;
    let live = async |name: &str| read(&client, &ours("Tenant", name)).await.expect("a Tenant");
    let ready = live("git-ready").await;
    assert_judged(&ready, "Current", "Healthy");

    let mut changed = ready.clone();
    changed["metadata"]["generation"] = json!(ready["metadata"]["generation"].as_i64().expect("a generation") + 1);
    assert_judged(&changed, "InProgress", "Progressing");

    // Nobody has looked at it: by the definition's default it says so itself.
    let unseen = json!({"metadata": {"annotations": {"tenantry.io/paused": "true"}}});
    apply(&client, &tenant("git-unseen", unseen)).await.expect("a Tenant");
    let mut unseen = live("git-unseen").await;
    assert_eq!(unseen["status"], json!({"observedGeneration": -1}));
    assert_judged(&unseen, "InProgress", "Suspended");
    unseen["metadata"].as_object_mut().expect("an object").remove("annotations");
    assert_judged(&unseen, "InProgress", "Progressing");

    ready_tenant(&client, "git-suspended", json!({})).await;
    patch(&client, &ours("Tenant", "git-suspended"), &json!({"spec": {"suspended": true}})).await;
    await_tenant(&client, "git-suspended", "suspended", |tenant| is(tenant, "Ready", "False")).await;
    let settled = eventually(async || {
        let suspended = live("git-suspended").await;
        (judged(&suspended) == ("InProgress", "Suspended".into())).then_some(())
    });
    assert!(settled.await.is_some(), "{:#}", live("git-suspended").await["status"]);

    apply(&client, &tenant("git-stalled", json!({"spec": {"plan": "none"}}))).await.expect("a Tenant");
    stalled(&client, "git-stalled", "UnknownPlan", &[]).await;
    let refused = live("git-stalled").await;
    assert_judged(&refused, "Failed", "Degraded");
    assert!(argo(&refused).1.contains("there is no Plan none: create it"), "{:?}", argo(&refused));

    ground.server(&client, "git-full", json!({"capacity": {"databases": 1, "schemasPerDatabase": 1}})).await;
    application(&client, "git-narrow", json!({"database": {"pooled": {"servers": ["git-full"]}}})).await;
    ready_tenant(&client, "git-first", of("git-narrow", json!({}))).await;
    apply(&client, &tenant("git-waiting", of("git-narrow", json!({})))).await.expect("a Tenant");
    await_tenant(&client, "git-waiting", "waiting", |tenant| is(tenant, "Placed", "False")).await;
    assert_judged(&live("git-waiting").await, "InProgress", "Progressing");

    // A finalizer of somebody else holds it.
    ready_tenant(&client, "git-leaving", json!({"metadata": {"finalizers": ["example.com/hold"]}})).await;
    super::verbs::delete(&client, &ours("Tenant", "git-leaving")).await;
    assert_judged(&live("git-leaving").await, "Terminating", "Progressing");
    let free = json!({"metadata": {"finalizers": null}});
    let held = eventually(async || {
        let finalizers = live("git-leaving").await["metadata"]["finalizers"].clone();
        (finalizers == json!(["example.com/hold"])).then_some(())
    });
    assert!(held.await.is_some(), "the operator's own finalizer goes: {:#}", live("git-leaving").await);
    patch(&client, &ours("Tenant", "git-leaving"), &free).await;

    for (name, in_progress, failed, current) in [
        ("git-ready", false, false, true),
        ("git-suspended", false, false, true),
        ("git-stalled", false, true, false),
        ("git-waiting", true, false, false),
    ] {
        let told = flux(&client, &live(name).await).await;
        assert_eq!(told, (in_progress, failed, current), "{name}: (in progress, failed, current)");
    }
    for name in ["git-ready", "git-unseen", "git-suspended", "git-stalled", "git-waiting", "git-first"] {
        let nothing = json!({"metadata": {"annotations": {"tenantry.io/paused": null}}});
        patch(&client, &ours("Tenant", name), &nothing).await;
        delete_tenant(&client, name).await;
    }
}

/// A kustomization over the examples, with this ground's database server.
fn overlay(folder: &Path, ground: &Ground) {
    let postgres = ground.cluster.postgres();
    // Kustomize wants a relative path.
    let folder = folder.canonicalize().expect("a folder");
    let up = "../".repeat(folder.components().count() - 1);
    let examples = root().join("examples").canonicalize().expect("examples");
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [format!("{up}{}", examples.strip_prefix("/").expect("an absolute path").display())],
        "patches": [{"target": {"kind": "DatabaseServer", "name": "main"}, "patch": json!([
            {"op": "replace", "path": "/spec/admin/host", "value": postgres.host()},
            {"op": "replace", "path": "/spec/admin/port", "value": postgres.port()},
            {"op": "replace", "path": "/spec/network/to", "value": [{"ipBlock": {"cidr": "127.0.0.1/32"}}]},
        ]).to_string()}],
    });
    fs::write(folder.join("kustomization.yaml"), kustomization.to_string()).expect("a written file");
}

/// Every object of the examples as it is: all of ours, and the ConfigMap of migrations.
async fn all(client: &Client) -> Vec<Value> {
    let mut objects = Vec::new();
    for kind in ["Plan", "Application", "DatabaseServer", "Tenant"] {
        let list = dynamic(client, &ours(kind, "")).list(&ListParams::default()).await.expect("a list");
        for item in list {
            let mut object = serde_json::to_value(&item).expect("JSON");
            object["kind"] = kind.into();
            objects.push(object);
        }
    }
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "crm-migrations", "namespace": NAMESPACE}});
    objects.push(read(client, &map).await.expect("the migrations"));
    objects
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_are_applied_twice_and_nothing_changes() {
    let ground = Ground::start(Options::default()).await;
    let client = ground.client.clone();
    let _operator = ground.operator(&[]);
    let postgres = ground.cluster.postgres();
    let secrets = kube::Api::namespaced(client.clone(), NAMESPACE);
    let admin = postgres.admin();
    secret(&secrets, "main-admin", &[("username", &admin.user), ("password", &admin.password)]).await;
    secret(&secrets, "main-ca", &[("ca.crt", postgres.ca_pem())]).await;

    let folder = tempfile::tempdir().expect("a temporary folder");
    overlay(folder.path(), &ground);
    let built = folder.path().join("built.yaml");
    fs::write(&built, output(ground.cluster.kubectl().arg("kustomize").arg(folder.path()))).expect("a written file");
    let kubectl = |args: &[&str]| {
        let mut kubectl = ground.cluster.kubectl();
        output(kubectl.args(args).arg("-f").arg(&built))
    };
    kubectl(&["apply", "--server-side"]);
    let tenants = documents(&root().join("examples/tenants.yaml"));
    for tenant in &tenants {
        let name = tenant["metadata"]["name"].as_str().expect("a name");
        await_tenant(&client, name, "Ready", |tenant| is(tenant, "Ready", "True")).await;
    }

    // Counts in statuses follow a moment later; what an apply itself changes, it changes each time.
    let mut versions = (Vec::new(), Vec::new());
    let version = |object: &Value| {
        (object["kind"].clone(), object["metadata"]["name"].clone(), object["metadata"]["resourceVersion"].clone())
    };
    let same = eventually(async || {
        let before = all(&client).await.iter().map(version).collect();
        kubectl(&["apply", "--server-side"]);
        versions = (before, all(&client).await.iter().map(version).collect());
        (versions.0 == versions.1).then_some(())
    });
    assert!(same.await.is_some(), "applying the same again changes something: {versions:#?}");
    let diff = kubectl(&["diff", "--server-side"]);
    assert!(diff.is_empty(), "the operator changed what was applied:\n{diff}");

    let objects = all(&client).await;
    assert!(objects.len() > tenants.len() + 6, "{} objects", objects.len());
    let ours = objects.iter().filter(|object| object["kind"] != "ConfigMap");
    let unfinished: Vec<_> = ours.filter(|object| judged(object) != ("Current", "Healthy".into())).collect();
    assert!(unfinished.is_empty(), "{unfinished:#?}");
    // What the operator makes carries no mark by which a tool could take it for its own.
    for pool in dynamic(&client, &self::ours("Pool", "")).list(&ListParams::default()).await.expect("pools") {
        assert!(pool.annotations().keys().all(|key| !key.contains("kustomize") && !key.contains("last-applied")));
    }
}
