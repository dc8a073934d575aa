//! Usage periods as time goes on: those that are over are closed, the next ones opened.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::ingest::distinct;
use super::read::before;
use super::session::{Param, Sessions};
use super::types::LedgerError;
use crate::billing::{Period, Periods};

/// How many are looked at per statement.
const PAGE: usize = 2000;

/// How many events of source API are looked through per statement, if one period alone doesn't have more.
const EVENTS: i64 = 200_000;

/// Meters of live tenants without a period that contains a moment.
const UNOPENED: &str = "
    SELECT t.id, d.meter, d.kind, d.source, t.anchor, t.time_zone,
           NULL::timestamptz, NULL::timestamptz FROM ledger.tenant t
      JOIN ledger.meter_definition d ON d.application = t.application
     WHERE t.gone_at IS NULL AND (t.id, d.meter) > ($2, $3)
       AND NOT EXISTS (SELECT FROM ledger.period p WHERE p.tenant = t.id AND p.meter = d.meter
                          AND p.start_at <= $1 AND p.end_at > $1)
     ORDER BY t.id, d.meter LIMIT $4";

/// Meters without a period that another one of their tenant has, and that is over and not closed yet: the other
/// one's events are of a time before the ledger knew the tenant. The oldest of each meter: when it is closed, the
/// next one is opened.
const ALONE: &str = "
    SELECT DISTINCT ON (t.id, d.meter) t.id, d.meter, d.kind, d.source, t.anchor, t.time_zone, p.start_at, p.end_at
      FROM (SELECT DISTINCT p.tenant, p.start_at, p.end_at FROM ledger.period p
             WHERE p.closed_at IS NULL AND p.end_at <= $1) AS p
      JOIN ledger.tenant t ON t.id = p.tenant AND t.gone_at IS NULL
      JOIN ledger.meter_definition d ON d.application = t.application
     WHERE (t.id, d.meter) > ($2, $3)
       AND NOT EXISTS (SELECT FROM ledger.period q WHERE q.tenant = t.id AND q.meter = d.meter
                          AND q.start_at < p.end_at AND q.end_at > p.start_at)
     ORDER BY t.id, d.meter, p.start_at LIMIT $4";

/// Of each meter the oldest period that may be closed, and whether another one follows.
const DUE: &str = "
    SELECT DISTINCT ON (p.tenant, p.meter) p.tenant, p.meter, p.start_at, p.end_at, t.anchor, t.time_zone,
           CASE WHEN m.kind = 'Level' AND m.source = 'Api' THEN p.events ELSE 0 END
      FROM ledger.period p
      JOIN ledger.meter m ON m.tenant = p.tenant AND m.meter = p.meter
      LEFT JOIN (ledger.tenant t JOIN ledger.meter_definition d ON d.application = t.application)
        ON t.id = p.tenant AND d.meter = p.meter AND (t.gone_at IS NULL OR t.gone_at > p.end_at)
     WHERE p.closed_at IS NULL AND p.end_at <= $1 AND (m.proven_at >= p.end_at OR p.end_at <= $2)
     ORDER BY p.tenant, p.meter, p.start_at LIMIT $3";

