//! The server itself: TLS, what the admin lacks, a server that is away, bounds on connections, and
//! what its log may never show.

use std::time::Duration;

use devcluster::{Postgres, PostgresOptions};
use tenantry::database::{
    Endpoint, ErrorClass, Migration, Overlap, OverlapTimes, Password, Server, ServerConfig, Timeouts, Tls,
};

use crate::proxy::Proxy;
use crate::support::{Ground, config, one, own_server, shared_server, until};

#[tokio::test(flavor = "multi_thread")]
async fn only_the_right_server_is_trusted() {
    let postgres = shared_server();
    let good = config(postgres);
    Server::new(good.clone()).expect("good").check().await.expect("trusted");

    let other = own_server(&[]);
    let wrong_ca = ServerConfig { tls: Tls::VerifyFull { ca_pem: other.ca_pem().to_owned() }, ..good.clone() };
    let error = Server::new(wrong_ca).expect("a CA").check().await.expect_err("another CA");
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(error.to_string().contains("not signed by the given CA"), "{error}");

    // The same server under a name that its certificate doesn't carry.
    let alias = Proxy::start_at("127.0.0.2", postgres.host().to_owned(), postgres.port()).await;
    let wrong_name = ServerConfig { host: "127.0.0.2".to_owned(), port: alias.port(), ..good.clone() };
    let error = Server::new(wrong_name.clone()).expect("good").check().await.expect_err("another name");
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(error.to_string().contains("not for the name 127.0.0.2"), "{error}");
    let tenants_door =
        ServerConfig { endpoint: Some(Endpoint { host: wrong_name.host, port: alias.port() }), ..good.clone() };
    let ground = Ground::with(postgres, Server::new(tenants_door).expect("good"), "tls").await;
    let guest = ground.tenant("acme").await;
    let error = ground.server.prove(&guest.login).await.expect_err("the tenants' door has another name");
    assert!(error.to_string().contains("not for the name"), "{error}");

    for (ca, says) in
        [("", "holds no certificate"), ("-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----", "")]
    {
        let Err(error) = Server::new(ServerConfig { tls: Tls::VerifyFull { ca_pem: ca.to_owned() }, ..good.clone() })
        else {
            panic!("accepted {ca:?}");
        };
        assert_eq!(error.class(), ErrorClass::Permanent);
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tls_is_never_taken_for_tls() {
    let strict = Postgres::start(PostgresOptions { require_tls: true, ..PostgresOptions::default() }).expect("starts");
    let plain = ServerConfig { tls: Tls::Disable, ..config(&strict) };
    let error = Server::new(plain).expect("good").check().await.expect_err("TLS is required");
    assert_eq!(error.class(), ErrorClass::Permanent, "{error}");

    let bare = own_server(&[("ssl", "off")]);
    let error = Server::new(config(&bare)).expect("good").check().await.expect_err("no TLS there");
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(error.to_string().contains("offers no TLS"), "{error}");
    Server::new(ServerConfig { tls: Tls::Disable, ..config(&bare) })
        .expect("good")
        .check()
        .await
        .expect("as asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_admin_lacks_is_named_with_its_remedy() {
    let postgres = own_server(&[]);
    let ground = Ground::on(&postgres, "admin").await;
    let info = ground.server.check().await.expect("good enough");
    assert!(info.version >= 150_000 && info.max_connections == 100, "{info:?}");
    assert!(!info.sets_temp_file_limit);
    assert_eq!(info.open_databases, ["postgres", "template1"]);
    assert!(
        info.advice
            .iter()
            .any(|advice| advice.contains("GRANT SET ON PARAMETER temp_file_limit TO \"tenantry_admin\"")),
        "{info:?}"
    );
    assert!(
        info.advice
            .iter()
            .any(|advice| advice.contains("REVOKE CONNECT, TEMPORARY ON DATABASE \"postgres\" FROM PUBLIC")),
        "{info:?}"
    );
    // Without the right to it, the limit is left out and all else works.
    let guest = ground.tenant("acme").await;
    let proof = ground.server.prove(&guest.login).await.expect("proven");
    assert_eq!(proof.open_databases, ["postgres", "template1"]);
    assert_eq!(one(&ground.client(&guest.login).await, "SHOW temp_file_limit").await, "-1");

    let superuser = ground.superuser().await;
    superuser.batch_execute("GRANT SET ON PARAMETER temp_file_limit TO tenantry_admin").await.expect("as advised");
    assert!(ground.server.check().await.expect("again").sets_temp_file_limit);
    ground.server.sweep(&ground.database).await.expect("swept");
    assert_eq!(one(&ground.client(&guest.login).await, "SHOW temp_file_limit").await, "1MB", "the sweep adds it");

    superuser
        .batch_execute("CREATE ROLE weak LOGIN CREATEDB NOINHERIT PASSWORD 'weak'; CREATE ROLE strong LOGIN SUPERUSER PASSWORD 'strong'")
        .await
        .expect("made");
    let weak = ServerConfig { user: "weak".to_owned(), password: Password::new("weak"), ..config(&postgres) };
    let error = Server::new(weak).expect("good").check().await.expect_err("too weak");
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(error.to_string().contains("ALTER ROLE \"weak\" CREATEROLE INHERIT"), "{error}");
    let strong = ServerConfig { user: "strong".to_owned(), password: Password::new("strong"), ..config(&postgres) };
    let info = Server::new(strong).expect("good").check().await.expect("good enough");
    assert!(info.advice.iter().any(|advice| advice.contains("need not be")), "{info:?}");
    let wrong = ServerConfig { password: Password::new("hunter2"), ..config(&postgres) };
    let error = Server::new(wrong).expect("good").check().await.expect_err("wrong password");
    assert_eq!((error.class(), error.sqlstate()), (ErrorClass::Permanent, Some("28P01")));
    assert!(!error.to_string().contains("hunter2"));

    // The role that owns everything must be nobody's way to anything.
    superuser.batch_execute("GRANT pg_read_all_data TO tenantry_owner").await.expect("weakened");
    let mut spec = ground.spec();
    spec.name = "another".to_owned();
    let error = ground.server.ensure_database(&spec).await.expect_err("weakened");
    assert!(error.to_string().contains("tenantry_owner"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_fails_fast_and_is_found_again() {
    let postgres = own_server(&[]);
    let ground = Ground::on(&postgres, "down").await;
    let guest = ground.tenant("acme").await;
    postgres.kill();
    until("it is noticed", async || ground.server.records(&ground.database).await.is_err()).await;
    until("the breaker is open", async || {
        ground.server.records(&ground.database).await.is_err_and(|error| error.to_string().contains("not tried again"))
    })
    .await;
    let before = ground.server.statistics().connections;
    for _ in 0..200 {
        let error = ground.server.record(&ground.database, &guest.id).await.expect_err("down");
        assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    }
    let tried = ground.server.statistics().connections - before;
    assert!(tried <= 5, "200 calls made {tried} attempts");
    let error = ground.server.drop_tenant(&ground.database, &guest.id).await.expect_err("down");
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");

    postgres.start_again().expect("back");
    until("it is found again", async || ground.server.records(&ground.database).await.is_ok()).await;
    ground.server.prove(&guest.login).await.expect("as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_holds_nobody_up_for_long() {
    let postgres = own_server(&[]);
    let mut configuration = config(&postgres);
    let quick = Duration::from_millis(300);
    configuration.timeouts =
        Timeouts { connect: quick, wait: quick, statement: quick, lock: quick, ..Timeouts::default() };
    let ground = Ground::on(&postgres, "frozen").await;
    let server = Server::new(configuration).expect("good");
    server.records(&ground.database).await.expect("read");
    postgres.freeze();
    // First on the connection that stands, then on one that is to be opened.
    for _ in 0..2 {
        let error = server.records(&ground.database).await.expect_err("frozen");
        assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    }
    postgres.thaw();
    until("it answers again", async || server.records(&ground.database).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_over_all_databases_and_idle_ones_close() {
    let postgres = own_server(&[]);
    let mut configuration = config(&postgres);
    configuration.connections = 4;
    configuration.timeouts.idle = Duration::from_millis(300);
    let server = Server::new(configuration).expect("good");
    let mut grounds = Vec::new();
    for _ in 0..3 {
        grounds.push(Ground::with(&postgres, server.clone(), "bound").await);
    }
    let watcher = grounds[0].superuser().await;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'tenantry_admin'";
    let mut work = tokio::task::JoinSet::new();
    for round in 0..60 {
        let (server, database) = (server.clone(), grounds[round % 3].database.clone());
        work.spawn(async move { server.records(&database).await });
    }
    let mut most = 0;
    while let Some(done) =
        work.try_join_next().map_or(if work.is_empty() { None } else { Some(None) }, |done| Some(Some(done)))
    {
        if let Some(done) = done {
            done.expect("joined").expect("read");
        }
        most = most.max(one(&watcher, sessions).await.parse::<u32>().expect("a number"));
    }
    // A backend that was told to go may still be seen going.
    assert!((1..=8).contains(&most), "{most} sessions");
    until("idle connections close", async || one(&watcher, sessions).await == "0").await;
    server.records(&grounds[0].database).await.expect("opens another");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenant_can_not_take_all_connections_nor_can_all_of_them() {
    let postgres = own_server(&[("max_connections", "40")]);
    let ground = Ground::on(&postgres, "full").await;
    let mut spec = ground.spec();
    spec.connection_limit = Some(25);
    ground.server.ensure_database(&spec).await.expect("bounded");
    let mut guests = Vec::new();
    for name in ["acme", "bolt", "cool"] {
        let mut spec = ground.tenant_spec(name);
        spec.settings.connection_limit = 10;
        guests.push(ground.tenant_of(&spec).await);
    }
    let take = async |guest: &crate::support::Guest| {
        let mut held = Vec::new();
        loop {
            match ground.try_client(&guest.login).await {
                Ok(client) => held.push(client),
                Err(error) => {
                    assert_eq!(error.code().expect("refused by the server").code(), "53300");
                    return held;
                }
            }
        }
    };
    let mut held = take(&guests[0]).await;
    assert_eq!(held.len(), 10);
    ground.server.prove(&guests[1].login).await.expect("a neighbour logs in");
    ground.server.records(&ground.database).await.expect("so does the operator");
    for guest in &guests[1..] {
        held.extend(take(guest).await);
    }
    assert!(held.len() <= 25, "{} sessions", held.len());
    // All tenants together: the server still has room, the operator reaches it and can act.
    let fresh = Server::new(config(&postgres)).expect("good");
    fresh.check().await.expect("the operator logs in");
    fresh.watchdog().await.expect("and watches");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_shows_in_the_servers_log() {
    let postgres = own_server(&[
        ("log_statement", "all"),
        ("log_min_duration_statement", "0"),
        ("log_connections", "on"),
        ("log_min_error_statement", "debug5"),
    ]);
    let ground = Ground::on(&postgres, "log").await;
    let guest = ground.tenant("acme").await;
    ground.server.prove(&guest.login).await.expect("proven");
    let file = Migration { name: "1".into(), sql: "CREATE TABLE t (i int)".into(), checksum: "1".into() };
    ground.server.migrate(&ground.database, &guest.id, &[file]).await.expect("migrated");
    let issued = ground.server.issue_login(&ground.database, &guest.id, Overlap::Respect).await.expect("issued");
    ground.server.login_published(&ground.database, &guest.id, issued.slot).await.expect("published");
    ground.server.close_logins(&ground.database, None, OverlapTimes::default(), Overlap::Cut).await.expect("closed");
    // A statement that fails is logged with its text, too.
    let mut namesake = ground.tenant_spec("acme");
    namesake.uid = "other".to_owned();
    namesake.id = tenantry::database::TenantId::from_uid("other");
    ground.server.create_tenant(&ground.database, &namesake).await.expect_err("taken");

    let log = std::fs::read_to_string(postgres.log_path()).expect("a log");
    let shown: Vec<&str> = log.split("PASSWORD ").skip(1).map(|after| &after[..24.min(after.len())]).collect();
    assert!(shown.len() >= 4, "statements with passwords are logged: {}", shown.len());
    for start in shown {
        let start = start.trim_start_matches('\'');
        assert!(start.starts_with("SCRAM-SHA-256$") || start.starts_with("NULL"), "PASSWORD {start}");
    }
    for password in [&guest.login.password, &issued.password, &config(&postgres).password] {
        assert!(!log.contains(password.expose()));
    }
}
