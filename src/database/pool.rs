//! The operator's connections to one server: bounded over all its databases, and clean.
//!
//! A connection goes back only when its last answer has arrived and no transaction is open; one
//! whose caller went away in between is closed. Transactions set nothing that outlives them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep_until, timeout};
use tokio_postgres::Client;

use super::breaker::Breaker;
use super::connection::Connection;
use super::error::{Error, Result};
use super::server::{Endpoint, ServerConfig};
use super::sql::Fence;
use super::tls::{Connector, connector, explain};
use super::types::Statistics;
use crate::term::Term;

pub(super) struct Pool {
    pub(super) config: ServerConfig,
    connector: Connector,
    places: Arc<Semaphore>,
    /// Migrations can take hours: they have places of their own, half as many again.
    migrations: Arc<Semaphore>,
    shelf: Mutex<Shelf>,
    breaker: Breaker,
    /// For the tenants' endpoint, which may be away while the server is there.
    endpoint_breaker: Breaker,
    counters: Counters,
    /// Nothing is sent once it is over; its number is what transactions are fenced with.
    term: Term,
    /// Whose databases this process may change; nothing for one that changes none on its own.
    cluster: Option<String>,
    /// How many times the server was found to answer nobody, for those who wait for an answer.
    silences: watch::Sender<u64>,
}

#[derive(Default)]
struct Shelf {
    in_use: usize,
    idle: Vec<Idle>,
    janitor: bool,
    /// When the server answered last, whatever to.
    heard: Option<Instant>,
    /// Whether it is being asked whether it is there.
    looking: bool,
}

pub(super) struct Idle {
    pub(super) client: Client,
    database: String,
    pub(super) opened: Instant,
    since: Instant,
}

#[derive(Default)]
struct Counters {
    statements: AtomicU64,
    round_trips: AtomicU64,
    connections: AtomicU64,
}

/// A login's way in.
pub(super) struct Login<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
    pub(super) password: &'a str,
    /// Settings in the startup packet; a pooler may not take any.
    pub(super) options: Option<&'a str>,
}

impl Pool {
    pub(super) fn new(config: ServerConfig, term: Term, cluster: Option<String>) -> Result<Arc<Self>> {
        if config.connections == 0 {
            return Err(Error::permanent("a server needs at least one connection: raise the operator's bound"));
        }
        Ok(Arc::new(Self {
            connector: connector(&config.tls)?,
            places: Arc::new(Semaphore::new(config.connections)),
            migrations: Arc::new(Semaphore::new(config.migrations())),
            shelf: Mutex::default(),
            breaker: Breaker::new(config.timeouts.breaker),
            endpoint_breaker: Breaker::new(config.timeouts.breaker),
            counters: Counters::default(),
            term,
            cluster,
            silences: watch::Sender::default(),
            config,
        }))
    }

    pub(super) fn statistics(&self) -> Statistics {
        Statistics {
            statements: self.counters.statements.load(Ordering::Relaxed),
            round_trips: self.counters.round_trips.load(Ordering::Relaxed),
            connections: self.counters.connections.load(Ordering::Relaxed),
            in_use: self.shelf().in_use,
            away: self.breaker.is_open(),
        }
    }

    pub(super) fn count(&self, statements: u64) {
        self.counters.statements.fetch_add(statements, Ordering::Relaxed);
        self.counters.round_trips.fetch_add(1, Ordering::Relaxed);
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process may still send anything. Transactions are fenced as well; this is
    /// for what can't be in one, and says sooner what is the matter.
    pub(super) fn check_term(&self) -> Result<()> {
        if self.term.is_current() {
            return Ok(());
        }
        Err(Error::transient("this process no longer leads: nothing is sent"))
    }

    /// The term that everything is sent in.
    pub(super) fn term(&self) -> &Term {
        &self.term
    }

    /// What each transaction in a database of the operator's is checked by.
    pub(super) fn fence(&self) -> Option<Fence<'_>> {
        self.cluster.as_deref().map(|cluster| Fence { number: self.term.number(), cluster })
    }

