//! A Tenant that is being deleted.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, ResourceExt as _};

use super::{
    place::{self, Place},
    status::Report,
};
use crate::{
    api::{ConditionType, DeletionPolicy, Duration, Plan, Tenant, Verdict},
    cluster::{Deleted, Key, Owner, remove_finalizer},
    controller::{
        bulkheads,
        conditions::Concerns,
        databases::Connected,
        events::Note,
        failure::{Class, Failure},
        placements::Cell,
        queue::Outcome,
        world::World,
    },
    database::{TenantId, TenantState},
    desired::{Kind, naming, route_kind},
};

/// How long data is kept, unless the plan says otherwise.
const RETENTION: std::time::Duration = std::time::Duration::from_secs(30 * 86_400);

/// Takes a Tenant out of use as its policy says; then lets it go.
pub(super) async fn finalize(tenant: &Tenant, world: &Arc<World>) -> Outcome {
    if !tenant.finalizers().iter().any(|finalizer| finalizer == crate::api::FINALIZER) {
        return held(tenant, world).await;
    }
    world.shared.set_waiting(&tenant.name_any(), false);
    let place = place_of(tenant, world);
    let mut seat = None;
    if let Ok(Some(place)) = &place {
        seat = world.seat(&place.server, &Owner::Tenant(tenant.name_any()));
        if seat.is_none() {
            return Ok(Some(bulkheads::ASK_AGAIN));
        }
    }
    let taken_out = match place {
        Ok(place) => take_out(tenant, world, place).await,
        Err(failure) => Err(failure),
    };
    drop(seat);
    if let Err(failure) = taken_out {
        let mut report = Report::new(tenant, world);
        report.verdicts = Concerns::not_ready(&failure);
        if failure.reason == "DatabaseUnavailable" {
            report.verdicts.push(Verdict::no(ConditionType::DatabaseReady, failure.reason, failure.message.clone()));
        }
        report.write().await?;
        return Err(failure);
    }
    remove_finalizer(world.cluster.client(), tenant).await?;
    let uid = tenant.metadata.uid.as_deref().unwrap_or_default();
    world.statuses.tenants.forget(uid);
    if let Some(Cell::Pool(pool)) = world.shared.placements().release(uid) {
        world.queues.pools.push(&pool);
    }
    world.push_waiting();
    Ok(None)
}

/// The Tenant has nothing of ours any more, and stays for as long as others hold it: says who.
async fn held(tenant: &Tenant, world: &World) -> Outcome {
    let finalizers = tenant.finalizers();
    if finalizers.is_empty() {
        return Ok(None);
    }
    let failure = Failure::permanent("ForeignFinalizer", held_message("the Tenant", finalizers));
    let mut report = Report::new(tenant, world);
    report.leave_place();
    report.verdicts = Concerns::not_ready(&failure);
    report.write_without_concerns().await?;
    Ok(None)
}

fn held_message(what: &str, finalizers: &[String]) -> String {
    let (word, them) = if finalizers.len() == 1 { ("finalizer", "it") } else { ("finalizers", "them") };
    format!("{what} is held by {word} {}: it goes when whoever set {them} removes {them}", finalizers.join(", "))
}

/// Something that is being deleted is held by somebody else.
fn obstructed(what: &str, finalizers: &[String]) -> Failure {
    Failure { class: Class::Obstructed, reason: "ForeignFinalizer", message: held_message(what, finalizers) }
}

async fn take_out(tenant: &Tenant, world: &Arc<World>, place: Option<Place>) -> Result<(), Failure> {
    let name = tenant.name_any();
    if let Some(place) = &place {
        let connected = world.databases.get(&place.server).ok_or_else(|| unavailable(&place.server))?;
        take_out_data(tenant, world, place, &connected).await?;
        world.migrations.forget(&place.id);
    }
    let mut keys = world.cluster.children().of_owner(&Owner::Tenant(name.clone()));
    if let Some(place) = &place {
        // Named as well as known: what a watch has not told yet must not stay behind.
        let named = |kind, name: String| Key { kind, namespace: Some(place.namespace.clone()), name };
        keys.push(named(Kind::Secret, naming::credentials_secret(&name)));
        let application = world.application(&tenant.spec.application);
        if let Some(route) = application.as_ref().and_then(|application| application.spec.route.as_ref())
            && (route_kind(route) == Kind::Ingress || world.serves_http_routes())
        {
            keys.push(named(route_kind(route), naming::tenant_route(&name)));
        }
    }
    keys.sort();
    keys.dedup();
    remove(world, keys).await
}

