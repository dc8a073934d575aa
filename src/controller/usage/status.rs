//! What a Tenant's status says of its usage, from what was projected.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rust_decimal::{Decimal, prelude::ToPrimitive as _};

use crate::{
    api::{
        ClosedMeterUsage, ClosedUsage, ConditionType, MeterUsage, TenantMetering, TenantUsage, UsagePeriod, Verdict,
        find_condition, merge_conditions,
    },
    billing::Period,
    metering::usage::{Finding, MeterNow, MeterThen, PeriodThen, Share, Usage},
};

/// The largest number that every reader of JSON takes exactly.
const LARGEST: i64 = (1 << 53) - 1;

/// What the status is to say. The times of conditions' transitions go on from `old`.
pub(super) fn metering(old: &TenantMetering, usage: &Usage, now: Timestamp) -> TenantMetering {
    let mut verdicts = vec![
        verdict(ConditionType::WithinLimits, &usage.within_limits),
        verdict(ConditionType::UsageComplete, &usage.complete),
    ];
    verdicts.extend(usage.reconciled.as_ref().map(|finding| verdict(ConditionType::UsageReconciled, finding)));
    verdicts.extend(usage.degraded.as_ref().map(|finding| verdict(ConditionType::MeteringDegraded, finding)));
    TenantMetering {
        usage: Some(current_usage(usage, now)),
        history: closed_usage(usage),
        // Usage follows events, not the spec: no generation.
        conditions: merge_conditions(&old.conditions, &verdicts, None, now),
    }
}

/// What a tenant uses in the period that it is in, as its status says it; limits only where the
/// projection knows them.
pub fn current_usage(usage: &Usage, now: Timestamp) -> TenantUsage {
    TenantUsage { as_of: time(now), period: period(&usage.period), meters: usage.meters.iter().map(meter).collect() }
}

/// What a tenant used in the periods that are closed, as its status says it, the newest first.
pub fn closed_usage(usage: &Usage) -> Vec<ClosedUsage> {
    usage.history.iter().map(closed).collect()
}

/// What the status is to say while the ledger is away for long: what it said, and that.
pub(super) fn away(old: &TenantMetering, finding: &Finding, now: Timestamp) -> TenantMetering {
    let kind = ConditionType::MeteringDegraded;
    if find_condition(&old.conditions, kind).is_some_and(|condition| condition.reason == finding.reason) {
        // An earlier leader knew since when.
        return old.clone();
    }
    let verdict = verdict(kind, finding);
    let degraded = merge_conditions(&old.conditions, &[verdict], None, now);
    let mut new = old.clone();
    new.conditions.retain(|condition| condition.type_ != kind.as_str());
    new.conditions.extend(degraded);
    new
}

fn verdict(kind: ConditionType, finding: &Finding) -> Verdict {
    Verdict { kind, holds: finding.holds, reason: finding.reason, message: finding.message.clone() }
}

fn period(period: &Period) -> UsagePeriod {
    UsagePeriod { start: time(period.start), end: time(period.end) }
}

/// As the API server keeps it: with more, it would differ from what is read back.
fn time(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn shown(count: i64) -> i64 {
    count.clamp(-LARGEST, LARGEST)
}

fn decimal(number: Decimal) -> String {
    format!("{number:.2}")
}

fn meter(now: &MeterNow) -> MeterUsage {
    MeterUsage {
        name: now.name.clone(),
        current: shown(now.current),
        peak: now.peak.map(shown),
        average: now.average.map(decimal),
        limit: now.limit.map(shown),
        display: match now.limit {
            Some(limit) => format!("{}/{limit}", now.current),
            None => now.current.to_string(),
        },
        complete: now.complete,
    }
}

fn closed(then: &PeriodThen) -> ClosedUsage {
    ClosedUsage {
        start: time(then.period.start),
        end: time(then.period.end),
        estimated: then.estimated.then_some(true),
        meters: then.meters.iter().map(closed_meter).collect(),
    }
}

fn closed_meter(then: &MeterThen) -> ClosedMeterUsage {
    let closing = shown(then.closing);
    let adjusted = then.adjusted.to_i64().unwrap_or(if then.adjusted.is_sign_negative() { -LARGEST } else { LARGEST });
    ClosedMeterUsage {
        name: then.name.clone(),
        closing: (!then.is_total).then_some(closing),
        peak: then.peak.map(shown),
        average: then.average.map(decimal),
        used: then.is_total.then_some(closing),
        adjusted: (adjusted != 0).then(|| shown(adjusted)),
    }
}

/// Whether two say the same but for what changes by time alone.
pub(super) fn is_same(old: &TenantMetering, new: &TenantMetering) -> bool {
    timeless(old) == timeless(new)
}

fn timeless(metering: &TenantMetering) -> TenantMetering {
    let mut metering = metering.clone();
    if let Some(usage) = &mut metering.usage {
        usage.as_of = Time(Timestamp::UNIX_EPOCH);
        usage.meters.iter_mut().for_each(|meter| meter.average = None);
    }
    metering
}

/// Whether somebody waits for it: it is the first, a period was closed, or a meter has come to
/// another share of its limit.
pub(super) fn is_urgent(old: &TenantMetering, new: &TenantMetering) -> bool {
    let (Some(before), Some(after)) = (&old.usage, &new.usage) else { return true };
    let closed = |metering: &TenantMetering| metering.history.first().map(|closed| closed.start.clone());
    let within = |metering: &TenantMetering| {
        find_condition(&metering.conditions, ConditionType::WithinLimits).map(|it| it.status.clone())
    };
    before.period != after.period
        || closed(old) != closed(new)
        || within(old) != within(new)
        || after.meters.iter().any(|meter| share_before(before, &meter.name) != share(meter))
}

fn share(meter: &MeterUsage) -> Share {
    Share::of(meter.current, meter.limit)
}

fn share_before(usage: &TenantUsage, meter: &str) -> Share {
    usage.meters.iter().find(|it| it.name == meter).map_or(Share::Below, share)
}

/// Whether a status is the first to tell of an event that happened then.
pub(super) fn is_news(old: &TenantMetering, new: &TenantMetering, at: Timestamp) -> bool {
    let counted = |metering: &TenantMetering| -> Vec<i64> {
        metering.usage.iter().flat_map(|usage| usage.meters.iter().map(|meter| meter.current)).collect()
    };
    counted(old) != counted(new) && old.usage.as_ref().is_some_and(|usage| at > usage.as_of.0)
}

/// A meter that has come nearer to its limit than it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Crossing {
    pub(super) meter: String,
    pub(super) current: i64,
    pub(super) limit: i64,
    /// Whether nothing is left, and not only little.
    pub(super) is_reached: bool,
}

/// The meters that have crossed 80 % or 100 % of their limits upwards. What was said before is
/// known by what the status says, so that a restart says nothing again.
pub(super) fn crossings(old: &TenantMetering, new: &TenantMetering) -> Vec<Crossing> {
    let meters = new.usage.iter().flat_map(|usage| &usage.meters);
    let crossing = |meter: &MeterUsage| {
        // To exceed a limit that was reached is nothing new here; the condition says it.
        let rank = |share: Share| share.min(Share::Reached);
        let before = old.usage.as_ref().map_or(Share::Below, |usage| share_before(usage, &meter.name));
        let (before, after) = (rank(before), rank(share(meter)));
        (after > before).then(|| Crossing {
            meter: meter.name.clone(),
            current: meter.current,
            limit: meter.limit.unwrap_or_default(),
            is_reached: after == Share::Reached,
        })
    };
    meters.filter_map(crossing).collect()
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
