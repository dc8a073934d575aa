//! The objects of a pool and of a tenant.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tenantry::{
    api::{Application, Route},
    desired::{
        Kind, Object, RouteInput, RouteState, SecretInput, availability, naming, pool_capacity, route, route_accepted,
        tenant_secret,
    },
};

use crate::fixtures::{API_SERVER, application, application_with, build, find, pool, server, yaml};

fn pool_objects() -> Vec<Object> {
    build(&application(), &server(), &BTreeMap::new()).unwrap().into_ordered()
}

fn hosts() -> Vec<String> {
    vec!["acme.crm.example.com".into(), "crm.acme.example".into()]
}

fn tenant_route(application: &Application, hosts: &[String]) -> Option<Object> {
    route(&RouteInput { tenant: "acme", pool: Some("crm-1"), namespace: "pool-crm-1", application, hosts })
}

fn credentials() -> Object {
    tenant_secret(&SecretInput {
        tenant: "acme",
        pool: Some("crm-1"),
        application: "crm",
        namespace: "pool-crm-1",
        hosts: &hosts(),
        rotated: None,
        host: "pooler.example.internal",
        port: 6432,
        database: "pool_crm_1",
        schema: "t_6ilmqx5mbn4c",
        username: "t_6ilmqx5mbn4c_a",
        password: "not-a-real-password",
        sslmode: "verify-full",
        ca_pem: Some("-----BEGIN CERTIFICATE-----\n"),
    })
}

/// What a pooled tenant comes to.
pub fn tenant_objects() -> Vec<Object> {
    [credentials()].into_iter().chain(tenant_route(&application(), &hosts())).collect()
}

fn ingress_application() -> Application {
    let mut application = application();
    let route: &mut Route = application.spec.route.as_mut().unwrap();
    route.parent_refs = None;
    route.ingress_class_name = Some("nginx".into());
    route.tls = serde_json::from_value(json!({"secretName": "{tenant}-tls"})).unwrap();
    application
}

#[test]
fn a_pool_is_these_objects() {
    insta::assert_snapshot!("pool", yaml(&pool_objects()));
}

#[test]
fn a_pooled_tenant_is_a_secret_and_a_route() {
    insta::assert_snapshot!("tenant", yaml(&tenant_objects()));
}

#[test]
fn without_a_gateway_the_route_is_an_ingress() {
    insta::assert_snapshot!("ingress", yaml(&tenant_route(&ingress_application(), &hosts())));
}

#[test]
fn there_is_no_route_without_hosts_or_without_a_route_in_the_application() {
    assert_eq!(tenant_route(&application(), &[]), None);
    let mut application = application();
    application.spec.route = None;
    assert_eq!(tenant_route(&application, &hosts()), None);
}

#[test]
fn what_others_need_is_applied_first() {
    let objects = pool_objects();
    let kinds: Vec<Kind> = objects.iter().map(|object| object.kind).collect();
    assert_eq!(kinds[..2], [Kind::Namespace, Kind::RoleBinding]);
    let first = |kind| kinds.iter().position(|other| *other == kind).unwrap();
    let last = |kind| kinds.iter().rposition(|other| *other == kind).unwrap();
    for earlier in [Kind::Secret, Kind::ConfigMap, Kind::ServiceAccount, Kind::NetworkPolicy, Kind::Service] {
        assert!(last(earlier) < first(Kind::Deployment), "{earlier}");
    }
    assert_eq!(last(Kind::Deployment), kinds.len() - 1);
    for object in &objects {
        let namespace = object.kind.namespaced().then_some("pool-crm-1");
        assert_eq!(object.namespace.as_deref(), namespace, "{object}");
        assert_eq!(object.body["metadata"]["labels"]["tenantry.io/pool"], "crm-1", "{object}");
        assert_eq!(object.body["metadata"]["labels"]["app.kubernetes.io/managed-by"], "tenantry", "{object}");
    }
}

