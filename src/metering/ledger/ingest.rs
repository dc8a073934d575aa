//! Events on their way in: a batch in the shape and order that `ledger.ingest` takes.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::session::{Param, Sessions, classed};
use super::types::{DeadEvent, LedgerError, LedgerEvent, LedgerMark, Outcome};
use crate::metering::event::UsageKind;

const INGEST: &str = "
    SELECT place, outcome FROM ledger.ingest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
        $14, $15, $16, $17, $18, $19, $20, $21::text[]::numeric[], $22, $23, $24, $25, $26, $27, $28, $29, $30)";
const INGESTING: &str = "can't store usage events";
/// How often a batch is looked at again, where another one stored the same ids at the same time.
const RACES: usize = 5;

/// How much is to be looked up of what is known already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Nothing, unless the ledger sees a reason.
    Nothing = 0,
    /// What may be known.
    Suspects = 1,
    /// Each event.
    All = 2,
}

/// A meter that a batch has events of.
struct Metered {
    kind: &'static str,
    source: &'static str,
    epoch: Option<i32>,
    /// Epoch and sequence of the last event that was looked at.
    last: Option<(i32, i64)>,
    /// The lowest of its sequences here.
    first: Option<i64>,
    start: Timestamp,
}

/// A batch, sorted, with each id once.
struct Batch<'a> {
    /// By tenant, meter, epoch and sequence: the order in which the ledger locks and writes.
    events: Vec<&'a LedgerEvent>,
    /// Whether an event has the sequence of one before it.
    rivals: Vec<bool>,
    meters: BTreeMap<(&'a str, &'a str), Metered>,
    /// Where each event of the caller's is in `events`, and whether it is the first of its id there.
    places: Vec<(usize, bool)>,
    look: Look,
}

/// The first and the last sequence of an event.
fn span(event: &LedgerEvent) -> Option<(i64, i64)> {
    let counted = event.usage.counted.as_ref()?;
    let first = counted.folded.as_ref().map_or(counted.sequence, |folded| folded.first_sequence);
    Some((first.min(counted.sequence), counted.sequence))
}

