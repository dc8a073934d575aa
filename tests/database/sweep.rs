//! What tenants and strangers changed is found and repaired; long transactions are ended.

use std::time::Duration;

use tenantry::database::{EndReason, Overlap, OverlapTimes, TenantSettings};

use crate::support::{Ground, one, own_server, settings, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_database_needs_no_repair() {
    let ground = Ground::new("sweep").await;
    ground.tenant("acme").await;
    let suspended = ground.tenant("bolt").await;
    let off = TenantSettings { suspended: true, ..settings("smb") };
    ground.server.apply_settings(&ground.database, &suspended.id, &off).await.expect("suspended");
    let retained = ground.tenant("cool").await;
    ground.server.retain(&ground.database, &retained.id, jiff::Timestamp::now()).await.expect("retained");
    let report = ground.server.sweep(&ground.database).await.expect("swept");
    assert_eq!((report.repaired, report.unrepaired), (vec![], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_is_put_right_and_reported() {
    // Of its own: another test's watchdog would end the migration login's session, once closed.
    let postgres = own_server(&[]);
    let ground = Ground::on(&postgres, "sweep").await;
    let (acme, bolt) = (ground.tenant("acme").await, ground.tenant("bolt").await);
    let (a, b, db) = (acme.id.as_str(), bolt.id.as_str(), ground.database.as_str());
    // Made and granted as the tenant's own migration login, where it can.
    let migrator = ground.migrator(&acme).await;
    let client = ground.client(&acme.login).await;
    let superuser = ground.superuser().await;
    // A login of a person's, and a tenant of another database of the operator's.
    let other = Ground::on(&postgres, "other").await;
    let elsewhere = other.tenant("elsewhere").await.id;
    superuser.batch_execute("CREATE ROLE stranger LOGIN").await.expect("made");
    ground.server.sweep(db).await.expect("the test's own opening of the migration login is repaired");

    let granted = |what: &str| format!("SELECT {what}");
    // Memberships are granted as the admin's own: from PostgreSQL 16 on it can revoke no others.
    for (who, change, still, says) in [
        (
            &client,
            format!("ALTER ROLE {a}_app_a SET statement_timeout = 0"),
            granted(&format!(
                "EXISTS (SELECT FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole WHERE rolname = '{a}_app_a' AND setdatabase = 0)"
            )),
            "settings of its own",
        ),
        (
            &client,
            format!("ALTER ROLE {a}_app_a IN DATABASE {db} SET search_path = evil"),
            granted(&format!(
                "EXISTS (SELECT FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole WHERE rolname = '{a}_app_a' AND 'search_path=evil' = ANY (setconfig))"
            )),
            "search_path=evil",
        ),
        (
            &client,
            format!("ALTER ROLE {a}_app_a IN DATABASE postgres SET work_mem = '1GB'"),
            granted(&format!(
                "EXISTS (SELECT FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole JOIN pg_database d ON d.oid = s.setdatabase WHERE rolname = '{a}_app_a' AND datname = 'postgres')"
            )),
            "in database \"postgres\"",
        ),
        (
            &superuser,
            format!("GRANT {a}_app_a TO {b}_app_a GRANTED BY tenantry_admin"),
            granted(&format!(
                "EXISTS (SELECT FROM pg_auth_members WHERE roleid = '{a}_app_a'::regrole AND member = '{b}_app_a'::regrole)"
            )),
            "was a member of",
        ),
        (
            &migrator,
            format!("GRANT USAGE ON SCHEMA {a} TO {b}_rw"),
            granted(&format!("has_schema_privilege('{b}_rw', '{a}', 'USAGE')")),
            "had USAGE on schema",
        ),
        (
            &migrator,
            format!("GRANT ALL ON SCHEMA {a} TO PUBLIC"),
            granted(&format!("has_schema_privilege('public', '{a}', 'USAGE')")),
            "PUBLIC had",
        ),
        (
            &migrator,
            format!("GRANT CREATE ON SCHEMA {a} TO {a}_rw"),
            granted(&format!("has_schema_privilege('{a}_rw', '{a}', 'CREATE')")),
            "had CREATE on schema",
        ),
        (
            &migrator,
            format!("REVOKE USAGE ON SCHEMA {a} FROM {a}_rw"),
            granted(&format!("NOT has_schema_privilege('{a}_rw', '{a}', 'USAGE')")),
            "no USAGE on its schema",
        ),
        (
            &client,
            "GRANT SELECT ON LARGE OBJECT {lo} TO PUBLIC".to_owned(),
            granted(
                "EXISTS (SELECT FROM pg_largeobject_metadata WHERE oid = {lo} AND lomacl::text LIKE '%{=r/%' OR lomacl::text LIKE '%,=r/%')",
            ),
            "large object",
        ),
        (
            &superuser,
            format!("GRANT {b}_owner TO {a}_rw GRANTED BY tenantry_admin"),
            granted(&format!("pg_has_role('{a}_rw', '{b}_owner', 'MEMBER')")),
            "was a member of",
        ),
        (
            &superuser,
            format!("GRANT {db}_tenants TO stranger GRANTED BY tenantry_admin"),
            granted(&format!("pg_has_role('stranger', '{db}_tenants', 'MEMBER')")),
            "stranger was a member of",
        ),
        (
            &superuser,
            format!("GRANT {db}_tenants TO {elsewhere}_rw GRANTED BY tenantry_admin"),
            granted(&format!("pg_has_role('{elsewhere}_rw', '{db}_tenants', 'MEMBER')")),
            "was a member of",
        ),
        (
            &superuser,
            format!("GRANT {a}_rw TO {a}_app_a WITH ADMIN OPTION GRANTED BY tenantry_admin"),
            granted(&format!(
                "EXISTS (SELECT FROM pg_auth_members WHERE roleid = '{a}_rw'::regrole AND member = '{a}_app_a'::regrole AND admin_option)"
            )),
            "ADMIN OPTION",
        ),
        (
            &superuser,
            format!("REVOKE {a}_rw FROM {a}_app_a GRANTED BY tenantry_admin"),
            granted(&format!("NOT pg_has_role('{a}_app_a', '{a}_rw', 'MEMBER')")),
            "no member of",
        ),
        (
            &superuser,
            format!("GRANT TEMPORARY ON DATABASE {db} TO PUBLIC"),
            granted(&format!("has_database_privilege('public', '{db}', 'TEMPORARY')")),
            "PUBLIC had TEMPORARY on database",
        ),
        (
            &superuser,
            format!("GRANT CREATE ON DATABASE {db} TO {a}_owner"),
            granted(&format!("has_database_privilege('{a}_owner', '{db}', 'CREATE')")),
            "had CREATE on database",
        ),
        (
            &superuser,
            "GRANT SELECT ON tenantry.meter TO PUBLIC".to_owned(),
            granted("has_table_privilege('public', 'tenantry.meter', 'SELECT')"),
            "tenantry.meter",
        ),
        (
            &superuser,
            format!("GRANT UPDATE (value) ON tenantry.meter TO {a}_rw"),
            granted(&format!("has_column_privilege('{a}_rw', 'tenantry.meter', 'value', 'UPDATE')")),
            "tenantry.meter",
        ),
        (
            &superuser,
            format!("GRANT EXECUTE ON FUNCTION tenantry.hold_fence TO {db}_tenants"),
            granted(&format!("has_function_privilege('{db}_tenants', 'tenantry.hold_fence(bigint)', 'EXECUTE')")),
            "hold_fence",
        ),
        (
            &superuser,
            format!("REVOKE EXECUTE ON FUNCTION tenantry.my_limits FROM {db}_tenants"),
            granted(&format!("NOT has_function_privilege('{db}_tenants', 'tenantry.my_limits()', 'EXECUTE')")),
            "lacked privileges",
        ),
        (
            &superuser,
            "GRANT USAGE ON SCHEMA public TO PUBLIC".to_owned(),
            granted("has_schema_privilege('public', 'public', 'USAGE')"),
            "schema public",
        ),
        (
            &superuser,
            format!("ALTER ROLE {a}_app_a CONNECTION LIMIT -1"),
            granted(&format!("(SELECT rolconnlimit = -1 FROM pg_roles WHERE rolname = '{a}_app_a')")),
            "connection limit of -1",
        ),
        (
            &superuser,
            format!("ALTER ROLE {a}_app_b LOGIN"),
            granted(&format!("(SELECT rolcanlogin FROM pg_roles WHERE rolname = '{a}_app_b')")),
            "could log in",
        ),
        (
            &superuser,
            format!("ALTER ROLE {a}_app_a NOLOGIN"),
            granted(&format!("(SELECT NOT rolcanlogin FROM pg_roles WHERE rolname = '{a}_app_a')")),
            "could not log in",
        ),
        (
            &superuser,
            format!("ALTER ROLE {a}_owner LOGIN"),
            granted(&format!("(SELECT rolcanlogin FROM pg_roles WHERE rolname = '{a}_owner')")),
            "could log in",
        ),
        (
            &superuser,
            format!("COMMENT ON ROLE {a}_app_a IS NULL"),
            granted(&format!("shobj_description('{a}_app_a'::regrole, 'pg_authid') IS NULL")),
            "another comment",
        ),
    ] {
        let object = if change.contains("{lo}") { one(who, "SELECT lo_create(0)").await } else { String::new() };
        let (change, still) = (change.replace("{lo}", &object), still.replace("{lo}", &object));
        who.batch_execute(&change).await.unwrap_or_else(|error| panic!("{change}: {error:?}"));
        assert_eq!(one(&superuser, &still).await, "t", "the change is there: {change}");
        let report = ground.server.sweep(db).await.unwrap_or_else(|error| panic!("{change}: {error}"));
        assert_eq!(one(&superuser, &still).await, "f", "repaired: {change}: {report:?}");
        assert!(report.repaired.iter().any(|finding| finding.what.contains(says)), "{change}: {report:?}");
        let report = ground.server.sweep(db).await.expect("swept");
        assert_eq!((report.repaired, report.unrepaired), (vec![], vec![]), "once is enough: {change}");
    }
    ground.server.prove(&acme.login).await.expect("as new");
    ground.server.prove(&bolt.login).await.expect("as new");

    // What only a person can repair is said each time.
    superuser.batch_execute(&format!("DROP SCHEMA {a} CASCADE; ALTER ROLE {b}_app_a CREATEDB")).await.expect("damaged");
    for _ in 0..2 {
        let report = ground.server.sweep(db).await.expect("swept");
        let about: Vec<_> = report.unrepaired.iter().filter_map(|finding| finding.id.clone()).collect();
        assert!(about.contains(&acme.id) && about.contains(&bolt.id), "{report:?}");
    }
}

/// From PostgreSQL 16 on nobody but a superuser can revoke what a superuser granted.
#[tokio::test(flavor = "multi_thread")]
async fn a_membership_that_a_superuser_granted_holds_up_no_other_repair() {
    let postgres = own_server(&[]);
    let ground = Ground::on(&postgres, "sweep").await;
    let (acme, bolt) = (ground.tenant("acme").await, ground.tenant("bolt").await);
    let (a, b, db) = (acme.id.as_str(), bolt.id.as_str(), ground.database.as_str());
    let superuser = ground.superuser().await;
    let splits_memberships = ground.server.check().await.expect("looked").version >= 160_000;
    let login = format!("SELECT rolcanlogin FROM pg_roles WHERE rolname = '{b}_app_b'");
    for grant in [
        format!("GRANT {b}_rw TO {a}_rw"),
        format!("GRANT {db}_tenants TO {b}_rw WITH ADMIN OPTION"),
        "GRANT pg_read_all_data TO tenantry_owner".to_owned(),
    ] {
        superuser.batch_execute(&format!("{grant}; ALTER ROLE {b}_app_b LOGIN")).await.expect("changed");
        let report = ground.server.sweep(db).await.unwrap_or_else(|error| panic!("{grant}: {error}"));
        assert_eq!(one(&superuser, &login).await, "f", "{grant}: {report:?}");
        if splits_memberships {
            let [finding] = report.unrepaired.as_slice() else { panic!("{grant}: {report:?}") };
            let (_, revoke) = finding.what.split_once("as a superuser run: ").expect("what to do");
            superuser.batch_execute(revoke).await.unwrap_or_else(|error| panic!("{revoke}: {error:?}"));
        } else {
            assert_eq!((report.repaired.len(), report.unrepaired), (2, vec![]), "{grant}: {:?}", report.repaired);
        }
        let report = ground.server.sweep(db).await.expect("swept");
        assert_eq!((report.repaired, report.unrepaired), (vec![], vec![]), "once is enough: {grant}");
    }
    // A membership may be there, and without the option that it is for.
    if splits_memberships {
        for (option, role, member) in [("INHERIT", "rw", "app_a"), ("SET", "owner", "mig")] {
            let revoke = format!("REVOKE {option} OPTION FOR {a}_{role} FROM {a}_{member} GRANTED BY tenantry_admin");
            superuser.batch_execute(&revoke).await.expect("revoked");
            let report = ground.server.sweep(db).await.expect("swept");
            assert_eq!((report.repaired.len(), report.unrepaired), (1, vec![]), "{revoke}: {:?}", report.repaired);
            let report = ground.server.sweep(db).await.expect("swept");
            assert_eq!((report.repaired, report.unrepaired), (vec![], vec![]), "once is enough: {revoke}");
        }
    }
    ground.server.prove(&acme.login).await.expect("as new");
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_costs_the_same_for_one_tenant_and_for_many() {
    let ground = Ground::new("sweep").await;
    let first = ground.tenant("first").await;
    let count = async || {
        let before = ground.server.statistics().statements;
        ground.server.sweep(&ground.database).await.expect("swept");
        ground.server.records(&ground.database).await.expect("read");
        ground
            .server
            .close_logins(&ground.database, None, OverlapTimes::default(), Overlap::Respect)
            .await
            .expect("looked");
        ground.server.watchdog().await.expect("looked");
        ground.server.set_plan_limits(&ground.database, "smb", &[]).await.expect("set");
        ground.server.statistics().statements - before
    };
    let one = count().await;
    for number in 0..25 {
        ground.tenant(&format!("tenant-{number}")).await;
    }
    let superuser = ground.superuser().await;
    superuser.batch_execute(&format!("ALTER ROLE {}_app_b LOGIN", first.id)).await.expect("something to find");
    assert!(!ground.server.sweep(&ground.database).await.expect("swept").repaired.is_empty());
    assert_eq!(count().await, one);
    println!("sweep, records, closing logins, watchdog, limits: {one} statements for any number of tenants");
}

/// A hostile tenant lifts every timeout that it can, and is ended all the same.
#[tokio::test(flavor = "multi_thread")]
async fn long_transactions_are_ended_and_others_are_not() {
    // The watchdog sees the whole server: on a shared one, another test's round may be the one that ends a session.
    let postgres = own_server(&[]);
    let ground = Ground::on(&postgres, "watch").await;
    let (acme, bolt) = (ground.tenant("acme").await, ground.tenant("bolt").await);
    let short = TenantSettings { max_transaction: Some(Duration::from_millis(300)), ..settings("smb") };
    ground.server.apply_settings(&ground.database, &acme.id, &short).await.expect("applied");
    let lift = "SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0; ";
    let (idle, busy) = (ground.client(&acme.login).await, ground.client(&acme.login).await);
    let (quiet, neighbour) = (ground.client(&acme.login).await, ground.client(&bolt.login).await);
    idle.batch_execute(&format!("{lift} BEGIN; SELECT record_usage('users', 1, 'x')")).await.expect("begun");
    busy.batch_execute(lift).await.expect("lifted");
    quiet.batch_execute("SELECT 1").await.expect("no transaction is open here");
    neighbour.batch_execute("BEGIN; SELECT record_usage('users', 1, 'x')").await.expect("begun");
    let sleeping = tokio::spawn(async move { busy.batch_execute("SELECT pg_sleep(60)").await });

    let mut ended = Vec::new();
    until("both are ended", async || {
        ended.extend(
            ground.server.watchdog().await.expect("looked").into_iter().filter(|session| session.id == acme.id),
        );
        ended.len() >= 2
    })
    .await;
    assert_eq!(ended.len(), 2, "{ended:?}");
    for session in &ended {
        assert_eq!((&session.username, &session.database), (&acme.login.username, &ground.database));
        assert!(
            matches!(session.reason, EndReason::LongTransaction(age) if age >= Duration::from_millis(300)),
            "{session:?}"
        );
    }
    until("the idle session is gone", async || idle.is_closed()).await;
    sleeping.await.expect("joined").expect_err("ended in its sleep");
    quiet.batch_execute("SELECT record_usage('users', 1, 'x')").await.expect("works on");
    neighbour.batch_execute("COMMIT").await.expect("its own limit is longer");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_closed_logins_are_ended() {
    // The watchdog sees the whole server: on a shared one, another test's round may be the one that ends a session.
    let postgres = own_server(&[]);
    let ground = Ground::on(&postgres, "watch").await;
    let acme = ground.tenant("acme").await;
    let client = ground.client(&acme.login).await;
    let superuser = ground.superuser().await;
    // As left by an operator that died between closing the login and ending its sessions.
    superuser.batch_execute(&format!("ALTER ROLE {} NOLOGIN", acme.login.username)).await.expect("closed");
    let mut reasons = Vec::new();
    until("it is ended", async || {
        let ended = ground.server.watchdog().await.expect("looked");
        reasons.extend(ended.into_iter().filter(|session| session.id == acme.id).map(|session| session.reason));
        client.is_closed()
    })
    .await;
    assert_eq!(reasons, [EndReason::LoginClosed]);
}
