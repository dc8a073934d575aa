//! Reconciles that never come to their end: they are given up, an object of which that is always
//! so says it, and an operator that does nothing else any more isn't ready.

use devcluster::Options;
use serde_json::json;

use super::{
    ground::{Ground, Operator, apply, await_tenant, condition, is, ready_tenant, tenant},
    proxy::{Calls, Fault, Proxy},
    verbs::{await_condition, ours, patch},
};

/// An operator whose way to the API server can be spoilt, and which looks after its server often.
async fn behind_a_proxy(flags: &[&str]) -> (Ground, Proxy, Operator) {
    let mut ground = Ground::start(Options::default()).await;
    let proxy = Proxy::start(&ground).await;
    ground.kubeconfig.clone_from(&proxy.kubeconfig);
    let operator = ground.operator(&[&["--health-interval", "200ms", "--reconcile-deadline", "1s"], flags].concat());
    ground.examples().await;
    (ground, proxy, operator)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_whose_reconciles_are_given_up_says_so() {
    let (ground, proxy, _operator) = behind_a_proxy(&[]).await;
    let client = &ground.client;
    let before = ready_tenant(client, "acme", json!({})).await;
    proxy.spoil(Calls::Writes, "/httproutes", 1, Fault::Silence);
    let object = ours("Tenant", "acme");
    patch(client, &object, &json!({"spec": {"hosts": ["crm.acme.example"]}})).await;
    let message = await_condition(client, &object, "Ready", "False", "longer than 1s").await;
    await_condition(client, &object, "Reconciling", "True", &message).await;
    let late = await_tenant(client, "acme", "late", |tenant| is(tenant, "Ready", "False")).await;
    let (old, new) = (before.status.expect("a status"), late.status.expect("a status"));
    assert_eq!(condition(&new.conditions, "Ready").expect("Ready").reason, "DeadlineExceeded");
    assert_eq!(condition(&new.conditions, "Placed"), condition(&old.conditions, "Placed"), "others stay");
    assert_eq!((new.database, new.namespace), (old.database, old.namespace), "and so does the place");

    proxy.heal();
    let healed = await_tenant(client, "acme", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    assert!(condition(&healed.status.expect("a status").conditions, "Reconciling").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_tenants_get_nowhere_is_not_ready_though_its_servers_are_looked_at() {
    let (ground, proxy, operator) = behind_a_proxy(&["--concurrency", "1"]).await;
    let client = &ground.client;
    ready_tenant(client, "first", json!({})).await;
    operator.says(200, "leading").await;
    proxy.spoil(Calls::Writes, "/tenants/", 1, Fault::Silence);
    let names: Vec<_> = (0..30).map(|number| format!("stuck-{number}")).collect();
    for name in &names {
        apply(client, &tenant(name, json!({}))).await.expect("a Tenant");
    }
    operator.says(503, "reconciling has stopped: a Tenant has waited").await;
    await_condition(client, &ours("DatabaseServer", "main"), "Reachable", "True", "").await;
    proxy.heal();
    for name in &names {
        await_tenant(client, name, "Ready", |tenant| is(tenant, "Ready", "True")).await;
    }
    operator.says(200, "leading").await;
}
