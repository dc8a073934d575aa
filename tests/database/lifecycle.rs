//! Databases and tenants: made, proven, changed, kept and dropped; and what is never adopted.

use std::time::Duration;

use jiff::{Timestamp, ToSpan};
use tenantry::database::{
    DatabaseSpec, DropOutcome, ErrorClass, LoginState, Migration, Overlap, Server, ServerConfig, TenantId,
    TenantSettings, TenantSpec, TenantState,
};

use crate::support::{
    CLUSTER, Ground, config, one, own_server, refused, rows, settings, shared_server, tenant_spec, until,
};

/// What is left of a tenant in the server's catalogs.
pub(crate) async fn roles_and_schemas(ground: &Ground, id: &TenantId) -> Vec<String> {
    let superuser = ground.superuser().await;
    rows(
        &superuser,
        &format!(
            "SELECT rolname FROM pg_roles WHERE rolname LIKE '%{id}%'
             UNION SELECT nspname FROM pg_namespace WHERE nspname LIKE '%{id}%' ORDER BY 1"
        ),
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_made_in_one_message_and_proven() {
    // On a server of its own, where nobody opens a database meanwhile.
    let postgres = own_server(&[]);
    let ground = Ground::on(&postgres, "life").await;
    let closed = "REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1 FROM PUBLIC;
                  GRANT CONNECT ON DATABASE postgres TO tenantry_admin";
    ground.superuser().await.batch_execute(closed).await.expect("closed");
    let warm = ground.tenant("warm").await;
    ground.server.prove(&warm.login).await.expect("proven");

    let before = ground.server.statistics();
    let started = std::time::Instant::now();
    let spec = ground.tenant_spec("acme");
    let (record, issued) = ground.server.create_tenant(&ground.database, &spec).await.expect("made");
    let (made, created) = (ground.server.statistics(), started.elapsed());
    ground.server.login_published(&ground.database, &spec.id, issued.slot).await.expect("published");
    let proof = ground.server.prove(&ground.credentials(&spec.id, &issued)).await.expect("proven");
    let after = ground.server.statistics();
    println!(
        "a tenant: {} statements in {} round trips, {created:?}; with publishing and proof {} statements, {} round trips, {} connections, {:?}",
        made.statements - before.statements,
        made.round_trips - before.round_trips,
        after.statements - before.statements,
        after.round_trips - before.round_trips,
        after.connections - before.connections,
        started.elapsed(),
    );
    assert_eq!(made.round_trips - before.round_trips, 1);
    assert_eq!(proof.id, spec.id);
    assert!(proof.open_databases.is_empty(), "{:?}", proof.open_databases);
    let read = ground.server.record(&ground.database, &spec.id).await.expect("readable").expect("there");
    assert_eq!(read.logins[0].state, LoginState::Current);
    assert_eq!(read.logins[0].digest, issued.password.digest());
    let mut same = record;
    same.logins.clone_from(&read.logins);
    assert_eq!(same, read, "what create_tenant returned is what is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_to_do_costs_three_statements() {
    let ground = Ground::new("life").await;
    let before = ground.server.statistics();
    ground.server.ensure_database(&ground.spec()).await.expect("as it was");
    // Whether it is there, whose it is, who may enter.
    assert_eq!(ground.server.statistics().statements - before.statements, 3);
    let guest = ground.tenant("acme").await;
    let before = ground.server.statistics();
    assert!(!ground.server.apply_settings(&ground.database, &guest.id, &settings("smb")).await.expect("the same"));
    assert_eq!(ground.server.statistics().statements - before.statements, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_reach_roles_and_suspension_ends_sessions() {
    let ground = Ground::new("life").await;
    let guest = ground.tenant("acme").await;
    let client = ground.client(&guest.login).await;
    assert_eq!(one(&client, "SHOW search_path").await, format!("{}, tenantry", guest.id));
    assert_eq!(one(&client, "SHOW temp_file_limit").await, "1MB");
    assert_eq!(one(&client, "SHOW statement_timeout").await, "30s");
    assert_eq!(refused(&client, "SET temp_file_limit = -1").await, "42501");

    let stricter = TenantSettings {
        connection_limit: 1,
        temp_file_limit: Some(4096 * 1024),
        statement_timeout: None,
        plan_revision: "2".to_owned(),
        ..settings("smb")
    };
    assert!(ground.server.apply_settings(&ground.database, &guest.id, &stricter).await.expect("applied"));
    let record = ground.server.record(&ground.database, &guest.id).await.expect("readable").expect("there");
    assert_eq!(record.settings, stricter);
    assert_eq!(
        ground.try_client(&guest.login).await.expect_err("one session is there").code().expect("code").code(),
        "53300"
    );
    drop(client);
    let mut client = None;
    until("the one session is free again", async || {
        client = ground.try_client(&guest.login).await.ok();
        client.is_some()
    })
    .await;
    let client = client.expect("in");
    assert_eq!(one(&client, "SHOW temp_file_limit").await, "4MB");
    assert_eq!(one(&client, "SHOW statement_timeout").await, "0");

    let suspended = TenantSettings { suspended: true, ..stricter.clone() };
    assert!(ground.server.apply_settings(&ground.database, &guest.id, &suspended).await.expect("suspended"));
    until("the session is ended", async || client.is_closed()).await;
    assert_eq!(ground.try_client(&guest.login).await.expect_err("locked").code().expect("code").code(), "28000");
    let issued = ground.server.issue_login(&ground.database, &guest.id, Overlap::Respect).await.expect("issued");
    assert!(ground.try_client(&ground.credentials(&guest.id, &issued)).await.is_err(), "no way in while suspended");

    assert!(ground.server.apply_settings(&ground.database, &guest.id, &stricter).await.expect("resumed"));
    // The server process of an attempt that was refused may still be there, and it is the only one.
    for login in [guest.login, ground.credentials(&guest.id, &issued)] {
        until("the login works again", async || ground.try_client(&login).await.is_ok()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_periods_stay_as_the_tenant_was_made_with_them() {
    let ground = Ground::new("life").await;
    let guest = ground.tenant("acme").await;
    let other = TenantSettings {
        period_anchor: "2026-11-15T00:00:00Z".parse().expect("a time"),
        time_zone: "Asia/Seoul".to_owned(),
        ..settings("smb")
    };
    assert!(!ground.server.apply_settings(&ground.database, &guest.id, &other).await.expect("nothing to do"));
    let other = TenantSettings { plan_revision: "2".to_owned(), ..other };
    assert!(ground.server.apply_settings(&ground.database, &guest.id, &other).await.expect("applied"));
    let record = ground.server.record(&ground.database, &guest.id).await.expect("readable").expect("there");
    assert_eq!(record.settings, TenantSettings { plan_revision: "2".to_owned(), ..settings("smb") });
    // Also where it is made once more, since nobody heard that it had been.
    let again = TenantSpec { settings: other, ..ground.tenant_spec("acme") };
    let (again, _) = ground.server.create_tenant(&ground.database, &again).await.expect("it is the same one's");
    assert_eq!(again.settings, record.settings);
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_tenants_come_back_with_their_data() {
    let ground = Ground::new("life").await;
    let guest = ground.tenant("acme").await;
    let create = Migration {
        name: "1".into(),
        sql: "CREATE TABLE note (t text); INSERT INTO note VALUES ('kept')".into(),
        checksum: "1".into(),
    };
    ground.server.migrate(&ground.database, &guest.id, std::slice::from_ref(&create)).await.expect("migrated");
    let session = ground.client(&guest.login).await;
    session.batch_execute("SELECT record_usage('users', 3, 'x')").await.expect("counted");
    let drop_after = Timestamp::now().checked_add(48.hours()).expect("in range");

    for round in ["first", "again"] {
        ground.server.retain(&ground.database, &guest.id, drop_after).await.expect(round);
    }
    until("the session is ended", async || session.is_closed()).await;
    assert_eq!(ground.try_client(&guest.login).await.expect_err("locked").code().expect("code").code(), "28P01");
    let record = ground.server.record(&ground.database, &guest.id).await.expect("readable").expect("there");
    let TenantState::Retained { drop_after: kept } = record.state else { panic!("{:?}", record.state) };
    assert_eq!(kept.as_millisecond(), drop_after.as_millisecond());
    assert_eq!(record.schema, format!("d_{}", guest.id));
    assert!(record.logins.is_empty());

    // Its name is free, and taken again; then it can't come back under it.
    let namesake = ground.tenant_of(&tenant_spec("acme", "second-life")).await;
    let error = ground.server.restore(&ground.database, &guest.id, "acme", "third-life").await.expect_err("taken");
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(error.to_string().contains("another tenant of that name"), "{error}");
    assert_eq!(ground.server.drop_tenant(&ground.database, &namesake.id).await.expect("dropped"), DropOutcome::Gone);

    let restored = ground.server.restore(&ground.database, &guest.id, "acme", "third-life").await.expect("restored");
    assert_eq!((restored.uid.as_str(), restored.state, &restored.id), ("third-life", TenantState::Live, &guest.id));
    ground.server.restore(&ground.database, &guest.id, "acme", "third-life").await.expect("again");
    let issued = ground.server.issue_login(&ground.database, &guest.id, Overlap::Respect).await.expect("issued");
    ground.server.login_published(&ground.database, &guest.id, issued.slot).await.expect("published");
    let login = ground.credentials(&guest.id, &issued);
    ground.server.prove(&login).await.expect("proven");
    let client = ground.client(&login).await;
    assert_eq!(one(&client, "SELECT t FROM note").await, "kept");
    assert_eq!(one(&client, "SELECT record_usage('users', 1, 'x')").await, "4");
    assert_eq!(ground.server.migrate(&ground.database, &guest.id, &[create]).await.expect("known").before, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_leaves_nothing_but_unsent_events_and_no_neighbour_notices() {
    let one_connection = Server::new(quick(config(shared_server()))).expect("good");
    let ground = Ground::with(shared_server(), one_connection, "life").await;
    let mut guests = Vec::new();
    for name in ["a", "ab", "a-b"] {
        let guest = ground.tenant(name).await;
        let table = Migration {
            name: "1".into(),
            sql: "CREATE TABLE note (t text); INSERT INTO note VALUES (current_schema)".into(),
            checksum: "1".into(),
        };
        ground.server.migrate(&ground.database, &guest.id, &[table]).await.expect("migrated");
        guests.push(guest);
    }
    let (a, ab) = (&guests[0], &guests[1]);
    let client = ground.client(&a.login).await;
    client.batch_execute("SELECT record_usage('users', 1, 'x')").await.expect("counted");
    // What could hold roles back: large objects, and privileges between neighbours.
    client.batch_execute("SELECT lo_create(0)").await.expect("a large object");
    let migrator = ground.migrator(ab).await;
    migrator
        .batch_execute(&format!(
            "GRANT SELECT ON note TO {}_rw; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {}_owner",
            a.id, a.id
        ))
        .await
        .expect("granted");
    // And a large object in a database that is open to all.
    let superuser = ground.superuser().await;
    let elsewhere = format!("{}_open", ground.database);
    superuser.batch_execute(&format!("CREATE DATABASE {elsewhere}")).await.expect("open");
    let mut outside = a.login.clone();
    outside.database.clone_from(&elsewhere);
    ground.client(&outside).await.batch_execute("SELECT lo_create(0)").await.expect("a large object elsewhere");

    assert_eq!(
        ground.server.drop_tenant(&ground.database, &a.id).await.expect("dropped"),
        DropOutcome::WaitsForEvents(1)
    );
    assert!(roles_and_schemas(&ground, &a.id).await.is_empty());
    let record = ground.server.record(&ground.database, &a.id).await.expect("readable").expect("kept");
    assert_eq!(record.state, TenantState::Dropped { unsent: 1 });
    assert_eq!(
        ground.server.drop_tenant(&ground.database, &a.id).await.expect("again"),
        DropOutcome::WaitsForEvents(1)
    );
    superuser.batch_execute("UPDATE tenantry.outbox SET acked_at = now()").await.expect("the relay was here");
    assert_eq!(ground.server.drop_tenant(&ground.database, &a.id).await.expect("at last"), DropOutcome::Gone);
    assert_eq!(ground.server.drop_tenant(&ground.database, &a.id).await.expect("and again"), DropOutcome::Gone);
    assert!(ground.server.record(&ground.database, &a.id).await.expect("readable").is_none());

    for neighbour in &guests[1..] {
        ground.server.prove(&neighbour.login).await.expect("untouched");
        assert_eq!(one(&ground.client(&neighbour.login).await, "SELECT t FROM note").await, neighbour.id.as_str());
    }
    let error = ground.server.drop_database(&ground.database, CLUSTER).await.expect_err("in use");
    assert_eq!(error.class(), ErrorClass::Waiting, "{error}");
    for neighbour in &guests[1..] {
        assert_eq!(
            ground.server.drop_tenant(&ground.database, &neighbour.id).await.expect("dropped"),
            DropOutcome::Gone
        );
    }
    drop((superuser, migrator));
    until("the database is dropped", async || ground.server.drop_database(&ground.database, CLUSTER).await.is_ok())
        .await;
    ground.server.drop_database(&ground.database, CLUSTER).await.expect("gone already");
    let list = ground.server.list_databases().await.expect("listed");
    assert!(!list.iter().any(|database| database.name == ground.database));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_schema_is_dropped_in_parts() {
    let postgres = own_server(&[("max_locks_per_transaction", "10"), ("max_connections", "20")]);
    let ground = Ground::on(&postgres, "large").await;
    let guest = ground.tenant("acme").await;
    for part in 0..20 {
        let sql = format!(
            "DO $$ BEGIN FOR i IN 1..60 LOOP EXECUTE format('CREATE TABLE t_%s (i int PRIMARY KEY)', {part} * 100 + i); END LOOP; END $$"
        );
        let file = Migration { name: part.to_string(), sql, checksum: String::new() };
        let files: Vec<_> = (0..part)
            .map(|n| Migration { name: n.to_string(), sql: String::new(), checksum: String::new() })
            .chain([file])
            .collect();
        ground.server.migrate(&ground.database, &guest.id, &files).await.expect("migrated");
    }
    let superuser = ground.superuser().await;
    assert_eq!(
        refused(&superuser, &format!("DROP SCHEMA {} CASCADE", guest.id)).await,
        "53200",
        "too large for one transaction"
    );
    // The server's lock table is small here, and others use it, too: what is transient is tried again.
    until("the schema is dropped", async || {
        let dropped = ground.server.drop_tenant(&ground.database, &guest.id).await;
        dropped.inspect_err(|error| assert_eq!(error.class(), ErrorClass::Transient, "{error}")).is_ok()
    })
    .await;
    assert!(roles_and_schemas(&ground, &guest.id).await.is_empty());
}

/// With a breaker that hardly pauses, and one connection: nothing may need two at a time.
pub(crate) fn quick(mut config: ServerConfig) -> ServerConfig {
    config.connections = 1;
    config.timeouts.breaker = Duration::from_millis(10);
    config
}

#[tokio::test]
async fn what_is_due_is_dropped_and_what_was_taken_back_or_is_kept_longer_is_not() {
    let ground = Ground::new("due").await;
    let guest = ground.tenant("undecided").await;
    let (server, database, now) = (&ground.server, &ground.database, Timestamp::now());
    assert_eq!(server.drop_due(database, &guest.id, now).await.expect("live"), None);
    server.retain(database, &guest.id, now.checked_add(1.hours()).expect("in range")).await.expect("retained");
    assert_eq!(server.drop_due(database, &guest.id, now).await.expect("kept"), None);
    let later = now.checked_add(2.hours()).expect("in range");
    // Found to be due, and taken back before it is dropped.
    server.restore(database, &guest.id, "undecided", "second-life").await.expect("restored");
    assert_eq!(server.drop_due(database, &guest.id, later).await.expect("taken back"), None);
    let record = server.record(database, &guest.id).await.expect("readable").expect("there");
    assert_eq!((record.state, record.uid.as_str()), (TenantState::Live, "second-life"));
    server.retain(database, &guest.id, now).await.expect("retained");
    assert_eq!(server.drop_due(database, &guest.id, later).await.expect("due"), Some(DropOutcome::Gone));
    assert!(server.restore(database, &guest.id, "undecided", "third-life").await.is_err(), "it is gone for good");
    assert_eq!(server.drop_due(database, &guest.id, later).await.expect("again"), Some(DropOutcome::Gone));
}

/// What an operator that ended in the middle leaves: a database that was opened and has nothing in
/// it, one that is closed still, and one that the server was dropping when it crashed.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_unfinished_is_dropped_and_one_that_is_gone_is_not_made_again() {
    // On a server of its own: one of them is open to all, which is no proof for others.
    let postgres = own_server(&[]);
    let ground = Ground::on(&postgres, "half").await;
    let superuser = ground.superuser().await;
    let named = |suffix: &str| DatabaseSpec { name: format!("{}_{suffix}", ground.database), ..ground.spec() };
    let (opened, closed, dropping) = (named("opened"), named("closed"), named("dropping"));
    for (spec, options) in [(&opened, ""), (&closed, " ALLOW_CONNECTIONS false")] {
        let create = format!("CREATE DATABASE {} OWNER tenantry_owner TEMPLATE template0{options}", spec.name);
        superuser.batch_execute(&create).await.expect("begun");
    }
    ground.server.ensure_database(&dropping).await.expect("made");
    let half = format!("UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{}'", dropping.name);
    superuser.batch_execute(&half).await.expect("half dropped");
    for spec in [&opened, &closed, &dropping] {
        until("it is dropped", async || ground.server.drop_database(&spec.name, CLUSTER).await.is_ok()).await;
        assert!(!ground.server.update_database(spec).await.expect("looked at"), "it is gone, and stays so");
    }
    let list = ground.server.list_databases().await.expect("listed");
    assert!(!list.iter().any(|database| [&opened, &closed, &dropping].iter().any(|spec| spec.name == database.name)));
    assert!(ground.server.update_database(&ground.spec()).await.expect("brought up to date"));
}
