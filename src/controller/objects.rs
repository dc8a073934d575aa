//! What pools and tenants with a namespace of their own have in common: bringing the objects
//! of a namespace to what is desired, and removing what is no longer.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::ByteString;

use super::{
    failure::Failure,
    namespaces::{self, KINDS},
    rollout::{self, Sources},
    world::World,
};
use crate::{
    api::Application,
    cluster::{self, Applied, ErrorClass, Key, Owner, desired_hash},
    desired::{self, Kept, Kind, Object, SharedContent, naming},
};

/// How many milliseconds it is waited, again and again, for the rights in a namespace that was made just now.
/// The API server's authorizer learns of them from a watch of its own, which tells nobody.
const RIGHTS_ARRIVE: [u64; 5] = [10, 20, 40, 80, 160];

/// The objects of one owner in a namespace of its own, while they are applied.
///
/// Everything that is wanted is either applied or kept; then [`prune`](Self::prune) removes
/// the rest.
pub(super) struct Namespaced<'a> {
    world: &'a Arc<World>,
    owner: Owner,
    namespace: &'a str,
    /// Whether the namespace was made by this look at it.
    is_new: bool,
    wanted: HashSet<Key>,
    /// The Deployments of which template and number of replicas stay.
    held: BTreeSet<String>,
    /// Whether the list of the namespace was waited for.
    waited: bool,
    /// Where a tenant's templates come from; nothing for a pool.
    sources: Option<Box<Sources<'a>>>,
    /// The first object that was refused.
    failure: Option<Failure>,
}

impl<'a> Namespaced<'a> {
    /// Begins with the namespace of an owner.
    pub(super) fn new(world: &'a Arc<World>, owner: Owner, namespace: &'a str) -> Self {
        Self {
            world,
            owner,
            namespace,
            is_new: false,
            wanted: HashSet::new(),
            held: BTreeSet::new(),
            waited: false,
            sources: None,
            failure: None,
        }
    }

    /// Says what stays as it is, since something is wrong with what is desired of it.
    pub(super) fn keeping(mut self, kept: &Kept) -> Self {
        self.held.extend(kept.deployments().map(str::to_owned));
        let namespace = Some(self.namespace.to_owned());
        let keys = kept.objects.iter().cloned();
        self.wanted.extend(keys.map(|(kind, name)| Key { kind, namespace: namespace.clone(), name }));
        self
    }

    /// Says where a tenant's pod templates come from, by component, so that what its own spec
    /// changes needs no turn in its Application's rollouts. It is asked only when a template
    /// changes.
    pub(super) fn sources(
        mut self,
        sources: impl Fn() -> BTreeMap<String, desired::rollout::Source> + Send + Sync + 'a,
    ) -> Self {
        self.sources = Some(Box::new(sources));
        self
    }

    /// Brings objects to what is desired, in their order, Deployments last and together: they
    /// go through the gate of rollouts, and keep the last pod template where a changed one
    /// has to wait (condition `RolledOut` says so; it is no failure). One that is refused doesn't keep
    /// those after it from being applied; [`prune`](Self::prune) tells of it.
    ///
    /// # Errors
    /// Where the namespace, or the operator's rights in it, can't be had: nothing else can be
    /// made then.
    pub(super) async fn apply(&mut self, objects: impl IntoIterator<Item = Object>) -> Result<(), Failure> {
        let mut deployments = Vec::new();
        for object in objects {
            if object.kind == Kind::Deployment {
                self.keep(Key::of(&object));
                deployments.push(object);
                continue;
            }
            let rights = object.kind == Kind::RoleBinding && object.name == naming::NAMESPACE_ROLE;
            self.keep(Key::of(&object));
            if KINDS.contains(&object.kind) && !self.is_new && !self.is_listed().await {
                self.failure.get_or_insert(namespaces::not_listed(self.namespace));
                continue;
            }
            match self.apply_one(&object).await {
                Ok(applied) => {
                    self.is_new |= object.kind == Kind::Namespace && applied == Applied::Created;
                    // New rights arrive a moment later: a watch that came before them would
                    // wait longer than a write that is tried again.
                    if rights && !self.is_new || !rights && object.kind != Kind::Namespace {
                        namespaces::watch(self.world, self.namespace, &self.owner);
                    }
                }
                Err(error) => {
                    let error = Failure::from(error);
                    if rights || object.kind == Kind::Namespace {
                        return Err(error);
                    }
                    self.failure.get_or_insert(error);
                }
            }
        }
        let sources = self.sources.as_deref();
        let applied = rollout::apply(self.world, &self.owner, &deployments, &self.held, self.is_new, sources).await;
        if let Some(error) = applied.into_iter().find_map(Result::err) {
            self.failure.get_or_insert(error.into());
        }
        Ok(())
    }

