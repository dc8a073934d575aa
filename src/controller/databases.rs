//! The database servers that are connected, and what is known of the tenants on them.
//!
//! The records are read once when a server is connected; afterwards every change is our own
//! (one leader writes), so they are kept up to date in memory, and a reconcile that finds
//! nothing to do sends no SQL.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use super::tenant::Stranger;
use crate::database::{
    DatabaseRecord, DatabaseSpec, Limit, MeterDefinition, Purpose, Result, Server, ServerInfo, TenantId, TenantRecord,
};

/// The connected servers by the names of their DatabaseServers.
#[derive(Default)]
pub(super) struct Databases {
    servers: RwLock<HashMap<String, Arc<Connected>>>,
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

    pub(super) fn insert(&self, name: &str, server: Arc<Connected>) {
        self.servers.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), server);
    }

    pub(super) fn remove(&self, name: &str) {
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
    /// What other clusters have here, by the Tenant's name and the Application's.
    strangers: Mutex<HashMap<(String, String), Vec<Stranger>>>,
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
        Self {
            server,
            config_hash,
            info,
            ca_pem,
            sslmode,
            databases: Mutex::default(),
            making: Mutex::default(),
            strangers: Mutex::default(),
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
        let tenants = records.into_iter().map(|record| (record.id.clone(), Arc::new(record))).collect();
        let purpose = database.mark.map(|mark| mark.purpose);
        let name = database.name;
        let index = DatabaseIndex { purpose, ready: false, tenants, meters: HashMap::new(), limits };
        self.lock().insert(name, index);
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
        if self.is_ready(&spec.name) {
            return Ok(());
        }
        let making = || self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = Arc::clone(making().entry(spec.name.clone()).or_default());
        let _turn = turn.lock().await;
        if self.is_ready(&spec.name) {
            return Ok(());
        }
        self.server.ensure_database(&spec).await?;
        making().remove(&spec.name);
        let mut databases = self.lock();
        let index = databases.entry(spec.name).or_default();
        index.ready = true;
        index.purpose = Some(spec.purpose);
        Ok(())
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

    /// The names of all databases that are known.
    pub(super) fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// What a database is for.
    pub(super) fn purpose(&self, database: &str) -> Option<Purpose> {
        self.lock().get(database)?.purpose.clone()
    }

    pub(super) fn forget_database(&self, database: &str) {
        self.lock().remove(database);
    }

    pub(super) fn record(&self, database: &str, id: &TenantId) -> Option<Arc<TenantRecord>> {
        self.lock().get(database)?.tenants.get(id).cloned()
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
        Ok(self.server.record(database, id).await?.map(|record| self.set_record(database, record)))
    }

    pub(super) fn set_record(&self, database: &str, record: TenantRecord) -> Arc<TenantRecord> {
        let record = Arc::new(record);
        let mut databases = self.lock();
        let index = databases.entry(database.to_owned()).or_default();
        index.tenants.insert(record.id.clone(), Arc::clone(&record));
        record
    }

    pub(super) fn forget_record(&self, database: &str, id: &TenantId) {
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

    /// Whether a database has limits of a plan, whichever.
    pub(super) fn has_any_limits(&self, database: &str, plan: &str) -> bool {
        self.lock().get(database).is_some_and(|index| index.limits.contains_key(plan))
    }

    pub(super) fn set_limits(&self, database: &str, plan: &str, limits: Vec<Limit>) {
        self.lock().entry(database.to_owned()).or_default().limits.insert(plan.to_owned(), limits);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, DatabaseIndex>> {
        self.databases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
