//! Which events are taken: from whom, for whom, of what time, with what numbers. Pure.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;

use super::{
    cloudevents::CloudEvent,
    event::{Counted, Folded, MARK_TYPE, Mark, OUTBOX_TYPE, OutboxReport, USAGE_TYPE, Usage},
    ledger::{LedgerEvent, LedgerMark},
};
use crate::{billing::Periods, desired::naming};

/// The longest id of an event, in bytes: it stands in an index of the ledger.
const LONGEST_ID: usize = 256;
/// The longest source, in bytes.
const LONGEST_SOURCE: usize = 512;
/// The longest subject, reason and actor of a change, in bytes.
const LONGEST_TEXT: usize = 2_000;
/// The longest name of a meter, as an Application may declare it.
const LONGEST_METER: usize = 40;

/// How the types of the relays' events begin.
const OUR_TYPES: &str = "io.tenantry.";

/// Who sends events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// The relay of a DatabaseServer, which is known by its namespace.
    Relay {
        /// That namespace.
        namespace: String,
    },
    /// A program of a tenant that has a namespace of its own.
    Workload {
        /// The tenant's id.
        tenant: String,
    },
}

/// How far an event's time may be from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// How long ago an event may have happened. What is older is refused, since the ledger no
    /// longer knows which of them it has counted.
    pub back: SignedDuration,
    /// How far ahead its clock may be. What is further has to wait.
    pub ahead: SignedDuration,
}

/// What has to be known of a tenant to judge events that are said to be its own.
#[derive(Clone, Debug)]
pub struct TenantFacts {
    /// The DatabaseServers that have its data, or had it.
    pub servers: Vec<String>,
    /// Its usage periods.
    pub periods: Periods,
    /// The meters that its Application declares.
    pub meters: Arc<BTreeMap<String, MeterFacts>>,
}

/// What has to be known of a meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeterFacts {
    /// Whether it starts again at each period.
    pub is_total: bool,
    /// Whether workloads count it, and not the database.
    pub from_api: bool,
}

/// Something that the ledger is to keep.
#[expect(clippy::large_enum_variant, reason = "nearly all are usage: a box would be one more allocation for each")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A change of a meter.
    Usage(LedgerEvent),
    /// How far a meter is.
    Mark(LedgerMark),
    /// How much waits in an outbox.
    Report {
        /// The DatabaseServer.
        server: String,
        /// The database on it.
        database: String,
        /// What its relay says.
        report: OutboxReport,
    },
}

/// Why an event is not taken, as programs and metrics know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It is no CloudEvent of version 1.0.
    Malformed,
    /// Its type is none that is counted.
    UnknownType,
    /// It does not say when it happened.
    MissingTime,
    /// It happened before the accept window.
    TooOld,
    /// Its subject is no tenant's id.
    BadSubject,
    /// Its data are not what its type has, or can't be true.
    BadData,
    /// The Application declares no such meter.
    UnknownMeter,
    /// Whoever sent it may not send it.
    Forbidden,
    /// The ledger can't store it.
    Refused,
    /// The ledger doesn't know the tenant yet.
    UnknownTenant,
    /// It happens only later than now.
    TooEarly,
    /// It has what this version doesn't know, and its relay does: to leave that out would count something
    /// else than what happened.
    TooNew,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Malformed,
        Self::UnknownType,
        Self::MissingTime,
        Self::TooOld,
        Self::BadSubject,
        Self::BadData,
        Self::UnknownMeter,
        Self::Forbidden,
        Self::Refused,
        Self::UnknownTenant,
        Self::TooEarly,
        Self::TooNew,
    ];

    /// One word for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "Malformed",
            Self::UnknownType => "UnknownType",
            Self::MissingTime => "MissingTime",
            Self::TooOld => "TooOld",
            Self::BadSubject => "BadSubject",
            Self::BadData => "BadData",
            Self::UnknownMeter => "UnknownMeter",
            Self::Forbidden => "Forbidden",
            Self::Refused => "Refused",
            Self::UnknownTenant => "UnknownTenant",
            Self::TooEarly => "TooEarly",
            Self::TooNew => "TooNew",
        }
    }

    /// Whether the same event may be taken later.
    #[must_use]
    pub fn passes(self) -> bool {
        matches!(self, Self::UnknownTenant | Self::TooEarly | Self::TooNew)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an event is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objection {
    /// For programs.
    pub reason: Reason,
    /// What to change.
    pub message: String,
}

impl Objection {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The tenant that an event is said to be of, where that has to be looked up.
#[must_use]
pub fn tenant_of<'e>(event: &'e CloudEvent<'_>, sender: &'e Sender) -> Option<&'e str> {
    match sender {
        Sender::Workload { tenant } => Some(tenant),
        Sender::Relay { .. } if event.event_type == OUTBOX_TYPE => None,
        Sender::Relay { .. } => event.subject.as_deref().filter(|subject| is_tenant_id(subject)),
    }
}

