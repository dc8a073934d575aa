//! Owners restart their Deployments, and change nothing else of them.

use serde_json::{Value, json};

use super::place::{ANYTHING, As, NAMESPACE, OWNER, apply, deployment, of, place};
use crate::ground::{attempt, output};

const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";

#[tokio::test]
async fn an_owner_restarts_and_the_pods_are_replaced() {
    let ground = place();
    let (operator, owner) = (As::operator(ground).await, As::user(ground, OWNER, &[]).await);
    apply(&operator, &of("apps/v1", "deployments"), &deployment("worker", Some(2))).await;
    let path = of("apps/v1", "deployments/worker");
    let available =
        |object: &Value| object["status"]["availableReplicas"] == 2 && object["status"]["updatedReplicas"] == 2;
    operator.until(&path, "available", available).await;
    let kubectl = |args: &[&str]| {
        let mut kubectl = ground.kubectl();
        kubectl.args(["-n", NAMESPACE, "--as", OWNER]).args(args);
        kubectl
    };
    // Once to set the annotation, once to change it.
    for _ in 0..2 {
        let before = owner.must("GET", &path, &Value::Null).await;
        // kubectl refuses a second restart within the same second.
        while !attempt(&mut kubectl(&["rollout", "restart", "deployment/worker"])).0 {}
        let restarted = owner.must("GET", &path, &Value::Null).await;
        assert_ne!(restarted["metadata"]["generation"], before["metadata"]["generation"]);
        output(&mut kubectl(&["rollout", "status", "deployment/worker", "--timeout=60s"]));
    }
    let sets = owner.must("GET", &of("apps/v1", "replicasets"), &Value::Null).await;
    let mine = sets["items"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|set| set["metadata"]["ownerReferences"][0]["name"] == "worker");
    assert_eq!(mine.count(), 3, "each restart made a ReplicaSet");
    operator.must("DELETE", &path, &Value::Null).await;
}

/// The restart is the only change: nothing rides on it, and nothing looks like it.
#[tokio::test]
async fn nothing_else_of_a_deployment_changes() {
    let ground = place();
    let path = of("apps/v1", "deployments/web");
    let restart = |more: Value| {
        let mut patch = json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: "now"}}}}});
        merge(&mut patch, more);
        patch
    };
    let container = |name: &str| json!([{"name": name, "image": "registry.example.com/other:1"}]);
    for who in [OWNER, ANYTHING] {
        let person = As::user(ground, who, &[]).await;
        for change in [
            json!({"metadata": {"labels": {"a": "b"}}}),
            json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}}),
            json!({"metadata": {"annotations": {"a": "b"}}}),
            json!({"metadata": {"annotations": {RESTARTED_AT: "now"}}}),
            json!({"metadata": {"finalizers": ["a.example/b"]}}),
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "y"}]}}),
            json!({"spec": {"replicas": 5}}),
            json!({"spec": {"paused": true}}),
            json!({"spec": {"progressDeadlineSeconds": 1}}),
            json!({"spec": {"minReadySeconds": 60}}),
            json!({"spec": {"revisionHistoryLimit": 0}}),
            json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": "100%"}}}}),
            json!({"spec": {"template": {"metadata": {"annotations": {"sidecar.example/inject": "true"}}}}}),
            json!({"spec": {"template": {"metadata": {"annotations": {"team": null}}}}}),
            json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}),
            json!({"spec": {"template": {"metadata": {"name": "a"}}}}),
            json!({"spec": {"template": {"spec": {"containers": container("web")}}}}),
            json!({"spec": {"template": {"spec": {"hostNetwork": true}}}}),
            json!({"spec": {"template": {"spec": {"serviceAccountName": "other"}}}}),
            json!({"spec": {"template": {"spec": {"volumes": [{"name": "s", "secret": {"secretName": "acme-database"}}]}}}}),
        ] {
            let changed = restart(change.clone());
            for patch in [&change, &changed] {
                let refusal = person.call("PATCH", &format!("{path}?dryRun=All"), patch).await.expect_err("refused");
                assert_eq!(refusal.code, 403, "{who}: {patch}: {}", refusal.message);
                assert!(refusal.message.contains("tenantry-restart"), "{who}: {patch}: {}", refusal.message);
            }
        }
        person.must("PATCH", &format!("{path}?dryRun=All"), &restart(json!({}))).await;
    }
}

fn merge(value: &mut Value, more: Value) {
    match (value, more) {
        (Value::Object(value), Value::Object(more)) => {
            for (key, more) in more {
                merge(value.entry(key).or_insert(Value::Null), more);
            }
        }
        (value, more) => *value = more,
    }
}
