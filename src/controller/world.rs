//! What every controller can see.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    core::v1::{ConfigMap, Secret},
    discovery::v1::EndpointSlice,
};
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::{sync::watch, task::AbortHandle};

use super::{
    api_ca::ApiCa,
    bulkheads::Bulkheads,
    databases::Databases,
    definitions::Definitions,
    events::Events,
    failure::Backoff,
    health::Health,
    metrics::Metrics,
    migrations::MigrationRuns,
    placements::Placements,
    queue::{Backlog, Queue},
    rollout::Rollouts,
    settings::OperatorArgs,
    state::ChildState,
    usage::UsageWork,
    workload::Looks,
};
use crate::{
    api::{
        Application, ApplicationStatus, DatabaseServer, DatabaseServerStatus, Plan, PlanStatus, Pool, PoolStatus,
        Tenant, TenantMetering, TenantStatus,
    },
    cluster::{Cluster, Statuses, Watches},
    desired::{self, Catalog, hosts::HostIndex, naming},
    metering::ledger::Ledger,
    term::Term,
};

/// How often a count in a status is written at most, where nothing else changed.
pub(super) const COUNT_INTERVAL: Duration = Duration::from_secs(2);

/// How long the list of a namespace may take before it is said in conditions.
const LISTING: Duration = Duration::from_secs(10);

/// What every controller can see.
pub(super) struct World {
    pub(super) args: OperatorArgs,
    pub(super) settings: desired::Settings,
    pub(super) cluster: Cluster<ChildState>,
    pub(super) facts: Facts,
    pub(super) stores: Stores,
    pub(super) queues: Queues,
    pub(super) statuses: AllStatuses,
    pub(super) databases: Databases,
    /// Where usage goes; nothing where nothing is metered.
    pub(super) ledger: Option<Ledger>,
    /// Whom relays trust as the API; the system's certificates where there is none.
    pub(super) api_ca: Option<ApiCa>,
    pub(super) bulkheads: Bulkheads,
    pub(super) shared: Shared,
    pub(super) migrations: MigrationRuns,
    pub(super) rollouts: Rollouts,
    pub(super) looks: Looks,
    pub(super) backoff: Backoff,
    pub(super) metrics: Metrics,
    pub(super) watches: Watches,
    pub(super) definitions: Arc<Definitions>,
    pub(super) health: Health,
    pub(super) events: Events,
    /// From the ledger into status; nothing where there is no ledger.
    pub(super) usage: Option<UsageWork>,
    /// The term in which everything is written.
    pub(super) term: Term,
    /// Whether the operator was asked to end.
    pub(super) stop: watch::Receiver<bool>,
}

/// The resources as the watches tell.
pub(super) struct Stores {
    pub(super) tenants: Store<Tenant>,
    pub(super) plans: Store<Plan>,
    pub(super) applications: Store<Application>,
    pub(super) servers: Store<DatabaseServer>,
    pub(super) pools: Store<Pool>,
    /// Secrets of the operator's namespace.
    pub(super) secrets: Store<Secret>,
    /// ConfigMaps of the operator's namespace.
    pub(super) config_maps: Store<ConfigMap>,
    /// The endpoints of Service `default/kubernetes`.
    pub(super) api_servers: Store<EndpointSlice>,
}

/// What is to be reconciled.
pub(super) struct Queues {
    pub(super) tenants: Queue<Tenant>,
    pub(super) plans: Queue<Plan>,
    pub(super) applications: Queue<Application>,
    pub(super) servers: Queue<DatabaseServer>,
    pub(super) pools: Queue<Pool>,
}

