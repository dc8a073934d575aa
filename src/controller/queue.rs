//! The queues of objects to reconcile, and what works through them.

use std::{
    convert::Infallible,
    fmt::Debug,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, channel::mpsc, stream::BoxStream};
use kube::{
    Resource, ResourceExt as _,
    runtime::{
        controller::{Action, Config, applier},
        reflector::{Lookup, ObjectRef, Store},
    },
};
use tokio::task::JoinHandle;
use tracing::{Instrument as _, info_span, warn};

use super::{
    failure::{Class, Failure},
    world::World,
};

/// When to look at an object again, if nothing happens to it.
pub(super) type Next = Option<Duration>;

/// What a reconcile ends with.
pub(super) type Outcome = Result<Next, Failure>;

/// Objects of one resource that are to be reconciled. The same object stands in it once.
pub(super) struct Queue<K: Lookup> {
    sender: mpsc::UnboundedSender<ObjectRef<K>>,
}

impl<K: Resource<DynamicType = ()> + Lookup<DynamicType = ()>> Queue<K> {
    /// A queue, and what comes out of it.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<ObjectRef<K>>) {
        let (sender, receiver) = mpsc::unbounded();
        (Self { sender }, receiver)
    }

    /// Puts an object in. (When the operator is ending, nobody takes it out any more.)
    pub(super) fn push(&self, name: &str) {
        let _ = self.sender.unbounded_send(ObjectRef::new(name));
    }
}

/// Ends a spawned task when it is no longer waited for.
struct AbortOnDrop(JoinHandle<Action>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Works through a queue, at most `concurrency` objects at a time and never one object twice
/// at a time, until the queue or `world` ends.
pub(super) async fn work<K, F, Fut>(
    world: Arc<World>,
    store: Store<K>,
    receiver: mpsc::UnboundedReceiver<ObjectRef<K>>,
    concurrency: u16,
    reconcile: F,
) where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    ObjectRef<K>: Hash + Eq,
    F: Fn(Arc<K>, Arc<World>) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    let requests: BoxStream<'static, Result<ObjectRef<K>, Infallible>> = receiver.map(Ok).boxed();
    let config = Config::default().concurrency(concurrency);
    let reconciler = move |object: Arc<K>, world: Arc<World>| {
        Box::pin(async move {
            // A task of its own, so that reconciles use every core and a panic ends only one.
            let mut task = AbortOnDrop(tokio::spawn(once(object, world, reconcile)));
            Ok::<_, Infallible>((&mut task.0).await.unwrap_or_else(|error| {
                warn!(%error, "a reconcile ended unexpectedly");
                Action::requeue(Duration::from_secs(30))
            }))
        })
    };
    let mut results =
        Box::pin(applier(reconciler, |_, never: &Infallible, _| match *never {}, world, store, requests, config));
    // An object that is gone by now is no error; there are no others.
    while results.next().await.is_some() {}
}

async fn once<K, F, Fut>(object: Arc<K>, world: Arc<World>, reconcile: F) -> Action
where
    K: Resource<DynamicType = ()>,
    F: Fn(Arc<K>, Arc<World>) -> Fut,
    Fut: Future<Output = Outcome>,
{
    let (kind, name) = (K::kind(&()).into_owned(), object.name_any());
    let id = format!("{kind}/{name}");
    let span = info_span!("reconcile", kind, name);
    let running = reconcile(object, Arc::clone(&world)).instrument(span.clone());
    let outcome = tokio::time::timeout(world.args.reconcile_deadline, running).await;
    let outcome =
        outcome.unwrap_or_else(|_| Err(Failure::transient("DeadlineExceeded", "the reconcile took too long")));
    world.metrics.reconciled(&kind, outcome.as_ref().err());
    match outcome {
        Ok(next) => {
            world.backoff.reset(&id);
            next.map_or_else(Action::await_change, Action::requeue)
        }
        Err(failure) => {
            let after = world.backoff.next(&id, failure.class, Instant::now());
            let _entered = span.enter();
            if failure.class == Class::Waiting {
                tracing::debug!(reason = failure.reason, message = failure.message, ?after, "waiting");
            } else {
                warn!(
                    reason = failure.reason,
                    message = failure.message,
                    ?after,
                    "reconcile failed; it is tried again"
                );
            }
            Action::requeue(after)
        }
    }
}
