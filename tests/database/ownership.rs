//! What another owner made is never adopted, and what is not isolated is never taken for it.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tenantry::{
    database::{ErrorClass, Migration, Overlap, Policy, Purpose, Server},
    term::Term,
};

use crate::lifecycle::roles_and_schemas;
use crate::support::{CLUSTER, Ground, Guest, config, limit, one, rows, settings, shared_server, tenant_spec, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_another_owner_made_is_never_adopted() {
    let ground = Ground::new("life").await;
    let acme = ground.tenant("acme").await;

    // Another Tenant of the same name.
    let namesake = tenant_spec("acme", "another-uid");
    let error = ground.server.create_tenant(&ground.database, &namesake).await.expect_err("taken");
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(error.to_string().contains(&acme.record.uid), "{error}");
    assert!(roles_and_schemas(&ground, &namesake.id).await.is_empty(), "nothing was left behind");

    // A schema, or a role, that has no record.
    let superuser = ground.superuser().await;
    for (name, sql) in [("bolt", "CREATE SCHEMA {id}"), ("cool", "CREATE ROLE {id}_owner")] {
        let spec = ground.tenant_spec(name);
        superuser.batch_execute(&sql.replace("{id}", spec.id.as_str())).await.expect("somebody was here");
        let error = ground.server.create_tenant(&ground.database, &spec).await.expect_err("foreign");
        assert_eq!(error.class(), ErrorClass::Permanent);
        assert!(error.to_string().contains("somebody else's"), "{error}");
        assert_eq!(roles_and_schemas(&ground, &spec.id).await.len(), 1, "untouched");
    }

    // The same database for another cluster, another purpose, and one that a person made.
    let mut other_cluster = ground.spec();
    other_cluster.cluster_id = "99999999-0000-4000-8000-000000000000".to_owned();
    let mut other_pool = ground.spec();
    other_pool.purpose = Purpose::Dedicated("mega".to_owned());
    let mut persons = ground.spec();
    persons.name = format!("{}_persons", ground.database);
    superuser.batch_execute(&format!("CREATE DATABASE {}", persons.name)).await.expect("made by hand");
    let mut persons_closed = ground.spec();
    persons_closed.name = format!("{}_closed", ground.database);
    let closed = &persons_closed.name;
    superuser.batch_execute(&format!("CREATE DATABASE {closed}")).await.expect("made by hand");
    superuser.batch_execute(&format!("REVOKE CONNECT ON DATABASE {closed} FROM PUBLIC")).await.expect("closed");
    for (spec, why) in [
        (other_cluster, CLUSTER),
        (other_pool, "Pool"),
        (persons.clone(), "no record of an owner"),
        (persons_closed, "somebody else"),
    ] {
        let error = ground.server.ensure_database(&spec).await.expect_err("foreign");
        assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
        assert!(error.to_string().contains(why) && error.to_string().contains(&spec.name), "{error}");
    }
    let error = ground.server.drop_database(&persons.name, CLUSTER).await.expect_err("foreign");
    assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
    let listed = ground.server.list_databases().await.expect("listed");
    assert!(!listed.iter().any(|database| database.name == persons.name));
    let ours = listed.iter().find(|database| database.name == ground.database).expect("ours");
    let mark = ours.mark.as_ref().expect("marked");
    assert_eq!((mark.cluster_id.as_str(), &mark.purpose), (CLUSTER, &Purpose::Pool(ground.database.clone())));
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_names_are_refused_before_anything_is_made() {
    let ground = Ground::new("life").await;
    for name in ["", "Upper", "a b", "1st", "pg_mine", "with\"quote", &"x".repeat(49)] {
        let mut spec = ground.spec();
        spec.name = (*name).to_owned();
        let error = ground.server.ensure_database(&spec).await.expect_err("unusable");
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
    ground.server.ensure_database(&spec).await.expect("finished");
    let limit = format!("SELECT datconnlimit FROM pg_database WHERE datname = '{}'", spec.name);
    assert_eq!(one(&superuser, &limit).await, "77");

    superuser
        .batch_execute(&format!("GRANT CONNECT, TEMPORARY ON DATABASE {} TO PUBLIC", spec.name))
        .await
        .expect("opened");
    ground.server.ensure_database(&spec).await.expect("closed again");
    let open = format!(
        "SELECT has_database_privilege('public', '{0}', 'CONNECT') OR has_database_privilege('public', '{0}', 'TEMP')",
        spec.name
    );
    assert_eq!(one(&superuser, &open).await, "f");

    // Where its owner is somebody else, a REVOKE by the admin is only a warning: it must be noticed.
    superuser.batch_execute(&format!("ALTER DATABASE {} OWNER TO postgres", spec.name)).await.expect("taken away");
    let error = ground.server.ensure_database(&spec).await.expect_err("not isolated");
    assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
}

/// A term of leadership that has begun.
fn term(number: u64) -> Term {
    let term = Term::of_standby();
    term.begin(number, Instant::now() + Duration::from_secs(3_600));
    term
}

/// The server as a leader has it.
fn server_of(term: &Term, cluster: &str) -> Server {
    Server::within(config(shared_server()), term.clone(), cluster).expect("a good configuration")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_of_the_past_writes_nothing() {
    let server = |term: &Term| server_of(term, CLUSTER);
    let (earlier, later) = (term(4), term(5));
    let (past, present) = (server(&earlier), server(&later));
    let ground = Ground::with(shared_server(), past.clone(), "fence").await;
    let guest = ground.tenant("acme").await;
    // One that leads now holds it back before it has written anything of its own.
    present.fence(&ground.database, &HashSet::new()).await.expect("a later number");
    let error = past.apply_settings(&ground.database, &guest.id, &settings("other")).await.expect_err("held back");
    assert_eq!((error.class(), error.sqlstate()), (ErrorClass::Transient, Some("TN010")), "{error}");
    assert_eq!(earlier.until_overtaken().await, 5, "whoever renews the lease is told");
    let error =
        past.set_plan_limits(&ground.database, "smb", &[limit("users", 1, Policy::Hard)]).await.expect_err("held back");
    assert_eq!(error.sqlstate(), Some("TN010"));
    let error = past.create_tenant(&ground.database, &ground.tenant_spec("bolt")).await.expect_err("held back");
    assert_eq!(error.sqlstate(), Some("TN010"));
    let error = past.fence(&ground.database, &HashSet::new()).await.expect_err("held back");
    assert_eq!(error.sqlstate(), Some("TN010"));
    present.apply_settings(&ground.database, &guest.id, &settings("other")).await.expect("the leader writes");

    // One whose lease began anew goes on above what the database has seen.
    earlier.begin(6, Instant::now() + Duration::from_secs(3_600));
    past.fence(&ground.database, &HashSet::new()).await.expect("a later number");
    past.apply_settings(&ground.database, &guest.id, &settings("smb")).await.expect("the leader writes");
    let error = present.apply_settings(&ground.database, &guest.id, &settings("other")).await.expect_err("held back");
    assert_eq!(error.sqlstate(), Some("TN010"));
}

/// The number is raised by whatever a new leader does first, and then it may be interrupted.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_of_the_pasts_migration_is_ended_also_where_the_number_is_known_already() {
    let (past, present) = (server_of(&term(1), CLUSTER), server_of(&term(2), CLUSTER));
    let ground = Ground::with(shared_server(), past.clone(), "fence").await;
    let (acme, bolt) = (ground.tenant("acme").await, ground.tenant("bolt").await);
    let superuser = ground.superuser().await;
    let blocker = ground.superuser().await;
    blocker.batch_execute("SELECT pg_advisory_lock(4711)").await.expect("a lock");
    let sql = "SELECT pg_advisory_xact_lock_shared(4711)".to_owned();
    let file = Migration { name: "001.sql".to_owned(), sql, checksum: "1".to_owned() };
    let migrate = |server: &Server, guest: &Guest| {
        let (server, database, id) = (server.clone(), ground.database.clone(), guest.id.clone());
        let files = [Migration { sql: format!("SET LOCAL lock_timeout = 0; {}", file.sql), ..file.clone() }];
        tokio::spawn(async move { server.migrate(&database, &id, &files).await })
    };
    let waits = async |guest: &Guest| {
        let waiting = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = '{}_mig' AND wait_event_type = 'Lock'",
            guest.id
        );
        until("it runs", async || one(&superuser, &waiting).await == "1").await;
    };
    let old = migrate(&past, &acme);
    waits(&acme).await;
    present.apply_settings(&ground.database, &bolt.id, &settings("other")).await.expect("the leader writes");
    let ours = migrate(&present, &bolt);
    waits(&bolt).await;
    assert_eq!(one(&superuser, "SELECT fence FROM tenantry.database").await, "2");

    present.fence(&ground.database, &HashSet::from([bolt.id.clone()])).await.expect("held back");
    let error = old.await.expect("no panic").expect_err("ended");
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    assert_eq!(one(&superuser, "SELECT count(*) FROM tenantry.migration").await, "0");
    blocker.batch_execute("SELECT pg_advisory_unlock(4711)").await.expect("let go");
    assert_eq!(ours.await.expect("no panic").expect("its own migration goes on").applied, ["001.sql"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_whose_database_was_taken_over_changes_nothing_whatever_it_remembers() {
    const NEW: &str = "11111111-0000-4000-8000-000000000000";
    // It led for long; the new cluster counts its own leaders. One without an election is no better.
    let old = server_of(&term(900), CLUSTER);
    let lonely = server_of(&Term::unlimited(), CLUSTER);
    let new = server_of(&term(1), NEW);
    let ground = Ground::with(shared_server(), old.clone(), "taken").await;
    let database = &ground.database;
    let guest = ground.tenant("acme").await;
    let listed = new.list_databases().await.expect("listed");
    let record = listed.iter().find(|it| it.name == *database).expect("listed");
    new.take_over(record, CLUSTER, NEW).await.expect("taken over");
    let superuser = ground.superuser().await;
    let all = format!(
        "SELECT d::text FROM tenantry.database d UNION ALL SELECT t::text FROM tenantry.tenant t \
         UNION ALL SELECT l::text FROM tenantry.login l UNION ALL SELECT l::text FROM tenantry.meter_limit l \
         UNION ALL SELECT rolname || rolcanlogin FROM pg_roles WHERE rolname LIKE '{0}%' \
         UNION ALL SELECT nspname FROM pg_namespace WHERE nspname LIKE '%{1}'",
        guest.id,
        &guest.id.as_str()[2..]
    );
    let before = rows(&superuser, &all).await;
    for old in [&old, &lonely] {
        let refused = [
            old.retain(database, &guest.id, Timestamp::MAX).await.err(),
            old.apply_settings(database, &guest.id, &settings("other")).await.err(),
            old.set_plan_limits(database, "smb", &[limit("users", 1, Policy::Hard)]).await.err(),
            old.create_tenant(database, &ground.tenant_spec("bolt")).await.err(),
            old.issue_login(database, &guest.id, Overlap::Cut).await.err(),
            old.drop_tenant(database, &guest.id).await.err(),
            old.drop_due(database, &guest.id, Timestamp::now()).await.err(),
        ];
        for (at, error) in refused.into_iter().enumerate() {
            let error = error.unwrap_or_else(|| panic!("number {at} is not refused"));
            assert_eq!((error.class(), error.sqlstate()), (ErrorClass::Permanent, Some("TN011")), "{at}: {error}");
        }
        let error = old.drop_database(database, CLUSTER).await.expect_err("refused");
        assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
    }
    old.fence(database, &HashSet::new()).await.expect_err("refused");
    assert_eq!(rows(&superuser, &all).await, before);
    // The new one is held back by nobody.
    new.fence(database, &HashSet::new()).await.expect("its first number");
    new.apply_settings(database, &guest.id, &settings("other")).await.expect("the leader writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_once_a_term_is_over() {
    let term = Term::of_standby();
    let server = server_of(&term, CLUSTER);
    let error = server.check().await.expect_err("not begun");
    assert_eq!((error.class(), server.statistics().connections), (ErrorClass::Transient, 0), "{error}");
    term.begin(1, Instant::now() + Duration::from_secs(3_600));
    server.check().await.expect("begun");
    let sent = server.statistics();
    term.end();
    server.check().await.expect_err("over");
    assert_eq!(server.statistics(), sent, "not on a connection that stands either");
}
