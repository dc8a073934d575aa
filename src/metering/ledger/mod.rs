//! The ledger: the operator's own database of usage events, what they add up to, and what was
//! corrected. No customer data.

mod changes;
mod ingest;
mod migrate;
mod periods;
mod read;
mod session;
mod types;

pub use changes::Cursor;
pub use types::{
    Adjustment, ClosedPeriod, DeadEvent, Directory, LedgerError, LedgerEvent, LedgerMark, LedgerTenant,
    MeterDefinition, MeterState, MeteredTenant, MissingRange, OpenPeriod, OutboxState, Outcome, Placement, Quarantined,
    RestoredMeter,
};

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio_postgres::types::Type;

use self::{
    changes::Notices,
    session::{Address, Param, Sessions},
};
use super::event::OutboxReport;

/// How long events are kept, in days: for as long an event that comes again is known again.
pub const EVENTS_KEPT_DAYS: u16 = 90;

/// How old an event may be at most to have a place, in days.
pub const EVENTS_TAKEN_DAYS: u16 = 35;

/// A pool of sessions in the ledger; cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

struct Inner {
    sessions: Sessions,
    notices: Notices,
}

impl Ledger {
    /// A ledger at a URL, `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE`
    /// (or `sslmode=disable`). Opens nothing yet.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn new(url: &str, connections: usize) -> Result<Self, LedgerError> {
        let sessions = Sessions::new(Address::parse(url)?, connections);
        Ok(Self { inner: Arc::new(Inner { sessions, notices: Notices::new() }) })
    }

    /// Whether the ledger answers, has this program's version and lets this login do what it must and no more.
    ///
    /// # Errors
    /// What to change.
    pub async fn check(&self) -> Result<(), LedgerError> {
        migrate::check(&self.inner.sessions).await
    }

    /// Makes or upgrades the tables as their owner, and gives `login` its rights. Makes the login
    /// with `password` where it isn't there.
    ///
    /// # Errors
    /// What the server says.
    pub async fn migrate(owner_url: &str, login: &str, password: Option<&str>) -> Result<(), LedgerError> {
        migrate::migrate(owner_url, login, password).await
    }

    /// The same for the login of the operator's own URL.
    ///
    /// # Errors
    /// As [`Ledger::migrate`].
    pub async fn migrate_for(owner_url: &str, url: &str) -> Result<(), LedgerError> {
        let address = Address::parse(url)?;
        migrate::migrate(owner_url, address.user(), address.password().as_deref()).await
    }

    /// Takes events: each is stored and counted once. The outcomes are in the order of the events.
    ///
    /// # Errors
    /// Transient while the ledger is away; then nothing of the batch is known to be stored, and it
    /// can be sent again.
    pub async fn ingest(&self, events: &[LedgerEvent]) -> Result<Vec<Outcome>, LedgerError> {
        ingest::ingest(&self.inner.sessions, events).await
    }

    /// Takes marks.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn mark(&self, marks: &[LedgerMark]) -> Result<(), LedgerError> {
        ingest::mark(&self.inner.sessions, marks).await
    }

    /// Takes what a relay says of an outbox.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn report(&self, server: &str, database: &str, report: &OutboxReport) -> Result<(), LedgerError> {
        let waiting = i64::try_from(report.waiting).unwrap_or(i64::MAX);
        let dead = serde_json::to_value(&report.dead).unwrap_or_default();
        let params: [Param<'_>; 5] = [
            (&server, Type::TEXT),
            (&database, Type::TEXT),
            (&waiting, Type::INT8),
            (&report.oldest, Type::TIMESTAMPTZ),
            (&dead, Type::JSONB),
        ];
        self.write("can't store the report on an outbox", "SELECT ledger.report($1, $2, $3, $4, $5)", &params).await
    }

    /// Writes down tenants, and where they are. What is known already is left; a tenant's anchor and
    /// zone never change.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn register(&self, tenants: &[LedgerTenant], placements: &[Placement]) -> Result<(), LedgerError> {
        let column = |field: fn(&LedgerTenant) -> &str| tenants.iter().map(field).collect::<Vec<_>>();
        let (ids, uids, names) = (column(|t| &t.id), column(|t| &t.uid), column(|t| &t.name));
        let (applications, plans, zones) = (column(|t| &t.application), column(|t| &t.plan), column(|t| &t.time_zone));
        let namespaces: Vec<Option<&str>> = tenants.iter().map(|tenant| tenant.namespace.as_deref()).collect();
        let anchors: Vec<Timestamp> = tenants.iter().map(|tenant| tenant.anchor).collect();
        let place = |field: fn(&Placement) -> &str| placements.iter().map(field).collect::<Vec<_>>();
        let (whose, servers, databases) = (place(|p| &p.tenant), place(|p| &p.server), place(|p| &p.database));
        let params: [Param<'_>; 11] = [
            (&ids, Type::TEXT_ARRAY),
            (&uids, Type::TEXT_ARRAY),
            (&names, Type::TEXT_ARRAY),
            (&applications, Type::TEXT_ARRAY),
            (&plans, Type::TEXT_ARRAY),
            (&namespaces, Type::TEXT_ARRAY),
            (&anchors, Type::TIMESTAMPTZ_ARRAY),
            (&zones, Type::TEXT_ARRAY),
            (&whose, Type::TEXT_ARRAY),
            (&servers, Type::TEXT_ARRAY),
            (&databases, Type::TEXT_ARRAY),
        ];
        let sql = "SELECT ledger.register($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
        self.write("can't write down tenants", sql, &params).await
    }

    /// Notes that tenants are gone: their data is dropped, or they are elsewhere. Their events are still taken; no
    /// further usage periods of theirs begin. Who comes back is registered again.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn depart(&self, tenants: &[String]) -> Result<(), LedgerError> {
        self.write("can't note that tenants are gone", "SELECT ledger.depart($1)", &[(&tenants, Type::TEXT_ARRAY)])
            .await
    }

    /// Writes down an Application's meters, and forgets those that it no longer has.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn define(&self, application: &str, meters: &[MeterDefinition]) -> Result<(), LedgerError> {
        let names: Vec<&str> = meters.iter().map(|meter| meter.name.as_str()).collect();
        let kinds: Vec<&str> = meters.iter().map(|meter| if meter.is_total { "Total" } else { "Level" }).collect();
        let sources: Vec<&str> = meters.iter().map(|meter| if meter.from_api { "Api" } else { "Database" }).collect();
        let params: [Param<'_>; 4] = [
            (&application, Type::TEXT),
            (&names, Type::TEXT_ARRAY),
            (&kinds, Type::TEXT_ARRAY),
            (&sources, Type::TEXT_ARRAY),
        ];
        self.write("can't write down meters", "SELECT ledger.define($1, $2, $3, $4)", &params).await
    }

    /// What is known of these tenants, where they are and were, and their Applications' meters.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn directory(&self, tenants: &[String]) -> Result<Directory, LedgerError> {
        read::directory(&self.inner.sessions, tenants).await
    }

    /// The tenant with a name: the one that is there, or of those that are gone the last.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn tenant_named(&self, name: &str) -> Result<Option<MeteredTenant>, LedgerError> {
        read::tenant_named(&self.inner.sessions, name).await
    }

    /// The tenant whose own namespace this is.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn tenant_of_namespace(&self, namespace: &str) -> Result<Option<String>, LedgerError> {
        read::tenant_of_namespace(&self.inner.sessions, namespace).await
    }

    /// Ready when something in the ledger has changed since the last call, or after `patience`.
    /// Returns the ids of the tenants that changed; all of them the first time, and where that isn't known.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn changed(&self, cursor: &mut Option<Cursor>, patience: Duration) -> Result<Vec<String>, LedgerError> {
        changes::changed(&self.inner.sessions, &self.inner.notices, cursor, patience).await
    }

    /// Each meter of these tenants now, with the periods that are open and the last 13 that are closed.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn usage(&self, tenants: &[String]) -> Result<Vec<MeterState>, LedgerError> {
        read::usage(&self.inner.sessions, tenants).await
    }

    /// Closes each period that ended before `now` and is complete by a mark taken after its end, or
    /// ended longer than `patience` ago (estimated then). Opens the next. Returns the tenants of which one was closed.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn close_periods(&self, now: Timestamp, patience: Duration) -> Result<Vec<String>, LedgerError> {
        periods::close(&self.inner.sessions, now, patience).await
    }

    /// Meters whose database was restored to an earlier time and that have no later epoch yet.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn restored(&self) -> Result<Vec<RestoredMeter>, LedgerError> {
        read::restored(&self.inner.sessions).await
    }

    /// What the relays last said of each outbox.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn outboxes(&self) -> Result<Vec<OutboxState>, LedgerError> {
        read::outboxes(&self.inner.sessions).await
    }

    /// How many events of these tenants were put aside, by why.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn quarantined(&self, tenants: &[String]) -> Result<Vec<Quarantined>, LedgerError> {
        read::quarantined(&self.inner.sessions, tenants).await
    }

    /// Saves events that were refused for good in the quarantine, before their database is dropped. Once, however
    /// often it is called.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn save_dead(&self, events: &[DeadEvent]) -> Result<(), LedgerError> {
        ingest::set_aside(&self.inner.sessions, events, "dead").await
    }

    /// Makes partitions for the next days, and drops those whose time is over: events after 90 days,
    /// roll-ups after 25 months.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn keep(&self) -> Result<(), LedgerError> {
        ingest::keep(&self.inner.sessions).await
    }

    async fn write(&self, doing: &str, sql: &str, params: &[Param<'_>]) -> Result<(), LedgerError> {
        self.inner.sessions.query(doing, sql, params).await.map(drop)
    }
}
