//! The queues of objects to reconcile, and what works through them.

use std::{
    collections::HashMap,
    convert::Infallible,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, channel::mpsc, stream::BoxStream};
use kube::{
    Resource, ResourceExt as _,
    core::object::HasStatus,
    runtime::{
        controller::{self, Action, Config, applier},
        reflector::{Lookup, ObjectRef, Store},
    },
};
use tokio::task::JoinHandle;
use tracing::{Instrument as _, debug, error, field, info_span, warn};

use super::{
    failure::{Class, Failure},
    overdue,
    world::World,
};
use crate::{
    api::{HasConditions, StatusPart},
    cluster::{GroupResource, Statuses},
};

/// When to look at an object again, if nothing happens to it.
pub(super) type Next = Option<Duration>;

/// What a reconcile ends with.
pub(super) type Outcome = Result<Next, Failure>;

/// Objects of one resource that are to be reconciled. The same object stands in it once.
pub(super) struct Queue<K: Lookup> {
    sender: mpsc::UnboundedSender<ObjectRef<K>>,
    /// Since when an object waits that nobody has looked at since.
    waiting: Mutex<HashMap<String, Instant>>,
    /// When a reconcile came to its end last.
    ended: Mutex<Instant>,
}

/// What stands in a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backlog {
    pub(super) depth: usize,
    /// How long the oldest object has waited.
    pub(super) oldest: Option<Duration>,
    /// How long ago a reconcile came to its end. One that was given up did not.
    pub(super) idle: Duration,
}

impl<K: Resource<DynamicType = ()> + Lookup<DynamicType = ()>> Queue<K> {
    /// A queue, and what comes out of it.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<ObjectRef<K>>) {
        let (sender, receiver) = mpsc::unbounded();
        (Self { sender, waiting: Mutex::default(), ended: Mutex::new(Instant::now()) }, receiver)
    }

    /// Puts an object in. (When the operator is ending, nobody takes it out any more.)
    pub(super) fn push(&self, name: &str) {
        if let std::collections::hash_map::Entry::Vacant(entry) = self.waiting().entry(name.to_owned()) {
            entry.insert(Instant::now());
        }
        let _ = self.sender.unbounded_send(ObjectRef::new(name));
    }

    /// What stands in it. (What is to be tried again at a later time doesn't, until then.)
    pub(super) fn backlog(&self) -> Backlog {
        let idle = self.ended().elapsed();
        let waiting = self.waiting();
        Backlog { depth: waiting.len(), oldest: waiting.values().min().map(Instant::elapsed), idle }
    }

    /// A reconcile came to its end, however that was.
    fn done(&self) {
        *self.ended() = Instant::now();
    }

    fn ended(&self) -> MutexGuard<'_, Instant> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object is looked at now, or is gone.
    fn taken(&self, name: &str) {
        self.waiting().remove(name);
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a spawned task when it is no longer waited for.
struct AbortOnDrop(JoinHandle<Action>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How one resource is worked through.
pub(super) struct Work<K: Lookup<DynamicType = ()> + HasStatus + 'static, F> {
    pub(super) store: Store<K>,
    pub(super) requests: mpsc::UnboundedReceiver<ObjectRef<K>>,
    pub(super) queue: fn(&World) -> &Queue<K>,
    pub(super) statuses: fn(&World) -> &Statuses<K::Status>,
    /// How many objects at a time.
    pub(super) concurrency: u16,
    pub(super) reconcile: F,
}

/// Works through a queue, at most `concurrency` objects at a time and never one object twice
/// at a time. When the operator is asked to end, no further object is begun, and this ends
/// when those that were begun are done.
pub(super) async fn work<K, F, Fut>(world: Arc<World>, work: Work<K, F>)
where
    K: GroupResource + Lookup<DynamicType = ()> + HasStatus + Send + Sync + 'static,
    K::Status: HasConditions + Default + StatusPart<Whole = K::Status> + Send + Sync + 'static,
    ObjectRef<K>: Hash + Eq,
    F: Fn(Arc<K>, Arc<World>) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    let Work { store, requests, queue, statuses, concurrency, reconcile } = work;
    let requests: BoxStream<'static, Result<ObjectRef<K>, Infallible>> =
        requests.map(Ok).take_until(world.stopping()).boxed();
    let config = Config::default().concurrency(concurrency);
    let reconciler = move |object: Arc<K>, world: Arc<World>| {
        Box::pin(async move {
            let name = object.name_any();
            queue(&world).taken(&name);
            // A task of its own, so that reconciles use every core and a panic ends only one.
            let mut task = AbortOnDrop(tokio::spawn(once(object, Arc::clone(&world), queue, statuses, reconcile)));
            let ended = (&mut task.0).await.unwrap_or_else(|panic| {
                queue(&world).done();
                panicked::<K>(&world, &name, &panic)
            });
            Ok::<_, Infallible>(ended)
        })
    };
    let never = |_, never: &Infallible, _| match *never {};
    let mut results = Box::pin(applier(reconciler, never, Arc::clone(&world), store, requests, config));
    while let Some(result) = results.next().await {
        // An object that is gone by now is no error; there are no others.
        if let Err(controller::Error::ObjectNotFound(gone)) = result {
            queue(&world).taken(&gone.name);
            world.backoff.reset(&format!("{}/{}", <K as Resource>::kind(&()), gone.name));
        }
    }
}

