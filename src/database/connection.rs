//! One of a server's connections, while it is in use.

use std::sync::Arc;
use std::time::Duration;

use futures::{TryFutureExt as _, TryStreamExt as _};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, SimpleQueryMessage, SimpleQueryRow};

use super::error::{Error, Result};
use super::pool::{Idle, Place, Silence};
use super::sql::{Fence, Script};

/// A backend keeps every catalog row that it ever looked at: it is replaced after this long.
const LIFETIME: Duration = Duration::from_secs(600);
/// SQLSTATE of `tenantry.hold_fence`: the database knows a later leader.
const OVERTAKEN: &str = "TN010";
/// For the few statements that make or drop a whole database.
const LONG: Duration = Duration::from_secs(300);

/// A connection as the admin, in use. Dropped when it is clean, it goes back to the pool.
pub(super) struct Connection {
    idle: Option<Idle>,
    clean: bool,
    place: Place,
}

impl Connection {
    pub(super) fn new(idle: Idle, place: Place) -> Self {
        Self { idle: Some(idle), clean: true, place }
    }

    fn client(&self) -> &Client {
        &self.idle.as_ref().expect("there until dropped").client
    }

    /// Runs one statement and returns its rows.
    pub(super) async fn query(
        &mut self,
        doing: &str,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>> {
        self.query_each(doing, sql, params, |row| row).await
    }

    /// Runs one statement and returns what is made of each of its rows as it comes: of many
    /// rows, few are in memory at a time.
    pub(super) async fn query_each<T>(
        &mut self,
        doing: &str,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
        make: impl FnMut(Row) -> T,
    ) -> Result<Vec<T>> {
        self.place.pool.check_term()?;
        self.place.pool.count(1);
        self.clean = false;
        let params = params.iter().map(|(value, kind)| (*value, kind.clone()));
        let rows = self.client().query_typed_raw(sql, params).and_then(|rows| rows.map_ok(make).try_collect());
        let answer = self.place.pool.answer(Some(self.patience()), rows).await;
        let made = self.answered(doing, answer)?;
        self.clean = true;
        Ok(made)
    }

    /// Runs a script as one transaction, behind the fence.
    pub(super) async fn run(&mut self, doing: &str, script: &Script) -> Result<Vec<SimpleQueryRow>> {
        let pool = Arc::clone(&self.place.pool);
        let result = self.transaction(doing, script, pool.fence()).await;
        if result.as_ref().is_err_and(|error| error.sqlstate() == Some(OVERTAKEN)) {
            let rows = self.query(doing, "SELECT fence FROM tenantry.database", &[]).await?;
            let seen: i64 = rows.first().map_or(0, |row| row.get(0));
            pool.term().overtaken(u64::try_from(seen).unwrap_or(0));
        }
        result
    }

    /// Runs a script as one transaction where there is no fence yet, or none to be had.
    pub(super) async fn run_unfenced(&mut self, doing: &str, script: &Script) -> Result<Vec<SimpleQueryRow>> {
        self.transaction(doing, script, None).await
    }

    async fn transaction(
        &mut self,
        doing: &str,
        script: &Script,
        fence: Option<Fence<'_>>,
    ) -> Result<Vec<SimpleQueryRow>> {
        let (text, count) = script.transaction(fence);
        self.send(doing, &text, count, self.patience()).await
    }

    /// Runs one statement that can't be in a transaction, and may take long where the server has
    /// to write a checkpoint first: CREATE DATABASE and DROP DATABASE.
    pub(super) async fn run_alone(&mut self, doing: &str, statement: &str) -> Result<()> {
        let patience = LONG.max(self.patience());
        let allow = format!("SET statement_timeout = {}", LONG.as_millis());
        self.send(doing, &allow, 1, patience).await?;
        let result = self.send(doing, statement, 1, patience).await;
        if self.clean {
            self.send(doing, "RESET statement_timeout", 1, patience).await?;
        }
        result.map(drop)
    }

    async fn send(&mut self, doing: &str, text: &str, count: u64, patience: Duration) -> Result<Vec<SimpleQueryRow>> {
        self.place.pool.check_term()?;
        self.place.pool.count(count);
        self.clean = false;
        let answer = self.place.pool.answer(Some(patience), self.client().simple_query(text)).await;
        match self.answered(doing, answer) {
            Ok(messages) => {
                self.clean = true;
                Ok(messages
                    .into_iter()
                    .filter_map(|message| match message {
                        SimpleQueryMessage::Row(row) => Some(row),
                        _ => None,
                    })
                    .collect())
            }
            Err(error) => {
                // What failed inside a transaction leaves it open.
                if error.sqlstate().is_some() && !self.client().is_closed() {
                    self.place.pool.count(1);
                    let rollback = self.client().batch_execute("ROLLBACK");
                    let ended = self.place.pool.answer(Some(self.patience()), rollback).await;
                    self.clean = matches!(ended, Ok(Ok(())));
                }
                Err(error)
            }
        }
    }

    /// The server ends statements itself; this is for one that no longer answers.
    fn patience(&self) -> Duration {
        self.place.pool.config.timeouts.statement * 2 + self.place.pool.config.timeouts.connect
    }

    fn answered<T>(
        &self,
        doing: &str,
        answer: std::result::Result<std::result::Result<T, tokio_postgres::Error>, Silence>,
    ) -> Result<T> {
        let pool = &self.place.pool;
        let error = match answer {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if error.as_db_error().is_some() => {
                return Err(Error::from_postgres(doing, &error));
            }
            Ok(Err(error)) => Error::from_postgres(doing, &error),
            Err(_) => Error::transient(format!("{doing}: {}:{} no longer answers", pool.config.host, pool.config.port)),
        };
        // A connection that broke by itself: the next one finds out what is the matter.
        if !self.client().is_closed() {
            pool.lost(&error);
        }
        Err(error)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let idle = self.idle.take().expect("taken here alone");
        if self.clean && !idle.client.is_closed() && idle.opened.elapsed() < LIFETIME {
            self.place.pool.put_back(idle);
        }
    }
}
