//! Keeps the folder equal to the Secrets: takes the events of a watch, does no network I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use serde::{Deserialize, Serialize};

use super::binding::{Binding, SecretKey, Version};
use super::plan::{Claim, Conflict, plan};
use super::store::{Store, StoreError};

/// What the agent says of itself in `DIR/.agent.json`, for `--check` and for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's process, as it sees itself.
    pub pid: u32,
    /// Whether all Secrets of a complete list have been on disk in this run.
    pub listed: bool,
    /// Tenants that have files now.
    pub tenants: usize,
    /// Hosts that lead to a tenant now.
    pub hosts: usize,
    /// Secrets whose files could not be written yet, for want of space for instance; tried again.
    pub unwritten: usize,
    /// Claims to a tenant or host that an older Secret keeps.
    pub conflicts: usize,
    /// Since the start: Secrets, hosts and keys refused for their name.
    pub refused: u64,
    /// Since the start: sets of files written.
    pub written: u64,
    /// Since the start: failures to change the folder.
    pub failures: u64,
}

/// The state of the agent between events. It holds no Secret's data.
pub struct Keeper {
    store: Store,
    claims: BTreeMap<SecretKey, Claim>,
    /// The claims of a list that isn't complete yet.
    listing: Option<BTreeMap<SecretKey, Claim>>,
    unwritten: BTreeSet<SecretKey>,
    /// Links or status differ from what they should be, because changing them failed.
    behind: bool,
    conflicts: BTreeSet<Conflict>,
    status: Status,
    published: Option<Status>,
}

impl Keeper {
    /// Takes over `dir`; see [`Store::open`]. Old sets of files stay for `linger` after they were replaced.
    pub fn open(dir: &Path, linger: Duration) -> Result<Self, StoreError> {
        Ok(Self {
            store: Store::open(dir, linger)?,
            claims: BTreeMap::new(),
            listing: None,
            unwritten: BTreeSet::new(),
            behind: false,
            conflicts: BTreeSet::new(),
            status: Status { pid: std::process::id(), ..Status::default() },
            published: None,
        })
    }

    /// What is kept now.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// A list of all Secrets begins. Nothing is linked or removed before it is complete.
    pub fn list_begins(&mut self) {
        self.listing = Some(BTreeMap::new());
        if let Err(error) = self.store.rescan() {
            self.failed(&error);
        }
    }

    /// One Secret of the list. Its files are written at once, so that its data need not be remembered.
    pub fn listed(&mut self, secret: Secret) {
        let key = SecretKey::of(&secret);
        let claim = self.take_in(&key, secret);
        if let (Some(listing), Some(claim)) = (&mut self.listing, claim) {
            listing.insert(key, claim);
        }
    }

    /// The list is complete: what it doesn't have is gone.
    pub fn list_ends(&mut self) {
        if let Some(listing) = self.listing.take() {
            self.claims = listing;
        }
        self.converge();
    }

    /// A Secret is new or has changed.
    pub fn changed(&mut self, secret: Secret) {
        let key = SecretKey::of(&secret);
        match self.take_in(&key, secret) {
            Some(claim) => self.claims.insert(key, claim),
            None => self.claims.remove(&key),
        };
        self.converge();
    }

    /// A Secret is gone.
    pub fn deleted(&mut self, key: &SecretKey) {
        self.claims.remove(key);
        self.converge();
    }

    /// Whether something failed that [`Keeper::retry`] may set right.
    pub fn is_behind(&self) -> bool {
        self.behind || !self.unwritten.is_empty()
    }

    /// The Secrets that have to be read again, as their data was not kept.
    pub fn unwritten(&self) -> Vec<SecretKey> {
        self.unwritten.iter().cloned().collect()
    }

    /// Tries again what failed, with the Secrets of [`Keeper::unwritten`] as they are now.
    pub fn retry(&mut self, secrets: Vec<Secret>) {
        for secret in secrets {
            let key = SecretKey::of(&secret);
            // Only what the watch has told of and not taken back; a newer state will come from there too.
            if !self.unwritten.contains(&key) {
                continue;
            }
            if let Some(claim) = self.take_in(&key, secret) {
                self.listing.as_mut().unwrap_or(&mut self.claims).insert(key, claim);
            }
        }
        self.converge();
    }

