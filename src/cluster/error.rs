//! What can go wrong with a call to the API server, and what to do about it.

use kube::core::Status;

/// The result of a call to the API server.
pub type Result<T> = std::result::Result<T, Error>;

/// How a caller should react to an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The API server, the network or another writer was in the way: try again, later and later.
    Transient,
    /// Rights or objects that are on their way have not arrived: look again soon.
    Waiting,
    /// Trying again changes nothing: a person has to change what the message names.
    Permanent,
}

/// A call to the API server failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// An object of this name is there and is not ours. It is never adopted.
    #[error("{what} is there already and was not made by Tenantry: remove or rename it")]
    Foreign {
        /// Kind, namespace and name.
        what: String,
    },
    /// The API server refused.
    #[error("{what}: {message}")]
    Refused {
        /// What was being done, to which object.
        what: String,
        /// What the API server said.
        message: String,
        /// How to react.
        class: ErrorClass,
    },
}

impl Error {
    /// How to react.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Foreign { .. } => ErrorClass::Permanent,
            Self::Refused { class, .. } => *class,
        }
    }

    pub(super) fn from_kube(what: impl Into<String>, error: &kube::Error) -> Self {
        let (message, class) = match error {
            kube::Error::Api(status) => (status.message.clone(), class_of(status)),
            other => (other.to_string(), ErrorClass::Transient),
        };
        Self::Refused { what: what.into(), message, class }
    }

    pub(super) fn timeout(what: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), message: "no answer in time".into(), class: ErrorClass::Transient }
    }
}

fn class_of(status: &Status) -> ErrorClass {
    match status.code {
        // The authorizer learns of a new RoleBinding a moment after it was made.
        403 => ErrorClass::Waiting,
        400 | 405 | 415 | 422 => ErrorClass::Permanent,
        _ => ErrorClass::Transient,
    }
}

/// Whether the object was not there.
pub(super) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the object had changed, was another one, or somebody else was writing it just then.
/// Which of these it was, only a look tells.
pub(super) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 || status.code == 412)
}

/// Whether an unforced apply met fields that somebody else owns. (A conflict may also be one
/// of contention: on the object itself, or on a ResourceQuota that has to count it.)
pub(super) fn is_owned_by_others(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    status.code == 409 && causes.iter().any(|cause| cause.reason == "FieldManagerConflict")
}
