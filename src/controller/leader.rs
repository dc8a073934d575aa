//! From a process that has just started to one that leads, and to its end.

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::bail;
use kube::Client;
use tracing::{info, warn};

use super::{definitions, health::Phase, world::World};
use crate::cluster::{self, LeaseSettings};

/// Runs `work` while this process leads: once the definitions are what this version needs, and
/// it has the lease. `lease` is nothing where there is no election. Returns when the operator
/// was asked to end and what was under way is done, or its grace is over.
///
/// # Errors
/// When the lease was lost: then this process must end at once.
pub(super) async fn run<W: Future<Output = ()>>(
    world: &Arc<World>,
    lease: Option<(Client, LeaseSettings)>,
    work: impl FnOnce() -> W,
) -> anyhow::Result<()> {
    definitions::watch(world.cluster.client(), &world.watches, &world.definitions);
    tokio::select! {
        // With definitions that lack fields, what is written would be lost without a word.
        () = world.definitions.until_current() => {}
        () = world.stopping() => return Ok(()),
    }
    let mut leadership = match lease {
        None => None,
        Some((client, settings)) => {
            world.health.set_phase(Phase::Standby);
            tokio::select! {
                leadership = cluster::lead(client, settings, world.term.clone()) => Some(leadership),
                () = world.stopping() => return Ok(()),
            }
        }
    };
    world.health.set_phase(Phase::Learning);
    let lost = async {
        match &mut leadership {
            Some(leadership) => leadership.hold().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        lost = lost => bail!("{lost}; this process ends, so that nobody else's work is undone"),
        () = until_done(world, work()) => {}
    }
    if !*world.stop.borrow() {
        bail!("the operator's queues ended by themselves: please report it");
    }
    // What is not part of a reconcile goes on until here: it ends with the term.
    world.term.end();
    if let Some(leadership) = leadership {
        leadership.release().await;
    }
    Ok(())
}

/// Until the work has ended, or its grace after the operator was asked to end.
async fn until_done(world: &World, work: impl Future<Output = ()>) {
    let grace: Duration = world.args.shutdown_grace;
    let over = async {
        world.stopping().await;
        world.health.set_phase(Phase::Ending);
        info!("ending: what is under way is brought to its end, nothing else is begun");
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        () = work => {}
        () = over => warn!(?grace, "what is still under way is given up"),
    }
}