    /// Removes old sets of files that are due. Returns when to come again.
    pub fn sweep(&mut self, now: Instant) -> Option<Instant> {
        // What a list is just bringing back must not go meanwhile.
        if self.listing.is_none()
            && let Err(error) = self.store.sweep(now)
        {
            self.failed(&error);
        }
        self.next_sweep().filter(|due| *due > now)
    }

    /// When [`Keeper::sweep`] has something to do.
    pub fn next_sweep(&self) -> Option<Instant> {
        self.listing.is_none().then(|| self.store.next_sweep()).flatten()
    }

    /// Writes the Secret's files and returns what to remember of it; nothing where it can't be served at all.
    fn take_in(&mut self, key: &SecretKey, secret: Secret) -> Option<Claim> {
        self.unwritten.remove(key);
        let binding = match Binding::of(secret) {
            Ok(binding) => binding,
            Err(fault) => {
                self.status.refused += 1;
                tracing::warn!(secret = %key, "Secret not served: {fault}");
                return None;
            }
        };
        for fault in &binding.faults {
            self.status.refused += 1;
            tracing::warn!(secret = %key, "left out: {fault}");
        }
        let version = Version::of(&binding.tenant, &binding.files);
        let version = match self.store.put(&version, &binding.files) {
            Ok(written) => {
                self.status.written += u64::from(written);
                Some(version)
            }
            Err(error) => {
                self.status.failures += 1;
                tracing::error!(secret = %key, tenant = binding.tenant, "{error}; what was there before is served, trying again");
                self.unwritten.insert(key.clone());
                // The set that this very Secret had, if this run knows it; else whatever the tenant has on disk.
                self.claims
                    .get(key)
                    .filter(|claim| claim.tenant == binding.tenant)
                    .and_then(|claim| claim.version.clone())
            }
        };
        Some(Claim {
            secret: key.clone(),
            seniority: binding.seniority,
            tenant: binding.tenant,
            hosts: binding.hosts,
            version,
        })
    }

    /// Makes links and status equal to the claims. During a list it waits for the end: half a list decides nothing.
    fn converge(&mut self) {
        if self.listing.is_some() {
            return;
        }
        self.unwritten.retain(|key| self.claims.contains_key(key));
        self.behind = false;
        let plan = plan(self.store.disk(), self.claims.values());
        let now = Instant::now();
        for operation in &plan.operations {
            if let Err(error) = self.store.apply(operation, now) {
                self.failed(&error);
                // The steps hold to an order; those after this one wait for it.
                break;
            }
        }
        let conflicts: BTreeSet<Conflict> = plan.conflicts.into_iter().collect();
        for conflict in conflicts.difference(&self.conflicts) {
            match conflict {
                Conflict::Tenant { tenant, kept_by, refused } => {
                    tracing::warn!(tenant, %kept_by, %refused, "two Secrets of one tenant; the older is served");
                }
                Conflict::Host { host, kept_by, refused } => {
                    tracing::warn!(host, %kept_by, %refused, "two Secrets claim one host; the older keeps it");
                }
            }
        }
        self.conflicts = conflicts;
        self.report();
    }

    fn report(&mut self) {
        self.status.tenants = self.store.disk().tenants.len();
        self.status.hosts = self.store.disk().hosts.len();
        self.status.unwritten = self.unwritten.len();
        self.status.conflicts = self.conflicts.len();
        self.status.listed |= !self.is_behind();
        if self.published.as_ref() == Some(&self.status) {
            return;
        }
        let json = serde_json::to_vec(&self.status).expect("numbers and booleans are always JSON");
        match self.store.publish_status(&json) {
            Ok(()) => self.published = Some(self.status.clone()),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &StoreError) {
        self.behind = true;
        self.status.failures += 1;
        tracing::error!("{error}; what is there serves on, trying again");
    }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
