//! A change of tier: refused once there is data, since the data would have to move.

use std::sync::Arc;

use super::{
    finalize::leave_namespace,
    place::{self, Place},
    status::Report,
};
use crate::{
    api::{Tenant, Tier},
    controller::{failure::Failure, world::World},
    desired::Fault,
};

/// What a change of tier comes to.
pub(super) enum Change {
    /// There is none.
    None,
    /// Nothing was made yet but what [`give_up`] takes back: the tenant is placed anew.
    Anew(Place),
    /// There may be data.
    Refused(Fault),
}

/// What it means that a tenant is to run at this tier.
pub(super) async fn change(tenant: &Tenant, world: &World, tier: Tier) -> Result<Change, Failure> {
    let Some(place) = place::known(tenant, world).filter(|place| place.tier != tier) else { return Ok(Change::None) };
    // A server that doesn't answer can't say that there is nothing.
    let is_empty = match world.databases.get(&place.server) {
        Some(connected) => connected.ask_record(&place.database, &place.id).await?.is_none(),
        None => false,
    };
    Ok(match is_empty {
        true => Change::Anew(place),
        false => Change::Refused(Fault::new("TierChange", "spec.tier", message(place.tier, tier))),
    })
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
        connected.server.drop_database(&place.database, &world.facts.cluster_id).await?;
        connected.forget_database(&place.database);
    }
    let mut report = Report::new(tenant, world);
    report.clear_place();
    report.write_place().await?;
    world.shared.placements().release(tenant.metadata.uid.as_deref().unwrap_or_default());
    world.push_waiting();
    Ok(())
}
