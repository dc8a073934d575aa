//! An upgrade of the server under its tenants, by `pg_upgrade`.

use std::path::PathBuf;

use devcluster::PostgresOptions;
use jiff::{Timestamp, ToSpan};
use tenantry::database::{DropOutcome, ErrorClass, LoginState, Migration, Overlap, OverlapTimes, TenantSettings};

use crate::lifecycle::roles_and_schemas;
use crate::support::{Ground, Guest, one, own_server, rows, settings};

const AFTER: &str = "PG_BIN_AFTER";

/// From the version of `PG_BIN` to that of `PG_BIN_AFTER`: all that the operator does to tenants
/// goes on, after the one statement that it asks a superuser for.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the programs of two versions of PostgreSQL: set PG_BIN and PG_BIN_AFTER to their folders"]
async fn the_operator_goes_on_after_an_upgrade() {
    let after = std::env::var_os(AFTER).unwrap_or_else(|| panic!("{AFTER} is not set"));
    let mut postgres = own_server(&[]);
    let ground = Ground::on(&postgres, "old").await;
    let superuser = ground.superuser().await;
    let once = "GRANT SET ON PARAMETER temp_file_limit TO tenantry_admin;
                REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1 FROM PUBLIC;
                GRANT CONNECT ON DATABASE postgres TO tenantry_admin";
    superuser.batch_execute(once).await.expect("as documented");
    let before = ground.server.check().await.expect("good").version;
    let (acme, bolt, cool) = (ground.tenant("acme").await, ground.tenant("bolt").await, ground.tenant("cool").await);
    let table = Migration {
        name: "1".into(),
        sql: "CREATE TABLE people (id int); INSERT INTO people VALUES (1), (2)".into(),
        checksum: "1".into(),
    };
    for guest in [&acme, &bolt, &cool] {
        ground.server.migrate(&ground.database, &guest.id, std::slice::from_ref(&table)).await.expect("migrated");
    }
    let client = ground.client(&acme.login).await;
    client.batch_execute("SELECT record_usage('users', 2, 'import')").await.expect("counted");
    let relay = ground.server.ensure_relay(&ground.database, None).await.expect("made").expect("a way in");
    ground.server.retain(&ground.database, &bolt.id, Timestamp::now() + 240.hours()).await.expect("retained");
    drop((client, superuser));

    postgres.upgrade(&PathBuf::from(after), &PostgresOptions::default()).expect("upgraded");
    let superuser = ground.superuser().await;
    if before < 160_000 {
        let error = ground.server.check().await.expect_err("the keeper's turn");
        assert_eq!(error.class(), ErrorClass::Permanent);
        let text = error.to_string();
        let (_, grant) = text.split_once("as a superuser run: ").expect("what to do");
        let documented = include_str!("../../docs/security.md");
        assert!(documented.contains(&grant.replace('"', "")), "{grant} is not what docs/security.md says");
        superuser.batch_execute(grant).await.expect("granted");
    }
    let info = ground.server.check().await.expect("good");
    assert!(info.version > before, "{} after {before}", info.version);
    assert_eq!(info.advice, Vec::<String>::new());

    goes_on(&ground, &acme).await;
    // Back into use, and away.
    ground.server.restore(&ground.database, &bolt.id, "bolt", "another").await.expect("restored");
    let issued = ground.server.issue_login(&ground.database, &bolt.id, Overlap::Respect).await.expect("issued");
    let login = ground.credentials(&bolt.id, &issued);
    ground.server.prove(&login).await.expect("proven");
    let fingerprint = relay.password.digest();
    let anew = ground.server.ensure_relay(&ground.database, Some(&fingerprint)).await.expect("looked");
    assert_eq!(anew, None, "it is as it was");
    ground.server.keep_outbox(&ground.database).await.expect("kept");
    assert_eq!(ground.server.drop_tenant(&ground.database, &cool.id).await.expect("dropped"), DropOutcome::Gone);
    assert_eq!(roles_and_schemas(&ground, &cool.id).await, Vec::<String>::new());

    // What is made now is as if nothing had been before.
    let fresh = Ground::on(&postgres, "new").await;
    let dune = fresh.tenant("dune").await;
    goes_on(&fresh, &dune).await;
    let elm = ground.tenant("elm").await;
    ground.server.prove(&elm.login).await.expect("proven");
    for (ground, guest) in [(&ground, &acme), (&ground, &bolt), (&ground, &elm), (&fresh, &dune)] {
        ground.server.drop_tenant(&ground.database, &guest.id).await.expect("dropped");
        assert_eq!(roles_and_schemas(ground, &guest.id).await, Vec::<String>::new());
    }
    let left =
        "SELECT r.rolname FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.roleid WHERE r.rolname LIKE 't\\_%'";
    assert_eq!(rows(&superuser, left).await, Vec::<String>::new(), "memberships of nobody");
}

/// What the operator does to a tenant, as its life goes on.
async fn goes_on(ground: &Ground, guest: &Guest) {
    let (database, id) = (ground.database.as_str(), &guest.id);
    ground.server.ensure_database(&ground.spec()).await.expect("up to date");
    ground.server.prove(&guest.login).await.expect("proven");
    let report = ground.server.sweep(database).await.expect("swept");
    assert_eq!((report.repaired, report.unrepaired), (vec![], vec![]), "nothing differs");
    let old = ground.client(&guest.login).await;
    let value: i64 = one(&old, "SELECT record_usage('users', 1, 'more')").await.parse().expect("a number");

    // A rotation that ends the old login's sessions.
    let issued = ground.server.issue_login(database, id, Overlap::Respect).await.expect("issued");
    let login = ground.credentials(id, &issued);
    ground.server.prove(&login).await.expect("proven");
    ground.server.login_published(database, id, issued.slot).await.expect("published");
    ground.server.close_logins(database, None, OverlapTimes::default(), Overlap::Cut).await.expect("closed");
    old.batch_execute("SELECT 1").await.expect_err("ended");
    let record = ground.server.record(database, id).await.expect("readable").expect("there");
    let open: Vec<_> = record.logins.iter().filter(|login| login.state == LoginState::Current).collect();
    assert_eq!(open.len(), 1, "{:?}", record.logins);

    let more = Migration { name: "2".into(), sql: "CREATE TABLE more (id int)".into(), checksum: "2".into() };
    let first = Migration { name: "1".into(), sql: "CREATE TABLE people (id int)".into(), checksum: "1".into() };
    ground.server.migrate(database, id, &[first, more]).await.expect("migrated");
    let client = ground.client(&login).await;
    client.batch_execute("INSERT INTO more VALUES (1); INSERT INTO people VALUES (3)").await.expect("its own tables");
    let counted = "SELECT value FROM my_limits() WHERE meter = 'users'";
    assert_eq!(one(&client, counted).await, value.to_string());

    // What a tenant may undo is put right; what it may not is as it was.
    client.batch_execute("ALTER ROLE session_user SET statement_timeout = 0").await.expect("its right");
    let report = ground.server.sweep(database).await.expect("swept");
    assert_eq!((report.repaired.len(), report.unrepaired), (1, vec![]), "{:?}", report.repaired);
    for (suspended, ok) in [(true, false), (false, true)] {
        let wanted = TenantSettings { suspended, ..settings("smb") };
        ground.server.apply_settings(database, id, &wanted).await.expect("applied");
        assert_eq!(ground.try_client(&login).await.is_ok(), ok, "suspended: {suspended}");
    }
    ground.server.watchdog().await.expect("watched");
    ground.server.prove(&login).await.expect("proven");
}
