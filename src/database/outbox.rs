//! The outbox as its relay uses it: with a login that sees nothing else.
//!
//! Rows are leased in batches, fairly over tenants, and every lease is committed before anything
//! is sent: no transaction is open while somebody else is waited for. A lease that runs out is
//! given anew, so an event may be sent twice and is never lost.

use std::{collections::HashSet, time::Duration};

use jiff::Timestamp;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, Row};
use uuid::Uuid;

use super::error::{Error, Result};
use super::identity::TenantId;
use super::relay::RelayAccess;
use super::server::Tls;
use super::tls::{connector, explain};
use crate::event::{Counted, Folded, Usage, UsageKind};

/// How long acknowledged events stay, in days of UTC, so that they can be sent once more after the
/// ledger was restored, and how many days ahead there is room for more.
pub(super) const KEEP_OUTBOX: &str = "SELECT tenantry.keep_outbox(7, 8)";

/// How a session is set up. Rows are found by their key, whatever the server believes about the
/// table: it was small when it was last looked at, and a burst has filled it since. For the same
/// reason a row that was found and locked is changed by its place (ctid), and not by a join.
const SETUP: &str = "SET search_path = pg_catalog; SET statement_timeout = '15s'; SET lock_timeout = '5s';
    SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off; SET jit = off";

/// When what could not be settled is settled once more: another relay that looks for work holds
/// rows for a moment that it does not take, since their leases are newer than its look at them.
const ONCE_MORE: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(160),
    Duration::from_millis(640),
    Duration::from_millis(2_560),
];

/// How often a statement is tried again that met another relay's.
const RACES: usize = 20;

/// How long a session may say nothing. The server ends statements itself before that; this is for
/// one that is gone without a word. Shorter than a lease.
const PATIENCE: Duration = Duration::from_secs(20);

/// The server's clock, and whether this session is the oldest of those in this database that are
/// alive, each of another relay: the one that speaks for the database.
const STANDING: &str = "
    SELECT clock_timestamp(), coalesce((
        SELECT a.pid = pg_backend_pid() FROM pg_stat_activity a
         WHERE a.datname = current_database() AND a.usename = current_user AND a.application_name = $1
           AND (a.pid = pg_backend_pid() OR a.state_change > clock_timestamp() - interval '40 seconds')
         ORDER BY a.backend_start, a.pid LIMIT 1), true)";

/// Leases what waits: of each tenant a share of the batch, in the order of its events. Distinct
/// tenants are found by jumping from one to the next in the index, so that a tenant with a
/// million events costs the others nothing.
const LEASE: &str = "
    WITH RECURSIVE tenant (id) AS (
        (SELECT tenant FROM tenantry.outbox WHERE acked_at IS NULL AND dead_at IS NULL ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT (SELECT o.tenant FROM tenantry.outbox o
                 WHERE o.acked_at IS NULL AND o.dead_at IS NULL AND o.tenant > tenant.id ORDER BY o.tenant LIMIT 1)
          FROM tenant WHERE tenant.id IS NOT NULL
    ), share AS (
        SELECT greatest(1, $1 / greatest(1, count(id))) AS size FROM tenant
    ), due AS MATERIALIZED (
        SELECT d.row FROM share, tenant CROSS JOIN LATERAL (
            SELECT o.ctid AS row FROM tenantry.outbox o
             WHERE o.acked_at IS NULL AND o.dead_at IS NULL AND o.tenant = tenant.id
               AND (o.lease_until IS NULL OR o.lease_until <= clock_timestamp())
             ORDER BY o.meter, o.epoch, o.sequence LIMIT share.size
               FOR UPDATE SKIP LOCKED) AS d
         LIMIT $1
    )
    UPDATE tenantry.outbox o
       SET lease_until = clock_timestamp() + make_interval(secs => $2), attempts = o.attempts + 1
     WHERE o.acked_at IS NULL AND o.dead_at IS NULL AND o.ctid = ANY (ARRAY(SELECT row FROM due))
    RETURNING o.event_id, o.tenant, o.meter, o.epoch, o.sequence, o.kind, o.delta, o.value, o.subject, o.reason,
              o.actor, o.occurred_at, o.period_start, o.first_sequence, o.first_at, o.low, o.high, o.moment::text,
              o.attempts";

/// Settles some of them. What somebody else has locked is passed over, and said.
const SETTLE: &str = "
    WITH told (tenant, meter, epoch, sequence, event, outcome, pause, error) AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $5::uuid[], $6::text[], $7::float8[], $8::text[])
    ), mine AS MATERIALIZED (
        SELECT o.row, told.event, told.outcome, told.pause, told.error
          FROM told CROSS JOIN LATERAL (
            SELECT o.ctid AS row FROM tenantry.outbox o
             WHERE o.acked_at IS NULL AND o.dead_at IS NULL AND o.tenant = told.tenant AND o.meter = told.meter
               AND o.epoch = told.epoch AND o.sequence = told.sequence AND o.event_id = told.event
               FOR UPDATE SKIP LOCKED) AS o
    ), acked AS (
        UPDATE tenantry.outbox o SET acked_at = clock_timestamp(), lease_until = NULL, last_error = NULL
         WHERE o.acked_at IS NULL AND o.dead_at IS NULL
           AND o.ctid = ANY (ARRAY(SELECT row FROM mine WHERE outcome = 'acked'))
    ), others AS (
        UPDATE tenantry.outbox o
           SET (dead_at, lease_until, last_error) = (
                   SELECT CASE WHEN mine.outcome = 'dead' THEN clock_timestamp() END,
                          CASE WHEN mine.outcome = 'later' THEN clock_timestamp() + make_interval(secs => mine.pause) END,
                          left(mine.error, 500)
                     FROM mine WHERE mine.row = o.ctid)
         WHERE o.acked_at IS NULL AND o.dead_at IS NULL
           AND o.ctid = ANY (ARRAY(SELECT row FROM mine WHERE outcome <> 'acked'))
    ), missed AS MATERIALIZED (
        SELECT * FROM told WHERE NOT EXISTS (SELECT FROM mine WHERE mine.event = told.event)
    )
    SELECT event FROM missed
     WHERE EXISTS (SELECT FROM tenantry.outbox o
                    WHERE o.acked_at IS NULL AND o.dead_at IS NULL AND o.tenant = missed.tenant AND o.meter = missed.meter
                      AND o.epoch = missed.epoch AND o.sequence = missed.sequence AND o.event_id = missed.event)";

