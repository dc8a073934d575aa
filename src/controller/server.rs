//! DatabaseServers: connects to them, reads their records, watches their health.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt as _;
use kube::ResourceExt as _;
use tracing::{info, warn};

use super::{
    conditions::{Concerns, now},
    connection,
    databases::Connected,
    events::Note,
    failure::{Class, Failure},
    maintenance,
    queue::{Next, Outcome},
    relay,
    retire::Retired,
    usage::Said,
    world::World,
};
use crate::{
    api::{
        ANNOTATION_ADOPT_CLUSTER, ConditionType, DatabaseServer, DatabaseServerStatus, Verdict, find_condition,
        keep_conditions, merge_conditions,
    },
    cluster::{add_finalizer, remove_finalizer},
    database::{DatabaseRecord, ErrorClass, Purpose, Server, ServerInfo, Tls},
    desired::{count, join_faults, server_faults},
};

pub(super) async fn reconcile(server: Arc<DatabaseServer>, world: Arc<World>) -> Outcome {
    let outcome = look_at(&server, &world).await;
    world.shared.set_tried(&server.name_any());
    outcome
}

async fn look_at(server: &DatabaseServer, world: &Arc<World>) -> Outcome {
    let name = server.name_any();
    if super::is_paused(server) {
        // Its tenants aren't paused: what they need is read. Nothing is written for the server.
        if server.metadata.deletion_timestamp.is_none() && server_faults(server).is_empty() {
            connect(server, world).await?;
        }
        return Ok(None);
    }
    let on_server = |tenant: &crate::api::Tenant| {
        tenant
            .status
            .as_ref()
            .and_then(|status| status.database.as_ref())
            .is_some_and(|database| database.server == name)
    };
    let tenants = world.count_tenants(on_server);
    let pools = world.stores.pools.state().iter().filter(|pool| pool.spec.server == name).count();
    if server.metadata.deletion_timestamp.is_some() {
        if tenants == 0 && pools == 0 {
            match relay::remove(&name, world).await {
                Ok(Retired::Gone) => {}
                Ok(Retired::Kept(why)) => {
                    let text = format!("the relay's namespace stays, since others have objects in it: {why}");
                    world.events.say(server, Note::warning("NamespaceKept", "RemoveNamespace", text));
                }
                Err(failure) => {
                    write(server, world, tenants, None, &Concerns::not_ready(&failure), &[]).await?;
                    return Err(failure);
                }
            }
            world.databases.remove(&name);
            world.statuses.servers.forget(server.metadata.uid.as_deref().unwrap_or_default());
            remove_finalizer(world.cluster.client(), server).await?;
            return Ok(None);
        }
        let message = format!("used by {} and {}: delete them first", count(tenants, "Tenant"), count(pools, "Pool"));
        let in_use = [Verdict::no(ConditionType::Ready, "InUse", message)];
        return write(server, world, tenants, None, &in_use, &[]).await;
    }
    add_finalizer(world.cluster.client(), server).await?;
    let faults = server_faults(server);
    let found = match faults.first() {
        Some(fault) => Err(Failure::permanent(fault.reason, join_faults(&faults))),
        None => connect(server, world).await,
    };
    let mut concerns = Concerns::default();
    match &found {
        Ok(info) => {
            let advice = if info.advice.is_empty() {
                "the admin may do all that is needed".to_owned()
            } else {
                info.advice.join(" ")
            };
            concerns.holds(ConditionType::Reachable, "Connected", advice);
        }
        Err(failure) => concerns.fails(ConditionType::Reachable, failure.clone()),
    }
    // Whoever waits for the server's first answer has it.
    world.shared.set_tried(&name);
    let relayed = if faults.is_empty() { relay::ensure(server, world).await } else { Ok(None) };
    match &relayed {
        Ok(verdict) => verdict.iter().cloned().for_each(|verdict| concerns.notes(verdict)),
        Err(failure) => {
            concerns.notes(Verdict::no(ConditionType::RelayReady, failure.reason, failure.message.clone()));
        }
    }
    // Tenants run whether or not their usage gets anywhere: it says nothing about Ready.
    let mut kept: &[ConditionType] = &[];
    match world.usage.as_ref().map(|usage| usage.delivered(world, server)) {
        None | Some(Said::Nothing) => {}
        Some(Said::AsBefore) => kept = &[ConditionType::UsageDelivered],
        Some(Said::Now(verdict)) => concerns.notes(verdict),
    }
    let verdicts = concerns.verdicts("the server answers, and its records are known");
    let counted = write(server, world, tenants, found.as_ref().ok(), &verdicts, kept).await?;
    match concerns.blocked() {
        // A server that is away comes back without anybody telling: look often.
        Some(failure) if failure.class == Class::Permanent => Ok(Some(world.args.health_interval)),
        Some(failure) => Err(Failure { class: Class::Waiting, ..failure }),
        None => {
            let interval = world.args.health_interval;
            // What a person has to change is looked for as often as the server.
            if let Err(failure) = relayed
                && failure.class != Class::Permanent
            {
                return Err(failure);
            }
            Ok(sooner(counted, world.databases.get(&name).map_or(interval, |connected| connected.check_due(interval))))
        }
    }
}

