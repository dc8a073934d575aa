//! Faults of an Application: each with the path of the field that is to be changed.

use std::{fs, path::Path};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tenantry::{
    api::{Application, DatabaseServer, Plan, Tenant},
    desired::{Fault, application_faults, effective, join_faults, pool_faults, server_faults},
};

use crate::fixtures::{Shelf, application, application_with, brief, build, pool, server, settings, shelf};

/// The faults of a component whose pod spec is the given one, after `change`.
fn faults_of(change: impl FnOnce(&mut Value)) -> Vec<Fault> {
    let mut component = json!({
        "name": "api",
        "database": true,
        "template": {"spec": {"containers": [{"name": "api", "image": "crm"}]}},
    });
    change(&mut component);
    application_faults(&application_with(component), &settings(), &shelf())
}

#[test]
fn a_template_that_does_not_decode_names_the_path() {
    let cases: [(&str, Value, &str); 8] = [
        (
            "/containers",
            json!([{"name": "a", "image": "b", "ports": [{"containerPort": "http"}]}]),
            "containers[0].ports[0].containerPort",
        ),
        (
            "/containers",
            json!([{"name": "a", "image": "b", "imagePulPolicy": "Always"}]),
            "containers[0].imagePulPolicy",
        ),
        (
            "/containers",
            json!([{"name": "a", "image": "b", "env": [{"name": "X", "value": 1}]}]),
            "containers[0].env[0].value",
        ),
        (
            "/containers",
            json!([{"name": "a", "image": "b", "resources": {"limits": {"cpu": "1 core"}}}]),
            "containers[0].resources.limits.cpu",
        ),
        (
            "/containers",
            json!([{"name": "a", "image": "b", "securityContext": {"runAsUser": "me"}}]),
            "containers[0].securityContext.runAsUser",
        ),
        ("/containers", json!({"name": "a"}), "containers"),
        ("/volumes", json!([{"name": "v", "emptyDir": {"sizeLimit": "big"}}]), "volumes[0].emptyDir.sizeLimit"),
        ("/terminationGracePeriodSeconds", json!("30s"), "terminationGracePeriodSeconds"),
    ];
    for (pointer, value, path) in cases {
        let faults = faults_of(|component| component["template"]["spec"][&pointer[1..]] = value);
        assert_eq!(brief(&faults), [format!("InvalidTemplate spec.components[0].template.spec.{path}")], "{faults:?}");
    }
    let faults = faults_of(|component| component["template"] = json!({"spec": "x"}));
    assert_eq!(brief(&faults), ["InvalidTemplate spec.components[0].template.spec"]);
    let faults = faults_of(|component| component["template"] = json!({}));
    assert_eq!(brief(&faults), ["InvalidTemplate spec.components[0].template.spec.containers"]);
}

