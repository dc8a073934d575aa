//! What a Tenant's spec comes to, together with its plan and application; or what is wrong.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{
    Fault, checks,
    limits::{MeterLimit, plan_limits},
    naming, own,
};
use crate::api::{Application, DatabaseServer, DeletionPolicy, Placement, Plan, Tenant, Tier};

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
    /// What a dedicated tenant has for itself; nothing for the other tiers.
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
    let (Some(plan), Some(application)) = (plan, application) else {
        return Err(missing(tenant, plan.is_none(), application.is_none()));
    };
    let tier = tenant.spec.tier.unwrap_or(plan.spec.tier);
    let faults: Vec<Fault> = [
        checks::tier(tenant, plan, application, tier),
        checks::limits(plan, application),
        checks::prices(plan, application),
        checks::plan_components(plan, application),
        checks::trial(plan, catalog),
        checks::overrides(tenant, application, tier),
        checks::hosts(tenant, application, catalog),
        checks::time_zone(tenant),
        checks::servers(name_of(tenant), application, tier, catalog),
        own::faults(tenant, plan, application, tier, catalog),
    ]
    .concat();
    if faults.is_empty() { Ok(as_it_runs(tenant, plan, application, catalog)) } else { Err(faults) }
}

/// The plan or the application (or both) is not there.
fn missing(tenant: &Tenant, plan: bool, application: bool) -> Vec<Fault> {
    let fault = |reason, kind: &str, field: &str, name: &str| {
        let message = format!("there is no {kind} {name}: create it, or correct {field}");
        Fault::new(reason, field, message)
    };
    let spec = &tenant.spec;
    let plan = plan.then(|| fault("UnknownPlan", "Plan", "spec.plan", &spec.plan));
    let application =
        application.then(|| fault("UnknownApplication", "Application", "spec.application", &spec.application));
    plan.into_iter().chain(application).collect()
}

/// What a Tenant's spec comes to, whatever is wrong with it: of one that was fulfilled before,
/// and runs on.
pub fn as_it_runs(tenant: &Tenant, plan: &Plan, application: &Application, catalog: &impl Catalog) -> Effective {
    let (name, tier) = (name_of(tenant), tenant.spec.tier.unwrap_or(plan.spec.tier));
    let billing = tenant.spec.billing.as_ref();
    let created = tenant.metadata.creation_timestamp.as_ref();
    let start = billing.and_then(|billing| billing.start.as_ref()).or(created).map(|time| time.0);
    let route = application.spec.route.as_ref();
    let own_hosts = tenant.spec.hosts.as_deref().unwrap_or_default();
    Effective {
        tenant: name.to_owned(),
        application: tenant.spec.application.clone(),
        plan: tenant.spec.plan.clone(),
        tier,
        limits: plan_limits(plan),
        database: database_settings(plan),
        servers: checks::usable_servers(name, application, tier, catalog),
        placement: checks::placement(application, tier),
        max_tenants: application_max_tenants(application),
        retention: duration(plan.spec.retention.as_ref(), RETENTION),
        deletion_policy: tenant.spec.deletion_policy.unwrap_or_default(),
        hosts: naming::tenant_hosts(route, name, own_hosts),
        url: route.map(|route| naming::tenant_url(route, name)),
        anchor: Anchor {
            start: start.unwrap_or_default(),
            time_zone: billing.and_then(|billing| billing.time_zone.clone()).unwrap_or_else(|| "UTC".to_owned()),
        },
        suspended: tenant.spec.suspended.unwrap_or(false),
    }
}

const RETENTION: Duration = Duration::from_secs(30 * 86_400);
const CONNECTION_LIMIT: i32 = 10;
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_TRANSACTION: Duration = Duration::from_secs(60);
/// How many tenants a pool takes where nobody says.
const MAX_TENANTS: i32 = 500;

/// What a Plan lets one tenant take of a database server, with defaults.
pub fn database_settings(plan: &Plan) -> DatabaseSettings {
    let settings = plan.spec.database.as_ref();
    DatabaseSettings {
        connection_limit: settings.and_then(|settings| settings.connection_limit).unwrap_or(CONNECTION_LIMIT),
        temp_file_limit: settings.and_then(|settings| settings.temp_file_limit.as_ref()?.bytes()),
        statement_timeout: duration(settings.and_then(|it| it.statement_timeout.as_ref()), STATEMENT_TIMEOUT),
        max_transaction: duration(settings.and_then(|it| it.max_transaction.as_ref()), MAX_TRANSACTION),
    }
}

/// How many tenants a pool of an application takes.
pub(super) fn application_max_tenants(application: &Application) -> u32 {
    let settings = application.spec.pools.as_ref();
    u32::try_from(settings.and_then(|pools| pools.max_tenants).unwrap_or(MAX_TENANTS)).unwrap_or(0)
}

fn duration(value: Option<&crate::api::Duration>, default: Duration) -> Duration {
    value.and_then(crate::api::Duration::get).unwrap_or(default)
}

fn name_of(tenant: &Tenant) -> &str {
    tenant.metadata.name.as_deref().unwrap_or_default()
}
