//! Pools: their namespace and what is in it, and their database.

use std::{collections::BTreeMap, sync::Arc};

use kube::ResourceExt as _;

use super::{
    bulkheads,
    conditions::{Concerns, now},
    events::Note,
    failure::{Class, Failure},
    limits,
    objects::{Namespaced, shared_contents},
    queue::Outcome,
    retire::{Retired, retire},
    workload::{self, Standing},
    world::World,
};
use crate::{
    api::{
        Application, ConditionType, DatabaseServer, Pool, PoolStatus, Verdict, find_condition, is_true,
        keep_conditions, merge_conditions,
    },
    cluster::{Key, Owner, add_finalizer, remove_finalizer},
    database::Purpose,
    desired::{Catalog as _, Kind, PoolInput, count, naming, pool_capacity, pool_faults, pool_objects},
};

/// The concerns that stay as they were where a reconcile doesn't come to them.
const CONCERNS: [ConditionType; 5] = [
    ConditionType::DatabaseReady,
    ConditionType::WorkloadReady,
    ConditionType::NetworkDeclared,
    ConditionType::Available,
    ConditionType::RolledOut,
];

pub(super) async fn reconcile(pool: Arc<Pool>, world: Arc<World>) -> Outcome {
    if super::is_paused(&*pool) {
        return Ok(None);
    }
    if world.databases.is_being_read(&pool.spec.server) {
        return Err(Failure::being_read(&pool.spec.server));
    }
    if pool.metadata.deletion_timestamp.is_some() {
        return finalize(&pool, &world).await;
    }
    add_finalizer(world.cluster.client(), &*pool).await?;
    let (application, server) = (world.application(&pool.spec.application), world.server(&pool.spec.server));
    let faults = pool_faults(&pool, application.as_deref(), server.as_deref());
    let mut concerns = Concerns::default();
    let mut capacity = None;
    match (application, server) {
        (Some(application), Some(server)) if faults.is_empty() || was_made(&pool, &world) => {
            let Some(_seat) = world.seat(&pool.spec.server, &Owner::Pool(pool.name_any())) else {
                return Ok(Some(bulkheads::ASK_AGAIN));
            };
            capacity = Some(pool_capacity(&pool, &application, &server));
            // The namespace and the database don't wait for each other.
            let (workload, database) =
                tokio::join!(apply(&pool, &application, &server, &world), prepare(&pool, &application, &world));
            judge_database(&mut concerns, database);
            // One that is at fault takes nobody more, and who is in it runs on.
            judge_workload(&mut concerns, Failure::of(&faults).map_or(workload, Err), &pool);
            let (name, conditions) = (pool.name_any(), pool.status.as_ref().map(|status| &status.conditions));
            let (owner, namespace) = (Owner::Pool(name.clone()), naming::pool_namespace(&name));
            let conditions = conditions.map(Vec::as_slice).unwrap_or_default();
            judge_containers(&mut concerns, workload::look(&world, &owner, &namespace, &application, conditions).await);
        }
        _ => concerns.fails(
            ConditionType::WorkloadReady,
            Failure::of(&faults).unwrap_or_else(|| Failure::permanent("Invalid", "the Pool can't be made")),
        ),
    }
    let verdicts = concerns.verdicts("the pool takes and serves tenants");
    let next = write(&pool, &world, capacity, &verdicts).await?;
    concerns.blocked().map_or(Ok(next), Err)
}

/// Whether a pool is there, or has data at least: what is wrong with it now takes nothing from
/// it then, and it is looked after.
fn was_made(pool: &Pool, world: &World) -> bool {
    let name = pool.name_any();
    let namespace = Key { kind: Kind::Namespace, namespace: None, name: naming::pool_namespace(&name) };
    let has_data = || {
        let connected = world.databases.get(&pool.spec.server);
        connected.is_some_and(|connected| !connected.find_in(&Pool::database_name(&name), |_| true).is_empty())
    };
    world.cluster.children().is_ours(&namespace) == Some(true) || has_data()
}

