//! The release comes and goes; tenants stay as they are. And what its rules ask for is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::symlink,
    process::Command,
};

use devcluster::Options;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    bridge::bridge,
    ground::{Ground, NAMESPACE, await_tenant, dynamic, eventually, is, output, ready_tenant, root, shared},
    steps::calm,
    verbs::{application, named, read},
};

/// Every object of the operator's in every namespace that it made, by kind, namespace and
/// name: its UID, and its version where that says of itself that somebody wrote it.
async fn objects(client: &Client) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (api_version, kind) in [
        ("v1", "Namespace"),
        ("v1", "Secret"),
        ("v1", "ConfigMap"),
        ("v1", "Service"),
        ("v1", "ServiceAccount"),
        ("v1", "ResourceQuota"),
        ("v1", "LimitRange"),
        ("apps/v1", "Deployment"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("rbac.authorization.k8s.io/v1", "RoleBinding"),
        ("policy/v1", "PodDisruptionBudget"),
        ("tenantry.io/v1alpha1", "Pool"),
    ] {
        // Kubernetes writes the status of these as well.
        let has_status = ["ResourceQuota", "Deployment", "PodDisruptionBudget", "Pool"].contains(&kind);
        let ours = match kind {
            "Pool" => ListParams::default(),
            _ => ListParams::default().labels("app.kubernetes.io/managed-by=tenantry"),
        };
        let api = dynamic(client, &named(api_version, kind, None, ""));
        for object in api.list(&ours).await.expect("a list") {
            let object = serde_json::to_value(&object).expect("JSON");
            let metadata = &object["metadata"];
            let version = if has_status { &metadata["generation"] } else { &metadata["resourceVersion"] };
            found.insert(
                format!("{kind} {} {}", metadata["namespace"], metadata["name"]),
                format!("{} {version}", metadata["uid"]),
            );
        }
    }
    found
}

/// Uninstalled, nothing of the tenants is touched, and pods that start still find their
/// credentials; installed again, every tenant is Ready, and nothing is written anew.
#[tokio::test(flavor = "multi_thread")]
async fn the_release_goes_and_comes_back_and_every_tenant_stays_ready() {
    let ground = Ground::start(Options::default()).await;
    let client = ground.client.clone();
    let operator = ground.operator(&[]);
    ground.examples().await;
    ready_tenant(&client, "acme", json!({})).await;
    ready_tenant(&client, "bolt", json!({})).await;
    ready_tenant(&client, "gusto", bridge("crm", json!({}))).await;
    ready_tenant(&client, "iris", json!({"spec": {"plan": "enterprise", "tier": "dedicated"}})).await;
    let names = ["acme", "bolt", "gusto", "iris"];
    let all_ready = async |when: &str| {
        for name in names {
            await_tenant(&client, name, when, |tenant| is(tenant, "Ready", "True")).await;
        }
    };
    let mut before = objects(&client).await;
    // The Deployments' pods settle, and with them what the operator hears of them.
    let settled = eventually(async || {
        let last = std::mem::replace(&mut before, objects(&client).await);
        (last == before).then_some(())
    });
    settled.await.expect("nothing changes any more");
    assert!(before.len() > 30, "{before:#?}");
    operator.kill();

    let helm = |args: &[&str]| output(ground.cluster.helm().args(args).args(["--namespace", NAMESPACE]));
    helm(&["uninstall", "tenantry", "--wait"]);
    let gone = named("apps/v1", "Deployment", Some(NAMESPACE), "tenantry");
    assert!(read(&client, &gone).await.is_none(), "the operator is uninstalled");
    let policies = named("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy", None, "tenantry-objects");
    assert!(read(&client, &policies).await.is_none(), "and so are its policies");
    all_ready("Ready without an operator").await;
    assert_eq!(objects(&client).await, before, "uninstalling touches nothing of the tenants");
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {
            "user": "system:serviceaccount:pool-crm-1:tenantry-agent",
            "resourceAttributes": {"namespace": "pool-crm-1", "verb": "watch", "resource": "secrets"},
        },
    });
    let review = serde_json::from_value(review).expect("a review");
    let reviews = Api::<SubjectAccessReview>::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await.expect("an answer");
    assert!(answer.status.expect("an answer").allowed, "agents read on");

    let chart = root().join("charts/tenantry");
    helm(&["install", "tenantry", chart.to_str().expect("a path"), "--set", "replicas=0"]);
    ground.cluster.service_account_kubeconfig(NAMESPACE, "tenantry").await.expect("its new token");
    let operator = ground.operator(&[]);
    operator.says(200, "leading").await;
    ready_tenant(&client, "after", json!({})).await;
    all_ready("Ready again").await;
    let after = objects(&client).await;
    let changed: Vec<_> = before.iter().filter(|(key, version)| after.get(*key) != Some(version)).collect();
    assert!(changed.is_empty(), "written anew: {changed:#?}");
}

