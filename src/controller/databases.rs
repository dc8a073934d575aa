//! The database servers that are connected, and what is known of the tenants on them.
//!
//! The records are read once when a server is connected; afterwards every change is our own
//! (one leader writes), so they are kept up to date in memory, and a reconcile that finds
//! nothing to do sends no SQL.

use std::{
    array,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::tenant::Stranger;
use crate::database::{
    AppliedMigration, DatabaseRecord, DatabaseSpec, Limit, MeterDefinition, PasswordDigest, Purpose, Result, Server,
    ServerInfo, TenantId, TenantRecord, TenantSettings,
};

/// How many tenants' records are read anew at a time, at most.
const TURNS: usize = 64;

/// How long a server that is being read may take for one database more: after that it counts as
/// away, and its tenants say so.
const READING: Duration = Duration::from_secs(10);

/// The connected servers by the names of their DatabaseServers.
#[derive(Default)]
pub(super) struct Databases {
    servers: RwLock<HashMap<String, Arc<Connected>>>,
    loading: Mutex<HashMap<String, Arc<Loading>>>,
}

/// A server whose records are being read. They are kept while it takes more than one attempt:
/// nobody changes anything on a server that is not connected yet.
pub(super) struct Loading {
    pub(super) connected: Arc<Connected>,
    /// The databases that were read.
    pub(super) done: Mutex<BTreeSet<String>>,
    /// When the last of these was.
    progress: Mutex<Instant>,
}

impl Loading {
    /// One more was read.
    pub(super) fn progressed(&self) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn is_under_way(&self, now: Instant) -> bool {
        let last = *self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        now.saturating_duration_since(last) < READING
    }
}

impl Databases {
    /// A server, if it is connected and its records were read.
    pub(super) fn get(&self, server: &str) -> Option<Arc<Connected>> {
        self.servers.read().unwrap_or_else(PoisonError::into_inner).get(server).cloned()
    }

    pub(super) fn all(&self) -> Vec<(String, Arc<Connected>)> {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        servers.iter().map(|(name, server)| (name.clone(), Arc::clone(server))).collect()
    }

    /// The server that an attempt before this one has begun to read, with these settings.
    pub(super) fn loading(&self, name: &str, config_hash: u64) -> Option<Arc<Loading>> {
        let loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        loading.get(name).filter(|loading| loading.connected.config_hash == config_hash).cloned()
    }

    /// Whether a server answers and its records are not all read yet. What is on it can't be
    /// judged then, and nothing is to be said of it that the next moment takes back.
    pub(super) fn is_being_read(&self, name: &str) -> bool {
        let loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        loading.get(name).is_some_and(|loading| loading.is_under_way(Instant::now()))
    }

    /// Begins to read a server's records.
    pub(super) fn begin(&self, name: &str, connected: Connected) -> Arc<Loading> {
        let (done, progress) = (Mutex::default(), Mutex::new(Instant::now()));
        let loading = Arc::new(Loading { connected: Arc::new(connected), done, progress });
        // What is changed by way of the old connection meanwhile would be missed.
        if self.get(name).is_none() {
            let mut all = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(name.to_owned(), Arc::clone(&loading));
        }
        loading
    }

    /// The name of the DatabaseServer that a connection is of.
    pub(super) fn name_of(&self, connected: &Connected) -> Option<String> {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        servers.iter().find(|(_, server)| std::ptr::eq(Arc::as_ptr(server), connected)).map(|(name, _)| name.clone())
    }

    pub(super) fn insert(&self, name: &str, server: Arc<Connected>) {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.servers.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), server);
    }

    pub(super) fn remove(&self, name: &str) {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.servers.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// A server that is connected.
pub(super) struct Connected {
    pub(super) server: Server,
    /// Tells one configuration from another.
    pub(super) config_hash: u64,
    pub(super) info: ServerInfo,
    /// The certificates that tenants are to trust.
    pub(super) ca_pem: Option<String>,
    /// `verify-full` or `disable`.
    pub(super) sslmode: &'static str,
    databases: Mutex<HashMap<String, DatabaseIndex>>,
    /// Databases that are being made: many tenants may come to a new one at the same time.
    making: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// For tenants whose database is made with them.
    newcomers: Arc<Semaphore>,
    /// Whose record is being read anew: each tenant has one of these, with others.
    turns: [tokio::sync::Mutex<()>; TURNS],
    hasher: RandomState,
    /// What other clusters have here, by the Tenant's name and the Application's.
    strangers: Mutex<HashMap<(String, String), Vec<Stranger>>>,
    /// The password of each relay's login that was compared with the server's, and when room was
    /// made in an outbox last.
    relays: Mutex<HashMap<String, PasswordDigest>>,
    kept: Mutex<HashMap<String, Instant>>,
    /// When the server was asked last how it is, and what it said; nothing after a failure.
    health: Mutex<Option<(Instant, ServerInfo)>>,
}

/// What is known of one database.
#[derive(Default)]
struct DatabaseIndex {
    /// What it is for, where its mark or our own doing told.
    purpose: Option<Purpose>,
    /// Whether it was made ready, and isolated, by this process.
    ready: bool,
    tenants: HashMap<TenantId, Arc<TenantRecord>>,
    meters: HashMap<String, Vec<MeterDefinition>>,
    limits: BTreeMap<String, Vec<Limit>>,
    /// What ran for the tenant that was taken in last.
    migrations: Arc<[AppliedMigration]>,
}

impl DatabaseIndex {
    fn take_in(&mut self, mut record: TenantRecord) -> Arc<TenantRecord> {
        // One copy for all that have the same: of ten thousand tenants, most do.
        if record.migrations == self.migrations {
            record.migrations = Arc::clone(&self.migrations);
        } else {
            self.migrations = Arc::clone(&record.migrations);
        }
        let record = Arc::new(record);
        self.tenants.insert(record.id.clone(), Arc::clone(&record));
        record
    }
}

impl Connected {
    pub(super) fn new(
        server: Server,
        config_hash: u64,
        info: ServerInfo,
        ca_pem: Option<String>,
        sslmode: &'static str,
    ) -> Self {
        let health = Mutex::new(Some((Instant::now(), info.clone())));
        let newcomers = Arc::new(Semaphore::new(server.connections().div_ceil(2)));
        Self {
            server,
            config_hash,
            info,
            ca_pem,
            sslmode,
            databases: Mutex::default(),
            making: Mutex::default(),
            newcomers,
            turns: array::from_fn(|_| tokio::sync::Mutex::default()),
            hasher: RandomState::new(),
            strangers: Mutex::default(),
            relays: Mutex::default(),
            kept: Mutex::default(),
            health,
        }
    }

    /// How the server is: what it said within `interval`, or else what it says now. Counts
    /// change with every tenant, and must not ask it each time.
    pub(super) async fn check(&self, interval: Duration) -> Result<ServerInfo> {
        let health = || self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((asked, info)) = &*health()
            && asked.elapsed() < interval
        {
            return Ok(info.clone());
        }
        let asked = Instant::now();
        let answer = self.server.check().await;
        *health() = answer.as_ref().ok().map(|info| (asked, info.clone()));
        answer
    }

    /// Somebody could not reach the server: what it said last counts no longer. False if it
    /// did not count before.
    pub(super) fn doubt(&self) -> bool {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// In how long the server is to be asked again how it is.
    pub(super) fn check_due(&self, interval: Duration) -> Duration {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.as_ref().map_or(interval, |(asked, _)| interval.saturating_sub(asked.elapsed()))
    }

    /// Takes in a database with all its records.
    pub(super) fn load(
        &self,
        database: DatabaseRecord,
        records: Vec<TenantRecord>,
        limits: BTreeMap<String, Vec<Limit>>,
    ) {
        let purpose = database.mark.map(|mark| mark.purpose);
        let mut index = DatabaseIndex { purpose, limits, ..DatabaseIndex::default() };
        for record in records {
            index.take_in(record);
        }
        self.lock().insert(database.name, index);
    }

    /// Takes in the records of a database that belongs to another cluster.
    pub(super) fn load_strangers(&self, database: &str, records: Vec<TenantRecord>) {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            let stranger = Stranger { database: database.to_owned(), id: record.id, uid: record.uid };
            strangers.entry((record.name, record.application)).or_default().push(stranger);
        }
    }

    /// What other clusters have here of a Tenant of this name and Application.
    pub(super) fn strangers(&self, tenant: &str, application: &str) -> Vec<Stranger> {
        let strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        strangers.get(&(tenant.to_owned(), application.to_owned())).cloned().unwrap_or_default()
    }

    /// Makes a database, or brings it up to date, once in this process; sends nothing
    /// afterwards.
    pub(super) async fn ensure(&self, spec: DatabaseSpec) -> Result<()> {
        self.bring_up_to_date(spec, true).await.map(drop)
    }

    /// Brings a database up to date that is there, once in this process. Returns false where it is
    /// gone: its tenant was dropped meanwhile.
    pub(super) async fn update(&self, spec: DatabaseSpec) -> Result<bool> {
        self.bring_up_to_date(spec, false).await
    }

    async fn bring_up_to_date(&self, spec: DatabaseSpec, create: bool) -> Result<bool> {
        if self.is_ready(&spec.name) {
            return Ok(true);
        }
        let turn = self.making(&spec.name);
        let _turn = turn.lock().await;
        if self.is_ready(&spec.name) {
            return Ok(true);
        }
        if create {
            self.server.ensure_database(&spec).await?;
        } else if !self.server.update_database(&spec).await? {
            self.made(&spec.name);
            return Ok(false);
        }
        self.made(&spec.name);
        let mut databases = self.lock();
        let index = databases.entry(spec.name).or_default();
        index.ready = true;
        index.purpose = Some(spec.purpose);
        Ok(true)
    }

    /// Drops a database in which no record is: of a tenant that was never made, or whose every
    /// usage event was acknowledged. Returns whether it did. Whoever wants it again makes it anew.
    pub(super) async fn drop_if_empty(&self, database: &str, cluster_id: &str) -> Result<bool> {
        let turn = self.making(database);
        let _turn = turn.lock().await;
        if self.lock().get(database).is_some_and(|index| !index.tenants.is_empty()) {
            return Ok(false);
        }
        self.server.drop_database(database, cluster_id).await?;
        self.doubt_relay(database);
        self.made(database);
        self.lock().remove(database);
        Ok(true)
    }

    /// A turn for a tenant whose database is made with it. There are half as many as the operator
    /// has connections: each takes one to the new database and now and then a second one. With
    /// more at a time their connections would take each other's places, and every step of each
    /// would begin with a login to a database whose catalogs are not in memory yet.
    pub(super) async fn newcomer(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.newcomers).acquire_owned().await.expect("never closed")
    }

    /// The turn of whoever makes or drops a database.
    fn making(&self, database: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(making.entry(database.to_owned()).or_default())
    }

    fn made(&self, database: &str) {
        self.making.lock().unwrap_or_else(PoisonError::into_inner).remove(database);
    }

    /// The plans of the tenants in a database, and those whose limits it has.
    pub(super) fn plans_in(&self, database: &str) -> BTreeSet<String> {
        let databases = self.lock();
        let Some(index) = databases.get(database) else { return BTreeSet::new() };
        index.tenants.values().map(|record| record.settings.plan.clone()).chain(index.limits.keys().cloned()).collect()
    }

    /// Whether a database was made ready by this process.
    pub(super) fn is_ready(&self, database: &str) -> bool {
        self.lock().get(database).is_some_and(|index| index.ready)
    }

    /// The password of a relay's login, if it was compared with the server's.
    pub(super) fn relay(&self, database: &str) -> Option<PasswordDigest> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner).get(database).copied()
    }

    /// Notes that this is the password of a relay's login.
    pub(super) fn set_relay(&self, database: &str, digest: PasswordDigest) {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner).insert(database.to_owned(), digest);
    }

    /// Somebody may have changed a relay's login: it is compared again.
    pub(super) fn doubt_relay(&self, database: &str) {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner).remove(database);
    }

    /// Whether room in an outbox is to be made again, which lasts for days; if so, it is taken for
    /// done.
    pub(super) fn room_is_due(&self, database: &str, interval: Duration) -> bool {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = kept.get(database).is_none_or(|kept| kept.elapsed() >= interval);
        if is_due {
            kept.insert(database.to_owned(), Instant::now());
        }
        is_due
    }

    /// Making room has failed: it is due.
    pub(super) fn no_room_was_made(&self, database: &str) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(database);
    }

    /// The names of all databases that are known.
    pub(super) fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// What a database is for.
    pub(super) fn purpose(&self, database: &str) -> Option<Purpose> {
        self.lock().get(database)?.purpose.clone()
    }

    pub(super) fn record(&self, database: &str, id: &TenantId) -> Option<Arc<TenantRecord>> {
        self.lock().get(database)?.tenants.get(id).cloned()
    }

    /// Reads a record anew; one that is gone is forgotten.
    pub(super) async fn refresh(&self, database: &str, id: &TenantId) -> Result<Option<Arc<TenantRecord>>> {
        self.take_in(database, id, self.server.record(database, id)).await
    }

    /// Takes in what `read` finds of a tenant. One at a time for each, from the read on: else a
    /// copy that was read before another one could be taken in after it, and data that is
    /// retained would count as live.
    pub(super) async fn take_in(
        &self,
        database: &str,
        id: &TenantId,
        read: impl Future<Output = Result<Option<TenantRecord>>>,
    ) -> Result<Option<Arc<TenantRecord>>> {
        let _turn = self.turn(id).lock().await;
        match read.await? {
            Some(record) => Ok(Some(self.set_record(database, record))),
            None => {
                self.forget_record(database, id);
                Ok(None)
            }
        }
    }

    /// Brings a tenant's settings to its database, and to what is known of it.
    pub(super) async fn apply_settings(
        &self,
        database: &str,
        id: &TenantId,
        settings: TenantSettings,
    ) -> Result<Option<Arc<TenantRecord>>> {
        let _turn = self.turn(id).lock().await;
        self.server.apply_settings(database, id, &settings).await?;
        let record = self.record(database, id);
        Ok(record.map(|record| self.set_record(database, TenantRecord { settings, ..TenantRecord::clone(&record) })))
    }

    fn turn(&self, id: &TenantId) -> &tokio::sync::Mutex<()> {
        let hash = self.hasher.hash_one(id);
        // The remainder fits.
        &self.turns[usize::try_from(hash % TURNS as u64).unwrap_or(0)]
    }

    /// A tenant's record; where none is known, the server is asked. The answer to a creation may
    /// have been lost, and what is there must not be left behind as if it were not.
    pub(super) async fn ask_record(&self, database: &str, id: &TenantId) -> Result<Option<Arc<TenantRecord>>> {
        if let Some(record) = self.record(database, id) {
            return Ok(Some(record));
        }
        // No tenant was made in a database that is not known to be there.
        if !self.lock().contains_key(database) {
            return Ok(None);
        }
        self.refresh(database, id).await
    }

    /// Takes in the record of a tenant that was made just now: nobody else reads it yet.
    pub(super) fn set_record(&self, database: &str, record: TenantRecord) -> Arc<TenantRecord> {
        self.lock().entry(database.to_owned()).or_default().take_in(record)
    }

    fn forget_record(&self, database: &str, id: &TenantId) {
        if let Some(index) = self.lock().get_mut(database) {
            index.tenants.remove(id);
        }
    }

    /// Every record that matches, with its database.
    pub(super) fn find(&self, matches: impl Fn(&TenantRecord) -> bool) -> Vec<(String, Arc<TenantRecord>)> {
        let databases = self.lock();
        let all = databases.iter().flat_map(|(name, index)| index.tenants.values().map(move |record| (name, record)));
        all.filter(|(_, record)| matches(record)).map(|(name, record)| (name.clone(), Arc::clone(record))).collect()
    }

    /// Whether a plan has limits in a database, or a tenant there.
    pub(super) fn uses_plan(&self, database: &str, plan: &str) -> bool {
        self.lock().get(database).is_some_and(|index| {
            index.limits.contains_key(plan) || index.tenants.values().any(|record| record.settings.plan == plan)
        })
    }

    /// Every record of one database that matches.
    pub(super) fn find_in(&self, database: &str, matches: impl Fn(&TenantRecord) -> bool) -> Vec<Arc<TenantRecord>> {
        let databases = self.lock();
        let records = databases.get(database).into_iter().flat_map(|index| index.tenants.values());
        records.filter(|record| matches(record)).cloned().collect()
    }

    pub(super) fn has_meters(&self, database: &str, application: &str, meters: &[MeterDefinition]) -> bool {
        self.lock().get(database).and_then(|index| index.meters.get(application)).is_some_and(|known| known == meters)
    }

    pub(super) fn set_meters(&self, database: &str, application: &str, meters: Vec<MeterDefinition>) {
        self.lock().entry(database.to_owned()).or_default().meters.insert(application.to_owned(), meters);
    }

    pub(super) fn has_limits(&self, database: &str, plan: &str, limits: &[Limit]) -> bool {
        let databases = self.lock();
        let known = databases.get(database).and_then(|index| index.limits.get(plan));
        known.map_or(limits.is_empty(), |known| known == limits)
    }

    /// A plan's limits as a database has them.
    pub(super) fn limits(&self, database: &str, plan: &str) -> Vec<Limit> {
        let databases = self.lock();
        databases.get(database).and_then(|index| index.limits.get(plan)).cloned().unwrap_or_default()
    }

    pub(super) fn set_limits(&self, database: &str, plan: &str, limits: Vec<Limit>) {
        self.lock().entry(database.to_owned()).or_default().limits.insert(plan.to_owned(), limits);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, DatabaseIndex>> {
        self.databases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "databases_tests.rs"]
mod tests;
