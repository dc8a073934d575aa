//! A tenant's namespace as the operator makes it, and the people around it.

use std::sync::OnceLock;

use devcluster::Devcluster;
use http::{Method, Request};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use crate::ground::with_chart;

/// The tenant's namespace.
pub const NAMESPACE: &str = "tenant-acme";
/// One of the tenant's owners: ClusterRole tenantry-owner in the namespace.
pub const OWNER: &str = "olga@acme.example";
/// Somebody with Kubernetes' own ClusterRole `edit` in the namespace.
pub const EDIT: &str = "eddy@acme.example";
/// Somebody with Kubernetes' own ClusterRole `admin` in the namespace.
pub const ADMIN: &str = "ada@acme.example";
/// Somebody whom RBAC allows everything in the namespace: what stops her are the policies.
pub const ANYTHING: &str = "eve@acme.example";
/// Somebody whom RBAC allows everything with Namespaces, and nothing else.
pub const NAMESPACES: &str = "nora@platform.example";
/// Somebody who may update Tenants (tenantry-tenant-editor), and everything in the namespace.
pub const EDITOR: &str = "ed@platform.example";

/// A control plane with nodes, the chart, and the tenant's namespace.
pub fn place() -> &'static Devcluster {
    static PLACE: OnceLock<Devcluster> = OnceLock::new();
    PLACE.get_or_init(|| {
        let ground = with_chart();
        let made = std::thread::scope(|scope| {
            let make = scope.spawn(|| {
                let runtime = tokio::runtime::Runtime::new().expect("a runtime");
                runtime.block_on(make(&ground));
            });
            make.join()
        });
        made.expect("a tenant's namespace");
        ground
    })
}

/// A call of the API as somebody.
#[derive(Clone)]
pub struct As {
    /// Who it is, for messages.
    pub who: String,
    client: Client,
}

impl As {
    /// A user who is authenticated by somebody else, with these groups.
    pub async fn user(ground: &Devcluster, name: &str, groups: &[&str]) -> Self {
        let kubeconfig = Kubeconfig::read_from(ground.kubeconfig()).expect("a kubeconfig");
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a kubeconfig");
        config.auth_info.impersonate = Some(name.to_owned());
        let authenticated = groups.iter().copied().chain(["system:authenticated"]).map(str::to_owned);
        config.auth_info.impersonate_groups = Some(authenticated.collect());
        Self { who: name.to_owned(), client: Client::try_from(config).expect("a client") }
    }

    /// A ServiceAccount, by a token of its own.
    pub async fn service_account(ground: &Devcluster, namespace: &str, name: &str) -> Self {
        let client = ground.service_account_client(namespace, name).await.expect("a client");
        Self { who: name.to_owned(), client }
    }

    /// The operator itself.
    pub async fn operator(ground: &Devcluster) -> Self {
        Self::service_account(ground, "tenantry-system", "tenantry").await
    }

    /// The administrator of the cluster.
    pub async fn administrator(ground: &Devcluster) -> Self {
        Self { who: "the administrator".into(), client: ground.client().await.expect("a client") }
    }

