//! From changes to reconciles: who has to be looked at when something changes.

use std::{collections::BTreeSet, future::Future, sync::Arc};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Secret},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DynamicObject, PartialObjectMeta},
    runtime::{
        reflector::store::Writer,
        watcher::{self, Event},
    },
};
use tokio::sync::mpsc;

use super::{namespaces::push_owner, tenant, world::World};
use crate::{
    api::{Application, ConditionType, DatabaseServer, Plan, Pool, Tenant, find_condition},
    cluster::{Change, api_resource, events, reflect, watch_children},
    desired::{Kind, hosts::Claim, naming},
};

/// The kinds of ours that are watched in the whole cluster. Secrets and ConfigMaps are
/// watched by namespace, HTTPRoutes once the cluster serves them, ControllerRevisions in the
/// operator's namespace.
const KINDS: [Kind; 10] = [
    Kind::Namespace,
    Kind::RoleBinding,
    Kind::ServiceAccount,
    Kind::ResourceQuota,
    Kind::NetworkPolicy,
    Kind::Service,
    Kind::PodDisruptionBudget,
    Kind::HorizontalPodAutoscaler,
    Kind::Deployment,
    Kind::Ingress,
];

/// The definition whose presence says that the cluster serves HTTPRoutes.
const HTTP_ROUTES: &str = "httproutes.gateway.networking.k8s.io";

/// How many tenants a second are told that their pool serves, or no longer serves.
const OUTAGE_RATE: u32 = 50;

/// The writing ends of the stores.
pub(super) struct Writers {
    pub(super) tenants: Writer<Tenant>,
    pub(super) plans: Writer<Plan>,
    pub(super) applications: Writer<Application>,
    pub(super) servers: Writer<DatabaseServer>,
    pub(super) pools: Writer<Pool>,
    pub(super) secrets: Writer<Secret>,
    pub(super) config_maps: Writer<ConfigMap>,
}

/// Starts every watch. Returns once all that is there is known.
pub(super) async fn start(world: &Arc<World>, writers: Writers) {
    let Writers { tenants, plans, applications, servers, pools, secrets, config_maps } = writers;
    let client = world.cluster.client().clone();
    let own = |client: &kube::Client| (client.clone(), world.args.namespace.clone());
    let outages = start_outages(world);
    spawn_reflect(world, Api::all(client.clone()), plans, plan_changed);
    spawn_reflect(world, Api::all(client.clone()), applications, application_changed);
    spawn_reflect(world, Api::all(client.clone()), servers, server_changed);
    spawn_reflect(world, Api::all(client.clone()), pools, move |world, change| pool_changed(world, change, &outages));
    let (client_of, namespace) = own(&client);
    spawn_reflect(world, Api::namespaced(client_of, &namespace), secrets, |world, change: &Change<Secret>| {
        secret_changed(world, &name_of(change));
    });
    let (client_of, namespace) = own(&client);
    spawn_reflect(world, Api::namespaced(client_of, &namespace), config_maps, |world, change: &Change<ConfigMap>| {
        config_map_changed(world, &name_of(change));
    });
    let stores = &world.stores;
    // An error means that a watch's task ended, which none does.
    let _ = tokio::join!(
        stores.plans.wait_until_ready(),
        stores.applications.wait_until_ready(),
        stores.servers.wait_until_ready(),
        stores.pools.wait_until_ready(),
        stores.secrets.wait_until_ready(),
        stores.config_maps.wait_until_ready(),
    );
    // Tenants last: what they refer to is known by then.
    spawn_reflect(world, Api::all(client.clone()), tenants, tenant_changed);
    let _ = world.stores.tenants.wait_until_ready().await;
    let mut lists: Vec<_> = KINDS.iter().map(|kind| spawn_children(world, *kind, None)).collect();
    lists.push(spawn_children(world, Kind::ControllerRevision, Some(world.args.namespace.clone())));
    spawn_foreign(world, Kind::Ingress);
    lists.push(spawn_http_routes(world));
    for mut list in lists {
        let _ = list.recv().await;
    }
    for pool in world.stores.pools.state() {
        let namespace = pool.status.as_ref().and_then(|status| status.namespace.clone());
        if let Some(namespace) = namespace {
            super::namespaces::watch(world, &namespace);
        }
    }
}

fn spawn_reflect<K>(
    world: &Arc<World>,
    api: Api<K>,
    writer: Writer<K>,
    changed: impl Fn(&Arc<World>, &Change<K>) + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let world = Arc::clone(world);
    tokio::spawn(reflect(api, watcher::Config::default(), writer, move |change| changed(&world, &change)));
}

