//! Batches with a ledger that fails as it is told.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use futures::future::join_all;
use jiff::Timestamp;
use tokio::sync::watch;

use super::*;
use crate::metering::{
    event::{OutboxReport, Usage},
    ledger::{Directory, LedgerEvent, LedgerMark, MeterState, MeteredTenant},
};

/// What a fault is about, and what the ledger was given.
#[derive(Clone)]
struct Faulty(Arc<Faults>);

struct Faults {
    /// Batches wait until this is so.
    open: watch::Sender<bool>,
    away: AtomicBool,
    /// Ids that can't be stored.
    unfit: BTreeSet<&'static str>,
    batches: Mutex<Vec<Vec<String>>>,
    writing: AtomicUsize,
    most_writing: AtomicUsize,
}

impl Faulty {
    fn new(unfit: &[&'static str]) -> Self {
        Self(Arc::new(Faults {
            open: watch::Sender::new(true),
            away: AtomicBool::new(false),
            unfit: unfit.iter().copied().collect(),
            batches: Mutex::default(),
            writing: AtomicUsize::new(0),
            most_writing: AtomicUsize::new(0),
        }))
    }

    /// All that was stored, in its order.
    fn stored(&self) -> Vec<String> {
        lock(&self.0.batches).concat()
    }

    fn sizes(&self) -> Vec<usize> {
        lock(&self.0.batches).iter().map(Vec::len).collect()
    }
}

impl Store for Faulty {
    async fn ingest(&self, events: &[LedgerEvent]) -> Result<Vec<Outcome>, LedgerError> {
        let faults = &self.0;
        let writing = faults.writing.fetch_add(1, Ordering::SeqCst) + 1;
        faults.most_writing.fetch_max(writing, Ordering::SeqCst);
        faults.open.subscribe().wait_for(|open| *open).await.expect("a ledger");
        faults.writing.fetch_sub(1, Ordering::SeqCst);
        if faults.away.load(Ordering::SeqCst) {
            return Err(LedgerError::Away("gone".into()));
        }
        if events.iter().any(|event| faults.unfit.contains(event.id.as_str())) {
            return Err(LedgerError::Unfit("a value is out of range".into()));
        }
        lock(&faults.batches).push(events.iter().map(|event| event.id.clone()).collect());
        Ok(vec![Outcome::Accepted; events.len()])
    }

    async fn mark(&self, _: &[LedgerMark]) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn report(&self, _: &str, _: &str, report: &OutboxReport) -> Result<(), LedgerError> {
        if report.waiting > 7 { Err(LedgerError::Unfit("too many".into())) } else { Ok(()) }
    }

    async fn directory(&self, _: &[String]) -> Result<Directory, LedgerError> {
        Ok(Directory::default())
    }

    async fn tenant_named(&self, _: &str) -> Result<Option<MeteredTenant>, LedgerError> {
        Ok(None)
    }

    async fn usage(&self, _: &[String]) -> Result<Vec<MeterState>, LedgerError> {
        Ok(Vec::new())
    }

