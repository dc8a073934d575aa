//! The operator: watches the group's resources and brings cluster and databases to what
//! they say.

mod api_ca;
mod application;
mod bulkheads;
mod changes;
mod conditions;
mod connection;
mod counting;
mod databases;
mod definitions;
mod events;
mod failure;
mod health;
mod leader;
mod limits;
mod maintenance;
mod metering;
mod metrics;
mod migrations;
mod namespaces;
mod objects;
mod overdue;
mod patience;
mod placements;
mod plan;
mod pool;
mod process;
mod queue;
mod relay;
mod retire;
mod rollout;
mod routes;
mod server;
mod settings;
mod slots;
mod state;
mod streams;
mod tenant;
mod unsent;
mod usage;
mod workload;
mod world;

pub use connection::server_config;
pub use settings::OperatorArgs;
pub use usage::{closed_usage, current_usage};

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures::channel::mpsc::UnboundedReceiver;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config, Resource, ResourceExt as _,
    runtime::reflector::{self, ObjectRef},
};
use tokio::sync::watch;
use tracing::info;

use self::{
    api_ca::ApiCa,
    bulkheads::Bulkheads,
    databases::Databases,
    events::Events,
    failure::Backoff,
    health::{Health, Phase, Progress, Signs},
    metrics::{Metrics, Observation},
    migrations::MigrationRuns,
    queue::{Backlog, Queue, Work},
    rollout::Rollouts,
    streams::Writers,
    usage::UsageWork,
    workload::Looks,
    world::{AllStatuses, Facts, Queues, Shared, Stores, World},
};
use crate::{
    api::{ANNOTATION_PAUSED, Application, ConditionType, DatabaseServer, Plan, Pool, Tenant, find_condition},
    cluster::{self, Calls, Children, Cluster, Watches},
    metering::{counts::Counts, judge::Window, ledger::Ledger, usage::Patience},
    term::Term,
};

/// How many objects of each resource but Tenant are reconciled at a time.
const FEW: u16 = 16;

/// How often what is known of children is tidied up.
const TIDY: Duration = Duration::from_secs(60);

/// How long a start waits for servers that don't answer.
const FIRST_CONTACT: Duration = Duration::from_secs(5);

/// A running operator, as its health and metrics are asked.
#[derive(Clone)]
pub struct Operator {
    world: Arc<World>,
    /// Standbys take usage events too: what asks whose a token is needs no term.
    any_term: Client,
}

/// What the metering API needs of the operator.
pub struct Metering {
    /// Where events are kept.
    pub ledger: Ledger,
    /// By which tokens are reviewed.
    pub client: Client,
    /// What is counted.
    pub counts: Counts,
    /// How far an event's time may be from now.
    pub window: Window,
    /// How long usage may be on its way until that is said.
    pub patience: Patience,
}

