//! How the Deployments of a pool, or of a tenant's own namespace, stand: whether they serve,
//! whether they have the newest templates, and where not, why.
//!
//! Pods are looked at only while a Deployment isn't whole: after a moment, then less and less
//! often, and the more of them are broken, the less often each. What is wrong with pods may
//! change without a trace in their Deployment (an image can be pulled at last, and what is in
//! it crashes), so that it is asked for again within seconds as long as few are.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::Value;
use tokio::sync::Semaphore;
use tracing::debug;

use super::{namespaces::push_owner, rollout, state::ChildState, world::World};
use crate::{
    api::{Application, ConditionType, Reason, Verdict, find_condition},
    cluster::{Key, Owner},
    desired::{
        Kind,
        availability::{ComponentState, component_state, unavailable},
        naming,
        rollout::Progress,
        trouble::{Trouble, trouble},
    },
};

/// How long a Deployment may be under way before its pods are looked at.
const FIRST_LOOK: Duration = Duration::from_millis(1_500);
/// How long the pause between two looks becomes: so long for each Deployment that isn't whole,
/// which makes two looks a second of all together, within these bounds.
const PAUSE_FOR_EACH: Duration = Duration::from_millis(500);
const LONG_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// How many lists of pods are asked for at a time, and how many pods each has at most.
const LISTS: usize = 4;
const PODS: u32 = 50;
/// How long a list of pods may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was found out about Deployments that aren't whole.
pub(super) struct Looks {
    looks: Mutex<HashMap<Key, Look>>,
    lists: Semaphore,
}

/// What was found out about one Deployment.
#[derive(Clone)]
struct Look {
    /// The template that its pods have.
    template: Option<u64>,
    count: u32,
    due: Instant,
    found: Option<Trouble>,
}

impl Default for Looks {
    fn default() -> Self {
        Self { looks: Mutex::default(), lists: Semaphore::new(LISTS) }
    }
}

