//! Where a new tenant goes. Choosing and counting are one step under one lock.

use std::collections::{BTreeSet, HashSet};

use kube::ResourceExt as _;

use super::{
    Case,
    place::{Place, pool_spec},
};
use crate::{
    api::{Accepts, DatabaseServer, Placement, Pool, Tier},
    controller::{
        databases::Connected,
        failure::Failure,
        placements::{Cell, Placements},
        world::World,
    },
    database::{Purpose, TenantId, TenantRecord, TenantState},
    desired::{
        Catalog as _, naming,
        placement::{
            Choice, DatabaseChoice, DatabaseView, PoolView, ServerView, choose, choose_bridge, choose_dedicated,
        },
        pool_capacity, pool_faults,
    },
};

/// A new place, of which the placements know from now on.
pub(super) fn chosen(case: &Case<'_>, uid: &str) -> Result<Place, Failure> {
    let mut placements = case.world.shared.placements();
    match case.effective.tier {
        Tier::Pooled => in_pool(case, uid, &mut placements),
        tier => in_database(case, uid, tier, &mut placements),
    }
}

fn in_pool(case: &Case<'_>, uid: &str, placements: &mut Placements) -> Result<Place, Failure> {
    let pools = pool_views(case.world, placements);
    let id = TenantId::from_uid(uid);
    // Chosen before, and then the status could not be written.
    if let Some(Cell::Pool(name)) = placements.cell_of(uid)
        && let Some(pool) = pools.iter().find(|pool| pool.name == *name)
    {
        return Ok(Place::pooled(&pool.name, &pool.server, id));
    }
    let servers = server_views(case, &pools, placements);
    let application = &case.effective.application;
    match choose(application, case.effective.max_tenants, &servers, &pools) {
        Choice::Existing { pool } => {
            placements.place(uid, Cell::Pool(pool.clone()));
            let server = pools.into_iter().find(|view| view.name == pool).map(|view| view.server);
            Ok(Place::pooled(&pool, &server.expect("a pool is chosen among those that there are"), id))
        }
        Choice::New { pool, server } => {
            placements.place(uid, Cell::Pool(pool.clone()));
            placements.expect(&pool, pool_spec(application, &server));
            Ok(Place::pooled(&pool, &server, id))
        }
        Choice::Full { message } => Err(Failure::waiting("NoCapacity", message)),
    }
}

fn in_database(case: &Case<'_>, uid: &str, tier: Tier, placements: &mut Placements) -> Result<Place, Failure> {
    let id = TenantId::from_uid(uid);
    let place = |server: &str, database: &str| Place::own(tier, case.name, server, database, id.clone());
    // Chosen before, and then the status could not be written.
    match (placements.cell_of(uid), tier) {
        (Some(Cell::Bridge { server, database, .. }), Tier::Bridge) => return Ok(place(server, database)),
        // What was chosen may have been chosen for an earlier Tenant, whose database is its own.
        (Some(Cell::Dedicated { server, database }), Tier::Dedicated)
            if *database == naming::dedicated_database(id.as_str()) =>
        {
            return Ok(place(server, database));
        }
        _ => {}
    }
    let servers = server_views(case, &pool_views(case.world, placements), placements);
    let application = &case.effective.application;
    let choice = match tier {
        Tier::Dedicated => {
            choose_dedicated(id.as_str(), case.effective.placement.unwrap_or(Placement::Database), &servers)
        }
        _ => choose_bridge(application, &servers, &database_views(case, placements)),
    };
    match choice {
        DatabaseChoice::Existing { server, database } | DatabaseChoice::New { server, database } => {
            let place = place(&server, &database);
            placements.place(uid, place.cell(application));
            Ok(place)
        }
        DatabaseChoice::Full { message } => Err(Failure::waiting("NoCapacity", message)),
    }
}

/// The databases on the servers that take this tenant: those that were made, and those in which
/// somebody is placed.
fn database_views(case: &Case<'_>, placements: &Placements) -> Vec<DatabaseView> {
    let mut views: Vec<DatabaseView> = Vec::new();
    for server in &case.effective.servers {
        let connected = case.world.databases.get(server);
        let purpose = |database: &str| connected.as_ref()?.purpose(database);
        let known = connected.iter().flat_map(|connected| connected.names());
        let names: BTreeSet<String> = known.chain(placements.databases_on(server).map(str::to_owned)).collect();
        for name in names {
            // Where two DatabaseServers lead to one PostgreSQL, each database counts for its own.
            if placements.server_of(&name).is_some_and(|other| other != server) {
                continue;
            }
            let placed = placements.bridges().find(|(_, on, database)| on == server && *database == name);
            let application = match purpose(&name) {
                Some(Purpose::Bridge(application)) => Some(application),
                Some(_) => None,
                None => placed.map(|(application, _, _)| application.to_owned()),
            };
            let assigned = application.as_ref().map_or(0, |application| {
                let (server, database) = (server.clone(), name.clone());
                let cell = Cell::Bridge { application: application.clone(), server, database };
                schemas(connected.as_deref(), &name, placements.tenants_in(&cell))
            });
            views.push(DatabaseView { name, server: server.clone(), application, assigned });
        }
    }
    views
}

