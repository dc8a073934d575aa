//! Reads what has changed in the ledger, and writes what of it concerns a Tenant's status.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use jiff::Timestamp;
use kube::{ResourceExt as _, runtime::reflector::ObjectRef};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use super::{
    CHUNK, Drift, PATIENCE, PAUSE, UsageWork, hash, lock,
    registrar::{Metered, metered},
    status::{self, Crossing},
};
use crate::{
    api::{ConditionType, Tenant, TenantMetering, find_condition},
    billing::Periods,
    controller::{events::Note, limits::meters_of, world::World},
    database::{MeterKind, MeterSource, Policy as DatabasePolicy},
    metering::{
        ledger::MeterState,
        usage::{Delivery, HISTORY_METERS, Limit, MeterTerms, Policy, Terms, Usage, project},
    },
};

/// How long a question for changes waits for one.
const LISTEN: Duration = Duration::from_secs(30);

/// How often every tenant is looked at, whatever was heard of it.
const ROUND: Duration = Duration::from_secs(300);

/// How many statuses are written at a time.
const AT_A_TIME: usize = 16;

/// The time from one write to the next, where many wait: 100 a second.
const PACE: Duration = Duration::from_millis(10);

/// How long after a write that failed it is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What is to be written of one tenant.
pub(super) struct Write {
    uid: Option<String>,
    metering: TenantMetering,
    /// When the last event happened that it tells of.
    last_event: Option<Timestamp>,
}

/// Hears which tenants' usage has changed.
pub(super) async fn listen(world: &World, work: &UsageWork) {
    let mut cursor = None;
    loop {
        let is_first = cursor.is_none();
        let changed = work.ledger.changed(&mut cursor, LISTEN);
        let Some(ids) = work.ask("hear of changes", LISTEN + PATIENCE, changed).await else {
            // What happened meanwhile isn't known.
            cursor = None;
            sleep(PAUSE).await;
            continue;
        };
        if is_first {
            // These are all that it knows: some of them went while nobody watched.
            let tenants = world.stores.tenants.state();
            let here: HashSet<_> = tenants
                .iter()
                .filter_map(|tenant| tenant.status.as_ref().and_then(|status| status.id.as_ref()))
                .collect();
            ids.iter().filter(|id| !here.contains(id)).for_each(|id| work.registry.left(id));
        }
        push(work, &ids);
        debug!(tenants = ids.len(), known = world.stores.tenants.len(), "usage changed");
    }
}

/// Has the tenants with these ids looked at.
pub(super) fn push(work: &UsageWork, ids: &[String]) {
    // Who isn't known yet is looked at when the ledger was told of it.
    ids.iter().filter_map(|id| work.registry.name_of(id)).for_each(|name| work.board.push(&name));
}

/// Has every tenant looked at: now, every few minutes, and when the ledger has been away for long
/// or is back.
pub(super) async fn look_at_all(world: &World, work: &UsageWork) {
    let mut round = interval(ROUND);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look = interval(PATIENCE.min(work.patience.ledger_away_after));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = false;
    loop {
        tokio::select! {
            _ = round.tick() => {
                world.stores.tenants.state().iter().for_each(|tenant| work.board.push(&tenant.name_any()));
            }
            _ = look.tick() => {
                let away = work.away_long(Timestamp::now());
                if said == away.is_some() {
                    continue;
                }
                if let Some(since) = away {
                    warn!(%since, "the ledger is away for long: Tenants say so");
                }
                said = away.is_some();
                round.reset_immediately();
                world.stores.servers.state().iter().for_each(|server| world.queues.servers.push(&server.name_any()));
            }
        }
    }
}

/// Says that the ledger is away for long.
fn say_away(world: &World, work: &UsageWork, metered: &Metered, since: Timestamp) {
    let tenant = &metered.tenant;
    let name = tenant.name_any();
    // When it is back, everybody is looked at; should that be so at once, by this.
    work.board.push_at(&name, Instant::now() + PATIENCE);
    let delivery = Delivery { ledger_away: Some(since), ..Delivery::default() };
    let Some(finding) = crate::metering::usage::degraded(&delivery) else { return };
    let old = current(world, tenant);
    let new = status::away(&old, &finding, Timestamp::now());
    if new == old {
        work.board.unplan(&name);
    } else {
        work.board.plan(&name, Write { uid: tenant.metadata.uid.clone(), metering: new, last_event: None }, false);
    }
}