/// Watches our objects of a kind; the receiver gets a word when they were listed.
fn spawn_children(world: &Arc<World>, kind: Kind, namespace: Option<String>) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(children(Arc::clone(world), kind, namespace, sender));
    receiver
}

fn children(
    world: Arc<World>,
    kind: Kind,
    namespace: Option<String>,
    listed: mpsc::Sender<()>,
) -> impl Future<Output = ()> + Send {
    let tell = Arc::clone(&world);
    watch_children(
        world.cluster.client().clone(),
        kind,
        namespace,
        world.cluster.shared_children(),
        move |owner| push_owner(&tell, &owner),
        move || {
            // Nobody waits for a second list.
            let _ = listed.try_send(());
        },
    )
}

/// Watches HTTPRoutes as long as the cluster serves them.
fn spawn_http_routes(world: &Arc<World>) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(world.cluster.client().clone());
        let config = watcher::Config::default().fields(&format!("metadata.name={HTTP_ROUTES}"));
        let mut definitions = events(api, config, "CustomResourceDefinition".into());
        let mut watches: Vec<tokio::task::JoinHandle<()>> = Vec::new();
        let mut present = false;
        while let Some(event) = futures::StreamExt::next(&mut definitions).await {
            let served = match event {
                Event::Init => {
                    present = false;
                    continue;
                }
                Event::InitApply(_) | Event::Apply(_) => {
                    present = true;
                    present
                }
                Event::InitDone => present,
                Event::Delete(_) => {
                    present = false;
                    present
                }
            };
            let before = world.serves_http_routes();
            if served && !before {
                let (listed, mut done) = mpsc::channel(1);
                watches.push(tokio::spawn(children(Arc::clone(&world), Kind::HttpRoute, None, listed)));
                watches.push(spawn_foreign(&world, Kind::HttpRoute));
                // The definition may be there a moment before it is served; the watch goes on trying.
                let _ = done.recv().await;
            } else if !served && before {
                watches.drain(..).for_each(|watch| watch.abort());
            }
            if served != before {
                world.facts.http_routes.store(served, std::sync::atomic::Ordering::Relaxed);
                for application in world.stores.applications.state() {
                    world.queues.applications.push(&application.name_any());
                }
                world.push_tenants(|_| true);
            }
            let _ = sender.try_send(());
        }
    });
    receiver
}

/// Watches routes that are not ours, for their hosts.
fn spawn_foreign(world: &Arc<World>, kind: Kind) -> tokio::task::JoinHandle<()> {
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let api: Api<DynamicObject> = Api::all_with(world.cluster.client().clone(), &api_resource(kind));
        let selector = format!("{}!={}", crate::api::LABEL_MANAGED_BY, crate::api::MANAGED_BY);
        let mut routes = events(api, watcher::Config::default().labels(&selector), kind.to_string());
        let mut listed = BTreeSet::new();
        let mut known = BTreeSet::new();
        while let Some(event) = futures::StreamExt::next(&mut routes).await {
            let (name, hosts) = match event {
                Event::Init => {
                    listed.clear();
                    continue;
                }
                Event::InitDone => {
                    let gone: Vec<String> = known.difference(&listed).cloned().collect();
                    for name in gone {
                        known.remove(&name);
                        push_all(&world, world.shared.hosts().set_foreign(&name, BTreeSet::new()));
                    }
                    continue;
                }
                Event::InitApply(route) => {
                    let name = foreign_name(kind, &route);
                    listed.insert(name.clone());
                    (name, foreign_hosts(kind, &route))
                }
                Event::Apply(route) => (foreign_name(kind, &route), foreign_hosts(kind, &route)),
                Event::Delete(route) => (foreign_name(kind, &route), BTreeSet::new()),
            };
            known.insert(name.clone());
            push_all(&world, world.shared.hosts().set_foreign(&name, hosts));
        }
    })
}

fn foreign_name(kind: Kind, route: &DynamicObject) -> String {
    format!("{kind} {}/{}", route.namespace().unwrap_or_default(), route.name_any())
}

fn foreign_hosts(kind: Kind, route: &DynamicObject) -> BTreeSet<String> {
    let hosts: Vec<&serde_json::Value> = match kind {
        Kind::Ingress => {
            route.data["spec"]["rules"].as_array().into_iter().flatten().map(|rule| &rule["host"]).collect()
        }
        _ => route.data["spec"]["hostnames"].as_array().into_iter().flatten().collect(),
    };
    hosts.into_iter().filter_map(|host| host.as_str().map(str::to_owned)).collect()
}

