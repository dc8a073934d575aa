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

use super::{databases::Connected, events::Note, tenant, unsent, world::World};
use crate::database::{DatabaseSpec, ErrorClass, LoginState, Overlap, Purpose, Result, TenantRecord, TenantState};

/// How often room is made in an outbox. There is some for eight days.
const ROOM_INTERVAL: Duration = Duration::from_secs(12 * 3_600);

/// How often replaced logins are looked at.
const CLOSE_INTERVAL: Duration = Duration::from_secs(5);

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
    let mut due = ticks(interval(args.retention_interval));
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
        // Whoever pauses the server itself wants nothing of this.
        if world.stores.servers.get(&ObjectRef::new(&name)).is_some_and(|server| super::is_paused(&*server)) {
            continue;
        }
        let done = match turn {
            Turn::Watchdog => end_old_transactions(&world, &name, &connected).await,
            Turn::Close => close_logins(&world, &connected).await,
            Turn::Sweep => sweep_databases(&world, &name, &connected).await,
            Turn::Due => {
                wake_for_rotation(&world, &connected);
                let kept = keep_outboxes(&world, &connected).await;
                kept.and(drop_due(&world, &name, &connected).await).and(drop_orphans(&world, &name, &connected).await)
            }
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

/// Whether a record is that of a Tenant that is paused.
fn is_spared(world: &World, record: &TenantRecord) -> bool {
    let tenant = world.stores.tenants.get(&ObjectRef::new(&record.name));
    tenant.is_some_and(|tenant| tenant.metadata.uid.as_ref() == Some(&record.uid) && super::is_paused(&*tenant))
}

/// Whether a database is that of a Pool that is paused.
fn is_paused_pool(world: &World, connected: &Connected, database: &str) -> bool {
    let Some(Purpose::Pool(pool)) = connected.purpose(database) else { return false };
    world.pool(&pool).is_some_and(|pool| super::is_paused(&*pool))
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
        let (spared, rotated): (Vec<_>, Vec<_>) = rotated.into_iter().partition(|record| is_spared(world, record));
        // All at once; one by one where some must be left alone.
        let ids: Vec<_> = match spared.is_empty() {
            true => vec![None],
            false => rotated.iter().map(|record| Some(&record.id)).collect(),
        };
        let mut closed = Vec::new();
        for id in ids {
            let times = world.args.overlap();
            closed.extend(connected.server.close_logins(&database, id, times, Overlap::Respect).await?.closed);
        }
        for record in rotated {
            if record.logins.iter().any(|login| closed.contains(&login.username))
                && connected.refresh(&database, &record.id).await?.is_some()
            {
                // A rotation may have waited for this one.
                world.queues.tenants.push(&record.name);
            }
        }
    }
    Ok(())
}

async fn sweep_databases(world: &World, name: &str, connected: &Connected) -> Result<()> {
    for database in connected.names() {
        if is_paused_pool(world, connected, &database)
            || (!connected.is_ready(&database) && !make_ready(world, connected, &database).await?)
        {
            continue;
        }
        let spared = connected.find_in(&database, |record| is_spared(world, record));
        let spared = spared.iter().map(|record| record.id.clone()).collect();
        let report = connected.server.sweep_sparing(&database, &spared).await?;
        // What the sweep took away, it does not know to be the relay's.
        connected.doubt_relay(&database);
        for finding in &report.repaired {
            info!(database, tenant = ?finding.id, what = finding.what, "repaired");
        }
        for finding in &report.unrepaired {
            warn!(database, tenant = ?finding.id, what = finding.what, "differs from the records and needs a person");
        }
        world.metrics.repaired(name, report.repaired.len());
    }
    if world.args.relay().is_some() {
        world.queues.servers.push(name);
    }
    Ok(())
}

/// Makes room in the outboxes for the next days, drops the days that are over, and folds what
/// waits where it is too much: also where nothing is metered, and nobody fetches it.
async fn keep_outboxes(world: &World, connected: &Connected) -> Result<()> {
    let mut first = Ok(());
    for database in connected.names() {
        if !connected.is_ready(&database) || is_paused_pool(world, connected, &database) {
            continue;
        }
        if connected.room_is_due(&database, ROOM_INTERVAL)
            && let Err(error) = connected.server.keep_outbox(&database).await
        {
            connected.no_room_was_made(&database);
            first = first.and(Err(error));
            continue;
        }
        match connected.server.fold_outbox(&database, world.args.outbox_cap).await {
            Ok(folded) => {
                for (id, fewer) in folded {
                    warn!(database, tenant = %id, fewer, "folded usage events that nobody has fetched for long");
                }
            }
            Err(error) => first = first.and(Err(error)),
        }
    }
    first
}

/// Has those tenants looked at whose login is to be rotated soon by its age.
fn wake_for_rotation(world: &World, connected: &Connected) {
    let soon = |record: &TenantRecord| {
        let due = tenant::rotation_due(record, world.args.rotate_after);
        record.state == TenantState::Live && due.is_some_and(|due| due <= tenant::ROTATION_SOON)
    };
    for (_, record) in connected.find(soon) {
        world.queues.tenants.push(&record.name);
    }
}

