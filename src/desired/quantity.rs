//! Quantities as the API server writes them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Map, Value};

use super::Fault;
use crate::api::{Quantities, Resources};

/// Powers of 1000 from nano to exa, and powers of 1024 from kibi to exbi.
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
/// The exponent of the first entry of [`DECIMAL`].
const SMALLEST: i32 = -9;

/// How a quantity is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Decimal,
    Exponent,
    Binary,
}

/// A number as it was written: `mantissa` times ten to the power of `exponent`, which is not
/// below that of one nano.
struct Number {
    mantissa: i128,
    exponent: i32,
    form: Form,
}

/// A quantity in Kubernetes' canonical form: no fraction, and the largest suffix with which
/// nothing is lost (`0.5` is `500m`, `1024Mi` is `1Gi`). Nothing when it isn't a quantity.
pub(super) fn canonical(text: &str) -> Option<String> {
    let (negative, number) = parse(text)?;
    let sign = if negative && number.mantissa != 0 { "-" } else { "" };
    Some(format!("{sign}{}", write(number.mantissa, number.exponent, number.form)?))
}

/// Whether it is negative, and the number without its sign.
fn parse(text: &str) -> Option<(bool, Number)> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') {
        return None;
    }
    let mut mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let mut exponent = -i32::try_from(fraction.len()).ok()?;
    let form = suffix_form(suffix, &mut mantissa, &mut exponent)?;
    let (mantissa, exponent) = round_up(mantissa, exponent)?;
    Some((negative, Number { mantissa, exponent, form }))
}

/// An amount of 0 or more that is added and compared exactly: a whole number of nano-units.
/// What is beyond all that Kubernetes counts stays at the greatest amount.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amount {
    nanos: i128,
    /// Whether it is written with powers of 1024.
    binary: bool,
}

impl Amount {
    /// No amount.
    pub(super) const ZERO: Self = Self { nanos: 0, binary: false };

    /// A quantity as an amount; nothing when it isn't one, or is negative.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (negative, Number { mantissa, exponent, form }) = parse(text)?;
        let power = u32::try_from(exponent - SMALLEST).ok()?;
        let nanos = 10_i128.checked_pow(power).and_then(|factor| mantissa.checked_mul(factor)).unwrap_or(i128::MAX);
        (!negative || mantissa == 0).then_some(Self { nanos, binary: form == Form::Binary })
    }

    /// A number of things.
    pub(super) fn whole(number: u64) -> Self {
        Self { nanos: i128::from(number).saturating_mul(NANOS), binary: false }
    }

    /// Both together.
    #[must_use]
    pub(super) fn plus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_add(other.nanos), binary: self.binary || other.binary }
    }

    /// So many times the amount.
    #[must_use]
    pub(super) fn times(self, number: u64) -> Self {
        Self { nanos: self.nanos.saturating_mul(i128::from(number)), ..self }
    }

    /// Whether it has no fraction.
    pub(super) fn is_whole(self) -> bool {
        self.nanos % NANOS == 0
    }
}

const NANOS: i128 = 1_000_000_000;

