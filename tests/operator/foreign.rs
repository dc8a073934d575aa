//! An object of the same name that somebody else made is named in a condition, and never
//! changed; once it is gone, ours takes the name.

use serde_json::{Value, json};

use super::{
    ground::{apply, await_tenant, create, is, ready_tenant, shared, tenant},
    verbs::{application, await_condition, delete, named, of, ours, read, web},
};

/// Applies something, waits until the condition names the foreign object, sees that it was
/// not touched, and takes it away.
async fn refused(client: &kube::Client, foreign: &Value, reporter: &Value, condition: &str) {
    let before = read(client, foreign).await.expect("the foreign object");
    let (kind, name) =
        (foreign["kind"].as_str().expect("a kind"), foreign["metadata"]["name"].as_str().expect("a name"));
    let message = await_condition(client, reporter, condition, "False", name).await;
    assert!(message.contains(kind) && message.contains("was not made by Tenantry"), "{message}");
    await_condition(client, reporter, "Stalled", "True", name).await;
    assert_eq!(read(client, foreign).await.expect("it is still there"), before, "it was changed");
    delete(client, foreign).await;
}

#[tokio::test]
async fn a_foreign_secret() {
    let (_, client) = shared().await;
    application(&client, "foreign-secret", json!({"migrations": null})).await;
    let first = ready_tenant(&client, "stranger-a", of("foreign-secret", json!({}))).await;
    let mut foreign = named("v1", "Secret", Some("pool-foreign-secret-1"), "stranger-b-database");
    foreign["stringData"] = json!({"username": "mine", "password": "mine"});
    create(&client, &foreign).await;
    apply(&client, &tenant("stranger-b", of("foreign-secret", json!({})))).await.expect("a Tenant");
    refused(&client, &foreign, &ours("Tenant", "stranger-b"), "CredentialsReady").await;
    await_tenant(&client, "stranger-b", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    drop(first);
}

#[tokio::test]
async fn a_foreign_route() {
    let (_, client) = shared().await;
    application(&client, "foreign-route", json!({"migrations": null})).await;
    ready_tenant(&client, "wanderer-a", of("foreign-route", json!({}))).await;
    let mut foreign = named("gateway.networking.k8s.io/v1", "HTTPRoute", Some("pool-foreign-route-1"), "wanderer-b");
    foreign["spec"] = json!({"hostnames": ["somebody.example.org"], "parentRefs": [{"name": "public"}]});
    create(&client, &foreign).await;
    apply(&client, &tenant("wanderer-b", of("foreign-route", json!({})))).await.expect("a Tenant");
    refused(&client, &foreign, &ours("Tenant", "wanderer-b"), "RouteReady").await;
    await_tenant(&client, "wanderer-b", "Ready", |tenant| is(tenant, "Ready", "True")).await;
}

#[tokio::test]
async fn a_foreign_deployment() {
    let (_, client) = shared().await;
    application(&client, "foreign-pods", json!({"migrations": null})).await;
    ready_tenant(&client, "guest", of("foreign-pods", json!({}))).await;
    let mut foreign = named("apps/v1", "Deployment", Some("pool-foreign-pods-1"), "worker");
    let mut template = web()["template"].clone();
    template["metadata"] = json!({"labels": {"app": "mine"}});
    foreign["spec"] = json!({"replicas": 0, "selector": {"matchLabels": {"app": "mine"}}, "template": template});
    create(&client, &foreign).await;
    // Its controller writes its first status before it is compared.
    super::ground::eventually(async || {
        (read(&client, &foreign).await?["status"]["observedGeneration"] == 1).then_some(())
    })
    .await
    .expect("a status");
    let mut worker = web();
    worker["name"] = "worker".into();
    worker["port"] = Value::Null;
    application(&client, "foreign-pods", json!({"components": [web(), worker], "migrations": null})).await;
    refused(&client, &foreign, &ours("Pool", "foreign-pods-1"), "WorkloadReady").await;
    await_condition(&client, &ours("Pool", "foreign-pods-1"), "Ready", "True", "").await;
}

#[tokio::test]
async fn a_foreign_namespace() {
    let (_, client) = shared().await;
    let foreign = named("v1", "Namespace", None, "pool-foreign-place-1");
    create(&client, &foreign).await;
    application(&client, "foreign-place", json!({"migrations": null})).await;
    apply(&client, &tenant("settler", of("foreign-place", json!({})))).await.expect("a Tenant");
    let message =
        await_condition(&client, &ours("Tenant", "settler"), "DatabaseReady", "False", "pool-foreign-place-1").await;
    assert!(message.contains("was not made by Tenantry"), "the tenant says what its pool waits for: {message}");
    refused(&client, &foreign, &ours("Pool", "foreign-place-1"), "WorkloadReady").await;
    await_tenant(&client, "settler", "Ready", |tenant| is(tenant, "Ready", "True")).await;
}

#[tokio::test]
async fn a_foreign_ingress() {
    let (_, client) = shared().await;
    let route = json!({"parentRefs": null, "ingressClassName": "nginx"});
    application(&client, "foreign-ingress", json!({"route": route, "migrations": null})).await;
    ready_tenant(&client, "nomad-a", of("foreign-ingress", json!({}))).await;
    let mut foreign = named("networking.k8s.io/v1", "Ingress", Some("pool-foreign-ingress-1"), "nomad-b");
    let backend = json!({"service": {"name": "mine", "port": {"number": 80}}});
    foreign["spec"] = json!({"ingressClassName": "nginx", "defaultBackend": backend});
    create(&client, &foreign).await;
    apply(&client, &tenant("nomad-b", of("foreign-ingress", json!({})))).await.expect("a Tenant");
    refused(&client, &foreign, &ours("Tenant", "nomad-b"), "RouteReady").await;
    await_tenant(&client, "nomad-b", "Ready", |tenant| is(tenant, "Ready", "True")).await;
}
