//! Pod templates that can't be used: the Application and its Pools say where the fault is, and
//! what runs runs on.

use serde_json::{Value, json};

use super::{
    ground::{OPERATOR, apply, await_tenant, condition, ready_tenant, shared, tenant},
    steps::{Running, healed},
    verbs::{application, await_condition, named, of, ours, patch, read, web},
};

fn with_port(port: Value) -> Value {
    let mut web = web();
    web["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = port;
    json!({"spec": {"components": [web]}})
}

#[tokio::test]
async fn a_template_that_does_not_decode_is_named_by_its_path_and_stops_nothing() {
    let (ground, client) = shared().await;
    application(&client, "typo", json!({})).await;
    let ready = ready_tenant(&client, "typo-a", of("typo", json!({}))).await;
    let pool = ready.status.as_ref().and_then(|status| status.pool.clone()).expect("a pool");
    let running = Running::of(&client, &ready).await;
    let deployment = named("apps/v1", "Deployment", Some(&format!("pool-{pool}")), "web");
    let before = read(&client, &deployment).await.expect("a Deployment");
    let audit = ground.cluster.audit();
    let mark = audit.mark().expect("a mark");

    patch(&client, &ours("Application", "typo"), &with_port(json!("eighty"))).await;
    let path = "spec.components[0].template.spec.containers[0].ports[0].containerPort";
    let says = await_condition(&client, &ours("Application", "typo"), "Stalled", "True", path).await;
    assert!(says.contains("eighty"), "{says}");
    await_condition(&client, &ours("Pool", &pool), "Stalled", "True", path).await;
    await_condition(&client, &ours("Pool", &pool), "Available", "True", "").await;
    // Who comes now waits, and says for what.
    apply(&client, &tenant("typo-b", of("typo", json!({})))).await.expect("a Tenant");
    await_tenant(&client, "typo-b", "waiting for its pool", |tenant| {
        let conditions = tenant.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        condition(conditions, "Reconciling").is_some_and(|it| it.reason == "PoolNotReady" && it.message.contains(path))
    })
    .await;
    // Who was there has been looked at by now, since it stood in the queue before, and is Ready.
    let tenant = healed(&client, "typo-a").await;
    running.assert_untouched(&client, &tenant).await;
    let after = read(&client, &deployment).await.expect("a Deployment");
    assert_eq!(after["metadata"]["generation"], before["metadata"]["generation"]);
    let writes = audit.events(mark).expect("events").into_iter().filter(|event| {
        event.user == OPERATOR && event.is_write() && event.resource.starts_with("tenants") && event.name == "typo-a"
    });
    assert_eq!(writes.count(), 0, "nothing changed for the tenant that runs");

    patch(&client, &ours("Application", "typo"), &with_port(json!(8080))).await;
    healed(&client, "typo-b").await;
    for kind in ["Application", "Pool"] {
        let name = if kind == "Pool" { pool.as_str() } else { "typo" };
        await_condition(&client, &ours(kind, name), "Ready", "True", "").await;
    }
    let tenant = healed(&client, "typo-a").await;
    running.assert_untouched(&client, &tenant).await;
}
