//! What can be wrong with a Tenant that has a namespace of its own (tiers bridge and
//! dedicated).

use super::{Catalog, Fault, checks, faults, tenant::room_faults};
use crate::api::{Application, Placement, Plan, Tenant, Tier};

/// Everything, in the order in which one would mend it.
pub(super) fn faults(
    tenant: &Tenant,
    plan: &Plan,
    application: &Application,
    tier: Tier,
    catalog: &impl Catalog,
) -> Vec<Fault> {
    if tier == Tier::Pooled {
        return Vec::new();
    }
    let servers = server_of_its_own(tenant, application, tier, catalog);
    let mut faults = [faults::owner_faults(tenant), servers, faults::bounds_faults(plan)].concat();
    if faults.is_empty() {
        faults = room(tenant, plan, application, tier, catalog);
    }
    faults
}

/// With placement `Server`, one of the servers is reserved for the tenant.
fn server_of_its_own(tenant: &Tenant, application: &Application, tier: Tier, catalog: &impl Catalog) -> Vec<Fault> {
    let Some(choice) = application.spec.database.get(tier) else { return Vec::new() };
    if checks::placement(application, tier) != Some(Placement::Server) {
        return Vec::new();
    }
    let name = tenant.metadata.name.as_deref().unwrap_or_default();
    let reserved = |server: &String| {
        catalog.server(server).is_some_and(|server| server.spec.reserved_for.as_deref() == Some(name))
    };
    if choice.servers.iter().any(reserved) {
        return Vec::new();
    }
    let application = application.metadata.name.as_deref().unwrap_or_default();
    let message = format!(
        "a tenant of this tier has a server of its own (placement: Server), and none of {} is reserved for {name}: \
         set spec.reservedFor: {name} on a DatabaseServer, and list it here",
        choice.servers.join(", "),
    );
    vec![Fault::new("NoServerReserved", format!("Application {application}: spec.database.{tier}.servers"), message)]
}

/// A placed tenant that shares the server which has its data is to have one of its own now: the
/// data would have to move.
pub fn placement_fault(
    tenant: &str,
    application: &Application,
    tier: Tier,
    server: &str,
    catalog: &impl Catalog,
) -> Option<Fault> {
    if checks::placement(application, tier) != Some(Placement::Server)
        || catalog.server(server)?.spec.reserved_for.as_deref() == Some(tenant)
    {
        return None;
    }
    let path = format!(
        "Application {}: spec.database.{tier}.placement",
        application.metadata.name.as_deref().unwrap_or_default()
    );
    let message = format!(
        "a tenant of this tier is to have a server of its own (Server), and moving the data of {tenant}, which is on \
         DatabaseServer {server}, is not supported yet: set the placement back to Database, or, if nobody else's data is \
         there, spec.reservedFor: {tenant} on DatabaseServer {server}"
    );
    Some(Fault::new("PlacementChange", path, message))
}

/// Whether everything fits into the Plan's quota and LimitRange; and if it does not, whether
/// that is this tenant's own doing.
fn room(tenant: &Tenant, plan: &Plan, application: &Application, tier: Tier, catalog: &impl Catalog) -> Vec<Fault> {
    let name = tenant.metadata.name.as_deref().unwrap_or_default();
    let servers = checks::usable_servers(name, application, tier, catalog);
    // Without a server there is another fault.
    let Some(server) = servers.first().and_then(|name| catalog.server(name)) else { return Vec::new() };
    let faults = room_faults(tenant, plan, application, tier, &server);
    if faults.is_empty() || tenant.spec.overrides.as_deref().unwrap_or_default().is_empty() {
        return faults;
    }
    let mut plain = tenant.clone();
    plain.spec.overrides = None;
    let plain = room_faults(&plain, plan, application, tier, &server);
    let note = |fault: Fault| {
        let note = match plain.iter().any(|other| other.reason == fault.reason && other.path == fault.path) {
            true => "It is so for each Tenant of this Plan, whatever its overrides",
            false => "Without this Tenant's spec.overrides it would fit",
        };
        Fault { message: format!("{}. {note}", fault.message), ..fault }
    };
    faults.into_iter().map(note).collect()
}
