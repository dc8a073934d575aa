//! Application migrations, which run outside the deadline of a reconcile.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::runtime::reflector::ObjectRef;
use tokio::{
    sync::watch,
    time::{Duration, Instant, timeout_at},
};

use super::{failure::Failure, slots::Slots, world::World};
use crate::{
    api::Application,
    database::{Migration, TenantId, TenantRecord},
};

/// How long a reconcile waits for migrations before it goes on without them, at most: most
/// take milliseconds, and a new tenant is then ready in one pass. Counted from the run's begin.
const PATIENCE: Duration = Duration::from_secs(5);

/// After how long a run that failed for good is tried again all the same: what made it fail
/// may have been in the tenant's rows, of which no watch tells. Shorter than a tenant with
/// such a failure waits to be looked at.
const RETRY: Duration = Duration::from_secs(200);

/// Where a tenant's migrations are run.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) tenant: String,
    pub(super) application: String,
    pub(super) server: String,
    pub(super) database: String,
    pub(super) id: TenantId,
}

/// How a run stands.
#[derive(Clone)]
enum State {
    Running,
    Succeeded,
    Failed(Failure, Instant),
}

struct Run {
    /// Which files, by checksums.
    files: Vec<String>,
    since: Instant,
    state: watch::Receiver<State>,
}

impl Run {
    /// Whether it stands for these files: it is under way, or has ended with them so lately
    /// that it would not end otherwise now.
    fn holds_for(&self, files: &[String], now: Instant) -> bool {
        match &*self.state.borrow() {
            State::Running => true,
            State::Succeeded => self.files == files,
            State::Failed(_, ended) => self.files == files && now.duration_since(*ended) < RETRY,
        }
    }
}

/// The runs that are under way, and those that failed.
#[derive(Default)]
pub(super) struct MigrationRuns {
    runs: Mutex<HashMap<TenantId, Run>>,
    pub(super) slots: Slots,
}

/// How a tenant's tables stand.
pub(super) enum Tables {
    /// At the newest version.
    Current,
    /// Being migrated.
    Running,
    /// A migration failed.
    Failed(Failure),
}

impl MigrationRuns {
    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tenants that are being migrated, or are about to be.
    pub(super) fn running(&self) -> HashSet<TenantId> {
        let runs = self.lock();
        let running = runs.iter().filter(|(_, run)| matches!(*run.state.borrow(), State::Running));
        running.map(|(id, _)| id.clone()).collect()
    }

    /// Forgets a tenant that is gone.
    pub(super) fn forget(&self, id: &TenantId) {
        self.lock().remove(id);
    }
}

/// The application's files, in the order in which they run; or why they can't be had.
pub(super) fn files(world: &World, application: &Application) -> Result<Vec<Migration>, Failure> {
    let Some(migrations) = &application.spec.migrations else { return Ok(Vec::new()) };
    let Some(sql) = &migrations.sql else {
        return Err(Failure::permanent(
            "MigrationJobNotReconciled",
            "spec.migrations.job of the Application is not run by this version: use spec.migrations.sql",
        ));
    };
    let mut files = BTreeMap::new();
    for reference in &sql.config_maps {
        let Some(map) = world.config_map(&reference.name) else {
            return Err(Failure::waiting(
                "MigrationsMissing",
                format!(
                    "ConfigMap {} is not in namespace {}: create it, or correct the Application's spec.migrations.sql.configMaps",
                    reference.name, world.args.namespace
                ),
            ));
        };
        for (key, text) in map.data.iter().flatten().filter(|(key, _)| key.ends_with(".sql")) {
            if files.insert(key.clone(), text.clone()).is_some() {
                return Err(Failure::permanent(
                    "MigrationsAmbiguous",
                    format!(
                        "file {key} is in more than one ConfigMap of spec.migrations.sql.configMaps: give each file a name of its own"
                    ),
                ));
            }
        }
    }
    let migration = |(name, sql): (String, String)| {
        let checksum = data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(sql.as_bytes()));
        Migration { name, sql, checksum }
    };
    Ok(files.into_iter().map(migration).collect())
}

