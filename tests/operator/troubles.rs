//! What keeps pods from serving is said by component and reason, within seconds.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    bridge::bridge,
    dedicated::dedicated,
    ground::{apply, await_tenant, eventually, is, shared, tenant},
    verbs::{application, await_condition, named, of, ours, read, web},
};

/// The label and taint of the node that kwok doesn't play: its pods stay as the test, in the
/// place of a kubelet, says.
const BARE: &str = "example.com/bare";

/// Makes that node, once.
async fn bare_node(client: &Client) {
    static MADE: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    MADE.get_or_init(async || make_bare_node(client).await).await;
}

async fn make_bare_node(client: &Client) {
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "bare", "labels": {BARE: "true"}},
        "spec": {"taints": [{"key": BARE, "effect": "NoSchedule"}]},
    });
    let nodes = Api::<Node>::all(client.clone());
    let node: Node = serde_json::from_value(node).expect("a Node");
    nodes.create(&PostParams::default(), &node).await.expect("a Node");
    let room = json!({"cpu": "8", "memory": "16Gi", "pods": "50"});
    let ready = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}]);
    let status = json!({"status": {"allocatable": room, "capacity": room, "conditions": ready}});
    nodes.patch_status("bare", &PatchParams::default(), &Patch::Merge(&status)).await.expect("a status");
}

/// A component whose pods run on that node, whatever the node's state.
fn component(image: &str) -> Value {
    let mut web = web();
    let spec = &mut web["template"]["spec"];
    spec["containers"][0]["image"] = image.into();
    spec["nodeSelector"] = json!({BARE: "true"});
    spec["tolerations"] = json!([{"operator": "Exists"}]);
    web["replicas"] = json!({"pooled": 1});
    web
}

/// Waits for the pod with this image, and writes its status as a kubelet would.
async fn kubelet_says(client: &Client, namespace: &str, image: &str, container: Value) {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let of_image = |pod: &Pod| {
        let spec = pod.spec.as_ref()?;
        spec.node_name.as_ref()?;
        let main = spec.containers.iter().find(|container| container.name == "crm")?;
        (main.image.as_deref() == Some(image) && pod.metadata.deletion_timestamp.is_none()).then(|| pod.name_any())
    };
    let found =
        eventually(async || pods.list(&ListParams::default()).await.expect("pods").items.iter().find_map(of_image));
    let name = found.await.unwrap_or_else(|| panic!("no pod of {image} is on the node"));
    let ready = container["ready"] == true;
    let condition = |kind: &str| match ready {
        true => json!({"type": kind, "status": "True"}),
        false => json!({
            "type": kind, "status": "False", "reason": "ContainersNotReady",
            "message": "containers with unready status: [crm]",
        }),
    };
    let mut status = json!({
        "phase": if container["state"]["waiting"].is_object() { "Pending" } else { "Running" },
        "conditions": [condition("Ready"), condition("ContainersReady"), {"type": "Initialized", "status": "True"}],
        "containerStatuses": [{
            "name": "crm", "image": image, "imageID": "", "restartCount": 0, "started": ready, "ready": ready,
        }],
    });
    super::ground::merge(&mut status["containerStatuses"][0], container);
    let patch = Patch::Strategic(json!({"status": status}));
    pods.patch_status(&name, &PatchParams::default(), &patch).await.expect("a status");
}

fn image_error() -> Value {
    json!({"state": {"waiting": {"reason": "ErrImagePull", "message": "manifest unknown"}}})
}

fn running() -> Value {
    json!({"ready": true, "state": {"running": {"startedAt": "2026-11-22T10:00:00Z"}}, "lastState": null})
}

/// Ends again and again, with this code.
fn crashing(code: i64) -> Value {
    json!({
        "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
        "lastState": {"terminated": {"exitCode": code, "reason": "Error"}},
    })
}

