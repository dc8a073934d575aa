//! A Tenant whose spec, or what that refers to, has a fault: it says so, and what it had runs on
//! and is looked after. All that it takes for that stands in its status and in its record.

use std::sync::Arc;

use kube::ResourceExt as _;

use super::{Case, place, run, status::Report, tiers};
use crate::{
    api::{Application, Plan, Tenant},
    cluster::add_finalizer,
    controller::{conditions::Concerns, failure::Failure, queue::Outcome, world::World},
    desired::{Fault, as_it_runs, hosts::Holder},
};

/// Says what is wrong, and looks after what there is.
pub(super) async fn reconcile(tenant: &Tenant, world: &Arc<World>, mut faults: Vec<Fault>) -> Outcome {
    world.shared.set_waiting(&tenant.name_any(), false);
    let running = Running::of(tenant, world);
    if let Some(running) = &running {
        running.add_placement(world, &mut faults);
    }
    let fault = Failure::of(&faults).unwrap_or_else(|| Failure::permanent("Invalid", "the spec can't be fulfilled"));
    let Some(Running { tenant, plan, application, hosts, .. }) = running else {
        let mut report = Report::new(tenant, world);
        report.verdicts = Concerns::not_ready(&fault);
        report.write().await?;
        return Ok(None);
    };
    add_finalizer(world.cluster.client(), &tenant).await?;
    let effective = &as_it_runs(&tenant, &plan, &application, &**world);
    let (name, fault) = (&*tenant.name_any(), Some(fault));
    run(&Case { tenant: &tenant, name, plan: &plan, application: &application, effective, hosts, fault, world }).await
}

/// What a tenant runs by while its spec has a fault.
struct Running {
    /// The Tenant, with what of its spec was in effect before: plan and tier. Whether it is
    /// suspended, and what else has no fault, holds as it stands there.
    tenant: Tenant,
    plan: Arc<Plan>,
    application: Arc<Application>,
    /// The hosts that it had, but for those that are somebody else's by now.
    hosts: Vec<String>,
    place: place::Place,
}

impl Running {
    /// Nothing where nothing was made yet, or where not even that is there any more which it
    /// was made from.
    fn of(tenant: &Tenant, world: &World) -> Option<Self> {
        let place = place::known(tenant, world).filter(|place| place::may_have_data(place, world))?;
        let status = world.statuses.tenants.current(tenant, tenant.status.as_ref())?;
        let plan = world.plan(status.plan.as_deref()?)?;
        let application = world.application(&tenant.spec.application)?;
        let mut tenant = tenant.clone();
        (tenant.spec.plan, tenant.spec.tier) = (plan.name_any(), Some(place.tier));
        let (name, mut hosts) = (tenant.name_any(), status.hosts.unwrap_or_default());
        let index = world.shared.hosts();
        hosts.retain(|host| index.holder(host).is_none_or(|holder| holder == Holder::Tenant(&name)));
        drop(index);
        Some(Self { tenant, plan, application, hosts, place })
    }

    /// A server of its own, for which its data would have to move, has to be reserved by nobody.
    fn add_placement(&self, world: &World, faults: &mut Vec<Fault>) {
        if let Some(fault) = tiers::shared_server(&self.tenant, world, &self.application, &self.place)
            && !faults.contains(&fault)
        {
            faults.retain(|fault| fault.reason != "NoServerReserved");
            faults.push(fault);
        }
    }
}
