//! A ledger of its own for each test, events as a tenant's database makes them, and what these add
//! up to when nothing is in between.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use devcluster::{Postgres, PostgresOptions};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use tenantry::billing::Periods;
use tenantry::metering::event::{Counted, Folded, Mark, Usage, UsageKind};
use tenantry::metering::ledger::{
    Ledger, LedgerEvent, LedgerMark, LedgerTenant, MeterDefinition, MeterState, Placement,
};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

pub(crate) const OPERATOR: &str = "ledger_operator";
pub(crate) const PASSWORD: &str = "a password";
pub(crate) const ZONE: &str = "Asia/Seoul";

/// The server of the tests that leave each other alone, with a ledger to copy.
async fn shared_server() -> &'static Postgres {
    static SERVER: OnceCell<Postgres> = OnceCell::const_new();
    let start = async {
        let settings = vec![("max_connections".to_owned(), "300".to_owned())];
        let postgres = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() });
        let postgres = postgres.expect("PostgreSQL starts");
        create(&postgres, "ledger_template", "template1").await;
        let url = owner_url(&postgres, "ledger_template");
        Ledger::migrate(&url, OPERATOR, Some(PASSWORD)).await.expect("migrated");
        postgres
    };
    SERVER.get_or_init(|| start).await
}

pub(crate) fn owner_url(postgres: &Postgres, database: &str) -> String {
    let admin = postgres.admin();
    postgres.url(&admin.user, &admin.password, database)
}

pub(crate) async fn create(postgres: &Postgres, database: &str, template: &str) {
    let client = owner(postgres, "postgres").await;
    // A template can be copied by one at a time, and by none who is in it.
    loop {
        match client.batch_execute(&format!("CREATE DATABASE {database} TEMPLATE {template}")).await {
            Err(error) if error.code().is_some_and(|code| code.code() == "55006") => tokio::task::yield_now().await,
            made => return made.expect("a database"),
        }
    }
}

/// A session as the ledger's owner.
pub(crate) async fn owner(postgres: &Postgres, database: &str) -> Client {
    let admin = postgres.admin();
    connect(postgres, &admin.user, &admin.password, database).await
}

pub(crate) async fn superuser(postgres: &Postgres, database: &str) -> Client {
    connect(postgres, "postgres", postgres.superuser_password(), database).await
}

pub(crate) async fn connect(postgres: &Postgres, user: &str, password: &str, database: &str) -> Client {
    let mut config = tokio_postgres::Config::new();
    config.host(postgres.host()).port(postgres.port()).user(user).password(password).dbname(database);
    let (client, connection) = config.connect(NoTls).await.expect("a session");
    tokio::spawn(connection);
    client
}

/// A ledger for one test.
pub(crate) struct Ground {
    pub(crate) postgres: &'static Postgres,
    pub(crate) database: String,
    pub(crate) ledger: Ledger,
}

impl Ground {
    pub(crate) async fn new() -> Self {
        Self::copy_of("ledger_template").await
    }

    /// A ledger as another one is now, as a backup of it is. Nobody may be in the other one.
    pub(crate) async fn copy_of(template: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let postgres = shared_server().await;
        let database = format!("ledger_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        create(postgres, &database, template).await;
        let ledger = Ledger::new(&postgres.url(OPERATOR, PASSWORD, &database), 4).expect("a ledger");
        Self { postgres, database, ledger }
    }

    pub(crate) async fn owner(&self) -> Client {
        owner(self.postgres, &self.database).await
    }

    /// A session as the operator's login.
    pub(crate) async fn operator(&self) -> Client {
        connect(self.postgres, OPERATOR, PASSWORD, &self.database).await
    }

    pub(crate) async fn ingest(&self, events: &[LedgerEvent]) -> Vec<tenantry::metering::ledger::Outcome> {
        self.ledger.ingest(events).await.expect("stored")
    }

    /// A tenant's meter now.
    pub(crate) async fn state(&self, tenant: &str, meter: &str) -> MeterState {
        let states = self.ledger.usage(&[tenant.to_owned()]).await.expect("read");
        states.into_iter().find(|state| state.meter == meter).expect("the meter is known")
    }

    pub(crate) async fn one<T>(&self, sql: &str) -> T
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        self.owner().await.query_one(sql, &[]).await.expect("one row").get(0)
    }

    /// Writes down a tenant whose first period began at `anchor`, with meters users (Level), mails
    /// (Total) and calls (Total, through the API).
    pub(crate) async fn register(&self, tenant: &str, anchor: Timestamp) {
        let meter = |name: &str, is_total, from_api| MeterDefinition { name: name.to_owned(), is_total, from_api };
        let meters = [meter("users", false, false), meter("mails", true, false), meter("calls", true, true)];
        self.ledger.define("crm", &meters).await.expect("defined");
        self.ledger.register(&[known(tenant, anchor)], &[placed(tenant, "main", "crm_1")]).await.expect("registered");
    }
}

pub(crate) fn known(tenant: &str, anchor: Timestamp) -> LedgerTenant {
    LedgerTenant {
        id: tenant.to_owned(),
        uid: format!("uid of {tenant}"),
        name: format!("name of {tenant}"),
        application: "crm".to_owned(),
        plan: "smb".to_owned(),
        namespace: None,
        anchor,
        time_zone: ZONE.to_owned(),
    }
}

pub(crate) fn placed(tenant: &str, server: &str, database: &str) -> Placement {
    Placement { tenant: tenant.to_owned(), server: server.to_owned(), database: database.to_owned() }
}

/// In whole microseconds, as PostgreSQL has them.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_microsecond(Timestamp::now().as_microsecond()).expect("in range")
}

