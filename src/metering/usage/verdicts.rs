//! What is said of a tenant's usage beside the numbers.
//!
//! No message has a number that changes by time alone: a status is not written for that.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::{MeterNow, MeterTerms, Policy, Share, Terms};
use crate::metering::ledger::{MeterState, MissingRange};

/// A drift of so many is never more than what may be: counts that change while somebody counts.
const DRIFT_LEAST: u64 = 5;

/// What was found out about one concern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it holds; nothing where that isn't known.
    pub holds: Option<bool>,
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Finding {
    fn new(holds: Option<bool>, reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds, reason, message: message.into() }
    }
}

/// How long usage may be on its way until somebody is told that it hasn't arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long a gap between sequences may be there: two leases of a relay, in which a batch that
    /// got lost is sent again.
    pub gap: SignedDuration,
    /// How long after an event its database may take to say how far it is: a relay posts marks
    /// once a minute.
    pub mark: SignedDuration,
    /// How long a relay may say nothing: it reports every 30 seconds.
    pub silent: SignedDuration,
}

/// How usage gets from a tenant's database into the ledger. Each is nothing where all is well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// The tenant's DatabaseServer.
    pub server: String,
    /// Since when its relay hasn't said anything of the tenant's database.
    pub silent_since: Option<Timestamp>,
    /// Whether events of the database have waited long.
    pub waits_long: bool,
    /// How many of the tenant's own events were refused for good.
    pub dead: u64,
    /// Since when the ledger is away, where that has lasted long enough to be said.
    pub ledger_away: Option<Timestamp>,
}

/// Since when the relay that reported last at `last` counts as silent, where it could be heard
/// from `listening_since` on: while nobody listened, nothing could be heard.
#[must_use]
pub fn silent_since(
    last: Timestamp,
    listening_since: Timestamp,
    now: Timestamp,
    patience: &Patience,
) -> Option<Timestamp> {
    (now.duration_since(last.max(listening_since)) > patience.silent).then_some(last)
}

/// Why it isn't known that everything of a meter has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// Its database was restored to an earlier time.
    Restored,
    /// Events are missing.
    Gap(MissingRange),
    /// The database has not said for long how far it is, although something was counted, since
    /// this moment.
    StaleMark(Timestamp),
    /// The relay says nothing, since this moment.
    Silent(Timestamp),
    /// The database has never said how far it is.
    NotReported,
}

/// How one meter is.
pub(super) struct Judged {
    pub(super) complete: bool,
    /// Why not, where somebody has to know.
    pub(super) complaint: Option<Complaint>,
    /// When time alone may change this.
    pub(super) next: Option<Timestamp>,
}

/// Whether everything of a meter has arrived, as far as can be known.
pub(super) fn judge(meter: &MeterTerms, state: Option<&MeterState>, terms: &Terms<'_>, now: Timestamp) -> Judged {
    if meter.from_api {
        // Nobody numbers these events, so nobody can miss one.
        return Judged { complete: false, complaint: None, next: None };
    }
    let mut next = None;
    let complaint = complaint(state, terms, now, &mut next);
    Judged { complete: complaint.is_none(), complaint, next }
}

fn complaint(
    state: Option<&MeterState>,
    Terms { delivery, patience, .. }: &Terms<'_>,
    now: Timestamp,
    next: &mut Option<Timestamp>,
) -> Option<Complaint> {
    let unheard = delivery.silent_since.map_or(Complaint::NotReported, Complaint::Silent);
    let Some(state) = state else { return Some(unheard) };
    if state.restored {
        return Some(Complaint::Restored);
    }
    if let Some(missing) = state.missing {
        let due = missing.since.saturating_add(patience.gap).unwrap_or(Timestamp::MAX);
        if now >= due {
            return Some(Complaint::Gap(missing));
        }
        *next = Some(due);
    }
    let Some(marked) = state.marked_at else { return Some(unheard) };
    if let Some(since) = delivery.silent_since {
        return Some(Complaint::Silent(since));
    }
    if let Some(occurred) = state.occurred_at.filter(|occurred| *occurred > marked) {
        let due = occurred.saturating_add(patience.mark).unwrap_or(Timestamp::MAX);
        if now >= due {
            return Some(Complaint::StaleMark(marked));
        }
        *next = Some(next.map_or(due, |next| next.min(due)));
    }
    None
}

