//! Says of an object whose reconciles exceed their deadline again and again that they do: what
//! its conditions said before may long be untrue.

use std::time::Duration;

use kube::{core::object::HasStatus, runtime::reflector::Lookup};
use tracing::warn;

use super::{
    conditions::{Concerns, now},
    failure::Failure,
    world::World,
};
use crate::{
    api::{ConditionType, HasConditions, StatusPart, merge_conditions},
    cluster::{GroupResource, Statuses},
};

/// How many deadlines are exceeded until it is said: once may be a bad minute.
pub(super) const PATIENCE: u32 = 2;

/// How long it may take to say it: whatever was slow before may still be.
const BUDGET: Duration = Duration::from_secs(10);

/// The conditions that speak of an object as a whole.
const OF_THE_WHOLE: [ConditionType; 3] = [ConditionType::Ready, ConditionType::Reconciling, ConditionType::Stalled];

/// A reconcile exceeded its deadline.
pub(super) fn failure(deadline: Duration) -> Failure {
    Failure::transient(
        "DeadlineExceeded",
        format!(
            "a reconcile takes longer than {deadline:?} and is given up: its database server or the API server is slow; it is tried again"
        ),
    )
}

/// Writes the failure into the conditions that speak of the whole object; all others stay.
/// Errors are logged: the next reconcile that is given up says it again.
pub(super) async fn say<K>(object: &K, world: &World, statuses: &Statuses<K::Status>, failure: &Failure)
where
    K: GroupResource + Lookup<DynamicType = ()> + HasStatus,
    K::Status: HasConditions + Default + StatusPart<Whole = K::Status>,
{
    let change = |live: &K| {
        let mut status = live.status().map(K::Status::of).unwrap_or_default();
        let old = std::mem::take(status.conditions_mut());
        let mut new = merge_conditions(&old, &Concerns::not_ready(failure), live.meta().generation, now());
        let is_of_whole = |kind: &str| OF_THE_WHOLE.iter().any(|whole| whole.as_str() == kind);
        new.extend(old.into_iter().filter(|condition| !is_of_whole(&condition.type_)));
        *status.conditions_mut() = new;
        (!super::is_paused(live)).then_some(status)
    };
    let written = statuses.amend(world.cluster.client(), object, change);
    match tokio::time::timeout(BUDGET, written).await {
        Ok(Ok(Some((old, new)))) => world.events.transitions(object, old.conditions(), new.conditions()),
        Ok(Ok(None)) => {}
        Ok(Err(error)) => warn!(%error, "can't say that the reconcile exceeds its deadline"),
        Err(_) => warn!("can't say that the reconcile exceeds its deadline: no answer in time"),
    }
}
