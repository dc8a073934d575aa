//! What every session with PostgreSQL needs, whoever opens it: TLS, and errors in words that help.

mod tls;

pub use tls::{Connector, Distrust, distrust};

use std::error::Error as StdError;

/// An error and what caused it, in one line.
pub fn sources(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
