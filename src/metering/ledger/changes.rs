//! Waiting for changes. The ledger tells that something has changed; what has is read from the
//! rows themselves, so that a notice that is lost costs time and nothing else.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_postgres::types::Type;

use super::ingest::distinct;
use super::session::{Address, Sessions};
use super::types::LedgerError;

/// How long a notice is waited for at most: it may have been lost with a session.
const POLL: Duration = Duration::from_secs(5);
/// How often the session that listens is asked whether it is still there.
const ALIVE: Duration = Duration::from_secs(20);
/// Between two attempts to listen.
const AGAIN: Duration = Duration::from_secs(1);

/// What was written by transactions that may not have been finished when it was looked last. A
/// transaction that began earlier may end later: only below the oldest one that is open is all known.
const CHANGED: &str = "
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, m.tenant, m.meter, m.changed::text::bigint
      FROM (VALUES (1)) AS one LEFT JOIN ledger.meter m ON m.changed >= $1::text::xid8";

/// Up to where somebody has seen all changes.
#[derive(Clone, Debug, Default)]
pub struct Cursor {
    /// All transactions before this one are finished, and what they wrote was seen.
    finished: i64,
    /// What was seen of later ones, by tenant and meter.
    seen: HashMap<(String, String), i64>,
}

/// Listens for notices, for all who wait.
pub(super) struct Notices {
    heard: watch::Sender<u64>,
    task: OnceLock<AbortHandle>,
}

impl Notices {
    pub(super) fn new() -> Self {
        Self { heard: watch::Sender::new(0), task: OnceLock::new() }
    }

    fn listen(&self, address: &Address) -> watch::Receiver<u64> {
        self.task.get_or_init(|| tokio::spawn(listening(address.clone(), self.heard.clone())).abort_handle());
        self.heard.subscribe()
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// Listens until it is ended; whenever a session was lost, something may have been missed.
async fn listening(address: Address, heard: watch::Sender<u64>) {
    loop {
        let told = heard.clone();
        if let Ok((client, hearing)) = address.listen(move || told.send_modify(|count| *count += 1)).await {
            let staying = async {
                if let Ok(Ok(())) = timeout(ALIVE, client.batch_execute("LISTEN ledger")).await {
                    heard.send_modify(|count| *count += 1);
                    while let Ok(Ok(())) = timeout(ALIVE, client.batch_execute("")).await {
                        sleep(ALIVE).await;
                    }
                }
            };
            tokio::select! {
                () = hearing => {}
                () = staying => {}
            }
        }
        sleep(AGAIN).await;
    }
}

/// Ready when something has changed since the last call, or after `patience`.
pub(super) async fn changed(
    sessions: &Sessions,
    notices: &Notices,
    cursor: &mut Option<Cursor>,
    patience: Duration,
) -> Result<Vec<String>, LedgerError> {
    let deadline = Instant::now() + patience;
    let mut heard = notices.listen(&sessions.address);
    loop {
        heard.mark_unchanged();
        let tenants = look(sessions, cursor).await?;
        let now = Instant::now();
        if !tenants.is_empty() || now >= deadline {
            return Ok(tenants);
        }
        // Either way it is looked again.
        let _ = timeout_at(deadline.min(now + POLL), heard.changed()).await;
    }
}

async fn look(sessions: &Sessions, cursor: &mut Option<Cursor>) -> Result<Vec<String>, LedgerError> {
    let doing = "can't read what has changed";
    let from = cursor.as_ref().map_or(0, |cursor| cursor.finished).to_string();
    let rows = sessions.query(doing, CHANGED, &[(&from, Type::TEXT)]).await?;
    let finished: i64 = rows.first().map_or(0, |row| row.get(0));
    // The ledger's server is another one: its numbers begin anew.
    let is_other = cursor.as_ref().is_some_and(|cursor| finished < cursor.finished);
    let is_first = cursor.is_none() || is_other;
    if is_other {
        *cursor = None;
        return Box::pin(look(sessions, cursor)).await;
    }
    let mut seen = HashMap::new();
    let before = cursor.take().unwrap_or_default();
    let mut tenants = Vec::new();
    for row in &rows {
        let Some(tenant) = row.get::<_, Option<String>>(1) else { continue };
        let (meter, number): (String, i64) = (row.get(2), row.get(3));
        let key = (tenant, meter);
        if before.seen.get(&key) != Some(&number) {
            tenants.push(key.0.clone());
        }
        if number >= finished {
            seen.insert(key, number);
        }
    }
    *cursor = Some(Cursor { finished, seen });
    if is_first {
        let rows = sessions.query(doing, "SELECT id FROM ledger.tenant ORDER BY id", &[]).await?;
        tenants.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    Ok(distinct(tenants.iter().map(String::as_str)))
}