/// Whether all files have run on a tenant, each as it is now.
pub(super) fn is_current(record: &TenantRecord, files: &[Migration]) -> bool {
    files.iter().all(|file| record.migrations.iter().any(|run| run.name == file.name && run.checksum == file.checksum))
}

/// Brings a tenant's tables to the newest version, and waits a little for it.
pub(super) async fn migrate(
    world: &Arc<World>,
    target: &Target,
    record: &TenantRecord,
    files: Vec<Migration>,
) -> Tables {
    if is_current(record, &files) {
        world.migrations.forget(&target.id);
        return Tables::Current;
    }
    let (since, mut state) = start(world, target, files);
    let patience = PATIENCE.min(world.args.reconcile_deadline / 4);
    // A run that takes long is not waited for by everybody: others want a reconcile, too.
    if let Some(_onlooker) = world.onlooker(&target.server) {
        // An error means that the run's task is gone, which its last state tells as well.
        let _ = timeout_at(since + patience, state.wait_for(|state| !matches!(state, State::Running))).await;
    }
    let state = state.borrow().clone();
    match state {
        State::Running => Tables::Running,
        State::Succeeded => {
            world.migrations.forget(&target.id);
            Tables::Current
        }
        State::Failed(failure, _) => {
            if failure.class != super::failure::Class::Permanent {
                world.migrations.forget(&target.id);
            }
            Tables::Failed(failure)
        }
    }
}

/// Starts a run, unless one of these files is under way or has failed for good. Returns when it
/// was started.
fn start(world: &Arc<World>, target: &Target, files: Vec<Migration>) -> (Instant, watch::Receiver<State>) {
    let now = Instant::now();
    let checksums: Vec<String> = files.iter().map(|file| format!("{}:{}", file.name, file.checksum)).collect();
    let mut runs = world.migrations.lock();
    if let Some(run) = runs.get(&target.id)
        && run.holds_for(&checksums, now)
    {
        return (run.since, run.state.clone());
    }
    let (sender, receiver) = watch::channel(State::Running);
    runs.insert(target.id.clone(), Run { files: checksums, since: now, state: receiver.clone() });
    let (world, target) = (Arc::clone(world), target.clone());
    tokio::spawn(async move {
        let result = run(&world, &target, &files).await;
        let failed = |failure| State::Failed(failure, Instant::now());
        let _ = sender.send(result.map_or_else(failed, |()| State::Succeeded));
        // Whoever waited no longer is told by the next reconcile.
        world.queues.tenants.push(&target.tenant);
    });
    (now, receiver)
}

async fn run(world: &Arc<World>, target: &Target, files: &[Migration]) -> Result<(), Failure> {
    let slot = world.migration_slot(&target.server, &target.application).await;
    let _slot = slot.ok_or_else(|| Failure::transient("Stopping", "the operator is ending"))?;
    // It may have waited for long.
    if world.stores.tenants.get(&ObjectRef::new(&target.tenant)).is_some_and(|tenant| super::is_paused(&*tenant)) {
        return Err(Failure::waiting("Paused", "the Tenant is paused"));
    }
    let gone =
        || Failure::transient("DatabaseUnavailable", format!("DatabaseServer {} is not connected", target.server));
    let connected = world.databases.get(&target.server).ok_or_else(gone)?;
    let outcome = connected.server.migrate(&target.database, &target.id, files).await;
    // What ran before a failure counts, too.
    connected.refresh(&target.database, &target.id).await?;
    outcome.map(drop).map_err(|error| Failure { reason: "MigrationFailed", ..Failure::from(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_for_good_stands_until_the_files_change_or_its_time_is_over() {
        let (sender, state) = watch::channel(State::Running);
        let now = Instant::now();
        let (old, new) = (["1:a".to_owned()], ["1:b".to_owned()]);
        let run = Run { files: old.to_vec(), since: now, state };
        assert!(run.holds_for(&new, now), "two runs of one tenant would be in each other's way");
        sender.send_replace(State::Failed(Failure::permanent("MigrationFailed", "1"), now));
        assert!(run.holds_for(&old, now) && !run.holds_for(&new, now));
        assert!(!run.holds_for(&old, now + RETRY));
    }
}
