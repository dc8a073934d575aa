//! What people run from a shell: `tenantry status`, `tree`, `retained`, `adopt`, `correct` and
//! such, or `kubectl tenantry …` where the program is in the path as `kubectl-tenantry`.
//!
//! These verbs need no operator: they read what it wrote, and what they change are annotations
//! that it acts on. Those about usage go to the databases, as the servers' admin.

mod adopt;
mod client;
mod correct;
mod deadletters;
mod ledger;
mod resync;
mod retained;
mod servers;
mod status;
mod table;
mod tree;

use std::{
    ffi::OsStr,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tokio::runtime::Builder;

use self::client::ClientArgs;

/// What a command of the user's ends with, beside 0 for success, 1 for a failure and 2 for a
/// command line that can't be understood: something that was asked for needs a person.
const INCOMPLETE: u8 = 3;

/// The verbs of people.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say how the tenants are: all by tier and plan and what is wrong, or one in full
    Status(Verb<status::StatusArgs>),
    /// Show what a tenant runs by: its pool or namespace, and its objects with their state
    Tree(Verb<tree::TreeArgs>),
    /// List what deleted tenants left in the databases, and until when it is kept
    Retained(Verb<retained::RetainedArgs>),
    /// Give Tenants the data that earlier ones of their names left, after a restore of the cluster
    Adopt(Verb<adopt::AdoptArgs>),
    /// Correct what a tenant counted, in its database: limit, function and ledger follow
    Correct(Verb<correct::CorrectArgs>),
    /// Usage events that were refused for good: see why, and send them again
    #[command(subcommand)]
    Deadletters(deadletters::Command),
    /// Look after the operator's own database of usage
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
}

/// A verb's own arguments, and those that all have.
#[derive(Args, Debug)]
pub struct Verb<A: Args> {
    #[command(flatten)]
    args: A,
    #[command(flatten)]
    client: ClientArgs,
    /// How the answer is printed
    #[arg(long, short, default_value = "table", env = "TENANTRY_OUTPUT")]
    output: Output,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The program as kubectl calls it.
#[derive(Debug, Parser)]
#[command(name = "kubectl tenantry", bin_name = "kubectl tenantry", version, propagate_version = true)]
/// Look after the tenants of a cluster that Tenantry runs
struct Plugin {
    #[command(subcommand)]
    command: Command,
}

/// What a verb found, printed one way or the other.
trait Answer: Serialize {
    /// The answer for people, in lines of at most `width` columns where a terminal has so many.
    fn text(&self, width: Option<usize>) -> String;

    /// Whether something that was asked for needs a person.
    fn is_incomplete(&self) -> bool {
        false
    }
}

/// Whether the program was called as kubectl calls a plugin: by a name that begins so.
pub fn is_plugin(program: Option<&OsStr>) -> bool {
    let name = program.map(Path::new).and_then(Path::file_stem);
    name == Some(OsStr::new("kubectl-tenantry"))
}

/// Runs the program as a plugin of kubectl.
pub fn plugin() -> ExitCode {
    run(Plugin::parse().command)
}

/// Runs a verb; what goes wrong is printed.
pub fn run(command: Command) -> ExitCode {
    let ended = Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            match command {
                Command::Status(verb) => print(verb.output, &status::status(&verb.args, &verb.client).await?),
                Command::Tree(verb) => print(verb.output, &tree::tree(&verb.args, &verb.client).await?),
                Command::Retained(verb) => print(verb.output, &retained::retained(&verb.args, &verb.client).await?),
                Command::Adopt(verb) => print(verb.output, &adopt::adopt(&verb.args, &verb.client).await?),
                Command::Correct(verb) => print(verb.output, &correct::correct(&verb.args, &verb.client).await?),
                Command::Deadletters(deadletters::Command::List(verb)) => {
                    print(verb.output, &deadletters::list(&verb.args, &verb.client).await?)
                }
                Command::Deadletters(deadletters::Command::Redrive(verb)) => {
                    print(verb.output, &deadletters::redrive(&verb.args, &verb.client).await?)
                }
                Command::Ledger(ledger::LedgerCommand::Migrate(args)) => ledger::run(&args).await,
                Command::Ledger(ledger::LedgerCommand::Resync(verb)) => {
                    print(verb.output, &resync::resync(&verb.args, &verb.client).await?)
                }
            }
        })
    });
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print(output: Output, answer: &impl Answer) -> anyhow::Result<ExitCode> {
    let text = match output {
        Output::Table => answer.text(table::terminal_width()),
        Output::Json => serde_json::to_string_pretty(answer)? + "\n",
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // `kubectl tenantry status | head` is no fault.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    Ok(if answer.is_incomplete() { ExitCode::from(INCOMPLETE) } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn kubectl_is_told_from_a_shell() {
        for (program, plugin) in
            [("kubectl-tenantry", true), ("/usr/local/bin/kubectl-tenantry", true), ("tenantry", false)]
        {
            assert_eq!(is_plugin(Some(OsStr::new(program))), plugin, "{program}");
        }
        assert!(!is_plugin(None));
    }

    #[test]
    fn the_command_line_is_consistent() {
        Plugin::command().debug_assert();
    }
}
