//! What is in a namespace is known before a Secret or ConfigMap is written there: none is taken
//! for somebody else's, and none of somebody else's is adopted.

use std::time::Duration;

use devcluster::Options;
use kube::Client;
use serde_json::{Value, json};

use super::{
    bridge::bridge,
    ground::{
        Ground, NAMESPACE, OPERATOR, apply, await_tenant, condition, create, delete_tenant, eventually, ready_tenant,
        shared, tenant,
    },
    proxy::{Calls, Fault, Proxy},
    steps::{healed, route, stalled},
    verbs::{application, await_condition, delete, named, of, ours, patch, place, read},
};

/// Sees that a Tenant names a foreign object, doesn't touch it, and takes the name once it is free.
async fn names_foreign(client: &Client, tenant: &str, foreign: &Value, before: &Value, kind: &str) {
    let name = foreign["metadata"]["name"].as_str().expect("a name");
    let message = await_condition(client, &ours("Tenant", tenant), kind, "False", name).await;
    let what = foreign["kind"].as_str().expect("a kind");
    assert!(message.contains(what) && message.contains("was not made by Tenantry"), "{message}");
    await_condition(client, &ours("Tenant", tenant), "Stalled", "True", name).await;
    assert_eq!(read(client, foreign).await.as_ref(), Some(before), "it was changed");
    delete(client, foreign).await;
    healed(client, tenant).await;
    assert_ne!(read(client, foreign).await.expect("ours")["metadata"]["uid"], before["metadata"]["uid"]);
}

/// Deletes a Tenant whose namespace stays, and makes an object there of a name that is one of
/// ours. Returns the Tenant with its annotation for coming back, and the object.
async fn leaves(client: &Client, name: &str, application: &str, foreign: &Value) -> [Value; 2] {
    let last = read(client, &ours("Tenant", name)).await.expect("a Tenant");
    delete_tenant(client, name).await;
    create(client, foreign).await;
    let before = read(client, foreign).await.expect("the foreign object");
    let mut again = bridge(application, json!({}));
    again["metadata"]["annotations"] = json!({"tenantry.io/restore-from": last["metadata"]["uid"]});
    [tenant(name, again), before]
}

