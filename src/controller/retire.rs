//! Takes away what a Tenant has in the cluster, its namespace as well; what others have there
//! stays, and a namespace with it.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, ListParams, PartialObjectMeta, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tracing::info;

use super::{
    failure::{Class, Failure},
    namespaces,
    world::World,
};
use crate::{
    api::{ANNOTATION_KEPT, FIELD_MANAGER, LABEL_MANAGED_BY, MANAGED_BY},
    cluster::{Deleted, Key, Owner, is_ours},
    desired::{Kind, naming, operator_binding},
};

/// The kinds whose foreign objects keep a namespace: what has data, what runs, and what people
/// write for it. Others (ServiceAccounts, Roles, NetworkPolicies, custom resources) hold
/// nothing by themselves, and to look for those of every kind would take a wildcard.
const KEEPS: [(&str, &str, &str); 11] = [
    ("", "v1", "PersistentVolumeClaim"),
    ("apps", "v1", "StatefulSet"),
    ("apps", "v1", "Deployment"),
    ("apps", "v1", "DaemonSet"),
    ("apps", "v1", "ReplicaSet"),
    ("batch", "v1", "CronJob"),
    ("batch", "v1", "Job"),
    ("", "v1", "Pod"),
    ("", "v1", "Service"),
    ("", "v1", "ConfigMap"),
    ("", "v1", "Secret"),
];

/// Owners whose objects are no reason of their own: they are looked at themselves.
const OWNERS: [&str; 7] = ["StatefulSet", "Deployment", "DaemonSet", "ReplicaSet", "CronJob", "Job", "Pod"];

/// ConfigMaps that a cluster puts into every namespace.
const OF_THE_CLUSTER: [&str; 3] = ["kube-root-ca.crt", "openshift-service-ca.crt", "istio-ca-root-cert"];

/// How many objects of a kind are looked at, and how many of all are named.
const LISTED: u32 = 100;
const NAMED: usize = 5;

/// The reason of a failure for want of rights.
const RIGHTS_PENDING: &str = "RightsPending";

/// How long a reconcile waits for the list of a namespace.
const LISTED_WITHIN: Duration = Duration::from_secs(2);

/// What became of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Retired {
    /// It is gone, with all that was in it.
    Gone,
    /// It stays, since others have these objects there; nothing of ours is in it.
    Kept(String),
}

/// Removes objects, all that can be; tells of the first that is held.
pub(super) async fn remove(world: &World, keys: Vec<Key>) -> Result<(), Failure> {
    let mut held = None;
    for key in keys {
        match world.cluster.delete_ours(&key).await? {
            Deleted::Gone => {}
            Deleted::Ending => {
                held.get_or_insert_with(|| Failure::waiting("Ending", format!("{key} is being deleted")));
            }
            Deleted::Held { what, finalizers } => {
                held.get_or_insert_with(|| obstructed(held_message(&what, &finalizers)));
            }
        }
    }
    held.map_or(Ok(()), Err)
}

/// Removes a namespace of an owner's own, with all that is in it; or, where `keep` says so and
/// others have something there, all that is ours and nothing else. One that an earlier owner of
/// the name left for others, and that this one never used, stays in any case.
pub(super) async fn retire(world: &Arc<World>, owner: &Owner, namespace: &str, keep: bool) -> Result<Retired, Failure> {
    let key = Key { kind: Kind::Namespace, namespace: None, name: namespace.to_owned() };
    let Some(live) = world.cluster.read(&key).await?.filter(is_ours) else {
        // Somebody else's has that name: nothing of ours was ever made in it.
        namespaces::unwatch(world, namespace);
        return Ok(Retired::Gone);
    };
    let ending = live.pointer("/metadata/deletionTimestamp").is_some();
    let kept = live.pointer("/metadata/annotations").and_then(|all| all.get(ANNOTATION_KEPT)).and_then(Value::as_str);
    if let Some(kept) = kept.filter(|_| !ending && children(world, owner, namespace).is_empty()) {
        return Ok(Retired::Kept(kept.to_owned()));
    }
    if keep && !ending {
        let found = match foreign(world.cluster.client(), namespace).await {
            Err(failure) if failure.reason == RIGHTS_PENDING => {
                // They may never have been given, or somebody took them away. They arrive a
                // moment later.
                give_rights(world, &live, namespace).await?;
                return Err(failure);
            }
            other => other?,
        };
        if !found.is_empty() {
            await_listed(world, owner, namespace).await?;
            return clear(world, namespace, children(world, owner, namespace), &found).await;
        }
    }
    match world.cluster.delete(&key).await? {
        Deleted::Gone => {
            namespaces::unwatch(world, namespace);
            Ok(Retired::Gone)
        }
        Deleted::Held { what, finalizers } => Err(obstructed(held_message(&what, &finalizers))),
        Deleted::Ending => {
            let left = world.cluster.read(&key).await?.as_ref().and_then(remaining);
            Err(match left {
                Some(left) => obstructed(format!("namespace {namespace} can't end: {left}")),
                None => Failure::waiting("Ending", format!("namespace {namespace} is being deleted")),
            })
        }
    }
}

/// What is ours in a namespace of an owner's.
fn children(world: &World, owner: &Owner, namespace: &str) -> Vec<Key> {
    let mut children = world.cluster.children().of_owner(owner);
    children.retain(|key| key.namespace.as_deref() == Some(namespace));
    children
}