/// Each DatabaseServer, and whether it can't be worked with: never connected, not with what its
/// spec and Secrets say now, or without an answer.
pub(super) fn away(world: &World) -> Vec<(String, bool)> {
    let servers = world.stores.servers.state();
    let is_away = |server: &DatabaseServer| {
        let status = world.statuses.servers.current(server, server.status.as_ref()).unwrap_or_default();
        let reachable = find_condition(&status.conditions, ConditionType::Reachable);
        // While it is paused, nobody writes the condition.
        let says_so = !super::is_paused(server) && reachable.is_some_and(|it| it.status == "False");
        let connected = world.databases.get(&server.name_any());
        says_so || connected.is_none_or(|connected| connected.server.statistics().away)
    };
    servers.iter().map(|server| (server.name_any(), is_away(server))).collect()
}

/// The cluster whose databases are to be taken over, where that was not done yet.
fn to_adopt<'a>(server: &'a DatabaseServer, world: &World) -> Option<&'a str> {
    let asked = server.annotations().get(ANNOTATION_ADOPT_CLUSTER).filter(|_| !super::is_paused(server))?;
    let status = world.statuses.servers.current(server, server.status.as_ref()).unwrap_or_default();
    (status.adopted_cluster.as_ref() != Some(asked)).then_some(asked)
}

/// Takes in a database and its records. Those of other clusters are read, to know their names,
/// and never changed, unless `adopt` names their cluster.
async fn load(
    world: &World,
    connected: &Connected,
    database: DatabaseRecord,
    adopt: Option<&str>,
) -> Result<(), Failure> {
    let here = world.facts.cluster_id.as_str();
    let Some(owner) = database.mark.as_ref().map(|mark| mark.cluster_id.clone()) else { return Ok(()) };
    let database = if adopt == Some(owner.as_str()) {
        let taken = connected.server.take_over(&database, &owner, here).await?;
        info!(database = taken.name, cluster = owner, "taken over from another cluster");
        taken
    } else if owner == here {
        database
    } else {
        match connected.server.records(&database.name).await {
            Ok(records) => connected.load_strangers(&database.name, records),
            // A version of Tenantry may have made it that this one does not understand.
            Err(error) if error.class() == ErrorClass::Permanent => {
                warn!(database = database.name, cluster = owner, %error, "another cluster's records can't be read");
            }
            Err(error) => return Err(error.into()),
        }
        return Ok(());
    };
    // Before anything is read: what an earlier leader has begun there is done by then.
    connected.server.fence(&database.name, &world.migrations.running()).await?;
    let records = connected.server.records(&database.name).await?;
    let limits = connected.server.plan_limits(&database.name).await?;
    connected.load(database, records, limits);
    Ok(())
}

