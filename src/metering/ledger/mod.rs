//! The ledger: the operator's own database of usage events, what they add up to, and what was
//! corrected. No customer data.

mod types;

pub use types::{
    Adjustment, ClosedPeriod, Directory, LedgerError, LedgerEvent, LedgerMark, LedgerTenant, MeterDefinition,
    MeterState, MissingRange, OpenPeriod, OutboxState, Outcome, Placement, RestoredMeter,
};

use std::time::Duration;

use jiff::Timestamp;

use super::event::OutboxReport;

/// A pool of sessions in the ledger; cheap to clone.
#[derive(Clone)]
pub struct Ledger {}

impl Ledger {
    /// A ledger at a URL, `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE`
    /// (or `sslmode=disable`). Opens nothing yet.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn new(url: &str, connections: usize) -> Result<Self, LedgerError> {
        let _ = (url, connections);
        todo!()
    }

    /// Whether the ledger answers, has this program's version and lets this login do what it must and no more.
    ///
    /// # Errors
    /// What to change.
    pub async fn check(&self) -> Result<(), LedgerError> {
        todo!()
    }

    /// Makes or upgrades the tables as their owner, and gives `login` its rights. Makes the login
    /// with `password` where it isn't there.
    ///
    /// # Errors
    /// What the server says.
    pub async fn migrate(owner_url: &str, login: &str, password: Option<&str>) -> Result<(), LedgerError> {
        let _ = (owner_url, login, password);
        todo!()
    }

    /// Takes events: each is stored and counted once. The outcomes are in the order of the events.
    ///
    /// # Errors
    /// Transient while the ledger is away; then nothing of the batch is known to be stored, and it
    /// can be sent again.
    pub async fn ingest(&self, events: &[LedgerEvent]) -> Result<Vec<Outcome>, LedgerError> {
        let _ = events;
        todo!()
    }

    /// Takes marks.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn mark(&self, marks: &[LedgerMark]) -> Result<(), LedgerError> {
        let _ = marks;
        todo!()
    }

    /// Takes what a relay says of an outbox.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn report(&self, server: &str, database: &str, report: &OutboxReport) -> Result<(), LedgerError> {
        let _ = (server, database, report);
        todo!()
    }

    /// Writes down tenants, and where they are. What is known already is left; a tenant's anchor and
    /// zone never change.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn register(&self, tenants: &[LedgerTenant], placements: &[Placement]) -> Result<(), LedgerError> {
        let _ = (tenants, placements);
        todo!()
    }

    /// Writes down an Application's meters, and forgets those that it no longer has.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn define(&self, application: &str, meters: &[MeterDefinition]) -> Result<(), LedgerError> {
        let _ = (application, meters);
        todo!()
    }

    /// What is known of these tenants, where they are and were, and their Applications' meters.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn directory(&self, tenants: &[String]) -> Result<Directory, LedgerError> {
        let _ = tenants;
        todo!()
    }

    /// The tenant whose own namespace this is.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn tenant_of_namespace(&self, namespace: &str) -> Result<Option<String>, LedgerError> {
        let _ = namespace;
        todo!()
    }

    /// Ready when something in the ledger has changed since the last call, or after `patience`.
    /// Returns the ids of the tenants that changed; all of them the first time, and where that isn't known.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn changed(&self, cursor: &mut Option<u64>, patience: Duration) -> Result<Vec<String>, LedgerError> {
        let _ = (cursor, patience);
        todo!()
    }

    /// Each meter of these tenants now, with the periods that are open and the last 13 that are closed.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn usage(&self, tenants: &[String]) -> Result<Vec<MeterState>, LedgerError> {
        let _ = tenants;
        todo!()
    }

    /// Closes each period that ended before `now` and is complete by a mark taken after its end, or
    /// ended longer than `patience` ago (estimated then). Opens the next. Returns the tenants of which one was closed.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn close_periods(&self, now: Timestamp, patience: Duration) -> Result<Vec<String>, LedgerError> {
        let _ = (now, patience);
        todo!()
    }

    /// Meters whose database was restored to an earlier time and that have no later epoch yet.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn restored(&self) -> Result<Vec<RestoredMeter>, LedgerError> {
        todo!()
    }

    /// What the relays last said of each outbox.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn outboxes(&self) -> Result<Vec<OutboxState>, LedgerError> {
        todo!()
    }

    /// Makes partitions for the next days, and drops those whose time is over: events after 90 days,
    /// roll-ups after 25 months.
    ///
    /// # Errors
    /// As [`Ledger::ingest`].
    pub async fn keep(&self) -> Result<(), LedgerError> {
        todo!()
    }
}
