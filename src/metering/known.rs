//! What is known of tenants, kept for a while: the ledger is not asked for each event.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::error;

use super::{
    judge::{MeterFacts, TenantFacts},
    ledger::{Directory, LedgerError},
    store::Store,
};
use crate::billing::Periods;

/// How long what is known of a tenant is taken for true: it changes when a tenant moves or its
/// Application declares a meter.
const FRESH: Duration = Duration::from_secs(30);

/// How long it is taken for true that a tenant is not known, or that what is known of it forbids
/// an event: a tenant that was made just now is known a moment later.
const DOUBT: Duration = Duration::from_secs(1);

/// How many tenants and namespaces are kept at most; beyond that all are looked up again.
const MOST: usize = 100_000;

/// What is known of tenants and of namespaces.
pub struct Known<S> {
    store: S,
    tenants: Mutex<HashMap<String, Entry<Arc<TenantFacts>>>>,
    namespaces: Mutex<HashMap<String, Entry<String>>>,
}

/// Something that was looked up, and when.
#[derive(Clone)]
struct Entry<T> {
    found: Option<T>,
    at: Instant,
}

impl<T> Entry<T> {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < if self.found.is_some() { FRESH } else { DOUBT }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Store> Known<S> {
    /// Knows nothing yet.
    pub fn new(store: S) -> Self {
        Self { store, tenants: Mutex::default(), namespaces: Mutex::default() }
    }

    /// What is known of these tenants; those that the ledger doesn't know are not in it.
    ///
    /// # Errors
    /// As [`super::ledger::Ledger::directory`].
    pub async fn tenants(&self, ids: &[&str]) -> Result<HashMap<String, Arc<TenantFacts>>, LedgerError> {
        self.looked_up(ids, Entry::is_fresh).await
    }

    /// The same for tenants of which events are about to be refused: looked up again, unless that
    /// has just been done.
    ///
    /// # Errors
    /// As [`super::ledger::Ledger::directory`].
    pub async fn in_doubt(&self, ids: &[&str]) -> Result<HashMap<String, Arc<TenantFacts>>, LedgerError> {
        self.looked_up(ids, |entry| entry.at.elapsed() < DOUBT).await
    }

    async fn looked_up(
        &self,
        ids: &[&str],
        fits: impl Fn(&Entry<Arc<TenantFacts>>) -> bool,
    ) -> Result<HashMap<String, Arc<TenantFacts>>, LedgerError> {
        let mut found = HashMap::new();
        let mut missing: Vec<String> = Vec::new();
        {
            let tenants = lock(&self.tenants);
            for id in ids {
                match tenants.get(*id).filter(|entry| fits(entry)) {
                    Some(entry) => found.extend(entry.found.clone().map(|facts| ((*id).to_owned(), facts))),
                    None => missing.push((*id).to_owned()),
                }
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        missing.sort();
        missing.dedup();
        let at = Instant::now();
        let mut facts = facts(self.store.directory(&missing).await?);
        let mut tenants = lock(&self.tenants);
        if tenants.len() + missing.len() > MOST {
            tenants.clear();
        }
        for id in missing {
            let entry = Entry { found: facts.remove(&id), at };
            found.extend(entry.found.clone().map(|facts| (id.clone(), facts)));
            tenants.insert(id, entry);
        }
        Ok(found)
    }

    /// The tenant whose own namespace this is.
    ///
    /// # Errors
    /// As [`super::ledger::Ledger::tenant_of_namespace`].
    pub async fn tenant_of_namespace(&self, namespace: &str) -> Result<Option<String>, LedgerError> {
        if let Some(entry) = lock(&self.namespaces).get(namespace).filter(|entry| entry.is_fresh()) {
            return Ok(entry.found.clone());
        }
        let at = Instant::now();
        let found = self.store.tenant_of_namespace(namespace).await?;
        let mut namespaces = lock(&self.namespaces);
        if namespaces.len() >= MOST {
            namespaces.clear();
        }
        namespaces.insert(namespace.to_owned(), Entry { found: found.clone(), at });
        Ok(found)
    }
}

/// What the ledger says, by tenant.
fn facts(directory: Directory) -> HashMap<String, Arc<TenantFacts>> {
    let mut servers: HashMap<String, Vec<String>> = HashMap::new();
    for placement in directory.placements {
        servers.entry(placement.tenant).or_default().push(placement.server);
    }
    let mut meters: HashMap<String, BTreeMap<String, MeterFacts>> = HashMap::new();
    for (application, meter) in directory.meters {
        let facts = MeterFacts { is_total: meter.is_total, from_api: meter.from_api };
        meters.entry(application).or_default().insert(meter.name, facts);
    }
    let meters: HashMap<String, Arc<_>> = meters.into_iter().map(|(name, meters)| (name, Arc::new(meters))).collect();
    let mut facts = HashMap::new();
    for tenant in directory.tenants {
        let periods = match Periods::new(tenant.anchor, &tenant.time_zone) {
            Ok(periods) => periods,
            Err(problem) => {
                // Its events wait until this program knows the zone: an older one may be at work.
                error!(tenant = tenant.name, %problem, "the usage periods of a tenant can't be told");
                continue;
            }
        };
        let servers = servers.remove(&tenant.id).unwrap_or_default();
        let meters = meters.get(&tenant.application).cloned().unwrap_or_default();
        facts.insert(tenant.id, Arc::new(TenantFacts { servers, periods, meters }));
    }
    facts
}