impl Operator {
    /// Whether the operator is ready: to take over, or, where it leads, at work.
    ///
    /// # Errors
    /// Why it is not, and what to do about it.
    pub fn readiness(&self) -> Result<&'static str, String> {
        let world = &self.world;
        let in_phase = world.health.in_phase();
        let progress = |(kind, backlog): (&'static str, Backlog)| {
            Some(Progress { kind, oldest: backlog.oldest?, idle: backlog.idle.min(in_phase) })
        };
        health::judge(&Signs {
            phase: world.health.phase(),
            definitions: world.definitions.fault(),
            dead_watch: world.watches.dead(Instant::now(), health::WATCH_PATIENCE),
            queues: world.queues.backlogs().into_iter().filter_map(progress).collect(),
            deadline: world.args.reconcile_deadline,
        })
    }

    /// The operator's metrics in the OpenMetrics text format.
    pub fn metrics(&self) -> String {
        let world = &self.world;
        let is_current = world.term.is_current();
        let leads = is_current && matches!(world.health.phase(), Phase::Learning | Phase::Reconciling);
        // While not all are known, less is better than a wrong number.
        let knows = is_current && world.health.phase() == Phase::Reconciling;
        let (tenants, away) = if knows { (self.tenants(), server::away(world)) } else { Default::default() };
        let queues = world.queues.backlogs().into_iter();
        let servers = world.databases.all().into_iter();
        world.metrics.text(Observation {
            leads,
            term: world.term.number(),
            definitions_current: world.definitions.fault().is_none(),
            queues: queues.map(|(kind, backlog)| (kind, backlog.depth, backlog.oldest.unwrap_or_default())).collect(),
            servers: servers
                .map(|(name, connected)| {
                    let running = world.bulkheads.taken(&name);
                    (name, connected.server.statistics(), running)
                })
                .collect(),
            away,
            tenants,
            undelivered: world.usage.as_ref().filter(|_| knows).map(|it| it.undelivered(world)).unwrap_or_default(),
            drifts: world.usage.as_ref().filter(|_| knows).map(UsageWork::drifts).unwrap_or_default(),
        })
    }

    /// What the metering API needs, where there is a ledger.
    pub fn metering(&self) -> Option<Metering> {
        Some(Metering {
            ledger: self.world.ledger.clone()?,
            client: self.any_term.clone(),
            counts: self.world.metrics.metering(),
            window: self.world.args.window(),
            patience: self.world.args.usage_patience.arrival(),
        })
    }

    /// How many Tenants there are, by tier and by what their condition Ready says.
    fn tenants(&self) -> BTreeMap<(String, String), usize> {
        let mut tenants = metrics::no_tenants();
        for tenant in self.world.stores.tenants.state() {
            let status = tenant.status.as_ref();
            let tier = status.and_then(|status| status.tier).map_or_else(|| "none".to_owned(), |tier| tier.to_string());
            let ready = status.and_then(|status| find_condition(&status.conditions, ConditionType::Ready));
            let ready = ready.map_or_else(|| "Unknown".to_owned(), |ready| ready.status.clone());
            *tenants.entry((tier, ready)).or_insert(0) += 1;
        }
        tenants
    }
}

/// Prepares the operator; the future that is returned with it runs it until it was asked to
/// end by `stop`, and then for as long as what is under way takes, within the grace for that.
/// Until it leads, it only waits for that.
///
/// # Errors
/// When flags don't fit together, or the cluster can't be asked who it is. Of the future: when
/// it no longer leads; the process must end at once then.
pub async fn start(
    args: OperatorArgs,
    config: Config,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<(Operator, impl Future<Output = anyhow::Result<()>>)> {
    let lease = args.lease()?;
    let ledger = args.ledger()?;
    // Without a ledger there are neither API nor relays.
    let api_ca = ledger.as_ref().and(args.api_ca.clone()).map(ApiCa::load).transpose()?;
    let term = if lease.is_some() { Term::of_standby() } else { Term::unlimited() };
    let calls = Calls::default();
    let client = |term: Option<Term>| {
        cluster::client(config.clone(), args.api_timeout, term, &calls).context("prepare a client")
    };
    let instance = lease.as_ref().map_or_else(|| "tenantry".to_owned(), |lease| lease.identity.clone());
    let lease = lease.map(|lease| anyhow::Ok((client(None)?, lease))).transpose()?;
    let any_term = client(None)?;
    let client = client(Some(term.clone()))?;
    let facts = facts(&client).await?;
    info!(version = env!("CARGO_PKG_VERSION"), cluster = facts.cluster_id, "starting");
    let (stopping, stop_asked) = watch::channel(false);
    tokio::spawn(async move {
        stop.await;
        // An error means that there is nobody left to tell.
        let _ = stopping.send(true);
        // Without a sender, whoever waits would take it for the end.
        stopping.closed().await;
    });
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
    let watches = Watches::default();
    let metrics = Metrics::new(calls, &watches);
    if let Some(ledger) = ledger.clone() {
        tokio::spawn(metering::look(ledger, metrics.metering()));
    }
    let (events, lines) = Events::new(metrics.events());
    tokio::spawn(events::send(client.clone(), instance, lines, metrics.events()));
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
        ledger: ledger.clone(),
        api_ca,
        bulkheads: Bulkheads::default(),
        shared: Shared::default(),
        migrations: MigrationRuns::default(),
        rollouts: Rollouts::default(),
        looks: Looks::default(),
        backoff: Backoff::default(),
        metrics,
        usage: ledger.map(|ledger| UsageWork::new(ledger, args.usage_patience)),
        watches,
        events,
        definitions: Arc::default(),
        health: Health::default(),
        term,
        stop: stop_asked,
        args,
    });
    tokio::spawn(api_ca::keep(Arc::clone(&world)));
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
    let requests = Requests {
        tenants: tenant_requests,
        plans: plan_requests,
        applications: application_requests,
        servers: server_requests,
        pools: pool_requests,
    };
    let operator = Operator { world: Arc::clone(&world), any_term };
    let running = async move { leader::run(&world, lease, || work(&world, writers, requests)).await };
    Ok((operator, running))
}

