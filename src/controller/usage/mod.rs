//! Usage, from the ledger into Tenants' status; and what the ledger has to know of the Tenants.
//! Only the leader does any of this, and none of it holds up a reconcile: the ledger may be away
//! for hours.

mod board;
mod epochs;
mod outboxes;
mod periods;
mod projector;
mod registrar;
mod status;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use kube::ResourceExt as _;
use tracing::{info, warn};

pub(super) use self::outboxes::Said;
pub use self::status::{closed_usage, current_usage};
use self::{board::Board, outboxes::Outboxes, projector::Write, registrar::Registry};
use super::{databases::Connected, patience::UsagePatience, world::World};
use crate::{
    api::{ConditionType, DatabaseServer, StatusPart as _, Tenant, TenantMetering, find_condition},
    cluster::{Change, desired_hash},
    metering::ledger::{Ledger, LedgerError},
};

/// How long the ledger may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it is waited after a failure until it is tried again.
const PAUSE: Duration = Duration::from_secs(2);

/// How many tenants the ledger is asked for, or told of, at a time.
const CHUNK: usize = 500;

/// What this process knows of usage.
pub(super) struct UsageWork {
    ledger: Ledger,
    patience: UsagePatience,
    /// Since when the ledger is away, and why.
    away: Mutex<Option<(Timestamp, String)>>,
    registry: Registry,
    board: Board<Write>,
    outboxes: Outboxes,
    /// What was written last, by the Tenant's UID, as a hash: what else the watch brings is
    /// somebody else's doing.
    written: Mutex<HashMap<String, u64>>,
    /// The last drifts, by the Tenant's name.
    drifts: Mutex<HashMap<String, Vec<Drift>>>,
}

