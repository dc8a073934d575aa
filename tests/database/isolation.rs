//! Tenant A against tenant B in one database, as its application and as its migration login.
//! What A can do that it could wish it couldn't is the table in docs/security.md, no more, no less.

use std::collections::BTreeMap;

use tenantry::database::Migration;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::probes::{PROBES, Probe};
use crate::support::{Ground, Guest, connect, one, refused};

/// What B has: each marker is something that A should not read.
const SECRETS: &str = "
    CREATE TABLE payroll (id serial PRIMARY KEY, salary_of_ceo int DEFAULT 4711 CHECK (salary_of_ceo <> 666));
    COMMENT ON TABLE payroll IS 'comment-of-b';
    INSERT INTO payroll (salary_of_ceo) SELECT g FROM generate_series(1000, 1999) AS g;
    CREATE VIEW merger AS SELECT 'merger-with-zeta' AS plan FROM payroll;
    CREATE FUNCTION valuation() RETURNS text LANGUAGE sql AS $$ SELECT 'valuation-of-b' $$;
    CREATE PROCEDURE liquidate() LANGUAGE sql AS $$ DELETE FROM payroll $$;
    CREATE TYPE stage AS ENUM ('stage-of-b');
    CREATE INDEX payroll_high ON payroll (salary_of_ceo) WHERE salary_of_ceo > 1950;";

/// Runs a probe in a transaction that is rolled back.
async fn done(client: &Client, probe: &Probe, fill: &impl Fn(&str) -> String) -> bool {
    let sql = fill(probe.sql);
    // What PostgreSQL allows in no transaction is refused before that, or it would stay.
    let alone = sql.contains(" DATABASE ") || sql.starts_with("BEGIN");
    let sql = if alone { sql } else { format!("BEGIN; {sql}") };
    let answer = client.simple_query(&sql).await;
    client.batch_execute("ROLLBACK").await.expect("rolled back");
    match (answer, probe.marker) {
        (Err(error), _) => {
            let code = error.code().unwrap_or_else(|| panic!("{}: {error:?}", probe.key)).code().to_owned();
            // Refused for want of a privilege, by a limit, or by the probe's own division: not for a
            // mistake in the probe.
            let refusals = ["42501", "53400", "22012"];
            assert!(refusals.contains(&code.as_str()), "{}: {error:?}", probe.key);
            false
        }
        (Ok(_), None) => true,
        (Ok(messages), Some(marker)) => {
            let marker = fill(marker);
            messages.iter().any(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    (0..row.len()).filter_map(|at| row.get(at)).any(|text| text.contains(&marker))
                }
                _ => false,
            })
        }
    }
}

/// The rows of the table in docs/security.md: key, then yes or no for each of the two logins.
fn documented() -> BTreeMap<String, [bool; 2]> {
    let text = include_str!("../../docs/security.md");
    let table = text.split("<!-- leaks -->").nth(1).expect("the table's marks");
    let yes = |cell: &str| match cell {
        "yes" => true,
        "no" => false,
        other => panic!("{other:?} in docs/security.md: expected yes or no"),
    };
    table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 5, "{line}");
            assert!(cells[4].len() > 10, "what to do about it: {line}");
            (cells[0].trim_matches('`').to_owned(), [yes(cells[2]), yes(cells[3])])
        })
        .collect()
}

