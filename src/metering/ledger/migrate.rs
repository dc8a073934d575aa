//! Making the ledger's tables, and finding out whether they and a login's rights are as they must be.

use std::time::Duration;

use data_encoding::HEXLOWER;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use postgres_protocol::password;
use sha2::{Digest as _, Sha256};
use tokio_postgres::Client;

use super::session::{Address, Sessions, answer, classed};
use super::types::LedgerError;

/// The versions of the tables, the first one first. What is released is never changed: add a file.
const VERSIONS: [&str; 1] = [include_str!("001_tables.sql")];
/// Loaded at each migration.
const FUNCTIONS: [&str; 2] = [include_str!("functions.sql"), include_str!("upkeep.sql")];

/// What the operator's login may call. Nothing else of the ledger writes.
const CALLABLE: [&str; 10] =
    ["ingest", "mark", "report", "register", "depart", "define", "open_periods", "close_periods", "set_aside", "keep"];

/// For one step of a migration; the server ends it sooner.
const PATIENCE: Duration = Duration::from_secs(330);

const MIGRATE: &str = "can't migrate the ledger";

/// What a login may do that it must not, and what it lacks, as sentences without their subject.
const RIGHTS: &str = "
    WITH me AS (SELECT r.* FROM pg_roles r WHERE r.rolname = current_user),
    tables AS (SELECT c.oid, c.oid::regclass::text AS name, c.relkind FROM pg_class c
                WHERE c.relnamespace = 'ledger'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S'))
    SELECT ARRAY(
        SELECT 'is a superuser' FROM me WHERE rolsuper
        UNION ALL SELECT 'may make roles (CREATEROLE), and so become any' FROM me WHERE rolcreaterole
        UNION ALL SELECT 'may replicate (REPLICATION)' FROM me WHERE rolreplication
        UNION ALL SELECT DISTINCT format('is or can become %I, which owns the ledger', o.rolname)
                    FROM (SELECT relowner AS owner FROM pg_class WHERE relnamespace = 'ledger'::regnamespace
                          UNION SELECT nspowner FROM pg_namespace WHERE nspname = 'ledger'
                          UNION SELECT datdba FROM pg_database WHERE datname = current_database()) AS w
                    JOIN pg_roles o ON o.oid = w.owner WHERE pg_has_role(current_user, o.oid, 'MEMBER')
        UNION ALL SELECT format('is a member of %s', o.rolname) FROM pg_roles o
                   WHERE o.rolname IN ('pg_write_all_data', 'pg_execute_server_program', 'pg_write_server_files')
                     AND pg_has_role(current_user, o.oid, 'MEMBER')
        UNION ALL SELECT 'may make objects in schema ledger' WHERE has_schema_privilege('ledger', 'CREATE')
        UNION ALL SELECT format('may %s %s', p.what, t.name) FROM tables t
                    CROSS JOIN unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER'] ||
                               CASE WHEN current_setting('server_version_num')::int >= 170000
                                    THEN ARRAY['MAINTAIN'] ELSE '{}'::text[] END) AS p (what)
                   WHERE CASE WHEN t.relkind = 'S' THEN false
                              WHEN p.what IN ('INSERT', 'UPDATE') THEN has_any_column_privilege(t.oid, p.what)
                              ELSE has_table_privilege(t.oid, p.what) END
        UNION ALL SELECT format('may change sequence %s', t.name) FROM tables t
                   WHERE CASE t.relkind WHEN 'S' THEN has_sequence_privilege(t.oid, 'UPDATE') ELSE false END
        UNION ALL SELECT format('may call %s', f.oid::regprocedure) FROM pg_proc f
                   WHERE f.pronamespace = 'ledger'::regnamespace AND f.provolatile = 'v' AND f.proname <> ALL ($1)
                     AND has_function_privilege(f.oid, 'EXECUTE')),
      ARRAY(
        SELECT format('may not read %s', t.name) FROM tables t
         WHERE (t.relkind IN ('p', 'v') OR t.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = t.oid))
           AND NOT has_table_privilege(t.oid, 'SELECT')
        UNION ALL SELECT format('may not call %s', f.oid::regprocedure) FROM pg_proc f
                   WHERE f.pronamespace = 'ledger'::regnamespace AND f.proname = ANY ($1)
                     AND NOT has_function_privilege(f.oid, 'EXECUTE'))";

