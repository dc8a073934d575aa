//! Where a new tenant goes: to which pool, or to which database of which server.

mod database;

pub use database::{DatabaseChoice, DatabaseView, choose_bridge, choose_dedicated};

use std::collections::BTreeSet;

use super::naming;

/// A pool, as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolView {
    /// The Pool's name.
    pub name: String,
    /// The DatabaseServer that it is on.
    pub server: String,
    /// The Application that it serves.
    pub application: String,
    /// How many tenants it takes.
    pub capacity: u32,
    /// How many tenants it has, those included whose placement is only just written.
    pub assigned: u32,
    /// Whether tenants may be added: not while it is deleted, paused or its spec is at fault.
    pub usable: bool,
}

impl PoolView {
    fn free(&self) -> u32 {
        self.capacity.saturating_sub(self.assigned)
    }
}

/// A server, as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerView {
    /// The DatabaseServer's name.
    pub name: String,
    /// How many databases it has, those of pools included that are only just made.
    pub databases: u32,
    /// How many databases it takes.
    pub max_databases: u32,
    /// How many tenants fit into one of its databases.
    pub schemas_per_database: u32,
    /// Whether it is reserved for the tenant that is to be placed, and so for no other.
    pub reserved: bool,
    /// Why nothing new can be placed here now, such as `is not Ready`; nothing when it can.
    pub refuses: Option<String>,
}

/// Where a pooled tenant goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Into a pool that is there.
    Existing {
        /// The Pool's name.
        pool: String,
    },
    /// Into a pool that is to be made.
    New {
        /// The Pool's name.
        pool: String,
        /// The DatabaseServer that it is on.
        server: String,
    },
    /// Nowhere, until something changes.
    Full {
        /// Why, and what would help.
        message: String,
    },
}

/// Where a new pooled tenant of an application goes: the fullest pool that still has room, or else
/// a new pool on the first server that has room for its database.
///
/// `servers` stand in the order in which the Application lists them; `pools` are all pools
/// of the cluster, since their names must differ. A pool takes at most `max_tenants`.
pub fn choose(application: &str, max_tenants: u32, servers: &[ServerView], pools: &[PoolView]) -> Choice {
    let own = || pools.iter().filter(|pool| pool.application == application);
    if let Some(pool) = own().filter(|pool| pool.usable && pool.free() > 0).max_by(|a, b| fuller(a, b)) {
        return Choice::Existing { pool: pool.name.clone() };
    }
    let has_room = |server: &&ServerView| refusal(server).is_none();
    match servers.iter().find(has_room) {
        Some(server) if max_tenants > 0 => {
            Choice::New { pool: free_name(application, pools), server: server.name.clone() }
        }
        _ => Choice::Full { message: full_message(max_tenants, servers, own().count()) },
    }
}

/// Orders by the share of the pool that is taken, then the older name first, so that equal
/// input gives an equal choice.
fn fuller(a: &PoolView, b: &PoolView) -> std::cmp::Ordering {
    let share = |pool: &PoolView, other: &PoolView| u64::from(pool.assigned) * u64::from(other.capacity);
    let by_name = |pool: &PoolView| (pool.name.len(), pool.name.clone());
    share(a, b).cmp(&share(b, a)).then_with(|| by_name(b).cmp(&by_name(a)))
}

fn refusal(server: &ServerView) -> Option<String> {
    if let Some(why) = &server.refuses {
        return Some(format!("DatabaseServer {} {why}", server.name));
    }
    if server.schemas_per_database == 0 {
        return Some(format!("DatabaseServer {} takes no schema (spec.capacity.schemasPerDatabase)", server.name));
    }
    (server.databases >= server.max_databases).then(|| {
        format!(
            "DatabaseServer {} has {} of {} databases (spec.capacity.databases)",
            server.name, server.databases, server.max_databases
        )
    })
}

/// The lowest number that no pool has, of any application: `crm-1` may be the first pool of
/// `crm`, or somebody's hand-written one.
fn free_name(application: &str, pools: &[PoolView]) -> String {
    let taken: BTreeSet<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
    (1..=pools.len() + 1)
        .map(|number| naming::pool_name(application, number))
        .find(|name| !taken.contains(name.as_str()))
        .expect("one name more than there are pools is free")
}