impl Queues {
    /// What stands in each, by kind.
    pub(super) fn backlogs(&self) -> [(&'static str, Backlog); 5] {
        [
            ("Tenant", self.tenants.backlog()),
            ("Plan", self.plans.backlog()),
            ("Application", self.applications.backlog()),
            ("DatabaseServer", self.servers.backlog()),
            ("Pool", self.pools.backlog()),
        ]
    }
}

/// Statuses that were written and that the watches have not brought yet.
#[derive(Default)]
pub(super) struct AllStatuses {
    pub(super) tenants: Statuses<TenantStatus>,
    /// What Tenants' statuses say of usage.
    pub(super) metering: Statuses<TenantMetering>,
    pub(super) plans: Statuses<PlanStatus>,
    pub(super) applications: Statuses<ApplicationStatus>,
    pub(super) servers: Statuses<DatabaseServerStatus>,
    pub(super) pools: Statuses<PoolStatus>,
}

/// What holds for the cluster as a whole.
pub(super) struct Facts {
    /// UID of namespace kube-system: tells one cluster from another.
    pub(super) cluster_id: String,
    /// Whether the cluster serves HTTPRoutes.
    pub(super) http_routes: AtomicBool,
}

/// What more than one controller changes.
#[derive(Default)]
pub(super) struct Shared {
    placements: Mutex<Placements>,
    hosts: Mutex<HostIndex>,
    /// Tenants that wait for a place.
    waiting: Mutex<BTreeSet<String>>,
    /// Namespaces whose Secrets and ConfigMaps are watched.
    namespaces: Mutex<HashMap<String, Watched>>,
    counted: Mutex<HashMap<String, Instant>>,
    /// DatabaseServers that were tried once, whether they answered or not.
    tried: watch::Sender<BTreeSet<String>>,
}

/// A namespace that is watched.
struct Watched {
    begun: Instant,
    /// Whether all that is there is known.
    listed: watch::Receiver<bool>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn placements(&self) -> MutexGuard<'_, Placements> {
        lock(&self.placements)
    }

    pub(super) fn hosts(&self) -> MutexGuard<'_, HostIndex> {
        lock(&self.hosts)
    }

    /// Notes that a DatabaseServer was tried.
    pub(super) fn set_tried(&self, server: &str) {
        self.tried.send_if_modified(|tried| tried.insert(server.to_owned()));
    }

    /// Waits until each of these DatabaseServers was tried once.
    pub(super) async fn all_tried(&self, servers: &[String]) {
        // An error means that the sender is gone, which lives as long as this.
        let _ = self.tried.subscribe().wait_for(|tried| servers.iter().all(|server| tried.contains(server))).await;
    }

    /// Notes that a tenant waits for a place, or no longer does.
    pub(super) fn set_waiting(&self, tenant: &str, waits: bool) {
        let mut waiting = lock(&self.waiting);
        if waits {
            waiting.insert(tenant.to_owned());
        } else {
            waiting.remove(tenant);
        }
    }

    /// The tenants that wait for a place.
    pub(super) fn waiting(&self) -> Vec<String> {
        lock(&self.waiting).iter().cloned().collect()
    }

    /// Watches a namespace from now on, by a task that is told how to say that it knows all that
    /// is there; does nothing where it is watched already.
    pub(super) fn watch_namespace(&self, namespace: &str, spawn: impl FnOnce(watch::Sender<bool>) -> AbortHandle) {
        let mut namespaces = lock(&self.namespaces);
        if !namespaces.contains_key(namespace) {
            let (sender, listed) = watch::channel(false);
            let watched = Watched { begun: Instant::now(), listed, task: spawn(sender) };
            namespaces.insert(namespace.to_owned(), watched);
        }
    }

    /// Whether all that is in a namespace is known.
    pub(super) fn is_listed(&self, namespace: &str) -> bool {
        lock(&self.namespaces).get(namespace).is_some_and(|watched| *watched.listed.borrow())
    }

    /// Waits until all that is in a watched namespace is known, or patience ends.
    pub(super) async fn listed(&self, namespace: &str, patience: Duration) {
        let Some(mut listed) = lock(&self.namespaces).get(namespace).map(|watched| watched.listed.clone()) else {
            return;
        };
        // Who comes too late, or to a watch that was given up, asks `is_listed` what is.
        let _ = tokio::time::timeout(patience, listed.wait_for(|listed| *listed)).await;
    }

    /// Whether a namespace is being listed and that is no matter of concern yet.
    pub(super) fn is_being_listed(&self, namespace: &str) -> bool {
        let namespaces = lock(&self.namespaces);
        namespaces.get(namespace).is_some_and(|watched| !*watched.listed.borrow() && watched.begun.elapsed() < LISTING)
    }

    /// Gives a namespace up.
    pub(super) fn end_namespace(&self, namespace: &str) {
        lock(&self.namespaces).remove(namespace);
    }

    /// Whether a count may be written now, or in how long.
    pub(super) fn may_count(&self, object: &str) -> Result<(), Duration> {
        let mut counted = lock(&self.counted);
        let now = Instant::now();
        match counted.get(object) {
            Some(last) if now.duration_since(*last) < COUNT_INTERVAL => Err(COUNT_INTERVAL - now.duration_since(*last)),
            _ => {
                counted.insert(object.to_owned(), now);
                Ok(())
            }
        }
    }
}

