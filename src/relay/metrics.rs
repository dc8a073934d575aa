//! What the relay counts about itself, in the Prometheus format. docs/operations.md lists all of
//! it. Databases are the only label that grows: there are as many as the server has.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info};
use prometheus_client::registry::{Registry, Unit};

use crate::database::OutboxSize;
use crate::metering::event::Answer;

/// Bounds of the time of a post, in seconds: up to the timeout.
const POSTS: [f64; 11] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfResult {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfDatabase {
    database: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// What came of a post that brought no answer for each event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It goes again in two halves.
    Split,
    /// One event, refused as a whole.
    Refused,
    /// The API can't be used.
    Failed,
}

/// The relay's metrics.
pub(super) struct Metrics {
    registry: Registry,
    events: Family<OfResult, Counter>,
    posts: Family<OfResult, Counter>,
    post_seconds: Histogram,
    leased: Counter,
    settle_failures: Counter,
    last_success: Gauge,
    api_available: Gauge,
    databases: Gauge,
    up: Family<OfDatabase, Gauge>,
    waiting: Family<OfDatabase, Gauge>,
    age: Family<OfDatabase, Gauge>,
    dead: Family<OfDatabase, Gauge>,
}

impl Metrics {
    pub(super) fn new(server: &str) -> Self {
        let mut registry = Registry::default();
        let of_server = registry.sub_registry_with_label(("server".into(), server.to_owned().into()));
        let ours = of_server.sub_registry_with_prefix("tenantry_relay");
        ours.register("build", "The version that runs", Info::new(Build { version: env!("CARGO_PKG_VERSION") }));
        let metrics = Self {
            events: Family::default(),
            posts: Family::default(),
            post_seconds: Histogram::new(POSTS),
            leased: Counter::default(),
            settle_failures: Counter::default(),
            last_success: Gauge::default(),
            api_available: Gauge::default(),
            databases: Gauge::default(),
            up: Family::default(),
            waiting: Family::default(),
            age: Family::default(),
            dead: Family::default(),
            registry: Registry::default(),
        };
        ours.register(
            "events",
            "Events, marks and reports that the API spoke of, by what it said",
            metrics.events.clone(),
        );
        ours.register("posts", "Posts to the API, by what came of them", metrics.posts.clone());
        ours.register_with_unit("post", "How long posts took", Unit::Seconds, metrics.post_seconds.clone());
        ours.register("leased", "Events that were taken from an outbox to be sent", metrics.leased.clone());
        ours.register(
            "settle_failures",
            "Batches of which the outcome could not be noted; they are sent again, which counts nothing twice",
            metrics.settle_failures.clone(),
        );
        ours.register_with_unit(
            "last_success_timestamp",
            "When the API last answered for each event of a batch; 0 before that",
            Unit::Seconds,
            metrics.last_success.clone(),
        );
        ours.register(
            "api_available",
            "Whether the API could be used when it was asked last",
            metrics.api_available.clone(),
        );
        ours.register("databases", "Databases that the relay knows", metrics.databases.clone());
        ours.register("database_up", "Whether the database answered when it was asked last", metrics.up.clone());
        ours.register(
            "outbox_events",
            "Events that wait in the outbox, as far as they are counted",
            metrics.waiting.clone(),
        );
        ours.register_with_unit(
            "outbox_age",
            "How old the oldest event is that waits in the outbox; 0 where none does",
            Unit::Seconds,
            metrics.age.clone(),
        );
        ours.register("outbox_dead_events", "Events of the outbox that were refused for good", metrics.dead.clone());
        for (result, _) in Answer::default().numbers() {
            metrics.events.get_or_create(&OfResult { result }).inc_by(0);
        }
        for result in ["answered", "split", "refused", "failed"] {
            metrics.posts.get_or_create(&OfResult { result }).inc_by(0);
        }
        Self { registry, ..metrics }
    }

    /// All of it in the OpenMetrics text format.
    pub(super) fn text(&self, api_available: bool) -> String {
        self.api_available.set(i64::from(api_available));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }

    /// The API spoke of each event of a batch.
    pub(super) fn answered(&self, answer: &Answer, took: Duration) {
        for (result, count) in answer.numbers() {
            self.events.get_or_create(&OfResult { result }).inc_by(count);
        }
        self.post("answered", took);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }

    /// A post that brought no answer for each event.
    pub(super) fn posted(&self, sent: Sent, took: Duration) {
        let result = match sent {
            Sent::Split => "split",
            Sent::Refused => "refused",
            Sent::Failed => "failed",
        };
        self.post(result, took);
    }

    fn post(&self, result: &'static str, took: Duration) {
        self.posts.get_or_create(&OfResult { result }).inc();
        self.post_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn leased(&self, events: usize) {
        self.leased.inc_by(events as u64);
    }

    pub(super) fn not_settled(&self) {
        self.settle_failures.inc();
    }

    pub(super) fn databases(&self, count: usize) {
        self.databases.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn up(&self, database: &str, up: bool) {
        self.up.get_or_create(&of(database)).set(i64::from(up));
    }

    pub(super) fn outbox(&self, database: &str, size: OutboxSize, now: Timestamp) {
        let natural = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.waiting.get_or_create(&of(database)).set(natural(size.waiting));
        self.dead.get_or_create(&of(database)).set(natural(size.dead));
        let age = size.oldest.map_or(0, |oldest| now.as_second().saturating_sub(oldest.as_second()).max(0));
        self.age.get_or_create(&of(database)).set(age);
    }

    /// A database is no longer this relay's.
    pub(super) fn forget(&self, database: &str) {
        for family in [&self.up, &self.waiting, &self.age, &self.dead] {
            family.remove(&of(database));
        }
    }
}

fn of(database: &str) -> OfDatabase {
    OfDatabase { database: database.to_owned() }
}
