//! What the relay needs of each database: a login that sees the outbox and nothing else. And what
//! the operator does for the outbox: room for the next days, folding, dead letters, corrections.

use jiff::Timestamp;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::error::{Error, Result};
use super::identity::{Password, PasswordDigest, TenantId};
use super::outbox::KEEP_OUTBOX;
use super::server::{OWNER, Server};
use super::sql::{Script, ident, literal};
use super::tenants::end_sessions;
use super::types::validate_database_name;

/// How many sessions the relays of one database have together.
const CONNECTIONS: u32 = 4;

/// What the relay's login may do, as one row: whether it is there, its password's digest, and
/// whether its rights are exactly those that it needs.
const ACCESS: &str = "
    SELECT r.oid IS NOT NULL, (SELECT l.digest FROM tenantry.relay l),
           coalesce(r.rolcanlogin AND NOT (r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls)
             AND has_database_privilege(r.oid, current_database(), 'CONNECT')
             AND has_schema_privilege(r.oid, 'tenantry', 'USAGE')
             AND has_table_privilege(r.oid, 'tenantry.outbox', 'SELECT')
             AND NOT EXISTS (SELECT FROM unnest(ARRAY['lease_until', 'attempts', 'last_error', 'dead_at', 'acked_at']) AS c
                              WHERE NOT has_column_privilege(r.oid, 'tenantry.outbox', c, 'UPDATE'))
             AND has_function_privilege(r.oid, 'tenantry.progress(timestamptz)', 'EXECUTE'), false)
      FROM (VALUES (1)) AS one LEFT JOIN pg_roles r ON r.rolname = $1";

/// The relay's way into a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayAccess {
    /// Host.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The database.
    pub database: String,
    /// The login.
    pub user: String,
    /// Its password.
    pub password: Password,
}

/// A usage event that was refused for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The event's id.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: TenantId,
    /// The meter.
    pub meter: String,
    /// Its epoch.
    pub epoch: i32,
    /// Its sequence.
    pub sequence: i64,
    /// By how much the value changed.
    pub delta: i64,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// When it was given up.
    pub dead_at: Timestamp,
    /// Why.
    pub error: String,
}

/// The role that relays of a database log in as.
#[must_use]
pub fn relay_role(database: &str) -> String {
    format!("{database}_relay")
}

impl Server {
    /// Sees to it that the relay's login is there with exactly its rights. Returns a new way in
    /// where `known`, the password that the relay has, isn't the login's; else nothing is issued.
    /// At rest it costs one statement.
    pub async fn ensure_relay(&self, database: &str, known: Option<&PasswordDigest>) -> Result<Option<RelayAccess>> {
        validate_database_name(database)?;
        let facts = self.facts().await?;
        let role = relay_role(database);
        let doing = "can't make the relay's login";
        let mut connection = self.connect(database).await?;
        let rows = connection.query(doing, ACCESS, &[(&role, Type::TEXT)]).await?;
        let row = rows.first().ok_or_else(|| Error::transient("the database has just gone"))?;
        let (there, digest, fits): (bool, Option<Vec<u8>>, bool) = (row.get(0), row.get(1), row.get(2));
        let same = known.is_some_and(|known| digest.as_deref() == Some(known.0.as_slice()));
        if there && fits && same {
            return Ok(None);
        }
        let name = ident(&role);
        let password = (!same || !there).then(Password::random);
        let mut script = Script::new();
        if !there {
            script
                .add(format!("CREATE ROLE {name} NOLOGIN CONNECTION LIMIT {CONNECTIONS}"))
                .add_some(facts.keep(&name))
                .add_some(facts.oversee(&name));
        }
        if let Some(password) = &password {
            script.add(format!("ALTER ROLE {name} LOGIN PASSWORD {}", literal(&password.verifier_for_us())));
        } else {
            script.add(format!("ALTER ROLE {name} LOGIN"));
        }
        script
            .add(format!("SET LOCAL ROLE {OWNER}"))
            .add(format!("GRANT CONNECT ON DATABASE {} TO {name}", ident(database)))
            .add(format!("GRANT USAGE ON SCHEMA tenantry TO {name}"))
            .add(format!("GRANT SELECT ON tenantry.outbox TO {name}"))
            .add(format!(
                "GRANT UPDATE (lease_until, attempts, last_error, dead_at, acked_at) ON tenantry.outbox TO {name}"
            ))
            .add(format!("GRANT EXECUTE ON FUNCTION tenantry.progress(timestamptz) TO {name}"));
        if let Some(password) = &password {
            script.add(format!(
                "INSERT INTO tenantry.relay (digest) VALUES ('\\x{0}') ON CONFLICT (only_row) DO UPDATE SET digest = excluded.digest",
                data_encoding::HEXLOWER.encode(&password.digest().0)
            ));
        }
        connection.run(doing, &script).await?;
        let endpoint = self.address();
        Ok(password.map(|password| RelayAccess {
            host: endpoint.host,
            port: endpoint.port,
            database: database.to_owned(),
            user: role,
            password,
        }))
    }

