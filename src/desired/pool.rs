//! Everything in a pool's namespace, but the tenants' own.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Fault, Kind, Object};
use crate::api::{Application, DatabaseServer, Pool, Resources};

/// What holds for the operator as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The operator's namespace.
    pub operator_namespace: String,
    /// The operator's ServiceAccount in it.
    pub operator_service_account: String,
    /// The image of the agent: the operator's own.
    pub agent_image: String,
    /// When the agent's image is pulled; Kubernetes' default when left out.
    pub agent_pull_policy: Option<String>,
    /// The agent's requests and limits; sized by the pool's capacity when left out.
    pub agent_resources: Option<Resources>,
}

/// A shared Secret or ConfigMap, as it is in the operator's namespace. (Not `Debug`: it may
/// have secrets.)
#[derive(Clone, PartialEq)]
pub struct SharedContent {
    /// Secret or ConfigMap.
    pub kind: Kind,
    /// Its name there and in every namespace of the Application.
    pub name: String,
    /// A Secret's type.
    pub type_: Option<String>,
    /// A ConfigMap's text, or a Secret's base64, by key.
    pub data: BTreeMap<String, String>,
    /// A ConfigMap's base64, by key.
    pub binary_data: BTreeMap<String, String>,
}

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
    let asked = pool.spec.max_tenants.or(application.spec.pools.as_ref().and_then(|pools| pools.max_tenants));
    let schemas = server.spec.capacity.as_ref().and_then(|capacity| capacity.schemas_per_database);
    u32::try_from(asked.unwrap_or(500).min(schemas.unwrap_or(1_000))).unwrap_or(0)
}

/// The objects of a pool.
///
/// # Errors
/// The faults of the Application's templates and network peers, and shared objects that are
/// not there.
pub fn pool_objects(input: &PoolInput<'_>) -> Result<PoolObjects, Vec<Fault>> {
    let _ = input;
    todo!()
}
