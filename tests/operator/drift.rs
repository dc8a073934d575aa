//! Whatever a person changes in the operator's objects is as it was a moment later; what is
//! nobody's business of ours stays.

use futures::future::join_all;
use kube::{
    Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    ground::{NAMESPACE, apply, await_pool, await_tenant, dynamic, eventually, is, ready_tenant, shared},
    verbs::{application, delete, named, of, patch, read, web},
};

const POOL: &str = "drifting-1";
const POOL_NAMESPACE: &str = "pool-drifting-1";

/// A child of the pool or of the tenant, with the changes that a person makes to it.
pub struct Child {
    pub object: Value,
    pub changes: Vec<Value>,
}

fn child(api_version: &str, kind: &str, name: &str, changes: impl IntoIterator<Item = Value>) -> Child {
    let namespace = (kind != "Namespace").then_some(POOL_NAMESPACE);
    Child { object: named(api_version, kind, namespace, name), changes: changes.into_iter().collect() }
}

pub fn add(path: &str, value: impl Into<Value>) -> Value {
    let value = value.into();
    json!([{"op": "add", "path": path, "value": value}])
}

pub fn remove(path: &str) -> Value {
    json!([{"op": "remove", "path": path}])
}

pub fn replace(path: &str, value: impl Into<Value>) -> Value {
    let value = value.into();
    json!([{"op": "replace", "path": path, "value": value}])
}

/// A change with which a person clears what says who set which field.
pub fn unsigned(path: &str, value: impl Into<Value>) -> Value {
    let value = value.into();
    json!([
        {"op": "replace", "path": "/metadata/managedFields", "value": [{}]},
        {"op": "add", "path": path, "value": value},
    ])
}

/// A label that says whose an object is: without it, or with another's, it is still ours.
fn mislabelled() -> [Value; 3] {
    [
        remove("/metadata/labels/tenantry.io~1pool"),
        replace("/metadata/labels/tenantry.io~1pool", "another-1"),
        remove("/metadata/labels/app.kubernetes.io~1managed-by"),
    ]
}

fn children() -> Vec<Child> {
    let pod = "/spec/template/spec";
    let spy = json!({"name": "spy", "image": "registry.example.com/spy:1"});
    vec![
        child(
            "v1",
            "Namespace",
            POOL_NAMESPACE,
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
                add(&format!("{pod}/containers/-"), spy.clone()),
                add(&format!("{pod}/containers/0"), spy.clone()),
                add(&format!("{pod}/initContainers/-"), spy),
                add(&format!("{pod}/containers/0/env/-"), json!({"name": "LD_PRELOAD", "value": "/spy.so"})),
                replace(&format!("{pod}/containers/0/image"), "registry.example.com/spy:1"),
                add(&format!("{pod}/volumes/-"), json!({"name": "spy", "emptyDir": {}})),
                add(&format!("{pod}/nodeSelector"), json!({"kubernetes.io/hostname": "mine"})),
                add("/spec/template/metadata/labels/team", "mine"),
                replace("/spec/replicas", 5),
                add("/spec/paused", true),
                unsigned(&format!("{pod}/volumes/-"), json!({"name": "spy", "emptyDir": {}})),
            ]
            .into_iter()
            .chain(mislabelled()),
        ),
        child(
            "v1",
            "Service",
            "web",
            [
                add("/spec/ports/0/name", "http"),
                json!([{"op": "add", "path": "/spec/ports/0/name", "value": "http"},
                   {"op": "add", "path": "/spec/ports/-", "value": {"name": "spy", "port": 9999}}]),
                replace("/spec/ports/0/port", 81),
                replace("/spec/ports/0/targetPort", 9999),
                add("/spec/selector/team", "mine"),
                add("/spec/externalIPs", json!(["203.0.113.7"])),
            ]
            .into_iter()
            .chain(mislabelled()),
        ),
        child(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            "default-deny",
            [
                add("/spec/egress", json!([{}])),
                add("/spec/ingress", json!([{}])),
                add("/spec/podSelector/matchLabels", json!({"team": "mine"})),
                replace("/spec/policyTypes", json!(["Ingress"])),
            ]
            .into_iter()
            .chain(mislabelled()),
        ),
        child(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            "allow-database",
            [
                add("/spec/egress/0/to/-", json!({"ipBlock": {"cidr": "0.0.0.0/0"}})),
                add("/spec/egress/-", json!({})),
                replace("/spec/egress/0/ports/0/port", 1),
                remove("/spec/egress/0/ports"),
            ],
        ),
        child(
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            "tenantry-agent",
            [
                add("/subjects/-", json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "mallory"})),
                unsigned(
                    "/subjects/-",
                    json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "mallory"}),
                ),
                replace("/subjects/0/name", "default"),
                remove("/subjects"),
            ]
            .into_iter()
            .chain(mislabelled()),
        ),
        child(
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            "tenantry-namespace",
            [
                add("/subjects/-", json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "mallory"})),
                remove("/subjects"),
            ],
        ),
        child(
            "v1",
            "ServiceAccount",
            "tenantry-agent",
            [replace("/automountServiceAccountToken", true), remove("/automountServiceAccountToken")],
        ),
        child(
            "policy/v1",
            "PodDisruptionBudget",
            "web",
            [replace("/spec/maxUnavailable", "100%"), replace("/spec/unhealthyPodEvictionPolicy", "IfHealthyBudget")]
                .into_iter()
                .chain(mislabelled()),
        ),
        child(
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            "worker",
            [
                replace("/spec/maxReplicas", 500),
                replace("/spec/metrics/0/resource/target/averageUtilization", 1),
                add("/spec/behavior", json!({"scaleDown": {"selectPolicy": "Disabled"}})),
            ],
        ),
        child(
            "v1",
            "ResourceQuota",
            "tenantry",
            [replace("/spec/hard/pods", "5000"), remove("/spec/hard/pods"), add("/spec/hard/configmaps", "9")],
        ),
        child(
            "v1",
            "ConfigMap",
            "drift-settings",
            [
                replace("/data/colour", "red"),
                remove("/data/colour"),
                add("/data/shape", "round"),
                add("/binaryData", json!({"bytes": "AAEC"})),
                unsigned("/data/shape", "round"),
                unsigned("/data/colour", "red"),
            ]
            .into_iter()
            .chain(mislabelled()),
        ),
        child(
            "v1",
            "Secret",
            "drift-token",
            [replace("/data/token", "c3RvbGVu"), add("/data/more", "bW9yZQ=="), remove("/data/token")],
        ),
        child(
            "v1",
            "Secret",
            "driftwood-database",
            [
                add("/data/more", "bW9yZQ=="),
                replace("/data/host", "c3B5LmV4YW1wbGU="),
                replace("/metadata/annotations/tenantry.io~1hosts", "stolen.example.com"),
                remove("/metadata/labels/tenantry.io~1tenant"),
                replace("/metadata/labels/tenantry.io~1tenant", "another"),
            ],
        ),
        child(
            "gateway.networking.k8s.io/v1",
            "HTTPRoute",
            "driftwood",
            [
                add("/spec/hostnames/-", "stolen.example.com"),
                replace("/spec/rules/0/backendRefs/0/name", "spy"),
                add("/spec/rules/-", json!({"backendRefs": [{"name": "spy", "port": 80}]})),
                replace("/spec/parentRefs/0/name", "internal"),
                unsigned("/spec/hostnames/-", "stolen.example.com"),
                remove("/metadata/labels/tenantry.io~1tenant"),
                replace("/metadata/labels/tenantry.io~1tenant", "another"),
            ],
        ),
    ]
}

