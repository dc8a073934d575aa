//! Limits and suspension, from a Plan or a Tenant's spec to what its sessions may do.

use serde_json::json;

use super::{
    ground::{await_tenant, condition, credentials, eventually, is, ready_tenant, shared},
    steps::{healed, plan, route},
    verbs::{id, log_in, ours, patch, place, read, rows, superuser},
};

const LIMITS: &str = "SELECT concat_ws(' ', meter, max, policy) FROM tenantry.my_limits() ORDER BY 1";

async fn await_limits(session: &tokio_postgres::Client, wanted: &[&str]) {
    let mut last = Vec::new();
    let found = eventually(async || {
        last = rows(session, LIMITS).await;
        (last == wanted).then_some(())
    })
    .await;
    assert!(found.is_some(), "limits are {last:?}, not {wanted:?}");
}

#[tokio::test]
async fn a_plans_new_limit_reaches_its_tenants_whatever_they_hold_open() {
    let (_, client) = shared().await;
    plan(&client, "moving", json!({"limits": {"users": {"max": 5}}})).await;
    let holding = ready_tenant(&client, "holding", json!({"spec": {"plan": "moving"}})).await;
    let idle = ready_tenant(&client, "idle", json!({"spec": {"plan": "moving"}})).await;
    let holding = log_in(&credentials(&client, &holding).await).await.expect("a login");
    let idle = log_in(&credentials(&client, &idle).await).await.expect("a login");

    holding.batch_execute("BEGIN; SELECT tenantry.record_usage('users', 1, 'a')").await.expect("a first user");
    let limits = json!({"spec": {"limits": {
        "users": {"max": 2}, "accounts": {"max": 9, "policy": "Soft", "days": null, "percent": null}, "opportunities": null,
    }}});
    patch(&client, &ours("Plan", "moving"), &limits).await;
    // The transaction that is open neither holds the change up nor is left out.
    await_limits(&idle, &["accounts 9 Soft", "opportunities", "users 2 Hard"]).await;
    await_limits(&holding, &["accounts 9 Soft", "opportunities", "users 2 Hard"]).await;
    holding.batch_execute("SELECT tenantry.record_usage('users', 1, 'b')").await.expect("a second user");
    let refusal = holding.batch_execute("SELECT tenantry.record_usage('users', 1, 'c')").await.expect_err("a third");
    let refusal = refusal.as_db_error().expect("the server's answer").clone();
    assert_eq!(refusal.code().code(), "TN001");
    let detail = refusal.detail().unwrap_or_default();
    assert!(detail.contains("users") && detail.contains('2'), "{detail}");
    holding.batch_execute("ROLLBACK").await.expect("the end");
    assert_eq!(rows(&holding, "SELECT tenantry.record_usage('users', 1, 'a')::text").await, ["1"]);
}

#[tokio::test]
async fn a_tenants_new_plan_brings_its_limits_and_its_share_of_the_server() {
    let (ground, client) = shared().await;
    plan(&client, "small", json!({"limits": {"users": {"max": 1}}, "database": {"connectionLimit": 3}})).await;
    plan(&client, "large", json!({"limits": {"users": {"max": 8}}, "database": {"connectionLimit": 7}})).await;
    let tenant = ready_tenant(&client, "grower", json!({"spec": {"plan": "small"}})).await;
    let revision = |tenant: &tenantry::api::Tenant| tenant.status.as_ref().and_then(|it| it.plan_revision.clone());
    assert!(revision(&tenant).is_some_and(|revision| revision.starts_with("small-")), "{:?}", revision(&tenant));
    let session = log_in(&credentials(&client, &tenant).await).await.expect("a login");
    session.batch_execute("SELECT tenantry.record_usage('users', 1, 'a')").await.expect("a first user");
    session.batch_execute("SELECT tenantry.record_usage('users', 1, 'b')").await.expect_err("a second");

    patch(&client, &ours("Tenant", "grower"), &json!({"spec": {"plan": "large"}})).await;
    let tenant = healed(&client, "grower").await;
    assert_eq!(tenant.status.as_ref().and_then(|status| status.plan.as_deref()), Some("large"));
    assert!(revision(&tenant).is_some_and(|revision| revision.starts_with("large-")), "{:?}", revision(&tenant));
    assert_eq!(rows(&session, "SELECT tenantry.record_usage('users', 1, 'b')::text").await, ["2"]);
    let root = superuser(ground, &place(&tenant).0).await;
    let limit = format!("SELECT rolconnlimit::text FROM pg_roles WHERE rolname = '{}_app_a'", id(&tenant));
    assert_eq!(rows(&root, &limit).await, ["7"]);

    // Back to less than is in use: nothing is taken away, and nothing more is given.
    patch(&client, &ours("Tenant", "grower"), &json!({"spec": {"plan": "small"}})).await;
    healed(&client, "grower").await;
    let refusal = session.batch_execute("SELECT tenantry.record_usage('users', 1, 'c')").await.expect_err("a third");
    assert_eq!(refusal.code().map(tokio_postgres::error::SqlState::code), Some("TN001"));
    assert_eq!(rows(&session, "SELECT value::text FROM tenantry.my_limits() WHERE meter = 'users'").await, ["2"]);
}

#[tokio::test]
async fn a_suspended_tenant_is_locked_out_and_comes_back_as_it_was() {
    let (_, client) = shared().await;
    let tenant = ready_tenant(&client, "late-payer", json!({})).await;
    let before = credentials(&client, &tenant).await;
    let session = log_in(&before).await.expect("a login");
    session.batch_execute("INSERT INTO users (email, name) VALUES ('a@late.example', 'A')").await.expect("a row");

    patch(&client, &ours("Tenant", "late-payer"), &json!({"spec": {"suspended": true}})).await;
    let suspended = await_tenant(&client, "late-payer", "suspended", |tenant| {
        let status = tenant.status.as_ref().expect("a status");
        is(tenant, "Ready", "False")
            && condition(&status.conditions, "Ready").is_some_and(|it| it.reason == "Suspended")
    })
    .await;
    let status = suspended.status.as_ref().expect("a status");
    assert_eq!(status.suspended, Some(true));
    let at_work = |kind| condition(&status.conditions, kind);
    assert_eq!((at_work("Stalled"), at_work("Reconciling")), (None, None), "it is as it should be");
    assert_eq!(read(&client, &route(&suspended)).await, None, "no way leads to a suspended tenant");
    assert!(session.batch_execute("SELECT 1").await.is_err(), "a session that was open is ended");
    let refusal = log_in(&before).await.expect_err("no new one is let in");
    assert_eq!(refusal.code().map(tokio_postgres::error::SqlState::code), Some("28000"), "{refusal}");
    assert_eq!(credentials(&client, &suspended).await, before, "the Secret stays");

    patch(&client, &ours("Tenant", "late-payer"), &json!({"spec": {"suspended": false}})).await;
    let back = healed(&client, "late-payer").await;
    assert_eq!(back.status.as_ref().and_then(|status| status.suspended), None);
    assert!(read(&client, &route(&back)).await.is_some());
    assert_eq!(credentials(&client, &back).await, before);
    let session = log_in(&before).await.expect("the same login");
    assert_eq!(rows(&session, "SELECT email FROM users").await, ["a@late.example"]);
}