/// What comes out of the queues.
struct Requests {
    tenants: UnboundedReceiver<ObjectRef<Tenant>>,
    plans: UnboundedReceiver<ObjectRef<Plan>>,
    applications: UnboundedReceiver<ObjectRef<Application>>,
    servers: UnboundedReceiver<ObjectRef<DatabaseServer>>,
    pools: UnboundedReceiver<ObjectRef<Pool>>,
}

/// Learns what is there and reconciles it, until the operator is asked to end.
async fn work(world: &Arc<World>, writers: Writers, requests: Requests) {
    tokio::select! {
        () = streams::start(world, writers) => {}
        () = world.stopping() => return,
    }
    world.health.set_phase(Phase::Reconciling);
    info!("all resources are known");
    let stores = &world.stores;
    let servers = queue::work(
        Arc::clone(world),
        Work {
            store: stores.servers.clone(),
            requests: requests.servers,
            queue: |world| &world.queues.servers,
            statuses: |world| &world.statuses.servers,
            concurrency: FEW,
            reconcile: server::reconcile,
        },
    );
    let rest = async {
        // What a server says decides about its pools and tenants: it is asked first, so that
        // nothing is written that the next moment takes back.
        let all: Vec<_> = stores.servers.state().iter().map(|server| server.name_any()).collect();
        // One that doesn't answer holds nobody up for long.
        let _ = tokio::time::timeout(FIRST_CONTACT, world.shared.all_tried(&all)).await;
        let plans = Work {
            store: stores.plans.clone(),
            requests: requests.plans,
            queue: |world| &world.queues.plans,
            statuses: |world| &world.statuses.plans,
            concurrency: FEW,
            reconcile: plan::reconcile,
        };
        let applications = Work {
            store: stores.applications.clone(),
            requests: requests.applications,
            queue: |world| &world.queues.applications,
            statuses: |world| &world.statuses.applications,
            concurrency: FEW,
            reconcile: application::reconcile,
        };
        let pools = Work {
            store: stores.pools.clone(),
            requests: requests.pools,
            queue: |world| &world.queues.pools,
            statuses: |world| &world.statuses.pools,
            concurrency: FEW,
            reconcile: pool::reconcile,
        };
        let tenants = Work {
            store: stores.tenants.clone(),
            requests: requests.tenants,
            queue: |world| &world.queues.tenants,
            statuses: |world| &world.statuses.tenants,
            concurrency: world.args.concurrency,
            reconcile: tenant::reconcile,
        };
        tokio::join!(
            queue::work(Arc::clone(world), plans),
            queue::work(Arc::clone(world), applications),
            queue::work(Arc::clone(world), pools),
            queue::work(Arc::clone(world), tenants),
        )
    };
    tokio::select! {
        _ = async { tokio::join!(servers, rest, Box::pin(usage::run(world))) } => {}
        () = tidy(world) => {}
    }
}

/// Gives back from time to time what nobody needs any more; never ends.
async fn tidy(world: &World) {
    let children = world.cluster.shared_children();
    loop {
        tokio::time::sleep(TIDY).await;
        children.tidy();
    }
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
