//! Tells the ledger who the tenants are, where their data is, and what their Applications count:
//! without that it takes no event of theirs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use kube::{ResourceExt as _, runtime::reflector::ObjectRef};
use tokio::{sync::Notify, time::sleep};

use super::{CHUNK, PATIENCE, PAUSE, UsageWork, lock};
use crate::{
    api::Tenant,
    controller::{
        databases::Connected,
        limits::meters_of,
        tenant::place::{self, Place},
        world::World,
    },
    database::{MeterKind, MeterSource, TenantRecord, TenantState},
    metering::ledger::{LedgerTenant, MeterDefinition, Placement},
};

/// How often all tenants are looked through for one that the ledger wasn't told of.
const ROUND: Duration = Duration::from_secs(60);

/// In how many of these rounds all of them are told again: the ledger may have been restored to an
/// earlier time without anybody noticing.
const RENEW: u32 = 10;

/// How long it is waited for more, so that many tenants are told in one call.
const GATHER: Duration = Duration::from_millis(100);

/// What the ledger was told, and of whom it is to be told.
#[derive(Default)]
pub(super) struct Registry {
    pending: Mutex<Pending>,
    news: Notify,
    /// What the ledger was told of each tenant, by its id.
    told: Mutex<HashMap<String, (LedgerTenant, Placement)>>,
    /// The meters that it was told of each Application.
    defined: Mutex<BTreeMap<String, Vec<MeterDefinition>>>,
}

#[derive(Default)]
struct Pending {
    tenants: BTreeSet<String>,
    /// Every tenant, whichever are named.
    all: bool,
    definitions: bool,
    /// The ids of tenants that are gone.
    gone: BTreeSet<String>,
}

impl Registry {
    /// A tenant may have to be told.
    pub(super) fn push(&self, name: &str) {
        lock(&self.pending).tenants.insert(name.to_owned());
        self.news.notify_one();
    }

    /// A tenant is gone, by its id: no further usage periods of it begin.
    pub(super) fn left(&self, id: &str) {
        lock(&self.told).remove(id);
        lock(&self.pending).gone.insert(id.to_owned());
        self.news.notify_one();
    }

    /// The meters of an Application may have to be told.
    pub(super) fn definitions_changed(&self) {
        lock(&self.pending).definitions = true;
        self.news.notify_one();
    }

    /// Nothing counts as told any more: the ledger may be an older one. Everything is told again.
    pub(super) fn forget_all(&self) {
        lock(&self.told).clear();
        lock(&self.defined).clear();
        lock(&self.pending).all = true;
        self.definitions_changed();
    }

    /// The name of the Tenant with an id.
    pub(super) fn name_of(&self, id: &str) -> Option<String> {
        lock(&self.told).get(id).map(|(tenant, _)| tenant.name.clone())
    }
}

/// A tenant with its record in the database: what is metered.
pub(super) struct Metered {
    pub(super) tenant: Arc<Tenant>,
    pub(super) place: Place,
    pub(super) connected: Arc<Connected>,
    pub(super) record: Arc<TenantRecord>,
}

/// A tenant that has a place with a record of its own, if this is one.
pub(super) fn metered(world: &World, name: &str) -> Option<Metered> {
    let tenant = world.stores.tenants.get(&ObjectRef::new(name))?;
    let place = place::known(&tenant, world)?;
    let connected = world.databases.get(&place.server)?;
    let record = connected.record(&place.database, &place.id)?;
    let is_its_own = tenant.metadata.uid.as_ref() == Some(&record.uid) && record.state == TenantState::Live;
    is_its_own.then_some(Metered { tenant, place, connected, record })
}

fn entry(metered: &Metered) -> (LedgerTenant, Placement) {
    let Metered { place, record, .. } = metered;
    let id = place.id.to_string();
    let tenant = LedgerTenant {
        id: id.clone(),
        uid: record.uid.clone(),
        name: record.name.clone(),
        application: record.application.clone(),
        plan: record.settings.plan.clone(),
        namespace: place.pool.is_none().then(|| place.namespace.clone()),
        anchor: record.settings.period_anchor,
        time_zone: record.settings.time_zone.clone(),
    };
    (tenant, Placement { tenant: id, server: place.server.clone(), database: place.database.clone() })
}

/// Tells what is new, again and again.
pub(super) async fn run(world: &Arc<World>, work: &UsageWork) {
    let registry = &work.registry;
    for number in 0_u32.. {
        if number % RENEW == 0 {
            registry.forget_all();
        } else {
            lock(&registry.pending).all = true;
        }
        let round = sleep(ROUND);
        tokio::pin!(round);
        loop {
            if !tell(world, work).await {
                sleep(PAUSE).await;
                continue;
            }
            tokio::select! {
                () = registry.news.notified() => sleep(GATHER).await,
                () = &mut round => break,
            }
        }
    }
}

/// Tells what is pending; false if the ledger is away.
async fn tell(world: &World, work: &UsageWork) -> bool {
    let registry = &work.registry;
    // What comes in meanwhile is told next.
    let Pending { mut tenants, all, definitions, gone } = std::mem::take(&mut *lock(&registry.pending));
    if all {
        tenants.extend(world.stores.tenants.state().iter().map(|tenant| tenant.name_any()));
    }
    if definitions && !define(world, work).await {
        let mut pending = lock(&registry.pending);
        pending.definitions = true;
        pending.tenants.extend(tenants);
        pending.gone.extend(gone);
        return false;
    }
    // First, since one that is taken back has the id that it had.
    let left: Vec<_> = gone.iter().cloned().collect();
    if !left.is_empty() && work.ask("note tenants that are gone", PATIENCE, work.ledger.depart(&left)).await.is_none() {
        let mut pending = lock(&registry.pending);
        pending.tenants.extend(tenants);
        pending.gone.extend(gone);
        return false;
    }
    let entries: Vec<_> = tenants.iter().filter_map(|name| Some(entry(&metered(world, name)?))).collect();
    let new: Vec<_> = {
        let told = lock(&registry.told);
        entries.into_iter().filter(|entry| told.get(&entry.0.id) != Some(entry)).collect()
    };
    for chunk in new.chunks(CHUNK) {
        let (tenants, placements): (Vec<_>, Vec<_>) = chunk.iter().cloned().unzip();
        let told = work.ask("register tenants", PATIENCE, work.ledger.register(&tenants, &placements)).await;
        if told.is_none() {
            let mut pending = lock(&registry.pending);
            pending.tenants.extend(new.into_iter().map(|(tenant, _)| tenant.name));
            return false;
        }
        for (tenant, placement) in chunk {
            lock(&registry.told).insert(tenant.id.clone(), (tenant.clone(), placement.clone()));
            // What waited for it can come in now.
            work.board.push(&tenant.name);
        }
    }
    true
}

/// Tells the meters of each Application, where they differ; false if the ledger is away.
async fn define(world: &World, work: &UsageWork) -> bool {
    for application in world.stores.applications.state() {
        let meter = |meter: crate::database::MeterDefinition| MeterDefinition {
            is_total: meter.kind == MeterKind::Total,
            from_api: meter.source == MeterSource::Api,
            name: meter.name,
        };
        let name = application.name_any();
        let meters: Vec<_> = meters_of(&application).into_iter().map(meter).collect();
        if lock(&work.registry.defined).get(&name) == Some(&meters) {
            continue;
        }
        if work.ask("define meters", PATIENCE, work.ledger.define(&name, &meters)).await.is_none() {
            return false;
        }
        lock(&work.registry.defined).insert(name, meters);
    }
    true
}