/// Opens what is to be open, then closes what can be. Returns the tenants of which something was closed.
pub(super) async fn close(sessions: &Sessions, now: Timestamp, patience: Duration) -> Result<Vec<String>, LedgerError> {
    open(sessions, now, UNOPENED).await?;
    open(sessions, now, ALONE).await?;
    let mut closed: Vec<String> = Vec::new();
    loop {
        let page = i64::try_from(PAGE).expect("small");
        let overdue = before(now, patience);
        let params: [Param<'_>; 3] = [(&now, Type::TIMESTAMPTZ), (&overdue, Type::TIMESTAMPTZ), (&page, Type::INT8)];
        let rows = sessions.query("can't read which usage periods are over", DUE, &params).await?;
        if rows.is_empty() {
            break;
        }
        let mut done = Vec::new();
        for part in parts(&rows) {
            done.extend(close_those(sessions, part, now, patience).await?);
        }
        // What was closed by somebody else meanwhile is done as well; without either there is no end.
        if done.is_empty() {
            break;
        }
        closed.extend(done);
    }
    Ok(distinct(closed.iter().map(String::as_str)))
}

/// The rows in parts of which each has a bounded number of events to look through.
fn parts(mut rows: &[Row]) -> impl Iterator<Item = &[Row]> {
    std::iter::from_fn(move || {
        let mut events: i64 = 0;
        let fits = |row: &&Row| {
            events = events.saturating_add(row.get(6));
            events <= EVENTS
        };
        let (part, rest) = rows.split_at(rows.iter().take_while(fits).count().max(1).min(rows.len()));
        rows = rest;
        (!part.is_empty()).then_some(part)
    })
}

async fn close_those(
    sessions: &Sessions,
    rows: &[Row],
    now: Timestamp,
    patience: Duration,
) -> Result<Vec<String>, LedgerError> {
    let tenants: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    let meters: Vec<&str> = rows.iter().map(|row| row.get(1)).collect();
    let starts: Vec<Timestamp> = rows.iter().map(|row| row.get(2)).collect();
    let nexts: Vec<Option<Timestamp>> = rows
        .iter()
        .map(|row| {
            let end: Timestamp = row.get(3);
            periods(row.get(0), row.get(4), row.get(5)).map(|periods| periods.containing(end).end)
        })
        .collect();
    let patience = patience.as_secs_f64();
    let params: [Param<'_>; 6] = [
        (&tenants, Type::TEXT_ARRAY),
        (&meters, Type::TEXT_ARRAY),
        (&starts, Type::TIMESTAMPTZ_ARRAY),
        (&nexts, Type::TIMESTAMPTZ_ARRAY),
        (&now, Type::TIMESTAMPTZ),
        (&patience, Type::FLOAT8),
    ];
    let sql = "SELECT tenant FROM ledger.close_periods($1, $2, $3, $4, $5, make_interval(secs => $6))";
    let rows = sessions.query("can't close usage periods", sql, &params).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Opens the periods that `missing` finds, of meters that are declared, whether or not they have events: those of
/// its last two columns, else those that contain `now`.
async fn open(sessions: &Sessions, now: Timestamp, missing: &str) -> Result<(), LedgerError> {
    let mut after = (String::new(), String::new());
    loop {
        let page = i64::try_from(PAGE).expect("small");
        let params: [Param<'_>; 4] =
            [(&now, Type::TIMESTAMPTZ), (&after.0, Type::TEXT), (&after.1, Type::TEXT), (&page, Type::INT8)];
        let rows = sessions.query("can't read which usage periods begin", missing, &params).await?;
        let Some(last) = rows.last() else { return Ok(()) };
        after = (last.get(0), last.get(1));
        let period = |row: &Row| match (row.get(6), row.get(7)) {
            (Some(start), Some(end)) => Some(Period { start, end }),
            _ => Some(periods(row.get(0), row.get(4), row.get(5))?.containing(now)),
        };
        let opened: Vec<(&Row, Period)> = rows.iter().filter_map(|row| Some((row, period(row)?))).collect();
        let column = |at: usize| opened.iter().map(|(row, _)| row.get(at)).collect::<Vec<&str>>();
        let (tenants, meters, kinds, sources) = (column(0), column(1), column(2), column(3));
        let starts: Vec<Timestamp> = opened.iter().map(|(_, period)| period.start).collect();
        let ends: Vec<Timestamp> = opened.iter().map(|(_, period)| period.end).collect();
        let params: [Param<'_>; 6] = [
            (&tenants, Type::TEXT_ARRAY),
            (&meters, Type::TEXT_ARRAY),
            (&kinds, Type::TEXT_ARRAY),
            (&sources, Type::TEXT_ARRAY),
            (&starts, Type::TIMESTAMPTZ_ARRAY),
            (&ends, Type::TIMESTAMPTZ_ARRAY),
        ];
        let sql = "SELECT ledger.open_periods($1, $2, $3, $4, $5, $6)";
        sessions.query("can't open usage periods", sql, &params).await?;
        if rows.len() < PAGE {
            return Ok(());
        }
    }
}

/// The periods of a tenant; none where it isn't known, or its zone isn't.
fn periods(tenant: &str, anchor: Option<Timestamp>, zone: Option<&str>) -> Option<Periods> {
    Periods::new(anchor?, zone?).inspect_err(|error| tracing::warn!(tenant, %error, "no usage periods")).ok()
}
