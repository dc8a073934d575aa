//! Kubernetes quantities, compared by value.

use std::str::FromStr as _;

use rust_decimal::Decimal;
use serde_json::Value;

/// Whether two values are quantities of the same amount (`0.5` and `500m`, 1 and `"1"`).
pub(super) fn same_quantity(one: &Value, other: &Value) -> bool {
    match (amount(one), amount(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

fn amount(value: &Value) -> Option<Decimal> {
    match value {
        Value::Number(number) => Decimal::from_str(&number.to_string()).ok(),
        Value::String(text) => parse(text),
        _ => None,
    }
}

/// Parses the format of `k8s.io/apimachinery/pkg/api/resource`: a decimal number and a
/// suffix, or a decimal exponent.
fn parse(text: &str) -> Option<Decimal> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let number = Decimal::from_str(number).ok()?;
    let thousand = |power: i64| Decimal::from_i128_with_scale(1, 0).checked_mul(decimal_power(10, 3 * power)?);
    let factor = match suffix {
        "" => Decimal::ONE,
        "n" => Decimal::new(1, 9),
        "u" => Decimal::new(1, 6),
        "m" => Decimal::new(1, 3),
        "k" => thousand(1)?,
        "M" => thousand(2)?,
        "G" => thousand(3)?,
        "T" => thousand(4)?,
        "P" => thousand(5)?,
        "E" => thousand(6)?,
        "Ki" => decimal_power(1024, 1)?,
        "Mi" => decimal_power(1024, 2)?,
        "Gi" => decimal_power(1024, 3)?,
        "Ti" => decimal_power(1024, 4)?,
        "Pi" => decimal_power(1024, 5)?,
        "Ei" => decimal_power(1024, 6)?,
        exponent => {
            let power: i64 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            if power >= 0 { decimal_power(10, power)? } else { Decimal::ONE.checked_div(decimal_power(10, -power)?)? }
        }
    };
    number.checked_mul(factor)
}

fn decimal_power(base: i64, power: i64) -> Option<Decimal> {
    (0..power).try_fold(Decimal::ONE, |value, _| value.checked_mul(Decimal::from(base)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn equal_amounts_are_equal_however_they_are_written() {
        for (one, other) in [("0.5", "500m"), ("1Gi", "1024Mi"), ("1k", "1000"), ("2e3", "2k"), ("100u", "0.1m")] {
            assert!(same_quantity(&json!(one), &json!(other)), "{one} {other}");
        }
        assert!(same_quantity(&json!(1), &json!("1")));
        assert!(!same_quantity(&json!("1G"), &json!("1Gi")));
        assert!(!same_quantity(&json!("web"), &json!("web ")));
    }
}
