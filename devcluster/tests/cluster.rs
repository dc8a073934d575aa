//! The library: grounds side by side, real RBAC, the audit log, faults, and that
//! nothing stays.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use devcluster::{AuditMark, Devcluster, Options};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::conditions::is_deleted;
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Resource, ResourceExt};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: Resource + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

async fn namespace(client: &Client, name: &str) -> Namespace {
    create(&Api::all(client.clone()), json!({"metadata": {"name": name}})).await
}

fn config_map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"key": "value"}})
}

fn start(options: Options) -> Devcluster {
    let start = Instant::now();
    let cluster = Devcluster::start(options).unwrap();
    println!("ready after {:?}", start.elapsed());
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn two_side_by_side_are_real_and_separate() {
    let (whole, api_only) = std::thread::scope(|scope| {
        let whole = scope.spawn(|| start(Options { nodes: 3, audit: true, ..Options::default() }));
        let api_only = scope.spawn(|| start(Options { api_only: true, postgres: false, ..Options::default() }));
        (whole.join().unwrap(), api_only.join().unwrap())
    });
    let client = whole.client().await.unwrap();
    let other = api_only.client().await.unwrap();
    assert_eq!(client.apiserver_version().await.unwrap().git_version, "v1.36.4");

    let nodes = |client: &Client| Api::<Node>::all(client.clone());
    let parameters = ListParams::default();
    assert_eq!(nodes(&client).list(&parameters).await.unwrap().items.len(), 3);
    assert!(nodes(&other).list(&parameters).await.unwrap().items.is_empty());

    namespace(&client, "one").await;
    let namespaces: Api<Namespace> = Api::all(other.clone());
    assert!(namespaces.get_opt("one").await.unwrap().is_none());

    pods_run(&whole, &client).await;
    rights_are_real_and_calls_counted(&whole, &client).await;
    gateway_api_is_there(&client).await;
    namespaces_go(&client).await;

    // Programs of the cache, as the administrator.
    let kubectl = whole.kubectl().args(["get", "nodes", "-o", "name"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&kubectl.stdout).lines().count(), 3, "{kubectl:?}");
    let helm = whole.helm().args(["list", "-A"]).output().unwrap();
    assert!(helm.status.success(), "{helm:?}");
    assert!(whole.postgres().pid().is_some());

    let dirs = [whole.dir().to_owned(), api_only.dir().to_owned()];
    let pids: Vec<u32> = whole.processes().chain(api_only.processes()).filter_map(devcluster::Process::pid).collect();
    assert_eq!(pids.len(), 6 + 2);
    drop((whole, api_only));
    assert!(dirs.iter().all(|dir| !dir.exists()));
    assert!(pids.iter().all(|pid| !common::alive(*pid)));
}

/// Scheduler, controllers and kwok: a Deployment becomes available.
async fn pods_run(cluster: &Devcluster, client: &Client) {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "one");
    let labels = json!({"app": "web"});
    create(
        &deployments,
        json!({"metadata": {"name": "web"}, "spec": {
            "replicas": 4,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "initContainers": [{"name": "sidecar", "image": "x", "restartPolicy": "Always"}],
                "containers": [{"name": "web", "image": "x"}],
            }},
        }}),
    )
    .await;
    let available = |deployment: Option<&Deployment>| {
        deployment
            .and_then(|deployment| deployment.status.as_ref()?.available_replicas)
            .is_some_and(|replicas| replicas == 4)
    };
    let wait = await_condition(deployments, "web", available);
    let result = tokio::time::timeout(Duration::from_secs(60), wait).await;
    assert!(result.is_ok(), "no pods within 60 s; look into {}", cluster.dir().display());
}

/// A ServiceAccount can do what its Role says, and the log counts it.
async fn rights_are_real_and_calls_counted(cluster: &Devcluster, client: &Client) {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "one");
    create(&accounts, json!({"metadata": {"name": "worker"}})).await;
    create::<Role>(
        &Api::namespaced(client.clone(), "one"),
        json!({"metadata": {"name": "worker"}, "rules": [
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "list"]},
        ]}),
    )
    .await;
    create::<RoleBinding>(
        &Api::namespaced(client.clone(), "one"),
        json!({"metadata": {"name": "worker"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "worker"},
            "subjects": [{"kind": "ServiceAccount", "name": "worker", "namespace": "one"}]}),
    )
    .await;

    let worker = cluster.service_account_client("one", "worker").await.unwrap();
    let user = "system:serviceaccount:one:worker";
    let maps: Api<ConfigMap> = Api::namespaced(worker.clone(), "one");
    let parameters = ListParams::default();
    // RBAC is cached by the API server for a moment.
    while maps.list(&parameters).await.is_err() {
        tokio::task::yield_now().await;
    }
    let secrets: Api<Secret> = Api::namespaced(worker, "one");
    let audit = cluster.audit();
    let before = all_logged(cluster, user, maps.list(&parameters)).await;

    for index in 0..5 {
        create(&maps, config_map(&format!("map-{index}"))).await;
    }
    let refused = secrets.list(&parameters).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused}");
    let after = all_logged(cluster, user, maps.list(&parameters)).await;

    let counts = audit.counts(before).unwrap();
    let of_worker: Vec<_> = counts.iter().filter(|((who, ..), _)| who == user).collect();
    let count = |verb, resource| audit.count(before, user, verb, resource).unwrap();
    assert_eq!(count("create", "configmaps"), 5, "{of_worker:?}");
    assert_eq!(count("list", "secrets"), 1, "{of_worker:?}");
    assert_eq!(count("list", "configmaps"), 1, "{of_worker:?}");
    let events = audit.events(before).unwrap();
    let denied = events.iter().find(|event| event.user == user && event.resource == "secrets");
    assert_eq!(denied.unwrap().code, 403);
    assert!(!denied.unwrap().is_write());
    assert_eq!(audit.count(after, user, "create", "configmaps").unwrap(), 0);
}

