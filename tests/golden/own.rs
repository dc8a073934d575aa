//! The objects of tenants that have a namespace of their own.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tenantry::{
    api::Tier,
    desired::{Kind, Object, naming},
};

use crate::fixtures::{Own, brief, find, yaml};

fn both() -> [Own; 2] {
    [Own::bridge(), Own::dedicated()]
}

/// The pod spec of a component.
fn pod<'a>(objects: &'a [Object], component: &str) -> &'a Value {
    &find(objects, Kind::Deployment, component)["spec"]["template"]["spec"]
}

/// Every container of a pod spec.
fn containers(spec: &Value) -> Vec<&Value> {
    ["initContainers", "containers"].into_iter().filter_map(|list| spec[list].as_array()).flatten().collect()
}

#[test]
fn a_bridge_tenant_is_these_objects() {
    insta::assert_snapshot!("bridge", yaml(&Own::bridge().ordered()));
}

#[test]
fn a_dedicated_tenant_is_these_objects() {
    insta::assert_snapshot!("dedicated", yaml(&Own::dedicated().ordered()));
}

#[test]
fn what_others_need_is_applied_first() {
    for own in both() {
        let (objects, name) = (own.ordered(), own.tenant.metadata.name.clone().unwrap());
        let kinds: Vec<Kind> = objects.iter().map(|object| object.kind).collect();
        assert_eq!(kinds[..2], [Kind::Namespace, Kind::RoleBinding]);
        let first = kinds.iter().position(|kind| *kind == Kind::Deployment).unwrap();
        assert!(kinds[first..].iter().all(|kind| *kind == Kind::Deployment), "{kinds:?}");
        for object in &objects {
            let namespace = object.kind.namespaced().then(|| format!("tenant-{name}"));
            assert_eq!(object.namespace, namespace, "{object}");
            let labels = &object.body["metadata"]["labels"];
            assert_eq!(labels["tenantry.io/tenant"], json!(name), "{object}");
            assert_eq!(labels["tenantry.io/pool"], Value::Null, "{object}");
            assert_eq!(labels["app.kubernetes.io/managed-by"], "tenantry", "{object}");
        }
    }
}

#[test]
fn owners_are_bound_to_the_one_role_that_is_theirs() {
    let objects = Own::dedicated().ordered();
    let binding = find(&objects, Kind::RoleBinding, "tenantry-owner");
    assert_eq!(binding["roleRef"]["name"], "tenantry-owner");
    let subject = |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    assert_eq!(binding["subjects"], json!([subject("User", "ada@mega.example"), subject("Group", "mega-admins")]));
    assert!(Own::bridge().objects().owners.is_none());
    let own = Own::dedicated().with(|own| own.tenant.spec.owners.as_mut().unwrap()[1].name = "system:masters".into());
    assert_eq!(brief(&own.effective().unwrap_err()), ["SystemIdentity spec.owners[1].name"]);
}

