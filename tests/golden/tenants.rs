//! What a Tenant's spec comes to, and what can be wrong with it.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;
use tenantry::{
    api::{Application, Placement, Plan, Tenant, Tier},
    desired::{
        Effective, Fault, effective, find_time_zone,
        hosts::{Claim, Holder, HostIndex},
        naming,
    },
};

use crate::fixtures::{Shelf, application, brief, plan, server, shelf, tenant};

/// The result for the fixtures after `change`.
fn check(change: impl FnOnce(&mut Tenant, &mut Plan, &mut Application, &mut Shelf)) -> Result<Effective, Vec<Fault>> {
    let (mut tenant, mut plan, mut application, mut shelf) = (tenant(), plan(), application(), shelf());
    change(&mut tenant, &mut plan, &mut application, &mut shelf);
    effective(&tenant, Some(&plan), Some(&application), &shelf)
}

/// Asserts that there is exactly one fault, and that its message has all of `parts`.
fn one_fault(result: Result<Effective, Vec<Fault>>, expected: &str, parts: &[&str]) {
    let faults = result.expect_err("a fault");
    assert_eq!(brief(&faults), [expected], "{faults:?}");
    for part in parts {
        assert!(faults[0].message.contains(part), "{:?} is not in: {}", part, faults[0].message);
    }
}

#[test]
fn a_tenant_gets_its_plans_values_and_the_defaults() {
    let found = check(|_, _, _, _| ()).unwrap();
    assert_eq!(found.tier, Tier::Pooled);
    assert_eq!(found.hosts, ["acme.crm.example.com", "crm.acme.example"]);
    assert_eq!(found.url.as_deref(), Some("https://acme.crm.example.com"));
    assert_eq!(found.servers, ["main"]);
    assert_eq!(found.max_tenants, 600);
    assert_eq!(found.limits.len(), 3);
    assert_eq!(found.database.connection_limit, 20);
    assert_eq!(found.database.temp_file_limit, Some(2 << 30));
    assert_eq!(found.database.statement_timeout, Duration::from_secs(30));
    assert_eq!(found.database.max_transaction, Duration::from_secs(60));
    assert_eq!(found.retention, Duration::from_secs(30 * 86_400));
    assert_eq!(found.anchor.time_zone, "Asia/Seoul");
    assert_eq!(found.anchor.start, "2026-11-01T09:00:00Z".parse::<Timestamp>().unwrap());
    assert!(!found.suspended);

    let other = check(|tenant, plan, _, _| {
        plan.spec.database = None;
        plan.spec.retention = Some("7d".into());
        tenant.spec.tier = Some(Tier::Bridge);
        tenant.spec.billing = serde_json::from_value(json!({"start": "2026-10-15T00:00:00Z"})).unwrap();
    })
    .unwrap();
    assert_eq!((other.tier, other.database.connection_limit, other.database.temp_file_limit), (Tier::Bridge, 10, None));
    assert_eq!(other.retention, Duration::from_secs(7 * 86_400));
    assert_eq!(other.anchor.time_zone, "UTC");
    assert_eq!(other.anchor.start, "2026-10-15T00:00:00Z".parse::<Timestamp>().unwrap());
}

#[test]
fn what_is_not_there_is_named() {
    let (tenant, plan, application, shelf) = (tenant(), plan(), application(), shelf());
    let both = effective(&tenant, None, None, &shelf).unwrap_err();
    assert_eq!(brief(&both), ["UnknownPlan spec.plan", "UnknownApplication spec.application"]);
    one_fault(
        effective(&tenant, None, Some(&application), &shelf),
        "UnknownPlan spec.plan",
        &["there is no Plan smb: create it, or correct spec.plan"],
    );
    one_fault(effective(&tenant, Some(&plan), None, &shelf), "UnknownApplication spec.application", &["crm"]);
    one_fault(
        check(|_, _, _, shelf| shelf.servers.clear()),
        "UnknownServer Application crm: spec.database.pooled.servers[0]",
        &["there is no DatabaseServer main"],
    );
    one_fault(
        check(|_, plan, _, _| {
            plan.spec.trial =
                serde_json::from_value(json!({"days": 5, "onEnd": "Downgrade", "downgradeTo": "fre"})).unwrap();
        }),
        "UnknownPlan Plan smb: spec.trial.downgradeTo",
        &["there is no Plan fre"],
    );
}

