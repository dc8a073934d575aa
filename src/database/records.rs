//! The ownership records, read.

use jiff::Timestamp;
use serde::Deserialize;
use std::time::Duration;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::connection::Connection;
use super::error::{Error, Result};
use super::identity::{PasswordDigest, Slot, TenantId};
use super::server::Server;
use super::types::{AppliedMigration, LoginRecord, LoginState, TenantRecord, TenantSettings, TenantState};

const RECORDS: &str = "
    SELECT t.id, t.name, t.uid, t.cluster_id, t.application, t.state, t.drop_after, t.plan, t.plan_revision,
           t.suspended, t.connection_limit, t.temp_file_limit_kb, t.statement_timeout_ms, t.max_transaction_ms,
           t.period_anchor, t.time_zone,
           (SELECT jsonb_agg(jsonb_build_object('slot', l.slot, 'name', l.name, 'state', l.state,
                                                'digest', encode(l.digest, 'hex'), 'since', l.since) ORDER BY l.slot)
              FROM tenantry.login l WHERE l.tenant = t.id AND l.slot <> 'm' AND l.state <> 'Closed'),
           (SELECT jsonb_agg(jsonb_build_object('name', m.name, 'checksum', m.checksum) ORDER BY m.place)
              FROM tenantry.migration m WHERE m.tenant = t.id),
           CASE WHEN t.state = 'Dropped' THEN
               (SELECT count(*) FROM tenantry.outbox o
                 WHERE o.tenant = t.id AND o.acked_at IS NULL AND o.dead_at IS NULL) END
      FROM tenantry.tenant t WHERE $1::text IS NULL OR t.id = $1 ORDER BY t.id";

impl Server {
    /// All ownership records of a database, in one statement.
    pub async fn records(&self, database: &str) -> Result<Vec<TenantRecord>> {
        read(&mut self.connect(database).await?, None).await
    }

    /// One tenant's record.
    pub async fn record(&self, database: &str, id: &TenantId) -> Result<Option<TenantRecord>> {
        read_one(&mut self.connect(database).await?, id).await
    }
}

/// One tenant's record, on a connection that is at hand.
pub(super) async fn read_one(connection: &mut Connection, id: &TenantId) -> Result<Option<TenantRecord>> {
    Ok(read(connection, Some(id)).await?.pop())
}

/// The record of a tenant that is in use.
pub(super) async fn read_live(connection: &mut Connection, id: &TenantId) -> Result<TenantRecord> {
    match read_one(connection, id).await? {
        Some(record) if record.state == TenantState::Live => Ok(record),
        Some(record) => Err(Error::permanent(format!("tenant {id} is not in use: it is {}", record.state.as_str()))),
        None => Err(Error::permanent(format!("tenant {id} has no record in this database"))),
    }
}

async fn read(connection: &mut Connection, id: Option<&TenantId>) -> Result<Vec<TenantRecord>> {
    let id = id.map(TenantId::as_str);
    let made = connection
        .query_each("can't read the tenants' records", RECORDS, &[(&id, Type::TEXT)], |row| record(&row))
        .await?;
    made.into_iter().collect()
}

#[derive(Deserialize)]
struct LoginRow {
    slot: String,
    name: String,
    state: String,
    digest: Option<String>,
    since: String,
}

#[derive(Deserialize)]
struct MigrationRow {
    name: String,
    checksum: String,
}

fn record(row: &Row) -> Result<TenantRecord> {
    let id: TenantId = row.get::<_, &str>(0).parse()?;
    let unreadable = |what: &str| {
        Error::permanent(format!("the record of {id} can't be read: {what}; was it written by a newer version?"))
    };
    let state = match row.get(5) {
        "Live" => TenantState::Live,
        "Retained" => TenantState::Retained { drop_after: row.get(6) },
        "Dropping" => TenantState::Dropping,
        "Dropped" => TenantState::Dropped { unsent: natural(row.get::<_, Option<i64>>(18).unwrap_or(0)) },
        other => return Err(unreadable(&format!("state {other:?}"))),
    };
    let schema = match state {
        TenantState::Live => id.schema().to_owned(),
        _ => id.retained_schema(),
    };
    let millis = |number: Option<i64>| number.map(|number| Duration::from_millis(natural(number)));
    let settings = TenantSettings {
        plan: row.get(7),
        plan_revision: row.get(8),
        suspended: row.get(9),
        connection_limit: u32::try_from(row.get::<_, i32>(10)).unwrap_or(0),
        temp_file_limit: row.get::<_, Option<i64>>(11).map(|kilobytes| natural(kilobytes) * 1024),
        statement_timeout: millis(row.get(12)),
        max_transaction: millis(row.get(13)),
        period_anchor: row.get(14),
        time_zone: row.get(15),
    };
    let logins = match row.get::<_, Option<serde_json::Value>>(16) {
        Some(rows) => serde_json::from_value::<Vec<LoginRow>>(rows)
            .map_err(|error| unreadable(&error.to_string()))?
            .into_iter()
            .map(|row| login(row).ok_or_else(|| unreadable("a login")))
            .collect::<Result<_>>()?,
        None => Vec::new(),
    };
    let migrations = match row.get::<_, Option<serde_json::Value>>(17) {
        Some(rows) => serde_json::from_value::<Vec<MigrationRow>>(rows)
            .map_err(|error| unreadable(&error.to_string()))?
            .into_iter()
            .map(|row| AppliedMigration { name: row.name, checksum: row.checksum })
            .collect(),
        None => [].into(),
    };
    Ok(TenantRecord {
        name: row.get(1),
        uid: row.get(2),
        cluster_id: row.get(3),
        application: row.get(4),
        state,
        schema,
        settings,
        logins,
        migrations,
        id,
    })
}

fn login(row: LoginRow) -> Option<LoginRecord> {
    let digest = data_encoding::HEXLOWER.decode(row.digest?.as_bytes()).ok()?;
    Some(LoginRecord {
        slot: Slot::from_letter(&row.slot)?,
        username: row.name,
        state: match row.state.as_str() {
            "Pending" => LoginState::Pending,
            "Current" => LoginState::Current,
            "Closing" => LoginState::Closing,
            _ => return None,
        },
        digest: PasswordDigest(digest.try_into().ok()?),
        since: row.since.parse::<Timestamp>().ok()?,
    })
}

fn natural(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

impl TenantState {
    /// The state's name, as in the record.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Live => "Live",
            Self::Retained { .. } => "Retained",
            Self::Dropping => "Dropping",
            Self::Dropped { .. } => "Dropped",
        }
    }
}
