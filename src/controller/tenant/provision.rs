//! A tenant's schema, roles and records.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::{
    Case,
    place::{Place, is_of_another},
    pooled::check_pool,
};
use crate::{
    api::Tier,
    controller::{databases::Connected, failure::Failure, limits, plan::revision_name},
    database::{IssuedLogin, Purpose, TenantRecord, TenantSettings, TenantSpec, TenantState},
};

/// A tenant that is in its database.
pub(super) struct Provisioned {
    pub(super) connected: Arc<Connected>,
    pub(super) record: Arc<TenantRecord>,
    /// A login that was issued just now and that no Secret has yet.
    pub(super) issued: Option<IssuedLogin>,
    /// The value of annotation `tenantry.io/rotate` that the Secret's login answers.
    pub(super) rotated: Option<String>,
    /// Held until its data is complete, where its database is made with it.
    _turn: Option<OwnedSemaphorePermit>,
}

/// Makes the tenant in its database, or brings its settings to what is desired. Sends
/// nothing where the record says that all is well.
pub(super) async fn provision(case: &Case<'_>, place: &Place) -> Result<Provisioned, Failure> {
    let connected = case.world.databases.get(&place.server).ok_or_else(|| {
        Failure::waiting("DatabaseUnavailable", format!("DatabaseServer {} is not connected", place.server))
    })?;
    // Its server may have been connected only after the place was looked up.
    if is_of_another(place, case.tenant, case.world) {
        let message = format!("database {} has data of an earlier Tenant at this place", place.database);
        return Err(Failure::waiting("DataOfAnotherTenant", message));
    }
    let record = connected.record(&place.database, &place.id);
    let is_new = place.pool.is_none() && record.is_none() && !connected.is_ready(&place.database);
    let turn = if is_new { Some(connected.newcomer().await) } else { None };
    match &place.pool {
        Some(name) => check_pool(case.world.pool(name).as_deref(), name, record.is_some())?,
        None => prepare(case, place, &connected).await?,
    }
    // Limits first: a tenant must not be unlimited for a moment.
    // Those with a fault are in effect nowhere, and what the tenant has stays.
    if limits::fits(case.plan, case.application) {
        limits::ensure(case.world, &connected, &place.database, case.plan).await?;
    }
    let settings = settings(case, &connected, record.as_deref());
    let Some(record) = record else {
        let uid = case.tenant.metadata.uid.clone().unwrap_or_default();
        let spec = TenantSpec {
            id: place.id.clone(),
            name: case.name.to_owned(),
            uid,
            cluster_id: case.world.facts.cluster_id.clone(),
            application: case.effective.application.clone(),
            settings,
        };
        let (record, issued) = connected.server.create_tenant(&place.database, &spec).await?;
        let record = connected.set_record(&place.database, record);
        return Ok(Provisioned { connected, record, issued: Some(issued), rotated: None, _turn: turn });
    };
    if record.state != TenantState::Live {
        return Err(Failure::permanent(
            "DataNotLive",
            format!(
                "the tenant's record in database {} is not live: it was retained or dropped by hand",
                place.database
            ),
        ));
    }
    if record.settings == settings {
        return Ok(Provisioned { connected, record, issued: None, rotated: None, _turn: turn });
    }
    let record = connected.apply_settings(&place.database, &place.id, settings).await?;
    let record = record.ok_or_else(|| Failure::waiting("DatabaseWaiting", "the tenant's record is being dropped"))?;
    Ok(Provisioned { connected, record, issued: None, rotated: None, _turn: turn })
}

/// Sees to the database of a tenant of tier bridge or dedicated; pools see to their own.
async fn prepare(case: &Case<'_>, place: &Place, connected: &Connected) -> Result<(), Failure> {
    let uid = || case.tenant.metadata.uid.clone().unwrap_or_default();
    // One that was taken back has the mark of the Tenant that it was made for.
    let purpose = connected.purpose(&place.database).unwrap_or_else(|| match place.tier {
        Tier::Dedicated => Purpose::Dedicated(uid()),
        _ => Purpose::Bridge(case.effective.application.clone()),
    });
    limits::prepare(case.world, connected, &place.database, purpose, case.application).await
}

fn settings(case: &Case<'_>, connected: &Connected, record: Option<&TenantRecord>) -> TenantSettings {
    let database = &case.effective.database;
    let old = case.world.statuses.tenants.current(case.tenant, case.tenant.status.as_ref()).unwrap_or_default();
    let pinned = old.plan_revision.filter(|_| old.plan.as_deref() == Some(&case.effective.plan));
    let known = record.map(|record| &record.settings);
    let anchor = &case.effective.anchor;
    TenantSettings {
        plan: case.effective.plan.clone(),
        plan_revision: pinned.unwrap_or_else(|| revision_name(case.plan)),
        suspended: case.effective.suspended,
        connection_limit: database.connection_limit.unsigned_abs(),
        temp_file_limit: database.temp_file_limit.filter(|_| connected.info.sets_temp_file_limit),
        statement_timeout: Some(database.statement_timeout),
        max_transaction: Some(database.max_transaction),
        // Periods go on from where they began, in the zone in which they did, whatever the spec says by
        // now and also after the Tenant was made anew: what was counted belongs to them.
        period_anchor: known.map_or(anchor.start, |known| known.period_anchor),
        time_zone: known.map_or(&anchor.time_zone, |known| &known.time_zone).clone(),
    }
}
