//! Quotas and LimitRanges that are too small: refused with the numbers, before anything is made.

use serde_json::{Value, json};
use tenantry::{
    api::{LimitRangeSettings, Quantities},
    desired::{Fault, application_faults, pool_capacity},
};

use crate::fixtures::{Own, application, brief, build, pool, server, settings, shelf};

fn quantities(value: &Value) -> Option<Quantities> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A bridge tenant whose plan has this quota and no LimitRange, and whose Application has one
/// component with these replicas and this pod spec.
fn one(replicas: i32, spec: &Value, quota: &Value) -> Own {
    Own::bridge().with(|own| {
        let component =
            json!({"name": "web", "port": 80, "replicas": {"bridge": replicas}, "template": {"spec": spec}});
        own.application = crate::fixtures::application_with(component);
        own.plan.spec.quota = quantities(quota);
        own.plan.spec.limit_range = None;
    })
}

fn web(requests: &Value, limits: &Value) -> Value {
    json!({"containers": [{"name": "web", "image": "x", "resources": {"requests": requests, "limits": limits}}]})
}

/// The one fault of a tenant, whose message has all of `parts`; building its objects finds it too.
fn one_fault(own: &Own, expected: &str, parts: &[&str]) {
    let faults = own.effective().expect_err("a fault");
    assert_eq!(brief(&faults), [expected], "{faults:?}");
    for part in parts {
        assert!(faults[0].message.contains(part), "{part:?} is not in: {}", faults[0].message);
    }
}

#[test]
fn a_quota_is_enough_for_the_replicas_and_the_surge_and_not_one_milli_less() {
    // 5 replicas, and a quarter of them rounded up while a rollout goes on: 7 pods of 333m.
    let own = |quota: Value| one(5, &web(&json!({"cpu": "333m", "memory": "100Mi"}), &json!({})), &quota);
    assert!(own(json!({"requests.cpu": "2331m", "pods": 7, "requests.memory": "700Mi"})).effective().is_ok());
    one_fault(
        &own(json!({"requests.cpu": "2330m"})),
        "QuotaTooSmall Plan smb: spec.quota.requests.cpu",
        &["2331m is needed, and the quota is 2330m", "web 7 x 333m (5 + 2 while a rollout goes on)", "Raise the quota"],
    );
    one_fault(&own(json!({"cpu": "2.33"})), "QuotaTooSmall Plan smb: spec.quota.cpu", &["2331m is needed"]);
    one_fault(&own(json!({"pods": 6})), "QuotaTooSmall Plan smb: spec.quota.pods", &["7 is needed", "web 7 (5 + 2"]);
    one_fault(&own(json!({"count/pods": "6"})), "QuotaTooSmall Plan smb: spec.quota.count/pods", &["7 is needed"]);
    one_fault(
        &own(json!({"requests.memory": "0.683Gi"})),
        "QuotaTooSmall Plan smb: spec.quota.requests.memory",
        &["700Mi"],
    );
    assert_eq!(own(json!({"requests.cpu": "2330m"})).try_objects().unwrap_err().len(), 1, "building finds it too");
    // Nothing runs, nothing is needed.
    let idle = one(0, &web(&json!({"cpu": 1}), &json!({})), &json!({"requests.cpu": 0, "pods": 0}));
    assert!(idle.effective().is_ok());
}

#[test]
fn the_claims_of_ephemeral_volumes_need_room_too() {
    let own = |quota: Value| {
        let mut spec = web(&json!({}), &json!({}));
        let claim = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}});
        spec["volumes"] = json!([{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}]);
        one(3, &spec, &quota)
    };
    assert!(own(json!({"requests.storage": "8Gi", "persistentvolumeclaims": 4})).effective().is_ok());
    let parts = ["8Gi is needed, and the quota is 7Gi", "web 4 x 2Gi (3 + 1 while a rollout goes on)"];
    one_fault(&own(json!({"requests.storage": "7Gi"})), "QuotaTooSmall Plan smb: spec.quota.requests.storage", &parts);
    one_fault(
        &own(json!({"persistentvolumeclaims": 3})),
        "QuotaTooSmall Plan smb: spec.quota.persistentvolumeclaims",
        &["4 is needed"],
    );
}

#[test]
fn an_autoscaled_component_needs_room_for_the_most_replicas() {
    let own = |quota: Value| {
        one(1, &web(&json!({"cpu": "100m"}), &json!({})), &quota).with(|own| {
            let autoscaling = json!({"bridge": {"minReplicas": 1, "maxReplicas": 9, "targetCpuPercent": 50}});
            own.application.spec.components[0].autoscaling = serde_json::from_value(autoscaling).unwrap();
        })
    };
    assert!(own(json!({"requests.cpu": "1200m"})).effective().is_ok());
    let parts = ["1200m is needed", "web 12 x 100m (autoscaled up to 9 + 3 while a rollout goes on)"];
    one_fault(&own(json!({"requests.cpu": "1199m"})), "QuotaTooSmall Plan smb: spec.quota.requests.cpu", &parts);
    let fixed = own(json!({"requests.cpu": "200m"})).with(|own| {
        own.plan.spec.components = serde_json::from_value(json!({"web": {"replicas": 1}})).unwrap();
    });
    assert!(fixed.effective().is_ok(), "the plan's number stands instead of the autoscaler");
}

