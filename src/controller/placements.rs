//! Which pool each tenant is in, counted as placements are made.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::api::PoolSpec;

/// Placements by the Tenant's UID. Changed under one lock together with the choice itself,
/// so that two tenants never race past a pool's capacity.
#[derive(Debug, Default)]
pub(super) struct Placements {
    pool_of: HashMap<String, String>,
    tenants_of: HashMap<String, HashSet<String>>,
    pending: BTreeMap<String, PoolSpec>,
}

impl Placements {
    /// The pool of a tenant.
    pub(super) fn pool_of(&self, uid: &str) -> Option<&str> {
        self.pool_of.get(uid).map(String::as_str)
    }

    /// The pools that tenants are placed in and that the watch has not brought yet: they are
    /// being made, or are about to be.
    pub(super) fn pending(&self) -> &BTreeMap<String, PoolSpec> {
        &self.pending
    }

    /// Notes that a pool is to be made.
    pub(super) fn expect(&mut self, name: &str, pool: PoolSpec) {
        self.pending.entry(name.to_owned()).or_insert(pool);
    }

    /// Notes that a pool was made, or went.
    pub(super) fn arrived(&mut self, name: &str) {
        self.pending.remove(name);
    }

    /// How many tenants a pool has.
    pub(super) fn count(&self, pool: &str) -> u32 {
        self.tenants_of.get(pool).map_or(0, |tenants| u32::try_from(tenants.len()).unwrap_or(u32::MAX))
    }

    /// Places a tenant.
    pub(super) fn place(&mut self, uid: &str, pool: &str) {
        if self.pool_of(uid) == Some(pool) {
            return;
        }
        self.release(uid);
        self.pool_of.insert(uid.to_owned(), pool.to_owned());
        self.tenants_of.entry(pool.to_owned()).or_default().insert(uid.to_owned());
    }

    /// Forgets a tenant; returns the pool that has room for one more now.
    pub(super) fn release(&mut self, uid: &str) -> Option<String> {
        let pool = self.pool_of.remove(uid)?;
        if let Some(tenants) = self.tenants_of.get_mut(&pool) {
            tenants.remove(uid);
            if tenants.is_empty() {
                self.tenants_of.remove(&pool);
            }
        }
        Some(pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_counts_once_wherever_it_is() {
        let mut placements = Placements::default();
        placements.place("a", "one");
        placements.place("a", "one");
        placements.place("b", "one");
        assert_eq!(placements.count("one"), 2);
        placements.place("a", "two");
        assert_eq!((placements.count("one"), placements.count("two")), (1, 1));
        assert_eq!(placements.release("a").as_deref(), Some("two"));
        assert_eq!(placements.release("a"), None);
        assert_eq!(placements.count("two"), 0);
    }
}
