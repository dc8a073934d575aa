//! Writes objects: made where they are absent, brought back where they differ, left alone
//! where nothing changed.

use std::{sync::Arc, time::Duration};

use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy, ValidationDirective},
    core::ApiResource,
};
use serde_json::{Value, json};
use tracing::info;

use super::{
    children::{Children, Key, Observed, desired_hash},
    drift::{self, REPLICAS_MANAGER, compare, is_ours},
    error::{Error, ErrorClass, Result, is_conflict, is_not_found, is_owned_by_others},
};
use crate::{
    api::FIELD_MANAGER,
    desired::{Kind, Object},
};

/// The longest that one call to the API server may take, with all of its answer: for a server
/// that begins to answer and stops.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How often an object is brought back again that somebody changes while that is done.
const OVERTAKEN: usize = 2;

/// What an apply did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing: the object was as desired.
    Unchanged,
    /// The object was made.
    Created,
    /// The object was changed.
    Changed,
}

/// What a delete came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// The object is not there (any more), or it is not ours.
    Gone,
    /// It goes once what is under way has ended.
    Ending,
    /// It stays until whoever set these finalizers removes them.
    Held {
        /// Kind, namespace and name.
        what: String,
        /// The finalizers.
        finalizers: Vec<String>,
    },
}

/// Reads and writes the operator's objects in a cluster.
pub struct Cluster<S> {
    client: Client,
    children: Arc<Children<S>>,
}

impl<S> Clone for Cluster<S> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), children: Arc::clone(&self.children) }
    }
}

impl<S: Clone + PartialEq> Cluster<S> {
    /// Writes with this client, and keeps in `children` what it wrote.
    pub fn new(client: Client, children: Arc<Children<S>>) -> Self {
        Self { client, children }
    }

    /// What is known of the objects.
    pub fn children(&self) -> &Children<S> {
        &self.children
    }

    /// The same, for the watches that keep it up to date.
    pub fn shared_children(&self) -> Arc<Children<S>> {
        Arc::clone(&self.children)
    }

    /// The client, for the resources of the group and for watches.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Brings one object to what is desired.
    ///
    /// # Errors
    /// [`Error::Foreign`] where an object of that name is there that we didn't make.
    pub async fn apply(&self, object: &Object) -> Result<Applied> {
        self.bring(object, desired_hash(&object.body), false).await
    }

