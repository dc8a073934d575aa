//! The watches, and the order in which they start.

use std::{future::Future, sync::Arc};

use k8s_openapi::api::{
    core::v1::{ConfigMap, Secret},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Resource,
    runtime::{reflector::store::Writer, watcher},
};
use tokio::sync::mpsc;

use super::{
    changes,
    counting::Counting,
    namespaces::{self, push_owner},
    relay, rollout, routes,
    world::World,
};
use crate::{
    api::{Application, DatabaseServer, Plan, Pool, Tenant},
    cluster::{Change, reflect, watch_children},
    desired::Kind,
};

/// The kinds of ours that are watched in the whole cluster. Secrets and ConfigMaps are
/// watched by namespace, HTTPRoutes once the cluster serves them, ControllerRevisions in the
/// operator's namespace.
const KINDS: [Kind; 11] = [
    Kind::Namespace,
    Kind::RoleBinding,
    Kind::ServiceAccount,
    Kind::ResourceQuota,
    Kind::LimitRange,
    Kind::NetworkPolicy,
    Kind::Service,
    Kind::PodDisruptionBudget,
    Kind::HorizontalPodAutoscaler,
    Kind::Deployment,
    Kind::Ingress,
];

/// The writing ends of the stores.
pub(super) struct Writers {
    pub(super) tenants: Writer<Tenant>,
    pub(super) plans: Writer<Plan>,
    pub(super) applications: Writer<Application>,
    pub(super) servers: Writer<DatabaseServer>,
    pub(super) pools: Writer<Pool>,
    pub(super) secrets: Writer<Secret>,
    pub(super) config_maps: Writer<ConfigMap>,
    pub(super) api_servers: Writer<EndpointSlice>,
}

/// Starts every watch. Returns once all that is there is known.
pub(super) async fn start(world: &Arc<World>, writers: Writers) {
    let Writers { tenants, plans, applications, servers, pools, secrets, config_maps, api_servers } = writers;
    let client = world.cluster.client().clone();
    let own = |client: &kube::Client| (client.clone(), world.args.namespace.clone());
    let outages = changes::start_outages(world);
    spawn_reflect(world, Api::all(client.clone()), plans, changes::plan_changed);
    spawn_reflect(world, Api::all(client.clone()), applications, changes::application_changed);
    spawn_reflect(world, Api::all(client.clone()), servers, changes::server_changed);
    spawn_reflect(world, Api::all(client.clone()), pools, move |world, change| {
        changes::pool_changed(world, change, &outages)
    });
    let (client_of, namespace) = own(&client);
    spawn_reflect(world, Api::namespaced(client_of, &namespace), secrets, |world, change: &Change<Secret>| {
        changes::secret_changed(world, &changes::name_of(change));
    });
    let (client_of, namespace) = own(&client);
    spawn_reflect(world, Api::namespaced(client_of, &namespace), config_maps, |world, change: &Change<ConfigMap>| {
        changes::config_map_changed(world, &changes::name_of(change));
    });
    let api = Api::namespaced(client.clone(), "default");
    let of_api_server = watcher::Config::default().labels("kubernetes.io/service-name=kubernetes");
    let changed = Arc::clone(world);
    let watch = world.watches.of("EndpointSlice");
    tokio::spawn(reflect(api, of_api_server, api_servers, watch, move |_| {
        changed.push_pools(|_| true);
        relay::api_server_moved(&changed);
    }));
    let stores = &world.stores;
    // An error means that a watch's task ended, which none does.
    let _ = tokio::join!(
        stores.plans.wait_until_ready(),
        stores.applications.wait_until_ready(),
        stores.servers.wait_until_ready(),
        stores.pools.wait_until_ready(),
        stores.secrets.wait_until_ready(),
        stores.config_maps.wait_until_ready(),
        stores.api_servers.wait_until_ready(),
    );
    // Tenants last: what they refer to is known by then.
    let counting = Counting::start(world);
    spawn_reflect(world, Api::all(client.clone()), tenants, move |world, change| {
        changes::tenant_changed(world, change, &counting);
    });
    let _ = world.stores.tenants.wait_until_ready().await;
    let mut lists: Vec<_> = KINDS.iter().map(|kind| spawn_children(world, *kind, None)).collect();
    lists.push(spawn_children(world, Kind::ControllerRevision, Some(world.args.namespace.clone())));
    routes::spawn_foreign(world, Kind::Ingress);
    lists.push(routes::spawn_http_routes(world));
    for mut list in lists {
        let _ = list.recv().await;
    }
    namespaces::watch_all(world);
}

fn spawn_reflect<K>(
    world: &Arc<World>,
    api: Api<K>,
    writer: Writer<K>,
    changed: impl Fn(&Arc<World>, &Change<K>) + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let watch = world.watches.of(K::kind(&()));
    let world = Arc::clone(world);
    tokio::spawn(reflect(api, watcher::Config::default(), writer, watch, move |change| changed(&world, &change)));
}

/// Watches our objects of a kind; the receiver gets a word when they were listed.
fn spawn_children(world: &Arc<World>, kind: Kind, namespace: Option<String>) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(children(world, kind, namespace, sender));
    receiver
}

pub(super) fn children(
    world: &Arc<World>,
    kind: Kind,
    namespace: Option<String>,
    listed: mpsc::Sender<()>,
) -> impl Future<Output = ()> + Send + use<> {
    let tell = Arc::clone(world);
    watch_children(
        world.cluster.client().clone(),
        kind,
        namespace,
        world.cluster.shared_children(),
        world.watches.of(kind.to_string()),
        move |owner| {
            push_owner(&tell, &owner);
            if kind == Kind::Deployment {
                rollout::stir(&tell);
            }
        },
        move || {
            // Nobody waits for a second list.
            let _ = listed.try_send(());
        },
    )
}
