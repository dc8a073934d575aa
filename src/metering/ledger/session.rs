//! Sessions in the ledger: few, kept, and never waited for without end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, str::FromStr as _};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, Row};

use super::types::LedgerError;
use crate::postgres::{Connector, Distrust, distrust, sources};

/// To open a session.
const CONNECT: Duration = Duration::from_secs(5);
/// To get one of the sessions, where all are in use.
const WAIT: Duration = Duration::from_secs(10);
/// After this long without an answer nobody waits any longer: the server ends a statement sooner.
const ANSWER: Duration = Duration::from_secs(12);
/// What each session begins with. The server's own patience is shorter than [`ANSWER`].
const SETUP: &str = "SET search_path = pg_catalog; SET statement_timeout = '10s'; SET lock_timeout = '8s';
    SET idle_in_transaction_session_timeout = '30s'; SET default_transaction_isolation = 'read committed';
    SET TimeZone = 'UTC'; SET jit = off; SET application_name = 'tenantry ledger'";
/// A session is replaced after this long: a backend keeps whatever it has ever planned.
const LIFETIME: Duration = Duration::from_secs(3600);
/// How often a statement is tried that met another one's locks.
const TRIES: u32 = 10;

/// A parameter of a statement with its type, so that no statement has to be prepared.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// How the ledger is reached.
#[derive(Clone)]
pub(super) struct Address {
    config: Config,
    connector: Connector,
}

impl Address {
    /// Reads `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…&sslrootcert=…`. No message holds the URL: it
    /// has a password.
    pub(super) fn parse(url: &str) -> Result<Self, LedgerError> {
        let refused = |text: &str| LedgerError::Refused(text.to_owned());
        let form = "write it as postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE";
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err(LedgerError::Refused(format!("the URL doesn't begin with postgres://: {form}")));
        }
        // The driver knows neither verify-full nor sslrootcert.
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut root, mut others) = (None, None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", value)) => mode = Some(value),
                Some(("sslrootcert", value)) => root = Some(percent_decoded(value)),
                _ => others.push(pair),
            }
        }
        let base = if others.is_empty() { base.to_owned() } else { format!("{base}?{}", others.join("&")) };
        let mut config = Config::from_str(&base)
            .map_err(|error| LedgerError::Refused(format!("the URL can't be read: {}: {form}", sources(&error))))?;
        if config.get_user().is_none() || config.get_hosts().len() != 1 || config.get_dbname().is_none() {
            return Err(LedgerError::Refused(format!("the URL lacks a user, one host or a database: {form}")));
        }
        let connector = match (mode.unwrap_or("verify-full"), root) {
            ("disable", _) => Connector::Plain,
            ("verify-full", Some(file)) => {
                let pem = fs::read_to_string(&file)
                    .map_err(|error| LedgerError::Refused(format!("sslrootcert {file} can't be read: {error}")))?;
                Connector::verifying(&pem)
                    .map_err(|Distrust(why)| LedgerError::Refused(format!("sslrootcert {file}: {why}")))?
            }
            ("verify-full", None) => {
                return Err(refused(
                    "the URL names no sslrootcert: give the file of the CA that signed the server's certificate, or sslmode=disable for a server on the same host",
                ));
            }
            (other, _) => {
                return Err(LedgerError::Refused(format!(
                    "sslmode={other} is not offered, since it protects from nobody: use verify-full, or disable for a server on the same host"
                )));
            }
        };
        config
            .ssl_mode(connector.mode())
            .connect_timeout(CONNECT)
            .keepalives_idle(Duration::from_secs(30))
            .application_name("tenantry ledger");
        Ok(Self { config, connector })
    }

    pub(super) fn user(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }

    pub(super) fn password(&self) -> Option<String> {
        self.config.get_password().map(|password| String::from_utf8_lossy(password).into_owned())
    }

    fn place(&self) -> (String, u16) {
        let host = match self.config.get_hosts().first() {
            Some(tokio_postgres::config::Host::Tcp(host)) => host.clone(),
            _ => "the socket".to_owned(),
        };
        (host, self.config.get_ports().first().copied().unwrap_or(5432))
    }

    /// Logs in; nothing is set yet.
    pub(super) async fn connect(&self) -> Result<Client, LedgerError> {
        let (host, port) = self.place();
        let opened = timeout(CONNECT, self.connector.connect(&self.config)).await;
        opened
            .map_err(|_| LedgerError::Away(format!("{host}:{port} doesn't answer within {CONNECT:?}")))?
            .map_err(|error| self.explained(&host, port, &error))
    }

    /// The same with the driver's connection, for who listens to notices.
    pub(super) async fn listen(
        &self,
        heard: impl Fn() + Send + 'static,
    ) -> Result<(Client, impl Future<Output = ()> + Send + 'static), LedgerError> {
        let (host, port) = self.place();
        let opening = async {
            match &self.connector {
                Connector::Verify(tls) => {
                    let (client, connection) = self.config.connect(tls.clone()).await?;
                    Ok((client, futures::future::Either::Left(hear(connection, heard))))
                }
                Connector::Plain => {
                    let (client, connection) = self.config.connect(tokio_postgres::NoTls).await?;
                    Ok((client, futures::future::Either::Right(hear(connection, heard))))
                }
            }
        };
        let opened = timeout(CONNECT, opening).await;
        opened
            .map_err(|_| LedgerError::Away(format!("{host}:{port} doesn't answer within {CONNECT:?}")))?
            .map_err(|error| self.explained(&host, port, &error))
    }

    fn explained(&self, host: &str, port: u16, error: &tokio_postgres::Error) -> LedgerError {
        let user = self.user();
        if error.as_db_error().is_some() {
            return classed(&format!("can't log in at {host}:{port} as {user}"), error);
        }
        match distrust(host, port, error) {
            Some(Distrust(why)) => LedgerError::Refused(why),
            None => LedgerError::Away(format!("{host}:{port} can't be reached: {}", sources(error))),
        }
    }
}

