//! Writes status and finalizers of the group's own resources.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
    core::object::HasStatus,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    apply::timed,
    error::{Error, Result, is_conflict, is_not_found},
};
use crate::api::{FIELD_MANAGER, FINALIZER, StatusPart};

/// How often a write is made again at once that somebody else's write got in the way of.
const CONTENTION: usize = 3;

/// A resource of the group: cluster-scoped, known at compile time.
pub trait GroupResource:
    Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
    + Clone
    + Serialize
    + DeserializeOwned
    + std::fmt::Debug
{
}

impl<K> GroupResource for K where
    K: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
        + Clone
        + Serialize
        + DeserializeOwned
        + std::fmt::Debug
{
}

/// What one writer wrote into the statuses of one resource and the watch has not brought yet.
///
/// Without it, a reconcile would compare with a status that is older than its own last write.
#[derive(Default)]
pub struct Statuses<T> {
    written: Mutex<HashMap<String, Written<T>>>,
}

/// What is known of an object's status beside what the watch has brought.
struct Written<T> {
    /// The version that the last write left, and what it wrote.
    last: Option<(u64, T)>,
    /// While a reconcile that has written goes on: the newest version that the watch has
    /// brought since. It may be faster than the answer to the write.
    seen: Option<u64>,
}

impl<T: StatusPart> Statuses<T> {
    /// The newest known status of an object, as far as it is this writer's: the one written last,
    /// or else the one observed.
    pub fn current<K: Resource>(&self, object: &K, observed: Option<&T::Whole>) -> Option<T> {
        let uid = object.meta().uid.as_deref().unwrap_or_default();
        let written = self.lock();
        let last = written.get(uid).and_then(|written| written.last.as_ref());
        match last {
            Some((version, status)) if version_of(object) < *version => Some(status.clone()),
            _ => observed.map(T::of),
        }
    }

    /// A reconcile of an object begins, and will take it from the watch's store: what is known
    /// here is kept until it settles, since the object that it holds may be older.
    pub fn begin(&self, uid: &str) {
        if let Some(written) = self.lock().get_mut(uid) {
            written.seen.get_or_insert(0);
        }
    }

    /// Takes in what the watch has brought.
    pub fn saw<K: Resource>(&self, object: &K) {
        let uid = object.meta().uid.as_deref().unwrap_or_default();
        let version = version_of(object);
        let mut all = self.lock();
        let Some(written) = all.get_mut(uid) else { return };
        match &mut written.seen {
            // A reconcile may still hold the object as it was before.
            Some(seen) => *seen = version.max(*seen),
            None if written.last.as_ref().is_none_or(|(last, _)| *last <= version) => drop(all.remove(uid)),
            None => {}
        }
    }

    /// A reconcile of an object has ended: what it wrote need not be known here as well once
    /// the watch has brought it.
    pub fn settle(&self, uid: &str) {
        let mut all = self.lock();
        let Some(written) = all.get_mut(uid) else { return };
        let seen = written.seen.take().unwrap_or(0);
        if written.last.as_ref().is_none_or(|(last, _)| *last <= seen) {
            all.remove(uid);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Written<T>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a status where it differs from the newest known one; returns whether it did.
    pub async fn write<K>(&self, client: &Client, object: &K, observed: Option<&T::Whole>, status: &T) -> Result<bool>
    where
        K: GroupResource + HasStatus<Status = T::Whole>,
    {
        if self.current(object, observed).as_ref() == Some(status) {
            return Ok(false);
        }
        let uid = object.meta().uid.as_deref().unwrap_or_default();
        self.lock().entry(uid.to_owned()).or_insert(Written { last: None, seen: None }).seen.get_or_insert(0);
        let Some(version) = self.send(client, object, status).await? else { return Ok(false) };
        if let Some(written) = self.lock().get_mut(uid) {
            written.last = Some((version, status.clone()));
        }
        Ok(true)
    }

    /// Changes a status from what the cluster has, and not from what is known here: a write whose
    /// answer was not waited for may have changed it. Nothing is written where the object is gone,
    /// nothing is to be changed, or it is so already. Returns the status before and after.
    pub async fn amend<K>(
        &self,
        client: &Client,
        object: &K,
        change: impl FnOnce(&K) -> Option<T>,
    ) -> Result<Option<(T, T)>>
    where
        K: GroupResource + HasStatus<Status = T::Whole>,
        T: Default,
    {
        let what = format!("read {} {}", K::kind(&()), object.name_any());
        let live = timed(&what, Api::<K>::all(client.clone()).get_opt(&object.name_any())).await?;
        let live = live.map_err(|error| Error::from_kube(what, &error))?;
        let Some(live) = live.filter(|live| live.meta().uid == object.meta().uid) else { return Ok(None) };
        let Some(status) = change(&live) else { return Ok(None) };
        let written = self.write(client, &live, live.status(), &status).await?;
        Ok(written.then(|| (live.status().map(T::of).unwrap_or_default(), status)))
    }

    /// Writes a status; returns the version that it left, or nothing if the object is gone.
    async fn send<K>(&self, client: &Client, object: &K, status: &T) -> Result<Option<u64>>
    where
        K: GroupResource + HasStatus<Status = T::Whole>,
    {
        let what = format!("write the status of {} {}", K::kind(&()), object.name_any());
        // The UID keeps a status from reaching another object of the same name.
        let body = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()),
            "metadata": {"name": object.name_any(), "uid": object.meta().uid},
            "status": status,
        });
        let api = Api::<K>::all(client.clone());
        let params = PatchParams::apply(T::MANAGER).force();
        let mut left = CONTENTION;
        let written = loop {
            let written = timed(&what, api.patch_status(&object.name_any(), &params, &Patch::Apply(&body))).await?;
            match written {
                Ok(written) => break written,
                // The object is gone: there is nothing to tell.
                Err(error) if is_not_found(&error) => return Ok(None),
                // It is another one by now, or just busy.
                Err(error) if is_conflict(&error) => {
                    if !is_still(&what, &api, object).await? {
                        return Ok(None);
                    }
                    if left == 0 {
                        return Err(Error::from_kube(what, &error));
                    }
                    left -= 1;
                }
                Err(error) => return Err(Error::from_kube(what, &error)),
            }
        };
        let whole = written.status().cloned().unwrap_or_default();
        let (wanted, left) = (serde_json::to_value(status), serde_json::to_value(T::of(&whole)));
        if !has_more(&left.unwrap_or_default(), &wanted.unwrap_or_default()) {
            return Ok(Some(version_of(&written)));
        }
        // An apply leaves what others wrote, such as a backup tool that brings a status back. What
        // another writer of ours has written since must not be lost.
        let operations = json!([
            {"op": "test", "path": "/metadata/uid", "value": object.meta().uid},
            {"op": "test", "path": "/metadata/resourceVersion", "value": written.meta().resource_version},
            {"op": "replace", "path": "/status", "value": status.clone().within(whole)},
        ]);
        let operations =
            serde_json::from_value(operations).map_err(|error| Error::timeout(format!("{what}: {error}")))?;
        let params = PatchParams { field_manager: Some(T::MANAGER.into()), ..PatchParams::default() };
        let patch = Patch::Json::<Value>(operations);
        match timed(&what, api.patch_status(&object.name_any(), &params, &patch)).await? {
            Ok(written) => Ok(Some(version_of(&written))),
            Err(error) if is_not_found(&error) => Ok(None),
            // Somebody changed the object in between: the next look sees it.
            Err(kube::Error::Api(status)) if status.code == 422 => Err(Error::timeout(what)),
            Err(error) => Err(Error::from_kube(what, &error)),
        }
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }
}