/// The files of a volume: path by path, which key of which Secret.
fn files(spec: &Value) -> BTreeMap<String, String> {
    let volume = spec["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == naming::TENANTS_VOLUME);
    let source = &volume.unwrap()["projected"]["sources"][0]["secret"];
    let items = source["items"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    items.map(|item| (text(&item["path"]), format!("{}:{}", text(&source["name"]), text(&item["key"])))).collect()
}

#[test]
fn the_secret_is_mounted_where_the_agent_would_put_it() {
    let objects = Own::bridge().ordered();
    for component in ["api", "worker"] {
        let spec = pod(&objects, component);
        let files = files(spec);
        for folder in ["tenants/acme", "hosts/acme.crm.example.com", "hosts/crm.acme.example"] {
            for key in ["uri", "username", "password", "host", "port", "database", "schema", "sslmode", "ca.crt"] {
                assert_eq!(files[&format!("{folder}/{key}")], format!("acme-database:{key}"));
            }
        }
        assert_eq!(files.len(), 3 * 11, "every key, in every folder");
        for container in containers(spec) {
            let mount = json!({"name": "tenantry-tenants", "mountPath": "/var/run/tenantry", "readOnly": true});
            assert!(container["volumeMounts"].as_array().unwrap().contains(&mount), "{}", container["name"]);
        }
    }
    let volumes = pod(&objects, "api")["volumes"].as_array().unwrap();
    assert_eq!(volumes[1]["projected"]["defaultMode"], 0o440, "for the group that the pod's fsGroup names");
    assert_eq!(pod(&objects, "api")["securityContext"]["fsGroup"], 65_532);
    assert_eq!(pod(&objects, "worker")["securityContext"]["fsGroup"], 2000, "the template's own");
    assert!(!pod(&objects, "web").to_string().contains("acme-database"), "web has no database");
}

#[test]
fn the_order_of_hosts_restarts_nothing() {
    let turned = Own::bridge().with(|own| own.hosts.reverse());
    let deployments = |own: &Own| own.objects().deployments;
    assert_eq!(deployments(&turned), deployments(&Own::bridge()));
    let fewer = Own::bridge().with(|own| own.hosts.truncate(1));
    assert_ne!(deployments(&fewer), deployments(&Own::bridge()));
    let none = Own::bridge().with(|own| own.hosts.clear());
    assert_eq!(files(pod(&none.ordered(), "api")).len(), 11, "by the tenant's name alone");
}

#[test]
fn every_container_knows_its_tenant_plan_and_host() {
    for own in both() {
        let objects = own.ordered();
        for component in ["api", "worker", "web"] {
            for container in containers(pod(&objects, component)) {
                let env = container["env"].as_array().unwrap();
                let variable = |name: &str| env.iter().find(|variable| variable["name"] == name).unwrap();
                assert_eq!(variable("TENANTRY_TENANT")["value"], json!(own.tenant.metadata.name));
                for (name, key) in [("TENANTRY_PLAN", "plan"), ("TENANTRY_HOST", "host")] {
                    let expected = json!({"name": "tenantry-tenant", "key": key});
                    assert_eq!(variable(name)["valueFrom"]["configMapKeyRef"], expected);
                }
                assert!(env.iter().all(|variable| variable["name"] != "TENANTRY_POOL"));
            }
        }
        let facts = find(&objects, Kind::ConfigMap, "tenantry-tenant");
        assert_eq!(facts["data"], json!({"plan": own.tenant.spec.plan, "host": own.hosts[0]}));
    }
}

#[test]
fn pods_have_an_identity_without_a_token() {
    for own in both() {
        let objects = own.ordered();
        assert_eq!(find(&objects, Kind::ServiceAccount, "tenantry-workload")["automountServiceAccountToken"], false);
        for component in ["api", "worker", "web"] {
            let spec = pod(&objects, component);
            assert_eq!(spec["serviceAccountName"], "tenantry-workload");
            assert_eq!(spec["automountServiceAccountToken"], false);
            assert!(!spec.to_string().contains("serviceAccountToken"));
            assert!(!spec.to_string().contains("tenantry-agent"), "no agent runs");
        }
        for binding in objects.iter().filter(|object| object.kind == Kind::RoleBinding) {
            assert!(!binding.body["subjects"].to_string().contains("tenantry-workload"), "{binding}");
        }
    }
}

#[test]
fn another_plan_changes_no_pod() {
    let own = Own::bridge();
    let other = own.clone().with(|own| {
        own.plan.metadata.name = Some("gold".into());
        own.tenant.spec.plan = "gold".into();
        own.plan.spec.quota = serde_json::from_value(json!({"pods": 40, "requests.cpu": 8})).unwrap();
        own.plan.spec.limit_range = serde_json::from_value(json!({"default": {"memory": "512Mi"}})).unwrap();
        own.plan.spec.components = serde_json::from_value(json!({"web": {"replicas": 3}})).unwrap();
    });
    let (before, after) = (own.objects(), other.objects());
    assert_ne!((before.quota, before.limit_range, before.facts), (after.quota, after.limit_range, after.facts));
    for (before, after) in before.deployments.iter().zip(&after.deployments) {
        assert_eq!(before.body["spec"]["template"], after.body["spec"]["template"], "{before}");
    }
    assert_eq!(after.deployments[2].body["spec"]["replicas"], 3);
    assert_eq!(after.disruption_budgets.len(), 1, "for the three");
}

#[test]
fn what_the_tenant_says_goes_before_the_plan_and_the_plan_before_the_application() {
    let own = Own::dedicated().with(|own| {
        let components = json!({
            "api": {"replicas": 3, "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "3Gi"}}},
            "worker": {"replicas": 1},
        });
        own.plan.spec.components = serde_json::from_value(components).unwrap();
        let overrides = json!([{"component": "api", "replicas": 4, "resources": {"requests": {"cpu": 1}}}]);
        own.tenant.spec.overrides = serde_json::from_value(overrides).unwrap();
    });
    let objects = own.ordered();
    let api = pod(&objects, "api");
    let expected = json!({"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "3Gi"}});
    assert_eq!(api["containers"][0]["resources"], expected);
    assert_eq!(
        api["initContainers"][0]["resources"],
        json!({"limits": {"cpu": "1", "memory": "64Mi"}}),
        "not the main one"
    );
    assert_eq!(find(&objects, Kind::Deployment, "api")["spec"]["replicas"], 4);
    assert_eq!(find(&objects, Kind::Deployment, "worker")["spec"]["replicas"], 1);
    assert!(own.objects().autoscalers.is_empty(), "a number that is named stands instead of the autoscaler");
    assert_eq!(find(&objects, Kind::Deployment, "web")["spec"]["replicas"], 1);
}

#[test]
fn the_main_container_is_the_one_of_the_components_name() {
    let own = Own::dedicated().with(|own| {
        let containers = json!([
            {"name": "proxy", "image": "p", "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}}},
            {"name": "web", "image": "w", "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}}},
        ]);
        own.application.spec.components[2].template.0["spec"]["containers"] = containers;
    });
    let objects = own.ordered();
    let cpu = |index: usize| pod(&objects, "web")["containers"][index]["resources"]["requests"]["cpu"].clone();
    assert_eq!((cpu(0), cpu(1)), (json!("10m"), json!("100m")));
}

#[test]
fn an_autoscaled_component_has_no_replicas_unless_they_are_held() {
    let own = Own::dedicated();
    assert_eq!(find(&own.ordered(), Kind::Deployment, "worker")["spec"]["replicas"], Value::Null);
    assert_eq!(find(&own.ordered(), Kind::HorizontalPodAutoscaler, "worker")["spec"]["maxReplicas"], 4);
    let held = own.with(|own| own.held = BTreeMap::from([("worker".into(), 3), ("api".into(), 9)]));
    assert_eq!(find(&held.ordered(), Kind::Deployment, "worker")["spec"]["replicas"], 3);
    assert_eq!(find(&held.ordered(), Kind::Deployment, "api")["spec"]["replicas"], 2, "not autoscaled");
    assert!(Own::bridge().objects().autoscalers.is_empty(), "the Application autoscales at tier dedicated alone");
}

#[test]
fn no_pod_runs_for_a_suspended_tenant_and_all_else_stays() {
    for own in both() {
        let (before, after) = (own.ordered(), own.with(|own| own.suspended = true).ordered());
        for (mut before, after) in before.into_iter().zip(after) {
            if before.kind == Kind::Deployment {
                before.body["spec"]["replicas"] = json!(0);
            }
            assert_eq!(before, after);
        }
    }
}

/// Whatever the operator's version is, it stands in no pod template: an upgrade of the
/// operator restarts nothing. The agent's image, a setting of its own, is the one exception.
#[test]
fn nothing_of_the_operators_version_is_in_a_pod_template() {
    let pool = crate::fixtures::build(&crate::fixtures::application(), &crate::fixtures::server(), &BTreeMap::new());
    let mut deployments = pool.unwrap().deployments;
    deployments.extend(both().iter().flat_map(|own| own.objects().deployments));
    assert_eq!(deployments.len(), 9);
    let version = env!("CARGO_PKG_VERSION");
    for deployment in deployments {
        let mut template = deployment.body["spec"]["template"].clone();
        for container in template["spec"]["initContainers"].as_array_mut().into_iter().flatten() {
            if container["name"] == "tenantry-agent" {
                let image = container["image"].take();
                assert_eq!(image, crate::fixtures::settings().agent_image);
            }
        }
        let text = template.to_string();
        assert!(!text.contains(version), "{deployment} has {version}: {text}");
        assert!(!text.contains("helm.sh/chart") && !text.contains("app.kubernetes.io/version"), "{deployment}");
    }
}

#[test]
fn a_plan_without_quota_and_limit_range_makes_none() {
    let own = Own::bridge().with(|own| (own.plan.spec.quota, own.plan.spec.limit_range) = (None, None));
    let kinds: BTreeSet<Kind> = own.ordered().iter().map(|object| object.kind).collect();
    assert!(!kinds.contains(&Kind::ResourceQuota) && !kinds.contains(&Kind::LimitRange));
    let empty = own.with(|own| {
        own.plan.spec.quota = serde_json::from_value(json!({})).unwrap();
        own.plan.spec.limit_range = serde_json::from_value(json!({"default": {}})).unwrap();
    });
    let kinds: BTreeSet<Kind> = empty.ordered().iter().map(|object| object.kind).collect();
    assert!(!kinds.contains(&Kind::ResourceQuota) && !kinds.contains(&Kind::LimitRange));
}

#[test]
fn faults_of_others_say_whose_they_are() {
    let own = Own::bridge().with(|own| {
        own.application.spec.components[0].template.0["spec"]["containers"] = json!([]);
        own.application.spec.shared.as_mut().unwrap().secrets = Some(vec!["gone".into()]);
        let peer = json!({"to": [{}]});
        own.server.spec.network = serde_json::from_value(peer).unwrap();
    });
    assert!(own.effective().is_ok(), "the tenant itself is without fault");
    let expected = [
        "SharedObjectMissing Application crm: spec.shared.secrets[0]",
        "InvalidPeer DatabaseServer main: spec.network.to[0]",
        "InvalidTemplate Application crm: spec.components[0].template.spec.containers",
    ];
    assert_eq!(brief(&own.try_objects().unwrap_err()), expected);
}

#[test]
fn no_way_leads_to_a_database_whose_network_is_not_declared() {
    let own = Own::bridge().with(|own| own.server.spec.network = None);
    assert!(!own.objects().network_declared);
    assert!(own.objects().network_policies.iter().all(|policy| policy.name != "allow-database"));
    assert!(Own::bridge().objects().network_declared);
    assert_eq!(own.tier, Tier::Bridge);
}
