//! The ledger is away, stands still, or comes back: callers are told, and nothing is lost.

use std::time::Duration;

use devcluster::{Postgres, PostgresOptions};
use tenantry::metering::ledger::{Ledger, LedgerError, Outcome};

use crate::support::{OPERATOR, PASSWORD, Source, create, days_ago, now, owner_url};

/// What no call may take: each ends by itself long before.
const FOR_EVER: Duration = Duration::from_secs(100);

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_away_or_stands_still_holds_nobody() {
    let postgres = Postgres::start(PostgresOptions::default()).expect("PostgreSQL starts");
    create(&postgres, "books", "template1").await;
    Ledger::migrate(&owner_url(&postgres, "books"), OPERATOR, Some(PASSWORD)).await.expect("migrated");
    let ledger = Ledger::new(&postgres.url(OPERATOR, PASSWORD, "books"), 2).expect("a ledger");
    let mut source = Source::new("t_1", "users", days_ago(40));
    let events: Vec<_> = (0..3).map(|_| source.count(1, now())).collect();
    assert_eq!(ledger.ingest(&events[..1]).await, Ok(vec![Outcome::Accepted]));

    postgres.freeze();
    let mut cursor = None;
    // More callers than sessions.
    let still = tokio::time::timeout(FOR_EVER, async {
        futures::join!(
            ledger.ingest(&events[1..2]),
            ledger.ingest(&events[1..2]),
            ledger.ingest(&events[1..2]),
            ledger.changed(&mut cursor, Duration::from_secs(1)),
        )
    });
    let (one, two, three, four) = still.await.expect("they are told");
    for answer in [one, two, three] {
        assert!(matches!(answer, Err(LedgerError::Away(_))), "{answer:?}");
    }
    assert!(matches!(four, Err(LedgerError::Away(_))), "{four:?}");
    postgres.thaw();
    // Whether it was done meanwhile or not: it is counted once.
    let again = ledger.ingest(&events[1..2]).await.expect("it is back");
    assert!(matches!(again[..], [Outcome::Accepted | Outcome::Duplicate]), "{again:?}");

    postgres.kill();
    let away = ledger.ingest(&events[2..]).await;
    assert!(matches!(away, Err(LedgerError::Away(_))), "{away:?}");
    postgres.start_again().expect("it starts");
    assert_eq!(ledger.ingest(&events[2..]).await, Ok(vec![Outcome::Accepted]));
    let states = ledger.usage(&["t_1".to_owned()]).await.expect("read");
    assert_eq!((states[0].value, states[0].sequence, states[0].missing), (3, 3, None));
}
