//! Waits until every Tenant is Ready, and shows how each gets there.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::time::Duration;

use futures::TryStreamExt;
use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;

use super::{Steps, complete, parts::closed};
use crate::{Error, Signals};

/// How waiting ended.
pub(super) enum Outcome {
    /// So many Tenants are there, and all are Ready.
    Ready(usize),
    /// Some were not Ready in time; the reasons, one line each.
    Late(String),
    /// A signal came first.
    Interrupted,
}

/// Waits until every Tenant that is there is Ready at its newest generation.
pub(super) async fn ready(
    client: Client,
    signals: &Signals,
    steps: &Steps,
    patience: Duration,
) -> Result<Outcome, Error> {
    let signal = signals.as_fd().try_clone_to_owned().map_err(|source| Error::Missing {
        what: format!("signals can't be waited for: {source}"),
        hint: "raise the limit of open files (ulimit -n)".into(),
    })?;
    let signal = closed(UnixStream::from(signal))?;
    let mut seen = BTreeMap::new();
    let all = tokio::select! {
        count = watch(client, &mut seen, steps) => return Ok(Outcome::Ready(count)),
        () = signal => None,
        () = tokio::time::sleep(patience) => Some(()),
    };
    Ok(match all {
        None => Outcome::Interrupted,
        Some(()) => Outcome::Late(reasons(&seen)),
    })
}

/// The names of all Tenants.
pub(super) fn names(kubectl: &mut Command) -> Result<Vec<String>, Error> {
    let names = complete(kubectl.args(["get", "tenants", "-o", "jsonpath={.items[*].metadata.name}"]))?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}

/// Writes so many Tenants into a file: every fifth of tier bridge, every tenth of tier dedicated,
/// the others pooled on several plans.
pub(super) fn write_more(folder: &Path, number: usize) -> Result<PathBuf, Error> {
    let tenant = |at: usize| {
        let (plan, tier) = match at % 10 {
            0 => ("enterprise", "dedicated"),
            5 => ("smb", "bridge"),
            1 | 6 => ("free", "pooled"),
            2 | 7 => ("soho", "pooled"),
            _ => ("smb", "pooled"),
        };
        json!({
            "apiVersion": "tenantry.io/v1alpha1", "kind": "Tenant", "metadata": {"name": format!("more-{at}")},
            "spec": {"displayName": format!("Customer {at}"), "application": "crm", "plan": plan, "tier": tier},
        })
    };
    let items: Vec<_> = (0..number).map(tenant).collect();
    let path = folder.join("more-tenants.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    fs::write(&path, list.to_string()).map_err(Error::file("write", &path))?;
    Ok(path)
}

/// What one Tenant's status said last.
struct Seen {
    ready: bool,
    reason: String,
    message: String,
}

/// Follows the Tenants until all are Ready; how many there are.
async fn watch(client: Client, seen: &mut BTreeMap<String, Seen>, steps: &Steps) -> usize {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("tenantry.io", "v1alpha1", "Tenant"));
    let tenants: Api<DynamicObject> = Api::all_with(client, &kind);
    let mut events = pin!(watcher(tenants, watcher::Config::default()).default_backoff());
    let mut listed = false;
    loop {
        match events.try_next().await {
            Ok(Some(Event::InitDone)) => listed = true,
            Ok(Some(Event::InitApply(tenant) | Event::Apply(tenant))) => {
                let name = tenant.metadata.name.clone().unwrap_or_default();
                let now = look(&tenant);
                let before = seen.get(&name);
                if before.is_none_or(|before| before.ready != now.ready || before.reason != now.reason) {
                    let state = if now.ready { "Ready".to_owned() } else { format!("{}: {}", now.reason, now.message) };
                    steps.done(&format!("  tenant {name:<12} {state}"));
                }
                seen.insert(name, now);
            }
            Ok(Some(Event::Delete(tenant))) => {
                seen.remove(&tenant.metadata.name.unwrap_or_default());
            }
            // The stream lists and watches anew by itself, after a while.
            Ok(Some(Event::Init) | None) | Err(_) => {}
        }
        if listed && !seen.is_empty() && seen.values().all(|tenant| tenant.ready) {
            return seen.len();
        }
    }
}

fn look(tenant: &DynamicObject) -> Seen {
    let status = &tenant.data["status"];
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
    let text = |field: &str| ready.and_then(|ready| ready[field].as_str()).unwrap_or_default().to_owned();
    let current = status["observedGeneration"].as_i64() == tenant.metadata.generation;
    match ready {
        None => Seen { ready: false, reason: "Waiting".into(), message: "the operator has not seen it yet".into() },
        Some(condition) => {
            Seen { ready: current && condition["status"] == "True", reason: text("reason"), message: text("message") }
        }
    }
}

fn reasons(seen: &BTreeMap<String, Seen>) -> String {
    let line = |(name, tenant): (&String, &Seen)| format!("  {name}: {}: {}", tenant.reason, tenant.message);
    let lines: Vec<_> = seen.iter().filter(|(_, tenant)| !tenant.ready).map(line).collect();
    if lines.is_empty() { "  there are no Tenants".to_owned() } else { lines.join("\n") }
}