pub(crate) fn days_ago(days: i64) -> Timestamp {
    now() - SignedDuration::from_hours(24 * days)
}

/// What counts, as a tenant's database does.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) tenant: String,
    pub(crate) meter: String,
    pub(crate) is_total: bool,
    pub(crate) periods: Periods,
    pub(crate) epoch: i32,
    pub(crate) sequence: i64,
    pub(crate) value: i64,
    period: Option<Timestamp>,
}

impl Source {
    pub(crate) fn new(tenant: &str, meter: &str, anchor: Timestamp) -> Self {
        let periods = Periods::new(anchor, ZONE).expect("a zone");
        let (tenant, meter) = (tenant.to_owned(), meter.to_owned());
        let is_total = meter == "mails";
        Self { tenant, meter, is_total, periods, epoch: 1, sequence: 0, value: 0, period: None }
    }

    /// Counts by `delta` at a time, down to 0 at most.
    pub(crate) fn count(&mut self, delta: i64, at: Timestamp) -> LedgerEvent {
        self.event(UsageKind::Add, delta, at)
    }

    pub(crate) fn event(&mut self, kind: UsageKind, delta: i64, at: Timestamp) -> LedgerEvent {
        let period = self.periods.containing(at);
        if self.is_total && self.period != Some(period.start) {
            self.value = 0;
        }
        self.period = Some(period.start);
        let delta = delta.max(-self.value);
        self.sequence += 1;
        self.value += delta;
        LedgerEvent {
            id: uuid::Uuid::new_v4().to_string(),
            source: "/tenantry/main/crm_1".to_owned(),
            tenant: self.tenant.clone(),
            at,
            period_start: period.start,
            period_end: period.end,
            usage: Usage {
                meter: self.meter.clone(),
                delta,
                counted: Some(Counted {
                    kind,
                    epoch: self.epoch,
                    sequence: self.sequence,
                    value: self.value,
                    subject: None,
                    reason: None,
                    actor: None,
                    period_start: self.is_total.then_some(period.start),
                    folded: None,
                }),
            },
        }
    }

    /// The database is restored to how this one was, and begins a new epoch with what it has.
    pub(crate) fn restored(&self, after: i32, known: i64, at: Timestamp) -> (Self, LedgerEvent) {
        let mut source = Self { epoch: after + 1, sequence: 0, ..self.clone() };
        let value = source.value;
        let mut event = source.event(UsageKind::Restore, 0, at);
        event.usage.delta = value - known;
        (source, event)
    }

    pub(crate) fn mark(&self, as_of: Timestamp) -> LedgerMark {
        let (meter, epoch, sequence, value) = (self.meter.clone(), self.epoch, self.sequence, self.value);
        LedgerMark { tenant: self.tenant.clone(), as_of, mark: Mark { meter, epoch, sequence, value } }
    }
}

pub(crate) fn counted(event: &LedgerEvent) -> &Counted {
    event.usage.counted.as_ref().expect("counted in a database")
}

/// Folds neighbours of one meter, epoch, day and period, as an outbox does.
pub(crate) fn fold(events: &[LedgerEvent]) -> LedgerEvent {
    let (first, last) = (&events[0], &events[events.len() - 1]);
    let values = || events.iter().map(|event| counted(event).value);
    let moment: i128 =
        events.iter().map(|event| i128::from(event.usage.delta) * i128::from(event.at.as_microsecond())).sum();
    let mut folded = last.clone();
    folded.id = uuid::Uuid::new_v4().to_string();
    folded.usage.delta = events.iter().map(|event| event.usage.delta).sum();
    folded.usage.counted = Some(Counted {
        kind: UsageKind::Add,
        reason: Some("folded".to_owned()),
        folded: Some(Folded {
            first_sequence: counted(first).sequence,
            first_at: first.at,
            low: values().min().expect("some"),
            high: values().max().expect("some"),
            moment: moment.to_string(),
        }),
        ..counted(last).clone()
    });
    folded
}

/// What events add up to in a stretch of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) events: i64,
    pub(crate) delta: i128,
    pub(crate) moment: i128,
    pub(crate) low: i64,
    pub(crate) high: i64,
    pub(crate) opening: i64,
    pub(crate) closing: i64,
}

/// Adds up events of one meter in the order of their sequences, from the start of each stretch on.
pub(crate) fn sums(events: &[LedgerEvent], start: impl Fn(&LedgerEvent) -> Timestamp) -> BTreeMap<Timestamp, Sums> {
    let mut result: BTreeMap<Timestamp, Sums> = BTreeMap::new();
    let mut events: Vec<_> = events.iter().collect();
    events.sort_by_key(|event| (counted(event).epoch, counted(event).sequence));
    for event in events {
        let (value, delta, begin) = (counted(event).value, event.usage.delta, start(event));
        let before = value - delta;
        let entry = result.entry(begin).or_insert_with(|| Sums {
            events: 0,
            delta: 0,
            moment: 0,
            low: before,
            high: before,
            opening: before,
            closing: before,
        });
        entry.events += 1;
        entry.delta += i128::from(delta);
        entry.moment += i128::from(delta) * i128::from(event.at.as_microsecond() - begin.as_microsecond());
        entry.low = entry.low.min(value);
        entry.high = entry.high.max(value);
        entry.closing = value;
    }
    result
}

pub(crate) fn day_of(event: &LedgerEvent) -> Timestamp {
    let date = TimeZone::UTC.to_datetime(event.at).date();
    date.to_zoned(TimeZone::UTC).expect("in range").timestamp()
}

pub(crate) fn integer(number: rust_decimal::Decimal) -> i128 {
    assert!(number.fract().is_zero(), "{number}");
    number.trunc().mantissa()
}