/// Makes a last call, waits until the log has it, and gives the mark behind it.
async fn all_logged<T>(
    cluster: &Devcluster,
    user: &str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> AuditMark {
    let audit = cluster.audit();
    let all = |log: &devcluster::AuditLog| {
        let events = log.events(AuditMark::default()).unwrap();
        events.iter().filter(|event| event.user == user).count()
    };
    let known = all(&audit);
    assert!(call.await.is_ok());
    let start = Instant::now();
    while all(&audit) == known {
        assert!(start.elapsed() < Duration::from_secs(20), "a call never reached the log");
        tokio::task::yield_now().await;
    }
    audit.mark().unwrap()
}

async fn gateway_api_is_there(client: &Client) {
    let kind = kube::core::GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute");
    let resource = kube::core::ApiResource::from_gvk(&kind);
    let routes: Api<kube::core::DynamicObject> = Api::namespaced_with(client.clone(), "one", &resource);
    let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "web"}, "spec": {"hostnames": ["a.example.com"]}});
    let route = serde_json::from_value(route).unwrap();
    let made = routes.create(&PostParams::default(), &route).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
}

/// The namespace controller empties and removes a namespace.
async fn namespaces_go(client: &Client) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let uid = namespaces.get("one").await.unwrap().uid().unwrap();
    namespaces.delete("one", &DeleteParams::default()).await.unwrap();
    let wait = await_condition(namespaces, "one", is_deleted(&uid));
    let result = tokio::time::timeout(Duration::from_secs(120), wait).await;
    assert!(result.is_ok(), "the namespace stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_can_be_killed_frozen_and_brought_back() {
    let cluster = start(Options { api_only: true, postgres: false, gateway_api: false, ..Options::default() });
    let client = cluster.client().await.unwrap();
    namespace(&client, "one").await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "one");
    create(&maps, config_map("before")).await;

    let etcd = cluster.program("etcd");
    etcd.freeze();
    let parameters = PostParams::default();
    let map = serde_json::from_value(config_map("frozen")).unwrap();
    let write = maps.create(&parameters, &map);
    let held = tokio::time::timeout(Duration::from_secs(1), write).await;
    assert!(held.is_err(), "a write went through without etcd: {held:?}");
    etcd.thaw();
    cluster.await_api().await.unwrap();
    create(&maps, config_map("thawed")).await;

    let api_server = cluster.program("kube-apiserver");
    let pid = api_server.pid();
    api_server.kill();
    assert_eq!(api_server.pid(), None);
    assert!(maps.get("thawed").await.is_err());
    api_server.start_again().unwrap();
    cluster.await_api().await.unwrap();
    assert_ne!(api_server.pid(), pid);
    assert!(maps.get("thawed").await.is_ok(), "etcd kept it");
}

/// Not a test of its own: what `nothing_outlives_a_killed_parent` runs and kills.
#[test]
fn helper_start_and_wait() {
    let Some(dir) = common::helper_dir() else {
        return;
    };
    let cluster = Devcluster::start(Options { dir: Some(dir.clone()), ..Options::default() }).unwrap();
    let sleep = cluster.spawn("sleep", "sleep".as_ref(), ["1000"], [("NAME", "value")]).unwrap();
    let pids = cluster.processes().chain([&sleep]).filter_map(devcluster::Process::pid);
    common::helper_report(&dir, &pids.collect::<Vec<_>>());
}

#[test]
fn nothing_outlives_a_killed_parent() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("ground");
    let mut helper = common::Helper::start("helper_start_and_wait", &dir);
    let pids = helper.tree();
    assert!(pids.len() > 7, "{pids:?}");
    assert_eq!(helper.roots().len(), 7);
    assert!(helper.roots().iter().all(|pid| common::alive(*pid)));
    helper.kill();
    common::wait_until_gone(&pids);

    // What it left is recognised, removed, and its folder taken again.
    let old = std::fs::read_to_string(dir.join("kubeconfig")).unwrap();
    let cluster = start(Options { dir: Some(dir.clone()), api_only: true, ..Options::default() });
    assert_ne!(std::fs::read_to_string(cluster.kubeconfig()).unwrap(), old);
}