#[test]
fn the_agents_token_is_mounted_in_the_agent_alone() {
    for name in ["api", "worker"] {
        let objects = pool_objects();
        let spec = &find(&objects, Kind::Deployment, name)["spec"]["template"]["spec"];
        assert_eq!(spec["serviceAccountName"], "tenantry-agent");
        assert_eq!(spec["automountServiceAccountToken"], false);
        let containers = ["initContainers", "containers"].into_iter().flat_map(|list| spec[list].as_array()).flatten();
        for container in containers {
            let mounts = container["volumeMounts"].as_array().unwrap();
            let mount = |volume: &str| mounts.iter().find(|mount| mount["name"] == volume);
            let is_agent = container["name"] == "tenantry-agent";
            assert_eq!(mount(naming::TOKEN_VOLUME).is_some(), is_agent, "{}", container["name"]);
            let read_only = mount(naming::TENANTS_VOLUME).unwrap()["readOnly"] == true;
            assert_eq!(read_only, !is_agent, "{}", container["name"]);
        }
        assert_eq!(spec["initContainers"][0]["name"], "tenantry-agent");
    }
    let objects = pool_objects();
    let web = &find(&objects, Kind::Deployment, "web")["spec"]["template"]["spec"];
    assert_eq!(web["serviceAccountName"], Value::Null);
    assert_eq!(web["initContainers"], Value::Null);
}