/// Binds the operator to its rights in a namespace, by which it looks for what others have there
/// and takes out what is its own.
async fn give_rights(world: &World, live: &Value, namespace: &str) -> Result<(), Failure> {
    let labels = live.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
    // Those of whose it is; not those by which the namespace is held to Pod Security.
    let of_owner = |label: &&String| naming::POD_LABELS.contains(&label.as_str());
    let labels = labels.filter(|(label, _)| of_owner(label));
    let labels = labels.filter_map(|(label, value)| Some((label.clone(), value.as_str()?.to_owned()))).collect();
    world.cluster.apply(&operator_binding(namespace, &labels, &world.settings)).await?;
    Ok(())
}

/// Waits until each Secret and ConfigMap of ours in a namespace is known: a watch may not have
/// begun yet, or not have been possible without rights.
async fn await_listed(world: &Arc<World>, owner: &Owner, namespace: &str) -> Result<(), Failure> {
    namespaces::watch(world, namespace, owner);
    world.shared.listed(namespace, LISTED_WITHIN).await;
    match world.shared.is_listed(namespace) {
        true => Ok(()),
        false => Err(Failure::waiting("NamespaceNotListed", format!("namespace {namespace} is being listed"))),
    }
}

/// Takes all that is ours out of a namespace that stays. Our rights in it go last.
async fn clear(
    world: &Arc<World>,
    namespace: &str,
    mut children: Vec<Key>,
    found: &[String],
) -> Result<Retired, Failure> {
    let named = found.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let more = found.len().saturating_sub(NAMED);
    let why = if more == 0 { named } else { format!("{named} and {more} more") };
    let is_rights = |key: &Key| key.kind == Kind::RoleBinding && key.name == naming::NAMESPACE_ROLE;
    let rights = children.iter().position(is_rights).map(|at| children.swap_remove(at));
    children.sort();
    remove(world, children).await?;
    // Whoever finds the namespace reads there why it stayed. A Tenant that comes back takes the word away.
    let note = Patch::Merge(json!({"metadata": {"annotations": {ANNOTATION_KEPT: why}}}));
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let api = Api::<Namespace>::all(world.cluster.client().clone());
    api.patch_metadata(namespace, &params, &note).await.map_err(|error| refused(namespace, &error))?;
    remove(world, rights.into_iter().collect()).await?;
    namespaces::unwatch(world, namespace);
    info!(namespace, objects = why, "the namespace stays: others have objects in it");
    Ok(Retired::Kept(why))
}

/// The objects of others in a namespace, as `Kind name`.
async fn foreign(client: &Client, namespace: &str) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for (group, version, kind) in KEEPS {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let mut params = ListParams::default().limit(LISTED);
        // A claim has data whatever its labels say.
        if kind != "PersistentVolumeClaim" {
            params = params.labels(&format!("{LABEL_MANAGED_BY}!={MANAGED_BY}"));
        }
        let list = api.list_metadata(&params).await.map_err(|error| refused(namespace, &error))?;
        let keeps = list.items.iter().filter(|object| is_reason(object));
        found.extend(keeps.map(|object| format!("{kind} {}", object.name_any())));
    }
    Ok(found)
}

/// Whether an object keeps its namespace: not if it goes already, if it goes with an object that
/// is looked at itself, or if the cluster puts it everywhere.
fn is_reason(object: &PartialObjectMeta<DynamicObject>) -> bool {
    let owned = object.owner_references().iter().any(|owner| OWNERS.contains(&owner.kind.as_str()));
    let of_the_cluster = OF_THE_CLUSTER.contains(&object.name_any().as_str())
        || object.annotations().contains_key("kubernetes.io/service-account.name");
    object.metadata.deletion_timestamp.is_none() && !owned && !of_the_cluster
}

/// What is left in a namespace that is being deleted, as its controller says.
fn remaining(namespace: &Value) -> Option<String> {
    let conditions = namespace.pointer("/status/conditions")?.as_array()?;
    let says = |kind: &str| {
        let found = conditions.iter().find(|condition| condition["type"] == kind && condition["status"] == "True")?;
        found["message"].as_str().map(str::to_owned)
    };
    // What merely remains may just need a moment; what has a finalizer waits for somebody.
    says("NamespaceFinalizersRemaining").or_else(|| says("NamespaceDeletionContentFailure"))
}

fn refused(namespace: &str, error: &kube::Error) -> Failure {
    let (class, reason): (_, crate::api::Reason) = match error {
        kube::Error::Api(status) if status.code == 403 => (Class::Waiting, RIGHTS_PENDING),
        _ => (Class::Transient, "ApiServerError"),
    };
    Failure { class, reason, message: format!("look for objects of others in namespace {namespace}: {error}") }
}

/// Says what holds an object that is being deleted.
pub(super) fn held_message(what: &str, finalizers: &[String]) -> String {
    let (word, them) = if finalizers.len() == 1 { ("finalizer", "it") } else { ("finalizers", "them") };
    format!("{what} is held by {word} {}: it goes when whoever set {them} removes {them}", finalizers.join(", "))
}

/// Something that is being deleted is held by somebody else.
fn obstructed(message: String) -> Failure {
    Failure { class: Class::Obstructed, reason: "ForeignFinalizer", message }
}