/// What of an event is to be kept.
///
/// # Errors
/// Why nothing of it is.
pub fn judge(
    event: &CloudEvent<'_>,
    sender: &Sender,
    now: Timestamp,
    window: Window,
    facts: Option<&TenantFacts>,
) -> Result<Item, Objection> {
    let event_type = &*event.event_type;
    if ![USAGE_TYPE, MARK_TYPE, OUTBOX_TYPE].contains(&event_type) {
        let message = format!("type {event_type:?}: {USAGE_TYPE}, {MARK_TYPE} and {OUTBOX_TYPE} are known");
        let is_ours = matches!(sender, Sender::Relay { .. }) && event_type.starts_with(OUR_TYPES);
        return Err(if is_ours { too_new(&message) } else { Objection::new(Reason::UnknownType, message) });
    }
    let at = timely(event, now, window)?;
    for (name, value, longest) in [("id", &event.id, LONGEST_ID), ("source", &event.source, LONGEST_SOURCE)] {
        if value.len() > longest {
            let message = format!("{name} has {} bytes: {longest} are the most", value.len());
            return Err(Objection::new(Reason::Malformed, message));
        }
    }
    match sender {
        Sender::Relay { namespace } => of_relay(event, at, namespace, facts),
        Sender::Workload { tenant } => of_workload(event, at, tenant, facts),
    }
}

fn timely(event: &CloudEvent<'_>, now: Timestamp, window: Window) -> Result<Timestamp, Objection> {
    let Some(at) = event.time else {
        let message = "time is missing: an event that is sent twice is known again by its id and its own time";
        return Err(Objection::new(Reason::MissingTime, message));
    };
    if now.duration_since(at) > window.back {
        let message = format!("time {at} is longer ago than {:#}, which is the accept window", window.back);
        return Err(Objection::new(Reason::TooOld, message));
    }
    if at.duration_since(now) > window.ahead {
        let message = format!("time {at} is later than now ({now}): compare the clocks");
        return Err(Objection::new(Reason::TooEarly, message));
    }
    Ok(at)
}

fn of_relay(
    event: &CloudEvent<'_>,
    at: Timestamp,
    namespace: &str,
    facts: Option<&TenantFacts>,
) -> Result<Item, Objection> {
    let forbidden = |message: String| Objection::new(Reason::Forbidden, message);
    let Some((server, database)) = place(&event.source) else {
        return Err(forbidden(format!("source {:?}: a relay's is /tenantry/SERVER/DATABASE", event.source)));
    };
    if naming::relay_namespace(server) != namespace {
        let message =
            format!("source {:?} is of DatabaseServer {server}, whose relay doesn't run in {namespace}", event.source);
        return Err(forbidden(message));
    }
    if event.event_type == OUTBOX_TYPE {
        if event.subject.as_deref() != Some(database) {
            let message = format!("subject of a report on an outbox is its database, {database}");
            return Err(Objection::new(Reason::BadSubject, message));
        }
        let (server, database) = (server.to_owned(), database.to_owned());
        return Ok(Item::Report { server, database, report: data(event, too_new)? });
    }
    let tenant = event.subject.as_deref().filter(|subject| is_tenant_id(subject)).ok_or_else(|| {
        Objection::new(Reason::BadSubject, "subject is the tenant's id: t_ and 12 lower-case letters and digits")
    })?;
    let facts = known(tenant, facts)?;
    if !facts.servers.iter().any(|known| known == server) {
        return Err(forbidden(format!("tenant {tenant} is not on DatabaseServer {server}, and never was")));
    }
    if event.event_type == MARK_TYPE {
        let mark: Mark = data(event, too_new)?;
        check_mark(&mark).map_err(|message| Objection::new(Reason::BadData, message))?;
        return Ok(Item::Mark(LedgerMark { tenant: tenant.to_owned(), as_of: at, mark }));
    }
    let usage: Usage = data(event, too_new)?;
    let bad = |message: String| Objection::new(Reason::BadData, message);
    check_meter(&usage.meter).map_err(bad)?;
    let Some(counted) = &usage.counted else {
        return Err(bad(
            "kind, epoch, sequence and value are missing: a relay sends what a database counted".to_owned()
        ));
    };
    check_counted(counted, usage.delta, at).map_err(bad)?;
    // The database decided which period a Total's value belongs to when it started it again.
    let moment = counted.period_start.unwrap_or(at);
    Ok(kept(event, tenant, at, moment, facts, usage))
}

