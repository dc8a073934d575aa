//! What a real API server makes of the objects.

use std::{collections::BTreeMap, time::Duration};

use devcluster::{Devcluster, Options};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};
use tenantry::desired::{Kind, Object, application_faults, naming};

use crate::{
    fixtures::{Own, application, application_with, build, server, settings, shelf},
    objects,
    templates::pod_security_cases,
};

/// The API of an object's kind, in its namespace.
fn api(client: &Client, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    let version = GroupVersionKind::gvk(kind.group(), kind.version(), kind.as_str());
    let resource = ApiResource::from_gvk_with_plural(&version, kind.plural());
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Applies every object, and gives back each with what changes when it does.
async fn apply(client: &Client, objects: &[Object]) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    for object in objects {
        let api = api(client, object.kind, object.namespace.as_deref());
        let parameters = PatchParams::apply("tenantry").force();
        let applied = api.patch(&object.name, &parameters, &Patch::Apply(&object.body)).await;
        let applied = applied.unwrap_or_else(|error| panic!("{object}: {error}"));
        // Their controllers write the status of these whenever they like.
        let version = match object.kind {
            Kind::Deployment | Kind::PodDisruptionBudget => applied.metadata.generation.unwrap().to_string(),
            Kind::HorizontalPodAutoscaler | Kind::ResourceQuota => applied.data["spec"].to_string(),
            _ => applied.metadata.resource_version.unwrap(),
        };
        versions.insert(object.to_string(), version);
    }
    versions
}

/// Makes what the objects refer to: the roles that the chart has.
async fn prepare(client: &Client) {
    let role = GroupVersionKind::gvk("rbac.authorization.k8s.io", "v1", "ClusterRole");
    let roles: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&role));
    for name in ["tenantry-namespace", "tenantry-agent", "tenantry-owner"] {
        let body = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}],
        });
        roles.patch(name, &PatchParams::apply("test"), &Patch::Apply(&body)).await.unwrap();
    }
}

