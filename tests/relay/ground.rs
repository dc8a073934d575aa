//! An API server and a PostgreSQL for all tests; for each a DatabaseServer, with a namespace and
//! databases of its own; relays in this process, and as programs.

use std::{
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::LazyLock,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use devcluster::{Devcluster, Options, Postgres};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api as KubeApi, Client, Config,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use tenantry::{
    database::RelayAccess,
    desired::{RelaySecretInput, naming, relay_secret},
    relay,
};
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    api::Api,
    support::{Ground, Guest, one, rows, shared_server},
};

/// The API server that tests share. It ends with this process.
pub static CLUSTER: LazyLock<Devcluster> = LazyLock::new(|| {
    let options = Options { api_only: true, postgres: false, gateway_api: false, ..Options::default() };
    Devcluster::start(options).expect("an API server")
});

/// A DatabaseServer with one database, and an API to post to.
pub struct Place {
    pub server: String,
    pub namespace: String,
    pub database: Ground,
    pub access: RelayAccess,
    pub api: Api,
    pub client: Client,
    ca_pem: String,
    temporary: tempfile::TempDir,
}

/// The tests' superuser counts what is in the outbox by these.
pub const PENDING: &str = "SELECT count(*) FROM tenantry.outbox WHERE acked_at IS NULL AND dead_at IS NULL";
pub const ACKED: &str = "SELECT count(*) FROM tenantry.outbox WHERE acked_at IS NOT NULL";
pub const DEAD: &str = "SELECT count(*) FROM tenantry.outbox WHERE dead_at IS NOT NULL";

impl Place {
    /// On the shared server.
    pub async fn new() -> Self {
        Self::on(shared_server()).await
    }

    pub async fn on(postgres: &Postgres) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let server = format!("server-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let namespace = naming::relay_namespace(&server);
        let client = tokio::task::spawn_blocking(|| LazyLock::force(&CLUSTER)).await.expect("a cluster");
        let client = client.client().await.expect("an administrator");
        let metadata = ObjectMeta { name: Some(namespace.clone()), ..ObjectMeta::default() };
        let object = Namespace { metadata, ..Namespace::default() };
        KubeApi::all(client.clone()).create(&PostParams::default(), &object).await.expect("a namespace");
        let database = Ground::on(postgres, "relayed").await;
        let access = database.server.ensure_relay(&database.database, None).await.expect("made").expect("issued");
        let temporary = tempfile::tempdir().expect("a folder");
        let ca_pem = postgres.ca_pem().to_owned();
        let place = Self { server, namespace, database, access, api: Api::start().await, client, ca_pem, temporary };
        place.token("one");
        place.publish(&place.access).await;
        place
    }

    fn secrets(&self) -> KubeApi<Secret> {
        KubeApi::namespaced(self.client.clone(), &self.namespace)
    }

    /// Makes or changes the Secret of a database, as the operator does.
    pub async fn publish(&self, access: &RelayAccess) {
        let object = relay_secret(&RelaySecretInput {
            server: &self.server,
            host: &access.host,
            port: access.port,
            database: &access.database,
            username: &access.user,
            password: access.password.expose(),
            sslmode: "verify-full",
            ca_pem: Some(&self.ca_pem),
        });
        let secret: Secret = serde_json::from_value(object.body.clone()).expect("a Secret");
        let parameters = PatchParams::apply("tenantry").force();
        self.secrets().patch(&object.name, &parameters, &Patch::Apply(&secret)).await.expect("the Secret is taken");
    }

    /// Removes the Secret of a database.
    pub async fn withdraw(&self, access: &RelayAccess) {
        let name = naming::relay_secret(&access.database);
        self.secrets().delete(&name, &DeleteParams::default()).await.expect("it was there");
    }

    /// The file of a relay's token; tests know relays by it.
    pub fn token(&self, token: &str) -> PathBuf {
        let path = self.temporary.path().join(format!("token-{token}"));
        std::fs::write(&path, format!("{token}\n")).expect("a token file");
        path
    }

    pub fn options(&self) -> relay::Options {
        relay::Options {
            server: self.server.clone(),
            namespace: self.namespace.clone(),
            api_url: self.api.url.clone(),
            token_file: self.token("one"),
            api_ca: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            batch: 1_000,
            lease: Duration::from_secs(5),
            concurrency: 8,
            timeout: Duration::from_secs(2),
            report: Duration::from_millis(200),
            grace: Duration::from_secs(20),
        }
    }

    /// Starts a relay in this process.
    pub async fn relay(&self) -> Relay {
        Relay::start(self.options()).await
    }

