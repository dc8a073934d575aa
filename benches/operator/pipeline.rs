//! (j), (k): from a tenant's transaction through relay, API and ledger to those who read: over HTTP
//! from the API, and from its status.

use std::{
    fs::File,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use devcluster::Postgres;
use futures::{StreamExt as _, TryStreamExt as _, pin_mut};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    header::{AUTHORIZATION, HeaderValue},
};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::{
    Api,
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tenantry::{
    api::{Tenant, TenantUsage},
    metering::ledger::Ledger,
    web::UsageReading,
};
use tokio_postgres::{Client, NoTls};

use crate::{
    ground::{Ground, Operator, PATIENCE, eventually},
    onboarding::tenants,
    report::{Report, quantile},
    tenants::{Watch, create_all},
};

/// How many of a tenant's events are made in one transaction.
const CALLS: usize = 1_000;
/// How often a status is written at most, as the operator has it by itself (`--usage-interval`).
/// A time in a status is in whole seconds.
const INTERVAL: SignedDuration = SignedDuration::from_secs(11);
/// How long a reader waits after an answer until it asks again.
const AGAIN: Duration = Duration::from_millis(5);
/// Between two changes of the meter whose way is timed: none waits for another.
const PAUSE: Duration = Duration::from_millis(250);

/// The operator with a ledger, its relay stopped, and tenants that may count.
struct Pipeline {
    operator: Operator,
    api: String,
    clients: Vec<(String, Client)>,
    superuser: Client,
}

/// Measures the relay's drain of about `waiting` events of so many tenants, and the way of single
/// changes.
pub async fn measure(ground: &Ground, report: &mut Report, tenants: usize, waiting: usize) -> Result<()> {
    let calls = waiting / CALLS / tenants.max(1);
    ensure!(tenants > 0 && calls > 0, "of each tenant {CALLS} events wait at least: raise --waiting");
    let waiting = calls * CALLS * tenants;
    let pipeline = Pipeline::start(ground, tenants).await?;
    pipeline.fill(calls).await?;
    let start = Instant::now();
    let mut relay = Relay::start(ground, &pipeline.api).await?;
    let mut last = Instant::now();
    eventually("the outbox is empty", async || {
        let row = pipeline.superuser.query_one("SELECT EXISTS (SELECT FROM tenantry.outbox_pending)", &[]).await?;
        last = Instant::now();
        Ok((!row.get::<_, bool>(0)).then_some(()))
    })
    .await?;
    let rate = waiting as f64 / last.duration_since(start).as_secs_f64();
    report.add(
        "j",
        &format!("{waiting} events that waited, through one relay into the ledger"),
        format!("{rate:.0}/s"),
        "20,000/s",
    );
    pipeline.time(ground, report).await?;
    relay.stop();
    drop(pipeline.operator);
    Ok(())
}

impl Pipeline {
    async fn start(ground: &Ground, count: usize) -> Result<Self> {
        let postgres = ground.cluster.postgres();
        let ledger_url = ledger(postgres).await?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let operator = ground.operator(&["--ledger-url", &ledger_url, "--api-listen", &listen])?;
        ground.await_server("main").await?;
        let watch = Watch::tenants(&ground.client).await?;
        create_all(&ground.client, tenants("pooled", "meter", count)).await?;
        watch.await_holding("meterpooled", count).await?;
        let mut clients = Vec::new();
        for tenant in Api::<Tenant>::all(ground.client.clone()).list(&Default::default()).await? {
            let name = tenant.metadata.name.clone().unwrap_or_default();
            let status = tenant.status.unwrap_or_default();
            let Some(secret) = status.database.and_then(|database| database.secret_ref) else { continue };
            if name.starts_with("meterpooled") {
                let secrets = Api::<Secret>::namespaced(ground.client.clone(), &secret.namespace);
                clients.push((name, of_secret(postgres, &secrets.get(&secret.name).await?).await?));
            }
        }
        let database = clients.first().context("tenants")?.1.query_one("SELECT current_database()::text", &[]).await?;
        let superuser = superuser(postgres, database.get(0)).await?;
        Ok(Self { operator, api: format!("http://{listen}"), clients, superuser })
    }

    /// Lets events wait: each one call of `record_usage`, in so many transactions of each tenant.
    async fn fill(&self, calls: usize) -> Result<()> {
        let statement =
            format!("SELECT count(record_usage('accounts', n % 2, NULL)) FROM generate_series(1, {CALLS}) AS n");
        let fill = self.clients.iter().map(|(_, client)| {
            let statement = &statement;
            async move {
                for _ in 0..calls {
                    client.batch_execute(statement).await?;
                }
                anyhow::Ok(())
            }
        });
        futures::stream::iter(fill).buffer_unordered(8).try_collect::<Vec<_>>().await?;
        Ok(())
    }

    /// Waits until the tenants' statuses tell of all that was drained, and may be written again at
    /// once.
    async fn settled(&self, ground: &Ground) -> Result<()> {
        let all = Api::<Tenant>::all(ground.client.clone());
        for (name, client) in &self.clients {
            let row = client.query_one("SELECT value FROM my_limits() WHERE meter = 'accounts'", &[]).await?;
            let wanted: i64 = row.get(0);
            eventually("a status tells of what was drained", async || {
                let Some(usage) = all.get(name).await?.status.and_then(|status| status.usage) else { return Ok(None) };
                let is_over = Timestamp::now().duration_since(usage.as_of.0) > INTERVAL;
                Ok((count(&usage, "accounts") == Some(wanted) && is_over).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// From the commit of a change until it is read from the API, and until status tells of it, each
    /// tenant once.
    ///
    /// The API is polled over HTTP on a connection that is kept, as a billing job does it: it is
    /// asked again [`AGAIN`] after each answer. So what is measured includes the time of an answer,
    /// and up to that pause.
    async fn time(&self, ground: &Ground, report: &mut Report) -> Result<()> {
        self.settled(ground).await?;
        let reader = Reader::start(ground, &self.api).await?;
        if let Some((name, _)) = self.clients.first() {
            // The authorizer hears of the right by a watch of its own.
            eventually("usage may be read", async || Ok(reader.users(name).await?.map(drop))).await?;
        }
        let (mut read, mut status) = (Vec::new(), Vec::new());
        let all = Api::<Tenant>::all(ground.client.clone());
        let events = watcher(all, watcher::Config::default()).default_backoff().applied_objects();
        pin_mut!(events);
        for (name, client) in &self.clients {
            client.batch_execute("SELECT record_usage('users', 1, NULL)").await?;
            let committed = Instant::now();
            let in_answer = async {
                while reader.users(name).await? != Some(1) {
                    ensure!(committed.elapsed() < PATIENCE, "waited in vain until the API tells of a change");
                    tokio::time::sleep(AGAIN).await;
                }
                Ok(committed.elapsed())
            };
            let in_status = async {
                while let Some(tenant) = events.try_next().await? {
                    let usage = tenant.status.as_ref().and_then(|status| status.usage.as_ref());
                    let users = usage.and_then(|usage| count(usage, "users"));
                    if tenant.metadata.name.as_ref() == Some(name) && users == Some(1) {
                        return anyhow::Ok(committed.elapsed());
                    }
                }
                bail!("the watch has ended")
            };
            let (one, other) = tokio::try_join!(in_answer, in_status)?;
            read.push(one.as_secs_f64());
            status.push(other.as_secs_f64());
            tokio::time::sleep(PAUSE).await;
        }
        for (what, times, goal) in [("the API", &mut read, "1 s"), ("Tenant status", &mut status, "2 s")] {
            report.add(
                "k",
                &format!("from the commit of record_usage until {what} tells of it ({} times)", times.len()),
                format!("p50 {:.3} s, p99 {:.3} s", quantile(times, 0.5), quantile(times, 0.99)),
                goal,
            );
        }
        Ok(())
    }
}

/// The current count of a meter.
fn count(usage: &TenantUsage, meter: &str) -> Option<i64> {
    usage.meters.iter().find(|it| it.name == meter).map(|it| it.current)
}

/// A billing job that reads usage over HTTP.
struct Reader {
    http: HttpClient<HttpConnector, Empty<Bytes>>,
    api: String,
    authorization: HeaderValue,
}

impl Reader {
    async fn start(ground: &Ground, api: &str) -> Result<Self> {
        let account = json!({"name": "invoicer", "namespace": "billing"});
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "tenantry-viewer"});
        for object in [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "billing"}}),
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": "invoicer"}, "roleRef": role,
                "subjects": [{"kind": "ServiceAccount", "name": "invoicer", "namespace": "billing"}],
            }),
        ] {
            ground.apply(&object).await?;
        }
        let token = ground.cluster.service_account_token("billing", "invoicer", Some("tenantry")).await?;
        Ok(Self {
            http: HttpClient::builder(TokioExecutor::new()).build_http(),
            api: api.to_owned(),
            authorization: HeaderValue::from_str(&format!("Bearer {token}"))?,
        })
    }

    /// How many users a tenant has; nothing while it may not be read.
    async fn users(&self, tenant: &str) -> Result<Option<i64>> {
        let request = Request::get(format!("{}/v1/tenants/{tenant}/usage", self.api));
        let request = request.header(AUTHORIZATION, &self.authorization).body(Empty::new())?;
        let answer = self.http.request(request).await.context("ask the API for usage")?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if status == StatusCode::FORBIDDEN {
            return Ok(None);
        }
        ensure!(status == StatusCode::OK, "the API answered {status}: {}", String::from_utf8_lossy(&body));
        let reading: UsageReading = serde_json::from_slice(&body)?;
        Ok(reading.usage.as_ref().and_then(|usage| count(usage, "users")))
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
