//! Everything in a pool's namespace, but the tenants' own.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    Fault, Kind, Object,
    component::{Files, Workload},
    faults,
    fit::{Bounds, NEEDS_RESOURCES},
    kept::Kept,
    namespace::Scope,
    naming::{self, Owner},
    network::{self, Network},
    quota::{self, Counts, Footprint},
    route::route_kind,
    settings::Settings,
    shared::SharedContent,
    sidecar::Sidecar,
    tuning::Tuning,
    validate,
    workloads::Workloads,
};
use crate::api::{Application, DatabaseServer, Pool, Quantities, Tier};

/// What a pool's objects are made from.
#[derive(Clone, Copy)]
pub struct PoolInput<'a> {
    /// The pool.
    pub pool: &'a Pool,
    /// The application that it runs.
    pub application: &'a Application,
    /// The server that has its database.
    pub server: &'a DatabaseServer,
    /// The contents of the Application's `shared` objects.
    pub shared: &'a [SharedContent],
    /// What holds for the operator as a whole.
    pub settings: &'a Settings,
    /// Where the agent reaches the API server: the endpoints behind Service `kubernetes`.
    pub api_server: &'a [(IpAddr, u16)],
    /// Autoscaled components whose Deployment still has `spec.replicas` from the operator's
    /// own last apply, with the live count. Until the autoscaler has set a count of its own,
    /// leaving the field out would let it fall to 1.
    pub held_replicas: &'a BTreeMap<String, i32>,
}

/// The objects of a pool, by sort.
#[derive(Clone, Debug)]
pub struct PoolObjects {
    /// The namespace.
    pub namespace: Object,
    /// The operator's rights in it.
    pub operator_binding: Object,
    /// The agent's identity and rights.
    pub agent: Vec<Object>,
    /// Copies of the Application's shared objects.
    pub shared: Vec<Object>,
    /// What the namespace may use.
    pub quota: Option<Object>,
    /// What may connect to what.
    pub network_policies: Vec<Object>,
    /// The components' addresses.
    pub services: Vec<Object>,
    /// How many pods an eviction may take away.
    pub disruption_budgets: Vec<Object>,
    /// How many replicas there are.
    pub autoscalers: Vec<Object>,
    /// The components' pods.
    pub deployments: Vec<Object>,
    /// Whether the way to the database is declared; else no pod reaches it until
    /// DatabaseServer `spec.network.to` is set.
    pub network_declared: bool,
    /// What stays as it is, and why.
    pub kept: Kept,
}

impl PoolObjects {
    /// The objects in the order in which they are applied: what others need comes first,
    /// and Deployments last, since a pod starts with what is there.
    pub fn into_ordered(self) -> Vec<Object> {
        // Without `..`: a field that is added is either applied or named here.
        let Self {
            namespace,
            operator_binding,
            agent,
            shared,
            quota,
            network_policies,
            services,
            disruption_budgets,
            autoscalers,
            deployments,
            network_declared: _,
            kept: _,
        } = self;
        [namespace, operator_binding]
            .into_iter()
            .chain(agent)
            .chain(shared)
            .chain(quota)
            .chain(network_policies)
            .chain(services)
            .chain(disruption_budgets)
            .chain(autoscalers)
            .chain(deployments)
            .collect()
    }
}

/// How many tenants a pool takes: what the Pool says, or its Application, or 500; never more
/// than the server has schemas in a database.
pub fn pool_capacity(pool: &Pool, application: &Application, server: &DatabaseServer) -> u32 {
    let asked = pool.spec.max_tenants.and_then(|number| u32::try_from(number).ok());
    asked.unwrap_or_else(|| validate::application_max_tenants(application)).min(schemas_per_database(server))
}

/// How many tenants fit into one database of a server: 1000 where nobody says.
pub fn schemas_per_database(server: &DatabaseServer) -> u32 {
    let schemas = server.spec.capacity.as_ref().and_then(|capacity| capacity.schemas_per_database);
    u32::try_from(schemas.unwrap_or(1_000)).unwrap_or(0)
}

