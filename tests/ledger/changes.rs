//! Whoever waits for changes sees each, also of a transaction that began early and ended late.

use std::time::Duration;

use crate::support::{Ground, Source, days_ago, known, now};

const SOON: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn changes_wake_and_are_told_once() {
    let ground = Ground::new().await;
    ground.ledger.register(&[known("t_0", days_ago(3))], &[]).await.expect("registered");
    let mut source = Source::new("t_1", "users", days_ago(40));
    ground.ingest(&[source.count(1, now())]).await;
    let mut cursor = None;
    let mut all = ground.ledger.changed(&mut cursor, LONG).await.expect("read");
    all.sort();
    assert_eq!(all, ["t_0", "t_1"]);
    assert!(ground.ledger.changed(&mut cursor, SOON).await.expect("read").is_empty());

    let waiting = {
        let ledger = ground.ledger.clone();
        tokio::spawn(async move { ledger.changed(&mut cursor, LONG).await.map(|tenants| (tenants, cursor)) })
    };
    let mut source = Source::new("t_2", "users", days_ago(40));
    let event = source.count(1, now());
    ground.ingest(std::slice::from_ref(&event)).await;
    let (tenants, mut cursor) = waiting.await.expect("ends").expect("read");
    assert_eq!(tenants, ["t_2"]);
    // A mark that says what is known already, and an event that is, change nothing.
    ground.ledger.mark(&[source.mark(now())]).await.expect("marked");
    assert_eq!(ground.ledger.changed(&mut cursor, LONG).await.expect("read"), ["t_2"]);
    ground.ledger.mark(&[source.mark(now())]).await.expect("marked");
    ground.ingest(&[event]).await;
    assert!(ground.ledger.changed(&mut cursor, SOON).await.expect("read").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_ends_late_is_not_skipped() {
    let ground = Ground::new().await;
    let mut first = Source::new("t_1", "users", days_ago(40));
    let mut second = Source::new("t_2", "users", days_ago(40));
    ground.ingest(&[first.count(1, now()), second.count(1, now())]).await;
    let mut cursor = None;
    ground.ledger.changed(&mut cursor, LONG).await.expect("read");

    let early = ground.owner().await;
    early
        .batch_execute("BEGIN; UPDATE ledger.meter SET changed = pg_current_xact_id() WHERE tenant = 't_1'")
        .await
        .expect("begun");
    ground.ingest(&[second.count(1, now())]).await;
    assert_eq!(ground.ledger.changed(&mut cursor, LONG).await.expect("read"), ["t_2"]);
    // While it is open nothing is told twice.
    assert!(ground.ledger.changed(&mut cursor, SOON).await.expect("read").is_empty());
    early.batch_execute("COMMIT").await.expect("ended");
    assert_eq!(ground.ledger.changed(&mut cursor, LONG).await.expect("read"), ["t_1"]);
    assert!(ground.ledger.changed(&mut cursor, SOON).await.expect("read").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_who_waits_sees_all() {
    let ground = Ground::new().await;
    let (mut one, mut other) = (None, None);
    for cursor in [&mut one, &mut other] {
        ground.ledger.changed(cursor, SOON).await.expect("read");
    }
    let mut source = Source::new("t_1", "users", days_ago(40));
    ground.ingest(&[source.count(1, now())]).await;
    for cursor in [&mut one, &mut other] {
        assert_eq!(ground.ledger.changed(cursor, LONG).await.expect("read"), ["t_1"]);
    }
}