    /// Makes a call; the answer is the object, or the message of the refusal.
    pub async fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value, Refusal> {
        let content = match method {
            "PATCH" => "application/merge-patch+json",
            "APPLY" => "application/apply-patch+yaml",
            _ => "application/json",
        };
        let method = if method == "APPLY" { "PATCH" } else { method };
        let method: Method = method.parse().expect("a method");
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).expect("JSON") };
        let request = Request::builder().method(method).uri(path).header("content-type", content).body(body);
        match self.client.request::<Value>(request.expect("a request")).await {
            Ok(answer) => Ok(answer),
            Err(kube::Error::Api(status)) => Err(Refusal { code: status.code, message: status.message.clone() }),
            Err(error) => panic!("{} can't call {path}: {error}", self.who),
        }
    }

    /// A call that must succeed.
    pub async fn must(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.call(method, path, body).await;
        answer.unwrap_or_else(|refusal| panic!("{}: {method} {path}: {}", self.who, refusal.message))
    }

    /// Waits until an object is as wanted.
    pub async fn until(&self, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            let found = self.call("GET", path, &Value::Null).await.unwrap_or(Value::Null);
            if wanted(&found) {
                return found;
            }
            assert!(std::time::Instant::now() < end, "{path} does not become {what}: {found:#}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

/// The API server's refusal of a call.
#[derive(Debug)]
pub struct Refusal {
    pub code: u16,
    pub message: String,
}

/// The path of a namespaced resource of the core group in the tenant's namespace.
pub fn core(resource: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/{resource}")
}

/// The path of a namespaced resource of a group (with its version) in the tenant's namespace.
pub fn of(group: &str, resource: &str) -> String {
    format!("/apis/{group}/namespaces/{NAMESPACE}/{resource}")
}

/// The labels of everything of the tenant.
pub fn labels() -> Value {
    json!({"app.kubernetes.io/managed-by": "tenantry", "app.kubernetes.io/part-of": "crm", "tenantry.io/tenant": "acme"})
}

/// A pod's spec that Pod Security `restricted` admits.
#[expect(clippy::needless_pass_by_value, reason = "it is called with json!")]
pub fn pod_spec(more: Value) -> Value {
    let mut spec = json!({
        "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "tolerations": [{"operator": "Exists"}],
        "containers": [{
            "name": "web", "image": "registry.example.com/web:1",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        }],
    });
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        spec[key] = value;
    }
    spec
}

/// A Deployment of the operator's.
pub fn deployment(name: &str, replicas: Option<u32>) -> Value {
    let pods = json!({"app.kubernetes.io/instance": "acme", "app.kubernetes.io/component": name});
    let mut deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": labels()},
        "spec": {
            "selector": {"matchLabels": pods},
            "template": {"metadata": {"labels": pods, "annotations": {"team": "crm"}}, "spec": pod_spec(json!({}))},
        },
    });
    if let Some(replicas) = replicas {
        deployment["spec"]["replicas"] = replicas.into();
    }
    deployment
}

/// Applies an object as the operator does.
pub async fn apply(operator: &As, collection: &str, object: &Value) -> Value {
    let name = object["metadata"]["name"].as_str().expect("a name");
    let path = format!("{collection}/{name}?fieldManager=tenantry&force=true");
    operator.must("APPLY", &path, object).await
}

fn binding(name: &str, role: &str, user: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name, "labels": labels()},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    })
}

/// Makes the namespace and what is in it as the operator, and the people as the administrator.
async fn make(ground: &Devcluster) {
    let (operator, administrator) = (As::operator(ground).await, As::administrator(ground).await);
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels()}});
    apply(&operator, "/api/v1/namespaces", &namespace).await;
    let rights = of("rbac.authorization.k8s.io/v1", "rolebindings");
    let mut own = binding("tenantry-namespace", "tenantry-namespace", "");
    own["subjects"] = json!([{"kind": "ServiceAccount", "name": "tenantry", "namespace": "tenantry-system"}]);
    apply(&operator, &rights, &own).await;
    apply(&operator, &rights, &binding("tenantry-owner", "tenantry-owner", OWNER)).await;

    let role = |name: &str, groups: Value, resources: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
            "rules": [{"apiGroups": groups, "resources": resources, "verbs": ["*"]}],
        })
    };
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    administrator.must("POST", roles, &role("anything", json!(["*"]), json!(["*"]))).await;
    administrator.must("POST", roles, &role("namespaces", json!([""]), json!(["namespaces"]))).await;
    for (name, role, user) in [
        ("edit", "edit", EDIT),
        ("admin", "admin", ADMIN),
        ("anything", "anything", ANYTHING),
        ("editor", "anything", EDITOR),
    ] {
        administrator.must("POST", &rights, &binding(name, role, user)).await;
    }
    for (name, role, user) in
        [("namespaces", "namespaces", NAMESPACES), ("tenant-editor", "tenantry-tenant-editor", EDITOR)]
    {
        let mut wide = binding(name, role, user);
        wide["kind"] = json!("ClusterRoleBinding");
        administrator.must("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &wide).await;
    }
    objects(&operator).await;
    in_force(ground, &administrator).await;
}

