//! One database: its outbox is emptied, its meters' marks are sent, and how much waits is told.
//!
//! A database is asked for events after a tenth of the time for which it has been quiet: every
//! 50 ms while events come, every 750 ms from the eighth second on. At rest that is 80 to 160
//! statements a minute and database (the pause is jittered), and 6 more for marks and report.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::access::Access;
use super::gate::Pass;
use super::{Shared, batch, send};
use crate::cluster::{Delays, jittered};
use crate::database::{Error, ErrorClass, LeasedEvent, Mark, Outbox, Result, Settlement, TenantId};

/// The part of its quiet time after which a database is asked again, and the bounds of that.
const OF_QUIET: u32 = 10;
const SHORTEST_POLL: Duration = Duration::from_millis(50);
const LONGEST_POLL: Duration = Duration::from_millis(750);

/// How long it may take to log in.
const CONNECT: Duration = Duration::from_secs(10);

/// How many events are risked while it isn't known whether the API is back. Few: what was tried
/// is never folded.
const TRIAL: u32 = 100;

/// A batch with as many of each tenant is followed by the next at once.
const MORE_TO_COME: usize = 10;

/// How many events of an outbox are counted.
const COUNTED: u32 = 100_000;

/// How often an outcome that could not be noted is tried again.
const SETTLE_TRIES: usize = 4;

/// All marks are sent so often, changed or not; those that changed, with each report.
const ALL_MARKS: Duration = Duration::from_secs(900);

/// Who counts may have begun that long before its commit; its time is that of the count.
const LATE_COMMIT: SignedDuration = SignedDuration::from_mins(5);

/// A database and what is known of it.
pub(super) struct Database {
    shared: Arc<Shared>,
    access: Arc<Access>,
    source: String,
    stop: watch::Receiver<bool>,
    marks: Marks,
    /// Until when nothing is counted or sent by [`Database::look`].
    look_at: Instant,
    /// Whether the last report could not be sent, since the API was away.
    owes_report: bool,
    /// Whether the next try is for events: an API may take these alone, too.
    events_next: bool,
}

/// How the sessions in a database are called. Of the first, each relay has one.
const FIRST: &str = Outbox::NAME;
const SECOND: &str = "tenantry relay, second";

/// What of the marks was sent.
#[derive(Default)]
struct Marks {
    /// By tenant and meter: the epoch and sequence that the API has taken.
    sent: HashMap<(TenantId, String), (i32, i64)>,
    /// When they were asked last, by the server's clock; nothing where all are to be sent.
    asked: Option<Timestamp>,
    all_at: Option<Instant>,
}

/// A session that is opened when it is needed, and anew after a failure.
struct Session {
    access: Arc<Access>,
    name: &'static str,
    outbox: Option<Outbox>,
}

impl Session {
    fn new(access: &Arc<Access>, name: &'static str) -> Self {
        Self { access: Arc::clone(access), name, outbox: None }
    }

    /// Runs a statement. A session that failed, or said nothing, is not used again.
    async fn ask<T>(&mut self, statement: impl AsyncFnOnce(&Outbox) -> Result<T>) -> Result<T> {
        let outbox = match self.outbox.take().filter(|outbox| !outbox.is_closed()) {
            Some(outbox) => outbox,
            None => Outbox::connect_as(self.name, &self.access.relay, &self.access.tls, CONNECT).await?,
        };
        let answer = statement(&outbox).await?;
        self.outbox = Some(outbox);
        Ok(answer)
    }
}

/// What a turn came to.
enum Turn {
    /// So many events were sent, and there is reason to look for more at once, or not.
    Sent { more: bool },
    /// There were none.
    Nothing,
}

impl Database {
    pub(super) fn new(shared: Arc<Shared>, access: Arc<Access>, stop: watch::Receiver<bool>) -> Self {
        let source = batch::source(&shared.options.server, &access.relay.database);
        Self {
            shared,
            access,
            source,
            stop,
            marks: Marks::default(),
            look_at: Instant::now(),
            owes_report: false,
            events_next: false,
        }
    }

