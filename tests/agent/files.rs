//! From Secrets to files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tenantry::agent::{self, CheckError};

use crate::ground::{Agent, CLUSTER, Pool, config, eventually, folder, listed, names, password, secret};

#[tokio::test]
async fn a_tenant_comes_changes_and_goes() {
    let pool = Pool::new(&CLUSTER).await;
    let (_temporary, dir) = folder();
    let agent = Agent::start(CLUSTER.kubeconfig(), &dir, pool.scope()).await;
    listed(&dir).await;

    let start = Instant::now();
    pool.put("acme", "acme.example.com,crm.acme.test", "one").await;
    eventually("files of a new tenant", || password(&dir, "acme.example.com")).await;
    println!("a new tenant's files are there {:?} after its Secret was sent", start.elapsed());
    assert_eq!(password(&dir, "acme.example.com").as_deref(), Some("one"));
    let link = fs::read_link(dir.join("hosts/crm.acme.test")).unwrap();
    assert_eq!(link, Path::new("../tenants/acme"));
    assert_eq!(names(&dir, "tenants/acme"), ["ca.crt", "password", "type", "uri", "username"]);

    pool.put("acme", "acme.example.com", "two").await;
    eventually("the new password", || (password(&dir, "acme.example.com")? == "two").then_some(())).await;
    eventually("a host that is no more", || (names(&dir, "hosts") == ["acme.example.com"]).then_some(())).await;

    pool.delete("acme").await;
    eventually("a tenant that is no more", || names(&dir, "tenants").is_empty().then_some(())).await;
    assert_eq!(names(&dir, "hosts"), [""; 0]);
    agent.stop().await;
}

#[tokio::test]
async fn a_reader_never_sees_two_versions_at_once() {
    const CHANGES: usize = 60;
    let pool = Pool::new(&CLUSTER).await;
    let (_temporary, dir) = folder();
    pool.put("acme", "acme.example.com", "0").await;
    let agent = Agent::start(CLUSTER.kubeconfig(), &dir, pool.scope()).await;
    listed(&dir).await;

    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, host) = (Arc::clone(&stop), dir.join("hosts/acme.example.com"));
    let reader = std::thread::spawn(move || {
        let mut seen = BTreeSet::new();
        let mut reads = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            // As the agent tells readers to: resolve once, then read below that.
            let folder = fs::canonicalize(&host).expect("the host is known all the time");
            let read = |key: &str| fs::read_to_string(folder.join(key)).expect("a folder that is open stays");
            let (username, uri, password) = (read("username"), read("uri"), read("password"));
            assert_eq!(username, format!("user-of-{password}"));
            assert!(uri.contains(&format!("//{username}:{password}@")), "{uri} is not of {password}");
            // Or: one file is one version, however it is found.
            let alone = fs::read_to_string(host.join("uri")).expect("the host is known all the time");
            let (user, rest) = alone["postgresql://user-of-".len()..].split_once(':').expect("a password");
            assert!(rest.starts_with(&format!("{user}@")), "{alone}");
            seen.insert(password);
            reads += 1;
        }
        (seen, reads)
    });
    for number in 1..=CHANGES {
        pool.put("acme", "acme.example.com", &number.to_string()).await;
    }
    let last = CHANGES.to_string();
    eventually("the last version", || (password(&dir, "acme.example.com")? == last).then_some(())).await;
    stop.store(true, Ordering::Relaxed);
    let (seen, reads) = reader.join().expect("each version was whole");
    println!("{reads} reads saw {} of {} versions", seen.len(), CHANGES + 1);
    assert!(seen.len() > 5, "the reader has to have been there while it changed: {seen:?}");
    agent.stop().await;
}

