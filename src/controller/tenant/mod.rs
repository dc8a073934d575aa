//! Tenants: placed, provisioned, proven, served, routed.

mod choosing;
mod credentials;
mod data;
mod faulty;
mod finalize;
mod own;
pub(super) mod place;
mod pooled;
mod provision;
mod recorded;
mod routing;
mod status;
mod tiers;

use std::sync::Arc;

use kube::{ResourceExt as _, runtime::reflector::ObjectRef};

pub(super) use self::{
    credentials::{ROTATION_SOON, rotation_due},
    place::note as note_place,
    recorded::Stranger,
};
use self::{place::Place, status::Report, tiers::Change};
use super::{
    bulkheads,
    conditions::Concerns,
    failure::{Class, Failure},
    queue::{Next, Outcome},
    world::World,
};
use crate::{
    api::{Application, ConditionType, Plan, Tenant},
    cluster::{Owner, add_finalizer},
    desired::{Effective, effective, period_faults},
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
    /// What is wrong with the spec of a tenant that runs on.
    pub(super) fault: Option<Failure>,
    pub(super) world: &'a Arc<World>,
}

pub(super) async fn reconcile(tenant: Arc<Tenant>, world: Arc<World>) -> Outcome {
    // The store may have got a newer one since this one was taken from it.
    world.statuses.tenants.begin(tenant.metadata.uid.as_deref().unwrap_or_default());
    let tenant = world
        .stores
        .tenants
        .get(&ObjectRef::from_obj(&*tenant))
        .filter(|newer| newer.metadata.uid == tenant.metadata.uid)
        .unwrap_or(tenant);
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
    if let Some(place) = place::known(tenant, world)
        && world.databases.is_being_read(&place.server)
    {
        return Err(Failure::being_read(&place.server));
    }
    let name = tenant.name_any();
    if tenant.metadata.deletion_timestamp.is_some() {
        return finalize::finalize(tenant, world).await;
    }
    let (plan, application) = (world.plan(&tenant.spec.plan), world.application(&tenant.spec.application));
    let checked = effective(tenant, plan.as_deref(), application.as_deref(), &**world);
    let (Ok(effective), Some(plan), Some(application)) = (&checked, &plan, &application) else {
        return faulty::reconcile(tenant, world, checked.err().unwrap_or_default()).await;
    };
    let faults = world.shared.hosts().faults(&name);
    if !faults.is_empty() {
        return faulty::reconcile(tenant, world, faults).await;
    }
    let settled = match tiers::change(tenant, world, application, effective.tier).await {
        Ok(Change::None) => Ok(()),
        Ok(Change::Anew(place)) => tiers::give_up(tenant, world, &place, effective.tier).await,
        Ok(Change::Refused(fault)) => return faulty::reconcile(tenant, world, vec![fault]).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = settled {
        let mut report = Report::new(tenant, world);
        report.verdicts = Concerns::not_ready(&failure);
        report.write().await?;
        return Err(failure);
    }
    add_finalizer(world.cluster.client(), tenant).await?;
    let hosts = world.shared.hosts().granted(&name);
    run(&Case { tenant, name: &name, plan, application, effective, hosts, fault: None, world }).await
}

/// One concern after the other; what can't be done now stays for the next time.
async fn run(case: &Case<'_>) -> Outcome {
    // What can't be seen yet can't be judged: nothing is said that the next moment takes back.
    if place::known(case.tenant, case.world).is_some_and(|place| case.world.shared.is_being_listed(&place.namespace)) {
        return Err(Failure::waiting("NamespaceNotListed", "the namespace is being listed"));
    }
    let mut concerns = Concerns::default();
    if let Some(fault) = &case.fault {
        concerns.stalls(fault.clone());
    }
    let mut report = Report::new(case.tenant, case.world);
    report.set_effective(case);
    let next = match place::place(case, &mut report).await {
        Ok(place) => {
            case.world.shared.set_waiting(case.name, false);
            let Some(_seat) = case.world.seat(&place.server, &Owner::Tenant(case.name.to_owned())) else {
                return Ok(Some(bulkheads::ASK_AGAIN));
            };
            if let Some(fault) = period_fault(case, &place) {
                concerns.stalls(fault);
            }
            concerns.holds(ConditionType::Placed, "Placed", described(&place));
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

/// The spec asks for other usage periods than those that the tenant has, which stay.
fn period_fault(case: &Case<'_>, place: &Place) -> Option<Failure> {
    let record = case.world.databases.get(&place.server)?.record(&place.database, &place.id)?;
    Failure::of(&period_faults(case.tenant, record.settings.period_anchor, &record.settings.time_zone))
}

fn described(place: &Place) -> String {
    match &place.pool {
        Some(pool) => format!("in Pool {pool}"),
        None => format!("in namespace {} and database {} on {}", place.namespace, place.database, place.server),
    }
}

async fn serve(case: &Case<'_>, place: &Place, concerns: &mut Concerns, report: &mut Report<'_>) -> Next {
    let next = match &place.pool {
        Some(pool) => pooled::serve(case, place, pool, concerns, report).await,
        None => own::serve(case, place, concerns, report).await,
    };
    let next = next?;
    match routing::route(case, place).await {
        Ok((reason, message)) => concerns.holds(ConditionType::RouteReady, reason, message),
        Err(failure) => concerns.fails(ConditionType::RouteReady, failure),
    }
    next
}

/// The pool of a tenant, if it was placed in one.
pub(super) fn pool_of(tenant: &Tenant, world: &World) -> Option<String> {
    place::known(tenant, world)?.pool
}

/// Whether a tenant was placed in a namespace of its own.
pub(super) fn has_own_namespace(tenant: &Tenant) -> bool {
    tenant.status.as_ref().is_some_and(|status| status.pool.is_none() && status.namespace.is_some())
}
