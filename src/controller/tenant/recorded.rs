//! What earlier Tenants of a name left: looked up before a new place is chosen, so that losing
//! a status, a UID or the definitions never makes an empty tenant.

use std::{cmp::Reverse, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;

use super::{Case, place::Place, status::Report, tiers::of_another_tier};
use crate::{
    api::{ANNOTATION_ABANDON, ANNOTATION_RESTORE_FROM, ConflictState, Pool, TenantConflict},
    controller::{conditions::now, databases::Connected, events::Note, failure::Failure},
    database::{Purpose, TenantId, TenantRecord, TenantState},
    desired::earlier::{Left, abandon_annotation, is_abandoned, may_have_data, undecided_message},
};

/// A record of this Tenant's name.
struct Found {
    server: String,
    connected: Arc<Connected>,
    database: String,
    purpose: Purpose,
    record: Arc<TenantRecord>,
}

impl Found {
    fn place(&self, tenant: &str) -> Place {
        Place::recorded(&self.purpose, tenant, &self.server, &self.database, self.record.id.clone())
    }

    fn is_live(&self) -> bool {
        self.record.state == TenantState::Live
    }
}

/// The place that the ownership records of the servers tell: of this Tenant, whose status was
/// lost, or of an earlier one of the same name, whose data an annotation gives to this one.
/// What nobody has decided about stands in the status as a conflict.
pub(super) async fn recorded(case: &Case<'_>, uid: &str, report: &mut Report<'_>) -> Result<Option<Place>, Failure> {
    let found = of_this_name(case);
    let annotation = |name: &str| case.tenant.annotations().get(name).map(String::as_str);
    // Its own record comes first, whatever annotations from earlier times say.
    let own = found.iter().find(|found| found.record.uid == uid);
    if let Some(found) = own {
        let place = found.place(case.name);
        report.keep_revision(&found.record.settings);
        return if place.tier == case.effective.tier { Ok(Some(place)) } else { Err(of_another_tier(&place)) };
    }
    // Which may be on a server that was not reached yet.
    all_answered(case)?;
    let given = annotation(ANNOTATION_RESTORE_FROM);
    if let Some(found) = found.iter().find(|found| Some(found.record.uid.as_str()) == given) {
        return restore(case, found, uid, report).await.map(Some);
    }
    let abandoned = annotation(ANNOTATION_ABANDON);
    if found.iter().any(|found| !is_abandoned(abandoned, &found.record.uid)) {
        return Err(undecided(&found, abandoned, report));
    }
    for found in &found {
        abandon(case, found).await?;
    }
    match stranger(case, abandoned, report).await? {
        Some(failure) => Err(failure),
        None => Ok(None),
    }
}

/// Fails while there is a server that may have data of a tenant of this name and whose records
/// this process has never read. One that was read and is away now keeps nobody waiting: all that
/// was written to it since is known.
fn all_answered(case: &Case<'_>) -> Result<(), Failure> {
    let pools = case.world.stores.pools.state();
    let pools: Vec<&Pool> = pools.iter().map(|pool| &**pool).collect();
    let mut servers = case.world.stores.servers.state();
    servers.sort_by_key(|server| server.name_any());
    for server in servers {
        let name = server.name_any();
        if case.world.databases.get(&name).is_none() && may_have_data(&server, case.name, case.application, &pools) {
            let message = format!(
                "DatabaseServer {name} was not reached yet, so it can't be asked whether it still has data of a tenant \
                 of this name: see its conditions"
            );
            return Err(Failure::waiting("DatabaseUnavailable", message));
        }
    }
    Ok(())
}

/// Every server that was connected, those first that would take this tenant: the Application may
/// have listed another one when the data was made.
fn servers(case: &Case<'_>) -> Vec<(String, Arc<Connected>)> {
    let mut servers = case.world.databases.all();
    let listed = |name: &String| case.effective.servers.iter().position(|server| server == name).unwrap_or(usize::MAX);
    servers.sort_by_cached_key(|(name, _)| (listed(name), name.clone()));
    servers
}

/// The records of this name that have data, those first that most likely are meant: live
/// ones, then those that were retained last.
fn of_this_name(case: &Case<'_>) -> Vec<Found> {
    let has_data = |record: &TenantRecord| {
        record.name == case.name
            && record.cluster_id == case.world.facts.cluster_id
            && matches!(record.state, TenantState::Live | TenantState::Retained { .. })
    };
    let mut found: Vec<Found> = Vec::new();
    for (server, connected) in servers(case) {
        for (database, record) in connected.find(has_data) {
            let Some(purpose) = connected.purpose(&database) else { continue };
            // Two DatabaseServers may lead to one PostgreSQL.
            let known = found.iter_mut().find(|known| known.record.id == record.id && known.database == database);
            let candidate =
                Found { server: server.clone(), connected: Arc::clone(&connected), database, purpose, record };
            match known {
                Some(known) if is_on(case, &candidate) && !is_on(case, known) => *known = candidate,
                Some(_) => {}
                None => found.push(candidate),
            }
        }
    }
    let dropped = |found: &Found| match found.record.state {
        TenantState::Retained { drop_after } => Some(drop_after),
        _ => None,
    };
    found.sort_by_cached_key(|found| (!found.is_live(), Reverse(dropped(found)), found.record.id.clone()));
    found
}

/// Whether a record's pool, or a neighbour's placement, says that it is on the server where the
/// record was found.
fn is_on(case: &Case<'_>, found: &Found) -> bool {
    match &found.purpose {
        Purpose::Pool(pool) => case.world.pool(pool).is_some_and(|pool| pool.spec.server == found.server),
        _ => case.world.shared.placements().server_of(&found.database).is_some_and(|server| server == found.server),
    }
}

/// The data becomes this Tenant's.
async fn restore(case: &Case<'_>, found: &Found, uid: &str, report: &mut Report<'_>) -> Result<Place, Failure> {
    let (old, database) = (&found.record.uid, &found.database);
    let refused = |why: String| Failure::permanent("DataOfAnotherTenant", why);
    if found.record.application != case.effective.application {
        report.set_conflict(conflict(found));
        return Err(refused(format!(
            "what the Tenant with UID {old} left in database {database} is data of Application {}, and this Tenant is \
             one of {}: give it to a Tenant of that Application, or start empty with {}",
            found.record.application,
            case.effective.application,
            abandon_annotation(case.tenant.annotations().get(ANNOTATION_ABANDON).map(String::as_str), [old.as_str()])
        )));
    }
    // Before anything is changed: what is taken back stays where it is.
    let place = found.place(case.name);
    if place.tier != case.effective.tier {
        report.set_conflict(conflict(found));
        return Err(of_another_tier(&place));
    }
    let (connected, id) = (&found.connected, &found.record.id);
    let restored = async { connected.server.restore(database, id, case.name, uid).await.map(Some) };
    if let Some(restored) = connected.take_in(database, id, restored).await? {
        report.keep_revision(&restored.settings);
    }
    let text = format!("the data that the Tenant with UID {old} left in database {database} is this Tenant's now");
    case.world.events.say(case.tenant, Note::normal("DataRestored", "RestoreData", text));
    Ok(place)
}

/// The data stays locked, and this Tenant starts empty.
async fn abandon(case: &Case<'_>, found: &Found) -> Result<(), Failure> {
    if !found.is_live() {
        return Ok(());
    }
    let (server, database, id) = (&found.connected.server, &found.database, &found.record.id);
    let keep = jiff::SignedDuration::try_from(case.effective.retention).unwrap_or(jiff::SignedDuration::MAX);
    let until = jiff::Timestamp::now().checked_add(keep).unwrap_or(jiff::Timestamp::MAX);
    server.retain(database, id, until).await?;
    found.connected.refresh(database, id).await?;
    Ok(())
}

/// Nobody has said what becomes of some of the data.
fn undecided(found: &[Found], abandoned: Option<&str>, report: &mut Report<'_>) -> Failure {
    let open: Vec<_> = found.iter().filter(|found| !is_abandoned(abandoned, &found.record.uid)).collect();
    if let Some(first) = open.first() {
        report.set_conflict(conflict(first));
    }
    let left: Vec<_> = open
        .iter()
        .map(|found| Left { tenant: &found.record.name, uid: &found.record.uid, database: &found.database })
        .collect();
    Failure::permanent("DataOfAnotherTenant", undecided_message(&left, abandoned))
}

fn conflict(found: &Found) -> TenantConflict {
    let (state, drop_after) = match found.record.state {
        TenantState::Retained { drop_after } => (ConflictState::Retained, Some(Time(drop_after))),
        _ => (ConflictState::Live, None),
    };
    TenantConflict {
        server: found.server.clone(),
        database: found.database.clone(),
        uid: found.record.uid.clone(),
        application: found.record.application.clone(),
        state,
        drop_after,
        cluster: None,
        since: Time(now()),
    }
}

/// Data of this name that belongs to another cluster: this one may have been built in its
/// place. It is never touched; who builds a cluster anew takes over all of it by a word of
/// their own.
async fn stranger(
    case: &Case<'_>,
    abandoned: Option<&str>,
    report: &mut Report<'_>,
) -> Result<Option<Failure>, Failure> {
    for (name, connected) in servers(case) {
        for known in connected.strangers(case.name, &case.effective.application) {
            if is_abandoned(abandoned, &known.uid) {
                continue;
            }
            // Its own operator may have changed it since.
            let Some(record) = connected.server.record(&known.database, &known.id).await? else { continue };
            let (state, drop_after) = match record.state {
                TenantState::Live => (ConflictState::Live, None),
                TenantState::Retained { drop_after } => (ConflictState::Retained, Some(Time(drop_after))),
                TenantState::Dropping | TenantState::Dropped { .. } => continue,
            };
            let (old, cluster, database) = (&record.uid, &record.cluster_id, &known.database);
            let failure = Failure::permanent(
                "DataOfAnotherCluster",
                format!(
                    "database {database} has data of a Tenant of this name, UID {old}, that belongs to the cluster with \
                     id {cluster}: if this cluster takes the place of that one, end that one's operator for good and run \
                     tenantry adopt --from-cluster {cluster}; else start empty with {}",
                    abandon_annotation(abandoned, [old.as_str()])
                ),
            );
            report.set_conflict(TenantConflict {
                server: name.clone(),
                database: database.clone(),
                uid: old.clone(),
                application: record.application.clone(),
                state,
                drop_after,
                cluster: Some(cluster.clone()),
                since: Time(now()),
            });
            return Ok(Some(failure));
        }
    }
    Ok(None)
}

/// A record of another cluster, as it was when its server was connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::controller) struct Stranger {
    /// The database.
    pub(in crate::controller) database: String,
    /// The tenant's id there.
    pub(in crate::controller) id: TenantId,
    /// UID of its Tenant.
    pub(in crate::controller) uid: String,
}