impl<'a> Batch<'a> {
    fn new(given: &[&'a LedgerEvent]) -> Self {
        let key = |event: &'a LedgerEvent| {
            let date = TimeZone::UTC.to_datetime(event.at).date();
            (event.tenant.as_str(), event.id.as_str(), date)
        };
        let mut firsts = HashMap::with_capacity(given.len());
        for (index, event) in given.iter().enumerate() {
            firsts.entry(key(event)).or_insert(index);
        }
        let mut order: Vec<usize> = firsts.values().copied().collect();
        let rank = |event: &'a LedgerEvent| {
            let counted = event.usage.counted.as_ref();
            let sequence = counted.map(|counted| (counted.epoch, counted.sequence));
            (event.tenant.as_str(), event.usage.meter.as_str(), sequence, event.id.as_str(), event.at)
        };
        order.sort_unstable_by(|one, other| rank(given[*one]).cmp(&rank(given[*other])));
        let events: Vec<&LedgerEvent> = order.iter().map(|index| given[*index]).collect();
        let place_of: HashMap<usize, usize> = order.iter().enumerate().map(|(place, index)| (*index, place)).collect();
        let places = given.iter().enumerate().map(|(index, event)| {
            let first = firsts[&key(event)];
            (place_of[&first], first == index)
        });
        let places = places.collect();
        let mut batch = Self { rivals: Vec::new(), meters: BTreeMap::new(), places, look: Look::Nothing, events };
        batch.survey();
        batch
    }

    /// Finds the meters, what each one's sequences are, and what is amiss within the batch.
    fn survey(&mut self) {
        for event in &self.events {
            let counted = event.usage.counted.as_ref();
            let key = (event.tenant.as_str(), event.usage.meter.as_str());
            let is_total = counted.is_some_and(|counted| counted.period_start.is_some());
            let meter = self.meters.entry(key).or_insert_with(|| Metered {
                kind: if is_total { "Total" } else { "Level" },
                source: if counted.is_some() { "Database" } else { "Api" },
                epoch: None,
                last: None,
                first: None,
                start: event.period_start,
            });
            meter.start = meter.start.min(event.period_start);
            // Without an order, the id alone tells whether an event is known.
            let mut rival = false;
            match (counted, span(event)) {
                (Some(counted), Some((first, last))) => {
                    if meter.epoch.is_some_and(|epoch| epoch != counted.epoch) {
                        self.look = Look::Suspects;
                    }
                    rival = meter.last.is_some_and(|before| before >= (counted.epoch, first));
                    meter.last = Some((counted.epoch, last));
                    meter.first = Some(meter.first.map_or(first, |lowest| lowest.min(first)));
                    meter.epoch = meter.epoch.max(Some(counted.epoch));
                }
                _ => self.look = Look::Suspects,
            }
            if rival {
                self.look = Look::Suspects;
            }
            self.rivals.push(rival);
        }
    }

    /// Sends it until it is stored. Returns the outcomes of those that were not accepted, by their place.
    async fn store(&self, sessions: &Sessions) -> Result<HashMap<usize, Outcome>, LedgerError> {
        let (mut look, mut races, mut has_room) = (self.look, 0, false);
        loop {
            let error = match self.send(sessions, look).await? {
                Ok(others) => return Ok(others),
                Err(error) => error,
            };
            if error.code() == Some(&SqlState::UNIQUE_VIOLATION) && races < RACES {
                // An id is there that no sequence told of.
                (look, races) = (Look::All, races + 1);
            } else if error.code() == Some(&SqlState::CHECK_VIOLATION) && !has_room {
                // Nobody has made partitions for long.
                keep(sessions).await?;
                has_room = true;
            } else {
                return Err(classed(INGESTING, &error));
            }
        }
    }

    async fn send(
        &self,
        sessions: &Sessions,
        look: Look,
    ) -> Result<Result<HashMap<usize, Outcome>, tokio_postgres::Error>, LedgerError> {
        let meters = &self.meters;
        let k_tenant: Vec<&str> = meters.keys().map(|(tenant, _)| *tenant).collect();
        let k_meter: Vec<&str> = meters.keys().map(|(_, meter)| *meter).collect();
        let k_kind: Vec<&str> = meters.values().map(|meter| meter.kind).collect();
        let k_source: Vec<&str> = meters.values().map(|meter| meter.source).collect();
        let k_epoch: Vec<Option<i32>> = meters.values().map(|meter| meter.epoch).collect();
        let k_first: Vec<Option<i64>> = meters.values().map(|meter| meter.first).collect();
        let k_start: Vec<Timestamp> = meters.values().map(|meter| meter.start).collect();
        let events = || self.events.iter();
        let counted = || self.events.iter().map(|event| event.usage.counted.as_ref());
        let folded = || counted().map(|counted| counted.and_then(|counted| counted.folded.as_ref()));
        let tenants: Vec<&str> = events().map(|event| event.tenant.as_str()).collect();
        let ids: Vec<&str> = events().map(|event| event.id.as_str()).collect();
        let sources: Vec<&str> = events().map(|event| event.source.as_str()).collect();
        let names: Vec<&str> = events().map(|event| event.usage.meter.as_str()).collect();
        let kinds: Vec<&str> =
            counted().map(|counted| counted.map_or(UsageKind::Add, |counted| counted.kind).as_str()).collect();
        let epochs: Vec<Option<i32>> = counted().map(|counted| counted.map(|counted| counted.epoch)).collect();
        let sequences: Vec<Option<i64>> = events().map(|event| span(event).map(|(_, last)| last)).collect();
        let firsts: Vec<Option<i64>> = events().map(|event| span(event).map(|(first, _)| first)).collect();
        let deltas: Vec<i64> = events().map(|event| event.usage.delta).collect();
        let values: Vec<Option<i64>> = counted().map(|counted| counted.map(|counted| counted.value)).collect();
        let befores: Vec<Option<i64>> =
            values.iter().zip(&deltas).map(|(value, delta)| value.map(|value| value.saturating_sub(*delta))).collect();
        let lows: Vec<Option<i64>> = folded().map(|folded| folded.map(|folded| folded.low)).collect();
        let highs: Vec<Option<i64>> = folded().map(|folded| folded.map(|folded| folded.high)).collect();
        let moments: Vec<Option<&str>> = folded().map(|folded| folded.map(|folded| folded.moment.as_str())).collect();
        let times: Vec<Timestamp> = events().map(|event| event.at).collect();
        let starts: Vec<Timestamp> = events().map(|event| event.period_start).collect();
        let ends: Vec<Timestamp> = events().map(|event| event.period_end).collect();
        let lapses: Vec<i64> =
            events().map(|event| event.at.as_microsecond() - event.period_start.as_microsecond()).collect();
        let subjects: Vec<Option<&str>> = counted().map(|counted| counted?.subject.as_deref()).collect();
        let reasons: Vec<Option<&str>> = counted().map(|counted| counted?.reason.as_deref()).collect();
        let actors: Vec<Option<&str>> = counted().map(|counted| counted?.actor.as_deref()).collect();
        let look = look as i32;
        let params: [Param<'_>; 30] = [
            (&k_tenant, Type::TEXT_ARRAY),
            (&k_meter, Type::TEXT_ARRAY),
            (&k_kind, Type::TEXT_ARRAY),
            (&k_source, Type::TEXT_ARRAY),
            (&k_epoch, Type::INT4_ARRAY),
            (&k_first, Type::INT8_ARRAY),
            (&k_start, Type::TIMESTAMPTZ_ARRAY),
            (&tenants, Type::TEXT_ARRAY),
            (&ids, Type::TEXT_ARRAY),
            (&sources, Type::TEXT_ARRAY),
            (&names, Type::TEXT_ARRAY),
            (&kinds, Type::TEXT_ARRAY),
            (&epochs, Type::INT4_ARRAY),
            (&sequences, Type::INT8_ARRAY),
            (&firsts, Type::INT8_ARRAY),
            (&deltas, Type::INT8_ARRAY),
            (&befores, Type::INT8_ARRAY),
            (&values, Type::INT8_ARRAY),
            (&lows, Type::INT8_ARRAY),
            (&highs, Type::INT8_ARRAY),
            (&moments, Type::TEXT_ARRAY),
            (&times, Type::TIMESTAMPTZ_ARRAY),
            (&starts, Type::TIMESTAMPTZ_ARRAY),
            (&ends, Type::TIMESTAMPTZ_ARRAY),
            (&lapses, Type::INT8_ARRAY),
            (&subjects, Type::TEXT_ARRAY),
            (&reasons, Type::TEXT_ARRAY),
            (&actors, Type::TEXT_ARRAY),
            (&self.rivals, Type::BOOL_ARRAY),
            (&look, Type::INT4),
        ];
        let rows = match sessions.query_or(INGESTING, INGEST, &params).await? {
            Ok(rows) => rows,
            Err(error) => return Ok(Err(error)),
        };
        let others = rows.iter().filter_map(|row| {
            let outcome = match row.get(1) {
                "duplicate" => Outcome::Duplicate,
                "conflict" => Outcome::Conflict,
                "restored" => Outcome::Restored,
                _ => return None,
            };
            Some((usize::try_from(row.get::<_, i64>(0) - 1).ok()?, outcome))
        });
        Ok(Ok(others.collect()))
    }
}

