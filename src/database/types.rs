//! What goes in and out of this module: plain values, no Kubernetes type among them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::error::{Error, Result};
use super::identity::{Password, PasswordDigest, Slot, TenantId};

/// A database that the operator makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseSpec {
    /// Its name: lower-case letters, digits, `-` and `_`, a letter first, at most 48 characters.
    pub name: String,
    /// UID of the cluster (of namespace kube-system) that this operator works for.
    pub cluster_id: String,
    /// What it is for.
    pub purpose: Purpose,
    /// How many sessions all tenants of the database may have together, `None` for no bound of
    /// its own. The sum over a server's databases should leave room for the operator and relays.
    pub connection_limit: Option<u32>,
}

/// What a database is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The shared database of a Pool, by the Pool's name.
    Pool(String),
    /// A database that schemas of bridge tenants of an Application share, by the Application's name.
    Bridge(String),
    /// The own database of a dedicated tenant, by the Tenant's UID.
    Dedicated(String),
}

impl Purpose {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Pool(_) => "Pool",
            Self::Bridge(_) => "Bridge",
            Self::Dedicated(_) => "Dedicated",
        }
    }

    pub(super) fn object(&self) -> &str {
        match self {
            Self::Pool(name) | Self::Bridge(name) | Self::Dedicated(name) => name,
        }
    }

    pub(super) fn from_parts(kind: &str, object: &str) -> Option<Self> {
        let object = object.to_owned();
        match kind {
            "Pool" => Some(Self::Pool(object)),
            "Bridge" => Some(Self::Bridge(object)),
            "Dedicated" => Some(Self::Dedicated(object)),
            _ => None,
        }
    }
}

/// A database that belongs to `tenantry_owner`, as its mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseRecord {
    /// Its name.
    pub name: String,
    /// The cluster it was made for and what for; `None` when it was only begun, or the mark is
    /// not one that this version understands.
    pub mark: Option<DatabaseMark>,
}

/// Whose a database is, kept as its comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseMark {
    /// UID of the cluster.
    pub cluster_id: String,
    /// What it is for.
    pub purpose: Purpose,
}

/// What the admin's login found on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// The version as a number, for instance 150018.
    pub version: u32,
    /// The server's `max_connections`.
    pub max_connections: u32,
    /// Whether the admin may set `temp_file_limit`; without it that limit is left out.
    pub sets_temp_file_limit: bool,
    /// Databases that are not the operator's and that every login, a tenant's too, may enter.
    pub open_databases: Vec<String>,
    /// What a superuser of the server should change, each a sentence with the statement to run.
    /// None of it stops the operator.
    pub advice: Vec<String>,
}

/// A thing that an Application counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterDefinition {
    /// Its name.
    pub name: String,
    /// What its value means.
    pub kind: MeterKind,
    /// Who counts it.
    pub source: MeterSource,
}

/// What the value of a meter means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MeterKind {
    /// How many there are now.
    Level,
    /// How much was used in the current period.
    Total,
}

/// Who counts a meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MeterSource {
    /// The application, with `record_usage` in its own transaction.
    Database,
    /// A workload, at the operator's API; `record_usage` refuses these.
    Api,
}

/// One meter's limit in a Plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The meter.
    pub meter: String,
    /// How much the plan includes at most.
    pub max: u64,
    /// What happens beyond.
    pub policy: Policy,
}

/// What happens beyond a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// More is refused.
    Hard,
    /// More is accepted; the limit only informs.
    Soft,
    /// Up to `percent` more is accepted for `days`, counted from when the value went over or,
    /// if that is later, from when this limit came to apply to the tenant. Then as Hard.
    Grace {
        /// Days of 24 hours.
        days: u32,
        /// Whole percent of the limit.
        percent: u32,
    },
}

