//! Kubernetes itself goes on: each of its controllers acts as the user that it really has.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::place::{As, apply, core, deployment, labels, of, place};
use crate::{chart::render, ground::output};

/// Every controller of this Kubernetes whose role lets it write a kind that is closed is
/// exempt by its exact name, and no name is there for nothing.
#[tokio::test]
async fn every_controller_that_writes_there_is_exempt() {
    let administrator = As::administrator(place()).await;
    let roles = administrator.must("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles", &Value::Null).await;
    let policy = policy("tenantry-objects");
    let closed: Vec<(String, String)> = ["tenantry-objects", "tenantry-restart", "tenantry-contents"]
        .iter()
        .flat_map(|name| {
            self::policy(name)["spec"]["matchConstraints"]["resourceRules"].as_array().cloned().expect("rules")
        })
        .flat_map(|rule| {
            let all = |field: &str| strings(&rule[field]);
            all("apiGroups").into_iter().flat_map(move |group| {
                strings(&rule["resources"]).into_iter().map(move |resource| (group.clone(), resource))
            })
        })
        .collect();
    let matches = |rule: &Value| {
        let (groups, resources, verbs) =
            (strings(&rule["apiGroups"]), strings(&rule["resources"]), strings(&rule["verbs"]));
        let writes = verbs
            .iter()
            .any(|verb| ["*", "create", "update", "patch", "delete", "deletecollection"].contains(&verb.as_str()));
        writes
            && groups.iter().any(|group| {
                resources.iter().any(|resource| {
                    closed.iter().any(|(of, kind)| {
                        let sub = |pattern: &str| {
                            pattern.strip_prefix('*').is_some_and(|end| end.starts_with('/') && resource.ends_with(end))
                        };
                        (group == of || group == "*")
                            && (resource == "*"
                                || resource == kind
                                || (kind == "*" && !resource.contains('/'))
                                || sub(kind))
                    })
                })
            })
    };
    // The ConfigMap with the cluster's CA has no mark of the operator's, and the other two write
    // what is in no namespace.
    let harmless = ["root-ca-cert-publisher", "clusterrole-aggregation-controller", "service-cidrs-controller"];
    let condition = policy["spec"]["matchConditions"][0]["expression"].as_str().expect("an expression").to_owned();
    let mut needed = BTreeSet::new();
    for role in roles["items"].as_array().expect("a list") {
        let name = role["metadata"]["name"].as_str().expect("a name");
        let Some(controller) = name.strip_prefix("system:controller:") else { continue };
        if role["rules"].as_array().into_iter().flatten().any(matches) && !harmless.contains(&controller) {
            needed.insert(format!("system:serviceaccount:kube-system:{controller}"));
        }
    }
    let exempt: BTreeSet<String> = condition
        .split('"')
        .filter(|part| part.starts_with("system:serviceaccount:kube-system:"))
        .map(str::to_owned)
        .collect();
    let missing: Vec<_> = needed.difference(&exempt).collect();
    let idle: Vec<_> = exempt.difference(&needed).collect();
    assert!(missing.is_empty(), "held, although they write there: {missing:?}");
    assert!(idle.is_empty(), "exempt for nothing: {idle:?}");
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|item| item.as_str().expect("a string").to_owned()).collect()
}

fn policy(name: &str) -> Value {
    let objects: Vec<Value> = serde_saphyr::from_multiple(&render("")).expect("YAML");
    let found = objects
        .into_iter()
        .find(|object| object["kind"] == "ValidatingAdmissionPolicy" && object["metadata"]["name"] == name);
    found.expect("a policy")
}