#[tokio::test]
async fn foreign_objects_in_a_namespace_that_is_taken_back() {
    let (_, client) = shared().await;
    let settings = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "return-settings", "namespace": NAMESPACE},
        "data": {"colour": "blue"},
    });
    apply(&client, &settings).await.expect("a ConfigMap");
    let more = json!({"shared": {"configMaps": ["return-settings"]}, "migrations": null});
    application(&client, "returning", more).await;
    let first = ready_tenant(&client, "returner", bridge("returning", json!({}))).await;
    let namespace = place(&first).1;
    let inside = |api_version: &str, kind: &str, name: &str| named(api_version, kind, Some(&namespace), name);
    let mut notes = inside("v1", "ConfigMap", "notes");
    notes["data"] = json!({"a": "b"});
    create(&client, &notes).await;
    let (mut map, mut secret) =
        (inside("v1", "ConfigMap", "return-settings"), inside("v1", "Secret", "returner-database"));
    let mut route = inside("gateway.networking.k8s.io/v1", "HTTPRoute", "returner");
    map["data"] = json!({"mine": "mine"});
    secret["data"] = json!({"username": "bWluZQ==", "password": "bWluZQ=="});
    route["spec"] = json!({"hostnames": ["mine.example.org"], "parentRefs": [{"name": "public"}]});
    for (foreign, concern) in [(map, "NamespaceReady"), (secret, "CredentialsReady"), (route, "RouteReady")] {
        let [again, before] = leaves(&client, "returner", "returning", &foreign).await;
        apply(&client, &again).await.expect("a Tenant");
        names_foreign(&client, "returner", &foreign, &before, concern).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_copies_are_compared_and_none_is_taken_for_foreign() {
    let mut ground = Ground::start(Options { audit: true, ..Options::default() }).await;
    let proxy = Proxy::start(&ground).await;
    ground.kubeconfig.clone_from(&proxy.kubeconfig);
    let operator = ground.operator(&[]);
    ground.examples().await;
    let client = &ground.client;
    let settings = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "copied-settings", "namespace": NAMESPACE},
        "data": {"colour": "blue"},
    });
    let token = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "copied-token", "namespace": NAMESPACE},
        "data": {"token": "dG9rZW4="},
    });
    for object in [settings, token] {
        apply(client, &object).await.expect("a shared object");
    }
    let shared = json!({"secrets": ["copied-token"], "configMaps": ["copied-settings"]});
    application(client, "copying", json!({"shared": shared, "migrations": null})).await;
    let names = ["copied-b", "copied-p"];
    let (own, pooled) = tokio::join!(
        ready_tenant(client, names[0], bridge("copying", json!({}))),
        ready_tenant(client, names[1], of("copying", json!({}))),
    );
    // A fault doesn't keep the hosts, the plan and the place from being known again.
    patch(client, &ours("Tenant", names[0]), &json!({"spec": {"plan": "gone", "suspended": true}})).await;
    stalled(client, names[0], "UnknownPlan", &[]).await;
    let asleep = eventually(async || read(client, &route(&own)).await.is_none().then_some(()));
    assert!(asleep.await.is_some(), "the route stays");
    await_tenant(client, names[0], "asleep", |tenant| {
        let conditions = tenant.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        condition(conditions, "RouteReady").is_some_and(|route| route.reason == "Suspended")
    })
    .await;
    operator.kill();
    let mark = ground.cluster.audit().mark().expect("a mark");
    let edited = named("v1", "ConfigMap", Some(&place(&pooled).1), "copied-settings");
    patch(client, &edited, &json!({"data": {"colour": "red"}})).await;
    let removed = named("v1", "Secret", Some(&place(&own).1), "copied-b-database");
    delete(client, &removed).await;
    // Much is known before the lists of the namespaces arrive.
    let late = Fault::Late(Duration::from_secs(3));
    proxy.spoil(Calls::Lists, "", 1, late);
    let _operator = ground.operator(&[]);
    let mended = eventually(async || {
        let is_blue = read(client, &edited).await?["data"]["colour"] == "blue";
        read(client, &removed).await.filter(|_| is_blue)
    });
    assert!(mended.await.is_some(), "{:#?}", read(client, &edited).await);
    healed(client, names[1]).await;
    let events = ground.cluster.audit().events(mark).expect("events").into_iter();
    let copies = events.filter(|event| ["secrets", "configmaps"].contains(&event.resource.as_str()));
    let written = copies.filter(|event| event.user == OPERATOR && event.is_write());
    let mut written: Vec<_> = written.map(|event| format!("{}/{}", event.namespace, event.name)).collect();
    written.sort();
    written.dedup();
    let wanted = [format!("{}/copied-settings", place(&pooled).1), format!("{}/copied-b-database", place(&own).1)];
    assert_eq!(written, wanted, "what was edited, and nothing else");
    for name in names {
        let tenant = read(client, &ours("Tenant", name)).await.expect("a Tenant");
        assert!(!tenant["status"].to_string().contains("ForeignObject"), "{tenant:#}");
    }
    proxy.heal();
    // Nor is one adopted that somebody made while its namespace was nobody's.
    let third = ready_tenant(client, "copied-c", bridge("copying", json!({}))).await;
    let inside = |name: &str| named("v1", "ConfigMap", Some(&place(&third).1), name);
    let (mut notes, mut facts) = (inside("notes"), inside("tenantry-tenant"));
    notes["data"] = json!({"a": "b"});
    facts["data"] = json!({"mine": "mine"});
    create(client, &notes).await;
    let [again, before] = leaves(client, "copied-c", "copying", &facts).await;
    proxy.spoil(Calls::Lists, "", 1, late);
    apply(client, &again).await.expect("a Tenant");
    names_foreign(client, "copied-c", &facts, &before, "NamespaceReady").await;
}