fn full_message(max_tenants: u32, servers: &[ServerView], pools: usize) -> String {
    if max_tenants == 0 {
        return "a pool takes no tenant: raise the Application's spec.pools.maxTenants".to_owned();
    }
    let reasons: Vec<String> = servers.iter().filter_map(refusal).collect();
    let reasons = if reasons.is_empty() { "the Application lists no server".to_owned() } else { reasons.join(", ") };
    format!(
        "none of the Application's {pools} pools has room, and no new one can be made: {reasons}. Raise maxTenants of \
         a Pool or the capacity of a server, or add a DatabaseServer to the Application's spec.database.pooled.servers"
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(name: &str, capacity: u32, assigned: u32) -> PoolView {
        PoolView {
            name: name.into(),
            server: "main".into(),
            application: "crm".into(),
            capacity,
            assigned,
            usable: true,
        }
    }

    fn server(name: &str, databases: u32, max_databases: u32) -> ServerView {
        ServerView {
            name: name.into(),
            databases,
            max_databases,
            schemas_per_database: 1_000,
            reserved: false,
            refuses: None,
        }
    }

    #[test]
    fn servers_are_filled_in_their_order_and_names_start_at_one() {
        let servers = [server("full", 2, 2), server("second", 0, 5), server("third", 0, 5)];
        let other = PoolView { application: "other".into(), ..pool("crm-1", 10, 0) };
        assert_eq!(
            choose("crm", 5, &servers, &[other, pool("crm-3", 10, 10)]),
            Choice::New { pool: "crm-2".into(), server: "second".into() }
        );
    }

    #[test]
    fn a_full_cluster_says_which_setting_is_in_the_way() {
        let down = ServerView { refuses: Some("is not Ready".into()), ..server("down", 0, 5) };
        let Choice::Full { message } = choose("crm", 5, &[server("main", 2, 2), down], &[pool("crm-1", 1, 1)]) else {
            panic!("there is no room");
        };
        for part in ["main has 2 of 2 databases (spec.capacity.databases)", "down is not Ready", "maxTenants"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn equally_full_pools_are_taken_in_order_of_their_numbers() {
        let pools = [pool("crm-10", 10, 5), pool("crm-2", 10, 5)];
        assert_eq!(choose("crm", 10, &[], &pools), Choice::Existing { pool: "crm-2".into() });
    }

    fn pools() -> impl Strategy<Value = Vec<PoolView>> {
        let one = (0_u32..6, 0_u32..8, any::<bool>(), any::<bool>());
        proptest::collection::vec(one, 0..8).prop_map(|pools| {
            let view = |(index, (capacity, assigned, usable, ours)): (usize, _)| PoolView {
                usable,
                application: if ours { "crm" } else { "other" }.into(),
                ..pool(&format!("crm-{}", index * 2 + 1), capacity, assigned)
            };
            pools.into_iter().enumerate().map(view).collect()
        })
    }

    proptest! {
        #[test]
        fn never_beyond_capacity_and_the_fullest_wins(pools in pools(), databases in 0_u32..3) {
            let servers = [server("main", databases, 2)];
            let candidates: Vec<_> = pools
                .iter()
                .filter(|pool| pool.application == "crm" && pool.usable && pool.assigned < pool.capacity)
                .collect();
            match choose("crm", 5, &servers, &pools) {
                Choice::Existing { pool } => {
                    let chosen = candidates.iter().find(|other| other.name == pool);
                    let chosen = chosen.expect("only a usable pool of the application with room is chosen");
                    for other in &candidates {
                        prop_assert!(
                            f64::from(chosen.assigned) / f64::from(chosen.capacity)
                                >= f64::from(other.assigned) / f64::from(other.capacity)
                        );
                    }
                }
                Choice::New { pool, server } => {
                    prop_assert!(candidates.is_empty() && databases < 2 && server == "main");
                    prop_assert!(pools.iter().all(|other| other.name != pool));
                }
                Choice::Full { .. } => prop_assert!(candidates.is_empty() && databases >= 2),
            }
        }

        #[test]
        fn the_order_of_the_pools_does_not_matter(pools in pools().prop_shuffle()) {
            let mut sorted = pools.clone();
            sorted.sort_by(|a, b| a.name.cmp(&b.name));
            let servers = [server("main", 0, 2)];
            prop_assert_eq!(choose("crm", 5, &servers, &pools), choose("crm", 5, &servers, &sorted));
        }

        #[test]
        fn filling_never_overshoots(max in 1_u32..6, databases in 1_u32..4, tenants in 0_u32..40) {
            let mut pools: Vec<PoolView> = Vec::new();
            let mut placed = 0;
            for _ in 0..tenants {
                let made = u32::try_from(pools.len()).expect("a few pools");
                match choose("crm", max, &[server("main", made, databases)], &pools) {
                    Choice::Existing { pool } => {
                        pools.iter_mut().filter(|view| view.name == pool).for_each(|view| view.assigned += 1);
                    }
                    Choice::New { pool: name, .. } => pools.push(pool(&name, max, 1)),
                    Choice::Full { .. } => break,
                }
                placed += 1;
                prop_assert!(pools.iter().all(|pool| pool.assigned <= pool.capacity));
                prop_assert!(pools.iter().filter(|pool| pool.assigned < pool.capacity).count() <= 1);
            }
            prop_assert_eq!(placed, tenants.min(max * databases));
        }
    }
}
