//! What the API counts about itself, in the Prometheus format; the operator's /metrics shows it.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{event::Answer, judge::Reason};

/// Bounds of the time that the ledger takes for a batch, in seconds.
const DURATIONS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Bounds of the number of events in a batch.
const SIZES: [f64; 7] = [1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1_000.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfResult {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfCode {
    code: u16,
}

/// Why a whole request is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denial {
    /// It brings no token.
    NoToken,
    /// The API server doesn't know its token, or not for this audience.
    BadToken,
    /// Its token is no ServiceAccount's.
    NoServiceAccount,
    /// Its ServiceAccount is in a namespace that is no tenant's and no relay's.
    ForeignNamespace,
    /// Its user may not read this tenant.
    Forbidden,
}

impl Denial {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::NoToken, Self::BadToken, Self::NoServiceAccount, Self::ForeignNamespace, Self::Forbidden];

    /// One word for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "NoToken",
            Self::BadToken => "BadToken",
            Self::NoServiceAccount => "NoServiceAccount",
            Self::ForeignNamespace => "ForeignNamespace",
            Self::Forbidden => "Forbidden",
        }
    }
}

/// The API's metrics. Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub struct Counts {
    events: Family<OfResult, Counter>,
    refused: Family<OfReason, Counter>,
    requests: Family<OfCode, Counter>,
    denied: Family<OfReason, Counter>,
    reviews: Family<OfResult, Counter>,
    access_reviews: Family<OfResult, Counter>,
    batch_seconds: Histogram,
    batch_events: Histogram,
    waiting: Gauge,
    away: Gauge,
    certificate_expires: Gauge,
    certificate_failures: Counter,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            events: Family::default(),
            refused: Family::default(),
            requests: Family::default(),
            denied: Family::default(),
            reviews: Family::default(),
            access_reviews: Family::default(),
            batch_seconds: Histogram::new(DURATIONS),
            batch_events: Histogram::new(SIZES),
            waiting: Gauge::default(),
            away: Gauge::default(),
            certificate_expires: Gauge::default(),
            certificate_failures: Counter::default(),
        }
    }
}

impl Counts {
    /// Shows them in a registry; what is rare is there with 0 before it happens.
    pub fn register(&self, registry: &mut Registry) {
        for (result, _) in Answer::default().numbers() {
            drop(self.events.get_or_create(&OfResult { result }));
        }
        for reason in Reason::ALL {
            drop(self.refused.get_or_create(&OfReason { reason: reason.as_str() }));
        }
        for denial in Denial::ALL {
            drop(self.denied.get_or_create(&OfReason { reason: denial.as_str() }));
        }
        for result in ["known", "unknown", "failed"] {
            drop(self.reviews.get_or_create(&OfResult { result }));
        }
        for result in ["allowed", "denied", "failed"] {
            drop(self.access_reviews.get_or_create(&OfResult { result }));
        }
        for code in [200, 503] {
            drop(self.requests.get_or_create(&OfCode { code }));
        }
        let events = "Usage events, marks and outbox reports that were posted, by what became of them";
        registry.register("usage_events", events, self.events.clone());
        let refused = "Events that were rejected or deferred, by reason";
        registry.register("usage_events_refused", refused, self.refused.clone());
        let requests = "Requests to the metering API that were answered, by status code";
        registry.register("ingest_requests", requests, self.requests.clone());
        let denied = "Requests to the metering API that were denied, by reason";
        registry.register("ingest_denied", denied, self.denied.clone());
        let reviews = "Tokens that the API server was asked about, by its answer";
        registry.register("token_reviews", reviews, self.reviews.clone());
        let access = "Rights to read a tenant's usage that the API server was asked about, by its answer";
        registry.register("access_reviews", access, self.access_reviews.clone());
        registry.register("ingest_batch_seconds", "How long the ledger took for a batch", self.batch_seconds.clone());
        registry.register("ingest_batch_events", "Events in a batch for the ledger", self.batch_events.clone());
        registry.register("ingest_queue_events", "Events that wait for the ledger", self.waiting.clone());
        registry.register("ledger_away", "1 while the ledger can't be used", self.away.clone());
        let expires = "When the metering API's certificate ends, in seconds since 1970; 0 without TLS";
        let name = "api_certificate_expiry_timestamp_seconds";
        registry.register(name, expires, self.certificate_expires.clone());
        let failures = "Looks at the files of the metering API's certificate that found one of no use";
        registry.register("api_certificate_failures", failures, self.certificate_failures.clone());
    }

    /// Counts what became of events, as it is answered.
    pub fn answered(&self, answer: &Answer) {
        for (result, number) in answer.numbers().into_iter().filter(|(_, number)| *number > 0) {
            self.events.get_or_create(&OfResult { result }).inc_by(number);
        }
    }

    /// Counts an event that is not taken.
    pub fn refused(&self, reason: Reason) {
        self.refused.get_or_create(&OfReason { reason: reason.as_str() }).inc();
    }

    /// Counts a request.
    pub fn request(&self, code: u16) {
        self.requests.get_or_create(&OfCode { code }).inc();
    }

    /// Counts a request that is denied.
    pub fn denied(&self, denial: Denial) {
        self.denied.get_or_create(&OfReason { reason: denial.as_str() }).inc();
    }

    /// Counts a question to the API server: whether it knows the token, if it answered.
    pub fn reviewed(&self, known: Option<bool>) {
        let result = known.map_or("failed", |known| if known { "known" } else { "unknown" });
        self.reviews.get_or_create(&OfResult { result }).inc();
    }

    /// Counts a question to the API server: whether a user may read a tenant's usage, if it answered.
    pub fn access_reviewed(&self, allowed: Option<bool>) {
        let result = allowed.map_or("failed", |allowed| if allowed { "allowed" } else { "denied" });
        self.access_reviews.get_or_create(&OfResult { result }).inc();
    }

    /// Counts a batch that the ledger took.
    pub fn batch(&self, events: usize, took: Duration) {
        self.batch_events.observe(events as f64);
        self.batch_seconds.observe(took.as_secs_f64());
    }

    /// Says how many events wait.
    pub fn waiting(&self, events: usize) {
        self.waiting.set(i64::try_from(events).unwrap_or(i64::MAX));
    }

    /// Says whether the ledger can be used.
    pub fn ledger_away(&self, away: bool) {
        self.away.set(i64::from(away));
    }

    /// Says when the API's certificate ends, in seconds since 1970.
    pub fn certificate_expires(&self, at: i64) {
        self.certificate_expires.set(at);
    }

    /// Counts a look at the files of the API's certificate that found one of no use.
    pub fn certificate_failed(&self) {
        self.certificate_failures.inc();
    }
}