/// How many schemas a database has or is about to have: of those that are placed there, and of
/// those whose data is kept.
fn schemas<'a>(connected: Option<&Connected>, database: &str, placed: impl Iterator<Item = &'a str>) -> u32 {
    let has_schema = |record: &TenantRecord| !matches!(record.state, TenantState::Dropped { .. });
    let records = connected.map(|connected| connected.find_in(database, has_schema)).unwrap_or_default();
    let mut uids: HashSet<&str> = placed.collect();
    uids.extend(records.iter().map(|record| record.uid.as_str()));
    u32::try_from(uids.len()).unwrap_or(u32::MAX)
}

/// Every pool, as placement sees it: those of the store, and those that are being made.
fn pool_views(world: &World, placements: &Placements) -> Vec<PoolView> {
    let view = |pool: &Pool| {
        let name = pool.name_any();
        let (application, server) = (world.application(&pool.spec.application), world.server(&pool.spec.server));
        let capacity = match (&application, &server) {
            (Some(application), Some(server)) => pool_capacity(pool, application, server),
            _ => 0,
        };
        PoolView {
            assigned: placements.count_in_pool(&name),
            server: pool.spec.server.clone(),
            application: pool.spec.application.clone(),
            capacity,
            usable: pool.metadata.deletion_timestamp.is_none()
                && !crate::controller::is_paused(pool)
                && pool_faults(pool, application.as_deref(), server.as_deref()).is_empty(),
            name,
        }
    };
    let mut views: Vec<_> = world.stores.pools.state().iter().map(|pool| view(pool)).collect();
    for (name, spec) in placements.pending() {
        if !views.iter().any(|view| view.name == *name) {
            views.push(view(&Pool::new(name, spec.clone())));
        }
    }
    views
}

/// The servers that take this tenant, in the order in which they are filled.
fn server_views(case: &Case<'_>, pools: &[PoolView], placements: &Placements) -> Vec<ServerView> {
    let servers = case.effective.servers.iter();
    servers.map(|name| server_view(case, name, pools, placements)).collect()
}

fn server_view(case: &Case<'_>, name: &str, pools: &[PoolView], placements: &Placements) -> ServerView {
    let world = case.world;
    let server = world.server(name);
    let capacity = server.as_ref().and_then(|server| server.spec.capacity.clone()).unwrap_or_default();
    let positive = |number: Option<i32>, default: u32| number.and_then(|n| u32::try_from(n).ok()).unwrap_or(default);
    let refuses = match &server {
        None => Some("does not exist".to_owned()),
        Some(server) if server.metadata.deletion_timestamp.is_some() => Some("is being deleted".to_owned()),
        Some(server) => {
            refuses(case, server).or_else(|| world.databases.get(name).is_none().then(|| "is not connected".to_owned()))
        }
    };
    ServerView {
        name: name.to_owned(),
        databases: u32::try_from(databases_on(world, name, pools, placements).len()).unwrap_or(u32::MAX),
        max_databases: positive(capacity.databases, 100),
        schemas_per_database: positive(capacity.schemas_per_database, 1_000),
        reserved: server.is_some_and(|server| server.spec.reserved_for.as_deref() == Some(case.name)),
        refuses,
    }
}

/// Why a server doesn't take this tenant, by its spec.
fn refuses(case: &Case<'_>, server: &DatabaseServer) -> Option<String> {
    let (wanted, what) = match case.effective.tier {
        Tier::Pooled => (Accepts::Pooled, "pool"),
        Tier::Bridge => (Accepts::Bridge, "bridge tenant"),
        Tier::Dedicated => (Accepts::Dedicated, "dedicated tenant"),
    };
    let reserved = server.spec.reserved_for.as_deref();
    let free = reserved.is_none_or(|tenant| case.effective.tier != Tier::Pooled && tenant == case.name);
    let accepts = server.spec.accepts.as_ref().is_none_or(|accepts| accepts.contains(&wanted));
    (!free || !accepts).then(|| format!("takes no {what}"))
}

/// The databases on a server: of pools, of tenants that are placed there, made or not, and what
/// pools and tenants that are gone have left.
fn databases_on(world: &World, server: &str, pools: &[PoolView], placements: &Placements) -> BTreeSet<String> {
    let of_pools = pools.iter().filter(|pool| pool.server == server).map(|pool| Pool::database_name(&pool.name));
    let of_tenants = placements.databases_on(server).map(str::to_owned);
    let mut databases: BTreeSet<String> = of_pools.chain(of_tenants).collect();
    // Where two DatabaseServers lead to one PostgreSQL, each database counts for its own.
    let elsewhere: HashSet<String> =
        pools.iter().filter(|pool| pool.server != server).map(|pool| Pool::database_name(&pool.name)).collect();
    let is_here = |database: &String| {
        !elsewhere.contains(database) && placements.server_of(database).is_none_or(|other| other == server)
    };
    if let Some(connected) = world.databases.get(server) {
        databases.extend(connected.names().into_iter().filter(is_here));
    }
    databases
}
