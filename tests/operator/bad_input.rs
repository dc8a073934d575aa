//! Bad input that only the operator can see: a Tenant says what to change, runs on as it was
//! where it ran before, and heals when it is mended, without anybody touching it.

use serde_json::json;

use super::{
    ground::{apply, eventually, ready_tenant, shared, tenant},
    steps::{Running, healed, plan, stalled},
    verbs::{application, of, ours, patch},
};

#[tokio::test]
async fn what_a_new_tenant_refers_to_may_come_later() {
    let (ground, client) = shared().await;
    apply(&client, &tenant("early", of("early-app", json!({"spec": {"plan": "early-plan"}})))).await.expect("a Tenant");
    stalled(
        &client,
        "early",
        "UnknownPlan",
        &[
            "spec.plan: there is no Plan early-plan: create it, or correct spec.plan",
            "spec.application: there is no Application early-app: create it, or correct spec.application",
        ],
    )
    .await;
    plan(&client, "early-plan", json!({})).await;
    stalled(&client, "early", "UnknownApplication", &["there is no Application early-app"]).await;
    application(&client, "early-app", json!({"database": {"pooled": {"servers": ["early-server"]}}})).await;
    let waits = stalled(
        &client,
        "early",
        "UnknownServer",
        &["Application early-app: spec.database.pooled.servers[0]: there is no DatabaseServer early-server: create it"],
    )
    .await;
    assert_eq!(waits.status.expect("a status").pool, None, "a Tenant that can't be fulfilled has no place");
    ground.server(&client, "early-server", json!({})).await;
    let ready = healed(&client, "early").await;
    assert_eq!(ready.status.expect("a status").database.expect("a place").server, "early-server");
}

#[tokio::test]
async fn a_running_tenant_runs_on_whatever_its_spec_says() {
    let (_, client) = shared().await;
    plan(&client, "narrow", json!({"allowedTiers": ["pooled", "bridge"]})).await;
    let ready = ready_tenant(&client, "steady", json!({"spec": {"plan": "narrow"}})).await;
    let running = Running::of(&client, &ready).await;
    let subject = ours("Tenant", "steady");
    let good = json!({"spec": {"plan": "narrow", "tier": null}});
    let cases = [
        (json!({"plan": "gone"}), "UnknownPlan", "there is no Plan gone: create it, or correct spec.plan"),
        (
            json!({"tier": "dedicated"}),
            "TierNotAllowed",
            "Plan narrow does not allow tier dedicated: choose pooled or bridge, or another plan",
        ),
        (json!({"tier": "bridge"}), "TierChange", "set the tier back to pooled"),
        (
            json!({"overrides": [{"component": "web", "replicas": 5}]}),
            "OverridesNotApplicable",
            "remove overrides, or choose tier bridge or dedicated",
        ),
        (json!({"billing": {"timeZone": "Mars/Olympus"}}), "UnknownTimeZone", "write an IANA name"),
    ];
    for (spec, reason, says) in cases {
        patch(&client, &subject, &json!({"spec": spec})).await;
        let tenant = stalled(&client, "steady", reason, &[says]).await;
        running.assert_untouched(&client, &tenant).await;
        let mut undone = good.clone();
        (undone["spec"]["overrides"], undone["spec"]["billing"]) = (json!(null), json!(null));
        patch(&client, &subject, &undone).await;
        let tenant = healed(&client, "steady").await;
        running.assert_untouched(&client, &tenant).await;
    }
}

#[tokio::test]
async fn what_a_running_tenants_plan_and_application_refer_to_may_be_missing() {
    let (ground, client) = shared().await;
    plan(&client, "leading", json!({})).await;
    application(&client, "listing", json!({})).await;
    let ready = ready_tenant(&client, "referring", of("listing", json!({"spec": {"plan": "leading"}}))).await;
    let running = Running::of(&client, &ready).await;

    let servers = json!({"spec": {"database": {"pooled": {"servers": ["main", "spare"]}}}});
    patch(&client, &ours("Application", "listing"), &servers).await;
    let tenant = stalled(
        &client,
        "referring",
        "UnknownServer",
        &["Application listing: spec.database.pooled.servers[1]: there is no DatabaseServer spare"],
    )
    .await;
    running.assert_untouched(&client, &tenant).await;
    ground.server(&client, "spare", json!({})).await;
    healed(&client, "referring").await;

    let trial = json!({"spec": {"trial": {"days": 5, "onEnd": "Downgrade", "downgradeTo": "led-to"}}});
    patch(&client, &ours("Plan", "leading"), &trial).await;
    let says = "Plan leading: spec.trial.downgradeTo: there is no Plan led-to";
    let tenant = stalled(&client, "referring", "UnknownPlan", &[says]).await;
    running.assert_untouched(&client, &tenant).await;
    plan(&client, "led-to", json!({})).await;
    let tenant = healed(&client, "referring").await;
    running.assert_untouched(&client, &tenant).await;
}

#[tokio::test]
async fn a_limit_on_a_meter_that_nobody_declares_changes_no_limit() {
    let (_, client) = shared().await;
    plan(&client, "metered", json!({})).await;
    application(&client, "metering", json!({})).await;
    let ready = ready_tenant(&client, "counted", of("metering", json!({"spec": {"plan": "metered"}}))).await;
    let running = Running::of(&client, &ready).await;
    let limits = json!({"spec": {"limits": {"seats": {"max": 9, "policy": "Hard"}, "users": {"max": 7}}}});
    patch(&client, &ours("Plan", "metered"), &limits).await;
    let tenant = stalled(
        &client,
        "counted",
        "UndeclaredMeter",
        &[
            "Plan metered: spec.limits.seats",
            "Application metering does not declare (it declares: users, accounts, opportunities)",
            "correct the name, or add the meter to the Application's spec.meters",
        ],
    )
    .await;
    running.assert_untouched(&client, &tenant).await;
    // The other way to mend it than to take the limit back.
    let meters = json!([
        {"name": "users", "unit": "user", "kind": "Level"},
        {"name": "accounts", "unit": "account", "kind": "Level"},
        {"name": "opportunities", "unit": "opportunity", "kind": "Level"},
        {"name": "seats", "unit": "seat", "kind": "Level"},
    ]);
    patch(&client, &ours("Application", "metering"), &json!({"spec": {"meters": meters}})).await;
    let tenant = healed(&client, "counted").await;
    let credentials = super::ground::credentials(&client, &tenant).await;
    let session = super::verbs::log_in(&credentials).await.expect("a login");
    let limits = "SELECT meter || ' ' || max FROM tenantry.my_limits() WHERE meter IN ('seats', 'users') ORDER BY 1";
    // The Pool brings the new meter to the database, the Tenant its limit: either may come first.
    let both =
        eventually(async || (super::verbs::rows(&session, limits).await == ["seats 9", "users 7"]).then_some(()));
    assert!(both.await.is_some(), "{:?}", super::verbs::rows(&session, limits).await);
}