    async fn tenant_of_namespace(&self, _: &str) -> Result<Option<String>, LedgerError> {
        Ok(None)
    }
}

fn settings() -> BatchSettings {
    BatchSettings { queue: 100, batch: 10, pause: Duration::ZERO, ..BatchSettings::default() }
}

fn item(id: &str) -> Item {
    Item::Usage(LedgerEvent {
        id: id.to_owned(),
        source: "/s".into(),
        tenant: "t_abcdefghijkl".into(),
        at: Timestamp::UNIX_EPOCH,
        period_start: Timestamp::UNIX_EPOCH,
        period_end: Timestamp::MAX,
        usage: Usage { meter: "exports".into(), delta: 1, counted: None },
    })
}

fn items(ids: impl IntoIterator<Item = usize>) -> Vec<Item> {
    ids.into_iter().map(|id| item(&id.to_string())).collect()
}

fn report(waiting: u64) -> Item {
    let report = OutboxReport { waiting, oldest: None, dead: Vec::new() };
    Item::Report { server: "main".into(), database: "pool".into(), report }
}

fn nothing() -> Arc<dyn Send + Sync> {
    Arc::new(())
}

const ACCEPTED: Fate = Fate::Kept(Some(Outcome::Accepted));

#[tokio::test]
async fn single_posts_go_together() {
    let ledger = Faulty::new(&[]);
    ledger.0.open.send_replace(false);
    let batches = Batches::start(ledger.clone(), settings(), Counts::default());
    let posts = (0..40).map(|id| {
        let batches = batches.clone();
        tokio::spawn(async move { batches.post(items([id]), nothing()).await })
    });
    let posts: Vec<_> = posts.collect();
    while batches.shared.room.available_permits() > 60 {
        tokio::task::yield_now().await;
    }
    ledger.0.open.send_replace(true);
    for post in join_all(posts).await {
        assert_eq!(post.expect("no panic"), Ok(vec![ACCEPTED]));
    }
    assert_eq!(ledger.stored().into_iter().collect::<BTreeSet<_>>().len(), 40);
    assert!(ledger.sizes().len() <= 8 && ledger.sizes().iter().all(|size| *size <= 10), "{:?}", ledger.sizes());
    assert_eq!(ledger.0.most_writing.load(Ordering::SeqCst), 2, "as many as there are writers");
    assert_eq!(batches.shared.room.available_permits(), 100, "all room is given back");
}

#[tokio::test]
async fn what_cant_be_stored_takes_nothing_with_it() {
    let ledger = Faulty::new(&["3", "17"]);
    let batches = Batches::start(ledger.clone(), settings(), Counts::default());
    let mut posted = items(0..25);
    posted.extend([report(7), report(8)]);
    let fates = batches.post(posted, nothing()).await.expect("a ledger");
    for (id, fate) in fates.iter().enumerate() {
        let wanted = match id {
            3 | 17 => Fate::Unfit("a value is out of range".into()),
            25 => Fate::Kept(None),
            26 => Fate::Unfit("too many".into()),
            _ => ACCEPTED,
        };
        assert_eq!(*fate, wanted, "{id}");
    }
    assert_eq!(ledger.stored().len(), 23, "each once");
}

#[tokio::test]
async fn more_than_there_is_room_for_is_refused_and_the_rest_goes_on() {
    let ledger = Faulty::new(&[]);
    ledger.0.open.send_replace(false);
    let batches = Batches::start(ledger.clone(), settings(), Counts::default());
    let first = tokio::spawn({
        let batches = batches.clone();
        async move { batches.post(items(0..95), nothing()).await }
    });
    while batches.shared.room.available_permits() > 5 {
        tokio::task::yield_now().await;
    }
    assert_eq!(batches.post(items(95..101), nothing()).await, Err(Unavailable::Full));
    assert_eq!(batches.shared.room.available_permits(), 5, "what was taken for it is given back");
    ledger.0.open.send_replace(true);
    assert_eq!(first.await.expect("no panic").map(|fates| fates.len()), Ok(95));
    assert_eq!(batches.post(items(95..101), nothing()).await.map(|fates| fates.len()), Ok(6));
}

#[tokio::test]
async fn a_ledger_that_is_away_or_silent_is_said_and_come_back_to() {
    let ledger = Faulty::new(&[]);
    let quick = BatchSettings { patience: Duration::from_millis(20), ..settings() };
    let batches = Batches::start(ledger.clone(), quick, Counts::default());
    ledger.0.away.store(true, Ordering::SeqCst);
    let away = batches.post(items(0..3), nothing()).await.expect_err("it is away");
    assert!(away.to_string().contains("gone"), "{away}");
    ledger.0.away.store(false, Ordering::SeqCst);
    ledger.0.open.send_replace(false);
    let silent = batches.post(items(0..3), nothing()).await.expect_err("it is silent");
    assert!(silent.to_string().contains("did not answer within 20ms"), "{silent}");
    ledger.0.open.send_replace(true);
    assert_eq!(batches.post(items(0..3), nothing()).await, Ok(vec![ACCEPTED; 3]));
    assert_eq!(ledger.stored(), ["0", "1", "2"]);
}

#[tokio::test]
async fn for_a_moment_after_a_failure_nothing_is_taken() {
    let ledger = Faulty::new(&[]);
    let patient = BatchSettings { pause: Duration::from_secs(3_600), ..settings() };
    let batches = Batches::start(ledger.clone(), patient, Counts::default());
    ledger.0.away.store(true, Ordering::SeqCst);
    batches.post(items([0]), nothing()).await.expect_err("it is away");
    ledger.0.away.store(false, Ordering::SeqCst);
    let error = batches.post(items([1]), nothing()).await.expect_err("too soon");
    assert!(error.to_string().contains("a moment ago"), "{error}");
    assert!(ledger.stored().is_empty());
    assert_eq!(batches.post(Vec::new(), nothing()).await, Ok(Vec::new()), "nothing needs no ledger");
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_written_and_gives_its_room_back() {
    let ledger = Faulty::new(&[]);
    ledger.0.open.send_replace(false);
    let batches = Batches::start(ledger.clone(), settings(), Counts::default());
    // Two that keep the writers, then one that is given up.
    let post = |ids: Range<usize>, held: Arc<dyn Send + Sync>| {
        let batches = batches.clone();
        tokio::spawn(async move { batches.post(items(ids), held).await })
    };
    let kept = [post(0..10, nothing()), post(10..20, nothing())];
    while ledger.0.writing.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    let share = Arc::new(());
    let given_up = post(20..30, share.clone());
    while batches.shared.room.available_permits() > 70 {
        tokio::task::yield_now().await;
    }
    given_up.abort();
    assert!(given_up.await.is_err());
    assert_eq!(Arc::strong_count(&share), 2, "as long as it waits, it counts");
    ledger.0.open.send_replace(true);
    for post in kept {
        assert_eq!(post.await.expect("no panic").map(|fates| fates.len()), Ok(10));
    }
    assert_eq!(batches.post(items(30..31), nothing()).await, Ok(vec![ACCEPTED]));
    assert!(!ledger.stored().contains(&"20".to_owned()));
    assert_eq!(Arc::strong_count(&share), 1);
}