/// Whether a status has fields, or items of a list, beside those that are wanted. (Items stand in
/// the order in which they were applied.)
fn has_more(left: &Value, wanted: &Value) -> bool {
    match (left, wanted) {
        (Value::Object(left), Value::Object(wanted)) => {
            left.iter().any(|(field, left)| wanted.get(field).is_none_or(|wanted| has_more(left, wanted)))
        }
        (Value::Array(left), Value::Array(wanted)) => {
            left.len() > wanted.len() || left.iter().zip(wanted).any(|(left, wanted)| has_more(left, wanted))
        }
        _ => false,
    }
}

/// Whether the object of this name is still this one.
async fn is_still<K: GroupResource>(what: &str, api: &Api<K>, object: &K) -> Result<bool> {
    let live = timed(what, api.get_metadata_opt(&object.name_any())).await?;
    let live = live.map_err(|error| Error::from_kube(what, &error))?;
    Ok(live.is_some_and(|live| live.metadata.uid == object.meta().uid))
}

fn version_of<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Puts our finalizer on an object that lacks it.
pub async fn add_finalizer<K>(client: &Client, object: &K) -> Result<()>
where
    K: GroupResource,
{
    let finalizers = object.finalizers();
    if finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(());
    }
    let value = if finalizers.is_empty() { Value::Null } else { json!(finalizers) };
    let mut wanted = finalizers.to_vec();
    wanted.push(FINALIZER.to_owned());
    patch_finalizers(client, object, &value, &wanted).await
}

/// Takes our finalizer off an object. Those of others stay.
pub async fn remove_finalizer<K>(client: &Client, object: &K) -> Result<()>
where
    K: GroupResource,
{
    let finalizers = object.finalizers();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(());
    }
    let wanted: Vec<_> = finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
    patch_finalizers(client, object, &json!(finalizers), &wanted).await
}

/// Replaces the list if it is still what it was, on the object that it was.
async fn patch_finalizers<K>(client: &Client, object: &K, seen: &Value, wanted: &[String]) -> Result<()>
where
    K: GroupResource,
{
    let name = object.name_any();
    let what = format!("change the finalizers of {} {name}", K::kind(&()));
    let operations = json!([
        {"op": "test", "path": "/metadata/uid", "value": object.meta().uid},
        {"op": "test", "path": "/metadata/finalizers", "value": seen},
        {"op": "add", "path": "/metadata/finalizers", "value": wanted},
    ]);
    let operations = serde_json::from_value(operations).map_err(|error| Error::timeout(format!("{what}: {error}")))?;
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let api = Api::<K>::all(client.clone());
    match timed(&what, api.patch_metadata(&name, &params, &Patch::Json::<Value>(operations))).await? {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        // Somebody changed the list in between: the next look sees it.
        Err(kube::Error::Api(status)) if status.code == 422 => Err(Error::timeout(what)),
        Err(error) => Err(Error::from_kube(what, &error)),
    }
}
