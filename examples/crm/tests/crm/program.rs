//! The program, from its start to its end in order.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::ground::{Server, agent, eventually};
use crate::http::get;

#[tokio::test]
async fn a_signal_lets_requests_in_flight_finish() {
    let server = Server::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    server.plain_tenants(&mut agent(dir.path()), &["acme".into()]).await;
    let mut program = Command::new(env!("CARGO_BIN_EXE_crm"))
        .args(["--listen", "127.0.0.1:0"])
        .env("CRM_TENANTS_DIR", dir.path())
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program is there");
    let mut log = BufReader::new(program.stderr.take().expect("a pipe")).lines();
    let address: SocketAddr = loop {
        let line = log.next_line().await.unwrap().expect("it says where it listens before it ends");
        if let Some((_, rest)) = line.split_once("serving address=") {
            break rest.split(' ').next().unwrap().parse().unwrap();
        }
    };
    get(address, "acme.example.com", "/users").await.expect(200);

    let lock = server.lock("acme.users").await;
    let held = tokio::spawn(async move { get(address, "acme.example.com", "/users").await.status });
    eventually("a request that waits in the database", async || {
        const WAITING: &str = "SELECT 1 FROM pg_stat_activity WHERE usename = 'acme' AND wait_event_type = 'Lock'";
        server.superuser.query_opt(WAITING, &[]).await.expect("the superuser may look").map(drop)
    })
    .await;
    let pid = program.id().expect("it runs").to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    while let Some(line) = log.next_line().await.unwrap() {
        if line.contains("finishing") {
            break;
        }
    }
    eventually("nobody new is let in", async || tokio::net::TcpStream::connect(address).await.is_err().then_some(()))
        .await;
    drop(lock);
    assert_eq!(held.await.unwrap(), 200);
    let status = tokio::time::timeout(Duration::from_secs(15), program.wait()).await.expect("it ends").unwrap();
    assert!(status.success(), "{status}");
    eventually("its sessions end", async || server.sessions().await.is_empty().then_some(())).await;
}
