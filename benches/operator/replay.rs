//! The ceiling: a bare client that makes the API writes and the SQL that were recorded of the
//! operator, for as many tenants, with the best concurrency there is.
//!
//! It decides nothing, watches nothing and keeps nothing. What it makes are real tenants: an
//! operator that is started afterwards finds nothing to change in them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use axum::http::Request;
use data_encoding::BASE64URL_NOPAD;
use devcluster::Postgres;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rand::Rng as _;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use sha2::Digest as _;
use tenantry::database::{Password, TenantId};
use tokio::sync::{Mutex, Semaphore};
use tokio_postgres::{Client as Sql, types::Type};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    ground::Ground,
    processors::Usage,
    record::{Call, Recipe, Step, replaced},
    statements::Statement,
    tenants::{Watch, create, tenant},
};

/// What the server answers when others were in the way (SQLSTATE): the operator asks again, too.
const IN_THE_WAY: [&str; 4] = ["40001", "40P01", "55006", "XX000"];
/// How often it is asked again.
const TRIES: usize = 20;

/// Makes tenants by a recipe.
pub struct Replay<'a> {
    ground: &'a Ground,
    client: kube::Client,
    recipe: &'a Recipe,
    postgres: &'a Postgres,
    tls: MakeRustlsConnect,
    /// Connections as the admin that wait for use, by database.
    idle: Mutex<HashMap<String, Vec<Sql>>>,
    deployments: Option<&'a Watch>,
}

/// A tenant to be made: what stands for what was recorded, prepared before the clock runs.
struct Made {
    name: String,
    pool: Option<String>,
    password: String,
    verifier: String,
    /// The same for the login that migrates: of one round, as the operator makes it.
    quick_verifier: String,
    digest: String,
}

impl<'a> Replay<'a> {
    /// `deployments` is a watch of condition Available, for a tier with workloads of its own.
    pub async fn new(ground: &'a Ground, recipe: &'a Recipe, deployments: Option<&'a Watch>) -> Result<Self> {
        let postgres = ground.cluster.postgres();
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(postgres.ca_pem().as_bytes()) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = MakeRustlsConnect::new(config.with_root_certificates(roots).with_no_client_auth());
        let client = ground.cluster.service_account_client(crate::ground::NAMESPACE, "tenantry").await?;
        Ok(Self { ground, client, recipe, postgres, tls, idle: Mutex::default(), deployments })
    }

    /// Makes `count` tenants, at most `concurrency` at a time; returns how long that took.
    /// Pooled tenants go to the pools in turn.
    pub async fn make(&self, prefix: &str, count: usize, concurrency: usize, pools: &[String]) -> Result<Duration> {
        let tenants: Vec<Made> = (0..count).map(|number| prepared(prefix, number, pools)).collect();
        let slots = Arc::new(Semaphore::new(concurrency));
        let start = Instant::now();
        let making = tenants.iter().map(|made| self.one(made, &slots));
        // Those that wait for their workload hold no slot.
        stream::iter(making).buffer_unordered(count.max(1)).try_collect::<()>().await?;
        Ok(start.elapsed())
    }

