//! What is wrong with an Application, a Plan, a Pool, a DatabaseServer or a Tenant by itself.

use super::{
    Catalog, Fault, checks, component::component_faults, limit_range, network, peers, pool, quota, settings::Settings,
    shared, validate,
};
use crate::api::{Application, DatabaseServer, Plan, Pool, Tenant, Tier};

/// What is wrong with an Application: templates, network peers, shared objects, servers, and
/// a quota in which no pool fits.
pub fn application_faults(application: &Application, settings: &Settings, catalog: &impl Catalog) -> Vec<Fault> {
    let quota = application.spec.pools.as_ref().and_then(|pools| pools.quota.as_ref());
    let components = application.spec.components.iter().enumerate();
    let mut faults: Vec<Fault> = components
        .flat_map(|(index, component)| component_faults(&format!("spec.components[{index}]"), component, quota))
        .collect();
    faults.extend(peer_faults(application).into_iter().map(|(_, fault)| fault));
    faults.extend(shared::wanted(application).filter_map(|wanted| wanted.reserved()));
    faults.extend(server_list_faults(application, catalog));
    // With as few tenants as the smallest of the servers makes it: any pool needs that much.
    let names = application.spec.database.pooled.iter().flat_map(|choice| &choice.servers);
    let schemas = names.filter_map(|name| catalog.server(name)).map(|server| pool::schemas_per_database(&server)).min();
    let capacity = validate::application_max_tenants(application).min(schemas.unwrap_or(u32::MAX));
    faults.extend(pool::quota_faults(application, settings, capacity));
    faults
}

/// What is wrong with an Application's network peers, by the NetworkPolicy that they are for.
pub(super) fn peer_faults(application: &Application) -> Vec<(&'static str, Fault)> {
    let from = application.spec.route.as_ref().and_then(|route| route.from.as_deref()).unwrap_or_default();
    let of_route = peers::peer_faults("spec.route.from", from).into_iter().map(|fault| (network::ROUTE, fault));
    let mut of_egress = Vec::new();
    for (index, rule) in application.spec.egress.iter().flatten().enumerate() {
        of_egress.extend(peers::peer_faults(&format!("spec.egress[{index}].to"), &rule.to));
        let ports = rule.ports.as_deref().unwrap_or_default();
        of_egress.extend(peers::port_faults(&format!("spec.egress[{index}].ports"), ports));
    }
    of_route.chain(of_egress.into_iter().map(|fault| (network::EGRESS, fault))).collect()
}

/// Kubernetes' own identities are nobody's people. (The API server refuses them too, but a
/// RoleBinding for one is no place to rely on it.)
pub(super) fn owner_faults(tenant: &Tenant) -> Vec<Fault> {
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

/// What the API server would refuse in a Plan's quota and LimitRange.
pub(super) fn bounds_faults(plan: &Plan) -> Vec<Fault> {
    let name = plan.metadata.name.as_deref().unwrap_or_default();
    let quota_names = quota::name_faults(&format!("Plan {name}: spec.quota"), plan.spec.quota.as_ref());
    [quota_names, limit_range::faults(plan, name)].concat()
}

/// How long a rollout of the application's pods may take, in seconds.
pub(super) fn rollout_seconds(application: &Application) -> Option<i32> {
    let deadline = application.spec.rollout.as_ref()?.deadline.as_ref()?.get()?;
    Some(i32::try_from(deadline.as_secs().max(1)).unwrap_or(i32::MAX))
}

/// How long the new pods of a rollout must stay ready, in seconds, where nobody says.
const MIN_READY_SECONDS: i32 = 10;
/// What Kubernetes takes for the deadline where none is set.
const KUBERNETES_DEADLINE: i32 = 600;

/// How long the new pods of a rollout must stay ready before they count, in seconds. Well
/// within the deadline: the API server takes nothing else, and it goes on while they are seen.
pub(super) fn min_ready_seconds(application: &Application) -> Option<i32> {
    let asked = application.spec.rollout.as_ref().and_then(|rollout| rollout.min_ready_seconds);
    let most = rollout_seconds(application).unwrap_or(KUBERNETES_DEADLINE) / 2;
    Some(asked.unwrap_or(MIN_READY_SECONDS).min(most)).filter(|seconds| *seconds > 0)
}

/// Servers that are not there, or don't take the tier that they are listed for. One that is
/// reserved for a tenant may be listed: it is passed over for the others.
fn server_list_faults(application: &Application, catalog: &impl Catalog) -> Vec<Fault> {
    let mut faults = Vec::new();
    for tier in [Tier::Pooled, Tier::Bridge, Tier::Dedicated] {
        let choice = application.spec.database.get(tier);
        for (index, name) in choice.into_iter().flat_map(|choice| &choice.servers).enumerate() {
            let path = format!("spec.database.{tier}.servers[{index}]");
            let Some(server) = catalog.server(name) else {
                faults.push(checks::unknown_server(&path, name));
                continue;
            };
            let tenant = server.spec.reserved_for.as_deref();
            if let Some(why) = checks::refusal(name, &server, tier, tenant) {
                faults.push(Fault::new("ServerRefusesTier", path, format!("{why}: change that, or remove it here")));
            }
        }
    }
    faults
}

/// What is wrong with a Pool.
pub fn pool_faults(pool: &Pool, application: Option<&Application>, server: Option<&DatabaseServer>) -> Vec<Fault> {
    let spec = &pool.spec;
    let mut faults = Vec::new();
    if application.is_none() {
        let message = format!("there is no Application {}: create it, or delete the Pool", spec.application);
        faults.push(Fault::new("UnknownApplication", "spec.application", message));
    }
    let Some(server) = server else {
        let message = format!("there is no DatabaseServer {}: create it, or delete the Pool", spec.server);
        faults.push(Fault::new("UnknownServer", "spec.server", message));
        return faults;
    };
    if let Some(why) = checks::refusal(&spec.server, server, Tier::Pooled, None) {
        let message = format!("{why}: change that, or make a Pool on another server");
        faults.push(Fault::new("ServerRefusesTier", "spec.server", message));
    }
    let schemas = pool::schemas_per_database(server);
    if let Some(asked) = spec.max_tenants.filter(|asked| i64::from(*asked) > i64::from(schemas)) {
        let message = format!(
            "{asked} tenants don't fit into one database of DatabaseServer {}, which takes {schemas}: lower \
             maxTenants, or raise spec.capacity.schemasPerDatabase there",
            spec.server
        );
        faults.push(Fault::new("PoolTooLarge", "spec.maxTenants", message));
    }
    faults
}

/// What is wrong with a DatabaseServer.
pub fn server_faults(server: &DatabaseServer) -> Vec<Fault> {
    let peers = server.spec.network.as_ref().map(|network| network.to.as_slice()).unwrap_or_default();
    peers::peer_faults("spec.network.to", peers)
}
