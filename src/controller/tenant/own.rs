//! Tenants of tiers bridge and dedicated: a namespace of their own, with all that is in it.

use std::collections::BTreeMap;

use super::{
    Case,
    data::{self, Data},
    place::Place,
    provision,
    status::Report,
};
use crate::{
    api::{ConditionType, find_condition},
    cluster::{Key, Owner},
    controller::{
        conditions::Concerns,
        failure::Failure,
        objects::{Namespaced, component_states, shared_contents},
        queue::Next,
    },
    desired::{
        Catalog as _, Kind, Object, TenantObjectsInput, availability::unavailable, join_faults, naming, tenant_objects,
    },
};

/// Reason of `WorkloadReady` while the pods wait for their data.
const DATA_PENDING: &str = "DataPending";

/// The objects of a tenant's namespace, by when they are applied.
struct Objects {
    /// The namespace and the operator's rights in it: without them nothing else can be made.
    ground: Vec<Object>,
    /// What has to be there before a pod starts, but for its Secret.
    rest: Vec<Object>,
    deployments: Vec<Object>,
    network_declared: bool,
}

/// Namespace, database, Secret, tables, pods: a pod starts with all that it needs. Nothing is
/// made where the objects have a fault, such as a quota that is too small for them. Returns
/// when to look again, or nothing where there is no data to route to.
pub(super) async fn serve(
    case: &Case<'_>,
    place: &Place,
    concerns: &mut Concerns,
    report: &mut Report<'_>,
) -> Option<Next> {
    let objects = match objects(case, place) {
        Ok(objects) => objects,
        Err(failure) => {
            concerns.fails(ConditionType::NamespaceReady, failure);
            return None;
        }
    };
    let mut namespaced = Namespaced::new(case.world, Owner::Tenant(case.name.to_owned()), &place.namespace);
    keep_others(case, place, &mut namespaced);
    if let Err(failure) = namespaced.apply(objects.ground).await {
        concerns.fails(ConditionType::NamespaceReady, failure);
        return None;
    }
    // They don't wait for each other.
    let (applied, provisioned) = tokio::join!(namespaced.apply(objects.rest), provision::provision(case, place));
    let mut next = None;
    let data = match provisioned {
        Ok(provisioned) => data::publish(case, place, provisioned, report, &mut next).await,
        Err(failure) => Data::failed(ConditionType::DatabaseReady, failure),
    };
    let starts = data.is_complete() || !is_first_start(report);
    let refused = pods(&mut namespaced, objects.deployments, starts).await;
    match applied.and(namespaced.prune().await) {
        Ok(()) => concerns.holds(ConditionType::NamespaceReady, "Applied", "every object is as it should be"),
        Err(failure) => concerns.fails(ConditionType::NamespaceReady, failure),
    }
    let published = data.is_published();
    data.judge(concerns);
    workload(case, place, starts, refused, concerns);
    network(place, objects.network_declared, concerns);
    published.then_some(next)
}

/// The objects as they should be.
fn objects(case: &Case<'_>, place: &Place) -> Result<Objects, Failure> {
    let server = case.world.server(&place.server).ok_or_else(|| {
        Failure::waiting("DatabaseUnavailable", format!("there is no DatabaseServer {}", place.server))
    })?;
    let input = TenantObjectsInput {
        tenant: case.tenant,
        plan: case.plan,
        application: case.application,
        server: &server,
        tier: place.tier,
        hosts: &case.hosts,
        shared: &shared_contents(case.application, case.world),
        settings: &case.world.settings,
        suspended: case.effective.suspended,
        held_replicas: &BTreeMap::new(),
    };
    let objects = tenant_objects(&input).map_err(|faults| {
        Failure::permanent(faults.first().map_or("Invalid", |fault| fault.reason), join_faults(&faults))
    })?;
    let network_declared = objects.network_declared;
    let (deployments, others): (Vec<_>, Vec<_>) =
        objects.into_ordered().into_iter().partition(|object| object.kind == Kind::Deployment);
    let is_ground = |object: &Object| object.kind == Kind::Namespace || object.name == naming::NAMESPACE_ROLE;
    let (ground, rest) = others.into_iter().partition(is_ground);
    Ok(Objects { ground, rest, deployments, network_declared })
}

/// The tenant's Secret and its route are applied by who knows what they need.
fn keep_others(case: &Case<'_>, place: &Place, namespaced: &mut Namespaced<'_>) {
    let key = |kind, name| Key { kind, namespace: Some(place.namespace.clone()), name };
    namespaced.keep(key(Kind::Secret, naming::credentials_secret(case.name)));
    for kind in [Kind::HttpRoute, Kind::Ingress] {
        namespaced.keep(key(kind, naming::tenant_route(case.name)));
    }
}

/// Whether the pods never started: they wait for the tables then, since a pod that doesn't
/// find them would end again and again. Later on they depend on nothing: a failing migration
/// or a database that is away is no reason to leave a deleted Deployment away.
fn is_first_start(report: &Report<'_>) -> bool {
    find_condition(&report.old().conditions, ConditionType::WorkloadReady)
        .is_none_or(|condition| condition.reason == DATA_PENDING)
}

/// Brings the Deployments to what is desired; one that isn't there yet waits until pods may
/// start. Returns what was refused.
async fn pods(namespaced: &mut Namespaced<'_>, deployments: Vec<Object>, starts: bool) -> Option<Failure> {
    if starts {
        return namespaced.apply(deployments).await.err();
    }
    for deployment in deployments {
        namespaced.keep(Key::of(&deployment));
    }
    None
}

fn workload(case: &Case<'_>, place: &Place, starts: bool, refused: Option<Failure>, concerns: &mut Concerns) {
    if case.effective.suspended {
        let message = "suspended: logins are locked, the route is removed and no pod runs; the data stays";
        concerns.rests(ConditionType::WorkloadReady, "Suspended", message);
        return;
    }
    if let Some(failure) = refused {
        concerns.fails(ConditionType::WorkloadReady, failure);
        return;
    }
    if !starts {
        let message = "the pods start once the database and its tables are there";
        concerns.fails(ConditionType::WorkloadReady, Failure::waiting(DATA_PENDING, message));
        return;
    }
    match unavailable(&component_states(case.world, &place.namespace, case.application)) {
        None => concerns.holds(ConditionType::WorkloadReady, "Available", "every component serves"),
        Some((reason, message)) => concerns.fails(ConditionType::WorkloadReady, Failure::waiting(reason, message)),
    }
}

fn network(place: &Place, declared: bool, concerns: &mut Concerns) {
    if declared {
        concerns.holds(ConditionType::NetworkDeclared, "Declared", "pods may reach the database server");
        return;
    }
    let message =
        format!("no pod may reach the database: name its peers in spec.network.to of DatabaseServer {}", place.server);
    concerns.fails(ConditionType::NetworkDeclared, Failure::waiting("NetworkNotDeclared", message));
}
