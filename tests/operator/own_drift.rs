//! In a tenant's own namespace, too, whatever a person changes is as it was a moment later.

use futures::future::join_all;
use serde_json::{Value, json};

use super::{
    bridge::bridge,
    drift::{Child, add, comes_back, remove, replace},
    ground::{NAMESPACE, apply, await_tenant, dynamic, eventually, is, ready_tenant, shared},
    steps::plan,
    verbs::{application, named, patch, read, web},
};

const TENANT_NAMESPACE: &str = "tenant-own-drift";

fn child(api_version: &str, kind: &str, name: &str, changes: impl IntoIterator<Item = Value>) -> Child {
    let namespace = (kind != "Namespace").then_some(TENANT_NAMESPACE);
    Child { object: named(api_version, kind, namespace, name), changes: changes.into_iter().collect() }
}

/// A label that says whose an object is: without it, or with another's, it is still ours.
fn mislabelled() -> [Value; 3] {
    [
        remove("/metadata/labels/tenantry.io~1tenant"),
        replace("/metadata/labels/tenantry.io~1tenant", "another"),
        remove("/metadata/labels/app.kubernetes.io~1managed-by"),
    ]
}

fn children() -> Vec<Child> {
    let pod = "/spec/template/spec";
    let mallory = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "mallory"});
    vec![
        child(
            "v1",
            "Namespace",
            TENANT_NAMESPACE,
            [
                replace("/metadata/labels/pod-security.kubernetes.io~1enforce", "privileged"),
                remove("/metadata/labels/pod-security.kubernetes.io~1enforce"),
            ]
            .into_iter()
            .chain(mislabelled()),
        ),
        child(
            "apps/v1",
            "Deployment",
            "web",
            [
                add(&format!("{pod}/containers/-"), json!({"name": "spy", "image": "registry.example.com/spy:1"})),
                replace(&format!("{pod}/containers/0/image"), "registry.example.com/spy:1"),
                replace(&format!("{pod}/serviceAccountName"), "default"),
                replace(&format!("{pod}/automountServiceAccountToken"), true),
                add(&format!("{pod}/volumes/-"), json!({"name": "spy", "emptyDir": {}})),
                replace("/spec/replicas", 5),
                add("/spec/paused", true),
            ]
            .into_iter()
            .chain(mislabelled()),
        ),
        child(
            "v1",
            "Service",
            "web",
            [
                json!([{"op": "add", "path": "/spec/ports/0/name", "value": "http"},
                   {"op": "add", "path": "/spec/ports/-", "value": {"name": "spy", "port": 9999}}]),
                replace("/spec/ports/0/port", 81),
                add("/spec/selector/team", "mine"),
            ]
            .into_iter()
            .chain(mislabelled()),
        ),
        child(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            "default-deny",
            [add("/spec/egress", json!([{}])), add("/spec/ingress", json!([{}]))].into_iter().chain(mislabelled()),
        ),
        child(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            "allow-database",
            [add("/spec/egress/0/to/-", json!({"ipBlock": {"cidr": "0.0.0.0/0"}})), remove("/spec/egress/0/ports")],
        ),
        child(
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            "tenantry-owner",
            [add("/subjects/-", mallory.clone()), replace("/subjects/0/name", "mallory"), remove("/subjects")]
                .into_iter()
                .chain(mislabelled()),
        ),
        child(
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            "tenantry-namespace",
            [add("/subjects/-", mallory), remove("/subjects")],
        ),
        child(
            "v1",
            "ServiceAccount",
            "tenantry-workload",
            [replace("/automountServiceAccountToken", true), remove("/automountServiceAccountToken")],
        ),
        child("policy/v1", "PodDisruptionBudget", "web", [replace("/spec/maxUnavailable", "100%")]),
        child(
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            "worker",
            [replace("/spec/maxReplicas", 5), replace("/spec/metrics/0/resource/target/averageUtilization", 1)],
        ),
        child(
            "v1",
            "ResourceQuota",
            "tenantry",
            [replace("/spec/hard/pods", "5000"), remove("/spec/hard/pods"), add("/spec/hard/configmaps", "9")],
        ),
        child(
            "v1",
            "LimitRange",
            "tenantry",
            [
                replace("/spec/limits/0/default/memory", "4Gi"),
                add("/spec/limits/-", json!({"type": "Pod", "max": {"cpu": "64"}})),
            ]
            .into_iter()
            .chain(mislabelled()),
        ),
        child(
            "v1",
            "ConfigMap",
            "tenantry-tenant",
            [replace("/data/plan", "enterprise"), remove("/data/plan"), add("/data/more", "mine")]
                .into_iter()
                .chain(mislabelled()),
        ),
        child("v1", "ConfigMap", "own-settings", [replace("/data/colour", "red"), add("/data/shape", "round")]),
        child("v1", "Secret", "own-token", [replace("/data/token", "c3RvbGVu"), remove("/data/token")]),
        child(
            "v1",
            "Secret",
            "own-drift-database",
            [
                add("/data/more", "bW9yZQ=="),
                replace("/data/host", "c3B5LmV4YW1wbGU="),
                replace("/metadata/annotations/tenantry.io~1hosts", "stolen.example.com"),
            ]
            .into_iter()
            .chain(mislabelled()),
        ),
        child(
            "gateway.networking.k8s.io/v1",
            "HTTPRoute",
            "own-drift",
            [add("/spec/hostnames/-", "stolen.example.com"), replace("/spec/rules/0/backendRefs/0/name", "spy")]
                .into_iter()
                .chain(mislabelled()),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_child_of_a_namespace_of_ones_own_is_brought_back() {
    let (_, client) = shared().await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "own-settings", "namespace": NAMESPACE}, "data": {"colour": "blue"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "own-token", "namespace": NAMESPACE}, "data": {"token": "dG9rZW4="}});
    for object in [map, secret] {
        apply(&client, &object).await.expect("a shared object");
    }
    let (mut front, mut worker) = (web(), web());
    front["replicas"] = json!({"bridge": 2});
    worker["name"] = "worker".into();
    worker["port"] = Value::Null;
    worker["replicas"] = Value::Null;
    worker["autoscaling"] = json!({"bridge": {"minReplicas": 1, "maxReplicas": 3, "targetCpuPercent": 80}});
    let more = json!({
        "components": [front, worker],
        "shared": {"secrets": ["own-token"], "configMaps": ["own-settings"]},
        "migrations": null,
    });
    application(&client, "own-drift", more).await;
    plan(&client, "own-drift", json!({})).await;
    let spec = json!({"spec": {"plan": "own-drift", "owners": [{"kind": "User", "name": "olga"}]}});
    ready_tenant(&client, "own-drift", bridge("own-drift", spec)).await;
    let children = children();
    join_all(children.iter().map(|child| comes_back(&client, child))).await;

    // Everything at once.
    let namespace = named("v1", "Namespace", None, TENANT_NAMESPACE);
    let old = read(&client, &namespace).await.expect("a namespace");
    dynamic(&client, &namespace).delete(TENANT_NAMESPACE, &Default::default()).await.expect("a deletion");
    let made = eventually(async || {
        let live = read(&client, &namespace).await?;
        (live["metadata"]["uid"] != old["metadata"]["uid"]).then_some(())
    })
    .await;
    assert!(made.is_some(), "the namespace does not come back: {:#?}", read(&client, &namespace).await);
    for child in &children {
        let back = eventually(async || read(&client, &child.object).await).await;
        assert!(back.is_some(), "{} does not come back with its namespace", child.object);
    }
    await_tenant(&client, "own-drift", "Ready", |tenant| is(tenant, "Ready", "True")).await;

    // What is no longer wanted goes.
    let nobody = json!({"spec": {"owners": null}});
    patch(&client, &super::verbs::ours("Tenant", "own-drift"), &nobody).await;
    let owners = named("rbac.authorization.k8s.io/v1", "RoleBinding", Some(TENANT_NAMESPACE), "tenantry-owner");
    let gone = eventually(async || read(&client, &owners).await.is_none().then_some(())).await;
    assert!(gone.is_some(), "the owners' rights stay");
}
