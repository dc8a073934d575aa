//! What another owner made is never adopted, and what is not isolated is never taken for it.

use std::time::{Duration, Instant};

use tenantry::{
    database::{ErrorClass, Policy, Purpose, Server},
    term::Term,
};

use crate::lifecycle::roles_and_schemas;
use crate::support::{CLUSTER, Ground, config, limit, one, settings, shared_server, tenant_spec};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_of_the_past_writes_nothing() {
    let term = |number| {
        let term = Term::of_standby();
        term.begin(number, Instant::now() + Duration::from_secs(3_600));
        term
    };
    let server = |term: &Term| Server::within(config(shared_server()), term.clone()).expect("a good configuration");
    let (earlier, later) = (term(4), term(5));
    let (past, present) = (server(&earlier), server(&later));
    let ground = Ground::with(shared_server(), past.clone(), "fence").await;
    let guest = ground.tenant("acme").await;
    // One that leads now holds it back before it has written anything of its own.
    present.fence(&ground.database).await.expect("a later number");
    let error = past.apply_settings(&ground.database, &guest.id, &settings("other")).await.expect_err("held back");
    assert_eq!((error.class(), error.sqlstate()), (ErrorClass::Transient, Some("TN010")), "{error}");
    assert_eq!(earlier.until_overtaken().await, 5, "whoever renews the lease is told");
    let error =
        past.set_plan_limits(&ground.database, "smb", &[limit("users", 1, Policy::Hard)]).await.expect_err("held back");
    assert_eq!(error.sqlstate(), Some("TN010"));
    let error = past.create_tenant(&ground.database, &ground.tenant_spec("bolt")).await.expect_err("held back");
    assert_eq!(error.sqlstate(), Some("TN010"));
    let error = past.fence(&ground.database).await.expect_err("held back");
    assert_eq!(error.sqlstate(), Some("TN010"));
    present.apply_settings(&ground.database, &guest.id, &settings("other")).await.expect("the leader writes");

    // One whose lease began anew goes on above what the database has seen.
    earlier.begin(6, Instant::now() + Duration::from_secs(3_600));
    past.fence(&ground.database).await.expect("a later number");
    past.apply_settings(&ground.database, &guest.id, &settings("smb")).await.expect("the leader writes");
    let error = present.apply_settings(&ground.database, &guest.id, &settings("other")).await.expect_err("held back");
    assert_eq!(error.sqlstate(), Some("TN010"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_once_a_term_is_over() {
    let term = Term::of_standby();
    let server = Server::within(config(shared_server()), term.clone()).expect("a good configuration");
    let error = server.check().await.expect_err("not begun");
    assert_eq!((error.class(), server.statistics().connections), (ErrorClass::Transient, 0), "{error}");
    term.begin(1, Instant::now() + Duration::from_secs(3_600));
    server.check().await.expect("begun");
    let sent = server.statistics();
    term.end();
    server.check().await.expect_err("over");
    assert_eq!(server.statistics(), sent, "not on a connection that stands either");
}