#[test]
fn tiers_are_those_of_the_plan_and_the_application() {
    one_fault(
        check(|tenant, plan, _, _| {
            plan.spec.allowed_tiers = None;
            tenant.spec.tier = Some(Tier::Bridge);
        }),
        "TierNotAllowed spec.tier",
        &["Plan smb does not allow tier bridge: choose pooled"],
    );
    one_fault(
        check(|_, _, application, _| application.spec.database.pooled = None),
        "TierNotOffered spec.tier",
        &["spec.database.pooled.servers"],
    );
    let both = check(|tenant, _, _, _| tenant.spec.tier = Some(Tier::Dedicated)).unwrap_err();
    assert_eq!(brief(&both), ["TierNotAllowed spec.tier", "TierNotOffered spec.tier"]);
    assert!(both[0].message.contains("choose pooled or bridge"), "{}", both[0].message);
}

#[test]
fn servers_that_refuse_are_passed_over_until_none_is_left() {
    let reserve = |shelf: &mut Shelf| shelf.servers.get_mut("main").unwrap().spec.reserved_for = Some("mega".into());
    one_fault(
        check(|_, _, _, shelf| reserve(shelf)),
        "NoServerForTier Application crm: spec.database.pooled.servers",
        &["main is reserved for Tenant mega"],
    );
    one_fault(
        check(|_, _, _, shelf| {
            shelf.servers.get_mut("main").unwrap().spec.accepts = serde_json::from_value(json!(["dedicated"])).unwrap();
        }),
        "NoServerForTier Application crm: spec.database.pooled.servers",
        &["main does not accept tier pooled (spec.accepts)"],
    );
    let found = check(|_, _, application, shelf| {
        reserve(shelf);
        shelf.servers.insert("second".into(), server());
        application.spec.database.pooled.as_mut().unwrap().servers.push("second".into());
    });
    assert_eq!(found.unwrap().servers, ["second"]);
    let own = check(|tenant, plan, application, shelf| {
        shelf.servers.get_mut("main").unwrap().spec.reserved_for = Some("acme".into());
        plan.spec.allowed_tiers = Some(vec![Tier::Dedicated]);
        plan.spec.quota = None;
        tenant.spec.tier = Some(Tier::Dedicated);
        application.spec.database.dedicated = application.spec.database.pooled.clone();
    });
    assert_eq!(own.unwrap().servers, ["main"]);
}

#[test]
fn a_server_of_its_own_has_to_be_reserved() {
    let own = |reserved: Option<&str>, placement: &str| {
        check(|tenant, plan, application, shelf| {
            plan.spec.quota = None;
            plan.spec.allowed_tiers = Some(vec![Tier::Dedicated]);
            tenant.spec.tier = Some(Tier::Dedicated);
            let choice = json!({"servers": ["main"], "placement": placement});
            application.spec.database.dedicated = serde_json::from_value(choice).unwrap();
            shelf.servers.get_mut("main").unwrap().spec.reserved_for = reserved.map(str::to_owned);
        })
    };
    one_fault(
        own(None, "Server"),
        "NoServerReserved Application crm: spec.database.dedicated.servers",
        &["none of main is reserved for acme", "spec.reservedFor: acme"],
    );
    assert_eq!(own(Some("acme"), "Server").unwrap().placement, Some(Placement::Server));
    assert_eq!(own(None, "Database").unwrap().placement, Some(Placement::Database));
    let bridge = check(|tenant, _, application, _| {
        tenant.spec.tier = Some(Tier::Bridge);
        application.spec.database.bridge.as_mut().unwrap().placement = Some(Placement::Server);
    });
    assert_eq!(bridge.unwrap().placement, None, "it is for tier dedicated alone");
}

