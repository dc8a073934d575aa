//! What the operator counts about itself, in the Prometheus format. docs/operations.md lists
//! all of it. No label has as many values as there are tenants.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, text::encode},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
        info::Info,
    },
    registry::Registry,
};

use super::{
    events::Outcomes,
    failure::{Class, Failure},
    process::Process,
};
use crate::{
    api::Tier,
    cluster::{Calls, Watches},
    database::Statistics,
    metering::counts::Counts,
};

/// Bounds of the time of a reconcile, in seconds: one with nothing to do takes less than a
/// millisecond, a tenant's creation tens to hundreds, and a deadline ends it after a minute.
const DURATIONS: [f64; 14] = [0.000_25, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reconciled {
    kind: String,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Retried {
    kind: String,
    class: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfKind {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfServer {
    server: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct OfOutcome {
    pub(super) outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// What is looked at when somebody asks, and not counted before.
#[derive(Clone, Debug, Default)]
pub(super) struct Observation {
    pub(super) leads: bool,
    pub(super) term: u64,
    pub(super) definitions_current: bool,
    /// Depth and oldest age, by kind.
    pub(super) queues: Vec<(&'static str, usize, Duration)>,
    /// Each server that is connected, and how many reconciles are at work on it.
    pub(super) servers: Vec<(String, Statistics, usize)>,
    /// Each DatabaseServer, and whether it can't be worked with.
    pub(super) away: Vec<(String, bool)>,
    /// Tenants by tier and by their condition Ready.
    pub(super) tenants: BTreeMap<(String, String), usize>,
}

/// No Tenants, of each tier, by condition Ready: where all are down, there is a 0 to see.
pub(super) fn no_tenants() -> BTreeMap<(String, String), usize> {
    let tiers = [Tier::Pooled, Tier::Bridge, Tier::Dedicated];
    let group = |tier: Tier| ["True", "False"].map(|ready| ((tier.to_string(), ready.to_owned()), 0));
    tiers.into_iter().flat_map(group).collect()
}

/// The operator's metrics.
pub(super) struct Metrics {
    registry: Registry,
    observed: Observed,
    reconciled: Family<Reconciled, Counter>,
    running: Family<OfKind, Gauge>,
    durations: Family<OfKind, Histogram, fn() -> Histogram>,
    retries: Family<Retried, Counter>,
    ended_sessions: Family<OfServer, Counter>,
    repaired: Family<OfServer, Counter>,
    events: Outcomes,
    metering: Counts,
}

impl Metrics {
    /// With the calls to the API server and the watches, which are counted where they are made.
    pub(super) fn new(calls: Calls, watches: &Watches) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process::new()));
        let ours = registry.sub_registry_with_prefix("tenantry");
        ours.register("build", "The version that runs", Info::new(Build { version: env!("CARGO_PKG_VERSION") }));
        let observed = Observed::default();
        ours.register_collector(Box::new(observed.clone()));
        let reconciled = Family::default();
        ours.register("reconciles", "Reconciles that ended, by kind and result", reconciled.clone());
        let running = Family::default();
        ours.register("reconciles_running", "Reconciles that are under way", running.clone());
        let durations: Family<OfKind, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(DURATIONS));
        ours.register("reconcile_duration_seconds", "How long reconciles took", durations.clone());
        let retries = Family::default();
        ours.register(
            "reconcile_retries",
            "Reconciles that are to be tried again after a failure, by its class",
            retries.clone(),
        );
        ours.register("api_requests", "Calls to the API server", calls);
        ours.register("watch_restarts", "Watches that failed and were begun again", watches.restarts());
        let ended_sessions = Family::default();
        ours.register(
            "database_sessions_ended",
            "Sessions of tenants that were ended because a transaction was too old or the login closed",
            ended_sessions.clone(),
        );
        let repaired = Family::default();
        ours.register(
            "database_settings_repaired",
            "Settings, privileges and memberships that differed from the records and were repaired",
            repaired.clone(),
        );
        let events = Outcomes::default();
        ours.register("events", "Kubernetes Events, by what became of them", events.clone());
        let metering = Counts::default();
        metering.register(ours);
        Self { registry, observed, reconciled, running, durations, retries, ended_sessions, repaired, events, metering }
    }

    /// Counts a reconcile as under way, until what this returns is dropped.
    pub(super) fn running(&self, kind: &str) -> Running {
        let gauge = self.running.get_or_create(&OfKind { kind: kind.to_owned() }).clone();
        gauge.inc();
        Running(gauge)
    }

    /// Counts a reconcile that ended; returns how the metric names its result.
    pub(super) fn reconciled(&self, kind: &str, failure: Option<&Failure>, took: Duration) -> &'static str {
        let result = match failure.map(|failure| failure.class) {
            None => "completed",
            Some(Class::Waiting) => "waiting",
            Some(Class::Transient) => "failed",
            Some(Class::Permanent | Class::Obstructed) => "refused",
        };
        self.reconciled.get_or_create(&Reconciled { kind: kind.to_owned(), result }).inc();
        self.durations.get_or_create(&OfKind { kind: kind.to_owned() }).observe(took.as_secs_f64());
        if let Some(failure) = failure {
            self.retries.get_or_create(&Retried { kind: kind.to_owned(), class: failure.class.as_str() }).inc();
        }
        result
    }

    /// Counts a reconcile that a fault of this program ended.
    pub(super) fn panicked(&self, kind: &str) {
        self.reconciled.get_or_create(&Reconciled { kind: kind.to_owned(), result: "panicked" }).inc();
        let class = Class::Transient.as_str();
        self.retries.get_or_create(&Retried { kind: kind.to_owned(), class }).inc();
    }

    pub(super) fn ended_sessions(&self, server: &str, count: usize) {
        self.ended_sessions.get_or_create(&OfServer { server: server.to_owned() }).inc_by(count as u64);
    }

    pub(super) fn repaired(&self, server: &str, count: usize) {
        self.repaired.get_or_create(&OfServer { server: server.to_owned() }).inc_by(count as u64);
    }

    /// Where Events are counted by what became of them.
    pub(super) fn events(&self) -> Outcomes {
        self.events.clone()
    }

    /// Where the metering API counts.
    pub(super) fn metering(&self) -> Counts {
        self.metering.clone()
    }

    /// What is rare is there with 0 before it happens: a rate can't see how a counter came to be.
    fn begin_at_zero(&self, observation: &Observation) {
        for (kind, ..) in &observation.queues {
            drop(self.running.get_or_create(&OfKind { kind: (*kind).to_owned() }));
            for result in ["completed", "failed", "panicked"] {
                drop(self.reconciled.get_or_create(&Reconciled { kind: (*kind).to_owned(), result }));
            }
        }
        for (server, ..) in &observation.servers {
            drop(self.repaired.get_or_create(&OfServer { server: server.clone() }));
            drop(self.ended_sessions.get_or_create(&OfServer { server: server.clone() }));
        }
    }

    /// All metrics as text, with what was looked at for them.
    pub(super) fn text(&self, observation: Observation) -> String {
        self.begin_at_zero(&observation);
        *self.observed.0.lock().unwrap_or_else(PoisonError::into_inner) = observation;
        let mut text = String::new();
        // Writing to a String never fails.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// A reconcile that is under way.
pub(super) struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Tells the last observation.
#[derive(Clone, Debug, Default)]
struct Observed(Arc<Mutex<Observation>>);

impl Collector for Observed {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let now = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        single(&mut encoder, "leader", "1 while this process leads", i64::from(now.leads))?;
        let term = i64::try_from(now.term).unwrap_or(i64::MAX);
        single(&mut encoder, "leader_term", "The number of this process's term; 0 for a standby", term)?;
        let current = i64::from(now.definitions_current);
        single(
            &mut encoder,
            "definitions_current",
            "1 while the installed definitions have all that this version uses",
            current,
        )?;
        let of_kind = |kind: &&'static str| [("kind", (*kind).to_owned())];
        gauges(
            &mut encoder,
            "queue_depth",
            "Objects that wait for a reconcile",
            now.queues.iter().map(|(kind, depth, _)| (of_kind(kind), *depth as f64)),
        )?;
        gauges(
            &mut encoder,
            "queue_oldest_age_seconds",
            "How long the oldest object that waits for a reconcile has waited",
            now.queues.iter().map(|(kind, _, oldest)| (of_kind(kind), oldest.as_secs_f64())),
        )?;
        gauges(
            &mut encoder,
            "tenants",
            "Tenants by tier and by condition Ready",
            now.tenants
                .iter()
                .map(|((tier, ready), count)| ([("tier", tier.clone()), ("ready", ready.clone())], *count as f64)),
        )?;
        let of_server = |server: &String| [("server", server.clone())];
        counters(
            &mut encoder,
            "database_statements",
            "SQL statements sent to a server",
            now.servers.iter().map(|(name, of, _)| (of_server(name), of.statements)),
        )?;
        counters(
            &mut encoder,
            "database_connections_opened",
            "Connections opened to a server",
            now.servers.iter().map(|(name, of, _)| (of_server(name), of.connections)),
        )?;
        gauges(
            &mut encoder,
            "database_connections",
            "Connections to a server that are in use",
            now.servers.iter().map(|(name, of, _)| (of_server(name), of.in_use as f64)),
        )?;
        gauges(
            &mut encoder,
            "database_away",
            "1 while a DatabaseServer is not connected, not Reachable, or counts as away",
            now.away.iter().map(|(name, away)| (of_server(name), f64::from(u8::from(*away)))),
        )?;
        gauges(
            &mut encoder,
            "database_breaker_open",
            "1 while a server that is connected doesn't answer and is not asked",
            now.servers.iter().map(|(name, of, _)| (of_server(name), f64::from(u8::from(of.away)))),
        )?;
        gauges(
            &mut encoder,
            "database_reconciles_running",
            "Reconciles of Tenants and Pools that are at work on a server",
            now.servers.iter().map(|(name, _, running)| (of_server(name), *running as f64)),
        )
    }
}

fn single(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: i64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

fn gauges<const N: usize>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl Iterator<Item = ([(&'static str, String); N], f64)>,
) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    family(metric, values.map(|(labels, value)| (labels, ConstGauge::new(value))))
}

fn counters<const N: usize>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl Iterator<Item = ([(&'static str, String); N], u64)>,
) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    family(metric, values.map(|(labels, value)| (labels, ConstCounter::new(value))))
}

fn family<const N: usize>(
    mut encoder: MetricEncoder,
    values: impl Iterator<Item = ([(&'static str, String); N], impl EncodeMetric)>,
) -> fmt::Result {
    for (labels, value) in values {
        value.encode(encoder.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Call, Watched};

    #[test]
    fn a_reconcile_runs_until_it_is_dropped_and_kinds_begin_at_0() {
        let metrics = Metrics::new(Calls::default(), &Watches::default());
        let queues = || vec![("Tenant", 0, Duration::ZERO), ("Pool", 0, Duration::ZERO)];
        let text = || metrics.text(Observation { queues: queues(), tenants: no_tenants(), ..Observation::default() });
        let running = metrics.running("Tenant");
        let during = text();
        assert!(during.contains("tenantry_reconciles_running{kind=\"Tenant\"} 1\n"), "{during}");
        assert!(during.contains("tenantry_reconciles_running{kind=\"Pool\"} 0\n"), "{during}");
        for tier in ["pooled", "bridge", "dedicated"] {
            for ready in ["True", "False"] {
                let group = format!("tenantry_tenants{{tier=\"{tier}\",ready=\"{ready}\"}} 0.0\n");
                assert!(during.contains(&group), "{group}: {during}");
            }
        }
        drop(running);
        assert!(text().contains("tenantry_reconciles_running{kind=\"Tenant\"} 0\n"));
    }

    #[test]
    fn everything_that_the_documentation_lists_is_there_and_nothing_else() {
        let (calls, watches) = (Calls::default(), Watches::default());
        let metrics = Metrics::new(calls.clone(), &watches);
        // A family without a member is left out of the text.
        calls.get_or_create(&Call { verb: "get", resource: "tenants".into(), code: "200".into() }).inc();
        watches.restarts().get_or_create(&Watched { kind: "Tenant".into() }).inc();
        metrics.reconciled("Tenant", Some(&Failure::transient("Away", "away")), Duration::from_millis(3));
        metrics.ended_sessions("main", 1);
        metrics.repaired("main", 1);
        metrics.events().get_or_create(&OfOutcome { outcome: "sent" }).inc();
        let observation = Observation {
            queues: vec![("Tenant", 2, Duration::from_millis(1_500))],
            servers: vec![("main".into(), Statistics { statements: 7, ..Statistics::default() }, 0)],
            away: vec![("other".into(), true)],
            tenants: [(("pooled".to_owned(), "True".to_owned()), 3)].into(),
            ..Observation::default()
        };
        let text = metrics.text(observation);
        assert!(text.contains("tenantry_database_statements_total{server=\"main\"} 7\n"), "{text}");
        assert!(text.contains("tenantry_queue_oldest_age_seconds{kind=\"Tenant\"} 1.5\n"), "{text}");
        assert!(text.contains("tenantry_database_away{server=\"other\"} 1.0\n"), "{text}");
        assert!(text.contains("tenantry_tenants{tier=\"pooled\",ready=\"True\"} 3"), "{text}");
        let there: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .map(|line| match line.split_once(' ').expect("a type") {
                (name, "counter") => format!("{name}_total"),
                (name, "info") => format!("{name}_info"),
                (name, _) => name.to_owned(),
            })
            .collect();
        let document = include_str!("../../docs/operations.md");
        let table = document.split("## Metrics").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("a section");
        let rows = table.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
        let mut listed: Vec<String> =
            rows.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
        let mut there = there;
        listed.sort();
        there.sort();
        assert_eq!(there, listed);
    }
}