/// How much waits, at most so many rows counted, and since when; and how much is dead.
const SIZE: &str = "
    SELECT (SELECT count(*) FROM (SELECT FROM tenantry.outbox WHERE acked_at IS NULL AND dead_at IS NULL LIMIT $1) AS o),
           (SELECT min(occurred_at) FROM (SELECT occurred_at FROM tenantry.outbox
                                           WHERE acked_at IS NULL AND dead_at IS NULL LIMIT $1) AS o),
           (SELECT count(*) FROM tenantry.outbox WHERE acked_at IS NULL AND dead_at IS NOT NULL)";

/// What was acknowledged since a moment, to be sent once more; in pages by event id.
const RESEND: &str = "
    SELECT event_id, tenant, meter, epoch, sequence, kind, delta, value, subject, reason, actor, occurred_at,
           period_start, first_sequence, first_at, low, high, moment::text, attempts
      FROM tenantry.outbox WHERE acked_at >= $1 AND event_id > $2 ORDER BY event_id LIMIT $3";

/// An event that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedEvent {
    /// Its id, the same however often it is sent.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: TenantId,
    /// The meter.
    pub meter: String,
    /// By how much the value changed.
    pub delta: i64,
    /// Where in the meter's history that stands.
    pub counted: Counted,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// How often it was leased, this time included.
    pub attempts: i32,
}

impl LeasedEvent {
    /// What it tells, as it is sent.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage { meter: self.meter.clone(), delta: self.delta, counted: Some(self.counted.clone()) }
    }
}

/// What became of an event that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The ledger has it.
    Acknowledged,
    /// To be sent again after a pause.
    Later {
        /// In how long.
        pause: Duration,
        /// Why it was not taken.
        error: String,
    },
    /// It will never be taken: a person has to look.
    Dead {
        /// Why.
        error: String,
    },
}

/// How far a meter is: all its events up to `sequence` are committed, and every other one is later
/// than `as_of`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Whose meter it is.
    pub tenant: TenantId,
    /// The meter.
    pub meter: String,
    /// Its epoch.
    pub epoch: i32,
    /// The last event's sequence; 0 where there is none yet.
    pub sequence: i64,
    /// The value now.
    pub value: i64,
    /// When that was so.
    pub as_of: Timestamp,
}

/// How much waits in an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxSize {
    /// Events that wait, as far as they were counted.
    pub waiting: u64,
    /// When the oldest of those happened.
    pub oldest: Option<Timestamp>,
    /// Events that were refused for good.
    pub dead: u64,
}

/// Which of the relays of a database this session's is, if there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The server's clock.
    pub now: Timestamp,
    /// Whether this one speaks for the database: its session is the oldest. For a moment two may
    /// take themselves for the first.
    pub is_first: bool,
}

/// A session of the relay in one database. After an error it is of no more use.
pub struct Outbox {
    client: Client,
}

impl Outbox {
    /// What the session is called, by which a relay speaks for its database.
    pub const NAME: &str = "tenantry relay";

