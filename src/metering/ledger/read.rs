//! What the ledger knows, read as it is; nothing here writes.

use std::time::Duration;

use jiff::Timestamp;
use rust_decimal::Decimal;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::session::Sessions;
use super::types::{
    Adjustment, ClosedPeriod, Directory, LedgerError, LedgerTenant, MeterDefinition, MeterState, MeteredTenant,
    MissingRange, OpenPeriod, OutboxState, Placement, Quarantined, RestoredMeter,
};
use crate::metering::event::OutboxReport;

/// A row for each period of each meter; of a meter without any, one.
const USAGE: &str = "
    SELECT m.tenant, m.meter, m.epoch, m.sequence, m.value, m.occurred_at, m.marked_at, m.restored_at IS NOT NULL,
           m.drift, m.drift_at, m.kind = 'Total',
           greatest(m.epoch, m.mark_epoch), lower(g.gaps), upper(g.gaps) - 1,
           (SELECT sum(upper(r) - lower(r))::bigint FROM unnest(g.gaps) AS r), coalesce(m.missing_since, m.marked_at, now()),
           s.start_at, s.end_at, s.opening, s.closing, s.low, s.high, s.delta::text, s.moment::text, s.closed_at IS NOT NULL,
           s.estimated, a.deltas, a.reasons
      FROM ledger.meter m
     CROSS JOIN LATERAL (
        SELECT CASE WHEN m.source = 'Api' THEN '{}'::int8multirange
                    WHEN m.mark_epoch > m.epoch THEN int8multirange(int8range(1, m.mark_sequence + 1))
                    ELSE int8multirange(int8range(m.upto + 1, greatest(upper(m.beyond), m.upto + 1,
                             CASE WHEN m.mark_epoch = m.epoch THEN m.mark_sequence + 1 END))) - m.beyond END AS gaps) AS g
      LEFT JOIN LATERAL (
        (SELECT p.* FROM ledger.period_state p WHERE p.tenant = m.tenant AND p.meter = m.meter AND p.closed_at IS NULL)
        UNION ALL
        (SELECT p.* FROM ledger.period_state p WHERE p.tenant = m.tenant AND p.meter = m.meter AND p.closed_at IS NOT NULL
          ORDER BY p.start_at DESC LIMIT 13)) AS s ON true
      LEFT JOIN LATERAL (
        SELECT array_agg(j.delta::text ORDER BY j.id) AS deltas, array_agg(j.reason ORDER BY j.id) AS reasons
          FROM ledger.adjustment j
         WHERE s.closed_at IS NOT NULL AND j.tenant = m.tenant AND j.meter = m.meter AND j.start_at = s.start_at
           AND NOT j.in_sums) AS a ON true
     WHERE m.tenant = ANY ($1) ORDER BY m.tenant, m.meter, s.start_at";

/// A tenant by its name, with its meters. One that is there goes before those that are gone.
const NAMED: &str = "
    SELECT t.id, t.uid, t.name, t.application, t.plan, t.namespace, t.anchor, t.time_zone, t.gone_at,
           p.server, coalesce(o.reported_at, p.since), d.names, d.kinds, d.sources
      FROM (SELECT * FROM ledger.tenant WHERE name = $1 ORDER BY gone_at DESC NULLS FIRST, registered_at DESC LIMIT 1) AS t
      LEFT JOIN LATERAL (
        SELECT p.server, p.database, p.since FROM ledger.placement p
         WHERE p.tenant = t.id AND p.until IS NULL ORDER BY p.since DESC LIMIT 1) AS p ON true
      LEFT JOIN ledger.outbox o ON o.server = p.server AND o.database = p.database
     CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(d.meter ORDER BY d.meter), '{}') AS names,
               coalesce(array_agg(d.kind ORDER BY d.meter), '{}') AS kinds,
               coalesce(array_agg(d.source ORDER BY d.meter), '{}') AS sources
          FROM ledger.meter_definition d WHERE d.application = t.application) AS d";

/// An exact number; one that no decimal holds is cut to the largest that does.
fn decimal(text: &str) -> Decimal {
    let limit = if text.starts_with('-') { Decimal::MIN } else { Decimal::MAX };
    text.parse().unwrap_or(limit)
}