/// A tenant to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantSpec {
    /// Its id, see [`TenantId::from_uid`].
    pub id: TenantId,
    /// The Tenant's name, kept in the record only.
    pub name: String,
    /// The Tenant's UID.
    pub uid: String,
    /// UID of the cluster.
    pub cluster_id: String,
    /// The Application, by whose meters the tenant counts.
    pub application: String,
    /// Everything that may change later.
    pub settings: TenantSettings,
}

/// What a tenant's plan and spec say and may say otherwise tomorrow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantSettings {
    /// The plan whose limits hold.
    pub plan: String,
    /// The plan's revision, kept in the record only.
    pub plan_revision: String,
    /// Suspended: no login works, sessions are ended, nothing is lost.
    pub suspended: bool,
    /// How many sessions each of the two logins may have.
    pub connection_limit: u32,
    /// How much temporary file space a session may take, in bytes; `None` for the server's own
    /// limit. Left out where the admin may not set it (see [`ServerInfo::sets_temp_file_limit`]).
    pub temp_file_limit: Option<u64>,
    /// How long a statement may run, `None` for any time. A courtesy: the tenant can lift it.
    pub statement_timeout: Option<Duration>,
    /// How long a transaction may last before the watchdog ends its session, `None` for any time.
    pub max_transaction: Option<Duration>,
    /// Where the first usage period began; the others begin whole months later. Fixed when the tenant
    /// is made.
    pub period_anchor: Timestamp,
    /// The IANA time zone in which months are counted, for instance `Asia/Seoul`. Fixed as well.
    pub time_zone: String,
}

/// The ownership record of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRecord {
    /// Its id.
    pub id: TenantId,
    /// Name of the Tenant that it belongs, or belonged, to.
    pub name: String,
    /// UID of that Tenant.
    pub uid: String,
    /// UID of the cluster.
    pub cluster_id: String,
    /// The Application.
    pub application: String,
    /// Where it is in its life.
    pub state: TenantState,
    /// The schema as it is called now.
    pub schema: String,
    /// What is in effect.
    pub settings: TenantSettings,
    /// The application's logins that are or may be in use, at most two.
    pub logins: Vec<LoginRecord>,
    /// The application's migrations that ran, in the order they ran: the same for most tenants.
    pub migrations: Arc<[AppliedMigration]>,
}

impl TenantRecord {
    /// The login whose password this is, if it is one in use.
    #[must_use]
    pub fn login_of(&self, username: &str, digest: &PasswordDigest) -> Option<&LoginRecord> {
        self.logins.iter().find(|login| login.username == username && login.digest == *digest)
    }
}

/// Where a tenant is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenantState {
    /// In use.
    Live,
    /// Deleted but kept: no login, the schema renamed.
    Retained {
        /// From when on it may be dropped.
        drop_after: Timestamp,
    },
    /// Being dropped; to be dropped again until it is [`Dropped`](Self::Dropped).
    Dropping,
    /// Schema and roles are gone. The record stays while `unsent` usage events wait.
    Dropped {
        /// Events that nobody has acknowledged.
        unsent: u64,
    },
}

/// One login of a tenant's application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginRecord {
    /// Which of the two.
    pub slot: Slot,
    /// Its name.
    pub username: String,
    /// Where it is in its life.
    pub state: LoginState,
    /// Recognises the password.
    pub digest: PasswordDigest,
    /// When it came into this state.
    pub since: Timestamp,
}

/// Where a login is in its life. It works in each of these states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoginState {
    /// Issued; whether it reached the Secret is not known yet.
    Pending,
    /// In the Secret.
    Current,
    /// Replaced; still works for those who have not seen the new one.
    Closing,
}

/// A migration that ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedMigration {
    /// Its name.
    pub name: String,
    /// What the caller gave as its checksum.
    pub checksum: String,
}

/// A login that was just issued: the only moment in which its password exists here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedLogin {
    /// Which of the two.
    pub slot: Slot,
    /// The login's name.
    pub username: String,
    /// Its password.
    pub password: Password,
}