/// By how much an application's own count differed from what it had counted.
struct Drift {
    application: String,
    meter: String,
    by: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl UsageWork {
    pub(super) fn new(ledger: Ledger, patience: UsagePatience) -> Self {
        Self {
            ledger,
            patience,
            away: Mutex::default(),
            registry: Registry::default(),
            board: Board::default(),
            outboxes: Outboxes::default(),
            written: Mutex::default(),
            drifts: Mutex::default(),
        }
    }

    /// Since when the ledger is away.
    fn away_since(&self) -> Option<Timestamp> {
        lock(&self.away).as_ref().map(|(since, _)| *since)
    }

    /// The same, where that is long enough to be said.
    fn away_long(&self, now: Timestamp) -> Option<Timestamp> {
        self.away_since().filter(|since| now.duration_since(*since) >= self.patience.away())
    }

    /// Asks the ledger something; nothing where it doesn't answer. That is logged once.
    async fn ask<T>(
        &self,
        doing: &str,
        patience: Duration,
        question: impl Future<Output = Result<T, LedgerError>>,
    ) -> Option<T> {
        let answer = tokio::time::timeout(patience, question).await;
        let error = match answer {
            Ok(Ok(answer)) => {
                if let Some((since, _)) = lock(&self.away).take() {
                    info!(%since, "the ledger is back");
                    // It may be an older one.
                    self.registry.forget_all();
                }
                return Some(answer);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the ledger doesn't answer in time".to_owned(),
        };
        let mut away = lock(&self.away);
        if away.as_ref().is_none_or(|(_, before)| *before != error) {
            warn!(doing, error, "the ledger can't be used; it is tried again");
        }
        let since = away.take().map_or_else(Timestamp::now, |(since, _)| since);
        *away = Some((since, error));
        None
    }

    /// Takes in what the watch says of a Tenant.
    pub(super) fn tenant_changed(&self, change: &Change<Tenant>) {
        let Some(new) = &change.new else {
            if let Some(old) = &change.old {
                let name = old.name_any();
                old.status.as_ref().and_then(|status| status.id.as_deref()).inspect(|id| self.registry.left(id));
                self.board.forget(&name);
                lock(&self.drifts).remove(&name);
                lock(&self.written).remove(old.metadata.uid.as_deref().unwrap_or_default());
            }
            return;
        };
        let name = new.name_any();
        let part = |tenant: &Tenant| tenant.status.as_ref().map(TenantMetering::of).unwrap_or_default();
        let Some(old) = change.old.as_ref().filter(|old| old.metadata.uid == new.metadata.uid) else {
            self.registry.push(&name);
            self.board.push(&name);
            return;
        };
        // Its place, its plan, whether it is paused: all but what was written here.
        let rest = |tenant: &Tenant| {
            let status = tenant.status.as_ref();
            let place = status.map(|status| (status.id.clone(), status.plan.clone(), status.database.clone()));
            let ready =
                status.map(|status| status.conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True"));
            (tenant.metadata.generation, tenant.metadata.annotations.clone(), place, ready)
        };
        if rest(old) != rest(new) {
            self.registry.push(&name);
            self.board.push(&name);
            return;
        }
        let now = part(new);
        if part(old) != now {
            let uid = new.metadata.uid.as_deref().unwrap_or_default();
            if lock(&self.written).get(uid) != Some(&hash(&now)) {
                self.board.push(&name);
            }
        }
    }

    /// A plan's limits in a database have changed.
    pub(super) fn limits_changed(&self, connected: &Connected, database: &str, plan: &str) {
        for record in connected.find_in(database, |record| record.settings.plan == plan) {
            self.board.push(&record.name);
        }
    }

    /// The tenants of a server, whose records were just read, are to be told to the ledger.
    pub(super) fn server_connected(&self, world: &World, server: &str) {
        for tenant in world.stores.tenants.state() {
            let status = tenant.status.as_ref();
            if status.and_then(|status| status.database.as_ref()).is_some_and(|database| database.server == server) {
                self.registry.push(&tenant.name_any());
                self.board.push(&tenant.name_any());
            }
        }
    }

    /// An Application's meters may have changed.
    pub(super) fn application_changed(&self, world: &World, application: &str) {
        self.registry.definitions_changed();
        for tenant in world.stores.tenants.state().iter().filter(|tenant| tenant.spec.application == application) {
            self.board.push(&tenant.name_any());
        }
    }

    /// What the relay of a DatabaseServer has said of its outboxes.
    pub(super) fn delivered(&self, world: &World, server: &DatabaseServer) -> Said {
        // An earlier leader knew since when.
        if self.away_since().is_some() && outboxes::says_away(world, server) {
            return Said::AsBefore;
        }
        self.outboxes.said(world, &server.name_any(), self.away_long(Timestamp::now()))
    }

    /// Each DatabaseServer with tenants, and whether what is counted there doesn't arrive.
    pub(super) fn undelivered(&self, world: &World) -> Vec<(String, bool)> {
        let servers = world.stores.servers.state();
        let is_so = |server: &DatabaseServer| {
            let is_so = match self.delivered(world, server) {
                Said::Nothing => return None,
                Said::AsBefore => {
                    let status = world.statuses.servers.current(server, server.status.as_ref())?;
                    find_condition(&status.conditions, ConditionType::UsageDelivered)?.status == "False"
                }
                Said::Now(verdict) => verdict.holds == Some(false),
            };
            Some((server.name_any(), is_so))
        };
        servers.iter().filter_map(|server| is_so(server)).collect()
    }

    /// By how much reconciliations differed from what was counted, by Application and meter: the
    /// sum of each tenant's last.
    pub(super) fn drifts(&self) -> BTreeMap<(String, String), u64> {
        let mut sums = BTreeMap::new();
        for drift in lock(&self.drifts).values().flatten() {
            let sum: &mut u64 = sums.entry((drift.application.clone(), drift.meter.clone())).or_default();
            *sum = sum.saturating_add(drift.by);
        }
        sums
    }
}

fn hash(metering: &TenantMetering) -> u64 {
    desired_hash(&serde_json::to_value(metering).unwrap_or_default())
}

/// Does all of it, until the operator is asked to end. Where there is no ledger, what an earlier
/// one left in status is taken away.
pub(super) async fn run(world: &Arc<World>) {
    let all = async {
        // In boxes: together they would be more than the compiler can lay out.
        match &world.usage {
            Some(work) => {
                tokio::join!(
                    Box::pin(registrar::run(world, work)),
                    Box::pin(projector::listen(world, work)),
                    Box::pin(projector::look_at_all(world, work)),
                    Box::pin(projector::read(world, work)),
                    Box::pin(projector::write(world, work)),
                    Box::pin(periods::close(work, world)),
                    Box::pin(periods::keep(work)),
                    Box::pin(epochs::run(world, work)),
                    Box::pin(outboxes::run(world, work)),
                );
            }
            None => {
                projector::clear(world).await;
                world.stopping().await;
            }
        }
    };
    tokio::select! {
        () = all => {}
        () = world.stopping() => {}
    }
}
