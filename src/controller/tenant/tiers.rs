//! A change of tier, or to a server of one's own: refused once there is data, since the data
//! would have to move.

use std::sync::Arc;

use kube::ResourceExt as _;

use super::{
    place::{self, Place},
    status::Report,
};
use crate::{
    api::{Application, Tenant, Tier},
    cluster::Owner,
    controller::{failure::Failure, namespaces, world::World},
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
pub(super) fn change(tenant: &Tenant, world: &World, application: &Application, tier: Tier) -> Change {
    let Some(place) = place::known(tenant, world) else { return Change::None };
    let fault = match place.tier == tier {
        true => shared_server(tenant, world, application, &place),
        false => Some(Fault::new("TierChange", "spec.tier", message(place.tier, tier))),
    };
    match fault {
        None => Change::None,
        Some(fault) if place::may_have_data(&place, world) => Change::Refused(fault),
        Some(_) => Change::Anew(place),
    }
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
