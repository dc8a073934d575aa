//! The operator: watches the group's resources and brings cluster and databases to what
//! they say.

mod application;
mod bulkheads;
mod changes;
mod conditions;
mod connection;
mod databases;
mod failure;
mod limits;
mod maintenance;
mod metrics;
mod migrations;
mod namespaces;
mod objects;
mod placements;
mod plan;
mod pool;
mod queue;
mod retire;
mod rollout;
mod routes;
mod server;
mod settings;
mod state;
mod streams;
mod tenant;
mod workload;
mod world;

pub use connection::server_config;
pub use settings::OperatorArgs;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, Resource, ResourceExt as _, runtime::reflector};
use tracing::info;

use self::{
    bulkheads::Bulkheads,
    databases::Databases,
    failure::Backoff,
    metrics::Metrics,
    migrations::MigrationRuns,
    queue::Queue,
    rollout::Rollouts,
    streams::Writers,
    workload::Looks,
    world::{AllStatuses, Facts, Queues, Shared, Stores, World},
};
use crate::{
    api::ANNOTATION_PAUSED,
    cluster::{Children, Cluster},
};

/// How many objects of each resource but Tenant are reconciled at a time.
const FEW: u16 = 16;

/// How long a start waits for servers that don't answer.
const FIRST_CONTACT: Duration = Duration::from_secs(5);

/// A running operator, as its health and metrics are asked.
#[derive(Clone)]
pub struct Operator {
    world: Arc<World>,
    synced: Arc<AtomicBool>,
}

impl Operator {
    /// Whether everything that is there is known, so that reconciles run.
    pub fn is_ready(&self) -> bool {
        self.synced.load(std::sync::atomic::Ordering::Acquire)
    }

    /// The operator's metrics in the Prometheus text format.
    pub fn metrics(&self) -> String {
        for (name, connected) in self.world.databases.all() {
            self.world.metrics.server(&name, &connected.server.statistics(), self.world.bulkheads.taken(&name));
        }
        self.world.metrics.text()
    }
}

/// Starts the operator; the future that is returned with it runs it until it is dropped.
///
/// # Errors
/// When the cluster can't be asked who it is.
pub async fn start(args: OperatorArgs, client: Client) -> anyhow::Result<(Operator, impl Future<Output = ()>)> {
    let facts = facts(&client).await?;
    info!(cluster = facts.cluster_id, "starting");
    let (tenants, tenants_writer) = reflector::store();
    let (plans, plans_writer) = reflector::store();
    let (applications, applications_writer) = reflector::store();
    let (servers, servers_writer) = reflector::store();
    let (pools, pools_writer) = reflector::store();
    let (secrets, secrets_writer) = reflector::store();
    let (config_maps, config_maps_writer) = reflector::store();
    let (api_servers, api_servers_writer) = reflector::store();
    let (tenant_queue, tenant_requests) = Queue::new();
    let (plan_queue, plan_requests) = Queue::new();
    let (application_queue, application_requests) = Queue::new();
    let (server_queue, server_requests) = Queue::new();
    let (pool_queue, pool_requests) = Queue::new();
    let world = Arc::new(World {
        settings: args.desired(),
        cluster: Cluster::new(client, Arc::new(Children::new(state::extract))),
        facts,
        stores: Stores { tenants, plans, applications, servers, pools, secrets, config_maps, api_servers },
        queues: Queues {
            tenants: tenant_queue,
            plans: plan_queue,
            applications: application_queue,
            servers: server_queue,
            pools: pool_queue,
        },
        statuses: AllStatuses::default(),
        databases: Databases::default(),
        bulkheads: Bulkheads::default(),
        shared: Shared::default(),
        migrations: MigrationRuns::new(args.migration_concurrency),
        rollouts: Rollouts::default(),
        looks: Looks::default(),
        backoff: Backoff::default(),
        metrics: Metrics::new(),
        args,
    });
    let writers = Writers {
        tenants: tenants_writer,
        plans: plans_writer,
        applications: applications_writer,
        servers: servers_writer,
        pools: pools_writer,
        secrets: secrets_writer,
        config_maps: config_maps_writer,
        api_servers: api_servers_writer,
    };
    let operator = Operator { world: Arc::clone(&world), synced: Arc::default() };
    let synced = Arc::clone(&operator.synced);
    let running = async move {
        streams::start(&world, writers).await;
        synced.store(true, std::sync::atomic::Ordering::Release);
        info!("all resources are known");
        let concurrency = world.args.concurrency;
        let stores = &world.stores;
        let rest = async {
            // What a server says decides about its pools and tenants: it is asked first, so that
            // nothing is written that the next moment takes back.
            let servers: Vec<_> = stores.servers.state().iter().map(|server| server.name_any()).collect();
            // One that doesn't answer holds nobody up for long.
            let _ = tokio::time::timeout(FIRST_CONTACT, world.shared.all_tried(&servers)).await;
            tokio::join!(
                queue::work(Arc::clone(&world), stores.plans.clone(), plan_requests, FEW, plan::reconcile),
                queue::work(
                    Arc::clone(&world),
                    stores.applications.clone(),
                    application_requests,
                    FEW,
                    application::reconcile
                ),
                queue::work(Arc::clone(&world), stores.pools.clone(), pool_requests, FEW, pool::reconcile),
                queue::work(
                    Arc::clone(&world),
                    stores.tenants.clone(),
                    tenant_requests,
                    concurrency,
                    tenant::reconcile
                ),
            )
        };
        tokio::join!(
            queue::work(Arc::clone(&world), stores.servers.clone(), server_requests, FEW, server::reconcile),
            rest,
        );
    };
    Ok((operator, running))
}

async fn facts(client: &Client) -> anyhow::Result<Facts> {
    let system = Api::<Namespace>::all(client.clone()).get_metadata("kube-system").await;
    let system = system.context("read namespace kube-system, whose UID tells this cluster from others")?;
    Ok(Facts {
        cluster_id: system.metadata.uid.context("namespace kube-system has no UID")?,
        http_routes: AtomicBool::new(false),
    })
}

/// Whether somebody asked that nothing be written for this object.
fn is_paused<K: Resource>(object: &K) -> bool {
    object.annotations().get(ANNOTATION_PAUSED).is_some_and(|value| value == "true")
}

/// In how long a status may be written of which only counts changed: they change with every
/// tenant, and nobody needs each step.
fn count_only<K: Resource<DynamicType = ()>>(world: &World, object: &K, only_counts: bool) -> Option<Duration> {
    if !only_counts {
        return None;
    }
    world.shared.may_count(&format!("{}/{}", K::kind(&()), object.name_any())).err()
}
