//! `ledger`: the operator's own database of usage.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use super::{Verb, resync::ResyncArgs};
use crate::metering::ledger::Ledger;

/// What is done with the ledger.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// Make or upgrade the ledger's tables, and give the operator's login its rights
    Migrate(MigrateArgs),
    /// Send usage events once more that were sent since a time, after the ledger was restored
    Resync(Verb<ResyncArgs>),
}

/// Arguments of `ledger migrate`.
#[derive(Args, Debug)]
pub struct MigrateArgs {
    /// How the tables' owner reaches the ledger: postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE
    #[arg(long, env = "TENANTRY_LEDGER_OWNER_URL", hide_env_values = true)]
    owner_url: String,
    /// How the operator reaches it, with a login of its own; made with this password where it isn't there
    #[arg(long, env = "TENANTRY_LEDGER_URL", hide_env_values = true)]
    url: String,
    /// Try again until it is done, then stay until asked to end: for a container beside the operator, which waits for no ledger
    #[arg(long)]
    stay: bool,
}

/// How long it waits before it tries again.
const PAUSE: Duration = Duration::from_secs(5);

/// Makes or upgrades the tables, once or as long as it takes.
pub(super) async fn run(args: &MigrateArgs) -> anyhow::Result<ExitCode> {
    if args.stay {
        // A process that is the first of its container ends at a signal only if it listens for it.
        let mut end = signal(SignalKind::terminate())?;
        tokio::select! {
            () = stay(args) => {}
            _ = end.recv() => {}
        }
    } else {
        migrate(args).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn stay(args: &MigrateArgs) {
    while let Err(error) = migrate(args).await {
        eprintln!("{error:#}; trying again in {PAUSE:?}");
        tokio::time::sleep(PAUSE).await;
    }
    std::future::pending().await
}

async fn migrate(args: &MigrateArgs) -> anyhow::Result<()> {
    Ledger::migrate_for(&args.owner_url, &args.url).await?;
    let ledger = Ledger::new(&args.url, 1)?;
    ledger.check().await.context("the ledger is migrated, but the operator can't use it")?;
    eprintln!("the ledger is ready");
    Ok(())
}