#[test]
fn every_component_is_named_with_its_share() {
    let own = Own::bridge().with(|own| own.plan.spec.quota = quantities(&json!({"limits.memory": "1Gi"})));
    let parts =
        ["api 2 x 1536Mi (1 + 1", "worker 2 x 256Mi (1 + 1", "web 2 x 256Mi (1 + 1", "4Gi is needed", "quota is 1Gi"];
    one_fault(&own, "QuotaTooSmall Plan smb: spec.quota.limits.memory", &parts);
}

#[test]
fn whether_it_is_the_plan_or_the_tenant_is_told() {
    let with_override = |quota: Value| {
        one(1, &web(&json!({"cpu": "1"}), &json!({})), &quota).with(|own| {
            let overrides = json!([{"component": "web", "replicas": 3}]);
            own.tenant.spec.overrides = serde_json::from_value(overrides).unwrap();
        })
    };
    let path = "QuotaTooSmall Plan smb: spec.quota.requests.cpu";
    one_fault(
        &with_override(json!({"requests.cpu": 3})),
        path,
        &["4 is needed", "Without this Tenant's spec.overrides it would fit"],
    );
    one_fault(
        &with_override(json!({"requests.cpu": 1})),
        path,
        &["It is so for each Tenant of this Plan, whatever its overrides"],
    );
    assert!(with_override(json!({"requests.cpu": 4})).effective().is_ok());
}

#[test]
fn objects_are_counted_with_those_that_the_tenant_gets_besides() {
    // 2 shared, 1 of ours, and kube-root-ca.crt.
    let own = |quota: Value| Own::bridge().with(|own| own.plan.spec.quota = quantities(&quota));
    let enough = json!({
        "configmaps": 3, "count/configmaps": 3, "secrets": 2, "count/secrets": 2, "services": 2,
        "services.loadbalancers": 0, "services.nodeports": 0, "persistentvolumeclaims": 0, "resourcequotas": 1,
        "count/deployments.apps": 3, "count/replicasets.apps": 15, "count/serviceaccounts": 2, "count/limitranges": 1,
        "count/rolebindings.rbac.authorization.k8s.io": 1, "count/httproutes.gateway.networking.k8s.io": 1,
        "count/networkpolicies.networking.k8s.io": 8, "count/jobs.batch": 0,
        "count/horizontalpodautoscalers.autoscaling": 0, "count/poddisruptionbudgets.policy": 0,
    });
    assert!(own(enough.clone()).effective().is_ok(), "{:?}", own(enough.clone()).effective());
    let counted: Vec<&String> =
        enough.as_object().unwrap().iter().filter(|(_, n)| **n != 0).map(|(name, _)| name).collect();
    for name in counted {
        let mut less = enough.clone();
        less[name] = json!(enough[name].as_i64().unwrap() - 1);
        let needed = format!("{} is needed", enough[name]);
        one_fault(&own(less), &format!("QuotaTooSmall Plan smb: spec.quota.{name}"), &[&needed]);
    }
}

#[test]
fn a_quota_on_compute_asks_every_container_for_its_amounts() {
    let quota = json!({"limits.memory": "10Gi", "requests.cpu": 10});
    let own = one(1, &web(&json!({"cpu": "1"}), &json!({})), &quota);
    let parts = [
        "component web, container web does not",
        "spec.limitRange.default.memory",
        "spec.components.web.resources.limits.memory",
    ];
    one_fault(&own, "QuotaNeedsResources Plan smb: spec.quota.limits.memory", &parts);
    let by_range = own.clone().with(|own| {
        own.plan.spec.limit_range = range(&json!({"default": {"memory": "1Gi"}}));
    });
    assert!(by_range.effective().is_ok());
    let by_plan = own.with(|own| {
        let resources = json!({"web": {"resources": {"limits": {"memory": "1Gi"}}}});
        own.plan.spec.components = serde_json::from_value(resources).unwrap();
    });
    assert!(by_plan.effective().is_ok());
}

fn range(value: &Value) -> Option<LimitRangeSettings> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A tenant whose container has these resources, under this LimitRange.
fn ranged(requests: &Value, limits: &Value, settings: &Value) -> Own {
    one(1, &web(requests, limits), &json!({})).with(|own| own.plan.spec.limit_range = range(settings))
}