fn judge_database(concerns: &mut Concerns, database: Result<(), Failure>) {
    match database {
        Ok(()) => concerns.holds(
            ConditionType::DatabaseReady,
            "Proven",
            "the database is there, and nobody but its tenants gets in",
        ),
        Err(failure) => concerns.fails(ConditionType::DatabaseReady, failure),
    }
}

fn judge_workload(concerns: &mut Concerns, workload: Result<bool, Failure>, pool: &Pool) {
    match workload {
        Ok(true) => {
            concerns.holds(ConditionType::NetworkDeclared, "Declared", "pods may reach the database server");
            concerns.holds(ConditionType::WorkloadReady, "Applied", "every object is as it should be");
        }
        Ok(false) => {
            concerns.holds(ConditionType::WorkloadReady, "Applied", "every object is as it should be");
            concerns.fails(
                ConditionType::NetworkDeclared,
                Failure::waiting(
                    "NetworkNotDeclared",
                    format!(
                        "no pod may reach the database: name its peers in spec.network.to of DatabaseServer {}",
                        pool.spec.server
                    ),
                ),
            );
        }
        Err(failure) => concerns.fails(ConditionType::WorkloadReady, failure),
    }
}

/// What the pool's containers do: whether they serve, and whether a changed template is
/// everywhere. A rollout takes nothing from who is in the pool, and so nothing from `Ready`.
fn judge_containers(concerns: &mut Concerns, standing: Standing) {
    match standing.serves {
        Ok(None) => concerns.holds(ConditionType::Available, "Available", "every component serves"),
        Ok(Some((reason, message))) => concerns.holds(ConditionType::Available, reason, message),
        Err((reason, message)) => concerns.fails(ConditionType::Available, Failure::waiting(reason, message)),
    }
    if let Some(verdict) = standing.rolled_out {
        concerns.notes(verdict);
    }
}

/// Brings the pool's objects to what is desired, and removes what is no longer; returns
/// whether the way to the database is declared. What has a fault stays as it is.
async fn apply(
    pool: &Pool,
    application: &Application,
    server: &DatabaseServer,
    world: &Arc<World>,
) -> Result<bool, Failure> {
    let input = PoolInput {
        pool,
        application,
        server,
        shared: &shared_contents(application, world),
        settings: &world.settings,
        api_server: &world.api_server(),
        held_replicas: &BTreeMap::new(),
    };
    let objects = pool_objects(&input);
    let declared = objects.network_declared;
    let name = pool.name_any();
    let namespace = naming::pool_namespace(&name);
    let kept = objects.kept.clone();
    let fault = Failure::of(&kept.all_faults());
    // Of a new pool nothing is made that would have to wait for the rest.
    if let Some(fault) = fault.clone().filter(|_| !was_made(pool, world)) {
        return Err(fault);
    }
    let mut namespaced = Namespaced::new(world, Owner::Pool(name), &namespace).keeping(&kept);
    namespaced.apply(objects.into_ordered()).await?;
    namespaced.prune().await?;
    fault.map_or(Ok(declared), Err)
}

/// Brings the pool's database to what is desired: made, isolated, with the application's
/// meters and the limits of the plans in it.
async fn prepare(pool: &Pool, application: &Application, world: &World) -> Result<(), Failure> {
    let name = pool.name_any();
    let connected = world.databases.get(&pool.spec.server).ok_or_else(|| {
        Failure::waiting("DatabaseUnavailable", format!("DatabaseServer {} is not connected", pool.spec.server))
    })?;
    let database = Pool::database_name(&name);
    limits::prepare(world, &connected, &database, Purpose::Pool(name), application).await?;
    // The server may have been away while a plan changed.
    for plan in connected.plans_in(&database) {
        if let Some(plan) = world.plan(&plan).filter(|plan| limits::fits(plan, application)) {
            limits::ensure(world, &connected, &database, &plan).await?;
        }
    }
    server_is_up(world, &pool.spec.server)
}