/// A fault of this program ended a reconcile: the object is tried again, later and later.
fn panicked<K: Resource<DynamicType = ()>>(world: &World, name: &str, panic: &tokio::task::JoinError) -> Action {
    let kind = K::kind(&());
    let after = world.backoff.next(&format!("{kind}/{name}"), Class::Transient, Instant::now());
    world.metrics.panicked(&kind);
    error!(%kind, name, %panic, ?after, "a reconcile ended by a fault of this program: please report it");
    Action::requeue(after)
}

async fn once<K, F, Fut>(
    object: Arc<K>,
    world: Arc<World>,
    queue: fn(&World) -> &Queue<K>,
    statuses: fn(&World) -> &Statuses<K::Status>,
    reconcile: F,
) -> Action
where
    K: GroupResource + Lookup<DynamicType = ()> + HasStatus,
    K::Status: HasConditions + Default + StatusPart<Whole = K::Status>,
    F: Fn(Arc<K>, Arc<World>) -> Fut,
    Fut: Future<Output = Outcome>,
{
    let (kind, name) = (<K as Resource>::kind(&()), object.name_any());
    let id = format!("{kind}/{name}");
    let span = info_span!(
        "reconcile",
        %kind,
        // Not `name`: in JSON that is the span's own.
        object = name,
        uid = object.meta().uid,
        generation = object.meta().generation,
        attempt = world.backoff.failures(&id) + 1,
        outcome = field::Empty,
        duration = field::Empty,
    );
    let begun = Instant::now();
    let _running = world.metrics.running(&kind);
    let deadline = world.args.reconcile_deadline;
    let running = reconcile(Arc::clone(&object), Arc::clone(&world)).instrument(span.clone());
    let in_time = tokio::time::timeout(deadline, running).await;
    let took = begun.elapsed();
    let outcome = match in_time {
        Ok(outcome) => {
            queue(&world).done();
            outcome
        }
        Err(_) => {
            let failure = overdue::failure(deadline);
            if world.backoff.overdue(&id, Instant::now()) >= overdue::PATIENCE {
                overdue::say(&*object, &world, statuses(&world), &failure).instrument(span.clone()).await;
            }
            Err(failure)
        }
    };
    let result = world.metrics.reconciled(&kind, outcome.as_ref().err(), took);
    span.record("outcome", result).record("duration", field::debug(took));
    let _entered = span.enter();
    match outcome {
        Ok(next) => {
            world.backoff.reset(&id);
            debug!(?next, "reconciled");
            next.map_or_else(Action::await_change, Action::requeue)
        }
        Err(failure) => {
            let after = world.backoff.next(&id, failure.class, Instant::now());
            let (class, reason, message) = (failure.class.as_str(), failure.reason, failure.message);
            if failure.class == Class::Waiting {
                debug!(class, reason, message, ?after, "waiting");
            } else {
                warn!(class, reason, message, ?after, "reconcile failed; it is tried again");
            }
            Action::requeue(after)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Tenant;

    #[test]
    fn an_object_waits_once_and_since_it_was_first_pushed() {
        let (queue, mut requests) = Queue::<Tenant>::new();
        assert!(queue.backlog().oldest.is_none());
        for name in ["a", "b", "a"] {
            queue.push(name);
        }
        assert_eq!(queue.backlog().depth, 2);
        let since = queue.waiting()["a"];
        queue.push("a");
        assert_eq!(queue.waiting()["a"], since);
        queue.taken("a");
        queue.taken("b");
        assert_eq!((queue.backlog().depth, queue.backlog().oldest), (0, None));
        assert_eq!(requests.try_recv().expect("a request").name, "a");
    }
}
