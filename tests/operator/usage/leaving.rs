//! A tenant that leaves and is taken back: its counters and its history go on.

use kube::Client;
use serde_json::json;
use tenantry::api::Tenant;

use super::{
    super::{
        ground::{apply, await_tenant, credentials, delete_tenant, eventually, is, ready_tenant, tenant},
        steps::stalled,
        verbs::{id, log_in, of, ours, patch, place, rows, superuser},
    },
    ledger::{Metered, Relay, ago, counting, shared},
    says, shows, used,
};

/// Where the ledger has a tenant: once for each stay, with whether it lasts; and whether it is gone.
async fn stays(metered: &Metered, tenant: &Tenant) -> (Vec<String>, bool) {
    let ledger = superuser(&metered.ground, "ledger").await;
    let id = id(tenant);
    let places = format!("SELECT (until IS NULL)::text FROM ledger.placement WHERE tenant = '{id}' ORDER BY since");
    let gone = format!("SELECT (gone_at IS NOT NULL)::text FROM ledger.tenant WHERE id = '{id}'");
    (rows(&ledger, &places).await, rows(&ledger, &gone).await == ["true"])
}

async fn await_stays(metered: &Metered, tenant: &Tenant, wanted: &[&str], gone: bool) {
    let mut last = Default::default();
    let found = eventually(async || {
        last = stays(metered, tenant).await;
        (last.0 == wanted && last.1 == gone).then_some(())
    });
    assert!(found.await.is_some(), "{last:?}, not {wanted:?} and gone {gone}");
}

async fn counts(client: &Client, tenant: &Tenant, delta: i64) {
    let session = log_in(&credentials(client, tenant).await).await.expect("a login");
    session.batch_execute(&format!("SELECT record_usage('users', {delta}, 'x')")).await.expect("counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_and_comes_back_counts_on_and_keeps_its_history() {
    let (metered, client) = shared().await;
    counting(&client, "returning").await;
    let start = jiff::Timestamp::from_second(ago(41).as_second()).expect("a time");
    let spec = || of("returning", json!({"spec": {"plan": "returning", "billing": {"start": start.to_string()}}}));
    let first = ready_tenant(&client, "returning", spec()).await;
    let relay = Relay::of(metered, &first).await;
    counts(&client, &first, 4).await;
    // That was in the period before this one.
    let root = superuser(&metered.ground, &place(&first).0).await;
    let earlier =
        format!("UPDATE tenantry.outbox SET occurred_at = now() - interval '20 days' WHERE tenant = '{}'", id(&first));
    root.batch_execute(&earlier).await.expect("earlier");
    relay.carries().await;
    for meter in ["accounts", "emails"] {
        relay.marks(meter, 1, 0, 0).await;
    }
    let has_history = |tenant: &Tenant| tenant.status.as_ref().is_some_and(|status| !status.history.is_empty());
    shows(&client, "returning", "users", "4/10").await;
    let before = await_tenant(&client, "returning", "with history", has_history).await;
    await_stays(metered, &first, &["true"], false).await;

    // It counts until the last moment, and its relay brings that when it is gone.
    counts(&client, &first, 2).await;
    delete_tenant(&client, "returning").await;
    await_stays(metered, &first, &["false"], true).await;
    assert_eq!(relay.carries().await, 1, "what waited is taken, though it is gone");

    // Another Tenant of that name is another tenant until it says whose data it wants.
    apply(&client, &tenant("returning", spec())).await.expect("a Tenant");
    stalled(&client, "returning", "DataOfAnotherTenant", &[]).await;
    let asked = json!({"metadata": {"annotations": {"tenantry.io/restore-from": first.metadata.uid}}});
    patch(&client, &ours("Tenant", "returning"), &asked).await;
    let back = await_tenant(&client, "returning", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    assert_eq!(id(&back), id(&first));
    assert_ne!(back.metadata.uid, first.metadata.uid);
    let back = shows(&client, "returning", "users", "6/10").await;
    let history = |tenant: &Tenant| tenant.status.as_ref().map(|status| status.history.clone());
    assert_eq!(history(&back), history(&before), "what was closed stays closed");
    let period = |tenant: &Tenant| tenant.status.as_ref()?.usage.as_ref().map(|usage| usage.period.clone());
    assert_eq!(period(&back), period(&before));
    await_stays(metered, &first, &["false", "true"], false).await;

    // The same counter, in the same epoch, without a gap.
    counts(&client, &back, 3).await;
    assert_eq!(relay.carries().await, 1);
    let on = shows(&client, "returning", "users", "9/10").await;
    assert_eq!(used(&on, "users").and_then(|it| it.peak), Some(9));
    let complete = |tenant: &Tenant| says(tenant, "UsageComplete").as_deref() == Some("True Complete");
    await_tenant(&client, "returning", "complete", complete).await;
    let ledger = superuser(&metered.ground, "ledger").await;
    let events = format!(
        "SELECT string_agg(concat_ws('/', epoch, sequence, value), ' ' ORDER BY sequence) FROM ledger.event WHERE tenant = '{}'",
        id(&back)
    );
    assert_eq!(rows(&ledger, &events).await, ["1/1/4 1/2/6 1/3/9"]);
}
