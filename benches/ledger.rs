//! How many usage events a second the ledger takes, with all that it does (each once, per meter, period and day),
//! against a bare INSERT of the same rows into the same kind of table in the same run.
//!
//! `cargo bench --bench ledger [-- SECONDS]`: client and server share the machine. No event of batches that a workload
//! posts one by one is among them: those are gathered by the API.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use devcluster::{Postgres, PostgresOptions};
use jiff::{SignedDuration, Timestamp};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tenantry::billing::Periods;
use tenantry::metering::event::{Counted, Usage, UsageKind};
use tenantry::metering::ledger::{Ledger, LedgerEvent};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

const TENANTS: usize = 1000;
const METERS: [&str; 3] = ["users", "accounts", "opportunities"];
const BATCH: usize = 1000;
/// One of so many events comes a second time.
const DUPLICATE: usize = 100;

fn main() -> Result<()> {
    let seconds = env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(20);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let settings = [("shared_buffers", "1GB"), ("max_wal_size", "8GB")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let postgres = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() })?;
    runtime.block_on(measure(&postgres, Duration::from_secs(seconds)))
}

/// What tenants' databases make: the meters of some tenants, which no other source has.
struct Source {
    random: SmallRng,
    meters: Vec<(String, &'static str, i64)>,
    periods: Periods,
    /// Some that were made, to come again.
    earlier: Vec<LedgerEvent>,
}

impl Source {
    fn new(number: usize, of: usize) -> Result<Self> {
        let anchor = Timestamp::now() - SignedDuration::from_hours(24 * 10);
        let tenants = (0..TENANTS).filter(|tenant| tenant % of == number);
        let meters = tenants.flat_map(|tenant| METERS.map(|meter| (format!("t_{tenant:012}"), meter, 0))).collect();
        let random = SmallRng::seed_from_u64(u64::try_from(number)?);
        Ok(Self { random, meters, periods: Periods::new(anchor, "Asia/Seoul")?, earlier: Vec::new() })
    }

    fn batch(&mut self) -> Vec<LedgerEvent> {
        let at = Timestamp::now();
        let period = self.periods.containing(at);
        let mut batch = Vec::with_capacity(BATCH);
        while batch.len() < BATCH {
            if batch.len() % DUPLICATE == 1
                && let Some(event) = self.earlier.choose(&mut self.random)
            {
                batch.push(event.clone());
                continue;
            }
            let at_random = self.random.random_range(0..self.meters.len());
            let (tenant, meter, sequence) = &mut self.meters[at_random];
            *sequence += 1;
            let counted = Counted {
                kind: UsageKind::Add,
                epoch: 1,
                sequence: *sequence,
                value: *sequence,
                subject: Some(format!("{:032x}{:032x}", self.random.random::<u128>(), self.random.random::<u128>())),
                reason: None,
                actor: None,
                period_start: None,
                folded: None,
            };
            batch.push(LedgerEvent {
                id: uuid::Uuid::from_u128(self.random.random()).to_string(),
                source: "/tenantry/main/crm-pool-1".to_owned(),
                tenant: tenant.clone(),
                at,
                period_start: period.start,
                period_end: period.end,
                usage: Usage { meter: (*meter).to_owned(), delta: 1, counted: Some(counted) },
            });
        }
        self.earlier = batch.iter().step_by(BATCH / 10).cloned().collect();
        batch
    }
}

/// How batches are stored.
#[derive(Clone)]
enum Store {
    Ledger(Ledger),
    /// Sessions of a plain client, one for each task.
    Bare(Vec<Arc<Client>>),
}

const BARE: &str = "
    INSERT INTO bare.event (tenant, day, id, source, meter, kind, epoch, sequence, delta, value, occurred_at, period_start, subject)
    SELECT g.tenant, (g.at AT TIME ZONE 'UTC')::date, g.id, g.source, g.meter, 'Add', 1, g.sequence, 1, g.sequence, g.at, g.start, g.subject
      FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::timestamptz[], $7::timestamptz[], $8::text[])
           AS g (tenant, id, source, meter, sequence, at, start, subject)
    ON CONFLICT DO NOTHING";