#[test]
fn what_the_user_wrote_stays() {
    let objects = pool_objects();
    let worker = &find(&objects, Kind::Deployment, "worker")["spec"]["template"]["spec"];
    assert_eq!(worker["securityContext"]["fsGroup"], 2000);
    assert_eq!(worker["containers"][0]["securityContext"]["readOnlyRootFilesystem"], false);
    let web = &find(&objects, Kind::Deployment, "web")["spec"]["template"]["spec"];
    assert_eq!(web["topologySpreadConstraints"].as_array().unwrap().len(), 1);
    assert_eq!(web["topologySpreadConstraints"][0]["labelSelector"], json!({}));
    let api = &find(&objects, Kind::Deployment, "api")["spec"]["template"]["spec"];
    let env: Vec<_> = api["containers"][0]["env"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(env, ["TENANTRY_POOL", "TENANTRY_TENANTS_DIR", "LOG", "WHERE", "EMPTY"]);
}

#[test]
fn an_autoscaled_component_has_no_replicas_unless_they_are_held() {
    let objects = pool_objects();
    assert_eq!(find(&objects, Kind::Deployment, "worker")["spec"]["replicas"], Value::Null);
    assert_eq!(find(&objects, Kind::Deployment, "api")["spec"]["replicas"], 3);
    let held = BTreeMap::from([("worker".to_owned(), 7), ("api".to_owned(), 9)]);
    let objects = build(&application(), &server(), &held).unwrap().into_ordered();
    assert_eq!(find(&objects, Kind::Deployment, "worker")["spec"]["replicas"], 7);
    assert_eq!(find(&objects, Kind::Deployment, "api")["spec"]["replicas"], 3, "not autoscaled: the spec counts");
}

#[test]
fn one_replica_has_no_disruption_budget() {
    let budgets = build(&application(), &server(), &BTreeMap::new()).unwrap().disruption_budgets;
    let found: Vec<_> =
        budgets.iter().map(|budget| (budget.name.as_str(), budget.body["spec"]["maxUnavailable"].clone())).collect();
    assert_eq!(found, [("api", json!("34%")), ("worker", json!(1))]);
}

#[test]
fn no_way_leads_to_a_database_whose_network_is_not_declared() {
    let mut server = server();
    server.spec.network = None;
    let objects = build(&application(), &server, &BTreeMap::new()).unwrap();
    assert!(!objects.network_declared);
    assert!(objects.network_policies.iter().all(|policy| policy.name != "allow-database"));
    assert!(build(&application(), &self::server(), &BTreeMap::new()).unwrap().network_declared);
}

#[test]
fn nobody_may_connect_where_no_peer_is_named_and_no_rule_is_open_to_all() {
    let mut application = application();
    application.spec.route.as_mut().unwrap().from = Some(Vec::new());
    application.spec.egress = Some(Vec::new());
    let policies = build(&application, &server(), &BTreeMap::new()).unwrap().network_policies;
    assert!(policies.iter().all(|policy| policy.name != "allow-route" && policy.name != "allow-egress"));
    for policy in &policies {
        let spec = &policy.body["spec"];
        let rules = ["ingress", "egress"].into_iter().flat_map(|list| spec[list].as_array()).flatten();
        for rule in rules {
            let peers = rule["to"].as_array().or(rule["from"].as_array());
            assert!(peers.is_some_and(|peers| !peers.is_empty()), "{policy}: a rule without peers allows everyone");
            assert!(rule["ports"].as_array().is_some_and(|ports| !ports.is_empty()), "{policy}");
        }
    }
}

#[test]
fn the_agent_reaches_the_api_server_at_each_of_its_addresses() {
    let objects = pool_objects();
    let rules = find(&objects, Kind::NetworkPolicy, "allow-api-server")["spec"]["egress"].as_array().unwrap();
    assert_eq!(rules.len(), API_SERVER.len());
    assert_eq!(rules[1]["to"][0]["ipBlock"]["cidr"], "2001:db8::1/128");
}

#[test]
fn a_pool_takes_what_it_says_up_to_what_a_database_holds() {
    let (mut pool, mut application, mut server) = (pool(), application(), server());
    assert_eq!(pool_capacity(&pool, &application, &server), 600);
    pool.spec.max_tenants = Some(20);
    assert_eq!(pool_capacity(&pool, &application, &server), 20);
    server.spec.capacity = serde_json::from_value(json!({"schemasPerDatabase": 8})).unwrap();
    assert_eq!(pool_capacity(&pool, &application, &server), 8);
    (pool.spec.max_tenants, application.spec.pools, server.spec.capacity) = (None, None, None);
    assert_eq!(pool_capacity(&pool, &application, &server), 500);
}

/// A live HTTPRoute at generation 3 whose parents say `statuses`.
fn live_route(statuses: &Value) -> Value {
    let mut live = tenant_route(&application(), &hosts()).unwrap().body;
    live["metadata"]["generation"] = json!(3);
    live["status"] = json!({"parents": statuses});
    live
}

fn parent(name: &str, section: Option<&str>, accepted: (&str, i64), resolved: (&str, i64)) -> Value {
    let condition = |kind, (status, generation): (&str, i64)| json!({"type": kind, "status": status, "observedGeneration": generation, "reason": "Why", "message": "how"});
    let mut reference = json!({"name": name, "namespace": "gateways"});
    if let Some(section) = section {
        reference["sectionName"] = json!(section);
    }
    json!({
        "parentRef": reference,
        "conditions": [condition("Accepted", accepted), condition("ResolvedRefs", resolved)],
    })
}

#[test]
fn a_route_counts_when_every_parent_has_accepted_its_present_generation() {
    let good = ("True", 3);
    let public = parent("public", Some("https"), good, good);
    let state = |parents: Value| route_accepted(&live_route(&parents));
    assert_eq!(state(json!([public, parent("internal", None, good, good)])), RouteState::Accepted);
    let pending = [
        json!([]),
        json!([public]),
        json!([public, parent("internal", Some("other"), good, good)]),
        json!([public, parent("internal", None, ("True", 2), good)]),
        json!([public, parent("internal", None, ("False", 2), good)]),
    ];
    for parents in pending {
        let RouteState::Pending { message } = state(parents.clone()) else { panic!("{parents}") };
        assert!(message.contains("Gateway gateways/"), "{message}");
    }
    let RouteState::Refused { reason, message } = state(json!([public, parent("internal", None, good, ("False", 3))]))
    else {
        panic!("the parent did not resolve the backend")
    };
    assert_eq!(reason, "Why");
    assert_eq!(message, "Gateway gateways/internal sets ResolvedRefs to False: Why: how");
}

#[test]
fn an_ingress_counts_when_it_has_an_address() {
    let mut live = tenant_route(&ingress_application(), &hosts()).unwrap().body;
    assert!(matches!(route_accepted(&live), RouteState::Pending { message } if message.contains("nginx")));
    live["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    assert_eq!(route_accepted(&live), RouteState::Accepted);
}

#[test]
fn a_component_serves_while_one_replica_is_ready() {
    let live = |wanted: i64, ready: i64, conditions: Value| {
        json!({
            "metadata": {"generation": 2},
            "spec": {"replicas": wanted},
            "status": {"observedGeneration": 1, "readyReplicas": ready, "conditions": conditions},
        })
    };
    let failure = json!([
        {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "timed out"},
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"},
    ]);
    let cases = [
        (Some(live(3, 3, json!([]))), true, "Available", ""),
        (Some(live(3, 1, json!([]))), true, "ReplicasUnavailable", "component api: 1 of 3 replicas ready"),
        (Some(live(0, 0, json!([]))), true, "ScaledToZero", "component api is scaled to zero"),
        (Some(live(2, 0, json!([]))), false, "ReplicasUnavailable", "component api: 0 of 2 replicas ready"),
        (Some(live(2, 0, failure)), false, "PodsRefused", "component api: 0 of 2 replicas ready; exceeded quota"),
        (None, false, "DeploymentMissing", "component api has no Deployment yet"),
    ];
    let mut states = Vec::new();
    for (live, available, reason, message) in cases {
        let state = availability::component_state("api", live.as_ref());
        assert_eq!((state.available, state.reason, state.message.as_str()), (available, reason, message));
        states.push(state);
    }
    assert_eq!(availability::unavailable(&states[..3]), None);
    let (reason, message) = availability::unavailable(&states).unwrap();
    assert_eq!(reason, "ReplicasUnavailable");
    assert_eq!(message.matches("; ").count(), 3);
}

#[test]
fn what_is_ready_serves_and_lasts_once_it_is_available() {
    let state = |wanted: i64, ready: i64, available: i64| {
        let live = json!({
            "metadata": {"generation": 1}, "spec": {"replicas": wanted},
            "status": {"observedGeneration": 1, "readyReplicas": ready, "availableReplicas": available},
        });
        let state = availability::component_state("api", Some(&live));
        (state.available, state.lasting)
    };
    assert_eq!(state(2, 1, 0), (true, false));
    assert_eq!(state(2, 2, 1), (true, true));
    assert_eq!(state(2, 0, 0), (false, false));
    assert_eq!(state(0, 0, 0), (true, true));
}

#[test]
fn new_pods_must_last_for_ten_seconds_or_what_fits_into_the_deadline() {
    let seconds = |rollout: Value| {
        let mut application = application();
        application.spec.rollout = serde_json::from_value(rollout).unwrap();
        let objects = build(&application, &server(), &BTreeMap::new()).unwrap();
        objects.deployments[0].body["spec"]["minReadySeconds"].clone()
    };
    assert_eq!(seconds(Value::Null), 10);
    assert_eq!(seconds(json!({"minReadySeconds": 45})), 45);
    assert_eq!(seconds(json!({"minReadySeconds": 0})), Value::Null, "Kubernetes' own default");
    assert_eq!(seconds(json!({"minReadySeconds": 900})), 300, "half of Kubernetes' ten minutes");
    assert_eq!(seconds(json!({"deadline": "5s"})), 2);
    assert_eq!(seconds(json!({"deadline": "1s"})), Value::Null);
}

#[test]
fn a_budget_stands_wherever_there_can_be_more_than_one_replica() {
    let has_budget = |component: Value| {
        let mut whole = json!({
            "name": "api",
            "template": {"spec": {"containers": [
                {"name": "api", "image": "x", "resources": {"requests": {"cpu": "100m"}}},
            ]}},
        });
        whole.as_object_mut().unwrap().extend(component.as_object().unwrap().clone());
        let objects = build(&application_with(whole), &server(), &BTreeMap::new()).unwrap().into_ordered();
        objects.iter().any(|object| object.kind == Kind::PodDisruptionBudget)
    };
    let scaled =
        |most: i32| json!({"autoscaling": {"pooled": {"minReplicas": 1, "maxReplicas": most, "targetCpuPercent": 80}}});
    assert!(has_budget(scaled(8)), "it may have eight by now");
    assert!(!has_budget(scaled(1)));
    assert!(has_budget(json!({"replicas": {"pooled": 2}})));
    assert!(!has_budget(json!({"replicas": {"pooled": 1}})));
}
