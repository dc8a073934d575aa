//! Where a tenant is: looked up, or chosen and written down before anything is made.

use std::{collections::BTreeMap, sync::Arc};

use kube::{Api, ResourceExt as _, api::PostParams};

use super::{Case, status::Report};
use crate::{
    api::{
        ANNOTATION_ABANDON, ANNOTATION_RESTORE_FROM, Accepts, DatabaseServer, FIELD_MANAGER, Pool, PoolSpec, Tenant,
    },
    controller::{databases::Connected, failure::Failure, placements::PendingPool, world::World},
    database::{Purpose, TenantId, TenantRecord, TenantState},
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

/// A tenant's place: the one that it has, or the one that its records tell, or a new one. A
/// new one stands in the status before this returns.
pub(super) async fn place(case: &Case<'_>, report: &mut Report<'_>) -> Result<Place, Failure> {
    if let Some(place) = known(case.tenant, case.world) {
        return Ok(place);
    }
    let uid = case.tenant.metadata.uid.clone().unwrap_or_default();
    let place = match recorded(case, &uid).await? {
        Some(place) => {
            case.world.shared.placements().place(&uid, &place.pool);
            place
        }
        None => chosen(case, &uid).await?,
    };
    report.set_place(case, &place);
    report.write_place().await?;
    Ok(place)
}

/// The place that the ownership records of the servers tell: of this Tenant, whose status was
/// lost, or of another one of the same name, whose data an annotation gives to this one.
async fn recorded(case: &Case<'_>, uid: &str) -> Result<Option<Place>, Failure> {
    for name in &case.effective.servers {
        let connected = case.world.databases.get(name).ok_or_else(|| {
            let message = format!(
                "DatabaseServer {name} is not connected, so it can't be asked whether it still has data of a tenant of this name"
            );
            Failure::waiting("DatabaseUnavailable", message)
        })?;
        let of_this_name = |record: &TenantRecord| {
            record.name == case.name
                && record.cluster_id == case.world.facts.cluster_id
                && matches!(record.state, TenantState::Live | TenantState::Retained { .. })
        };
        for (database, record) in connected.find(of_this_name) {
            let Some(Purpose::Pool(pool)) = connected.purpose(&database) else { continue };
            if record.uid == uid {
                return Ok(Some(Place::of(&pool, name, record.id.clone())));
            }
            if resolve(case, &connected, &database, &record).await? == Resolved::Restored {
                return Ok(Some(Place::of(&pool, name, record.id.clone())));
            }
        }
    }
    Ok(None)
}

#[derive(PartialEq, Eq)]
enum Resolved {
    /// The data is this Tenant's now.
    Restored,
    /// The data stays locked, and this Tenant starts empty.
    Abandoned,
}

/// Decides, by annotations alone, what becomes of data that another Tenant of this name left.
async fn resolve(
    case: &Case<'_>,
    connected: &Connected,
    database: &str,
    record: &Arc<TenantRecord>,
) -> Result<Resolved, Failure> {
    let annotation = |name: &str| case.tenant.annotations().get(name).is_some_and(|uid| *uid == record.uid);
    let uid = case.tenant.metadata.uid.as_deref().unwrap_or_default();
    if annotation(ANNOTATION_RESTORE_FROM) {
        let restored = connected.server.restore(database, &record.id, case.name, uid).await?;
        connected.set_record(database, restored);
        return Ok(Resolved::Restored);
    }
    if annotation(ANNOTATION_ABANDON) {
        if record.state == TenantState::Live {
            let keep = jiff::SignedDuration::try_from(case.effective.retention).unwrap_or(jiff::SignedDuration::MAX);
            let until = jiff::Timestamp::now().checked_add(keep).unwrap_or(jiff::Timestamp::MAX);
            connected.server.retain(database, &record.id, until).await?;
            if let Some(record) = connected.server.record(database, &record.id).await? {
                connected.set_record(database, record);
            }
        }
        return Ok(Resolved::Abandoned);
    }
    Err(Failure::permanent(
        "DataOfAnotherTenant",
        format!(
            "database {database} has data that a Tenant of this name with UID {old} left: take it with annotation \
             {ANNOTATION_RESTORE_FROM}={old}, or start empty with {ANNOTATION_ABANDON}={old}",
            old = record.uid
        ),
    ))
}

/// A new place. Choosing and counting are one step under one lock.
async fn chosen(case: &Case<'_>, uid: &str) -> Result<Place, Failure> {
    let choice = {
        let mut placements = case.world.shared.placements();
        let pools = pool_views(case.world, &placements.pending(), |pool| placements.count(pool));
        let servers: Vec<_> = case.effective.servers.iter().map(|name| server_view(case.world, name, &pools)).collect();
        let earlier = placements.pool_of(uid).map(str::to_owned);
        let choice = match earlier.and_then(|name| pools.iter().find(|pool| pool.name == name)) {
            Some(pool) => Choice::New { pool: pool.name.clone(), server: pool.server.clone() },
            None => choose(&case.effective.application, case.effective.max_tenants, &servers, &pools),
        };
        match &choice {
            Choice::Existing { pool } => placements.place(uid, pool),
            Choice::New { pool, server } => {
                if !pools.iter().any(|known| known.name == *pool) {
                    let schemas =
                        servers.iter().find(|view| view.name == *server).map_or(0, |view| view.schemas_per_database);
                    placements.expect(
                        pool,
                        PendingPool {
                            server: server.clone(),
                            application: case.effective.application.clone(),
                            capacity: case.effective.max_tenants.min(schemas),
                        },
                    );
                }
                placements.place(uid, pool);
            }
            Choice::Full { .. } => {}
        }
        choice
    };
    let id = TenantId::from_uid(uid);
    match choice {
        Choice::Existing { pool } => {
            let server = server_of(case.world, &pool)
                .ok_or_else(|| Failure::waiting("PoolNotReady", format!("Pool {pool} is being made")))?;
            Ok(Place::of(&pool, &server, id))
        }
        Choice::New { pool, server } => {
            make_pool(case.world, &case.effective.application, &pool, &server).await?;
            Ok(Place::of(&pool, &server, id))
        }
        Choice::Full { message } => Err(Failure::waiting("NoCapacity", message)),
    }
}

fn server_of(world: &World, pool: &str) -> Option<String> {
    let pending = || world.shared.placements().pending().get(pool).map(|pool| pool.server.clone());
    world.pool(pool).map(|pool| pool.spec.server.clone()).or_else(pending)
}

/// Every pool, as placement sees it: those of the store, and those that are being made.
fn pool_views(world: &World, pending: &BTreeMap<String, PendingPool>, count: impl Fn(&str) -> u32) -> Vec<PoolView> {
    let known = world.stores.pools.state();
    let view = |pool: &Arc<Pool>| {
        let name = pool.name_any();
        let (application, server) = (world.application(&pool.spec.application), world.server(&pool.spec.server));
        let capacity = match (&application, &server) {
            (Some(application), Some(server)) => pool_capacity(pool, application, server),
            _ => 0,
        };
        PoolView {
            assigned: count(&name),
            server: pool.spec.server.clone(),
            application: pool.spec.application.clone(),
            capacity,
            usable: pool.metadata.deletion_timestamp.is_none()
                && !super::super::is_paused(&**pool)
                && pool_faults(pool, application.as_deref(), server.as_deref()).is_empty(),
            name,
        }
    };
    let mut views: Vec<_> = known.iter().map(view).collect();
    for (name, pool) in pending {
        if !views.iter().any(|view| view.name == *name) {
            views.push(PoolView {
                name: name.clone(),
                server: pool.server.clone(),
                application: pool.application.clone(),
                capacity: pool.capacity,
                assigned: count(name),
                usable: true,
            });
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
        refuses,
    }
}

fn orphaned(connected: &Connected, pools: &[PoolView]) -> usize {
    let has_pool = |database: &String| pools.iter().any(|pool| Pool::database_name(&pool.name) == *database);
    connected.names().iter().filter(|database| !has_pool(database)).count()
}

async fn make_pool(world: &World, application: &str, name: &str, server: &str) -> Result<(), Failure> {
    if world.pool(name).is_some() {
        return Ok(());
    }
    let mut pool =
        Pool::new(name, PoolSpec { application: application.to_owned(), server: server.to_owned(), max_tenants: None });
    pool.labels_mut().insert(naming::LABEL_PART_OF.to_owned(), application.to_owned());
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    match Api::<Pool>::all(world.cluster.client().clone()).create(&params, &pool).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        Err(error) => Err(Failure::transient("ApiServerError", format!("create Pool {name}: {error}"))),
    }
}
