//! The watchdog: no tenant holds a transaction open for long.

use std::time::Duration;

use super::error::Result;
use super::server::Server;
use super::types::{EndReason, EndedSession};

/// What a tenant's transactions may last stands in its logins' comments, which are the server's and
/// not a database's: so one statement sees all. A tenant can't change a comment of its role.
const ROUND: &str = r#"
    WITH session AS MATERIALIZED (
        SELECT a.pid, a.usename::text AS login, a.datname::text AS database, r.rolcanlogin,
               substring(c.comment from '"tenant":"(t_[a-z2-7]{12})"') AS tenant,
               extract(epoch FROM clock_timestamp() - a.xact_start) * 1000 AS age,
               substring(c.comment from '"max_transaction_ms":(\d{1,15})')::bigint AS longest
          FROM pg_stat_activity a
          JOIN pg_roles r ON r.oid = a.usesysid
         CROSS JOIN LATERAL (SELECT shobj_description(r.oid, 'pg_authid') AS comment) AS c
         WHERE c.comment LIKE 'tenantry {%'
    ), ended AS MATERIALIZED (
        SELECT s.*, pg_terminate_backend(s.pid) FROM session s
         WHERE s.login LIKE s.tenant || '\_%' AND (s.age > s.longest OR NOT s.rolcanlogin)
    )
    SELECT tenant, login, coalesce(database, ''), age::float8, age > longest IS TRUE FROM ended"#;

impl Server {
    /// One statement for the whole server: ends tenants' sessions whose transaction is older than
    /// their `max_transaction`, or whose login was closed.
    pub async fn watchdog(&self) -> Result<Vec<EndedSession>> {
        let rows = self.admin().await?.query("can't watch over transactions", ROUND, &[]).await?;
        rows.iter()
            .map(|row| {
                let reason = if row.get(4) {
                    let milliseconds: f64 = row.get(3);
                    EndReason::LongTransaction(Duration::try_from_secs_f64(milliseconds / 1000.0).unwrap_or_default())
                } else {
                    EndReason::LoginClosed
                };
                Ok(EndedSession {
                    id: row.get::<_, &str>(0).parse()?,
                    username: row.get(1),
                    database: row.get(2),
                    reason,
                })
            })
            .collect()
    }
}