    /// A connection to a database as the admin.
    pub(super) async fn get(self: &Arc<Self>, database: &str) -> Result<Connection> {
        // Before the breaker is asked: that this process doesn't lead says nothing about the server.
        self.check_term()?;
        // Who is not let through doesn't wait for a place either.
        drop(self.breaker.attempt()?);
        let place = self.place(&self.places, &self.breaker).await?;
        let attempt = self.breaker.attempt()?;
        if let Some(idle) = self.take(database) {
            // Standing connections say nothing about new ones: a probe goes on to the next caller.
            return Ok(Connection::new(idle, place));
        }
        let opened = self.log_in_as_admin(database).await;
        match opened {
            Ok(client) => {
                attempt.succeeded();
                let now = Instant::now();
                let idle = Idle { client, database: database.to_owned(), opened: now, since: now };
                Ok(Connection::new(idle, place))
            }
            Err(error) => {
                // What concerns one database says nothing about the server.
                if error.sqlstate().is_none_or(|code| code == "57P03" || code.starts_with("28")) {
                    attempt.failed(&error);
                    self.shelf().idle.clear();
                } else {
                    attempt.succeeded();
                }
                Err(error)
            }
        }
    }

    async fn log_in_as_admin(&self, database: &str) -> Result<Client> {
        let config = &self.config;
        let settings = format!(
            "-c search_path=pg_catalog,pg_temp -c client_min_messages=warning -c timezone=UTC \
             -c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout={}",
            config.timeouts.statement.as_millis(),
            config.timeouts.lock.as_millis(),
            config.timeouts.statement.as_millis(),
        );
        let endpoint = Endpoint { host: config.host.clone(), port: config.port };
        let login = Login {
            endpoint: &endpoint,
            database,
            user: &config.user,
            password: config.password.expose(),
            options: Some(&settings),
        };
        self.log_in(&login).await
    }

    /// One of the bounded places, counted as in use while it is held.
    async fn place(self: &Arc<Self>, places: &Arc<Semaphore>, breaker: &Breaker) -> Result<Place> {
        let config = &self.config;
        let permit = breaker
            .unless_away(timeout(config.timeouts.wait, places.clone().acquire_owned()))
            .await?
            .map_err(|_| {
                Error::transient(format!(
                    "all connections to {}:{} are in use; waited {:?}",
                    config.host, config.port, config.timeouts.wait
                ))
            })?
            .expect("never closed");
        self.shelf().in_use += 1;
        Ok(Place { pool: self.clone(), _permit: permit })
    }

    /// Logs in through the tenants' endpoint.
    pub(super) async fn visit(self: &Arc<Self>, login: &Login<'_>) -> Result<(Client, Place)> {
        self.check_term()?;
        // Where tenants go the operator's own way, what one finds out holds for the other.
        let breaker = if self.config.endpoint.is_none() { &self.breaker } else { &self.endpoint_breaker };
        drop(breaker.attempt()?);
        let place = self.place(&self.places, breaker).await?;
        let attempt = breaker.attempt()?;
        let opened = self.log_in(login).await;
        match &opened {
            // A login that is refused says nothing about the server.
            Err(error) if error.sqlstate().is_none() => attempt.failed(error),
            _ => attempt.succeeded(),
        }
        Ok((opened?, place))
    }

    /// A place for a migration's connection, beside the operator's own.
    pub(super) async fn migration(self: &Arc<Self>) -> Result<Place> {
        self.check_term()?;
        self.place(&self.migrations, &self.breaker).await
    }

    /// Waits for the answer to what was sent, for at most `patience`. A server that is alive may
    /// take that long; but where it answers nobody, nobody waits for it.
    pub(super) async fn answer<T>(
        self: &Arc<Self>,
        patience: Option<Duration>,
        call: impl Future<Output = T>,
    ) -> std::result::Result<T, Silence> {
        let mut silences = self.silences.subscribe();
        let begun = Instant::now();
        let mut suspicion = self.config.timeouts.suspicion;
        let mut call = std::pin::pin!(call);
        loop {
            let look = patience.map_or(suspicion, |patience| patience.min(suspicion));
            tokio::select! {
                biased;
                answer = &mut call => {
                    self.shelf().heard = Some(Instant::now());
                    return Ok(answer);
                }
                // The sender lives as long as this.
                _ = silences.changed() => return Err(Silence),
                () = sleep_until((begun + look).into()) => {
                    if patience.is_some_and(|patience| suspicion >= patience) {
                        return Err(Silence);
                    }
                    suspicion *= 2;
                    self.look();
                }
            }
        }
    }

