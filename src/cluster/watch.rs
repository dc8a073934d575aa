//! Watches: of the group's own resources into stores, of our objects into [`Children`].

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    future::ready,
    hash::Hash,
    sync::Arc,
};

use futures::{Stream, StreamExt as _, stream};
use kube::{
    Api, Resource, ResourceExt as _,
    api::DynamicObject,
    runtime::{
        WatchStreamExt as _,
        reflector::{Lookup, Store, store::Writer},
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::warn;

use super::{
    apply::{api_resource, is_watched_whole},
    children::{Children, Key, Owner},
};
use crate::{
    api::{LABEL_MANAGED_BY, MANAGED_BY},
    desired::Kind,
};

/// How objects are listed before they are watched: in pages, so that a list of ten thousand
/// doesn't stand in memory twice.
const PAGE_SIZE: u32 = 200;

/// A change of an object in a store.
#[derive(Debug)]
pub struct Change<K> {
    /// The object as it was known; nothing if it is new.
    pub old: Option<Arc<K>>,
    /// The object as it is; nothing if it is gone.
    pub new: Option<Arc<K>>,
}

/// Keeps `writer`'s store equal to what the API server has, and tells each change once it is
/// in the store. Ends never; errors are logged and retried with backoff.
pub async fn reflect<K>(api: Api<K>, config: watcher::Config, mut writer: Writer<K>, mut tell: impl FnMut(Change<K>))
where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let store = writer.as_reader();
    let kind = <K as Resource>::kind(&()).into_owned();
    let mut changes = events(api, config, kind);
    let mut before: Vec<Arc<K>> = Vec::new();
    while let Some(event) = changes.next().await {
        match &event {
            Event::Init => before = store.state(),
            Event::InitApply(_) => {}
            Event::InitDone => {
                writer.apply_watcher_event(&event);
                tell_relist(&std::mem::take(&mut before), &store, &mut tell);
                continue;
            }
            Event::Apply(object) => {
                let old = find(&store, object);
                writer.apply_watcher_event(&event);
                tell(Change { old, new: find(&store, object) });
                continue;
            }
            Event::Delete(object) => {
                let old = find(&store, object).or_else(|| Some(Arc::new(object.clone())));
                writer.apply_watcher_event(&event);
                tell(Change { old, new: None });
                continue;
            }
        }
        writer.apply_watcher_event(&event);
    }
}

/// A list replaced the store: every object of it, and every object that went, is a change.
fn tell_relist<K>(before: &[Arc<K>], store: &Store<K>, tell: &mut impl FnMut(Change<K>))
where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone,
{
    let mut gone: HashMap<_, _> = before.iter().map(|old| (Lookup::to_object_ref(&**old, ()), old)).collect();
    for new in store.state() {
        let old = gone.remove(&Lookup::to_object_ref(&*new, ())).cloned();
        tell(Change { old, new: Some(new) });
    }
    for old in gone.into_values() {
        tell(Change { old: Some(Arc::clone(old)), new: None });
    }
}

fn find<K>(store: &Store<K>, object: &K) -> Option<Arc<K>>
where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone,
{
    store.get(&Lookup::to_object_ref(object, ()))
}

/// Keeps `children` equal to the objects of one kind, in one namespace or in all, and tells
/// whose objects changed. (Of most kinds, ours alone; of those that every tenant has, all.) `synced` is called when the first list is complete.
pub async fn watch_children<S>(
    client: kube::Client,
    kind: Kind,
    namespace: Option<String>,
    children: Arc<Children<S>>,
    mut tell: impl FnMut(Owner),
    mut synced: impl FnMut(),
) where
    S: Clone + PartialEq,
{
    let resource = api_resource(kind);
    let api: Api<DynamicObject> = match &namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    let mut config = watcher::Config::default();
    if !is_watched_whole(kind) {
        config = config.labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY}"));
    }
    let mut changes = events(api, config, kind.to_string());
    let mut listed = HashSet::new();
    while let Some(event) = changes.next().await {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => {
                let key = key_of(kind, &object);
                listed.insert(key.clone());
                saw(&children, &key, &object).map(&mut tell);
            }
            Event::InitDone => {
                for key in children.of_kind(kind, namespace.as_deref()) {
                    if !listed.contains(&key) {
                        children.absent(&key).map(&mut tell);
                    }
                }
                listed = HashSet::new();
                synced();
            }
            Event::Apply(object) => {
                saw(&children, &key_of(kind, &object), &object).map(&mut tell);
            }
            Event::Delete(object) => {
                let whole = serde_json::to_value(&object).ok();
                whole.and_then(|whole| children.gone(&key_of(kind, &object), &whole)).map(&mut tell);
            }
        }
    }
}

fn saw<S: Clone + PartialEq>(children: &Children<S>, key: &Key, object: &DynamicObject) -> Option<Owner> {
    let mut object: Value = serde_json::to_value(object).ok()?;
    // The items of a list don't say what they are; events do.
    object["apiVersion"] = key.kind.api_version().into();
    object["kind"] = key.kind.as_str().into();
    children.saw(key, &object)
}

fn key_of(kind: Kind, object: &DynamicObject) -> Key {
    Key { kind, namespace: object.metadata.namespace.clone(), name: object.name_any() }
}

/// A watch that goes on after errors, with backoff, and says so in the log. Whatever can't be
/// resumed is listed anew.
pub fn events<K>(api: Api<K>, config: watcher::Config, kind: String) -> impl Stream<Item = Event<K>> + Unpin
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Clone + Debug + Eq + Hash,
{
    let config = config.page_size(PAGE_SIZE);
    let begin = move || watcher(api.clone(), config.clone()).default_backoff().boxed();
    let events = stream::unfold((begin(), begin), move |(mut watch, begin)| {
        let kind = kind.clone();
        async move {
            let event = watch.next().await?;
            let event = event.inspect_err(|error| warn!(kind, %error, "watch failed; it is tried again"));
            if event.as_ref().is_err_and(is_expired) {
                // kube's watcher would ask for the same version for ever.
                watch = begin();
            }
            Some((event.ok(), (watch, begin)))
        }
    });
    Box::pin(events.filter_map(ready))
}

/// Whether a watch could not begin where the last one ended: the API server, or a proxy before
/// it, answered 410 instead of an event that says so.
fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}
