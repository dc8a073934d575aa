//! Why a component's pods don't serve, from the pods as their kubelets and the scheduler
//! describe them. Pure.

use serde_json::Value;

use crate::api::Reason;

/// The longest part of somebody else's message that is passed on, in characters.
const QUOTED: usize = 300;

/// What keeps a component's pods from serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// One word for programs: Kubernetes' own where it has one.
    pub reason: Reason,
    /// Which container, and what of it; without the names of pods and without counts, so that
    /// it stays the same while nothing changes.
    pub message: String,
}

/// How much a trouble explains; the first is told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The container can't even begin.
    NeverStarts,
    /// It begins and ends.
    Ends,
    /// No node has room.
    Unscheduled,
    /// It runs, and says that it isn't ready.
    NotReady,
}

/// What keeps these pods from serving, where they say so: of the pods with the newest
/// template, or else of the older ones.
pub fn trouble(pods: &[Value]) -> Option<Trouble> {
    let live = |pod: &&Value| {
        pod["metadata"]["deletionTimestamp"].is_null()
            && !matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded"))
    };
    let template = |pod: &Value| pod["metadata"]["labels"]["pod-template-hash"].clone();
    let pods: Vec<&Value> = pods.iter().filter(live).collect();
    // Times of one form and zone: their order is that of their texts.
    let newest = pods.iter().max_by_key(|pod| pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default())?;
    let newest = template(newest);
    let (new, old): (Vec<&Value>, Vec<&Value>) = pods.into_iter().partition(|pod| template(pod) == newest);
    worst(&new).or_else(|| worst(&old))
}

fn worst(pods: &[&Value]) -> Option<Trouble> {
    let found = pods.iter().flat_map(|pod| of_pod(pod));
    let worst = found.min_by(|(rank, a), (other, b)| (rank, &a.message).cmp(&(other, &b.message)));
    worst.map(|(_, trouble)| trouble)
}

fn of_pod(pod: &Value) -> Vec<(Rank, Trouble)> {
    let mut found = Vec::new();
    for field in ["initContainerStatuses", "containerStatuses"] {
        for status in pod["status"][field].as_array().into_iter().flatten() {
            found.extend(of_container(pod, status, field == "initContainerStatuses"));
        }
    }
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    for condition in conditions.filter(|condition| condition["status"] == "False") {
        let message = quoted(condition["message"].as_str().unwrap_or_default());
        match (condition["type"].as_str(), condition["reason"].as_str()) {
            (Some("PodScheduled"), Some("Unschedulable")) => {
                let message = format!("no node takes its pods: {message}");
                found.push((Rank::Unscheduled, Trouble { reason: "Unschedulable", message }));
            }
            (Some("ContainersReady"), Some("ContainersNotReady")) if found.is_empty() => {
                found.extend(not_ready(pod));
            }
            _ => {}
        }
    }
    found
}

/// Containers that run and don't answer to their readiness probe.
fn not_ready(pod: &Value) -> Option<(Rank, Trouble)> {
    let statuses = pod["status"]["containerStatuses"].as_array()?;
    let status = statuses.iter().find(|status| status["ready"] == false && status["state"]["running"].is_object())?;
    let message = format!("container {} runs, but its readiness probe fails", name(status));
    Some((Rank::NotReady, Trouble { reason: "ContainersNotReady", message }))
}

fn name(status: &Value) -> &str {
    status["name"].as_str().unwrap_or_default()
}

fn of_container(pod: &Value, status: &Value, is_init: bool) -> Option<(Rank, Trouble)> {
    let state = &status["state"];
    if let Some(waiting) = state["waiting"].as_object() {
        let text = |field: &str| waiting.get(field).and_then(Value::as_str).unwrap_or_default();
        let reason = text("reason");
        if reason == "CrashLoopBackOff" {
            return Some(crash(status, &status["lastState"]["terminated"]));
        }
        return never_starts(pod, name(status), reason, text("message"));
    }
    // Between two starts, and while the next attempt runs, there is no reason to read.
    let ended = [&state["terminated"], &status["lastState"]["terminated"]].into_iter().find(|it| it.is_object())?;
    let is_done = is_init && state["terminated"]["exitCode"] == 0;
    let is_well = is_done || status["ready"] == true || (is_init && status["started"] == true);
    if is_well { None } else { Some(crash(status, ended)) }
}

fn crash(status: &Value, ended: &Value) -> (Rank, Trouble) {
    let mut message = format!("container {} ends again and again", name(status));
    if let Some(code) = ended["exitCode"].as_i64() {
        message += &format!(": exit code {code}");
        if let Some(reason) = ended["reason"].as_str().filter(|reason| !reason.is_empty()) {
            message += &format!(" ({reason})");
        }
    }
    if let Some(last) = ended["message"].as_str().map(quoted).filter(|last| !last.is_empty()) {
        message += &format!(": {last}");
    }
    (Rank::Ends, Trouble { reason: "CrashLoopBackOff", message })
}

fn never_starts(pod: &Value, container: &str, reason: &str, message: &str) -> Option<(Rank, Trouble)> {
    const IMAGES: [Reason; 6] = [
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
        "ImagePullBackOff",
    ];
    const OTHERS: [Reason; 6] = [
        "CreateContainerConfigError",
        "CreateContainerError",
        "PreStartHookError",
        "PostStartHookError",
        "RunContainerError",
        "StartError",
    ];
    // The kubelet goes to and fro between the two.
    let reason = if reason == "ErrImagePull" { "ImagePullBackOff" } else { reason };
    let message = quoted(pull_error(message));
    let found = if let Some(reason) = IMAGES.into_iter().find(|known| *known == reason) {
        let image = image(pod, container).unwrap_or_default();
        let why = if message.is_empty() { String::new() } else { format!(": {message}") };
        Trouble { reason, message: format!("container {container} can't pull {image}{why}") }
    } else {
        let reason = OTHERS.into_iter().find(|known| *known == reason)?;
        Trouble { reason, message: format!("container {container} can't be started: {message}") }
    };
    Some((Rank::NeverStarts, found))
}

/// The registry's answer alone, whichever of its two states the kubelet is in.
fn pull_error(message: &str) -> &str {
    let rest = message.strip_prefix("Back-off pulling image \"").and_then(|rest| rest.split_once('"'));
    let error = rest.map_or(message, |(_, rest)| rest.trim_start_matches(':').trim_start());
    error.strip_prefix("ErrImagePull: ").unwrap_or(error)
}

/// The image as the spec has it.
fn image<'a>(pod: &'a Value, container: &str) -> Option<&'a str> {
    let containers = ["containers", "initContainers"].into_iter().filter_map(|field| pod["spec"][field].as_array());
    containers.flatten().find(|it| it["name"] == container)?["image"].as_str()
}

/// A text of somebody else's in one line, cut where it is long.
fn quoted(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