    /// Waits until the outbox says so.
    pub async fn until(&self, what: &str, sql: &str, expected: i64) {
        let superuser = self.database.superuser().await;
        let mut last = String::new();
        for _ in 0..3_000 {
            last = one(&superuser, sql).await;
            if last == expected.to_string() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never: {what}: {last} instead of {expected}");
    }

    /// Asserts that what the outbox has acknowledged is what the API has taken, each event once.
    pub async fn agrees(&self) {
        let superuser = self.database.superuser().await;
        let acked =
            rows(&superuser, "SELECT event_id FROM tenantry.outbox WHERE acked_at IS NOT NULL ORDER BY 1").await;
        let mut distinct = acked.clone();
        distinct.dedup();
        assert_eq!(acked.len(), distinct.len(), "an event is acknowledged once");
        let mut taken: Vec<String> = self.api.script().usage.keys().cloned().collect();
        taken.sort();
        assert_eq!(acked, taken, "what is acknowledged is what was taken");
    }
}

/// Counts by a tenant's own login.
pub async fn count(client: &tokio_postgres::Client, meter: &str, delta: i64) {
    let sql = format!("SELECT record_usage('{meter}', {delta}, 'x')");
    client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Counts many times, one transaction each, in one statement.
pub async fn count_often(place: &Place, guest: &Guest, meter: &str, times: u32) {
    let client = place.database.client(&guest.login).await;
    let sql = format!(
        "DO $$ BEGIN FOR n IN 1..{times} LOOP PERFORM record_usage('{meter}', 1, 'x'); COMMIT; END LOOP; END $$"
    );
    client.batch_execute(&sql).await.expect("counted");
}

async fn config() -> Config {
    let kubeconfig = Kubeconfig::read_from(CLUSTER.kubeconfig()).expect("a kubeconfig");
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a usable kubeconfig")
}

/// A relay in this process.
pub struct Relay {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), relay::Error>>,
}

impl Relay {
    pub async fn start(options: relay::Options) -> Self {
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move {
            // An error means that the test is over.
            let _ = stopped.await;
        };
        let config = config().await;
        let task = tokio::spawn(async move { relay::carry(config, options, shutdown).await });
        Self { stop, task }
    }

    /// Asks it to end, as SIGTERM does, and waits for that.
    pub async fn stop(self) {
        self.stop.send(()).expect("it still runs");
        self.task.await.expect("no panic").expect("no error");
    }

    /// Asks it to end; the future is ready when it has.
    pub fn stopping(self) -> impl Future<Output = ()> {
        self.stop.send(()).expect("it still runs");
        async { self.task.await.expect("no panic").expect("no error") }
    }
}

/// A relay as a program, killed when dropped.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    pub fn start(place: &Place, more: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let log = place.temporary.path().join(format!("relay-{}.log", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let out = File::create(&log).expect("a log file");
        let child = Command::new(env!("CARGO_BIN_EXE_tenantry"))
            .args(["relay", "--server", &place.server, "--namespace", &place.namespace, "--api-url", &place.api.url])
            .args(["--listen", "127.0.0.1:0", "--token-file"])
            .arg(place.token("one"))
            .args(["--lease-seconds", "2", "--timeout-seconds", "1"])
            .args(more)
            .env("KUBECONFIG", CLUSTER.kubeconfig())
            .env("TENANTRY_LOG", "info,tenantry=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(out)
            .spawn()
            .expect("the program is there");
        Self { child, log }
    }

    /// Ends it at once, wherever it is.
    pub fn kill(mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it ends");
    }

    /// Asks it to end, and waits; whether it ended well.
    pub async fn terminate(mut self) -> bool {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill is there");
        assert!(sent.success());
        tokio::task::spawn_blocking(move || self.child.wait().expect("it ends").success()).await.expect("no panic")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a log")
    }

    /// Where it serves health and metrics.
    pub async fn address(&self) -> SocketAddr {
        for _ in 0..3_000 {
            let plain: String = self.log();
            let found = plain
                .lines()
                .find(|line| line.contains("listening"))
                .and_then(|line| line.split("address=").nth(1)?.split_whitespace().next()?.parse().ok());
            if let Some(address) = found {
                return address;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it never listens: {}", self.log());
    }

    /// What it answers to a GET: the status line's code and the body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.address().await).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split_whitespace().nth(1).expect("a status").parse().expect("a number");
        (status, body.to_owned())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that has ended already can't be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of a metric in OpenMetrics text, by its name with labels; none where it isn't there.
pub fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split_whitespace().next()?.parse().ok())
}