/// What to do with a login that is still closing and in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// Let it end by itself: its overlap passes and its sessions go.
    Respect,
    /// End it now, with its sessions: a password leaked, or there is no other way to a login.
    Cut,
}

/// How long a replaced login lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlapTimes {
    /// For how long nobody must have used it before it is closed.
    pub quiet: Duration,
    /// After how long it is closed in any case, and its sessions ended.
    pub max: Duration,
}

impl Default for OverlapTimes {
    /// 5 minutes of quiet, an hour at most.
    fn default() -> Self {
        Self { quiet: Duration::from_secs(300), max: Duration::from_secs(3600) }
    }
}

/// What [`close_logins`](super::Server::close_logins) did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloseOutcome {
    /// Logins that work no longer.
    pub closed: Vec<String>,
    /// How many still wait.
    pub closing: usize,
    /// In how long the next one may be due, if one waits.
    pub next_check: Option<Duration>,
}

/// A login as an application has it: what a tenant's Secret says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The database.
    pub database: String,
    /// The schema that is expected first in the search path.
    pub schema: String,
    /// The login.
    pub username: String,
    /// Its password.
    pub password: Password,
}

/// A login was proven to work and to reach its own tenant's things alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The tenant that the login counts for.
    pub id: TenantId,
    /// Databases that are not the operator's and that this login may enter, as
    /// [`ServerInfo::open_databases`]: shared with every login of the server.
    pub open_databases: Vec<String>,
}

/// One file of an application's migrations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Its name, unique within the application, for instance `crm-tables/001_users.sql`.
    pub name: String,
    /// Its SQL: one or more statements, no transaction control.
    pub sql: String,
    /// Anything that changes when the SQL does.
    pub checksum: String,
}

/// What [`migrate`](super::Server::migrate) did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// The files that ran now, in order.
    pub applied: Vec<String>,
    /// How many had run before.
    pub before: usize,
}

/// What [`sweep`](super::Server::sweep) found and put right, and what it can't put right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// What differed from the records and was repaired.
    pub repaired: Vec<Finding>,
    /// What differs and needs a person, for instance a schema that is gone.
    pub unrepaired: Vec<Finding>,
}

/// A difference between the records and the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The tenant, or `None` where it is the database's own.
    pub id: Option<TenantId>,
    /// What it is, as a sentence.
    pub what: String,
}

/// A session that the watchdog ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedSession {
    /// The tenant.
    pub id: TenantId,
    /// The login.
    pub username: String,
    /// The database.
    pub database: String,
    /// Why.
    pub reason: EndReason,
}

/// Why the watchdog ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Its transaction was this old.
    LongTransaction(Duration),
    /// Its login had been closed.
    LoginClosed,
}

/// How much was asked of a server so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// SQL statements sent.
    pub statements: u64,
    /// Messages sent and waited for; one can carry many statements.
    pub round_trips: u64,
    /// Connections opened, tenants' logins that were proven or migrated included.
    pub connections: u64,
    /// Places for connections that are taken now, of those that the server's settings allow.
    pub in_use: usize,
    /// Whether the server counts as away: then it is tried again now and then, and nobody waits.
    pub away: bool,
}

/// What [`drop_tenant`](super::Server::drop_tenant) left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropOutcome {
    /// Nothing, or there was nothing.
    Gone,
    /// The record alone, until this many usage events are acknowledged.
    WaitsForEvents(u64),
}

impl DatabaseSpec {
    /// Refuses a name that could be cut short or mistaken, before anything is made.
    pub(super) fn validate(&self) -> Result<()> {
        validate_database_name(&self.name)
    }
}

pub(super) fn validate_database_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let valid = bytes.next().is_some_and(|first| first.is_ascii_lowercase())
        && bytes.all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
        && name.len() <= 48
        && !name.starts_with("pg_");
    if valid {
        return Ok(());
    }
    Err(Error::permanent(format!(
        "database name {name:?} is not usable: give at most 48 lower-case letters, digits, '-' and '_', a letter first, not pg_"
    )))
}
