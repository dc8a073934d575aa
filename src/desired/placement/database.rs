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