    async fn one(&self, made: &Made, slots: &Semaphore) -> Result<()> {
        let mut slot = Some(slots.acquire().await?);
        let body = tenant(&made.name, "crm", self.recipe.tier);
        let uid = create(&self.ground.client, &body).await?;
        let id = TenantId::from_uid(&uid).to_string();
        let replace = |text: &str| self.replaced(text, made, &uid, &id);
        let mut own: HashMap<&str, Sql> = HashMap::new();
        let is_status = |step: &Step| matches!(step, Step::Call(call) if call.path.contains("/tenants/") && call.path.contains("/status"));
        let last = self.recipe.steps.iter().rposition(is_status).context("the last write is a status")?;
        for (at, step) in self.recipe.steps.iter().enumerate() {
            match step {
                Step::Call(call) => {
                    if at == last
                        && let Some(deployments) = self.deployments
                    {
                        // The last write says that the tenant is Ready, which takes its pods.
                        drop(slot.take());
                        let namespace = format!("{}/", replace(&self.namespace()?));
                        deployments.await_holding(&namespace, 1).await?;
                        slot = Some(slots.acquire().await?);
                    }
                    self.call(call, &replace).await?;
                }
                Step::Statement(statement) => {
                    let database = replace(&statement.database);
                    let is_admin = statement.user == self.postgres.admin().user;
                    if is_admin && database == statement.database || self.is_pools(statement) {
                        let connection = self.take(&database).await?;
                        self.send(&connection, statement, &replace).await?;
                        self.idle.lock().await.entry(database).or_default().push(connection);
                        continue;
                    }
                    if !own.contains_key(statement.session.as_str()) {
                        let user = replace(&statement.user);
                        let admin = self.postgres.admin();
                        let password = if is_admin { &admin.password } else { &made.password };
                        own.insert(&statement.session, self.connect(&user, password, &database).await?);
                    }
                    self.send(&own[statement.session.as_str()], statement, &replace).await?;
                    let again = self.recipe.steps[at + 1..]
                        .iter()
                        .any(|later| matches!(later, Step::Statement(later) if later.session == statement.session));
                    if !again {
                        own.remove(statement.session.as_str());
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether it was sent by the admin to the pool's database.
    fn is_pools(&self, statement: &Statement) -> bool {
        let pool = self.recipe.pool.as_ref();
        statement.user == self.postgres.admin().user
            && pool.is_some_and(|pool| statement.database == tenantry::api::Pool::database_name(pool))
    }

    fn namespace(&self) -> Result<String> {
        let path = self.recipe.steps.iter().find_map(|step| match step {
            Step::Call(call) if call.path.contains("/deployments/") => Some(&call.path),
            _ => None,
        });
        let rest = path.and_then(|path| path.split_once("/namespaces/")).context("a Deployment is in a namespace")?.1;
        Ok(rest.split('/').next().unwrap_or_default().to_owned())
    }

    fn replaced(&self, text: &str, made: &Made, uid: &str, id: &str) -> String {
        let recipe = self.recipe;
        let mut text = text
            .replace(&recipe.name, &made.name)
            // Without its prefix, which a database's name hasn't.
            .replace(recipe.id.trim_start_matches("t_"), id.trim_start_matches("t_"))
            .replace(&recipe.uid, uid)
            .replace(&recipe.password, &made.password)
            .replace(&recipe.digest, &made.digest);
        if let (Some(recorded), Some(pool)) = (&recipe.pool, &made.pool) {
            text = text.replace(recorded, pool).replace(&recorded.replace('-', "_"), &pool.replace('-', "_"));
        }
        with_verifiers(&text, made)
    }

    async fn call(&self, call: &Call, replace: &impl Fn(&str) -> String) -> Result<()> {
        let body = replaced(&call.body, replace)?;
        let path = replace(&call.path);
        let mut tries = 100;
        loop {
            let request = Request::builder()
                .method(call.method.clone())
                .uri(&path)
                .header("content-type", &call.content_type)
                .body(kube::client::Body::from(body.clone().into_bytes()))?;
            let answer = self.client.send(request).await?;
            let status = answer.status();
            let text = answer.into_body().collect_bytes().await?;
            match status.as_u16() {
                200..300 => return Ok(()),
                // The API server takes a moment to know of rights that were just given.
                403 if tries > 0 => tokio::time::sleep(Duration::from_millis(10)).await,
                _ => bail!("{} {path}: {status}: {}", call.method, String::from_utf8_lossy(&text)),
            }
            tries -= 1;
        }
    }

    async fn send(&self, connection: &Sql, statement: &Statement, replace: &impl Fn(&str) -> String) -> Result<()> {
        let text = replace(&statement.text);
        let values: Option<Vec<String>> =
            statement.parameters.as_ref().map(|values| values.iter().map(|value| replace(value)).collect());
        let mut tries = TRIES;
        loop {
            match query(connection, &text, values.as_deref()).await {
                Err(error) if tries > 0 && error.code().is_some_and(|code| IN_THE_WAY.contains(&code.code())) => {
                    // What failed inside a transaction leaves it open.
                    connection.batch_execute("ROLLBACK").await?;
                    tries -= 1;
                }
                answer => return answer.with_context(|| format!("{}: {text}", statement.database)),
            }
        }
    }

    /// An idle connection as the admin, or a new one.
    async fn take(&self, database: &str) -> Result<Sql> {
        if let Some(idle) = self.idle.lock().await.get_mut(database).and_then(Vec::pop) {
            return Ok(idle);
        }
        let admin = self.postgres.admin();
        self.connect(&admin.user, &admin.password, database).await
    }

    async fn connect(&self, user: &str, password: &str, database: &str) -> Result<Sql> {
        let mut config = tokio_postgres::Config::new();
        config.host(self.postgres.host()).port(self.postgres.port()).user(user).password(password).dbname(database);
        let (client, connection) =
            config.connect(self.tls.clone()).await.with_context(|| format!("log in as {user}"))?;
        tokio::spawn(async move { connection.await.ok() });
        Ok(client)
    }
}

/// Sends what was recorded: a script, or one statement with its values.
async fn query(
    connection: &Sql,
    text: &str,
    values: Option<&[String]>,
) -> std::result::Result<(), tokio_postgres::Error> {
    let Some(values) = values else { return connection.simple_query(text).await.map(drop) };
    if text.contains("ANY ($1)") {
        let list: Vec<String> =
            values.iter().flat_map(|it| it.trim_matches(['{', '}']).split(',')).map(str::to_owned).collect();
        return connection.query_typed(text, &[(&list, Type::TEXT_ARRAY)]).await.map(drop);
    }
    let typed: Vec<_> =
        values.iter().map(|value| (value as &(dyn tokio_postgres::types::ToSql + Sync), Type::TEXT)).collect();
    connection.query_typed(text, &typed).await.map(drop)
}

/// A text with each recorded verifier replaced by one of this tenant's that costs the server as
/// much: its time goes with the rounds.
fn with_verifiers(text: &str, made: &Made) -> String {
    const VERIFIER: &str = "SCRAM-SHA-256$";
    let mut parts = text.split(VERIFIER);
    let mut replaced = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        replaced.push_str(if part.starts_with("1:") { &made.quick_verifier } else { &made.verifier });
        replaced.push_str(&part[part.find('\'').unwrap_or(part.len())..]);
    }
    replaced
}

fn prepared(prefix: &str, number: usize, pools: &[String]) -> Made {
    let mut random = [0; 24];
    rand::rng().fill_bytes(&mut random);
    let password = BASE64URL_NOPAD.encode(&random);
    Made {
        name: format!("{prefix}{number:05}"),
        pool: (!pools.is_empty()).then(|| pools[number % pools.len()].clone()),
        verifier: postgres_protocol::password::scram_sha_256(password.as_bytes()),
        quick_verifier: Password::new(password.as_str()).verifier_for_us(),
        digest: data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(password.as_bytes())),
        password,
    }
}

/// What the bare client reached.
pub struct Ceiling {
    /// Tenants per second.
    pub rate: f64,
    /// How many tenants at a time that took.
    pub concurrency: usize,
    /// Processor time of all programs per tenant, in milliseconds.
    pub processor: f64,
    /// The same by program.
    pub shares: String,
}

/// How many tenants at a time a bare client is tried with.
#[derive(Clone, Copy)]
pub struct Levels {
    /// It begins with so many, and doubles them.
    pub first: usize,
    /// Beyond these nothing is tried.
    pub most: usize,
}

impl Levels {
    /// How many tries there are at most.
    pub fn tries(self) -> usize {
        (self.most / self.first).ilog2() as usize + 1
    }
}

/// The best rate there is: tries a concurrency with a fifth of the tenants, and doubles it until
/// two in a row were no better than the best; then makes as many as the operator will, with that.
pub async fn ceiling(
    replay: &Replay<'_>,
    prefix: &str,
    count: usize,
    levels: Levels,
    pools: &[String],
) -> Result<Ceiling> {
    ensure!(count > 0, "a ceiling takes tenants");
    let tier = replay.recipe.tier;
    let part = part(count);
    let (mut best, mut level) = ((0.0, levels.first), levels.first);
    while level <= levels.most && level <= best.1 * 4 {
        let took = replay.make(&format!("{prefix}l{level}x"), part, level, pools).await?;
        let rate = part as f64 / took.as_secs_f64();
        println!("  ceiling of {tier}: {rate:.1} tenants/s at {level} at a time");
        if rate > best.0 {
            best = (rate, level);
        }
        level *= 2;
    }
    if best.1 * 2 > levels.most {
        println!("  ceiling of {tier}: the most at a time that is tried was the best; more may be better still");
    }
    let before = Usage::now(replay.ground, None)?;
    let took = replay.make(&format!("{prefix}best"), count, best.1, pools).await?;
    let (total, shares) = Usage::now(replay.ground, None)?.since(&before, count);
    println!("  processor time per {tier} tenant of the bare client: {total:.1} ms ({shares})");
    let rate = count as f64 / took.as_secs_f64();
    println!("  ceiling of {tier}: {rate:.1} tenants/s at {} at a time, {count} tenants", best.1);
    Ok(Ceiling { rate, concurrency: best.1, processor: total, shares })
}

/// With how many tenants a concurrency is tried.
pub fn part(count: usize) -> usize {
    (count / 5).max(1)
}