async fn hosts_and_guests() -> (Ground, Guest, Guest) {
    let ground = Ground::new("iso").await;
    let (a, b) = (ground.tenant("acme").await, ground.tenant("bolt").await);
    let file = Migration { name: "1".into(), sql: SECRETS.into(), checksum: "1".into() };
    ground.server.migrate(&ground.database, &b.id, &[file]).await.expect("B has something to hide");
    (ground, a, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaks_is_what_the_documentation_says() {
    let (ground, a, b) = hosts_and_guests().await;
    let superuser = ground.superuser().await;
    superuser.batch_execute(&format!("ANALYZE {}.payroll", b.id)).await.expect("analyzed");

    let of_b = ground.client(&b.login).await;
    let large_object = one(&of_b, "SELECT lo_from_bytea(0, 'large-of-b')").await;
    let pid = one(&of_b, "SELECT pg_backend_pid()").await;
    of_b.batch_execute("SET application_name = 'app-of-b'; SELECT record_usage('users', 3, 'b-user'); SELECT pg_advisory_lock(42); SELECT pg_stat_force_next_flush(); BEGIN; SELECT 'query-of-b'")
        .await
        .expect("B works");

    let mut observed: BTreeMap<String, [bool; 2]> = BTreeMap::new();
    let clients = [ground.client(&a.login).await, ground.migrator(&a).await];
    for (at, client) in clients.iter().enumerate() {
        let own = one(client, "SELECT session_user").await;
        let fill = |text: &str| {
            text.replace("{a}", a.id.as_str())
                .replace("{b}", b.id.as_str())
                .replace("{db}", &ground.database)
                .replace("{lo}", &large_object)
                .replace("{pid}", &pid)
                .replace("session_user PASSWORD", &format!("{own} PASSWORD"))
        };
        for probe in PROBES {
            if done(client, probe, &fill).await {
                observed.entry(probe.key.to_owned()).or_default()[at] = true;
            }
        }
    }
    let documented = documented();
    let undocumented: Vec<_> = observed.iter().filter(|(key, who)| documented.get(*key) != Some(*who)).collect();
    let imagined: Vec<_> = documented.iter().filter(|(key, who)| observed.get(*key) != Some(*who)).collect();
    assert!(undocumented.is_empty() && imagined.is_empty(), "observed {undocumented:?}, documented {imagined:?}");

    // B noticed nothing.
    of_b.batch_execute("COMMIT").await.expect("B works on");
    assert_eq!(
        one(&of_b, "SELECT count(*) || '/' || min(salary_of_ceo) || '/' || max(salary_of_ceo) FROM payroll").await,
        "1000/1000/1999"
    );
    assert_eq!(one(&of_b, "SELECT value FROM my_limits() WHERE meter = 'users'").await, "3");
    assert_eq!(one(&of_b, &format!("SELECT convert_from(lo_get({large_object}), 'UTF8')")).await, "large-of-b");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_database_is_open_to_a_tenant() {
    let (ground, a, _) = hosts_and_guests().await;
    let other = Ground::new("iso").await;
    let migrator = format!("{}_mig", a.id);
    ground.migrator(&a).await;
    for database in [other.database.as_str(), "postgres", "template1"] {
        for (user, password) in [(a.login.username.as_str(), a.login.password.expose()), (migrator.as_str(), "test")] {
            let error = connect(&ground.host, ground.port, user, password, database).await.expect_err(database);
            assert_eq!(error.code().expect("refused").code(), "42501", "{user} in {database}");
        }
    }
}

/// A's session can't hold up what the operator does for B, or for all.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_holds_locks_holds_up_nobody() {
    let (ground, a, b) = hosts_and_guests().await;
    let of_a = ground.client(&a.login).await;
    // Every advisory lock that the operator or a framework might like, and its own counter.
    of_a.batch_execute(
        "SELECT pg_advisory_lock(g) FROM generate_series(-50, 50) AS g; BEGIN; SELECT record_usage('users', 1, 'x')",
    )
    .await
    .expect("locked");
    ground.server.ensure_database(&ground.spec()).await.expect("not held up");
    ground.tenant("cool").await;
    ground.server.sweep(&ground.database).await.expect("not held up");
    let of_b = ground.client(&b.login).await;
    assert_eq!(one(&of_b, "SELECT record_usage('users', 1, 'x')").await, "1");
    ground.server.drop_tenant(&ground.database, &b.id).await.expect("not held up");
    ground.server.retain(&ground.database, &a.id, jiff::Timestamp::now()).await.expect("not even for itself");
}

/// An object in a tenant's own schema that is called like one that the operator uses.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenant_makes_is_never_run_by_the_operator() {
    let (ground, a, _) = hosts_and_guests().await;
    let trap = Migration {
        name: "trap".into(),
        sql: "CREATE TABLE trapped (who text);
              CREATE FUNCTION has_schema_privilege(text, text) RETURNS boolean LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO trapped VALUES (session_user); RETURN true; END $$;
              CREATE FUNCTION count(text) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint';
              CREATE FUNCTION record_migration(text, text) RETURNS void LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO trapped VALUES (session_user); END $$;
              CREATE FUNCTION hold_fence(bigint) RETURNS void LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO trapped VALUES (session_user); END $$;
              CREATE TABLE tenant (i int); CREATE TABLE login (i int);"
            .into(),
        checksum: "1".into(),
    };
    ground.server.migrate(&ground.database, &a.id, &[trap]).await.expect("its own business");
    ground.server.prove(&a.login).await.expect("proven");
    ground.server.sweep(&ground.database).await.expect("swept");
    ground.server.records(&ground.database).await.expect("read");
    let of_a = ground.client(&a.login).await;
    assert_eq!(one(&of_a, "SELECT pg_catalog.count(*) FROM trapped").await, "0");
    assert_eq!(refused(&of_a, "SELECT set_usage('nothing', 1, 'x')").await, "TN002");
    ground.server.drop_tenant(&ground.database, &a.id).await.expect("dropped");
}