#[test]
fn limits_and_prices_are_on_declared_meters() {
    one_fault(
        check(|_, plan, _, _| {
            let limit = plan.spec.limits.as_ref().unwrap()["users"].clone();
            plan.spec.limits.as_mut().unwrap().insert("seats".into(), limit);
        }),
        "UndeclaredMeter Plan smb: spec.limits.seats",
        &["Plan smb", "meter seats", "it declares: users, accounts, emails"],
    );
    one_fault(
        check(|_, plan, _, _| plan.spec.price.as_mut().unwrap().per_unit.as_mut().unwrap()[0].meter = "seats".into()),
        "UndeclaredMeter Plan smb: spec.price.perUnit[0].meter",
        &["has a price for meter seats"],
    );
    one_fault(
        check(|_, plan, _, _| {
            let limit = plan.spec.limits.as_ref().unwrap()["users"].clone();
            plan.spec.limits.as_mut().unwrap().insert("emails".into(), limit);
        }),
        "LimitNotEnforceable Plan smb: spec.limits.emails",
        &["policy to Soft"],
    );
    let none = check(|_, plan, application, _| {
        application.spec.meters = None;
        plan.spec.price = None;
    });
    assert_eq!(none.unwrap_err().len(), 3);
}

#[test]
fn components_that_are_not_there_are_named() {
    one_fault(
        check(|_, plan, _, _| {
            plan.spec.components = serde_json::from_value(json!({"api": {}, "apo": {"replicas": 2}})).unwrap();
        }),
        "UnknownComponent Plan smb: spec.components",
        &["no component apo: choose api, worker or web"],
    );
    let overrides = json!([{"component": "apo", "replicas": 2}]);
    one_fault(
        check(|tenant, _, _, _| tenant.spec.overrides = serde_json::from_value(overrides.clone()).unwrap()),
        "OverridesNotApplicable spec.overrides",
        &["choose tier bridge or dedicated"],
    );
    one_fault(
        check(|tenant, _, _, _| {
            tenant.spec.tier = Some(Tier::Bridge);
            tenant.spec.overrides = serde_json::from_value(overrides.clone()).unwrap();
        }),
        "UnknownComponent spec.overrides[0].component",
        &["choose api, worker or web"],
    );
}

#[test]
fn a_tenants_own_host_is_under_nobodys_domain() {
    for host in ["crm.example.com", "globex.crm.example.com", "a.b.crm.example.com"] {
        one_fault(
            check(|tenant, _, _, _| tenant.spec.hosts = Some(vec![host.into()])),
            "HostUnderApplicationDomain spec.hosts[0]",
            &[host, "Application crm"],
        );
    }
    one_fault(
        check(|tenant, _, _, shelf| {
            shelf.domains.push(("shop".into(), "shop.example.com".into()));
            tenant.spec.hosts = Some(vec!["crm.acme.example".into(), "x.shop.example.com".into()]);
        }),
        "HostUnderApplicationDomain spec.hosts[1]",
        &["Application shop"],
    );
    let neighbour = check(|tenant, _, _, _| tenant.spec.hosts = Some(vec!["mycrm.example.com".into()]));
    assert!(neighbour.is_ok());
}

#[test]
fn time_zones_are_real() {
    let zone =
        |name: &str| check(|tenant, _, _, _| tenant.spec.billing.as_mut().unwrap().time_zone = Some(name.into()));
    for name in ["UTC", "Asia/Seoul", "Europe/Berlin", "America/Argentina/Buenos_Aires"] {
        assert!(zone(name).is_ok(), "{name}");
        assert!(find_time_zone(name).is_some(), "{name}");
    }
    one_fault(zone("Asia/Soul"), "UnknownTimeZone spec.billing.timeZone", &["no time zone Asia/Soul"]);
}

#[test]
fn a_url_says_http_where_an_ingress_has_no_certificate() {
    let mut route = application().spec.route.unwrap();
    route.parent_refs = None;
    route.ingress_class_name = Some("nginx".into());
    assert_eq!(naming::tenant_url(&route, "acme"), "http://acme.crm.example.com");
    route.tls = serde_json::from_value(json!({"secretName": "wild"})).unwrap();
    assert_eq!(naming::tenant_url(&route, "acme"), "https://acme.crm.example.com");
}