/// Whether a Tenant's status is written: not of one that is paused, or being deleted.
fn is_written(tenant: &Tenant) -> bool {
    tenant.metadata.deletion_timestamp.is_none() && !crate::controller::is_paused(tenant)
}

fn current(world: &World, tenant: &Tenant) -> TenantMetering {
    world.statuses.metering.current(tenant, tenant.status.as_ref()).unwrap_or_default()
}

/// Reads the usage of whoever is to be looked at, and plans what is to be written.
pub(super) async fn read(world: &World, work: &UsageWork) {
    loop {
        let names = work.board.to_read(CHUNK).await;
        let found: Vec<_> =
            names.iter().filter_map(|name| metered(world, name)).filter(|it| is_written(&it.tenant)).collect();
        if found.is_empty() {
            continue;
        }
        if let Some(since) = work.away_long(Timestamp::now()) {
            found.iter().for_each(|metered| say_away(world, work, metered, since));
            continue;
        }
        let ids: Vec<_> = found.iter().map(|metered| metered.place.id.to_string()).collect();
        let Some(states) = work.ask("read usage", PATIENCE, work.ledger.usage(&ids)).await else {
            names.iter().for_each(|name| work.board.push(name));
            sleep(PAUSE).await;
            continue;
        };
        let mut by_tenant: HashMap<String, Vec<MeterState>> = HashMap::new();
        for state in states {
            by_tenant.entry(state.tenant.clone()).or_default().push(state);
        }
        for (metered, id) in found.iter().zip(&ids) {
            look_at(world, work, metered, by_tenant.get(id).map(Vec::as_slice).unwrap_or_default());
        }
    }
}

fn look_at(world: &World, work: &UsageWork, metered: &Metered, states: &[MeterState]) {
    let (name, now) = (metered.tenant.name_any(), Timestamp::now());
    let (is_known, delivery) = work.outboxes.delivery(&metered.place, work.away_long(now));
    let Some((usage, drifts)) = projected(world, metered, &delivery, states, now) else { return };
    {
        let mut all = lock(&work.drifts);
        if drifts.is_empty() {
            all.remove(&name)
        } else {
            all.insert(name.clone(), drifts)
        };
    }
    let until = usage.next.duration_since(now).unsigned_abs().min(ROUND);
    work.board.push_at(&name, Instant::now() + until);
    let old = current(world, &metered.tenant);
    if !is_known && find_condition(&old.conditions, ConditionType::MeteringDegraded).is_some() {
        // An earlier leader has found something, and this one has not looked for it yet.
        work.board.push_at(&name, Instant::now() + PAUSE);
        return;
    }
    let new = status::metering(&old, &usage, now);
    if status::is_same(&old, &new) {
        work.board.unplan(&name);
        return;
    }
    let is_urgent = status::is_urgent(&old, &new);
    if !is_urgent && let Some(wait) = work.board.wait(&name, world.args.usage_interval, Instant::now()) {
        // Not all of those that changed together are written together.
        work.board.push_at(&name, Instant::now() + wait + spread(world.args.usage_interval));
        return;
    }
    let write = Write {
        uid: metered.tenant.metadata.uid.clone(),
        metering: new,
        last_event: states.iter().filter_map(|state| state.occurred_at).max(),
    };
    work.board.plan(&name, write, is_urgent);
}

/// Up to a fifth of a time, by chance.
fn spread(time: Duration) -> Duration {
    time.mul_f64(rand::random::<f64>() / 5.0)
}

