//! Whether the containers of a pool, or of a tenant's own namespace, serve.

use serde_json::Value;

use super::rollout::{Progress, RolloutState};
use crate::api::Reason;

/// Whether one component serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentState {
    /// The component's name.
    pub component: String,
    /// Whether at least one replica is ready (or none is wanted).
    pub available: bool,
    /// Whether that is so for as long as the Deployment's `minReadySeconds` say: rollouts go by
    /// it, since what ends again and again is ready every now and then.
    pub lasting: bool,
    /// One word for programs.
    pub reason: Reason,
    /// What is, and why; empty when all is well.
    pub message: String,
    /// Which template its pods are of, and how far its rollout is.
    pub rollout: RolloutState,
    /// How many replicas are wanted.
    pub replicas: i64,
}

impl ComponentState {
    /// Whether all that is wanted is there and no rollout is under way: then nobody has to look
    /// at its pods.
    pub fn is_whole(&self) -> bool {
        let is_rolling = matches!(self.rollout.progress, Progress::Rolling | Progress::Failed(_));
        self.reason == "ScaledToZero" || (self.message.is_empty() && !is_rolling)
    }
}

/// Whether a component serves, from its live Deployment; `None` when there is no Deployment.
///
/// Serving means one ready replica: to that one a Service sends connections. The Deployment's
/// own condition `Available` asks for nearly all of them, so it turns False while an autoscaler
/// adds some, or a node is lost that nobody notices. A rolling update changes nothing here,
/// whatever generation was observed.
pub fn component_state(component: &str, live: Option<&Value>) -> ComponentState {
    let number = |field: &str| live.and_then(|live| live["status"][field].as_i64()).unwrap_or(0);
    let (ready, lasting) = (number("readyReplicas"), number("availableReplicas"));
    let state = |available, reason, message: String| ComponentState {
        component: component.to_owned(),
        available,
        lasting: available && (lasting > 0 || reason == "ScaledToZero"),
        reason,
        message,
        rollout: live.map_or_else(RolloutState::absent, RolloutState::of),
        replicas: live.map_or(0, |live| live["spec"]["replicas"].as_i64().unwrap_or(1)),
    };
    let Some(live) = live else {
        return state(false, "DeploymentMissing", format!("component {component} has no Deployment yet"));
    };
    let wanted = live["spec"]["replicas"].as_i64().unwrap_or(1);
    if wanted == 0 {
        return state(true, "ScaledToZero", format!("component {component} is scaled to zero"));
    }
    let trouble = trouble(live);
    let count = format!("component {component}: {ready} of {wanted} replicas ready");
    let (reason, message) = match trouble {
        Some((reason, message)) => (reason, format!("{count}; {message}")),
        None => ("ReplicasUnavailable", count),
    };
    match ready {
        0 => state(false, reason, message),
        _ if ready < wanted => state(true, reason, message),
        _ => state(true, "Available", String::new()),
    }
}

/// What the Deployment's conditions say: pods that can't be made (a quota, Pod Security)
/// before a rollout that doesn't get on.
fn trouble(live: &Value) -> Option<(Reason, String)> {
    let conditions = live["status"]["conditions"].as_array()?;
    let find = |kind: &str, status: &str| {
        let condition =
            conditions.iter().find(|condition| condition["type"] == kind && condition["status"] == status)?;
        Some(condition["message"].as_str().unwrap_or_default().to_owned())
    };
    find("ReplicaFailure", "True")
        .map(|message| ("PodsRefused", message))
        .or_else(|| find("Progressing", "False").map(|message| ("RolloutStuck", message)))
}

/// The components that don't serve, as one message; nothing when all do.
pub fn unavailable(states: &[ComponentState]) -> Option<(Reason, String)> {
    let mut down = states.iter().filter(|state| !state.available).peekable();
    let reason = down.peek()?.reason;
    Some((reason, down.map(|state| state.message.as_str()).collect::<Vec<_>>().join("; ")))
}
