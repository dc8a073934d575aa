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
    api::{ConditionType, DeletionPolicy, Duration, Plan, Tenant, Tier, Verdict},
    cluster::{Key, Owner, remove_finalizer},
    controller::{
        bulkheads,
        conditions::Concerns,
        databases::Connected,
        events::Note,
        failure::{Class, Failure},
        placements::Cell,
        queue::Outcome,
        retire::{Retired, held_message, remove, retire},
        unsent,
        world::World,
    },
    database::{DropOutcome, TenantId, TenantState},
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

async fn take_out(tenant: &Tenant, world: &Arc<World>, place: Option<Place>) -> Result<(), Failure> {
    let policy = policy(tenant, world).await?;
    if let Some(place) = &place {
        let connected = world.databases.get(&place.server).ok_or_else(|| unavailable(&place.server))?;
        take_out_data(tenant, world, place, &connected, policy).await?;
        world.migrations.forget(&place.id);
    }
    let (name, keep) = (tenant.name_any(), policy == DeletionPolicy::Retain);
    let namespace = naming::tenant_namespace(&name);
    if place.is_some_and(|place| place.tier != Tier::Pooled) {
        return leave_namespace(tenant, world, &namespace, keep).await;
    }
    let owner = Owner::Tenant(name);
    remove(world, objects(tenant, world, &owner, &namespace)).await?;
    // One that an earlier Tenant of this name left: what others have in it was never this one's
    // to delete, whatever its policy.
    match world.cluster.children().of_owner(&owner).contains(&namespace_key(&namespace)) {
        true => leave_namespace(tenant, world, &namespace, true).await,
        false => Ok(()),
    }
}

fn namespace_key(namespace: &str) -> Key {
    Key { kind: Kind::Namespace, namespace: None, name: namespace.to_owned() }
}

/// Removes a namespace that is the tenant's own, or all that is ours in it where `keep` says so
/// and others have something there: then an Event names that.
pub(super) async fn leave_namespace(
    tenant: &Tenant,
    world: &Arc<World>,
    namespace: &str,
    keep: bool,
) -> Result<(), Failure> {
    if let Retired::Kept(why) = retire(world, &Owner::Tenant(tenant.name_any()), namespace, keep).await? {
        let text = format!("namespace {namespace} stays, since others have objects in it: {why}");
        world.events.say(tenant, Note::warning("NamespaceKept", "RemoveNamespace", text));
    }
    Ok(())
}

/// The objects of a tenant without a namespace of its own. Named as well as known: what a watch
/// has not told yet must not stay behind. A namespace of its name is none of them, nor what is
/// in it: that is an earlier Tenant's, and others may have data there.
fn objects(tenant: &Tenant, world: &World, owner: &Owner, of_earlier: &str) -> Vec<Key> {
    let name = tenant.name_any();
    let mut keys = world.cluster.children().of_owner(owner);
    keys.retain(|key| key.kind != Kind::Namespace && key.namespace.as_deref() != Some(of_earlier));
    if let Some(place) = place::known(tenant, world) {
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
    keys
}

/// What becomes of the data: while the definition of Tenant itself goes, nobody meant to drop
/// all customers' data.
async fn policy(tenant: &Tenant, world: &World) -> Result<DeletionPolicy, Failure> {
    match tenant.spec.deletion_policy.unwrap_or_default() {
        DeletionPolicy::Delete if !definition_is_deleted(world).await? => Ok(DeletionPolicy::Delete),
        _ => Ok(DeletionPolicy::Retain),
    }
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

async fn take_out_data(
    tenant: &Tenant,
    world: &World,
    place: &Place,
    connected: &Connected,
    policy: DeletionPolicy,
) -> Result<(), Failure> {
    let (database, id) = (&place.database, &place.id);
    if let Some(record) = connected.ask_record(database, id).await? {
        // The record may be somebody else's by now: data that was restored to another Tenant.
        if tenant.metadata.uid.as_deref() != Some(record.uid.as_str()) {
            return Ok(());
        }
        match (policy, record.state) {
            (DeletionPolicy::Retain, TenantState::Live) => {
                let until = drop_after(tenant, world);
                connected.server.retain(database, id, until).await?;
                let text = format!("the data stays locked in database {database} until {until}");
                world.events.say(tenant, Note::normal("DataRetained", "RetainData", text));
            }
            (DeletionPolicy::Retain, _) => {}
            (DeletionPolicy::Delete, _) => {
                unsent::save(world, &place.server, connected, database, &record).await?;
                // Whoever counted until the last moment has left more.
                if let DropOutcome::WaitsForEvents(_) = connected.server.drop_tenant(database, id).await? {
                    unsent::save(world, &place.server, connected, database, &record).await?;
                    connected.server.drop_tenant(database, id).await?;
                }
                let text = format!("the data in database {database} is dropped");
                world.events.say(tenant, Note::normal("DataDropped", "DropData", text));
            }
        }
        connected.refresh(database, id).await?;
    }
    if place.tier == Tier::Dedicated {
        connected.drop_if_empty(database, &world.facts.cluster_id).await?;
        // Its relay's login there is over.
        world.queues.servers.push(&place.server);
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
