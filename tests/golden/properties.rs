//! What holds for every Application.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{
    prelude::*,
    sample::{select, subsequence},
};
use serde_json::{Value, json};
use tenantry::{
    api::Application,
    desired::{Fault, Kind, Object, PoolObjects},
};

use crate::fixtures::{Own, application, build, server};

/// Empty maps that the API server keeps: there, "everything", or "of this sort".
const KEPT: [&str; 6] = ["podSelector", "namespaceSelector", "labelSelector", "emptyDir", "downwardAPI", "projected"];

/// The paths of nulls, and of lists and maps that are empty and mean nothing.
fn pointless(path: &str, value: &Value) -> Vec<String> {
    match value {
        Value::Null => vec![path.to_owned()],
        Value::Array(items) if items.is_empty() => vec![path.to_owned()],
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(index, item)| pointless(&format!("{path}[{index}]"), item)).collect()
        }
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| {
                let path = format!("{path}.{key}");
                match value {
                    Value::Object(map) if map.is_empty() && KEPT.contains(&key.as_str()) => Vec::new(),
                    Value::Object(map) if map.is_empty() => vec![path],
                    _ => pointless(&path, value),
                }
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Fields of a pod spec, and of a container, as users write them: with what is empty, null
/// or superfluous.
fn pod_fields() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    subsequence(
        vec![
            ("tolerations", json!([])),
            ("affinity", json!({})),
            ("nodeSelector", json!({})),
            ("securityContext", json!({"fsGroup": 7, "supplementalGroups": []})),
            ("imagePullSecrets", json!([{"name": "registry"}])),
            (
                "volumes",
                json!([{"name": "a", "emptyDir": {}}, {"name": "b", "secret": {"secretName": "s", "items": []}}]),
            ),
            ("terminationGracePeriodSeconds", json!(null)),
            ("topologySpreadConstraints", json!([])),
            ("initContainers", json!([{"name": "first", "image": "i", "command": []}])),
            ("dnsConfig", json!({"options": []})),
        ],
        0..=10,
    )
}

fn container_fields() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    subsequence(
        vec![
            ("env", json!([])),
            ("envFrom", json!(null)),
            ("ports", json!([{"containerPort": 8080}])),
            ("securityContext", json!({})),
            ("resources", json!({"requests": {"cpu": 0.1}, "limits": {}})),
            ("volumeMounts", json!([])),
            ("args", json!(["serve"])),
            ("lifecycle", json!({"preStop": {"sleep": {"seconds": 3}}})),
        ],
        0..=8,
    )
}

prop_compose! {
    fn component()(
        name in select(vec!["api", "web", "worker", "mailer"]),
        pod in pod_fields(),
        container in container_fields(),
        port in proptest::option::of(1_i32..65_536),
        database in any::<bool>(),
        replicas in proptest::option::of(0_i32..5),
        annotated in any::<bool>(),
    ) -> Value {
        let mut main = json!({"name": "main", "image": "registry.example.com/x:1"});
        for (field, value) in container {
            main[field] = value;
        }
        let mut spec = json!({"containers": [main]});
        for (field, value) in pod {
            spec[field] = value;
        }
        let mut component = json!({"name": name, "database": database, "template": {"spec": spec}});
        if annotated {
            component["template"]["metadata"] = json!({"annotations": {"a": ""}, "labels": {}, "creationTimestamp": null});
        }
        if let Some(port) = port {
            component["port"] = json!(port);
        }
        if let Some(replicas) = replicas {
            component["replicas"] = json!({"pooled": replicas, "bridge": replicas});
        }
        component
    }
}

prop_compose! {
    fn applications()(
        components in proptest::collection::vec(component(), 1..5),
        routed in any::<bool>(),
        egress in select(vec![json!(null), json!([]), json!([{"to": [{"podSelector": {}, "namespaceSelector": {}}], "ports": []}])]),
        quota in select(vec![json!(null), json!({}), json!({"pods": 200, "count/secrets": "1000"})]),
    ) -> Application {
        let mut application = application();
        let mut names = BTreeSet::new();
        application.spec.components = components
            .into_iter()
            .filter(|component| names.insert(component["name"].to_string()))
            .map(|component| serde_json::from_value(component).unwrap())
            .collect();
        let serving = application.spec.components.iter().find(|component| component.port.is_some());
        match (serving.map(|component| component.name.clone()), &mut application.spec.route) {
            (Some(name), Some(route)) if routed => route.component = name,
            _ => application.spec.route = None,
        }
        application.spec.egress = serde_json::from_value(egress).unwrap();
        application.spec.pools.as_mut().unwrap().quota = serde_json::from_value(quota).unwrap();
        application
    }
}

/// The objects of the fixture's pool, and of its bridge tenant with hosts and a plan of all
/// sorts, for an Application.
fn everything(application: &Application, hosts: usize, bare: bool) -> Result<[Vec<Object>; 2], Vec<Fault>> {
    let pool = build(application, &server(), &BTreeMap::new()).map(PoolObjects::into_ordered)?;
    let own = Own::bridge().with(|own| {
        own.application = application.clone();
        own.hosts.truncate(hosts);
        own.plan.spec.quota = None;
        if bare {
            own.plan.spec.limit_range = None;
        } else {
            own.tenant.spec.owners = serde_json::from_value(json!([{"kind": "User", "name": "ada"}])).unwrap();
        }
    });
    own.effective()?;
    Ok([pool, own.try_objects()?.into_ordered()])
}

proptest! {
    #[test]
    fn objects_are_stable_and_have_nothing_that_the_api_server_drops(
        application in applications(), hosts in 0_usize..3, bare in any::<bool>(),
    ) {
        let build = || {
            everything(&application, hosts, bare).map_err(|faults| TestCaseError::fail(format!("{faults:?}")))
        };
        let (all, again) = (build()?, build()?);
        prop_assert_eq!(&all, &again);
        for objects in &all {
            let mut seen = BTreeSet::new();
            for object in objects {
                prop_assert_eq!(pointless("", &object.body), Vec::<String>::new(), "{}", object);
                prop_assert!(seen.insert((object.kind, object.name.clone())), "{} is there twice", object);
            }
        }
    }

    #[test]
    fn pods_are_found_by_their_deployments_and_are_safe(application in applications()) {
        let all = everything(&application, 2, false).map_err(|faults| TestCaseError::fail(format!("{faults:?}")))?;
        let objects = all.concat();
        for deployment in objects.iter().filter(|object| object.kind == Kind::Deployment) {
            let template = &deployment.body["spec"]["template"];
            let selector = deployment.body["spec"]["selector"]["matchLabels"].as_object().unwrap();
            for (label, value) in selector {
                prop_assert_eq!(&template["metadata"]["labels"][label], value);
            }
            let spec = &template["spec"];
            prop_assert_eq!(&spec["securityContext"]["runAsNonRoot"], &json!(true));
            prop_assert_eq!(&spec["securityContext"]["seccompProfile"]["type"], &json!("RuntimeDefault"));
            prop_assert_eq!(&spec["automountServiceAccountToken"], &json!(false));
            let containers = ["initContainers", "containers"].into_iter().flat_map(|list| spec[list].as_array()).flatten();
            for container in containers {
                let context = &container["securityContext"];
                prop_assert_eq!(&context["allowPrivilegeEscalation"], &json!(false));
                prop_assert_eq!(&context["capabilities"]["drop"], &json!(["ALL"]));
            }
        }
    }
}
