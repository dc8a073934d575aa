//! Kubernetes Events: when something changes, and then once.

use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams},
};
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    ground::{Ground, apply, await_tenant, delete_tenant, eventually, is, ready_tenant, tenant},
    steps::stalled,
    verbs::{ours, patch},
};

/// What was said of an object, as "type reason".
pub async fn said(client: &Client, tenant: &Tenant) -> Vec<String> {
    let events = Api::<Event>::namespaced(client.clone(), "default");
    let all = events.list(&ListParams::default()).await.expect("Events").items;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let ours = |event: &Event| event.regarding.as_ref().is_some_and(|it| it.uid == tenant.metadata.uid);
    let mut said: Vec<_> = all.iter().filter(|event| ours(event)).collect();
    said.sort_by_key(|event| event.event_time.as_ref().map(|time| time.0));
    said.iter().map(|event| format!("{} {}", text(&event.type_), text(&event.reason))).collect()
}

/// Waits until just this was said of a tenant.
async fn hear(client: &Client, tenant: &Tenant, wanted: &[&str]) {
    let mut last = Vec::new();
    let heard = eventually(async || {
        last = said(client, tenant).await;
        (last == wanted).then_some(())
    });
    assert!(heard.await.is_some(), "{last:?}, not {wanted:?}");
}

/// In the log as JSON, each reconcile is a span that tells of what.
async fn logged(ground: &Ground, tenant: &Tenant) {
    let of_tenant = |line: &Value| {
        line["span"]["object"] == json!(tenant.metadata.name) && line["fields"]["message"] == "reconciled"
    };
    // It is heard of before its reconcile has ended.
    let line = eventually(async || {
        let text = std::fs::read_to_string(ground.log()).expect("the operator's log");
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.rfind(of_tenant)
    });
    let line = line.await.expect("a reconcile of the tenant in the log");
    let span = &line["span"];
    assert_eq!((&span["name"], &span["kind"]), (&json!("reconcile"), &json!("Tenant")), "{line}");
    assert_eq!(span["uid"], json!(tenant.metadata.uid), "{line}");
    assert_eq!((&span["attempt"], &span["generation"]), (&json!(1), &json!(1)), "{line}");
    assert_eq!((&line["level"], &span["outcome"]), (&json!("DEBUG"), &json!("completed")), "{line}");
    assert!(span["duration"].is_string(), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_of_changes_and_nothing_is_said_after_a_restart() {
    let ground = Ground::start(devcluster::Options { audit: true, ..Default::default() }).await;
    let client = &ground.client;
    let operator = ground.operator(&[]);
    ground.examples().await;
    let acme = ready_tenant(client, "acme", json!({})).await;
    hear(client, &acme, &["Normal Ready"]).await;
    patch(client, &ours("Tenant", "acme"), &json!({"spec": {"plan": "none"}})).await;
    stalled(client, "acme", "UnknownPlan", &[]).await;
    hear(client, &acme, &["Normal Ready", "Warning UnknownPlan"]).await;
    patch(client, &ours("Tenant", "acme"), &json!({"spec": {"plan": "smb"}})).await;
    await_tenant(client, "acme", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    // What is good again is said once in ten minutes; what was done, each time.
    let change = json!({"metadata": {"annotations": {"tenantry.io/rotate": "1"}}});
    patch(client, &ours("Tenant", "acme"), &change).await;
    hear(client, &acme, &["Normal Ready", "Warning UnknownPlan", "Normal CredentialsRotated"]).await;

    let kept = ready_tenant(client, "kept", json!({})).await;
    hear(client, &kept, &["Normal Ready"]).await;
    delete_tenant(client, "kept").await;
    hear(client, &kept, &["Normal Ready", "Normal DataRetained"]).await;
    apply(client, &tenant("kept", json!({}))).await.expect("a Tenant");
    let back = stalled(client, "kept", "DataOfAnotherTenant", &[]).await;
    hear(client, &back, &["Warning DataOfAnotherTenant"]).await;
    let asked = json!({"metadata": {"annotations": {"tenantry.io/restore-from": kept.metadata.uid}}});
    patch(client, &ours("Tenant", "kept"), &asked).await;
    hear(client, &back, &["Warning DataOfAnotherTenant", "Normal DataRestored", "Normal Ready"]).await;
    let dropped = ready_tenant(client, "dropped", json!({"spec": {"deletionPolicy": "Delete"}})).await;
    hear(client, &dropped, &["Normal Ready"]).await;
    delete_tenant(client, "dropped").await;
    hear(client, &dropped, &["Normal Ready", "Normal DataDropped"]).await;

    // A restart changes nothing, so there is nothing to tell: another tenant is heard of next.
    operator.kill();
    let _operator = ground.operator(&["--log-format", "json"]);
    let next = ready_tenant(client, "next", json!({})).await;
    hear(client, &next, &["Normal Ready"]).await;
    hear(client, &acme, &["Normal Ready", "Warning UnknownPlan", "Normal CredentialsRotated"]).await;

    logged(&ground, &next).await;

    // Without leave to say anything, everything else goes on.
    let roles = Api::<k8s_openapi::api::rbac::v1::RoleBinding>::namespaced(client.clone(), "default");
    roles.delete("tenantry-api-server", &DeleteParams::default()).await.expect("a deletion");
    ready_tenant(client, "silent", json!({})).await;
}