/// What the ledger compares: an event of the same id that differs in one of these is another one.
fn is_same(one: &LedgerEvent, other: &LedgerEvent) -> bool {
    let counted = |event: &LedgerEvent| {
        event.usage.counted.as_ref().map(|counted| (counted.kind, counted.epoch, counted.sequence, counted.value))
    };
    (&one.usage.meter, one.usage.delta, one.at, counted(one))
        == (&other.usage.meter, other.usage.delta, other.at, counted(other))
}

/// Stores and counts events. The outcomes are in their order.
pub(super) async fn ingest(sessions: &Sessions, given: &[LedgerEvent]) -> Result<Vec<Outcome>, LedgerError> {
    let mut outcomes = vec![Outcome::Accepted; given.len()];
    // Almost always all of them; events that have the id of others come after those.
    let mut left: Vec<usize> = (0..given.len()).collect();
    while !left.is_empty() {
        let events: Vec<&LedgerEvent> = left.iter().map(|index| &given[*index]).collect();
        let batch = Batch::new(&events);
        let others = batch.store(sessions).await?;
        let mut later = Vec::new();
        for (index, (place, is_first)) in left.iter().zip(&batch.places) {
            let outcome = others.get(place).copied().unwrap_or(Outcome::Accepted);
            if *is_first {
                outcomes[*index] = outcome;
            } else if !is_same(&given[*index], batch.events[*place]) {
                later.push(*index);
            } else {
                outcomes[*index] = if outcome == Outcome::Accepted { Outcome::Duplicate } else { outcome };
            }
        }
        left = later;
    }
    Ok(outcomes)
}

