//! Partitions: there is room for what may come, and what is over goes.

use jiff::{SignedDuration, Timestamp};
use tenantry::metering::ledger::{EVENTS_KEPT_DAYS, EVENTS_TAKEN_DAYS, LedgerError, Outcome};

use crate::support::{Ground, Source, days_ago, now};

async fn partitions(ground: &Ground, table: &str) -> Vec<String> {
    let sql = format!(
        "SELECT array_agg(c.relname::text ORDER BY c.relname) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
          WHERE i.inhparent = 'ledger.{table}'::regclass"
    );
    ground.one(&sql).await
}

fn name(at: Timestamp) -> String {
    at.strftime("event_%Y%m%d").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_room_for_every_event_that_is_taken() {
    let ground = Ground::new().await;
    let mut source = Source::new("t_1", "users", days_ago(40));
    let (oldest, newest) = (days_ago(i64::from(EVENTS_TAKEN_DAYS)), now() + SignedDuration::from_mins(5));
    let events = [source.count(1, oldest), source.count(1, newest)];
    assert_eq!(ground.ingest(&events).await, [Outcome::Accepted; 2]);
    let far = ground.ledger.ingest(&[source.count(1, days_ago(200))]).await;
    assert!(matches!(far, Err(LedgerError::Unfit(_))), "{far:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_that_nobody_prepared_is_made_when_its_first_event_comes() {
    let ground = Ground::new().await;
    ground.owner().await.batch_execute(&format!("DROP TABLE ledger.{}", name(now()))).await.expect("dropped");
    let mut source = Source::new("t_1", "users", days_ago(40));
    assert_eq!(ground.ingest(&[source.count(1, now())]).await, [Outcome::Accepted]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_goes_and_nothing_else() {
    let ground = Ground::new().await;
    let kept = i64::from(EVENTS_KEPT_DAYS);
    let owner = ground.owner().await;
    for days in [kept, kept + 1, kept + 2] {
        let day = days_ago(days).strftime("%Y-%m-%d").to_string();
        let sql = format!(
            "CREATE TABLE ledger.{} PARTITION OF ledger.event FOR VALUES FROM ('{day}') TO (date '{day}' + 1)",
            name(days_ago(days))
        );
        owner.batch_execute(&sql).await.expect("an old partition");
    }
    let months = "DO $$ DECLARE m date; BEGIN FOREACH m IN ARRAY ARRAY[
                      (date_trunc('month', now() AT TIME ZONE 'UTC') - interval '25 months')::date,
                      (date_trunc('month', now() AT TIME ZONE 'UTC') - interval '26 months')::date] LOOP
                      EXECUTE format('CREATE TABLE ledger.%I PARTITION OF ledger.day FOR VALUES FROM (%L) TO (%L)',
                          'day_' || to_char(m, 'YYYYMM'), m, m + interval '1 month'); END LOOP; END $$;
                  INSERT INTO ledger.quarantine (tenant, day, id, why, source, content, received_at)
                  VALUES ('t_1', current_date, 'old', 'dead', 's', '{}', now() - interval '401 days'),
                         ('t_1', current_date, 'young', 'dead', 's', '{}', now() - interval '399 days')";
    owner.batch_execute(months).await.expect("old partitions");
    let day_partitions = partitions(&ground, "day").await.len();
    ground.ledger.keep().await.expect("kept");
    let left = partitions(&ground, "event").await;
    assert_eq!(left[0], name(days_ago(kept)));
    assert!(left.contains(&name(now())) && left.contains(&name(now() + SignedDuration::from_hours(24 * 9))));
    assert_eq!(partitions(&ground, "day").await.len(), day_partitions - 1);
    let aside: String = ground.one("SELECT string_agg(id, ',') FROM ledger.quarantine").await;
    assert_eq!(aside, "young");
    // Once more changes nothing.
    ground.ledger.keep().await.expect("kept");
    assert_eq!(partitions(&ground, "event").await, left);
}
