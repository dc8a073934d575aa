//! What a Tenant's spec comes to, together with its plan and application; or what is wrong.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{Fault, limits::MeterLimit};
use crate::api::{Application, DatabaseServer, DeletionPolicy, Placement, Plan, Pool, Tenant, Tier};

/// The resources that a check may look up.
pub trait Catalog {
    /// A DatabaseServer by name.
    fn server(&self, name: &str) -> Option<Arc<DatabaseServer>>;
    /// Whether there is a Plan of this name.
    fn has_plan(&self, name: &str) -> bool;
    /// Every Application's name, with the domain under which its tenants are.
    fn domains(&self) -> Vec<(String, String)>;
}

/// What one tenant may take of a database server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseSettings {
    /// The most connections at a time.
    pub connection_limit: i32,
    /// The most temporary disk space of one session in bytes; nothing leaves it open.
    pub temp_file_limit: Option<u64>,
    /// The longest that one statement may run.
    pub statement_timeout: Duration,
    /// The longest that one transaction may stay open.
    pub max_transaction: Duration,
}

/// Where a tenant's billing periods are counted from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The start of the first period.
    pub start: Timestamp,
    /// The IANA name of the time zone in which periods end.
    pub time_zone: String,
}

/// What a Tenant's spec comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The Tenant's name.
    pub tenant: String,
    /// The Application's name.
    pub application: String,
    /// The Plan's name.
    pub plan: String,
    /// The tier: the Tenant's, else the Plan's.
    pub tier: Tier,
    /// The Plan's limits.
    pub limits: Vec<MeterLimit>,
    /// The Plan's database limits, with defaults.
    pub database: DatabaseSettings,
    /// The servers that take this tenant, in the order in which they are filled.
    pub servers: Vec<String>,
    /// What a dedicated tenant has for itself.
    pub placement: Option<Placement>,
    /// How many tenants a new pool takes.
    pub max_tenants: u32,
    /// How long the data of a deleted tenant is kept.
    pub retention: Duration,
    /// What happens to the data of a deleted tenant.
    pub deletion_policy: DeletionPolicy,
    /// The hosts that the tenant asks for; who gets them, `hosts::HostIndex` says.
    pub hosts: Vec<String>,
    /// Where the tenant is reached; nothing when the Application has no route.
    pub url: Option<String>,
    /// Where the billing periods are counted from.
    pub anchor: Anchor,
    /// Whether logins are closed and routes removed.
    pub suspended: bool,
}

/// What a Tenant's spec comes to.
///
/// # Errors
/// Everything that is wrong, not only the first.
pub fn effective(
    tenant: &Tenant,
    plan: Option<&Plan>,
    application: Option<&Application>,
    catalog: &impl Catalog,
) -> Result<Effective, Vec<Fault>> {
    let _ = (tenant, plan, application, catalog);
    todo!()
}

/// What is wrong with an Application: templates, network peers, servers.
pub fn application_faults(application: &Application, catalog: &impl Catalog) -> Vec<Fault> {
    let _ = (application, catalog);
    todo!()
}

/// What is wrong with a Pool.
pub fn pool_faults(pool: &Pool, application: Option<&Application>, server: Option<&DatabaseServer>) -> Vec<Fault> {
    let _ = (pool, application, server);
    todo!()
}

/// What is wrong with a DatabaseServer.
pub fn server_faults(server: &DatabaseServer) -> Vec<Fault> {
    let _ = server;
    todo!()
}
