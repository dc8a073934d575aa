//! Who has to be looked at when something changes.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{Resource, ResourceExt as _};
use tokio::sync::mpsc;

use super::{
    counting::{Counted, Counting},
    rollout,
    routes::push_all,
    tenant,
    world::World,
};
use crate::{
    api::{Application, ConditionType, DatabaseServer, Plan, Pool, Tenant, TenantStatus, find_condition, is_true},
    cluster::Change,
    desired::{hosts::Claim, naming},
};

/// How many tenants a second are told that their pool serves, or no longer serves.
const OUTAGE_RATE: u32 = 50;

/// What of an object's metadata concerns a controller.
fn concern(meta: &ObjectMeta) -> impl PartialEq {
    let finalizers = meta.finalizers.clone().unwrap_or_default();
    (meta.generation, meta.deletion_timestamp.is_some(), finalizers, meta.annotations.clone().unwrap_or_default())
}

/// Whether anything but the status changed.
fn is_significant<K: Resource>(change: &Change<K>) -> bool {
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => old.meta().uid != new.meta().uid || concern(old.meta()) != concern(new.meta()),
        _ => true,
    }
}

pub(super) fn name_of<K: Resource>(change: &Change<K>) -> String {
    change.new.as_ref().or(change.old.as_ref()).map(|object| object.name_any()).unwrap_or_default()
}

pub(super) fn tenant_changed(world: &Arc<World>, change: &Change<Tenant>, counting: &Counting) {
    let name = name_of(change);
    let uid = |tenant: &Tenant| tenant.metadata.uid.clone().unwrap_or_default();
    if let Some(usage) = &world.usage {
        usage.tenant_changed(change);
    }
    match &change.new {
        Some(new) => {
            world.statuses.tenants.saw(&**new);
            world.statuses.metering.saw(&**new);
            tenant::note_place(new, world);
            if let Some(old) = change.old.as_ref().filter(|old| uid(old) != uid(new)) {
                world.shared.placements().release(&uid(old));
            }
            claim_hosts(world, new);
        }
        None => {
            if let Some(old) = &change.old {
                world.shared.placements().release(&uid(old));
                world.statuses.tenants.forget(&uid(old));
                world.statuses.metering.forget(&uid(old));
            }
            world.shared.set_waiting(&name, false);
            let affected = world.shared.hosts().remove_claim(&name);
            push_all(world, affected);
            world.push_waiting();
        }
    }
    if change.new.is_some() && (is_significant(change) || lost_its_place(change)) {
        world.queues.tenants.push(&name);
    }
    let status = |tenant: &Tenant| Some(rolled_out(&tenant.status.as_ref()?.conditions));
    rollout_changed(world, change, status, |tenant| tenant.spec.application.clone());
    let (old, new) = (change.old.as_deref(), change.new.as_deref());
    let count = |of: fn(&Tenant) -> Option<String>, counted: fn(String) -> Counted| {
        let (old, new) = (old.and_then(of), new.and_then(of));
        if old != new {
            // Before and after.
            old.into_iter().chain(new).for_each(|name| counting.changed(counted(name)));
        }
    };
    count(|tenant| Some(tenant.spec.plan.clone()), Counted::Plan);
    count(|tenant| Some(tenant.spec.application.clone()), Counted::Application);
    count(|tenant| tenant.status.as_ref()?.pool.clone(), Counted::Pool);
    count(|tenant| Some(tenant.status.as_ref()?.database.as_ref()?.server.clone()), Counted::Server);
}

/// What condition `RolledOut` says.
fn rolled_out(conditions: &[Condition]) -> Option<(String, String)> {
    let condition = find_condition(conditions, ConditionType::RolledOut)?;
    Some((condition.status.clone(), condition.reason.clone()))
}

/// Tells of what concerns the rollouts of an Application: how far a pool or tenant is, and
/// whether it takes part.
fn rollout_changed<K: Resource>(
    world: &World,
    change: &Change<K>,
    status: impl Fn(&K) -> Option<Option<(String, String)>>,
    application: impl Fn(&K) -> String,
) {
    let (old, new) = (change.old.as_deref(), change.new.as_deref());
    if old.and_then(&status).flatten() != new.and_then(&status).flatten() {
        let object = new.or(old);
        object.into_iter().for_each(|object| world.queues.applications.push(&application(object)));
    }
    let takes_part =
        |object: Option<&K>| object.is_some_and(|it| it.meta().deletion_timestamp.is_none() && !super::is_paused(it));
    if takes_part(old) && !takes_part(new) {
        let object = new.or(old);
        object.into_iter().for_each(|object| world.queues.applications.push(&application(object)));
        rollout::stir(world);
    }
}