/// The commands of a section of docs/operations.md, from the one that begins so on.
fn documented(section: &str, first: &str) -> Vec<String> {
    let page = std::fs::read_to_string(root().join("docs/operations.md")).expect("docs/operations.md");
    let (_, text) = page.split_once(&format!("\n## {section}\n")).expect("a section");
    let text = text.split("\n## ").next().expect("a section's text");
    let commands = text.lines().filter_map(|line| line.strip_prefix("$ ")).map(str::to_owned);
    let commands: Vec<_> = commands.skip_while(|command| !command.starts_with(first)).collect();
    assert!(!commands.is_empty(), "{section} has no {first}");
    commands
}

/// To be rid of everything takes what docs/operations.md says, and nothing waits for ever.
#[tokio::test(flavor = "multi_thread")]
async fn uninstalling_as_documented_leaves_nothing() {
    let ground = Ground::start(Options::default()).await;
    let client = ground.client.clone();
    let _operator = ground.operator(&[]);
    ground.examples().await;
    ready_tenant(&client, "acme", json!({})).await;
    ready_tenant(&client, "bolt", json!({"spec": {"deletionPolicy": "Delete"}})).await;
    ready_tenant(&client, "gusto", bridge("crm", json!({}))).await;
    ready_tenant(&client, "iris", json!({"spec": {"plan": "enterprise", "tier": "dedicated"}})).await;
    let programs = tempfile::tempdir().expect("a temporary folder");
    for (name, program) in [("kubectl", ground.cluster.kubectl()), ("helm", ground.cluster.helm())] {
        symlink(program.get_program(), programs.path().join(name)).expect("a link");
    }
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").expect("PATH"));
    let run = |command: &str| {
        let mut shell = Command::new("timeout");
        shell.args(["120", "bash", "-o", "pipefail", "-c", command]).env("PATH", &path);
        let kubeconfig = ground.cluster.kubeconfig().to_owned();
        tokio::task::spawn_blocking(move || output(shell.env("KUBECONFIG", kubeconfig)))
    };
    for command in documented("Uninstall", "kubectl delete tenants") {
        run(&command).await.expect("it ends");
    }
    assert_eq!(run("kubectl get crd -o name | grep -c tenantry || true").await.expect("an answer").trim(), "0");
    let left = run("kubectl get namespace,clusterrole -o name | grep -E 'tenant|pool-' || true").await;
    assert_eq!(left.expect("an answer").trim(), "namespace/tenantry-system", "where the release was");
}

