//! Credentials are rotated without a failed login at any moment.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use devcluster::Options;
use kube::Client;
use serde_json::{Value, json};
use tenantry::api::Tenant;
use tokio::task::JoinHandle;

use super::{
    ground::{Ground, await_tenant, credentials, eventually, is, ready_tenant},
    proxy::{Moment, Proxy},
    verbs::{delete, id, log_in, named, ours, patch, place, rows, superuser},
};

/// How late a client reads what the agent wrote.
const DELAY: Duration = Duration::from_millis(1_500);

type Credentials = BTreeMap<String, String>;

/// `tenantry agent` as a process.
struct Agent {
    child: Child,
    dir: PathBuf,
}

impl Agent {
    fn start(ground: &Ground, namespace: &str) -> Self {
        let dir = ground.cluster.dir().join("agent");
        let log = std::fs::File::create(ground.cluster.dir().join("log/agent.log")).expect("a log file");
        let child = Command::new(env!("CARGO_BIN_EXE_tenantry"))
            .args(["agent", "--namespace", namespace, "--dir"])
            .arg(&dir)
            .env("KUBECONFIG", ground.cluster.kubeconfig())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the agent starts");
        Self { child, dir }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the files say, all of one version.
fn files(dir: &Path, host: &str) -> Option<Credentials> {
    let folder = std::fs::canonicalize(dir.join("hosts").join(host)).ok()?;
    let read = |key: &str| Some((key.to_owned(), std::fs::read_to_string(folder.join(key)).ok()?));
    ["host", "port", "database", "username", "password", "ca.crt"].into_iter().map(read).collect()
}

/// A client that logs in again and again with what the files said a while ago.
struct Reader {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(usize, BTreeSet<String>, Vec<String>)>,
}

impl Reader {
    async fn start(agent: &Agent, tenant: &str, delay: Duration) -> Self {
        let (dir, host) = (agent.dir.clone(), format!("{tenant}.crm.example.com"));
        let first = eventually(async || files(&dir, &host)).await.expect("the tenant's files");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut read = VecDeque::from([(Instant::now(), first)]);
            let (mut logins, mut seen, mut failures) = (0, BTreeSet::new(), Vec::new());
            let mut ticks = tokio::time::interval(Duration::from_millis(25));
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                let now = Instant::now();
                // A file that isn't there is a tenant that isn't known: this client knew it before.
                if let Some(newest) =
                    files(&dir, &host).filter(|newest| read.back().is_none_or(|(_, last)| last != newest))
                {
                    read.push_back((now, newest));
                }
                while read.get(1).is_some_and(|(since, _)| now.duration_since(*since) >= delay) {
                    read.pop_front();
                }
                let (_, late) = &read[0];
                let result = match log_in(late).await {
                    Ok(session) => session.query_one("SELECT 1", &[]).await.map(drop),
                    Err(error) => Err(error),
                };
                seen.insert(late["password"].clone());
                match result {
                    Ok(()) => logins += 1,
                    Err(error) => failures.push(format!("{} after {logins} logins: {error:?}", late["username"])),
                }
            }
            (logins, seen, failures)
        });
        Self { stop, task }
    }

    /// Ends it; it must have seen so many passwords, and never failed.
    async fn end(self, passwords: usize) {
        self.stop.store(true, Ordering::Relaxed);
        let (logins, seen, failures) = self.task.await.expect("no panic");
        println!("{logins} logins with {} passwords", seen.len());
        assert!(failures.is_empty(), "{failures:#?}");
        assert!(seen.len() >= passwords && logins > 10 * passwords, "{logins} logins with {} passwords", seen.len());
    }
}

async fn rotate(client: &Client, tenant: &str, value: &str) {
    patch(client, &ours("Tenant", tenant), &json!({"metadata": {"annotations": {"tenantry.io/rotate": value}}})).await;
}

/// Waits until the Secret has another password, that works.
async fn rotated(client: &Client, tenant: &Tenant, old: &Credentials) -> Credentials {
    let secret = secret(tenant);
    let found = eventually(async || {
        super::verbs::read(client, &secret).await?;
        let new = credentials(client, tenant).await;
        (new["password"] != old["password"]).then_some(new)
    })
    .await;
    let new = found.unwrap_or_else(|| panic!("{} is not rotated", secret["metadata"]["name"]));
    log_in(&new).await.expect("what the Secret has works");
    new
}

/// Waits until a login ends.
async fn ends(what: &str, old: &Credentials) {
    let ended = eventually(async || log_in(old).await.is_err().then_some(())).await;
    assert!(ended.is_some(), "{what}: the replaced login {} still works", old["username"]);
}

