//! Usage as it travels from a tenant's database to the API: the data of CloudEvents, and the answer.
//!
//! Each is one CloudEvent 1.0. `source` is `/tenantry/SERVER/DATABASE`, the DatabaseServer and the
//! database on it; `subject` is the tenant's id (`t_` and 12 characters), of an outbox report the
//! database.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Type of a usage event; its data is [`Usage`], its id that of the outbox row, its time when it
/// happened.
pub const USAGE_TYPE: &str = "io.tenantry.usage.v1";

/// Type of a high-water mark; its data is [`Mark`], its time when that was so.
pub const MARK_TYPE: &str = "io.tenantry.mark.v1";

/// Type of a report on an outbox; its data is [`OutboxReport`].
pub const OUTBOX_TYPE: &str = "io.tenantry.outbox.v1";

/// What a usage event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum UsageKind {
    /// The application reported a change.
    Add,
    /// It reported what there is.
    Set,
    /// A person corrected the count.
    Correct,
    /// The first of an epoch: the database was restored to an earlier time.
    Restore,
}

impl UsageKind {
    /// Its name, in tables and events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "Add",
            Self::Set => "Set",
            Self::Correct => "Correct",
            Self::Restore => "Restore",
        }
    }

    /// The kind of this name, where there is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Add, Self::Set, Self::Correct, Self::Restore].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Several events that were folded into one, in the order of their sequences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Folded {
    /// The sequence of the first.
    pub first_sequence: i64,
    /// When that happened.
    pub first_at: Timestamp,
    /// The smallest value after one of them.
    pub low: i64,
    /// The largest.
    pub high: i64,
    /// The sum of each one's delta times its time in microseconds since 1970: an integer, which may
    /// be larger than 64 bits.
    pub moment: String,
}

/// A change of a meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "UsageFields")]
pub struct Usage {
    /// The meter.
    pub meter: String,
    /// By how much the value changed.
    pub delta: i64,
    /// Where and how it was counted; nothing for a meter of source API.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub counted: Option<Counted>,
}

/// What a [`Usage`] is read from: serde takes a flattened group of which one field is missing for
/// no group at all, and then nobody learns which one it was.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UsageFields {
    meter: String,
    delta: i64,
    kind: Option<UsageKind>,
    epoch: Option<i32>,
    sequence: Option<i64>,
    value: Option<i64>,
    subject: Option<String>,
    reason: Option<String>,
    actor: Option<String>,
    period_start: Option<Timestamp>,
    folded: Option<Folded>,
}

impl TryFrom<UsageFields> for Usage {
    type Error = String;

    fn try_from(fields: UsageFields) -> Result<Self, String> {
        let UsageFields { meter, delta, kind, epoch, sequence, value, .. } = fields;
        let further = [
            fields.subject.is_some(),
            fields.reason.is_some(),
            fields.actor.is_some(),
            fields.period_start.is_some(),
            fields.folded.is_some(),
        ];
        let counted = match (kind, epoch, sequence, value) {
            (Some(kind), Some(epoch), Some(sequence), Some(value)) => Some(Counted {
                kind,
                epoch,
                sequence,
                value,
                subject: fields.subject,
                reason: fields.reason,
                actor: fields.actor,
                period_start: fields.period_start,
                folded: fields.folded,
            }),
            (None, None, None, None) if further == [false; 5] => None,
            _ => {
                let required = [
                    ("kind", kind.is_some()),
                    ("epoch", epoch.is_some()),
                    ("sequence", sequence.is_some()),
                    ("value", value.is_some()),
                ];
                let missing: Vec<&str> = required.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect();
                return Err(format!(
                    "{} missing: what a database counted has kind, epoch, sequence and value, anything else meter and delta alone",
                    missing.join(", ")
                ));
            }
        };
        Ok(Self { meter, delta, counted })
    }
}

