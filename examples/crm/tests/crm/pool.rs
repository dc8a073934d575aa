//! Few connections for many tenants.

use std::time::Duration;

use crm::Limits;

use crate::ground::{Crm, Server, agent, eventually};
use crate::http::{get, request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_outnumber_connections_five_to_one() {
    let server = Server::start(&[("max_connections", "30")]).await;
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..150).map(|number| format!("t{number}")).collect();
    server.plain_tenants(&mut agent(dir.path()), &names).await;
    let limits = Limits { open: 20, wait_for: Duration::from_secs(20), ..Limits::default() };
    let crm = Crm::serve(dir.path(), limits).await;

    // Three rounds, so that each tenant comes back when its connection has long been taken from it.
    let requests: Vec<_> = (0..3)
        .flat_map(|_| names.clone())
        .map(|name| (crm.address, format!("{name}.example.com")))
        .map(|(address, host)| tokio::spawn(async move { get(address, &host, "/users").await.status }))
        .collect();
    let mut most = 0;
    while !requests.iter().all(tokio::task::JoinHandle::is_finished) {
        most = most.max(server.sessions().await.iter().map(|(_, count)| count).sum());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
    // A session that ends is seen a moment longer on the server than here.
    assert!((10..=27).contains(&most), "{most} sessions at once");
}

#[tokio::test]
async fn two_connections_wait_for_the_next_request_and_then_close() {
    let server = Server::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    server.plain_tenants(&mut agent(dir.path()), &["acme".into()]).await;
    let limits = Limits { idle_for: Duration::from_millis(1500), ..Limits::default() };
    let crm = Crm::serve(dir.path(), limits).await;

    // Five at once are held up in the database, so that there are five connections for sure.
    let lock = server.lock("acme.users").await;
    // Both hosts are of one tenant, and share its connections.
    let held: Vec<_> = (0..8)
        .map(|number| {
            let host = if number % 2 == 0 { "acme.example.com" } else { "acme.example.org" };
            let address = crm.address;
            tokio::spawn(async move { get(address, host, "/users").await.status })
        })
        .collect();
    let sessions = async |wanted: &[(&str, i64)]| {
        let seen = server.sessions().await;
        let seen: Vec<_> = seen.iter().map(|(login, count)| (login.as_str(), *count)).collect();
        (seen == wanted).then_some(())
    };
    eventually("five connections, no more", async || sessions(&[("acme", 5)]).await).await;
    drop(lock);
    for request in held {
        assert_eq!(request.await.unwrap(), 200);
    }
    eventually("two of them stay", async || sessions(&[("acme", 2)]).await).await;
    eventually("none stays for long", async || sessions(&[]).await).await;
}

#[tokio::test]
async fn a_tenant_that_hangs_leaves_room_for_the_others() {
    let server = Server::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    server.plain_tenants(&mut agent(dir.path()), &["slow".into(), "quick".into()]).await;
    let limits = Limits { open: 6, wait_for: Duration::from_millis(500), ..Limits::default() };
    let crm = Crm::serve(dir.path(), limits).await;
    let address = crm.address;

    let lock = server.lock("slow.users").await;
    let held: Vec<_> =
        (0..5).map(|_| tokio::spawn(async move { get(address, "slow.example.com", "/users").await.status })).collect();
    eventually("all of its connections hang", async || {
        (server.sessions().await == [("slow".to_owned(), 5)]).then_some(())
    })
    .await;
    let refused = get(address, "slow.example.com", "/accounts").await;
    assert_eq!(refused.expect(503)["error"], "unavailable");
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    for _ in 0..10 {
        get(address, "quick.example.com", "/users").await.expect(200);
    }
    drop(lock);
    for request in held {
        assert_eq!(request.await.unwrap(), 200);
    }
}

#[tokio::test]
async fn the_connection_that_waited_longest_makes_room() {
    let server = Server::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c"].map(String::from);
    server.plain_tenants(&mut agent(dir.path()), &names).await;
    let crm = Crm::serve(dir.path(), Limits { open: 2, ..Limits::default() }).await;
    for host in ["a.example.com", "b.example.com", "a.example.com", "c.example.com"] {
        get(crm.address, host, "/users").await.expect(200);
    }
    eventually("b gave way to c, as a was used later", async || {
        let logins: Vec<String> = server.sessions().await.into_iter().map(|(login, _)| login).collect();
        (logins == ["a", "c"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_database_that_is_away_is_said_to_be_and_used_again_when_it_is_back() {
    let server = Server::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    server.plain_tenants(&mut agent(dir.path()), &["acme".into()]).await;
    let crm = Crm::serve(dir.path(), Limits::default()).await;
    get(crm.address, "acme.example.com", "/users").await.expect(200);

    server.postgres.kill();
    let away = request(crm.address, "POST", "acme.example.com", "/users", r#"{"email": "a@b.c", "name": "A"}"#).await;
    assert_eq!(away.expect(503)["error"], "unavailable");
    assert!(away.head.contains("retry-after: "), "{}", away.head);
    server.postgres.start_again().expect("PostgreSQL starts again");
    assert_eq!(get(crm.address, "acme.example.com", "/users").await.expect(200), serde_json::json!([]));
}

#[tokio::test]
async fn a_server_of_another_authority_gets_no_password() {
    let server = Server::start(&[]).await;
    let other = Server::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = agent(dir.path());
    server.plain_tenants(&mut keeper, &["acme".into()]).await;
    let login = crate::ground::Login { username: "acme", password: "pw-acme", database: "postgres" };
    let mut secret = crate::ground::secret(&server.postgres, "acme", &login);
    let authority = k8s_openapi::ByteString(other.postgres.ca_pem().as_bytes().to_vec());
    secret.data.as_mut().unwrap().insert("ca.crt".into(), authority);
    keeper.changed(secret);
    let crm = Crm::serve(dir.path(), Limits::default()).await;
    get(crm.address, "acme.example.com", "/users").await.expect(503);
}
