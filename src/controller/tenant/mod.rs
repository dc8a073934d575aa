//! Tenants of tier pooled: placed, provisioned, routed, proven.

mod credentials;
mod finalize;
mod place;
mod provision;
mod recover;
mod routing;
mod status;

use std::sync::Arc;

use kube::ResourceExt as _;

pub(super) use self::{
    credentials::{ROTATION_SOON, rotation_due},
    place::note as note_place,
    recover::Stranger,
};
use self::{place::Place, status::Report};
use super::{
    bulkheads,
    conditions::Concerns,
    failure::{Class, Failure},
    migrations::{self, Tables, Target},
    pool,
    queue::{Next, Outcome},
    world::World,
};
use crate::{
    api::{Application, ConditionType, Plan, Pool, Tenant, Tier, find_condition},
    cluster::{Owner, add_finalizer},
    desired::{Effective, Fault, effective, join_faults},
};

/// What a tenant is reconciled with.
pub(super) struct Case<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) name: &'a str,
    pub(super) plan: &'a Plan,
    pub(super) application: &'a Application,
    pub(super) effective: &'a Effective,
    /// The hosts that the tenant has.
    pub(super) hosts: Vec<String>,
    pub(super) world: &'a Arc<World>,
}

pub(super) async fn reconcile(tenant: Arc<Tenant>, world: Arc<World>) -> Outcome {
    let outcome = look_at(&tenant, &world).await;
    if let Err(failure) = &outcome
        && failure.class == Class::Transient
        && ["DatabaseUnavailable", "MigrationFailed"].contains(&failure.reason)
    {
        doubt_server(&tenant, &world);
    }
    world.statuses.tenants.settle(tenant.metadata.uid.as_deref().unwrap_or_default());
    outcome
}

/// A tenant could not reach its server: the server is looked at now, and not when its time
/// comes, so that its tenants are told when it is back.
fn doubt_server(tenant: &Tenant, world: &World) {
    if let Some(place) = place::known(tenant, world)
        && world.databases.get(&place.server).is_some_and(|connected| connected.doubt())
    {
        world.queues.servers.push(&place.server);
    }
}

async fn look_at(tenant: &Tenant, world: &Arc<World>) -> Outcome {
    if super::is_paused(tenant) {
        return Ok(None);
    }
    let name = tenant.name_any();
    if tenant.metadata.deletion_timestamp.is_some() {
        return finalize::finalize(tenant, world).await;
    }
    let (plan, application) = (world.plan(&tenant.spec.plan), world.application(&tenant.spec.application));
    let checked = effective(tenant, plan.as_deref(), application.as_deref(), &**world);
    let (Ok(effective), Some(plan), Some(application)) = (&checked, &plan, &application) else {
        return stalled(tenant, world, checked.err().unwrap_or_default()).await;
    };
    let faults = world.shared.hosts().faults(&name);
    if !faults.is_empty() {
        return stalled(tenant, world, faults).await;
    }
    if let Some(fault) = tier_fault(tenant, effective.tier) {
        return stalled(tenant, world, vec![fault]).await;
    }
    add_finalizer(world.cluster.client(), tenant).await?;
    let hosts = world.shared.hosts().granted(&name);
    let case = Case { tenant, name: &name, plan, application, effective, hosts, world };
    run(&case).await
}

/// Tiers with a namespace of their own are not reconciled yet, and a tenant's tier can't be
/// changed once it has data.
fn tier_fault(tenant: &Tenant, tier: Tier) -> Option<Fault> {
    let had = tenant.status.as_ref().and_then(|status| status.tier);
    match (had, tier) {
        (Some(had), tier) if had != tier => Some(Fault::new(
            "TierChange",
            "spec.tier",
            format!(
                "the tenant runs at tier {had}, and moving to {tier} is not supported yet: set the tier back to {had}"
            ),
        )),
        (_, Tier::Pooled) => None,
        (_, tier) => Some(Fault::new(
            "TierNotReconciled",
            "spec.tier",
            format!("tier {tier} is not reconciled by this version: choose tier pooled"),
        )),
    }
}

/// The spec can't be fulfilled: say so, and leave everything as it is.
async fn stalled(tenant: &Tenant, world: &World, faults: Vec<Fault>) -> Outcome {
    world.shared.set_waiting(&tenant.name_any(), false);
    let failure = Failure::permanent(faults.first().map_or("Invalid", |fault| fault.reason), join_faults(&faults));
    let mut report = Report::new(tenant, world);
    report.verdicts = Concerns::not_ready(&failure);
    report.write().await?;
    Ok(None)
}

