//! Pure: from outbox rows to a batch of CloudEvents, and from an answer to what becomes of each.

use axum::body::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::database::{LeasedEvent, Mark, OutboxSize, TenantId};
use crate::event::{self, Answer, DeadEvents, MARK_TYPE, OUTBOX_TYPE, OutboxReport, USAGE_TYPE};

/// A CloudEvent 1.0 in JSON; its data is JSON too, as it is where nothing else is said.
#[derive(Serialize)]
struct CloudEvent<'a, T> {
    specversion: &'static str,
    id: Uuid,
    source: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    subject: &'a str,
    time: Timestamp,
    data: T,
}

/// What became of an event that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The ledger has it.
    Taken,
    /// It may be taken later.
    Deferred(String),
    /// It will never be taken as it is.
    Rejected(String),
}

/// The source of all events of a database.
pub(super) fn source(server: &str, database: &str) -> String {
    format!("/tenantry/{server}/{database}")
}

/// A usage event, as a part of a batch.
pub(super) fn usage(source: &str, leased: &LeasedEvent) -> Box<RawValue> {
    raw(&CloudEvent {
        specversion: "1.0",
        id: leased.id,
        source,
        kind: USAGE_TYPE,
        subject: leased.tenant.as_str(),
        time: leased.occurred_at,
        data: leased.usage(),
    })
}

/// A mark, as a part of a batch.
pub(super) fn mark(source: &str, mark: &Mark) -> Box<RawValue> {
    let data = event::Mark { meter: mark.meter.clone(), epoch: mark.epoch, sequence: mark.sequence, value: mark.value };
    raw(&CloudEvent {
        specversion: "1.0",
        id: Uuid::new_v4(),
        source,
        kind: MARK_TYPE,
        subject: mark.tenant.as_str(),
        time: mark.as_of,
        data,
    })
}

/// What waits in an outbox, as a part of a batch.
pub(super) fn report(
    source: &str,
    database: &str,
    at: Timestamp,
    size: OutboxSize,
    dead: &[(TenantId, u64)],
) -> Box<RawValue> {
    let dead = dead.iter().map(|(tenant, events)| DeadEvents { tenant: tenant.to_string(), events: *events }).collect();
    let data = OutboxReport { waiting: size.waiting, oldest: size.oldest, dead };
    raw(&CloudEvent {
        specversion: "1.0",
        id: Uuid::new_v4(),
        source,
        kind: OUTBOX_TYPE,
        subject: database,
        time: at,
        data,
    })
}

fn raw<T: Serialize>(event: &T) -> Box<RawValue> {
    serde_json::value::to_raw_value(event).expect("numbers, strings and times are always JSON")
}

/// A batch (CloudEvents 1.0, JSON batch format).
pub(super) fn body(parts: &[Box<RawValue>]) -> Bytes {
    serde_json::to_vec(parts).expect("its parts are JSON").into()
}