pub(super) async fn usage(sessions: &Sessions, tenants: &[String]) -> Result<Vec<MeterState>, LedgerError> {
    let rows = sessions.query("can't read usage", USAGE, &[(&tenants, Type::TEXT_ARRAY)]).await?;
    let mut states: Vec<MeterState> = Vec::new();
    for row in &rows {
        let (tenant, meter): (&str, &str) = (row.get(0), row.get(1));
        if states.last().is_none_or(|last| last.tenant != tenant || last.meter != meter) {
            states.push(state(row));
        }
        let Some(state) = states.last_mut() else { continue };
        let Some(start) = row.get::<_, Option<Timestamp>>(16) else { continue };
        let sums = OpenPeriod {
            start,
            end: row.get(17),
            opening: row.get(18),
            closing: row.get(19),
            low: row.get(20),
            high: row.get(21),
            delta: decimal(row.get(22)),
            moment: decimal(row.get(23)),
        };
        if row.get::<_, bool>(10) {
            // Of a Total, what was used in the newest period, which may have no event yet.
            state.value = sums.closing;
        }
        if row.get(24) {
            let (deltas, reasons): (Option<Vec<String>>, Option<Vec<String>>) = (row.get(26), row.get(27));
            let adjustments = deltas.unwrap_or_default().into_iter().zip(reasons.unwrap_or_default());
            let adjustments =
                adjustments.map(|(delta, reason)| Adjustment { delta: decimal(&delta), reason }).collect();
            state.closed.insert(0, ClosedPeriod { sums, estimated: row.get(25), adjustments });
        } else {
            state.open.push(sums);
        }
    }
    Ok(states)
}

fn state(row: &Row) -> MeterState {
    let missing = row.get::<_, Option<i64>>(12).map(|first| MissingRange {
        epoch: row.get(11),
        first,
        last: row.get(13),
        count: row.get(14),
        since: row.get(15),
    });
    let drift = row.get::<_, Option<i64>>(8).zip(row.get(9));
    MeterState {
        tenant: row.get(0),
        meter: row.get(1),
        epoch: row.get(2),
        sequence: row.get(3),
        value: row.get(4),
        occurred_at: row.get(5),
        marked_at: row.get(6),
        missing,
        restored: row.get(7),
        open: Vec::new(),
        closed: Vec::new(),
        drift,
    }
}

pub(super) async fn directory(sessions: &Sessions, tenants: &[String]) -> Result<Directory, LedgerError> {
    let doing = "can't read tenants";
    let given = [(&tenants as _, Type::TEXT_ARRAY)];
    let known = sessions.query(
        doing,
        "SELECT id, uid, name, application, plan, namespace, anchor, time_zone FROM ledger.tenant WHERE id = ANY ($1)
          ORDER BY id",
        &given,
    );
    let places = sessions.query(
        doing,
        "SELECT DISTINCT tenant, server, database FROM ledger.placement WHERE tenant = ANY ($1) ORDER BY 1, 2, 3",
        &given,
    );
    let meters = sessions.query(
        doing,
        "SELECT d.application, d.meter, d.kind, d.source FROM ledger.meter_definition d
          WHERE d.application IN (SELECT t.application FROM ledger.tenant t WHERE t.id = ANY ($1)) ORDER BY 1, 2",
        &given,
    );
    let (known, places, meters) = futures::try_join!(known, places, meters)?;
    let meter = |row: &Row| (row.get(0), definition(row.get(1), row.get(2), row.get(3)));
    Ok(Directory {
        tenants: known.iter().map(tenant).collect(),
        placements: places.iter().map(|row| placement(row, 0)).collect(),
        meters: meters.iter().map(meter).collect(),
    })
}

/// A tenant, from the first columns of a row.
fn tenant(row: &Row) -> LedgerTenant {
    LedgerTenant {
        id: row.get(0),
        uid: row.get(1),
        name: row.get(2),
        application: row.get(3),
        plan: row.get(4),
        namespace: row.get(5),
        anchor: row.get(6),
        time_zone: row.get(7),
    }
}

