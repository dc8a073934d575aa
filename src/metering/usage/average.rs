//! The average of a level over time.

use jiff::Timestamp;
use rust_decimal::{Decimal, prelude::ToPrimitive as _};

use super::super::ledger::OpenPeriod;

/// Decimals of an average.
const SCALE: u32 = 2;

/// The average over time of a level, from the start of a period until `until`, by what its events
/// add up to; rounded half even to two decimals. Nothing where it is too large to say.
///
/// The level is a step function: `opening`, and from the time of each event on its `delta` more.
/// So its integral over the first T of the period is `opening * T + sum(delta * (T - t))`, where t
/// is the event's time after the start: `(opening + sum(delta)) * T - moment` with `moment =
/// sum(delta * t)`, which needs no order of arrival. Every event has to be before `until`.
#[must_use]
pub fn average(sums: &OpenPeriod, until: Timestamp) -> Option<Decimal> {
    let span = i128::from(until.as_microsecond()) - i128::from(sums.start.as_microsecond());
    if span <= 0 {
        return Some(Decimal::from(sums.opening));
    }
    let level = i128::from(sums.opening).checked_add(sums.delta.to_i128()?)?;
    let area = level.checked_mul(span)?.checked_sub(sums.moment.to_i128()?)?;
    let scaled = divide_half_even(area.checked_mul(10_i128.pow(SCALE))?, span);
    Decimal::try_from_i128_with_scale(scaled, SCALE).ok()
}

/// The quotient that is nearest, and of two that are equally near the even one; `by` is above 0.
fn divide_half_even(number: i128, by: i128) -> i128 {
    let (floor, rest) = (number.div_euclid(by), number.rem_euclid(by));
    let twice = rest.saturating_mul(2);
    if twice > by || twice == by && floor % 2 != 0 { floor + 1 } else { floor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_goes_to_the_even_neighbour() {
        let cases = [(5, 2, 2), (7, 2, 4), (-5, 2, -2), (-7, 2, -4), (7, 3, 2), (8, 3, 3), (-7, 3, -2), (0, 9, 0)];
        for (number, by, wanted) in cases {
            assert_eq!(divide_half_even(number, by), wanted, "{number} / {by}");
        }
    }
}