/// Brings a database up to date whose tenants' controllers haven't: they may be stalled, paused,
/// or gone with their data kept. Pools see to their own.
async fn make_ready(world: &World, connected: &Connected, database: &str) -> Result<bool> {
    let Some(purpose @ (Purpose::Bridge(_) | Purpose::Dedicated(_))) = connected.purpose(database) else {
        return Ok(false);
    };
    let cluster_id = world.facts.cluster_id.clone();
    // Never made anew: it may just have been dropped.
    connected.update(DatabaseSpec { name: database.to_owned(), cluster_id, purpose, connection_limit: None }).await
}

/// Drops retained data whose time has come, and records whose last events were sent. What fails
/// for one is tried again next time, and keeps no other from being dropped.
async fn drop_due(world: &World, name: &str, connected: &Connected) -> Result<()> {
    let now = Timestamp::now();
    let due = |state: &TenantState| match state {
        TenantState::Live => false,
        TenantState::Retained { drop_after } => *drop_after <= now,
        TenantState::Dropping | TenantState::Dropped { .. } => true,
    };
    let mut first = Ok(());
    for (database, record) in connected.find(|record| due(&record.state) && !is_spared(world, record)) {
        if let Err(failure) = unsent::save(world, name, connected, &database, &record).await {
            warn!(database, tenant = record.name, id = %record.id, "not dropped yet: {}", failure.message);
            say_not_dropped(world, name, &database, &record, &failure.message);
            continue;
        }
        if let Err(error) = drop_one(world, name, connected, &database, &record, now).await {
            warn!(database, tenant = record.name, id = %record.id, %error, "can't be dropped yet");
            first = first.and(Err(error));
        }
    }
    first
}

/// Says why what was kept of a Tenant, which is gone itself, stays beyond its time. Each tenant is
/// a subject of its own: none takes another one's place.
fn say_not_dropped(world: &World, name: &str, database: &str, record: &TenantRecord, why: &str) {
    let Some(server) = world.stores.servers.get(&ObjectRef::new(name)) else { return };
    let text =
        format!("what was kept of Tenant {} in database {database} stays though its time is over: {why}", record.name);
    let note = Note::warning("DataNotDropped", "DropData", text);
    world.events.say_of(&*server, &format!("DataNotDropped/{}", record.id), note);
}

async fn drop_one(
    world: &World,
    name: &str,
    connected: &Connected,
    database: &str,
    record: &TenantRecord,
    now: Timestamp,
) -> Result<()> {
    connected.server.drop_due(database, &record.id, now).await?;
    let left = connected.refresh(database, &record.id).await?;
    if left.as_deref() != Some(record) {
        let state = left.as_ref().map(|record| record.state);
        info!(database, tenant = record.name, id = %record.id, ?state, "dropped what was kept of a deleted tenant");
        if let Some(server) = world.stores.servers.get(&ObjectRef::new(name)) {
            let text =
                format!("what was kept of Tenant {} in database {database} is dropped: its time is over", record.name);
            let note = Note::normal("DataDropped", "DropData", text);
            world.events.say_of(&*server, &format!("DataDropped/{}", record.id), note);
        }
    }
    // A Pool that is being deleted may have waited for it.
    if let Some(Purpose::Pool(pool)) = connected.purpose(database) {
        world.queues.pools.push(&pool);
    }
    Ok(())
}

/// Drops databases that outlived what they were made for, since data was kept in them, once no
/// record is left there.
async fn drop_orphans(world: &World, name: &str, connected: &Connected) -> Result<()> {
    let mut first = Ok(());
    for database in connected.names() {
        if !connected.find_in(&database, |_| true).is_empty() || !is_orphaned(world, connected, &database) {
            continue;
        }
        match connected.drop_if_empty(&database, &world.facts.cluster_id).await {
            Ok(true) => {
                info!(database, "dropped a database that nothing is in any more");
                // Its place is free.
                world.queues.servers.push(name);
                world.push_waiting();
            }
            Ok(false) => {}
            // By way of another DatabaseServer something came into it.
            Err(error) if error.class() == ErrorClass::Waiting => {}
            Err(error) => {
                warn!(database, %error, "can't be dropped yet");
                first = first.and(Err(error));
            }
        }
    }
    first
}

/// Whether a database's Pool, Application or Tenant is gone, and no other Tenant is placed there.
fn is_orphaned(world: &World, connected: &Connected, database: &str) -> bool {
    let Some(purpose) = connected.purpose(database) else { return false };
    let placements = world.shared.placements();
    match purpose {
        Purpose::Pool(pool) => world.pool(&pool).is_none() && !placements.pending().contains_key(&pool),
        _ if placements.server_of(database).is_some() => false,
        Purpose::Bridge(application) => world.application(&application).is_none(),
        Purpose::Dedicated(uid) => world.count_tenants(|tenant| tenant.metadata.uid.as_ref() == Some(&uid)) == 0,
    }
}