/// The reason of an object's condition.
async fn reason(client: &Client, object: &Value, kind: &str) -> String {
    let live = read(client, object).await.expect("it is there");
    let conditions = live["status"]["conditions"].as_array().expect("conditions");
    let condition = conditions.iter().find(|condition| condition["type"] == kind).expect("the condition");
    condition["reason"].as_str().expect("a reason").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_missing_and_a_crash_loop_are_named() {
    let (_, client) = shared().await;
    bare_node(&client).await;
    let (first, second) = ("registry.example.com/crm:1.0.0", "registry.example.com/crm:1.1.0");
    let with = |image: &str| json!({"components": [component(image)], "migrations": null});
    application(&client, "troubled", with(first)).await;
    apply(&client, &tenant("ailing", of("troubled", json!({})))).await.expect("a Tenant");
    let (pool, namespace) = (ours("Pool", "troubled-1"), "pool-troubled-1");

    // A pool that doesn't come up.
    kubelet_says(&client, namespace, first, image_error()).await;
    let text = format!("component web: 0 of 1 replicas ready; container crm can't pull {first}: manifest unknown");
    let message = await_condition(&client, &pool, "Available", "False", "manifest unknown").await;
    assert_eq!(message, text);
    assert_eq!(reason(&client, &pool, "Available").await, "ImagePullBackOff");
    // Its tenants hear it.
    await_condition(&client, &ours("Tenant", "ailing"), "WorkloadReady", "False", &text).await;
    kubelet_says(
        &client,
        namespace,
        first,
        json!({
            "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        }),
    )
    .await;
    await_condition(&client, &pool, "Available", "False", "container crm ends again and again: exit code 137").await;
    assert_eq!(reason(&client, &pool, "Available").await, "CrashLoopBackOff");
    kubelet_says(&client, namespace, first, running()).await;
    await_condition(&client, &pool, "Ready", "True", "").await;
    await_condition(&client, &pool, "RolledOut", "True", "").await;
    await_tenant(&client, "ailing", "Ready", |tenant| is(tenant, "Ready", "True")).await;

    // A rollout that doesn't get on, while the old pod serves.
    application(&client, "troubled", with(second)).await;
    kubelet_says(&client, namespace, second, image_error()).await;
    let text = format!("component web: container crm can't pull {second}: manifest unknown");
    assert_eq!(await_condition(&client, &pool, "RolledOut", "False", "manifest unknown").await, text);
    assert_eq!(reason(&client, &pool, "RolledOut").await, "ImagePullBackOff");
    await_condition(&client, &pool, "Ready", "True", "").await;
    await_condition(&client, &ours("Application", "troubled"), "RolledOut", "False", "Pool troubled-1").await;
    await_tenant(&client, "ailing", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    kubelet_says(&client, namespace, second, running()).await;
    await_condition(&client, &pool, "RolledOut", "True", "").await;
    await_condition(&client, &ours("Application", "troubled"), "Ready", "True", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_of_a_tenants_own_namespace_say_it_on_the_tenant() {
    let (_, client) = shared().await;
    bare_node(&client).await;
    let image = "registry.example.com/crm:2.0.0";
    application(&client, "poorly", json!({"components": [component(image)], "migrations": null})).await;
    let one = json!({"spec": {"overrides": [{"component": "web", "replicas": 1}]}});
    for (name, more) in [("poorly-b", bridge("poorly", one.clone())), ("poorly-d", dedicated("poorly", one.clone()))] {
        apply(&client, &tenant(name, more)).await.expect("a Tenant");
        let (object, namespace) = (ours("Tenant", name), format!("tenant-{name}"));
        kubelet_says(&client, &namespace, image, image_error()).await;
        let message = await_condition(&client, &object, "WorkloadReady", "False", "manifest unknown").await;
        assert_eq!(
            message,
            format!("component web: 0 of 1 replicas ready; container crm can't pull {image}: manifest unknown")
        );
        assert_eq!(reason(&client, &object, "WorkloadReady").await, "ImagePullBackOff");
        kubelet_says(&client, &namespace, image, crashing(3)).await;
        await_condition(&client, &object, "WorkloadReady", "False", "crm ends again and again: exit code 3").await;
        assert_eq!(reason(&client, &object, "WorkloadReady").await, "CrashLoopBackOff");
        await_condition(&client, &object, "Ready", "False", "component web").await;
        kubelet_says(&client, &namespace, image, running()).await;
        await_tenant(&client, name, "Ready", |tenant| is(tenant, "Ready", "True")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_ends_a_while_after_it_was_ready_reaches_nobody_else() {
    let (_, client) = shared().await;
    bare_node(&client).await;
    let [old, new, fixed] = ["3.0.0", "3.1.0", "3.2.0"].map(|version| format!("registry.example.com/crm:{version}"));
    let with = |image: &str, seconds: i32| {
        json!({
            "components": [component(image)], "migrations": null, "pools": {"maxTenants": 1},
            "rollout": {"minReadySeconds": seconds},
        })
    };
    // Longer than this test waits for anything: a first start doesn't wait for it.
    application(&client, "relapsing", with(&old, 300)).await;
    let pools = ["relapsing-1", "relapsing-2"];
    for pool in pools {
        apply(&client, &tenant(&format!("of-{pool}"), of("relapsing", json!({})))).await.expect("a Tenant");
        kubelet_says(&client, &format!("pool-{pool}"), &old, running()).await;
        await_condition(&client, &ours("Pool", pool), "Ready", "True", "").await;
        await_condition(&client, &ours("Pool", pool), "RolledOut", "True", "").await;
    }

    application(&client, "relapsing", with(&new, 300)).await;
    let deployment = |pool: &str| named("apps/v1", "Deployment", Some(&format!("pool-{pool}")), "web");
    let has_new = async |pool: &str| {
        let live = read(&client, &deployment(pool)).await.expect("a Deployment");
        live["spec"]["template"].to_string().contains(&new)
    };
    let first = eventually(async || {
        for pool in pools {
            if has_new(pool).await {
                return Some(pool);
            }
        }
        None
    });
    let first = first.await.expect("the rollout begins");
    let other = pools.into_iter().find(|pool| *pool != first).expect("two pools");
    for code in [3, 4] {
        kubelet_says(&client, &format!("pool-{first}"), &new, running()).await;
        let both = eventually(async || {
            let live = read(&client, &deployment(first)).await?;
            (live["status"]["readyReplicas"] == 2).then_some(())
        });
        assert!(both.await.is_some(), "the old pod stays, and the new one is ready");
        kubelet_says(&client, &format!("pool-{first}"), &new, crashing(code)).await;
        let says = format!("container crm ends again and again: exit code {code}");
        await_condition(&client, &ours("Pool", first), "RolledOut", "False", &says).await;
        let message = await_condition(&client, &ours("Application", "relapsing"), "RolledOut", "False", &says).await;
        assert!(message.contains(first), "{message}");
        await_condition(&client, &ours("Pool", other), "RolledOut", "False", "comes after others").await;
        assert!(!has_new(other).await, "it reached the next one");
        for pool in pools {
            await_condition(&client, &ours("Pool", pool), "Ready", "True", "").await;
        }
    }

    // What heals it goes there first, and then to all.
    application(&client, "relapsing", with(&fixed, 0)).await;
    for pool in [first, other] {
        kubelet_says(&client, &format!("pool-{pool}"), &fixed, running()).await;
        await_condition(&client, &ours("Pool", pool), "RolledOut", "True", "").await;
    }
    await_condition(&client, &ours("Application", "relapsing"), "Ready", "True", "").await;
}
