//! Plans' limits and Applications' meters, brought to the databases.

use std::sync::Arc;

use futures::{StreamExt as _, future::join_all};
use kube::ResourceExt as _;

use super::{databases::Connected, failure::Failure, relay, world::World};
use crate::{
    api::{Application, MeterKind, MeterSource, Plan},
    database::{self, DatabaseSpec, Limit, MeterDefinition, Policy, Purpose},
    desired::{
        limit_faults,
        limits::{MeterPolicy, plan_limits},
    },
};

/// How many databases of a server get a plan's limits at a time.
const DATABASES_AT_A_TIME: usize = 8;

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

/// Whether a plan's limits are such as an application's meters can have; else the limits that a
/// database has stay.
pub(super) fn fits(plan: &Plan, application: &Application) -> bool {
    limit_faults(plan, application).is_empty()
}

/// Brings a plan's limits to one database, if they aren't there yet.
pub(super) async fn ensure(world: &World, connected: &Connected, database: &str, plan: &Plan) -> Result<(), Failure> {
    let limits = limits_of(plan);
    let name = plan.name_any();
    // Of a Plan that is paused, the limits that a database's tenants have stay as they are, also
    // where they have none.
    let stays = super::is_paused(plan) && connected.uses_plan(database, &name);
    if !stays && !connected.has_limits(database, &name, &limits) {
        connected.server.set_plan_limits(database, &name, &limits).await?;
        connected.set_limits(database, &name, limits);
        if let Some(usage) = &world.usage {
            usage.limits_changed(connected, database, &name);
        }
    }
    Ok(())
}

/// Brings a plan's limits to every database that has a tenant of it: one statement each. A
/// server that is away gets them when it is back; where an application's meters can't have
/// them, the limits stay as they were, and its Tenants say so.
pub(super) async fn plan_changed(world: &World, plan: &Plan) -> Result<(), Failure> {
    let servers = world.databases.all();
    let all = servers.iter().map(|(_, connected)| plan_changed_on(world, connected, plan));
    join_all(all).await.into_iter().find(Result::is_err).unwrap_or(Ok(()))
}

/// The same on one server, which another one doesn't wait for.
async fn plan_changed_on(world: &World, connected: &Connected, plan: &Plan) -> Result<(), Failure> {
    let name = plan.name_any();
    let mut outcomes = Vec::new();
    for database in connected.names() {
        if concerns(world, connected, &database, plan, &name) {
            outcomes.push(async move { ensure(world, connected, &database, plan).await });
        }
    }
    // Each dedicated tenant has a database of its own: one after the other takes its time.
    let outcomes: Vec<_> = futures::stream::iter(outcomes).buffer_unordered(DATABASES_AT_A_TIME).collect().await;
    outcomes.into_iter().collect()
}

/// Whether a database is to have a plan's limits.
fn concerns(world: &World, connected: &Connected, database: &str, plan: &Plan, name: &str) -> bool {
    connected.uses_plan(database, name)
        && application_of(world, connected, database).is_some_and(|application| fits(plan, &application))
}

/// The application whose tenants are in a database.
fn application_of(world: &World, connected: &Connected, database: &str) -> Option<Arc<Application>> {
    match connected.purpose(database)? {
        Purpose::Pool(pool) => world.application(&world.pool(&pool)?.spec.application),
        Purpose::Bridge(application) => world.application(&application),
        Purpose::Dedicated(_) => world.application(&connected.find_in(database, |_| true).first()?.application),
    }
}

/// Makes a database, or brings it up to date, with an application's meters in it. Sends
/// nothing where that was done before.
pub(super) async fn prepare(
    world: &World,
    connected: &Connected,
    database: &str,
    purpose: Purpose,
    application: &Application,
) -> Result<(), Failure> {
    let spec = DatabaseSpec {
        name: database.to_owned(),
        cluster_id: world.facts.cluster_id.clone(),
        purpose,
        connection_limit: None,
    };
    let is_new = !connected.is_ready(database);
    connected.ensure(spec).await?;
    if is_new {
        relay::database_is_ready(world, connected);
    }
    let (name, meters) = (application.name_any(), meters_of(application));
    // Of an Application that is paused, the meters that its tenants have stay as they are.
    let stays = super::is_paused(application) && !connected.find_in(database, |_| true).is_empty();
    if !stays && !connected.has_meters(database, &name, &meters) {
        connected.server.set_meters(database, &name, &meters).await?;
        connected.set_meters(database, &name, meters);
    }
    Ok(())
}
