//! The `tenantry` program: one binary, one subcommand for each of its parts.

use clap::{Parser, Subcommand};

/// Runs one SaaS product for many customers, each at the isolation tier that its plan pays for.
#[derive(Debug, Parser)]
#[command(name = "tenantry", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the CustomResourceDefinitions, write them to files, or print their reference.
    Crds(tenantry::crds::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Crds(args) => tenantry::crds::run(&args)?,
    }
    Ok(())
}