async fn honoured(client: &Client, tenant: &str, value: &str) -> Tenant {
    await_tenant(client, tenant, "rotated", |tenant| {
        let rotated = tenant.status.as_ref().and_then(|status| status.database.as_ref()?.rotated.clone());
        rotated.as_deref() == Some(value) && is(tenant, "Ready", "True")
    })
    .await
}

fn secret(tenant: &Tenant) -> Value {
    let name = tenant.metadata.name.as_deref().expect("a name");
    named("v1", "Secret", Some(&place(tenant).1), &format!("{name}-database"))
}

/// How the operator's record has a tenant's logins: `Closing Current`, say.
async fn states(admin: &tokio_postgres::Client, tenant: &Tenant) -> String {
    let states = format!(
        "SELECT string_agg(state, ' ' ORDER BY state) FROM tenantry.login
          WHERE tenant = '{}' AND slot <> 'm' AND state <> 'Closed'",
        id(tenant)
    );
    rows(admin, &states).await.remove(0)
}

/// By annotation, twice, the second time while the first is not over; then by losing the Secret.
async fn by_annotation(client: &Client, agent: &Agent) {
    let tenant = ready_tenant(client, "turner", json!({})).await;
    let reader = Reader::start(agent, "turner", DELAY).await;
    let first = credentials(client, &tenant).await;
    let session = log_in(&first).await.expect("a session");
    rotate(client, "turner", "1").await;
    let second = rotated(client, &tenant, &first).await;
    honoured(client, "turner", "1").await;
    log_in(&first).await.expect("the replaced login works on for a while");

    // The first login is in use: the second rotation waits for it.
    rotate(client, "turner", "2").await;
    patch(client, &ours("Tenant", "turner"), &json!({"spec": {"displayName": "Turner"}})).await;
    await_tenant(client, "turner", "looked at", |tenant| is(tenant, "Ready", "True")).await;
    session.query("SELECT 1", &[]).await.expect("nobody ended it");
    assert_eq!(credentials(client, &tenant).await, second, "it waits");
    drop(session);
    let third = rotated(client, &tenant, &second).await;
    honoured(client, "turner", "2").await;
    assert_eq!(third["username"], first["username"], "two logins in turn");
    ends("by annotation", &second).await;

    // A value that was honoured asks for nothing.
    patch(client, &ours("Tenant", "turner"), &json!({"spec": {"displayName": "Turner & Co"}})).await;
    await_tenant(client, "turner", "looked at", |tenant| is(tenant, "Ready", "True")).await;
    assert_eq!(credentials(client, &tenant).await, third);

    delete(client, &secret(&tenant)).await;
    let fourth = rotated(client, &tenant, &third).await;
    log_in(&third).await.expect("who still has it is not cut off");
    ends("by losing the Secret", &third).await;
    eventually(async || (files(&agent.dir, "turner.crm.example.com")?["password"] == fourth["password"]).then_some(()))
        .await
        .expect("the agent has the newest");
    reader.end(4).await;
}

/// A leak: the replaced login is closed at once, whoever uses it.
async fn at_once(client: &Client) {
    let tenant = ready_tenant(client, "leaker", json!({})).await;
    let first = credentials(client, &tenant).await;
    let session = log_in(&first).await.expect("a session");
    rotate(client, "leaker", "now-1").await;
    honoured(client, "leaker", "now-1").await;
    let second = credentials(client, &tenant).await;
    assert!(log_in(&first).await.is_err(), "the leaked password is of no use");
    assert!(session.query("SELECT 1", &[]).await.is_err(), "and its session was ended");
    log_in(&second).await.expect("the new one works");
    // Also while another rotation is not over.
    rotate(client, "leaker", "2").await;
    let third = rotated(client, &tenant, &second).await;
    honoured(client, "leaker", "2").await;
    rotate(client, "leaker", "now-3").await;
    honoured(client, "leaker", "now-3").await;
    for leaked in [&second, &third] {
        assert!(log_in(leaked).await.is_err(), "{} is closed", leaked["username"]);
    }
    log_in(&credentials(client, &tenant).await).await.expect("the newest works");
}