/// Whether somebody took a tenant's status away.
fn lost_its_place(change: &Change<Tenant>) -> bool {
    let placed = |tenant: &Arc<Tenant>| tenant.status.as_ref().is_some_and(|status| status.database.is_some());
    change.old.as_ref().is_some_and(placed) && !change.new.as_ref().is_some_and(placed)
}

/// Takes note of the hosts that a tenant asks for. Those that its live route has are served
/// already, and stay its own when a foreign route names them.
fn claim_hosts(world: &Arc<World>, tenant: &Tenant) {
    let name = tenant.name_any();
    let route = world.application(&tenant.spec.application).and_then(|application| application.spec.route.clone());
    let hosts = naming::tenant_hosts(route.as_ref(), &name, tenant.spec.hosts.as_deref().unwrap_or_default());
    let created = tenant.metadata.creation_timestamp.as_ref().map(|time| time.0).unwrap_or_default();
    let status = tenant.status.as_ref();
    let routed = status.and_then(|status| find_condition(&status.conditions, ConditionType::RouteReady));
    // While the spec has a fault, these are not all that it asks for.
    let has =
        |host: &&String| status.and_then(|status| status.hosts.as_ref()).is_some_and(|hosts| hosts.contains(host));
    let mut index = world.shared.hosts();
    let serving = match routed {
        Some(condition) if condition.status != "True" => BTreeSet::new(),
        Some(condition) if condition.observed_generation == tenant.metadata.generation => {
            hosts.iter().filter(has).cloned().collect()
        }
        // The route still has the hosts of an older spec, and none that came with this one.
        Some(_) => hosts.iter().filter(|host| index.is_serving(&name, host)).cloned().collect(),
        None => BTreeSet::new(),
    };
    let affected = index.set_claim(Claim { tenant: name, created, hosts, serving });
    drop(index);
    push_all(world, affected);
}

pub(super) fn plan_changed(world: &Arc<World>, change: &Change<Plan>) {
    if is_significant(change) {
        let name = name_of(change);
        world.queues.plans.push(&name);
        // A plan may be where another one's trial leads.
        let leads_here = |plan: &Arc<Plan>| {
            let trial = plan.spec.trial.as_ref();
            trial.is_some_and(|trial| trial.downgrade_to.as_deref() == Some(name.as_str()))
        };
        let plans: BTreeSet<String> =
            world.stores.plans.state().iter().filter(|plan| leads_here(plan)).map(|plan| plan.name_any()).collect();
        world.push_tenants(|tenant| tenant.spec.plan == name || plans.contains(&tenant.spec.plan));
    }
}

pub(super) fn application_changed(world: &Arc<World>, change: &Change<Application>) {
    if !is_significant(change) {
        return;
    }
    let name = name_of(change);
    world.queues.applications.push(&name);
    if let Some(usage) = &world.usage {
        usage.application_changed(world, &name);
    }
    world.push_pools(|pool| pool.spec.application == name);
    for tenant in world.stores.tenants.state().iter().filter(|tenant| tenant.spec.application == name) {
        claim_hosts(world, tenant);
        world.queues.tenants.push(&tenant.name_any());
    }
    // A host of a tenant's own may be under the domain that this Application has, or had.
    world.push_tenants(|tenant| tenant.spec.application != name && tenant.spec.hosts.is_some());
}

pub(super) fn server_changed(world: &Arc<World>, change: &Change<DatabaseServer>) {
    let name = name_of(change);
    let reachable = |server: Option<&Arc<DatabaseServer>>| {
        let conditions = &server?.status.as_ref()?.conditions;
        find_condition(conditions, ConditionType::Reachable).map(|condition| condition.status.clone())
    };
    let significant = is_significant(change);
    if significant {
        world.queues.servers.push(&name);
        world.push_waiting();
        let mut affected = BTreeSet::new();
        for application in world.stores.applications.state() {
            world.queues.applications.push(&application.name_any());
            let database = &application.spec.database;
            let choices = [&database.pooled, &database.bridge, &database.dedicated];
            if choices.into_iter().flatten().any(|choice| choice.servers.contains(&name)) {
                affected.insert(application.name_any());
            }
        }
        // Its peers are in the policies of those that are on it, listed or not.
        let is_on_it = |tenant: &Tenant| {
            let status = tenant.status.as_ref();
            status.and_then(|status| status.database.as_ref()).is_some_and(|database| database.server == name)
        };
        world.push_tenants(|tenant| {
            affected.contains(&tenant.spec.application) || tenant::has_own_namespace(tenant) && is_on_it(tenant)
        });
    }
    let (before, now) = (reachable(change.old.as_ref()), reachable(change.new.as_ref()));
    if significant || before != now {
        world.push_pools(|pool| pool.spec.server == name);
    }
    // Those that could not reach it have waited longer and longer.
    if before != now && now.as_deref() == Some("True") {
        let is_here = |status: &TenantStatus| status.database.as_ref().is_some_and(|it| it.server == name);
        world.push_tenants(|tenant| {
            let status = tenant.status.as_ref();
            status.is_some_and(|status| is_here(status) && !is_true(&status.conditions, ConditionType::Ready))
        });
    }
}

