//! Connections for a thousand tenants out of a few dozen.
//!
//! A tenant's connections are its own: they log in as its own login, so that one tenant's request can't read another's
//! data even by a bug in this program. What is shared is the bound on how many are open. While there is room, up to two
//! connections per tenant wait for the next request; without room the one that has waited longest is closed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::database::Database;

/// Bounds of the pool.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once, over all tenants.
    pub open: usize,
    /// Connections open at once per tenant.
    pub open_per_tenant: usize,
    /// Connections that wait for a tenant's next request.
    pub idle_per_tenant: usize,
    /// How long they wait.
    pub idle_for: Duration,
    /// How long a request waits for a connection.
    pub wait_for: Duration,
}

impl Default for Limits {
    /// Fits two processes of this kind into a server with `max_connections = 100`.
    fn default() -> Self {
        Self {
            open: 40,
            open_per_tenant: 5,
            idle_per_tenant: 2,
            idle_for: Duration::from_secs(30),
            wait_for: Duration::from_secs(5),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolError {
    /// The login or its password isn't valid, or not any more.
    #[error("the database refused the login")]
    Refused(#[source] tokio_postgres::Error),
    /// The server is away or has no room.
    #[error("cannot connect to the database: {0}")]
    Away(#[source] tokio_postgres::Error),
    /// All connections stayed in use for as long as a request waits.
    #[error("all connections are in use")]
    Busy,
}

/// The connections of all tenants.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

struct Shared {
    limits: Limits,
    /// A permit is held by each connection until its socket is closed.
    open: Arc<Semaphore>,
    idle: Mutex<Idle>,
}

/// Never more than [`Limits::open`] long, so that looking through it is cheap.
#[derive(Default)]
struct Idle {
    /// Longest waiting first.
    connections: VecDeque<IdleConnection>,
    /// Requests that wait for a permit: what comes back is closed for them instead of kept.
    wanted: usize,
}

struct IdleConnection {
    client: Client,
    database: Arc<Database>,
    since: Instant,
}

/// A connection for one piece of work. Dropped, it is closed; [`Connection::give_back`] keeps it for the next.
pub(crate) struct Connection {
    client: Client,
    database: Arc<Database>,
    pool: Pool,
    _turn: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn new(limits: Limits) -> Self {
        let open = Arc::new(Semaphore::new(limits.open));
        Self(Arc::new(Shared { limits, open, idle: Mutex::default() }))
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// A connection to this database, one that waits or a new one.
    pub(crate) async fn connection(&self, database: &Arc<Database>) -> Result<Connection, PoolError> {
        tokio::time::timeout(self.0.limits.wait_for, self.connect(database)).await.unwrap_or(Err(PoolError::Busy))
    }

    async fn connect(&self, database: &Arc<Database>) -> Result<Connection, PoolError> {
        let turn = Arc::clone(&database.turns).acquire_owned().await.expect("the semaphore is never closed");
        let client = match self.take_idle(database) {
            Some(client) => client,
            None => self.open(database).await?,
        };
        Ok(Connection { client, database: Arc::clone(database), pool: self.clone(), _turn: turn })
    }

    fn take_idle(&self, database: &Arc<Database>) -> Option<Client> {
        let mut idle = self.idle();
        loop {
            // The one that was used last is the likeliest to be alive.
            let last = idle.connections.iter().rposition(|waiting| Arc::ptr_eq(&waiting.database, database))?;
            let client = idle.connections.remove(last)?.client;
            if !client.is_closed() {
                return Some(client);
            }
        }
    }

    async fn open(&self, database: &Database) -> Result<Client, PoolError> {
        let mut permit = self.permit().await;
        let mut pause = Duration::from_millis(20);
        loop {
            match connect(database, permit).await {
                Ok(client) => return Ok(client),
                // The server counts a session until it is wholly gone, a little longer than we do, and other processes
                // have theirs. The caller's patience ends this.
                Err((error, returned)) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => {
                    permit = returned;
                    tokio::time::sleep(jittered(pause)).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                Err((error, _)) if is_refusal(&error) => return Err(PoolError::Refused(error)),
                Err((error, _)) => return Err(PoolError::Away(error)),
            }
        }
    }

    /// Leave for one more connection; if need be, for the price of the one that has waited longest.
    async fn permit(&self) -> OwnedSemaphorePermit {
        if let Ok(permit) = Arc::clone(&self.0.open).try_acquire_owned() {
            return permit;
        }
        // Said and done under one lock, so that a connection that comes back meanwhile is seen, or sees us.
        {
            let mut idle = self.idle();
            idle.wanted += 1;
            idle.connections.pop_front();
        }
        let _wanted = Wanted(self);
        Arc::clone(&self.0.open).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Closes what has waited too long, until the process ends. The pool works without, but connections stay open.
    pub(crate) async fn close_idle(&self) {
        let mut ticks = tokio::time::interval((self.0.limits.idle_for / 4).max(Duration::from_millis(10)));
        loop {
            ticks.tick().await;
            let idle_for = self.0.limits.idle_for;
            self.keep_idle(|waiting| waiting.since.elapsed() < idle_for && !waiting.client.is_closed());
        }
    }

    /// Closes what waits with a login that no host leads to any more.
    pub(crate) fn close_retired(&self) {
        self.keep_idle(|waiting| !waiting.database.is_retired());
    }

    fn keep_idle(&self, keep: impl Fn(&IdleConnection) -> bool) {
        self.idle().connections.retain(keep);
    }

    /// Closes all that waits and keeps nothing more.
    pub(crate) fn close(&self) {
        let mut idle = self.idle();
        // As if somebody wanted a connection for ever.
        idle.wanted += 1;
        idle.connections.clear();
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        // No code panics while it holds the lock, and a list of idle connections can't be half changed.
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a wish back, also when the request was given up.
struct Wanted<'a>(&'a Pool);

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.idle().wanted -= 1;
    }
}

impl Connection {
    pub(crate) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Keeps the connection for the tenant's next request, if it may be kept. Only for one without an open transaction.
    pub(crate) fn give_back(self) {
        let Self { client, database, pool, _turn } = self;
        if client.is_closed() || database.is_retired() {
            return;
        }
        let mut idle = pool.idle();
        let waiting = idle.connections.iter().filter(|waiting| Arc::ptr_eq(&waiting.database, &database)).count();
        if idle.wanted == 0 && waiting < pool.0.limits.idle_per_tenant {
            idle.connections.push_back(IdleConnection { client, database, since: Instant::now() });
        }
    }
}

/// Opens a connection that holds `permit` until its socket is closed. A failure gives the permit back.
async fn connect(
    database: &Database,
    permit: OwnedSemaphorePermit,
) -> Result<Client, (tokio_postgres::Error, OwnedSemaphorePermit)> {
    match &database.tls {
        Some(tls) => match database.config.connect(tls.clone()).await {
            Ok((client, connection)) => Ok(serve(client, connection, permit)),
            Err(error) => Err((error, permit)),
        },
        None => match database.config.connect(NoTls).await {
            Ok((client, connection)) => Ok(serve(client, connection, permit)),
            Err(error) => Err((error, permit)),
        },
    }
}

/// Moves the connection's messages until the client is dropped.
fn serve(
    client: Client,
    connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
    permit: OwnedSemaphorePermit,
) -> Client {
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a database ended");
        }
        drop(permit);
    });
    client
}

/// Half of `pause` to all of it, so that those who wait for the same thing don't come back all at once.
pub(crate) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.0))
}

/// Whether this login will never do: wrong password, no right to log in, no such database.
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        [
            SqlState::INVALID_PASSWORD,
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            SqlState::INVALID_CATALOG_NAME,
            SqlState::INSUFFICIENT_PRIVILEGE,
        ]
        .contains(code)
    })
}