fn definition(name: &str, kind: &str, source: &str) -> MeterDefinition {
    MeterDefinition { name: name.to_owned(), is_total: kind == "Total", from_api: source == "Api" }
}

pub(super) async fn tenant_named(sessions: &Sessions, name: &str) -> Result<Option<MeteredTenant>, LedgerError> {
    let rows = sessions.query("can't read tenants", NAMED, &[(&name, Type::TEXT)]).await?;
    let metered = |row: &Row| {
        let (names, kinds, sources): (Vec<&str>, Vec<&str>, Vec<&str>) = (row.get(11), row.get(12), row.get(13));
        let columns = names.iter().zip(&kinds).zip(&sources);
        MeteredTenant {
            tenant: tenant(row),
            gone_at: row.get(8),
            meters: columns.map(|((name, kind), source)| definition(name, kind, source)).collect(),
            server: row.get(9),
            heard_at: row.get(10),
        }
    };
    Ok(rows.first().map(metered))
}

fn placement(row: &Row, at: usize) -> Placement {
    Placement { tenant: row.get(at), server: row.get(at + 1), database: row.get(at + 2) }
}

pub(super) async fn tenant_of_namespace(sessions: &Sessions, namespace: &str) -> Result<Option<String>, LedgerError> {
    let sql =
        "SELECT id FROM ledger.tenant WHERE namespace = $1 AND gone_at IS NULL ORDER BY registered_at DESC LIMIT 1";
    let rows = sessions.query("can't read tenants", sql, &[(&namespace, Type::TEXT)]).await?;
    Ok(rows.first().map(|row| row.get(0)))
}

pub(super) async fn restored(sessions: &Sessions) -> Result<Vec<RestoredMeter>, LedgerError> {
    let sql = "
        SELECT m.tenant, p.server, p.database, m.meter, m.epoch, coalesce(c.value, m.value)
          FROM ledger.meter m
          JOIN ledger.placement p ON p.tenant = m.tenant AND p.until IS NULL
          LEFT JOIN LATERAL ledger.counted(m.tenant, m.meter) AS c ON true
         WHERE m.restored_at IS NOT NULL ORDER BY 1, 2, 3, 4";
    let rows = sessions.query("can't read which databases were restored", sql, &[]).await?;
    let meter = |row: &Row| RestoredMeter {
        tenant: row.get(0),
        placement: placement(row, 0),
        meter: row.get(3),
        epoch: row.get(4),
        value: row.get(5),
    };
    Ok(rows.iter().map(meter).collect())
}

pub(super) async fn outboxes(sessions: &Sessions) -> Result<Vec<OutboxState>, LedgerError> {
    let sql = "SELECT server, database, waiting, oldest, dead, reported_at FROM ledger.outbox ORDER BY 1, 2";
    let rows = sessions.query("can't read what the relays report", sql, &[]).await?;
    let outbox = |row: &Row| OutboxState {
        server: row.get(0),
        database: row.get(1),
        report: OutboxReport {
            waiting: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
            oldest: row.get(3),
            dead: serde_json::from_value(row.get(4)).unwrap_or_default(),
        },
        reported_at: row.get(5),
    };
    Ok(rows.iter().map(outbox).collect())
}

pub(super) async fn quarantined(sessions: &Sessions, tenants: &[String]) -> Result<Vec<Quarantined>, LedgerError> {
    let sql = "SELECT tenant, why, count(*), max(received_at) FROM ledger.quarantine WHERE tenant = ANY ($1)
                GROUP BY tenant, why ORDER BY 1, 2";
    let rows = sessions.query("can't read the quarantine", sql, &[(&tenants, Type::TEXT_ARRAY)]).await?;
    let counted = |row: &Row| Quarantined {
        tenant: row.get(0),
        why: row.get(1),
        events: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
        last_at: row.get(3),
    };
    Ok(rows.iter().map(counted).collect())
}

/// The moment that is so long before another.
pub(super) fn before(now: Timestamp, patience: Duration) -> Timestamp {
    now.checked_sub(patience).unwrap_or(Timestamp::MIN)
}