/// Does what is not done yet, a few at a time, and remembers what was done: whoever is cut off
/// goes on from there. What fails keeps nothing else from being done.
async fn go_on<E>(
    done: &Mutex<BTreeSet<String>>,
    all: Vec<(String, impl Future<Output = Result<(), E>>)>,
    at_a_time: usize,
) -> Result<(), E> {
    let lock = || done.lock().unwrap_or_else(PoisonError::into_inner);
    let known = lock().clone();
    let mut todo = Vec::new();
    for (name, work) in all {
        if !known.contains(&name) {
            todo.push(async move {
                work.await?;
                lock().insert(name);
                Ok(())
            });
        }
    }
    let outcomes: Vec<_> = futures::stream::iter(todo).buffer_unordered(at_a_time).collect().await;
    outcomes.into_iter().collect()
}

fn sooner(next: Next, other: Duration) -> Next {
    Some(next.map_or(other, |next| next.min(other)))
}

/// Connects, unless that was done with the same settings; then asks how the server is.
async fn connect(server: &DatabaseServer, world: &Arc<World>) -> Result<ServerInfo, Failure> {
    let name = server.name_any();
    let refused = |error: crate::database::Error| {
        let sqlstate = error.sqlstate().map(str::to_owned);
        let mut failure = Failure::from(error);
        // 28P01 and 28000: the login is refused; 3D000: there is no such database.
        match sqlstate.as_deref() {
            Some("28P01" | "28000") => {
                let secret = &server.spec.admin.credentials_secret.name;
                failure.message.push_str(&format!(": correct Secret {secret}"));
            }
            Some("3D000") => failure.message.push_str(": correct spec.admin.database"),
            _ => {}
        }
        failure
    };
    let (config, hash) = connection::config(server, &world.args.namespace, |name| world.secret(name))?;
    // Asked to take over what another cluster left, the server's records are read anew.
    let asked = server.annotations().get(ANNOTATION_ADOPT_CLUSTER).filter(|_| !super::is_paused(server));
    let hash = crate::cluster::desired_hash(&serde_json::json!([hash, asked]));
    if let Some(connected) = world.databases.get(&name).filter(|connected| connected.config_hash == hash) {
        return connected.check(world.args.health_interval).await.map_err(refused);
    }
    let (loading, info) = match world.databases.loading(&name, hash) {
        Some(loading) => {
            let info = loading.connected.server.check().await.map_err(refused)?;
            (loading, info)
        }
        None => {
            let (ca_pem, sslmode) = match &config.tls {
                Tls::VerifyFull { ca_pem } => (Some(ca_pem.clone()), "verify-full"),
                Tls::Disable => (None, "disable"),
            };
            let connection = Server::within(config, world.term.clone(), &world.facts.cluster_id)?;
            let info = connection.check().await.map_err(refused)?;
            (world.databases.begin(&name, Connected::new(connection, hash, info.clone(), ca_pem, sslmode)), info)
        }
    };
    let connected = Arc::clone(&loading.connected);
    let adopt = to_adopt(server, world);
    let listed = connected.server.list_databases().await?;
    let read = |database: DatabaseRecord| {
        let (name, loading, connected) = (database.name.clone(), &loading, &connected);
        let reading = async move {
            load(world, connected, database, adopt).await?;
            loading.progressed();
            Ok::<_, Failure>(())
        };
        (name, reading)
    };
    let databases = listed.into_iter().map(read).collect();
    // Each uses one connection after the other, and is to find its own again.
    go_on(&loading.done, databases, connected.server.connections().div_ceil(2)).await?;
    world.databases.insert(&name, Arc::clone(&connected));
    maintenance::start(world, &name, &connected);
    if let Some(usage) = &world.usage {
        usage.server_connected(world, &name);
    }
    world.push_pools(|pool| pool.spec.server == name);
    world.push_waiting();
    let is_here = |tenant: &crate::api::Tenant| {
        let database = tenant.status.as_ref().and_then(|status| status.database.as_ref());
        database.is_some_and(|database| database.server == name)
    };
    world.push_tenants(|tenant| tenant.metadata.deletion_timestamp.is_some() || is_here(tenant));
    Ok(info)
}