/// Runs a connection, and tells of each notice; ends with the connection.
async fn hear<S, T>(mut connection: tokio_postgres::Connection<S, T>, heard: impl Fn() + Send)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
{
    while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
        if matches!(message, tokio_postgres::AsyncMessage::Notification(_)) {
            heard();
        }
    }
}

/// What a server, or the way to it, answered while `doing` something.
pub(super) fn classed(doing: &str, error: &tokio_postgres::Error) -> LedgerError {
    let Some(db) = error.as_db_error() else {
        return LedgerError::Away(format!("{doing}: {}", sources(error)));
    };
    let code = db.code().code();
    let text = format!("{doing}: {} (SQLSTATE {code})", db.message());
    // 08 connection, 40 rollback, 53 resources, 55P03 lock, 57 operator intervention and timeouts, 58 system.
    let away = ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class))
        || ["55006", "55P03", "25P03", "25P04", "25006", "XX000"].contains(&code);
    let unfit = ["22", "23", "54"].iter().any(|class| code.starts_with(class));
    if away {
        LedgerError::Away(text)
    } else if unfit {
        LedgerError::Unfit(text)
    } else if ["3F000", "42P01", "42883"].contains(&code) {
        LedgerError::Refused(format!("{text}; run `tenantry ledger migrate` of this version"))
    } else {
        LedgerError::Refused(text)
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        if let Some(byte) = escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

struct Idle {
    client: Client,
    opened: Instant,
}

/// The sessions of one process.
pub(super) struct Sessions {
    pub(super) address: Address,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
}

/// A session in use. Whoever is done says so; else it is closed, since something may be under way.
struct Held<'a> {
    sessions: &'a Sessions,
    idle: Option<Idle>,
    _place: OwnedSemaphorePermit,
}

impl Held<'_> {
    fn client(&self) -> &Client {
        &self.idle.as_ref().expect("there until it is given back").client
    }

    fn give_back(mut self) {
        if let Some(idle) = self.idle.take()
            && !idle.client.is_closed()
            && idle.opened.elapsed() < LIFETIME
        {
            self.sessions.idle.lock().unwrap_or_else(PoisonError::into_inner).push(idle);
        }
    }
}

