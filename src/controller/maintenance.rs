//! What is done on each server from time to time: closing replaced logins, ending
//! transactions that are too old, comparing with the records, dropping what is due.
//!
//! Each server has a task of its own, so that one that doesn't answer delays no other.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tracing::{Instrument as _, info, info_span, warn};

use super::{databases::Connected, events::Note, world::World};
use crate::database::{DatabaseSpec, ErrorClass, LoginState, Overlap, Purpose, Result, TenantState};

/// How often replaced logins are looked at.
const CLOSE_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is looked for data that is due to be dropped.
const DUE_INTERVAL: Duration = Duration::from_secs(300);

/// Starts a server's task. It ends when the server is connected anew or removed.
pub(super) fn start(world: &Arc<World>, name: &str, connected: &Arc<Connected>) {
    let span = info_span!("maintenance", server = name);
    let task = run(Arc::downgrade(world), name.to_owned(), Arc::downgrade(connected));
    tokio::spawn(task.instrument(span));
}

async fn run(world: Weak<World>, name: String, connected: Weak<Connected>) {
    let Some(args) = world.upgrade().map(|world| world.args.clone()) else { return };
    let mut watchdog = ticks(interval(args.watchdog_interval));
    let close_interval = CLOSE_INTERVAL.min(args.rotation_overlap.max(Duration::from_millis(200)));
    let mut close = ticks(interval(close_interval));
    let mut sweep = ticks(interval_at(Instant::now() + args.sweep_interval, args.sweep_interval));
    let mut due = ticks(interval(DUE_INTERVAL));
    loop {
        enum Turn {
            Watchdog,
            Close,
            Sweep,
            Due,
        }
        let turn = tokio::select! {
            _ = watchdog.tick() => Turn::Watchdog,
            _ = close.tick() => Turn::Close,
            _ = sweep.tick() => Turn::Sweep,
            _ = due.tick() => Turn::Due,
        };
        let (Some(world), Some(connected)) = (world.upgrade(), connected.upgrade()) else { return };
        let done = match turn {
            Turn::Watchdog => end_old_transactions(&world, &name, &connected).await,
            Turn::Close => close_logins(&world, &connected).await,
            Turn::Sweep => sweep_databases(&world, &name, &connected).await,
            Turn::Due => drop_due(&world, &name, &connected).await,
        };
        if let Err(error) = done {
            warn!(%error, "not done; it is tried again");
            // The server's condition tells it at once, and its pools and tenants after it.
            if error.class() == ErrorClass::Transient && connected.doubt() {
                world.queues.servers.push(&name);
            }
        }
    }
}

fn ticks(mut interval: tokio::time::Interval) -> tokio::time::Interval {
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn end_old_transactions(world: &World, name: &str, connected: &Connected) -> Result<()> {
    // Without tenants nobody can hold a transaction.
    if connected.find(|_| true).is_empty() {
        return Ok(());
    }
    let ended = connected.server.watchdog().await?;
    for session in &ended {
        info!(tenant = %session.id, database = session.database, reason = ?session.reason, "session ended");
    }
    world.metrics.ended_sessions(name, ended.len());
    Ok(())
}

/// Closes what is due; sends nothing where no login is closing.
async fn close_logins(world: &World, connected: &Connected) -> Result<()> {
    for database in connected.names() {
        let closing = |state: LoginState| state == LoginState::Closing;
        let rotated = connected.find_in(&database, |record| record.logins.iter().any(|login| closing(login.state)));
        if rotated.is_empty() {
            continue;
        }
        let outcome = connected.server.close_logins(&database, None, world.args.overlap(), Overlap::Respect).await?;
        for record in rotated {
            if record.logins.iter().any(|login| outcome.closed.contains(&login.username))
                && let Some(fresh) = connected.server.record(&database, &record.id).await?
            {
                connected.set_record(&database, fresh);
                // A rotation may have waited for this one.
                world.queues.tenants.push(&record.name);
            }
        }
    }
    Ok(())
}

async fn sweep_databases(world: &World, name: &str, connected: &Connected) -> Result<()> {
    for database in connected.names() {
        if !connected.is_ready(&database) && !make_ready(world, connected, &database).await? {
            continue;
        }
        let report = connected.server.sweep(&database).await?;
        for finding in &report.repaired {
            info!(database, tenant = ?finding.id, what = finding.what, "repaired");
        }
        for finding in &report.unrepaired {
            warn!(database, tenant = ?finding.id, what = finding.what, "differs from the records and needs a person");
        }
        world.metrics.repaired(name, report.repaired.len());
    }
    Ok(())
}

/// Brings a database up to date whose tenants' controllers haven't: they may be stalled, paused,
/// or gone with their data kept. Pools see to their own.
async fn make_ready(world: &World, connected: &Connected, database: &str) -> Result<bool> {
    let Some(purpose @ (Purpose::Bridge(_) | Purpose::Dedicated(_))) = connected.purpose(database) else {
        return Ok(false);
    };
    let cluster_id = world.facts.cluster_id.clone();
    connected.ensure(DatabaseSpec { name: database.to_owned(), cluster_id, purpose, connection_limit: None }).await?;
    Ok(true)
}

/// Drops retained data whose time has come, and records whose last events were sent.
async fn drop_due(world: &World, name: &str, connected: &Connected) -> Result<()> {
    let now = Timestamp::now();
    let due = |state: &TenantState| match state {
        TenantState::Live => false,
        TenantState::Retained { drop_after } => *drop_after <= now,
        TenantState::Dropping | TenantState::Dropped { .. } => true,
    };
    for (database, record) in connected.find(|record| due(&record.state)) {
        let dropped = connected.server.drop_due(&database, &record.id, now).await?;
        info!(database, tenant = record.name, id = %record.id, ?dropped, "what was kept of a deleted tenant is due");
        match connected.server.record(&database, &record.id).await? {
            Some(record) => drop(connected.set_record(&database, record)),
            None => connected.forget_record(&database, &record.id),
        }
        if let Some(server) = world.stores.servers.get(&ObjectRef::new(name)) {
            let text =
                format!("what was kept of Tenant {} in database {database} is dropped: its time is over", record.name);
            world.events.say(&*server, Note::normal("DataDropped", "DropData", text));
        }
        if let Some(Purpose::Pool(pool)) = connected.purpose(&database) {
            world.queues.pools.push(&pool);
        }
    }
    Ok(())
}
