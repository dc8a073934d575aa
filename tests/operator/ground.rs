//! A control plane with the chart installed and the operator running as its ServiceAccount,
//! and the few verbs that the tests need.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{LazyLock, OnceLock, mpsc},
    time::{Duration, Instant},
};

use devcluster::{Devcluster, Options};
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tenantry::api::{Pool, Tenant};

/// Where the operator is installed.
pub const NAMESPACE: &str = "tenantry-system";
/// The operator, as the audit log names it.
pub const OPERATOR: &str = "system:serviceaccount:tenantry-system:tenantry";
/// How long a state is waited for before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A control plane, a database server and an operator.
pub struct Ground {
    pub cluster: Devcluster,
    pub kubeconfig: PathBuf,
    pub client: Client,
}

/// A ground that several tests share; the process's end ends it.
pub type Once = OnceLock<(Ground, Operator)>;

/// The ground that most tests share, with an operator running.
pub async fn shared() -> (&'static Ground, Client) {
    static SHARED: Once = OnceLock::new();
    let ((ground, _), client) = once(&SHARED, &[]).await;
    (ground, client)
}

/// A ground that is started when the first test asks for it, with an operator with these
/// flags and the examples; and a client for it.
pub async fn once(cell: &'static Once, flags: &'static [&'static str]) -> (&'static (Ground, Operator), Client) {
    // On a thread of its own: a runtime can't be blocked from within.
    let make = move || {
        let ready = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async {
                let ground = Ground::start(Options { audit: true, ..Options::default() }).await;
                let operator = ground.operator(flags);
                ground.examples().await;
                (ground, operator)
            })
        });
        ready.join().expect("a ground")
    };
    let both = match cell.get() {
        Some(both) => both,
        None => tokio::task::spawn_blocking(move || cell.get_or_init(make)).await.expect("a ground"),
    };
    // Clients belong to the runtime that made them, and every test has its own.
    let client = both.0.cluster.client().await.expect("a client");
    (both, client)
}

impl Ground {
    /// Starts a control plane and a database server and installs the chart; no operator yet.
    pub async fn start(options: Options) -> Self {
        let cluster = tokio::task::spawn_blocking(move || Devcluster::start(options))
            .await
            .expect("a thread")
            .expect("a cluster");
        let mut helm = cluster.helm();
        helm.args([
            "upgrade",
            "--install",
            "tenantry",
            "--namespace",
            NAMESPACE,
            "--create-namespace",
            "--set",
            "replicas=0",
        ]);
        output(helm.arg(root().join("charts/tenantry")));
        let kubeconfig = cluster.service_account_kubeconfig(NAMESPACE, "tenantry").await.expect("a kubeconfig");
        let client = cluster.client().await.expect("a client");
        Self { cluster, kubeconfig, client }
    }

    /// The log of this ground's operators.
    pub fn log(&self) -> PathBuf {
        self.cluster.dir().join(format!("log/operator-{}.log", std::process::id()))
    }

    /// Starts the operator as its ServiceAccount.
    pub fn operator(&self, more: &[&str]) -> Operator {
        let out = File::options().create(true).append(true).open(self.log()).expect("a log file");
        let before = out.metadata().expect("a log file").len();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_tenantry")]);
        if !more.contains(&"--lease-identity") {
            // One that comes back leads at once, as a container does in its pod, and an API server
            // that a test takes away for a while ends none.
            command
                .env("TENANTRY_LEASE_IDENTITY", "test")
                .env("TENANTRY_LEASE_DURATION", "120s")
                .env("TENANTRY_LEASE_RENEW_DEADLINE", "100s");
        }
        command
            // Any port: one that is chosen here may be somebody else's by the time it is taken.
            .args(["operator", "--namespace", NAMESPACE, "--listen", "127.0.0.1:0"])
            .args(["--agent-image", "registry.example.com/tenantry:test"])
            .args(more)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("TENANTRY_LOG", std::env::var("TENANTRY_LOG").unwrap_or_else(|_| "info,tenantry=debug".into()))
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second handle"))
            .stderr(out);
        let mut child = spawn(command);
        let port = listens(&mut child, &self.log(), before);
        Operator { child, port }
    }

