//! Routes that are not ours, and whether the cluster serves HTTPRoutes at all.

use std::{collections::BTreeSet, sync::Arc};

use futures::StreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, PartialObjectMeta},
    runtime::watcher::{self, Event},
};
use tokio::sync::mpsc;

use super::{streams::children, world::World};
use crate::{
    cluster::{api_resource, events},
    desired::Kind,
};

/// The definition whose presence says that the cluster serves HTTPRoutes.
const HTTP_ROUTES: &str = "httproutes.gateway.networking.k8s.io";

/// Watches HTTPRoutes as long as the cluster serves them.
pub(super) fn spawn_http_routes(world: &Arc<World>) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(world.cluster.client().clone());
        let config = watcher::Config::default().fields(&format!("metadata.name={HTTP_ROUTES}"));
        let mut definitions = events(api, config, world.watches.of("CustomResourceDefinition"));
        let mut watches: Vec<tokio::task::JoinHandle<()>> = Vec::new();
        let mut present = false;
        while let Some(event) = definitions.next().await {
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
                watches.push(tokio::spawn(children(&world, Kind::HttpRoute, None, listed)));
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