/// Puts events where a person will look at them.
pub(super) async fn set_aside(sessions: &Sessions, events: &[DeadEvent], why: &str) -> Result<(), LedgerError> {
    if events.is_empty() {
        return Ok(());
    }
    let tenants: Vec<&str> = events.iter().map(|event| event.tenant.as_str()).collect();
    let ids: Vec<&str> = events.iter().map(|event| event.id.as_str()).collect();
    let sources: Vec<&str> = events.iter().map(|event| event.source.as_str()).collect();
    let times: Vec<Timestamp> = events.iter().map(|event| event.at).collect();
    let content = |event: &DeadEvent| {
        let mut content = serde_json::to_value(&event.usage).unwrap_or_default();
        content["occurredAt"] = event.at.to_string().into();
        content
    };
    let contents: Vec<serde_json::Value> = events.iter().map(content).collect();
    let errors: Vec<&str> = events.iter().map(|event| event.error.as_str()).collect();
    let params: [Param<'_>; 7] = [
        (&tenants, Type::TEXT_ARRAY),
        (&ids, Type::TEXT_ARRAY),
        (&why, Type::TEXT),
        (&sources, Type::TEXT_ARRAY),
        (&times, Type::TIMESTAMPTZ_ARRAY),
        (&contents, Type::JSONB_ARRAY),
        (&errors, Type::TEXT_ARRAY),
    ];
    let sql = "SELECT ledger.set_aside($1, $2, $3, $4, $5, $6, $7)";
    sessions.query("can't put usage events aside", sql, &params).await.map(drop)
}

/// Takes marks; of each meter the latest.
pub(super) async fn mark(sessions: &Sessions, given: &[LedgerMark]) -> Result<(), LedgerError> {
    let mut latest: BTreeMap<(&str, &str), &LedgerMark> = BTreeMap::new();
    for mark in given {
        let entry = latest.entry((&mark.tenant, &mark.mark.meter)).or_insert(mark);
        if mark.as_of > entry.as_of {
            *entry = mark;
        }
    }
    if latest.is_empty() {
        return Ok(());
    }
    let marks = || latest.values();
    let tenants: Vec<&str> = latest.keys().map(|(tenant, _)| *tenant).collect();
    let meters: Vec<&str> = latest.keys().map(|(_, meter)| *meter).collect();
    let epochs: Vec<i32> = marks().map(|mark| mark.mark.epoch).collect();
    let sequences: Vec<i64> = marks().map(|mark| mark.mark.sequence).collect();
    let values: Vec<i64> = marks().map(|mark| mark.mark.value).collect();
    let times: Vec<Timestamp> = marks().map(|mark| mark.as_of).collect();
    let params: [Param<'_>; 6] = [
        (&tenants, Type::TEXT_ARRAY),
        (&meters, Type::TEXT_ARRAY),
        (&epochs, Type::INT4_ARRAY),
        (&sequences, Type::INT8_ARRAY),
        (&values, Type::INT8_ARRAY),
        (&times, Type::TIMESTAMPTZ_ARRAY),
    ];
    sessions.query("can't store marks", "SELECT ledger.mark($1, $2, $3, $4, $5, $6)", &params).await.map(drop)
}

/// Makes partitions and drops those that are over.
pub(super) async fn keep(sessions: &Sessions) -> Result<(), LedgerError> {
    sessions.query("can't keep the ledger's partitions", "SELECT ledger.keep()", &[]).await.map(drop)
}

/// The ids of tenants, each once.
pub(super) fn distinct<'a>(tenants: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut seen = HashSet::new();
    tenants.filter(|tenant| seen.insert(*tenant)).map(str::to_owned).collect()
}