/// What a tenant uses; nothing where its Application or its zone isn't known.
fn projected(
    world: &World,
    metered: &Metered,
    delivery: &Delivery,
    states: &[MeterState],
    now: Timestamp,
) -> Option<(Usage, Vec<Drift>)> {
    let Metered { place, record, connected, .. } = metered;
    let application = world.application(&record.application)?;
    let periods = Periods::new(record.settings.period_anchor, &record.settings.time_zone).ok()?;
    // As they are in effect in the tenant's database.
    let limits = connected.limits(&place.database, &record.settings.plan);
    let limit = |meter: &str| {
        let limit = limits.iter().find(|limit| limit.meter == meter)?;
        let policy = match limit.policy {
            DatabasePolicy::Hard => Policy::Hard,
            DatabasePolicy::Soft => Policy::Soft,
            DatabasePolicy::Grace { days, percent } => Policy::Grace {
                days: i32::try_from(days).unwrap_or(i32::MAX),
                percent: i32::try_from(percent).unwrap_or(i32::MAX),
            },
        };
        Some(Limit { max: i64::try_from(limit.max).unwrap_or(i64::MAX), policy })
    };
    let meters: Vec<_> = meters_of(&application)
        .into_iter()
        .map(|meter| MeterTerms {
            is_total: meter.kind == MeterKind::Total,
            from_api: meter.source == MeterSource::Api,
            limit: limit(&meter.name),
            name: meter.name,
        })
        .collect();
    let terms = Terms {
        periods: &periods,
        meters: &meters,
        delivery,
        patience: world.args.usage_patience.arrival(),
        drift_percent: world.args.usage_drift_percent,
        history_meters: HISTORY_METERS,
    };
    let usage = project(states, &terms, now);
    let drift = |state: &MeterState| {
        let (drift, _) = state.drift.filter(|(drift, _)| *drift != 0)?;
        Some(Drift { application: record.application.clone(), meter: state.meter.clone(), by: drift.unsigned_abs() })
    };
    Some((usage, states.iter().filter_map(drift).collect()))
}

/// Writes what is planned, what is urgent first, at a bounded rate.
pub(super) async fn write(world: &Arc<World>, work: &UsageWork) {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut running = FuturesUnordered::new();
    loop {
        let next = async {
            pace.tick().await;
            work.board.to_write().await
        };
        tokio::select! {
            Some(()) = running.next(), if !running.is_empty() => {}
            (name, write) = next, if running.len() < AT_A_TIME => running.push(async {
                let name = name;
                write_one(world, work, &name, write).await;
                work.board.done(&name);
            }),
        }
    }
}

async fn write_one(world: &World, work: &UsageWork, name: &str, write: Write) {
    let Write { uid, metering, last_event } = write;
    let Some(tenant) = world.stores.tenants.get(&ObjectRef::<Tenant>::new(name)) else { return };
    if tenant.metadata.uid != uid || !is_written(&tenant) {
        return;
    }
    let (old, uid) = (current(world, &tenant), uid.unwrap_or_default());
    let statuses = &world.statuses.metering;
    // Before it is sent: the watch may be faster than the answer.
    lock(&work.written).insert(uid.clone(), hash(&metering));
    let written = statuses.write(world.cluster.client(), &*tenant, tenant.status.as_ref(), &metering).await;
    statuses.settle(&uid);
    match written {
        Ok(true) => {
            work.board.wrote(name, Instant::now());
            let news_of = last_event.filter(|at| status::is_news(&old, &metering, *at));
            world.metrics.usage_written(news_of.map(|at| Timestamp::now().duration_since(at).unsigned_abs()));
            status::crossings(&old, &metering).iter().for_each(|crossing| say(world, &tenant, crossing));
        }
        Ok(false) => {}
        Err(error) => {
            warn!(tenant = name, %error, "usage can't be written into the status; it is tried again");
            work.board.push_at(name, Instant::now() + AGAIN + spread(AGAIN));
        }
    }
}

fn say(world: &World, tenant: &Tenant, crossing: &Crossing) {
    let Crossing { meter, current, limit, is_reached } = crossing;
    let (reason, text) = match is_reached {
        true => ("LimitReached", format!("{meter}: {current} of {limit} in use: the limit is reached")),
        false => ("LimitNear", format!("{meter}: {current} of {limit} in use: more than 80 % of the limit")),
    };
    // Each meter is a subject of its own: none takes another one's place.
    world.events.say_of(tenant, &format!("{reason}/{meter}"), Note::warning(reason, "CountUsage", text));
}

/// Takes away what an operator with a ledger left in status: nobody would keep it true.
pub(super) async fn clear(world: &World) {
    let mut pace = interval(PACE);
    for tenant in world.stores.tenants.state() {
        let nothing = TenantMetering::default();
        if !is_written(&tenant) || current(world, &tenant) == nothing {
            continue;
        }
        pace.tick().await;
        let statuses = &world.statuses.metering;
        match statuses.write(world.cluster.client(), &*tenant, tenant.status.as_ref(), &nothing).await {
            Ok(_) => info!(tenant = tenant.name_any(), "without a ledger there is no usage: taken out of the status"),
            Err(error) => warn!(tenant = tenant.name_any(), %error, "old usage can't be taken out of the status"),
        }
        statuses.settle(tenant.metadata.uid.as_deref().unwrap_or_default());
    }
}
