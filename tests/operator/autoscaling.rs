//! An autoscaler takes a component's replicas over, and gives them back.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use devcluster::Options;
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::ApiResource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{
    ground::{Ground, eventually, ready_tenant, shared},
    proxy::{Moment, Proxy},
    verbs::{application, named, of, read, web},
};

#[tokio::test(flavor = "multi_thread")]
async fn switching_an_autoscaler_on_never_drops_the_replicas() {
    let (_, client) = shared().await;
    let mut web = web();
    web["replicas"] = json!({"pooled": 5});
    let more = |web: &Value| json!({"components": [web], "migrations": null});
    application(&client, "scaled", more(&web)).await;
    ready_tenant(&client, "ladder", of("scaled", json!({}))).await;
    let deployment = named("apps/v1", "Deployment", Some("pool-scaled-1"), "web");
    let settled = async |what: &str, wanted: i64, image: &str| {
        let found = eventually(async || {
            let live = read(&client, &deployment).await?;
            let container = &live["spec"]["template"]["spec"]["containers"][0];
            let replicas = live["spec"]["replicas"] == wanted && live["status"]["availableReplicas"] == wanted;
            (replicas && container["image"] == image && live["status"]["updatedReplicas"] == wanted).then_some(live)
        })
        .await;
        found.unwrap_or_else(|| panic!("{what}: the Deployment does not settle"))
    };
    let image = "registry.example.com/crm:0.1.0";
    settled("at first", 5, image).await;
    let watched = watch_replicas(&client, &deployment).await;

    web["autoscaling"] = json!({"pooled": {"minReplicas": 2, "maxReplicas": 10, "targetCpuPercent": 80}});
    web["replicas"] = Value::Null;
    application(&client, "scaled", more(&web)).await;
    let autoscaler = named("autoscaling/v2", "HorizontalPodAutoscaler", Some("pool-scaled-1"), "web");
    let made = eventually(async || read(&client, &autoscaler).await).await;
    assert!(made.is_some(), "an autoscaler is made");
    let image = "registry.example.com/crm:0.2.0";
    web["template"]["spec"]["containers"][0]["image"] = image.into();
    application(&client, "scaled", more(&web)).await;
    settled("with an autoscaler and another image", 5, image).await;
    // What the autoscaler sets stays.
    let scale = json!({"spec": {"replicas": 7}});
    let params = PatchParams { field_manager: Some("an-autoscaler".into()), ..PatchParams::default() };
    let deployments = Api::<Deployment>::namespaced(client.clone(), "pool-scaled-1");
    deployments.patch_scale("web", &params, &Patch::Merge(scale)).await.expect("scaled");
    let image = "registry.example.com/crm:0.3.0";
    web["template"]["spec"]["containers"][0]["image"] = image.into();
    application(&client, "scaled", more(&web)).await;
    settled("with what the autoscaler set", 7, image).await;
    let seen = watched();
    assert!(seen.len() > 5 && seen.iter().all(|replicas| *replicas >= 5), "{seen:?}");

    web["autoscaling"] = Value::Null;
    web["replicas"] = json!({"pooled": 3});
    application(&client, "scaled", more(&web)).await;
    settled("with fixed replicas again", 3, image).await;
    let gone = eventually(async || read(&client, &autoscaler).await.is_none().then_some(())).await;
    assert!(gone.is_some(), "the autoscaler is removed");

    // An autoscaler does nothing for a Deployment of zero replicas, so it isn't given one.
    web["replicas"] = json!({"pooled": 0});
    application(&client, "scaled", more(&web)).await;
    let down = eventually(async || read(&client, &deployment).await.filter(|live| live["spec"]["replicas"] == 0)).await;
    assert!(down.is_some(), "it is scaled down");
    web["autoscaling"] = json!({"pooled": {"minReplicas": 1, "maxReplicas": 10, "targetCpuPercent": 80}});
    web["replicas"] = Value::Null;
    application(&client, "scaled", more(&web)).await;
    settled("with an autoscaler after nothing ran", 1, image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_autoscaler_sets_while_it_is_handed_the_replicas_stays() {
    let mut ground = Ground::start(Options::default()).await;
    let proxy = Proxy::start(&ground).await;
    ground.kubeconfig.clone_from(&proxy.kubeconfig);
    let _operator = ground.operator(&[]);
    ground.examples().await;
    let client = &ground.client;
    let mut web = web();
    web["replicas"] = json!({"pooled": 5});
    let more = |web: &Value| json!({"components": [web], "migrations": null});
    application(client, "handed", more(&web)).await;
    ready_tenant(client, "relay", of("handed", json!({}))).await;
    // The operator has read the count, and is about to hand it over.
    proxy.arm("fieldManager=tenantry-replicas", Moment::BeforeTheCall);
    web["autoscaling"] = json!({"pooled": {"minReplicas": 2, "maxReplicas": 10, "targetCpuPercent": 80}});
    web["replicas"] = Value::Null;
    let image = "registry.example.com/crm:0.2.0";
    web["template"]["spec"]["containers"][0]["image"] = image.into();
    application(client, "handed", more(&web)).await;
    proxy.reached().await;
    let params = PatchParams { field_manager: Some("an-autoscaler".into()), ..PatchParams::default() };
    let deployments = Api::<Deployment>::namespaced(client.clone(), "pool-handed-1");
    let scale = json!({"spec": {"replicas": 8}});
    deployments.patch_scale("web", &params, &Patch::Merge(scale)).await.expect("scaled");
    let deployment = named("apps/v1", "Deployment", Some("pool-handed-1"), "web");
    let watched = watch_replicas(client, &deployment).await;
    proxy.release();
    // What it applies afterwards has the other image.
    let handed = eventually(async || {
        let live = read(client, &deployment).await?;
        (live["spec"]["template"]["spec"]["containers"][0]["image"] == image).then_some(live)
    });
    let handed = handed.await.expect("the count is handed over");
    assert_eq!(handed["spec"]["replicas"], 8);
    let seen = watched();
    assert!(seen.iter().all(|replicas| *replicas == 8), "{seen:?}");
}

/// Notes the replicas of every version of a Deployment from now on; ask for what was seen.
pub async fn watch_replicas(client: &Client, deployment: &Value) -> impl FnOnce() -> Vec<i64> {
    let name = deployment["metadata"]["name"].as_str().expect("a name");
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let resource = ApiResource::erase::<Deployment>(&());
    let api = Api::<DynamicObject>::namespaced_with(
        client.clone(),
        deployment["metadata"]["namespace"].as_str().expect("a namespace"),
        &resource,
    );
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (note, listed) = (Arc::clone(&seen), Arc::new(Notify::new()));
    let tell = Arc::clone(&listed);
    let task = tokio::spawn(async move {
        // Where the API server is gone, one without pauses would hold its thread for ever.
        let mut events = Box::pin(watcher(api, config).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::InitApply(live) | Event::Apply(live)) => {
                    note.lock().expect("no panic").push(live.data["spec"]["replicas"].as_i64().expect("replicas"));
                }
                Ok(Event::InitDone) => tell.notify_one(),
                _ => {}
            }
        }
    });
    tokio::time::timeout(Duration::from_secs(30), listed.notified()).await.expect("a list");
    move || {
        task.abort();
        seen.lock().expect("no panic").clone()
    }
}
