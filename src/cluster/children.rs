//! What the operator knows of the objects that it made.
//!
//! The watches bring every object whole. What is kept is small: who it belongs to, a digest
//! of its content, and what the controllers need to know of its status. While the digest is
//! the one that our own last apply left, or that was compared with the desired object, an
//! event means nothing. Only where it differs, what can be compared of an object of ours is
//! held, until that is done. So a restart writes nothing, and every edit by hand is seen.
//! Of objects that are not ours no content is held: they are never compared.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::drift;
use crate::{
    api::{LABEL_POOL, LABEL_RELAY, LABEL_TENANT},
    desired::{Kind, Object},
};

/// For how long it is remembered that an object went: longer than any call takes.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Names one object in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, where the kind has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl Key {
    /// The key of a desired object.
    pub fn of(object: &Object) -> Self {
        Self { kind: object.kind, namespace: object.namespace.clone(), name: object.name.clone() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(formatter, "{} {namespace}/{}", self.kind, self.name),
            None => write!(formatter, "{} {}", self.kind, self.name),
        }
    }
}

/// Whose an object is, by its labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// A Tenant's, by name.
    Tenant(String),
    /// A Pool's, by name.
    Pool(String),
    /// A DatabaseServer's, by name: its relay.
    Server(String),
}

impl Owner {
    fn of(object: &Value) -> Option<Self> {
        let label = |name: &str| object.get("metadata")?.get("labels")?.get(name)?.as_str().map(str::to_owned);
        let of_pool = || label(LABEL_POOL).map(Self::Pool);
        label(LABEL_TENANT).map(Self::Tenant).or_else(of_pool).or_else(|| label(LABEL_RELAY).map(Self::Server))
    }
}

/// How an object stands to what is desired.
#[derive(Debug)]
pub enum Observed {
    /// It is not there, as far as the watches have told.
    Absent,
    /// It is as desired; nothing is to be done.
    InSync,
    /// It has changed since it was last compared: this is what it is, without its status.
    Changed(Value),
    /// It is as we left it, but something else is desired now.
    Outdated,
    /// It is there, and is not ours.
    Foreign,
}

/// What was learned of an object's state beyond its content, such as its status.
pub type Extract<S> = fn(Kind, &Value) -> S;

struct Child<S> {
    uid: String,
    version: u64,
    digest: u64,
    /// The hash of the desired object that this digest was compared with.
    verified: Option<u64>,
    /// What is compared of an object of ours, as JSON, until that is done.
    whole: Option<Box<[u8]>>,
    ours: bool,
    owner: Option<Owner>,
    /// Which of our writes it is; 0 if a watch told of it since.
    written: u64,
    state: S,
}

struct Maps<S> {
    /// Boxed: a map of tens of thousands has a third of its places empty.
    children: HashMap<Key, Box<Child<S>>>,
    /// In order. Most owners have two.
    by_owner: HashMap<Owner, Vec<Key>>,
    /// Who would have made an object, had somebody else not taken its name.
    refused: HashMap<Key, Owner>,
    /// Which version of an object was the last, for the answers to writes that were on their
    /// way when it went.
    departed: HashMap<Key, (String, u64, Instant)>,
    departures: VecDeque<(Instant, Key)>,
    /// How many writes of ours there were.
    writes: u64,
}

/// A moment between two of our writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment(u64);

/// The objects that the operator made, as the watches and its own writes tell.
pub struct Children<S> {
    maps: Mutex<Maps<S>>,
    extract: Extract<S>,
}

impl<S: Clone + PartialEq> Children<S> {
    /// Knows nothing yet. `extract` picks what is to be known of an object's state.
    pub fn new(extract: Extract<S>) -> Self {
        let maps = Maps {
            children: HashMap::new(),
            by_owner: HashMap::new(),
            refused: HashMap::new(),
            departed: HashMap::new(),
            departures: VecDeque::new(),
            writes: 0,
        };
        Self { maps: Mutex::new(maps), extract }
    }

    /// Takes in what a watch tells of an object; returns whose reconcile has to look at it,
    /// if it is not as we left it.
    pub fn saw(&self, key: &Key, object: &Value) -> Option<Owner> {
        let (uid, version) = identity(object);
        let digest = digest(object);
        let state = (self.extract)(key.kind, object);
        let mut maps = self.lock();
        let (mut owner, mut ours) = (Owner::of(object), drift::is_ours(object));
        if let Some(child) = maps.children.get_mut(key).filter(|child| child.uid == uid) {
            if version <= child.version {
                return None;
            }
            // Whose it is stays, whatever somebody writes into its labels, and that it is ours
            // though somebody clears what tells who set its fields.
            if child.ours {
                owner.clone_from(&child.owner);
                ours = true;
            }
            child.version = version;
            if child.digest == digest {
                let changed = child.state != state;
                child.state = state;
                return child.owner.clone().filter(|_| changed);
            }
        }
        let mut child =
            Child { uid, version, digest, verified: None, whole: None, ours, owner: owner.clone(), written: 0, state };
        if child.ours {
            child.whole = compared(object);
        }
        maps.insert(key.clone(), child);
        owner
    }

