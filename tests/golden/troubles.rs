//! What pods say of themselves, as real kubelets and the real scheduler write it.

use serde_json::{Value, json};
use tenantry::desired::trouble::{Trouble, trouble};

/// A pod of a ReplicaSet, made at this second, with this status.
#[expect(clippy::needless_pass_by_value, reason = "a literal reads better than a reference to one")]
fn pod(template: &str, second: u32, status: Value) -> Value {
    json!({
        "metadata": {
            "name": format!("web-{template}-{second:05}"),
            "creationTimestamp": format!("2026-11-22T10:00:{second:02}Z"),
            "labels": {"pod-template-hash": template},
        },
        "spec": {
            "containers": [{"name": "crm", "image": "ghcr.io/example/crm:1"}],
            "initContainers": [{"name": "prepare", "image": "ghcr.io/example/prepare:1"}],
        },
        "status": status,
    })
}

fn waiting(container: &str, reason: &str, message: &str) -> Value {
    let status = json!([{
        "name": container, "ready": false, "restartCount": 0, "started": false,
        "state": {"waiting": {"reason": reason, "message": message}},
    }]);
    json!({"phase": "Pending", "containerStatuses": status})
}

fn one(status: Value) -> Option<(&'static str, String)> {
    trouble(&[pod("a", 1, status)]).map(|Trouble { reason, message }| (reason, message))
}

#[expect(clippy::needless_pass_by_value, reason = "a literal reads better than a reference to one")]
fn says(status: Value, reason: &str, message: &str) {
    let (found, text) = one(status.clone()).unwrap_or_else(|| panic!("{status} says nothing"));
    assert_eq!((found, text.as_str()), (reason, message));
}

#[test]
fn an_image_that_can_not_be_pulled_reads_the_same_in_both_states_of_the_kubelet() {
    let error = "failed to pull and unpack image \"ghcr.io/example/crm:1\": not found";
    let same = format!("container crm can't pull ghcr.io/example/crm:1: {error}");
    says(waiting("crm", "ErrImagePull", error), "ImagePullBackOff", &same);
    let back_off = format!("Back-off pulling image \"ghcr.io/example/crm:1\": ErrImagePull: {error}");
    says(waiting("crm", "ImagePullBackOff", &back_off), "ImagePullBackOff", &same);
    let bare = "Back-off pulling image \"ghcr.io/example/crm:1\"";
    says(
        waiting("crm", "ImagePullBackOff", bare),
        "ImagePullBackOff",
        "container crm can't pull ghcr.io/example/crm:1",
    );
    let invalid = "Failed to apply default image tag \"ghcr.io/Example\": couldn't parse image name";
    says(
        waiting("crm", "InvalidImageName", invalid),
        "InvalidImageName",
        &format!("container crm can't pull ghcr.io/example/crm:1: {invalid}"),
    );
}

/// A container that ended, in one of the states that it goes through.
#[expect(clippy::needless_pass_by_value, reason = "a literal reads better than a reference to one")]
fn ended(state: Value, message: Option<&str>) -> Value {
    let mut last = json!({"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-11-22T10:00:09Z"});
    if let Some(message) = message {
        last["message"] = message.into();
    }
    let status =
        json!([{"name": "crm", "ready": false, "restartCount": 7, "state": state, "lastState": {"terminated": last}}]);
    json!({"phase": "Running", "containerStatuses": status})
}

#[test]
fn a_crash_loop_reads_the_same_between_and_during_its_attempts() {
    let same = "container crm ends again and again: exit code 137 (OOMKilled)";
    for seconds in ["10s", "5m0s"] {
        let message = format!("back-off {seconds} restarting failed container=crm pod=web-a-00001_pool-crm-1(uid)");
        let state = json!({"waiting": {"reason": "CrashLoopBackOff", "message": message}});
        says(ended(state, None), "CrashLoopBackOff", same);
    }
    says(ended(json!({"running": {"startedAt": "2026-11-22T10:00:10Z"}}), None), "CrashLoopBackOff", same);
    let now = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    says(ended(now, None), "CrashLoopBackOff", same);
    let said = ended(json!({"waiting": {"reason": "CrashLoopBackOff"}}), Some("panic:\n  no such file\n"));
    says(said, "CrashLoopBackOff", &format!("{same}: panic: no such file"));
}

#[test]
fn a_message_that_is_long_is_cut() {
    let (_, message) = one(waiting("crm", "ErrImagePull", &"ü".repeat(5_000))).expect("a trouble");
    assert!(message.chars().count() < 400 && message.ends_with('…'), "{message}");
}

#[test]
fn init_containers_and_what_they_lack() {
    let mut status = waiting("crm", "PodInitializing", "");
    status["initContainerStatuses"] = waiting("prepare", "ErrImagePull", "denied")["containerStatuses"].clone();
    says(status, "ImagePullBackOff", "container prepare can't pull ghcr.io/example/prepare:1: denied");
    let message = "secret \"tokens\" not found";
    says(
        waiting("crm", "CreateContainerConfigError", message),
        "CreateContainerConfigError",
        &format!("container crm can't be started: {message}"),
    );
    // One that has done its work, and a sidecar that runs, have no trouble.
    let mut well = waiting("crm", "ContainerCreating", "");
    well["initContainerStatuses"] = json!([
        {"name": "prepare", "ready": true, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
        {"name": "tenantry-agent", "ready": true, "started": true, "restartCount": 3,
         "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1}}},
    ]);
    assert_eq!(one(well), None);
}

#[test]
fn what_the_scheduler_and_the_probes_say() {
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "False", "reason": reason, "message": message});
    let nodes = "0/2 nodes are available: 2 Insufficient cpu.";
    let unscheduled = json!({"phase": "Pending", "conditions": [condition("PodScheduled", "Unschedulable", nodes)]});
    says(unscheduled, "Unschedulable", &format!("no node takes its pods: {nodes}"));
    let gated = json!({"phase": "Pending", "conditions": [condition("PodScheduled", "SchedulingGated", "gated")]});
    assert_eq!(one(gated), None);
    let running = json!({
        "phase": "Running",
        "conditions": [condition("ContainersReady", "ContainersNotReady", "containers with unready status: [crm]")],
        "containerStatuses": [{"name": "crm", "ready": false, "restartCount": 0, "state": {"running": {}}}],
    });
    says(running, "ContainersNotReady", "container crm runs, but its readiness probe fails");
    assert_eq!(one(waiting("crm", "ContainerCreating", "")), None);
    assert_eq!(trouble(&[]), None);
}

#[test]
fn the_newest_pods_are_heard_first_and_those_that_go_not_at_all() {
    let crash = || ended(json!({"waiting": {"reason": "CrashLoopBackOff"}}), None);
    let image = || waiting("crm", "ErrImagePull", "denied");
    let reason = |pods: &[Value]| trouble(pods).map(|trouble| trouble.reason);
    assert_eq!(reason(&[pod("a", 1, image()), pod("b", 2, crash())]), Some("CrashLoopBackOff"));
    assert_eq!(reason(&[pod("a", 1, image()), pod("b", 2, json!({"phase": "Running"}))]), Some("ImagePullBackOff"));
    // Within one template, what explains most.
    assert_eq!(reason(&[pod("a", 1, crash()), pod("a", 2, image())]), Some("ImagePullBackOff"));
    let mut going = pod("b", 2, crash());
    going["metadata"]["deletionTimestamp"] = "2026-11-22T10:00:09Z".into();
    assert_eq!(reason(&[going, pod("b", 3, json!({"phase": "Failed", "reason": "Evicted"}))]), None);
}