fn push_all(world: &World, tenants: BTreeSet<String>) {
    for tenant in tenants {
        world.queues.tenants.push(&tenant);
    }
}

/// What of an object's metadata concerns a controller.
fn concern(meta: &ObjectMeta) -> (Option<i64>, bool, Vec<&String>, Vec<(&String, &String)>) {
    (
        meta.generation,
        meta.deletion_timestamp.is_some(),
        meta.finalizers.iter().flatten().collect(),
        meta.annotations.iter().flatten().collect(),
    )
}

/// Whether anything but the status changed.
fn is_significant<K: Resource>(change: &Change<K>) -> bool {
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => old.meta().uid != new.meta().uid || concern(old.meta()) != concern(new.meta()),
        _ => true,
    }
}

fn name_of<K: Resource>(change: &Change<K>) -> String {
    change.new.as_ref().or(change.old.as_ref()).map(|object| object.name_any()).unwrap_or_default()
}

fn tenant_changed(world: &Arc<World>, change: &Change<Tenant>) {
    let name = name_of(change);
    let uid = |tenant: &Tenant| tenant.metadata.uid.clone().unwrap_or_default();
    match &change.new {
        Some(new) => {
            if let Some(pool) = new.status.as_ref().and_then(|status| status.pool.as_deref()) {
                world.shared.placements().place(&uid(new), pool);
            }
            if let Some(old) = change.old.as_ref().filter(|old| uid(old) != uid(new)) {
                world.shared.placements().release(&uid(old));
            }
            claim_hosts(world, new);
        }
        None => {
            if let Some(old) = &change.old {
                world.shared.placements().release(&uid(old));
                world.statuses.tenants.forget(&uid(old));
            }
            world.shared.set_waiting(&name, false);
            let affected = world.shared.hosts().remove_claim(&name);
            push_all(world, affected);
            world.push_waiting();
        }
    }
    if change.new.is_some() && (is_significant(change) || lost_its_place(change)) {
        world.queues.tenants.push(&name);
    }
    let (old, new) = (change.old.as_deref(), change.new.as_deref());
    count(old, new, |tenant| Some(tenant.spec.plan.clone()), |plan| world.queues.plans.push(plan));
    count(
        old,
        new,
        |tenant| Some(tenant.spec.application.clone()),
        |application| world.queues.applications.push(application),
    );
    count(old, new, |tenant| tenant.status.as_ref()?.pool.clone(), |pool| world.queues.pools.push(pool));
    count(
        old,
        new,
        |tenant| Some(tenant.status.as_ref()?.database.as_ref()?.server.clone()),
        |server| {
            world.queues.servers.push(server);
        },
    );
}

/// Whether somebody took a tenant's status away.
fn lost_its_place(change: &Change<Tenant>) -> bool {
    let placed = |tenant: &Arc<Tenant>| tenant.status.as_ref().is_some_and(|status| status.pool.is_some());
    change.old.as_ref().is_some_and(placed) && !change.new.as_ref().is_some_and(placed)
}

/// Tells `push` of what a tenant is counted by: before and after, where that differs.
fn count(old: Option<&Tenant>, new: Option<&Tenant>, of: impl Fn(&Tenant) -> Option<String>, push: impl Fn(&str)) {
    let (old, new) = (old.and_then(&of), new.and_then(&of));
    if old != new {
        old.iter().chain(new.iter()).for_each(|name| push(name));
    }
}

/// Takes note of the hosts that a tenant asks for. Those that its live route has are served
/// already, and stay its own when a foreign route names them.
fn claim_hosts(world: &Arc<World>, tenant: &Tenant) {
    let name = tenant.name_any();
    let route = world.application(&tenant.spec.application).and_then(|application| application.spec.route.clone());
    let hosts = naming::tenant_hosts(route.as_ref(), &name, tenant.spec.hosts.as_deref().unwrap_or_default());
    let created = tenant.metadata.creation_timestamp.as_ref().map(|time| time.0).unwrap_or_default();
    let routed =
        tenant.status.as_ref().and_then(|status| find_condition(&status.conditions, ConditionType::RouteReady));
    let serving = match routed {
        Some(condition) if condition.status == "True" => hosts.iter().cloned().collect(),
        _ => BTreeSet::new(),
    };
    let affected = world.shared.hosts().set_claim(Claim { tenant: name, created, hosts, serving });
    push_all(world, affected);
}

fn plan_changed(world: &Arc<World>, change: &Change<Plan>) {
    if is_significant(change) {
        let name = name_of(change);
        world.queues.plans.push(&name);
        world.push_tenants(|tenant| tenant.spec.plan == name);
    }
}

