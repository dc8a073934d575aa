//! What can be wrong with a Tenant that has a namespace of its own (tiers bridge and
//! dedicated).

use std::collections::BTreeMap;

use super::{Catalog, Fault, checks, quantity, quota, tenant::room_faults, usage};
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
    let plan_name = plan.metadata.name.as_deref().unwrap_or_default();
    let quota_names = quota::name_faults(&format!("Plan {plan_name}: spec.quota"), plan.spec.quota.as_ref());
    let mut faults = [owners(tenant), server_of_its_own(tenant, application, tier, catalog), quota_names].concat();
    faults.extend(limit_range_faults(plan, plan_name));
    if faults.is_empty() {
        faults = room(tenant, plan, application, tier, catalog);
    }
    faults
}

/// Kubernetes' own identities are nobody's people. (The API server refuses them too, but a
/// RoleBinding for one is no place to rely on it.)
fn owners(tenant: &Tenant) -> Vec<Fault> {
    let owners = tenant.spec.owners.iter().flatten().enumerate();
    owners
        .filter(|(_, owner)| owner.name.starts_with("system:"))
        .map(|(index, owner)| {
            let message = format!(
                "{} is one of Kubernetes' own identities: name a user or group of your identity provider",
                owner.name
            );
            Fault::new("SystemIdentity", format!("spec.owners[{index}].name"), message)
        })
        .collect()
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

/// A LimitRange that contradicts itself; the API server would refuse it.
fn limit_range_faults(plan: &Plan, plan_name: &str) -> Vec<Fault> {
    let Some(settings) = &plan.spec.limit_range else { return Vec::new() };
    let amounts = |written| usage::amounts(quantity::typed(written).as_ref());
    // What is left out follows from these, and never contradicts more than they do themselves.
    let lists: BTreeMap<_, _> = [
        ("min", amounts(settings.min.as_ref())),
        ("defaultRequest", amounts(settings.default_request.as_ref())),
        ("default", amounts(settings.default.as_ref())),
        ("max", amounts(settings.max.as_ref())),
    ]
    .into();
    let mut faults = Vec::new();
    let names = lists.values().flat_map(BTreeMap::keys).collect::<std::collections::BTreeSet<_>>();
    for resource in names {
        let path = |list: &str| format!("Plan {plan_name}: spec.limitRange.{list}.{resource}");
        let standard = ["cpu", "memory", "ephemeral-storage"].contains(&resource.as_str());
        if !standard && !resource.starts_with("hugepages-") && !resource.contains('/') {
            let list = lists.iter().find(|(_, amounts)| amounts.contains_key(resource)).map_or("max", |(list, _)| list);
            let message = format!(
                "a container has no resource {resource}: write cpu, memory, ephemeral-storage, hugepages-SIZE or the \
                 name of an extended resource"
            );
            faults.push(Fault::new("InvalidLimitRange", path(list), message));
            continue;
        }
        // Each of these is at most each of those after it.
        let order = ["min", "defaultRequest", "default", "max"];
        let pairs =
            order.iter().enumerate().flat_map(|(index, low)| order[index + 1..].iter().map(move |high| (low, high)));
        for (low, high) in pairs {
            let amount = |list: &str| lists[list].get(resource);
            let (Some(below), Some(above)) = (amount(low), amount(high)) else { continue };
            if below > above {
                let message = format!("{low} is {below}, and {high} is {above}: correct one of them");
                faults.push(Fault::new("InvalidLimitRange", path(low), message));
                break;
            }
        }
    }
    faults
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
