//! The operator's own database of usage, in the demo's PostgreSQL.

use std::path::Path;
use std::process::Command;

use super::complete;
use crate::plane::boot;
use crate::{Error, Postgres};

/// The database.
const DATABASE: &str = "tenantry_ledger";
/// Who makes and upgrades its tables.
const OWNER: &str = "tenantry_ledger_owner";
/// Who the operator is in it.
const LOGIN: &str = "tenantry_ledger";

/// Makes the ledger as a database administrator would; the operator's URL of it.
pub(super) fn create(postgres: &Postgres, tenantry: &Path) -> Result<String, Error> {
    let (owner_password, password) = (word(), word());
    let statements = [
        format!("CREATE ROLE {OWNER} LOGIN PASSWORD '{owner_password}'"),
        format!("CREATE ROLE {LOGIN} LOGIN PASSWORD '{password}'"),
        format!("CREATE DATABASE {DATABASE} OWNER {OWNER}"),
        format!("REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC"),
    ];
    boot::blocking(async {
        let mut config = tokio_postgres::Config::new();
        // On this machine alone.
        config.host("127.0.0.1").port(postgres.port()).user("postgres").password(postgres.superuser_password());
        config.dbname("postgres").ssl_mode(tokio_postgres::config::SslMode::Disable);
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(|error| failed(&error))?;
        tokio::spawn(connection);
        for statement in &statements {
            client.batch_execute(statement).await.map_err(|error| failed(&error))?;
        }
        Ok(())
    })?;
    let url = postgres.url(LOGIN, &password, DATABASE);
    let mut migrate = Command::new(tenantry);
    migrate.args(["ledger", "migrate"]);
    migrate.env("TENANTRY_LEDGER_OWNER_URL", postgres.url(OWNER, &owner_password, DATABASE));
    migrate.env("TENANTRY_LEDGER_URL", &url);
    complete(&mut migrate)?;
    Ok(url)
}

/// A password that needs no quoting.
fn word() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn failed(error: &tokio_postgres::Error) -> Error {
    let text = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
    Error::Missing { what: format!("the ledger can't be made: {text}"), hint: "see postgres.log".into() }
}
