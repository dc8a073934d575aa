//! Routes that are not ours, and whether the cluster serves HTTPRoutes at all.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use futures::StreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, ResourceExt as _,
    api::DynamicObject,
    runtime::watcher::{self, Event},
};
use tokio::sync::mpsc;

use super::{streams::children, world::World};
use crate::{
    cluster::{api_resource, events},
    desired::Kind,
};

/// The definition that says whether the cluster serves HTTPRoutes.
const HTTP_ROUTES: &str = "httproutes.gateway.networking.k8s.io";

/// Watches HTTPRoutes as long as the cluster serves them. The receiver gets a word once it is
/// known that it doesn't, or which there are.
pub(super) fn spawn_http_routes(world: &Arc<World>) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let api: Api<CustomResourceDefinition> = Api::all(world.cluster.client().clone());
        let config = watcher::Config::default().fields(&format!("metadata.name={HTTP_ROUTES}"));
        let mut definitions = events(api, config, world.watches.of("CustomResourceDefinition"));
        let mut routes: Option<Routes> = None;
        let mut is_listed = false;
        loop {
            // The definition may be there a moment before it is served, or for good without that:
            // the watch of routes goes on trying, and the definition is heard of meanwhile.
            let event = tokio::select! {
                event = definitions.next() => event,
                () = Routes::until_listed(&mut routes) => {
                    set_served(&world, true);
                    let _ = sender.try_send(());
                    continue;
                }
            };
            let served = match event {
                None => return,
                Some(Event::Init) => {
                    is_listed = false;
                    continue;
                }
                Some(Event::InitApply(definition)) => {
                    is_listed = is_served(&definition);
                    continue;
                }
                Some(Event::InitDone) => is_listed,
                Some(Event::Apply(definition)) => is_served(&definition),
                Some(Event::Delete(_)) => false,
            };
            if !served {
                routes = None;
                set_served(&world, false);
                let _ = sender.try_send(());
            } else if routes.is_none() {
                routes = Some(Routes::watch(&world));
            }
        }
    });
    receiver
}

/// The watches of HTTPRoutes, ours and others'; ended when dropped.
struct Routes {
    listed: mpsc::Receiver<()>,
    watches: [tokio::task::JoinHandle<()>; 2],
}

impl Routes {
    fn watch(world: &Arc<World>) -> Self {
        let (sender, listed) = mpsc::channel(1);
        let ours = tokio::spawn(children(world, Kind::HttpRoute, None, sender));
        Self { listed, watches: [ours, spawn_foreign(world, Kind::HttpRoute)] }
    }

    /// Ready when the routes were listed anew; never while none are watched.
    async fn until_listed(routes: &mut Option<Self>) {
        let listed = match routes {
            Some(routes) => routes.listed.recv().await,
            None => None,
        };
        if listed.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.watches.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Whether the cluster serves the version of HTTPRoute that is written here.
fn is_served(definition: &CustomResourceDefinition) -> bool {
    let version = Kind::HttpRoute.version();
    definition.spec.versions.iter().any(|it| it.name == version && it.served)
}

/// Takes note of whether the cluster serves HTTPRoutes, and looks again at whom that concerns.
fn set_served(world: &World, served: bool) {
    if world.facts.http_routes.swap(served, Ordering::Relaxed) == served {
        return;
    }
    for application in world.stores.applications.state() {
        world.queues.applications.push(&application.name_any());
    }
    world.push_tenants(|_| true);
}

/// Watches routes that are not ours, for their hosts.
pub(super) fn spawn_foreign(world: &Arc<World>, kind: Kind) -> tokio::task::JoinHandle<()> {
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let api: Api<DynamicObject> = Api::all_with(world.cluster.client().clone(), &api_resource(kind));
        let selector = format!("{}!={}", crate::api::LABEL_MANAGED_BY, crate::api::MANAGED_BY);
        let mut routes =
            events(api, watcher::Config::default().labels(&selector), world.watches.of(format!("Foreign{kind}")));
        let mut listed = BTreeSet::new();
        let mut known = BTreeSet::new();
        while let Some(event) = routes.next().await {
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

pub(super) fn push_all(world: &World, tenants: BTreeSet<String>) {
    for tenant in tenants {
        world.queues.tenants.push(&tenant);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_definition_without_the_version_that_is_written_serves_no_routes() {
        let definition = |versions: serde_json::Value| -> CustomResourceDefinition {
            let names = json!({"kind": "HTTPRoute", "plural": "httproutes"});
            let spec = json!({"group": "gateway.networking.k8s.io", "names": names, "scope": "Namespaced",
                              "versions": versions});
            serde_json::from_value(json!({"metadata": {"name": HTTP_ROUTES}, "spec": spec})).expect("a definition")
        };
        let version = |name: &str, served: bool| json!({"name": name, "served": served, "storage": name == "v1"});
        assert!(is_served(&definition(json!([version("v1beta1", true), version("v1", true)]))));
        assert!(!is_served(&definition(json!([version("v1beta1", true)]))));
        assert!(!is_served(&definition(json!([version("v1beta1", true), version("v1", false)]))));
    }
}
