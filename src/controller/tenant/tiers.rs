//! A change of tier: refused once there is data, since the data would have to move.

use std::sync::Arc;

use kube::ResourceExt as _;

use super::{
    place::{self, Place},
    status::Report,
};
use crate::{
    api::{Tenant, Tier},
    cluster::Owner,
    controller::{failure::Failure, namespaces, world::World},
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
pub(super) fn change(tenant: &Tenant, world: &World, tier: Tier) -> Change {
    let Some(place) = place::known(tenant, world).filter(|place| place.tier != tier) else { return Change::None };
    // A server that doesn't answer can't say that there is nothing.
    let connected = world.databases.get(&place.server);
    match connected.is_some_and(|connected| connected.record(&place.database, &place.id).is_none()) {
        true => Change::Anew(place),
        false => Change::Refused(Fault::new("TierChange", "spec.tier", message(place.tier, tier))),
    }
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
/// a tier that has the same.
pub(super) async fn give_up(tenant: &Tenant, world: &Arc<World>, place: &Place, to: Tier) -> Result<(), Failure> {
    if place.tier == Tier::Dedicated
        && let Some(connected) = world.databases.get(&place.server)
    {
        connected.drop_if_empty(&place.database, &world.facts.cluster_id).await?;
    }
    if to == Tier::Pooled {
        for key in world.cluster.children().of_owner(&Owner::Tenant(tenant.name_any())) {
            world.cluster.delete(&key).await?;
        }
        namespaces::unwatch(world, &place.namespace);
    }
    let mut report = Report::new(tenant, world);
    report.clear_place();
    report.write_place().await?;
    world.shared.placements().release(tenant.metadata.uid.as_deref().unwrap_or_default());
    world.push_waiting();
    Ok(())
}
