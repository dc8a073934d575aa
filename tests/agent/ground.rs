//! An API server for all tests, a namespace for each, and agents in this process.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use devcluster::{Devcluster, Options};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tenantry::agent::{self, Scope};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The API server that tests share. It ends with this process.
pub static CLUSTER: LazyLock<Devcluster> = LazyLock::new(start);

/// An API server of its own, for a test that breaks it.
pub fn start() -> Devcluster {
    let options = Options { api_only: true, postgres: false, gateway_api: false, ..Options::default() };
    Devcluster::start(options).expect("an API server")
}

/// A namespace that is nobody else's.
pub struct Pool {
    pub namespace: String,
    pub client: Client,
    secrets: Api<Secret>,
}

impl Pool {
    pub async fn new(cluster: &Devcluster) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("pool-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let client = cluster.client().await.expect("an administrator");
        let metadata = ObjectMeta { name: Some(namespace.clone()), ..ObjectMeta::default() };
        let object = Namespace { metadata, ..Namespace::default() };
        Api::all(client.clone()).create(&PostParams::default(), &object).await.expect("a namespace");
        Self { secrets: Api::namespaced(client.clone(), &namespace), namespace, client }
    }

    pub fn scope(&self) -> Scope {
        Scope::Namespace(self.namespace.clone())
    }

    /// Makes or changes a tenant's Secret.
    pub async fn put(&self, tenant: &str, hosts: &str, password: &str) {
        self.put_object(&secret(tenant, hosts, password)).await;
    }

    pub async fn put_object(&self, secret: &Secret) {
        let name = secret.metadata.name.as_deref().expect("a name");
        let parameters = PatchParams::apply("test").force();
        self.secrets.patch(name, &parameters, &Patch::Apply(secret)).await.expect("the Secret is taken");
    }

    pub async fn delete(&self, tenant: &str) {
        self.secrets.delete(&format!("tenant-{tenant}"), &DeleteParams::default()).await.expect("it was there");
    }
}

/// A tenant's Secret as the operator makes it.
pub fn secret(tenant: &str, hosts: &str, password: &str) -> Secret {
    let labels = [("tenantry.io/tenant", tenant), ("app.kubernetes.io/managed-by", "tenantry")];
    let data = [
        ("type", "postgresql".to_owned()),
        ("username", format!("user-of-{password}")),
        ("password", password.to_owned()),
        ("uri", format!("postgresql://user-of-{password}:{password}@localhost:5432/pool")),
        ("ca.crt", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned()),
    ];
    Secret {
        metadata: ObjectMeta {
            name: Some(format!("tenant-{tenant}")),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            annotations: Some(BTreeMap::from([("tenantry.io/hosts".to_owned(), hosts.to_owned())])),
            ..ObjectMeta::default()
        },
        type_: Some("servicebinding.io/postgresql".into()),
        data: Some(data.map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).into()),
        ..Secret::default()
    }
}

/// A running agent.
pub struct Agent {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), agent::Error>>,
}

impl Agent {
    /// Starts one; it may not have listed anything yet.
    pub async fn start(kubeconfig: &Path, dir: &Path, scope: Scope) -> Self {
        let options = agent::Options { dir: dir.to_owned(), scope, linger: Duration::from_secs(60) };
        Self::start_with(config(kubeconfig).await, options)
    }

    pub fn start_with(config: Config, options: agent::Options) -> Self {
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move {
            // An error means that the test is over.
            let _ = stopped.await;
        };
        let task = tokio::spawn(async move { agent::keep(config, &options, shutdown).await });
        Self { stop, task }
    }

    /// Ends it in order, as SIGTERM does.
    pub async fn stop(self) {
        self.stop.send(()).expect("it still runs");
        self.task.await.expect("no panic").expect("no error");
    }

    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }
}

pub async fn config(kubeconfig: &Path) -> Config {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a usable kubeconfig")
}

/// What an application reads of a host: the password of its URI, nothing where the host isn't known.
pub fn password(dir: &Path, host: &str) -> Option<String> {
    let uri = fs::read_to_string(dir.join("hosts").join(host).join("uri")).ok()?;
    let (credentials, _) = uri.strip_prefix("postgresql://")?.split_once('@')?;
    Some(credentials.split_once(':')?.1.to_owned())
}

pub fn names(dir: &Path, folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir.join(folder)) else { return Vec::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort();
    names
}

/// Waits until the agent of `dir` says that its first list is on disk.
pub async fn listed(dir: &Path) -> agent::Status {
    eventually("the first list", || agent::check(dir).ok()).await
}

/// Waits until `look` sees what is waited for; panics with `what` after 30 s.
pub async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn folder() -> (tempfile::TempDir, PathBuf) {
    let temporary = tempfile::tempdir().expect("a folder");
    let dir = temporary.path().join("run");
    (temporary, dir)
}
