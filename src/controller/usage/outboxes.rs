//! How usage gets out of the databases, by what their relays say of the outboxes: in conditions
//! of the DatabaseServer and of the tenants whose usage it is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use tokio::time::sleep;

use super::{PATIENCE, UsageWork, lock};
use crate::{
    api::{ConditionType, DatabaseServer, Verdict, find_condition},
    controller::{patience::UsagePatience, tenant::place::Place, world::World},
    database::{TenantRecord, TenantState},
    desired::count,
    metering::{
        event::OutboxReport,
        ledger::OutboxState,
        usage::{Delivery, silent_since},
    },
};

/// How often the ledger is asked, at the least.
const ROUND: Duration = Duration::from_secs(10);

const SILENT: &str = "RelaySilent";
const AWAY: &str = "LedgerAway";

/// What a DatabaseServer is to say of its outboxes.
pub(in crate::controller) enum Said {
    /// Nothing: it has no tenants.
    Nothing,
    /// What it said before: this process has not heard enough yet to know better.
    AsBefore,
    /// This.
    Now(Verdict),
}

/// What is known of the outboxes, by server and database.
#[derive(Default)]
pub(super) struct Outboxes(Mutex<BTreeMap<(String, String), Outbox>>);

/// What is known of one.
#[derive(Clone, Debug, PartialEq)]
struct Outbox {
    /// Since when it is known that there is a database with tenants.
    known_since: Timestamp,
    report: Option<(OutboxReport, Timestamp)>,
    silent_since: Option<Timestamp>,
    waits_long: bool,
}

/// What an outbox was, and is judged by.
struct Before<'a> {
    /// Since when there is a database with tenants.
    known_since: Timestamp,
    /// Whether its relay was silent.
    silent: bool,
    /// Since when the relays can be heard.
    listening_since: Timestamp,
    patience: &'a UsagePatience,
}

impl Outbox {
    /// What it is from now on.
    fn judged(before: &Before<'_>, report: Option<(OutboxReport, Timestamp)>, now: Timestamp) -> Self {
        let Before { known_since, silent, listening_since, patience } = *before;
        let last = report.as_ref().map_or(known_since, |(_, at)| *at);
        // Who was silent before is so until it says something.
        let from = if silent { last } else { listening_since };
        let oldest = report.as_ref().and_then(|(report, _)| report.oldest);
        Self {
            known_since,
            silent_since: silent_since(last, from, now, &patience.arrival()),
            waits_long: oldest.is_some_and(|oldest| now.duration_since(oldest) > patience.wait()),
            report,
        }
    }

    fn dead(&self) -> u64 {
        self.report.iter().flat_map(|(report, _)| &report.dead).map(|dead| dead.events).sum()
    }

    /// Whether somebody is to hear of the difference.
    fn differs(&self, other: &Self) -> bool {
        let concern = |it: &Self| {
            let dead = it.report.as_ref().map(|(report, _)| report.dead.clone()).unwrap_or_default();
            (it.silent_since, it.waits_long, dead, it.report.is_some())
        };
        concern(self) != concern(other)
    }
}

impl Outboxes {
    /// How a tenant's usage gets into the ledger; whether that is known, else what is assumed of a
    /// new database.
    pub(super) fn delivery(&self, place: &Place, ledger_away: Option<Timestamp>) -> (bool, Delivery) {
        let all = lock(&self.0);
        let outbox = all.get(&(place.server.clone(), place.database.clone()));
        let dead = outbox.and_then(|outbox| outbox.report.as_ref()).map(|(report, _)| {
            report.dead.iter().filter(|dead| dead.tenant == place.id.as_str()).map(|dead| dead.events).sum()
        });
        let delivery = Delivery {
            server: place.server.clone(),
            silent_since: outbox.and_then(|outbox| outbox.silent_since),
            waits_long: outbox.is_some_and(|outbox| outbox.waits_long),
            dead: dead.unwrap_or(0),
            ledger_away,
        };
        (outbox.is_some(), delivery)
    }