/// The objects of a pool. What has a fault, by the Application's templates, network peers and
/// quota or the server's peers, or for want of a shared object, stays as it is.
pub fn pool_objects(input: &PoolInput<'_>) -> PoolObjects {
    let PoolInput { pool, application, server, settings, .. } = *input;
    let pool_name = pool.metadata.name.as_deref().unwrap_or_default();
    let application_name = application.metadata.name.as_deref().unwrap_or_default();
    let namespace = naming::pool_namespace(pool_name);
    let owner = Owner::Pool(pool_name);
    let labels = naming::labels(application_name, owner);
    let scope = Scope { namespace: &namespace, labels: &labels };

    let mut kept = Kept::default();
    let shared = kept.surroundings(scope, application, server, input.shared, |fault| fault);
    let sidecar = Sidecar { settings, capacity: pool_capacity(pool, application, server) };
    let Workloads { services, disruption_budgets, autoscalers, deployments, footprints, unfit, faults, faulty } =
        parts(application, owner, &namespace, sidecar, input.held_replicas);
    let network = Network {
        namespace: &namespace,
        labels: &labels,
        instance: pool_name,
        application,
        server,
        api_server: input.api_server,
    };
    let mut objects = PoolObjects {
        namespace: scope.namespace(),
        operator_binding: scope.operator_binding(settings),
        agent: scope.agent(),
        shared,
        quota: scope.quota(pool_quota(application)),
        network_policies: network.policies(),
        services,
        disruption_budgets,
        autoscalers,
        deployments,
        network_declared: network::declared(application, server),
        kept: Kept::default(),
    };
    if faults.is_empty() {
        let counts = Counts::of(objects.clone().into_ordered().iter());
        let room = room_faults(application, &footprints, counts, sidecar.capacity);
        let components = application.spec.components.iter().map(|component| component.name.clone());
        kept.room([unfit, room].concat(), components);
    } else {
        // The pods that run under no quota yet may be such as a quota would refuse.
        if faults.iter().any(|fault| fault.reason == NEEDS_RESOURCES) {
            kept.bounds();
        }
        kept.templates(faults, faulty);
    }
    objects.autoscalers.retain(|autoscaler| !kept.has(autoscaler));
    objects.network_policies.retain(|policy| !kept.has(policy));
    objects.quota = objects.quota.filter(|quota| !kept.has(quota));
    PoolObjects { kept, ..objects }
}

/// The components of a pool.
fn parts(
    application: &Application,
    owner: Owner<'_>,
    namespace: &str,
    sidecar: Sidecar<'_>,
    held_replicas: &BTreeMap<String, i32>,
) -> Workloads {
    let workload = |(index, component): (usize, _)| Workload {
        component,
        path: format!("spec.components[{index}]"),
        tier: Tier::Pooled,
        application: application.metadata.name.as_deref().unwrap_or_default(),
        owner,
        namespace,
        files: Files::Agent(sidecar),
        tuning: Tuning::default(),
        suspended: false,
        deadline_seconds: faults::rollout_seconds(application),
        min_ready_seconds: faults::min_ready_seconds(application),
        quota: pool_quota(application),
        bounds: Bounds::default(),
        held_replicas: held_replicas.get(&component.name).copied(),
    };
    Workloads::of(application.spec.components.iter().enumerate().map(workload))
}

fn pool_quota(application: &Application) -> Option<&Quantities> {
    application.spec.pools.as_ref()?.quota.as_ref()
}

/// A quota that is too small for a pool with as many tenants as it takes.
fn room_faults(application: &Application, footprints: &[Footprint], mut counts: Counts, capacity: u32) -> Vec<Fault> {
    counts.add(Kind::Secret, u64::from(capacity));
    if let Some(route) = &application.spec.route {
        counts.add(route_kind(route), u64::from(capacity));
    }
    let advice = "or lower replicas, requests or pools.maxTenants";
    quota::shortfalls("spec.pools.quota", pool_quota(application), footprints, &counts, advice)
}

/// A quota that is too small for any pool of an Application that takes `capacity` tenants.
/// The templates' own faults are told elsewhere.
pub(super) fn quota_faults(application: &Application, settings: &Settings, capacity: u32) -> Vec<Fault> {
    let held = BTreeMap::new();
    let sidecar = Sidecar { settings, capacity };
    let workloads = parts(application, Owner::Pool(""), "", sidecar, &held);
    if !workloads.faults.is_empty() {
        return Vec::new();
    }
    let mut counts = Counts::of(workloads.objects());
    counts.add_shared(application);
    let faults = room_faults(application, &workloads.footprints, counts, capacity);
    [quota::name_faults("spec.pools.quota", pool_quota(application)), faults].concat()
}