/// Waits until every Deployment of a namespace has all its replicas.
async fn await_available(client: &Client, namespace: &str) {
    let deployments = api(client, Kind::Deployment, Some(namespace));
    let complete = async {
        loop {
            let list = deployments.list(&ListParams::default()).await.unwrap();
            let complete = |deployment: &DynamicObject| {
                let data = &deployment.data;
                data["status"]["availableReplicas"].is_i64()
                    && data["status"]["availableReplicas"] == data["spec"]["replicas"]
                    && data["status"]["observedGeneration"].as_i64() == deployment.metadata.generation
            };
            if list.items.len() == 3 && list.items.iter().all(complete) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(90), complete).await.is_err() {
        let list = deployments.list(&ListParams::default()).await.unwrap();
        let states: Vec<_> = list.items.iter().map(|deployment| deployment.data["status"].to_string()).collect();
        panic!("the pods of {namespace} do not run: {states:#?}");
    }
}

/// Whether the API server admits a pod with this spec in the pool's namespace.
async fn admitted(client: &Client, spec: &Value) -> Result<(), String> {
    let version = GroupVersionKind::gvk("", "v1", "Pod");
    let pods: Api<DynamicObject> = Api::namespaced_with(client.clone(), "pool-crm-1", &ApiResource::from_gvk(&version));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": spec});
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let result = pods.create(&dry_run, &serde_json::from_value(pod).unwrap()).await;
    result.map(|_| ()).map_err(|error| error.to_string())
}

/// The pod that a template's spec becomes, without the agent.
fn completed(spec: &Value) -> Option<Value> {
    let component = json!({"name": "api", "template": {"spec": spec}});
    let application = application_with(component);
    if !application_faults(&application, &settings(), &shelf()).is_empty() {
        return None;
    }
    let objects = build(&application, &server(), &BTreeMap::new()).unwrap();
    Some(objects.deployments[0].body["spec"]["template"]["spec"].clone())
}

/// One control plane, so one test: its start takes longer than all that follows.
#[tokio::test]
async fn the_api_server_takes_every_object_and_sees_no_change_when_it_comes_again() {
    let ground = Devcluster::start(Options { postgres: false, nodes: 2, ..Options::default() }).unwrap();
    let client = ground.client().await.unwrap();
    prepare(&client).await;
    let mut objects = build(&application(), &server(), &BTreeMap::new()).unwrap().into_ordered();
    objects.extend(objects::tenant_objects());

    apply(&client, &objects).await;
    await_available(&client, "pool-crm-1").await;
    let before = apply(&client, &objects).await;
    let after = apply(&client, &objects).await;
    assert_eq!(before, after, "an object changed although nothing was to be changed");

    own_namespaces(&client).await;

    // What is refused here as against Pod Security, the API server would have refused, with
    // the safe values filled in that the case says nothing of; what is not refused, it takes.
    let quota = api(&client, Kind::ResourceQuota, Some("pool-crm-1"));
    quota.delete("tenantry", &kube::api::DeleteParams::default()).await.unwrap();
    let safe = completed(&json!({"containers": [{"name": "api", "image": "x"}]})).unwrap();
    let mut unexpected = Vec::new();
    for (spec, path) in pod_security_cases() {
        assert!(completed(&spec).is_none(), "{path}");
        let mut pod = safe.clone();
        merge(&mut pod, &spec);
        match admitted(&client, &pod).await {
            Err(why) if why.contains("violates PodSecurity") => {}
            // Against the safe values, not against Pod Security; they can't be had together.
            Err(why) if why.contains("cannot set `allowPrivilegeEscalation` to false and") => {}
            verdict => unexpected.push(format!("{path}: {verdict:?}")),
        }
    }
    assert_eq!(unexpected, Vec::<String>::new());
    for spec in crate::templates::allowed_pods() {
        let pod = completed(&spec).unwrap_or_else(|| panic!("{spec} is refused"));
        admitted(&client, &pod).await.unwrap_or_else(|error| panic!("{spec}: {error}"));
    }
}

/// The same for tenants with a namespace of their own, whose pods run under quota and
/// LimitRange; and the API server counts of the quota what the check counted before.
async fn own_namespaces(client: &Client) {
    for own in [Own::bridge(), Own::dedicated()] {
        let name = own.tenant.metadata.name.clone().unwrap();
        let namespace = naming::tenant_namespace(&name);
        let objects = own.ordered();
        apply(client, &objects).await;
        await_available(client, &namespace).await;
        let before = apply(client, &objects).await;
        assert_eq!(before, apply(client, &objects).await, "an object changed although nothing was to be changed");
    }

    let own = Own::bridge().with(|own| {
        let counted = [
            "pods",
            "count/pods",
            "requests.cpu",
            "cpu",
            "requests.memory",
            "memory",
            "limits.memory",
            "limits.cpu",
            "configmaps",
            "services",
            "count/deployments.apps",
            "count/serviceaccounts",
            "count/limitranges",
            "count/networkpolicies.networking.k8s.io",
            "count/rolebindings.rbac.authorization.k8s.io",
            "resourcequotas",
            "count/poddisruptionbudgets.policy",
        ];
        let quota: serde_json::Map<String, Value> = counted.iter().map(|name| ((*name).into(), json!(0))).collect();
        own.plan.spec.quota = serde_json::from_value(Value::Object(quota)).unwrap();
        // So that each container has every amount.
        let range = json!({"default": {"memory": "512Mi", "cpu": "2"}, "defaultRequest": {"memory": "96Mi"}});
        own.plan.spec.limit_range = serde_json::from_value(range).unwrap();
    });
    let needed: BTreeMap<String, String> = own
        .effective()
        .unwrap_err()
        .into_iter()
        .map(|fault| {
            assert_eq!(fault.reason, "QuotaTooSmall", "{fault}");
            let name = fault.path.rsplit_once("spec.quota.").unwrap().1.to_owned();
            (name, fault.message.split_once(" is needed").unwrap().0.to_owned())
        })
        .collect();
    let own = own.with(|own| {
        own.tenant.metadata.name = Some("exact".into());
        own.plan.spec.quota = serde_json::from_value(json!(needed)).unwrap();
    });
    let objects = own.ordered();
    apply(client, &objects).await;
    await_available(client, "tenant-exact").await;
    // A rollout of everything at once: it needs all that the quota has.
    let next = own.with(|own| {
        for component in &mut own.application.spec.components {
            component.template.0["spec"]["containers"][0]["image"] = json!("registry.example.com/next:2");
        }
    });
    apply(client, &next.ordered()).await;
    await_updated(client, "tenant-exact").await;
    let quota = api(client, Kind::ResourceQuota, Some("tenant-exact"));
    let settled = async {
        loop {
            let used = quota.get("tenantry").await.unwrap().data["status"]["used"].clone();
            let used: BTreeMap<String, String> = serde_json::from_value(used).unwrap_or_default();
            if expected_use(&needed).iter().all(|(name, amount)| used.get(name) == Some(amount)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(90), settled).await.is_err() {
        let used = quota.get("tenantry").await.unwrap().data["status"]["used"].clone();
        panic!("the API server counts {used:#}, expected {:#?}", expected_use(&needed));
    }
}

/// What is used while nothing is rolled out: each component has one replica and needs room
/// for two, so half of what is needed of pods; of the objects all.
fn expected_use(needed: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut used = needed.clone();
    let halves = [
        ("pods", "3"),
        ("cpu", "1550m"),
        ("requests.cpu", "1550m"),
        ("memory", "1216Mi"),
        ("requests.memory", "1216Mi"),
        ("limits.memory", "2560Mi"),
        ("limits.cpu", "6"),
    ];
    for (name, amount) in halves {
        used.insert(name.into(), amount.into());
    }
    // Of the tenant's own Secret and route nothing is made here, and old ReplicaSets' pods
    // that are gone count until they are collected.
    used.remove("count/pods");
    used.remove("count/rolebindings.rbac.authorization.k8s.io");
    used
}

/// Waits until every Deployment of a namespace runs its newest template alone.
async fn await_updated(client: &Client, namespace: &str) {
    let deployments = api(client, Kind::Deployment, Some(namespace));
    let complete = async {
        loop {
            let list = deployments.list(&ListParams::default()).await.unwrap();
            let updated = |deployment: &DynamicObject| {
                let (data, generation) = (&deployment.data, deployment.metadata.generation);
                let count = |field: &str| data["status"][field].as_i64();
                data["status"]["observedGeneration"].as_i64() == generation
                    && count("updatedReplicas") == data["spec"]["replicas"].as_i64()
                    && count("replicas") == count("updatedReplicas")
                    && count("availableReplicas") == count("updatedReplicas")
            };
            if list.items.iter().all(updated) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), complete).await.expect("the rollout ends within the quota");
}

/// Writes `change` over `target`: maps by key, lists by index.
fn merge(target: &mut Value, change: &Value) {
    match (target, change) {
        (Value::Object(target), Value::Object(change)) => {
            for (key, value) in change {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(target), Value::Array(change)) if change.iter().all(Value::is_object) => {
            for (index, value) in change.iter().enumerate() {
                match target.get_mut(index) {
                    Some(target) => merge(target, value),
                    None => target.push(value.clone()),
                }
            }
        }
        (target, change) => *target = change.clone(),
    }
}
