//! Answers that say why a request isn't done.

use std::time::Duration;

use axum::{
    Json,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use tracing::debug;

use super::callers::Stranger;
use crate::metering::{
    counts::{Counts, Denial},
    ledger::LedgerError,
};

/// What a request is answered that isn't done; of a request with events, no event was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// One word for programs.
    pub reason: String,
    /// What to change.
    pub message: String,
}

/// Why a request isn't done.
pub(super) struct Trouble {
    status: StatusCode,
    reason: &'static str,
    message: String,
}

impl Trouble {
    pub(super) fn new(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { status, reason, message: message.into() }
    }

    pub(super) fn ledger(error: &LedgerError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "LedgerAway", error.to_string())
    }

    pub(super) fn api_server(error: &str) -> Self {
        debug!(error, "the API server can't be asked about a caller");
        let message = "the API server can't be asked about the token: send it again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ApiServerAway", message)
    }

    pub(super) fn too_much() -> Self {
        let message = "too much of this caller is under way: wait for the answers, then send it again";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TooMuchUnderWay", message)
    }

    /// Of who isn't known; a denial is counted.
    pub(super) fn stranger(stranger: Stranger, counts: &Counts) -> Self {
        match stranger {
            Stranger::Denied(denial) => Self::denied(denial, counts),
            Stranger::Away(error) => Self::api_server(&error),
        }
    }

    /// Of who may not do this; it is counted.
    pub(super) fn denied(denial: Denial, counts: &Counts) -> Self {
        counts.denied(denial);
        let (status, message) = match denial {
            Denial::NoToken => {
                (StatusCode::UNAUTHORIZED, "send a token for audience tenantry as Authorization: Bearer TOKEN")
            }
            Denial::BadToken => (
                StatusCode::UNAUTHORIZED,
                "the API server doesn't know this token, or not for audience tenantry, or no longer",
            ),
            Denial::NoServiceAccount => (StatusCode::FORBIDDEN, "only ServiceAccounts send events"),
            Denial::ForeignNamespace => (
                StatusCode::FORBIDDEN,
                "the ServiceAccount's namespace is no relay's, and no tenant has it for its own",
            ),
            Denial::Forbidden => (
                StatusCode::FORBIDDEN,
                "the token's user may not get this Tenant (verb get, resource tenants.tenantry.io), and is no \
                 ServiceAccount of the tenant's own namespace",
            ),
        };
        Self::new(status, denial.as_str(), message)
    }

    pub(super) fn response(self) -> Response {
        let problem = Problem { reason: self.reason.to_owned(), message: self.message };
        let mut response = (self.status, Json(problem)).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => later(headers, self.reason),
            StatusCode::UNAUTHORIZED => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tenantry\""));
            }
            _ => {}
        }
        response
    }
}

/// Says when to come again: soon where others are only faster.
pub(super) fn later(headers: &mut HeaderMap, reason: &str) {
    let seconds = if matches!(reason, "Busy" | "TooMuchUnderWay") { "1" } else { "5" };
    headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
}

/// What the ledger says, if it does so in time.
pub(super) async fn within<T>(
    patience: Duration,
    asked: impl Future<Output = Result<T, LedgerError>>,
) -> Result<T, Trouble> {
    let answer = tokio::time::timeout(patience, asked).await;
    let answer = answer.unwrap_or_else(|_| Err(LedgerError::Away(format!("it did not answer within {patience:?}"))));
    answer.map_err(|error| Trouble::ledger(&error))
}