/// What of an object a person could change.
fn content(live: &Value) -> Value {
    let mut content = live.clone();
    content.as_object_mut().expect("an object").remove("status");
    let metadata = content["metadata"].as_object_mut().expect("metadata");
    for field in ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"] {
        metadata.remove(field);
    }
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove("deployment.kubernetes.io/revision");
    }
    // The autoscaler's own.
    if content["kind"] == "Deployment" && content["metadata"]["name"] == "worker" {
        content["spec"].as_object_mut().expect("a spec").remove("replicas");
    }
    content
}

/// What of it is the same in an object that was made anew.
fn made_anew(live: &Value) -> Value {
    let mut content = content(live);
    for field in ["clusterIP", "clusterIPs"] {
        content["spec"].as_object_mut().map(|spec| spec.remove(field));
    }
    for map in ["labels", "annotations"] {
        if let Some(map) = content["metadata"].get_mut(map).and_then(Value::as_object_mut) {
            map.retain(|key, _| !key.starts_with("example.com/"));
        }
    }
    if content["metadata"]["annotations"].as_object().is_some_and(serde_json::Map::is_empty) {
        content["metadata"].as_object_mut().map(|metadata| metadata.remove("annotations"));
    }
    content
}

pub async fn edit(client: &Client, object: &Value, operations: &Value) -> Value {
    let name = object["metadata"]["name"].as_str().expect("a name");
    let params = PatchParams { field_manager: Some("a-person".into()), ..PatchParams::default() };
    let patch: Patch<Value> = Patch::Json(serde_json::from_value(operations.clone()).expect("a patch"));
    let edited = dynamic(client, object).patch(name, &params, &patch).await;
    serde_json::to_value(edited.unwrap_or_else(|error| panic!("{object}: {operations}: {error}"))).expect("JSON")
}

