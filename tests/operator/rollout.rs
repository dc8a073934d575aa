//! A changed pod template reaches one pool after another, and nobody after a failure.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use devcluster::Options;
use futures::StreamExt as _;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Node};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
    runtime::watcher::{self, Event, watcher},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{
    bridge::bridge,
    ground::{Ground, OPERATOR, apply, await_tenant, eventually, is, merge, ready_tenant, shared, tenant},
    verbs::{application, await_condition, named, of, ours, patch, read, web},
};

const OLD: &str = "registry.example.com/crm:0.1.0";
const NEW: &str = "registry.example.com/crm:0.2.0";
const FIXED: &str = "registry.example.com/crm:0.3.0";
/// A label that no node has.
const NOWHERE: &str = "example.com/nowhere";

/// An Application of which each tenant has a pool of its own.
async fn staged(client: &Client, name: &str, image: &str, more: Value) {
    let mut web = web();
    web["template"]["spec"]["containers"][0]["image"] = image.into();
    if let Some(more) = more.get("web") {
        merge(&mut web, more.clone());
    }
    let mut spec = json!({"components": [web], "pools": {"maxTenants": 1}, "migrations": null});
    if let Some(more) = more.get("spec") {
        merge(&mut spec, more.clone());
    }
    application(client, name, spec).await;
}

/// What keeps pods from being scheduled.
fn nowhere() -> Value {
    json!({"template": {"spec": {"nodeSelector": {NOWHERE: "true"}}}})
}

fn deployment(pool: &str) -> Value {
    deployment_in(&format!("pool-{pool}"))
}

fn deployment_in(namespace: &str) -> Value {
    named("apps/v1", "Deployment", Some(namespace), "web")
}

fn image(deployment: &Value) -> &str {
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_array().expect("containers");
    let main = containers.iter().find(|container| container["name"] == "crm").expect("the application's container");
    main["image"].as_str().expect("an image")
}

fn selects_nowhere(deployment: &Value) -> bool {
    deployment["spec"]["template"]["spec"]["nodeSelector"][NOWHERE] == "true"
}

/// Whether every pod is of the newest template and available, as `kubectl rollout status` has it.
fn is_complete(live: &Value) -> bool {
    let status = &live["status"];
    let replicas = &live["spec"]["replicas"];
    status["observedGeneration"] == live["metadata"]["generation"]
        && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| status[field] == *replicas)
}

/// Waits until a pool's Deployment has an image everywhere.
async fn has_rolled(client: &Client, pool: &str, wanted: &str) {
    has_rolled_in(client, &format!("pool-{pool}"), wanted).await;
}

async fn has_rolled_in(client: &Client, namespace: &str, wanted: &str) {
    let mut last = Value::Null;
    let done = eventually(async || {
        last = read(client, &deployment_in(namespace)).await?;
        (image(&last) == wanted && is_complete(&last)).then_some(())
    })
    .await;
    assert!(done.is_some(), "{namespace} does not come to {wanted}: {last:#}");
}

/// What a watch of an Application's Deployments told.
#[derive(Default)]
struct Story {
    live: BTreeMap<String, Value>,
    /// The most Deployments that were in mid-rollout at one moment.
    most: usize,
    /// In which order Deployments got another image.
    order: Vec<(String, String)>,
}

struct Watch {
    story: Arc<Mutex<Story>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Watches from now on. One watch tells all in the order in which it was written.
    async fn start(client: &Client, application: &str, count: usize) -> Self {
        let story = Arc::new(Mutex::new(Story::default()));
        let config = watcher::Config::default().labels(&format!("app.kubernetes.io/part-of={application}"));
        let mut events = watcher(Api::<Deployment>::all(client.clone()), config).boxed();
        let told = Arc::clone(&story);
        let task = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let Ok(Event::Apply(object) | Event::InitApply(object)) = event else { continue };
                let object = serde_json::to_value(object).expect("JSON");
                let mut story = told.lock().expect("a story");
                let namespace = object["metadata"]["namespace"].as_str().expect("a namespace").to_owned();
                if story.live.get(&namespace).is_some_and(|before| image(before) != image(&object)) {
                    let image = image(&object).to_owned();
                    story.order.push((namespace.clone(), image));
                }
                story.live.insert(namespace, object);
                let rolling = story.live.values().filter(|live| !is_complete(live)).count();
                story.most = story.most.max(rolling);
            }
        });
        let listed = eventually(async || (story.lock().expect("a story").live.len() == count).then_some(())).await;
        assert!(listed.is_some(), "the Deployments of {application} are not listed");
        Self { story, task }
    }

    /// How many were in mid-rollout at most, and in which order they got another image.
    fn told(&self) -> (usize, Vec<(String, String)>) {
        let story = self.story.lock().expect("a story");
        (story.most, story.order.clone())
    }
}

