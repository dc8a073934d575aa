//! From what the ledger knows of a tenant's meters to what its status says: how much is used in
//! the period, how much was in those that are closed, whether that is within the limits, and
//! whether all of it has arrived. No I/O.

mod average;
mod verdicts;

use std::collections::BTreeMap;

use jiff::Timestamp;
use rust_decimal::Decimal;

pub use self::{
    average::average,
    verdicts::{Delivery, Finding, Patience, degraded, silent_since},
};
use super::ledger::{MeterState, OpenPeriod};
use crate::billing::{Period, Periods};

/// How many closed periods a status has.
pub const HISTORY: usize = 13;

/// How many meters all closed periods of a status have together, so that it stays small: 40 take
/// 4 KB. A period has the Application's first meters, as many as its share of these.
pub const HISTORY_METERS: usize = 40;

/// How many meters a closed period has in any case.
const LEAST_METERS: usize = 3;

/// What happens beyond a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Use beyond it is refused.
    Hard,
    /// Use beyond it is counted and reported.
    Soft,
    /// Use beyond it is accepted for so many days and up to so many percent more, then refused.
    Grace {
        /// For how many days.
        days: i32,
        /// For how many percent of the limit.
        percent: i32,
    },
}

/// A limit, as a tenant's plan has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The most, in the meter's unit.
    pub max: i64,
    /// What happens beyond it.
    pub policy: Policy,
}

/// A meter as a tenant has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterTerms {
    /// Its name.
    pub name: String,
    /// Whether it starts again at each period.
    pub is_total: bool,
    /// Whether workloads count it through the API.
    pub from_api: bool,
    /// Its limit, where it has one.
    pub limit: Option<Limit>,
}

/// What a tenant's usage is judged by.
#[derive(Clone, Debug)]
pub struct Terms<'a> {
    /// Its usage periods.
    pub periods: &'a Periods,
    /// The meters of its Application, in its order, with the limits of its Plan.
    pub meters: &'a [MeterTerms],
    /// How usage gets from its database into the ledger.
    pub delivery: &'a Delivery,
    /// How long usage may be on its way.
    pub patience: Patience,
    /// From how many percent of the value on a drift is more than what may be.
    pub drift_percent: u8,
    /// How many meters all closed periods have together: [`HISTORY_METERS`] in a status.
    pub history_meters: usize,
}

/// What a tenant uses of one meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterNow {
    /// The meter.
    pub name: String,
    /// Of a Level how many there are, of a Total how much was used in the period.
    pub current: i64,
    /// Of a Level that the database counts, the most in the period.
    pub peak: Option<i64>,
    /// Of a Level, the average over time, with two decimals.
    pub average: Option<Decimal>,
    /// The limit.
    pub limit: Option<i64>,
    /// Whether everything up to now is known to have arrived.
    pub complete: bool,
}

/// What a tenant used of one meter in a closed period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterThen {
    /// The meter.
    pub name: String,
    /// Of a Level how many there were at the end, of a Total how much was used.
    pub closing: i64,
    /// Whether it is a Total.
    pub is_total: bool,
    /// Of a Level, the most.
    pub peak: Option<i64>,
    /// Of a Level, the average over time, with two decimals.
    pub average: Option<Decimal>,
    /// What was counted for the period since it was closed.
    pub adjusted: Decimal,
}

/// A closed period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeriodThen {
    /// When it was.
    pub period: Period,
    /// Whether any meter of it was closed without proof that everything had arrived.
    pub estimated: bool,
    /// The Application's first meters.
    pub meters: Vec<MeterThen>,
}

/// What a tenant's status is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The period that it is in.
    pub period: Period,
    /// Each meter, in the Application's order.
    pub meters: Vec<MeterNow>,
    /// The closed periods, the newest first.
    pub history: Vec<PeriodThen>,
    /// Whether no meter is above its limit.
    pub within_limits: Finding,
    /// Whether all usage has arrived.
    pub complete: Finding,
    /// Whether the application's own count agrees; nothing where it never compared.
    pub reconciled: Option<Finding>,
    /// What is amiss with how usage gets here.
    pub degraded: Option<Finding>,
    /// When time alone may change this, if nothing happens before.
    pub next: Timestamp,
}

