//! What the servers' ownership records tell of a Tenant that has no place (any more), and what
//! becomes of data that an earlier Tenant of its name left.

use std::{collections::BTreeSet, sync::Arc};

use kube::ResourceExt as _;

use super::{Case, place::Place, tiers::of_another_tier};
use crate::{
    api::{ANNOTATION_ABANDON, ANNOTATION_RESTORE_FROM, Tier},
    controller::{databases::Connected, failure::Failure},
    database::{TenantRecord, TenantState},
};

/// The place that the ownership records of the servers tell: of this Tenant, whose status was
/// lost, or of another one of the same name, whose data an annotation gives to this one.
pub(super) async fn recorded(case: &Case<'_>, uid: &str) -> Result<Option<Place>, Failure> {
    for name in servers(case) {
        let Some(connected) = case.world.databases.get(&name) else {
            // One for another tier is asked where it answers: a sign-up doesn't wait for a
            // server that it has nothing to do with.
            if !case.effective.servers.contains(&name) {
                continue;
            }
            let message = format!(
                "DatabaseServer {name} is not connected, so it can't be asked whether it still has data of a tenant of this name"
            );
            return Err(Failure::waiting("DatabaseUnavailable", message));
        };
        let of_this_name = |record: &TenantRecord| {
            record.name == case.name
                && record.cluster_id == case.world.facts.cluster_id
                && matches!(record.state, TenantState::Live | TenantState::Retained { .. })
        };
        for (database, record) in connected.find(of_this_name) {
            let Some(purpose) = connected.purpose(&database) else { continue };
            let place = Place::recorded(&purpose, case.name, &name, &database, record.id.clone());
            if record.uid == uid || resolve(case, &connected, &place, &record).await? == Resolved::Restored {
                return if place.tier == case.effective.tier { Ok(Some(place)) } else { Err(of_another_tier(&place)) };
            }
        }
    }
    Ok(None)
}

/// The servers that may have data of this tenant: those of its tier first, then those of the
/// Application's other tiers.
fn servers(case: &Case<'_>) -> Vec<String> {
    let mut servers = case.effective.servers.clone();
    let mut seen: BTreeSet<String> = servers.iter().cloned().collect();
    for tier in [Tier::Pooled, Tier::Bridge, Tier::Dedicated] {
        let listed = case.application.spec.database.get(tier).map(|choice| choice.servers.as_slice());
        servers.extend(listed.unwrap_or_default().iter().filter(|name| seen.insert((*name).clone())).cloned());
    }
    servers
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
    place: &Place,
    record: &Arc<TenantRecord>,
) -> Result<Resolved, Failure> {
    let database = &place.database;
    let annotation = |name: &str| case.tenant.annotations().get(name).is_some_and(|uid| *uid == record.uid);
    let uid = case.tenant.metadata.uid.as_deref().unwrap_or_default();
    if annotation(ANNOTATION_RESTORE_FROM) {
        // Before anything is changed: what is taken back stays where it is.
        if place.tier != case.effective.tier {
            return Err(of_another_tier(place));
        }
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
