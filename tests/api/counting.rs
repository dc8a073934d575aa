//! Once is once: whatever is sent again, whenever.

use futures::future::join_all;
use jiff::{SignedDuration, tz::TimeZone};
use serde_json::json;

use super::ground::{Ground, ago, counted, plain, relay, with, workload};

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_is_one_on_the_other_side_of_midnight_too() {
    let ground = Ground::new().await;
    let namespace = "tenant-midnight";
    let (token, tenant) = (workload(namespace).await, ground.tenant(&["main"], Some(namespace)).await);
    // The last moment of yesterday, sent today, and sent again as another zone writes it.
    let midnight = ago(0).to_zoned(TimeZone::UTC).start_of_day().expect("a day").timestamp();
    let last = midnight - SignedDuration::from_micros(1);
    let event = with(plain("late", 1), "/time", json!(last.to_string()));
    ground.batch(&token, &[event.clone()]).await.took(200, 1, 0, 0);
    let seoul = last.to_zoned(TimeZone::get("Asia/Seoul").expect("a zone")).strftime("%Y-%m-%dT%H:%M:%S.%6f%:z");
    ground.batch(&token, &[with(event.clone(), "/time", json!(seoul.to_string())), event]).await.took(200, 0, 2, 0);
    // The same id with another day's time is another event.
    let other = with(plain("late", 1), "/time", json!(midnight.to_string()));
    ground.batch(&token, &[other.clone()]).await.took(200, 1, 0, 0);
    ground.batch(&token, &[other]).await.took(200, 0, 1, 0);
    assert_eq!(ground.state(&tenant, "exports").await.expect("counted").value, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_with_other_content_is_put_aside() {
    let ground = Ground::new().await;
    let namespace = "tenant-conflict";
    let (token, tenant) = (workload(namespace).await, ground.tenant(&["main"], Some(namespace)).await);
    let event = plain("one", 1);
    ground.batch(&token, &[event.clone()]).await.took(200, 1, 0, 0);
    let other = with(event.clone(), "/data/delta", json!(5));
    ground.batch(&token, &[other.clone(), plain("two", 1), event]).await.took(200, 1, 1, 1);
    ground.post(Some(&token), super::ground::ONE, &[], &other.to_string()).await.took(200, 0, 0, 1);
    assert_eq!(ground.state(&tenant, "exports").await.expect("counted").value, 2);
    let aside = ground.ledger.quarantined(&[tenant]).await.expect("read");
    assert_eq!(aside.len(), 1, "{aside:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_with_the_same_events_count_each_once() {
    let ground = Ground::new().await;
    let (token, tenant) = (relay("main").await, ground.tenant(&["main"], None).await);
    let events: Vec<_> = (1..=200).map(|sequence| counted("main", &tenant, sequence, 1, sequence)).collect();
    // Overlapping parts, forwards and backwards.
    let parts = (0..12).map(|part| {
        let mut own: Vec<_> = events[part * 15..(part * 15 + 35).min(200)].to_vec();
        if part % 2 == 1 {
            own.reverse();
        }
        let (ground, token) = (&ground, &token);
        async move { ground.batch(token, &own).await }
    });
    let replies = join_all(parts).await;
    let sum = |name: &str| -> u64 { replies.iter().map(|reply| reply.json()[name].as_u64().expect("a number")).sum() };
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert_eq!((sum("accepted"), sum("quarantined")), (200, 0));
    let state = ground.state(&tenant, "users").await.expect("counted");
    assert_eq!((state.value, state.sequence, state.missing), (200, 200, None));
}
