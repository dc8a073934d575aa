//! The databases of tenants that have compute of their own.

use std::collections::BTreeSet;

use super::{ServerView, refusal};
use crate::{api::Placement, desired::naming};

/// A database on one of the servers, as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseView {
    /// Its name.
    pub name: String,
    /// The DatabaseServer that it is on.
    pub server: String,
    /// The Application whose bridge tenants share it; nothing for every other database, whose
    /// name alone counts.
    pub application: Option<String>,
    /// How many tenants it has, those included whose placement is only just written.
    pub assigned: u32,
}

/// Where the data of a tenant of tier bridge or dedicated goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseChoice {
    /// Into a database that is there.
    Existing {
        /// The DatabaseServer.
        server: String,
        /// The database on it.
        database: String,
    },
    /// Into a database that is to be made.
    New {
        /// The DatabaseServer.
        server: String,
        /// The database on it.
        database: String,
    },
    /// Nowhere, until something changes.
    Full {
        /// Why, and what would help.
        message: String,
    },
}

/// Where the schema of a new bridge tenant of an application goes: the fullest of the
/// application's shared databases that still has room, or else a new one on the first server
/// that has room for it.
///
/// `servers` stand in the order in which the Application lists them; `databases` are all that
/// these servers have, those included that are about to be made: a name that any of them has
/// is not given again.
pub fn choose_bridge(application: &str, servers: &[ServerView], databases: &[DatabaseView]) -> DatabaseChoice {
    let own = || databases.iter().filter(|database| database.application.as_deref() == Some(application));
    let room = |database: &DatabaseView| {
        let server = servers.iter().find(|server| server.name == database.server && server.refuses.is_none())?;
        (database.assigned < server.schemas_per_database).then_some(server.schemas_per_database)
    };
    let open = own().filter_map(|database| Some((database, room(database)?)));
    let share = |a: (&DatabaseView, u32), b: (&DatabaseView, u32)| u64::from(a.0.assigned) * u64::from(b.1);
    // The fullest by share, then the older name, so that equal input gives an equal choice.
    let by_name = |database: &DatabaseView| (database.name.len(), database.name.clone(), database.server.clone());
    let fullest = open.max_by(|a, b| share(*a, *b).cmp(&share(*b, *a)).then_with(|| by_name(b.0).cmp(&by_name(a.0))));
    if let Some((database, _)) = fullest {
        return DatabaseChoice::Existing { server: database.server.clone(), database: database.name.clone() };
    }
    match servers.iter().find(|server| refusal(server).is_none()) {
        Some(server) => {
            DatabaseChoice::New { server: server.name.clone(), database: free_name(application, databases) }
        }
        None => {
            let found = match own().count() {
                0 => "no database can be made for it".to_owned(),
                1 => "the Application's one bridge database is full, and no other can be made".to_owned(),
                count => format!("the Application's {count} bridge databases are full, and no other can be made"),
            };
            full("bridge", &found, servers)
        }
    }
}

/// Where the database of a new dedicated tenant goes: to the first server that has room, or,
/// with placement `Server`, to the first that is reserved for this tenant. `id` is the
/// tenant's opaque id, after which the database is named.
pub fn choose_dedicated(id: &str, placement: Placement, servers: &[ServerView]) -> DatabaseChoice {
    let eligible = |server: &&ServerView| placement == Placement::Database || server.reserved;
    let found = servers.iter().filter(eligible).find(|server| refusal(server).is_none());
    match found {
        Some(server) => DatabaseChoice::New { server: server.name.clone(), database: naming::dedicated_database(id) },
        None => {
            let candidates: Vec<ServerView> = servers.iter().filter(eligible).cloned().collect();
            let found = match placement {
                Placement::Database => "no database can be made for it",
                Placement::Server => "no server of its own has room for its database",
            };
            full("dedicated", found, &candidates)
        }
    }
}

/// The lowest number that no database of any of the servers has.
fn free_name(application: &str, databases: &[DatabaseView]) -> String {
    let taken: BTreeSet<&str> = databases.iter().map(|database| database.name.as_str()).collect();
    (1..=databases.len() + 1)
        .map(|number| naming::bridge_database(application, number))
        .find(|name| !taken.contains(name.as_str()))
        .expect("one name more than there are databases is free")
}

