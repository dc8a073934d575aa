//! Plans' limits and Applications' meters, brought to the databases.

use super::{databases::Connected, failure::Failure, world::World};
use crate::{
    api::{Application, MeterKind, MeterSource, Plan, Pool},
    database::{self, Limit, MeterDefinition, Policy, Purpose},
    desired::limits::{MeterPolicy, plan_limits},
};
use futures::future::join_all;
use kube::ResourceExt as _;

/// A plan's limits as the database takes them.
pub(super) fn limits_of(plan: &Plan) -> Vec<Limit> {
    let policy = |policy| match policy {
        MeterPolicy::Hard => Policy::Hard,
        MeterPolicy::Soft => Policy::Soft,
        MeterPolicy::Grace { days, percent } => {
            Policy::Grace { days: days.unsigned_abs(), percent: percent.unsigned_abs() }
        }
    };
    let limit = |limit: crate::desired::limits::MeterLimit| Limit {
        meter: limit.meter,
        max: limit.max.unsigned_abs(),
        policy: policy(limit.policy),
    };
    plan_limits(plan).into_iter().map(limit).collect()
}

/// An application's meters as the database takes them.
pub(super) fn meters_of(application: &Application) -> Vec<MeterDefinition> {
    let meter = |meter: &crate::api::Meter| MeterDefinition {
        name: meter.name.clone(),
        kind: match meter.kind {
            MeterKind::Level => database::MeterKind::Level,
            MeterKind::Total => database::MeterKind::Total,
        },
        source: match meter.source {
            MeterSource::Database => database::MeterSource::Database,
            MeterSource::Api => database::MeterSource::Api,
        },
    };
    application.spec.meters.iter().flatten().map(meter).collect()
}

/// Whether every meter that a plan limits is declared by an application.
pub(super) fn fits(plan: &Plan, application: &Application) -> bool {
    let declared = |meter: &String| application.spec.meters.iter().flatten().any(|known| known.name == *meter);
    plan.spec.limits.iter().flatten().all(|(meter, _)| declared(meter))
}

/// Brings a plan's limits to one database, if they aren't there yet.
pub(super) async fn ensure(connected: &Connected, database: &str, plan: &Plan) -> Result<(), Failure> {
    let limits = limits_of(plan);
    let name = plan.name_any();
    if !connected.has_limits(database, &name, &limits) {
        connected.server.set_plan_limits(database, &name, &limits).await?;
        connected.set_limits(database, &name, limits);
    }
    Ok(())
}

/// Brings a plan's limits to every database that has a tenant of it: one statement each. A
/// server that is away gets them when it is back; an application that doesn't declare one of
/// the meters keeps the limits that it had, and its Tenants say so.
pub(super) async fn plan_changed(world: &World, plan: &Plan) -> Result<(), Failure> {
    let servers = world.databases.all();
    let all = servers.iter().map(|(_, connected)| plan_changed_on(world, connected, plan));
    join_all(all).await.into_iter().find(Result::is_err).unwrap_or(Ok(()))
}

/// The same on one server, which another one doesn't wait for.
async fn plan_changed_on(world: &World, connected: &Connected, plan: &Plan) -> Result<(), Failure> {
    let name = plan.name_any();
    let mut failure = None;
    for database in connected.names() {
        let fits = |application: std::sync::Arc<Application>| fits(plan, &application);
        if !connected.uses_plan(&database, &name) || !pool_application(world, connected, &database).is_some_and(fits) {
            continue;
        }
        if let Err(error) = ensure(connected, &database, plan).await {
            failure.get_or_insert(error);
        }
    }
    failure.map_or(Ok(()), Err)
}

fn pool_application(world: &World, connected: &Connected, database: &str) -> Option<std::sync::Arc<Application>> {
    let Purpose::Pool(pool) = connected.purpose(database)? else { return None };
    world.application(&world.pool(&pool)?.spec.application)
}

/// Brings an application's meters to a pool's database, if they aren't there yet.
pub(super) async fn ensure_meters(
    connected: &Connected,
    database: &str,
    pool: &Pool,
    application: &Application,
) -> Result<(), Failure> {
    let meters = meters_of(application);
    if !connected.has_meters(database, &pool.spec.application, &meters) {
        connected.server.set_meters(database, &pool.spec.application, &meters).await?;
        connected.set_meters(database, &pool.spec.application, meters);
    }
    Ok(())
}
