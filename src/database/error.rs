//! What can go wrong, and what kind of wrong it is.

use std::error::Error as StdError;
use std::fmt;

use tokio_postgres::error::SqlState;

pub(super) use crate::postgres::sources;

/// The result of every operation of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// How a caller should react to an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The server, the network or a lock was in the way: try again, later and later.
    Transient,
    /// Nothing is wrong, something else has to end first: look again after a while.
    Waiting,
    /// Trying again changes nothing: a person has to change what the message names.
    Permanent,
}

/// An operation on a tenant's server failed. The text says what happened and, where a person
/// has to act, what to change. It holds no password and no verifier.
#[derive(Clone, Debug)]
pub struct Error {
    class: ErrorClass,
    sqlstate: Option<SqlState>,
    message: String,
}

impl Error {
    /// How to react.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.class
    }

    /// The five characters of PostgreSQL's error code, where the server gave one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        self.sqlstate.as_ref().map(SqlState::code)
    }

    pub(super) fn permanent(message: impl Into<String>) -> Self {
        Self { class: ErrorClass::Permanent, sqlstate: None, message: message.into() }
    }

    pub(super) fn waiting(message: impl Into<String>) -> Self {
        Self { class: ErrorClass::Waiting, sqlstate: None, message: message.into() }
    }

    pub(super) fn transient(message: impl Into<String>) -> Self {
        Self { class: ErrorClass::Transient, sqlstate: None, message: message.into() }
    }

    /// What a server, or the way to it, answered to a statement while `doing` something.
    pub(super) fn from_postgres(doing: &str, error: &tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return Self::transient(format!("{doing}: {}", sources(error)));
        };
        let mut message = format!("{doing}: {} (SQLSTATE {})", db.message(), db.code().code());
        // A detail can quote a row or a statement, so only those that name objects are passed on.
        if names_objects(db.code())
            && let Some(detail) = db.detail()
        {
            message.push_str(": ");
            message.push_str(&detail.replace('\n', "; "));
        }
        Self { class: class_of(db.code()), sqlstate: Some(db.code().clone()), message }
    }

    pub(super) fn is(&self, state: &SqlState) -> bool {
        self.sqlstate.as_ref() == Some(state)
    }

    /// The same error, explained: `message` replaces the text, the class becomes permanent.
    pub(super) fn explained(self, message: impl Into<String>) -> Self {
        Self { class: ErrorClass::Permanent, sqlstate: self.sqlstate, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {}

fn names_objects(state: &SqlState) -> bool {
    // 2BP01: objects depend on what is to be dropped; 55006: sessions use the database.
    ["2BP01", "55006"].contains(&state.code())
}

fn class_of(state: &SqlState) -> ErrorClass {
    let code = state.code();
    // 08 connection, 40 rollback (deadlock, serialization), 53 resources, 55006/55P03 in use or
    // locked, 57 operator intervention, 58 system, 25P03/25P04 idle or long transaction ended,
    // XX000 "tuple concurrently updated". TN010: another leader; either this process ends, or
    // its number rises. TN011, another cluster's database, is none of these.
    let transient = ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class))
        || ["55006", "55P03", "25P03", "25P04", "XX000", "TN010"].contains(&code);
    if transient { ErrorClass::Transient } else { ErrorClass::Permanent }
}
