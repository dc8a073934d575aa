//! At rest the operator writes nothing, and after a restart neither.

use std::collections::BTreeMap;

use devcluster::{AuditMark, Options};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, api::ListParams};
use serde_json::json;
use tenantry::api::Tenant;

use super::{
    bridge::bridge,
    dedicated::dedicated,
    ground::{Ground, OPERATOR, Operator, apply, await_tenant, credentials, eventually, is, ready_tenant, tenant},
    ingest::ports,
    relays::{Program, token},
    steps::{migrations, plan, reconciles, stalled},
    usage::{
        ledger::{ledger_on, operator},
        says, used,
    },
    verbs::{application, await_condition, log_in, of, ours, patch, rows, superuser, web},
};

/// The server is looked at every second, and swept every other.
/// What is metered goes nowhere, and waits.
const FLAGS: [&str; 8] = [
    "--health-interval",
    "1s",
    "--sweep-interval",
    "2s",
    "--ledger-url",
    "postgres://nobody:none@127.0.0.1:9/ledger?sslmode=disable",
    "--api-listen",
    "127.0.0.1:0",
];

/// Waits until the operator has looked at its servers so many times more, as it does on its own
/// account and at rest: as often as that, nothing else was to be done.
pub async fn rounds(operator: &Operator, count: u64) {
    let until = reconciles(operator, "DatabaseServer") + count;
    let looked = eventually(async || (reconciles(operator, "DatabaseServer") >= until).then_some(())).await;
    assert!(looked.is_some(), "the operator looks at its servers");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_rest_and_after_a_restart_nothing_is_written() {
    let ground = Ground::start(Options { audit: true, ..Options::default() }).await;
    let operator = ground.operator(&FLAGS);
    ground.examples().await;
    for name in ["a", "ab", "a-b"] {
        ready_tenant(&ground.client, name, json!({})).await;
    }
    with_namespaces_of_their_own(&ground).await;
    in_every_other_state(&ground).await;
    let audit = ground.cluster.audit();
    let calls = async |count: u64| {
        let mark = audit.mark().expect("a mark");
        rounds(&operator, count).await;
        let mut calls: BTreeMap<String, u64> = BTreeMap::new();
        for event in audit.events(mark).expect("events") {
            if event.user == OPERATOR && event.verb != "watch" && event.resource != "leases" {
                *calls.entry(format!("{} {}", event.verb, event.resource)).or_default() += 1;
            }
        }
        calls
    };
    // An Event may be said five seconds after what it tells of: two servers are looked at three
    // times a second, as often as they are due and after each sweep.
    let settled = eventually(async || calls(24).await.is_empty().then_some(())).await;
    assert!(settled.is_some(), "it does not come to rest: {:?}", calls(24).await);
    let more = calls(40).await;
    assert!(more.is_empty(), "at rest: {more:?}, after {:#?}", last_said(&ground).await);
    operator.kill();
    let mark = audit.mark().expect("a mark");
    let operator = ground.operator(&FLAGS);
    let tenants = Api::<Tenant>::all(ground.client.clone()).list(&ListParams::default()).await.expect("a list").items;
    let tenants = u64::try_from(tenants.len()).expect("few");
    let all = eventually(async || (reconciles(&operator, "Tenant") >= tenants).then_some(())).await;
    assert!(all.is_some(), "every Tenant is looked at");
    rounds(&operator, 20).await;
    let written: Vec<_> = audit
        .events(mark)
        .expect("events")
        .into_iter()
        .filter(|event| event.user == OPERATOR && event.is_write() && event.resource != "leases")
        .collect();
    assert!(written.is_empty(), "{written:#?}");
    // It does work again: a new tenant becomes Ready.
    ready_tenant(&ground.client, "after", json!({})).await;
    await_tenant(&ground.client, "a", "Ready", |tenant| is(tenant, "Ready", "True")).await;
}

/// The same where usage is metered, all of it has arrived, and nobody counts.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_ledger_and_a_relay_nothing_is_written_either() {
    let ground = Ground::start(Options { audit: true, ..Options::default() }).await;
    let url = ledger_on(ground.cluster.postgres()).await;
    // The outboxes are looked at every second; what lives reports as often.
    let flags = [&FLAGS[..4], &["--usage-wait-after", "1s", "--usage-interval", "10ms"]].concat();
    let leader = operator(&ground, &url, &flags);
    leader.says(200, "leading").await;
    // The relay's events are taken while the leader is started again.
    let standby = operator(&ground, &url, &[&flags[..], &["--lease-identity", "other"]].concat());
    standby.says(200, "standing by").await;
    ground.examples().await;
    let client = ground.client.clone();
    await_condition(&client, &ours("DatabaseServer", "main"), "RelayReady", "True", "").await;
    let port = eventually(async || ports(&ground).get(1).copied()).await.expect("the standby's API listens");
    let api = format!("http://127.0.0.1:{port}");
    let _relay = Program::start(&ground, "main", &api, &token(&client, "main").await).await;
    let specs = [
        ("idle-a", json!({})),
        ("idle-b", json!({})),
        ("idle-c", bridge("crm", json!({}))),
        ("idle-d", dedicated("crm", json!({}))),
    ];
    for (name, spec) in specs {
        let tenant = ready_tenant(&client, name, spec).await;
        let session = log_in(&credentials(&client, &tenant).await).await.expect("a login");
        session.batch_execute("SELECT record_usage('users', 2, 'a')").await.expect("counted");
        await_tenant(&client, name, "counted", |tenant| {
            used(tenant, "users").is_some_and(|it| it.current == 2 && it.complete)
                && says(tenant, "UsageComplete").as_deref() == Some("True Complete")
        })
        .await;
    }
    await_condition(&client, &ours("DatabaseServer", "main"), "UsageDelivered", "True", "").await;
    let ledger = superuser(&ground, "ledger").await;
    let audit = ground.cluster.audit();
    let written = |mark: AuditMark| -> Vec<String> {
        let events = audit.events(mark).expect("events").into_iter();
        // To ask whose a token is, is a create by its form, of which nothing is kept.
        let ours = events.filter(|it| it.user == OPERATOR && it.is_write() && it.resource != "tokenreviews");
        let ours = ours.filter(|it| it.resource != "leases");
        ours.map(|it| format!("{} {} {}", it.verb, it.resource, it.name)).collect()
    };
    let settled = eventually(async || {
        let mark = audit.mark().expect("a mark");
        rounds(&leader, 24).await;
        written(mark).is_empty().then_some(())
    });
    assert!(settled.await.is_some(), "it does not come to rest");
    // A minute of the outboxes' rounds as they are by default, and twenty reports.
    let mark = audit.mark().expect("a mark");
    reports(&ledger, 20).await;
    rounds(&leader, 40).await;
    assert_eq!(written(mark), Vec::<String>::new(), "at rest");

    leader.kill();
    let mark = audit.mark().expect("a mark");
    let leader = operator(&ground, &url, &flags);
    leader.says(200, "leading").await;
    assert_eq!(leader.metric("tenantry_leader"), Some(1.0), "who comes back leads");
    let all = eventually(async || (reconciles(&leader, "Tenant") >= 4).then_some(())).await;
    assert!(all.is_some(), "every Tenant is looked at");
    reports(&ledger, 20).await;
    rounds(&leader, 20).await;
    assert_eq!(written(mark), Vec::<String>::new(), "after a restart");
    // It does work again.
    let tenant = await_tenant(&client, "idle-a", "there", |_| true).await;
    let session = log_in(&credentials(&client, &tenant).await).await.expect("a login");
    session.batch_execute("SELECT record_usage('users', 1, 'b')").await.expect("counted");
    await_tenant(&client, "idle-a", "counted", |it| used(it, "users").is_some_and(|it| it.current == 3)).await;
}