/// Tells a pool's tenants that it serves, or no longer does, at a bounded rate.
pub(super) fn start_outages(world: &Arc<World>) -> mpsc::UnboundedSender<String> {
    let (sender, mut receiver) = mpsc::unbounded_channel::<String>();
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(std::time::Duration::from_secs(1) / OUTAGE_RATE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while let Some(tenant) = receiver.recv().await {
            ticks.tick().await;
            world.queues.tenants.push(&tenant);
        }
    });
    sender
}

pub(super) fn pool_changed(world: &Arc<World>, change: &Change<Pool>, outages: &mpsc::UnboundedSender<String>) {
    let name = name_of(change);
    world.shared.placements().arrived(&name);
    let significant = is_significant(change);
    if significant {
        world.queues.pools.push(&name);
        world.push_waiting();
        for pool in change.new.iter().chain(change.old.iter()) {
            world.queues.applications.push(&pool.spec.application);
            world.queues.servers.push(&pool.spec.server);
        }
    }
    let status = |pool: &Pool| Some(rolled_out(&pool.status.as_ref()?.conditions));
    rollout_changed(world, change, status, |pool| pool.spec.application.clone());
    let takes = |pool: Option<&Arc<Pool>>| pool.is_some_and(|pool| super::pool::takes_tenants(pool));
    let available = |pool: Option<&Arc<Pool>>| {
        let conditions = &pool?.status.as_ref()?.conditions;
        let condition = find_condition(conditions, ConditionType::Available)?;
        // While it serves, tenants don't hear what else is said.
        let message = Some(condition.message.clone()).filter(|_| condition.status != "True");
        Some((condition.status.clone(), message))
    };
    let in_pool = |tenant: &Tenant| tenant::pool_of(tenant, world).as_deref() == Some(name.as_str());
    let (old, new) = (change.old.as_ref(), change.new.as_ref());
    if !takes(old) && takes(new) {
        world.push_tenants(in_pool);
    } else if available(old) != available(new) {
        for tenant in world.stores.tenants.state().iter().filter(|tenant| in_pool(tenant)) {
            // The receiver lives as long as the world.
            let _ = outages.send(tenant.name_any());
        }
    }
}

pub(super) fn secret_changed(world: &Arc<World>, name: &str) {
    for server in world.stores.servers.state() {
        let ca = server.spec.tls.as_ref().and_then(|tls| tls.ca_secret.as_ref());
        if server.spec.admin.credentials_secret.name == name || ca.is_some_and(|reference| reference.name == name) {
            world.queues.servers.push(&server.name_any());
        }
    }
    push_sharing(world, |shared| shared.secrets.iter().flatten().any(|secret| secret == name));
}

pub(super) fn config_map_changed(world: &Arc<World>, name: &str) {
    push_sharing(world, |shared| shared.config_maps.iter().flatten().any(|map| map == name));
    let migrates = |application: &Application| {
        let sql = application.spec.migrations.as_ref().and_then(|migrations| migrations.sql.as_ref());
        sql.is_some_and(|sql| sql.config_maps.iter().any(|reference| reference.name == name))
    };
    for application in world.stores.applications.state().iter().filter(|application| migrates(application)) {
        let application = application.name_any();
        world.queues.applications.push(&application);
        world.push_tenants(|tenant| tenant.spec.application == application);
    }
}

fn push_sharing(world: &World, shares: impl Fn(&crate::api::SharedObjects) -> bool) {
    for application in world.stores.applications.state() {
        if application.spec.shared.as_ref().is_some_and(&shares) {
            let name = application.name_any();
            world.push_pools(|pool| pool.spec.application == name);
            // Pooled tenants have none of it themselves.
            world.push_tenants(|tenant| tenant.spec.application == name && tenant::has_own_namespace(tenant));
        }
    }
}