    /// Makes room for the acknowledged events of the next days, and drops the days that are over.
    pub async fn keep_outbox(&self, database: &str) -> Result<()> {
        let mut script = Script::new();
        script.add(format!("SET LOCAL ROLE {OWNER}")).add(KEEP_OUTBOX);
        self.connect(database).await?.run("can't keep the outbox", &script).await.map(drop)
    }

    /// Folds what waits of each tenant beyond so many events, where it was never fetched. Returns
    /// how many events became fewer, by tenant.
    pub async fn fold_outbox(&self, database: &str, beyond: u32) -> Result<Vec<(TenantId, u64)>> {
        let doing = "can't fold the outbox";
        let mut connection = self.connect(database).await?;
        let most = i64::from(beyond);
        let rows = connection
            .query(
                doing,
                "SELECT tenant, count(*) FROM tenantry.outbox WHERE acked_at IS NULL AND dead_at IS NULL
                  GROUP BY tenant HAVING count(*) > $1 ORDER BY tenant",
                &[(&most, Type::INT8)],
            )
            .await?;
        let mut folded = Vec::new();
        for row in &rows {
            let id: TenantId = row.get::<_, &str>(0).parse()?;
            let mut script = Script::new();
            script
                .add(format!("SET LOCAL ROLE {OWNER}"))
                // What is newest waits for nobody's folding: a relay may come for it any moment.
                .add(format!("SELECT tenantry.fold_outbox({}, {})", literal(id.as_str()), most / 2));
            let fewer = connection.run(doing, &script).await?;
            let fewer = fewer.last().and_then(|row| row.get(0)?.parse().ok()).unwrap_or(0);
            if fewer > 0 {
                folded.push((id, fewer));
            }
        }
        Ok(folded)
    }