impl Looks {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Look>> {
        // Every update is one insertion or removal, so a panic in between leaves nothing half done.
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a workload stands.
pub(super) struct Standing {
    /// Whether every component serves; or a reason and what is wrong. What doesn't keep a
    /// component from serving (one replica of several) is said as well.
    pub(super) serves: Result<Option<(Reason, String)>, (Reason, String)>,
    /// Condition `RolledOut`; nothing where it is to stay as it was.
    pub(super) rolled_out: Option<Verdict>,
}

/// How the components of an Application stand in the namespace of an owner. `conditions` are
/// the owner's as they are: what was broken before a restart is looked at at once, so that
/// nothing is written that the next moment takes back.
pub(super) async fn look(
    world: &Arc<World>,
    owner: &Owner,
    namespace: &str,
    application: &Application,
    conditions: &[Condition],
) -> Standing {
    let was_broken = [ConditionType::Available, ConditionType::WorkloadReady, ConditionType::RolledOut]
        .into_iter()
        .filter_map(|kind| find_condition(conditions, kind))
        .any(|condition| condition.status == "False" || condition.reason == DEGRADED);
    let mut states = Vec::new();
    let mut troubles = Vec::new();
    for component in &application.spec.components {
        let key = Key { kind: Kind::Deployment, namespace: Some(namespace.to_owned()), name: component.name.clone() };
        let mut state = match world.cluster.children().state(&key) {
            Some(ChildState::Component(state)) => state,
            _ => component_state(&component.name, None),
        };
        let found = find(world, owner, &key, &state, was_broken).await;
        if let Some(trouble) = &found {
            state.reason = trouble.reason;
            state.message = format!("{}; {}", state.message, trouble.message);
        }
        troubles.extend(found.map(|trouble| (component.name.clone(), trouble)));
        states.push(state);
    }
    let serves = match unavailable(&states) {
        Some(down) => Err(down),
        None => Ok(troubles.first().map(|(component, trouble)| {
            (DEGRADED, format!("every component serves; component {component}: {}", trouble.message))
        })),
    };
    let rolled_out = rollout::verdict(world, owner, &application.name_any(), &states);
    Standing { serves, rolled_out: rolled_out.map(|verdict| explained(verdict, &states, &troubles)) }
}

/// Reason of a condition that is True: it serves, with less than it should.
const DEGRADED: Reason = "Degraded";

/// A rollout that doesn't get on says why, if its pods do.
fn explained(verdict: Verdict, states: &[ComponentState], troubles: &[(String, Trouble)]) -> Verdict {
    let is_at_it = |name: &str| {
        states.iter().any(|state| {
            state.component == name && matches!(state.rollout.progress, Progress::Rolling | Progress::Failed(_))
        })
    };
    match troubles.iter().find(|(component, _)| is_at_it(component)) {
        Some((component, trouble)) if verdict.holds == Some(false) && !rollout::is_waiting(&verdict) => {
            let message = format!("component {component}: {}", trouble.message);
            Verdict::no(verdict.kind, trouble.reason, message)
        }
        _ => verdict,
    }
}

/// What the pods of a Deployment that isn't whole say of it, as far as it was looked at.
async fn find(
    world: &Arc<World>,
    owner: &Owner,
    key: &Key,
    state: &ComponentState,
    was_broken: bool,
) -> Option<Trouble> {
    // Pods that were refused aren't there to be looked at.
    if state.is_whole() || ["DeploymentMissing", "PodsRefused"].contains(&state.reason) {
        world.looks.lock().remove(key);
        return None;
    }
    let now = Instant::now();
    let template = state.rollout.record.as_ref().map(|record| record.template);
    let (mut look, is_new) = match world.looks.lock().get(key).filter(|look| look.template == template) {
        Some(look) => (look.clone(), false),
        None => {
            let due = if was_broken { now } else { now + FIRST_LOOK };
            (Look { template, count: 0, due, found: None }, true)
        }
    };
    let is_due = now >= look.due;
    if is_due {
        if let Some(pods) = list(world, owner, key).await {
            look.found = trouble(&pods);
        }
        let broken = world.looks.lock().len();
        look.due = Instant::now() + pause(look.count, broken);
        look.count += 1;
    }
    if is_new || is_due {
        world.looks.lock().insert(key.clone(), look.clone());
        again(world, owner, key, look.due);
    }
    look.found
}

/// How long it is until the next look, after so many and with so many Deployments to look at:
/// doubled each time.
fn pause(count: u32, broken: usize) -> Duration {
    let longest = PAUSE_FOR_EACH.saturating_mul(u32::try_from(broken).unwrap_or(u32::MAX));
    let longest = longest.clamp(LONG_PAUSE, LONGEST_PAUSE);
    Duration::from_secs(2).saturating_mul(2_u32.saturating_pow(count.min(16))).min(longest)
}

/// Has the owner reconciled when the next look is due, if it still is by then.
fn again(world: &Arc<World>, owner: &Owner, key: &Key, due: Instant) {
    let (world, owner, key) = (Arc::clone(world), owner.clone(), key.clone());
    tokio::spawn(async move {
        tokio::time::sleep_until(due.into()).await;
        if world.cluster.children().uid(&key).is_none() {
            world.looks.lock().remove(&key);
            return;
        }
        let is_due = world.looks.lock().get(&key).is_some_and(|look| look.due == due);
        if is_due {
            push_owner(&world, &owner);
        }
    });
}

/// The pods of a Deployment; nothing where they can't be had.
async fn list(world: &World, owner: &Owner, key: &Key) -> Option<Vec<Value>> {
    let instance = match owner {
        Owner::Pool(name) | Owner::Tenant(name) | Owner::Server(name) => name,
    };
    let selector = naming::selector(instance, &key.name);
    let selector = selector.iter().map(|(label, value)| format!("{label}={value}")).collect::<Vec<_>>().join(",");
    let params = ListParams::default().labels(&selector).match_any().limit(PODS);
    let pods = Api::<Pod>::namespaced(world.cluster.client().clone(), key.namespace.as_deref()?);
    let _permit = world.looks.lists.acquire().await.ok()?;
    match tokio::time::timeout(PATIENCE, pods.list(&params)).await {
        Ok(Ok(list)) => Some(list.items.iter().filter_map(|pod| serde_json::to_value(pod).ok()).collect()),
        Ok(Err(error)) => {
            debug!(deployment = %key, %error, "its pods can't be listed");
            None
        }
        Err(_) => {
            debug!(deployment = %key, "the list of its pods gets no answer");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_looked_at_within_seconds_for_ever_and_many_cost_no_more() {
        let seconds = |count, broken| pause(count, broken).as_secs();
        assert_eq!([0, 1, 2, 3, 100].map(|count| seconds(count, 1)), [2, 4, 8, 10, 10]);
        assert_eq!(seconds(100, 20), 10);
        assert_eq!(seconds(100, 100), 50, "two a second");
        assert_eq!(seconds(100, 10_000), 120);
    }
}
