//! Two writers of one status, and who is woken by whom.

use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    super::{
        ground::{OPERATOR, apply, await_tenant, dynamic, eventually, is, ready_tenant, tenant},
        rest::rounds,
        steps::reconciles,
        verbs::{id, of, ours, patch, read},
    },
    ledger::{Metered, Relay, counting, shared},
    says, shows, used,
};

/// The managers of a tenant's status, each with what it owns there.
async fn managers(client: &Client, name: &str) -> Vec<(String, Value)> {
    let live = read(client, &ours("Tenant", name)).await.expect("a Tenant");
    let entries = live["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let of_status = entries.into_iter().filter(|entry| entry["subresource"] == "status");
    of_status
        .map(|it| (it["manager"].as_str().unwrap_or_default().to_owned(), it["fieldsV1"]["f:status"].clone()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_writer_owns_its_part_and_neither_takes_the_others_away() {
    let (metered, client) = shared().await;
    counting(&client, "two").await;
    let ready = ready_tenant(&client, "two", of("two", json!({"spec": {"plan": "two"}}))).await;
    let relay = Relay::of(metered, &ready).await;
    relay.says(jiff::Timestamp::now(), "users", 1, 3, 3).await;
    let before = shows(&client, "two", "users", "3/10").await;
    let managers_before = managers(&client, "two").await;
    let [(one, of_one), (other, of_other)] = managers_before.as_slice() else { panic!("{managers_before:#?}") };
    assert_eq!((one.as_str(), other.as_str()), ("tenantry", "tenantry-metering"));
    let condition = |kind: &str| format!("k:{{\"type\":\"{kind}\"}}");
    for kind in ["Ready", "DatabaseReady"] {
        assert!(of_one["f:conditions"].get(condition(kind)).is_some(), "{kind}: {of_one:#}");
        assert!(of_other["f:conditions"].get(condition(kind)).is_none(), "{kind}: {of_other:#}");
    }
    for kind in ["WithinLimits", "UsageComplete"] {
        assert!(of_one["f:conditions"].get(condition(kind)).is_none(), "{kind}: {of_one:#}");
        assert!(of_other["f:conditions"].get(condition(kind)).is_some(), "{kind}: {of_other:#}");
    }
    assert!(of_one.get("f:usage").is_none() && of_other.get("f:usage").is_some(), "{managers_before:#?}");
    assert!(of_other.get("f:pool").is_none(), "{of_other:#}");

    // The controller writes its part: usage stays, to the last byte.
    patch(&client, &ours("Tenant", "two"), &json!({"spec": {"suspended": true}})).await;
    let suspended = await_tenant(&client, "two", "suspended", |tenant| is(tenant, "Ready", "False")).await;
    let part = |tenant: &Tenant| tenant.status.as_ref().map(|status| (status.usage.clone(), status.history.clone()));
    assert_eq!(part(&suspended), part(&before));
    assert_eq!(says(&suspended, "WithinLimits"), says(&before, "WithinLimits"));
    // And usage is written of a suspended tenant too, which leaves the rest as it is.
    relay.says(jiff::Timestamp::now(), "users", 2, -1, 2).await;
    let counted = shows(&client, "two", "users", "2/10").await;
    let rest = |tenant: &Tenant| {
        let mut status = tenant.status.clone().expect("a status");
        status.usage = None;
        status
            .conditions
            .retain(|it| !["WithinLimits", "UsageComplete", "MeteringDegraded"].contains(&it.type_.as_str()));
        status
    };
    assert_eq!(rest(&counted), rest(&suspended));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_usage_that_a_backup_brings_back_is_put_right_and_so_is_the_rest() {
    let (metered, client) = shared().await;
    counting(&client, "backup").await;
    let ready = ready_tenant(&client, "backup", of("backup", json!({"spec": {"plan": "backup"}}))).await;
    let relay = Relay::of(metered, &ready).await;
    relay.says(jiff::Timestamp::now(), "users", 1, 3, 3).await;
    shows(&client, "backup", "users", "3/10").await;
    let live = read(&client, &ours("Tenant", "backup")).await.expect("a Tenant");
    let mut status = live["status"].clone();
    status["usage"]["meters"] = json!([
        {"name": "users", "current": 9, "display": "9/9", "limit": 9, "complete": true, "average": "9.00", "peak": 9},
        {"name": "gone", "current": 1, "display": "1", "limit": 5, "complete": true},
        {"name": "emails", "current": 1, "display": "1", "limit": 5, "complete": true},
    ]);
    status["history"] = json!([{"start": "2020-01-01T00:00:00Z", "end": "2020-02-01T00:00:00Z"}]);
    let degraded = json!({
        "type": "MeteringDegraded", "status": "True", "reason": "Old", "message": "old",
        "lastTransitionTime": "2020-01-01T00:00:00Z",
    });
    status["conditions"].as_array_mut().expect("conditions").push(degraded);
    let object = json!({
        "apiVersion": "tenantry.io/v1alpha1", "kind": "Tenant",
        "metadata": {"name": "backup"}, "status": status,
    });
    let tenants = dynamic(&client, &object);
    let params = PatchParams::apply("a-backup-tool").force();
    let brought: DynamicObject =
        tenants.patch_status("backup", &params, &Patch::Apply(&object)).await.expect("brought back");
    let healed = await_tenant(&client, "backup", "put right", |tenant| {
        let status = tenant.status.as_ref().expect("a status");
        let usage = status.usage.as_ref().expect("usage");
        let names: Vec<_> = usage.meters.iter().map(|meter| meter.name.as_str()).collect();
        names == ["users", "accounts", "emails"]
            && status.history.is_empty()
            && says(tenant, "MeteringDegraded").is_none()
            && used(tenant, "users").is_some_and(|it| it.display == "3/10")
    })
    .await;
    assert_eq!(used(&healed, "emails").and_then(|it| it.limit), None, "a field that nobody of ours wrote");
    let old_version: u64 = brought.metadata.resource_version.and_then(|it| it.parse().ok()).expect("a version");
    // The controller, which has to take note of none of this, goes on by its own.
    patch(&client, &ours("Tenant", "backup"), &json!({"spec": {"suspended": true}})).await;
    let suspended = await_tenant(&client, "backup", "suspended", |tenant| is(tenant, "Ready", "False")).await;
    let version: u64 = suspended.metadata.resource_version.and_then(|it| it.parse().ok()).expect("a version");
    assert!(version > old_version);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_wakes_no_reconcile_and_at_rest_nothing_is_written() {
    let metered = Metered::start(&["--usage-interval", "10ms", "--health-interval", "500ms"]).await;
    let client = metered.ground.client.clone();
    counting(&client, "quiet").await;
    let ready = ready_tenant(&client, "quiet", of("quiet", json!({"spec": {"plan": "quiet"}}))).await;
    let relay = Relay::of(&metered, &ready).await;
    shows(&client, "quiet", "users", "0/10").await;
    relay.says(jiff::Timestamp::now(), "users", 1, 1, 1).await;
    for (meter, sequence, value) in [("users", 1, 1), ("accounts", 0, 0), ("emails", 0, 0)] {
        relay.marks(meter, 1, sequence, value).await;
    }
    await_tenant(&client, "quiet", "complete", |tenant| {
        says(tenant, "UsageComplete").as_deref() == Some("True Complete")
    })
    .await;
    let looked = || reconciles(&metered.operator, "Tenant");
    // While nothing was to be done but what is done at rest.
    let calm = eventually(async || {
        let before = looked();
        rounds(&metered.operator, 3).await;
        (looked() == before).then_some(())
    });
    assert!(calm.await.is_some(), "the tenant's reconciles go on");
    let (before, audit) = (looked(), metered.ground.cluster.audit());
    for sequence in 2..=8 {
        relay.says(jiff::Timestamp::now(), "users", sequence, 1, sequence).await;
        shows(&client, "quiet", "users", &format!("{sequence}/10")).await;
    }
    assert_eq!(looked(), before, "usage wakes the tenant's reconcile");
    assert!(metered.operator.metric("tenantry_usage_status_writes_total").is_some_and(|count| count >= 8.0));
    assert!(metered.operator.metric("tenantry_usage_projection_seconds_count").is_some_and(|count| count >= 7.0));
    relay.marks("users", 1, 8, 8).await;
    // Marks and reports alone are nothing to write of: the last write is that of the last count.
    let mark = audit.mark().expect("a mark");
    let report = tenantry::metering::event::OutboxReport { waiting: 0, oldest: None, dead: Vec::new() };
    relay.reports(&report).await;
    let server = ours("DatabaseServer", "main");
    super::super::verbs::await_condition(&client, &server, "UsageDelivered", "True", "").await;
    let written: Vec<_> = audit
        .events(mark)
        .expect("events")
        .into_iter()
        .filter(|event| event.user == OPERATOR && event.is_write() && event.resource == "tenants")
        .collect();
    assert!(written.is_empty(), "{written:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_paused_tenant_nothing_is_written_until_it_goes_on() {
    let (metered, client) = shared().await;
    counting(&client, "halted").await;
    let spec = || of("halted", json!({"spec": {"plan": "halted"}}));
    let ready = ready_tenant(&client, "halted", spec()).await;
    let other = ready_tenant(&client, "goes-on", spec()).await;
    let (relay, beside) = (Relay::of(metered, &ready).await, Relay::of(metered, &other).await);
    shows(&client, "halted", "users", "0/10").await;
    let pause = |value: Value| json!({"metadata": {"annotations": {"tenantry.io/paused": value}}});
    patch(&client, &ours("Tenant", "halted"), &pause("true".into())).await;
    // The operator has heard of it when it has heard of what came after it.
    apply(&client, &tenant("after-halted", spec())).await.expect("a Tenant");
    await_tenant(&client, "after-halted", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    relay.says(jiff::Timestamp::now(), "users", 1, 9, 9).await;
    beside.says(jiff::Timestamp::now(), "users", 1, 9, 9).await;
    shows(&client, "goes-on", "users", "9/10").await;
    let halted = Api::<Tenant>::all(client.clone()).get("halted").await.expect("a Tenant");
    assert_eq!(used(&halted, "users").map(|it| it.display.as_str()), Some("0/10"));
    patch(&client, &ours("Tenant", "halted"), &pause(Value::Null)).await;
    let tenant = shows(&client, "halted", "users", "9/10").await;
    assert_eq!(id(&tenant), id(&ready));
}
