//! The three modes of the binding, over a connection.

use serde_json::json;

use super::ground::{BATCH, Ground, ONE, counted, plain, relay, with, workload};

#[tokio::test(flavor = "multi_thread")]
async fn one_event_in_each_mode() {
    let ground = Ground::new().await;
    let (token, tenant) = (relay("main").await, ground.tenant(&["main"], None).await);
    let event = |sequence| counted("main", &tenant, sequence, 1, sequence);
    ground
        .post(Some(&token), "Application/CloudEvents+JSON; Charset=UTF-8", &[], &event(1).to_string())
        .await
        .took(200, 1, 0, 0);
    ground.post(Some(&token), BATCH, &[], &json!([event(2)]).to_string()).await.took(200, 1, 0, 0);
    let binary = event(3);
    let text = |name: &str| binary[name].as_str().expect("a text").to_owned();
    let (id, source, subject, time) = (text("id"), text("source"), text("subject"), text("time"));
    let headers = [
        ("CE-SpecVersion", "1.0"),
        ("Ce-Id", &id),
        ("ce-source", &source),
        ("ce-type", "io.tenantry.usage.v1"),
        ("ce-subject", &subject),
        ("ce-time", &time),
        ("ce-traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    let body = binary["data"].to_string();
    ground.post(Some(&token), "application/json", &headers, &body).await.took(200, 1, 0, 0);
    // Whichever way it comes again, it is the same event: here percent-encoded and quoted.
    let (id, source) = (id.replace('_', "%5F"), format!("\"{source}\""));
    let headers = [headers[0], ("ce-id", &id), ("ce-source", &source), headers[3], headers[4], headers[5]];
    ground.post(Some(&token), "application/json", &headers, &body).await.took(200, 0, 1, 0);
    ground.post(Some(&token), ONE, &[], &binary.to_string()).await.took(200, 0, 1, 0);
    let state = ground.state(&tenant, "users").await.expect("counted");
    assert_eq!((state.sequence, state.value, state.missing), (3, 3, None));
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_of_a_batch_has_its_own_result() {
    let ground = Ground::new().await;
    let (token, tenant) = (relay("main").await, ground.tenant(&["main"], None).await);
    let event = |sequence| counted("main", &tenant, sequence, 1, sequence);
    let first = event(1);
    ground.batch(&token, &[]).await.took(200, 0, 0, 0).left(&[], &[]);
    let mark = json!({
        "specversion": "1.0", "id": "m", "source": "/tenantry/main/pool_crm_1", "type": "io.tenantry.mark.v1",
        "subject": tenant, "time": super::ground::ago(30).to_string(),
        "data": {"meter": "users", "epoch": 1, "sequence": 3, "value": 3},
    });
    let report = with(
        with(with(mark.clone(), "/type", json!("io.tenantry.outbox.v1")), "/subject", json!("pool_crm_1")),
        "/data",
        json!({"waiting": 4}),
    );
    let reply = ground
        .batch(
            &token,
            &[
                first.clone(),
                json!("no event"),
                with(event(2), "/time", json!(null)),
                with(event(2), "/data/sequence", json!(null)),
                event(2),
                with(event(9), "/subject", json!("t_unknowntenan")),
                with(event(9), "/type", json!("com.example.other")),
                with(event(9), "/source", json!("/tenantry/other/pool_crm_1")),
                with(event(9), "/time", json!("2026-01-01T00:00:00Z")),
                with(event(9), "/time", json!(super::ground::ago(-3_600).to_string())),
                first,
                event(3),
                mark,
                report,
                with(event(9), "/data/region", json!("eu")),
            ],
        )
        .await;
    reply.took(200, 5, 1, 0).left(
        &["1 Malformed", "2 MissingTime", "3 BadData", "6 UnknownType", "7 Forbidden", "8 TooOld"],
        &["5 UnknownTenant", "9 TooEarly", "14 TooNew"],
    );
    for (result, number) in
        [("accepted", 5.0), ("duplicate", 1.0), ("quarantined", 0.0), ("rejected", 6.0), ("deferred", 3.0)]
    {
        assert_eq!(ground.metric(&format!("usage_events_total{{result=\"{result}\"}}")), number, "{result}");
    }
    for (reason, number) in
        [("Forbidden", 1.0), ("TooEarly", 1.0), ("TooNew", 1.0), ("BadData", 1.0), ("UnknownMeter", 0.0)]
    {
        assert_eq!(ground.metric(&format!("usage_events_refused_total{{reason=\"{reason}\"}}")), number, "{reason}");
    }
    assert_eq!((ground.metric("ingest_batch_events_sum"), ground.metric("ingest_queue_events")), (6.0, 0.0));
    let id = |place: usize| reply.json()["rejected"][place]["id"].clone();
    assert_eq!((id(0), id(1)), (json!(null), json!(format!("{tenant}-2"))));
    let state = ground.state(&tenant, "users").await.expect("counted");
    assert_eq!((state.sequence, state.value, state.missing), (3, 3, None));
    assert!(state.marked_at.is_some());
    let outboxes = ground.ledger.outboxes().await.expect("read");
    let outbox = outboxes.iter().find(|outbox| outbox.database == "pool_crm_1").expect("a report");
    assert_eq!((outbox.server.as_str(), outbox.report.waiting), ("main", 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_event_is_answered_by_the_status_too() {
    let ground = Ground::new().await;
    let (token, tenant) = (relay("main").await, ground.tenant(&["main"], None).await);
    let event = counted("main", &tenant, 1, 1, 1);
    for (event, status, rejected, deferred) in [
        (with(event.clone(), "/time", json!(null)), 400, &["0 MissingTime"][..], &[][..]),
        (with(event.clone(), "/specversion", json!("0.3")), 400, &["0 Malformed"], &[]),
        (with(event.clone(), "/source", json!("/tenantry/other/pool_crm_1")), 403, &["0 Forbidden"], &[]),
        (with(event.clone(), "/subject", json!("t_unknowntenan")), 503, &[], &["0 UnknownTenant"]),
    ] {
        let reply = ground.post(Some(&token), ONE, &[], &event.to_string()).await;
        reply.took(status, 0, 0, 0).left(rejected, deferred);
        assert_eq!(reply.head.contains("\r\nretry-after: "), status == 503, "{reply:?}");
    }
    assert!(ground.state(&tenant, "users").await.is_none_or(|state| state.sequence == 0), "nothing was counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_and_large_batches_go_through() {
    let ground = Ground::new().await;
    let namespace = "tenant-large";
    let (token, tenant) = (workload(namespace).await, ground.tenant(&["main"], Some(namespace)).await);
    let large = with(plain("large", 1), "/comexamplenote", json!("n".repeat(100 * 1024)));
    ground.post(Some(&token), ONE, &[], &large.to_string()).await.took(200, 1, 0, 0);
    let events: Vec<_> = (0..5_000).map(|id| plain(&id.to_string(), 2)).collect();
    ground.batch(&token, &events).await.took(200, 5_000, 0, 0);
    ground.batch(&token, &events[2_000..4_000]).await.took(200, 0, 2_000, 0);
    let state = ground.state(&tenant, "exports").await.expect("counted");
    assert_eq!(state.value, 10_001);
}