/// Three tenants in three pools, all at the old image.
async fn three_pools(client: &Client, name: &str, more: Value) -> [String; 3] {
    staged(client, name, OLD, more).await;
    let pools = [1, 2, 3].map(|number| format!("{name}-{number}"));
    for pool in &pools {
        ready_tenant(client, &format!("of-{pool}"), of(name, json!({}))).await;
    }
    for pool in &pools {
        has_rolled(client, pool, OLD).await;
        await_condition(client, &ours("Pool", pool), "RolledOut", "True", "").await;
    }
    await_condition(client, &ours("Application", name), "RolledOut", "True", "").await;
    pools
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_template_reaches_one_pool_after_another_and_none_after_a_failure() {
    let (_, client) = shared().await;
    let deadline = json!({"rollout": {"deadline": "5s"}});
    let pools = three_pools(&client, "waves", json!({"spec": deadline})).await;
    let application = ours("Application", "waves");

    let watch = Watch::start(&client, "waves", 3).await;
    staged(&client, "waves", NEW, json!({"spec": deadline})).await;
    for pool in &pools {
        has_rolled(&client, pool, NEW).await;
    }
    await_condition(&client, &application, "RolledOut", "True", "").await;
    await_condition(&client, &application, "Ready", "True", "").await;
    let (most, order) = watch.told();
    assert_eq!(most, 1, "one at a time: {order:?}");
    let reached: Vec<_> = order.iter().map(|(namespace, image)| (namespace.as_str(), image.as_str())).collect();
    assert_eq!(reached.len(), 3, "each once: {reached:?}");

    // The first that fails is the last that is touched.
    staged(&client, "waves", FIXED, json!({"spec": deadline, "web": nowhere()})).await;
    let message = await_condition(&client, &application, "RolledOut", "False", "the rollout stopped at Pool").await;
    assert!(message.contains("component web"), "{message}");
    await_condition(&client, &application, "Stalled", "True", "the rollout stopped").await;
    let failed = pools.iter().find(|pool| message.contains(pool.as_str())).expect("it names a pool");
    let others: Vec<_> = pools.iter().filter(|pool| *pool != failed).collect();
    await_condition(&client, &ours("Pool", failed), "RolledOut", "False", "no node takes its pods").await;
    for pool in &others {
        await_condition(&client, &ours("Pool", pool), "RolledOut", "False", &format!("Pool {failed}")).await;
        let live = read(&client, &deployment(pool)).await.expect("a Deployment");
        assert_eq!(image(&live), NEW);
    }
    for pool in &pools {
        // The old pods serve on.
        await_condition(&client, &ours("Pool", pool), "Ready", "True", "").await;
        await_tenant(&client, &format!("of-{pool}"), "Ready", |tenant| is(tenant, "Ready", "True")).await;
    }

    // Who waits is kept as it was, and gets all that is no template.
    let held = deployment(others[0]);
    let template = async || read(&client, &held).await.expect("a Deployment")["spec"]["template"].clone();
    let before = template().await;
    let spy = json!([{"name": "crm", "image": "registry.example.com/spy:1"}]);
    let edited = patch(&client, &held, &json!({"spec": {"template": {"spec": {"containers": spy}}}})).await;
    assert_ne!(edited["spec"]["template"], before);
    let restored = eventually(async || (template().await == before).then_some(())).await;
    assert!(restored.is_some(), "{:#}\ndoes not come back to {before:#}", template().await);
    let mut more = nowhere();
    more["replicas"] = json!({"pooled": 3});
    staged(&client, "waves", FIXED, json!({"spec": deadline, "web": more})).await;
    let scaled = eventually(async || {
        let live = read(&client, &held).await?;
        (live["spec"]["replicas"] == 3 && is_complete(&live)).then_some(live)
    });
    let scaled = scaled.await.expect("replicas are no matter of the rollout");
    assert_eq!(image(&scaled), NEW);

    // A template that heals the one that failed goes there first, and then to all.
    let before = watch.told().1.len();
    staged(&client, "waves", FIXED, json!({"spec": deadline, "web": {"replicas": {"pooled": 3}}})).await;
    for pool in &pools {
        has_rolled(&client, pool, FIXED).await;
    }
    for pool in &pools {
        await_condition(&client, &ours("Pool", pool), "RolledOut", "True", "").await;
    }
    await_condition(&client, &application, "Ready", "True", "").await;
    let after = watch.told().1.split_off(before);
    let came: Vec<_> = after.iter().filter(|(_, image)| image == FIXED).map(|(namespace, _)| namespace).collect();
    assert_eq!(came.len(), 2, "the failed one had this image already: {after:?}");
}

/// Makes every node one that the template asks for.
async fn open(client: &Client) {
    let nodes = Api::<Node>::all(client.clone());
    for node in nodes.list_metadata(&ListParams::default()).await.expect("nodes").items {
        let label = json!({"metadata": {"labels": {NOWHERE: "true"}}});
        let name = node.metadata.name.expect("a name");
        nodes.patch(&name, &PatchParams::default(), &Patch::Merge(&label)).await.expect("a label");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_mid_rollout_begins_no_second_turn() {
    let ground = Ground::start(Options { audit: true, ..Options::default() }).await;
    let client = &ground.client;
    let operator = ground.operator(&[]);
    ground.examples().await;
    // So that a restart finds what is there with a turn alone.
    let lasting = json!({"rollout": {"minReadySeconds": 1}});
    let pools = three_pools(client, "tides", json!({"spec": lasting})).await;
    staged(client, "tides", NEW, json!({"spec": lasting, "web": nowhere()})).await;
    let mut rolling = None;
    let begun = eventually(async || {
        for pool in &pools {
            if image(&read(client, &deployment(pool)).await?) == NEW {
                rolling = Some(pool.clone());
            }
        }
        rolling.clone()
    });
    let rolling = begun.await.expect("the rollout begins");
    let others: Vec<_> = pools.iter().filter(|pool| **pool != rolling).collect();
    for pool in &others {
        await_condition(client, &ours("Pool", pool), "RolledOut", "False", "comes after others").await;
    }
    await_condition(client, &ours("Pool", &rolling), "RolledOut", "False", "no node takes its pods").await;
    await_condition(client, &ours("Application", "tides"), "RolledOut", "False", &rolling).await;

    operator.kill();
    patch(
        client,
        &deployment(others[0]),
        &json!({"spec": {"template": {"spec": {"containers": [
            {"name": "spy", "image": "registry.example.com/spy:1"},
        ]}}}}),
    )
    .await;
    let audit = ground.cluster.audit();
    let mark = audit.mark().expect("a mark");
    let operator = ground.operator(&[]);
    let restored = eventually(async || {
        let live = read(client, &deployment(others[0])).await?;
        let names: Vec<_> = live["spec"]["template"]["spec"]["containers"]
            .as_array()?
            .iter()
            .filter_map(|container| container["name"].as_str())
            .collect();
        (!names.contains(&"spy") && names.contains(&"crm")).then_some(live)
    });
    let restored = restored.await.expect("what was edited in the meantime comes back");
    assert_eq!((image(&restored), selects_nowhere(&restored)), (OLD, false), "as it was, not as it will be");
    has_rolled(client, others[0], OLD).await;
    // A tenant that is made now is Ready after all else was looked at.
    ready_tenant(client, "latecomer", json!({})).await;
    let written: Vec<_> = audit
        .events(mark)
        .expect("events")
        .into_iter()
        .filter(|event| event.user == OPERATOR && event.is_write())
        .filter(|event| event.namespace.starts_with("pool-tides") || event.name.starts_with("tides"))
        .map(|event| (event.resource, event.namespace, event.name))
        .collect();
    let repaired = format!("pool-{}", others[0]);
    assert!(
        written.iter().all(|(resource, namespace, _)| resource == "deployments" && *namespace == repaired),
        "only the edit was undone: {written:#?}"
    );
    assert!(!written.is_empty());
    for pool in &others {
        let live = read(client, &deployment(pool)).await.expect("a Deployment");
        assert_eq!(image(&live), OLD, "no second turn");
    }

    // A second restart, with nothing to repair, then the way is free: it goes on by itself.
    operator.kill();
    let watch = Watch::start(client, "tides", 3).await;
    let _operator = ground.operator(&[]);
    open(client).await;
    for pool in &pools {
        has_rolled(client, pool, NEW).await;
    }
    await_condition(client, &ours("Application", "tides"), "Ready", "True", "").await;
    assert_eq!(watch.told().0, 1, "one at a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_down_gets_the_template_that_heals_it_and_holds_nobody_up() {
    let (_, client) = shared().await;
    // Made with a template that fits nowhere: creation is no turn.
    staged(&client, "ebb", OLD, json!({"web": nowhere()})).await;
    for number in [1, 2] {
        let name = format!("ebb-tenant-{number}");
        apply(&client, &tenant(&name, of("ebb", json!({})))).await.expect("a Tenant");
        let pool = ours("Pool", &format!("ebb-{number}"));
        await_condition(&client, &pool, "Available", "False", "no node takes its pods").await;
    }
    // Two changes, one right after the other.
    staged(&client, "ebb", NEW, json!({"web": nowhere()})).await;
    staged(&client, "ebb", FIXED, json!({})).await;
    for number in [1, 2] {
        has_rolled(&client, &format!("ebb-{number}"), FIXED).await;
        await_condition(&client, &ours("Pool", &format!("ebb-{number}")), "Ready", "True", "").await;
    }
    await_condition(&client, &ours("Application", "ebb"), "RolledOut", "True", "").await;

    // One that is paused is left alone, and waited for by nobody.
    patch(&client, &ours("Pool", "ebb-1"), &json!({"metadata": {"annotations": {"tenantry.io/paused": "true"}}})).await;
    staged(&client, "ebb", OLD, json!({})).await;
    has_rolled(&client, "ebb-2", OLD).await;
    let paused = read(&client, &deployment("ebb-1")).await.expect("a Deployment");
    assert_eq!(image(&paused), FIXED);
    patch(&client, &ours("Pool", "ebb-1"), &json!({"metadata": {"annotations": {"tenantry.io/paused": null}}})).await;
    has_rolled(&client, "ebb-1", OLD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_of_tenants_get_a_changed_template_a_few_at_a_time() {
    let (_, client) = shared().await;
    let rollout = json!({"rollout": {"deadline": "5s", "maxUnavailable": 2}});
    staged(&client, "flotilla", OLD, json!({"spec": rollout})).await;
    let names = ["ship-a", "ship-b", "ship-c", "ship-d"];
    for name in names {
        ready_tenant(&client, name, bridge("flotilla", json!({}))).await;
        await_condition(&client, &ours("Tenant", name), "RolledOut", "True", "").await;
    }
    let namespace = |name: &str| format!("tenant-{name}");
    let application = ours("Application", "flotilla");
    let watch = Watch::start(&client, "flotilla", 4).await;
    staged(&client, "flotilla", NEW, json!({"spec": rollout})).await;
    for name in names {
        has_rolled_in(&client, &namespace(name), NEW).await;
    }
    await_condition(&client, &application, "RolledOut", "True", "").await;
    let (most, order) = watch.told();
    assert!(most <= 2, "{most} at a time: {order:?}");
    assert_eq!(order.len(), 4, "each once: {order:?}");
    let record = async |name: &str| {
        let live = read(&client, &deployment_in(&namespace(name))).await.expect("a Deployment");
        let text = live["metadata"]["annotations"]["tenantry.io/rollout"].as_str().expect("a record").to_owned();
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    assert_eq!(record("ship-a").await["staged"], true);

    // What a tenant's own spec changes is no rollout of the others'.
    let overrides = json!([{"component": "web", "resources": {"requests": {"cpu": "70m"}}}]);
    patch(&client, &ours("Tenant", "ship-a"), &json!({"spec": {"overrides": overrides}})).await;
    let changed = eventually(async || {
        let live = read(&client, &deployment_in("tenant-ship-a")).await?;
        let container = &live["spec"]["template"]["spec"]["containers"][0];
        (container["resources"]["requests"]["cpu"] == "70m" && is_complete(&live)).then_some(())
    });
    assert!(changed.await.is_some(), "it goes at once");
    assert_eq!(record("ship-a").await["staged"], Value::Null);
    assert_eq!(record("ship-b").await["staged"], true, "who isn't concerned isn't written");

    // No more than may fail at a time do.
    staged(&client, "flotilla", FIXED, json!({"spec": rollout, "web": nowhere()})).await;
    await_condition(&client, &application, "RolledOut", "False", "the rollout stopped at Tenant ship-").await;
    let mut reached = Vec::new();
    for name in names {
        let live = read(&client, &deployment_in(&namespace(name))).await.expect("a Deployment");
        if image(&live) == FIXED {
            reached.push(name);
        } else {
            await_condition(&client, &ours("Tenant", name), "RolledOut", "False", "the rollout stopped").await;
        }
        await_tenant(&client, name, "Ready", |tenant| is(tenant, "Ready", "True")).await;
    }
    assert!((1..=2).contains(&reached.len()), "{reached:?}");
    staged(&client, "flotilla", FIXED, json!({"spec": rollout})).await;
    for name in names {
        has_rolled_in(&client, &namespace(name), FIXED).await;
        await_condition(&client, &ours("Tenant", name), "RolledOut", "True", "").await;
    }
    await_condition(&client, &application, "Ready", "True", "").await;
    assert!(watch.told().0 <= 2, "never more than two");
}