/// What a person writes into the Secret.
async fn edited(client: &Client) {
    let tenant = ready_tenant(client, "edited", json!({})).await;
    let object = secret(&tenant);
    let first = credentials(client, &tenant).await;
    // "guessed", "t_mine".
    for (key, value) in [("password", "Z3Vlc3NlZA=="), ("username", "dF9taW5l")] {
        patch(client, &object, &json!({"data": {key: value}})).await;
        let found = eventually(async || {
            let now = credentials(client, &tenant).await;
            log_in(&now).await.ok().map(|_| now)
        })
        .await;
        let repaired = found.unwrap_or_else(|| panic!("an edited {key} is not repaired"));
        assert_ne!(repaired["password"], "guessed");
        assert!(repaired["uri"].contains(&repaired["password"]), "every key is of one login");
    }
    let before = credentials(client, &tenant).await;
    for (key, value) in [("host", "ZWxzZXdoZXJl"), ("more", "bW9yZQ=="), ("uri", "cG9zdGdyZXM6Ly8=")] {
        patch(client, &object, &json!({"data": {key: value}})).await;
        let back = eventually(async || (credentials(client, &tenant).await == before).then_some(())).await;
        assert!(back.is_some(), "an edited {key} is put back without a rotation");
    }
    patch(client, &object, &json!({"data": {"password": null}})).await;
    let whole = eventually(async || log_in(&with_all(credentials(client, &tenant).await)?).await.ok()).await;
    assert!(whole.is_some(), "a key that was removed comes back");
    ends("by editing", &first).await;
}

fn with_all(credentials: Credentials) -> Option<Credentials> {
    credentials.contains_key("password").then_some(credentials)
}

/// The operator ends between verifier and Secret, and between Secret and record.
async fn killed(ground: &mut Ground, proxy: &Proxy, agent: &Agent, flags: &[&str]) {
    let client = ground.client.clone();
    let direct = ground.kubeconfig.clone();
    ground.kubeconfig.clone_from(&proxy.kubeconfig);
    let operator = ground.operator(flags);
    let tenant = ready_tenant(&client, "victim", json!({})).await;
    let admin = superuser(ground, &place(&tenant).0).await;
    let reader = Reader::start(agent, "victim", DELAY).await;
    let first = credentials(&client, &tenant).await;
    assert_eq!(states(&admin, &tenant).await, "Current");

    proxy.arm("/secrets/victim-database", Moment::BeforeTheCall);
    rotate(&client, "victim", "1").await;
    proxy.reached().await;
    operator.kill();
    assert_eq!(states(&admin, &tenant).await, "Current Pending", "the verifier is set");
    assert_eq!(credentials(&client, &tenant).await, first, "and the Secret is as it was");
    let operator = ground.operator(flags);
    let second = rotated(&client, &tenant, &first).await;
    honoured(&client, "victim", "1").await;
    assert_eq!(states(&admin, &tenant).await, "Closing Current");
    ends("between verifier and Secret", &first).await;

    proxy.arm("/secrets/victim-database", Moment::BeforeTheAnswer);
    rotate(&client, "victim", "2").await;
    proxy.reached().await;
    operator.kill();
    let third = credentials(&client, &tenant).await;
    assert_ne!(third["password"], second["password"], "the Secret is written");
    assert_eq!(states(&admin, &tenant).await, "Current Pending", "and the record doesn't know it");
    let operator = ground.operator(flags);
    honoured(&client, "victim", "2").await;
    assert_eq!(credentials(&client, &tenant).await, third, "it is not rotated once more for that");
    ends("between Secret and record", &second).await;
    assert_eq!(states(&admin, &tenant).await, "Current");
    reader.end(3).await;
    operator.kill();
    ground.kubeconfig = direct;
}

/// By age, again and again; a session is ended when the longest overlap is over.
async fn by_age(ground: &Ground, agent: &Agent) {
    let client = &ground.client;
    let flags = ["--rotation-overlap", "3s", "--rotation-max-overlap", "4s", "--rotate-after", "1s"];
    let tenant = super::ground::await_tenant(client, "victim", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    let reader = Reader::start(agent, "victim", Duration::from_millis(500)).await;
    let first = credentials(client, &tenant).await;
    let session = log_in(&first).await.expect("a session");
    let _operator = ground.operator(&flags);
    let second = rotated(client, &tenant, &first).await;
    let ended = eventually(async || session.query("SELECT 1", &[]).await.is_err().then_some(())).await;
    assert!(ended.is_some(), "a session that never ends is ended");
    let third = rotated(client, &tenant, &second).await;
    rotated(client, &tenant, &third).await;
    reader.end(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_login_fails_while_credentials_rotate() {
    let mut ground = Ground::start(Options::default()).await;
    let flags = ["--rotation-overlap", "5s", "--rotation-max-overlap", "10m", "--rotate-after", "0s"];
    let operator = ground.operator(&flags);
    ground.examples().await;
    let client = ground.client.clone();
    ready_tenant(&client, "first", json!({})).await;
    let agent = Agent::start(&ground, "pool-crm-1");
    tokio::join!(by_annotation(&client, &agent), at_once(&client), edited(&client));
    operator.kill();
    let proxy = Proxy::start(&ground).await;
    killed(&mut ground, &proxy, &agent, &flags).await;
    by_age(&ground, &agent).await;
}