/// `1Gi` is `1073741824`.
impl PartialEq for Amount {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Amount {}

impl Ord for Amount {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl PartialOrd for Amount {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// In Kubernetes' canonical form.
impl std::fmt::Display for Amount {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let form = if self.binary { Form::Binary } else { Form::Decimal };
        let written = round_up(self.nanos, SMALLEST).and_then(|(mantissa, exponent)| write(mantissa, exponent, form));
        formatter.write_str(&written.unwrap_or_else(|| "more than can be counted".to_owned()))
    }
}

/// Reads the suffix into mantissa and (decimal) exponent.
fn suffix_form(suffix: &str, mantissa: &mut i128, exponent: &mut i32) -> Option<Form> {
    if let Some(power) = BINARY.iter().position(|name| *name == suffix) {
        *mantissa = mantissa.checked_mul(1 << (10 * (power + 1)))?;
        return Some(Form::Binary);
    }
    if let Some(power) = DECIMAL.iter().position(|name| *name == suffix) {
        *exponent += SMALLEST + 3 * i32::try_from(power).ok()?;
        return Some(Form::Decimal);
    }
    let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    *exponent = exponent.checked_add(power)?;
    Some(Form::Exponent)
}

/// Takes factors of ten out of the mantissa; what is below one nano is rounded up.
fn round_up(mut mantissa: i128, mut exponent: i32) -> Option<(i128, i32)> {
    if mantissa == 0 {
        return Some((0, 0));
    }
    while mantissa % 10 == 0 {
        mantissa /= 10;
        exponent += 1;
    }
    if exponent < SMALLEST {
        let divisor = 10_i128.checked_pow(SMALLEST.abs_diff(exponent))?;
        mantissa = mantissa / divisor + i128::from(mantissa % divisor != 0);
        exponent = SMALLEST;
        return round_up(mantissa, exponent);
    }
    Some((mantissa, exponent))
}

fn write(mantissa: i128, exponent: i32, form: Form) -> Option<String> {
    if form == Form::Binary && exponent >= 0 {
        let value = mantissa.checked_mul(10_i128.checked_pow(exponent.unsigned_abs())?)?;
        if value >= 1024 {
            let power = (1..=BINARY.len()).rev().find(|power| value % (1 << (10 * power)) == 0).unwrap_or(0);
            let suffix = if power == 0 { "" } else { BINARY[power - 1] };
            return Some(format!("{}{suffix}", value >> (10 * power)));
        }
    }
    // Down to a multiple of three that has a suffix.
    let step = if form == Form::Exponent { exponent } else { exponent.min(18) };
    let power = step.div_euclid(3);
    let scaled = mantissa.checked_mul(10_i128.checked_pow(u32::try_from(exponent - power * 3).ok()?)?)?;
    if form == Form::Exponent {
        return Some(if power == 0 { scaled.to_string() } else { format!("{scaled}e{}", power * 3) });
    }
    let index = usize::try_from(power - SMALLEST / 3).ok()?;
    Some(format!("{scaled}{}", DECIMAL.get(index)?))
}

/// Maps whose values are quantities, and fields that are one.
const QUANTITY_MAPS: [&str; 3] = ["requests", "limits", "overhead"];
const QUANTITY_FIELDS: [&str; 2] = ["sizeLimit", "divisor"];
/// Maps in which such names are the user's own words.
const OPAQUE: [&str; 4] = ["labels", "annotations", "matchLabels", "nodeSelector"];

/// Writes every quantity of a pod template in canonical form, numbers included: `cpu: 1` is
/// a number in YAML, which Kubernetes takes. What isn't a quantity is a fault.
pub(super) fn canonicalize(path: &str, value: &mut Value, faults: &mut Vec<Fault>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut().filter(|(key, _)| !OPAQUE.contains(&key.as_str())) {
                let path = format!("{path}.{key}");
                match value {
                    Value::Object(entries) if QUANTITY_MAPS.contains(&key.as_str()) => {
                        canonicalize_map(&path, entries, faults);
                    }
                    _ if QUANTITY_FIELDS.contains(&key.as_str()) => canonicalize_one(&path, value, faults),
                    _ => canonicalize(&path, value, faults),
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                canonicalize(&format!("{path}[{index}]"), item, faults);
            }
        }
        _ => {}
    }
}

fn canonicalize_map(path: &str, entries: &mut Map<String, Value>, faults: &mut Vec<Fault>) {
    for (name, amount) in entries {
        canonicalize_one(&format!("{path}.{name}"), amount, faults);
    }
}

fn canonicalize_one(path: &str, value: &mut Value, faults: &mut Vec<Fault>) {
    let text = match &value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return,
    };
    match canonical(&text) {
        Some(canonical) => *value = Value::String(canonical),
        None => faults.push(Fault::new(
            "InvalidTemplate",
            path,
            format!("{text:?} is not a quantity: write a number with a suffix, such as 500m, 2, 512Mi or 10Gi"),
        )),
    }
}

