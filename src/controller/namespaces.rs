//! Watches of the kinds that the operator may not see in the whole cluster: Secrets and
//! ConfigMaps, in each namespace that it made.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{failure::Failure, world::World};
use crate::{
    cluster::{Owner, watch_children},
    desired::{Kind, naming},
};

pub(super) const KINDS: [Kind; 2] = [Kind::Secret, Kind::ConfigMap];

/// How long a namespace that is only just watched is waited for: its list takes milliseconds.
pub(super) const LISTING: Duration = Duration::from_secs(5);

/// A namespace was waited for in vain.
pub(super) fn not_listed(namespace: &str) -> Failure {
    Failure::waiting("NamespaceNotListed", format!("namespace {namespace} is not known yet"))
}

/// Watches every namespace in which the operator has its rights.
pub(super) fn watch_all(world: &Arc<World>) {
    let children = world.cluster.children();
    for key in children.of_kind(Kind::RoleBinding, None) {
        if key.name == naming::NAMESPACE_ROLE
            && let (Some(namespace), Some(owner)) = (&key.namespace, children.owner(&key))
        {
            watch(world, namespace, &owner);
        }
    }
}

/// Watches the namespace of an owner from now on, unless it is watched already.
pub(super) fn watch(world: &Arc<World>, namespace: &str, owner: &Owner) {
    world.shared.watch_namespace(namespace, |listed| {
        let (world, namespace, owner) = (Arc::clone(world), namespace.to_owned(), owner.clone());
        let task = async move {
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
            listed.send_replace(true);
            match &owner {
                Owner::Tenant(_) | Owner::Server(_) => push_owner(&world, &owner),
                Owner::Pool(name) => world.push_tenants(|tenant| {
                    tenant.status.as_ref().and_then(|status| status.pool.as_ref()) == Some(name)
                }),
            }
            // The watches end with their set, when the namespace is given up and this task with it.
            while watches.join_next().await.is_some() {}
        };
        tokio::spawn(task).abort_handle()
    });
}

/// Gives a namespace up, and with it what was known of its Secrets and ConfigMaps.
pub(super) fn unwatch(world: &World, namespace: &str) {
    world.shared.end_namespace(namespace);
    let children = world.cluster.children();
    for kind in KINDS {
        for key in children.of_kind(kind, Some(namespace)) {
            // Nobody has to look at what goes with its namespace.
            let _ = children.absent(&key);
        }
    }
}

/// Looks again at whom an object belongs to.
pub(super) fn push_owner(world: &World, owner: &Owner) {
    match owner {
        Owner::Tenant(name) => world.queues.tenants.push(name),
        Owner::Pool(name) => world.queues.pools.push(name),
        Owner::Server(name) => world.queues.servers.push(name),
    }
}