fn functions_digest() -> String {
    HEXLOWER.encode(&Sha256::digest(FUNCTIONS.concat()))
}

fn version() -> i32 {
    i32::try_from(VERSIONS.len()).expect("few")
}

fn too_new(found: i32) -> LedgerError {
    LedgerError::Refused(format!(
        "its tables are of version {found}, this program knows {}: run the newer tenantry that migrated them",
        version()
    ))
}

/// Makes or upgrades the tables, and gives a login its rights.
pub(super) async fn migrate(owner_url: &str, login: &str, password: Option<&str>) -> Result<(), LedgerError> {
    if login.is_empty() || login.len() > 63 {
        return Err(LedgerError::Refused(format!("{login:?} is no login: use 1 to 63 characters")));
    }
    let address = Address::parse(owner_url)?;
    if address.user() == login {
        return Err(LedgerError::Refused(format!(
            "owner and operator have one login, {login}: give the operator one of its own, which can't change what must never change"
        )));
    }
    let client = address.connect().await?;
    let setup = "SET search_path = pg_catalog; SET statement_timeout = '300s'; SET lock_timeout = '30s'";
    run(&client, setup).await?;
    run(&client, "BEGIN").await?;
    // One at a time: nobody but the operator's processes logs in here.
    run(&client, "SELECT pg_advisory_xact_lock(7236837462513001)").await?;
    let there = one(&client, "SELECT to_regclass('ledger.migration') IS NOT NULL").await? == "t";
    let applied = match there {
        true => one(&client, "SELECT coalesce(max(version), 0) FROM ledger.migration").await?.parse().unwrap_or(0),
        false => 0,
    };
    if applied > version() {
        return Err(too_new(applied));
    }
    let digest = functions_digest();
    for (sql, number) in VERSIONS.iter().zip(1..).skip(usize::try_from(applied).unwrap_or(0)) {
        run(&client, sql).await?;
        run(&client, &format!("INSERT INTO ledger.migration (version, functions) VALUES ({number}, '{digest}')"))
            .await?;
    }
    run(&client, &FUNCTIONS.concat()).await?;
    run(&client, &format!("UPDATE ledger.migration SET functions = '{digest}' WHERE version = {}", version())).await?;
    run(&client, "SELECT ledger.keep()").await?;
    grant(&client, login, password).await?;
    run(&client, "COMMIT").await
}

async fn grant(client: &Client, login: &str, password: Option<&str>) -> Result<(), LedgerError> {
    let name = escape_identifier(login);
    let known = format!("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = {})", escape_literal(login));
    if one(client, &known).await? != "t" {
        let Some(password) = password else {
            return Err(LedgerError::Refused(format!(
                "there is no login {login}, and its URL has no password to make it with: add one, or run CREATE ROLE {name} LOGIN PASSWORD '…'"
            )));
        };
        if one(client, "SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = current_user").await? != "t" {
            return Err(LedgerError::Refused(format!(
                "there is no login {login}, and the owner may not make one: run CREATE ROLE {name} LOGIN PASSWORD '…' as an administrator"
            )));
        }
        let verifier = escape_literal(&password::scram_sha_256(password.as_bytes()));
        run(client, &format!("CREATE ROLE {name} LOGIN NOINHERIT CONNECTION LIMIT 50 PASSWORD {verifier}")).await?;
    }
    let database = one(client, "SELECT quote_ident(current_database())").await?;
    let names = CALLABLE.map(escape_literal).join(", ");
    let sql = format!(
        "GRANT CONNECT ON DATABASE {database} TO {name};
         REVOKE ALL ON SCHEMA ledger FROM PUBLIC, {name};
         GRANT USAGE ON SCHEMA ledger TO {name};
         REVOKE ALL ON ALL TABLES IN SCHEMA ledger FROM PUBLIC, {name};
         REVOKE ALL ON ALL SEQUENCES IN SCHEMA ledger FROM PUBLIC, {name};
         REVOKE ALL ON ALL FUNCTIONS IN SCHEMA ledger FROM PUBLIC, {name};
         DO $$
         DECLARE
             what text;
         BEGIN
             FOR what IN SELECT format('GRANT SELECT ON %s TO %I', c.oid::regclass, {login}) FROM pg_class c
                          WHERE c.relnamespace = 'ledger'::regnamespace AND c.relkind IN ('r', 'p', 'v')
                            AND NOT c.relispartition
             LOOP EXECUTE what; END LOOP;
             FOR what IN SELECT format('GRANT EXECUTE ON FUNCTION %s TO %I', f.oid::regprocedure, {login}) FROM pg_proc f
                          WHERE f.pronamespace = 'ledger'::regnamespace AND (f.proname IN ({names}) OR f.provolatile <> 'v')
             LOOP EXECUTE what; END LOOP;
         END
         $$",
        login = escape_literal(login),
    );
    run(client, &sql).await
}

