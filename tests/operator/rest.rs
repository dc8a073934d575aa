//! At rest the operator writes nothing, and after a restart neither.

use std::{collections::BTreeMap, time::Duration};

use devcluster::Options;
use serde_json::json;

use super::{
    bridge::bridge,
    dedicated::dedicated,
    ground::{Ground, OPERATOR, apply, await_tenant, is, ready_tenant, tenant},
    steps::{migrations, plan, stalled},
    verbs::{application, of, ours, patch, web},
};

/// For how long nothing may be written.
const REST: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn at_rest_and_after_a_restart_nothing_is_written() {
    let ground = Ground::start(Options { audit: true, ..Options::default() }).await;
    let operator = ground.operator(&["--health-interval", "1s", "--sweep-interval", "2s"]);
    ground.examples().await;
    for name in ["a", "ab", "a-b"] {
        ready_tenant(&ground.client, name, json!({})).await;
    }
    with_namespaces_of_their_own(&ground).await;
    in_every_other_state(&ground).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let writes = async |what: &str| {
        let audit = ground.cluster.audit();
        let mark = audit.mark().expect("a mark");
        tokio::time::sleep(REST).await;
        let mut calls: BTreeMap<String, u64> = BTreeMap::new();
        for event in audit.events(mark).expect("events") {
            if event.user == OPERATOR && event.verb != "watch" && event.resource != "leases" {
                *calls.entry(format!("{} {}", event.verb, event.resource)).or_default() += 1;
            }
        }
        println!("{what}: {calls:?}");
        calls
    };
    assert_eq!(writes("at rest").await, BTreeMap::new());
    operator.kill();
    let audit = ground.cluster.audit();
    let mark = audit.mark().expect("a mark");
    let _operator = ground.operator(&[]);
    tokio::time::sleep(REST).await;
    let written: Vec<_> = audit
        .events(mark)
        .expect("events")
        .into_iter()
        .filter(|event| event.user == OPERATOR && event.is_write() && event.resource != "leases")
        .collect();
    assert!(written.is_empty(), "{written:#?}");
    // It does work again: a new tenant becomes Ready.
    ready_tenant(&ground.client, "after", json!({})).await;
    await_tenant(&ground.client, "a", "Ready", |tenant| is(tenant, "Ready", "True")).await;
}

/// Tenants of tiers bridge and dedicated, Ready and not. (One that a foreign namespace stands in
/// the way of is never at rest: no watch tells when that goes, so it is looked for now and then.)
async fn with_namespaces_of_their_own(ground: &Ground) {
    let client = &ground.client;
    for name in ["b", "b-b"] {
        let owners = json!({"spec": {"owners": [{"kind": "Group", "name": "staff"}]}});
        ready_tenant(client, name, bridge("crm", owners)).await;
    }
    ready_tenant(client, "d", dedicated("crm", json!({}))).await;
    let (front, mut worker) = (web(), web());
    worker["name"] = "worker".into();
    worker["port"] = serde_json::Value::Null;
    worker["autoscaling"] = json!({"bridge": {"minReplicas": 1, "maxReplicas": 2, "targetCpuPercent": 80}});
    application(client, "autoscaled", json!({"components": [front, worker]})).await;
    ready_tenant(client, "scaled", bridge("autoscaled", json!({}))).await;
    ready_tenant(client, "own-suspended", dedicated("crm", json!({}))).await;
    patch(client, &ours("Tenant", "own-suspended"), &json!({"spec": {"suspended": true}})).await;
    await_tenant(client, "own-suspended", "suspended", |tenant| is(tenant, "Ready", "False")).await;
    ready_tenant(client, "moves", bridge("crm", json!({}))).await;
    patch(client, &ours("Tenant", "moves"), &json!({"spec": {"tier": "pooled"}})).await;
    stalled(client, "moves", "TierChange", &[]).await;
    plan(client, "tiny", json!({"quota": {"requests.cpu": "1m"}})).await;
    apply(client, &tenant("too-big", bridge("crm", json!({"spec": {"plan": "tiny"}})))).await.expect("a Tenant");
    stalled(client, "too-big", "QuotaTooSmall", &[]).await;
}

/// Tenants that are not Ready, each for another reason.
async fn in_every_other_state(ground: &Ground) {
    let client = &ground.client;
    ready_tenant(client, "suspended", json!({})).await;
    patch(client, &ours("Tenant", "suspended"), &json!({"spec": {"suspended": true}})).await;
    await_tenant(client, "suspended", "suspended", |tenant| is(tenant, "Ready", "False")).await;
    // One that ran before, and one that never did.
    ready_tenant(client, "stalled", json!({})).await;
    patch(client, &ours("Tenant", "stalled"), &json!({"spec": {"plan": "none"}})).await;
    stalled(client, "stalled", "UnknownPlan", &[]).await;
    apply(client, &tenant("lost", json!({"spec": {"plan": "none"}}))).await.expect("a Tenant");
    stalled(client, "lost", "UnknownPlan", &[]).await;
    apply(client, &migrations("broken", &[("001.sql", "SELECT 1 / 0")])).await.expect("a ConfigMap");
    application(client, "broken", json!({"migrations": {"sql": {"configMaps": [{"name": "broken"}]}}})).await;
    apply(client, &tenant("broken", of("broken", json!({})))).await.expect("a Tenant");
    stalled(client, "broken", "MigrationFailed", &[]).await;
    ground.server(client, "tiny", json!({"capacity": {"databases": 1, "schemasPerDatabase": 1}})).await;
    application(client, "narrow", json!({"database": {"pooled": {"servers": ["tiny"]}}})).await;
    ready_tenant(client, "placed", of("narrow", json!({}))).await;
    apply(client, &tenant("waiting", of("narrow", json!({})))).await.expect("a Tenant");
    await_tenant(client, "waiting", "waiting", |tenant| is(tenant, "Placed", "False")).await;
}
