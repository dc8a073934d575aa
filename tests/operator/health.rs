//! Ready is who could take over, or works; else /readyz says what to do.

use devcluster::Options;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Secret},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    ground::{Ground, NAMESPACE, Operator, eventually, ready_tenant, secret},
    steps::calm,
    verbs::{await_condition, ours},
};

#[tokio::test(flavor = "multi_thread")]
async fn definitions_that_are_older_than_the_operator_are_named_and_nothing_is_written_with_them() {
    let ground = Ground::start(Options { audit: true, ..Options::default() }).await;
    let client = &ground.client;
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let name = "tenants.tenantry.io";
    let current = definitions.get(name).await.expect("the definition");
    let install = async |change: Option<&str>| {
        let mut wanted = serde_json::to_value(&current).expect("JSON");
        wanted["metadata"] = json!({"name": name, "resourceVersion": null});
        wanted["status"].take();
        if let Some(field) = change {
            let status = wanted.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/status/properties");
            status.and_then(Value::as_object_mut).expect("a status").remove(field).expect("a field");
        }
        let live = definitions.get(name).await.expect("the definition");
        wanted["metadata"]["resourceVersion"] = json!(live.metadata.resource_version);
        let wanted: CustomResourceDefinition = serde_json::from_value(wanted).expect("a definition");
        definitions.replace(name, &kube::api::PostParams::default(), &wanted).await.expect("a definition");
    };

    // Before it has begun: it waits, and does not even stand by.
    install(Some("url")).await;
    let operator = ground.operator(&[]);
    operator.says(503, "definition tenants.tenantry.io is older than this operator").await;
    operator.says(503, "it lacks status.url: install this version's definitions (helm upgrade does").await;
    assert_eq!(operator.metric("tenantry_definitions_current"), Some(0.0));
    let (status, _) = operator.get("/livez").expect("an answer");
    assert_eq!(status, 200, "a restart would mend nothing");
    let leases = Api::<Lease>::namespaced(client.clone(), NAMESPACE);
    assert!(leases.get_opt("tenantry").await.expect("an answer").is_none(), "it must not lead");

    install(None).await;
    operator.says(200, "leading").await;
    assert_eq!(operator.metric("tenantry_definitions_current"), Some(1.0));
    ground.examples().await;
    ready_tenant(client, "acme", json!({})).await;

    // While it leads: it goes on, and says it.
    install(Some("url")).await;
    operator.says(503, "it lacks status.url").await;
    let params = PatchParams::default();
    let label = Patch::Merge(json!({"metadata": {"labels": {"somebody": "looked"}}}));
    install(None).await;
    definitions.patch(name, &params, &label).await.expect("a label");
    operator.says(200, "leading").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_does_is_counted() {
    let ((_, operator), client) = calm().await;
    ready_tenant(&client, "counted-in-metrics", json!({})).await;
    let metric = |name: &str| operator.metric(name).unwrap_or_else(|| panic!("{name} is not there"));
    assert!(metric("tenantry_reconciles_total{kind=\"Tenant\",result=\"completed\"}") > 0.0);
    assert!(metric("tenantry_reconcile_duration_seconds_count{kind=\"Tenant\"}") > 0.0);
    assert!(metric("tenantry_api_requests_total{verb=\"patch\",resource=\"tenants/status\",code=\"200\"}") > 0.0);
    // The lease is renewed every two seconds.
    let renewed = "tenantry_api_requests_total{verb=\"update\",resource=\"leases\",code=\"200\"}";
    assert!(eventually(async || operator.metric(renewed)).await.is_some(), "{renewed}");
    assert!(metric("tenantry_database_statements_total{server=\"main\"}") > 0.0);
    assert!(metric("tenantry_tenants{tier=\"pooled\",ready=\"True\"}") > 0.0);
    assert!(metric("process_resident_memory_bytes") > 1e6);
    assert_eq!(metric("tenantry_database_breaker_open{server=\"main\"}"), 0.0);
    assert_eq!(metric("tenantry_database_away{server=\"main\"}"), 0.0);
    assert!(metric("tenantry_reconciles_running{kind=\"Tenant\"}") >= 0.0);
    let (_, text) = operator.get("/metrics").expect("an answer");
    assert!(!text.contains("counted-in-metrics"), "no label holds a tenant's name");
}

/// Waits until the metrics say of DatabaseServer `main` whether it is away.
async fn is_away(operator: &Operator, away: bool) {
    let mut last = None;
    let said = eventually(async || {
        last = operator.metric("tenantry_database_away{server=\"main\"}");
        (last == Some(f64::from(u8::from(away)))).then_some(())
    });
    assert!(said.await.is_some(), "{last:?}, not {away}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_never_reached_is_away_and_tiers_without_tenants_have_a_number() {
    let ground = Ground::start(Options::default()).await;
    let client = &ground.client;
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let admin = ground.cluster.postgres().admin();
    let password = async |password: &str| {
        secret(&secrets, "main-admin", &[("username", &admin.user), ("password", password)]).await;
    };
    ground.examples().await;
    let main = ours("DatabaseServer", "main");

    // At the first contact.
    password("guessed").await;
    let operator = ground.operator(&["--health-interval", "1s"]);
    is_away(&operator, true).await;
    for tier in ["pooled", "bridge", "dedicated"] {
        for ready in ["True", "False"] {
            let name = format!("tenantry_tenants{{tier=\"{tier}\",ready=\"{ready}\"}}");
            assert_eq!(operator.metric(&name), Some(0.0), "{name}");
        }
    }
    password(&admin.password).await;
    is_away(&operator, false).await;

    // Changed to a wrong one, while the connections that there are go on.
    ready_tenant(client, "acme", json!({})).await;
    password("guessed").await;
    await_condition(client, &main, "Reachable", "False", "28P01").await;
    is_away(&operator, true).await;
    assert_eq!(operator.metric("tenantry_database_breaker_open{server=\"main\"}"), Some(0.0));
    password(&admin.password).await;
    is_away(&operator, false).await;

    // A new leader, while it is down.
    operator.kill();
    ground.cluster.postgres().stop();
    let operator = ground.operator(&["--health-interval", "1s"]);
    is_away(&operator, true).await;
    ground.cluster.postgres().start_again().expect("the server starts again");
    is_away(&operator, false).await;
}
