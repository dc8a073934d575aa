//! New epochs, where a tenant's database was restored to an earlier time.

use std::{collections::HashSet, sync::Arc, time::Duration};

use kube::runtime::reflector::ObjectRef;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{PATIENCE, UsageWork};
use crate::{
    controller::world::World,
    database::{Result, TenantId},
    metering::ledger::RestoredMeter,
};

/// How often the ledger is asked.
const ROUND: Duration = Duration::from_secs(10);

/// Begins an epoch of each meter that the ledger names, again and again: until its first event
/// has arrived, the ledger names it.
pub(super) async fn run(world: &Arc<World>, work: &UsageWork) {
    let mut begun = HashSet::new();
    loop {
        if let Some(restored) = work.ask("ask for restored databases", PATIENCE, work.ledger.restored()).await {
            let key = |meter: &RestoredMeter| (meter.tenant.clone(), meter.meter.clone(), meter.epoch);
            let named: HashSet<_> = restored.iter().map(key).collect();
            begun.retain(|key| named.contains(key));
            for meter in &restored {
                if begun.contains(&key(meter)) || is_paused(world, work, meter) {
                    continue;
                }
                match begin(world, meter).await {
                    Some(Ok(is_new)) => {
                        let RestoredMeter { tenant, meter: name, epoch, value, .. } = meter;
                        info!(
                            tenant,
                            meter = name,
                            epoch,
                            value,
                            is_new,
                            "a database was restored: a new epoch begins"
                        );
                        begun.insert(key(meter));
                    }
                    Some(Err(error)) => {
                        warn!(tenant = meter.tenant, meter = meter.meter, %error, "no new epoch yet; it is tried again");
                    }
                    // Its server isn't connected, or its data is not there.
                    None => {}
                }
            }
        }
        sleep(ROUND).await;
    }
}

/// Whether the tenant, or its server, is paused: nothing is written there then.
fn is_paused(world: &World, work: &UsageWork, meter: &RestoredMeter) -> bool {
    let server = world.stores.servers.get(&ObjectRef::new(&meter.placement.server));
    let name = work.registry.name_of(&meter.tenant);
    let tenant = name.and_then(|name| world.stores.tenants.get(&ObjectRef::new(&name)));
    server.is_some_and(|server| crate::controller::is_paused(&*server))
        || tenant.is_some_and(|tenant| crate::controller::is_paused(&*tenant))
}

async fn begin(world: &World, meter: &RestoredMeter) -> Option<Result<bool>> {
    let id: TenantId = meter.tenant.parse().ok()?;
    let connected = world.databases.get(&meter.placement.server)?;
    let database = &meter.placement.database;
    connected.record(database, &id)?;
    let begun = connected.server.begin_epoch(database, &id, &meter.meter, meter.epoch, meter.value).await;
    Some(begun)
}
