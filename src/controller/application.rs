//! Applications: what is wrong with them, and who uses them.

use std::sync::Arc;

use kube::ResourceExt as _;

use super::{
    conditions::{Concerns, now},
    failure::Failure,
    migrations,
    queue::Outcome,
    rollout,
    world::World,
};
use crate::{
    api::{Application, ApplicationStatus, ConditionType, KnownMeter, Meter, Verdict, merge_conditions},
    cluster::{add_finalizer, remove_finalizer},
    desired::{Kind, application_faults, count, join_faults, route_kind},
};

/// How many meters a status knows; the definition has the same bound.
const KNOWN_METERS: usize = 128;

pub(super) async fn reconcile(application: Arc<Application>, world: Arc<World>) -> Outcome {
    if super::is_paused(&*application) {
        return Ok(None);
    }
    let name = application.name_any();
    let tenants = world.count_tenants(|tenant| tenant.spec.application == name);
    let pools = world.stores.pools.state().iter().filter(|pool| pool.spec.application == name).count();
    if application.metadata.deletion_timestamp.is_some() {
        if tenants == 0 && pools == 0 {
            world.statuses.applications.forget(application.metadata.uid.as_deref().unwrap_or_default());
            remove_finalizer(world.cluster.client(), &*application).await?;
            return Ok(None);
        }
        let message = format!("used by {} and {}: delete them first", count(tenants, "Tenant"), count(pools, "Pool"));
        let verdicts = [Verdict::no(ConditionType::Ready, "InUse", message)];
        return write(&application, &world, tenants, pools, &verdicts).await;
    }
    add_finalizer(world.cluster.client(), &*application).await?;
    let mut concerns = Concerns::default();
    let faults = application_faults(&application, &world.settings, &*world);
    if let Some(fault) = faults.first() {
        concerns.fails(ConditionType::WorkloadReady, Failure::permanent(fault.reason, join_faults(&faults)));
    }
    if let Some(route) = &application.spec.route {
        if route_kind(route) == Kind::HttpRoute && !world.serves_http_routes() {
            concerns.fails(
                ConditionType::RouteApiAvailable,
                Failure::waiting(
                    "GatewayApiMissing",
                    "the cluster doesn't serve HTTPRoutes: install the Gateway API CRDs, or use spec.route.ingressClassName. Tenants get their routes once they are there",
                ),
            );
        } else {
            concerns.holds(ConditionType::RouteApiAvailable, "Available", "the cluster serves this kind of route");
        }
    }
    if let Err(failure) = migrations::files(&world, &application) {
        concerns.fails(ConditionType::Migrated, failure);
    }
    match rollout::review(&world, &application) {
        Ok(()) => {
            concerns.holds(ConditionType::RolledOut, "RolledOut", "every pool and tenant has the newest templates")
        }
        Err(failure) => concerns.fails(ConditionType::RolledOut, failure),
    }
    let verdicts = concerns.verdicts("the Application can be placed");
    let next = write(&application, &world, tenants, pools, &verdicts).await?;
    concerns.blocked().map_or(Ok(next), Err)
}

async fn write(application: &Application, world: &World, tenants: i64, pools: usize, verdicts: &[Verdict]) -> Outcome {
    let old = world.statuses.applications.current(application, application.status.as_ref()).unwrap_or_default();
    let generation = application.metadata.generation;
    let is_used = tenants > 0 || pools > 0;
    let status = ApplicationStatus {
        observed_generation: generation,
        tenants,
        pools: i64::try_from(pools).unwrap_or(i64::MAX),
        meters: known_meters(&old.meters, application.spec.meters.as_deref().filter(|_| is_used).unwrap_or_default()),
        conditions: merge_conditions(&old.conditions, verdicts, generation, now()),
    };
    let counts = ApplicationStatus { tenants, pools: status.pools, ..old.clone() };
    if let Some(wait) = super::count_only(world, application, counts == status && old != status) {
        return Ok(Some(wait));
    }
    let client = world.cluster.client();
    if world.statuses.applications.write(client, application, application.status.as_ref(), &status).await? {
        world.events.transitions(application, &old.conditions, &status.conditions);
    }
    Ok(None)
}

/// The meters that were known, and those that are declared, at the end.
fn known_meters(known: &[KnownMeter], declared: &[Meter]) -> Vec<KnownMeter> {
    let new = declared.iter().filter(|meter| known.iter().all(|known| known.name != meter.name));
    let new = new.map(|meter| KnownMeter { name: meter.name.clone(), kind: meter.kind, source: meter.source });
    let mut meters: Vec<KnownMeter> = known.iter().cloned().chain(new).collect();
    let mut surplus = meters.len().saturating_sub(KNOWN_METERS);
    meters.retain(|known| {
        let leaves = surplus > 0 && declared.iter().all(|meter| meter.name != known.name);
        surplus -= usize::from(leaves);
        !leaves
    });
    meters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{MeterKind, MeterSource};

    #[test]
    fn what_is_no_longer_declared_stays_known_and_the_oldest_goes_first() {
        let meter = |name: String| Meter { name, unit: None, kind: MeterKind::Level, source: MeterSource::Database };
        let names = |from: usize, to: usize| (from..to).map(|n| meter(format!("m{n}"))).collect::<Vec<_>>();
        let mut known = Vec::new();
        for n in 0..5 {
            known = known_meters(&known, &names(n * 32, n * 32 + 32));
        }
        let found: Vec<&str> = known.iter().map(|known| known.name.as_str()).collect();
        let expected: Vec<String> = (32..160).map(|n| format!("m{n}")).collect();
        assert_eq!(found, expected);
        // One that is old and declared stays.
        let known = known_meters(&known, &[meter("m32".to_owned()), meter("new".to_owned())]);
        let found: Vec<&str> = known.iter().map(|known| known.name.as_str()).collect();
        assert_eq!((found.len(), found[0], found[1], found[127]), (128, "m32", "m34", "new"));
    }
}
