//! What of a tenant's usage events nobody has acknowledged, for the operator: before a tenant's
//! data is dropped it saves them itself.

use tokio_postgres::types::Type;

use super::error::Result;
use super::identity::TenantId;
use super::outbox::{LeasedEvent, event};
use super::server::{OWNER, Server};
use super::sql::{Script, literal};

/// In the order of each meter's events; dead letters too.
const UNSENT: &str = "
    SELECT event_id, tenant, meter, epoch, sequence, kind, delta, value, subject, reason, actor, occurred_at,
           period_start, first_sequence, first_at, low, high, moment::text, attempts
      FROM tenantry.outbox WHERE acked_at IS NULL AND tenant = $1 ORDER BY meter, epoch, sequence, event_id LIMIT $2";

impl Server {
    /// A tenant's events that nobody has acknowledged, dead letters among them, at most so many.
    ///
    /// # Errors
    /// What the server says.
    pub async fn unsent(&self, database: &str, id: &TenantId, most: u32) -> Result<Vec<LeasedEvent>> {
        let doing = format!("can't read the usage events of tenant {id} that wait");
        let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&id.as_str(), Type::TEXT), (&i64::from(most), Type::INT8)];
        let rows = self.connect(database).await?.query(&doing, UNSENT, &params).await?;
        rows.iter().map(event).collect()
    }

    /// Notes that events were saved, as a relay would that sent them; what a relay has noted
    /// meanwhile stays.
    ///
    /// # Errors
    /// What the server says; then they can be saved once more, which the ledger counts once.
    pub async fn saved(&self, database: &str, id: &TenantId, events: &[LeasedEvent]) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = events.iter().map(|event| literal(&event.id.to_string())).collect();
        let mut script = Script::new();
        script.add(format!("SET LOCAL ROLE {OWNER}")).add(format!(
            "UPDATE tenantry.outbox SET acked_at = clock_timestamp(), dead_at = NULL, lease_until = NULL \
             WHERE acked_at IS NULL AND tenant = {} AND event_id = ANY (ARRAY[{}]::uuid[])",
            literal(id.as_str()),
            ids.join(", ")
        ));
        let doing = format!("can't note that the usage events of tenant {id} are saved");
        self.connect(database).await?.run(&doing, &script).await.map(drop)
    }
}
