//! PostgreSQL alone: what it accepts and refuses, faults, and that nothing stays.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use devcluster::pki::Authority;
use devcluster::{Error, Postgres, PostgresOptions};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;

fn tls(ca_pem: &str) -> MakeRustlsConnect {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    MakeRustlsConnect::new(
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth(),
    )
}

fn config(server: &Postgres, user: &str, password: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .host(server.host())
        .port(server.port())
        .user(user)
        .password(password)
        .dbname("postgres")
        .connect_timeout(Duration::from_secs(5));
    config
}

async fn connect(server: &Postgres) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let admin = server.admin();
    let mut config = config(server, &admin.user, &admin.password);
    config.ssl_mode(tokio_postgres::config::SslMode::Require);
    let (client, connection) = config.connect(tls(server.ca_pem())).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn number(client: &tokio_postgres::Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Started inside a runtime, on purpose: tests of other crates do it so.
#[tokio::test]
async fn clients_are_verified_and_the_admin_is_no_superuser() {
    let start = std::time::Instant::now();
    let server = Postgres::start(PostgresOptions {
        require_tls: true,
        settings: vec![("work_mem".into(), "5MB".into()), ("cluster_name".into(), r"it's \ odd".into())],
        ..PostgresOptions::default()
    })
    .unwrap();
    println!("PostgreSQL started in {:?}", start.elapsed());
    let admin = server.admin();

    let client = connect(&server).await.unwrap();
    let role = client
        .query_one(
            "SELECT rolsuper, rolcreatedb, rolcreaterole, rolcanlogin, rolreplication, rolbypassrls,
                    current_setting('work_mem'), current_setting('cluster_name')
             FROM pg_roles WHERE rolname = current_user",
            &[],
        )
        .await
        .unwrap();
    let flags: Vec<bool> = (0..6).map(|column| role.get(column)).collect();
    assert_eq!(flags, [false, true, true, true, false, false]);
    assert_eq!(role.get::<_, String>(6), "5MB");
    assert_eq!(role.get::<_, String>(7), r"it's \ odd");
    assert_eq!(number(&client, "SELECT count(*) FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl").await, 1);

    // No TLS, another authority of the same name, a wrong password: all refused.
    let plain = config(&server, &admin.user, &admin.password).connect(tokio_postgres::NoTls).await.err().unwrap();
    assert_eq!(plain.code(), Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION), "{plain:?}");
    let other = Authority::new("devcluster PostgreSQL authority").unwrap();
    let wrong_ca =
        config(&server, &admin.user, &admin.password).connect(tls(&other.certificate_pem())).await.err().unwrap();
    assert!(format!("{wrong_ca:?}").contains("InvalidCertificate"), "{wrong_ca:?}");
    let wrong_password = config(&server, &admin.user, "wrong").connect(tls(server.ca_pem())).await.err().unwrap();
    assert_eq!(wrong_password.code(), Some(&SqlState::INVALID_PASSWORD));

    // The URLs are for psql; `verify-full` there too.
    for (url, user) in [(admin.url.clone(), "tenantry_admin"), (server.superuser_url(), "postgres")] {
        let output = Command::new("psql").args([&url, "-XAtc", "SELECT current_user"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), user, "{output:?}");
    }
    let log = std::fs::read_to_string(server.log_path()).unwrap();
    assert!(!log.contains(&admin.password) && !log.contains(server.superuser_password()));
}

#[tokio::test]
async fn without_tls_a_password_is_still_needed() {
    let server = Postgres::start(PostgresOptions::default()).unwrap();
    let admin = server.admin();
    assert!(config(&server, &admin.user, &admin.password).connect(tokio_postgres::NoTls).await.is_ok());
    for (user, password) in [(admin.user.as_str(), "wrong"), ("postgres", ""), ("postgres", "postgres")] {
        let mut config = config(&server, user, password);
        if password.is_empty() {
            config = tokio_postgres::Config::new();
            config.host("localhost").port(server.port()).user(user);
        }
        assert!(config.connect(tokio_postgres::NoTls).await.is_err(), "{user} {password}");
    }
}

