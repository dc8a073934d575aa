//! Which databases there are: the Secrets of the relay's namespace, and one task for each.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{Instrument as _, info_span};

use super::Shared;
use super::access::Access;
use super::database::Database;
use crate::{api::LABEL_RELAY, cluster::Reconnect};

/// Secrets per page of a list.
const PAGE_SIZE: u32 = 100;
/// A watch is renewed this often, which bounds how long a connection that was silently dropped goes
/// unnoticed. In seconds.
const WATCH_TIMEOUT: u32 = 60;
/// How often it is said that the watch is broken.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// The databases by their Secrets' names, each with its task.
pub(super) struct Databases {
    shared: Arc<Shared>,
    running: HashMap<String, Running>,
    tasks: JoinSet<()>,
    /// While a list is on its way: what was in it so far.
    listed: Option<HashSet<String>>,
}

struct Running {
    access: Arc<Access>,
    stop: watch::Sender<bool>,
}

impl Databases {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, running: HashMap::new(), tasks: JoinSet::new(), listed: None }
    }

    /// Follows the Secrets. Never gives up: while the API server is away, the databases that are
    /// known are served on.
    pub(super) async fn watch(&mut self, client: Client) {
        let options = &self.shared.options;
        let api: Api<Secret> = Api::namespaced(client, &options.namespace);
        let config = watcher::Config::default()
            .labels(&format!("{LABEL_RELAY}={}", options.server))
            .page_size(PAGE_SIZE)
            .timeout(WATCH_TIMEOUT);
        let mut events = pin!(watcher(api, config).backoff(Reconnect::default()));
        let mut said: Option<Instant> = None;
        loop {
            match events.try_next().await {
                Ok(Some(event)) => self.handle(event),
                // A watcher never ends; were it to, there would be nothing left to wait for.
                Ok(None) => return,
                Err(error) => {
                    if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
                        said = Some(Instant::now());
                        tracing::warn!("can't watch Secrets, the databases that are known are served on: {error}");
                    }
                }
            }
            // Those that have ended are forgotten.
            while self.tasks.try_join_next().is_some() {}
        }
    }

    fn handle(&mut self, event: Event<Secret>) {
        match event {
            Event::Init => self.listed = Some(HashSet::new()),
            Event::InitApply(secret) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(secret.name_any());
                }
                self.set(&secret);
            }
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<_> = self.running.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                gone.iter().for_each(|name| self.remove(name));
                if self.shared.listed() {
                    tracing::info!(databases = self.running.len(), "listed the Secrets of all databases");
                }
            }
            Event::Apply(secret) => self.set(&secret),
            Event::Delete(secret) => self.remove(&secret.name_any()),
        }
    }

    fn set(&mut self, secret: &Secret) {
        let name = secret.name_any();
        let access = match Access::of(secret) {
            Ok(access) => Arc::new(access),
            // The operator repairs it; until then the way in that is known may still work.
            Err(error) => return tracing::warn!(secret = name, "this Secret is of no use: {error}"),
        };
        if self.running.get(&name).is_some_and(|running| *running.access == *access) {
            return;
        }
        // An earlier one with another login settles what is under way.
        let replaced = self.running.remove(&name);
        let database = access.relay.database.clone();
        if let Some(replaced) = &replaced
            && replaced.access.relay.database != database
        {
            self.shared.metrics.forget(&replaced.access.relay.database);
        }
        let known = if replaced.is_some() { "a database has another login" } else { "a database is served" };
        tracing::info!(database, "{known}");
        if let Some(replaced) = replaced {
            replaced.stop.send_replace(true);
        }
        let (stop, stopped) = watch::channel(false);
        let task = Database::new(Arc::clone(&self.shared), Arc::clone(&access), stopped);
        self.tasks.spawn(task.run().instrument(info_span!("database", name = database)));
        self.running.insert(name, Running { access, stop });
        self.shared.metrics.databases(self.running.len());
    }

    fn remove(&mut self, name: &str) {
        if let Some(running) = self.running.remove(name) {
            let database = &running.access.relay.database;
            tracing::info!(database, "a database is no longer served");
            running.stop.send_replace(true);
            self.shared.metrics.forget(database);
            self.shared.metrics.databases(self.running.len());
        }
    }

    /// Stops all, and waits until what is under way is settled, but not for longer than that.
    pub(super) async fn stop(mut self, grace: Duration) {
        for running in self.running.values() {
            running.stop.send_replace(true);
        }
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, ended).await.is_err() {
            tracing::warn!("some batches were under way for too long; they are sent again when their leases are over");
        }
    }
}