    /// Works until it is told to stop, and what is under way is settled.
    pub(super) async fn run(mut self) {
        let (mut first, mut second) = (Session::new(&self.access, FIRST), Session::new(&self.access, SECOND));
        let mut failures = Failures::default();
        let mut stop = self.stop.clone();
        let (mut quiet_since, mut poll_at) = (Instant::now(), Instant::now());
        let shared = Arc::clone(&self.shared);
        loop {
            let turn = tokio::select! {
                biased;
                () = asked_to_stop(&mut stop) => break,
                () = sleep_until(self.look_at) => {
                    second.outbox = None;
                    self.look_at = Instant::now() + jittered(shared.options.report);
                    self.look(&mut first, None).await.map(|()| None)
                }
                pass = async { sleep_until(poll_at).await; shared.gate.enter().await } => {
                    // An API that takes no events may take a report: else nobody would hear that they wait.
                    let is_for_report = self.owes_report && pass.is_trial() && !self.events_next;
                    self.events_next = is_for_report;
                    match is_for_report {
                        true => self.look(&mut first, Some(pass)).await.map(|()| None),
                        false => self.turn(&mut first, pass).await.map(Some),
                    }
                }
            };
            match turn {
                Ok(None) => failures.over(&self),
                Ok(Some(Turn::Nothing)) => {
                    failures.over(&self);
                    let pause = (quiet_since.elapsed() / OF_QUIET).clamp(SHORTEST_POLL, LONGEST_POLL);
                    poll_at = Instant::now() + jittered(pause);
                }
                Ok(Some(Turn::Sent { more })) => {
                    failures.over(&self);
                    quiet_since = Instant::now();
                    poll_at = quiet_since + SHORTEST_POLL;
                    if more {
                        let drained = tokio::join!(self.drain(&mut first), self.drain(&mut second));
                        (quiet_since, poll_at) = (Instant::now(), Instant::now() + SHORTEST_POLL);
                        // Several relays share the sessions that the login may have: one will do.
                        let second = drained.1.or_else(|error| if is_full(&error) { Ok(()) } else { Err(error) });
                        if let Err(error) = drained.0.and(second) {
                            poll_at = Instant::now() + failures.note(&self, &error);
                        }
                    }
                }
                Err(error) => {
                    let pause = failures.note(&self, &error);
                    poll_at = Instant::now() + pause;
                    self.look_at = self.look_at.max(poll_at);
                }
            }
        }
    }

    /// Sends batch after batch, while there are more, and until it is time to report.
    async fn drain(&self, session: &mut Session) -> Result<()> {
        while !*self.stop.borrow() && Instant::now() < self.look_at {
            let Some(pass) = self.shared.gate.try_enter() else { return Ok(()) };
            match self.turn(session, pass).await? {
                Turn::Sent { more: true } => {}
                Turn::Sent { more: false } | Turn::Nothing => return Ok(()),
            }
        }
        Ok(())
    }

    /// Leases a batch, sends it, and notes what became of it.
    async fn turn(&self, session: &mut Session, pass: Pass<'_>) -> Result<Turn> {
        let options = &self.shared.options;
        let events;
        let settlements;
        {
            // From the lease on: who waits for a turn holds no events.
            let _place = self.shared.places.acquire().await.expect("never closed");
            let batch = options.batch.min(if pass.is_trial() { TRIAL } else { u32::MAX });
            events = session.ask(async |outbox| outbox.lease(batch, options.lease).await).await?;
            if events.is_empty() {
                return Ok(Turn::Nothing);
            }
            self.shared.metrics.leased(events.len());
            settlements = send::deliver(&self.shared, pass, &self.source, &events).await;
        }
        let outcomes: Vec<_> = events.iter().zip(settlements).collect();
        self.settle(session, &outcomes).await;
        Ok(Turn::Sent { more: is_more_likely(&events) })
    }

    /// Notes what became of events. Where that fails, the lease runs out, and they are sent again.
    async fn settle(&self, session: &mut Session, outcomes: &[(&LeasedEvent, Settlement)]) {
        let mut pauses = Delays::new(Duration::from_millis(100), Duration::from_secs(2));
        for attempt in 1..=SETTLE_TRIES {
            match session.ask(async |outbox| outbox.settle(outcomes).await).await {
                Ok(()) => return,
                Err(error) if attempt == SETTLE_TRIES || error.class() == ErrorClass::Permanent => {
                    self.shared.metrics.not_settled();
                    tracing::warn!(
                        events = outcomes.len(),
                        "can't note what became of events, they are sent again: {error}"
                    );
                    return;
                }
                Err(_) => tokio::time::sleep(pauses.take()).await,
            }
        }
    }

