//! What Tenants use can't be deleted under them: the count in the status is right, by which the
//! API server refuses it; and where that was passed by, the finalizer holds.

use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::{
    ground::{delete_tenant, dynamic, eventually, ready_tenant, shared},
    steps::{Running, healed, plan},
    verbs::{application, await_condition, delete, of, ours, patch_status, read},
};

async fn await_count(client: &kube::Client, object: &Value, tenants: i64) {
    let mut last = Value::Null;
    let counted = eventually(async || {
        last = read(client, object).await?["status"]["tenants"].clone();
        (last == json!(tenants)).then_some(())
    })
    .await;
    assert!(counted.is_some(), "{object} has {last} tenants, not {tenants}");
}

async fn await_gone(client: &kube::Client, object: &Value) {
    let gone = eventually(async || read(client, object).await.is_none().then_some(())).await;
    assert!(gone.is_some(), "{object} does not go: {:#?}", read(client, object).await);
}

#[tokio::test]
async fn what_tenants_use_is_counted_kept_and_let_go_after() {
    let (ground, client) = shared().await;
    plan(&client, "kept", json!({})).await;
    ground.server(&client, "keeping", json!({})).await;
    application(&client, "keeper", json!({"database": {"pooled": {"servers": ["keeping"]}}})).await;
    let of_both = || of("keeper", json!({"spec": {"plan": "kept"}}));
    let ready = ready_tenant(&client, "user-a", of_both()).await;
    ready_tenant(&client, "user-b", of_both()).await;
    let pool = ready.status.as_ref().and_then(|status| status.pool.clone()).expect("a pool");
    let running = Running::of(&client, &ready).await;
    let used = [ours("Plan", "kept"), ours("Application", "keeper"), ours("Pool", &pool)];
    let server = ours("DatabaseServer", "keeping");
    let used: Vec<_> = used.into_iter().chain([server]).collect();
    for object in &used {
        await_count(&client, object, 2).await;
        let name = object["metadata"]["name"].as_str().expect("a name");
        let refused = dynamic(&client, object).delete(name, &DeleteParams::default()).await;
        let refusal = refused.expect_err("it is in use").to_string();
        let says = format!("{} {name} is used by 2 Tenants", object["kind"].as_str().expect("a kind"));
        assert!(refusal.contains(&says), "{refusal}");
    }
    delete_tenant(&client, "user-b").await;
    for object in &used {
        await_count(&client, object, 1).await;
        // Somebody lost the status, and the deletion passes: the operator's own finalizer holds it.
        let name = object["metadata"]["name"].as_str().expect("a name");
        let passed = eventually(async || {
            patch_status(&client, object, &json!({"tenants": 0})).await;
            dynamic(&client, object).delete(name, &DeleteParams::default()).await.ok().map(drop)
        });
        passed.await.expect("a deletion that is accepted");
        let has_pools = object["kind"] == "Application" || object["kind"] == "DatabaseServer";
        let says = if has_pools { "used by 1 Tenant and 1 Pool:" } else { "used by 1 Tenant" };
        await_condition(&client, object, "Ready", "False", says).await;
    }
    let tenant = healed(&client, "user-a").await;
    running.assert_untouched(&client, &tenant).await;
    delete_tenant(&client, "user-a").await;
    for object in &used {
        await_gone(&client, object).await;
    }
}

#[tokio::test]
async fn what_nobody_uses_is_deleted_at_once() {
    let (_, client) = shared().await;
    plan(&client, "unused", json!({})).await;
    application(&client, "unused", json!({})).await;
    for object in [ours("Plan", "unused"), ours("Application", "unused")] {
        await_condition(&client, &object, "Ready", "True", "").await;
        delete(&client, &object).await;
        await_gone(&client, &object).await;
    }
}
