//! A control plane with the chart installed, PostgreSQL, and the operator as a process of its own.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use devcluster::{Devcluster, Options, Postgres};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tenantry::api::{DatabaseServer, Pool};

/// Where the operator is installed.
pub const NAMESPACE: &str = "tenantry-system";
/// The operator, as the audit log names it.
pub const OPERATOR: &str = "system:serviceaccount:tenantry-system:tenantry";
/// How long a state is waited for before the whole run is given up.
pub const PATIENCE: Duration = Duration::from_secs(900);

/// The lines of `postgresql.conf` that differ from devcluster's: every statement can be logged
/// as JSON when it is to be recorded or counted, and the bare client isn't short of connections.
const POSTGRES: [(&str, &str); 6] = [
    ("max_connections", "600"),
    ("logging_collector", "on"),
    ("log_destination", "jsonlog"),
    ("log_rotation_age", "0"),
    ("log_rotation_size", "0"),
    ("log_timezone", "UTC"),
];

/// A control plane, a database server and the operator's rights.
pub struct Ground {
    pub cluster: Devcluster,
    pub client: Client,
    /// The operator's, with the rights that the chart gives it.
    pub kubeconfig: PathBuf,
}

impl Ground {
    /// Starts everything, installs the chart without an operator, and applies the examples.
    ///
    /// `pods` is how many pods there will be at most.
    pub async fn start(pods: usize) -> Result<Self> {
        let settings = POSTGRES.map(|(name, value)| (name.to_owned(), value.to_owned()));
        // By what the examples' pods ask of processors, a node takes about 150 of them.
        let nodes = u32::try_from(pods / 100 + 2)?;
        let options = Options { audit: true, nodes, postgres_settings: settings.to_vec(), ..Options::default() };
        let cluster = tokio::task::spawn_blocking(move || Devcluster::start(options)).await??;
        let mut helm = cluster.helm();
        helm.args(["upgrade", "--install", "tenantry", "--namespace", NAMESPACE, "--create-namespace"]);
        run(helm.args(["--set", "replicas=0"]).arg(root().join("charts/tenantry")))?;
        let kubeconfig = cluster.service_account_kubeconfig(NAMESPACE, "tenantry").await?;
        let client = cluster.client().await?;
        let ground = Self { cluster, client, kubeconfig };
        ground.server("main", ground.cluster.postgres()).await?;
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(root().join("examples/crm/migrations"))? {
            let entry = entry?;
            files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path())?);
        }
        let migrations = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "crm-migrations", "namespace": NAMESPACE}, "data": files,
        });
        ground.apply(&migrations).await?;
        for file in ["plans.yaml", "application.yaml"] {
            for document in documents(&root().join("examples").join(file))? {
                ground.apply(&document).await?;
            }
        }
        Ok(ground)
    }

    /// Applies a DatabaseServer that is this PostgreSQL.
    pub async fn server(&self, name: &str, postgres: &Postgres) -> Result<()> {
        let admin = postgres.admin();
        for (suffix, data) in [
            ("admin", json!({"username": admin.user, "password": admin.password})),
            ("ca", json!({"ca.crt": postgres.ca_pem()})),
        ] {
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": format!("{name}-{suffix}"), "namespace": NAMESPACE}, "stringData": data,
            });
            self.apply(&secret).await?;
        }
        let server = json!({
            "apiVersion": "tenantry.io/v1alpha1", "kind": "DatabaseServer", "metadata": {"name": name},
            "spec": {
                "admin": {
                    "host": postgres.host(), "port": postgres.port(),
                    "credentialsSecret": {"name": format!("{name}-admin")},
                },
                "tls": {"caSecret": {"name": format!("{name}-ca")}},
                "network": {"to": [{"ipBlock": {"cidr": "127.0.0.1/32"}}]},
                "capacity": {"databases": 1000, "schemasPerDatabase": 1000},
            },
        });
        self.apply(&server).await
    }

    /// Applies an object as `kubectl apply --server-side` does.
    pub async fn apply(&self, object: &Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("a name")?;
        let params = PatchParams::apply("bench").force();
        let applied = dynamic(&self.client, object)?.patch(name, &params, &Patch::Apply(object)).await;
        applied.with_context(|| format!("apply {} {name}", object["kind"]))?;
        Ok(())
    }

    /// Changes an object by a JSON merge patch.
    pub async fn merge(&self, object: &Value, patch: &Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("a name")?;
        dynamic(&self.client, object)?.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Makes a Pool of application crm by hand, and waits until it takes and serves tenants.
    pub async fn pool(&self, name: &str) -> Result<()> {
        let pool = json!({
            "apiVersion": "tenantry.io/v1alpha1", "kind": "Pool", "metadata": {"name": name},
            "spec": {"application": "crm", "server": "main"},
        });
        self.apply(&pool).await?;
        let pools = Api::<Pool>::all(self.client.clone());
        eventually(&format!("Pool {name} is Ready"), async || {
            let status = pools.get(name).await?.status.unwrap_or_default();
            Ok(status.conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True").then_some(()))
        })
        .await
    }

    /// Waits until the operator is connected to a DatabaseServer.
    pub async fn await_server(&self, name: &str) -> Result<()> {
        let servers = Api::<DatabaseServer>::all(self.client.clone());
        eventually(&format!("DatabaseServer {name} is Ready"), async || {
            let status = servers.get(name).await?.status.unwrap_or_default();
            Ok(status.conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True").then_some(()))
        })
        .await
    }

    /// Starts the operator as its ServiceAccount, with the flags that it has by itself and these.
    pub fn operator(&self, more: &[&str]) -> Result<Operator> {
        self.operator_by(&self.kubeconfig, more)
    }

    /// The same by another way to the API server.
    pub fn operator_by(&self, kubeconfig: &Path, more: &[&str]) -> Result<Operator> {
        let log = File::options().create(true).append(true).open(self.cluster.dir().join("log/operator.log"))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenantry"));
        command
            .args(["operator", "--namespace", NAMESPACE, "--listen", &format!("127.0.0.1:{port}")])
            .args(["--agent-image", "registry.example.com/tenantry:bench"])
            .args(more)
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let started = Instant::now();
        let child = command.spawn().context("start the operator")?;
        let wanted = Arc::new(AtomicBool::new(true));
        std::thread::spawn({
            let (wanted, pid) = (Arc::clone(&wanted), child.id());
            move || mind(pid, &wanted)
        });
        Ok(Operator { child, port, started, wanted })
    }
}

/// A running operator; ended when dropped.
pub struct Operator {
    child: Child,
    port: u16,
    /// When its process was started.
    pub started: Instant,
    /// Whether it is to run on.
    wanted: Arc<AtomicBool>,
}

/// Ends the bench when the operator ends by itself: all figures would wait for it in vain.
fn mind(pid: u32, wanted: &AtomicBool) {
    let runs = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    while wanted.load(Ordering::SeqCst) {
        if !runs() && wanted.load(Ordering::SeqCst) {
            eprintln!("the operator ended by itself; its log is among those of the control plane");
            std::process::exit(1);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

impl Operator {
    /// Asks it to end, and waits until it has.
    pub fn stop(mut self) -> Result<()> {
        self.wanted.store(false, Ordering::SeqCst);
        run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]))?;
        let end = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < end, "the operator doesn't end");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// A field of its status that is in kB: `VmRSS`, `VmHWM`.
    pub fn memory(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).context("no such field")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How long its threads have run on a processor.
    pub fn cpu(&self) -> Result<Duration> {
        crate::processors::time_of(self.pid())
    }

    /// The sum of a metric over the series whose labels contain each of `labels`; 0 where none does.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<u64> {
        let answer = self.ask("/metrics")?;
        let mut sum = 0;
        for line in answer.lines().filter(|line| line.starts_with(name)) {
            let (series, value) = line.rsplit_once(' ').context("a metric without a value")?;
            let exact = series.len() == name.len() || series[name.len()..].starts_with('{');
            if exact && labels.iter().all(|label| series.contains(label)) {
                sum += value.parse::<f64>()? as u64;
            }
        }
        Ok(sum)
    }

    fn ask(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.wanted.store(false, Ordering::SeqCst);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks again and again until there is an answer; an error after [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if Instant::now() > end {
            bail!("waited in vain until {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The documents of a YAML file.
fn documents(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())
}

/// The output of a command that must succeed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{command:?} failed:\n{}{}", text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout))
}

fn dynamic(client: &Client, object: &Value) -> Result<Api<DynamicObject>> {
    let api_version = object["apiVersion"].as_str().context("apiVersion")?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = object["kind"].as_str().context("kind")?;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Ok(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    })
}
