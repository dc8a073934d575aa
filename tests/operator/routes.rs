//! Routes: what their parents say, Ingresses, and a cluster without the Gateway API.

use std::path::PathBuf;

use devcluster::Options;
use kube::Client;
use serde_json::{Value, json};

use super::{
    ground::{Ground, apply, await_tenant, documents, eventually, is, output, ready_tenant, shared, tenant},
    proxy::{Calls, Fault, Proxy},
    verbs::{application, await_condition, delete, named, of, ours, patch, patch_status, read},
};

const ROUTE: &str = "gateway.networking.k8s.io/v1";

/// Takes a field out of an Application's route, which only the defaults of `application` set.
fn gateway(more: Value) -> Value {
    let mut route = json!({"requireAccepted": null});
    super::ground::merge(&mut route, more);
    json!({"route": route, "migrations": null})
}

/// What a gateway's controller writes: conditions of one parent at one generation.
async fn parent_says(client: &Client, route: &Value, parent: &Value, generation: i64, says: &[(&str, &str)]) {
    let condition = |(kind, status): &(&str, &str)| {
        let reason = if *status == "True" { *kind } else { "NotAllowedByListeners" };
        json!({"type": kind, "status": status, "observedGeneration": generation, "reason": reason,
               "message": "as the test says", "lastTransitionTime": "2026-11-01T00:00:00Z"})
    };
    let conditions: Vec<_> = says.iter().map(condition).collect();
    let parents = json!([{"parentRef": parent, "controllerName": "example.com/gateway", "conditions": conditions}]);
    patch_status(client, route, &json!({"parents": parents})).await;
}

