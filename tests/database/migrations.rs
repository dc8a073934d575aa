//! Migrations: whole or not at all, as the tenant's owner, and nothing that ends the transaction.

use std::time::Duration;

use tenantry::database::{ErrorClass, Migration, Server, Timeouts};

use crate::support::{Ground, config, one, refused, rows, shared_server, until};

fn file(name: &str, sql: &str) -> Migration {
    Migration { name: name.to_owned(), sql: sql.to_owned(), checksum: format!("{name}:{}", sql.len()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_run_once_in_order_as_the_owner() {
    let ground = Ground::new("migrate").await;
    let guest = ground.tenant("acme").await;
    let first = file(
        "001_users.sql",
        "-- Who's who: $$ and 'quotes'\nCREATE TABLE users (id serial PRIMARY KEY, name text);\nCREATE FUNCTION greet() RETURNS text LANGUAGE sql AS $$ SELECT 'it''s me' $$;\nCREATE TYPE mood AS ENUM ('fine');",
    );
    let second = file(
        "002_mail.sql",
        "ALTER TABLE users ADD mail text; INSERT INTO users (name, mail) VALUES ('root', E'a\\nb'); SELECT 1;",
    );
    let done = ground.server.migrate(&ground.database, &guest.id, std::slice::from_ref(&first)).await.expect("run");
    assert_eq!((done.applied, done.before), (vec![first.name.clone()], 0));
    let both = [first.clone(), second.clone(), file("003_empty.sql", "-- nothing yet\n")];
    let done = ground.server.migrate(&ground.database, &guest.id, &both).await.expect("run");
    assert_eq!((done.applied, done.before), (vec![second.name.clone(), "003_empty.sql".to_owned()], 1));
    let before = ground.server.statistics();
    let done = ground.server.migrate(&ground.database, &guest.id, &both).await.expect("nothing to do");
    assert_eq!((done.applied.len(), done.before), (0, 3));
    assert_eq!(ground.server.statistics().statements - before.statements, 1, "nothing to do is one statement");

    let client = ground.client(&guest.login).await;
    assert_eq!(one(&client, "SELECT greet() || count(*) FROM users").await, "it's me1");
    client
        .batch_execute("INSERT INTO users (name) VALUES ('x'); SELECT 'fine'::mood")
        .await
        .expect("the runtime login works with it");
    assert_eq!(refused(&client, "CREATE TABLE own (i int)").await, "42501");
    assert_eq!(refused(&client, "DROP TABLE users").await, "42501");
    let superuser = ground.superuser().await;
    assert_eq!(
        rows(&superuser, &format!("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = '{}'", guest.id)).await,
        [format!("{}_owner", guest.id)]
    );
    assert_eq!(
        one(&superuser, &format!("SELECT rolcanlogin FROM pg_roles WHERE rolname = '{}_mig'", guest.id)).await,
        "f",
        "the migration login is closed again"
    );
    let record = ground.server.record(&ground.database, &guest.id).await.expect("readable").expect("there");
    let names: Vec<&str> = record.migrations.iter().map(|migration| migration.name.as_str()).collect();
    assert_eq!(names, ["001_users.sql", "002_mail.sql", "003_empty.sql"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_file_leaves_nothing_and_says_where() {
    let ground = Ground::new("migrate").await;
    let guest = ground.tenant("acme").await;
    let good = file("001.sql", "CREATE TABLE users (id int PRIMARY KEY)");
    for (bad, code, says) in [
        ("CREATE TABLE half (i int);\nCREATE TABEL typo ();", "42601", "002.sql line 2: syntax error"),
        ("CREATE TABLE half (i int);\n\nSELECT é, nothing FROM users;", "42703", "002.sql line 3"),
        ("CREATE TABLE half (i int); INSERT INTO users VALUES (1), (1)", "23505", "duplicate key"),
        ("CREATE TABLE half (i int); COMMIT", "0A000", "remove BEGIN, COMMIT"),
        ("CREATE TABLE half (i int); ROLLBACK; CREATE TABLE half (i int)", "0A000", "remove BEGIN, COMMIT"),
        ("COMMIT; CREATE TABLE half (i int); BEGIN", "0A000", "remove BEGIN, COMMIT"),
        ("SAVEPOINT here; CREATE TABLE half (i int)", "0A000", "remove BEGIN, COMMIT"),
        ("CREATE TABLE half (i int); DO $$ BEGIN COMMIT; END $$", "2D000", "remove BEGIN, COMMIT"),
        ("CREATE TABLE half (i int); CREATE INDEX CONCURRENTLY slow ON users (id)", "25001", "CONCURRENTLY"),
        ("CREATE TABLE half (i int); SELECT tenantry.record_migration('002.sql', 'forged')", "23505", "duplicate key"),
        ("RESET ROLE; SET ROLE NONE; SELECT lo_create(0)", "42501", "remove SET ROLE"),
        ("CREATE TABLE tenantry.half (i int)", "42501", "permission denied"),
        ("CREATE SCHEMA half", "42501", "permission denied"),
    ] {
        let error = ground
            .server
            .migrate(&ground.database, &guest.id, &[good.clone(), file("002.sql", bad)])
            .await
            .expect_err(bad);
        assert_eq!((error.class(), error.sqlstate()), (ErrorClass::Permanent, Some(code)), "{bad}: {error}");
        assert!(error.to_string().contains("002.sql") && error.to_string().contains(says), "{bad}: {error}");
        assert!(error.to_string().contains(code));
        let superuser = ground.superuser().await;
        let left = format!(
            "SELECT count(*) FROM pg_class WHERE relname = 'half' AND relnamespace = '{}'::regnamespace",
            guest.id
        );
        assert_eq!(one(&superuser, &left).await, "0", "{bad}");
        assert_eq!(one(&superuser, "SELECT string_agg(name, ',') FROM tenantry.migration").await, "001.sql", "{bad}");
    }
    let done =
        ground.server.migrate(&ground.database, &guest.id, &[good, file("002.sql", "CREATE TABLE half (i int)")]).await;
    assert_eq!(done.expect("corrected").applied, ["002.sql"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_or_late_file_is_refused() {
    let ground = Ground::new("migrate").await;
    let guest = ground.tenant("acme").await;
    ground
        .server
        .migrate(&ground.database, &guest.id, &[file("002.sql", "CREATE TABLE t (i int)")])
        .await
        .expect("run");
    let error = ground
        .server
        .migrate(&ground.database, &guest.id, &[file("002.sql", "CREATE TABLE t (i bigint)")])
        .await
        .expect_err("changed");
    assert!(error.to_string().contains("002.sql was changed after it had run"), "{error}");
    let late = [file("001.sql", "CREATE TABLE s (i int)"), file("002.sql", "CREATE TABLE t (i int)")];
    let error = ground.server.migrate(&ground.database, &guest.id, &late).await.expect_err("late");
    assert!(error.to_string().contains("001.sql comes before 002.sql"), "{error}");
    assert_eq!(error.class(), ErrorClass::Permanent);
}

/// Longer than any statement of the operator's own may run, and cut by nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_file_is_not_cut_and_a_second_run_waits() {
    let mut configuration = config(shared_server());
    configuration.timeouts = Timeouts { statement: Duration::from_millis(500), ..Timeouts::default() };
    let ground = Ground::with(shared_server(), Server::new(configuration).expect("good"), "migrate").await;
    let guest = ground.tenant("acme").await;
    let files = [file("001.sql", "SELECT pg_sleep(2); CREATE TABLE slow (i int)")];
    let (server, database, id) = (ground.server.clone(), ground.database.clone(), guest.id.clone());
    let run = tokio::spawn({
        let files = files.clone();
        async move { server.migrate(&database, &id, &files).await }
    });
    let superuser = ground.superuser().await;
    until("it runs", async || {
        one(&superuser, &format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}_mig'", guest.id)).await
            == "1"
    })
    .await;
    let error = ground.server.migrate(&ground.database, &guest.id, &files).await.expect_err("one at a time");
    assert_eq!(error.class(), ErrorClass::Waiting, "{error}");
    // Another process, the next leader for instance, doesn't disturb it either.
    let other = Server::new(config(shared_server())).expect("good");
    let error = other.migrate(&ground.database, &guest.id, &files).await.expect_err("one at a time");
    assert_eq!(error.class(), ErrorClass::Waiting, "{error}");
    assert!(
        ground.server.sweep(&ground.database).await.expect("swept").repaired.is_empty(),
        "the sweep leaves it alone"
    );
    assert_eq!(run.await.expect("not cut").expect("run").applied, ["001.sql"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_waited_for_only_so_long() {
    let mut configuration = config(shared_server());
    configuration.timeouts.migration_lock = Duration::from_millis(200);
    let ground = Ground::with(shared_server(), Server::new(configuration).expect("good"), "migrate").await;
    let guest = ground.tenant("acme").await;
    let first = file("001.sql", "CREATE TABLE users (id int)");
    ground.server.migrate(&ground.database, &guest.id, std::slice::from_ref(&first)).await.expect("run");
    let client = ground.client(&guest.login).await;
    client.batch_execute("BEGIN; INSERT INTO users VALUES (1)").await.expect("holds a lock");
    let both = [first, file("002.sql", "ALTER TABLE users ADD name text")];
    let error = ground.server.migrate(&ground.database, &guest.id, &both).await.expect_err("locked");
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    assert!(error.to_string().contains("55P03"), "{error}");
    client.batch_execute("COMMIT").await.expect("let go");
    assert_eq!(ground.server.migrate(&ground.database, &guest.id, &both).await.expect("run").applied, ["002.sql"]);
}

/// The process dies while a file runs: nothing of the file stays, and the login doesn't stay open.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_cut_off_is_cleaned_up_by_the_sweep() {
    let ground = Ground::new("migrate").await;
    let guest = ground.tenant("acme").await;
    let dying = Server::new(config(shared_server())).expect("good");
    let files = [file("001.sql", "CREATE TABLE half (i int); SELECT pg_sleep(60)")];
    let (database, id) = (ground.database.clone(), guest.id.clone());
    let run = tokio::spawn(async move { dying.migrate(&database, &id, &files).await });
    let superuser = ground.superuser().await;
    let sessions =
        format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}_mig' AND wait_event = 'PgSleep'", guest.id);
    until("it runs", async || one(&superuser, &sessions).await == "1").await;
    run.abort();
    assert!(run.await.expect_err("dead").is_cancelled());
    let can_login = format!("SELECT rolcanlogin FROM pg_roles WHERE rolname = '{}_mig'", guest.id);
    assert_eq!(one(&superuser, &can_login).await, "t", "left open");
    let report = ground.server.sweep(&ground.database).await.expect("swept");
    assert!(report.repaired.iter().any(|finding| finding.what.contains("no migration runs")), "{report:?}");
    assert_eq!(one(&superuser, &can_login).await, "f");
    let ended = ground.server.watchdog().await.expect("looked");
    let any = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}_mig'", guest.id);
    until("the server gave the file up", async || one(&superuser, &any).await == "0").await;
    println!("ended by the watchdog: {}", ended.len());
    let done =
        ground.server.migrate(&ground.database, &guest.id, &[file("001.sql", "CREATE TABLE half (i int)")]).await;
    assert_eq!(done.expect("run").applied, ["001.sql"]);
}

/// Migrations have a few connections of their own: whoever gets none has begun nothing.
#[tokio::test(flavor = "multi_thread")]
async fn where_no_place_is_free_no_login_is_opened() {
    let mut configuration = config(shared_server());
    configuration.connections = 2;
    configuration.timeouts.wait = Duration::from_millis(300);
    let ground = Ground::with(shared_server(), Server::new(configuration).expect("good"), "migrate").await;
    assert_eq!(ground.server.migration_places(), 1);
    let (acme, bolt) = (ground.tenant("acme").await, ground.tenant("bolt").await);
    let (superuser, blocker) = (ground.superuser().await, ground.superuser().await);
    blocker.batch_execute("SELECT pg_advisory_lock(4712)").await.expect("a lock");
    let long = file("001.sql", "SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock(4712)");
    let run = tokio::spawn({
        let (server, database, id, files) =
            (ground.server.clone(), ground.database.clone(), acme.id.clone(), [long.clone()]);
        async move { server.migrate(&database, &id, &files).await }
    });
    let running =
        format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}_mig' AND wait_event_type = 'Lock'", acme.id);
    until("it runs", async || one(&superuser, &running).await == "1").await;
    let login = format!("SELECT xmin FROM tenantry.login WHERE name = '{}_mig'", bolt.id);
    let before = one(&superuser, &login).await;
    let error = ground.server.migrate(&ground.database, &bolt.id, &[long]).await.expect_err("no place is free");
    assert!(error.class() == ErrorClass::Transient && error.to_string().contains("in use"), "{error}");
    assert_eq!(one(&superuser, &login).await, before, "its login was not touched");
    blocker.batch_execute("SELECT pg_advisory_unlock(4712)").await.expect("let go");
    assert_eq!(run.await.expect("no panic").expect("run").applied, ["001.sql"]);
}
