//! What changes in the life of a tenant with a namespace of its own, and what doesn't.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use super::{
    autoscaling::watch_replicas,
    bridge::bridge,
    dedicated::dedicated,
    ground::{
        Ground, apply, await_tenant, condition, create, credentials, eventually, is, ready_tenant, shared, tenant,
    },
    steps::{Running, healed, migrations, plan, stalled},
    verbs::{application, await_condition, delete, log_in, named, of, ours, patch, place, read, rows, superuser, web},
};

/// The pods of a namespace, by name, with their UIDs.
async fn pods(client: &Client, namespace: &str) -> BTreeMap<String, String> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace).list(&ListParams::default()).await.expect("pods");
    pods.items.into_iter().map(|pod| (pod.name_any(), pod.metadata.uid.unwrap_or_default())).collect()
}

fn deployment(tenant: &str, component: &str) -> Value {
    named("apps/v1", "Deployment", Some(&format!("tenant-{tenant}")), component)
}

/// Waits until a Deployment has so many replicas, all of them available.
async fn settled(client: &Client, deployment: &Value, replicas: i64) -> Value {
    let mut last = Value::Null;
    let found = eventually(async || {
        last = read(client, deployment).await?;
        let available = last["status"]["availableReplicas"].as_i64().unwrap_or(0);
        let there = last["status"]["replicas"].as_i64().unwrap_or(0);
        (last["spec"]["replicas"] == replicas && available == replicas && there == replicas).then(|| last.clone())
    })
    .await;
    found.unwrap_or_else(|| panic!("the Deployment does not come to {replicas}: {last:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_plan_reaches_limits_and_quota_and_no_pod() {
    let (_, client) = shared().await;
    application(&client, "upgrade", json!({})).await;
    plan(&client, "small", json!({"limits": {"users": {"max": 2, "policy": "Hard"}}})).await;
    let larger = json!({
        "limits": {"users": {"max": 7, "policy": "Hard"}},
        "quota": {"requests.cpu": "6", "pods": 33},
        "limitRange": {"default": {"memory": "300Mi"}, "defaultRequest": {"memory": "200Mi"}},
    });
    plan(&client, "large", larger).await;
    let before = ready_tenant(&client, "climber", bridge("upgrade", json!({"spec": {"plan": "small"}}))).await;
    let (namespace, web) = (place(&before).1, deployment("climber", "web"));
    let running = pods(&client, &namespace).await;
    assert!(!running.is_empty(), "no pod runs");
    let generation = read(&client, &web).await.expect("a Deployment")["metadata"]["generation"].clone();

    patch(&client, &ours("Tenant", "climber"), &json!({"spec": {"plan": "large"}})).await;
    await_tenant(&client, "climber", "at the larger plan", |tenant| {
        is(tenant, "Ready", "True") && tenant.status.as_ref().is_some_and(|it| it.plan.as_deref() == Some("large"))
    })
    .await;
    let quota = read(&client, &named("v1", "ResourceQuota", Some(&namespace), "tenantry")).await.expect("a quota");
    assert_eq!((&quota["spec"]["hard"]["pods"], &quota["spec"]["hard"]["requests.cpu"]), (&json!("33"), &json!("6")));
    let range = read(&client, &named("v1", "LimitRange", Some(&namespace), "tenantry")).await.expect("a LimitRange");
    assert_eq!(range["spec"]["limits"][0]["default"]["memory"], "300Mi");
    let facts = read(&client, &named("v1", "ConfigMap", Some(&namespace), "tenantry-tenant")).await.expect("facts");
    assert_eq!(facts["data"]["plan"], "large");
    let session = log_in(&credentials(&client, &before).await).await.expect("a login");
    assert_eq!(rows(&session, "SELECT max::text FROM tenantry.my_limits() WHERE meter = 'users'").await, ["7"]);

    assert_eq!(read(&client, &web).await.expect("a Deployment")["metadata"]["generation"], generation);
    assert_eq!(pods(&client, &namespace).await, running, "pods were replaced");
    // The plan itself, too.
    plan(&client, "large", json!({"limits": {"users": {"max": 9, "policy": "Hard"}}, "quota": {"pods": 34}})).await;
    let changed = eventually(async || {
        let quota = read(&client, &named("v1", "ResourceQuota", Some(&namespace), "tenantry")).await?;
        let max = rows(&session, "SELECT max::text FROM tenantry.my_limits() WHERE meter = 'users'").await;
        (quota["spec"]["hard"]["pods"] == "34" && max == ["9"]).then_some(())
    })
    .await;
    assert!(changed.is_some(), "the plan's change does not arrive");
    assert_eq!(pods(&client, &namespace).await, running, "pods were replaced");
}

#[tokio::test]
async fn a_change_of_tier_is_refused_where_there_is_data() {
    let (_, client) = shared().await;
    application(&client, "movers", json!({})).await;
    plan(&client, "any-tier", json!({"allowedTiers": ["pooled", "bridge", "dedicated"]})).await;
    for (name, had, wanted) in [
        ("upgrader-a", "bridge", "dedicated"),
        ("upgrader-b", "pooled", "bridge"),
        ("upgrader-c", "dedicated", "pooled"),
    ] {
        let spec = of("movers", json!({"spec": {"plan": "any-tier", "tier": had}}));
        let ready = ready_tenant(&client, name, spec).await;
        let running = Running::of(&client, &ready).await;
        patch(&client, &ours("Tenant", name), &json!({"spec": {"tier": wanted}})).await;
        let back = format!("set the tier back to {had}");
        let refused = stalled(&client, name, "TierChange", &[&back]).await;
        assert_eq!(place(&refused), place(&ready));
        running.assert_untouched(&client, &refused).await;
        if had != "pooled" {
            assert!(read(&client, &deployment(name, "web")).await.is_some(), "its pods run on");
        }
        patch(&client, &ours("Tenant", name), &json!({"spec": {"tier": had}})).await;
        let healed = healed(&client, name).await;
        running.assert_untouched(&client, &healed).await;
    }
}

#[tokio::test]
async fn a_tier_can_be_changed_as_long_as_there_is_no_data() {
    let (ground, client) = shared().await;
    // Nobody listens there: nothing is placed on it.
    ground.server(&client, "not-there", json!({"admin": {"host": "127.0.0.1", "port": 1}})).await;
    let bridge_to = json!({"database": {"bridge": {"servers": ["not-there"]}}});
    application(&client, "undecided", bridge_to).await;
    plan(&client, "any-tier-2", json!({"allowedTiers": ["pooled", "bridge", "dedicated"]})).await;
    let at = |tier: &str| of("undecided", json!({"spec": {"plan": "any-tier-2", "tier": tier}}));
    // Never placed.
    apply(&client, &tenant("nowhere", at("bridge"))).await.expect("a Tenant");
    await_tenant(&client, "nowhere", "waiting", |tenant| is(tenant, "Placed", "False")).await;
    patch(&client, &ours("Tenant", "nowhere"), &json!({"spec": {"tier": "pooled"}})).await;
    // That server may have had it at another tier: nobody can say as long as it was never reached.
    await_condition(&client, &ours("Tenant", "nowhere"), "Placed", "False", "not-there was not reached yet").await;
    application(&client, "undecided", json!({})).await;
    let ready = healed(&client, "nowhere").await;
    assert_eq!(place(&ready), ("pool_undecided_1".to_owned(), "pool-undecided-1".to_owned()));

    // Placed, with a namespace, but no data: a foreign object is in the way of its namespace.
    create(&client, &named("v1", "Namespace", None, "tenant-blocked")).await;
    apply(&client, &tenant("blocked", at("dedicated"))).await.expect("a Tenant");
    stalled(&client, "blocked", "ForeignObject", &["Namespace tenant-blocked"]).await;
    patch(&client, &ours("Tenant", "blocked"), &json!({"spec": {"tier": "pooled"}})).await;
    let ready = healed(&client, "blocked").await;
    assert_eq!(place(&ready).0, "pool_undecided_1");
    let status = ready.status.expect("a status");
    assert!(condition(&status.conditions, "NamespaceReady").is_none(), "{:#?}", status.conditions);
    assert!(read(&client, &named("v1", "Namespace", None, "tenant-blocked")).await.is_some(), "it is not ours");
}

#[tokio::test]
async fn a_change_of_tier_takes_back_a_namespace_that_no_data_came_to() {
    let (ground, client) = shared().await;
    application(&client, "halfway", json!({"migrations": null})).await;
    plan(&client, "any-tier-3", json!({"allowedTiers": ["pooled", "bridge", "dedicated"]})).await;
    // Somebody else has the name of the database.
    let session = superuser(ground, "postgres").await;
    session.execute("CREATE DATABASE bridge_halfway_1", &[]).await.expect("a database");
    let at = |tier: &str| of("halfway", json!({"spec": {"plan": "any-tier-3", "tier": tier}}));
    apply(&client, &tenant("midway", at("bridge"))).await.expect("a Tenant");
    let object = ours("Tenant", "midway");
    await_condition(&client, &object, "DatabaseReady", "False", "bridge_halfway_1").await;
    let namespace = named("v1", "Namespace", None, "tenant-midway");
    let made = eventually(async || read(&client, &namespace).await).await;
    assert!(made.is_some(), "its namespace is made before its database");
    patch(&client, &object, &json!({"spec": {"tier": "pooled"}})).await;
    assert_eq!(place(&healed(&client, "midway").await).1, "pool-halfway-1");
    let gone = eventually(async || read(&client, &namespace).await.is_none().then_some(())).await;
    assert!(gone.is_some(), "what was made for it goes");
    // What isn't ours stays.
    let kept = "SELECT datname::text FROM pg_database WHERE datname = 'bridge_halfway_1'";
    assert_eq!(rows(&session, kept).await, ["bridge_halfway_1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_tenant_runs_no_pod_and_comes_back_as_it_was() {
    let (_, client) = shared().await;
    let (mut front, mut worker) = (web(), web());
    front["replicas"] = json!({"dedicated": 3});
    worker["name"] = "worker".into();
    worker["port"] = Value::Null;
    worker["replicas"] = Value::Null;
    worker["autoscaling"] = json!({"dedicated": {"minReplicas": 2, "maxReplicas": 4, "targetCpuPercent": 80}});
    application(&client, "sleepers", json!({"components": [front, worker]})).await;
    plan(&client, "sleepers", json!({"allowedTiers": ["pooled", "dedicated"], "quota": null, "limitRange": null}))
        .await;
    let ready = ready_tenant(&client, "dozer", dedicated("sleepers", json!({"spec": {"plan": "sleepers"}}))).await;
    let namespace = place(&ready).1;
    let (front, worker) = (deployment("dozer", "web"), deployment("dozer", "worker"));
    settled(&client, &front, 3).await;
    let login = credentials(&client, &ready).await;

    patch(&client, &ours("Tenant", "dozer"), &json!({"spec": {"suspended": true}})).await;
    await_condition(&client, &ours("Tenant", "dozer"), "Ready", "False", "no pod runs").await;
    settled(&client, &front, 0).await;
    settled(&client, &worker, 0).await;
    let asleep = await_tenant(&client, "dozer", "suspended", |tenant| is(tenant, "WorkloadReady", "False")).await;
    let conditions = &asleep.status.as_ref().expect("a status").conditions;
    for absent in ["Stalled", "Reconciling"] {
        assert!(condition(conditions, absent).is_none(), "{conditions:#?}");
    }
    let gone = eventually(async || pods(&client, &namespace).await.is_empty().then_some(())).await;
    assert!(gone.is_some(), "pods stay");
    let route = named("gateway.networking.k8s.io/v1", "HTTPRoute", Some(&namespace), "dozer");
    assert!(read(&client, &route).await.is_none(), "the route stays");
    assert!(log_in(&login).await.is_err(), "the login works");

    patch(&client, &ours("Tenant", "dozer"), &json!({"spec": {"suspended": false}})).await;
    healed(&client, "dozer").await;
    settled(&client, &front, 3).await;
    let awake = eventually(async || {
        let replicas = read(&client, &worker).await?["spec"]["replicas"].as_i64()?;
        (replicas >= 1).then_some(())
    })
    .await;
    assert!(awake.is_some(), "an autoscaler leaves alone what is at zero");
    assert!(read(&client, &route).await.is_some(), "the route is back");
    log_in(&login).await.expect("the login works again");
}

#[tokio::test(flavor = "multi_thread")]
async fn switching_an_autoscaler_on_never_drops_the_replicas_of_a_tenant() {
    let (_, client) = shared().await;
    let mut web = web();
    web["replicas"] = json!({"bridge": 4});
    application(&client, "own-scaled", json!({"components": [web], "migrations": null})).await;
    ready_tenant(&client, "own-ladder", bridge("own-scaled", json!({}))).await;
    let live = deployment("own-ladder", "web");
    settled(&client, &live, 4).await;
    let watched = watch_replicas(&client, &live).await;
    web["autoscaling"] = json!({"bridge": {"minReplicas": 2, "maxReplicas": 6, "targetCpuPercent": 80}});
    web["replicas"] = Value::Null;
    application(&client, "own-scaled", json!({"components": [web], "migrations": null})).await;
    let autoscaler = named("autoscaling/v2", "HorizontalPodAutoscaler", Some("tenant-own-ladder"), "web");
    assert!(eventually(async || read(&client, &autoscaler).await).await.is_some(), "an autoscaler is made");
    // Our own hold on the count is gone, and the count is not.
    let handed = eventually(async || {
        let live = read(&client, &live).await?;
        let managers = live["metadata"]["managedFields"].as_array()?;
        let ours = managers
            .iter()
            .any(|entry| entry["manager"] == "tenantry" && entry["fieldsV1"]["f:spec"].get("f:replicas").is_some());
        (!ours).then_some(())
    })
    .await;
    assert!(handed.is_some(), "the count stays ours");
    let live = settled(&client, &live, 4).await;
    assert_eq!(live["spec"]["replicas"], 4);
    let seen = watched();
    assert!(seen.iter().all(|replicas| *replicas >= 4), "{seen:?}");
}

#[tokio::test]
async fn a_quota_that_is_too_small_is_refused_before_anything_is_made() {
    let (_, client) = shared().await;
    application(&client, "cramped", json!({})).await;
    plan(&client, "cramped", json!({"quota": {"requests.cpu": "150m"}})).await;
    let mut spec = bridge("cramped", json!({"spec": {"plan": "cramped"}}));
    spec["spec"]["overrides"] = json!([{"component": "web", "replicas": 3}]);
    apply(&client, &tenant("giant", spec)).await.expect("a Tenant");
    // Three replicas and one of surge, of 100m each.
    stalled(&client, "giant", "QuotaTooSmall", &["400m", "150m", "requests.cpu", "web"]).await;
    assert!(read(&client, &named("v1", "Namespace", None, "tenant-giant")).await.is_none(), "a namespace was made");
    plan(&client, "cramped", json!({"quota": {"requests.cpu": "400m"}})).await;
    healed(&client, "giant").await;
    // One that runs runs on.
    plan(&client, "cramped", json!({"quota": {"requests.cpu": "200m"}})).await;
    stalled(&client, "giant", "QuotaTooSmall", &["400m", "200m"]).await;
    let quota = read(&client, &named("v1", "ResourceQuota", Some("tenant-giant"), "tenantry")).await.expect("a quota");
    assert_eq!(quota["spec"]["hard"]["requests.cpu"], "400m");
    assert_eq!(pods(&client, "tenant-giant").await.len(), 3);
}

#[tokio::test]
async fn a_foreign_object_in_the_way_is_named_and_left_alone() {
    let (_, client) = shared().await;
    application(&client, "own-foreign", json!({"migrations": null})).await;
    let reporter = ours("Tenant", "hermit");
    let foreign = named("v1", "Namespace", None, "tenant-hermit");
    create(&client, &foreign).await;
    apply(&client, &tenant("hermit", bridge("own-foreign", json!({})))).await.expect("a Tenant");
    let message = await_condition(&client, &reporter, "NamespaceReady", "False", "tenant-hermit").await;
    assert!(message.contains("was not made by Tenantry"), "{message}");
    await_condition(&client, &reporter, "Stalled", "True", "tenant-hermit").await;
    let secrets = Api::<Secret>::namespaced(client.clone(), "tenant-hermit").list(&ListParams::default()).await;
    assert!(secrets.expect("a list").items.is_empty(), "something was made there");
    delete(&client, &foreign).await;
    healed(&client, "hermit").await;

    // A kind that was not wanted until now, whose name somebody took.
    let mut budget = named("policy/v1", "PodDisruptionBudget", Some("tenant-hermit"), "web");
    budget["spec"] = json!({"maxUnavailable": "100%", "selector": {"matchLabels": {"app": "mine"}}});
    create(&client, &budget).await;
    let before = read(&client, &budget).await.expect("the foreign object");
    let two = json!({"spec": {"overrides": [{"component": "web", "replicas": 2}]}});
    patch(&client, &reporter, &two).await;
    let message = await_condition(&client, &reporter, "NamespaceReady", "False", "PodDisruptionBudget").await;
    assert!(message.contains("tenant-hermit/web") && message.contains("was not made by Tenantry"), "{message}");
    let after = read(&client, &budget).await.expect("it is still there");
    assert_eq!(after["spec"], before["spec"], "it was changed");
    // What is not in its way is as it should be.
    settled(&client, &deployment("hermit", "web"), 2).await;
    delete(&client, &budget).await;
    healed(&client, "hermit").await;
    assert_eq!(read(&client, &budget).await.expect("ours")["spec"]["maxUnavailable"], 1);
}

/// A client that acts as a user of the cluster's identity provider.
async fn user(ground: &Ground, name: &str) -> Client {
    let kubeconfig = Kubeconfig::read_from(ground.cluster.kubeconfig()).expect("a kubeconfig");
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a kubeconfig");
    config.auth_info.impersonate = Some(name.to_owned());
    config.auth_info.impersonate_groups = Some(vec!["system:authenticated".to_owned()]);
    Client::try_from(config).expect("a client")
}

#[tokio::test]
async fn owners_look_at_their_own_namespace_and_at_no_secret() {
    let (ground, client) = shared().await;
    application(&client, "owned", json!({})).await;
    let owners = json!({"spec": {"owners": [{"kind": "User", "name": "olive@example.com"}]}});
    ready_tenant(&client, "owned-a", bridge("owned", owners)).await;
    ready_tenant(&client, "owned-b", bridge("owned", json!({}))).await;
    let olive = user(ground, "olive@example.com").await;
    let all = ListParams::default();
    let mine = Api::<Pod>::namespaced(olive.clone(), "tenant-owned-a").list(&all).await;
    assert!(!mine.expect("an owner sees the pods").items.is_empty());
    let forbidden = |result: Result<(), kube::Error>, what: &str| {
        let refused = matches!(&result, Err(kube::Error::Api(status)) if status.code == 403);
        assert!(refused, "{what}: {result:?}");
    };
    let pods = Api::<Pod>::namespaced(olive.clone(), "tenant-owned-b").list(&all).await;
    forbidden(pods.map(drop), "another tenant's pods");
    let secrets = Api::<Secret>::namespaced(olive.clone(), "tenant-owned-a");
    forbidden(secrets.get("owned-a-database").await.map(drop), "the Secret");
    forbidden(secrets.list(&all).await.map(drop), "all Secrets");
    let pods = Api::<Pod>::namespaced(olive, "tenant-owned-a");
    let gone = pods.delete_collection(&DeleteParams::default(), &all).await;
    forbidden(gone.map(drop), "deleting pods");
}

#[tokio::test]
async fn pods_start_once_their_tables_are_there() {
    let (_, client) = shared().await;
    apply(&client, &migrations("late", &[("001.sql", "SELECT 1 / 0")])).await.expect("a ConfigMap");
    let late = json!({"migrations": {"sql": {"configMaps": [{"name": "late"}]}}});
    application(&client, "late", late).await;
    apply(&client, &tenant("patient", bridge("late", json!({})))).await.expect("a Tenant");
    stalled(&client, "patient", "MigrationFailed", &["001.sql"]).await;
    let web = deployment("patient", "web");
    assert!(read(&client, &web).await.is_none(), "pods run without their tables");
    await_condition(&client, &ours("Tenant", "patient"), "WorkloadReady", "False", "once all that they need").await;
    let fixed = migrations("late", &[("001.sql", "CREATE TABLE users (id bigint PRIMARY KEY)")]);
    apply(&client, &fixed).await.expect("a ConfigMap");
    let ready = healed(&client, "patient").await;
    let all = [("001.sql", "CREATE TABLE users (id bigint PRIMARY KEY)"), ("002.sql", "SELECT 1 / 0")];
    // From then on they run whatever becomes of a migration.
    apply(&client, &migrations("late", &all)).await.expect("a ConfigMap");
    stalled(&client, "patient", "MigrationFailed", &["002.sql"]).await;
    delete(&client, &web).await;
    let back =
        eventually(async || read(&client, &web).await.filter(|web| web["metadata"]["deletionTimestamp"].is_null()));
    assert!(back.await.is_some(), "it does not come back");
    drop(ready);
}

#[tokio::test]
async fn hosts_of_its_own_lead_to_a_tenants_own_pods() {
    let (_, client) = shared().await;
    application(&client, "hosted", json!({})).await;
    let hosts = json!({"spec": {"hosts": ["crm.hosted.example"]}});
    let ready = ready_tenant(&client, "hosted", bridge("hosted", hosts)).await;
    let namespace = place(&ready).1;
    let route = named("gateway.networking.k8s.io/v1", "HTTPRoute", Some(&namespace), "hosted");
    let found = read(&client, &route).await.expect("a route");
    assert_eq!(found["spec"]["hostnames"], json!(["hosted.hosted.example.com", "crm.hosted.example"]));
    let web = read(&client, &deployment("hosted", "web")).await.expect("a Deployment");
    let volumes = web["spec"]["template"]["spec"]["volumes"].to_string();
    for folder in ["tenants/hosted/uri", "hosts/hosted.hosted.example.com/uri", "hosts/crm.hosted.example/uri"] {
        assert!(volumes.contains(folder), "{folder}: {volumes}");
    }
    let facts = read(&client, &named("v1", "ConfigMap", Some(&namespace), "tenantry-tenant")).await.expect("facts");
    assert_eq!(facts["data"]["host"], "hosted.hosted.example.com");
}