    /// Finds out whether the server is there at all, unless it has just answered somebody. The
    /// login for it is one beside the bounded places: those may all be waiting for an answer.
    fn look(self: &Arc<Self>) {
        let mut shelf = self.shelf();
        let lately = |heard: Instant| heard.elapsed() < self.config.timeouts.suspicion;
        if shelf.heard.is_some_and(lately) || std::mem::replace(&mut shelf.looking, true) {
            return;
        }
        drop(shelf);
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            let found = pool.log_in_as_admin(&pool.config.database).await;
            pool.shelf().looking = false;
            match found {
                // Whatever it says, it is there.
                Ok(_) => pool.shelf().heard = Some(Instant::now()),
                Err(error) if error.sqlstate().is_some() => pool.shelf().heard = Some(Instant::now()),
                Err(error) => {
                    pool.lost(&error);
                    pool.silences.send_modify(|times| *times += 1);
                }
            }
        });
    }

    /// An idle connection to a database, or room for a new one.
    fn take(&self, database: &str) -> Option<Idle> {
        let mut shelf = self.shelf();
        shelf.idle.retain(|idle| !idle.client.is_closed());
        if let Some(at) = shelf.idle.iter().rposition(|idle| idle.database == database) {
            return Some(shelf.idle.remove(at));
        }
        while !shelf.idle.is_empty() && shelf.in_use + shelf.idle.len() > self.config.connections {
            shelf.idle.remove(0);
        }
        None
    }

    /// Closes the connections that wait in a database, so that it can be dropped.
    pub(super) fn leave(&self, database: &str) {
        self.shelf().idle.retain(|idle| idle.database != database);
    }

    /// Opens a connection, for the admin or as a tenant's login, within the time for that.
    pub(super) async fn log_in(&self, login: &Login<'_>) -> Result<Client> {
        self.check_term()?;
        let Endpoint { host, port } = login.endpoint;
        let mut config = tokio_postgres::Config::new();
        config
            .host(host)
            .port(*port)
            .dbname(login.database)
            .user(login.user)
            .password(login.password)
            .application_name("tenantry")
            .ssl_mode(self.connector.mode())
            .connect_timeout(self.config.timeouts.connect)
            .keepalives_idle(Duration::from_secs(30));
        if let Some(options) = login.options {
            config.options(options);
        }
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        let opening = async {
            let opened = self.connector.connect(&config).await;
            opened.map_err(|error| explain(host, *port, login.user, &error))
        };
        timeout(self.config.timeouts.connect, opening).await.unwrap_or_else(|_| {
            Err(Error::transient(format!("{host}:{port} doesn't answer within {:?}", self.config.timeouts.connect)))
        })
    }

    /// A connection was found dead, and those that wait are likely to be.
    pub(super) fn lost(&self, error: &Error) {
        self.breaker.lost(error);
        self.shelf().idle.clear();
    }

    /// Puts a connection back and sees to it that it doesn't wait for ever.
    pub(super) fn put_back(self: &Arc<Self>, mut idle: Idle) {
        idle.since = Instant::now();
        let mut shelf = self.shelf();
        shelf.idle.push(idle);
        if !std::mem::replace(&mut shelf.janitor, true) {
            tokio::spawn(close_idle(Arc::downgrade(self), self.config.timeouts.idle));
        }
    }
}

/// Closes what waits for longer than `idle`; ends when nothing waits.
async fn close_idle(pool: Weak<Pool>, idle: Duration) {
    let mut next = idle;
    loop {
        tokio::time::sleep(next).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut shelf = pool.shelf();
        shelf.idle.retain(|waiting| waiting.since.elapsed() < idle);
        match shelf.idle.iter().map(|waiting| waiting.since).min() {
            Some(oldest) => next = idle.saturating_sub(oldest.elapsed()),
            None => {
                shelf.janitor = false;
                return;
            }
        }
    }
}

/// There was no answer, and there will be none.
#[derive(Debug)]
pub(super) struct Silence;

/// A place among the bounded connections; free again when dropped.
pub(super) struct Place {
    pub(super) pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.shelf().in_use -= 1;
    }
}
