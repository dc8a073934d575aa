//! `devcluster`: starts and ends a test ground from the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use devcluster::{Devcluster, Error, Options, Progress, Signals};

/// A real Kubernetes control plane and a real PostgreSQL on free loopback ports, for
/// tests, demos and benchmarks.
///
/// The programs are built once, with Go, into ~/.cache/tenantry/devcluster. Variables:
/// DEVCLUSTER_BIN (a folder of ready programs), DEVCLUSTER_KUBECONFIG (a cluster that
/// exists; only PostgreSQL is started), PG_BIN (PostgreSQL's programs), XDG_CACHE_HOME.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a ground, prints a line `ready`, and stays until Ctrl-C, SIGTERM or `down`.
    Up(Up),
    /// Ends the ground that runs in a folder, and waits until it is gone.
    Down {
        /// The folder that `up` was given.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Starts the whole product: a ground, the operator, an agent, a CRM, and `examples/`.
    Demo(devcluster::demo::Args),
    /// Builds or finds the Kubernetes programs, and prints their folder.
    Install,
}

#[derive(Args)]
struct Up {
    /// A folder for everything: `kubeconfig`, `env` (variables for a shell), `log/`. It
    /// must be new, empty, or one that devcluster made before.
    #[arg(long)]
    dir: PathBuf,
    /// How many nodes kwok plays.
    #[arg(long, default_value_t = Options::default().nodes)]
    nodes: u32,
    /// Writes each API call to DIR/audit.log (level Metadata).
    #[arg(long)]
    audit: bool,
    /// Starts etcd and kube-apiserver only (and PostgreSQL): no controllers, no nodes.
    #[arg(long)]
    api_only: bool,
    /// Starts no PostgreSQL.
    #[arg(long)]
    no_postgres: bool,
    /// Leaves out the Gateway API's custom resource definitions.
    #[arg(long)]
    no_gateway_api: bool,
    /// The API server's port on 127.0.0.1 [default: any free one].
    #[arg(long)]
    api_port: Option<u16>,
    /// PostgreSQL's port on 127.0.0.1 [default: any free one].
    #[arg(long)]
    postgres_port: Option<u16>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(up) => run(up),
        Command::Demo(args) => devcluster::demo::run(&args),
        Command::Down { dir } => devcluster::down(&dir),
        Command::Install => {
            devcluster::install(Progress::Shown).map(|programs| println!("{}", programs.folder().display()))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("devcluster: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(up: Up) -> Result<(), Error> {
    // Before anything is started: a signal then never finds half of it without an owner.
    let signals = Signals::take()?;
    let options = Options {
        dir: Some(up.dir),
        nodes: up.nodes,
        audit: up.audit,
        api_only: up.api_only,
        postgres: !up.no_postgres,
        gateway_api: !up.no_gateway_api,
        api_port: up.api_port,
        postgres_port: up.postgres_port,
        progress: Progress::Shown,
        ..Options::default()
    };
    let Some(cluster) = Devcluster::start_unless(options, &signals)? else {
        return Ok(());
    };
    println!(". {}/env    # KUBECONFIG, KUBECTL, HELM, DATABASE_ADMIN_URL", cluster.dir().display());
    println!("ready");
    cluster.supervise(&signals, &[])
}