#[test]
fn containers_are_held_to_the_limit_range() {
    let settings = json!({"min": {"cpu": "100m"}, "max": {"memory": "1Gi"}});
    assert!(ranged(&json!({"cpu": "100m"}), &json!({"memory": "1024Mi"}), &settings).effective().is_ok());
    let cases = [
        (json!({"cpu": "99m"}), json!({}), "min.cpu", "requests.cpu 99m, below 100m"),
        (json!({}), json!({"memory": "1025Mi"}), "max.memory", "requests.memory 1025Mi, above 1Gi"),
        (json!({"memory": "1Mi"}), json!({"memory": "1025Mi"}), "max.memory", "limits.memory 1025Mi, above 1Gi"),
    ];
    for (requests, limits, path, part) in cases {
        let faults = ranged(&requests, &limits, &settings).effective().unwrap_err();
        assert_eq!(faults[0].reason, "OutsideLimitRange");
        assert_eq!(faults[0].path, format!("Plan smb: spec.limitRange.{path}"));
        let messages: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
        assert!(messages.iter().any(|message| message.contains(part)), "{messages:?}");
        assert!(messages[0].contains("component web, container web"), "{messages:?}");
    }
    let above = ranged(&json!({"memory": "2Gi"}), &json!({}), &json!({"default": {"memory": "1Gi"}}));
    let parts = ["requests 2Gi of memory and is limited to 1Gi"];
    one_fault(&above, "RequestAboveLimit Plan smb: spec.components.web.resources", &parts);
}

#[test]
fn a_limit_range_that_contradicts_itself_is_refused() {
    let faults = |settings: Value| brief(&ranged(&json!({}), &json!({}), &settings).effective().unwrap_err());
    let cases = [
        (json!({"min": {"cpu": 2}, "max": {"cpu": 1}}), "min.cpu"),
        (json!({"defaultRequest": {"cpu": 2}, "default": {"cpu": 1}}), "defaultRequest.cpu"),
        (json!({"default": {"memory": "2Gi"}, "max": {"memory": "1Gi"}}), "default.memory"),
        // The minimum is no default request, since the default limit is one already.
        (json!({"min": {"memory": "2Gi"}, "default": {"memory": "1Gi"}}), "min.memory"),
        (json!({"max": {"cpus": 1}}), "max.cpus"),
    ];
    for (settings, path) in cases {
        let found = faults(settings.clone());
        let expected = format!("InvalidLimitRange Plan smb: spec.limitRange.{path}");
        assert_eq!(found.last(), Some(&expected), "{settings}: {found:?}");
    }
}

#[test]
fn names_and_numbers_of_a_quota_are_kubernetes_own() {
    let faults = |quota: Value| brief(&one(1, &web(&json!({}), &json!({})), &quota).effective().unwrap_err());
    assert_eq!(faults(json!({"request.cpu": 4})), ["InvalidQuota Plan smb: spec.quota.request.cpu"]);
    assert_eq!(faults(json!({"pods": "2.5"})), ["InvalidQuota Plan smb: spec.quota.pods"]);
    let good = json!({"hugepages-2Mi": "1Gi", "requests.nvidia.com/gpu": 1, "gold.storageclass.storage.k8s.io/requests.storage": "1Gi"});
    assert!(one(1, &web(&json!({}), &json!({})), &good).effective().is_ok());
}

/// A pool whose Application has this quota.
fn pool_faults_of(quota: &Value) -> Vec<Fault> {
    let mut application = application();
    application.spec.pools.as_mut().unwrap().quota = quantities(quota);
    build(&application, &server(), &std::collections::BTreeMap::new()).err().unwrap_or_default()
}

#[test]
fn a_pools_quota_has_room_for_its_pods_with_the_agent_and_for_its_tenants() {
    // api 3 + 1, worker 10 + 3, web 1 + 1 pods; the agent's 10m stands beside what api and
    // worker request, and the init container's CPU is more than both.
    let enough = json!({"pods": 19, "requests.cpu": "10770m", "secrets": 601, "count/services": 2});
    assert_eq!(brief(&pool_faults_of(&enough)), [""; 0]);
    let cases = [
        ("pods", json!(18), "19 is needed"),
        ("requests.cpu", json!("10769m"), "api 4 x 1010m (3 + 1"),
        ("requests.cpu", json!("10769m"), "worker 13 x 510m (autoscaled up to 10 + 3"),
        (
            "secrets",
            json!(600),
            "601 is needed, and the quota is 600. Raise the quota, or lower replicas, requests or pools.maxTenants",
        ),
    ];
    for (name, amount, part) in cases {
        let mut quota = enough.clone();
        quota[name] = amount;
        let faults = pool_faults_of(&quota);
        assert_eq!(brief(&faults), [format!("QuotaTooSmall spec.pools.quota.{name}")], "{faults:?}");
        assert!(faults[0].message.contains(part), "{}", faults[0].message);
        // The Application says so before there is a pool.
        let mut application = application();
        application.spec.pools.as_mut().unwrap().quota = quantities(&quota);
        assert_eq!(application_faults(&application, &settings(), &shelf()), faults);
    }
    assert_eq!(pool_capacity(&pool(), &application(), &server()), 600, "which is how many Secrets there may be");
}