/// One object of each sort that the operator makes.
async fn objects(operator: &As) {
    // The binding reaches the authorizer through a watch of its own.
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "acme-database", "labels": labels()},
        "type": "servicebinding.io/postgresql", "stringData": {"password": "secret"},
    });
    let path = core("secrets/acme-database?fieldManager=tenantry&force=true");
    while operator.call("APPLY", &path, &secret).await.is_err() {
        tokio::task::yield_now().await;
    }
    let named = |name: &str, api_version: &str, kind: &str, spec: Value| json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "labels": labels()}, "spec": spec});
    let mut shared = named("shared", "v1", "ConfigMap", Value::Null);
    shared.as_object_mut().expect("an object").remove("spec");
    shared["data"] = json!({"a": "1"});
    apply(operator, &core("configmaps"), &shared).await;
    let quota = named("tenantry", "v1", "ResourceQuota", json!({"hard": {"pods": "40"}}));
    apply(operator, &core("resourcequotas"), &quota).await;
    let deny = named(
        "deny",
        "networking.k8s.io/v1",
        "NetworkPolicy",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    );
    apply(operator, &of("networking.k8s.io/v1", "networkpolicies"), &deny).await;
    let service = json!({"selector": {"app.kubernetes.io/component": "web"}, "ports": [{"name": "http", "port": 80}]});
    apply(operator, &core("services"), &named("web", "v1", "Service", service)).await;
    let route =
        json!({"hostnames": ["acme.crm.example.com"], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]});
    let route = named("acme", "gateway.networking.k8s.io/v1", "HTTPRoute", route);
    apply(operator, &of("gateway.networking.k8s.io/v1", "httproutes"), &route).await;
    let budget = json!({"maxUnavailable": 1, "selector": {"matchLabels": {"app.kubernetes.io/component": "web"}}});
    apply(
        operator,
        &of("policy/v1", "poddisruptionbudgets"),
        &named("web", "policy/v1", "PodDisruptionBudget", budget),
    )
    .await;
    apply(operator, &of("apps/v1", "deployments"), &deployment("web", Some(2))).await;
    operator.until(&of("apps/v1", "deployments/web"), "available", |web| web["status"]["availableReplicas"] == 2).await;
}

/// Waits until every policy holds and every role is known: both reach the API server by watch.
async fn in_force(ground: &Devcluster, administrator: &As) {
    let (eve, nora) = (As::user(ground, ANYTHING, &[]).await, As::user(ground, NAMESPACES, &[]).await);
    let dry = |path: String| format!("{path}?dryRun=All");
    let namespace = format!("/api/v1/namespaces/{NAMESPACE}");
    let note = json!({"metadata": {"annotations": {"probe": "1"}}});
    for (person, path) in [
        (&eve, dry(core("services/web"))),
        (&eve, dry(core("configmaps/shared"))),
        (&eve, dry(of("apps/v1", "deployments/web"))),
        (&nora, dry(namespace)),
    ] {
        // A refusal by RBAC is none by a policy: the message tells.
        while !matches!(person.call("PATCH", &path, &note).await, Err(refusal) if refusal.message.contains("ValidatingAdmissionPolicy"))
        {
            tokio::task::yield_now().await;
        }
    }
    for (user, group, resource) in [
        (OWNER, "apps", "deployments"),
        (EDIT, "apps", "deployments"),
        (ADMIN, "apps", "deployments"),
        (EDITOR, "tenantry.io", "tenants"),
    ] {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": {"namespace": NAMESPACE, "group": group, "resource": resource, "verb": "patch"}},
        });
        loop {
            let answer =
                administrator.must("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await;
            if answer["status"]["allowed"] == true {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}
