//! Tenants of tiers bridge and dedicated: a namespace of their own, with all that is in it.

use std::collections::BTreeMap;

use super::{
    Case,
    data::{self, Data},
    place::{self, Place},
    provision,
    status::Report,
};
use crate::{
    api::{ConditionType, DatabaseServer, Plan, PlanSpec, Verdict, find_condition},
    cluster::{Key, Owner},
    controller::{
        conditions::Concerns,
        failure::Failure,
        objects::{Namespaced, shared_contents},
        queue::Next,
        workload,
    },
    desired::{
        Catalog as _, Fault, Kept, Kind, Object, SharedContent, TenantObjectsInput, naming, rollout::Source,
        tenant_objects,
    },
};

/// Reason of `WorkloadReady` while the pods wait for their data.
const DATA_PENDING: &str = "DataPending";

/// An autoscaler's replica count is handed over when it is applied.
static NONE_HELD: BTreeMap<String, i32> = BTreeMap::new();

/// The objects of a tenant's namespace, by when they are applied.
struct Objects {
    /// The namespace and the operator's rights in it: without them nothing else can be made.
    ground: Vec<Object>,
    /// What has to be there before a pod starts, but for its Secret.
    rest: Vec<Object>,
    deployments: Vec<Object>,
    network_declared: bool,
    /// What stays as it is, and why.
    kept: Kept,
}

/// Namespace, database, Secret, tables, pods: a pod starts with all that it needs. Nothing is
/// made where the objects have a fault, such as a quota that is too small for them; where the
/// tenant was made before, what has the fault stays as it is. Returns when to look again, or
/// nothing where there is no data to route to.
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
    let kept = objects.kept;
    if let Some(fault) = Failure::of(&kept.all_faults()).filter(|_| !place::may_have_data(place, case.world)) {
        concerns.is_at_fault(ConditionType::NamespaceReady, fault);
        return None;
    }
    let owner = Owner::Tenant(case.name.to_owned());
    let sources = || sources(case, place);
    let mut namespaced = Namespaced::new(case.world, owner.clone(), &place.namespace).sources(sources).keeping(&kept);
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
    let applied = applied.and(namespaced.refused().map_or(Ok(()), Err));
    let is_complete = applied.is_ok() && data.is_complete() && kept.is_none();
    let starts = is_complete || !is_first_start(report);
    let refused = pods(&mut namespaced, objects.deployments, starts).await;
    // A template that can't be used takes nothing from pods that run.
    let faults = if starts { kept.faults } else { kept.all_faults() };
    match (applied.and(namespaced.prune().await), Failure::of(&faults)) {
        (Err(failure), _) => concerns.fails(ConditionType::NamespaceReady, failure),
        (Ok(()), Some(fault)) => concerns.is_at_fault(ConditionType::NamespaceReady, fault),
        (Ok(()), None) => {
            concerns.holds(ConditionType::NamespaceReady, "Applied", "every object is as it should be");
        }
    }
    let published = data.is_published();
    data.judge(concerns);
    let pods = if starts { Pods::Started(refused) } else { Pods::Waiting };
    workload(case, place, pods, &kept.template_faults, report, concerns).await;
    network(place, objects.network_declared, concerns);
    published.then_some(next)
}

/// The objects as they should be.
fn objects(case: &Case<'_>, place: &Place) -> Result<Objects, Failure> {
    let server = case.world.server(&place.server).ok_or_else(|| {
        Failure::waiting("DatabaseUnavailable", format!("there is no DatabaseServer {}", place.server))
    })?;
    let shared = shared_contents(case.application, case.world);
    let objects = tenant_objects(&input(case, place, &server, &shared));
    let (network_declared, kept) = (objects.network_declared, objects.kept.clone());
    let (deployments, others): (Vec<_>, Vec<_>) =
        objects.into_ordered().into_iter().partition(|object| object.kind == Kind::Deployment);
    let is_ground = |object: &Object| object.kind == Kind::Namespace || object.name == naming::NAMESPACE_ROLE;
    let (ground, rest) = others.into_iter().partition(is_ground);
    Ok(Objects { ground, rest, deployments, network_declared, kept })
}

fn input<'a>(
    case: &'a Case<'_>,
    place: &Place,
    server: &'a DatabaseServer,
    shared: &'a [SharedContent],
) -> TenantObjectsInput<'a> {
    TenantObjectsInput {
        tenant: case.tenant,
        plan: case.plan,
        application: case.application,
        server,
        tier: place.tier,
        hosts: &case.hosts,
        shared,
        settings: &case.world.settings,
        suspended: case.effective.suspended,
        held_replicas: &NONE_HELD,
    }
}