#[tokio::test]
async fn after_a_restart_nothing_is_stale_and_nothing_is_written_twice() {
    let pool = Pool::new(&CLUSTER).await;
    let (_temporary, dir) = folder();
    for tenant in ["stays", "changes", "goes"] {
        pool.put(tenant, &format!("{tenant}.example.com"), "one").await;
    }
    let agent = Agent::start(CLUSTER.kubeconfig(), &dir, pool.scope()).await;
    assert_eq!(listed(&dir).await.written, 3);
    agent.stop().await;
    assert!(
        matches!(agent::check(&dir), Err(CheckError::NotRunning(_))),
        "its status is not the word of a living agent"
    );
    assert_eq!(password(&dir, "goes.example.com").as_deref(), Some("one"), "files serve on without an agent");

    pool.delete("goes").await;
    pool.put("changes", "changes.example.com", "two").await;
    pool.put("comes", "comes.example.com", "one").await;
    let agent = Agent::start(CLUSTER.kubeconfig(), &dir, pool.scope()).await;
    let status = listed(&dir).await;
    assert_eq!((status.tenants, status.hosts, status.written), (3, 3, 2), "{status:?}");
    assert_eq!(names(&dir, "tenants"), ["changes", "comes", "stays"]);
    assert_eq!(names(&dir, "hosts"), ["changes.example.com", "comes.example.com", "stays.example.com"]);
    assert_eq!(password(&dir, "changes.example.com").as_deref(), Some("two"));
    agent.stop().await;
}

#[tokio::test]
async fn many_pages_are_one_list() {
    let pool = Pool::new(&CLUSTER).await;
    let (_temporary, dir) = folder();
    for number in 0..130 {
        pool.put(&format!("t{number}"), &format!("t{number}.example.com"), "one").await;
    }
    let agent = Agent::start(CLUSTER.kubeconfig(), &dir, pool.scope()).await;
    let status = listed(&dir).await;
    assert_eq!((status.tenants, status.hosts), (130, 130), "complete when it says so");
    agent.stop().await;
}

#[tokio::test]
async fn check_says_why_not() {
    let pool = Pool::new(&CLUSTER).await;
    let (_temporary, dir) = folder();
    assert!(matches!(agent::check(&dir), Err(CheckError::Unreadable { .. })));

    // Nobody listens on the port of a socket that was closed.
    let mut nowhere = config(CLUSTER.kubeconfig()).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    nowhere.cluster_url = format!("https://127.0.0.1:{port}").parse().unwrap();
    let options = agent::Options { dir: dir.clone(), scope: pool.scope(), linger: Duration::ZERO };
    let lost = Agent::start_with(nowhere, options);
    eventually("an agent that hasn't listed", || {
        matches!(agent::check(&dir), Err(CheckError::NotListed)).then_some(())
    })
    .await;
    assert!(lost.is_running(), "an API server that is away ends no agent");
    lost.stop().await;

    let agent = Agent::start(CLUSTER.kubeconfig(), &dir, pool.scope()).await;
    assert_eq!(listed(&dir).await.tenants, 0, "no tenants are a complete list too");
    agent.stop().await;
    assert!(matches!(agent::check(&dir), Err(CheckError::NotRunning(_))));
}

#[tokio::test]
async fn what_is_no_tenants_secret_or_no_safe_name_is_not_written() {
    let pool = Pool::new(&CLUSTER).await;
    let (_temporary, dir) = folder();
    pool.put("acme", "good.example.com,../../etc,UPPER.example.com,*.example.com,a..b", "one").await;
    let mut foreign = secret("foreign", "foreign.example.com", "one");
    foreign.type_ = Some("Opaque".into());
    pool.put_object(&foreign).await;
    let mut unlabelled = secret("unlabelled", "unlabelled.example.com", "one");
    unlabelled.metadata.labels = None;
    pool.put_object(&unlabelled).await;
    // A label may hold this; a path may not.
    let mut dotted = secret("dotted", "dotted.example.com", "one");
    dotted.metadata.labels = Some([("tenantry.io/tenant".to_owned(), "a..b".to_owned())].into());
    pool.put_object(&dotted).await;

    let agent = Agent::start(CLUSTER.kubeconfig(), &dir, pool.scope()).await;
    let status = listed(&dir).await;
    assert_eq!(names(&dir, "tenants"), ["acme"]);
    assert_eq!(names(&dir, "hosts"), ["good.example.com"]);
    assert_eq!(status.refused, 5, "four hosts and one name: {status:?}");
    agent.stop().await;
}
