//! What of a tenant waits in its outbox is saved into the ledger, dead letters too, before the
//! tenant's data is dropped: nothing that was counted is lost with it.

use tracing::info;

use super::{databases::Connected, failure::Failure, world::World};
use crate::{
    billing::Periods,
    database::{LeasedEvent, TenantId, TenantRecord},
    metering::ledger::{Ledger, LedgerError, LedgerEvent, LedgerTenant, Placement},
};

/// How many events are saved at a time.
const PAGE: u32 = 1_000;

/// Saves what waits; does nothing where nothing is metered.
///
/// # Errors
/// Where the ledger or the database can't be used: nothing may be dropped then.
pub(super) async fn save(
    world: &World,
    server: &str,
    connected: &Connected,
    database: &str,
    record: &TenantRecord,
) -> Result<(), Failure> {
    let Some(ledger) = &world.ledger else { return Ok(()) };
    let id = &record.id;
    let zone = &record.settings.time_zone;
    let periods = Periods::new(record.settings.period_anchor, zone)
        .or_else(|_| Periods::new(record.settings.period_anchor, "UTC"))
        .map_err(|error| Failure::permanent("Invalid", format!("the usage periods of tenant {id}: {error}")))?;
    let (mut saved, mut is_known) = (0, false);
    loop {
        let events = connected.server.unsent(database, id, PAGE).await?;
        if events.is_empty() {
            break;
        }
        if !std::mem::replace(&mut is_known, true) {
            introduce(ledger, server, database, record).await.map_err(|error| not_saved(id, &error))?;
        }
        let mut unfit = None;
        let mut parts = vec![events.as_slice()];
        while let Some(part) = parts.pop() {
            let to_keep: Vec<_> = part.iter().map(|event| kept(server, database, id, &periods, event)).collect();
            match ledger.ingest(&to_keep).await {
                Ok(_) => {
                    connected.server.saved(database, id, part).await?;
                    saved += part.len();
                }
                Err(LedgerError::Unfit(_)) if part.len() > 1 => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                Err(error @ LedgerError::Unfit(_)) => {
                    unfit.get_or_insert(error);
                }
                Err(error) => return Err(not_saved(id, &error)),
            }
        }
        // Whoever has looked at them drops them by hand.
        if let Some(error) = unfit {
            return Err(not_saved(id, &error));
        }
    }
    if saved > 0 {
        info!(database, %id, events = saved, "saved the usage events that waited, before their tenant's data is dropped");
    }
    Ok(())
}

/// Writes a tenant down that the ledger does not know: it may go before anybody came to that.
async fn introduce(ledger: &Ledger, server: &str, database: &str, record: &TenantRecord) -> Result<(), LedgerError> {
    let id = record.id.to_string();
    if !ledger.directory(std::slice::from_ref(&id)).await?.tenants.is_empty() {
        return Ok(());
    }
    let placement = Placement { tenant: id.clone(), server: server.to_owned(), database: database.to_owned() };
    let tenant = LedgerTenant {
        id,
        uid: record.uid.clone(),
        name: record.name.clone(),
        application: record.application.clone(),
        plan: record.settings.plan.clone(),
        namespace: None,
        anchor: record.settings.period_anchor,
        time_zone: record.settings.time_zone.clone(),
    };
    ledger.register(&[tenant], &[placement]).await
}

fn not_saved(id: &TenantId, error: &LedgerError) -> Failure {
    let message = format!("usage events of tenant {id} wait to be saved before its data is dropped: {error}");
    match error {
        LedgerError::Away(_) => Failure::transient("LedgerUnavailable", message),
        _ => Failure::permanent("EventsNotSaved", message),
    }
}

/// An event as the API would have it taken from a relay.
fn kept(server: &str, database: &str, id: &TenantId, periods: &Periods, event: &LeasedEvent) -> LedgerEvent {
    let period = periods.containing(event.counted.period_start.unwrap_or(event.occurred_at));
    LedgerEvent {
        id: event.id.to_string(),
        source: format!("/tenantry/{server}/{database}"),
        tenant: id.to_string(),
        at: event.occurred_at,
        period_start: period.start,
        period_end: period.end,
        usage: event.usage(),
    }
}
