//! Tenants, where they are and were, and what is said of outboxes and dead letters.

use tenantry::metering::event::{DeadEvents, OutboxReport, Usage};
use tenantry::metering::ledger::{DeadEvent, LedgerTenant, MeterDefinition};

use crate::support::{Ground, days_ago, known, now, placed};

#[tokio::test(flavor = "multi_thread")]
async fn placements_are_a_history() {
    let ground = Ground::new().await;
    let ids = ["t_1".to_owned(), "t_2".to_owned(), "t_9".to_owned()];
    let tenants = [known("t_1", days_ago(3)), known("t_2", days_ago(3))];
    let first = [placed("t_1", "main", "crm_1"), placed("t_2", "main", "crm_1")];
    ground.ledger.register(&tenants, &first).await.expect("registered");
    ground.ledger.register(&[], &[placed("t_1", "other", "own")]).await.expect("moved");
    ground.ledger.register(&tenants, &[]).await.expect("nothing new");
    let directory = ground.ledger.directory(&ids).await.expect("read");
    assert_eq!(directory.tenants, tenants);
    assert_eq!(
        directory.placements,
        [placed("t_1", "main", "crm_1"), placed("t_1", "other", "own"), placed("t_2", "main", "crm_1")]
    );
    let now_at = "SELECT string_agg(tenant || server, ',' ORDER BY tenant) FROM ledger.placement WHERE until IS NULL";
    assert_eq!(ground.one::<String>(now_at).await, "t_1other,t_2main");
    // Back again: the history has it twice.
    ground.ledger.register(&[], &[placed("t_1", "main", "crm_1")]).await.expect("moved");
    assert_eq!(ground.one::<i64>("SELECT count(*) FROM ledger.placement WHERE tenant = 't_1'").await, 3);
    ground.ledger.depart(&ids).await.expect("gone");
    assert_eq!(ground.one::<i64>("SELECT count(*) FROM ledger.placement WHERE until IS NULL").await, 0);
    assert_eq!(ground.ledger.directory(&ids).await.expect("read").placements.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn anchor_and_zone_never_change_the_rest_does() {
    let ground = Ground::new().await;
    let first = known("t_1", days_ago(3));
    ground.ledger.register(std::slice::from_ref(&first), &[]).await.expect("registered");
    let second = LedgerTenant {
        plan: "enterprise".to_owned(),
        namespace: Some("acme".to_owned()),
        anchor: now(),
        time_zone: "UTC".to_owned(),
        ..first.clone()
    };
    ground.ledger.register(&[second], &[]).await.expect("registered");
    let expected = LedgerTenant { plan: "enterprise".to_owned(), namespace: Some("acme".to_owned()), ..first };
    assert_eq!(ground.ledger.directory(&["t_1".to_owned()]).await.expect("read").tenants, [expected]);
    assert_eq!(ground.ledger.tenant_of_namespace("acme").await.expect("read").as_deref(), Some("t_1"));
    assert_eq!(ground.ledger.tenant_of_namespace("other").await.expect("read"), None);
    ground.ledger.depart(&["t_1".to_owned()]).await.expect("gone");
    assert_eq!(ground.ledger.tenant_of_namespace("acme").await.expect("read"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn meters_are_those_that_are_declared_now() {
    let ground = Ground::new().await;
    ground.register("t_1", days_ago(3)).await;
    let calls = MeterDefinition { name: "calls".to_owned(), is_total: false, from_api: true };
    ground.ledger.define("crm", std::slice::from_ref(&calls)).await.expect("defined");
    ground.ledger.define("other", &[]).await.expect("defined");
    let directory = ground.ledger.directory(&["t_1".to_owned()]).await.expect("read");
    assert_eq!(directory.meters, [("crm".to_owned(), calls)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_report_on_an_outbox_is_kept() {
    let ground = Ground::new().await;
    let dead = vec![DeadEvents { tenant: "t_1".to_owned(), events: 2 }];
    let report = OutboxReport { waiting: 7, oldest: Some(now()), dead };
    let empty = OutboxReport { waiting: 0, oldest: None, dead: Vec::new() };
    ground.ledger.report("main", "crm_1", &empty).await.expect("stored");
    ground.ledger.report("main", "crm_2", &empty).await.expect("stored");
    ground.ledger.report("main", "crm_1", &report).await.expect("stored");
    let outboxes = ground.ledger.outboxes().await.expect("read");
    let found: Vec<_> = outboxes.iter().map(|outbox| (outbox.database.as_str(), &outbox.report)).collect();
    assert_eq!(found, [("crm_1", &report), ("crm_2", &empty)]);
    assert!(outboxes[0].reported_at >= outboxes[1].reported_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_found_by_its_name_with_what_its_usage_is_read_by() {
    let ground = Ground::new().await;
    let old = LedgerTenant { name: "acme".to_owned(), ..known("t_1", days_ago(9)) };
    let new = LedgerTenant { name: "acme".to_owned(), ..known("t_2", days_ago(3)) };
    let named = async || ground.ledger.tenant_named("acme").await.expect("read");
    assert_eq!(named().await, None);
    let meter = |name: &str, is_total, from_api| MeterDefinition { name: name.to_owned(), is_total, from_api };
    let meters = [meter("calls", true, true), meter("users", false, false)];
    ground.ledger.define("crm", &meters).await.expect("defined");
    ground.ledger.register(std::slice::from_ref(&old), &[placed("t_1", "main", "crm_1")]).await.expect("registered");
    let first = named().await.expect("it is there");
    assert_eq!((&first.tenant, first.gone_at, first.server.as_deref()), (&old, None, Some("main")));
    assert_eq!(first.meters, meters);
    // Nobody has reported: it was heard of when it came.
    let came = first.heard_at.expect("since it is there");
    let report = OutboxReport { waiting: 0, oldest: None, dead: Vec::new() };
    ground.ledger.report("main", "crm_2", &report).await.expect("stored");
    assert_eq!(named().await.expect("it is there").heard_at, Some(came), "of another database");
    ground.ledger.report("main", "crm_1", &report).await.expect("stored");
    assert!(named().await.expect("it is there").heard_at > Some(came));
    // It goes: it is still found, until another one has its name.
    ground.ledger.depart(&["t_1".to_owned()]).await.expect("gone");
    let gone = named().await.expect("it was there");
    assert_eq!((gone.tenant, gone.server, gone.heard_at), (old, None, None));
    assert!(gone.gone_at > Some(came));
    ground.ledger.register(std::slice::from_ref(&new), &[placed("t_2", "main", "crm_1")]).await.expect("registered");
    assert_eq!(named().await.expect("it is there").tenant, new);
    // Of two that are gone it is the last.
    ground.ledger.depart(&["t_2".to_owned()]).await.expect("gone");
    assert_eq!(named().await.expect("it was there").tenant, new);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_saved_once() {
    let ground = Ground::new().await;
    let letter = DeadEvent {
        id: "an id".to_owned(),
        source: "/tenantry/main/crm_1".to_owned(),
        tenant: "t_1".to_owned(),
        at: days_ago(60),
        usage: Usage { meter: "users".to_owned(), delta: 4, counted: None },
        error: "too old".to_owned(),
    };
    for _ in 0..2 {
        ground.ledger.save_dead(std::slice::from_ref(&letter)).await.expect("saved");
    }
    let aside = ground.ledger.quarantined(&["t_1".to_owned()]).await.expect("read");
    assert_eq!(aside.iter().map(|some| (some.why.as_str(), some.events)).collect::<Vec<_>>(), [("dead", 1)]);
    let kept: String = ground.one("SELECT error || ': ' || (content->>'delta') FROM ledger.quarantine").await;
    assert_eq!(kept, "too old: 4");
}