    /// Whether all Secrets and ConfigMaps of the namespace are known: before that, one that isn't
    /// known may be there all the same, ours or somebody else's, and an apply would merge with it.
    async fn is_listed(&mut self) -> bool {
        let shared = &self.world.shared;
        if !std::mem::replace(&mut self.waited, true) {
            shared.listed(self.namespace, namespaces::LISTING).await;
        }
        shared.is_listed(self.namespace)
    }

    async fn apply_one(&self, object: &Object) -> cluster::Result<Applied> {
        let cluster = &self.world.cluster;
        if !self.is_new {
            return cluster.apply(object).await;
        }
        let mut pauses = RIGHTS_ARRIVE.iter();
        loop {
            match cluster.apply_first(object, desired_hash(&object.body)).await {
                // The rights that were given just now arrive a moment later.
                Err(error) if error.class() == ErrorClass::Waiting => match pauses.next() {
                    Some(pause) => tokio::time::sleep(Duration::from_millis(*pause)).await,
                    None => return Err(error),
                },
                other => return other,
            }
        }
    }

    /// Notes that an object is wanted that somebody else applies.
    pub(super) fn keep(&mut self, key: Key) {
        self.wanted.insert(key);
    }

    /// The first object that was refused since this was asked last.
    pub(super) fn refused(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    /// Removes what the owner no longer has.
    ///
    /// # Errors
    /// The first object that could not be removed, or else the first that was refused.
    pub(super) async fn prune(self) -> Result<(), Failure> {
        for key in self.world.cluster.children().of_owner(&self.owner) {
            // A label may lie about whose an object is; its namespace doesn't.
            if key.namespace.as_deref() == Some(self.namespace) && !self.wanted.contains(&key) {
                self.world.cluster.delete(&key).await?;
            }
        }
        self.failure.map_or(Ok(()), Err)
    }
}

/// The contents of the Application's shared objects that are there; one that is missing is a
/// fault of the objects that are made from them.
pub(super) fn shared_contents(application: &Application, world: &World) -> Vec<SharedContent> {
    let Some(shared) = &application.spec.shared else { return Vec::new() };
    let encode = |data: &BTreeMap<String, ByteString>| -> BTreeMap<String, String> {
        data.iter().map(|(key, value)| (key.clone(), data_encoding::BASE64.encode(&value.0))).collect()
    };
    let secrets = shared.secrets.iter().flatten().filter_map(|name| {
        let secret = world.secret(name)?;
        Some(SharedContent {
            kind: Kind::Secret,
            name: name.clone(),
            type_: secret.type_.clone(),
            data: secret.data.as_ref().map(encode).unwrap_or_default(),
            binary_data: BTreeMap::new(),
        })
    });
    let config_maps = shared.config_maps.iter().flatten().filter_map(|name| {
        let map = world.config_map(name)?;
        Some(SharedContent {
            kind: Kind::ConfigMap,
            name: name.clone(),
            type_: None,
            data: map.data.clone().unwrap_or_default(),
            binary_data: map.binary_data.as_ref().map(encode).unwrap_or_default(),
        })
    });
    secrets.chain(config_maps).collect()
}