/// The alerts of the chart ask for metrics that a leader really shows, the rare ones too: from
/// 0 on, so that the first time counts.
#[tokio::test]
async fn alerts_ask_for_metrics_that_a_leader_shows() {
    let ((_, operator), client) = calm().await;
    ready_tenant(&client, "alerting", json!({})).await;
    let (_, text) = operator.get("/metrics").expect("metrics");
    let shown: BTreeSet<_> =
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(['{', ' ']).next()).collect();
    let rules = std::fs::read_to_string(root().join("charts/tenantry/files/alerts.yaml")).expect("alerts");
    let rules: Value = serde_saphyr::from_str(&rules).expect("YAML");
    for rule in rules["groups"][0]["rules"].as_array().expect("rules") {
        let expression = rule["expr"].as_str().expect("an expression");
        let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let metrics: Vec<_> = words.filter(|word| word.starts_with("tenantry_")).collect();
        assert!(!metrics.is_empty(), "{expression}");
        // A relay's are its own, and of usage a leader without a ledger has nothing to say: tests/relay and
        // usage/conditions.rs look at theirs.
        let elsewhere =
            |metric: &&&str| metric.starts_with("tenantry_relay_") || **metric == "tenantry_usage_undelivered";
        for metric in metrics.iter().filter(|metric| !elsewhere(metric)).copied() {
            assert!(shown.contains(metric), "{}: /metrics has no {metric}:\n{text}", rule["alert"]);
        }
    }
    for rare in [
        "tenantry_reconciles_total{kind=\"Tenant\",result=\"panicked\"}",
        "tenantry_database_settings_repaired_total{server=\"main\"}",
    ] {
        assert_eq!(operator.metric(rare), Some(0.0), "{rare}");
    }
}

/// A real tenant's owner: restarts, and the restart stays; the operator's objects stay too.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_restarts_and_changes_nothing_else() {
    let (ground, client) = shared().await;
    application(&client, "restarted", json!({})).await;
    let owners = json!({"spec": {"owners": [{"kind": "User", "name": "rosa@acme.example"}]}});
    ready_tenant(&client, "rosa", bridge("restarted", owners)).await;
    let web = named("apps/v1", "Deployment", Some("tenant-rosa"), "web");
    let before = read(&client, &web).await.expect("a Deployment");
    let rosa = |args: &[&str]| {
        let mut kubectl = ground.cluster.kubectl();
        kubectl.args(["--as", "rosa@acme.example", "-n", "tenant-rosa"]).args(args);
        kubectl
    };
    // Somebody gave her more than is good: the policies hold.
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "too-much", "namespace": "tenant-rosa"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "rosa@acme.example"}],
    });
    super::ground::create(&client, &binding).await;
    let allowed = eventually(async || {
        rosa(&["auth", "can-i", "create", "services"]).output().expect("kubectl").status.success().then_some(())
    });
    allowed.await.expect("RBAC knows her");
    let says = "only who may update Tenants can do this";
    for args in [
        &["scale", "deployment/web", "--replicas=9"][..],
        &["set", "image", "deployment/web", "*=registry.example.com/other:1"],
        &["create", "service", "loadbalancer", "mine", "--tcp=80"],
        &["create", "ingress", "mine", "--rule=mine.example/=web:80"],
        &["create", "rolebinding", "mine", "--clusterrole=view", "--user=friend"],
        &["create", "job", "mine", "--image=registry.example.com/shell"],
        &["create", "deployment", "mine", "--image=registry.example.com/shell"],
        &["delete", "networkpolicy", "--all"],
        &["delete", "secret", "rosa-database"],
    ] {
        let refused = rosa(args).output().expect("kubectl");
        let errors = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && errors.contains(says), "{args:?}: {errors}");
    }
    output(&mut rosa(&["rollout", "restart", "deployment/web"]));
    output(&mut rosa(&["rollout", "status", "deployment/web", "--timeout=60s"]));
    await_tenant(&client, "rosa", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    let after = read(&client, &web).await.expect("a Deployment");
    let template = "/spec/template/metadata/annotations/kubectl.kubernetes.io~1restartedAt";
    assert!(after.pointer(template).is_some(), "the operator lets a restart be");
    let generation = |object: &Value| object["metadata"]["generation"].as_i64().expect("a generation");
    assert_eq!(generation(&after), generation(&before) + 1, "one rollout, and none back");
}