#[tokio::test]
async fn faults_end_or_hold_sessions_and_keep_the_data() {
    let server = Postgres::start(PostgresOptions::default()).unwrap();
    let client = connect(&server).await.unwrap();
    client.batch_execute("CREATE DATABASE kept").await.unwrap();
    let (port, pid) = (server.port(), server.pid());

    server.freeze();
    let held = tokio::time::timeout(Duration::from_millis(300), client.simple_query("SELECT 1")).await;
    assert!(held.is_err(), "a frozen server answered: {held:?}");
    server.thaw();
    assert_eq!(number(&client, "SELECT count(*) FROM pg_database WHERE datname = 'kept'").await, 1);

    server.kill();
    assert_eq!(server.pid(), None);
    assert!(client.simple_query("SELECT 1").await.is_err());
    assert!(connect(&server).await.is_err());
    server.start_again().unwrap();
    let client = connect(&server).await.unwrap();
    assert_eq!(number(&client, "SELECT count(*) FROM pg_database WHERE datname = 'kept'").await, 1);

    server.stop();
    assert!(connect(&server).await.is_err());
    server.start_again().unwrap();
    server.start_again().unwrap();
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), pid);
    assert!(connect(&server).await.is_ok());
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = Postgres::start(PostgresOptions { port: Some(port), ..PostgresOptions::default() }).unwrap_err();
    assert!(matches!(&error, Error::PortTaken { port: named, .. } if *named == port), "{error}");
    assert!(error.to_string().contains("choose another port"), "{error}");
}

#[test]
fn a_folder_is_used_again_but_never_shared_and_foreign_files_stay() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("ground");
    let options = || PostgresOptions { dir: Some(dir.clone()), ..PostgresOptions::default() };
    let server = Postgres::start(options()).unwrap();
    let error = Postgres::start(options()).unwrap_err();
    assert!(matches!(&error, Error::InUse { pid: Some(pid), .. } if *pid == std::process::id()), "{error}");
    drop(server);
    assert!(dir.join("postgres.log").exists(), "the log stays for reading");
    assert!(!dir.join("postgres").exists(), "the data goes");
    drop(Postgres::start(options()).unwrap());

    let foreign = parent.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.txt"), "ten years").unwrap();
    let error =
        Postgres::start(PostgresOptions { dir: Some(foreign.clone()), ..PostgresOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("thesis.txt"), "{error}");
    let left: Vec<_> = std::fs::read_dir(&foreign).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing was added or removed");
}

/// Not a test of its own: what `nothing_outlives_a_killed_parent` runs and kills.
#[test]
fn helper_start_and_wait() {
    let Some(dir) = common::helper_dir() else {
        return;
    };
    let server = Postgres::start(PostgresOptions { dir: Some(dir.clone()), ..PostgresOptions::default() }).unwrap();
    common::helper_report(&dir, &[server.pid().unwrap()]);
}

#[test]
fn nothing_outlives_a_killed_parent() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("ground");
    let mut helper = common::Helper::start("helper_start_and_wait", &dir);
    let pids = helper.tree();
    assert!(pids.len() > 3, "the postmaster and its own children: {pids:?}");
    assert!(helper.roots().iter().all(|pid| common::alive(*pid)));
    helper.kill();
    common::wait_until_gone(&pids);

    // The folder is recognised as left over, and taken.
    let segment = segment_of(&dir);
    let server = Postgres::start(PostgresOptions { dir: Some(dir.clone()), ..PostgresOptions::default() }).unwrap();
    assert!(server.pid().is_some());
    assert!(!segments().contains(&segment), "the shared memory was released");
}

fn segment_of(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("postgres/data/postmaster.pid")).unwrap();
    let id = text.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    assert!(segments().contains(&id), "a killed postmaster leaves its segment");
    id
}

fn segments() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let ids = table.lines().skip(1);
    ids.map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect()
}
