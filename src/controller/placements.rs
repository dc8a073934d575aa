//! Where each tenant is, counted as placements are made.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::api::PoolSpec;

/// What tenants are placed in, and what has a capacity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cell {
    /// A Pool, by name.
    Pool(String),
    /// A database that bridge tenants of an Application share.
    Bridge {
        /// The Application's name.
        application: String,
        /// The DatabaseServer's name.
        server: String,
        /// The database on it.
        database: String,
    },
    /// The database of one dedicated tenant.
    Dedicated {
        /// The DatabaseServer's name.
        server: String,
        /// The database on it.
        database: String,
    },
}

impl Cell {
    /// Server and database, but for a Pool, which knows its own.
    fn database(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pool(_) => None,
            Self::Bridge { server, database, .. } | Self::Dedicated { server, database } => Some((server, database)),
        }
    }
}

/// Placements by the Tenant's UID. Changed under one lock together with the choice itself,
/// so that two tenants never race past a cell's capacity.
#[derive(Debug, Default)]
pub(super) struct Placements {
    cell_of: HashMap<String, Cell>,
    tenants_of: HashMap<Cell, HashSet<String>>,
    /// The databases of cells, by their servers.
    databases_on: HashMap<String, BTreeSet<String>>,
    pending: BTreeMap<String, PoolSpec>,
}

impl Placements {
    /// Where a tenant is.
    pub(super) fn cell_of(&self, uid: &str) -> Option<&Cell> {
        self.cell_of.get(uid)
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

    /// How many tenants a cell has.
    pub(super) fn count(&self, cell: &Cell) -> u32 {
        self.tenants_of.get(cell).map_or(0, |tenants| u32::try_from(tenants.len()).unwrap_or(u32::MAX))
    }

    /// How many tenants a pool has.
    pub(super) fn count_in_pool(&self, pool: &str) -> u32 {
        self.count(&Cell::Pool(pool.to_owned()))
    }

    /// The databases that bridge tenants of any Application are placed in: Application, server
    /// and database.
    pub(super) fn bridges(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.tenants_of.keys().filter_map(|cell| match cell {
            Cell::Bridge { application, server, database } => {
                Some((application.as_str(), server.as_str(), database.as_str()))
            }
            _ => None,
        })
    }

    /// The tenants in a cell, by UID.
    pub(super) fn tenants_in(&self, cell: &Cell) -> impl Iterator<Item = &str> {
        self.tenants_of.get(cell).into_iter().flatten().map(String::as_str)
    }

    /// The databases on a server that tenants of tiers bridge and dedicated are placed in, made
    /// or not.
    pub(super) fn databases_on(&self, server: &str) -> impl Iterator<Item = &str> {
        self.databases_on.get(server).into_iter().flatten().map(String::as_str)
    }

    /// The server of a database that tenants of tiers bridge or dedicated are placed in.
    pub(super) fn server_of(&self, database: &str) -> Option<&str> {
        let mut servers = self.databases_on.iter();
        servers.find(|(_, databases)| databases.contains(database)).map(|(server, _)| server.as_str())
    }

    /// Places a tenant.
    pub(super) fn place(&mut self, uid: &str, cell: Cell) {
        if self.cell_of(uid) == Some(&cell) {
            return;
        }
        self.release(uid);
        if let Some((server, database)) = cell.database() {
            self.databases_on.entry(server.to_owned()).or_default().insert(database.to_owned());
        }
        self.cell_of.insert(uid.to_owned(), cell.clone());
        self.tenants_of.entry(cell).or_default().insert(uid.to_owned());
    }

    /// Forgets a tenant; returns the cell that has room for one more now.
    pub(super) fn release(&mut self, uid: &str) -> Option<Cell> {
        let cell = self.cell_of.remove(uid)?;
        if let Some(tenants) = self.tenants_of.get_mut(&cell) {
            tenants.remove(uid);
            if tenants.is_empty() {
                self.tenants_of.remove(&cell);
                self.forget_database(&cell);
            }
        }
        Some(cell)
    }

    fn forget_database(&mut self, cell: &Cell) {
        if let Some((server, database)) = cell.database()
            && let Some(databases) = self.databases_on.get_mut(server)
        {
            databases.remove(database);
            if databases.is_empty() {
                self.databases_on.remove(server);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str) -> Cell {
        Cell::Pool(name.to_owned())
    }

    #[test]
    fn a_tenant_counts_once_wherever_it_is() {
        let mut placements = Placements::default();
        placements.place("a", pool("one"));
        placements.place("a", pool("one"));
        placements.place("b", pool("one"));
        assert_eq!(placements.count_in_pool("one"), 2);
        placements.place("a", pool("two"));
        assert_eq!((placements.count_in_pool("one"), placements.count_in_pool("two")), (1, 1));
        assert_eq!(placements.release("a"), Some(pool("two")));
        assert_eq!(placements.release("a"), None);
        assert_eq!(placements.count_in_pool("two"), 0);
    }

    #[test]
    fn a_database_counts_on_its_server_from_its_first_tenant_to_its_last() {
        let mut placements = Placements::default();
        let cell = Cell::Bridge { application: "crm".into(), server: "main".into(), database: "bridge_crm_1".into() };
        placements.place("a", cell.clone());
        placements.place("b", cell.clone());
        assert_eq!(placements.databases_on("main").collect::<Vec<_>>(), ["bridge_crm_1"]);
        assert_eq!(placements.bridges().collect::<Vec<_>>(), [("crm", "main", "bridge_crm_1")]);
        assert_eq!(placements.server_of("bridge_crm_1"), Some("main"));
        placements.release("a");
        assert_eq!((placements.count(&cell), placements.databases_on("main").count()), (1, 1));
        placements.release("b");
        assert_eq!((placements.databases_on("main").count(), placements.server_of("bridge_crm_1")), (0, None));
    }
}