    /// Applies the examples' plans, server, application and migrations, but no tenants.
    pub async fn examples(&self) {
        let client = self.cluster.client().await.expect("a client");
        self.server(&client, "main", json!({})).await;
        let migrations = root().join("examples/crm/migrations");
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(&migrations).expect("migrations") {
            let path = entry.expect("an entry").path();
            files.insert(
                path.file_name().expect("a name").to_string_lossy().into_owned(),
                std::fs::read_to_string(&path).expect("a file"),
            );
        }
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "crm-migrations", "namespace": NAMESPACE}, "data": files});
        apply(&client, &map).await.expect("migrations");
        for file in ["plans.yaml", "application.yaml"] {
            for document in documents(&root().join("examples").join(file)) {
                apply(&client, &document).await.expect("an example");
            }
        }
    }

    /// Applies a DatabaseServer that is this ground's PostgreSQL.
    pub async fn server(&self, client: &Client, name: &str, more: Value) {
        let postgres = self.cluster.postgres();
        let admin = postgres.admin();
        let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
        secret(&secrets, &format!("{name}-admin"), &[("username", &admin.user), ("password", &admin.password)]).await;
        secret(&secrets, &format!("{name}-ca"), &[("ca.crt", postgres.ca_pem())]).await;
        let mut server = json!({
            "apiVersion": "tenantry.io/v1alpha1", "kind": "DatabaseServer", "metadata": {"name": name},
            "spec": {
                "admin": {"host": postgres.host(), "port": postgres.port(), "credentialsSecret": {"name": format!("{name}-admin")}},
                "tls": {"caSecret": {"name": format!("{name}-ca")}},
                "network": {"to": [{"ipBlock": {"cidr": "127.0.0.1/32"}}]},
            },
        });
        merge(&mut server["spec"], more);
        apply(client, &server).await.expect("a server");
    }
}

/// Starts a program that asked to end with the thread that starts it: on one that lives as long
/// as this process, so that a ground which several tests share leaves nothing behind.
pub fn spawn(command: Command) -> Child {
    type Request = (Command, mpsc::Sender<Child>);
    static SPAWNER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
        let (requests, received) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, answer) in received {
                answer.send(command.spawn().expect("the operator starts")).expect("somebody waits");
            }
        });
        requests
    });
    let (answer, started) = mpsc::channel();
    SPAWNER.send((command, answer)).expect("the thread that starts programs");
    started.recv().expect("the operator starts")
}

/// A running operator; ended when dropped.
pub struct Operator {
    child: Child,
    pub port: u16,
}

impl Operator {
    /// Sends it a signal, such as `STOP`.
    pub fn signal(&self, name: &str) {
        output(Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]));
    }

    /// Waits until it has ended by itself; its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let ended = eventually(async || self.child.try_wait().expect("a child")).await;
        ended.expect("it ends").code()
    }

    /// What it answers to a GET: the status and the body; nothing while it doesn't listen.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        // It listens a moment before it answers.
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// Waits until it says this of its readiness.
    pub async fn says(&self, status: u16, text: &str) {
        let mut last = None;
        let said = eventually(async || {
            last = self.get("/readyz");
            last.as_ref().filter(|(code, body)| *code == status && body.contains(text)).map(drop)
        });
        assert!(said.await.is_some(), "/readyz says {last:?}, not {status} {text}");
    }

    /// The value of a metric, with its labels as they are written; nothing if it is not there.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, body) = self.get("/metrics")?;
        body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// Ends it as a crash would.
    pub fn kill(mut self) {
        self.child.kill().expect("a running operator");
        self.child.wait().expect("an end");
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn secret(secrets: &Api<Secret>, name: &str, entries: &[(&str, &str)]) {
    let data = entries.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()))).collect();
    let mut secret = Secret { data: Some(data), ..Secret::default() };
    secret.metadata.name = Some(name.to_owned());
    let params = PatchParams::apply("a-user").force();
    secrets.patch(name, &params, &Patch::Apply(&secret)).await.expect("a Secret");
}

