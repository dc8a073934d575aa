//! The operator's login can read and call, and do nothing else; what isn't so is refused at the start.

use devcluster::{Postgres, PostgresOptions};
use tenantry::metering::ledger::{Ledger, LedgerError};
use tokio_postgres::error::SqlState;

use crate::support::{Ground, OPERATOR, PASSWORD, Source, create, days_ago, now, owner_url, superuser};

fn refused(answer: Result<(), LedgerError>) -> String {
    match answer {
        Err(LedgerError::Refused(text)) => text,
        other => panic!("it is not refused: {other:?}"),
    }
}

/// A column that may be written at all.
async fn column(ground: &Ground, table: &str) -> String {
    let sql = "SELECT quote_ident(attname) FROM pg_attribute WHERE attnum > 0 AND attidentity = ''";
    ground.one(&format!("{sql} AND attrelid = '{table}'::regclass LIMIT 1")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_changes_no_table() {
    let ground = Ground::new().await;
    let mut source = Source::new("t_1", "users", days_ago(40));
    ground.ingest(&[source.count(1, now())]).await;
    ground.ledger.check().await.expect("as it must be");
    let tables: Vec<String> = ground
        .one("SELECT array_agg(oid::regclass::text) FROM pg_class WHERE relnamespace = 'ledger'::regnamespace AND relkind IN ('r', 'p')")
        .await;
    assert!(tables.len() > 50, "{tables:?}");
    let operator = ground.operator().await;
    for table in &tables {
        for sql in [
            format!("INSERT INTO {table} DEFAULT VALUES"),
            format!("UPDATE {table} SET {} = DEFAULT", column(&ground, table).await),
            format!("DELETE FROM {table}"),
            format!("TRUNCATE {table}"),
            format!("DROP TABLE {table}"),
            format!("ALTER TABLE {table} DISABLE TRIGGER ALL"),
            format!("REINDEX TABLE {table}"),
        ] {
            let error = operator.batch_execute(&sql).await.expect_err(&sql);
            assert_eq!(error.code().map(SqlState::code), Some("42501"), "{sql}: {error}");
        }
    }
    for sql in [
        "SELECT ledger.hold('{t_1}', '{users}', '{Level}', '{Database}', '{1}', NULL, NULL)",
        "CREATE TABLE ledger.mine ()",
        "CREATE FUNCTION ledger.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DROP SCHEMA ledger CASCADE",
        "SET ROLE tenantry_admin",
    ] {
        let error = operator.batch_execute(sql).await.expect_err(sql);
        assert_eq!(error.code().map(SqlState::code), Some("42501"), "{sql}: {error}");
    }
    for table in ["event", "period", "day", "adjustment", "placement", "quarantine", "period_state"] {
        operator.batch_execute(&format!("SELECT * FROM ledger.{table}")).await.expect("it may read");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_with_more_rights_is_refused_with_words() {
    let ground = Ground::new().await;
    let postgres = ground.postgres;
    let ledger = |url: &str| Ledger::new(url, 1).expect("a ledger");
    let text = refused(ledger(&owner_url(postgres, &ground.database)).check().await);
    assert!(text.contains("which owns the ledger") && text.contains("tenantry ledger migrate"), "{text}");
    let root = postgres.url("postgres", postgres.superuser_password(), &ground.database);
    let text = refused(ledger(&root).check().await);
    assert!(text.contains("is a superuser"), "{text}");
    let version: i32 = ground.one("SELECT current_setting('server_version_num')::int").await;
    // A privilege that came with PostgreSQL 17: to lock a table, and to rewrite its indexes.
    let maintain = (version >= 170_000).then_some((
        "GRANT MAINTAIN ON ledger.period TO",
        "may MAINTAIN ledger.period",
        "REVOKE MAINTAIN ON ledger.period FROM",
    ));
    let others = [
        (
            "GRANT UPDATE (delta) ON ledger.event TO",
            "may UPDATE ledger.event",
            "REVOKE UPDATE (delta) ON ledger.event FROM",
        ),
        ("GRANT DELETE ON ledger.period TO", "may DELETE ledger.period", "REVOKE DELETE ON ledger.period FROM"),
        ("GRANT CREATE ON SCHEMA ledger TO", "may make objects", "REVOKE CREATE ON SCHEMA ledger FROM"),
    ];
    for (grant, words, revoke) in others.into_iter().chain(maintain) {
        let owner = ground.owner().await;
        owner.batch_execute(&format!("{grant} {OPERATOR}")).await.expect("granted");
        let text = refused(ground.ledger.check().await);
        assert!(text.contains(words), "{text}");
        owner.batch_execute(&format!("{revoke} {OPERATOR}")).await.expect("revoked");
        ground.ledger.check().await.expect("good again");
    }
    let owner = ground.owner().await;
    owner.batch_execute(&format!("REVOKE EXECUTE ON FUNCTION ledger.keep() FROM {OPERATOR}")).await.expect("revoked");
    let text = refused(ground.ledger.check().await);
    assert!(text.contains("may not call ledger.keep()") && text.contains("tenantry ledger migrate"), "{text}");
    Ledger::migrate(&owner_url(postgres, &ground.database), OPERATOR, None).await.expect("migrated again");
    ground.ledger.check().await.expect("good again");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_says_what_it_is() {
    let ground = Ground::new().await;
    let silent: Vec<String> = ground
        .one(
            "SELECT array_remove(array_agg(CASE WHEN obj_description(oid, 'pg_class') IS NULL THEN relname::text END), NULL)
               FROM pg_class WHERE relnamespace = 'ledger'::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition",
        )
        .await;
    assert!(silent.is_empty(), "no COMMENT: {silent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_must_fit() {
    let ground = Ground::new().await;
    let url = owner_url(ground.postgres, &ground.database);
    let owner = ground.owner().await;
    owner.batch_execute("UPDATE ledger.migration SET functions = 'others'").await.expect("changed");
    let text = refused(ground.ledger.check().await);
    assert!(text.contains("tenantry ledger migrate"), "{text}");
    Ledger::migrate(&url, OPERATOR, None).await.expect("migrated again");
    ground.ledger.check().await.expect("good again");
    owner.batch_execute("INSERT INTO ledger.migration (version, functions) VALUES (99, '')").await.expect("newer");
    for text in [refused(ground.ledger.check().await), refused(Ledger::migrate(&url, OPERATOR, None).await)] {
        assert!(text.contains("version 99") && text.contains("newer"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_says_what_it_lacks_and_does_all_or_nothing() {
    let settings = vec![("max_connections".to_owned(), "20".to_owned())];
    let postgres =
        Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).expect("PostgreSQL starts");
    create(&postgres, "books", "template1").await;
    let url = owner_url(&postgres, "books");
    let operator = Ledger::new(&postgres.url("op's", PASSWORD, "books"), 1).expect("a ledger");
    assert!(refused(operator.check().await).contains("op's"));
    let text = refused(Ledger::migrate(&url, "op's", None).await);
    assert!(text.contains("CREATE ROLE \"op's\""), "{text}");
    let client = superuser(&postgres, "books").await;
    let there = client.query_one("SELECT to_regnamespace('ledger') IS NOT NULL", &[]).await.expect("a row");
    assert!(!there.get::<_, bool>(0), "half of it is there");
    let text = refused(Ledger::migrate(&url, &postgres.admin().user, None).await);
    assert!(text.contains("one of its own"), "{text}");
    // Two at a time, as two pods do.
    let both =
        futures::join!(Ledger::migrate(&url, "op's", Some(PASSWORD)), Ledger::migrate(&url, "op's", Some(PASSWORD)));
    assert_eq!(both, (Ok(()), Ok(())));
    operator.check().await.expect("good");
    let stranger = Ledger::new(&postgres.url("op's", "wrong", "books"), 1).expect("a ledger");
    let text = refused(stranger.check().await);
    assert!(text.contains("op's") && !text.contains("wrong"), "{text}");
    let nothing = Ledger::new(&postgres.url("op's", PASSWORD, "postgres"), 1).expect("a ledger");
    assert!(refused(nothing.check().await).contains("no schema ledger"));
}

#[test]
fn the_program_migrates_and_never_shows_a_password() {
    let postgres = Postgres::start(PostgresOptions::default()).expect("PostgreSQL starts");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(create(&postgres, "books", "template1"));
    let url = postgres.url(OPERATOR, PASSWORD, "books");
    let run = |owner: &str| {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_tenantry"));
        program.args(["ledger", "migrate"]).env("TENANTRY_LEDGER_OWNER_URL", owner).env("TENANTRY_LEDGER_URL", &url);
        let output = program.output().expect("it runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, said) = run(&owner_url(&postgres, "nowhere"));
    assert!(!done && said.contains("nowhere") && !said.contains(&postgres.admin().password), "{said}");
    for _ in 0..2 {
        let (done, said) = run(&owner_url(&postgres, "books"));
        assert!(done, "{said}");
    }
    let ledger = Ledger::new(&url, 1).expect("a ledger");
    assert_eq!(runtime.block_on(ledger.check()), Ok(()));
}