/// Makes each change, one after the other, and waits each time until it is undone.
pub async fn comes_back(client: &Client, child: &Child) {
    let object = &child.object;
    let what = format!("{} {}", object["kind"], object["metadata"]["name"]);
    assert!(read(client, object).await.is_some(), "{what} is not there");
    let mark = json!({"labels": {"example.com/team": "blue"}, "annotations": {"example.com/note": "kept"}});
    let before = content(&patch(client, object, &json!({"metadata": mark})).await);
    for change in &child.changes {
        let edited = edit(client, object, change).await;
        assert_ne!(content(&edited), before, "{what}: {change} changes nothing");
        let mut last = Value::Null;
        let back = eventually(async || {
            last = content(&read(client, object).await?);
            (last == before).then_some(())
        })
        .await;
        assert!(back.is_some(), "{what}: {change} stays: it is {last:#}\nand was {before:#}");
    }
    if object["kind"] == "Namespace" {
        return;
    }
    let old = read(client, object).await.expect("it is there");
    delete(client, object).await;
    let mut last = Value::Null;
    // A tenant's Secret is made anew with another password; the rotation's own tests look at it.
    let secret = object["metadata"]["name"].as_str().is_some_and(|name| name.ends_with("-database"));
    let back = eventually(async || {
        last = read(client, object).await?;
        let new = last["metadata"]["uid"] != old["metadata"]["uid"];
        (new && (secret || made_anew(&last) == made_anew(&old))).then_some(())
    })
    .await;
    assert!(back.is_some(), "{what}: once deleted it does not come back: {last:#}");
}

async fn ground(client: &Client) {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "drift-settings", "namespace": NAMESPACE}, "data": {"colour": "blue"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "drift-token", "namespace": NAMESPACE}, "data": {"token": "dG9rZW4="}});
    for object in [map, secret] {
        apply(client, &object).await.expect("a shared object");
    }
    let mut worker = web();
    worker["name"] = "worker".into();
    worker["port"] = Value::Null;
    worker["replicas"] = Value::Null;
    worker["autoscaling"] = json!({"pooled": {"minReplicas": 1, "maxReplicas": 3, "targetCpuPercent": 80}});
    let more = json!({
        "components": [web(), worker],
        "shared": {"secrets": ["drift-token"], "configMaps": ["drift-settings"]},
        "pools": {"quota": {"pods": 100}},
        "migrations": null,
    });
    application(client, "drifting", more).await;
    ready_tenant(client, "driftwood", of("drifting", json!({}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_child_is_brought_back() {
    let (_, client) = shared().await;
    ground(&client).await;
    let children = children();
    join_all(children.iter().map(|child| comes_back(&client, child))).await;

    // A restart that a person asks for is none of our business.
    let web = named("apps/v1", "Deployment", Some(POOL_NAMESPACE), "web");
    let restarted = json!({"kubectl.kubernetes.io/restartedAt": "2026-11-01T00:00:00Z"});
    patch(&client, &web, &json!({"spec": {"template": {"metadata": {"annotations": restarted}}}})).await;
    edit(&client, &web, &replace("/spec/template/spec/containers/0/image", "registry.example.com/spy:1")).await;
    let restored = eventually(async || {
        let live = read(&client, &web).await?;
        (live["spec"]["template"]["spec"]["containers"][0]["image"] != "registry.example.com/spy:1").then_some(live)
    })
    .await
    .expect("the image is back");
    assert_eq!(
        restored["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"],
        restarted["kubectl.kubernetes.io/restartedAt"]
    );

    // Everything at once.
    let namespace = named("v1", "Namespace", None, POOL_NAMESPACE);
    let old = read(&client, &namespace).await.expect("a namespace");
    dynamic(&client, &namespace).delete(POOL_NAMESPACE, &DeleteParams::default()).await.expect("a deletion");
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
    await_pool(&client, POOL, "Ready", |pool| {
        let conditions = pool.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        tenantry::api::is_true(conditions, tenantry::api::ConditionType::Ready)
    })
    .await;
    await_tenant(&client, "driftwood", "Ready", |tenant| is(tenant, "Ready", "True")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingress_is_brought_back() {
    let (_, client) = shared().await;
    let route = json!({"parentRefs": null, "ingressClassName": "nginx", "tls": {"secretName": "{tenant}-tls"}});
    application(&client, "ingress-drift", json!({"route": route, "migrations": null})).await;
    ready_tenant(&client, "flotsam", of("ingress-drift", json!({}))).await;
    let own = |name: &str| named("networking.k8s.io/v1", "Ingress", Some("pool-ingress-drift-1"), name);
    let stolen = json!({"host": "stolen.example.com"});
    let changes = vec![
        add("/spec/rules/-", stolen.clone()),
        replace("/spec/rules/0/host", "stolen.example.com"),
        replace("/spec/rules/0/http/paths/0/backend/service/name", "spy"),
        add("/spec/defaultBackend", json!({"service": {"name": "spy", "port": {"number": 80}}})),
        replace("/spec/ingressClassName", "internal"),
        remove("/spec/tls"),
        unsigned("/spec/rules/-", stolen),
        remove("/metadata/labels/tenantry.io~1tenant"),
        replace("/metadata/labels/tenantry.io~1tenant", "another"),
    ];
    comes_back(&client, &Child { object: own("flotsam"), changes }).await;
}