#[test]
fn what_no_deployment_or_agent_can_run_is_refused() {
    let container = json!({"name": "api", "image": "crm"});
    let cases: [(Value, &str); 16] = [
        (json!({"containers": []}), "containers"),
        (json!({"containers": [{"name": "api"}]}), "containers[0].image"),
        (json!({"containers": [{"name": "API", "image": "x"}]}), "containers[0].name"),
        (json!({"containers": [container, container]}), "containers[1].name"),
        (json!({"containers": [container], "initContainers": [container]}), "containers[0].name"),
        (json!({"containers": [{"name": "tenantry-agent", "image": "x"}]}), "containers[0].name"),
        (
            json!({"containers": [container], "volumes": [{"name": "tenantry-tenants", "emptyDir": {}}]}),
            "volumes[0].name",
        ),
        (
            json!({"containers": [{"name": "api", "image": "x", "volumeMounts": [{"name": "gone", "mountPath": "/x"}]}]}),
            "containers[0].volumeMounts[0].name",
        ),
        (
            json!({"containers": [{"name": "api", "image": "x", "ports": [{"containerPort": 70_000}]}]}),
            "containers[0].ports[0].containerPort",
        ),
        (
            json!({"containers": [{"name": "api", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/var/run/tenantry/x"}]}], "volumes": [{"name": "v", "emptyDir": {}}]}),
            "containers[0].volumeMounts[0].mountPath",
        ),
        (
            json!({"containers": [{"name": "api", "image": "x", "resources": {"requests": {"memory": "1.1Gi"}, "limits": {"memory": "1Gi"}}}]}),
            "containers[0].resources.requests.memory",
        ),
        (json!({"containers": [container], "restartPolicy": "Never"}), "restartPolicy"),
        (json!({"containers": [container], "activeDeadlineSeconds": 5}), "activeDeadlineSeconds"),
        (json!({"containers": [container], "serviceAccountName": "mine"}), "serviceAccountName"),
        (json!({"containers": [container], "automountServiceAccountToken": true}), "automountServiceAccountToken"),
        (
            json!({"containers": [container], "volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}),
            "volumes[0].projected",
        ),
    ];
    for (spec, path) in cases {
        let faults = faults_of(|component| component["template"]["spec"] = spec);
        assert_eq!(brief(&faults), [format!("InvalidTemplate spec.components[0].template.spec.{path}")], "{faults:?}");
    }
    let faults = faults_of(|component| {
        component["template"]["metadata"] = json!({"labels": {"app.kubernetes.io/component": "x"}})
    });
    assert_eq!(brief(&faults), ["InvalidTemplate spec.components[0].template.metadata.labels"]);
}

/// A pod spec with a field of its own.
fn plus(field: &str, value: &Value) -> Value {
    json!({"containers": [{"name": "api", "image": "x"}], field: value})
}

/// A pod spec whose container has a field of its own.
fn on(field: &str, value: &Value) -> Value {
    json!({"containers": [{"name": "api", "image": "x", field: value}]})
}

/// Pod specs that Pod Security `restricted` forbids, with the field.
pub fn pod_security_cases() -> Vec<(Value, String)> {
    let inside = "containers[0].securityContext";
    vec![
        (plus("hostNetwork", &json!(true)), "hostNetwork".into()),
        (plus("hostPID", &json!(true)), "hostPID".into()),
        (plus("hostIPC", &json!(true)), "hostIPC".into()),
        (plus("volumes", &json!([{"name": "h", "hostPath": {"path": "/"}}])), "volumes[0]".into()),
        (plus("volumes", &json!([{"name": "h", "nfs": {"path": "/", "server": "s"}}])), "volumes[0]".into()),
        (on("ports", &json!([{"containerPort": 80, "hostPort": 80}])), "containers[0].ports[0].hostPort".into()),
        (
            on("livenessProbe", &json!({"httpGet": {"port": 80, "host": "10.0.0.1"}})),
            "containers[0].livenessProbe".into(),
        ),
        (
            on("lifecycle", &json!({"preStop": {"tcpSocket": {"port": 80, "host": "h"}}})),
            "containers[0].lifecycle.preStop".into(),
        ),
        (plus("securityContext", &json!({"runAsNonRoot": false})), "securityContext.runAsNonRoot".into()),
        (plus("securityContext", &json!({"runAsUser": 0})), "securityContext.runAsUser".into()),
        (
            plus("securityContext", &json!({"seccompProfile": {"type": "Unconfined"}})),
            "securityContext.seccompProfile".into(),
        ),
        (
            plus("securityContext", &json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]})),
            "securityContext.sysctls[0]".into(),
        ),
        (
            plus("securityContext", &json!({"seLinuxOptions": {"type": "spc_t"}})),
            "securityContext.seLinuxOptions.type".into(),
        ),
        (
            plus("securityContext", &json!({"appArmorProfile": {"type": "Unconfined"}})),
            "securityContext.appArmorProfile".into(),
        ),
        (on("securityContext", &json!({"privileged": true})), format!("{inside}.privileged")),
        (
            on("securityContext", &json!({"allowPrivilegeEscalation": true})),
            format!("{inside}.allowPrivilegeEscalation"),
        ),
        (on("securityContext", &json!({"runAsNonRoot": false})), format!("{inside}.runAsNonRoot")),
        (on("securityContext", &json!({"runAsUser": 0})), format!("{inside}.runAsUser")),
        (
            json!({
                "hostUsers": false,
                "containers": [{"name": "api", "image": "x", "securityContext": {"procMount": "Unmasked"}}],
            }),
            format!("{inside}.procMount"),
        ),
        (on("securityContext", &json!({"seccompProfile": {"type": "Unconfined"}})), format!("{inside}.seccompProfile")),
        (on("securityContext", &json!({"capabilities": {"add": ["SYS_ADMIN"]}})), format!("{inside}.capabilities.add")),
        (on("securityContext", &json!({"capabilities": {"drop": ["NET_RAW"]}})), format!("{inside}.capabilities.drop")),
        (on("securityContext", &json!({"seLinuxOptions": {"user": "u"}})), format!("{inside}.seLinuxOptions")),
    ]
}

/// Pod specs that Pod Security `restricted` allows.
pub fn allowed_pods() -> Vec<Value> {
    vec![
        on(
            "securityContext",
            &json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}, "runAsUser": 1000}),
        ),
        plus("securityContext", &json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "p"}})),
        plus("securityContext", &json!({"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "80"}]})),
        on("livenessProbe", &json!({"httpGet": {"port": 80}})),
    ]
}

#[test]
fn what_pod_security_would_refuse_later_is_refused_now() {
    for (spec, path) in pod_security_cases() {
        let faults = faults_of(|component| component["template"]["spec"] = spec);
        let expected = [format!("ForbiddenByPodSecurity spec.components[0].template.spec.{path}")];
        assert_eq!(brief(&faults), expected, "{faults:?}");
        assert!(faults[0].message.contains("restricted"), "{}", faults[0].message);
    }
    for spec in allowed_pods() {
        let faults = faults_of(|component| component["template"]["spec"] = spec);
        assert_eq!(brief(&faults), [""; 0]);
    }
}

#[test]
fn without_credentials_a_pod_may_have_a_token_of_no_worth() {
    let faults = faults_of(|component| {
        component["database"] = json!(false);
        component["template"]["spec"]["automountServiceAccountToken"] = json!(true);
    });
    assert_eq!(brief(&faults), [""; 0]);
}

#[test]
fn autoscaling_needs_a_cpu_request() {
    let autoscale = |component: &mut Value| {
        component["autoscaling"] = json!({"pooled": {"minReplicas": 1, "maxReplicas": 2, "targetCpuPercent": 50}});
    };
    let faults = faults_of(autoscale);
    assert_eq!(brief(&faults), ["InvalidTemplate spec.components[0].template.spec.containers[0].resources"]);
    let faults = faults_of(|component| {
        autoscale(component);
        component["template"]["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": 1}});
    });
    assert_eq!(brief(&faults), [""; 0]);
}

