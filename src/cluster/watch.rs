//! Watches: of the group's own resources into stores, of our objects into [`Children`].

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use kube::{
    Api, Resource, ResourceExt as _,
    api::DynamicObject,
    runtime::{
        reflector::{Lookup, Store, store::Writer},
        utils::Backoff,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::warn;

use super::{
    apply::{api_resource, is_watched_whole},
    children::{Children, Key, Owner},
    watches::Watch,
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
pub async fn reflect<K>(
    api: Api<K>,
    config: watcher::Config,
    writer: Writer<K>,
    watch: Watch,
    mut tell: impl FnMut(Change<K>),
) where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut changes = events(api, config, watch);
    let mut mirror = Mirror { store: writer.as_reader(), writer, before: Vec::new() };
    while let Some(event) = changes.next().await {
        mirror.take(event, &mut tell);
    }
}

/// The one way into a store.
struct Mirror<K: Lookup<DynamicType = ()> + Clone + 'static> {
    store: Store<K>,
    writer: Writer<K>,
    /// What was there before the list that is on its way.
    before: Vec<Arc<K>>,
}

impl<K> Mirror<K>
where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone,
{
    fn take(&mut self, event: Event<K>, tell: &mut impl FnMut(Change<K>)) {
        let event = match event {
            Event::Apply(object) => Event::Apply(pruned(object)),
            Event::InitApply(object) => Event::InitApply(pruned(object)),
            other => other,
        };
        match &event {
            Event::Init => self.before = self.store.state(),
            Event::InitApply(_) => {}
            Event::InitDone => {
                self.writer.apply_watcher_event(&event);
                tell_relist(&std::mem::take(&mut self.before), &self.store, tell);
                return;
            }
            Event::Apply(object) => {
                let old = find(&self.store, object);
                self.writer.apply_watcher_event(&event);
                tell(Change { old, new: find(&self.store, object) });
                return;
            }
            Event::Delete(object) => {
                let old = find(&self.store, object).or_else(|| Some(Arc::new(object.clone())));
                self.writer.apply_watcher_event(&event);
                tell(Change { old, new: None });
                return;
            }
        }
        self.writer.apply_watcher_event(&event);
    }
}

/// What `kubectl apply` without `--server-side` keeps: the object once more, as text.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The object without what nobody looks at and takes most of the memory: 9 of 10 bytes of a
/// small object are managedFields.
fn pruned<K: Resource>(mut object: K) -> K {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
    object
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
    watch: Watch,
    mut tell: impl FnMut(Owner),
    mut synced: impl FnMut(),
) where
    S: Clone + PartialEq,
{
    let api = api_of(client.clone(), kind, namespace.as_deref());
    let mut config = watcher::Config::default();
    if !is_watched_whole(kind) {
        config = config.labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY}"));
    }
    let mut changes = events(api, config, watch);
    let (mut listed, mut asked) = (HashSet::new(), children.moment());
    while let Some(event) = changes.next().await {
        match event {
            Event::Init => {
                listed.clear();
                asked = children.moment();
            }
            Event::InitApply(object) => {
                let key = key_of(kind, &object);
                listed.insert(key.clone());
                saw(&children, &key, &object).map(&mut tell);
            }
            Event::InitDone => {
                for key in children.of_kind(kind, namespace.as_deref()) {
                    if listed.contains(&key) || children.is_newer(&key, asked) && is_there(client.clone(), &key).await {
                        continue;
                    }
                    children.absent(&key).map(&mut tell);
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

fn api_of(client: kube::Client, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = api_resource(kind);
    match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    }
}

/// Whether an object is there that we wrote while a list was on its way that lacks it. Where the
/// list is the older one, the watch after it tells of the object; where the object went before the
/// list, nothing does.
async fn is_there(client: kube::Client, key: &Key) -> bool {
    let api = api_of(client, key.kind, key.namespace.as_deref());
    let mut pauses = Pauses::default();
    loop {
        match api.get_metadata_opt(&key.name).await {
            Ok(found) => return found.is_some(),
            // Without a namespace there are no rights in it.
            Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => return false,
            Err(error) => {
                warn!(object = %key, %error, "can't be looked at; it is tried again");
                tokio::time::sleep(pauses.next().unwrap_or_default()).await;
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
pub fn events<K>(api: Api<K>, config: watcher::Config, watch: Watch) -> impl Stream<Item = Event<K>> + Unpin
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Clone + Debug + Eq + Hash,
{
    let config = config.page_size(PAGE_SIZE);
    let begin = move || watcher(api.clone(), config.clone()).boxed();
    persistent(begin, Pauses::default(), SETTLED, watch)
}

/// How long a watch that was listed anew has to bring no failure until it counts as one that
/// works: twice as long as an API server that doesn't answer is waited for. Most bring nothing.
const SETTLED: Duration = Duration::from_secs(30);

/// Goes on with a stream of a watch after its failures. What a list brings is no sign that the
/// watch after it begins: only what that itself brings is, or that it is quiet for long enough.
/// Until then the pauses grow from failure to failure, however much was listed between them.
fn persistent<K, S, B>(
    begin: impl Fn() -> S + Send + 'static,
    pauses: B,
    settled: Duration,
    watch: Watch,
) -> impl Stream<Item = Event<K>> + Unpin
where
    K: Send + 'static,
    S: Stream<Item = watcher::Result<Event<K>>> + Unpin + Send + 'static,
    B: Backoff + Send + 'static,
{
    let first = Going { stream: begin(), begin, pauses, settled, is_listed: false, watch };
    stream::unfold(first, |mut going| async move { Some((going.next().await?, going)) }).boxed()
}

/// A watch between two of its events.
struct Going<S, F, B> {
    stream: S,
    begin: F,
    pauses: B,
    settled: Duration,
    /// A list is complete, and nothing has come since that tells how the watch after it is.
    is_listed: bool,
    watch: Watch,
}

impl<K, S, F, B> Going<S, F, B>
where
    S: Stream<Item = watcher::Result<Event<K>>> + Unpin,
    F: Fn() -> S,
    B: Backoff,
{
    async fn next(&mut self) -> Option<Event<K>> {
        loop {
            let next = if self.is_listed {
                let Ok(next) = tokio::time::timeout(self.settled, self.stream.next()).await else {
                    self.works();
                    continue;
                };
                next?
            } else {
                self.stream.next().await?
            };
            match next {
                Ok(event) => {
                    match &event {
                        Event::Apply(_) | Event::Delete(_) => self.works(),
                        Event::InitDone => self.is_listed = true,
                        Event::Init | Event::InitApply(_) => {}
                    }
                    return Some(event);
                }
                Err(error) => self.failed(&error).await?,
            }
        }
    }

    fn works(&mut self) {
        self.is_listed = false;
        self.pauses.reset();
        self.watch.works();
    }

    /// Waits until it may be tried again; nothing if it is not to be.
    async fn failed(&mut self, error: &watcher::Error) -> Option<()> {
        self.is_listed = false;
        warn!(kind = self.watch.kind(), %error, "watch failed; it is tried again");
        self.watch.failed(&error.to_string());
        tokio::time::sleep(self.pauses.next()?).await;
        if is_expired(error) {
            // kube's watcher would ask for the same version for ever.
            self.stream = (self.begin)();
        }
        Some(())
    }
}

/// The pauses between attempts at a watch that fails: spread as kube's own, and a quarter as
/// long, 15 s at most. Definitions that are installed again are seen within that time, and not
/// after a minute.
#[derive(Default)]
struct Pauses(watcher::DefaultBackoff);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause / 4)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// Whether a watch could not begin where the last one ended: the API server, or a proxy before
/// it, answered 410 instead of an event that says so.
fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Instant,
    };

    use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry};
    use kube::runtime::reflector;

    use super::{super::watches::Watches, *};

    fn map(name: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.into());
        map.metadata.namespace = Some("a".into());
        map.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
        map.metadata.annotations =
            Some([(LAST_APPLIED.to_owned(), "{}".to_owned()), ("kept".to_owned(), "yes".to_owned())].into());
        map
    }

    /// Pauses of no length, which are counted until they are reset.
    #[derive(Clone, Default)]
    struct Counted(Arc<AtomicUsize>);

    impl Iterator for Counted {
        type Item = Duration;

        fn next(&mut self) -> Option<Duration> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Some(Duration::ZERO)
        }
    }

    impl Backoff for Counted {
        fn reset(&mut self) {
            self.0.store(0, Ordering::Relaxed);
        }
    }

    fn gone() -> watcher::Error {
        let status = kube::core::Status { code: 410, ..kube::core::Status::default() };
        watcher::Error::WatchStartFailed(kube::Error::Api(Box::new(status)))
    }

    #[tokio::test]
    async fn a_list_before_each_failure_neither_shortens_the_pauses_nor_hides_the_failures() {
        let (watches, pauses) = (Watches::default(), Counted::default());
        let begun = Arc::new(AtomicUsize::new(0));
        let begin = {
            let begun = Arc::clone(&begun);
            move || {
                // Gone three times, then it brings something.
                let last = match begun.fetch_add(1, Ordering::Relaxed) {
                    0..3 => Err(gone()),
                    _ => Ok(Event::Apply(map("watched"))),
                };
                let list = [Ok(Event::Init), Ok(Event::InitApply(map("listed"))), Ok(Event::InitDone), last];
                stream::iter(list).chain(stream::pending()).boxed()
            }
        };
        let watch = watches.of("ConfigMap");
        let mut events = persistent(begin, pauses.clone(), Duration::from_secs(600), watch);
        let is_dead = || watches.dead(Instant::now(), Duration::ZERO).is_some();
        for failures in 1..=4 {
            for _ in 0..3 {
                events.next().await.expect("a list");
            }
            assert_eq!(pauses.0.load(Ordering::Relaxed), failures - 1, "one pause for each failure, all in a row");
            assert_eq!(is_dead(), failures > 1, "a list doesn't end the failure");
        }
        assert!(matches!(events.next().await, Some(Event::Apply(_))));
        assert_eq!((pauses.0.load(Ordering::Relaxed), is_dead(), begun.load(Ordering::Relaxed)), (0, false, 4));
    }

    #[tokio::test]
    async fn a_watch_that_is_quiet_after_its_list_works() {
        let (watches, pauses) = (Watches::default(), Counted::default());
        let begun = AtomicUsize::new(0);
        let begin = move || {
            let first = begun.fetch_add(1, Ordering::Relaxed) == 0;
            let events = if first { vec![Err(gone())] } else { vec![Ok(Event::<ConfigMap>::InitDone)] };
            stream::iter(events).chain(stream::pending()).boxed()
        };
        let mut events = persistent(begin, pauses.clone(), Duration::from_millis(1), watches.of("ConfigMap"));
        assert!(matches!(events.next().await, Some(Event::InitDone)));
        assert!(watches.dead(Instant::now(), Duration::ZERO).is_some());
        tokio::select! {
            _ = events.next() => panic!("nothing comes"),
            () = async {
                while watches.dead(Instant::now(), Duration::ZERO).is_some() {
                    tokio::task::yield_now().await;
                }
            } => {}
        }
        assert_eq!(pauses.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn no_store_keeps_managed_fields_whichever_way_an_object_came() {
        let (store, writer) = reflector::store::<ConfigMap>();
        let mut mirror = Mirror { store: store.clone(), writer, before: Vec::new() };
        let mut told = 0;
        let mut tell = |change: Change<ConfigMap>| {
            let kept = change.new.as_ref().and_then(|new| new.metadata.managed_fields.as_ref());
            assert!(kept.is_none(), "{change:?}");
            told += 1;
        };
        for event in [Event::Init, Event::InitApply(map("listed")), Event::InitDone, Event::Apply(map("watched"))] {
            mirror.take(event, &mut tell);
        }
        assert_eq!((told, store.len()), (2, 2));
        for object in store.state() {
            assert_eq!(object.metadata.managed_fields, None);
            assert_eq!(object.metadata.annotations, Some([("kept".to_owned(), "yes".to_owned())].into()));
        }
        mirror.take(Event::Delete(map("listed")), &mut |change| assert!(change.new.is_none()));
        assert_eq!(store.len(), 1);
    }
}
