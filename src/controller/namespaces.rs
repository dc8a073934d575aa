//! Watches of the kinds that the operator may not see in the whole cluster: Secrets and
//! ConfigMaps, in each namespace that it made.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::world::World;
use crate::{
    cluster::{Owner, watch_children},
    desired::Kind,
};

const KINDS: [Kind; 2] = [Kind::Secret, Kind::ConfigMap];

/// How often it is checked whether a namespace is still ours to watch.
const CHECK: Duration = Duration::from_secs(10);

/// Watches a namespace from now on, unless it is watched already.
pub(super) fn watch(world: &Arc<World>, namespace: &str) {
    if !world.shared.begin_namespace(namespace) {
        return;
    }
    let (world, namespace) = (Arc::clone(world), namespace.to_owned());
    tokio::spawn(async move {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(KINDS.len());
        let mut watches = JoinSet::new();
        for kind in KINDS {
            let (tell, sender) = (Arc::clone(&world), sender.clone());
            watches.spawn(watch_children(
                world.cluster.client().clone(),
                kind,
                Some(namespace.clone()),
                world.cluster.shared_children(),
                world.watches.of_one_namespace(kind.to_string()),
                move |owner| push_owner(&tell, &owner),
                move || {
                    // The receiver is full or gone once every kind was listed: nothing to tell then.
                    let _ = sender.try_send(kind);
                },
            ));
        }
        let mut missing = KINDS.to_vec();
        while !missing.is_empty() {
            let Some(kind) = receiver.recv().await else { return };
            missing.retain(|other| *other != kind);
        }
        drop(receiver);
        world.shared.namespace_listed(&namespace);
        world.push_tenants(|tenant| {
            tenant.status.as_ref().and_then(|status| status.namespace.as_deref()) == Some(namespace.as_str())
        });
        // The watches end with their set, when the namespace is given up.
        while world.shared.watched().contains(&namespace) {
            tokio::time::sleep(CHECK).await;
        }
    });
}

/// Gives a namespace up.
pub(super) fn unwatch(world: &World, namespace: &str) {
    world.shared.end_namespace(namespace);
}

/// Looks again at whom an object belongs to.
pub(super) fn push_owner(world: &World, owner: &Owner) {
    match owner {
        Owner::Tenant(name) => world.queues.tenants.push(name),
        Owner::Pool(name) => world.queues.pools.push(name),
    }
}