async fn bare(client: &Client, events: &[LedgerEvent]) -> Result<()> {
    let mut events: Vec<_> = events.iter().collect();
    events.sort_by_key(|event| (&event.tenant, &event.id));
    let counted = |event: &&LedgerEvent| event.usage.counted.clone();
    let text = |field: fn(&LedgerEvent) -> &str| events.iter().map(|event| field(event)).collect::<Vec<_>>();
    let (tenants, ids) = (text(|event| &event.tenant), text(|event| &event.id));
    let (sources, meters) = (text(|event| &event.source), text(|event| &event.usage.meter));
    let sequences: Vec<_> = events.iter().map(|event| counted(event).map(|counted| counted.sequence)).collect();
    let times: Vec<_> = events.iter().map(|event| event.at).collect();
    let starts: Vec<_> = events.iter().map(|event| event.period_start).collect();
    let subjects: Vec<_> = events.iter().map(|event| counted(event).and_then(|counted| counted.subject)).collect();
    let statement = client.prepare(BARE).await?;
    client.execute(&statement, &[&tenants, &ids, &sources, &meters, &sequences, &times, &starts, &subjects]).await?;
    Ok(())
}

struct Measured {
    rate: f64,
    median: Duration,
    worst: Duration,
}

/// Stores batches from so many sides at a time, for a while.
async fn run(store: &Store, sides: usize, time: Duration) -> Result<Measured> {
    let end = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for side in 0..sides {
        let (store, end, mut source) = (store.clone(), Arc::clone(&end), Source::new(side, sides)?);
        tasks.spawn(async move {
            let mut times = Vec::new();
            while !end.load(Ordering::Relaxed) {
                let batch = source.batch();
                let start = Instant::now();
                match &store {
                    Store::Ledger(ledger) => drop(ledger.ingest(&batch).await?),
                    Store::Bare(clients) => bare(&clients[side], &batch).await?,
                }
                times.push(start.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let start = Instant::now();
    tokio::time::sleep(time).await;
    end.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended??);
    }
    let elapsed = start.elapsed();
    times.sort();
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = (times.len() * BATCH) as f64 / elapsed.as_secs_f64();
    let at = |percent: usize| times.get(times.len() * percent / 100).or(times.last()).copied().unwrap_or_default();
    Ok(Measured { rate, median: at(50), worst: at(99) })
}

async fn connect(postgres: &Postgres, database: &str) -> Result<Client> {
    let admin = postgres.admin();
    let mut config = tokio_postgres::Config::new();
    config.host(postgres.host()).port(postgres.port()).user(&admin.user).password(&admin.password).dbname(database);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// An empty ledger, and beside it a table as its events have.
async fn books(postgres: &Postgres, database: &str, connections: usize) -> Result<Ledger> {
    connect(postgres, "postgres").await?.batch_execute(&format!("CREATE DATABASE {database}")).await?;
    let admin = postgres.admin();
    let owner = postgres.url(&admin.user, &admin.password, database);
    Ledger::migrate(&owner, "ledger_operator", Some("a password")).await?;
    let bare = "CREATE SCHEMA bare;
                CREATE TABLE bare.event (LIKE ledger.event INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES) PARTITION BY RANGE (day);
                DO $$ DECLARE d date; BEGIN
                    FOR d IN SELECT (now() AT TIME ZONE 'UTC')::date + n FROM generate_series(-1, 1) AS n LOOP
                        EXECUTE format('CREATE TABLE bare.%I PARTITION OF bare.event FOR VALUES FROM (%L) TO (%L)',
                            'event_' || to_char(d, 'YYYYMMDD'), d, d + 1);
                    END LOOP; END $$";
    connect(postgres, database).await?.batch_execute(bare).await?;
    Ok(Ledger::new(&postgres.url("ledger_operator", "a password", database), connections)?)
}

async fn measure(postgres: &Postgres, time: Duration) -> Result<()> {
    println!("{TENANTS} tenants, {} meters each, batches of {BATCH}, 1 in {DUPLICATE} a duplicate", METERS.len());
    println!("{:<14} {:>11} {:>14} {:>9} {:>9} {:>9}", "", "connections", "events/s", "p50 ms", "p99 ms", "ratio");
    for sides in [2, 4] {
        let database = format!("books_{sides}");
        let ledger = books(postgres, &database, sides).await?;
        let mut clients = Vec::new();
        for _ in 0..sides {
            clients.push(Arc::new(connect(postgres, &database).await?));
        }
        let bare = run(&Store::Bare(clients), sides, time).await.context("bare INSERT")?;
        let full = run(&Store::Ledger(ledger), sides, time).await.context("the ledger")?;
        for (name, measured) in [("bare INSERT", &bare), ("ledger", &full)] {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            println!(
                "{name:<14} {sides:>11} {:>14.0} {:>9.1} {:>9.1} {:>9.2}",
                measured.rate,
                ms(measured.median),
                ms(measured.worst),
                measured.rate / bare.rate
            );
        }
    }
    Ok(())
}
