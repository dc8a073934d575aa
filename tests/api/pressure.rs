//! Too much, too large, too slow, or nothing that can be read.

use std::time::Duration;

use serde_json::json;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::ground::{BATCH, Ground, ONE, Reply, counted, eventually, plain, relay, settings, workload};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_told_so_however_it_comes() {
    let ground = Ground::new().await;
    let token = relay("main").await;
    let most = settings().body;
    let spaces = |bytes: usize| format!("[{}]", " ".repeat(bytes - 2));
    ground.post(Some(&token), BATCH, &[], &spaces(most)).await.took(200, 0, 0, 0);
    ground.post(Some(&token), BATCH, &[], &spaces(most + 1)).await.problem(413, "TooLarge");
    let mut request = format!(
        "POST /v1/events HTTP/1.1\r\nHost: api\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Type: {BATCH}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for part in spaces(most + 1).as_bytes().chunks(100_000) {
        request.extend(format!("{:x}\r\n", part.len()).into_bytes());
        request.extend_from_slice(part);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    ground.raw(&request).await.problem(413, "TooLarge");
    let many = |count: usize| format!("[{}1]", "1,".repeat(count - 1));
    ground.post(Some(&token), BATCH, &[], &many(settings().events + 1)).await.problem(413, "TooManyEvents");
    assert_eq!(
        ground.post(Some(&token), BATCH, &[], &many(settings().events)).await.json()["rejected"]
            .as_array()
            .map(Vec::len),
        Some(5_000)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cant_be_read_is_told_so() {
    let ground = Ground::new().await;
    let token = relay("main").await;
    for (media, more, reason) in [
        ("", &[][..], "UnsupportedMediaType"),
        ("text/plain", &[], "UnsupportedMediaType"),
        ("application/json", &[], "UnsupportedMediaType"),
        ("application/x-www-form-urlencoded", &[("ce-id", "1")], "UnsupportedMediaType"),
        ("application/cloudevents+json; charset=latin1", &[], "UnsupportedMediaType"),
        ("application/cloudevents+avro", &[], "UnsupportedMediaType"),
        (ONE, &[("content-encoding", "gzip")], "UnsupportedMediaType"),
    ] {
        ground.post(Some(&token), media, more, "{}").await.problem(415, reason);
    }
    for body in ["", "{", "{}", "[1"] {
        ground.post(Some(&token), BATCH, &[], body).await.problem(400, "Malformed");
    }
    ground.post(Some(&token), ONE, &[], "no json").await.problem(400, "Malformed");
    ground.post(Some(&token), ONE, &[], "{}").await.took(400, 0, 0, 0).left(&["0 Malformed"], &[]);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n");
    assert_eq!(ground.raw(get("/v1/events").as_bytes()).await.status, 405);
    ground.raw(get("/v2/events").as_bytes()).await.problem(404, "NotFound");
}

/// A request whose body doesn't come yet.
async fn begun(ground: &Ground, token: &str, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(ground.address).await.expect("a connection");
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nHost: api\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Type: {BATCH}\r\nContent-Length: {length}\r\n\r\n["
    );
    stream.write_all(head.as_bytes()).await.expect("written");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_too_much_under_way_waits_and_nobody_else() {
    let mut few = settings();
    (few.caller_requests, few.body_patience) = (1, Duration::from_secs(120));
    let ground = Ground::set(few).await;
    let (token, other) = (relay("main").await, relay("other").await);
    let mut slow = begun(&ground, &token, 2).await;
    let refused = eventually(async || {
        let reply = ground.post(Some(&token), BATCH, &[], "[]").await;
        (reply.status == 429).then_some(reply)
    });
    refused.await.expect("it is refused").problem(429, "TooMuchUnderWay");
    ground.post(Some(&other), BATCH, &[], "[]").await.took(200, 0, 0, 0);
    slow.write_all(b"]").await.expect("written");
    Reply::read(&mut slow).await.took(200, 0, 0, 0);
    ground.post(Some(&token), BATCH, &[], "[]").await.took(200, 0, 0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_caller_never_has_more_events_waiting_than_its_share() {
    let mut few = settings();
    few.caller_events = 10;
    let ground = Ground::set(few).await;
    let (token, tenant) = (relay("main").await, ground.tenant(&["main"], None).await);
    let events: Vec<_> = (1..=11).map(|sequence| counted("main", &tenant, sequence, 1, sequence)).collect();
    ground.batch(&token, &events).await.problem(429, "TooMuchUnderWay");
    ground.batch(&token, &events[..10]).await.took(200, 10, 0, 0);
    ground.batch(&token, &events[10..]).await.took(200, 1, 0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_the_queue_have_a_bound() {
    let mut small = settings();
    (small.bodies, small.batches.queue, small.body_patience) = (1_000_000, 10, Duration::from_secs(120));
    let ground = Ground::set(small).await;
    let namespace = "tenant-bounded";
    let (token, other) = (workload(namespace).await, relay("other").await);
    ground.tenant(&["main"], Some(namespace)).await;
    let events: Vec<_> = (0..11).map(|id| plain(&id.to_string(), 1)).collect();
    ground.batch(&token, &events).await.problem(503, "Busy");
    ground.batch(&token, &events[..10]).await.took(200, 10, 0, 0);
    let slow = begun(&ground, &token, 999_999).await;
    let refused = eventually(async || {
        let reply = ground.post(Some(&other), BATCH, &[], "[]").await;
        (reply.status == 503).then_some(reply)
    });
    refused.await.expect("it is refused").problem(503, "Busy");
    drop(slow);
    let taken = eventually(async || (ground.post(Some(&other), BATCH, &[], "[]").await.status == 200).then_some(()));
    taken.await.expect("what nobody sends any more takes no room");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_not_waited_for_without_end() {
    let mut quick = settings();
    quick.body_patience = Duration::from_millis(50);
    let ground = Ground::set(quick).await;
    let token = relay("main").await;
    let mut slow = begun(&ground, &token, 2).await;
    Reply::read(&mut slow).await.problem(408, "TooSlow");
    ground.batch(&token, &[json!(1)]).await.left(&["0 Malformed"], &[]);
}