    /// Takes in that a watch saw an object go; returns whose reconcile has to look at it.
    pub fn gone(&self, key: &Key, object: &Value) -> Option<Owner> {
        let (uid, version) = identity(object);
        let mut maps = self.lock();
        maps.departs(key, &uid, version);
        if maps.children.get(key).is_some_and(|child| child.uid != uid) {
            return None;
        }
        maps.forget(key)
    }

    /// Now.
    pub fn moment(&self) -> Moment {
        Moment(self.lock().writes)
    }

    /// Whether we wrote an object after this moment, and no watch has told of it since: a list
    /// that was asked for then may be older than the object.
    pub fn is_newer(&self, key: &Key, moment: Moment) -> bool {
        self.lock().children.get(key).is_some_and(|child| child.written > moment.0)
    }

    /// Takes in that an object is not in a list of all; returns whose reconcile has to look
    /// at it.
    pub fn absent(&self, key: &Key) -> Option<Owner> {
        self.lock().forget(key)
    }

    /// Takes in that the name of a desired object is taken by a foreign one: when that goes,
    /// [`gone`](Self::gone) tells the owner of the desired one.
    pub fn refused(&self, key: &Key, desired: &Value) {
        if let Some(owner) = Owner::of(desired) {
            self.lock().refused.insert(key.clone(), owner);
        }
    }

    /// Takes in our own write: `object` is what it left of the desired object with this hash.
    pub fn wrote(&self, key: &Key, desired: u64, object: &Value) {
        let (uid, version) = identity(object);
        let mut child = Child {
            uid,
            version,
            digest: digest(object),
            verified: Some(desired),
            whole: None,
            ours: true,
            owner: Owner::of(object),
            written: 0,
            state: (self.extract)(key.kind, object),
        };
        let mut maps = self.lock();
        maps.writes += 1;
        child.written = maps.writes;
        let is_older = |uid: &String, version: u64| *uid == child.uid && version > child.version;
        if maps.children.get(key).is_some_and(|known| is_older(&known.uid, known.version))
            || maps.departed.get(key).is_some_and(|(uid, version, _)| is_older(uid, *version))
        {
            return;
        }
        maps.insert(key.clone(), child);
    }

    /// Takes in that the object `whole` was compared with the desired object and is equal.
    pub fn verified(&self, key: &Key, desired: u64, whole: &Value) {
        let digest = digest(whole);
        if let Some(child) = self.lock().children.get_mut(key).filter(|child| child.digest == digest) {
            child.verified = Some(desired);
            child.whole = None;
        }
    }

    /// How an object stands to the desired object with this hash.
    pub fn observe(&self, key: &Key, desired: u64) -> Observed {
        let maps = self.lock();
        let Some(child) = maps.children.get(key) else { return Observed::Absent };
        if child.verified == Some(desired) {
            return Observed::InSync;
        }
        if !child.ours {
            return Observed::Foreign;
        }
        match child.whole.as_deref().and_then(|whole| serde_json::from_slice(whole).ok()) {
            Some(whole) => Observed::Changed(whole),
            None => Observed::Outdated,
        }
    }

    /// The whole object but its status, where it is held because it was not compared yet.
    pub fn whole(&self, key: &Key) -> Option<Value> {
        self.lock().children.get(key)?.whole.as_deref().and_then(|whole| serde_json::from_slice(whole).ok())
    }

    /// What is known of an object's state.
    pub fn state(&self, key: &Key) -> Option<S> {
        self.lock().children.get(key).map(|child| child.state.clone())
    }

    /// Whether we made an object; nothing where none is known.
    pub fn is_ours(&self, key: &Key) -> Option<bool> {
        self.lock().children.get(key).map(|child| child.ours)
    }

    /// An object's UID.
    pub fn uid(&self, key: &Key) -> Option<String> {
        self.lock().children.get(key).map(|child| child.uid.clone())
    }

    /// Whose an object is.
    pub fn owner(&self, key: &Key) -> Option<Owner> {
        self.lock().children.get(key)?.owner.clone()
    }

