//! Who has which host: the oldest Tenant that asks for it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::Fault;

/// The hosts that a Tenant asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The Tenant's name.
    pub tenant: String,
    /// When the Tenant was made.
    pub created: Timestamp,
    /// The hosts.
    pub hosts: Vec<String>,
    /// Those of the hosts that the tenant's live route already has: a foreign route that
    /// names one of them later doesn't take it away.
    pub serving: BTreeSet<String>,
}

/// Who claims a host: Tenants with the oldest first, and foreign routes.
#[derive(Clone, Debug, Default)]
struct Host {
    /// In order. A vector, since nearly every host has one, and a set would take ten times as
    /// much memory for it.
    tenants: Vec<(Timestamp, String)>,
    foreign: BTreeSet<String>,
}

impl Host {
    fn add(&mut self, tenant: (Timestamp, String)) {
        if let Err(place) = self.tenants.binary_search(&tenant) {
            self.tenants.reserve_exact(1);
            self.tenants.insert(place, tenant);
        }
    }
}

/// A claim, as it is kept: as many of them as there are Tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    created: Timestamp,
    /// Each host with whether the live route already has it.
    hosts: Box<[(String, bool)]>,
}

impl Kept {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(|(host, _)| host.as_str())
    }
}

impl From<Claim> for Kept {
    fn from(claim: Claim) -> Self {
        let serving = claim.serving;
        let kept = |host: String| {
            let serves = serving.contains(&host);
            (host, serves)
        };
        Self { created: claim.created, hosts: claim.hosts.into_iter().map(kept).collect() }
    }
}

