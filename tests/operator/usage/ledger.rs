//! A ledger for the tests, and usage events as a relay would bring them.

use std::sync::OnceLock;

use devcluster::{Options, Postgres};
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use serde_json::json;
use tenantry::{
    api::Tenant,
    billing::Periods,
    metering::{
        event::{Counted, Mark, OutboxReport, Usage, UsageKind},
        ledger::{Ledger, LedgerEvent, LedgerMark, Outcome},
    },
};

use super::super::{
    ground::{Ground, Operator, eventually},
    steps::plan,
    verbs::{application, id, place, superuser, superuser_of},
};

/// Makes a ledger on a server; its URL for the operator.
pub async fn ledger_on(postgres: &Postgres) -> String {
    let root = superuser_of(postgres, "postgres").await;
    root.batch_execute("CREATE ROLE ledger_owner LOGIN CREATEROLE PASSWORD 'owner'").await.expect("an owner");
    root.batch_execute("CREATE DATABASE ledger OWNER ledger_owner").await.expect("a database");
    let url = |user: &str, password: &str| {
        format!("postgres://{user}:{password}@{}:{}/ledger?sslmode=disable", postgres.host(), postgres.port())
    };
    Ledger::migrate(&url("ledger_owner", "owner"), "ledger", Some("operator")).await.expect("tables");
    url("ledger", "operator")
}

/// Starts an operator that uses a ledger, with these flags.
pub fn operator(ground: &Ground, url: &str, flags: &[&str]) -> Operator {
    ground.operator(&[&["--api-listen", "127.0.0.1:0", "--ledger-url", url], flags].concat())
}

/// A ground with a ledger, and an operator that uses it.
pub struct Metered {
    pub ground: Ground,
    pub operator: Operator,
    pub url: String,
}

impl Metered {
    /// Starts one, with these flags.
    pub async fn start(flags: &[&str]) -> Self {
        let ground = Ground::start(Options { audit: true, ..Options::default() }).await;
        let url = ledger_on(ground.cluster.postgres()).await;
        let operator = operator(&ground, &url, flags);
        ground.examples().await;
        Self { ground, operator, url }
    }

    pub fn ledger(&self) -> Ledger {
        Ledger::new(&self.url, 2).expect("a ledger")
    }
}

/// The ground that most tests of usage share, on which status follows usage without a pause.
pub async fn shared() -> (&'static Metered, Client) {
    static SHARED: OnceLock<Metered> = OnceLock::new();
    let make = || {
        let ready = std::thread::spawn(|| {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(Metered::start(&["--usage-interval", "10ms"]))
        });
        ready.join().expect("a ground")
    };
    let metered = match SHARED.get() {
        Some(metered) => metered,
        None => tokio::task::spawn_blocking(move || SHARED.get_or_init(make)).await.expect("a ground"),
    };
    let client = metered.ground.cluster.client().await.expect("a client");
    (metered, client)
}

/// An Application of its own, with the meters users (10 at most), accounts and emails (a Total).
pub async fn counting(client: &Client, name: &str) {
    let meters = json!([
        {"name": "users", "kind": "Level"},
        {"name": "accounts", "kind": "Level"},
        {"name": "emails", "kind": "Total"},
    ]);
    application(client, name, json!({"meters": meters})).await;
    let limits = json!({"users": {"max": 10, "policy": "Hard"}, "accounts": null, "opportunities": null});
    plan(client, name, json!({"limits": limits})).await;
}

/// Brings usage of one tenant into the ledger, as its relay would.
pub struct Relay<'a> {
    metered: &'a Metered,
    ledger: Ledger,
    tenant: String,
    database: String,
    source: String,
    periods: Periods,
}