fn full(tier: &str, found: &str, servers: &[ServerView]) -> DatabaseChoice {
    let reasons: Vec<String> = servers.iter().filter_map(refusal).collect();
    let reasons = if reasons.is_empty() { "the Application lists no server".to_owned() } else { reasons.join(", ") };
    let message = format!(
        "{found}: {reasons}. Raise the capacity of a server, or add a DatabaseServer to the Application's \
         spec.database.{tier}.servers"
    );
    DatabaseChoice::Full { message }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server(name: &str, databases: u32, max_databases: u32) -> ServerView {
        ServerView {
            name: name.into(),
            databases,
            max_databases,
            schemas_per_database: 4,
            reserved: false,
            refuses: None,
        }
    }

    fn database(server: &str, name: &str, assigned: u32) -> DatabaseView {
        DatabaseView { name: name.into(), server: server.into(), application: Some("crm".into()), assigned }
    }

    fn existing(server: &str, database: &str) -> DatabaseChoice {
        DatabaseChoice::Existing { server: server.into(), database: database.into() }
    }

    fn new(server: &str, database: &str) -> DatabaseChoice {
        DatabaseChoice::New { server: server.into(), database: database.into() }
    }

    #[test]
    fn the_fullest_database_with_room_is_taken_and_only_one_of_the_application() {
        let databases = [
            database("main", "bridge_crm_1", 4),
            database("main", "bridge_crm_2", 1),
            database("main", "bridge_crm_3", 3),
            DatabaseView { application: Some("shop".into()), ..database("main", "bridge_shop_1", 3) },
            DatabaseView { application: None, ..database("main", "pool_crm_1", 3) },
        ];
        let servers = [server("main", 5, 5)];
        assert_eq!(choose_bridge("crm", &servers, &databases), existing("main", "bridge_crm_3"));
        assert_eq!(choose_bridge("shop", &servers, &databases), existing("main", "bridge_shop_1"));
        // Equally full: the older one.
        let equal = [database("main", "bridge_crm_10", 2), database("main", "bridge_crm_9", 2)];
        assert_eq!(choose_bridge("crm", &servers, &equal), existing("main", "bridge_crm_9"));
    }

    #[test]
    fn a_server_that_takes_nothing_new_is_passed_over_with_all_its_databases() {
        let down = ServerView { refuses: Some("is not connected".into()), ..server("down", 1, 5) };
        let databases = [database("down", "bridge_crm_1", 2), database("gone", "bridge_crm_2", 2)];
        let servers = [down, server("main", 0, 5)];
        assert_eq!(choose_bridge("crm", &servers, &databases), new("main", "bridge_crm_3"));
    }

    #[test]
    fn names_differ_from_all_that_are_there() {
        let foreign = DatabaseView { application: None, ..database("main", "bridge_crm_1", 0) };
        let servers = [server("full", 2, 2), server("main", 1, 5)];
        assert_eq!(choose_bridge("crm", &servers, &[foreign]), new("main", "bridge_crm_2"));
        assert_eq!(choose_bridge("a-b", &servers, &[]), new("main", "bridge_a_b_1"));
        assert!(naming::bridge_database(&"a".repeat(34), 9_999).len() <= 63);
    }

    #[test]
    fn a_dedicated_tenant_has_a_database_on_the_first_server_with_room_or_on_its_own() {
        let own = ServerView { reserved: true, ..server("own", 0, 1) };
        let servers = [server("full", 2, 2), server("main", 0, 5), own];
        let choose = |placement, servers: &[ServerView]| choose_dedicated("t_6ilmqx5mbn4c", placement, servers);
        assert_eq!(choose(Placement::Database, &servers), new("main", "dedicated_6ilmqx5mbn4c"));
        assert_eq!(choose(Placement::Server, &servers), new("own", "dedicated_6ilmqx5mbn4c"));
        let DatabaseChoice::Full { message } = choose(Placement::Server, &servers[..2]) else {
            panic!("none is its own")
        };
        assert!(message.contains("no server of its own") && !message.contains("full has 2"), "{message}");
        let DatabaseChoice::Full { message } = choose(Placement::Database, &servers[..1]) else { panic!("it is full") };
        for part in ["full has 2 of 2 databases (spec.capacity.databases)", "spec.database.dedicated.servers"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_full_cluster_says_which_setting_is_in_the_way() {
        let message = |databases: &[DatabaseView]| match choose_bridge("crm", &[server("main", 2, 2)], databases) {
            DatabaseChoice::Full { message } => message,
            other => panic!("there is no room: {other:?}"),
        };
        let full = |number: usize| database("main", &naming::bridge_database("crm", number), 4);
        assert!(message(&[]).starts_with("no database can be made for it: DatabaseServer main has 2 of 2 databases"));
        assert!(message(&[full(1)]).starts_with("the Application's one bridge database is full"));
        assert!(message(&[full(1), full(2)]).starts_with("the Application's 2 bridge databases are full"));
        assert!(message(&[]).contains("spec.database.bridge.servers"));
    }

    proptest! {
        #[test]
        fn filling_never_overshoots_and_opens_one_database_at_a_time(
            schemas in 1_u32..5, limit in 1_u32..4, tenants in 0_u32..40,
        ) {
            let mut databases: Vec<DatabaseView> = Vec::new();
            let mut placed = 0;
            for _ in 0..tenants {
                let on = |name: &str| {
                    let made = databases.iter().filter(|database| database.server == name).count();
                    let made = u32::try_from(made).expect("a few databases");
                    ServerView { schemas_per_database: schemas, ..server(name, made, limit) }
                };
                let servers = [on("one"), on("two")];
                match choose_bridge("crm", &servers, &databases) {
                    DatabaseChoice::Existing { server, database } => {
                        let chosen = databases.iter_mut().find(|it| it.server == server && it.name == database);
                        chosen.expect("one that is there").assigned += 1;
                    }
                    DatabaseChoice::New { server, database: name } => {
                        prop_assert!(databases.iter().all(|it| it.name != name));
                        prop_assert!(databases.iter().all(|it| it.assigned == schemas), "another has room");
                        databases.push(database(&server, &name, 1));
                    }
                    DatabaseChoice::Full { .. } => break,
                }
                placed += 1;
            }
            prop_assert!(databases.iter().all(|it| it.assigned <= schemas));
            prop_assert_eq!(placed, tenants.min(2 * limit * schemas));
        }
    }
}
