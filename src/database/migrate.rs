//! An application's own tables: versioned SQL files, each with its record in one transaction.

use tokio_postgres::error::{DbError, ErrorPosition};
use tokio_postgres::types::Type;

use super::error::{Error, ErrorClass, Result};
use super::identity::{Password, TenantId};
use super::logins::close_where;
use super::pool::{Login, Silence};
use super::records::read_live;
use super::server::{Endpoint, Server};
use super::sql::{Script, ident, literal};
use super::tenants::{end_sessions, expect_one};
use super::types::{AppliedMigration, Migrated, Migration};

impl Server {
    /// Runs the migrations that have not run, in order, as the tenant's owner. Each is one
    /// transaction together with its record: nothing of a file that fails stays. A failure names
    /// file, line where the server tells it, SQLSTATE and message.
    ///
    /// A statement may take any time; only a lock that somebody else holds is waited for no longer
    /// than [`Timeouts::migration_lock`](super::Timeouts::migration_lock). If the process dies, the
    /// server notices and gives the file up.
    pub async fn migrate(&self, database: &str, id: &TenantId, migrations: &[Migration]) -> Result<Migrated> {
        // Before a login is opened, which would stay so for as long as a place is waited for.
        let _place = self.pool.migration().await?;
        let mut connection = self.connect(database).await?;
        let record = read_live(&mut connection, id).await?;
        let todo = pending(&record.migrations, migrations)?;
        let mut outcome = Migrated { applied: Vec::new(), before: migrations.len() - todo.len() };
        if todo.is_empty() {
            return Ok(outcome);
        }
        let busy = || Error::waiting(format!("a migration of tenant {id} is still running"));
        let _running = self.begin_migration(id).ok_or_else(busy)?;
        let migrator = id.migrator();
        let doing = format!("can't open migration login {migrator}");
        let rows = connection
            .query(&doing, "SELECT FROM pg_stat_activity WHERE usename::text = $1", &[(&migrator, Type::TEXT)])
            .await?;
        if !rows.is_empty() {
            return Err(busy());
        }
        let password = Password::random();
        let mut open = Script::new();
        open.add(expect_one(
            &format!(
                "UPDATE tenantry.login SET state = 'Pending', since = clock_timestamp() WHERE name = {}",
                literal(&migrator)
            ),
            "the tenant has just been taken out of use",
        ))
        .add(format!(
            "ALTER ROLE {} LOGIN PASSWORD {}",
            ident(&migrator),
            literal(&password.verifier_for_us())
        ));
        connection.run(&doing, &open).await?;
        drop(connection);

        let result = self.run_files(database, id, &password, &todo, &mut outcome.applied).await;

        let mut close = Script::new();
        close.add(close_where(&format!("name = {}", literal(&migrator))));
        let doing = format!("can't close migration login {migrator}");
        let closed = match self.connect(database).await {
            Ok(mut connection) => match connection.run(&doing, &close).await {
                // Its session goes by itself; whoever migrates next must not find it there.
                Ok(_) => end_sessions(&mut connection, std::slice::from_ref(&migrator)).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = closed {
            // Its password is forgotten with this call; the next sweep closes it.
            tracing::warn!(tenant = %id, %error, "migration login stays open until the next sweep");
        }
        result.map(|()| outcome)
    }

    async fn run_files(
        &self,
        database: &str,
        id: &TenantId,
        password: &Password,
        files: &[&Migration],
        applied: &mut Vec<String>,
    ) -> Result<()> {
        let config = &self.pool.config;
        let endpoint = Endpoint { host: config.host.clone(), port: config.port };
        let login = Login {
            endpoint: &endpoint,
            database,
            user: &id.migrator(),
            password: password.expose(),
            options: Some(
                "-c client_min_messages=warning -c statement_timeout=0 -c client_connection_check_interval=5000",
            ),
        };
        let client = self.pool.log_in(&login).await?;
        for file in files {
            self.pool.check_term()?;
            self.pool.count(9);
            let text = transaction(id, file, config.timeouts.migration_lock.as_millis());
            match self.pool.answer(None, client.batch_execute(&text)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(explain(file, &error)),
                Err(Silence) => {
                    let name = &file.name;
                    return Err(Error::transient(format!("migration {name}: the server no longer answers")));
                }
            }
            applied.push(file.name.clone());
        }
        Ok(())
    }
}

/// The files that are still to run, in order.
fn pending<'a>(applied: &[AppliedMigration], files: &'a [Migration]) -> Result<Vec<&'a Migration>> {
    let mut todo: Vec<&Migration> = Vec::new();
    for (at, file) in files.iter().enumerate() {
        if files[..at].iter().any(|earlier| earlier.name == file.name) {
            return Err(Error::permanent(format!(
                "migration {} is listed twice; give each file its own name",
                file.name
            )));
        }
        match applied.iter().find(|done| done.name == file.name) {
            None => todo.push(file),
            Some(done) if done.checksum != file.checksum => {
                return Err(Error::permanent(format!(
                    "migration {} was changed after it had run; put it back as it was and write a new file",
                    file.name
                )));
            }
            Some(_) => {
                if let Some(late) = todo.first() {
                    return Err(Error::permanent(format!(
                        "migration {} comes before {}, which has run already; give it a later name",
                        late.name, file.name
                    )));
                }
            }
        }
    }
    Ok(todo)
}

