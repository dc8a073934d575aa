//! A server that is there and answers nobody, and one that only takes its time.

use std::time::Duration;

use futures::future::join_all;
use tenantry::database::{ErrorClass, Migration, Server, ServerConfig, Timeouts};

use crate::support::{Ground, config, own_server, until};

/// Statements and logins may take as long as they do by default; a server is suspected soon.
fn suspicious(mut config: ServerConfig) -> ServerConfig {
    config.timeouts = Timeouts {
        suspicion: Duration::from_millis(100),
        connect: Duration::from_secs(1),
        breaker: Duration::from_millis(500),
        ..config.timeouts
    };
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_frozen_server_and_everybody_goes_on_when_it_thaws() {
    let postgres = own_server(&[]);
    let server = Server::new(suspicious(config(&postgres))).expect("a good configuration");
    let ground = Ground::with(&postgres, server, "frozen").await;
    let guest = ground.tenant("acme").await;
    let specs: Vec<_> = (0..20).map(|number| ground.tenant_spec(&format!("t{number}"))).collect();
    // Its migration has begun, and its session stands still in the middle of a file.
    let sleep = Migration { name: "1.sql".into(), sql: "SELECT pg_sleep(3600)".into(), checksum: "1".into() };
    let migrating = {
        let (server, database, id) = (ground.server.clone(), ground.database.clone(), guest.id.clone());
        tokio::spawn(async move { server.migrate(&database, &id, &[sleep]).await })
    };
    let superuser = ground.superuser().await;
    until("the migration runs", async || {
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()";
        superuser.query_one(running, &[]).await.expect("a count").get::<_, i64>(0) == 1
    })
    .await;

    postgres.freeze();
    let made = join_all(specs.iter().map(|spec| ground.server.create_tenant(&ground.database, spec))).await;
    for error in made.into_iter().filter_map(Result::err) {
        assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    }
    let error = migrating.await.expect("no panic").expect_err("it was given up");
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    assert!(error.to_string().contains("no longer answers"), "{error}");
    let statistics = ground.server.statistics();
    assert_eq!((statistics.in_use, statistics.away), (0, true));
    let error = ground.server.prove(&guest.login).await.expect_err("nobody is let through");
    assert!(error.to_string().contains("doesn't answer"), "{error}");

    postgres.thaw();
    until("one gets through", async || ground.server.check().await.is_ok()).await;
    for made in join_all(specs.iter().map(|spec| ground.server.create_tenant(&ground.database, spec))).await {
        made.expect("it goes on");
    }
    assert!(!ground.server.statistics().away);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_statement_is_no_silence() {
    let postgres = own_server(&[]);
    let server = Server::new(suspicious(config(&postgres))).expect("a good configuration");
    let ground = Ground::with(&postgres, server, "slow").await;
    let guest = ground.tenant("acme").await;
    let before = ground.server.statistics().connections;
    let patient = "SELECT pg_advisory_xact_lock(1)";
    let superuser = ground.superuser().await;
    superuser.batch_execute("SELECT pg_advisory_lock(1)").await.expect("the lock is held");
    let file = Migration { name: "1.sql".into(), sql: patient.into(), checksum: "1".into() };
    let migrating = {
        let (server, database, id) = (ground.server.clone(), ground.database.clone(), guest.id.clone());
        tokio::spawn(async move { server.migrate(&database, &id, &[file]).await })
    };
    // Its own connections are two at most: the others are looks at the server.
    until("it was suspected", async || ground.server.statistics().connections > before + 2).await;
    assert!(!migrating.is_finished() && !ground.server.statistics().away);
    superuser.batch_execute("SELECT pg_advisory_unlock(1)").await.expect("the lock is free");
    assert_eq!(migrating.await.expect("no panic").expect("migrated").applied, ["1.sql"]);
}