/// Whether the tables are of this program's version, and the login has the rights that it needs and no others.
pub(super) async fn check(sessions: &Sessions) -> Result<(), LedgerError> {
    let doing = "can't look at the ledger";
    let user = sessions.address.user();
    let rows = sessions.query(
        doing,
        "SELECT has_schema_privilege(n.oid, 'USAGE') FROM pg_namespace n WHERE n.nspname = 'ledger'",
        &[],
    );
    let usable: Option<bool> = rows.await?.first().map(|row| row.get(0));
    match usable {
        None => {
            let text = "its database has no schema ledger: run `tenantry ledger migrate`";
            return Err(LedgerError::Refused(text.to_owned()));
        }
        Some(false) => {
            return Err(LedgerError::Refused(format!(
                "login {user} has no rights there: run `tenantry ledger migrate` with its URL"
            )));
        }
        Some(true) => {}
    }
    let sql = "SELECT version, functions FROM ledger.migration ORDER BY version DESC LIMIT 1";
    let rows = sessions.query(doing, sql, &[]).await?;
    let (found, functions): (i32, String) = rows.first().map(|row| (row.get(0), row.get(1))).unwrap_or_default();
    if found > version() {
        return Err(too_new(found));
    }
    if found < version() || functions != functions_digest() {
        return Err(LedgerError::Refused(format!(
            "its tables and functions are those of another version ({found} of {}): run `tenantry ledger migrate` of this one",
            version()
        )));
    }
    let callable: Vec<&str> = CALLABLE.to_vec();
    let rows = sessions.query(doing, RIGHTS, &[(&callable, tokio_postgres::types::Type::TEXT_ARRAY)]).await?;
    let (more, less): (Vec<String>, Vec<String>) = rows.first().map(|row| (row.get(0), row.get(1))).unwrap_or_default();
    if !more.is_empty() {
        return Err(LedgerError::Refused(format!(
            "login {user} {}: use a login without attributes or memberships that `tenantry ledger migrate` gave its rights",
            some(&more)
        )));
    }
    if !less.is_empty() {
        return Err(LedgerError::Refused(format!(
            "login {user} {}: run `tenantry ledger migrate` with its URL",
            some(&less)
        )));
    }
    Ok(())
}

fn some(all: &[String]) -> String {
    let shown = all.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    if all.len() > 3 { format!("{shown} and {} more", all.len() - 3) } else { shown }
}

async fn run(client: &Client, sql: &str) -> Result<(), LedgerError> {
    let running = tokio::time::timeout(PATIENCE, client.batch_execute(sql)).await;
    let ran = running.map_err(|_| LedgerError::Away(format!("{MIGRATE}: no answer within {PATIENCE:?}")))?;
    ran.map_err(|error| classed(MIGRATE, &error))
}

async fn one(client: &Client, sql: &str) -> Result<String, LedgerError> {
    let messages = answer(MIGRATE, client.simple_query(sql)).await?.map_err(|error| classed(MIGRATE, &error))?;
    let row = messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(row.unwrap_or_default().to_owned())
}
