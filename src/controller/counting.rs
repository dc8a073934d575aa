//! Who counts tenants is told when a count changes: at once, and then every two seconds at most.
//! With a thousand sign-ups a minute, each of them would otherwise have its pool, plan,
//! application and server reconciled for the sake of a number.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use tokio::sync::mpsc;

use super::world::{COUNT_INTERVAL, World};

/// An object whose status says how many tenants it has, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Counted {
    Plan(String),
    Application(String),
    Server(String),
    Pool(String),
}

/// Where it is said that a count has changed.
#[derive(Clone)]
pub(super) struct Counting(mpsc::UnboundedSender<Counted>);

impl Counting {
    /// Starts telling those that count, for as long as `world` lives.
    pub(super) fn start(world: &Arc<World>) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(tell(Arc::downgrade(world), receiver));
        Self(sender)
    }

    /// A count has changed.
    pub(super) fn changed(&self, counted: Counted) {
        // The receiver ends with the world, and then nobody counts.
        let _ = self.0.send(counted);
    }
}

async fn tell(world: Weak<World>, mut receiver: mpsc::UnboundedReceiver<Counted>) {
    let mut ticks = tokio::time::interval(COUNT_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while let Some(first) = receiver.recv().await {
        ticks.tick().await;
        let mut changed = BTreeSet::from([first]);
        while let Ok(next) = receiver.try_recv() {
            changed.insert(next);
        }
        let Some(world) = world.upgrade() else { return };
        for counted in changed {
            match counted {
                Counted::Plan(name) => world.queues.plans.push(&name),
                Counted::Application(name) => world.queues.applications.push(&name),
                Counted::Server(name) => world.queues.servers.push(&name),
                Counted::Pool(name) => world.queues.pools.push(&name),
            }
        }
    }
}
