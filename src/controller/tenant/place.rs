//! Where a tenant is: looked up, or chosen and written down before anything is made.

use kube::{Api, ResourceExt as _, api::PostParams};

use super::{Case, recover, status::Report};
use crate::{
    api::{Accepts, DatabaseServer, FIELD_MANAGER, Pool, PoolSpec, Tenant},
    controller::{databases::Connected, failure::Failure, placements::Placements, world::World},
    database::TenantId,
    desired::{
        Catalog as _, naming,
        placement::{Choice, PoolView, ServerView, choose},
        pool_capacity, pool_faults,
    },
};

/// Where a tenant is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pool: String,
    pub(super) namespace: String,
    pub(super) server: String,
    pub(super) database: String,
    pub(super) id: TenantId,
}

impl Place {
    pub(super) fn of(pool: &str, server: &str, id: TenantId) -> Self {
        Self {
            pool: pool.to_owned(),
            namespace: naming::pool_namespace(pool),
            server: server.to_owned(),
            database: Pool::database_name(pool),
            id,
        }
    }
}

/// Where a tenant was placed, by its status or by this process.
pub(super) fn known(tenant: &Tenant, world: &World) -> Option<Place> {
    let uid = tenant.metadata.uid.as_deref()?;
    let status = world.statuses.tenants.current(tenant, tenant.status.as_ref()).unwrap_or_default();
    let pool = status.pool?;
    let id = status.id.as_deref().and_then(|id| id.parse().ok()).unwrap_or_else(|| TenantId::from_uid(uid));
    let server = status.database.map(|database| database.server);
    let server = server.or_else(|| world.pool(&pool).map(|pool| pool.spec.server.clone()))?;
    Some(Place::of(&pool, &server, id))
}

/// Takes in where a Tenant's status says that it is.
pub(in crate::controller) fn note(tenant: &Tenant, world: &World) {
    let (Some(status), Some(uid)) = (&tenant.status, &tenant.metadata.uid) else { return };
    let Some(pool) = &status.pool else { return };
    let mut placements = world.shared.placements();
    placements.place(uid, pool);
    // The operator may have ended before it made the pool: its name is taken all the same.
    if world.pool(pool).is_none()
        && let Some(database) = &status.database
    {
        placements.expect(pool, pool_spec(&tenant.spec.application, &database.server));
    }
}

/// A tenant's place: the one that it has, or the one that its records tell, or a new one. A
/// new one stands in the status before anything is made for it, the pool included.
pub(super) async fn place(case: &Case<'_>, report: &mut Report<'_>) -> Result<Place, Failure> {
    report.clear_conflict();
    let place = match known(case.tenant, case.world) {
        Some(place) => place,
        None => {
            let uid = case.tenant.metadata.uid.clone().unwrap_or_default();
            let place = match recover::recorded(case, &uid, report).await? {
                Some(place) => {
                    case.world.shared.placements().place(&uid, &place.pool);
                    place
                }
                None => chosen(case, &uid)?,
            };
            report.set_place(case, &place);
            report.write_place().await?;
            place
        }
    };
    ensure_pool(case.world, &case.effective.application, &place).await?;
    Ok(place)
}

/// A new place. Choosing and counting are one step under one lock.
fn chosen(case: &Case<'_>, uid: &str) -> Result<Place, Failure> {
    let mut placements = case.world.shared.placements();
    let pools = pool_views(case.world, &placements);
    let id = TenantId::from_uid(uid);
    // Chosen before, and then the status could not be written.
    let earlier = placements.pool_of(uid).and_then(|name| pools.iter().find(|pool| pool.name == name));
    if let Some(pool) = earlier {
        return Ok(Place::of(&pool.name, &pool.server, id));
    }
    let servers: Vec<_> = case.effective.servers.iter().map(|name| server_view(case.world, name, &pools)).collect();
    let application = &case.effective.application;
    match choose(application, case.effective.max_tenants, &servers, &pools) {
        Choice::Existing { pool } => {
            placements.place(uid, &pool);
            let server = pools.into_iter().find(|view| view.name == pool).map(|view| view.server);
            Ok(Place::of(&pool, &server.expect("a pool is chosen among those that there are"), id))
        }
        Choice::New { pool, server } => {
            placements.place(uid, &pool);
            placements.expect(&pool, pool_spec(application, &server));
            Ok(Place::of(&pool, &server, id))
        }
        Choice::Full { message } => Err(Failure::waiting("NoCapacity", message)),
    }
}

fn pool_spec(application: &str, server: &str) -> PoolSpec {
    PoolSpec { application: application.to_owned(), server: server.to_owned(), max_tenants: None }
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
            assigned: placements.count(&name),
            server: pool.spec.server.clone(),
            application: pool.spec.application.clone(),
            capacity,
            usable: pool.metadata.deletion_timestamp.is_none()
                && !super::super::is_paused(pool)
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

fn server_view(world: &World, name: &str, pools: &[PoolView]) -> ServerView {
    let server = world.server(name);
    let capacity = server.as_ref().and_then(|server| server.spec.capacity.clone()).unwrap_or_default();
    let positive = |number: Option<i32>, default: u32| number.and_then(|n| u32::try_from(n).ok()).unwrap_or(default);
    let accepts = |server: &DatabaseServer| {
        server.spec.reserved_for.is_none()
            && server.spec.accepts.as_ref().is_none_or(|accepts| accepts.contains(&Accepts::Pooled))
    };
    let refuses = match &server {
        None => Some("does not exist".to_owned()),
        Some(server) if server.metadata.deletion_timestamp.is_some() => Some("is being deleted".to_owned()),
        Some(server) if !accepts(server) => Some("takes no pool".to_owned()),
        Some(_) if world.databases.get(name).is_none() => Some("is not connected".to_owned()),
        Some(_) => None,
    };
    // Databases of pools that were deleted while their tenants' data is kept count as well.
    let of_pools = pools.iter().filter(|pool| pool.server == *name);
    let orphaned = world.databases.get(name).map_or(0, |connected| orphaned(&connected, pools));
    ServerView {
        name: name.to_owned(),
        databases: u32::try_from(of_pools.count() + orphaned).unwrap_or(u32::MAX),
        max_databases: positive(capacity.databases, 100),
        schemas_per_database: positive(capacity.schemas_per_database, 1_000),
        reserved: false,
        refuses,
    }
}

fn orphaned(connected: &Connected, pools: &[PoolView]) -> usize {
    let has_pool = |database: &String| pools.iter().any(|pool| Pool::database_name(&pool.name) == *database);
    connected.names().iter().filter(|database| !has_pool(database)).count()
}

/// Makes the pool of a place, unless it is there.
async fn ensure_pool(world: &World, application: &str, place: &Place) -> Result<(), Failure> {
    let name = &place.pool;
    if world.pool(name).is_some() {
        return Ok(());
    }
    let spec = pool_spec(application, &place.server);
    world.shared.placements().expect(name, spec.clone());
    let mut pool = Pool::new(name, spec);
    pool.labels_mut().insert(naming::LABEL_PART_OF.to_owned(), application.to_owned());
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    match Api::<Pool>::all(world.cluster.client().clone()).create(&params, &pool).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        Err(error) => Err(Failure::transient("ApiServerError", format!("create Pool {name}: {error}"))),
    }
}