fn claim(tenant: &str, second: i64, hosts: &[&str]) -> Claim {
    Claim {
        tenant: tenant.into(),
        created: Timestamp::from_second(second).unwrap(),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        serving: BTreeSet::new(),
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn the_oldest_tenant_keeps_a_host_and_the_others_hear_of_each_change() {
    let mut index = HostIndex::default();
    assert_eq!(index.set_claim(claim("young", 20, &["a.example", "b.example"])), names(&[]));
    assert_eq!(index.set_claim(claim("old", 10, &["b.example"])), names(&["young"]));
    assert_eq!(index.holder("b.example"), Some(Holder::Tenant("old")));
    assert_eq!(index.granted("young"), ["a.example"]);
    let faults = index.faults("young");
    assert_eq!(brief(&faults), ["HostTaken spec.hosts"]);
    assert!(faults[0].message.contains("b.example belongs to Tenant old"), "{}", faults[0].message);
    assert_eq!(index.set_claim(claim("old", 10, &["b.example"])), names(&[]), "nothing changed");
    assert_eq!(index.set_claim(claim("old", 10, &["c.example"])), names(&["young"]));
    assert_eq!(index.granted("young"), ["a.example", "b.example"]);
    assert_eq!(index.remove_claim("young"), names(&[]));
    assert_eq!(index.holder("a.example"), None);
}

#[test]
fn tenants_made_in_the_same_second_are_ordered_by_name() {
    let mut index = HostIndex::default();
    index.set_claim(claim("b", 1, &["x.example"]));
    index.set_claim(claim("a", 1, &["x.example"]));
    assert_eq!(index.holder("x.example"), Some(Holder::Tenant("a")));
}

#[test]
fn a_foreign_route_keeps_its_host_but_takes_none_that_is_served() {
    let mut index = HostIndex::default();
    index.set_foreign("HTTPRoute shop/front", names(&["x.example"]));
    index.set_claim(claim("acme", 1, &["x.example", "y.example"]));
    assert_eq!(index.granted("acme"), ["y.example"]);
    assert!(index.faults("acme")[0].message.contains("HTTPRoute shop/front"));

    let serving = Claim { serving: names(&["y.example"]), ..claim("acme", 1, &["x.example", "y.example"]) };
    index.set_claim(serving);
    assert_eq!(index.set_foreign("Ingress evil/one", names(&["y.example"])), names(&[]));
    assert_eq!(index.holder("y.example"), Some(Holder::Tenant("acme")));
    assert_eq!(index.set_foreign("HTTPRoute shop/front", names(&[])), names(&["acme"]));
    assert_eq!(index.granted("acme"), ["x.example", "y.example"]);
}

proptest! {
    /// Whatever order claims come in, and whatever was claimed before, the index is that of
    /// the last claims alone, and nobody's host, or who has it instead, changes without the Tenant being named.
    #[test]
    fn an_index_does_not_depend_on_its_history(
        steps in proptest::collection::vec((0_usize..4, 0_i64..3, proptest::collection::vec(0_usize..4, 0..4)), 1..20),
    ) {
        let tenants = ["a", "b", "c", "d"];
        let all = ["w.example", "x.example", "y.example", "z.example"];
        let mut index = HostIndex::default();
        let mut last = std::collections::BTreeMap::new();
        for (tenant, second, hosts) in steps {
            let mut hosts: Vec<&str> = hosts.into_iter().map(|host| all[host]).collect();
            hosts.dedup();
            let before: Vec<_> = tenants.iter().map(|name| (index.granted(name), index.faults(name))).collect();
            let affected = index.set_claim(claim(tenants[tenant], second, &hosts));
            for (name, before) in tenants.iter().zip(before) {
                let expected = *name != tenants[tenant] && before != (index.granted(name), index.faults(name));
                prop_assert_eq!(affected.contains(*name), expected, "{}", name);
            }
            last.insert(tenant, (second, hosts));
        }
        let mut fresh = HostIndex::default();
        for (tenant, (second, hosts)) in &last {
            fresh.set_claim(claim(tenants[*tenant], *second, hosts));
        }
        for host in all {
            prop_assert_eq!(index.holder(host), fresh.holder(host));
            let oldest = last
                .iter()
                .filter(|(_, (_, hosts))| hosts.contains(&host))
                .map(|(tenant, (second, _))| (*second, tenants[*tenant]))
                .min();
            prop_assert_eq!(index.holder(host), oldest.map(|(_, tenant)| Holder::Tenant(tenant)));
        }
    }
}
