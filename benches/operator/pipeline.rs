//! (j), (k): from a tenant's transaction through relay, API and ledger into its status.

use std::{
    fs::File,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use devcluster::Postgres;
use futures::{StreamExt as _, TryStreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::{
    Api,
    runtime::{WatchStreamExt as _, watcher},
};
use tenantry::{api::Tenant, metering::ledger::Ledger};
use tokio_postgres::{Client, NoTls};

use crate::{
    ground::{Ground, Operator, eventually},
    onboarding::tenants,
    report::{Report, quantile},
    tenants::{Watch, create_all},
};

/// How many events wait when the relay is started.
const WAITING: usize = 200_000;
/// How many tenants count.
const TENANTS: usize = 100;
/// How many of a call's events are made in one transaction.
const CALLS: usize = 1_000;
/// Between two changes of the meter whose way is timed: none waits for another.
const PAUSE: Duration = Duration::from_millis(250);

/// The operator with a ledger, its relay stopped, and tenants that may count.
struct Pipeline {
    operator: Operator,
    api: String,
    ledger: Ledger,
    clients: Vec<(String, String, Client)>,
    superuser: Client,
}

/// Measures the relay's drain, and the way of single changes.
pub async fn measure(ground: &Ground, report: &mut Report) -> Result<()> {
    let pipeline = Pipeline::start(ground).await?;
    pipeline.fill().await?;
    let start = Instant::now();
    let mut relay = Relay::start(ground, &pipeline.api).await?;
    let mut last = Instant::now();
    eventually("the outbox is empty", async || {
        let row = pipeline.superuser.query_one("SELECT EXISTS (SELECT FROM tenantry.outbox_pending)", &[]).await?;
        last = Instant::now();
        Ok((!row.get::<_, bool>(0)).then_some(()))
    })
    .await?;
    let rate = WAITING as f64 / last.duration_since(start).as_secs_f64();
    report.add(
        "j",
        &format!("{WAITING} events that waited, through one relay into the ledger"),
        format!("{rate:.0}/s"),
        "20,000/s",
    );
    pipeline.time(ground, report).await?;
    relay.stop();
    drop(pipeline.operator);
    Ok(())
}

impl Pipeline {
    async fn start(ground: &Ground) -> Result<Self> {
        let postgres = ground.cluster.postgres();
        let ledger_url = ledger(postgres).await?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let operator = ground.operator(&["--ledger-url", &ledger_url, "--api-listen", &listen])?;
        ground.await_server("main").await?;
        let watch = Watch::tenants(&ground.client).await?;
        create_all(&ground.client, tenants("pooled", "meter", TENANTS)).await?;
        watch.await_holding("meterpooled", TENANTS).await?;
        let mut clients = Vec::new();
        for tenant in Api::<Tenant>::all(ground.client.clone()).list(&Default::default()).await? {
            let name = tenant.metadata.name.clone().unwrap_or_default();
            let status = tenant.status.unwrap_or_default();
            let (Some(id), Some(secret)) = (status.id, status.database.and_then(|database| database.secret_ref)) else {
                continue;
            };
            if name.starts_with("meterpooled") {
                let secrets = Api::<Secret>::namespaced(ground.client.clone(), &secret.namespace);
                clients.push((name, id, of_secret(postgres, &secrets.get(&secret.name).await?).await?));
            }
        }
        let database = clients.first().context("tenants")?.2.query_one("SELECT current_database()::text", &[]).await?;
        let superuser = superuser(postgres, database.get(0)).await?;
        Ok(Self { operator, api: format!("http://{listen}"), ledger: Ledger::new(&ledger_url, 1)?, clients, superuser })
    }

    /// Lets events wait: each one call of `record_usage`.
    async fn fill(&self) -> Result<()> {
        let each = WAITING / self.clients.len();
        let statement =
            format!("SELECT count(record_usage('accounts', n % 2, NULL)) FROM generate_series(1, {CALLS}) AS n");
        let fill = self.clients.iter().map(|(_, _, client)| {
            let statement = &statement;
            async move {
                for _ in 0..each / CALLS {
                    client.batch_execute(statement).await?;
                }
                anyhow::Ok(())
            }
        });
        futures::stream::iter(fill).buffer_unordered(8).try_collect::<Vec<_>>().await?;
        Ok(())
    }

    /// From the commit of a change until the ledger and until status tell of it, each tenant once.
    async fn time(&self, ground: &Ground, report: &mut Report) -> Result<()> {
        // What was drained has been told by then, and the pause after each status is over.
        tokio::time::sleep(Duration::from_secs(15)).await;
        let (mut ledger, mut status) = (Vec::new(), Vec::new());
        let all = Api::<Tenant>::all(ground.client.clone());
        let events = watcher(all, watcher::Config::default()).default_backoff().applied_objects();
        pin_mut!(events);
        for (name, id, client) in &self.clients {
            client.batch_execute("SELECT record_usage('users', 1, NULL)").await?;
            let committed = Instant::now();
            let in_ledger = async {
                eventually("the ledger has it", async || {
                    let states = self.ledger.usage(std::slice::from_ref(id)).await?;
                    Ok(states.iter().any(|it| it.meter == "users" && it.value == 1).then(|| committed.elapsed()))
                })
                .await
            };
            let in_status = async {
                while let Some(tenant) = events.try_next().await? {
                    let usage = tenant.status.as_ref().and_then(|status| status.usage.as_ref());
                    let users = usage.and_then(|usage| usage.meters.iter().find(|meter| meter.name == "users"));
                    if tenant.metadata.name.as_ref() == Some(name) && users.is_some_and(|users| users.current == 1) {
                        return anyhow::Ok(committed.elapsed());
                    }
                }
                anyhow::bail!("the watch has ended")
            };
            let (one, other) = tokio::try_join!(in_ledger, in_status)?;
            ledger.push(one.as_secs_f64());
            status.push(other.as_secs_f64());
            tokio::time::sleep(PAUSE).await;
        }
        for (what, times, goal) in [("the ledger", &mut ledger, "1 s"), ("Tenant status", &mut status, "2 s")] {
            report.add(
                "k",
                &format!("from the commit of record_usage until {what} has it ({} times)", times.len()),
                format!("p50 {:.3} s, p99 {:.3} s", quantile(times, 0.5), quantile(times, 0.99)),
                goal,
            );
        }
        Ok(())
    }
}

/// A relay of DatabaseServer main, as the ServiceAccount that the operator has made for it.
pub struct Relay(Child);

impl Relay {
    pub async fn start(ground: &Ground, api: &str) -> Result<Self> {
        let namespace = "tenantry-relay-main";
        let accounts = Api::<ServiceAccount>::namespaced(ground.client.clone(), namespace);
        eventually("the relay's ServiceAccount is there", async || Ok(accounts.get_opt("relay").await?)).await?;
        let kubeconfig = ground.cluster.service_account_kubeconfig(namespace, "relay").await?;
        let token = ground.cluster.service_account_token(namespace, "relay", Some("tenantry")).await?;
        let token_file: PathBuf = ground.cluster.dir().join("relay-token");
        std::fs::write(&token_file, token)?;
        let log = File::options().create(true).append(true).open(ground.cluster.dir().join("log/relay.log"))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenantry"));
        command
            .args(["relay", "--server", "main", "--namespace", namespace, "--listen", "127.0.0.1:0", "--api-url", api])
            .arg("--token-file")
            .arg(token_file)
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Self(command.spawn().context("start the relay")?))
    }

    pub fn stop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An empty ledger; how the operator reaches it.
pub async fn ledger(postgres: &Postgres) -> Result<String> {
    let client = superuser(postgres, "postgres").await?;
    client.batch_execute("DROP DATABASE IF EXISTS ledger WITH (FORCE)").await?;
    client.batch_execute("DROP ROLE IF EXISTS ledger_owner, ledger_login").await?;
    for statement in [
        "CREATE ROLE ledger_owner LOGIN PASSWORD 'owner'",
        "CREATE ROLE ledger_login LOGIN PASSWORD 'login'",
        "CREATE DATABASE ledger OWNER ledger_owner",
        "REVOKE ALL ON DATABASE ledger FROM PUBLIC",
    ] {
        client.batch_execute(statement).await?;
    }
    let url = postgres.url("ledger_login", "login", "ledger");
    Ledger::migrate_for(&postgres.url("ledger_owner", "owner", "ledger"), &url).await?;
    Ok(url)
}

pub async fn superuser(postgres: &Postgres, database: &str) -> Result<Client> {
    connect(postgres, "postgres", postgres.superuser_password(), database).await
}

/// A session as a tenant's application has it.
async fn of_secret(postgres: &Postgres, secret: &Secret) -> Result<Client> {
    let text = |key: &str| {
        let value = secret.data.as_ref().and_then(|data| data.get(key)).context("a key of the Secret")?;
        anyhow::Ok(String::from_utf8(value.0.clone())?)
    };
    connect(postgres, &text("username")?, &text("password")?, &text("database")?).await
}

async fn connect(postgres: &Postgres, user: &str, password: &str, database: &str) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config.host(postgres.host()).port(postgres.port()).user(user).password(password).dbname(database);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
