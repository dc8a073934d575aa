//! `tenantry relay`: carries usage events from the outboxes of one DatabaseServer's databases to
//! the operator's API, so that each of them is counted.
//!
//! # What the relay holds to
//!
//! * **Nothing is lost.** An event is acknowledged only after the API has spoken of it; a lease that
//!   runs out is given anew. An event may be sent twice, which the ledger counts once.
//! * **Nothing is held.** Leases are committed before anything is sent: no transaction waits for
//!   the API, and an application notices nothing when it is away.
//! * **Nobody is delayed by others.** A batch has a share of each tenant; databases take turns.
//! * Several relays of one server share its events. Marks and reports come from the one whose
//!   session in a database is the oldest.
//! * Databases come and go with their Secrets. No password is logged.

mod access;
mod api;
mod batch;
mod database;
mod databases;
mod gate;
mod listen;
mod metrics;
mod send;
mod token;
mod trust;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::{Client, Config};
use tokio::sync::Semaphore;

use self::api::Api;
use self::databases::Databases;
use self::gate::Gate;
use self::metrics::Metrics;
use self::send::Limit;

/// Flags of `tenantry relay`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The DatabaseServer whose databases to serve
    #[arg(long, env = "TENANTRY_RELAY_SERVER", value_name = "NAME")]
    pub server: String,

    /// Where the operator's API is, such as https://tenantry.tenantry-system.svc:8081
    #[arg(long, env = "TENANTRY_RELAY_API_URL", value_name = "URL")]
    pub api_url: String,

    /// File with a ServiceAccount's token for audience tenantry; it is read again as it is renewed
    #[arg(
        long,
        env = "TENANTRY_RELAY_TOKEN_FILE",
        default_value = "/var/run/secrets/tenantry/token",
        value_name = "FILE"
    )]
    pub token_file: PathBuf,

    /// File with the certificates that the API's is signed by, as PEM; it is read again as it is renewed [default: those that the system trusts]
    #[arg(long, env = "TENANTRY_RELAY_API_CA", value_name = "FILE")]
    pub api_ca: Option<PathBuf>,

    /// Namespace with the databases' Secrets [default: the pod's own, or that of the kubeconfig's context]
    #[arg(long, env = "TENANTRY_RELAY_NAMESPACE", value_name = "NS")]
    pub namespace: Option<String>,

    /// Where health and metrics are served
    #[arg(long, env = "TENANTRY_RELAY_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDR")]
    pub listen: SocketAddr,

    /// How many events are sent at a time, at most
    #[arg(long, env = "TENANTRY_RELAY_BATCH", default_value_t = 1_000, value_name = "EVENTS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch: u32,

    /// After how long an event is sent again of which nobody noted what became of it
    #[arg(long, env = "TENANTRY_RELAY_LEASE_SECONDS", default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub lease_seconds: u64,

    /// How many batches are under way at a time, of all databases together
    #[arg(long, env = "TENANTRY_RELAY_CONCURRENCY", default_value_t = 8, value_name = "BATCHES", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,

    /// How long the API may take to answer; shorter than a lease
    #[arg(long, env = "TENANTRY_RELAY_TIMEOUT_SECONDS", default_value_t = 15, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub timeout_seconds: u64,

    /// How often, at the least, it is told how much waits and how far the meters are
    #[arg(long, env = "TENANTRY_RELAY_REPORT_SECONDS", default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=60))]
    pub report_seconds: u64,

    /// How long batches that are under way may go on when the relay is asked to end
    #[arg(long, env = "TENANTRY_RELAY_GRACE_SECONDS", default_value_t = 20, value_name = "SECONDS")]
    pub grace_seconds: u64,
}

/// What a relay serves, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The DatabaseServer.
    pub server: String,
    /// The namespace with the databases' Secrets.
    pub namespace: String,
    /// The API's base URL.
    pub api_url: String,
    /// The file with the token.
    pub token_file: PathBuf,
    /// The file with the certificates to trust.
    pub api_ca: Option<PathBuf>,
    /// Where health and metrics are served.
    pub listen: SocketAddr,
    /// How many events are sent at a time.
    pub batch: u32,
    /// For how long an event is leased.
    pub lease: Duration,
    /// How many batches are under way at a time.
    pub concurrency: usize,
    /// How long the API may take.
    pub timeout: Duration,
    /// How often it is told how much waits.
    pub report: Duration,
    /// How long batches that are under way may go on at the end.
    pub grace: Duration,
}

