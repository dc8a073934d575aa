//! Databases and tenants: made, proven, changed, kept and dropped; and what is never adopted.

use std::time::Duration;

use jiff::{Timestamp, ToSpan};
use tenantry::database::{
    DropOutcome, ErrorClass, LoginState, Migration, Overlap, Policy, Purpose, Server, ServerConfig,
    TenantId, TenantSettings, TenantSpec, TenantState,
};

use crate::proxy::Proxy;
use crate::support::{
    CLUSTER, Ground, config, limit, one, own_server, refused, rows, settings, shared_server,
    tenant_spec, until,
};

async fn roles_and_schemas(ground: &Ground, id: &TenantId) -> Vec<String> {
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
    let ground = Ground::new("life").await;
    let warm = ground.tenant("warm").await;
    ground.server.prove(&warm.login).await.expect("proven");

    let before = ground.server.statistics();
    let started = std::time::Instant::now();
    let spec = ground.tenant_spec("acme");
    let (record, issued) = ground
        .server
        .create_tenant(&ground.database, &spec)
        .await
        .expect("made");
    let (made, created) = (ground.server.statistics(), started.elapsed());
    ground
        .server
        .login_published(&ground.database, &spec.id, issued.slot)
        .await
        .expect("published");
    let proof = ground
        .server
        .prove(&ground.credentials(&spec.id, &issued))
        .await
        .expect("proven");
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
    assert!(
        proof.open_databases.is_empty(),
        "{:?}",
        proof.open_databases
    );
    let read = ground
        .server
        .record(&ground.database, &spec.id)
        .await
        .expect("readable")
        .expect("there");
    assert_eq!(read.logins[0].state, LoginState::Current);
    assert_eq!(read.logins[0].digest, issued.password.digest());
    let mut same = record;
    same.logins.clone_from(&read.logins);
    assert_eq!(same, read, "what create_tenant returned is what is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_to_do_costs_two_statements() {
    let ground = Ground::new("life").await;
    let before = ground.server.statistics();
    ground
        .server
        .ensure_database(&ground.spec())
        .await
        .expect("as it was");
    assert_eq!(ground.server.statistics().statements - before.statements, 2);
    let guest = ground.tenant("acme").await;
    let before = ground.server.statistics();
    assert!(
        !ground
            .server
            .apply_settings(&ground.database, &guest.id, &settings("smb"))
            .await
            .expect("the same")
    );
    assert_eq!(ground.server.statistics().statements - before.statements, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn making_a_tenant_again_resumes() {
    let ground = Ground::new("life").await;
    let spec = ground.tenant_spec("acme");
    let (_, lost) = ground
        .server
        .create_tenant(&ground.database, &spec)
        .await
        .expect("made");
    // The operator dies before the Secret is written.
    let (record, issued) = ground
        .server
        .create_tenant(&ground.database, &spec)
        .await
        .expect("resumed");
    assert_eq!(issued.slot, lost.slot, "the pending login, again");
    assert_ne!(issued.password, lost.password);
    assert!(
        record
            .login_of(&issued.username, &issued.password.digest())
            .is_some()
    );
    assert!(
        record
            .login_of(&lost.username, &lost.password.digest())
            .is_none()
    );
    ground.client(&ground.credentials(&spec.id, &issued)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_owner_made_is_never_adopted() {
    let ground = Ground::new("life").await;
    let acme = ground.tenant("acme").await;

    // Another Tenant of the same name.
    let namesake = tenant_spec("acme", "another-uid");
    let error = ground
        .server
        .create_tenant(&ground.database, &namesake)
        .await
        .expect_err("taken");
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(error.to_string().contains(&acme.record.uid), "{error}");
    assert!(
        roles_and_schemas(&ground, &namesake.id).await.is_empty(),
        "nothing was left behind"
    );

    // A schema, or a role, that has no record.
    let superuser = ground.superuser().await;
    for (name, sql) in [
        ("bolt", "CREATE SCHEMA {id}"),
        ("cool", "CREATE ROLE {id}_owner"),
    ] {
        let spec = ground.tenant_spec(name);
        superuser
            .batch_execute(&sql.replace("{id}", spec.id.as_str()))
            .await
            .expect("somebody was here");
        let error = ground
            .server
            .create_tenant(&ground.database, &spec)
            .await
            .expect_err("foreign");
        assert_eq!(error.class(), ErrorClass::Permanent);
        assert!(error.to_string().contains("somebody else's"), "{error}");
        assert_eq!(
            roles_and_schemas(&ground, &spec.id).await.len(),
            1,
            "untouched"
        );
    }

    // The same database for another cluster, another purpose, and one that a person made.
    let mut other_cluster = ground.spec();
    other_cluster.cluster_id = "99999999-0000-4000-8000-000000000000".to_owned();
    let mut other_pool = ground.spec();
    other_pool.purpose = Purpose::Dedicated("mega".to_owned());
    let mut persons = ground.spec();
    persons.name = format!("{}_persons", ground.database);
    superuser
        .batch_execute(&format!("CREATE DATABASE {}", persons.name))
        .await
        .expect("made by hand");
    let mut persons_closed = ground.spec();
    persons_closed.name = format!("{}_closed", ground.database);
    let closed = &persons_closed.name;
    superuser
        .batch_execute(&format!("CREATE DATABASE {closed}"))
        .await
        .expect("made by hand");
    superuser
        .batch_execute(&format!("REVOKE CONNECT ON DATABASE {closed} FROM PUBLIC"))
        .await
        .expect("closed");
    for (spec, why) in [
        (other_cluster, CLUSTER),
        (other_pool, "Pool"),
        (persons.clone(), "no record of an owner"),
        (persons_closed, "somebody else"),
    ] {
        let error = ground
            .server
            .ensure_database(&spec)
            .await
            .expect_err("foreign");
        assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
        assert!(
            error.to_string().contains(why) && error.to_string().contains(&spec.name),
            "{error}"
        );
    }
    let error = ground
        .server
        .drop_database(&persons.name, CLUSTER)
        .await
        .expect_err("foreign");
    assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
    let listed = ground.server.list_databases().await.expect("listed");
    assert!(!listed.iter().any(|database| database.name == persons.name));
    let ours = listed
        .iter()
        .find(|database| database.name == ground.database)
        .expect("ours");
    let mark = ours.mark.as_ref().expect("marked");
    assert_eq!(
        (mark.cluster_id.as_str(), &mark.purpose),
        (CLUSTER, &Purpose::Pool(ground.database.clone()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_names_are_refused_before_anything_is_made() {
    let ground = Ground::new("life").await;
    for name in [
        "",
        "Upper",
        "a b",
        "1st",
        "pg_mine",
        "with\"quote",
        &"x".repeat(49),
    ] {
        let mut spec = ground.spec();
        spec.name = (*name).to_owned();
        let error = ground
            .server
            .ensure_database(&spec)
            .await
            .expect_err("unusable");
        assert_eq!(error.class(), ErrorClass::Permanent);
        assert!(error.to_string().contains("not usable"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_only_begun_is_finished_and_opened_privileges_are_closed() {
    let ground = Ground::new("life").await;
    let mut spec = ground.spec();
    spec.name = format!("{}_begun", ground.database);
    let superuser = ground.superuser().await;
    // As left by an operator that died after CREATE DATABASE.
    superuser
        .batch_execute(&format!(
            "CREATE DATABASE {} OWNER tenantry_owner TEMPLATE template0 ALLOW_CONNECTIONS false",
            spec.name
        ))
        .await
        .expect("begun");
    spec.connection_limit = Some(77);
    ground
        .server
        .ensure_database(&spec)
        .await
        .expect("finished");
    let limit = format!(
        "SELECT datconnlimit FROM pg_database WHERE datname = '{}'",
        spec.name
    );
    assert_eq!(one(&superuser, &limit).await, "77");

    superuser
        .batch_execute(&format!(
            "GRANT CONNECT, TEMPORARY ON DATABASE {} TO PUBLIC",
            spec.name
        ))
        .await
        .expect("opened");
    ground
        .server
        .ensure_database(&spec)
        .await
        .expect("closed again");
    let open = format!(
        "SELECT has_database_privilege('public', '{0}', 'CONNECT') OR has_database_privilege('public', '{0}', 'TEMP')",
        spec.name
    );
    assert_eq!(one(&superuser, &open).await, "f");

    // Where its owner is somebody else, a REVOKE by the admin is only a warning: it must be noticed.
    superuser
        .batch_execute(&format!("ALTER DATABASE {} OWNER TO postgres", spec.name))
        .await
        .expect("taken away");
    let error = ground
        .server
        .ensure_database(&spec)
        .await
        .expect_err("not isolated");
    assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_reach_roles_and_suspension_ends_sessions() {
    let ground = Ground::new("life").await;
    let guest = ground.tenant("acme").await;
    let client = ground.client(&guest.login).await;
    assert_eq!(
        one(&client, "SHOW search_path").await,
        format!("{}, tenantry", guest.id)
    );
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
    assert!(
        ground
            .server
            .apply_settings(&ground.database, &guest.id, &stricter)
            .await
            .expect("applied")
    );
    let record = ground
        .server
        .record(&ground.database, &guest.id)
        .await
        .expect("readable")
        .expect("there");
    assert_eq!(record.settings, stricter);
    assert_eq!(
        ground
            .try_client(&guest.login)
            .await
            .expect_err("one session is there")
            .code()
            .expect("code")
            .code(),
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

    let suspended = TenantSettings {
        suspended: true,
        ..stricter.clone()
    };
    assert!(
        ground
            .server
            .apply_settings(&ground.database, &guest.id, &suspended)
            .await
            .expect("suspended")
    );
    until("the session is ended", async || client.is_closed()).await;
    assert_eq!(
        ground
            .try_client(&guest.login)
            .await
            .expect_err("locked")
            .code()
            .expect("code")
            .code(),
        "28000"
    );
    let issued = ground
        .server
        .issue_login(&ground.database, &guest.id, Overlap::Respect)
        .await
        .expect("issued");
    assert!(
        ground
            .try_client(&ground.credentials(&guest.id, &issued))
            .await
            .is_err(),
        "no way in while suspended"
    );

    assert!(
        ground
            .server
            .apply_settings(&ground.database, &guest.id, &stricter)
            .await
            .expect("resumed")
    );
    ground.client(&guest.login).await;
    ground.client(&ground.credentials(&guest.id, &issued)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proof_names_what_is_wrong() {
    let ground = Ground::new("proof").await;
    let (acme, bolt) = (ground.tenant("acme").await, ground.tenant("bolt").await);
    let superuser = ground.superuser().await;
    let (a, b, db) = (&acme.id, &bolt.id, &ground.database);
    for (sql, undo, what) in [
        (
            format!("GRANT CREATE ON SCHEMA {a} TO {a}_rw"),
            format!("REVOKE CREATE ON SCHEMA {a} FROM {a}_rw"),
            "has CREATE on schema",
        ),
        (
            format!("REVOKE USAGE ON SCHEMA {a} FROM {a}_rw"),
            format!("GRANT USAGE ON SCHEMA {a} TO {a}_rw"),
            "lacks USAGE",
        ),
        (
            format!("GRANT TEMPORARY ON DATABASE {db} TO {a}_app_a"),
            format!("REVOKE TEMPORARY ON DATABASE {db} FROM {a}_app_a"),
            "on the database it has TEMPORARY",
        ),
        (
            format!("GRANT CONNECT ON DATABASE {db} TO PUBLIC"),
            format!("REVOKE CONNECT ON DATABASE {db} FROM PUBLIC"),
            "PUBLIC has CONNECT",
        ),
        (
            format!("GRANT USAGE ON SCHEMA {b} TO {a}_rw"),
            format!("REVOKE USAGE ON SCHEMA {b} FROM {a}_rw"),
            "a privilege on schema t_",
        ),
        (
            "GRANT SELECT ON tenantry.outbox TO PUBLIC".to_owned(),
            "REVOKE SELECT ON tenantry.outbox FROM PUBLIC".to_owned(),
            "tenantry's tables outbox",
        ),
        (
            format!("REVOKE EXECUTE ON FUNCTION tenantry.set_usage FROM {db}_tenants"),
            format!("GRANT EXECUTE ON FUNCTION tenantry.set_usage TO {db}_tenants"),
            "lacks EXECUTE on set_usage",
        ),
        (
            "GRANT EXECUTE ON FUNCTION tenantry.count_usage TO PUBLIC".to_owned(),
            "REVOKE EXECUTE ON FUNCTION tenantry.count_usage FROM PUBLIC".to_owned(),
            "what is inside",
        ),
        (
            format!("GRANT {b}_owner TO {a}_rw"),
            format!("REVOKE {b}_owner FROM {a}_rw"),
            "member of",
        ),
        (
            format!("ALTER ROLE {a}_app_a BYPASSRLS"),
            format!("ALTER ROLE {a}_app_a NOBYPASSRLS"),
            "BYPASSRLS",
        ),
        (
            format!("ALTER ROLE {a}_app_a SET search_path = evil"),
            format!(
                "ALTER ROLE {a}_app_a RESET search_path; ALTER ROLE {a}_app_a IN DATABASE {db} SET search_path = {a}, tenantry"
            ),
            "",
        ),
        (
            format!("ALTER ROLE {a}_app_a IN DATABASE {db} SET search_path = evil"),
            format!("ALTER ROLE {a}_app_a IN DATABASE {db} SET search_path = {a}, tenantry"),
            "search_path",
        ),
        (
            format!(
                "UPDATE tenantry.login SET tenant = tenant, name = 'x' WHERE name = '{a}_app_a'"
            ),
            format!("UPDATE tenantry.login SET name = '{a}_app_a' WHERE name = 'x'"),
            "belongs to no live tenant",
        ),
    ] {
        superuser
            .batch_execute(&sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let proof = ground.server.prove(&acme.login).await;
        superuser
            .batch_execute(&undo)
            .await
            .unwrap_or_else(|error| panic!("{undo}: {error:?}"));
        if what.is_empty() {
            // The setting for the database wins: nothing to complain of.
            proof.unwrap_or_else(|error| panic!("{sql}: {error}"));
            continue;
        }
        let error = proof.expect_err(&sql);
        assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
        assert!(error.to_string().contains(what), "{sql}: {error}");
    }
    ground
        .server
        .prove(&acme.login)
        .await
        .expect("all is undone");

    // A tenant may change its own password: the proof says so in a way that code can tell.
    ground
        .client(&acme.login)
        .await
        .batch_execute(&format!("ALTER ROLE {a}_app_a PASSWORD 'mine'"))
        .await
        .expect("its right");
    let error = ground
        .server
        .prove(&acme.login)
        .await
        .expect_err("another password");
    assert_eq!(error.sqlstate(), Some("28P01"), "{error}");
    assert!(!error.to_string().contains(acme.login.password.expose()));
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
    ground
        .server
        .migrate(&ground.database, &guest.id, std::slice::from_ref(&create))
        .await
        .expect("migrated");
    let session = ground.client(&guest.login).await;
    session
        .batch_execute("SELECT record_usage('users', 3, 'x')")
        .await
        .expect("counted");
    let drop_after = Timestamp::now().checked_add(48.hours()).expect("in range");

    for round in ["first", "again"] {
        ground
            .server
            .retain(&ground.database, &guest.id, drop_after)
            .await
            .expect(round);
    }
    until("the session is ended", async || session.is_closed()).await;
    assert_eq!(
        ground
            .try_client(&guest.login)
            .await
            .expect_err("locked")
            .code()
            .expect("code")
            .code(),
        "28P01"
    );
    let record = ground
        .server
        .record(&ground.database, &guest.id)
        .await
        .expect("readable")
        .expect("there");
    let TenantState::Retained { drop_after: kept } = record.state else {
        panic!("{:?}", record.state)
    };
    assert_eq!(kept.as_millisecond(), drop_after.as_millisecond());
    assert_eq!(record.schema, format!("d_{}", guest.id));
    assert!(record.logins.is_empty());

    // Its name is free, and taken again; then it can't come back under it.
    let namesake = ground.tenant_of(&tenant_spec("acme", "second-life")).await;
    let error = ground
        .server
        .restore(&ground.database, &guest.id, "acme", "third-life")
        .await
        .expect_err("taken");
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(
        error.to_string().contains("another tenant of that name"),
        "{error}"
    );
    assert_eq!(
        ground
            .server
            .drop_tenant(&ground.database, &namesake.id)
            .await
            .expect("dropped"),
        DropOutcome::Gone
    );

    let restored = ground
        .server
        .restore(&ground.database, &guest.id, "acme", "third-life")
        .await
        .expect("restored");
    assert_eq!(
        (restored.uid.as_str(), restored.state, &restored.id),
        ("third-life", TenantState::Live, &guest.id)
    );
    ground
        .server
        .restore(&ground.database, &guest.id, "acme", "third-life")
        .await
        .expect("again");
    let issued = ground
        .server
        .issue_login(&ground.database, &guest.id, Overlap::Respect)
        .await
        .expect("issued");
    ground
        .server
        .login_published(&ground.database, &guest.id, issued.slot)
        .await
        .expect("published");
    let login = ground.credentials(&guest.id, &issued);
    ground.server.prove(&login).await.expect("proven");
    let client = ground.client(&login).await;
    assert_eq!(one(&client, "SELECT t FROM note").await, "kept");
    assert_eq!(
        one(&client, "SELECT record_usage('users', 1, 'x')").await,
        "4"
    );
    assert_eq!(
        ground
            .server
            .migrate(&ground.database, &guest.id, &[create])
            .await
            .expect("known")
            .before,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_leaves_nothing_but_unsent_events_and_no_neighbour_notices() {
    let ground = Ground::new("life").await;
    let mut guests = Vec::new();
    for name in ["a", "ab", "a-b"] {
        let guest = ground.tenant(name).await;
        let table = Migration {
            name: "1".into(),
            sql: "CREATE TABLE note (t text); INSERT INTO note VALUES (current_schema)".into(),
            checksum: "1".into(),
        };
        ground
            .server
            .migrate(&ground.database, &guest.id, &[table])
            .await
            .expect("migrated");
        guests.push(guest);
    }
    let (a, ab) = (&guests[0], &guests[1]);
    let client = ground.client(&a.login).await;
    client
        .batch_execute("SELECT record_usage('users', 1, 'x')")
        .await
        .expect("counted");
    // What could hold roles back: large objects, and privileges between neighbours.
    client
        .batch_execute("SELECT lo_create(0)")
        .await
        .expect("a large object");
    let migrator = ground.migrator(ab).await;
    migrator.batch_execute(&format!("GRANT SELECT ON note TO {}_rw; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {}_owner", a.id, a.id)).await.expect("granted");
    // And a large object in a database that is open to all.
    let superuser = ground.superuser().await;
    let elsewhere = format!("{}_open", ground.database);
    superuser
        .batch_execute(&format!("CREATE DATABASE {elsewhere}"))
        .await
        .expect("open");
    let mut outside = a.login.clone();
    outside.database.clone_from(&elsewhere);
    ground
        .client(&outside)
        .await
        .batch_execute("SELECT lo_create(0)")
        .await
        .expect("a large object elsewhere");

    assert_eq!(
        ground
            .server
            .drop_tenant(&ground.database, &a.id)
            .await
            .expect("dropped"),
        DropOutcome::WaitsForEvents(1)
    );
    assert!(roles_and_schemas(&ground, &a.id).await.is_empty());
    let record = ground
        .server
        .record(&ground.database, &a.id)
        .await
        .expect("readable")
        .expect("kept");
    assert_eq!(record.state, TenantState::Dropped { unsent: 1 });
    assert_eq!(
        ground
            .server
            .drop_tenant(&ground.database, &a.id)
            .await
            .expect("again"),
        DropOutcome::WaitsForEvents(1)
    );
    superuser
        .batch_execute("UPDATE tenantry.outbox SET acked_at = now()")
        .await
        .expect("the relay was here");
    assert_eq!(
        ground
            .server
            .drop_tenant(&ground.database, &a.id)
            .await
            .expect("at last"),
        DropOutcome::Gone
    );
    assert_eq!(
        ground
            .server
            .drop_tenant(&ground.database, &a.id)
            .await
            .expect("and again"),
        DropOutcome::Gone
    );
    assert!(
        ground
            .server
            .record(&ground.database, &a.id)
            .await
            .expect("readable")
            .is_none()
    );

    for neighbour in &guests[1..] {
        ground
            .server
            .prove(&neighbour.login)
            .await
            .expect("untouched");
        assert_eq!(
            one(&ground.client(&neighbour.login).await, "SELECT t FROM note").await,
            neighbour.id.as_str()
        );
    }
    let error = ground
        .server
        .drop_database(&ground.database, CLUSTER)
        .await
        .expect_err("in use");
    assert_eq!(error.class(), ErrorClass::Waiting, "{error}");
    for neighbour in &guests[1..] {
        assert_eq!(
            ground
                .server
                .drop_tenant(&ground.database, &neighbour.id)
                .await
                .expect("dropped"),
            DropOutcome::Gone
        );
    }
    drop((superuser, migrator));
    until("the database is dropped", async || {
        ground
            .server
            .drop_database(&ground.database, CLUSTER)
            .await
            .is_ok()
    })
    .await;
    ground
        .server
        .drop_database(&ground.database, CLUSTER)
        .await
        .expect("gone already");
    let list = ground.server.list_databases().await.expect("listed");
    assert!(!list.iter().any(|database| database.name == ground.database));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_schema_is_dropped_in_parts() {
    let postgres = own_server(&[
        ("max_locks_per_transaction", "10"),
        ("max_connections", "20"),
    ]);
    let ground = Ground::on(&postgres, "large").await;
    let guest = ground.tenant("acme").await;
    for part in 0..20 {
        let sql = format!(
            "DO $$ BEGIN FOR i IN 1..60 LOOP EXECUTE format('CREATE TABLE t_%s (i int PRIMARY KEY)', {part} * 100 + i); END LOOP; END $$"
        );
        let file = Migration {
            name: part.to_string(),
            sql,
            checksum: String::new(),
        };
        let files: Vec<_> = (0..part)
            .map(|n| Migration {
                name: n.to_string(),
                sql: String::new(),
                checksum: String::new(),
            })
            .chain([file])
            .collect();
        ground
            .server
            .migrate(&ground.database, &guest.id, &files)
            .await
            .expect("migrated");
    }
    let superuser = ground.superuser().await;
    assert_eq!(
        refused(&superuser, &format!("DROP SCHEMA {} CASCADE", guest.id)).await,
        "53200",
        "too large for one transaction"
    );
    assert_eq!(
        ground
            .server
            .drop_tenant(&ground.database, &guest.id)
            .await
            .expect("dropped"),
        DropOutcome::Gone
    );
    assert!(roles_and_schemas(&ground, &guest.id).await.is_empty());
}

/// The operator is cut off before each message that it sends, or before the answer, and tried
/// again: every operation ends where it would have ended, and leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn cut_off_at_any_point_everything_resumes() {
    for deliver in [false, true] {
        let postgres = shared_server();
        let proxy = Proxy::start(postgres.host().to_owned(), postgres.port()).await;
        let ground = Ground::new("cut").await;
        let through = Server::new(ServerConfig {
            port: proxy.port(),
            ..quick(config(postgres))
        })
        .expect("a good configuration");
        let mut cuts = 0;
        let mut allowed = 0;
        loop {
            let spec = ground.tenant_spec(&format!("cut{allowed}"));
            proxy.cut_after(allowed, deliver);
            let result = whole_life(&through, &ground.database, &spec).await;
            proxy.cut_after(usize::MAX, false);
            match &result {
                Ok(outcome) => assert_eq!(*outcome, DropOutcome::Gone),
                Err(error) => assert_eq!(error.class(), ErrorClass::Transient, "{error}"),
            }
            finish(&ground, &spec).await;
            if result.is_ok() {
                break;
            }
            cuts += 1;
            allowed += 1;
            until("the breaker lets one through", async || {
                through.check().await.is_ok()
            })
            .await;
        }
        println!("cut off {cuts} times on the way through a tenant's life");
        assert!(cuts >= 15, "the cuts reached every step: {cuts}");
    }
}

async fn whole_life(
    server: &Server,
    database: &str,
    spec: &TenantSpec,
) -> tenantry::database::Result<DropOutcome> {
    let (_, issued) = server.create_tenant(database, spec).await?;
    server
        .login_published(database, &spec.id, issued.slot)
        .await?;
    server
        .apply_settings(database, &spec.id, &settings("other"))
        .await?;
    server.retain(database, &spec.id, Timestamp::now()).await?;
    server
        .restore(database, &spec.id, &spec.name, "taken-back")
        .await?;
    server.drop_tenant(database, &spec.id).await
}

/// Goes on from whatever was reached, as the next leader would, to the end.
async fn finish(ground: &Ground, spec: &TenantSpec) {
    let superuser = ground.superuser().await;
    until("the server is done with what it was sent", async || {
        one(&superuser, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tenantry' AND state <> 'idle' AND datname = current_database()").await == "0"
    })
    .await;
    let record = ground
        .server
        .record(&ground.database, &spec.id)
        .await
        .expect("readable");
    match record.map(|record| (record.state, record.uid == spec.uid)) {
        None => assert!(
            roles_and_schemas(ground, &spec.id).await.is_empty(),
            "half a tenant"
        ),
        Some((TenantState::Live, true)) => {
            let (_, issued) = ground
                .server
                .create_tenant(&ground.database, spec)
                .await
                .expect("resumed");
            ground
                .server
                .login_published(&ground.database, &spec.id, issued.slot)
                .await
                .expect("published");
            ground
                .server
                .prove(&ground.credentials(&spec.id, &issued))
                .await
                .expect("proven");
        }
        Some((TenantState::Retained { .. }, _)) => {
            ground
                .server
                .restore(&ground.database, &spec.id, &spec.name, "back")
                .await
                .expect("restored");
        }
        Some(_) => {}
    }
    assert_eq!(
        ground
            .server
            .drop_tenant(&ground.database, &spec.id)
            .await
            .expect("dropped"),
        DropOutcome::Gone
    );
    assert!(
        roles_and_schemas(ground, &spec.id).await.is_empty(),
        "something is left of {}",
        spec.name
    );
}

/// With a breaker that hardly pauses.
fn quick(mut config: ServerConfig) -> ServerConfig {
    config.timeouts.breaker = Duration::from_millis(10);
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_of_the_past_writes_nothing() {
    let ground = Ground::new("fence").await;
    let past = Server::new(config(shared_server())).expect("a good configuration");
    past.set_fence(4);
    ground.server.set_fence(5);
    let guest = ground.tenant("acme").await;
    let error = past
        .apply_settings(&ground.database, &guest.id, &settings("other"))
        .await
        .expect_err("held back");
    assert_eq!(
        (error.class(), error.sqlstate()),
        (ErrorClass::Permanent, Some("TN010")),
        "{error}"
    );
    let error = past
        .set_plan_limits(&ground.database, "smb", &[limit("users", 1, Policy::Hard)])
        .await
        .expect_err("held back");
    assert_eq!(error.sqlstate(), Some("TN010"));
    let error = past
        .create_tenant(&ground.database, &ground.tenant_spec("bolt"))
        .await
        .expect_err("held back");
    assert_eq!(error.sqlstate(), Some("TN010"));
    ground
        .server
        .apply_settings(&ground.database, &guest.id, &settings("other"))
        .await
        .expect("the leader writes");
}
