//! What the operator counts about itself, in the Prometheus format.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::failure::{Class, Failure};
use crate::database::Statistics;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reconciled {
    kind: String,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfServer {
    server: String,
}

/// The operator's metrics.
pub(super) struct Metrics {
    registry: Registry,
    reconciled: Family<Reconciled, Counter>,
    statements: Family<OfServer, Gauge>,
    connections: Family<OfServer, Gauge>,
    away: Family<OfServer, Gauge>,
    at_work: Family<OfServer, Gauge>,
    ended_sessions: Family<OfServer, Counter>,
    repaired: Family<OfServer, Counter>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("tenantry");
        let reconciled = Family::default();
        registry.register("reconciles", "Reconciles by kind and result", reconciled.clone());
        let statements = Family::default();
        registry.register(
            "database_statements",
            "SQL statements sent to a server since it was connected",
            statements.clone(),
        );
        let connections = Family::default();
        registry.register(
            "database_connections",
            "Connections to a server that are in use, of those that its DatabaseServer allows",
            connections.clone(),
        );
        let away = Family::default();
        registry.register(
            "database_breaker_open",
            "1 while a server can't be reached and is only tried now and then",
            away.clone(),
        );
        let at_work = Family::default();
        registry.register(
            "database_reconciles_running",
            "Reconciles of Tenants and Pools that are at work on a server",
            at_work.clone(),
        );
        let ended_sessions = Family::default();
        registry.register(
            "database_sessions_ended",
            "Sessions of tenants that were ended because a transaction was too old or the login closed",
            ended_sessions.clone(),
        );
        let repaired = Family::default();
        registry.register(
            "database_settings_repaired",
            "Settings, privileges and memberships that differed from the records and were repaired",
            repaired.clone(),
        );
        Self { registry, reconciled, statements, connections, away, at_work, ended_sessions, repaired }
    }

    pub(super) fn reconciled(&self, kind: &str, failure: Option<&Failure>) {
        let result = match failure.map(|failure| failure.class) {
            None => "completed",
            Some(Class::Waiting) => "waiting",
            Some(Class::Transient) => "failed",
            Some(Class::Permanent | Class::Obstructed) => "refused",
        };
        self.reconciled.get_or_create(&Reconciled { kind: kind.to_owned(), result }).inc();
    }

    /// What is known of a server at this moment.
    pub(super) fn server(&self, server: &str, statistics: &Statistics, at_work: usize) {
        let labels = OfServer { server: server.to_owned() };
        self.statements.get_or_create(&labels).set(i64::try_from(statistics.statements).unwrap_or(i64::MAX));
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.connections.get_or_create(&labels).set(number(statistics.in_use));
        self.away.get_or_create(&labels).set(i64::from(statistics.away));
        self.at_work.get_or_create(&labels).set(number(at_work));
    }

    pub(super) fn ended_sessions(&self, server: &str, count: usize) {
        self.ended_sessions.get_or_create(&OfServer { server: server.to_owned() }).inc_by(count as u64);
    }

    pub(super) fn repaired(&self, server: &str, count: usize) {
        self.repaired.get_or_create(&OfServer { server: server.to_owned() }).inc_by(count as u64);
    }

    /// All metrics as text.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String never fails.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
