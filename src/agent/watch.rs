//! From the API server's watch to the keeper: connection, backoff, retries.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};

use super::binding::{SECRET_TYPE, SecretKey};
use super::keeper::Keeper;
use crate::{
    api::LABEL_TENANT,
    cluster::{Delays, Reconnect},
};

/// Secrets per page of a list: a page is what the agent holds of other people's data at a time.
const PAGE_SIZE: u32 = 50;
/// A watch is renewed this often, which bounds how long a silently dropped connection goes unnoticed. In seconds.
const WATCH_TIMEOUT: u32 = 60;
/// How long one Secret may take to be read again.
const GET_TIMEOUT: Duration = Duration::from_secs(10);

/// Which Secrets an agent keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of one namespace.
    Namespace(String),
    /// Those of every namespace; needs a ClusterRole on Secrets, so for a host, not for pods.
    AllNamespaces,
}

/// Keeps the folder equal to the Secrets until `shutdown` is ready. Never gives up: without the API server the files
/// that are there serve on.
pub(super) async fn run(client: Client, scope: &Scope, keeper: &mut Keeper, shutdown: impl Future<Output = ()>) {
    let api: Api<Secret> = match scope {
        Scope::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
        Scope::AllNamespaces => Api::all(client.clone()),
    };
    let config = watcher::Config::default()
        .labels(LABEL_TENANT)
        .fields(&format!("type={SECRET_TYPE}"))
        .page_size(PAGE_SIZE)
        .timeout(WATCH_TIMEOUT);
    let mut events = pin!(watcher(api, config).backoff(Reconnect::default()));
    let mut shutdown = pin!(shutdown);
    let mut outage = Outage::default();
    let mut retries = Retries::default();
    loop {
        let wake = [keeper.next_sweep(), retries.next(keeper.is_behind())].into_iter().flatten().min();
        tokio::select! {
            biased;
            () = &mut shutdown => return,
            event = events.try_next() => match event {
                Ok(Some(event)) => {
                    outage.over(&event);
                    handle(keeper, event);
                }
                // A watcher never ends; were it to, there would be nothing left to wait for.
                Ok(None) => return,
                Err(error) => outage.report(&error),
            },
            () = sleep_until(wake) => {
                let now = Instant::now();
                if retries.due(now) {
                    let secrets = read_again(&client, keeper.unwritten()).await;
                    keeper.retry(secrets);
                }
                keeper.sweep(now);
            }
        }
    }
}

fn handle(keeper: &mut Keeper, event: Event<Secret>) {
    match event {
        Event::Init => keeper.list_begins(),
        Event::InitApply(secret) => keeper.listed(secret),
        Event::InitDone => {
            keeper.list_ends();
            let status = keeper.status();
            tracing::info!(
                tenants = status.tenants,
                hosts = status.hosts,
                unwritten = status.unwritten,
                "listed all Secrets"
            );
        }
        Event::Apply(secret) => keeper.changed(secret),
        Event::Delete(secret) => keeper.deleted(&SecretKey::of(&secret)),
    }
}

/// Reads Secrets whose files could not be written. One that can't be read waits for the next try.
async fn read_again(client: &Client, keys: Vec<SecretKey>) -> Vec<Secret> {
    let mut secrets = Vec::with_capacity(keys.len());
    for key in keys {
        let api: Api<Secret> = Api::namespaced(client.clone(), &key.namespace);
        match tokio::time::timeout(GET_TIMEOUT, api.get_opt(&key.name)).await {
            Ok(Ok(Some(secret))) => secrets.push(secret),
            // The watch will tell that it is gone.
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::warn!(secret = %key, %error, "cannot read the Secret again yet")
            }
            // The API server is away; the other Secrets would only wait as long.
            Err(_) => break,
        }
    }
    secrets
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// When to try again what could not be written.
struct Retries {
    delays: Delays,
    at: Option<Instant>,
}

impl Default for Retries {
    fn default() -> Self {
        Self { delays: Delays::new(Duration::from_millis(500), Duration::from_secs(15)), at: None }
    }
}

impl Retries {
    fn next(&mut self, wanted: bool) -> Option<Instant> {
        if !wanted {
            self.at = None;
            self.delays.reset();
        } else if self.at.is_none() {
            self.at = Some(Instant::now() + self.delays.take());
        }
        self.at
    }

    fn due(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }
}

/// Says that the watch is broken, but not with every try: an API server can be away for hours.
#[derive(Default)]
struct Outage {
    last_said: Option<Instant>,
    failures: u64,
}

impl Outage {
    const SAY_AGAIN: Duration = Duration::from_secs(60);

    fn report(&mut self, error: &watcher::Error) {
        self.failures += 1;
        if self.last_said.is_some_and(|last| last.elapsed() < Self::SAY_AGAIN) {
            return;
        }
        self.last_said = Some(Instant::now());
        let advice = if is_forbidden(error) { "; the agent needs get, list and watch on secrets here" } else { "" };
        tracing::warn!(
            failures = self.failures,
            "cannot watch Secrets: {error}{advice}; the files that are there serve on"
        );
    }

    fn over(&mut self, event: &Event<Secret>) {
        // The beginning of a list is said before the API server was asked.
        if self.failures > 0 && !matches!(event, Event::Init) {
            tracing::info!(failures = self.failures, "watching Secrets again");
            *self = Self::default();
        }
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => status.is_forbidden(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_is_planned_once_and_forgotten_when_nothing_is_behind() {
        let mut retries = Retries::default();
        let at = retries.next(true).expect("planned");
        assert_eq!(retries.next(true), Some(at));
        assert!(!retries.due(at - Duration::from_millis(1)));
        assert!(retries.due(at));
        assert_eq!(retries.next(false), None);
    }
}
