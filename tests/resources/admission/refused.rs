//! What is refused, to whom, and in which words.

use serde_json::{Value, json};

use super::place::{
    ADMIN, ANYTHING, As, EDIT, EDITOR, NAMESPACE, NAMESPACES, OWNER, Refusal, core, deployment, labels, of, place,
    pod_spec,
};
use crate::ground::attempt;

/// What a policy's refusal always says last.
const WHO_MAY: &str = "by hand, only who may update Tenants can do this";

/// A call, and what the refusal has to say.
type Case = (&'static str, String, Value, &'static str);

const PEERS: &str =
    "peers are declared by the Application (spec.route.from, spec.egress) and the DatabaseServer (spec.network.to)";
const HOSTS: &str = "hosts are declared by the Tenant (spec.hosts), routes by the Application (spec.route)";
const ACCESS: &str = "who has access is declared by the Tenant (spec.owners)";
const REPLICAS: &str = "replicas and autoscaling are set by the Application, the Plan and the Tenant (spec.overrides)";
const AMOUNTS: &str = "amounts are set by the Plan (spec.quota, spec.limitRange)";
const CHANGE: &str = "belong to Tenant acme: change the Tenant, its Plan or its Application";
const RESTART: &str = "it can be restarted (kubectl rollout restart); for anything else change the Tenant";
const OWN: &str = "your own have none of its labels and another type";

fn object(api_version: &str, kind: &str, spec: &Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "mine"}, "spec": spec})
}