/// Waits until the relay has reported so many times, of one database or another.
async fn reports(ledger: &tokio_postgres::Client, count: usize) {
    let mut seen = std::collections::BTreeSet::new();
    let heard = eventually(async || {
        seen.extend(rows(ledger, "SELECT reported_at::text FROM ledger.outbox").await);
        (seen.len() > count).then_some(())
    });
    assert!(heard.await.is_some(), "the relay reports: {seen:?}");
}

/// What was said last, by Events.
async fn last_said(ground: &Ground) -> Vec<String> {
    let mut events = Api::<Event>::all(ground.client.clone()).list(&ListParams::default()).await.expect("a list").items;
    events.sort_by_key(|event| event.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let text = |event: &Event| {
        let about = event.regarding.as_ref().map(|about| (about.kind.clone(), about.name.clone()));
        format!("{about:?}: {:?} {:?}", event.reason, event.note)
    };
    events
        .iter()
        .rev()
        .filter(|event| event.reporting_controller.as_deref() == Some("tenantry.io/operator"))
        .take(5)
        .map(text)
        .collect()
}

/// Tenants of tiers bridge and dedicated, Ready and not. (One that a foreign namespace stands in
/// the way of is never at rest: no watch tells when that goes, so it is looked for now and then.)
async fn with_namespaces_of_their_own(ground: &Ground) {
    let client = &ground.client;
    for name in ["b", "b-b"] {
        let owners = json!({"spec": {"owners": [{"kind": "Group", "name": "staff"}]}});
        ready_tenant(client, name, bridge("crm", owners)).await;
    }
    ready_tenant(client, "d", dedicated("crm", json!({}))).await;
    let (front, mut worker) = (web(), web());
    worker["name"] = "worker".into();
    worker["port"] = serde_json::Value::Null;
    worker["autoscaling"] = json!({"bridge": {"minReplicas": 1, "maxReplicas": 2, "targetCpuPercent": 80}});
    application(client, "autoscaled", json!({"components": [front, worker]})).await;
    ready_tenant(client, "scaled", bridge("autoscaled", json!({}))).await;
    ready_tenant(client, "own-suspended", dedicated("crm", json!({}))).await;
    patch(client, &ours("Tenant", "own-suspended"), &json!({"spec": {"suspended": true}})).await;
    await_tenant(client, "own-suspended", "suspended", |tenant| is(tenant, "Ready", "False")).await;
    ready_tenant(client, "moves", bridge("crm", json!({}))).await;
    patch(client, &ours("Tenant", "moves"), &json!({"spec": {"tier": "pooled"}})).await;
    stalled(client, "moves", "TierChange", &[]).await;
    plan(client, "tiny", json!({"quota": {"requests.cpu": "1m"}})).await;
    apply(client, &tenant("too-big", bridge("crm", json!({"spec": {"plan": "tiny"}})))).await.expect("a Tenant");
    stalled(client, "too-big", "QuotaTooSmall", &[]).await;
}

/// Tenants that are not Ready, each for another reason.
async fn in_every_other_state(ground: &Ground) {
    let client = &ground.client;
    ready_tenant(client, "suspended", json!({})).await;
    patch(client, &ours("Tenant", "suspended"), &json!({"spec": {"suspended": true}})).await;
    await_tenant(client, "suspended", "suspended", |tenant| is(tenant, "Ready", "False")).await;
    // One that ran before, and one that never did.
    ready_tenant(client, "stalled", json!({})).await;
    patch(client, &ours("Tenant", "stalled"), &json!({"spec": {"plan": "none"}})).await;
    stalled(client, "stalled", "UnknownPlan", &[]).await;
    apply(client, &tenant("lost", json!({"spec": {"plan": "none"}}))).await.expect("a Tenant");
    stalled(client, "lost", "UnknownPlan", &[]).await;
    apply(client, &migrations("broken", &[("001.sql", "SELECT 1 / 0")])).await.expect("a ConfigMap");
    application(client, "broken", json!({"migrations": {"sql": {"configMaps": [{"name": "broken"}]}}})).await;
    apply(client, &tenant("broken", of("broken", json!({})))).await.expect("a Tenant");
    stalled(client, "broken", "MigrationFailed", &[]).await;
    ground.server(client, "tiny", json!({"capacity": {"databases": 1, "schemasPerDatabase": 1}})).await;
    application(client, "narrow", json!({"database": {"pooled": {"servers": ["tiny"]}}})).await;
    ready_tenant(client, "placed", of("narrow", json!({}))).await;
    apply(client, &tenant("waiting", of("narrow", json!({})))).await.expect("a Tenant");
    await_tenant(client, "waiting", "waiting", |tenant| is(tenant, "Placed", "False")).await;
}