fn of_workload(
    event: &CloudEvent<'_>,
    at: Timestamp,
    tenant: &str,
    facts: Option<&TenantFacts>,
) -> Result<Item, Objection> {
    let forbidden = |message: String| Objection::new(Reason::Forbidden, message);
    if event.event_type != USAGE_TYPE {
        return Err(forbidden(format!("type {:?} is the relays': a workload sends {USAGE_TYPE}", event.event_type)));
    }
    if let Some(subject) = event.subject.as_deref().filter(|subject| *subject != tenant) {
        return Err(forbidden(format!("subject {subject:?} is not this namespace's tenant, {tenant}: leave it out")));
    }
    let facts = known(tenant, facts)?;
    let usage: Usage = data(event, |message| Objection::new(Reason::BadData, message))?;
    let bad = |message: String| Objection::new(Reason::BadData, message);
    check_meter(&usage.meter).map_err(bad)?;
    if usage.counted.is_some() {
        return Err(forbidden(
            "kind, epoch, sequence and value are the databases': a workload sends meter and delta".to_owned(),
        ));
    }
    match facts.meters.get(&usage.meter) {
        None => {
            let declared: Vec<&str> =
                facts.meters.iter().filter(|(_, meter)| meter.from_api).map(|(name, _)| name.as_str()).collect();
            let declared = if declared.is_empty() { "none".to_owned() } else { declared.join(", ") };
            let message = format!("the Application declares no meter {:?}; of source API: {declared}", usage.meter);
            Err(Objection::new(Reason::UnknownMeter, message))
        }
        Some(meter) if !meter.from_api => {
            Err(forbidden(format!("meter {} is counted in the database, by record_usage", usage.meter)))
        }
        Some(meter) if meter.is_total && usage.delta < 0 => {
            Err(bad(format!("delta {}: meter {} is a total, which only counts up", usage.delta, usage.meter)))
        }
        Some(_) => Ok(kept(event, tenant, at, at, facts, usage)),
    }
}

fn known<'f>(tenant: &str, facts: Option<&'f TenantFacts>) -> Result<&'f TenantFacts, Objection> {
    facts.ok_or_else(|| {
        let message = format!("the ledger doesn't know tenant {tenant} yet: send it again in a while");
        Objection::new(Reason::UnknownTenant, message)
    })
}

fn kept(
    event: &CloudEvent<'_>,
    tenant: &str,
    at: Timestamp,
    moment: Timestamp,
    facts: &TenantFacts,
    usage: Usage,
) -> Item {
    let period = facts.periods.containing(moment);
    Item::Usage(LedgerEvent {
        id: event.id.to_string(),
        source: event.source.to_string(),
        tenant: tenant.to_owned(),
        at,
        period_start: period.start,
        period_end: period.end,
        usage,
    })
}

/// What a relay sends that this version doesn't know. The operators' processes and the relays are
/// not replaced at one moment, and the relay may come first.
fn too_new(what: &str) -> Objection {
    let message = format!("{what}; its relay is newer than this operator: it is taken by one of the relay's version");
    Objection::new(Reason::TooNew, message)
}