    /// The objects of an owner that we made.
    pub fn of_owner(&self, owner: &Owner) -> Vec<Key> {
        let maps = self.lock();
        let keys = maps.by_owner.get(owner).into_iter().flatten();
        keys.filter(|key| maps.children.get(*key).is_some_and(|child| child.ours)).cloned().collect()
    }

    /// The objects of one kind, in one namespace or in all.
    pub fn of_kind(&self, kind: Kind, namespace: Option<&str>) -> Vec<Key> {
        let in_scope =
            |key: &&Key| key.kind == kind && namespace.is_none_or(|name| key.namespace.as_deref() == Some(name));
        self.lock().children.keys().filter(in_scope).cloned().collect()
    }

    /// The objects of one kind that we made, with whose each is and what is known of its state.
    pub fn states(&self, kind: Kind) -> Vec<(Key, Owner, S)> {
        let maps = self.lock();
        let ours = maps.children.iter().filter(|(key, child)| key.kind == kind && child.ours);
        ours.filter_map(|(key, child)| Some((key.clone(), child.owner.clone()?, child.state.clone()))).collect()
    }

    /// Forgets what need not be remembered any more, and gives back the room of what has gone:
    /// after thousands of tenants were deleted, that is most of what is held.
    pub fn tidy(&self) {
        let mut maps = self.lock();
        maps.expire(Instant::now());
        let Maps { children, by_owner, refused, departed, departures, writes: _ } = &mut *maps;
        fit(children);
        fit(by_owner);
        fit(refused);
        fit(departed);
        if departures.len() < departures.capacity() / 4 {
            departures.shrink_to_fit();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Maps<S>> {
        // Every update is one insertion or removal, so a panic in between leaves nothing half done.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Maps<S> {
    fn insert(&mut self, key: Key, child: Child<S>) {
        self.remove(&key);
        if let Some(owner) = &child.owner {
            let keys = self.by_owner.entry(owner.clone()).or_default();
            if let Err(place) = keys.binary_search(&key) {
                keys.reserve_exact(1);
                keys.insert(place, key.clone());
            }
        }
        self.children.insert(key, Box::new(child));
    }

    fn forget(&mut self, key: &Key) -> Option<Owner> {
        let refused = self.refused.remove(key);
        self.remove(key).or(refused)
    }

    fn departs(&mut self, key: &Key, uid: &str, version: u64) {
        let now = Instant::now();
        self.expire(now);
        self.departed.insert(key.clone(), (uid.to_owned(), version, now));
        self.departures.push_back((now, key.clone()));
    }

    fn expire(&mut self, now: Instant) {
        while self.departures.front().is_some_and(|(when, _)| now.duration_since(*when) > REMEMBERED) {
            if let Some((when, key)) = self.departures.pop_front()
                && self.departed.get(&key).is_some_and(|(_, _, last)| *last == when)
            {
                self.departed.remove(&key);
            }
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Owner> {
        let owner = self.children.remove(key)?.owner?;
        if let Some(keys) = self.by_owner.get_mut(&owner) {
            keys.retain(|other| other != key);
            if keys.is_empty() {
                self.by_owner.remove(&owner);
            }
        }
        Some(owner)
    }
}

/// Gives back the room of a map that is mostly empty.
fn fit<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>) {
    if map.len() < map.capacity() / 4 {
        map.shrink_to_fit();
    }
}

/// The hash of a desired object, by which it is known again.
pub fn desired_hash(body: &Value) -> u64 {
    hash(&body.to_string())
}

/// What is compared of an object, as JSON: all but its status, and of managedFields who set
/// which field of the rest.
fn compared(object: &Value) -> Option<Box<[u8]>> {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    drift::keep_owners(&mut object);
    serde_json::to_vec(&object).ok().map(Vec::into_boxed_slice)
}

/// UID and version. Resource versions of one resource are numbers that grow (KEP-5504).
fn identity(object: &Value) -> (String, u64) {
    let field = |name: &str| object.get("metadata").and_then(|metadata| metadata.get(name)).and_then(Value::as_str);
    (field("uid").unwrap_or_default().to_owned(), field("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0))
}

/// A digest of all that a person could change: the object without its status and without
/// what the API server alone writes.
fn digest(object: &Value) -> u64 {
    const SERVER_SIDE: [&str; 6] =
        ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"];
    let mut content = object.clone();
    if let Some(map) = content.as_object_mut() {
        map.remove("status");
    }
    if let Some(metadata) = content.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in SERVER_SIDE {
            metadata.remove(field);
        }
        // The Deployment controller counts its revisions here.
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("deployment.kubernetes.io/revision");
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
    }
    hash(&content.to_string())
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[path = "children_tests.rs"]
mod tests;