/// Where the pod templates come from, by component: what they would be without anything of this
/// tenant's, and without anything of its plan's either. Its name alone is in all of them.
fn sources(case: &Case<'_>, place: &Place) -> BTreeMap<String, Source> {
    let Some(server) = case.world.server(&place.server) else { return BTreeMap::new() };
    let mut tenant = case.tenant.clone();
    (tenant.spec.overrides, tenant.spec.owners) = (None, None);
    let mut bare = case.plan.clone();
    // Nothing that another fault could come from: what is asked for is what pods would be.
    (bare.spec.components, bare.spec.quota, bare.spec.limit_range) = (None, None, None);
    let planned =
        Plan { spec: PlanSpec { components: case.plan.spec.components.clone(), ..bare.spec.clone() }, ..bare.clone() };
    let shared = shared_contents(case.application, case.world);
    // The host under the Application's domain is the Application's to change, for all at once.
    let route = case.application.spec.route.as_ref();
    let hosts: Vec<_> = route.map(|route| naming::tenant_host(route, case.name)).into_iter().collect();
    let deployments = |plan: &Plan| -> Vec<Object> {
        let input = TenantObjectsInput { tenant: &tenant, plan, hosts: &hosts, ..input(case, place, &server, &shared) };
        tenant_objects(&input).deployments
    };
    let (of_application, of_plan) = (deployments(&bare), deployments(&planned));
    let source = |(application, planned): (&Object, &Object)| {
        (application.name.clone(), Source::new(application, &case.effective.plan, planned))
    };
    of_application.iter().zip(&of_plan).map(source).collect()
}

/// The tenant's Secret and its route are applied by who knows what they need.
fn keep_others(case: &Case<'_>, place: &Place, namespaced: &mut Namespaced<'_>) {
    let key = |kind, name| Key { kind, namespace: Some(place.namespace.clone()), name };
    namespaced.keep(key(Kind::Secret, naming::credentials_secret(case.name)));
    for kind in [Kind::HttpRoute, Kind::Ingress] {
        namespaced.keep(key(kind, naming::tenant_route(case.name)));
    }
}

/// Whether the pods never started: they wait for all else then, since a pod that doesn't find
/// its tables would end again and again, and one without its policies would reach too much. Later on they depend on nothing: a failing migration
/// or a database that is away is no reason to leave a deleted Deployment away.
fn is_first_start(report: &Report<'_>) -> bool {
    find_condition(&report.old().conditions, ConditionType::WorkloadReady)
        .is_none_or(|condition| condition.reason == DATA_PENDING)
}

/// Brings the Deployments to what is desired; one that isn't there yet waits until pods may
/// start. Returns what was refused.
async fn pods(namespaced: &mut Namespaced<'_>, deployments: Vec<Object>, starts: bool) -> Option<Failure> {
    if starts {
        return namespaced.apply(deployments).await.err().or_else(|| namespaced.refused());
    }
    for deployment in deployments {
        namespaced.keep(Key::of(&deployment));
    }
    None
}

/// Whether a tenant has pods.
enum Pods {
    /// They wait for what they need.
    Waiting,
    /// They were started; with what was refused of them.
    Started(Option<Failure>),
}

async fn workload(
    case: &Case<'_>,
    place: &Place,
    pods: Pods,
    template_faults: &[Fault],
    report: &Report<'_>,
    concerns: &mut Concerns,
) {
    let Pods::Started(refused) = pods else {
        // Also where the tenant is suspended: once it is not, they still wait.
        let message = "the pods start once all that they need is there";
        concerns.fails(ConditionType::WorkloadReady, Failure::waiting(DATA_PENDING, message));
        return;
    };
    if case.effective.suspended {
        let message = "suspended: logins are locked, the route is removed and no pod runs; the data stays";
        concerns.rests(ConditionType::WorkloadReady, "Suspended", message);
        return;
    }
    if let Some(failure) = refused {
        concerns.fails(ConditionType::WorkloadReady, failure);
        return;
    }
    let (owner, conditions) = (Owner::Tenant(case.name.to_owned()), &report.old().conditions);
    let standing = workload::look(case.world, &owner, &place.namespace, case.application, conditions).await;
    match standing.serves {
        Ok(None) => concerns.holds(ConditionType::WorkloadReady, "Available", "every component serves"),
        Ok(Some((reason, message))) => concerns.holds(ConditionType::WorkloadReady, reason, message),
        Err((reason, message)) => concerns.fails(ConditionType::WorkloadReady, Failure::waiting(reason, message)),
    }
    if let Some(fault) = Failure::of(template_faults) {
        concerns.notes(Verdict::no(ConditionType::RolledOut, fault.reason, fault.message));
    } else if let Some(verdict) = standing.rolled_out {
        concerns.notes(verdict);
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