impl World {
    /// Ready when the operator is asked to end.
    pub(super) fn stopping(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stop = self.stop.clone();
        async move {
            // Without its sender nobody can ask any more, and nobody is there to run for.
            let _ = stop.wait_for(|stop| *stop).await;
        }
    }

    pub(super) fn plan(&self, name: &str) -> Option<Arc<Plan>> {
        self.stores.plans.get(&ObjectRef::new(name))
    }

    pub(super) fn application(&self, name: &str) -> Option<Arc<Application>> {
        self.stores.applications.get(&ObjectRef::new(name))
    }

    pub(super) fn pool(&self, name: &str) -> Option<Arc<Pool>> {
        self.stores.pools.get(&ObjectRef::new(name))
    }

    /// Where the API server is reached: the addresses behind Service `default/kubernetes`.
    pub(super) fn api_server(&self) -> Vec<(IpAddr, u16)> {
        let mut found = BTreeSet::new();
        for slice in self.stores.api_servers.state() {
            for port in slice.ports.iter().flatten().filter_map(|port| u16::try_from(port.port?).ok()) {
                let addresses = slice.endpoints.iter().flatten().flat_map(|endpoint| endpoint.addresses.iter());
                found.extend(addresses.filter_map(|address| Some((address.parse::<IpAddr>().ok()?, port))));
            }
        }
        found.into_iter().collect()
    }

    /// A Secret of the operator's namespace.
    pub(super) fn secret(&self, name: &str) -> Option<Arc<Secret>> {
        self.stores.secrets.get(&ObjectRef::new(name).within(&self.args.namespace))
    }

    /// A ConfigMap of the operator's namespace.
    pub(super) fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>> {
        self.stores.config_maps.get(&ObjectRef::new(name).within(&self.args.namespace))
    }

    /// Whether the cluster serves HTTPRoutes.
    pub(super) fn serves_http_routes(&self) -> bool {
        self.facts.http_routes.load(Ordering::Relaxed)
    }

    /// Looks again at every tenant that waits for a place.
    pub(super) fn push_waiting(&self) {
        for tenant in self.shared.waiting() {
            self.queues.tenants.push(&tenant);
        }
    }

    /// Looks again at every tenant that `matches`.
    pub(super) fn push_tenants(&self, matches: impl Fn(&Tenant) -> bool) {
        for tenant in self.stores.tenants.state().iter().filter(|tenant| matches(tenant)) {
            self.queues.tenants.push(tenant.metadata.name.as_deref().unwrap_or_default());
        }
    }

    /// Looks again at every pool that `matches`.
    pub(super) fn push_pools(&self, matches: impl Fn(&Pool) -> bool) {
        for pool in self.stores.pools.state().iter().filter(|pool| matches(pool)) {
            self.queues.pools.push(pool.metadata.name.as_deref().unwrap_or_default());
        }
    }

    /// How many tenants there are that `matches`.
    pub(super) fn count_tenants(&self, matches: impl Fn(&Tenant) -> bool) -> i64 {
        i64::try_from(self.stores.tenants.state().iter().filter(|tenant| matches(tenant)).count()).unwrap_or(i64::MAX)
    }
}

impl Catalog for World {
    fn server(&self, name: &str) -> Option<Arc<DatabaseServer>> {
        self.stores.servers.get(&ObjectRef::new(name))
    }

    fn has_plan(&self, name: &str) -> bool {
        self.plan(name).is_some()
    }

    fn domains(&self) -> Vec<(String, String)> {
        let applications = self.stores.applications.state();
        let domain = |application: &Arc<Application>| {
            let route = application.spec.route.as_ref()?;
            Some((application.metadata.name.clone()?, naming::application_domain(route).to_owned()))
        };
        applications.iter().filter_map(domain).collect()
    }
}
