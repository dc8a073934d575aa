//! `ledger`: the operator's own database of usage.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::metering::ledger::Ledger;

/// What is done with the ledger.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// Make or upgrade the ledger's tables, and give the operator's login its rights
    Migrate(MigrateArgs),
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
}

/// Runs a command on the ledger.
pub(super) async fn run(command: &LedgerCommand) -> anyhow::Result<ExitCode> {
    match command {
        LedgerCommand::Migrate(args) => {
            Ledger::migrate_for(&args.owner_url, &args.url).await?;
            let ledger = Ledger::new(&args.url, 1)?;
            ledger.check().await.context("the ledger is migrated, but the operator can't use it")?;
            eprintln!("the ledger is ready");
            Ok(ExitCode::SUCCESS)
        }
    }
}