/// One concern after the other; what can't be done now stays for the next time.
async fn run(case: &Case<'_>) -> Outcome {
    // What can't be seen yet can't be judged: nothing is said that the next moment takes back.
    if place::known(case.tenant, case.world).is_some_and(|place| case.world.shared.is_being_listed(&place.namespace)) {
        return Err(Failure::waiting("NamespaceNotListed", "the pool's namespace is being listed"));
    }
    let mut concerns = Concerns::default();
    let mut report = Report::new(case.tenant, case.world);
    report.set_effective(case);
    let next = match place::place(case, &mut report).await {
        Ok(place) => {
            case.world.shared.set_waiting(case.name, false);
            let Some(_seat) = case.world.seat(&place.server, &Owner::Tenant(case.name.to_owned())) else {
                return Ok(Some(bulkheads::ASK_AGAIN));
            };
            concerns.holds(ConditionType::Placed, "Placed", format!("in Pool {}", place.pool));
            report.set_place(case, &place);
            serve(case, &place, &mut concerns, &mut report).await
        }
        Err(failure) => {
            case.world.shared.set_waiting(case.name, true);
            concerns.fails(ConditionType::Placed, failure);
            None
        }
    };
    report.verdicts = concerns.verdicts("isolated, and served");
    report.write().await?;
    concerns.blocked().map_or(Ok(next), Err)
}

/// Database, credentials, tables, route: in this order, since each needs the one before.
async fn serve(case: &Case<'_>, place: &Place, concerns: &mut Concerns, report: &mut Report<'_>) -> Next {
    workload(case, place, concerns);
    let mut provisioned = match provision::provision(case, place).await {
        Ok(provisioned) => provisioned,
        Err(failure) => {
            concerns.fails(ConditionType::DatabaseReady, failure);
            return None;
        }
    };
    let next = match credentials::publish(case, place, &mut provisioned, report).await {
        Ok(next) => next,
        Err((concern, failure)) => {
            concerns.fails(concern, failure);
            return None;
        }
    };
    concerns.holds(ConditionType::DatabaseReady, "Proven", "only this tenant's login reaches this tenant's data");
    concerns.holds(ConditionType::CredentialsReady, "Published", "the Secret has the login in use");
    tables(case, place, &provisioned, concerns).await;
    match routing::route(case, place).await {
        Ok((reason, message)) => concerns.holds(ConditionType::RouteReady, reason, message),
        Err(failure) => concerns.fails(ConditionType::RouteReady, failure),
    }
    if case.effective.suspended {
        let message = "suspended: logins are locked and the route is removed; the data stays";
        concerns.rests(ConditionType::WorkloadReady, "Suspended", message);
    }
    next
}

async fn tables(case: &Case<'_>, place: &Place, provisioned: &provision::Provisioned, concerns: &mut Concerns) {
    let files = match migrations::files(case.world, case.application) {
        Ok(files) => files,
        Err(failure) => {
            concerns.fails(ConditionType::Migrated, failure);
            return;
        }
    };
    let target = Target {
        tenant: case.name.to_owned(),
        server: place.server.clone(),
        database: place.database.clone(),
        id: place.id.clone(),
    };
    match migrations::migrate(case.world, &target, &provisioned.record, files).await {
        Tables::Current => concerns.holds(ConditionType::Migrated, "Current", "every migration has run"),
        Tables::Running => {
            concerns.fails(ConditionType::Migrated, Failure::waiting("Running", "migrations are running"))
        }
        Tables::Failed(failure) => concerns.fails(ConditionType::Migrated, failure),
    }
}

/// A tenant's workload is its pool's: available or not. How far a rollout is changes nothing.
fn workload(case: &Case<'_>, place: &Place, concerns: &mut Concerns) {
    if case.effective.suspended {
        return;
    }
    let status = case.world.pool(&place.pool).and_then(|pool| pool.status.clone()).unwrap_or_default();
    match find_condition(&status.conditions, ConditionType::Available) {
        Some(condition) if condition.status == "True" => {
            concerns.holds(ConditionType::WorkloadReady, "Available", "the pool serves");
        }
        Some(condition) => concerns.fails(
            ConditionType::WorkloadReady,
            Failure::waiting("PoolUnavailable", format!("Pool {}: {}", place.pool, condition.message)),
        ),
        None => concerns.fails(
            ConditionType::WorkloadReady,
            Failure::waiting("PoolNotReady", format!("Pool {} is being made", place.pool)),
        ),
    }
}

/// Whether a pool has all that a tenant needs, or what it waits for: less for one that is in
/// it than for a new one, since a fault in the pool's templates takes nothing from who runs.
fn check_pool(pool: Option<&Pool>, name: &str, is_in_it: bool) -> Result<(), Failure> {
    let enough = if is_in_it { pool::has_database } else { pool::takes_tenants };
    match pool {
        Some(pool) if enough(pool) => Ok(()),
        Some(pool) => {
            let conditions = pool.status.clone().unwrap_or_default().conditions;
            let why = find_condition(&conditions, ConditionType::Ready).filter(|ready| ready.status == "False");
            let why =
                why.map_or_else(|| "is being made".to_owned(), |ready| format!("is not ready: {}", ready.message));
            Err(Failure::waiting("PoolNotReady", format!("Pool {name} {why}")))
        }
        None => Err(Failure::waiting("PoolNotReady", format!("Pool {name} is being made"))),
    }
}

/// The pool of a tenant, if it was placed.
pub(super) fn pool_of(tenant: &Tenant, world: &World) -> Option<String> {
    place::known(tenant, world).map(|place| place.pool)
}