    /// The events of a database that were refused for good, the oldest first, at most so many.
    pub async fn dead_letters(&self, database: &str, most: u32) -> Result<Vec<DeadLetter>> {
        let rows = self
            .connect(database)
            .await?
            .query(
                "can't list dead letters",
                "SELECT event_id, tenant, meter, epoch, sequence, delta, occurred_at, dead_at, coalesce(last_error, '')
                   FROM tenantry.outbox WHERE acked_at IS NULL AND dead_at IS NOT NULL ORDER BY dead_at, event_id LIMIT $1",
                &[(&i64::from(most), Type::INT8)],
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(DeadLetter {
                    id: row.get(0),
                    tenant: row.get::<_, &str>(1).parse()?,
                    meter: row.get(2),
                    epoch: row.get(3),
                    sequence: row.get(4),
                    delta: row.get(5),
                    occurred_at: row.get(6),
                    dead_at: row.get(7),
                    error: row.get(8),
                })
            })
            .collect()
    }

    /// Lets dead letters be sent again: those with these ids, or all. Returns how many.
    pub async fn redrive(&self, database: &str, ids: Option<&[Uuid]>) -> Result<u64> {
        let which = match ids {
            Some(ids) => format!(
                "event_id = ANY (ARRAY[{}]::uuid[])",
                ids.iter().map(|id| literal(&id.to_string())).collect::<Vec<_>>().join(", ")
            ),
            None => "true".to_owned(),
        };
        let mut script = Script::new();
        script.add(format!("SET LOCAL ROLE {OWNER}")).add(format!(
            "WITH again AS (UPDATE tenantry.outbox SET dead_at = NULL, lease_until = NULL, attempts = 0
                             WHERE acked_at IS NULL AND dead_at IS NOT NULL AND {which} RETURNING 1)
             SELECT count(*) FROM again"
        ));
        let rows = self.connect(database).await?.run("can't send dead letters again", &script).await?;
        Ok(rows.last().and_then(|row| row.get(0)?.parse().ok()).unwrap_or(0))
    }

    /// Lets the relay send once more what was acknowledged since a moment: the ledger was restored
    /// to an earlier time. At most `page` events at a time, so that nobody waits for long. Returns
    /// how many. What the ledger has already is a duplicate there, so that this may be done again.
    ///
    /// How often each was leased stays as it is: what somebody may have is never folded.
    pub async fn resend(&self, database: &str, since: Timestamp, page: u32) -> Result<u64> {
        let doing = "can't have usage events sent once more";
        let mut connection = self.connect(database).await?;
        let rows = connection.query(doing, "SELECT clock_timestamp()", &[]).await?;
        let row = rows.first().ok_or_else(|| Error::transient("the database has just gone"))?;
        // What the relay acknowledges meanwhile was sent after the restore.
        let until: Timestamp = row.get(0);
        let mut script = Script::new();
        script.add(format!("SET LOCAL ROLE {OWNER}")).add(format!(
            "WITH page AS MATERIALIZED (
                 SELECT o.acked_at, o.event_id FROM tenantry.outbox o
                  WHERE o.acked_at >= {since} AND o.acked_at < {until} LIMIT {page} FOR UPDATE SKIP LOCKED
             ), again AS (
                 UPDATE tenantry.outbox o SET acked_at = NULL, lease_until = NULL
                   FROM page
                  WHERE o.acked_at >= {since} AND o.acked_at < {until}
                    AND o.acked_at = page.acked_at AND o.event_id = page.event_id
                 RETURNING 1
             )
             SELECT count(*) FROM again",
            since = literal(&since.to_string()),
            until = literal(&until.to_string()),
        ));
        let mut sum = 0;
        loop {
            let rows = connection.run(doing, &script).await?;
            let count: u64 = rows.last().and_then(|row| row.get(0)?.parse().ok()).unwrap_or(0);
            if count == 0 {
                return Ok(sum);
            }
            sum += count;
        }
    }

    /// Corrects what a tenant counted, for a person. Returns the new value.
    ///
    /// # Errors
    /// Permanent, with SQLSTATE `TN002` for a meter that isn't counted in the database and `TN004`
    /// below zero.
    pub async fn correct_usage(
        &self,
        database: &str,
        id: &TenantId,
        meter: &str,
        delta: i64,
        reason: &str,
        actor: &str,
    ) -> Result<i64> {
        let mut script = Script::new();
        script.add(format!("SET LOCAL ROLE {OWNER}")).add(format!(
            "SELECT tenantry.correct_usage({}, {}, {delta}, {}, {})",
            literal(id.as_str()),
            literal(meter),
            literal(reason),
            literal(actor)
        ));
        let doing = format!("can't correct meter {meter:?} of tenant {id}");
        let rows = self.connect(database).await?.run(&doing, &script).await?;
        rows.last()
            .and_then(|row| row.get(0)?.parse().ok())
            .ok_or_else(|| Error::transient(format!("{doing}: no answer")))
    }

    /// Begins a new epoch of a meter whose database was restored to an earlier time, after the last
    /// epoch and value that the ledger knows. Returns false where that was done already.
    pub async fn begin_epoch(
        &self,
        database: &str,
        id: &TenantId,
        meter: &str,
        after: i32,
        known: i64,
    ) -> Result<bool> {
        let mut script = Script::new();
        script.add(format!("SET LOCAL ROLE {OWNER}")).add(format!(
            "SELECT tenantry.begin_epoch({}, {}, {after}, {known})",
            literal(id.as_str()),
            literal(meter)
        ));
        let doing = format!("can't begin a new epoch of meter {meter:?} of tenant {id}");
        let rows = self.connect(database).await?.run(&doing, &script).await?;
        Ok(rows.last().and_then(|row| row.get(0)) == Some("t"))
    }

    /// Puts the relay out of a database that is about to be dropped.
    pub(super) async fn end_relay(&self, database: &str) -> Result<()> {
        let role = relay_role(database);
        let doing = "can't close the relay's login";
        let mut admin = self.admin().await?;
        let there = admin.query(doing, "SELECT FROM pg_roles WHERE rolname = $1", &[(&role, Type::TEXT)]).await?;
        if there.is_empty() {
            return Ok(());
        }
        let mut script = Script::new();
        script.add(format!("ALTER ROLE {} NOLOGIN", ident(&role)));
        admin.run_unfenced(doing, &script).await?;
        end_sessions(&mut admin, &[role]).await.map(drop)
    }
}