/// Who has a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder<'a> {
    /// A Tenant, by name.
    Tenant(&'a str),
    /// A route that isn't ours, such as `HTTPRoute shop/front`.
    Foreign(&'a str),
}

/// Every host that a Tenant or a foreign route names. It is kept up to date by each change,
/// since building it anew for every one of 10,000 Tenants would take their square.
#[derive(Clone, Debug, Default)]
pub struct HostIndex {
    hosts: BTreeMap<String, Host>,
    claims: BTreeMap<String, Kept>,
    foreign: BTreeMap<String, BTreeSet<String>>,
}

impl HostIndex {
    /// Takes note of what a Tenant asks for. Returns the *other* Tenants that gained or lost
    /// a host by it, or didn't and are told another holder's name.
    pub fn set_claim(&mut self, claim: Claim) -> BTreeSet<String> {
        let tenant = claim.tenant.clone();
        let claim = Kept::from(claim);
        if self.claims.get(&tenant) == Some(&claim) {
            return BTreeSet::new();
        }
        let touched = self.hosts_of(&tenant).chain(claim.names()).map(str::to_owned).collect();
        let mut affected = self.holders_changed(&touched, |index| {
            index.take_out(&tenant);
            for host in claim.names() {
                index.hosts.entry(host.to_owned()).or_default().add((claim.created, tenant.clone()));
            }
            index.claims.insert(tenant.clone(), claim);
        });
        affected.remove(&tenant);
        affected
    }

    /// Forgets a Tenant. Returns those that gained a host by it, or see another take it.
    pub fn remove_claim(&mut self, tenant: &str) -> BTreeSet<String> {
        let touched = self.hosts_of(tenant).map(str::to_owned).collect();
        let mut affected = self.holders_changed(&touched, |index| index.take_out(tenant));
        affected.remove(tenant);
        affected
    }

    /// Takes note of the hosts of a route that isn't ours (none: the route is gone). Returns
    /// the Tenants that gained or lost a host by it, or see it go elsewhere.
    pub fn set_foreign(&mut self, route: &str, hosts: BTreeSet<String>) -> BTreeSet<String> {
        let old = self.foreign.get(route).cloned().unwrap_or_default();
        let touched = old.union(&hosts).cloned().collect();
        self.holders_changed(&touched, |index| {
            for host in &old {
                index.change(host, |entry| {
                    entry.foreign.remove(route);
                });
            }
            for host in &hosts {
                index.hosts.entry(host.clone()).or_default().foreign.insert(route.to_owned());
            }
            if hosts.is_empty() {
                index.foreign.remove(route);
            } else {
                index.foreign.insert(route.to_owned(), hosts);
            }
        })
    }

    /// Who has a host; nothing when nobody asks for it.
    pub fn holder(&self, host: &str) -> Option<Holder<'_>> {
        let entry = self.hosts.get(host)?;
        let tenant = entry.tenants.first().map(|(_, tenant)| tenant.as_str());
        let serving = tenant.is_some_and(|name| self.is_serving(name, host));
        match (tenant, entry.foreign.first()) {
            (Some(tenant), _) if serving => Some(Holder::Tenant(tenant)),
            (_, Some(route)) => Some(Holder::Foreign(route)),
            (tenant, None) => tenant.map(Holder::Tenant),
        }
    }

    /// Whether a Tenant's live route has a host, as its last claim told.
    pub fn is_serving(&self, tenant: &str, host: &str) -> bool {
        let claim = self.claims.get(tenant);
        claim.is_some_and(|claim| claim.hosts.iter().any(|(known, serves)| known == host && *serves))
    }

    /// The hosts that a Tenant asks for and has, in the order in which it names them.
    pub fn granted(&self, tenant: &str) -> Vec<String> {
        let hosts = self.hosts_of(tenant);
        hosts.filter(|host| self.holder(host) == Some(Holder::Tenant(tenant))).map(str::to_owned).collect()
    }

    /// A fault for each host that a Tenant asks for and somebody else has.
    pub fn faults(&self, tenant: &str) -> Vec<Fault> {
        self.hosts_of(tenant)
            .filter_map(|host| {
                let message = match self.holder(host)? {
                    Holder::Tenant(name) if name == tenant => return None,
                    Holder::Tenant(name) => {
                        format!("host {host} belongs to Tenant {name}, which is older: remove it here, or there first")
                    }
                    Holder::Foreign(route) => {
                        format!(
                            "host {host} is served by {route}, which is not Tenantry's: remove it here, or there first"
                        )
                    }
                };
                Some(Fault::new("HostTaken", "spec.hosts", message))
            })
            .collect()
    }

    fn hosts_of(&self, tenant: &str) -> impl Iterator<Item = &str> {
        self.claims.get(tenant).into_iter().flat_map(Kept::names)
    }

    fn take_out(&mut self, tenant: &str) {
        let Some(claim) = self.claims.remove(tenant) else { return };
        for host in claim.names() {
            self.change(host, |entry| entry.tenants.retain(|(_, other)| other != tenant));
        }
    }

    /// Changes the entry of a host, and drops it once nobody names the host.
    fn change(&mut self, host: &str, change: impl FnOnce(&mut Host)) {
        let Some(entry) = self.hosts.get_mut(host) else { return };
        change(entry);
        if entry.tenants.is_empty() && entry.foreign.is_empty() {
            self.hosts.remove(host);
        }
    }

    /// The Tenants that ask for one of the `touched` hosts that somebody else has after
    /// `change`: one of them gained or lost it, and the others are told who has it.
    fn holders_changed(&mut self, touched: &BTreeSet<String>, change: impl FnOnce(&mut Self)) -> BTreeSet<String> {
        let holders = |index: &Self| -> Vec<Option<(bool, String)>> {
            let owned = |holder| match holder {
                Holder::Tenant(name) => (true, str::to_owned(name)),
                Holder::Foreign(route) => (false, str::to_owned(route)),
            };
            touched.iter().map(|host| index.holder(host).map(owned)).collect()
        };
        let before = holders(self);
        change(self);
        let changed = touched.iter().zip(before.iter().zip(holders(self))).filter(|(_, (old, new))| **old != *new);
        let claimants = changed.flat_map(|(host, _)| self.hosts.get(host).into_iter().flat_map(|host| &host.tenants));
        claimants.map(|(_, tenant)| tenant.clone()).collect()
    }
}