fn application_changed(world: &Arc<World>, change: &Change<Application>) {
    if !is_significant(change) {
        return;
    }
    let name = name_of(change);
    world.queues.applications.push(&name);
    world.push_pools(|pool| pool.spec.application == name);
    for tenant in world.stores.tenants.state().iter().filter(|tenant| tenant.spec.application == name) {
        claim_hosts(world, tenant);
        world.queues.tenants.push(&tenant.name_any());
    }
}

fn server_changed(world: &Arc<World>, change: &Change<DatabaseServer>) {
    let name = name_of(change);
    let reachable = |server: Option<&Arc<DatabaseServer>>| {
        let conditions = &server?.status.as_ref()?.conditions;
        find_condition(conditions, ConditionType::Reachable).map(|condition| condition.status.clone())
    };
    let significant = is_significant(change);
    if significant {
        world.queues.servers.push(&name);
        world.push_waiting();
        for application in world.stores.applications.state() {
            world.queues.applications.push(&application.name_any());
        }
        world.push_tenants(|tenant| tenant.status.as_ref().is_none_or(|status| status.pool.is_none()));
    }
    if significant || reachable(change.old.as_ref()) != reachable(change.new.as_ref()) {
        world.push_pools(|pool| pool.spec.server == name);
    }
}

/// Tells a pool's tenants that it serves, or no longer does, at a bounded rate.
fn start_outages(world: &Arc<World>) -> mpsc::UnboundedSender<String> {
    let (sender, mut receiver) = mpsc::unbounded_channel::<String>();
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(std::time::Duration::from_secs(1) / OUTAGE_RATE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while let Some(tenant) = receiver.recv().await {
            ticks.tick().await;
            world.queues.tenants.push(&tenant);
        }
    });
    sender
}

fn pool_changed(world: &Arc<World>, change: &Change<Pool>, outages: &mpsc::UnboundedSender<String>) {
    let name = name_of(change);
    world.shared.placements().arrived(&name);
    let significant = is_significant(change);
    if significant {
        world.queues.pools.push(&name);
        world.push_waiting();
        for pool in change.new.iter().chain(change.old.iter()) {
            world.queues.applications.push(&pool.spec.application);
            world.queues.servers.push(&pool.spec.server);
        }
    }
    let takes = |pool: Option<&Arc<Pool>>| pool.is_some_and(|pool| super::pool::takes_tenants(pool));
    let available = |pool: Option<&Arc<Pool>>| {
        let conditions = &pool?.status.as_ref()?.conditions;
        find_condition(conditions, ConditionType::Available)
            .map(|condition| (condition.status.clone(), condition.message.clone()))
    };
    let in_pool = |tenant: &Tenant| tenant::pool_of(tenant, world).as_deref() == Some(name.as_str());
    let (old, new) = (change.old.as_ref(), change.new.as_ref());
    if !takes(old) && takes(new) {
        world.push_tenants(in_pool);
    } else if available(old) != available(new) {
        for tenant in world.stores.tenants.state().iter().filter(|tenant| in_pool(tenant)) {
            // The receiver lives as long as the world.
            let _ = outages.send(tenant.name_any());
        }
    }
}

fn secret_changed(world: &Arc<World>, name: &str) {
    for server in world.stores.servers.state() {
        let ca = server.spec.tls.as_ref().and_then(|tls| tls.ca_secret.as_ref());
        if server.spec.admin.credentials_secret.name == name || ca.is_some_and(|reference| reference.name == name) {
            world.queues.servers.push(&server.name_any());
        }
    }
    push_sharing(world, |shared| shared.secrets.iter().flatten().any(|secret| secret == name));
}

fn config_map_changed(world: &Arc<World>, name: &str) {
    push_sharing(world, |shared| shared.config_maps.iter().flatten().any(|map| map == name));
    let migrates = |application: &Application| {
        let sql = application.spec.migrations.as_ref().and_then(|migrations| migrations.sql.as_ref());
        sql.is_some_and(|sql| sql.config_maps.iter().any(|reference| reference.name == name))
    };
    for application in world.stores.applications.state().iter().filter(|application| migrates(application)) {
        let application = application.name_any();
        world.queues.applications.push(&application);
        world.push_tenants(|tenant| tenant.spec.application == application);
    }
}

fn push_sharing(world: &World, shares: impl Fn(&crate::api::SharedObjects) -> bool) {
    for application in world.stores.applications.state() {
        if application.spec.shared.as_ref().is_some_and(&shares) {
            let name = application.name_any();
            world.push_pools(|pool| pool.spec.application == name);
        }
    }
}
