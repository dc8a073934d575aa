//! What goes into the ledger and comes out of it.

use jiff::Timestamp;

use crate::metering::event::{Mark, Usage};

/// Why the ledger did not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// It is away, or busy: try again.
    #[error("the ledger can't be used now: {0}")]
    Away(String),
    /// Somebody has to change something first.
    #[error("the ledger can't be used: {0}")]
    Refused(String),
    /// One of the things that it was given can't be stored, whoever tries: what the server says is
    /// of SQLSTATE class 22 (data), 23 (constraints) or 54 (limits). The others of the batch are
    /// as good as ever.
    #[error("the ledger can't store this: {0}")]
    Unfit(String),
}

/// A tenant as the ledger knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerTenant {
    /// `t_` and 12 characters.
    pub id: String,
    /// UID of the Tenant.
    pub uid: String,
    /// Name of the Tenant.
    pub name: String,
    /// Its Application.
    pub application: String,
    /// Its Plan.
    pub plan: String,
    /// Its own namespace (tiers bridge and dedicated), whose workloads may count meters of source API.
    pub namespace: Option<String>,
    /// Where its first usage period began.
    pub anchor: Timestamp,
    /// The zone in which the others begin.
    pub time_zone: String,
}

/// Where a tenant's database is, or was.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Placement {
    /// The tenant's id.
    pub tenant: String,
    /// The DatabaseServer.
    pub server: String,
    /// The database on it.
    pub database: String,
}

/// A meter that an Application declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterDefinition {
    /// Its name.
    pub name: String,
    /// Whether it starts again at each period (Total) or says how many there are (Level).
    pub is_total: bool,
    /// Whether workloads count it through the API, and not the database.
    pub from_api: bool,
}

/// A tenant whose usage is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeteredTenant {
    /// Who it is.
    pub tenant: LedgerTenant,
    /// Since when there is no such tenant any more.
    pub gone_at: Option<Timestamp>,
    /// The meters of its Application, by name.
    pub meters: Vec<MeterDefinition>,
    /// The DatabaseServer that it is on; nothing where it is gone.
    pub server: Option<String>,
    /// When that server's relay last reported on the tenant's database; where it never did, since
    /// when the tenant is there.
    pub heard_at: Option<Timestamp>,
}

/// What the API has to know to judge events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// The tenants that are known.
    pub tenants: Vec<LedgerTenant>,
    /// Where they are and were.
    pub placements: Vec<Placement>,
    /// The meters of their Applications, by Application.
    pub meters: Vec<(String, MeterDefinition)>,
}

/// A usage event on its way into the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEvent {
    /// The event's id.
    pub id: String,
    /// Its source.
    pub source: String,
    /// Whose it is.
    pub tenant: String,
    /// When it happened.
    pub at: Timestamp,
    /// Start of the usage period that it belongs to.
    pub period_start: Timestamp,
    /// That period's end.
    pub period_end: Timestamp,
    /// What it says.
    pub usage: Usage,
}

/// A mark on its way into the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerMark {
    /// Whose meter it is.
    pub tenant: String,
    /// When that was so.
    pub as_of: Timestamp,
    /// What it says.
    pub mark: Mark,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was counted.
    Accepted,
    /// It was there already.
    Duplicate,
    /// Another event has its id: put aside.
    Conflict,
    /// Another event has its sequence, or its epoch is over: put aside until the new epoch.
    Restored,
}

/// Sequences that are missing below one that arrived, or up to the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingRange {
    /// The epoch.
    pub epoch: i32,
    /// The first that is missing.
    pub first: i64,
    /// The last.
    pub last: i64,
    /// How many are missing in all, which may be in more than one range.
    pub count: i64,
    /// Since when it is known.
    pub since: Timestamp,
}

/// What the events of a period add up to so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenPeriod {
    /// Its start.
    pub start: Timestamp,
    /// Its end.
    pub end: Timestamp,
    /// The value at its start.
    pub opening: i64,
    /// The value after its last event.
    pub closing: i64,
    /// The smallest and the largest value in it.
    pub low: i64,
    /// The largest value in it.
    pub high: i64,
    /// Sum of all deltas.
    pub delta: rust_decimal::Decimal,
    /// Sum of each delta times its time after the start, in microseconds.
    pub moment: rust_decimal::Decimal,
}

/// A period that is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedPeriod {
    /// What it added up to.
    pub sums: OpenPeriod,
    /// Whether it was closed without proof that everything had arrived.
    pub estimated: bool,
    /// What was counted for it since.
    pub adjustments: Vec<Adjustment>,
}

/// Something that was counted for a closed period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adjustment {
    /// By how much.
    pub delta: rust_decimal::Decimal,
    /// late, restore or correction.
    pub reason: String,
}

/// A tenant's meter as the ledger knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterState {
    /// The tenant's id.
    pub tenant: String,
    /// The meter.
    pub meter: String,
    /// The epoch of the last event.
    pub epoch: i32,
    /// Its sequence.
    pub sequence: i64,
    /// The value after it; of a Total what was used in the newest period, 0 where that has no event yet.
    pub value: i64,
    /// When that was; none before the first event.
    pub occurred_at: Option<Timestamp>,
    /// When the database last said how far it is.
    pub marked_at: Option<Timestamp>,
    /// What is missing.
    pub missing: Option<MissingRange>,
    /// Whether the database was restored and the new epoch hasn't begun.
    pub restored: bool,
    /// The periods that are not closed, the oldest first.
    pub open: Vec<OpenPeriod>,
    /// The last 13 that are, the newest first.
    pub closed: Vec<ClosedPeriod>,
    /// By how much the last reconciliation (`set_usage`) differed from what was counted, and when.
    pub drift: Option<(i64, Timestamp)>,
}

/// A meter whose database was restored to an earlier time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredMeter {
    /// The tenant's id.
    pub tenant: String,
    /// Where it is now.
    pub placement: Placement,
    /// The meter.
    pub meter: String,
    /// The last epoch that is known.
    pub epoch: i32,
    /// The last value that was known.
    pub value: i64,
}

/// What a relay last said of an outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxState {
    /// The DatabaseServer.
    pub server: String,
    /// The database.
    pub database: String,
    /// What it said.
    pub report: crate::metering::event::OutboxReport,
    /// When.
    pub reported_at: Timestamp,
}

/// Events of a tenant that were not counted and wait for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The tenant's id.
    pub tenant: String,
    /// conflict: another event has their id. restored: another one has their sequence, or their
    /// epoch is over. dead: refused for good, and saved when their database was dropped.
    pub why: String,
    /// How many.
    pub events: u64,
    /// When the last of them came.
    pub last_at: Timestamp,
}

/// An event that was refused for good, to be saved before its database is dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadEvent {
    /// The event's id.
    pub id: String,
    /// Its source.
    pub source: String,
    /// Whose it is.
    pub tenant: String,
    /// When it happened.
    pub at: Timestamp,
    /// What it says.
    pub usage: Usage,
    /// Why it was refused.
    pub error: String,
}
