//! What a pool has, and how an outage shows.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    ground::{NAMESPACE, apply, await_tenant, eventually, is, ready_tenant, shared, tenant},
    verbs::{application, await_condition, named, of, ours, patch, read, web},
};

#[tokio::test]
async fn a_pool_has_what_its_application_asks_for_and_shared_objects_stay_equal() {
    let (_, client) = shared().await;
    let shared_map = named("v1", "ConfigMap", Some(NAMESPACE), "equal-settings");
    let shared_secret = named("v1", "Secret", Some(NAMESPACE), "equal-pull");
    let (mut map, mut secret) = (shared_map.clone(), shared_secret.clone());
    map["data"] = json!({"colour": "blue"});
    secret["type"] = "kubernetes.io/dockerconfigjson".into();
    secret["data"] = json!({".dockerconfigjson": "e30="});
    apply(&client, &map).await.expect("a ConfigMap");
    let mut web = web();
    web["autoscaling"] = json!({"pooled": {"minReplicas": 2, "maxReplicas": 6, "targetCpuPercent": 70}});
    web["replicas"] = Value::Null;
    web["maxUnavailable"] = "50%".into();
    let more = json!({
        "components": [web],
        "egress": [{"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}], "ports": [{"port": 443}]}],
        "shared": {"secrets": ["equal-pull"], "configMaps": ["equal-settings"]},
        "pools": {"quota": {"pods": 50, "requests.cpu": "20"}},
        "migrations": null,
    });
    application(&client, "equal", more.clone()).await;
    apply(&client, &tenant("equality", of("equal", json!({})))).await.expect("a Tenant");
    // What is to be shared and isn't there is named.
    let pool = ours("Pool", "equal-1");
    let message = await_condition(&client, &pool, "WorkloadReady", "False", "equal-pull").await;
    assert!(message.contains("spec.shared.secrets[0]"), "{message}");
    apply(&client, &secret).await.expect("a Secret");
    await_tenant(&client, "equality", "Ready", |tenant| is(tenant, "Ready", "True")).await;

    let inside = |api_version: &str, kind: &str, name: &str| named(api_version, kind, Some("pool-equal-1"), name);
    let spec = async |object: Value| {
        read(&client, &object).await.unwrap_or_else(|| panic!("{object} is missing"))["spec"].clone()
    };
    let budget = spec(inside("policy/v1", "PodDisruptionBudget", "web")).await;
    assert_eq!(budget["maxUnavailable"], "50%");
    let autoscaler = spec(inside("autoscaling/v2", "HorizontalPodAutoscaler", "web")).await;
    assert_eq!((autoscaler["minReplicas"].as_i64(), autoscaler["maxReplicas"].as_i64()), (Some(2), Some(6)));
    assert_eq!(autoscaler["scaleTargetRef"]["name"], "web");
    assert_eq!(
        spec(inside("v1", "ResourceQuota", "tenantry")).await["hard"],
        json!({"pods": "50", "requests.cpu": "20"})
    );
    let policy = async |name: &str| spec(inside("networking.k8s.io/v1", "NetworkPolicy", name)).await;
    assert_eq!(policy("default-deny").await, json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    let database = policy("allow-database").await;
    assert_eq!(database["egress"][0]["to"], json!([{"ipBlock": {"cidr": "127.0.0.1/32"}}]));
    let (ground, _) = shared().await;
    assert_eq!(database["egress"][0]["ports"][0]["port"], ground.cluster.postgres().port());
    assert_eq!(policy("allow-egress").await["egress"][0]["to"], json!([{"ipBlock": {"cidr": "198.51.100.0/24"}}]));
    let gateway = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway"}}}]);
    assert_eq!(policy("allow-route").await["ingress"][0]["from"], gateway);
    assert_eq!(policy("allow-dns").await["policyTypes"], json!(["Egress"]));
    let namespace = read(&client, &named("v1", "Namespace", None, "pool-equal-1")).await.expect("a namespace");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");

    let copies = |secret: &'static str, colour: Value| {
        let (map, pull) = (inside("v1", "ConfigMap", "equal-settings"), inside("v1", "Secret", "equal-pull"));
        let client = &client;
        async move {
            let equal = eventually(async || {
                let (map, pull) = (read(client, &map).await?, read(client, &pull).await?);
                assert_eq!(pull["type"], "kubernetes.io/dockerconfigjson");
                (map["data"] == colour && pull["data"][".dockerconfigjson"] == secret).then_some(())
            })
            .await;
            assert!(equal.is_some(), "the copies don't become equal: {:#?}", read(client, &map).await);
        }
    };
    copies("e30=", json!({"colour": "blue"})).await;
    patch(&client, &shared_map, &json!({"data": {"colour": null, "shape": "round"}})).await;
    patch(&client, &shared_secret, &json!({"data": {".dockerconfigjson": "eyAgfQ=="}})).await;
    copies("eyAgfQ==", json!({"shape": "round"})).await;
    // What is no longer shared or asked for goes.
    let mut less = more;
    less["shared"] = json!({"configMaps": ["equal-settings"]});
    less["pools"] = Value::Null;
    less["egress"] = Value::Null;
    application(&client, "equal", less).await;
    let gone = [
        inside("v1", "Secret", "equal-pull"),
        inside("v1", "ResourceQuota", "tenantry"),
        inside("networking.k8s.io/v1", "NetworkPolicy", "allow-egress"),
    ];
    for object in gone {
        let gone = eventually(async || read(&client, &object).await.is_none().then_some(())).await;
        assert!(gone.is_some(), "{object} stays");
    }
    assert!(read(&client, &inside("v1", "ConfigMap", "equal-settings")).await.is_some());
}

#[tokio::test]
async fn an_outage_shows_on_the_pool_and_on_its_tenants_and_ends_there() {
    let (_, client) = shared().await;
    application(&client, "shaky", json!({"migrations": null})).await;
    for name in ["quake-a", "quake-b"] {
        ready_tenant(&client, name, of("shaky", json!({}))).await;
    }
    let pool = ours("Pool", "shaky-1");
    set_pods_ready(&client, "pool-shaky-1", false).await;
    let message = await_condition(&client, &pool, "Available", "False", "web").await;
    assert!(message.contains("0 of 2 replicas ready"), "{message}");
    for name in ["quake-a", "quake-b"] {
        let tenant = ours("Tenant", name);
        await_condition(&client, &tenant, "WorkloadReady", "False", "0 of 2 replicas ready").await;
        await_condition(&client, &tenant, "Ready", "False", "shaky-1").await;
        await_condition(&client, &tenant, "DatabaseReady", "True", "").await;
    }
    set_pods_ready(&client, "pool-shaky-1", true).await;
    await_condition(&client, &pool, "Ready", "True", "").await;
    for name in ["quake-a", "quake-b"] {
        await_condition(&client, &ours("Tenant", name), "Ready", "True", "").await;
    }
}

/// Says of every pod of a namespace whether it is ready, as its kubelet would.
async fn set_pods_ready(client: &Client, namespace: &str, ready: bool) {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let list = pods.list(&ListParams::default()).await.expect("pods").items;
    assert!(!list.is_empty());
    let status = if ready { "True" } else { "False" };
    let conditions = json!({"status": {"conditions": [{"type": "Ready", "status": status}, {"type": "ContainersReady", "status": status}]}});
    for pod in list {
        let params = PatchParams::default();
        pods.patch_status(&pod.name_any(), &params, &Patch::Strategic(&conditions)).await.expect("a status");
    }
}

#[tokio::test]
async fn without_a_way_to_the_database_the_missing_field_is_named() {
    let (ground, client) = shared().await;
    ground.server(&client, "unreached", json!({})).await;
    patch(&client, &ours("DatabaseServer", "unreached"), &json!({"spec": {"network": null}})).await;
    let database = json!({"pooled": {"servers": ["unreached"]}, "bridge": null, "dedicated": null});
    application(&client, "unreached", json!({"database": database, "migrations": null})).await;
    apply(&client, &tenant("islander", of("unreached", json!({})))).await.expect("a Tenant");
    let pool = ours("Pool", "unreached-1");
    let message = await_condition(&client, &pool, "NetworkDeclared", "False", "spec.network.to").await;
    assert!(message.contains("unreached"), "the DatabaseServer is named: {message}");
    await_condition(&client, &pool, "WorkloadReady", "True", "").await;
    let policy = named("networking.k8s.io/v1", "NetworkPolicy", Some("pool-unreached-1"), "allow-database");
    assert!(read(&client, &policy).await.is_none(), "never a way to everywhere");
    let to = json!([{"ipBlock": {"cidr": "192.0.2.1/32"}}]);
    patch(&client, &ours("DatabaseServer", "unreached"), &json!({"spec": {"network": {"to": to}}})).await;
    await_condition(&client, &pool, "NetworkDeclared", "True", "").await;
    await_condition(&client, &pool, "Ready", "True", "").await;
    assert_eq!(read(&client, &policy).await.expect("a policy")["spec"]["egress"][0]["to"], to);
    await_tenant(&client, "islander", "Ready", |tenant| is(tenant, "Ready", "True")).await;
}
