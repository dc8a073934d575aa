//! The ledger or the API server is away.

use std::time::Duration;

use kube::{Client, Config};
use tenantry::metering::ledger::LedgerError;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::ground::{BATCH, Ground, Reply, counted, eventually, own_server, relay, settings};

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_stands_still_is_not_waited_for_without_end() {
    let postgres = own_server().await;
    let mut quick = settings();
    quick.batches.patience = Duration::from_millis(500);
    quick.facts_patience = Duration::from_millis(500);
    let ground = Ground::with(&postgres, quick).await;
    let (token, tenant) = (relay("main").await, ground.tenant(&["main"], None).await);
    let unknown = ground.tenant(&["main"], None).await;
    let events: Vec<_> = (1..=3).map(|sequence| counted("main", &tenant, sequence, 1, sequence)).collect();
    ground.batch(&token, &events[..1]).await.took(200, 1, 0, 0);
    postgres.freeze();
    // The first is written and not answered; the second finds that out before; of the third nothing is known.
    ground.batch(&token, &events[1..2]).await.problem(503, "LedgerAway");
    ground.batch(&token, &events[2..]).await.problem(503, "LedgerAway");
    ground.batch(&token, &[counted("main", &unknown, 1, 1, 1)]).await.problem(503, "LedgerAway");
    postgres.thaw();
    let healthy = eventually(async || (ground.batch(&token, &events).await.status == 200).then_some(()));
    healthy.await.expect("it is healthy again");
    ground.batch(&token, &events).await.took(200, 0, 3, 0);
    let state = ground.state(&tenant, "users").await.expect("counted");
    assert_eq!((state.value, state.sequence, state.missing), (3, 3, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_was_killed_is_come_back_to() {
    let postgres = own_server().await;
    let ground = Ground::with(&postgres, settings()).await;
    let (token, tenant) = (relay("main").await, ground.tenant(&["main"], None).await);
    let both = [counted("main", &tenant, 1, 1, 1), counted("main", &tenant, 2, 1, 2)];
    ground.batch(&token, &both[..1]).await.took(200, 1, 0, 0);
    postgres.kill();
    ground.batch(&token, &both).await.problem(503, "LedgerAway");
    postgres.start_again().expect("it starts");
    let healthy = eventually(async || (ground.batch(&token, &both).await.status == 200).then_some(()));
    healthy.await.expect("it is healthy again");
    assert_eq!(ground.state(&tenant, "users").await.expect("counted").value, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_tenant_cant_store_hinders_no_other() {
    // No room for a day so long ago, which the window of this API lets through.
    let mut wide = settings();
    wide.window.back = jiff::SignedDuration::from_hours(24 * 400);
    let ground = Ground::set(wide).await;
    let (token, tenant) = (relay("main").await, ground.tenant(&["main"], None).await);
    let mut events: Vec<_> = (1..=20).map(|sequence| counted("main", &tenant, sequence, 1, sequence)).collect();
    events[7]["time"] = super::ground::ago(86_400 * 200).to_string().into();
    ground.batch(&token, &events).await.took(200, 19, 0, 0).left(&["7 Refused"], &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_makes_no_token_a_bad_one() {
    let token = relay("main").await;
    // Takes connections and answers nothing, then nobody is there at all.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    let mut config = Config::new(url.parse().expect("a URL"));
    config.read_timeout = Some(Duration::from_millis(200));
    let postgres = own_server().await;
    let ground = Ground::asking(&postgres, settings(), Client::try_from(config).expect("a client")).await;
    ground.post(Some(&token), BATCH, &[], "[]").await.problem(503, "ApiServerAway");
    drop(silent);
    ground.post(Some(&token), BATCH, &[], "[]").await.problem(503, "ApiServerAway");
    // What is no token at all needs nobody to say so.
    ground.post(Some("none"), BATCH, &[], "[]").await.problem(401, "BadToken");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_is_answered_before_the_end() {
    let ground = Ground::new().await;
    let token = relay("main").await;
    ground.post(Some(&token), BATCH, &[], "[]").await.took(200, 0, 0, 0);
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {token}\r\nContent-Type: {BATCH}\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    );
    let mut stream = TcpStream::connect(ground.address).await.expect("a connection");
    stream.write_all(head.as_bytes()).await.expect("written");
    // It asks for the body: the request is under way.
    let mut word = [0; 25];
    stream.read_exact(&mut word).await.expect("a word");
    assert!(word.starts_with(b"HTTP/1.1 100 Continue"));
    let address = ground.address;
    let ended = tokio::spawn(ground.stop());
    let refused = eventually(async || TcpStream::connect(address).await.is_err().then_some(()));
    refused.await.expect("nobody is taken any more");
    assert!(!ended.is_finished());
    stream.write_all(b"[]").await.expect("written");
    Reply::read(&mut stream).await.took(200, 0, 0, 0);
    ended.await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_without_tables_is_refused_and_named() {
    let postgres = own_server().await;
    let admin = postgres.admin();
    let ledger = tenantry::metering::ledger::Ledger::new(&postgres.url(&admin.user, &admin.password, "postgres"), 1);
    let error = ledger.expect("a URL").check().await.expect_err("no ledger");
    assert!(matches!(&error, LedgerError::Refused(text) if text.contains("ledger migrate")), "{error}");
}
