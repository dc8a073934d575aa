//! Tenants of tier dedicated: a database of their own, on a shared server or on one that is
//! theirs alone.

use serde_json::{Value, json};

use super::{
    bridge::assert_isolated,
    ground::{apply, await_tenant, condition, is, merge, ready_tenant, shared, tenant},
    steps::{calm, stalled},
    verbs::{application, id, of, ours, patch, place, rows, superuser},
};

/// What a tenant of tier dedicated has beside `more`.
pub fn dedicated(application: &str, more: Value) -> Value {
    let mut spec = of(application, json!({"spec": {"plan": "enterprise", "tier": "dedicated"}}));
    merge(&mut spec, more);
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dedicated_tenant_has_a_database_that_nobody_else_enters() {
    let (ground, client) = shared().await;
    application(&client, "alone", json!({})).await;
    let first = ready_tenant(&client, "alone-a", dedicated("alone", json!({}))).await;
    let second = ready_tenant(&client, "alone-b", dedicated("alone", json!({}))).await;
    for (tenant, name) in [(&first, "alone-a"), (&second, "alone-b")] {
        let database = format!("dedicated_{}", id(tenant).trim_start_matches("t_"));
        assert_eq!(place(tenant), (database.clone(), format!("tenant-{name}")));
        let root = superuser(ground, &database).await;
        let owner = "SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = current_database()";
        assert_eq!(rows(&root, owner).await, ["tenantry_owner"], "never the tenant's own");
        let mark = "SELECT kind || ' ' || object FROM tenantry.database";
        let uid = tenant.metadata.uid.as_deref().expect("a UID");
        assert_eq!(rows(&root, mark).await, [format!("Dedicated {uid}")]);
        assert_eq!(rows(&root, "SELECT name FROM tenantry.tenant").await, [name]);
    }
    assert_isolated(&client, &first, &second).await;
    assert_isolated(&client, &second, &first).await;
}

#[tokio::test]
async fn a_server_of_its_own_is_one_that_is_reserved() {
    let ((ground, _), client) = calm().await;
    ground.server(&client, "throne-shared", json!({})).await;
    let servers = json!({"servers": ["throne-shared", "throne"], "placement": "Server"});
    ground.server(&client, "throne", json!({"reservedFor": "somebody-else"})).await;
    application(&client, "thrones", json!({"database": {"dedicated": servers}})).await;
    apply(&client, &tenant("monarch", dedicated("thrones", json!({})))).await.expect("a Tenant");
    let waiting = await_tenant(&client, "monarch", "not placed", |tenant| is(tenant, "Ready", "False")).await;
    let conditions = &waiting.status.as_ref().expect("a status").conditions;
    let message = &condition(conditions, "Ready").expect("Ready").message;
    assert!(message.contains("reserved"), "{message}");
    patch(&client, &ours("DatabaseServer", "throne"), &json!({"spec": {"reservedFor": "monarch"}})).await;
    let ready = await_tenant(&client, "monarch", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    let database = ready.status.as_ref().and_then(|status| status.database.as_ref()).expect("a database");
    assert_eq!(database.server, "throne");
}

#[tokio::test]
async fn databases_of_dedicated_tenants_count() {
    let ((ground, _), client) = calm().await;
    ground.server(&client, "two", json!({"capacity": {"databases": 2}})).await;
    application(&client, "pair", json!({"database": {"dedicated": {"servers": ["two"]}}})).await;
    ready_tenant(&client, "pair-a", dedicated("pair", json!({}))).await;
    ready_tenant(&client, "pair-b", dedicated("pair", json!({}))).await;
    apply(&client, &tenant("pair-c", dedicated("pair", json!({})))).await.expect("a Tenant");
    let waiting = await_tenant(&client, "pair-c", "waiting", |tenant| is(tenant, "Placed", "False")).await;
    let conditions = &waiting.status.as_ref().expect("a status").conditions;
    let message = &condition(conditions, "Placed").expect("Placed").message;
    assert!(message.contains("DatabaseServer two has 2 of 2 databases (spec.capacity.databases)"), "{message}");
    patch(&client, &ours("DatabaseServer", "two"), &json!({"spec": {"capacity": {"databases": 3}}})).await;
    await_tenant(&client, "pair-c", "Ready", |tenant| is(tenant, "Ready", "True")).await;
}

#[tokio::test]
async fn a_status_that_was_lost_is_found_in_the_records() {
    let (_, client) = shared().await;
    application(&client, "amnesia", json!({})).await;
    for (name, spec) in
        [("forgets-a", dedicated("amnesia", json!({}))), ("forgets-b", super::bridge::bridge("amnesia", json!({})))]
    {
        let before = ready_tenant(&client, name, spec).await;
        let nothing = json!({
            "pool": null, "namespace": null, "database": null, "id": null, "tier": null, "plan": null,
            "conditions": null, "observedGeneration": null,
        });
        super::verbs::patch_status(&client, &ours("Tenant", name), &nothing).await;
        let after = await_tenant(&client, name, "Ready", |tenant| {
            is(tenant, "Ready", "True") && tenant.status.as_ref().is_some_and(|status| status.database.is_some())
        })
        .await;
        assert_eq!((place(&after), id(&after)), (place(&before), id(&before)));
    }
    // The data doesn't move with a tier that is changed while nothing tells of it.
    let nothing = json!({"namespace": null, "database": null, "id": null, "tier": null});
    patch(&client, &ours("Tenant", "forgets-b"), &json!({"metadata": {"annotations": {"tenantry.io/paused": "true"}}}))
        .await;
    super::verbs::patch_status(&client, &ours("Tenant", "forgets-b"), &nothing).await;
    let dedicated = json!({"spec": {"plan": "enterprise", "tier": "dedicated"}});
    patch(&client, &ours("Tenant", "forgets-b"), &dedicated).await;
    patch(&client, &ours("Tenant", "forgets-b"), &json!({"metadata": {"annotations": {"tenantry.io/paused": null}}}))
        .await;
    stalled(&client, "forgets-b", "TierChange", &["placed at tier bridge", "set spec.tier to bridge"]).await;
    patch(&client, &ours("Tenant", "forgets-b"), &json!({"spec": {"tier": "bridge"}})).await;
    super::steps::healed(&client, "forgets-b").await;
}