    /// Logs in. Ends by itself when it is dropped.
    ///
    /// # Errors
    /// Transient where the server can't be reached; permanent where the login is refused.
    pub async fn connect(access: &RelayAccess, tls: &Tls, timeout: Duration) -> Result<Self> {
        Self::connect_as(Self::NAME, access, tls, timeout).await
    }

    /// Logs in under another name: a further session of the same relay.
    ///
    /// # Errors
    /// As [`Outbox::connect`].
    pub async fn connect_as(name: &str, access: &RelayAccess, tls: &Tls, timeout: Duration) -> Result<Self> {
        let silent = |_| Error::transient(format!("{}:{} did not answer within {timeout:?}", access.host, access.port));
        tokio::time::timeout(timeout, Self::log_in(name, access, tls, timeout)).await.map_err(silent)?
    }

    async fn log_in(name: &str, access: &RelayAccess, tls: &Tls, timeout: Duration) -> Result<Self> {
        let connector = connector(tls)?;
        let mut config = Config::new();
        config
            .host(&access.host)
            .port(access.port)
            .dbname(&access.database)
            .user(&access.user)
            .password(access.password.expose())
            .ssl_mode(connector.mode())
            .connect_timeout(timeout)
            .application_name(name);
        let client = connector.connect(&config).await;
        let client = client.map_err(|error| explain(&access.host, access.port, &access.user, &error))?;
        client.batch_execute(SETUP).await.map_err(|error| failed("can't prepare the session", &error))?;
        Ok(Self { client })
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Takes up to `batch` events for as long as `lease`, fairly over the tenants that have any.
    /// Fewer than `batch` does not mean that there are no more.
    ///
    /// # Errors
    /// What the server says.
    pub async fn lease(&self, batch: u32, lease: Duration) -> Result<Vec<LeasedEvent>> {
        let (batch, lease) = (i64::from(batch), lease.as_secs_f64());
        let rows =
            self.query("can't fetch usage events", LEASE, &[(&batch, Type::INT8), (&lease, Type::FLOAT8)]).await?;
        rows.iter().map(event).collect()
    }

    /// Notes what became of events that were leased. What another relay has settled meanwhile is
    /// left as it is.
    ///
    /// # Errors
    /// What the server says; then all of them are sent again when their leases have run out.
    pub async fn settle(&self, outcomes: &[(&LeasedEvent, Settlement)]) -> Result<()> {
        // One order for all: two relays whose leases overlap never wait for each other.
        let mut left: Vec<_> = outcomes.iter().collect();
        left.sort_by(|(one, _), (other, _)| key(one).cmp(&key(other)));
        for pause in std::iter::once(Duration::ZERO).chain(ONCE_MORE) {
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(pause).await;
            let passed_over = self.settle_free(&left).await?;
            left.retain(|(event, _)| passed_over.contains(&event.id));
        }
        Ok(())
    }

    /// Notes it of those that nobody else holds at this moment; which ones somebody does.
    async fn settle_free(&self, outcomes: &[&(&LeasedEvent, Settlement)]) -> Result<HashSet<Uuid>> {
        let events = || outcomes.iter().map(|(event, _)| event);
        let tenants: Vec<&str> = events().map(|event| event.tenant.as_str()).collect();
        let meters: Vec<&str> = events().map(|event| event.meter.as_str()).collect();
        let epochs: Vec<i32> = events().map(|event| event.counted.epoch).collect();
        let sequences: Vec<i64> = events().map(|event| event.counted.sequence).collect();
        let ids: Vec<Uuid> = events().map(|event| event.id).collect();
        let (mut names, mut pauses, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for (_, outcome) in outcomes {
            let (name, pause, error) = match outcome {
                Settlement::Acknowledged => ("acked", 0.0, None),
                Settlement::Later { pause, error } => ("later", pause.as_secs_f64(), Some(error.as_str())),
                Settlement::Dead { error } => ("dead", 0.0, Some(error.as_str())),
            };
            names.push(name);
            pauses.push(pause);
            errors.push(error);
        }
        let passed_over = self
            .query(
                "can't settle usage events",
                SETTLE,
                &[
                    (&tenants, Type::TEXT_ARRAY),
                    (&meters, Type::TEXT_ARRAY),
                    (&epochs, Type::INT4_ARRAY),
                    (&sequences, Type::INT8_ARRAY),
                    (&ids, Type::UUID_ARRAY),
                    (&names, Type::TEXT_ARRAY),
                    (&pauses, Type::FLOAT8_ARRAY),
                    (&errors, Type::TEXT_ARRAY),
                ],
            )
            .await?;
        Ok(passed_over.iter().map(|row| row.get(0)).collect())
    }

    /// How far the meters are that changed since a moment, or all of them.
    ///
    /// # Errors
    /// What the server says.
    pub async fn progress(&self, since: Option<Timestamp>) -> Result<Vec<Mark>> {
        let sql = "SELECT tenant, meter, epoch, sequence, value, as_of FROM tenantry.progress($1)";
        let rows = self.query("can't read how far the meters are", sql, &[(&since, Type::TIMESTAMPTZ)]).await?;
        rows.iter()
            .map(|row| {
                Ok(Mark {
                    tenant: row.get::<_, &str>(0).parse()?,
                    meter: row.get(1),
                    epoch: row.get(2),
                    sequence: row.get(3),
                    value: row.get(4),
                    as_of: row.get(5),
                })
            })
            .collect()
    }

    /// How much waits; no more than `most` events are counted.
    ///
    /// # Errors
    /// What the server says.
    pub async fn size(&self, most: u32) -> Result<OutboxSize> {
        let rows = self.query("can't measure the outbox", SIZE, &[(&i64::from(most), Type::INT8)]).await?;
        let row = rows.first().ok_or_else(|| Error::transient("the outbox did not say how much waits"))?;
        let natural = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
        Ok(OutboxSize { waiting: natural(0), oldest: row.get(1), dead: natural(2) })
    }

    /// How many events were refused for good, by tenant; of at most 1,000 tenants.
    ///
    /// # Errors
    /// What the server says.
    pub async fn dead_by_tenant(&self) -> Result<Vec<(TenantId, u64)>> {
        let sql = "SELECT tenant, count(*) FROM tenantry.outbox WHERE acked_at IS NULL AND dead_at IS NOT NULL
                    GROUP BY tenant ORDER BY tenant LIMIT 1000";
        let rows = self.query("can't count dead letters", sql, &[]).await?;
        let one = |row: &Row| Ok((row.get::<_, &str>(0).parse()?, u64::try_from(row.get::<_, i64>(1)).unwrap_or(0)));
        rows.iter().map(one).collect()
    }

    /// Whether this session speaks for the database: of several relays one does.
    ///
    /// # Errors
    /// What the server says.
    pub async fn standing(&self) -> Result<Standing> {
        let rows = self.query("can't look for other relays", STANDING, &[(&Self::NAME, Type::TEXT)]).await?;
        let row = rows.first().ok_or_else(|| Error::transient("the server did not tell its time"))?;
        Ok(Standing { now: row.get(0), is_first: row.get(1) })
    }

    /// What was acknowledged since a moment, in pages: those whose ids come after `after`.
    ///
    /// # Errors
    /// What the server says.
    pub async fn acknowledged(&self, since: Timestamp, after: Uuid, page: u32) -> Result<Vec<LeasedEvent>> {
        let page = i64::from(page);
        let params: [(&(dyn ToSql + Sync), Type); 3] =
            [(&since, Type::TIMESTAMPTZ), (&after, Type::UUID), (&page, Type::INT8)];
        let rows = self.query("can't read what was sent", RESEND, &params).await?;
        rows.iter().map(event).collect()
    }

    async fn query(&self, doing: &str, sql: &str, params: &[(&(dyn ToSql + Sync), Type)]) -> Result<Vec<Row>> {
        let mut races = 0;
        loop {
            let answer = tokio::time::timeout(PATIENCE, self.client.query_typed(sql, params)).await;
            match answer.map_err(|_| Error::transient(format!("{doing}: the server no longer answers")))? {
                // A row that this statement was about to lock has just been acknowledged by
                // another relay, and so moved: looked at anew, it is not there.
                Err(error) if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) && races < RACES => races += 1,
                answer => return answer.map_err(|error| failed(doing, &error)),
            }
        }
    }
}

fn failed(doing: &str, error: &tokio_postgres::Error) -> Error {
    Error::from_postgres(doing, error)
}

fn key(event: &LeasedEvent) -> (&str, &str, i32, i64) {
    (event.tenant.as_str(), &event.meter, event.counted.epoch, event.counted.sequence)
}

pub(super) fn event(row: &Row) -> Result<LeasedEvent> {
    let kind: &str = row.get(5);
    let kind = UsageKind::parse(kind).ok_or_else(|| {
        Error::permanent(format!("a usage event is of kind {kind:?}; was it written by a newer version?"))
    })?;
    let folded = row.get::<_, Option<i64>>(13).map(|first_sequence| Folded {
        first_sequence,
        first_at: row.get(14),
        low: row.get(15),
        high: row.get(16),
        moment: row.get(17),
    });
    Ok(LeasedEvent {
        id: row.get(0),
        tenant: row.get::<_, &str>(1).parse()?,
        meter: row.get(2),
        delta: row.get(6),
        counted: Counted {
            kind,
            epoch: row.get(3),
            sequence: row.get(4),
            value: row.get(7),
            subject: row.get(8),
            reason: row.get(9),
            actor: row.get(10),
            period_start: row.get(12),
            folded,
        },
        occurred_at: row.get(11),
        attempts: row.get(18),
    })
}
