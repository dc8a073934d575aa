//! What stays as it began, since usage was counted by it: the usage periods, and what a meter counts.

use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tenantry::{
    api::{Application, Tenant},
    metering::ledger::LedgerTenant,
};

use super::{
    super::{
        ground::{apply, await_tenant, credentials, delete_tenant, eventually, is, ready_tenant, tenant},
        steps::{healed, stalled},
        verbs::{await_condition, id, log_in, of, ours, patch, place, rows, superuser},
    },
    ledger::{Metered, Relay, counting, shared},
    shows,
};

/// Anchor and zone of a tenant's periods: in its database, and in the ledger.
async fn anchored(metered: &Metered, tenant: &Tenant) -> (Vec<String>, LedgerTenant) {
    let root = superuser(&metered.ground, &place(tenant).0).await;
    let recorded = format!("SELECT period_anchor || ' ' || time_zone FROM tenantry.tenant WHERE id = '{}'", id(tenant));
    let known = metered.ledger().directory(&[id(tenant)]).await.expect("read").tenants;
    (rows(&root, &recorded).await, known.into_iter().next().expect("the ledger knows it"))
}

fn period(tenant: &Tenant) -> Value {
    let usage = tenant.status.as_ref().and_then(|status| status.usage.as_ref()).expect("usage");
    serde_json::to_value(&usage.period).expect("JSON")
}

/// What the API server says against a change.
async fn refused<K>(client: &Client, name: &str, change: &Value) -> String
where
    K: kube::Resource<Scope = kube::core::ClusterResourceScope, DynamicType = ()> + Clone + std::fmt::Debug,
    K: serde::de::DeserializeOwned,
{
    let patched = Api::<K>::all(client.clone()).patch(name, &PatchParams::default(), &Patch::Merge(change)).await;
    patched.expect_err("refused").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_periods_stay_whatever_the_spec_says_later() {
    let (metered, client) = shared().await;
    counting(&client, "anchored").await;
    let spec = || of("anchored", json!({"spec": {"plan": "anchored"}}));
    let ready = ready_tenant(&client, "anchored", spec()).await;
    let relay = Relay::of(metered, &ready).await;
    let before = shows(&client, "anchored", "users", "0/10").await;
    let (began, period_before) = (anchored(metered, &ready).await, period(&before));
    let created = ready.metadata.creation_timestamp.as_ref().expect("a time").0.to_string();
    let subject = ours("Tenant", "anchored");
    let billing = |value: Value| json!({"spec": {"billing": value}});
    for (value, parts, display) in [
        (json!({"start": "2026-01-15T00:00:00Z"}), ["spec.billing.start", created.as_str()], "1/10"),
        (json!({"timeZone": "Asia/Seoul"}), ["spec.billing.timeZone", "write UTC, or leave it out"], "2/10"),
    ] {
        patch(&client, &subject, &billing(value)).await;
        stalled(&client, "anchored", "PeriodsFixed", &parts).await;
        // It is counted and shown as ever.
        let sequence = display[..1].parse().expect("a number");
        relay.says(jiff::Timestamp::now(), "users", sequence, 1, sequence).await;
        let counted = shows(&client, "anchored", "users", display).await;
        assert_eq!(period(&counted), period_before);
        patch(&client, &subject, &billing(Value::Null)).await;
        healed(&client, "anchored").await;
        assert_eq!(anchored(metered, &ready).await, began);
    }
    // What holds may be written down, and is not to be changed then.
    let generation = patch(&client, &subject, &billing(json!({"start": created, "timeZone": "UTC"}))).await;
    let generation = generation["metadata"]["generation"].as_i64();
    await_tenant(&client, "anchored", "Ready as it is now", |tenant| {
        is(tenant, "Ready", "True") && tenant.status.as_ref().and_then(|it| it.observed_generation) == generation
    })
    .await;
    let says = refused::<Tenant>(&client, "anchored", &billing(json!({"timeZone": "Asia/Seoul"}))).await;
    assert!(says.contains("billing.timeZone can't be changed once it is set"), "{says}");

    // Whoever takes the data back has its periods too.
    delete_tenant(&client, "anchored").await;
    let mut again = spec();
    again["spec"]["billing"] = json!({"start": "2026-01-15T00:00:00Z", "timeZone": "Europe/Rome"});
    apply(&client, &tenant("anchored", again)).await.expect("a Tenant");
    let uid = ready.metadata.uid.as_deref().expect("a UID");
    await_condition(&client, &subject, "Stalled", "True", uid).await;
    let restore = json!({"metadata": {"annotations": {"tenantry.io/restore-from": uid}}});
    patch(&client, &subject, &restore).await;
    stalled(&client, "anchored", "PeriodsFixed", &["spec.billing.start", "spec.billing.timeZone", &created]).await;
    patch(&client, &subject, &billing(json!({"start": created, "timeZone": "UTC"}))).await;
    let ready = healed(&client, "anchored").await;
    let restored = anchored(metered, &ready).await;
    assert_eq!((restored.0, restored.1.anchor, restored.1.time_zone), (began.0, began.1.anchor, began.1.time_zone));
    assert_eq!(period(&shows(&client, "anchored", "users", "2/10").await), period_before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_meter_that_comes_back_counts_what_it_counted() {
    let (_, client) = shared().await;
    counting(&client, "back").await;
    let ready = ready_tenant(&client, "back", of("back", json!({"spec": {"plan": "back"}}))).await;
    let applications = Api::<Application>::all(client.clone());
    let known = eventually(async || {
        let status = applications.get("back").await.ok()?.status?;
        let names: Vec<String> = status.meters.iter().map(|known| known.name.clone()).collect();
        (names == ["users", "accounts", "emails"]).then_some(())
    });
    assert!(known.await.is_some(), "the Application knows by what its tenants are counted");
    let meters = |more: Value| {
        let mut meters = json!([{"name": "users", "kind": "Level"}, {"name": "accounts", "kind": "Level"}]);
        meters.as_array_mut().expect("meters").extend(more.as_array().cloned().unwrap_or_default());
        json!({"spec": {"meters": meters}})
    };
    let subject = ours("Application", "back");
    let session = log_in(&credentials(&client, &ready).await).await.expect("a login");
    let count = "SELECT tenantry.record_usage('emails', 1, 'a')";
    session.batch_execute(count).await.expect("counted");
    patch(&client, &subject, &meters(json!([]))).await;
    let gone = eventually(async || session.batch_execute(count).await.is_err().then_some(()));
    assert!(gone.await.is_some(), "it is declared no longer");
    for other in
        [json!({"name": "emails", "kind": "Level"}), json!({"name": "emails", "kind": "Total", "source": "API"})]
    {
        let says = refused::<Application>(&client, "back", &meters(json!([other]))).await;
        assert!(says.contains("declare a meter of another name"), "{says}");
    }
    patch(&client, &subject, &meters(json!([{"name": "emails", "kind": "Total"}]))).await;
    let again = eventually(async || session.batch_execute(count).await.ok());
    assert!(again.await.is_some(), "it counts on");
    let value = "SELECT value::text FROM tenantry.my_limits() WHERE meter = 'emails'";
    let counted: i64 = rows(&session, value).await[0].parse().expect("a number");
    assert!(counted >= 2, "{counted}");
}
