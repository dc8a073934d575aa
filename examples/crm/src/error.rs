//! What can go wrong, and what the client is told of it.

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_postgres::error::{DbError, SqlState};

/// Seconds after which a client may try again what could not be done now.
const RETRY_SECONDS: u64 = 2;
/// SQLSTATE of `record_usage` at a hard limit.
const LIMIT_REACHED: &str = "TN001";

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Host header is missing, there twice, or no DNS name.
    #[error("the Host header must name your site, for instance acme.example.com")]
    BadHost,
    /// No tenant has this host.
    #[error("no customer is reached by {0}")]
    UnknownHost(String),
    /// The request can't be understood.
    #[error("{1}")]
    BadRequest(StatusCode, String),
    /// There is no such row, or no such path.
    #[error("{0} not found")]
    NotFound(String),
    /// The tenant's files or database can't be used now. The reason is for the log.
    #[error("{0}")]
    Unavailable(String),
    /// The connection broke while the commit was under way.
    #[error("the connection broke while this was being saved; look whether it was before you try again")]
    OutcomeUnknown(#[source] tokio_postgres::Error),
    /// The request was given up, wherever it was.
    #[error("this took too long and was given up; look whether it was done before you try again")]
    TookTooLong,
    /// The database refused.
    #[error(transparent)]
    Database(#[from] tokio_postgres::Error),
}

/// What `record_usage` says in the detail of [`LIMIT_REACHED`].
#[derive(Deserialize)]
struct LimitDetail {
    meter: String,
    limit: i64,
    value: i64,
}

impl Error {
    /// Whether the transaction was rolled back for a reason that may be gone next time: a deadlock, a serialization
    /// failure, or a connection that ended before the commit.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => match error.code() {
                Some(code) => {
                    *code == SqlState::T_R_SERIALIZATION_FAILURE
                        || *code == SqlState::T_R_DEADLOCK_DETECTED
                        || ended_the_session(code)
                }
                None => {
                    error.is_closed()
                        || std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
                }
            },
            _ => false,
        }
    }

    fn status_and_body(&self) -> (StatusCode, Value) {
        let body = |kind: &str, message: String| json!({"error": kind, "message": message});
        match self {
            Self::BadHost => (StatusCode::BAD_REQUEST, body("bad_host", self.to_string())),
            Self::UnknownHost(_) => (StatusCode::NOT_FOUND, body("unknown_host", self.to_string())),
            Self::BadRequest(status, message) => (*status, body("bad_request", message.clone())),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, body("not_found", self.to_string())),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, body("unavailable", UNAVAILABLE.into())),
            Self::OutcomeUnknown(_) | Self::TookTooLong => {
                (StatusCode::SERVICE_UNAVAILABLE, body("outcome_unknown", self.to_string()))
            }
            Self::Database(error) => match error.as_db_error() {
                Some(error) => refused(error),
                None => (StatusCode::SERVICE_UNAVAILABLE, body("unavailable", UNAVAILABLE.into())),
            },
        }
    }
}

const UNAVAILABLE: &str = "your data can't be reached at the moment; nothing was changed, please try again";

/// A message of the server as an answer. Only what a client may know: its own values, never another's names.
fn refused(error: &DbError) -> (StatusCode, Value) {
    let code = error.code();
    let body = |kind: &str, message: &str| json!({"error": kind, "message": message});
    if code.code() == LIMIT_REACHED {
        let mut answer = body("limit_reached", error.message());
        if let Some(detail) = error.detail().and_then(|detail| serde_json::from_str::<LimitDetail>(detail).ok()) {
            answer["meter"] = detail.meter.into();
            answer["limit"] = detail.limit.into();
            answer["value"] = detail.value.into();
        }
        return (StatusCode::PAYMENT_REQUIRED, answer);
    }
    if *code == SqlState::UNIQUE_VIOLATION || *code == SqlState::FOREIGN_KEY_VIOLATION {
        return (StatusCode::CONFLICT, body("conflict", error.detail().unwrap_or(error.message())));
    }
    // Class 22 is data that no column takes; the others are rules of the tables.
    if code.code().starts_with("22") || *code == SqlState::CHECK_VIOLATION || *code == SqlState::NOT_NULL_VIOLATION {
        return (StatusCode::UNPROCESSABLE_ENTITY, body("invalid", error.message()));
    }
    let for_now = ended_the_session(code)
        || ["40", "53"].iter().any(|class| code.code().starts_with(class))
        || *code == SqlState::QUERY_CANCELED
        // A new customer's tables are made a moment after its login.
        || *code == SqlState::UNDEFINED_TABLE;
    if for_now {
        return (StatusCode::SERVICE_UNAVAILABLE, body("unavailable", UNAVAILABLE));
    }
    (StatusCode::INTERNAL_SERVER_ERROR, body("internal", "something went wrong here; it has been logged"))
}

/// Shutdown of the server, an ended session, a broken connection.
pub(crate) fn ended_the_session(code: &SqlState) -> bool {
    *code == SqlState::ADMIN_SHUTDOWN
        || *code == SqlState::CRASH_SHUTDOWN
        || *code == SqlState::CANNOT_CONNECT_NOW
        || *code == SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
        || code.code().starts_with("08")
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, body) = self.status_and_body();
        if status.is_server_error() {
            let source = std::error::Error::source(&self).map(ToString::to_string);
            tracing::warn!(status = status.as_u16(), error = %self, source, "request failed");
        }
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
        }
        response
    }
}