/// What the DatabaseServer's own condition says: a server that went away after its databases
/// were made ready.
fn server_is_up(world: &World, server: &str) -> Result<(), Failure> {
    let conditions = world.server(server).and_then(|server| server.status.clone()).unwrap_or_default().conditions;
    match find_condition(&conditions, ConditionType::Reachable) {
        Some(condition) if condition.status == "False" => {
            Err(Failure::waiting("DatabaseUnavailable", format!("DatabaseServer {server}: {}", condition.message)))
        }
        _ => Ok(()),
    }
}

async fn write(pool: &Pool, world: &Arc<World>, capacity: Option<u32>, verdicts: &[Verdict]) -> Outcome {
    let name = pool.name_any();
    let old = world.statuses.pools.current(pool, pool.status.as_ref()).unwrap_or_default();
    let tenants = i64::from(world.shared.placements().count_in_pool(&name));
    let mut conditions = merge_conditions(&old.conditions, verdicts, pool.metadata.generation, now());
    keep_conditions(&mut conditions, &old.conditions, &CONCERNS);
    let status = PoolStatus {
        observed_generation: pool.metadata.generation,
        tenants,
        capacity: capacity.map_or(old.capacity, i64::from),
        namespace: Some(naming::pool_namespace(&name)),
        database: Some(Pool::database_name(&name)),
        conditions,
    };
    if let Some(wait) = super::count_only(world, pool, PoolStatus { tenants, ..old.clone() } == status && old != status)
    {
        return Ok(Some(wait));
    }
    if world.statuses.pools.write(world.cluster.client(), pool, pool.status.as_ref(), &status).await? {
        world.events.transitions(pool, &old.conditions, &status.conditions);
    }
    Ok(None)
}

/// Removes a pool that no tenant is in: its workloads, its database, its namespace.
async fn finalize(pool: &Pool, world: &Arc<World>) -> Outcome {
    let name = pool.name_any();
    let tenants = world.shared.placements().count_in_pool(&name);
    if tenants > 0 {
        let message = format!("used by {}: delete them first", count(tenants, "Tenant"));
        return write(pool, world, None, &[Verdict::no(ConditionType::Ready, "InUse", message)]).await;
    }
    let outcome = remove(pool, world).await;
    if let Err(failure) = outcome {
        write(pool, world, None, &Concerns::not_ready(&failure)).await?;
        return Err(failure);
    }
    world.statuses.pools.forget(pool.metadata.uid.as_deref().unwrap_or_default());
    remove_finalizer(world.cluster.client(), pool).await?;
    world.push_waiting();
    Ok(None)
}

async fn remove(pool: &Pool, world: &Arc<World>) -> Result<(), Failure> {
    let name = pool.name_any();
    let connected = world.databases.get(&pool.spec.server);
    let database = Pool::database_name(&name);
    match connected {
        // What tenants left (Retain) stays where it is, and the database with it.
        Some(connected) => drop(connected.drop_if_empty(&database, &world.facts.cluster_id).await?),
        None if world.server(&pool.spec.server).is_some() => {
            return Err(Failure {
                class: Class::Transient,
                reason: "DatabaseUnavailable",
                message: format!("DatabaseServer {} is not connected; the Pool waits for it", pool.spec.server),
            });
        }
        None => {}
    }
    let namespace = naming::pool_namespace(&name);
    if let Retired::Kept(why) = retire(world, &Owner::Pool(name), &namespace, true).await? {
        let text = format!("namespace {namespace} stays, since others have objects in it: {why}");
        world.events.say(pool, Note::warning("NamespaceKept", "RemoveNamespace", text));
    }
    Ok(())
}

/// Whether a pool's database is there and answers.
pub(super) fn has_database(pool: &Pool) -> bool {
    pool.status.as_ref().is_some_and(|status| is_true(&status.conditions, ConditionType::DatabaseReady))
}

/// Whether a pool's namespace and database are there, so that tenants can be made in it.
pub(super) fn takes_tenants(pool: &Pool) -> bool {
    has_database(pool)
        && pool.status.as_ref().is_some_and(|status| is_true(&status.conditions, ConditionType::WorkloadReady))
}
