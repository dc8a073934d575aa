//! A server that tenants live on, and what the admin's login can do there.

use std::sync::Arc;
use std::time::Duration;

use super::error::Result;
use super::identity::Password;
use super::types::{DatabaseRecord, ServerInfo, Statistics};

/// How to reach a server as its admin. The admin needs `LOGIN CREATEDB CREATEROLE` and `INHERIT`
/// (PostgreSQL's default), and need not be a superuser.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Host name, also the name that its certificate must have.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The database that the admin enters first, usually `postgres`.
    pub database: String,
    /// The admin's login.
    pub user: String,
    /// Its password.
    pub password: Password,
    /// How the connection is protected.
    pub tls: Tls,
    /// Where tenants reach the server, if that is elsewhere, for instance at a pooler.
    pub endpoint: Option<Endpoint>,
    /// How many connections the operator has at most to this server, over all its databases.
    pub connections: usize,
    /// How long things may take.
    pub timeouts: Timeouts,
}

/// How a connection is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// TLS; the certificate must be signed by one of these (PEM) and carry the host's name.
    VerifyFull {
        /// One or more CA certificates, PEM.
        ca_pem: String,
    },
    /// None. For a server on the same host and for nothing else.
    Disable,
}

/// Where tenants reach a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// How long the operator's own work on a server may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To open a connection, TLS and login included.
    pub connect: Duration,
    /// To get one of the bounded connections.
    pub wait: Duration,
    /// For one statement.
    pub statement: Duration,
    /// For one lock.
    pub lock: Duration,
    /// After this long without use a connection is closed.
    pub idle: Duration,
    /// The longest pause of the breaker between two attempts at a server that can't be reached.
    pub breaker: Duration,
    /// For one lock that an application's migration wants.
    pub migration_lock: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            wait: Duration::from_secs(10),
            statement: Duration::from_secs(30),
            lock: Duration::from_secs(5),
            idle: Duration::from_secs(30),
            breaker: Duration::from_secs(15),
            migration_lock: Duration::from_secs(10),
        }
    }
}

/// A server. Cheap to clone; all clones share its connections.
#[derive(Clone)]
pub struct Server {
    #[expect(dead_code)]
    inner: Arc<()>,
}

impl Server {
    /// Prepares a server. Nothing is sent yet; a CA that can't be read is an error.
    pub fn new(config: ServerConfig) -> Result<Self> {
        todo!("{config:?}")
    }

    /// The number that tells this leader from the ones before: the lease's transitions. Every
    /// transaction that writes fails, with a permanent error, where a higher one has been seen.
    pub fn set_fence(&self, number: u64) {
        todo!("{number}")
    }

    /// Logs in as the admin and tells what the server is and what the admin may do there. What
    /// the operator can't do without is an error that names it.
    pub async fn check(&self) -> Result<ServerInfo> {
        todo!()
    }

    /// The databases of this and other operators on the server: those of `tenantry_owner`.
    pub async fn list_databases(&self) -> Result<Vec<DatabaseRecord>> {
        todo!()
    }

    /// How much was asked of the server so far, by all clones.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        todo!()
    }

    /// Host and port for tenants.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        todo!()
    }
}
