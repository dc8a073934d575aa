//! Where a tenant is: looked up, or chosen and written down before anything is made.

use kube::{Api, ResourceExt as _, api::PostParams};

use super::{Case, choosing::chosen, recorded, status::Report};
use crate::{
    api::{FIELD_MANAGER, Pool, PoolSpec, Tenant, TenantStatus, Tier},
    controller::{failure::Failure, placements::Cell, world::World},
    database::{Purpose, TenantId},
    desired::naming,
};

/// Where a tenant is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::controller) struct Place {
    pub(in crate::controller) tier: Tier,
    /// The pool, for tier pooled.
    pub(in crate::controller) pool: Option<String>,
    /// The pool's namespace, or the tenant's own.
    pub(in crate::controller) namespace: String,
    /// The DatabaseServer.
    pub(in crate::controller) server: String,
    /// The database on it: the pool's, one that bridge tenants share, or the tenant's own.
    pub(in crate::controller) database: String,
    pub(in crate::controller) id: TenantId,
}

impl Place {
    /// A place in a pool.
    pub(in crate::controller) fn pooled(pool: &str, server: &str, id: TenantId) -> Self {
        Self {
            tier: Tier::Pooled,
            pool: Some(pool.to_owned()),
            namespace: naming::pool_namespace(pool),
            server: server.to_owned(),
            database: Pool::database_name(pool),
            id,
        }
    }

    /// A place with a namespace of the tenant's own: tiers bridge and dedicated.
    pub(in crate::controller) fn own(tier: Tier, tenant: &str, server: &str, database: &str, id: TenantId) -> Self {
        Self {
            tier,
            pool: None,
            namespace: naming::tenant_namespace(tenant),
            server: server.to_owned(),
            database: database.to_owned(),
            id,
        }
    }

    /// The place of a tenant that has a record in a database, by what the database is for.
    pub(in crate::controller) fn recorded(
        purpose: &Purpose,
        tenant: &str,
        server: &str,
        database: &str,
        id: TenantId,
    ) -> Self {
        match purpose {
            Purpose::Pool(pool) => Self::pooled(pool, server, id),
            Purpose::Bridge(_) => Self::own(Tier::Bridge, tenant, server, database, id),
            Purpose::Dedicated(_) => Self::own(Tier::Dedicated, tenant, server, database, id),
        }
    }

    /// What the tenant takes room in.
    pub(in crate::controller) fn cell(&self, application: &str) -> Cell {
        let (server, database) = (self.server.clone(), self.database.clone());
        match (&self.pool, self.tier) {
            (Some(pool), _) => Cell::Pool(pool.clone()),
            (None, Tier::Dedicated) => Cell::Dedicated { server, database },
            (None, _) => Cell::Bridge { application: application.to_owned(), server, database },
        }
    }
}

/// Where a tenant was placed, by its status or by this process. A status that a backup brought
/// back with a new Tenant says where an earlier one was, which is no place of this one's.
pub(in crate::controller) fn known(tenant: &Tenant, world: &World) -> Option<Place> {
    let status = world.statuses.tenants.current(tenant, tenant.status.as_ref())?;
    by_status(tenant, &status, world).filter(|place| !is_of_another(place, tenant, world))
}

/// Whether a place is another Tenant's, as far as its server could be asked: the record there
/// says so, or there is none and the id is not this Tenant's own. (One that is being deleted
/// may have dropped its record already.)
pub(super) fn is_of_another(place: &Place, tenant: &Tenant, world: &World) -> bool {
    let uid = tenant.metadata.uid.as_deref().unwrap_or_default();
    let Some(connected) = world.databases.get(&place.server) else { return false };
    match connected.record(&place.database, &place.id) {
        Some(record) => record.uid != uid,
        None => tenant.metadata.deletion_timestamp.is_none() && place.id != TenantId::from_uid(uid),
    }
}

fn by_status(tenant: &Tenant, status: &TenantStatus, world: &World) -> Option<Place> {
    let uid = tenant.metadata.uid.as_deref()?;
    let id = status.id.as_deref().and_then(|id| id.parse().ok()).unwrap_or_else(|| TenantId::from_uid(uid));
    let database = status.database.as_ref();
    if let Some(pool) = &status.pool {
        let server = database.map(|database| database.server.clone());
        let server = server.or_else(|| world.pool(pool).map(|pool| pool.spec.server.clone()))?;
        return Some(Place::pooled(pool, &server, id));
    }
    let (tier, database) = (status.tier.filter(|tier| *tier != Tier::Pooled)?, database?);
    Some(Place::own(tier, &tenant.name_any(), &database.server, &database.database, id))
}

/// Whether there may be data at a place: a server that doesn't answer can't say that there is none.
pub(super) fn may_have_data(place: &Place, world: &World) -> bool {
    let connected = world.databases.get(&place.server);
    connected.is_none_or(|connected| connected.record(&place.database, &place.id).is_some())
}

/// Takes in where a Tenant's status says that it is.
pub(in crate::controller) fn note(tenant: &Tenant, world: &World) {
    let (Some(status), Some(uid)) = (&tenant.status, &tenant.metadata.uid) else { return };
    let Some(place) = by_status(tenant, status, world) else { return };
    let mut placements = world.shared.placements();
    placements.place(uid, place.cell(&tenant.spec.application));
    // The operator may have ended before it made the pool: its name is taken all the same.
    if let Some(pool) = place.pool.filter(|pool| world.pool(pool).is_none()) {
        placements.expect(&pool, pool_spec(&tenant.spec.application, &place.server));
    }
}

/// A tenant's place: the one that it has, or the one that its records tell, or a new one. A
/// new one stands in the status before anything is made for it, the pool included.
pub(super) async fn place(case: &Case<'_>, report: &mut Report<'_>) -> Result<Place, Failure> {
    report.clear_conflict();
    let place = match known(case.tenant, case.world) {
        Some(place) => place,
        None => {
            // What it says of an earlier Tenant's place holds no longer.
            report.leave_place();
            let uid = case.tenant.metadata.uid.clone().unwrap_or_default();
            let place = match recorded::recorded(case, &uid, report).await? {
                Some(place) => {
                    case.world.shared.placements().place(&uid, place.cell(&case.effective.application));
                    place
                }
                None => chosen(case, &uid)?,
            };
            report.set_place(case, &place);
            report.write_place().await?;
            place
        }
    };
    if let Some(pool) = &place.pool {
        ensure_pool(case.world, &case.effective.application, pool, &place.server).await?;
    }
    Ok(place)
}

/// The spec of a pool that the operator makes.
pub(super) fn pool_spec(application: &str, server: &str) -> PoolSpec {
    PoolSpec { application: application.to_owned(), server: server.to_owned(), max_tenants: None }
}

/// Makes the pool of a place, unless it is there.
async fn ensure_pool(world: &World, application: &str, name: &str, server: &str) -> Result<(), Failure> {
    if world.pool(name).is_some() {
        return Ok(());
    }
    let spec = pool_spec(application, server);
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
