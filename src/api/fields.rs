//! Fields that more than one resource has, with the rules the API server holds them to.

use std::{collections::BTreeMap, str::FromStr};

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use rust_decimal::Decimal;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A length of time: a whole number and one unit of `ms`, `s`, `m`, `h` or `d` (24 h).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Duration(pub String);

impl Duration {
    /// The duration, or nothing when the text is not one (the API server refuses such text).
    pub fn get(&self) -> Option<std::time::Duration> {
        let split = self.0.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = self.0.split_at(split);
        let number: u64 = number.parse().ok()?;
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        Some(std::time::Duration::from_millis(number.checked_mul(milliseconds)?))
    }
}

impl From<&str> for Duration {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 12,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^[0-9]{1,9}(ms|s|m|h|d)$')",
                "message": "write a duration as a whole number and one unit of ms, s, m, h or d, such as 30s, 24h or 30d",
            }],
        })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// An amount of storage: a whole number and one unit of `Ki`, `Mi`, `Gi` or `Ti`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Size(pub String);

impl Size {
    /// The size in bytes, or nothing when the text is not one (the API server refuses such text).
    pub fn bytes(&self) -> Option<u64> {
        let number = self.0.get(..self.0.len().checked_sub(2)?)?.parse::<u64>().ok()?;
        let shift = match self.0.get(self.0.len() - 2..)? {
            "Ki" => 10,
            "Mi" => 20,
            "Gi" => 30,
            "Ti" => 40,
            _ => return None,
        };
        number.checked_mul(1 << shift)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 12,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^[1-9][0-9]{0,8}(Ki|Mi|Gi|Ti)$')",
                "message": "write a size as a whole number and one unit of Ki, Mi, Gi or Ti, such as 512Mi",
            }],
        })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// An amount of money: a decimal number of 0 or more, written as a string so that no
/// binary floating point ever touches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Money(pub String);

impl Money {
    /// The amount, or nothing when the text is not one (the API server refuses such text).
    pub fn get(&self) -> Option<Decimal> {
        Decimal::from_str(&self.0).ok().filter(|amount| !amount.is_sign_negative())
    }
}

impl JsonSchema for Money {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Money".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 20,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^[0-9]{1,15}([.][0-9]{1,4})?$')",
                "message": "write an amount as a decimal number of 0 or more in quotes, such as \"300000\" or \"12.50\"",
            }],
        })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// Amounts of compute or storage by resource name, such as `cpu: 500m` or `pods: 10`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Quantities(pub BTreeMap<String, IntOrString>);

impl Quantities {
    /// The quantities as text, as Kubernetes writes them.
    pub fn strings(&self) -> BTreeMap<String, String> {
        self.0
            .iter()
            .map(|(name, amount)| {
                let text = match amount {
                    IntOrString::Int(number) => number.to_string(),
                    IntOrString::String(text) => text.clone(),
                };
                (name.clone(), text)
            })
            .collect()
    }
}

impl JsonSchema for Quantities {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantities".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "maxProperties": 32,
            "additionalProperties": {
                "x-kubernetes-int-or-string": true,
                "maxLength": 32,
                "x-kubernetes-validations": [{
                    "rule": "type(self) == int ? self >= 0 : (isQuantity(self) && quantity(self).compareTo(quantity('0')) >= 0)",
                    "message": "write a Kubernetes quantity of 0 or more, such as 500m, 2, 512Mi or 10Gi",
                }],
            },
        })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// What a container asks for and may use at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Quantities>,
    /// What the container may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Quantities>,
}

/// The name of an object in the operator's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalReference {
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_one_unit() {
        let seconds = |text: &str| Duration::from(text).get().map(|d| d.as_secs_f64());
        assert_eq!(seconds("250ms"), Some(0.25));
        assert_eq!(seconds("30s"), Some(30.0));
        assert_eq!(seconds("30d"), Some(30.0 * 86_400.0));
        for bad in ["", "30", "s", "1h30m", "-1s", "99999999999999999999d"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn money_is_never_negative() {
        assert_eq!(Money("12.50".into()).get(), Some(Decimal::new(1250, 2)));
        assert_eq!(Money("-1".into()).get(), None);
        assert_eq!(Money("1e3x".into()).get(), None);
    }
}