/// The data of an event. `unknown` says what comes of a field, or a value, that no type here has.
fn data<T: DeserializeOwned>(event: &CloudEvent<'_>, unknown: fn(&str) -> Objection) -> Result<T, Objection> {
    let text = event.data.as_deref().ok_or_else(|| Objection::new(Reason::BadData, "data is missing"))?;
    serde_json::from_str(text).map_err(|_| {
        // Once more, with an eye on where: events that can't be read are few.
        let mut reader = serde_json::Deserializer::from_str(text);
        let message = match serde_path_to_error::deserialize::<_, T>(&mut reader) {
            Err(error) => {
                let (path, inner) = (error.path().to_string(), error.inner().to_string());
                let inner = inner.rsplit_once(" at line ").map_or(inner.as_str(), |(message, _)| message);
                let message = if path == "." { format!("data: {inner}") } else { format!("data.{path}: {inner}") };
                // As serde words `Error::unknown_field` and `Error::unknown_variant` for every format.
                if ["unknown field ", "unknown variant "].iter().any(|begins| inner.starts_with(begins)) {
                    return unknown(&message);
                }
                message
            }
            Ok(_) => "data: something follows the JSON value".to_owned(),
        };
        Objection::new(Reason::BadData, message)
    })
}

/// Server and database of a relay's source.
fn place(source: &str) -> Option<(&str, &str)> {
    let (server, database) = source.strip_prefix("/tenantry/")?.split_once('/')?;
    let plain = |text: &str| !text.is_empty() && !text.contains(['/', '?', '#', '%']);
    (plain(server) && plain(database)).then_some((server, database))
}

/// Whether a text is a tenant's id as the databases have it: `t_` and 12 characters of base32.
fn is_tenant_id(text: &str) -> bool {
    let letters = text.strip_prefix("t_").unwrap_or_default();
    letters.len() == 12 && letters.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'))
}

fn check_meter(meter: &str) -> Result<(), String> {
    let fits = meter.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    match !meter.is_empty() && meter.len() <= LONGEST_METER && fits {
        true => Ok(()),
        false => Err(format!(
            "meter {meter:?}: a meter's name has at most {LONGEST_METER} characters: lower-case letters, digits and '_'"
        )),
    }
}

fn at_least(name: &str, value: i64, least: i64) -> Result<(), String> {
    if value < least { Err(format!("{name} is {value}: the least is {least}")) } else { Ok(()) }
}

fn check_mark(mark: &Mark) -> Result<(), String> {
    check_meter(&mark.meter)?;
    at_least("epoch", mark.epoch.into(), 1)?;
    at_least("sequence", mark.sequence, 0)?;
    at_least("value", mark.value, 0)
}

fn check_counted(counted: &Counted, delta: i64, at: Timestamp) -> Result<(), String> {
    at_least("epoch", counted.epoch.into(), 1)?;
    at_least("sequence", counted.sequence, 1)?;
    at_least("value", counted.value, 0)?;
    if counted.value.checked_sub(delta).is_none() {
        return Err(format!("delta {delta} can't have led to value {}: there is no value before it", counted.value));
    }
    for (name, text) in [("subject", &counted.subject), ("reason", &counted.reason), ("actor", &counted.actor)] {
        if let Some(text) = text.as_ref().filter(|text| text.len() > LONGEST_TEXT || text.contains('\0')) {
            return Err(format!("{name} has {} bytes: {LONGEST_TEXT} are the most, and no NUL", text.len()));
        }
    }
    if let Some(start) = counted.period_start.filter(|start| *start > at) {
        return Err(format!("periodStart {start} is later than the event's time {at}"));
    }
    counted.folded.as_ref().map_or(Ok(()), |folded| check_folded(folded, counted, at))
}

fn check_folded(folded: &Folded, counted: &Counted, at: Timestamp) -> Result<(), String> {
    at_least("folded.firstSequence", folded.first_sequence, 1)?;
    at_least("folded.low", folded.low, 0)?;
    if folded.first_sequence > counted.sequence {
        return Err(format!(
            "folded.firstSequence {} comes after sequence {}",
            folded.first_sequence, counted.sequence
        ));
    }
    if folded.first_at > at {
        return Err(format!("folded.firstAt {} is later than the event's time {at}", folded.first_at));
    }
    if !(folded.low..=folded.high).contains(&counted.value) {
        return Err(format!(
            "value {} is not between folded.low {} and folded.high {}",
            counted.value, folded.low, folded.high
        ));
    }
    match folded.moment.parse::<i128>() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("folded.moment {:?} is no whole number: {error}", folded.moment)),
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
