//! Tenants by the hundred: made, awaited by one watch, deleted.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _, stream};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tenantry::api::Tenant;
use tokio::{sync::watch, task::JoinHandle};

use crate::ground::PATIENCE;

/// Where Tenants are listed.
pub const TENANTS: &str = "/apis/tenantry.io/v1alpha1/tenants";
/// How many calls of the user's are under way at a time.
const CALLS: usize = 16;

/// A Tenant as a user writes it.
pub fn tenant(name: &str, application: &str, tier: &str) -> Value {
    let plan = if tier == "pooled" { "smb" } else { "enterprise" };
    json!({
        "apiVersion": "tenantry.io/v1alpha1", "kind": "Tenant", "metadata": {"name": name},
        "spec": {"displayName": format!("Customer {name}"), "application": application, "plan": plan, "tier": tier},
    })
}

/// Makes one Tenant; returns its UID.
pub async fn create(client: &Client, body: &Value) -> Result<String> {
    let tenant: Tenant = serde_json::from_value(body.clone())?;
    let created = Api::<Tenant>::all(client.clone()).create(&PostParams::default(), &tenant).await;
    Ok(created.context("create a Tenant")?.metadata.uid.unwrap_or_default())
}

/// Makes Tenants.
pub async fn create_all(client: &Client, bodies: Vec<Value>) -> Result<()> {
    let creating = bodies.into_iter().map(|body| async move { create(client, &body).await.map(drop) });
    stream::iter(creating).buffer_unordered(CALLS).try_collect().await
}

/// Deletes Tenants; they go as their finalizers do.
pub async fn delete_all(client: &Client, names: &[String]) -> Result<()> {
    let tenants = Api::<Tenant>::all(client.clone());
    let tenants = &tenants;
    let deleting =
        names.iter().map(|name| async move { tenants.delete(name, &DeleteParams::background()).await.map(drop) });
    stream::iter(deleting).buffer_unordered(CALLS).try_collect::<()>().await.context("delete Tenants")
}

/// What a watch has told of objects so far: who is there, and who is in the state that counts.
#[derive(Clone, Default)]
pub struct Seen {
    /// Names of the objects that are there.
    there: HashSet<String>,
    /// Since when each is in the state that counts: True in the condition asked for.
    holds: HashMap<String, Instant>,
}

/// A watch that looks at one condition of all objects of a kind, and at nothing else: it costs
/// as little as a watch can.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    changed: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    #[serde(rename = "resourceVersion")]
    version: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Watch {
    /// Watches condition Ready of all Tenants.
    pub async fn tenants(client: &Client) -> Result<Self> {
        Self::start(client, TENANTS, "Ready").await
    }

    /// Watches condition Available of the operator's Deployments; they are named
    /// `NAMESPACE/NAME`.
    pub async fn deployments(client: &Client) -> Result<Self> {
        let managed = "labelSelector=app.kubernetes.io%2Fmanaged-by%3Dtenantry";
        Self::start(client, &format!("/apis/apps/v1/deployments?{managed}"), "Available").await
    }

    /// Watches one condition of all objects of a kind, by the path of its list.
    pub async fn start(client: &Client, path: &str, condition: &'static str) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (sender, changed) = watch::channel(0);
        let (client, known) = (client.clone(), Arc::clone(&seen));
        let separator = if path.contains('?') { '&' } else { '?' };
        // Without a resource version it begins with all that is there.
        let path = format!("{path}{separator}watch=1&allowWatchBookmarks=true&timeoutSeconds=3600");
        let mut version = None;
        let mut lines = open(&client, &path, version.as_deref()).await?;
        let task = tokio::spawn(async move {
            loop {
                while let Ok(Some(line)) = lines.try_next().await {
                    let Ok(line) = serde_json::from_str::<Line>(&line) else { break };
                    if line.kind == "ERROR" {
                        // It is too late to go on from there: all that is there comes again.
                        known.lock().unwrap_or_else(PoisonError::into_inner).there.clear();
                        version = None;
                        break;
                    }
                    // What is there at the beginning comes in no order, each with its own version.
                    let newest = |version: &Option<String>| version.as_deref().and_then(|it| it.parse::<u64>().ok());
                    if newest(&line.object.metadata.version) > newest(&version) {
                        version.clone_from(&line.object.metadata.version);
                    }
                    if line.kind != "BOOKMARK" {
                        note(&known, line, condition);
                        sender.send_modify(|count| *count += 1);
                    }
                }
                // The API server ends watches from time to time; this one goes on where it was.
                match open(&client, &path, version.as_deref()).await {
                    Ok(again) => lines = again,
                    Err(_) => return,
                }
            }
        });
        Ok(Self { seen, changed, task })
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the condition holds for this many objects whose names begin so; returns when
    /// the last of them was seen.
    pub async fn await_holding(&self, prefix: &str, count: usize) -> Result<Instant> {
        let holding = |seen: &Seen| {
            let times: Vec<_> =
                seen.holds.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, at)| *at).collect();
            (times.len() >= count).then(|| times.into_iter().max()).flatten()
        };
        self.wait(&format!("{count} of {prefix}… are in order"), holding).await
    }

    /// Waits until no object is there whose name begins so.
    pub async fn await_gone(&self, prefix: &str) -> Result<()> {
        let gone = |seen: &Seen| (!seen.there.iter().any(|name| name.starts_with(prefix))).then_some(());
        self.wait(&format!("{prefix}… are gone"), gone).await
    }

    async fn wait<T>(&self, what: &str, look: impl Fn(&Seen) -> Option<T>) -> Result<T> {
        let mut changed = self.changed.clone();
        let waiting = async {
            loop {
                if let Some(found) = look(&self.seen()) {
                    return Ok(found);
                }
                changed.changed().await.context("the watch ended")?;
                // Thousands of events come at once: looking at each would take their square.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.with_context(|| format!("waited in vain until {what}"))?
    }
}

async fn open(
    client: &Client,
    path: &str,
    version: Option<&str>,
) -> Result<futures::io::Lines<impl futures::AsyncBufRead + Unpin + use<>>> {
    let from = version.map(|version| format!("&resourceVersion={version}")).unwrap_or_default();
    let request = axum::http::Request::get(format!("{path}{from}")).body(Vec::new())?;
    Ok(Box::pin(client.request_stream(request).await?).lines())
}

fn note(seen: &Mutex<Seen>, line: Line, condition: &str) {
    let Metadata { name, namespace, .. } = line.object.metadata;
    let name = name.unwrap_or_default();
    let name = namespace.map_or(name.clone(), |namespace| format!("{namespace}/{name}"));
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    if line.kind == "DELETED" {
        seen.there.remove(&name);
        seen.holds.remove(&name);
        return;
    }
    let conditions = line.object.status.and_then(|status| status.conditions).unwrap_or_default();
    if conditions.iter().any(|it| it.kind == condition && it.status == "True") {
        seen.holds.entry(name.clone()).or_insert_with(Instant::now);
    } else {
        seen.holds.remove(&name);
    }
    seen.there.insert(name);
}

/// How many Tenants there are.
pub async fn count(client: &Client) -> Result<usize> {
    let page = Api::<Tenant>::all(client.clone()).list_metadata(&ListParams::default()).await?;
    Ok(page.items.len())
}
