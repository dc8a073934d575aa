//! Both restores: the ledger from an older backup, and a tenant's database from one.

use jiff::SignedDuration;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tenantry::metering::ledger::{LedgerEvent, Outcome};

use crate::support::{Ground, Source, days_ago, integer, now};

/// Events at one second after the other, from some days ago on.
fn some(source: &mut Source, count: i64, days: i64) -> Vec<LedgerEvent> {
    (0..count).map(|n| source.count(1 + n % 3, days_ago(days) + SignedDuration::from_secs(n))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_from_an_older_backup_is_the_same_after_a_resync() {
    for seed in 0..6 {
        let mut random = SmallRng::seed_from_u64(seed);
        let ground = Ground::new().await;
        let mut users = Source::new("t_1", "users", days_ago(40));
        let mut mails = Source::new("t_1", "mails", days_ago(40));
        let mut all = some(&mut users, 20, 20);
        all.extend(some(&mut mails, 20, 20));
        let backed_up = random.random_range(0..all.len());
        all.shuffle(&mut random);
        let (before, after) = all.split_at(backed_up);
        ground.ingest(before).await;
        // The backup is taken while nobody is in it.
        let template = ground.database.clone();
        drop(ground);
        let (original, restored) = (Ground::copy_of(&template).await, Ground::copy_of(&template).await);
        original.ingest(after).await;
        // All that was acknowledged since a while before is sent again, as it comes.
        let mut again: Vec<_> = after.iter().chain(before.iter().take(5)).cloned().collect();
        again.shuffle(&mut random);
        for batch in again.chunks(7) {
            restored.ingest(batch).await;
        }
        for meter in ["users", "mails"] {
            assert_eq!(restored.state("t_1", meter).await, original.state("t_1", meter).await, "seed {seed}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_from_an_older_backup_begins_a_new_epoch_with_an_adjustment() {
    for seed in 0..6 {
        let mut random = SmallRng::seed_from_u64(seed);
        let ground = Ground::new().await;
        ground.register("t_1", days_ago(40)).await;
        let mut source = Source::new("t_1", "users", days_ago(40));
        let kept = some(&mut source, 10, 4);
        let mut backup = source.clone();
        let lost = some(&mut source, 10, 3);
        ground.ingest(&kept).await;
        ground.ingest(&lost).await;
        let known = source.value;
        assert!(ground.ledger.restored().await.expect("read").is_empty());

        // After the restore sequences begin again where the backup was.
        let other = some(&mut backup, 5, 2);
        let outcomes = ground.ingest(&other).await;
        assert_eq!(outcomes, [Outcome::Restored; 5]);
        // What was there before is the same as ever.
        assert_eq!(ground.ingest(&kept[5..]).await, [Outcome::Duplicate; 5]);
        let state = ground.state("t_1", "users").await;
        assert_eq!((state.restored, state.value, state.epoch), (true, known, 1));
        let restored = ground.ledger.restored().await.expect("read");
        let restored = restored.first().expect("it is noticed");
        assert_eq!((restored.meter.as_str(), restored.epoch, restored.value), ("users", 1, known));
        assert_eq!(restored.placement.server, "main");

        // The new epoch, whatever of it comes first.
        let (mut source, first) = backup.restored(restored.epoch, restored.value, days_ago(1));
        let mut news = vec![first];
        news.extend(some(&mut source, 4, 1));
        news.shuffle(&mut random);
        for event in &news {
            assert_eq!(ground.ingest(std::slice::from_ref(event)).await, [Outcome::Accepted]);
        }
        let state = ground.state("t_1", "users").await;
        assert_eq!((state.restored, state.value, state.epoch, state.missing), (false, source.value, 2, None));
        let period = state.open.last().expect("open");
        assert_eq!((period.closing, integer(period.delta)), (source.value, i128::from(source.value)), "seed {seed}");
        let adjusted: String = ground.one("SELECT delta || ' ' || reason FROM ledger.adjustment").await;
        assert_eq!(adjusted, format!("{} restore", backup.value - known));
        // What was held back of the old epoch stays aside.
        let aside = ground.ledger.quarantined(&["t_1".to_owned()]).await.expect("read");
        assert_eq!(aside.iter().map(|some| (some.why.as_str(), some.events)).collect::<Vec<_>>(), [("restored", 5)]);
        assert_eq!(ground.ingest(&other).await, [Outcome::Restored; 5]);
        assert_eq!(ground.ingest(&news).await, [Outcome::Duplicate; 5]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_is_lower_than_what_is_known_tells_of_a_restore() {
    let ground = Ground::new().await;
    ground.register("t_1", days_ago(40)).await;
    let mut source = Source::new("t_1", "users", days_ago(40));
    ground.ingest(&some(&mut source, 10, 4)).await;
    let backup = source.clone();
    ground.ingest(&some(&mut source, 10, 3)).await;
    // One that was on its way for long tells nothing.
    ground.ledger.mark(&[backup.mark(days_ago(4) + SignedDuration::from_mins(1))]).await.expect("marked");
    assert!(!ground.state("t_1", "users").await.restored);
    ground.ledger.mark(&[backup.mark(now())]).await.expect("marked");
    assert!(ground.state("t_1", "users").await.restored);
    assert_eq!(ground.ledger.restored().await.expect("read").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_arrived_before_a_restore_is_in_the_adjustment() {
    let ground = Ground::new().await;
    ground.register("t_1", days_ago(40)).await;
    let mut source = Source::new("t_1", "users", days_ago(40));
    let events = some(&mut source, 10, 4);
    let backup = source.clone();
    let lost = some(&mut source, 10, 3);
    ground.ingest(&events[..4]).await;
    ground.ingest(&lost[5..]).await;
    ground.ledger.mark(&[backup.mark(now())]).await.expect("marked");
    let restored = ground.ledger.restored().await.expect("read");
    let (source, first) = backup.restored(1, restored[0].value, now());
    ground.ingest(&[first]).await;
    // Some of the old ones come after all: the new value has them already.
    assert_eq!(ground.ingest(&events[4..6]).await, [Outcome::Restored; 2]);
    let state = ground.state("t_1", "users").await;
    let period = state.open.last().expect("open");
    assert_eq!(
        (state.value, integer(period.delta) + i128::from(period.opening)),
        (source.value, i128::from(source.value))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_total_is_measured_by_its_own_period() {
    let ground = Ground::new().await;
    ground.register("t_1", days_ago(40)).await;
    let mut source = Source::new("t_1", "mails", days_ago(40));
    // The period of 40 to 10 days ago, and the one since.
    ground.ingest(&some(&mut source, 5, 20)).await;
    let old = source.value;
    ground.ingest(&some(&mut source, 5, 5)).await;
    let backup = source.clone();
    ground.ingest(&some(&mut source, 5, 4)).await;
    ground.ledger.mark(&[backup.mark(now())]).await.expect("marked");
    let restored = ground.ledger.restored().await.expect("read");
    assert_eq!(restored[0].value, source.value);
    let (source, first) = backup.restored(1, restored[0].value, now());
    ground.ingest(&[first]).await;
    let state = ground.state("t_1", "mails").await;
    let sums: Vec<_> = state.open.iter().map(|period| (period.closing, integer(period.delta))).collect();
    assert_eq!(sums, [(old, i128::from(old)), (source.value, i128::from(source.value))]);
}