/// Quantities as a typed map; nothing when there are none. The API server has refused what
/// isn't a quantity, so that what can't be read stays as it is.
pub(super) fn typed(quantities: Option<&Quantities>) -> Option<BTreeMap<String, Quantity>> {
    let strings = quantities?.strings();
    if strings.is_empty() {
        return None;
    }
    Some(strings.into_iter().map(|(name, text)| (name, Quantity(canonical(&text).unwrap_or(text)))).collect())
}

/// Requests and limits as Kubernetes' own type.
pub(super) fn typed_resources(resources: &Resources) -> k8s_openapi::api::core::v1::ResourceRequirements {
    k8s_openapi::api::core::v1::ResourceRequirements {
        requests: typed(resources.requests.as_ref()),
        limits: typed(resources.limits.as_ref()),
        claims: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Pairs as `resource.ParseQuantity(…).String()` gives them (apimachinery 1.36).
    #[test]
    fn canonical_forms_are_those_of_apimachinery() {
        let cases = [
            ("0", "0"),
            ("0Mi", "0"),
            ("1", "1"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("100m", "100m"),
            ("0.0001m", "100n"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("1024Mi", "1Gi"),
            ("1000Mi", "1000Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1Ki", "1Ki"),
            ("1000Ki", "1000Ki"),
            ("10M", "10M"),
            ("10000k", "10M"),
            ("1e3", "1e3"),
            ("12E4", "120e3"),
            ("1E", "1E"),
            ("-0.5", "-500m"),
            ("+2", "2"),
        ];
        for (text, expected) in cases {
            assert_eq!(canonical(text).as_deref(), Some(expected), "{text}");
        }
        for bad in ["", "x", "1 Gi", "1GiB", "1.2.3", "-", "1e", "Mi", "0x10"] {
            assert_eq!(canonical(bad), None, "{bad}");
        }
    }

    #[test]
    fn amounts_are_added_exactly_and_written_canonically() {
        let amount = |text: &str| Amount::parse(text).expect("an amount");
        let sum = |texts: &[&str]| texts.iter().fold(Amount::ZERO, |sum, text| sum.plus(amount(text)));
        assert_eq!(sum(&["100m", "0.2", "1"]).to_string(), "1300m");
        assert_eq!(sum(&["0.1"; 10]).to_string(), "1");
        assert_eq!(sum(&["512Mi", "1.5Gi"]).to_string(), "2Gi");
        assert_eq!(sum(&["1Gi", "1M"]).to_string(), "1074741824");
        assert_eq!(amount("333m").times(3).to_string(), "999m");
        assert_eq!(amount("1n").times(1_000_000_000), Amount::whole(1));
        assert_eq!(amount("1Gi"), amount("1073741824"));
        assert!(amount("1G") < amount("1Gi"));
        assert!(amount("1e3").is_whole() && !amount("1.5").is_whole());
        assert_eq!(amount("0").to_string(), "0");
        assert!(Amount::parse("-1").is_none() && Amount::parse("-0") == Some(Amount::ZERO));
        // 1000 replicas of the greatest amount that has a suffix.
        assert_eq!(amount("8Ei").times(1_000).to_string(), "8000Ei");
        assert!(amount("9e30") > amount("8Ei").times(1_000));
    }

    #[test]
    fn a_template_may_have_numbers_and_faults_have_paths() {
        let mut template = json!({
            "metadata": {"annotations": {"sizeLimit": "0.5"}},
            "spec": {"containers": [{"resources": {"requests": {"cpu": 0.5, "memory": "many"}, "limits": {"cpu": 2}}}]},
        });
        let mut faults = Vec::new();
        canonicalize("t", &mut template, &mut faults);
        assert_eq!(template["spec"]["containers"][0]["resources"]["requests"]["cpu"], "500m");
        assert_eq!(template["spec"]["containers"][0]["resources"]["limits"]["cpu"], "2");
        assert_eq!(template["metadata"]["annotations"]["sizeLimit"], "0.5");
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].path, "t.spec.containers[0].resources.requests.memory");
    }
}