    /// The same as [`apply_as`](Self::apply_as) for an object of a namespace that we have only just made: nobody can have put
    /// one of its name there, so that none is looked for.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub async fn apply_first(&self, object: &Object, hash: u64) -> Result<Applied> {
        self.bring(object, hash, true).await
    }

    /// The same, where the caller knows the desired object by a hash of its own: one that can
    /// be had without what is secret in it.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub async fn apply_as(&self, object: &Object, hash: u64) -> Result<Applied> {
        self.bring(object, hash, false).await
    }

    async fn bring(&self, object: &Object, hash: u64, nobody_else: bool) -> Result<Applied> {
        let key = Key::of(object);
        match self.children.observe(&key, hash) {
            Observed::InSync => return Ok(Applied::Unchanged),
            Observed::Absent => {
                // An apply would merge with an object of the same name that is somebody else's.
                let known = nobody_else || is_watched_whole(key.kind);
                let found = if known { None } else { self.read(&key).await? };
                match found {
                    None => {
                        let created = self.create(&key, &object.body).await?;
                        info!(object = %key, "created");
                        self.children.wrote(&key, hash, &created);
                        return Ok(Applied::Created);
                    }
                    Some(live) if is_ours(&live) => {}
                    Some(_) => return Err(self.foreign(&key, &object.body)),
                }
            }
            Observed::Changed(live) => {
                let says_so = is_ours(&live);
                if !says_so && self.children.is_ours(&key) != Some(true) {
                    return Err(self.foreign(&key, &object.body));
                }
                // Where somebody has cleared who set what, only an apply brings to light what
                // was added.
                if says_so && compare(&object.body, &live).is_none() {
                    self.children.verified(&key, hash, &live);
                    return Ok(Applied::Unchanged);
                }
            }
            Observed::Foreign => return Err(self.foreign(&key, &object.body)),
            Observed::Outdated => {}
        }
        let left = self.restore(&key, &object.body).await?;
        info!(object = %key, "changed");
        self.children.wrote(&key, hash, &left);
        Ok(Applied::Changed)
    }

    /// Applies what is ours and removes what others added.
    async fn restore(&self, key: &Key, body: &Value) -> Result<Value> {
        if key.kind == Kind::Deployment && body.pointer("/spec/replicas").is_none() {
            self.hand_over_replicas(key).await?;
        }
        let mut left = self.overrule(key, body).await?;
        // Somebody may have changed it between our own two writes: what they left is then in the
        // answer to the second, and no event of a watch tells of it any more.
        for _ in 0..OVERTAKEN {
            if !compare(body, &left).missing {
                break;
            }
            left = self.overrule(key, body).await?;
        }
        Ok(left)
    }

    /// Applies what is ours over what others wrote, then takes out what they added.
    async fn overrule(&self, key: &Key, body: &Value) -> Result<Value> {
        let params = strict(PatchParams::apply(FIELD_MANAGER).force());
        let applied = match self.patch(key, "apply", &params, &Patch::Apply(body)).await {
            // What others added may not go together with what is ours: a second port without
            // a name, say. Then it has to go first.
            Err(error) if error.class() == ErrorClass::Permanent => {
                let Some(live) = self.read(key).await? else { return Err(error) };
                let operations = drift::overwrite(body, &live);
                if operations.is_empty() {
                    return Err(error);
                }
                self.edit(key, &live, operations).await?;
                self.patch(key, "apply", &params, &Patch::Apply(body)).await?
            }
            other => other?,
        };
        self.take_out(key, body, applied).await
    }

    /// Removes what others added to an object that has all that is ours.
    async fn take_out(&self, key: &Key, body: &Value, mut live: Value) -> Result<Value> {
        let mut attempts = 3;
        loop {
            let additions = compare(body, &live).additions;
            if additions.is_empty() {
                return Ok(live);
            }
            let operations = additions.iter().map(|path| json!({"op": "remove", "path": path.pointer()})).collect();
            match self.edit(key, &live, operations).await {
                // Its status, most often: a rollout has begun.
                Err(Error::Refused { class: ErrorClass::Transient, .. }) if attempts > 0 => {
                    attempts -= 1;
                    let Some(found) = self.read(key).await? else { return Ok(live) };
                    live = found;
                }
                other => return other,
            }
        }
    }

    /// Changes an object if it is still this one.
    async fn edit(&self, key: &Key, live: &Value, operations: Vec<Value>) -> Result<Value> {
        let version = live.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
        // A write of an older version is a conflict.
        let same = json!({"op": "replace", "path": "/metadata/resourceVersion", "value": version});
        let operations = std::iter::once(same).chain(operations).collect();
        let operations = serde_json::from_value(Value::Array(operations))
            .map_err(|error| Error::timeout(format!("remove what was added to {key}: {error}")))?;
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        self.patch(key, "remove what was added to", &params, &Patch::Json::<Value>(operations)).await
    }

    /// Keeps a Deployment's replica count when an autoscaler takes it over: a field that
    /// nobody owns any more would fall back to 1. From zero it goes to one, since an autoscaler
    /// leaves alone what is scaled to zero.
    async fn hand_over_replicas(&self, key: &Key) -> Result<()> {
        let mut attempts = 3;
        loop {
            let Some(live) = self.read(key).await? else { return Ok(()) };
            if !drift::owns_replicas(&live) {
                return Ok(());
            }
            // An autoscaler leaves a Deployment of zero replicas alone: one that was scaled down
            // (of a suspended tenant, say) begins with one.
            let replicas = live["spec"]["replicas"].as_i64().unwrap_or(1).max(1);
            // Only of what was read: the autoscaler is there already, and may scale just now.
            let version = &live["metadata"]["resourceVersion"];
            let body = json!({
                "apiVersion": live["apiVersion"], "kind": live["kind"],
                "metadata": {"name": key.name, "resourceVersion": version},
                "spec": {"replicas": replicas},
            });
            let params = PatchParams::apply(REPLICAS_MANAGER).force();
            match self.patch(key, "keep the replicas of", &params, &Patch::Apply(body)).await {
                Err(Error::Refused { class: ErrorClass::Transient, .. }) if attempts > 0 => attempts -= 1,
                other => return other.map(drop),
            }
        }
    }

    /// Deletes an object if we made it; one that is gone already is a success. One that no
    /// watch has told of is looked at first: its name may be somebody else's.
    pub async fn delete_ours(&self, key: &Key) -> Result<Deleted> {
        let ours = match self.children.is_ours(key) {
            Some(ours) => ours,
            None => self.read(key).await?.is_some_and(|live| is_ours(&live)),
        };
        if ours { self.delete(key).await } else { Ok(Deleted::Gone) }
    }

    /// Deletes an object if it is the one we know, or another one that we made; one that is
    /// gone already is a success.
    pub async fn delete(&self, key: &Key) -> Result<Deleted> {
        let error = match self.delete_this(key, self.children.uid(key)).await? {
            Ok(deleted) => return Ok(deleted),
            Err(error) => error,
        };
        // It is another one by now, or just busy.
        let live = if is_conflict(&error) { self.read(key).await? } else { None };
        let what = format!("delete {key}");
        match live {
            Some(live) if is_ours(&live) => {
                let uid = live.pointer("/metadata/uid").and_then(Value::as_str).map(str::to_owned);
                self.delete_this(key, uid).await?.map_err(|error| Error::from_kube(what, &error))
            }
            Some(_) => Ok(Deleted::Gone),
            None if is_conflict(&error) => Ok(Deleted::Gone),
            None => Err(Error::from_kube(what, &error)),
        }
    }

    async fn delete_this(&self, key: &Key, uid: Option<String>) -> Result<kube::Result<Deleted>> {
        let params = DeleteParams {
            preconditions: uid.map(|uid| Preconditions { uid: Some(uid), resource_version: None }),
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        match timed(&format!("delete {key}"), self.api(key).delete(&key.name, &params)).await? {
            Ok(answer) => {
                info!(object = %key, "deleted");
                // An object that is gone at once is answered with a status alone.
                Ok(Ok(answer.left().map_or(Deleted::Gone, |left| ending(key, &left))))
            }
            Err(error) if is_not_found(&error) => Ok(Ok(Deleted::Gone)),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Reads an object from the API server.
    pub async fn read(&self, key: &Key) -> Result<Option<Value>> {
        let what = format!("read {key}");
        let found = timed(&what, self.api(key).get_opt(&key.name)).await?;
        let found = found.map_err(|error| Error::from_kube(&what, &error))?;
        Ok(found.and_then(|object| serde_json::to_value(object).ok()))
    }

    /// Makes an object. Not forced: where one of that name came in between, its fields stay.
    async fn create(&self, key: &Key, body: &Value) -> Result<Value> {
        let what = format!("create {key}");
        let params = strict(PatchParams::apply(FIELD_MANAGER));
        match timed(&what, self.api(key).patch(&key.name, &params, &Patch::Apply(body))).await? {
            Ok(created) => serde_json::to_value(created).map_err(|error| Error::timeout(format!("{what}: {error}"))),
            Err(error) if is_owned_by_others(&error) => Err(self.foreign(key, body)),
            Err(error) => Err(Error::from_kube(what, &error)),
        }
    }

    /// Somebody else has the name.
    fn foreign(&self, key: &Key, desired: &Value) -> Error {
        self.children.refused(key, desired);
        Error::Foreign { what: key.to_string() }
    }

    async fn patch<B: serde::Serialize + std::fmt::Debug>(
        &self,
        key: &Key,
        verb: &str,
        params: &PatchParams,
        patch: &Patch<B>,
    ) -> Result<Value> {
        let what = format!("{verb} {key}");
        let patched = timed(&what, self.api(key).patch(&key.name, params, patch)).await?;
        let patched = patched.map_err(|error| Error::from_kube(&what, &error))?;
        serde_json::to_value(patched).map_err(|error| Error::timeout(format!("{what}: {error}")))
    }

    fn api(&self, key: &Key) -> Api<DynamicObject> {
        let resource = api_resource(key.kind);
        match &key.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }
}

/// Whether every object of a kind is watched, not only ours: these are the kinds that each
/// tenant has, and what a watch tells needs no read before they are made.
pub(super) fn is_watched_whole(kind: Kind) -> bool {
    matches!(kind, Kind::Secret | Kind::ConfigMap | Kind::HttpRoute | Kind::Ingress)
}

/// How the API server calls a kind.
pub fn api_resource(kind: Kind) -> ApiResource {
    ApiResource {
        group: kind.group().into(),
        version: kind.version().into(),
        api_version: kind.api_version(),
        kind: kind.as_str().into(),
        plural: kind.plural().into(),
    }
}

/// What holds an object that is being deleted. Kubernetes' own finalizers end by themselves.
fn ending(key: &Key, object: &DynamicObject) -> Deleted {
    let own = ["foregroundDeletion", "orphan"];
    let foreign = object.metadata.finalizers.iter().flatten().filter(|name| !own.contains(&name.as_str()));
    let finalizers: Vec<_> = foreign.cloned().collect();
    if finalizers.is_empty() { Deleted::Ending } else { Deleted::Held { what: key.to_string(), finalizers } }
}

fn strict(mut params: PatchParams) -> PatchParams {
    params.field_validation = Some(ValidationDirective::Strict);
    params
}

/// Ends a call that gets no answer: kube's client waits for ever by itself.
pub(super) async fn timed<T>(what: &str, call: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(|_| Error::timeout(what))
}