    /// What a DatabaseServer is to say, where the ledger has answered, or is away for long.
    pub(super) fn said(&self, world: &World, server: &str, ledger_away: Option<Timestamp>) -> Said {
        let all = lock(&self.0);
        let of_server: Vec<(&str, &Outbox)> = all
            .iter()
            .filter(|((name, _), _)| name == server)
            .map(|((_, database), outbox)| (database.as_str(), outbox))
            .collect();
        if of_server.is_empty() {
            match world.databases.get(server) {
                Some(connected) if databases(&connected).is_empty() => return Said::Nothing,
                Some(_) if ledger_away.is_some() => {}
                _ => return Said::AsBefore,
            }
        }
        Said::Now(judge(server, &of_server, ledger_away))
    }
}

/// The databases of a server that have tenants.
fn databases(connected: &crate::controller::databases::Connected) -> Vec<String> {
    let is_live = |record: &TenantRecord| record.state == TenantState::Live;
    connected.names().into_iter().filter(|database| !connected.find_in(database, is_live).is_empty()).collect()
}

/// What a server's outboxes come to: the worst gives the reason.
fn judge(server: &str, outboxes: &[(&str, &Outbox)], ledger_away: Option<Timestamp>) -> Verdict {
    let kind = ConditionType::UsageDelivered;
    if let Some(since) = ledger_away {
        let message = format!("the ledger is away since {}: what waits is safe in the databases", seconds(since));
        return Verdict::unknown(kind, AWAY, message);
    }
    let of = |matches: fn(&Outbox) -> bool| -> Vec<(&str, &Outbox)> {
        outboxes.iter().filter(|(_, outbox)| matches(outbox)).copied().collect()
    };
    let silent = of(|outbox| outbox.silent_since.is_some());
    if let Some(since) = silent.iter().filter_map(|(_, outbox)| outbox.silent_since).min() {
        let message = format!(
            "the relay has said nothing of {} since {}: see kubectl get pods -A -l tenantry.io/relay={server}",
            named(&silent),
            seconds(since),
        );
        return Verdict::no(kind, SILENT, message);
    }
    let late = of(|outbox| outbox.waits_long);
    if !late.is_empty() {
        let reports = || late.iter().filter_map(|(_, outbox)| outbox.report.as_ref().map(|(report, _)| report));
        let waiting: u64 = reports().map(|report| report.waiting).sum();
        let oldest = reports().filter_map(|report| report.oldest).min().map(seconds);
        let message = format!(
            "at least {} of {} wait, the oldest since {}: see the relay's log for what the API answers",
            count(waiting, "event"),
            named(&late),
            oldest.unwrap_or_default(),
        );
        return Verdict::no(kind, "EventsWait", message);
    }
    let refused = of(|outbox| outbox.dead() > 0);
    if !refused.is_empty() {
        let dead: u64 = refused.iter().map(|(_, outbox)| outbox.dead()).sum();
        let message = format!(
            "{} of {} refused: tenantry deadletters list --server {server} says why, and redrive sends them again",
            count(dead, "event"),
            named(&refused),
        );
        return Verdict::no(kind, "DeadLetters", message);
    }
    let unheard = of(|outbox| outbox.report.is_none());
    if outboxes.is_empty() || !unheard.is_empty() {
        return Verdict::unknown(kind, "NotReported", "the relay has not said yet how much waits");
    }
    Verdict::yes(kind, "Delivered", "what is counted gets into the ledger")
}

/// Some of the databases by name.
fn named(outboxes: &[(&str, &Outbox)]) -> String {
    const SHOWN: usize = 3;
    let names: Vec<&str> = outboxes.iter().take(SHOWN).map(|(database, _)| *database).collect();
    let more = outboxes.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} {}{rest}", if outboxes.len() == 1 { "database" } else { "databases" }, names.join(", "))
}

fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Asks what the relays said last, again and again, and has those looked at whom it concerns.
pub(super) async fn run(world: &Arc<World>, work: &UsageWork) {
    let round = ROUND.min(work.patience.usage_silent_after).min(work.patience.usage_wait_after);
    let mut listening_since = None;
    loop {
        match work.ask("ask for the outboxes", PATIENCE, work.ledger.outboxes()).await {
            Some(states) => {
                let now = Timestamp::now();
                take_in(world, work, states, *listening_since.get_or_insert(now), now);
            }
            None => listening_since = None,
        }
        sleep(round).await;
    }
}

/// Since when a DatabaseServer says this of its outboxes, by its status.
fn says(world: &World, server: &DatabaseServer, reason: &str) -> Option<Timestamp> {
    let status = world.statuses.servers.current(server, server.status.as_ref())?;
    let condition = find_condition(&status.conditions, ConditionType::UsageDelivered)?;
    (condition.reason == reason).then_some(condition.last_transition_time.0)
}

/// Whether a DatabaseServer says that the ledger is away.
pub(super) fn says_away(world: &World, server: &DatabaseServer) -> bool {
    says(world, server, AWAY).is_some()
}

fn take_in(world: &World, work: &UsageWork, states: Vec<OutboxState>, listening_since: Timestamp, now: Timestamp) {
    let mut reports: BTreeMap<(String, String), (OutboxReport, Timestamp)> =
        states.into_iter().map(|state| ((state.server, state.database), (state.report, state.reported_at))).collect();
    let mut new = BTreeMap::new();
    let old = lock(&work.outboxes.0).clone();
    let patience = &work.patience;
    for (server, connected) in world.databases.all() {
        // An earlier leader may have heard nothing for long.
        let live = world.stores.servers.get(&ObjectRef::new(&server));
        let said_silent = live.and_then(|live| says(world, &live, SILENT));
        let silent_since = said_silent.map(|since| since.saturating_sub(patience.arrival().silent).unwrap_or(since));
        for database in databases(&connected) {
            let key = (server.clone(), database);
            let (known_since, silent) = match old.get(&key) {
                Some(outbox) => (outbox.known_since, outbox.silent_since.is_some()),
                None => (silent_since.unwrap_or(now), silent_since.is_some()),
            };
            let before = Before { known_since, silent, listening_since, patience };
            let outbox = Outbox::judged(&before, reports.remove(&key), now);
            new.insert(key, outbox);
        }
    }
    *lock(&work.outboxes.0) = new.clone();
    for (key, outbox) in &new {
        let before = old.get(key);
        if before.is_some_and(|before| !outbox.differs(before)) {
            continue;
        }
        world.queues.servers.push(&key.0);
        // A new one says nothing that its tenants' own marks don't.
        if before.is_some() || outbox.silent_since.is_some() || outbox.waits_long || outbox.dead() > 0 {
            let connected = world.databases.get(&key.0);
            let records = connected.map(|connected| connected.find_in(&key.1, |_| true)).unwrap_or_default();
            records.iter().for_each(|record| work.board.push(&record.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metering::event::DeadEvents;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    const START: &str = "2026-11-01T00:00:00Z";

    fn report(waiting: u64, oldest: Option<&str>, dead: &[(&str, u64)]) -> OutboxReport {
        let dead = dead.iter().map(|(tenant, events)| DeadEvents { tenant: (*tenant).to_owned(), events: *events });
        OutboxReport { waiting, oldest: oldest.map(at), dead: dead.collect() }
    }

    fn heard(report: OutboxReport, reported: &str, now: &str) -> Outbox {
        Outbox::judged(&before(START, false), Some((report, at(reported))), at(now))
    }

    const PATIENCE: UsagePatience = UsagePatience {
        usage_gap_after: Duration::from_secs(60),
        usage_mark_after: Duration::from_secs(180),
        usage_silent_after: Duration::from_secs(180),
        usage_wait_after: Duration::from_secs(600),
        ledger_away_after: Duration::from_secs(300),
    };

    fn before(listening_since: &str, silent: bool) -> Before<'static> {
        Before { known_since: at(START), silent, listening_since: at(listening_since), patience: &PATIENCE }
    }

    #[test]
    fn silence_counts_from_the_last_report_and_only_while_somebody_listens() {
        let quiet = || report(0, None, &[]);
        let reported = "2026-11-01T01:00:00Z";
        assert_eq!(heard(quiet(), reported, "2026-11-01T01:03:00Z").silent_since, None);
        let silent = heard(quiet(), reported, "2026-11-01T01:03:01Z");
        assert_eq!(silent.silent_since, Some(at(reported)));
        let listening = "2026-11-01T02:00:00Z";
        let after = |silent, reported, now| {
            Outbox::judged(&before(listening, silent), Some((quiet(), at(reported))), at(now)).silent_since
        };
        assert_eq!(after(false, reported, "2026-11-01T02:03:00Z"), None, "the ledger was away");
        assert_eq!(after(false, reported, "2026-11-01T02:04:00Z"), Some(at(reported)));
        assert_eq!(
            after(true, reported, "2026-11-01T02:00:01Z"),
            Some(at(reported)),
            "it was before, and says nothing"
        );
        assert_eq!(after(true, "2026-11-01T02:00:02Z", "2026-11-01T02:00:03Z"), None, "it has said something");
        let never = Outbox::judged(&before(START, false), None, at("2026-11-01T00:04:00Z"));
        assert_eq!(never.silent_since, Some(at(START)), "a relay that never came");
        let verdict = judge("main", &[("crm_1", &never)], None);
        assert_eq!((verdict.holds, verdict.reason), (Some(false), "RelaySilent"));
        assert!(verdict.message.contains("crm_1") && verdict.message.contains("relay=main"), "{verdict:?}");
    }

    #[test]
    fn a_server_says_the_worst_of_its_outboxes_and_what_to_do() {
        let now = "2026-11-01T01:00:10Z";
        let fine = heard(report(3, Some("2026-11-01T01:00:00Z"), &[]), "2026-11-01T01:00:00Z", now);
        let late = heard(report(7, Some("2026-11-01T00:30:00Z"), &[]), "2026-11-01T01:00:00Z", now);
        let dead = heard(report(0, None, &[("t_a", 2), ("t_b", 1)]), "2026-11-01T01:00:00Z", now);
        let said = |outboxes: &[(&str, &Outbox)]| {
            let verdict = judge("main", outboxes, None);
            (verdict.holds, verdict.reason, verdict.message)
        };
        assert_eq!(said(&[("a", &fine)]).0, Some(true));
        let (holds, reason, message) = said(&[("a", &fine), ("b", &late), ("c", &dead)]);
        assert_eq!((holds, reason), (Some(false), "EventsWait"));
        assert!(message.contains("7 events of database b") && message.contains("2026-11-01T00:30:00Z"), "{message}");
        let (holds, reason, message) = said(&[("a", &fine), ("c", &dead)]);
        assert_eq!((holds, reason), (Some(false), "DeadLetters"));
        assert!(message.contains("3 events") && message.contains("deadletters list --server main"), "{message}");
        assert_eq!(said(&[]).0, None);
        let away = judge("main", &[("a", &fine)], Some(at(START)));
        assert_eq!((away.holds, away.reason), (None, "LedgerAway"));
    }

    #[test]
    fn who_waits_hears_of_a_change_and_not_of_each_report() {
        let first = heard(report(0, None, &[]), "2026-11-01T01:00:00Z", "2026-11-01T01:00:10Z");
        let next = heard(report(5, Some("2026-11-01T01:00:29Z"), &[]), "2026-11-01T01:00:30Z", "2026-11-01T01:00:40Z");
        assert!(!next.differs(&first));
        let dead = heard(report(0, None, &[("t_a", 1)]), "2026-11-01T01:01:00Z", "2026-11-01T01:01:10Z");
        assert!(dead.differs(&next));
    }
}
