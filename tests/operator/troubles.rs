//! What keeps pods from serving is said by component and reason, within seconds.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    ground::{apply, await_tenant, eventually, is, shared, tenant},
    verbs::{application, await_condition, of, ours, read, web},
};

/// The label and taint of the node that kwok doesn't play: its pods stay as the test, in the
/// place of a kubelet, says.
const BARE: &str = "example.com/bare";

/// Makes that node.
async fn bare_node(client: &Client) {
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

/// The reason of a Pool's condition.
async fn reason(client: &Client, pool: &Value, kind: &str) -> String {
    let live = read(client, pool).await.expect("a Pool");
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
    let text = format!("component web: 0 of 1 replicas available; container crm can't pull {first}: manifest unknown");
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
