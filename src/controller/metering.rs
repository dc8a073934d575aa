//! Whether the ledger can be used.

use std::time::Duration;

use tracing::{info, warn};

use crate::metering::{counts::Counts, ledger::Ledger};

/// How often it is looked while all is well.
const OFTEN: Duration = Duration::from_secs(30);

/// How often it is looked while it is not.
const SOON: Duration = Duration::from_secs(5);

/// Looks again and again whether the ledger can be used, and says so where that changes. It holds
/// nothing up: tenants are reconciled without a ledger, and their events wait in their outboxes.
pub(super) async fn look(ledger: Ledger, counts: Counts) {
    let mut last = None;
    loop {
        let now = ledger.check().await.map_err(|error| error.to_string());
        counts.ledger_away(now.is_err());
        let pause = if now.is_ok() { OFTEN } else { SOON };
        if last.as_ref() != Some(&now) {
            match &now {
                Ok(()) => info!("the ledger can be used"),
                Err(error) => warn!(error, "the ledger can't be used: usage waits in the databases"),
            }
            last = Some(now);
        }
        tokio::time::sleep(pause).await;
    }
}