/// One file with its record, as one message. The file runs inside a block, where PostgreSQL
/// refuses COMMIT and ROLLBACK, so it can't end the transaction that the record is part of.
fn transaction(id: &TenantId, file: &Migration, lock_timeout: u128) -> String {
    let block = format!("BEGIN EXECUTE {}; END", literal(&file.sql));
    let own = "BEGIN IF EXISTS (SELECT FROM pg_catalog.pg_shdepend WHERE refclassid = 'pg_catalog.pg_authid'::regclass \
         AND refobjid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user) AND deptype = 'o') THEN \
         RAISE EXCEPTION 'it made something that does not belong to the tenant''s owner; remove SET ROLE and RESET ROLE' \
         USING ERRCODE = '42501'; END IF; END";
    format!(
        "BEGIN; RESET ALL; SET LOCAL ROLE {owner}; SET LOCAL search_path = {schema}, tenantry; \
         SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {lock_timeout};\nDO {block};\nDO {own};\n\
         SELECT tenantry.record_migration({name}, {checksum}); COMMIT",
        owner = ident(&id.owner()),
        schema = ident(id.schema()),
        block = literal(&block),
        own = literal(own),
        name = literal(&file.name),
        checksum = literal(&file.checksum),
    )
}

fn explain(file: &Migration, error: &tokio_postgres::Error) -> Error {
    let name = &file.name;
    let Some(db) = error.as_db_error() else {
        return Error::from_postgres(&format!("migration {name} was interrupted"), error);
    };
    let class = Error::from_postgres("", error).class();
    let place = line(file, db).map_or_else(String::new, |line| format!(" line {line}"));
    let code = db.code().code();
    let mut text = format!("migration {name}{place}: {} (SQLSTATE {code})", db.message());
    if code == "0A000" && db.message().contains("transaction commands") || code == "2D000" {
        text.push_str("; each file is one transaction already: remove BEGIN, COMMIT, ROLLBACK and SAVEPOINT");
    } else if code == "25001" {
        text.push_str("; each file runs inside a transaction: do without CONCURRENTLY and the like");
    } else if let Some(hint) = db.hint() {
        text.push_str("; ");
        text.push_str(hint);
    }
    match class {
        ErrorClass::Permanent => Error::from_postgres("", error).explained(text),
        ErrorClass::Transient | ErrorClass::Waiting => Error::transient(text),
    }
}

/// The line of the file that the server points at, from 1 on.
fn line(file: &Migration, error: &DbError) -> Option<usize> {
    let Some(ErrorPosition::Internal { position, query }) = error.position() else {
        return None;
    };
    // Another query than the file's is one inside a function that the file called.
    let before = usize::try_from(*position).ok()?.checked_sub(1)?;
    (query == &file.sql).then(|| file.sql.chars().take(before).filter(|c| *c == '\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<Migration> {
        let file = |name: &&str| Migration { name: (*name).into(), sql: String::new(), checksum: format!("{name}#1") };
        names.iter().map(file).collect()
    }

    fn applied(names: &[&str]) -> Vec<AppliedMigration> {
        files(names).into_iter().map(|file| AppliedMigration { name: file.name, checksum: file.checksum }).collect()
    }

    fn names(applied_names: &[&str], file_names: &[&str]) -> Result<Vec<String>> {
        let files = files(file_names);
        pending(&applied(applied_names), &files).map(|todo| todo.iter().map(|file| file.name.clone()).collect())
    }

    #[test]
    fn only_what_has_not_run_runs_and_only_at_the_end() {
        assert_eq!(names(&[], &["1", "2"]).expect("fresh"), ["1", "2"]);
        assert_eq!(names(&["1"], &["1", "2"]).expect("one left"), ["2"]);
        assert!(names(&["1", "2"], &["1", "2"]).expect("none left").is_empty());
        assert!(names(&["0", "1"], &["1"]).expect("a file may be retired").is_empty());
        let late = names(&["2"], &["1", "2"]).expect_err("out of order");
        assert!(late.to_string().contains("1 comes before 2"), "{late}");
        let twice = names(&[], &["1", "1"]).expect_err("twice");
        assert!(twice.to_string().contains("listed twice"), "{twice}");
    }

    #[test]
    fn a_changed_file_is_named() {
        let mut done = applied(&["1"]);
        done[0].checksum = "other".into();
        let error = pending(&done, &files(&["1"])).expect_err("changed");
        assert_eq!(error.class(), ErrorClass::Permanent);
        assert!(error.to_string().contains("migration 1 was changed"), "{error}");
    }
}
