//! The operator's API, as the relay uses it: a batch of CloudEvents goes there, and an answer for
//! each event comes back.
//!
//! hyper's client, which kube brings anyway: with it nothing is compiled that isn't already.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use jiff::Timestamp;

use super::token::Token;
use super::trust::{Connector, Trust};
use super::{Error, Options};
use crate::metering::event::Answer;

/// Media type of a batch (CloudEvents 1.0, JSON batch format).
const BATCH: &str = "application/cloudevents-batch+json";
/// The path of the API.
const PATH: &str = "/v1/events";
/// The largest answer that is read: one line for each of some thousand events.
const LARGEST_ANSWER: usize = 4 << 20;
/// How much of a refusal's text is passed on.
const LONGEST_TEXT: usize = 300;
/// How long a connection that nobody uses is kept: less than the API keeps one, so that none is
/// used that is just being closed.
const IDLE: Duration = Duration::from_secs(10);

/// What came of a post.
#[derive(Debug)]
pub(super) enum Reply {
    /// An answer for each event.
    Answered(Answer),
    /// The batch is too large.
    TooLarge(String),
    /// The batch is refused as it is; who is to blame isn't said.
    Refused(String),
    /// The API can't be used now, or not by this relay.
    Away {
        /// What is wrong.
        error: String,
        /// For how long the API wants to be left alone, where it said so.
        pause: Option<Duration>,
    },
}

/// A client of the API.
pub(super) struct Api {
    http: Client<Connector, Body>,
    url: Uri,
    token: Token,
    timeout: Duration,
}

impl Api {
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let url = url(&options.api_url)?;
        let trust = Arc::new(Trust::new(options.api_ca.clone(), url.scheme_str() == Some("https"))?);
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(options.timeout));
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(options.concurrency)
            .build(Connector { http, trust });
        Ok(Self { http, url, token: Token::new(options.token_file.clone()), timeout: options.timeout })
    }

    /// Posts a batch. Ends by itself, after the timeout at the latest.
    pub(super) async fn post(&self, body: Bytes) -> Reply {
        let away = |error: String| Reply::Away { error, pause: None };
        let authorization = match self.token.header().await {
            Ok(header) => header,
            Err(error) => return away(error),
        };
        let request = Request::post(&self.url)
            .header(CONTENT_TYPE, BATCH)
            .header(AUTHORIZATION, authorization)
            .header(USER_AGENT, concat!("tenantry-relay/", env!("CARGO_PKG_VERSION")))
            .body(Body::from(body))
            .expect("the URL was checked, and the rest is constant");
        match tokio::time::timeout(self.timeout, self.exchange(request)).await {
            Ok(Ok((status, headers, text))) => self.reply(status, &headers, &text),
            Ok(Err(error)) => away(format!("{}: {error}", self.url)),
            Err(_) => away(format!("{} did not answer within {:?}", self.url, self.timeout)),
        }
    }

    async fn exchange(&self, request: Request<Body>) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        let response = self.http.request(request).await.map_err(|error| sources(&error))?;
        let (head, body) = response.into_parts();
        let body = to_bytes(Body::new(body), LARGEST_ANSWER).await.map_err(|error| sources(&error))?;
        Ok((head.status, head.headers, body))
    }

    fn reply(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Reply {
        let text = || {
            let text: String = String::from_utf8_lossy(body).chars().take(LONGEST_TEXT).collect();
            format!("{status}: {}", text.trim().replace('\n', " "))
        };
        match status {
            StatusCode::OK | StatusCode::ACCEPTED => match serde_json::from_slice(body) {
                Ok(answer) => Reply::Answered(answer),
                Err(error) => {
                    Reply::Away { error: format!("{} gave no answer that is known: {error}", self.url), pause: None }
                }
            },
            StatusCode::PAYLOAD_TOO_LARGE => Reply::TooLarge(text()),
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Reply::Refused(text()),
            _ => {
                let advice = match status {
                    StatusCode::UNAUTHORIZED => {
                        self.token.refused();
                        "; the token must be the relay's own, for audience tenantry"
                    }
                    StatusCode::FORBIDDEN => "; the API takes events of this server from its own relay alone",
                    StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                        "; is --api-url that of the operator's API?"
                    }
                    StatusCode::MISDIRECTED_REQUEST => "; the API speaks TLS: --api-url is to begin with https://",
                    _ => "",
                };
                Reply::Away { error: format!("{} answered {}{advice}", self.url, text()), pause: retry_after(headers) }
            }
        }
    }
}

/// For how long a server wants to be left alone: seconds, or a date (RFC 9110).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at: Timestamp = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Duration::try_from(at - Timestamp::now()).ok()
}

fn url(base: &str) -> Result<Uri, Error> {
    let wrong =
        |why: &str| Error::Url(format!("--api-url {base:?} {why}: write http://HOST:PORT or https://HOST:PORT"));
    let url: Uri = format!("{}{PATH}", base.trim_end_matches('/')).parse().map_err(|_| wrong("is no URL"))?;
    match (url.scheme_str(), url.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(url),
        _ => Err(wrong("names no scheme and host")),
    }
}

/// An error and what caused it, in one line.
fn sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_scheme_and_host() {
        assert_eq!(url("http://api:8081/").expect("good").to_string(), "http://api:8081/v1/events");
        assert_eq!(url("https://api/base").expect("good").to_string(), "https://api/base/v1/events");
        for bad in ["api:8081", "ftp://api", "/v1", "", "http://"] {
            let error = url(bad).expect_err("bad").to_string();
            assert!(error.contains("--api-url"), "{error}");
        }
    }

    #[test]
    fn how_long_to_wait_is_said_in_seconds_or_as_a_date() {
        let asked = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().expect("a header"));
            retry_after(&headers)
        };
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        let date = jiff::fmt::rfc2822::to_string(
            &(Timestamp::now() + jiff::SignedDuration::from_secs(60)).to_zoned(jiff::tz::TimeZone::UTC),
        );
        let pause = asked(&date.expect("a date")).expect("understood");
        assert!(pause > Duration::from_secs(50) && pause <= Duration::from_secs(60), "{pause:?}");
        assert_eq!(asked("Thu, 01 Jan 1970 00:00:00 GMT"), None);
        assert_eq!(asked("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
