//! Who may send, and for whom.

use serde_json::json;

use super::ground::{BATCH, Ground, ONE, counted, plain, relay, tenant_id, token_for, with, workload};

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_for_us_nobody_is_heard() {
    let ground = Ground::new().await;
    ground.post(None, BATCH, &[], "[]").await.problem(401, "NoToken");
    let foreign = token_for("tenantry-relay-main", "relay", "vault").await;
    // Of the API server itself, which is not for us either.
    let default = token_for("tenantry-relay-main", "relay", "").await;
    let good = relay("main").await;
    let (head, signature) = good.rsplit_once('.').expect("a signature");
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    for token in ["none", "a.b.c", &foreign, &default, &forged] {
        let reply = ground.post(Some(token), BATCH, &[], "[]").await;
        reply.problem(401, "BadToken");
        assert!(reply.head.contains("\r\nwww-authenticate: bearer"), "{reply:?}");
    }
    // Whoever isn't known learns nothing of what he sent, and reads the answer also after a large body.
    let large = format!("[{}]", " ".repeat(3_000_000));
    ground.post(Some("a.b.c"), BATCH, &[], &large).await.problem(401, "BadToken");
    ground.post(Some(&good), BATCH, &[], "[]").await.took(200, 0, 0, 0);
    ground.post(Some(&good), BATCH, &[], "[]").await.took(200, 0, 0, 0);
    assert_eq!(ground.metric("ingest_denied_total{reason=\"NoToken\"}"), 1.0);
    assert_eq!(ground.metric("ingest_denied_total{reason=\"BadToken\"}"), 6.0);
    assert_eq!(ground.metric("ingest_requests_total{code=\"401\"}"), 7.0);
    assert_eq!(ground.metric("ingest_requests_total{code=\"200\"}"), 2.0);
    // Only what can be a token is asked about, and that once.
    assert_eq!(ground.metric("token_reviews_total{result=\"unknown\"}"), 4.0);
    assert_eq!(ground.metric("token_reviews_total{result=\"known\"}"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_nobodys_sends_nothing() {
    let ground = Ground::new().await;
    let pool = token_for("pool-crm-1", "default", "tenantry").await;
    ground.post(Some(&pool), ONE, &[], &plain("1", 1).to_string()).await.problem(403, "ForeignNamespace");
    // Another ServiceAccount beside a relay's is no relay.
    let beside = token_for("tenantry-relay-main", "default", "tenantry").await;
    ground.post(Some(&beside), BATCH, &[], "[]").await.problem(403, "ForeignNamespace");
    // And one that is called so somewhere else is none either.
    let elsewhere = token_for("tenant-elsewhere", "relay", "tenantry").await;
    ground.post(Some(&elsewhere), BATCH, &[], "[]").await.problem(403, "ForeignNamespace");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_sends_for_its_own_server_alone_also_for_who_moved_or_is_gone() {
    let ground = Ground::new().await;
    let (old, new, other) = (relay("old").await, relay("new").await, relay("other").await);
    let tenant = ground.tenant(&["old"], None).await;
    ground.batch(&old, &[counted("old", &tenant, 1, 1, 1)]).await.took(200, 1, 0, 0);
    ground.batch(&new, &[counted("new", &tenant, 2, 1, 2)]).await.took(200, 0, 0, 0).left(&["0 Forbidden"], &[]);
    // It moves: at once its new server's relay sends, and the old one goes on with what waits there.
    ground.register(&tenant, &["new"], None).await;
    let moved = super::ground::eventually(async || {
        let reply = ground.batch(&new, &[counted("new", &tenant, 2, 1, 2)]).await;
        (reply.json()["accepted"] == 1).then_some(())
    });
    moved.await.expect("its events are taken");
    ground.batch(&old, &[counted("old", &tenant, 3, 1, 3)]).await.took(200, 1, 0, 0);
    // It is gone: what is left of it comes all the same.
    ground.ledger.depart(&[tenant.clone()]).await.expect("gone");
    ground.batch(&new, &[counted("new", &tenant, 4, 1, 4)]).await.took(200, 1, 0, 0);
    for (token, server) in [(&other, "other"), (&other, "old"), (&old, "new")] {
        ground.batch(token, &[counted(server, &tenant, 9, 1, 9)]).await.took(200, 0, 0, 0).left(&["0 Forbidden"], &[]);
        let reply = ground.post(Some(token), ONE, &[], &counted(server, &tenant, 9, 1, 9).to_string()).await;
        reply.took(403, 0, 0, 0);
    }
    let state = ground.state(&tenant, "users").await.expect("counted");
    assert_eq!((state.sequence, state.missing), (4, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_counts_what_is_its_tenants_and_of_source_api() {
    let ground = Ground::new().await;
    let namespace = "tenant-own";
    let (token, tenant) = (workload(namespace).await, ground.tenant(&["main"], Some(namespace)).await);
    let neighbour = ground.tenant(&["main"], Some("tenant-neighbour")).await;
    let post = async |event: serde_json::Value| ground.post(Some(&token), ONE, &[], &event.to_string()).await;
    post(plain("1", 2)).await.took(200, 1, 0, 0);
    post(with(plain("2", 3), "/subject", json!(tenant))).await.took(200, 1, 0, 0);
    post(with(plain("3", 3), "/subject", json!(neighbour))).await.took(403, 0, 0, 0);
    post(with(plain("4", 3), "/data/meter", json!("users"))).await.took(403, 0, 0, 0);
    post(with(plain("5", 3), "/data/meter", json!("nothing"))).await.took(400, 0, 0, 0).left(&["0 UnknownMeter"], &[]);
    post(plain("6", -1)).await.took(400, 0, 0, 0).left(&["0 BadData"], &[]);
    post(counted("main", &tenant, 1, 1, 1)).await.took(403, 0, 0, 0);
    let state = ground.state(&tenant, "exports").await.expect("counted");
    assert_eq!((state.value, state.sequence), (5, 0));
    assert!(ground.state(&neighbour, "exports").await.is_none_or(|state| state.value == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_becomes_known_is_taken_soon() {
    let ground = Ground::new().await;
    ground.tenant(&["main"], None).await;
    let (token, tenant) = (relay("main").await, tenant_id());
    let event = counted("main", &tenant, 1, 1, 1);
    ground.batch(&token, &[event.clone()]).await.took(200, 0, 0, 0).left(&[], &["0 UnknownTenant"]);
    ground.register(&tenant, &["main"], None).await;
    let taken = super::ground::eventually(async || {
        let reply = ground.batch(&token, &[event.clone()]).await;
        (reply.json()["accepted"] == 1).then_some(())
    });
    taken.await.expect("its events are taken");
}