impl<'a> Relay<'a> {
    /// For a tenant that the ledger knows; waits until it does.
    pub async fn of(metered: &'a Metered, tenant: &Tenant) -> Self {
        let (ledger, id) = (metered.ledger(), id(tenant));
        let known = eventually(async || {
            let directory = ledger.directory(std::slice::from_ref(&id)).await.ok()?;
            directory.tenants.into_iter().next()
        });
        let known = known.await.expect("the operator registers its tenants");
        let database = place(tenant).0;
        let periods = Periods::new(known.anchor, &known.time_zone).expect("a zone");
        Self { metered, ledger, source: format!("/tenantry/main/{database}"), tenant: id, database, periods }
    }

    fn event(&self, id: &str, at: Timestamp, meter: &str, delta: i64, counted: Counted) -> LedgerEvent {
        let period = self.periods.containing(at);
        LedgerEvent {
            id: id.to_owned(),
            source: self.source.clone(),
            tenant: self.tenant.clone(),
            at,
            period_start: period.start,
            period_end: period.end,
            usage: Usage { meter: meter.to_owned(), delta, counted: Some(counted) },
        }
    }

    /// An event that never was in the database: sequence and value are what the test says.
    pub async fn says(&self, at: Timestamp, meter: &str, sequence: i64, delta: i64, value: i64) -> Outcome {
        let counted = Counted {
            kind: UsageKind::Add,
            epoch: 1,
            sequence,
            value,
            subject: None,
            reason: None,
            actor: None,
            period_start: None,
            folded: None,
        };
        let event = self.event(&uuid::Uuid::new_v4().to_string(), at, meter, delta, counted);
        self.ledger.ingest(&[event]).await.expect("taken")[0]
    }

    /// A mark of now.
    pub async fn marks(&self, meter: &str, epoch: i32, sequence: i64, value: i64) {
        let mark = Mark { meter: meter.to_owned(), epoch, sequence, value };
        let mark = LedgerMark { tenant: self.tenant.clone(), as_of: Timestamp::now(), mark };
        self.ledger.mark(&[mark]).await.expect("taken");
    }

    /// Says that nothing waits, or that events were refused.
    pub async fn reports(&self, report: &OutboxReport) {
        self.ledger.report("main", &self.database, report).await.expect("taken");
    }

    /// Carries what waits in the database into the ledger, with marks; how many events.
    pub async fn carries(&self) -> usize {
        let root = superuser(&self.metered.ground, &self.database).await;
        let rows = root
            .query(
                "SELECT event_id::text, meter, epoch, sequence, kind, delta, value, reason, actor, occurred_at, period_start
                   FROM tenantry.outbox WHERE acked_at IS NULL AND dead_at IS NULL AND tenant = $1
                  ORDER BY meter, epoch, sequence",
                &[&self.tenant],
            )
            .await
            .expect("the outbox");
        let kinds = [UsageKind::Add, UsageKind::Set, UsageKind::Correct, UsageKind::Restore];
        for row in &rows {
            let kind: String = row.get("kind");
            let counted = Counted {
                kind: kinds.into_iter().find(|it| it.as_str() == kind).expect("a kind"),
                epoch: row.get("epoch"),
                sequence: row.get("sequence"),
                value: row.get("value"),
                subject: None,
                reason: row.get("reason"),
                actor: row.get("actor"),
                period_start: row.get("period_start"),
                folded: None,
            };
            let event =
                self.event(row.get("event_id"), row.get("occurred_at"), row.get("meter"), row.get("delta"), counted);
            self.ledger.ingest(&[event]).await.expect("taken");
        }
        let acknowledge = "UPDATE tenantry.outbox SET acked_at = clock_timestamp(), attempts = attempts + 1
                            WHERE acked_at IS NULL AND dead_at IS NULL AND tenant = $1";
        root.execute(acknowledge, &[&self.tenant]).await.expect("acknowledged");
        let progress = "SELECT meter, epoch, sequence, value FROM tenantry.meter WHERE tenant = $1";
        for row in root.query(progress, &[&self.tenant]).await.expect("meters") {
            self.marks(row.get(0), row.get(1), row.get(2), row.get(3)).await;
        }
        rows.len()
    }
}

/// So long ago.
pub fn ago(days: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_hours(24 * days)
}