/// What is known of a change that was counted in the tenant's database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counted {
    /// What it tells.
    pub kind: UsageKind,
    /// The meter's epoch: a new one begins when its database was restored.
    pub epoch: i32,
    /// Its place among the meter's events in this epoch, from 1, without gaps.
    pub sequence: i64,
    /// The value after it.
    pub value: i64,
    /// Salted hash of what it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Why, where somebody said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who corrected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Of a Total: the period that the value belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_start: Option<Timestamp>,
    /// What it was folded from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folded: Option<Folded>,
}

/// How far a meter is: all its events up to `sequence` are committed, and every other one is later
/// than the event's time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mark {
    /// The meter.
    pub meter: String,
    /// Its epoch.
    pub epoch: i32,
    /// The last event's sequence; 0 where there is none yet.
    pub sequence: i64,
    /// The value now.
    pub value: i64,
}

/// How much waits in an outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutboxReport {
    /// Events that wait, as far as they were counted.
    pub waiting: u64,
    /// When the oldest of those happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Timestamp>,
    /// Tenants with events that were refused for good.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead: Vec<DeadEvents>,
}

/// How many of a tenant's events were refused for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeadEvents {
    /// The tenant's id.
    pub tenant: String,
    /// How many.
    pub events: u64,
}

/// What became of the events of a request. What isn't in a list is in the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// How many were counted.
    pub accepted: u64,
    /// How many the ledger had already: as good as accepted.
    pub duplicates: u64,
    /// How many were put aside, since the ledger has another event in their place. They are safe,
    /// so nobody need send them again; a person has to look.
    pub quarantined: u64,
    /// Those that will never be taken as they are.
    #[serde(default)]
    pub rejected: Vec<Refusal>,
    /// Those that may be taken later: send them again.
    #[serde(default)]
    pub deferred: Vec<Refusal>,
}

impl Answer {
    /// How many events each outcome has, under its name in metrics.
    #[must_use]
    pub fn numbers(&self) -> [(&'static str, u64); 5] {
        [
            ("accepted", self.accepted),
            ("duplicate", self.duplicates),
            ("quarantined", self.quarantined),
            ("rejected", self.rejected.len() as u64),
            ("deferred", self.deferred.len() as u64),
        ]
    }
}

/// An event that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Its place in the request, from 0.
    pub index: usize,
    /// Its id, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// One word for programs.
    pub reason: String,
    /// What to change.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn folded() -> Usage {
        Usage {
            meter: "users".into(),
            delta: 4,
            counted: Some(Counted {
                kind: UsageKind::Correct,
                epoch: 2,
                sequence: 9,
                value: 12,
                subject: Some("5f".into()),
                reason: Some("counted twice".into()),
                actor: Some("jane".into()),
                period_start: Some(at("2026-11-01T00:00:00Z")),
                folded: Some(Folded {
                    first_sequence: 7,
                    first_at: at("2026-11-02T00:00:00Z"),
                    low: 8,
                    high: 12,
                    moment: "7000000000000000000".into(),
                }),
            }),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let all = folded();
        let mut plain = all.clone();
        if let Some(counted) = &mut plain.counted {
            (counted.subject, counted.reason, counted.actor) = (None, None, None);
            (counted.period_start, counted.folded) = (None, None);
        }
        for usage in [all, plain, Usage { meter: "calls".into(), delta: -1, counted: None }] {
            let text = serde_json::to_string(&usage).expect("JSON");
            assert_eq!(serde_json::from_str::<Usage>(&text).expect("usage"), usage, "{text}");
        }
    }

    #[test]
    fn a_field_that_is_missing_or_unknown_is_named() {
        let full = serde_json::to_value(folded()).expect("JSON");
        for field in ["meter", "delta", "kind", "epoch", "sequence", "value"] {
            let mut less = full.clone();
            less.as_object_mut().expect("an object").remove(field).expect("it was there");
            let error = serde_json::from_value::<Usage>(less).expect_err("it is missing").to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
        let mut more = full;
        more["peroidStart"] = "2026-11-01T00:00:00Z".into();
        let error = serde_json::from_value::<Usage>(more).expect_err("misspelt").to_string();
        assert!(error.contains("peroidStart"), "{error}");
    }
}
