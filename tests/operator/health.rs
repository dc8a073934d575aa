//! Ready is who could take over, or works; else /readyz says what to do.

use devcluster::Options;
use k8s_openapi::{
    api::coordination::v1::Lease, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    ground::{Ground, NAMESPACE, eventually, ready_tenant},
    steps::calm,
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
    let (_, text) = operator.get("/metrics").expect("an answer");
    assert!(!text.contains("counted-in-metrics"), "no label holds a tenant's name");
}