async fn write(
    server: &DatabaseServer,
    world: &World,
    tenants: i64,
    info: Option<&ServerInfo>,
    verdicts: &[Verdict],
    kept: &[ConditionType],
) -> Outcome {
    let old = world.statuses.servers.current(server, server.status.as_ref()).unwrap_or_default();
    let name = server.name_any();
    let databases = world.databases.get(&name).map_or(old.databases, |connected| {
        let here = connected.names().iter().filter(|database| is_here(world, &name, &connected, database)).count();
        i64::try_from(here).unwrap_or(i64::MAX)
    });
    let mut status = DatabaseServerStatus {
        observed_generation: server.metadata.generation,
        version: info.map(|info| version(info.version)).or_else(|| old.version.clone()),
        databases,
        tenants,
        // Once connected with it, it was honoured.
        adopted_cluster: info
            .and_then(|_| server.annotations().get(ANNOTATION_ADOPT_CLUSTER).cloned())
            .or_else(|| old.adopted_cluster.clone()),
        conditions: merge_conditions(&old.conditions, verdicts, server.metadata.generation, now()),
    };
    keep_conditions(&mut status.conditions, &old.conditions, kept);
    let counts = DatabaseServerStatus { tenants, databases: status.databases, ..old.clone() };
    if let Some(wait) = super::count_only(world, server, counts == status && old != status) {
        return Ok(Some(wait));
    }
    if world.statuses.servers.write(world.cluster.client(), server, server.status.as_ref(), &status).await? {
        world.events.transitions(server, &old.conditions, &status.conditions);
    }
    Ok(None)
}

/// Whether a database is this DatabaseServer's: where two lead to one PostgreSQL, a pool's database
/// is its own server's.
pub(super) fn is_here(world: &World, name: &str, connected: &Connected, database: &str) -> bool {
    match connected.purpose(database) {
        Some(Purpose::Pool(pool)) => world.pool(&pool).is_none_or(|pool| pool.spec.server == name),
        _ => world.shared.placements().server_of(database).is_none_or(|server| server == name),
    }
}

/// PostgreSQL's `server_version_num`, as people write it: 150018 is 15.18.
fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt as _;
    use tokio::sync::Semaphore;

    use super::*;

    /// Things to be done, each of which counts itself once a permit lets it.
    fn work<'a>(
        permits: &'a Semaphore,
        counts: &'a [AtomicUsize],
    ) -> Vec<(String, impl Future<Output = Result<(), String>> + use<'a>)> {
        let one = |(at, count): (usize, &'a AtomicUsize)| {
            let work = async move {
                permits.acquire().await.expect("open").forget();
                count.fetch_add(1, Ordering::Relaxed);
                if at == 3 && count.load(Ordering::Relaxed) == 1 { Err("3 fails once".to_owned()) } else { Ok(()) }
            };
            (at.to_string(), work)
        };
        counts.iter().enumerate().map(one).collect()
    }

    #[tokio::test]
    async fn who_is_cut_off_goes_on_from_there_and_no_failure_keeps_others_from_being_done() {
        let (done, permits) = (Mutex::default(), Semaphore::new(5));
        let counts: [AtomicUsize; 8] = Default::default();
        let count = || counts.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let cut_off = go_on(&done, work(&permits, &counts), 2).now_or_never();
        assert_eq!((cut_off, count()), (None, vec![1, 1, 1, 1, 1, 0, 0, 0]));
        permits.add_permits(100);
        go_on(&done, work(&permits, &counts), 2).await.expect("the rest");
        assert_eq!(count(), [1, 1, 1, 2, 1, 1, 1, 1], "only what had failed is done once more");
        let counts: [AtomicUsize; 8] = Default::default();
        let error = go_on(&Mutex::default(), work(&permits, &counts), 2).await;
        assert_eq!(error, Err("3 fails once".to_owned()));
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
    }
}