    /// Measures the outbox; the relay whose session is the oldest tells the API, and sends marks.
    /// It does so with `pass`, where it was given one.
    async fn look(&mut self, session: &mut Session, pass: Option<Pass<'_>>) -> Result<()> {
        self.owes_report = false;
        let size = session.ask(async |outbox| outbox.size(COUNTED).await).await?;
        let standing = session.ask(async |outbox| outbox.standing().await).await?;
        let database = &self.access.relay.database;
        self.shared.metrics.outbox(database, size, standing.now);
        if !standing.is_first {
            // Whoever is first from now on doesn't know what the other one sent.
            self.marks = Marks::default();
            return Ok(());
        }
        let dead = match size.dead {
            0 => Vec::new(),
            _ => session.ask(async |outbox| outbox.dead_by_tenant().await).await?,
        };
        let all = self.marks.all_at.is_none_or(|at| at <= Instant::now());
        let since = self.marks.asked.filter(|_| !all).map(|asked| asked - LATE_COMMIT);
        let marks = session.ask(async |outbox| outbox.progress(since).await).await?;
        let marks: Vec<_> = marks.into_iter().filter(|mark| all || self.marks.is_news(mark)).collect();
        let report = batch::report(&self.source, database, standing.now, size, &dead);
        let parts: Vec<_> =
            std::iter::once(report).chain(marks.iter().map(|mark| batch::mark(&self.source, mark))).collect();
        // While the API is away, the next time that it is tried is soon enough.
        let Some(pass) = pass.or_else(|| self.shared.gate.try_enter()) else {
            self.owes_report = true;
            return Ok(());
        };
        let told = {
            let _place = self.shared.places.acquire().await.expect("never closed");
            send::tell(&self.shared, pass, &parts).await
        };
        let told = told.into_iter().skip(1);
        self.marks.note(marks, told, standing.now, all);
        Ok(())
    }
}

impl Marks {
    fn is_news(&self, mark: &Mark) -> bool {
        let known = self.sent.get(&(mark.tenant.clone(), mark.meter.clone()));
        known != Some(&(mark.epoch, mark.sequence))
    }

    fn note(&mut self, marks: Vec<Mark>, told: impl Iterator<Item = bool>, now: Timestamp, all: bool) {
        let (mut some, mut every) = (marks.is_empty(), true);
        for (mark, told) in marks.into_iter().zip(told) {
            (some, every) = (some | told, every & told);
            let (key, sent) = ((mark.tenant, mark.meter), (mark.epoch, mark.sequence));
            match told {
                true => self.sent.insert(key, sent),
                false => self.sent.remove(&key),
            };
        }
        // Else all meters are asked again, of which those that were taken are no news.
        self.asked = every.then_some(now);
        if all && some {
            self.all_at = Some(Instant::now() + jittered(ALL_MARKS));
        }
    }
}

/// Whether a login has as many sessions as it may (SQLSTATE 53300).
fn is_full(error: &Error) -> bool {
    error.sqlstate() == Some("53300")
}

/// Ready when the task is to end. Without its sender there is nobody left to run for.
async fn asked_to_stop(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Whether a batch looks like the first of many: the share of each tenant that it has was filled.
fn is_more_likely(events: &[LeasedEvent]) -> bool {
    let mut tenants: Vec<&str> = events.iter().map(|event| event.tenant.as_str()).collect();
    tenants.sort_unstable();
    tenants.dedup();
    events.len() >= MORE_TO_COME * tenants.len()
}

/// Says that a database is away, and not with every attempt.
struct Failures {
    pauses: Delays,
    is_down: bool,
}

impl Default for Failures {
    fn default() -> Self {
        Self { pauses: Delays::new(Duration::from_millis(200), Duration::from_secs(5)), is_down: false }
    }
}

impl Failures {
    fn note(&mut self, database: &Database, error: &Error) -> Duration {
        database.shared.metrics.up(&database.access.relay.database, false);
        if !std::mem::replace(&mut self.is_down, true) {
            tracing::warn!("the outbox can't be used, it is tried again: {error}");
        } else {
            tracing::debug!("the outbox still can't be used: {error}");
        }
        self.pauses.take()
    }

    fn over(&mut self, database: &Database) {
        if std::mem::take(&mut self.is_down) {
            tracing::info!("the outbox can be used again");
        }
        database.shared.metrics.up(&database.access.relay.database, true);
        self.pauses.reset();
    }
}