/// Everything that reaches credentials, networks, rights, workloads or amounts.
fn cases() -> Vec<Case> {
    let pod = |more: Value| json!({"metadata": {"labels": {"app": "mine"}}, "spec": pod_spec(more)});
    let reads = pod(json!({"volumes": [{"name": "stolen", "secret": {"secretName": "acme-database"}}]}));
    let deployment = |template: &Value| {
        object("apps/v1", "Deployment", &json!({"selector": {"matchLabels": {"app": "mine"}}, "template": template}))
    };
    let job = pod(json!({"restartPolicy": "Never"}));
    let mut bare = object("v1", "Pod", &reads["spec"]);
    bare["metadata"]["labels"] = labels();
    let balancer = json!({"type": "LoadBalancer", "selector": {"app": "mine"}, "ports": [{"port": 80}]});
    let open = json!({"podSelector": {}, "ingress": [{}], "egress": [{}], "policyTypes": ["Ingress", "Egress"]});
    let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
    let route =
        json!({"hostnames": ["other.crm.example.com"], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]});
    let grant = json!({"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "default"}], "to": [{"group": "", "kind": "Service"}]});
    let rights = "rbac.authorization.k8s.io/v1";
    let mut binding = object(rights, "RoleBinding", &Value::Null);
    binding["roleRef"] = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"});
    binding["subjects"] = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "friend"}]);
    let mut role = object(rights, "Role", &Value::Null);
    role["rules"] = json!([]);
    let scaler =
        json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "maxReplicas": 9});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "mine", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4", "endpoints": [{"addresses": ["203.0.113.9"]}]});
    let scale = json!({"spec": {"replicas": 0}});
    let patch = |field: &str| json!({"spec": {field: Value::Null}, "metadata": {"labels": {"app.kubernetes.io/managed-by": Value::Null}}});
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let own_secret = |type_: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine", "annotations": {"kubernetes.io/service-account.name": "default"}}, "type": type_});
    let marked = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine", "labels": labels()}});
    let unmark = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null, "tenantry.io/tenant": null, "app.kubernetes.io/part-of": null}}});
    let (networking, gateway) = ("networking.k8s.io/v1", "gateway.networking.k8s.io/v1");
    vec![
        ("POST", of(networking, "networkpolicies"), object(networking, "NetworkPolicy", &open), PEERS),
        ("PATCH", of(networking, "networkpolicies/deny"), json!({"spec": {"egress": [{}]}}), PEERS),
        ("DELETE", of(networking, "networkpolicies/deny"), Value::Null, PEERS),
        ("DELETE", of(networking, "networkpolicies"), Value::Null, PEERS),
        (
            "POST",
            of(networking, "ingresses"),
            object(networking, "Ingress", &json!({"defaultBackend": backend})),
            HOSTS,
        ),
        ("POST", of(gateway, "httproutes"), object(gateway, "HTTPRoute", &route), HOSTS),
        ("PATCH", of(gateway, "httproutes/acme"), json!({"spec": {"hostnames": ["other.crm.example.com"]}}), HOSTS),
        ("DELETE", of(gateway, "httproutes/acme"), Value::Null, HOSTS),
        (
            "POST",
            of("gateway.networking.k8s.io/v1", "referencegrants"),
            object(gateway, "ReferenceGrant", &grant),
            HOSTS,
        ),
        ("POST", of(rights, "rolebindings"), binding, ACCESS),
        ("DELETE", of(rights, "rolebindings/tenantry-namespace"), Value::Null, ACCESS),
        ("POST", of(rights, "roles"), role, ACCESS),
        ("POST", core("services"), object("v1", "Service", &balancer), CHANGE),
        ("PATCH", core("services/web"), json!({"spec": {"type": "LoadBalancer"}}), CHANGE),
        ("DELETE", core("services/web"), Value::Null, CHANGE),
        ("POST", of("discovery.k8s.io/v1", "endpointslices"), slice, CHANGE),
        ("POST", core("pods"), bare, CHANGE),
        ("DELETE", core("pods"), Value::Null, CHANGE),
        ("POST", of("apps/v1", "deployments"), deployment(&reads), CHANGE),
        ("DELETE", of("apps/v1", "deployments/web"), Value::Null, CHANGE),
        ("DELETE", of("apps/v1", "deployments"), Value::Null, CHANGE),
        ("POST", of("batch/v1", "jobs"), object("batch/v1", "Job", &json!({"template": job})), CHANGE),
        ("PATCH", of("apps/v1", "deployments/web/scale"), scale.clone(), REPLICAS),
        ("PATCH", of("apps/v1", "deployments/web"), scale, RESTART),
        ("PATCH", of("apps/v1", "deployments/web"), patch("paused"), RESTART),
        (
            "POST",
            of("autoscaling/v2", "horizontalpodautoscalers"),
            object("autoscaling/v2", "HorizontalPodAutoscaler", &scaler),
            REPLICAS,
        ),
        ("PATCH", core("resourcequotas/tenantry"), json!({"spec": {"hard": {"pods": "4000"}}}), AMOUNTS),
        ("DELETE", core("resourcequotas/tenantry"), Value::Null, AMOUNTS),
        ("POST", core("serviceaccounts/default/token"), token, CHANGE),
        ("PATCH", of("policy/v1", "poddisruptionbudgets/web"), json!({"spec": {"maxUnavailable": 2}}), CHANGE),
        ("PATCH", core("secrets/acme-database"), json!({"data": {"password": "bmV3"}}), OWN),
        ("PATCH", core("secrets/acme-database"), unmark.clone(), OWN),
        ("DELETE", core("secrets/acme-database"), Value::Null, OWN),
        ("POST", core("secrets"), own_secret("kubernetes.io/service-account-token"), OWN),
        ("POST", core("secrets"), own_secret("servicebinding.io/postgresql"), OWN),
        ("PATCH", core("configmaps/shared"), json!({"data": {"a": "2"}}), OWN),
        ("PATCH", core("configmaps/shared"), unmark, OWN),
        ("DELETE", core("configmaps/shared"), Value::Null, OWN),
        ("POST", core("configmaps"), marked, OWN),
    ]
}

/// Takes the words of a refusal by a policy; a refusal by RBAC has none.
fn hold(who: &str, case: &Case, answer: Result<Value, Refusal>) -> Result<bool, String> {
    let (method, path, _, says) = case;
    match answer {
        Ok(_) => Err(format!("{who}: {method} {path} was done")),
        Err(refusal) if refusal.code != 403 => {
            Err(format!("{who}: {method} {path}: {} {}", refusal.code, refusal.message))
        }
        Err(refusal) if refusal.message.contains("ValidatingAdmissionPolicy") => {
            let complete = refusal.message.contains(says) && refusal.message.contains(WHO_MAY);
            if complete {
                Ok(true)
            } else {
                Err(format!("{who}: {method} {path}: should say {says:?}\n  but says {}", refusal.message))
            }
        }
        Err(_) => Ok(false),
    }
}

