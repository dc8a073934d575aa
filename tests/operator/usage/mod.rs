//! Usage, from the ledger into Tenants' status.

mod conditions;
mod delivery;
mod fixed;
mod leaving;
pub mod ledger;
mod tls;
mod verbs;
mod writers;

use kube::Client;
use serde_json::json;
use tenantry::api::{MeterUsage, Tenant};

use self::ledger::{Metered, Relay, ago, counting, shared};
use super::{
    events::said,
    ground::{await_tenant, condition, eventually, ready_tenant},
    steps::plan,
    verbs::of,
};

/// A tenant's usage of a meter, as its status says.
pub fn used<'a>(tenant: &'a Tenant, meter: &str) -> Option<&'a MeterUsage> {
    tenant.status.as_ref()?.usage.as_ref()?.meters.iter().find(|it| it.name == meter)
}

/// Waits until a tenant's status shows this of a meter.
pub async fn shows(client: &Client, name: &str, meter: &str, display: &str) -> Tenant {
    await_tenant(client, name, &format!("at {meter} {display}"), |tenant| {
        used(tenant, meter).is_some_and(|it| it.display == display)
    })
    .await
}

/// A condition of a tenant, as "status reason".
pub fn says(tenant: &Tenant, kind: &str) -> Option<String> {
    let conditions = &tenant.status.as_ref()?.conditions;
    condition(conditions, kind).map(|condition| format!("{} {}", condition.status, condition.reason))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_is_in_status_with_limit_peak_and_period() {
    let (metered, client) = shared().await;
    counting(&client, "plain").await;
    let tenant = ready_tenant(&client, "plain", of("plain", json!({"spec": {"plan": "plain"}}))).await;
    let before = shows(&client, "plain", "users", "0/10").await;
    let created = before.metadata.creation_timestamp.clone().expect("a time");
    let usage = before.status.as_ref().and_then(|status| status.usage.clone()).expect("usage");
    assert_eq!(usage.period.start, created, "the first period begins with the Tenant");
    assert_eq!(usage.meters.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["users", "accounts", "emails"]);
    assert_eq!(says(&before, "WithinLimits").as_deref(), Some("True WithinLimits"));

    let relay = Relay::of(metered, &tenant).await;
    let at = jiff::Timestamp::now();
    relay.says(at, "users", 1, 5, 5).await;
    relay.says(at, "users", 2, -2, 3).await;
    relay.says(at, "emails", 1, 40, 40).await;
    for (meter, sequence, value) in [("users", 2, 3), ("accounts", 0, 0), ("emails", 1, 40)] {
        relay.marks(meter, 1, sequence, value).await;
    }
    shows(&client, "plain", "emails", "40").await;
    let tenant = await_tenant(&client, "plain", "complete", |tenant| {
        says(tenant, "UsageComplete").as_deref() == Some("True Complete")
    })
    .await;
    let users = used(&tenant, "users").expect("users");
    assert_eq!((users.current, users.peak, users.limit, users.complete), (3, Some(5), Some(10), true));
    assert!(users.average.is_some());
    let emails = used(&tenant, "emails").expect("emails");
    assert_eq!((emails.current, emails.peak, &emails.average, emails.limit), (40, None, &None, None));
    assert_eq!(says(&tenant, "MeteringDegraded"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_waits_for_its_time_and_a_limit_that_is_crossed_does_not() {
    let metered = Metered::start(&["--usage-interval", "1h"]).await;
    let client = metered.ground.client.clone();
    counting(&client, "slow").await;
    let mut relays = Vec::new();
    for name in ["waiting", "crossing"] {
        let tenant = ready_tenant(&client, name, of("slow", json!({"spec": {"plan": "slow"}}))).await;
        relays.push(Relay::of(&metered, &tenant).await);
        shows(&client, name, "users", "0/10").await;
    }
    let now = jiff::Timestamp::now();
    relays[0].says(now, "users", 1, 2, 2).await;
    relays[1].says(now, "users", 1, 2, 2).await;
    relays[1].says(now, "users", 2, 6, 8).await;
    let tenant = shows(&client, "crossing", "users", "8/10").await;
    relays[1].says(now, "users", 3, 2, 10).await;
    shows(&client, "crossing", "users", "10/10").await;
    let heard = eventually(async || {
        let said = said(&client, &tenant).await;
        let of_limit: Vec<_> = said.into_iter().filter(|it| it.contains("Limit")).collect();
        (of_limit == ["Warning LimitNear", "Warning LimitReached"]).then_some(())
    });
    assert!(heard.await.is_some(), "{:?}", said(&client, &tenant).await);
    // Heard of before the other one's, and read with it, it still waits.
    let waiting = await_tenant(&client, "waiting", "there", |_| true).await;
    assert_eq!(used(&waiting, "users").map(|it| it.display.as_str()), Some("0/10"));
    relays[0].says(now, "users", 2, 7, 9).await;
    shows(&client, "waiting", "users", "9/10").await;

    // A new operator knows by the status what was said.
    drop(relays);
    let Metered { ground, operator, url } = metered;
    operator.kill();
    let operator = ledger::operator(&ground, &url, &["--usage-interval", "10ms"]);
    let metered = Metered { ground, operator, url };
    let relay = Relay::of(&metered, &tenant).await;
    relay.says(jiff::Timestamp::now(), "users", 4, -1, 9).await;
    shows(&client, "crossing", "users", "9/10").await;
    let said = said(&client, &tenant).await;
    assert_eq!(said.iter().filter(|it| it.contains("Limit")).count(), 2, "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plans_new_limit_is_in_status_at_once() {
    let (metered, client) = shared().await;
    counting(&client, "moved").await;
    let tenant = ready_tenant(&client, "moved", of("moved", json!({"spec": {"plan": "moved"}}))).await;
    let relay = Relay::of(metered, &tenant).await;
    relay.says(jiff::Timestamp::now(), "users", 1, 6, 6).await;
    shows(&client, "moved", "users", "6/10").await;
    let limits = json!({"users": {"max": 4, "policy": "Soft"}, "accounts": null, "opportunities": null});
    plan(&client, "moved", json!({"limits": limits})).await;
    let tenant = shows(&client, "moved", "users", "6/4").await;
    assert_eq!(says(&tenant, "WithinLimits").as_deref(), Some("False OverSoftLimit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_period_that_is_over_and_complete_goes_into_history() {
    let (metered, client) = shared().await;
    counting(&client, "old").await;
    // The period before this one ended ten days ago, or a bit more: months differ.
    let start = ago(41);
    let start = jiff::Timestamp::from_second(start.as_second()).expect("a time");
    let spec = json!({"spec": {"plan": "old", "billing": {"start": start.to_string()}}});
    let tenant = ready_tenant(&client, "old", of("old", spec)).await;
    let relay = Relay::of(metered, &tenant).await;
    relay.says(ago(20), "users", 1, 7, 7).await;
    relay.says(ago(19), "users", 2, -3, 4).await;
    relay.says(ago(20), "emails", 1, 9, 9).await;
    for (meter, sequence, value) in [("users", 2, 4), ("accounts", 0, 0), ("emails", 1, 9)] {
        relay.marks(meter, 1, sequence, value).await;
    }
    let closed = await_tenant(&client, "old", "with history", |tenant| {
        let history = tenant.status.as_ref().map(|status| status.history.as_slice()).unwrap_or_default();
        ["users", "accounts", "emails"]
            .iter()
            .all(|name| history.iter().any(|it| it.meters.iter().any(|it| it.name == *name)))
    })
    .await;
    let status = closed.status.as_ref().expect("a status");
    let [last] = status.history.as_slice() else { panic!("{:#?}", status.history) };
    assert_eq!((last.start.0, last.estimated), (start, None));
    assert_eq!(Some(&last.end), status.usage.as_ref().map(|usage| &usage.period.start));
    let accounts = last.meters.iter().find(|it| it.name == "accounts").expect("accounts, though nothing was counted");
    assert_eq!((accounts.closing, accounts.peak, accounts.average.as_deref()), (Some(0), Some(0), Some("0.00")));
    let meter = |name: &str| last.meters.iter().find(|it| it.name == name).expect("a meter");
    assert_eq!((meter("users").closing, meter("users").peak, meter("users").used), (Some(4), Some(7), None));
    assert_eq!((meter("emails").used, meter("emails").closing), (Some(9), None));
    assert_eq!(used(&closed, "users").map(|it| it.display.as_str()), Some("4/10"), "carried");
    assert_eq!(used(&closed, "emails").map(|it| it.display.as_str()), Some("0"), "started again");

    // What comes too late is an adjustment, and no figure of the period changes.
    relay.says(ago(18), "users", 3, 2, 6).await;
    let adjusted = await_tenant(&client, "old", "adjusted", |tenant| {
        let history = tenant.status.as_ref().map(|status| status.history.as_slice()).unwrap_or_default();
        history.iter().flat_map(|closed| &closed.meters).any(|it| it.name == "users" && it.adjusted == Some(2))
    })
    .await;
    let history = &adjusted.status.as_ref().expect("a status").history;
    let users = history[0].meters.iter().find(|it| it.name == "users").expect("users");
    assert_eq!((users.closing, users.peak), (Some(4), Some(7)));
}