/// On which port a process listens that has just been started, as it says in its log from this
/// place on; none if it ends without a word of it. It does so before it calls anybody.
fn listens(child: &mut Child, log: &Path, from: u64) -> u16 {
    let end = Instant::now() + PATIENCE;
    loop {
        let ended = child.try_wait().expect("a child").is_some();
        let mut said = String::new();
        let mut file = File::open(log).expect("a log file");
        file.seek(SeekFrom::Start(from)).expect("its end");
        file.read_to_string(&mut said).expect("text");
        let line = said.split_inclusive('\n').find(|line| line.contains("listening") && line.ends_with('\n'));
        if let Some((_, port)) = line.and_then(|line| line.split_once("127.0.0.1:")) {
            let digits: String = port.chars().take_while(char::is_ascii_digit).collect();
            return digits.parse().expect("a port");
        }
        if ended {
            return 0;
        }
        assert!(Instant::now() < end, "it does not say where it listens; TENANTRY_LOG has to let that through");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Lays `more` over `value`, map by map.
pub fn merge(value: &mut Value, more: Value) {
    match (value, more) {
        (Value::Object(value), Value::Object(more)) => {
            for (key, more) in more {
                merge(value.entry(key).or_insert(Value::Null), more);
            }
        }
        (value, more) => *value = more,
    }
}

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The documents of a YAML file.
pub fn documents(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The output of a command that must succeed.
pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?} failed:\n{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The API of any kind.
pub fn dynamic(client: &Client, object: &Value) -> Api<DynamicObject> {
    let api_version = object["apiVersion"].as_str().expect("apiVersion");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource =
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, object["kind"].as_str().expect("kind")));
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Applies an object as `kubectl apply --server-side` would.
pub async fn apply(client: &Client, object: &Value) -> kube::Result<DynamicObject> {
    let name = object["metadata"]["name"].as_str().expect("a name");
    let params = PatchParams::apply("a-user").validation_strict();
    dynamic(client, object).patch(name, &params, &Patch::Apply(object)).await
}

/// A Tenant of application crm.
pub fn tenant(name: &str, more: Value) -> Value {
    let mut tenant = json!({
        "apiVersion": "tenantry.io/v1alpha1", "kind": "Tenant", "metadata": {"name": name},
        "spec": {"application": "crm", "plan": "smb"},
    });
    merge(&mut tenant, more);
    tenant
}

/// Makes a Tenant and waits until it is Ready.
pub async fn ready_tenant(client: &Client, name: &str, more: Value) -> Tenant {
    apply(client, &tenant(name, more)).await.expect("a Tenant");
    await_tenant(client, name, "Ready", |tenant| is(tenant, "Ready", "True")).await
}

pub fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether a condition speaks of the newest generation and has this status.
pub fn is(tenant: &Tenant, kind: &str, status: &str) -> bool {
    let conditions = tenant.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    condition(conditions, kind).is_some_and(|condition| {
        condition.status == status && condition.observed_generation == tenant.metadata.generation
    })
}

/// Waits until a Tenant is as wanted, also while the API server is being started again.
pub async fn await_tenant(client: &Client, name: &str, what: &str, wanted: impl Fn(&Tenant) -> bool) -> Tenant {
    let tenants = Api::<Tenant>::all(client.clone());
    let mut last = None;
    let found = eventually(async || {
        let answer = tenants.get(name).await;
        let found = answer.as_ref().ok().filter(|tenant| wanted(tenant)).cloned();
        last = Some(answer);
        found
    })
    .await;
    found.unwrap_or_else(|| match last {
        Some(Ok(tenant)) => {
            let status = serde_json::to_string_pretty(&tenant.status).unwrap_or_default();
            panic!("Tenant {name} does not become {what}: {status}")
        }
        answer => panic!("Tenant {name} does not become {what}: {answer:?}"),
    })
}

/// Waits until a Pool is as wanted.
pub async fn await_pool(client: &Client, name: &str, what: &str, wanted: impl Fn(&Pool) -> bool) -> Pool {
    let pools = Api::<Pool>::all(client.clone());
    let mut last = None;
    let found = eventually(async || {
        last = Some(pools.get_opt(name).await);
        last.as_ref()?.as_ref().ok()?.clone().filter(&wanted)
    })
    .await;
    found.unwrap_or_else(|| panic!("Pool {name} does not become {what}: {last:#?}"))
}

/// Asks again and again until there is an answer, or patience ends.
pub async fn eventually<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return Some(answer);
        }
        if Instant::now() > end {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Deletes a Tenant and waits until it is gone.
pub async fn delete_tenant(client: &Client, name: &str) {
    let tenants = Api::<Tenant>::all(client.clone());
    tenants.delete(name, &DeleteParams::default()).await.expect("a deletion");
    let gone = eventually(async || tenants.get_opt(name).await.ok()?.is_none().then_some(())).await;
    if gone.is_none() {
        panic!("Tenant {name} does not go: {:#?}", tenants.get(name).await);
    }
}

/// A tenant's Secret, as text by key.
pub async fn credentials(client: &Client, tenant: &Tenant) -> BTreeMap<String, String> {
    let reference =
        tenant.status.as_ref().and_then(|s| s.database.clone()).and_then(|d| d.secret_ref).expect("a Secret");
    let secret =
        Api::<Secret>::namespaced(client.clone(), &reference.namespace).get(&reference.name).await.expect("a Secret");
    let text = |bytes: ByteString| String::from_utf8(bytes.0).expect("text");
    secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value))).collect()
}

/// Makes an object that is nobody's.
pub async fn create(client: &Client, object: &Value) -> DynamicObject {
    let dynamic_object: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
    let created = dynamic(client, object).create(&PostParams::default(), &dynamic_object).await;
    created.unwrap_or_else(|error| panic!("{}: {error}", dynamic_object.name_any()))
}
