//! Signatures, while their bodies are being written.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Server;
use super::error::Result;
use super::identity::{Slot, TenantId};
use super::types::*;

#[allow(unused_variables, clippy::todo)]
impl Server {
    /// Makes the database, its schema `tenantry` and the privileges around it, or brings them up
    /// to date. Nothing to do costs two statements. A database of that name that another
    /// cluster's operator, or nobody, made is a permanent error and stays as it is.
    pub async fn ensure_database(&self, spec: &DatabaseSpec) -> Result<()> {
        todo!()
    }

    /// Drops a database of this cluster in which no tenant has a record any more. One that is
    /// gone already is a success.
    pub async fn drop_database(&self, name: &str, cluster_id: &str) -> Result<()> {
        todo!()
    }

    /// Says which meters an Application declares. One that is left out is no longer accepted;
    /// its counts stay.
    pub async fn set_meters(&self, database: &str, application: &str, meters: &[MeterDefinition]) -> Result<()> {
        todo!()
    }

    /// Says what a plan's limits are, for all tenants of the plan at once. In effect with their
    /// next `record_usage`. A meter that is left out is unlimited.
    pub async fn set_plan_limits(&self, database: &str, plan: &str, limits: &[Limit]) -> Result<()> {
        todo!()
    }

    /// The limits of all plans, as [`set_plan_limits`](Self::set_plan_limits) left them.
    pub async fn plan_limits(&self, database: &str) -> Result<BTreeMap<String, Vec<Limit>>> {
        todo!()
    }

    /// All ownership records of a database, in one statement.
    pub async fn records(&self, database: &str) -> Result<Vec<TenantRecord>> {
        todo!()
    }

    /// One tenant's record.
    pub async fn record(&self, database: &str, id: &TenantId) -> Result<Option<TenantRecord>> {
        todo!()
    }

    /// Makes a tenant: roles, schema, privileges, settings, record and a first login, in one
    /// transaction. If the same Tenant's record is there already, its settings are applied
    /// and a login is issued. Anything of another owner's is a permanent error.
    pub async fn create_tenant(&self, database: &str, spec: &TenantSpec) -> Result<(TenantRecord, IssuedLogin)> {
        todo!()
    }

    /// Brings a live tenant's settings to what is given. A change of plan holds for its next
    /// `record_usage`. Returns whether there was anything to do.
    pub async fn apply_settings(&self, database: &str, id: &TenantId, settings: &TenantSettings) -> Result<bool> {
        todo!()
    }

    /// Sets a fresh password on the login that is not current, or on a pending one again.
    /// `Waiting` while the other login is closing, unless it is [cut](Overlap::Cut).
    pub async fn issue_login(&self, database: &str, id: &TenantId, overlap: Overlap) -> Result<IssuedLogin> {
        todo!()
    }

    /// The Secret has this login now: pending becomes current, and what was current closing.
    pub async fn login_published(&self, database: &str, id: &TenantId, slot: Slot) -> Result<()> {
        todo!()
    }

    /// Closes the closing logins that are due: of one tenant, or of all. A constant number of
    /// statements. With [`Overlap::Cut`] they are closed at once and their sessions ended.
    pub async fn close_logins(
        &self,
        database: &str,
        id: Option<&TenantId>,
        times: OverlapTimes,
        overlap: Overlap,
    ) -> Result<CloseOutcome> {
        todo!()
    }

    /// Logs in through the tenants' endpoint with an application's own credentials and checks
    /// what it can reach. A failure is a permanent error that names the privilege.
    pub async fn prove(&self, credentials: &Credentials) -> Result<Proof> {
        todo!()
    }

    /// Runs the migrations that have not run, in order, as the tenant's owner. Each is one
    /// transaction together with its record. A failure names file, SQLSTATE and message.
    pub async fn migrate(&self, database: &str, id: &TenantId, migrations: &[Migration]) -> Result<Migrated> {
        todo!()
    }

    /// Takes a tenant out of use and keeps it until `drop_after`: no login works, sessions end,
    /// the schema is renamed, its name is free for another Tenant. Also what `abandon` is.
    pub async fn retain(&self, database: &str, id: &TenantId, drop_after: Timestamp) -> Result<()> {
        todo!()
    }

    /// Gives a retained tenant, or a live one whose Tenant object was lost, to the Tenant with
    /// this name and UID. It keeps its id; a login has to be issued. Returns the record.
    pub async fn restore(&self, database: &str, id: &TenantId, name: &str, uid: &str) -> Result<TenantRecord> {
        todo!()
    }

    /// Drops everything of a tenant, in any state; its unsent usage events stay until they are
    /// acknowledged, then a further call removes the record too.
    pub async fn drop_tenant(&self, database: &str, id: &TenantId) -> Result<DropOutcome> {
        todo!()
    }

    /// Compares roles, their settings and memberships, and privileges with the records, for all
    /// tenants of a database in a constant number of statements, and repairs what differs.
    ///
    /// A password that a tenant changed itself can't be read by anybody but a superuser:
    /// [`prove`](Self::prove) finds that, and a login issued anew repairs it.
    pub async fn sweep(&self, database: &str) -> Result<SweepReport> {
        todo!()
    }

    /// One statement for the whole server: ends tenants' sessions whose transaction is older than
    /// their `max_transaction`, or whose login was closed.
    pub async fn watchdog(&self) -> Result<Vec<EndedSession>> {
        todo!()
    }
}
