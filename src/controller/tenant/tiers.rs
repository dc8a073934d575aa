//! A change of tier, or to a server of one's own: refused once there is data, since the data
//! would have to move.

use std::sync::Arc;

use kube::ResourceExt as _;

use super::{
    finalize::leave_namespace,
    place::{self, Place},
    status::Report,
};
use crate::{
    api::{Application, Tenant, Tier},
    controller::{failure::Failure, world::World},
    desired::{Fault, placement_fault},
};

/// What such a change comes to.
pub(super) enum Change {
    /// There is none.
    None,
    /// Nothing was made yet but what [`give_up`] takes back: the tenant is placed anew.
    Anew(Place),
    /// There may be data.
    Refused(Fault),
}

/// What it means that a tenant of this Application is to run at this tier.
pub(super) async fn change(
    tenant: &Tenant,
    world: &World,
    application: &Application,
    tier: Tier,
) -> Result<Change, Failure> {
    let Some(place) = place::known(tenant, world) else { return Ok(Change::None) };
    let fault = match place.tier == tier {
        true => shared_server(tenant, world, application, &place),
        false => Some(Fault::new("TierChange", "spec.tier", message(place.tier, tier))),
    };
    let Some(fault) = fault else { return Ok(Change::None) };
    // A server that doesn't answer can't say that there is nothing.
    let is_empty = match world.databases.get(&place.server) {
        Some(connected) => connected.ask_record(&place.database, &place.id).await?.is_none(),
        None => false,
    };
    Ok(if is_empty { Change::Anew(place) } else { Change::Refused(fault) })
}

/// Whether a place is on a server that is others' as well, where it is to be on one of its own.
pub(super) fn shared_server(tenant: &Tenant, world: &World, application: &Application, place: &Place) -> Option<Fault> {
    placement_fault(&tenant.name_any(), application, place.tier, &place.server, world)
}

fn message(had: Tier, wanted: Tier) -> String {
    format!(
        "the tenant has data at tier {had}, and moving it to {wanted} is not supported yet: set the tier back to {had}"
    )
}

/// The data that the records tell of was placed at another tier than the one that is asked for.
pub(super) fn of_another_tier(place: &Place) -> Failure {
    Failure::permanent(
        "TierChange",
        format!(
            "database {} on DatabaseServer {} has this tenant's data, which was placed at tier {tier}, and moving it \
             is not supported yet: set spec.tier to {tier}",
            place.database,
            place.server,
            tier = place.tier
        ),
    )
}

/// Takes back what was made at a place that no data ever came to: objects, and a database of
/// the tenant's own. The status says so before anything new is chosen. A namespace stays for
/// a tier that has the same, and for what others have in it.
pub(super) async fn give_up(tenant: &Tenant, world: &Arc<World>, place: &Place, to: Tier) -> Result<(), Failure> {
    if to == Tier::Pooled {
        leave_namespace(tenant, world, &place.namespace, true).await?;
    }
    if place.tier == Tier::Dedicated
        && let Some(connected) = world.databases.get(&place.server)
    {
        connected.drop_if_empty(&place.database, &world.facts.cluster_id).await?;
    }
    let mut report = Report::new(tenant, world);
    report.clear_place();
    report.write_place().await?;
    world.shared.placements().release(tenant.metadata.uid.as_deref().unwrap_or_default());
    world.push_waiting();
    Ok(())
}
