//! `tenantry agent`: keeps the Secrets of tenants as files, so that an application in any language finds a tenant's
//! database by opening a file.
//!
//! ```text
//! DIR/tenants/NAME/KEY                   the Secret's data: uri, username, password, ca.crt, …
//! DIR/hosts/HOST -> ../tenants/NAME      for each host of annotation tenantry.io/hosts
//! ```
//!
//! # What a reader may rely on
//!
//! * **One file is one version.** Read `uri` alone and user, password and database always belong together. This holds in
//!   every tier, also where the kubelet mounts the Secret at the same paths.
//! * **A folder that is open is one version.** Open `hosts/HOST` once (or resolve it once, `realpath`) and read the files
//!   below *that*: they belong together, and stay for [`Options::linger`] after they were replaced. Opening
//!   `hosts/HOST/username` and then `hosts/HOST/password` is two resolutions, with a change possible between them.
//! * **A changed file is a new file**: inode or modification time differ. To notice a rotation, compare these with each use.
//! * A file that can't be opened because it isn't there means that no such tenant or host is known, now.
//! * Names that begin with a dot are the agent's own.
//!
//! `tenants/NAME` is itself a link into `.versions/`, to a folder named by its content. Each change writes a folder of
//! its own and replaces one link by rename(2), as the kubelet does with its volumes.
//!
//! # What the agent holds to
//!
//! * Nothing is removed before a list of all Secrets is complete; what an earlier run left serves until then. While the API
//!   server is away, the files serve on.
//! * Names come from labels and annotations, and are checked before they become parts of a path. Of two Secrets that
//!   claim one host or tenant the older keeps it.
//! * No Secret's data stays in memory once it is on disk.

pub mod binding;
pub mod keeper;
mod names;
pub mod plan;
pub mod store;
mod watch;

use std::fs::{File, TryLockError};
use std::future::Future;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::{Client, Config};

use keeper::Keeper;
pub use keeper::Status;
pub use store::StoreError;
pub use watch::Scope;

/// Flags of `tenantry agent`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Folder to keep the files in: a memory volume that the application mounts too, with an fsGroup for both
    #[arg(long, env = "TENANTRY_AGENT_DIR", default_value = "/var/run/tenantry", value_name = "DIR")]
    pub dir: PathBuf,

    /// Namespace whose tenants to keep [default: the pod's own, or that of the kubeconfig's context]
    #[arg(long, env = "TENANTRY_AGENT_NAMESPACE", value_name = "NS", conflicts_with = "all_namespaces")]
    pub namespace: Option<String>,

    /// Keep the tenants of every namespace (needs leave to read Secrets in all of them)
    #[arg(long, env = "TENANTRY_AGENT_ALL_NAMESPACES")]
    pub all_namespaces: bool,

    /// How long replaced files stay for readers that have them open
    #[arg(long, env = "TENANTRY_AGENT_LINGER_SECONDS", default_value_t = 60, value_name = "SECONDS")]
    pub linger_seconds: u64,

    /// Only tell whether the agent of DIR has all tenants on disk: exit code 0 if so (for a startup probe)
    #[arg(long, env = "TENANTRY_AGENT_CHECK")]
    pub check: bool,
}

/// What an agent keeps, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The folder.
    pub dir: PathBuf,
    /// Which Secrets.
    pub scope: Scope,
    /// How long replaced files stay for slow readers.
    pub linger: Duration,
}

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a kubeconfig nor a pod's ServiceAccount.
    #[error("cannot tell which cluster to watch; set KUBECONFIG, or run in a pod: {0}")]
    Kubeconfig(#[from] kube::config::InferConfigError),
    /// The configuration of the cluster is of no use.
    #[error("cannot make a client of the cluster: {0}")]
    Client(#[source] kube::Error),
    /// The folder is of no use.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// `--check` says no.
    #[error(transparent)]
    Check(#[from] CheckError),
}

/// Why `--check` says no.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// No agent has ever run there, or the folder can't be read.
    #[error("cannot read {path}: {source}; does the agent run with this --dir?")]
    Unreadable {
        /// What can't be read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The lock is free.
    #[error("no tenantry agent keeps {0} now")]
    NotRunning(PathBuf),
    /// An agent runs, and isn't there yet.
    #[error("the tenants of the first list are not all on disk yet")]
    NotListed,
}

/// Runs `tenantry agent` until `shutdown` is ready, or, with `--check`, looks and returns.
///
/// One thread is enough: run it on a current-thread runtime.
pub async fn run(args: Args, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    if args.check {
        check(&args.dir)?;
        return Ok(());
    }
    let config = Config::infer().await?;
    let scope = match (args.all_namespaces, args.namespace) {
        (true, _) => Scope::AllNamespaces,
        (false, Some(namespace)) => Scope::Namespace(namespace),
        (false, None) => Scope::Namespace(config.default_namespace.clone()),
    };
    let options = Options { dir: args.dir, scope, linger: Duration::from_secs(args.linger_seconds) };
    keep(config, &options, shutdown).await
}

/// Keeps files as `options` say until `shutdown` is ready.
pub async fn keep(mut config: Config, options: &Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    // The watch has a backoff of its own, of seconds; the client's retries would hold it up for minutes.
    config.default_retry = false;
    // Longer than a watch that is at rest, so that only a connection that is dead is cut.
    config.read_timeout = Some(Duration::from_secs(90));
    let client = Client::try_from(config).map_err(Error::Client)?;
    let mut keeper = Keeper::open(&options.dir, options.linger)?;
    tracing::info!(dir = %options.dir.display(), scope = ?options.scope, "keeping tenants' files");
    watch::run(client, &options.scope, &mut keeper, shutdown).await;
    Ok(())
}

/// Whether the agent that keeps `dir` has had the tenants of a complete list on disk in its present run.
///
/// The agent holds a lock on its folder, so the word of an agent that ended counts for nothing.
pub fn check(dir: &Path) -> Result<Status, CheckError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| CheckError::Unreadable { path, source }
    };
    let is_held = |path: &Path, file: &File| match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(unreadable(path)(error)),
        Ok(()) => Ok(false),
    };
    let (lock, path) = (dir.join(store::LOCK), dir.join(store::STATUS));
    if !is_held(&lock, &File::open(&lock).map_err(unreadable(&lock))?)? {
        return Err(CheckError::NotRunning(dir.to_owned()));
    }
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(CheckError::NotListed),
        Err(error) => return Err(unreadable(&path)(error)),
    };
    // The agent that runs has the folder's lock; whether this is its word, or the last of one
    // before it, tells the lock on the word itself.
    if !is_held(&path, &file)? {
        return Err(CheckError::NotListed);
    }
    let mut json = Vec::new();
    file.read_to_end(&mut json).map_err(unreadable(&path))?;
    let status: Status = serde_json::from_slice(&json).map_err(|error| unreadable(&path)(error.into()))?;
    if status.listed { Ok(status) } else { Err(CheckError::NotListed) }
}
