//! Times as RFC 3339 writes them.

use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, DateTime, Time},
    tz::Offset,
};

/// What is said of anything else.
const WANTED: &str = "write a time as RFC 3339 has it, such as 2026-11-28T09:30:00.25Z or 2026-11-28T18:30:00+09:00";

/// Reads a time. What is finer than a microsecond is cut off: a database keeps no more, and an
/// event that is sent twice must have one time.
///
/// A leap second, 23:59:60 UTC, is the second after it, as PostgreSQL reads it too.
///
/// # Errors
/// How to write it.
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    read(text).ok_or_else(|| format!("{text:?} is no time: {WANTED}"))
}

fn read(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if bytes.len() < 20 || separators.iter().any(|(at, byte)| bytes[*at] != *byte) || !matches!(bytes[10], b'T' | b't')
    {
        return None;
    }
    let year = i16::try_from(number(&bytes[0..4])?).ok()?;
    let date = Date::new(year, small(&bytes[5..7])?, small(&bytes[8..10])?).ok()?;
    let (hour, minute, second) = (small(&bytes[11..13])?, small(&bytes[14..16])?, small(&bytes[17..19])?);
    let mut rest = &bytes[19..];
    let mut micros = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        let kept = digits.min(6);
        micros = (kept..6).fold(number(&fraction[..kept])?, |micros, _| micros * 10);
        rest = &fraction[digits..];
    }
    let is_leap = second == 60;
    let time = Time::new(hour, minute, second.min(if is_leap { 59 } else { 60 }), micros * 1_000).ok()?;
    let moment = offset(rest)?.to_timestamp(DateTime::from_parts(date, time)).ok()?;
    if !is_leap {
        return Some(moment);
    }
    let utc = Offset::UTC.to_datetime(moment);
    let last = utc.hour() == 23 && utc.minute() == 59;
    last.then(|| moment.checked_add(SignedDuration::from_secs(1)).ok()).flatten()
}

fn offset(bytes: &[u8]) -> Option<Offset> {
    let (sign, digits) = match bytes {
        b"Z" | b"z" => return Some(Offset::UTC),
        [b'+', digits @ ..] => (1, digits),
        [b'-', digits @ ..] => (-1, digits),
        _ => return None,
    };
    if digits.len() != 5 || digits[2] != b':' {
        return None;
    }
    let (hours, minutes) = (number(&digits[0..2])?, number(&digits[3..5])?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    Offset::from_seconds(sign * (hours * 3_600 + minutes * 60)).ok()
}

/// A number of digits alone; at most nine of them.
fn number(digits: &[u8]) -> Option<i32> {
    let is_number = digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| digits.iter().fold(0, |number, digit| number * 10 + i32::from(digit - b'0')))
}

fn small(digits: &[u8]) -> Option<i8> {
    i8::try_from(number(digits)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_offsets_fractions_and_leap_seconds() {
        for (text, says) in [
            ("2026-11-28T09:30:00Z", "2026-11-28T09:30:00Z"),
            ("2026-11-28t09:30:00z", "2026-11-28T09:30:00Z"),
            ("2026-11-28T09:30:00.5Z", "2026-11-28T09:30:00.5Z"),
            ("2026-11-28T09:30:00.1234569Z", "2026-11-28T09:30:00.123456Z"),
            ("2026-11-28T09:30:00.12345678901234567890Z", "2026-11-28T09:30:00.123456Z"),
            ("2026-11-28T09:30:00+09:00", "2026-11-28T00:30:00Z"),
            ("2026-11-28T23:30:00-09:30", "2026-11-29T09:00:00Z"),
            ("2026-11-28T09:30:00-00:00", "2026-11-28T09:30:00Z"),
            ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
            ("2016-12-31T23:59:60.25Z", "2017-01-01T00:00:00.25Z"),
            ("2017-01-01T08:59:60+09:00", "2017-01-01T00:00:00Z"),
            ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z"),
        ] {
            assert_eq!(parse_time(text).expect(text).to_string(), says, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_and_says_how_to_write_it() {
        for text in [
            "",
            "now",
            "2026-11-28",
            "2026-11-28T09:30:00",
            "2026-11-28 09:30:00Z",
            "2026-11-28T09:30Z",
            "20261128T093000Z",
            "2026-11-28T09:30:00.Z",
            "2026-11-28T09:30:00,5Z",
            "2026-11-28T09:30:00+0900",
            "2026-11-28T09:30:00+09",
            "2026-11-28T09:30:00+24:00",
            "2026-11-28T09:30:00+09:60",
            "2026-11-28T09:30:00Z[UTC]",
            "2026-11-28T09:30:00 Z",
            "2026-02-29T00:00:00Z",
            "2026-11-28T24:00:00Z",
            "2026-11-28T09:30:60Z",
            "2026-11-28T23:59:60+09:00",
            "2026-11-28T09:30:61Z",
            "+026-11-28T09:30:00Z",
            "2026-1१-28T09:30:00Z",
            "1795858200",
        ] {
            let error = parse_time(text).expect_err(text);
            assert!(error.contains("RFC 3339"), "{error}");
        }
    }
}