/// Nobody gets through, whatever RBAC gives them in the namespace, and who is stopped by a
/// policy is told what to do instead.
#[tokio::test]
async fn nobody_changes_what_the_operator_makes() {
    let ground = place();
    let mut wrong = Vec::new();
    let mut by_policy = Vec::new();
    let cases = cases();
    for who in [OWNER, EDIT, ADMIN, ANYTHING] {
        let person = As::user(ground, who, &[]).await;
        let mut count = 0;
        for case in &cases {
            let answer = person.call(case.0, &case.1, &case.2).await;
            match hold(who, case, answer) {
                Ok(policy) => count += usize::from(policy),
                Err(error) => wrong.push(error),
            }
        }
        by_policy.push(count);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(by_policy[3], cases.len(), "RBAC stops her nowhere");
    assert!(by_policy[1] >= 20 && by_policy[2] >= 25, "edit and admin go far in RBAC: {by_policy:?}");
}

/// Nothing was lost by all that.
#[tokio::test]
async fn a_collection_is_refused_without_losing_a_part() {
    let ground = place();
    let eve = As::user(ground, ANYTHING, &[]).await;
    eve.must(
        "POST",
        &core("configmaps"),
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a-list", "labels": {"of": "eve"}}}),
    )
    .await;
    let refused =
        eve.call("DELETE", &core("configmaps"), &Value::Null).await.expect_err("the operator's are among them");
    assert!(refused.message.contains(OWN), "{}", refused.message);
    eve.must("GET", &core("configmaps/shared"), &Value::Null).await;
    eve.must("DELETE", &format!("{}?labelSelector=of%3Deve", core("configmaps")), &Value::Null).await;
}

/// Nobody enters a pod: who is in it reads the tenant's credentials.
#[tokio::test]
async fn nobody_enters_a_pod() {
    let ground = place();
    let administrator = As::administrator(ground).await;
    let pods =
        administrator.must("GET", &core("pods?labelSelector=app.kubernetes.io/component%3Dweb"), &Value::Null).await;
    let pod = pods["items"][0]["metadata"]["name"].as_str().expect("a pod").to_owned();
    for who in [EDIT, ADMIN, ANYTHING] {
        for args in [
            vec!["exec", &pod, "--", "cat", "/etc/passwd"],
            vec!["attach", &pod],
            vec!["port-forward", &pod, ":8080"],
            vec!["debug", &pod, "--image=registry.example.com/shell", "--profile=restricted"],
        ] {
            let mut kubectl = ground.kubectl();
            if who != ANYTHING && args[0] == "debug" {
                continue; // RBAC gives them none.
            }
            let (done, _, errors) = attempt(kubectl.args(["-n", NAMESPACE, "--as", who]).args(&args));
            assert!(!done, "{who}: {args:?}");
            let says = "nobody enters pods that hold credentials of customers";
            assert!(errors.contains(says) && errors.contains(WHO_MAY), "{who}: {args:?}: {errors}");
        }
    }
    let owner = As::user(ground, OWNER, &[]).await;
    for path in [core("secrets/acme-database"), core("secrets"), of("rbac.authorization.k8s.io/v1", "rolebindings")] {
        assert_eq!(owner.call("GET", &path, &Value::Null).await.expect_err("nothing for owners").code, 403, "{path}");
    }
}

/// The namespaces themselves stay, with their labels, and nobody makes one in the operator's name.
#[tokio::test]
async fn namespaces_are_the_operators_own() {
    let ground = place();
    let nora = As::user(ground, NAMESPACES, &[]).await;
    let ours = format!("/api/v1/namespaces/{NAMESPACE}");
    let changed = "is made and removed by Tenantry: change or delete the Tenant or Pool that it is for";
    let forged = "has labels or the field manager of Tenantry, which makes its namespaces itself: leave them out";
    let label = |key: &str, value: Value| json!({"metadata": {"labels": {key: value}}});
    let all = "/api/v1/namespaces";
    let namespace = |name: &str, labels: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    for (method, path, body, says) in [
        ("PATCH", ours.clone(), label("app.kubernetes.io/managed-by", Value::Null), changed),
        ("PATCH", ours.clone(), label("app.kubernetes.io/managed-by", json!("nora")), changed),
        ("PATCH", ours.clone(), label("tenantry.io/tenant", json!("bolt")), changed),
        ("PATCH", ours.clone(), label("pod-security.kubernetes.io/enforce", json!("privileged")), changed),
        ("PUT", ours.clone(), namespace(NAMESPACE, json!({})), changed),
        ("DELETE", ours.clone(), Value::Null, changed),
        ("POST", all.into(), namespace("tenant-nora", labels()), forged),
        ("POST", all.into(), namespace("tenant-nora", json!({"tenantry.io/tenant": "nora"})), forged),
        ("POST", format!("{all}?fieldManager=tenantry"), namespace("tenant-nora", json!({})), forged),
    ] {
        let refusal = nora.call(method, &path, &body).await.expect_err("refused");
        assert!(refusal.message.contains(says), "{method} {path} {body}: {}", refusal.message);
    }
    // Everybody's other namespaces are none of this.
    nora.must("POST", all, &namespace("tenant-of-nobody", json!({"team": "nora"}))).await;
    nora.must("PATCH", "/api/v1/namespaces/tenant-of-nobody", &label("team", json!("other"))).await;
    let claimed = nora
        .call("PATCH", "/api/v1/namespaces/tenant-of-nobody", &label("app.kubernetes.io/managed-by", json!("tenantry")))
        .await;
    assert_eq!(claimed.expect_err("nor by a label put on later").code, 403);
    nora.must("DELETE", "/api/v1/namespaces/tenant-of-nobody", &Value::Null).await;
}

/// What nobody meant stays open: own ConfigMaps, Secrets and volumes, eviction, the status that
/// gateways and controllers write; and other namespaces.
#[tokio::test]
async fn the_rest_stays_open() {
    let ground = place();
    let owner = As::user(ground, OWNER, &[]).await;
    let own = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "own", "labels": {"app.kubernetes.io/managed-by": "acme"}}});
    owner.must("POST", &core("configmaps"), &own).await;
    owner.must("PATCH", &core("configmaps/own"), &json!({"data": {"a": "1"}})).await;
    let claim = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "tenantry"}}});
    owner.call("PATCH", &core("configmaps/own"), &claim).await.expect_err("not as the operator's");
    owner.must("DELETE", &core("configmaps/own"), &Value::Null).await;
    for path in
        [core("pods"), core("events"), of("apps/v1", "replicasets"), of("networking.k8s.io/v1", "networkpolicies")]
    {
        owner.must("GET", &path, &Value::Null).await;
    }

    let eve = As::user(ground, ANYTHING, &[]).await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"}, "type": "Opaque"});
    eve.must("POST", &core("secrets"), &secret).await;
    eve.must("DELETE", &core("secrets/tls"), &Value::Null).await;
    let volume = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    eve.must("POST", &core("persistentvolumeclaims"), &object("v1", "PersistentVolumeClaim", &volume)).await;
    eve.must("DELETE", &core("persistentvolumeclaims/mine"), &Value::Null).await;
    let accepted = json!({"status": {"parents": []}});
    eve.must("PATCH", &of("gateway.networking.k8s.io/v1", "httproutes/acme/status"), &accepted).await;
    let pods = eve.must("GET", &core("pods"), &Value::Null).await;
    let pod = pods["items"][0]["metadata"]["name"].as_str().expect("a pod");
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}});
    eve.must("POST", &format!("{}/{pod}/eviction?dryRun=All", core("pods")), &eviction).await;
}

/// Who may update Tenants could make the operator do the same; so nothing holds them, nor the
/// cluster's administrator.
#[tokio::test]
async fn who_may_update_tenants_is_not_held() {
    let ground = place();
    for person in [As::user(ground, EDITOR, &[]).await, As::administrator(ground).await] {
        let scale = of("apps/v1", "deployments/web/scale?dryRun=All");
        person.must("PATCH", &scale, &json!({"spec": {"replicas": 3}})).await;
        person.must("POST", &of("apps/v1", "deployments?dryRun=All"), &deployment("other", Some(1))).await;
        person.must("PATCH", &core("configmaps/shared?dryRun=All"), &json!({"data": {"a": "2"}})).await;
        person.must("DELETE", &core("services/web?dryRun=All"), &Value::Null).await;
    }
}