impl Sessions {
    pub(super) fn new(address: Address, connections: usize) -> Self {
        Self { address, places: Arc::new(Semaphore::new(connections.max(1))), idle: Mutex::default() }
    }

    async fn get(&self) -> Result<Held<'_>, LedgerError> {
        let place = timeout(WAIT, Arc::clone(&self.places).acquire_owned()).await;
        let place = place
            .map_err(|_| LedgerError::Away(format!("all its sessions were in use for {WAIT:?}")))?
            .expect("never closed");
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                Some(idle) if !idle.client.is_closed() => {
                    return Ok(Held { sessions: self, idle: Some(idle), _place: place });
                }
                Some(_) => {}
                None => break,
            }
        }
        let client = self.address.connect().await?;
        answer("can't prepare a session", client.batch_execute(SETUP))
            .await?
            .map_err(|error| classed("can't prepare a session", &error))?;
        Ok(Held { sessions: self, idle: Some(Idle { client, opened: Instant::now() }), _place: place })
    }

    /// Runs one statement, which is a transaction. Tried again where it met another one's locks, and once
    /// where the session that was kept had ended.
    pub(super) async fn query(&self, doing: &str, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, LedgerError> {
        self.query_or(doing, sql, params).await?.map_err(|error| classed(doing, &error))
    }

    /// The same; what the server says against the statement is for the caller to judge.
    pub(super) async fn query_or(
        &self,
        doing: &str,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Result<Vec<Row>, tokio_postgres::Error>, LedgerError> {
        let mut tries = 0;
        loop {
            let held = self.get().await?;
            let answered = answer(doing, held.client().query_typed(sql, params)).await?;
            if answered.as_ref().err().is_none_or(|error| error.as_db_error().is_some() && !has_ended(error)) {
                held.give_back();
            }
            tries += 1;
            match answered {
                Err(error) if races(&error) && tries < TRIES => {
                    let pause = Duration::from_millis(rand::random_range(1..=u64::from(tries) * 10));
                    tokio::time::sleep(pause).await;
                }
                // The server was restarted since the session was kept. What was sent is not done; or it is, and comes
                // to the same once more.
                Err(error) if has_ended(&error) && tries < 2 => {
                    self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                answered => return Ok(answered),
            }
        }
    }
}

fn races(error: &tokio_postgres::Error) -> bool {
    matches!(error.code(), Some(code) if *code == SqlState::T_R_DEADLOCK_DETECTED || *code == SqlState::T_R_SERIALIZATION_FAILURE)
}

fn has_ended(error: &tokio_postgres::Error) -> bool {
    error.is_closed() || error.code() == Some(&SqlState::ADMIN_SHUTDOWN)
}

/// Waits for an answer, but not for ever: a server that stands still ends no statement.
pub(super) async fn answer<T>(doing: &str, answering: impl Future<Output = T>) -> Result<T, LedgerError> {
    timeout(ANSWER, answering).await.map_err(|_| LedgerError::Away(format!("{doing}: no answer within {ANSWER:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_one_that_protects_nothing_is_refused() {
        let good = Address::parse("postgres://u:p%40ss@h:5433/l?sslmode=disable").expect("good");
        assert_eq!(
            (good.user(), good.password().as_deref(), good.place()),
            ("u", Some("p@ss"), ("h".to_owned(), 5433))
        );
        for (url, word) in [
            ("mysql://u@h/l", "postgres://"),
            ("postgres://u:secret@h/l?sslmode=require", "verify-full"),
            ("postgres://u:secret@h/l", "sslrootcert"),
            ("postgres://u:secret@h/l?sslmode=verify-full&sslrootcert=/no/such%20file", "/no/such file"),
            ("postgres://h/l?sslmode=disable", "user"),
        ] {
            let Err(LedgerError::Refused(text)) = Address::parse(url) else { panic!("{url} is taken") };
            assert!(text.contains(word) && !text.contains("secret"), "{url}: {text}");
        }
    }
}
