//! What is wrong with a resource, for the person who wrote it.

use std::fmt;

use crate::api::Reason;

/// One thing that is wrong with a resource; it becomes a condition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// One CamelCase word for programs.
    pub reason: Reason,
    /// The field, such as `spec.components[0].template.spec.containers[0].image`. Where it
    /// is in another object than the one that was checked, that object comes first:
    /// `Plan smb: spec.limits.users`.
    pub path: String,
    /// What is wrong, and what to change.
    pub message: String,
}

impl Fault {
    /// A fault of a field.
    pub fn new(reason: Reason, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason, path: path.into(), message: message.into() }
    }

    /// The same fault, for somebody who looks at another object.
    #[must_use]
    pub fn within(self, kind: &str, name: &str) -> Self {
        Self { path: format!("{kind} {name}: {}", self.path), ..self }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.message)
    }
}

/// A number of things: `1 Tenant`, `3 Tenants`.
pub fn count(number: impl fmt::Display, thing: &str) -> String {
    let number = number.to_string();
    let plural = if number == "1" { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// The faults as one message for a condition: at most three of them, then how many more.
pub fn join_faults(faults: &[Fault]) -> String {
    const SHOWN: usize = 3;
    let mut text = faults.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if let Some(more) = faults.len().checked_sub(SHOWN).filter(|&more| more > 0) {
        text.push_str(&format!("; and {more} more"));
    }
    text
}