#[tokio::test]
async fn a_route_counts_when_its_parent_has_accepted_and_resolved_it_at_its_generation() {
    let (_, client) = shared().await;
    application(&client, "gated", gateway(json!({}))).await;
    apply(&client, &tenant("visitor", of("gated", json!({})))).await.expect("a Tenant");
    let object = ours("Tenant", "visitor");
    let route = named(ROUTE, "HTTPRoute", Some("pool-gated-1"), "visitor");
    let pending = async |says: &str| await_condition(&client, &object, "RouteReady", "False", says).await;
    let message = pending("gateway/public/https").await;
    assert!(message.contains("has not answered yet"), "{message}");
    await_condition(&client, &object, "DatabaseReady", "True", "").await;
    await_condition(&client, &object, "Ready", "False", "gateway/public/https").await;

    let (yes, parent) = (
        [("Accepted", "True"), ("ResolvedRefs", "True")],
        json!({"name": "public", "namespace": "gateway", "sectionName": "https"}),
    );
    let other = json!({"name": "public", "namespace": "gateway", "sectionName": "http"});
    parent_says(&client, &route, &parent, 1, &yes[..1]).await;
    pending("has not set ResolvedRefs").await;
    parent_says(&client, &route, &other, 1, &yes).await;
    pending("has not answered yet").await;
    parent_says(&client, &route, &parent, 1, &[("Accepted", "False"), ("ResolvedRefs", "True")]).await;
    pending("NotAllowedByListeners").await;
    parent_says(&client, &route, &parent, 1, &[("Accepted", "True"), ("ResolvedRefs", "False")]).await;
    pending("as the test says").await;
    parent_says(&client, &route, &parent, 1, &yes).await;
    await_tenant(&client, "visitor", "Ready", |tenant| is(tenant, "Ready", "True")).await;

    // Another generation of the route: what was said of the one before counts no longer.
    patch(&client, &object, &json!({"spec": {"hosts": ["crm.visitor.example"]}})).await;
    pending("present generation").await;
    assert_eq!(read(&client, &route).await.expect("a route")["metadata"]["generation"], 2);
    parent_says(&client, &route, &parent, 2, &yes).await;
    await_tenant(&client, "visitor", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    parent_says(&client, &route, &parent, 2, &[("Accepted", "False"), ("ResolvedRefs", "True")]).await;
    await_condition(&client, &object, "Ready", "False", "NotAllowedByListeners").await;
    application(&client, "gated", gateway(json!({"requireAccepted": false}))).await;
    await_tenant(&client, "visitor", "Ready", |tenant| is(tenant, "Ready", "True")).await;
}

#[tokio::test]
async fn an_ingress_instead_of_a_gateway_and_over_to_one() {
    let (_, client) = shared().await;
    let tls = json!({"secretName": "{tenant}-tls"});
    application(&client, "classic", gateway(json!({"parentRefs": null, "ingressClassName": "nginx", "tls": tls})))
        .await;
    apply(&client, &tenant("oldie", of("classic", json!({})))).await.expect("a Tenant");
    let object = ours("Tenant", "oldie");
    await_condition(&client, &object, "RouteReady", "False", "nginx").await;
    let ingress = named("networking.k8s.io/v1", "Ingress", Some("pool-classic-1"), "oldie");
    let spec = read(&client, &ingress).await.expect("an Ingress")["spec"].clone();
    assert_eq!(spec["rules"][0]["host"], "oldie.classic.example.com");
    assert_eq!(
        spec["rules"][0]["http"]["paths"][0]["backend"]["service"],
        json!({"name": "web", "port": {"number": 8080}})
    );
    assert_eq!(spec["tls"], json!([{"hosts": ["oldie.classic.example.com"], "secretName": "oldie-tls"}]));
    patch_status(&client, &ingress, &json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.5"}]}})).await;
    let tenant = await_tenant(&client, "oldie", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    assert_eq!(tenant.status.and_then(|status| status.url).as_deref(), Some("https://oldie.classic.example.com"));

    application(&client, "classic", gateway(json!({"requireAccepted": false}))).await;
    let route = named(ROUTE, "HTTPRoute", Some("pool-classic-1"), "oldie");
    assert!(eventually(async || read(&client, &route).await).await.is_some(), "an HTTPRoute is made");
    let gone = eventually(async || read(&client, &ingress).await.is_none().then_some(())).await;
    assert!(gone.is_some(), "the Ingress goes");
    await_tenant(&client, "oldie", "Ready", |tenant| is(tenant, "Ready", "True")).await;
}

/// The Gateway API's definition of HTTPRoute, from the module that devcluster pins.
fn definition(ground: &Ground) -> Value {
    let folder: PathBuf = ground.cluster.gateway_api();
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut found = files
        .flat_map(|file| documents(&file.expect("a file").path()))
        .filter(|document| document["metadata"]["name"] == "httproutes.gateway.networking.k8s.io");
    found.next().expect("the definition of HTTPRoute")
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_gateway_api_the_operator_runs_and_says_so_until_it_comes() {
    let ground = Ground::start(Options { gateway_api: false, ..Options::default() }).await;
    let _operator = ground.operator(&[]);
    ground.examples().await;
    let client = ground.client.clone();
    let crm = ours("Application", "crm");
    let message = await_condition(&client, &crm, "RouteApiAvailable", "False", "Gateway API").await;
    assert!(message.contains("spec.route.ingressClassName"), "{message}");
    apply(&client, &tenant("early", json!({}))).await.expect("a Tenant");
    let early = ours("Tenant", "early");
    await_condition(&client, &early, "RouteReady", "False", "Gateway API").await;
    for holds in ["DatabaseReady", "CredentialsReady", "Migrated", "WorkloadReady"] {
        await_condition(&client, &early, holds, "True", "").await;
    }
    // An Application with Ingresses misses nothing.
    application(&client, "classic", json!({"route": {"parentRefs": null, "ingressClassName": "nginx"}})).await;
    ready_tenant(&client, "classic", of("classic", json!({}))).await;

    let definition = definition(&ground);
    apply(&client, &definition).await.expect("the definition of HTTPRoute");
    await_condition(&client, &crm, "RouteApiAvailable", "True", "").await;
    await_tenant(&client, "early", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    let route = named(ROUTE, "HTTPRoute", Some("pool-crm-1"), "early");
    assert!(read(&client, &route).await.is_some());
    // It is watched by now.
    delete(&client, &route).await;
    assert!(eventually(async || read(&client, &route).await).await.is_some(), "a deleted route comes back");
    ready_tenant(&client, "late", json!({})).await;

    // And away again: what can run runs on.
    delete(&client, &definition).await;
    await_condition(&client, &crm, "RouteApiAvailable", "False", "Gateway API").await;
    await_condition(&client, &early, "RouteReady", "False", "Gateway API").await;
    apply(&client, &definition).await.expect("the definition of HTTPRoute");
    await_tenant(&client, "early", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    assert!(read(&client, &route).await.is_some());
    output(ground.cluster.kubectl().args(["get", "httproutes", "-A"]));
}

/// The definition of HTTPRoute, with version v1 served or not.
fn definition_with_v1(ground: &Ground, served: bool) -> Value {
    let mut definition = definition(ground);
    for version in definition["spec"]["versions"].as_array_mut().expect("versions") {
        // Something has to be served and stored.
        let is_old = version["name"] == "v1beta1";
        version["served"] = json!(is_old || served);
        version["storage"] = json!(is_old);
    }
    definition
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_that_are_not_served_as_they_are_written_hold_nobody_up() {
    let mut ground = Ground::start(Options { gateway_api: false, ..Options::default() }).await;
    let client = ground.client.clone();
    apply(&client, &definition_with_v1(&ground, false)).await.expect("the definition of HTTPRoute");
    let operator = ground.operator(&[]);
    operator.says(200, "leading").await;
    ground.examples().await;
    let crm = ours("Application", "crm");
    await_condition(&client, &crm, "RouteApiAvailable", "False", "Gateway API").await;
    apply(&client, &definition_with_v1(&ground, true)).await.expect("the definition of HTTPRoute");
    await_condition(&client, &crm, "RouteApiAvailable", "True", "").await;
    ready_tenant(&client, "acme", json!({})).await;
    operator.kill();

    // It goes before the first list of routes has come.
    let proxy = Proxy::start(&ground).await;
    ground.kubeconfig.clone_from(&proxy.kubeconfig);
    proxy.spoil(Calls::Lists, "/httproutes", 1, Fault::Refused(500, None));
    let operator = ground.operator(&[]);
    operator.says(503, "not all resources are known yet").await;
    let tried = eventually(async || (proxy.spoilt().iter().sum::<usize>() > 1).then_some(())).await;
    assert!(tried.is_some(), "routes are listed, in vain");
    delete(&client, &definition(&ground)).await;
    operator.says(200, "leading").await;
    await_condition(&client, &crm, "RouteApiAvailable", "False", "Gateway API").await;
}