#[test]
fn under_a_quota_every_container_says_what_it_needs() {
    let mut application = application_with(json!({
        "name": "api",
        "template": {"spec": {
            "initContainers": [{"name": "first", "image": "x", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}],
            "containers": [{"name": "api", "image": "x", "resources": {"requests": {"cpu": 1}}}],
        }},
    }));
    let mut check = |quota: Value| {
        application.spec.pools = serde_json::from_value(json!({"quota": quota})).unwrap();
        brief(&application_faults(&application, &settings(), &shelf()))
    };
    assert_eq!(check(json!({"pods": 3, "requests.cpu": 4, "requests.ephemeral-storage": "1Gi"})), [""; 0]);
    let container = "QuotaNeedsResources spec.components[0].template.spec.containers[0].resources";
    assert_eq!(check(json!({"memory": "1Gi"})), [format!("{container}.requests.memory")]);
    assert_eq!(check(json!({"limits.cpu": 1})), [format!("{container}.limits.cpu")]);
}

/// The documents of a file in `examples/` that are of a kind.
fn examples<T: DeserializeOwned>(file: &str, kind: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(file);
    let documents: Vec<Value> = serde_saphyr::from_multiple(&fs::read_to_string(path).unwrap()).unwrap();
    let wanted = documents.into_iter().filter(|document| document["kind"] == kind);
    wanted.map(|document| serde_json::from_value(document).unwrap()).collect()
}

#[test]
fn the_examples_have_no_fault() {
    let applications: Vec<Application> = examples("application.yaml", "Application");
    let servers: Vec<DatabaseServer> = examples("server.yaml", "DatabaseServer");
    let plans: Vec<Plan> = examples("plans.yaml", "Plan");
    let tenants: Vec<Tenant> = examples("tenants.yaml", "Tenant");
    assert!(!applications.is_empty() && !servers.is_empty() && !plans.is_empty() && !tenants.is_empty());
    let shelf = Shelf {
        plans: plans.iter().filter_map(|plan| plan.metadata.name.clone()).collect(),
        servers: servers.iter().map(|server| (server.metadata.name.clone().unwrap(), server.clone())).collect(),
        domains: Vec::new(),
    };
    let faults = servers.iter().flat_map(server_faults);
    let faults =
        faults.chain(applications.iter().flat_map(|application| application_faults(application, &settings(), &shelf)));
    assert_eq!(brief(&faults.collect::<Vec<_>>()), [""; 0]);
    for tenant in &tenants {
        let plan = plans.iter().find(|plan| plan.metadata.name.as_ref() == Some(&tenant.spec.plan));
        let result = effective(tenant, plan, applications.first(), &shelf);
        assert!(result.is_ok(), "{:?}: {result:?}", tenant.metadata.name);
    }
    // Whichever tier of a plan one chooses, the pods fit into its quota.
    for plan in &plans {
        for tier in plan.spec.allowed_tiers.clone().unwrap_or_else(|| vec![plan.spec.tier]) {
            let mut tenant = tenants[0].clone();
            tenant.spec.plan = plan.metadata.name.clone().unwrap();
            tenant.spec.tier = Some(tier);
            let result = effective(&tenant, Some(plan), applications.first(), &shelf);
            assert!(result.is_ok(), "{} at tier {tier}: {result:?}", tenant.spec.plan);
        }
    }
}

