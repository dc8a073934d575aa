//! Usage periods: whole months after an anchor, counted on the calendar of a time zone.

use jiff::{
    Timestamp, ToSpan as _,
    civil::DateTime,
    tz::{Disambiguation, TimeZone},
};

/// A name that the time zone database doesn't have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no time zone of the IANA database: write one such as Asia/Seoul or UTC")]
pub struct UnknownZone(pub String);

/// A usage period: from its start until before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Period {
    /// Its first moment.
    pub start: Timestamp,
    /// The first moment of the next one.
    pub end: Timestamp,
}

impl Period {
    /// Whether a moment is in it.
    #[must_use]
    pub fn contains(&self, moment: Timestamp) -> bool {
        self.start <= moment && moment < self.end
    }
}

/// All usage periods of a tenant. They cover time without gap or overlap.
///
/// Each begins a number of whole months after the anchor, at the anchor's day and time in the
/// zone. A day that a month doesn't have is its last day (31 January, 28 February, 31 March: it
/// doesn't drift). A time that a change of clocks leaves out, or has twice, is the later one, as
/// PostgreSQL reads it too (`DetermineTimeZoneOffset`): function `tenantry.period_start` in each
/// tenant's database comes to the same moments, so that a Total starts again where its period does.
#[derive(Clone, Debug)]
pub struct Periods {
    first: DateTime,
    zone: TimeZone,
}

impl Periods {
    /// The periods of an anchor in a zone of the IANA database.
    ///
    /// # Errors
    /// When there is no such zone.
    pub fn new(anchor: Timestamp, zone: &str) -> Result<Self, UnknownZone> {
        let zone = TimeZone::get(zone).map_err(|_| UnknownZone(zone.to_owned()))?;
        Ok(Self { first: zone.to_datetime(anchor), zone })
    }

    /// The period that contains a moment; also before the anchor.
    #[must_use]
    pub fn containing(&self, moment: Timestamp) -> Period {
        let today = self.zone.to_datetime(moment);
        let months = |date: DateTime| i32::from(date.year()) * 12 + i32::from(date.month());
        let mut number = months(today) - months(self.first);
        // The day and the time of day decide which of two it is.
        while self.start(number) > moment {
            number -= 1;
        }
        while self.start(number + 1) <= moment {
            number += 1;
        }
        Period { start: self.start(number), end: self.start(number + 1) }
    }

    /// The period after another one.
    #[must_use]
    pub fn after(&self, period: &Period) -> Period {
        self.containing(period.end)
    }

    /// When the period of this number begins; that of the anchor has number 0.
    fn start(&self, number: i32) -> Timestamp {
        let local = self.first.saturating_add(number.months());
        let resolved = self.zone.to_ambiguous_timestamp(local).disambiguate(Disambiguation::Later);
        resolved.unwrap_or(if number < 0 { Timestamp::MIN } else { Timestamp::MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn starts(anchor: &str, zone: &str, count: usize) -> Vec<String> {
        let periods = Periods::new(at(anchor), zone).expect("a zone");
        let first = periods.containing(at(anchor));
        std::iter::successors(Some(first), |period| Some(periods.after(period)))
            .take(count)
            .map(|period| period.start.to_string())
            .collect()
    }

    #[test]
    fn the_last_day_of_a_month_does_not_drift() {
        assert_eq!(
            starts("2027-12-31T00:00:00Z", "UTC", 5),
            [
                "2027-12-31T00:00:00Z",
                "2028-01-31T00:00:00Z",
                "2028-02-29T00:00:00Z",
                "2028-03-31T00:00:00Z",
                "2028-04-30T00:00:00Z"
            ]
        );
    }

    #[test]
    fn months_are_counted_on_the_calendar_of_the_zone() {
        // Midnight in Seoul is the afternoon before in UTC.
        assert_eq!(
            starts("2026-01-31T15:00:00Z", "Asia/Seoul", 3),
            ["2026-01-31T15:00:00Z", "2026-02-28T15:00:00Z", "2026-03-31T15:00:00Z"]
        );
        // The clocks of Berlin change on 29 March: the same time of day is an hour earlier in UTC.
        assert_eq!(
            starts("2026-03-01T23:00:00Z", "Europe/Berlin", 2),
            ["2026-03-01T23:00:00Z", "2026-04-01T22:00:00Z"]
        );
    }

    #[test]
    fn a_time_that_is_left_out_or_there_twice_is_the_later_one() {
        // 02:30 on 29 March 2026 is left out in Berlin: 03:30 summer time.
        assert_eq!(starts("2026-02-28T01:30:00Z", "Europe/Berlin", 2)[1], "2026-03-28T01:30:00Z");
        assert_eq!(starts("2026-01-29T01:30:00Z", "Europe/Berlin", 3)[2], "2026-03-29T01:30:00Z");
        // 02:30 on 25 October 2026 is there twice: the second time it is winter time.
        assert_eq!(starts("2026-09-25T00:30:00Z", "Europe/Berlin", 2)[1], "2026-10-25T01:30:00Z");
    }

    #[test]
    fn there_are_periods_before_the_anchor_too() {
        let periods = Periods::new(at("2026-05-31T00:00:00Z"), "UTC").expect("a zone");
        let period = periods.containing(at("2026-02-28T12:00:00Z"));
        assert_eq!((period.start, period.end), (at("2026-02-28T00:00:00Z"), at("2026-03-31T00:00:00Z")));
        assert!(period.contains(period.start) && !period.contains(period.end));
    }

    #[test]
    fn an_unknown_zone_is_named() {
        let error = Periods::new(Timestamp::UNIX_EPOCH, "Mars/Olympus").expect_err("unknown");
        assert!(error.to_string().contains("Mars/Olympus"), "{error}");
    }
}