/// What the meters' complaints come to: the first, by how bad it is, gives the reason.
pub(super) fn complete(meters: &[MeterTerms], complaints: &[(String, Complaint)]) -> Finding {
    let counted: Vec<&MeterTerms> = meters.iter().filter(|meter| !meter.from_api).collect();
    let from_api: Vec<&str> = meters.iter().filter(|meter| meter.from_api).map(|meter| meter.name.as_str()).collect();
    let beside = match from_api.as_slice() {
        [] => String::new(),
        names => format!("; {}: counted through the API, which promises nothing", names.join(", ")),
    };
    let of = |matches: fn(&Complaint) -> bool| -> Vec<(&str, &Complaint)> {
        complaints.iter().filter(|(_, it)| matches(it)).map(|(name, it)| (name.as_str(), it)).collect()
    };
    let names = |found: &[(&str, &Complaint)]| found.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let restored = of(|it| matches!(it, Complaint::Restored));
    if !restored.is_empty() {
        let message = format!(
            "{}: the database was restored to an earlier time; what it counts is held until a new epoch begins",
            names(&restored)
        );
        return Finding::new(Some(false), "Restored", message);
    }
    let gaps = of(|it| matches!(it, Complaint::Gap(_)));
    if !gaps.is_empty() {
        let each: Vec<String> = gaps.iter().filter_map(|(name, complaint)| gap_text(name, complaint)).collect();
        return Finding::new(Some(false), "EventsMissing", each.join("; "));
    }
    let silent = of(|it| matches!(it, Complaint::Silent(_)));
    if let Some((_, Complaint::Silent(since))) = silent.first() {
        let message = format!("{}: the relay has said nothing since {}", names(&silent), seconds(*since));
        return Finding::new(Some(false), "RelaySilent", message);
    }
    let stale = of(|it| matches!(it, Complaint::StaleMark(_)));
    if let Some((_, Complaint::StaleMark(since))) = stale.first() {
        let message = format!(
            "{}: the database has not said how far it is since {}, although something was counted",
            names(&stale),
            seconds(*since)
        );
        return Finding::new(Some(false), "MarkIsOld", message);
    }
    let unheard = of(|it| matches!(it, Complaint::NotReported));
    if !unheard.is_empty() {
        let message = format!("{}: the database has not said yet how far it is", names(&unheard));
        return Finding::new(None, "NotReported", message);
    }
    match counted.is_empty() {
        false => Finding::new(Some(true), "Complete", format!("everything that was counted has arrived{beside}")),
        true if from_api.is_empty() => Finding::new(Some(true), "Complete", "the Application declares no meter"),
        true => Finding::new(None, "NoProof", format!("nothing proves that everything has arrived{beside}")),
    }
}

fn gap_text(name: &str, complaint: &Complaint) -> Option<String> {
    let Complaint::Gap(missing) = complaint else { return None };
    let MissingRange { epoch, first, last, count, since } = missing;
    let range = if first == last { format!("event {first}") } else { format!("events {first} to {last}") };
    let some = if *count == last.saturating_sub(*first).saturating_add(1) {
        String::new()
    } else {
        format!(" ({count} of them)")
    };
    Some(format!("{name}: {range}{some} of epoch {epoch} are missing since {}", seconds(*since)))
}

/// Whether no meter is above its limit.
pub(super) fn within_limits(terms: &[MeterTerms], meters: &[MeterNow]) -> Finding {
    let mut over: Vec<(u8, &'static str, String)> = Vec::new();
    for (meter, now) in terms.iter().zip(meters) {
        let Some(limit) = meter.limit.filter(|limit| Share::of(now.current, Some(limit.max)) == Share::Over) else {
            continue;
        };
        let (rank, reason, what) = match limit.policy {
            Policy::Hard => (0, "OverHardLimit", "nothing more is accepted".to_owned()),
            Policy::Grace { days, percent } => {
                (1, "OverGraceLimit", format!("up to {percent} % more are accepted for {days} days"))
            }
            Policy::Soft => (2, "OverSoftLimit", "more is accepted".to_owned()),
        };
        over.push((rank, reason, format!("{}: {} of {} in use; {what}", meter.name, now.current, limit.max)));
    }
    over.sort_by_key(|(rank, ..)| *rank);
    match over.first() {
        None => Finding::new(Some(true), "WithinLimits", "no meter is above its limit"),
        Some((_, reason, _)) => {
            let each: Vec<&str> = over.iter().map(|(.., text)| text.as_str()).collect();
            Finding::new(Some(false), reason, each.join(". "))
        }
    }
}

/// Whether what was counted and the application's own count agreed, when it compared them last.
pub(super) fn reconciled(meters: &[MeterTerms], states: &BTreeMap<&str, &MeterState>, percent: u8) -> Option<Finding> {
    let mut compared = false;
    let mut apart = Vec::new();
    for meter in meters {
        let Some(state) = states.get(meter.name.as_str()) else { continue };
        let Some((drift, at)) = state.drift else { continue };
        compared = true;
        if is_apart(drift, state.value, percent) {
            apart.push(format!("{}: {drift:+} on {}", meter.name, seconds(at)));
        }
    }
    if !compared {
        return None;
    }
    Some(match apart.is_empty() {
        true => Finding::new(Some(true), "Reconciled", "the application's own count agreed with what was counted"),
        false => {
            let message = format!(
                "the application's own count differed from what was counted, which was set right: {}; somewhere a \
                 change is not counted, or counted twice",
                apart.join(", ")
            );
            Finding::new(Some(false), "Drift", message)
        }
    })
}

/// Whether a drift is more than what may be: more than a few, and than so many percent of the
/// value.
fn is_apart(drift: i64, value: i64, percent: u8) -> bool {
    let drift = drift.unsigned_abs();
    drift > DRIFT_LEAST && u128::from(drift) * 100 > u128::from(value.unsigned_abs()) * u128::from(percent)
}

/// What is amiss with how usage gets here: the first, by how much it hides; nothing where all is
/// well.
#[must_use]
pub fn degraded(delivery: &Delivery) -> Option<Finding> {
    let server = &delivery.server;
    let (reason, message) = if let Some(since) = delivery.ledger_away {
        let message =
            format!("the ledger is away since {}: nothing is counted in status; nothing is lost", seconds(since));
        ("LedgerAway", message)
    } else if let Some(since) = delivery.silent_since {
        let message = format!("the relay of DatabaseServer {server} has said nothing since {}", seconds(since));
        ("RelaySilent", message)
    } else if delivery.waits_long {
        ("EventsWait", format!("usage events on DatabaseServer {server} wait for long to be taken"))
    } else if delivery.dead > 0 {
        let message = format!("{} usage events were refused: tenantry deadletters list", delivery.dead);
        ("DeadLetters", message)
    } else {
        return None;
    };
    Some(Finding::new(Some(true), reason, message))
}

fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