/// Why a relay could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a kubeconfig nor a pod's ServiceAccount.
    #[error("cannot tell which cluster to watch; set KUBECONFIG, or run in a pod: {0}")]
    Kubeconfig(#[from] kube::config::InferConfigError),
    /// The configuration of the cluster is of no use.
    #[error("cannot make a client of the cluster: {0}")]
    Client(#[source] kube::Error),
    /// The API's URL is none.
    #[error("{0}")]
    Url(String),
    /// The API's certificates are of no use.
    #[error("{0}")]
    Ca(String),
    /// Flags that don't fit together.
    #[error("{0}")]
    Flags(String),
    /// The address can't be had.
    #[error("listen on {address}: {source}; choose another address with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What the tasks of all databases use.
struct Shared {
    options: Options,
    api: Api,
    gate: Gate,
    limit: Limit,
    /// A place for each batch that may be under way.
    places: Semaphore,
    metrics: Metrics,
    is_listed: AtomicBool,
}

impl Shared {
    fn is_listed(&self) -> bool {
        self.is_listed.load(Ordering::Relaxed)
    }

    /// Notes that all Secrets are known; whether that is so for the first time.
    fn listed(&self) -> bool {
        !self.is_listed.swap(true, Ordering::Relaxed)
    }
}

/// Runs `tenantry relay` until `shutdown` is ready.
///
/// # Errors
/// What is wrong with its flags or its surroundings, at the start.
pub async fn run(args: Args, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let config = Config::infer().await?;
    let options = Options {
        server: args.server,
        namespace: args.namespace.unwrap_or_else(|| config.default_namespace.clone()),
        api_url: args.api_url,
        token_file: args.token_file,
        api_ca: args.api_ca,
        listen: args.listen,
        batch: args.batch,
        lease: Duration::from_secs(args.lease_seconds),
        concurrency: usize::from(args.concurrency),
        timeout: Duration::from_secs(args.timeout_seconds),
        report: Duration::from_secs(args.report_seconds),
        grace: Duration::from_secs(args.grace_seconds),
    };
    carry(config, options, shutdown).await
}

/// Carries events as `options` say until `shutdown` is ready; then what is under way is settled.
///
/// # Errors
/// As [`run`].
pub async fn carry(mut config: Config, options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    if options.timeout >= options.lease {
        return Err(Error::Flags(format!(
            "--timeout-seconds ({:?}) must be less than --lease-seconds ({:?}): else events are sent again while they are still under way",
            options.timeout, options.lease
        )));
    }
    // An error means that another one was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The watch has a backoff of its own, of seconds; the client's retries would hold it up for minutes.
    config.default_retry = false;
    // Longer than a watch that is at rest, so that only a connection that is dead is cut.
    config.read_timeout = Some(Duration::from_secs(90));
    let client = Client::try_from(config).map_err(Error::Client)?;
    let listener = listen::bind(options.listen).await?;
    let shared = Arc::new(Shared {
        api: Api::new(&options)?,
        gate: Gate::default(),
        limit: Limit::new(usize::try_from(options.batch).unwrap_or(usize::MAX)),
        places: Semaphore::new(options.concurrency),
        metrics: Metrics::new(&options.server),
        is_listed: AtomicBool::new(false),
        options,
    });
    let options = &shared.options;
    tracing::info!(
        server = options.server,
        namespace = options.namespace,
        api = options.api_url,
        "relaying usage events"
    );
    let mut databases = Databases::new(Arc::clone(&shared));
    {
        let mut serving = pin!(listen::serve(listener, Arc::clone(&shared)));
        let mut shutdown = pin!(shutdown);
        let mut watching = pin!(databases.watch(client));
        let mut serves = true;
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                () = &mut watching => break,
                () = &mut serving, if serves => serves = false,
            }
        }
    }
    databases.stop(shared.options.grace).await;
    tracing::info!("ended");
    Ok(())
}