/// A rollout, an autoscaler, a node's eviction, a cascading deletion.
#[tokio::test]
async fn rollout_autoscaling_and_cascading_deletion_work() {
    let operator = As::operator(place()).await;
    let deployments = of("apps/v1", "deployments");
    apply(&operator, &deployments, &deployment("shop", Some(2))).await;
    let path = of("apps/v1", "deployments/shop");
    let rolled = |replicas: u64, revision: &'static str| {
        move |object: &Value| {
            let status = &object["status"];
            status["observedGeneration"] == object["metadata"]["generation"]
                && status["availableReplicas"] == replicas
                && status["updatedReplicas"] == replicas
                && status["replicas"] == replicas
                && object["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == revision
        }
    };
    operator.until(&path, "rolled out", rolled(2, "1")).await;

    let mut next = deployment("shop", None);
    next["spec"]["template"]["spec"]["containers"][0]["image"] = json!("registry.example.com/web:2");
    apply(&operator, &deployments, &next).await;
    // Nobody holds the count now, and the default is 1.
    operator.until(&path, "rolled out again", rolled(1, "2")).await;

    // Below its minimum the autoscaler needs no metrics.
    let scaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "shop", "labels": labels()},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"},
            "minReplicas": 4, "maxReplicas": 5,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}],
        },
    });
    apply(&operator, &of("autoscaling/v2", "horizontalpodautoscalers"), &scaler).await;
    operator.until(&path, "scaled", rolled(4, "2")).await;
    operator.must("DELETE", &of("autoscaling/v2", "horizontalpodautoscalers/shop"), &Value::Null).await;

    operator.must("DELETE", &format!("{path}?propagationPolicy=Background"), &Value::Null).await;
    let none = |list: &Value| list["items"].as_array().is_some_and(Vec::is_empty);
    let of_shop = "labelSelector=app.kubernetes.io/component%3Dshop";
    let administrator = As::administrator(place()).await;
    administrator.until(&of("apps/v1", &format!("replicasets?{of_shop}")), "removed", none).await;
    administrator.until(&core(&format!("pods?{of_shop}")), "removed", none).await;
}

/// A namespace goes with everything in it.
#[tokio::test]
async fn a_namespace_is_deleted_whole() {
    let ground = place();
    let (operator, administrator) = (As::operator(ground).await, As::administrator(ground).await);
    let mut of_bolt = labels();
    of_bolt["tenantry.io/tenant"] = json!("bolt");
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tenant-bolt", "labels": of_bolt}});
    apply(&operator, "/api/v1/namespaces", &namespace).await;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "tenantry-namespace", "labels": of_bolt},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "tenantry-namespace"},
        "subjects": [{"kind": "ServiceAccount", "name": "tenantry", "namespace": "tenantry-system"}],
    });
    apply(&operator, "/apis/rbac.authorization.k8s.io/v1/namespaces/tenant-bolt/rolebindings", &binding).await;
    let path = "/apis/apps/v1/namespaces/tenant-bolt/deployments/web";
    while operator
        .call("APPLY", &format!("{path}?fieldManager=tenantry&force=true"), &deployment("web", Some(1)))
        .await
        .is_err()
    {
        tokio::task::yield_now().await;
    }
    administrator.until(path, "available", |web| web["status"]["availableReplicas"] == 1).await;
    operator.must("DELETE", "/api/v1/namespaces/tenant-bolt", &Value::Null).await;
    administrator.until("/api/v1/namespaces/tenant-bolt", "gone", Value::is_null).await;
}

/// No policy has an expression that the API server's own checker finds fault with.
#[test]
fn the_api_server_finds_no_fault_with_the_policies() {
    let mut kubectl = place().kubectl();
    kubectl.args(["get", "validatingadmissionpolicy", "-l", "app.kubernetes.io/part-of=tenantry", "-o", "json"]);
    let list: Value = serde_json::from_str(&output(&mut kubectl)).expect("JSON");
    let policies = list["items"].as_array().expect("a list");
    assert_eq!(policies.len(), 5);
    for policy in policies {
        let warnings = &policy["status"]["typeChecking"]["expressionWarnings"];
        assert!(warnings.is_null(), "{}: {warnings:#}", policy["metadata"]["name"]);
    }
}