/// What a tenant uses, by what the ledger knows of its meters.
#[must_use]
pub fn project(states: &[MeterState], terms: &Terms<'_>, now: Timestamp) -> Usage {
    let period = terms.periods.containing(now);
    let by_name: BTreeMap<&str, &MeterState> = states.iter().map(|state| (state.meter.as_str(), state)).collect();
    let mut meters = Vec::with_capacity(terms.meters.len());
    let mut complaints = Vec::new();
    let mut next = period.end;
    for meter in terms.meters {
        let state = by_name.get(meter.name.as_str()).copied();
        let judged = verdicts::judge(meter, state, terms, now);
        next = judged.next.map_or(next, |at| next.min(at));
        complaints.extend(judged.complaint.map(|complaint| (meter.name.clone(), complaint)));
        meters.push(MeterNow { complete: judged.complete, ..now_of(meter, state, &period, now) });
    }
    Usage {
        history: history(terms, &by_name),
        within_limits: verdicts::within_limits(terms.meters, &meters),
        complete: verdicts::complete(terms.meters, &complaints),
        reconciled: verdicts::reconciled(terms.meters, &by_name, terms.drift_percent),
        degraded: verdicts::degraded(terms.delivery),
        period,
        meters,
        next,
    }
}

fn now_of(meter: &MeterTerms, state: Option<&MeterState>, period: &Period, now: Timestamp) -> MeterNow {
    let open = state.and_then(|state| state.open.iter().find(|open| open.start == period.start));
    let limit = meter.limit.map(|limit| limit.max);
    let name = meter.name.clone();
    if meter.is_total {
        // One without events in this period has started again.
        let current = open.map_or(0, |open| open.closing);
        return MeterNow { name, current, peak: None, average: None, limit, complete: false };
    }
    let current = state.map_or(0, |state| state.value);
    let (peak, average) = match open {
        Some(open) => {
            // An event may be from a clock that is ahead.
            let last = state.and_then(|state| state.occurred_at).unwrap_or(now);
            (open.opening.max(open.high).max(current), average(open, now.max(last).min(period.end)))
        }
        // Without events the value is what it was all the time.
        None => (current, Some(Decimal::from(current))),
    };
    // What comes through the API comes in no order: how high it went between is known when the period is closed.
    let peak = Some(peak).filter(|_| !meter.from_api);
    MeterNow { name, current, peak, average, limit, complete: false }
}

/// The closed periods, the newest first, with as many meters as there is room for.
fn history(terms: &Terms<'_>, states: &BTreeMap<&str, &MeterState>) -> Vec<PeriodThen> {
    let meters = terms.meters;
    let mut starts: Vec<(Timestamp, Timestamp)> = Vec::new();
    for meter in meters {
        let closed = states.get(meter.name.as_str()).map(|state| state.closed.as_slice()).unwrap_or_default();
        starts.extend(closed.iter().map(|closed| (closed.sums.start, closed.sums.end)));
    }
    starts.sort();
    starts.dedup_by_key(|(start, _)| *start);
    starts.reverse();
    starts.truncate(HISTORY);
    let room = terms.history_meters.checked_div(starts.len()).unwrap_or(0).max(LEAST_METERS);
    let period = |(start, end): (Timestamp, Timestamp)| {
        let mut then = PeriodThen { period: Period { start, end }, estimated: false, meters: Vec::new() };
        for (at, meter) in meters.iter().enumerate() {
            let state = states.get(meter.name.as_str());
            let Some(closed) = state.and_then(|state| state.closed.iter().find(|closed| closed.sums.start == start))
            else {
                continue;
            };
            then.estimated |= closed.estimated;
            if at < room {
                let adjusted = closed.adjustments.iter().map(|adjustment| adjustment.delta).sum();
                then.meters.push(then_of(meter, &closed.sums, adjusted));
            }
        }
        then
    };
    starts.into_iter().map(period).collect()
}

fn then_of(meter: &MeterTerms, sums: &OpenPeriod, adjusted: Decimal) -> MeterThen {
    let level = !meter.is_total;
    MeterThen {
        name: meter.name.clone(),
        closing: sums.closing,
        is_total: meter.is_total,
        peak: level.then(|| sums.opening.max(sums.high)),
        average: if level { average(sums, sums.end) } else { None },
        adjusted,
    }
}

/// How near a meter is to its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Share {
    /// Below 80 percent, or without a limit.
    Below,
    /// 80 percent or more.
    Near,
    /// All of it, or more.
    Reached,
    /// More than the limit.
    Over,
}

impl Share {
    /// The share that a value is of its limit. Nothing used is no share, not even of a limit of 0.
    #[must_use]
    pub fn of(current: i64, limit: Option<i64>) -> Self {
        let Some(limit) = limit.filter(|_| current > 0) else { return Self::Below };
        let (current, limit) = (i128::from(current), i128::from(limit));
        match () {
            () if current > limit => Self::Over,
            () if current == limit => Self::Reached,
            () if current * 100 >= limit * 80 => Self::Near,
            () => Self::Below,
        }
    }
}

#[cfg(test)]
#[path = "../usage_tests.rs"]
mod tests;
