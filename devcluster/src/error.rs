//! What can go wrong while the ground is built, started or stopped.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A failure, told so that the reader knows what to change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder couldn't be read, written, made or removed.
    #[error("can't {action} {}: {source}{}", path.display(), hint(source))]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// Another devcluster runs in this folder.
    #[error("{} is in use by a devcluster{}: end it with `devcluster down --dir {}`, or choose another folder", dir.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
        /// The process that holds it, when it could be read.
        pid: Option<u32>,
    },

    /// Nothing runs in this folder.
    #[error("no devcluster runs in {}{}", dir.display(), if *known { "" } else { " (it was never a devcluster's folder)" })]
    NotRunning {
        /// The folder.
        dir: PathBuf,
        /// Whether a devcluster ever ran there.
        known: bool,
    },

    /// The folder holds files that no devcluster made.
    #[error("{} is not empty and was not made by devcluster (it holds {}): nothing was touched; name a folder that is empty or doesn't exist", dir.display(), entry.display())]
    Foreign {
        /// The folder.
        dir: PathBuf,
        /// One of the files in it.
        entry: PathBuf,
    },

    /// A program or user that is needed isn't on this machine.
    #[error("{what}: {hint}")]
    Missing {
        /// What is missing.
        what: String,
        /// What to do about it.
        hint: String,
    },

    /// A file system is nearly full.
    #[error("not enough room in {}: {free_mib} MiB are free, {needed_mib} MiB are needed to {purpose}", path.display())]
    NoRoom {
        /// The folder that was to be written to.
        path: PathBuf,
        /// What is free there, in MiB.
        free_mib: u64,
        /// What is needed, in MiB.
        needed_mib: u64,
        /// For what.
        purpose: &'static str,
    },

    /// A port that was asked for is taken.
    #[error(
        "port {port} on 127.0.0.1, asked for {program}, is taken: stop what listens there (`ss -ltnp 'sport = :{port}'` names it) or choose another port"
    )]
    PortTaken {
        /// Who was to listen there.
        program: String,
        /// The port.
        port: u16,
    },

    /// A program ended that should have stayed.
    #[error("{program} ended ({status}); its log is {}{}", log.display(), quoted(tail))]
    Died {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },

    /// A program runs but didn't become ready.
    #[error("{program} was not ready within {} s ({state}); its log is {}{}", after.as_secs(), log.display(), quoted(tail))]
    NotReady {
        /// The program.
        program: String,
        /// What was seen last.
        state: String,
        /// How long was waited.
        after: Duration,
        /// Its log.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },

    /// A command that runs to its end failed.
    #[error("{command} failed ({status}){}", quoted(output))]
    Command {
        /// The command.
        command: String,
        /// How it ended.
        status: String,
        /// The last lines that it printed.
        output: String,
    },

    /// A certificate couldn't be made.
    #[error("can't make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),

    /// The Kubernetes API refused a call.
    #[error("{action}: {source}")]
    Kubernetes {
        /// What was being done.
        action: String,
        /// What the API said.
        source: Box<kube::Error>,
    },

    /// A kubeconfig couldn't be used.
    #[error("can't use the kubeconfig {}: {reason}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl Error {
    /// A file error, as a closure for `map_err`.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::File { action, path: path.to_owned(), source }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": free some space there, or choose another folder (--dir, or TMPDIR for temporary ones)"
        }
        _ => "",
    }
}

fn quoted(lines: &str) -> String {
    if lines.trim().is_empty() {
        return String::new();
    }
    lines.trim_end().lines().fold(":".to_owned(), |mut text, line| {
        // Writing to a String can't fail.
        let _ = write!(text, "\n  | {line}");
        text
    })
}
