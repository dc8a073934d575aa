//! Closing usage periods that are over, and keeping room in the ledger.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;
use tracing::info;

use super::{PATIENCE, PAUSE, UsageWork, projector};
use crate::controller::world::World;

/// How often it is looked for periods to close. Where none is due, that is one statement.
const CLOSE: Duration = Duration::from_secs(5);

/// How long after its end a period is closed in any case, estimated then.
const LATEST: Duration = Duration::from_secs(72 * 3_600);

/// How often the ledger's partitions are looked after.
const KEEP: Duration = Duration::from_secs(24 * 3_600);

/// How long that may take.
const KEEPING: Duration = Duration::from_secs(300);

/// Closes what is due, again and again.
pub(super) async fn close(work: &UsageWork, world: &World) {
    loop {
        let closing = work.ledger.close_periods(Timestamp::now(), LATEST);
        let Some(closed) = work.ask("close periods", PATIENCE * 3, closing).await else {
            sleep(PAUSE).await;
            continue;
        };
        if !closed.is_empty() {
            info!(tenants = closed.len(), known = world.stores.tenants.len(), "usage periods are closed");
            projector::push(work, &closed);
        }
        sleep(CLOSE).await;
    }
}

/// Makes room for the next days, and drops what is over, daily.
pub(super) async fn keep(work: &UsageWork) {
    loop {
        match work.ask("keep room in the ledger", KEEPING, work.ledger.keep()).await {
            Some(()) => sleep(KEEP).await,
            None => sleep(PAUSE * 30).await,
        }
    }
}