/// Removes objects, all that can be; tells of the first that is held.
async fn remove(world: &World, keys: Vec<Key>) -> Result<(), Failure> {
    let mut held = None;
    for key in keys {
        match world.cluster.delete_ours(&key).await? {
            Deleted::Gone => {}
            Deleted::Ending => {
                held.get_or_insert_with(|| Failure::waiting("Ending", format!("{key} is being deleted")));
            }
            Deleted::Held { what, finalizers } => {
                held.get_or_insert_with(|| obstructed(&what, &finalizers));
            }
        }
    }
    held.map_or(Ok(()), Err)
}

fn unavailable(server: &str) -> Failure {
    Failure {
        class: Class::Transient,
        reason: "DatabaseUnavailable",
        message: format!("DatabaseServer {server} is not connected; the Tenant waits for it, and its data stays"),
    }
}

/// Where the tenant is, by its status or by the records; nowhere if it never was placed.
fn place_of(tenant: &Tenant, world: &World) -> Result<Option<Place>, Failure> {
    if let Some(place) = place::known(tenant, world) {
        return Ok(Some(place));
    }
    let uid = tenant.metadata.uid.clone().unwrap_or_default();
    let id = TenantId::from_uid(&uid);
    for (server, connected) in world.databases.all() {
        if let Some((database, record)) =
            connected.find(|record| record.id == id || record.uid == uid).into_iter().next()
            && let Some(purpose) = connected.purpose(&database)
        {
            return Ok(Some(Place::recorded(&purpose, &tenant.name_any(), &server, &database, record.id.clone())));
        }
    }
    // A status may be lost: only servers that answered can say that there is nothing.
    let away = world.stores.servers.state().into_iter().map(|server| server.name_any());
    match away.into_iter().find(|server| world.databases.get(server).is_none()) {
        Some(server) => Err(unavailable(&server)),
        None => Ok(None),
    }
}

async fn take_out_data(tenant: &Tenant, world: &World, place: &Place, connected: &Connected) -> Result<(), Failure> {
    let Some(record) = connected.record(&place.database, &place.id) else { return Ok(()) };
    // The record may be somebody else's by now: data that was restored to another Tenant.
    if tenant.metadata.uid.as_deref() != Some(record.uid.as_str()) {
        return Ok(());
    }
    let policy = match tenant.spec.deletion_policy.unwrap_or_default() {
        DeletionPolicy::Delete if !definition_is_deleted(world).await? => DeletionPolicy::Delete,
        _ => DeletionPolicy::Retain,
    };
    match (policy, record.state) {
        (DeletionPolicy::Retain, TenantState::Live) => {
            let until = drop_after(tenant, world);
            connected.server.retain(&place.database, &place.id, until).await?;
            let text = format!("the data stays locked in database {} until {until}", place.database);
            world.events.say(tenant, Note::normal("DataRetained", "RetainData", text));
        }
        (DeletionPolicy::Retain, _) => {}
        (DeletionPolicy::Delete, _) => {
            connected.server.drop_tenant(&place.database, &place.id).await?;
            let text = format!("the data in database {} is dropped", place.database);
            world.events.say(tenant, Note::normal("DataDropped", "DropData", text));
        }
    }
    match connected.server.record(&place.database, &place.id).await? {
        Some(record) => drop(connected.set_record(&place.database, record)),
        None => connected.forget_record(&place.database, &place.id),
    }
    Ok(())
}

fn drop_after(tenant: &Tenant, world: &World) -> Timestamp {
    let retention = |plan: Arc<Plan>| plan.spec.retention.as_ref().and_then(Duration::get);
    let retention = world.plan(&tenant.spec.plan).and_then(retention).unwrap_or(RETENTION);
    let retention = SignedDuration::try_from(retention).unwrap_or(SignedDuration::MAX);
    Timestamp::now().checked_add(retention).unwrap_or(Timestamp::MAX)
}

/// Whether the definition of Tenant itself is being deleted: then every Tenant goes, and
/// nobody meant to drop all customers' data.
async fn definition_is_deleted(world: &World) -> Result<bool, Failure> {
    let api = Api::<CustomResourceDefinition>::all(world.cluster.client().clone());
    match api.get_metadata_opt("tenants.tenantry.io").await {
        Ok(definition) => Ok(definition.is_none_or(|definition| definition.metadata.deletion_timestamp.is_some())),
        Err(error) => Err(Failure::transient("ApiServerError", format!("read the definition of Tenant: {error}"))),
    }
}