#[test]
fn the_fixture_has_no_fault_and_every_fault_is_told() {
    assert_eq!(brief(&application_faults(&application(), &settings(), &shelf())), [""; 0]);
    let mut application = application();
    application.spec.components[1].template.0.clear();
    application.spec.shared.as_mut().unwrap().secrets = Some(vec!["elsewhere".into()]);
    let mut server = server();
    server.spec.network = serde_json::from_value(json!({"to": [{}]})).unwrap();
    let faults = build(&application, &server, &Default::default()).unwrap_err();
    let expected = [
        "SharedObjectMissing spec.shared.secrets[0]",
        "InvalidPeer DatabaseServer main: spec.network.to[0]",
        "InvalidTemplate spec.components[1].template.spec.containers",
    ];
    assert_eq!(brief(&faults), expected);
}

#[test]
fn peers_names_and_servers_of_an_application_are_checked() {
    let mut application = application();
    application.spec.route.as_mut().unwrap().from = serde_json::from_value(json!([{}])).unwrap();
    application.spec.egress = serde_json::from_value(json!([
        {"to": [{"ipBlock": {"cidr": "everywhere"}}], "ports": [{"port": 0}]},
    ]))
    .unwrap();
    application.spec.shared = serde_json::from_value(json!({
        "secrets": ["acme-database", "tenantry-x", "fine"], "configMaps": ["kube-root-ca.crt", "fine"],
    }))
    .unwrap();
    application.spec.database = serde_json::from_value(json!({
        "pooled": {"servers": ["main", "gone", "reserved"]}, "dedicated": {"servers": ["reserved", "narrow"]},
    }))
    .unwrap();
    let mut shelf = shelf();
    let mut reserved = server();
    reserved.spec.reserved_for = Some("mega".into());
    let mut narrow = server();
    narrow.spec.accepts = serde_json::from_value(json!(["pooled"])).unwrap();
    shelf.servers.extend([("reserved".into(), reserved), ("narrow".into(), narrow)]);
    let faults = application_faults(&application, &settings(), &shelf);
    let expected = [
        "InvalidPeer spec.route.from[0]",
        "InvalidPeer spec.egress[0].to[0].ipBlock.cidr",
        "InvalidPeer spec.egress[0].ports[0].port",
        "ReservedName spec.shared.secrets[0]",
        "ReservedName spec.shared.secrets[1]",
        "ReservedName spec.shared.configMaps[0]",
        "UnknownServer spec.database.pooled.servers[1]",
        "ServerRefusesTier spec.database.pooled.servers[2]",
        "ServerRefusesTier spec.database.dedicated.servers[1]",
    ];
    assert_eq!(brief(&faults), expected);
    assert!(join_faults(&faults).ends_with("; and 6 more"));
    assert_eq!(brief(&server_faults(&server())), [""; 0]);
}

#[test]
fn a_pool_needs_its_application_and_a_server_that_takes_it() {
    let mut pool = pool();
    assert_eq!(brief(&pool_faults(&pool, Some(&application()), Some(&server()))), [""; 0]);
    let both = pool_faults(&pool, None, None);
    assert_eq!(brief(&both), ["UnknownApplication spec.application", "UnknownServer spec.server"]);
    pool.spec.max_tenants = Some(1_001);
    let mut server = server();
    server.spec.reserved_for = Some("mega".into());
    let faults = pool_faults(&pool, Some(&application()), Some(&server));
    assert_eq!(brief(&faults), ["ServerRefusesTier spec.server", "PoolTooLarge spec.maxTenants"]);
}