/// What became of each of `count` events.
///
/// # Errors
/// Where the answer doesn't fit to what was sent: then nothing is known, and all are sent again.
pub(super) fn fates(count: usize, answer: &Answer) -> Result<Vec<Fate>, String> {
    let mut fates = vec![Fate::Taken; count];
    let refused = |refusal: &event::Refusal| format!("{}: {}", refusal.reason, refusal.message);
    let rejected = answer.rejected.iter().map(|refusal| (refusal.index, Fate::Rejected(refused(refusal))));
    let deferred = answer.deferred.iter().map(|refusal| (refusal.index, Fate::Deferred(refused(refusal))));
    for (index, fate) in rejected.chain(deferred) {
        match fates.get_mut(index) {
            Some(known @ Fate::Taken) => *known = fate,
            Some(_) => return Err(format!("the answer speaks twice of event {index}")),
            None => return Err(format!("the answer speaks of event {index} of {count}")),
        }
    }
    let taken = fates.iter().filter(|fate| **fate == Fate::Taken).count() as u64;
    let counted = [answer.accepted, answer.duplicates, answer.quarantined].into_iter().fold(0, u64::saturating_add);
    match counted == taken {
        true => Ok(fates),
        false => Err(format!("the answer counts {counted} events as taken, where {taken} are")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::event::{Counted, Folded, Refusal, Usage, UsageKind};

    fn leased() -> LeasedEvent {
        LeasedEvent {
            id: Uuid::from_u128(1),
            tenant: "t_aaaaaaaaaaaa".parse().expect("an id"),
            meter: "users".to_owned(),
            delta: 2,
            counted: Counted {
                kind: UsageKind::Add,
                epoch: 1,
                sequence: 7,
                value: 9,
                subject: None,
                reason: None,
                actor: None,
                period_start: None,
                folded: None,
            },
            occurred_at: "2026-11-28T10:00:00.000001Z".parse().expect("a time"),
            attempts: 1,
        }
    }

    #[test]
    fn a_row_becomes_a_cloud_event() {
        let source = source("main", "pool_crm_1");
        let sent: Value = serde_json::from_slice(&body(&[usage(&source, &leased())])).expect("JSON");
        let expected = json!([{
            "specversion": "1.0", "id": "00000000-0000-0000-0000-000000000001", "source": "/tenantry/main/pool_crm_1",
            "type": "io.tenantry.usage.v1", "subject": "t_aaaaaaaaaaaa", "time": "2026-11-28T10:00:00.000001Z",
            "data": {"meter": "users", "delta": 2, "kind": "Add", "epoch": 1, "sequence": 7, "value": 9},
        }]);
        assert_eq!(sent, expected);
        let data: Usage = serde_json::from_value(sent[0]["data"].clone()).expect("what the API reads");
        assert_eq!(data.counted.expect("counted").sequence, 7);
        assert_eq!(&body(&[])[..], b"[]");
    }

    #[test]
    fn a_folded_row_keeps_what_it_was_made_of() {
        let folded = Folded {
            first_sequence: 3,
            first_at: "2026-11-28T09:00:00Z".parse().expect("a time"),
            low: 1,
            high: 12,
            moment: "123456789012345678901234567890".to_owned(),
        };
        let mut row = leased();
        row.counted.folded = Some(folded);
        let sent: Value = serde_json::from_str(usage("/tenantry/a/b", &row).get()).expect("JSON");
        let expected = json!({
            "firstSequence": 3, "firstAt": "2026-11-28T09:00:00Z", "low": 1, "high": 12,
            "moment": "123456789012345678901234567890",
        });
        assert_eq!(sent["data"]["folded"], expected);
    }

    #[test]
    fn each_event_has_its_own_fate() {
        let refusal = |index| Refusal { index, id: None, reason: "late".into(), message: "too old".into() };
        let answer = Answer {
            accepted: 2,
            duplicates: 1,
            quarantined: 1,
            rejected: vec![refusal(1)],
            deferred: vec![refusal(4)],
        };
        let fates_of_all = fates(6, &answer).expect("it fits");
        let text = "late: too old".to_owned();
        let expected =
            [Fate::Taken, Fate::Rejected(text.clone()), Fate::Taken, Fate::Taken, Fate::Deferred(text), Fate::Taken];
        assert_eq!(fates_of_all, expected);
        assert_eq!(fates(0, &Answer::default()), Ok(Vec::new()));
    }

    #[test]
    fn an_answer_that_does_not_fit_acknowledges_nothing() {
        let refusal = |index| Refusal { index, id: None, reason: "late".into(), message: "too old".into() };
        for answer in [
            Answer::default(),
            Answer { accepted: 3, ..Answer::default() },
            Answer { accepted: 1, rejected: vec![refusal(2)], ..Answer::default() },
            Answer { accepted: 1, rejected: vec![refusal(0)], deferred: vec![refusal(0)], ..Answer::default() },
            Answer { accepted: u64::MAX, duplicates: 3, ..Answer::default() },
        ] {
            assert!(fates(2, &answer).is_err(), "{answer:?}");
        }
    }
}
