//! The programs of the product, running beside the cluster.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use super::{NAMESPACE, http};
use crate::plane::boot;
use crate::ports::{self, Port};
use crate::{Admin, Devcluster, Error, Process, kubeconfig, pki};

/// The ServiceAccount of relays, and for whom its tokens are.
const RELAY: &str = "relay";
const AUDIENCE: &str = "tenantry";

/// The operator's metric of usage events that it had already.
const DUPLICATES: &str = "tenantry_usage_events_total{result=\"duplicate\"}";
/// How long a program may take until it answers.
const PROGRAM_READY: Duration = Duration::from_secs(60);
/// An operator that ends sooner than this after its start didn't really run.
const SHORT_LIFE: Duration = Duration::from_secs(10);
/// How often in a row it may do so.
const SHORT_LIVES: u32 = 5;

/// The programs of the product, running.
pub(super) struct Parts {
    operator: Process,
    agent: Process,
    crm: Process,
    relay: Option<Process>,
    /// Where the CRM listens on 127.0.0.1.
    pub(super) crm_port: u16,
    /// Where the operator's metrics are on 127.0.0.1.
    port: u16,
    /// Where it takes usage events.
    api_port: u16,
    /// Held for them, also while one is away.
    held: Vec<Port>,
}

impl Parts {
    /// Starts all, each with the rights that it has in a cluster, and waits until they answer.
    pub(super) fn start(
        ground: &mut Devcluster,
        tenantry: &Path,
        crm: &Path,
        ledger: &str,
        folder: &Path,
    ) -> Result<Self, Error> {
        let (operator_config, agent_config) = boot::blocking(async {
            let postgres = ground.postgres();
            prepare(ground.client().await?, postgres.admin(), postgres.ca_pem()).await?;
            let operator = ground.service_account_kubeconfig(NAMESPACE, "tenantry").await?;
            Ok((operator, ground.service_account_kubeconfig(NAMESPACE, "demo-agent").await?))
        })?;
        let held_port = |program| ports::choose(program, None);
        let held = [held_port("the operator")?, held_port("the CRM")?, held_port("the operator's API")?];
        let [port, crm_port, api_port] = held.each_ref().map(Port::number);
        let agent_folder = folder.join("agent");
        fs::create_dir_all(&agent_folder).map_err(Error::file("make", &agent_folder))?;
        let tenants_dir = agent_folder.to_string_lossy();

        let (listen, api) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{api_port}"));
        // Under a name of its own, it leads again at once when it comes back.
        let arguments = ["operator", "--namespace", NAMESPACE, "--lease-identity", "demo"];
        let arguments = arguments.into_iter().chain(["--listen", &listen, "--api-listen", &api]);
        let variables = [("KUBECONFIG", operator_config.as_os_str()), ("TENANTRY_LEDGER_URL", ledger.as_ref())];
        let operator = ground.spawn("operator", tenantry, arguments, variables)?;
        let arguments = ["agent", "--all-namespaces", "--dir", &tenants_dir];
        let agent = ground.spawn("agent", tenantry, arguments, [("KUBECONFIG", &agent_config)])?;
        let listen = format!("127.0.0.1:{crm_port}");
        let arguments = ["--listen", &listen, "--tenants-dir", &tenants_dir];
        let crm = ground.spawn("crm", crm, arguments, [("RUST_LOG", "info")])?;

        operator.await_ready(PROGRAM_READY, || http::get(port, "localhost", "/readyz")?.success())?;
        agent.await_ready(PROGRAM_READY, || listed(tenantry, &agent_folder))?;
        crm.await_ready(PROGRAM_READY, || http::get(crm_port, "localhost", "/healthz")?.success())?;
        ground.set_env("TENANTRY_URL", &format!("http://127.0.0.1:{port}"))?;
        ground.set_env("TENANTRY_METRICS_URL", &format!("http://127.0.0.1:{port}/metrics"))?;
        ground.set_env("TENANTRY", &tenantry.to_string_lossy())?;
        ground.set_env("CRM_URL", &format!("http://127.0.0.1:{crm_port}"))?;
        ground.set_env("TENANTRY_API_URL", &format!("http://127.0.0.1:{api_port}"))?;
        ground.set_env("TENANTRY_LEDGER_URL", ledger)?;
        let parts = Self { operator, agent, crm, relay: None, crm_port, port, api_port, held: held.into() };
        parts.tell_pids(ground)?;
        Ok(parts)
    }

    /// Starts the relay of a DatabaseServer, as the ServiceAccount that the operator has made for it.
    pub(super) fn start_relay(
        &mut self,
        ground: &mut Devcluster,
        tenantry: &Path,
        server: &str,
        folder: &Path,
    ) -> Result<(), Error> {
        let namespace = format!("tenantry-relay-{server}");
        let (config, token) = boot::blocking(async {
            await_account(ground.client().await?, &namespace, RELAY).await?;
            let config = ground.service_account_kubeconfig(&namespace, RELAY).await?;
            Ok((config, ground.service_account_token(&namespace, RELAY, Some(AUDIENCE)).await?))
        })?;
        let token_file = folder.join("relay-token");
        pki::write_private(&token_file, &token)?;
        let held = ports::choose("the relay", None)?;
        let port = held.number();
        self.held.push(held);
        let (listen, api) = (format!("127.0.0.1:{port}"), format!("http://127.0.0.1:{}", self.api_port));
        let token_file = token_file.to_string_lossy();
        let arguments = ["relay", "--server", server, "--namespace", &namespace, "--listen", &listen];
        let arguments = arguments.into_iter().chain(["--api-url", &api, "--token-file", &token_file]);
        let relay = ground.spawn("relay", tenantry, arguments, [("KUBECONFIG", &config)])?;
        relay.await_ready(PROGRAM_READY, || http::get(port, "localhost", "/readyz")?.success())?;
        ground.set_env("RELAY_METRICS_URL", &format!("http://127.0.0.1:{port}/metrics"))?;
        self.relay = Some(relay);
        self.tell_pids(ground)
    }

    /// Does some work with a client while all parts are up; fails as soon as one ends.
    pub(super) fn stay_while<T, W>(
        &self,
        ground: &mut Devcluster,
        work: impl FnOnce(Client) -> W + Send,
    ) -> Result<T, Error>
    where
        T: Send,
        W: Future<Output = Result<T, Error>> + Send,
    {
        // Each side sees by its end of this pair that the other is done.
        let (ours, theirs) = pair()?;
        let config = ground.kubeconfig().to_owned();
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || {
                boot::blocking(async move {
                    let given_up = closed(theirs)?;
                    let client = kubeconfig::client(&config).await?;
                    tokio::select! {
                        result = work(client) => result.map(Some),
                        () = given_up => Ok(None),
                    }
                })
            });
            let supervised = self.supervise(ground, &ours);
            drop(ours);
            let result = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            supervised?;
            Ok(result?.expect("only a failed supervision gives up"))
        })
    }

    /// Stays until `until` is readable. An operator or relay that ends is started again, as
    /// Kubernetes would; any other part that ends is an error.
    pub(super) fn supervise(&self, ground: &mut Devcluster, until: &impl AsFd) -> Result<(), Error> {
        let mut short_lives = 0;
        let restarted = || [Some(&self.operator), self.relay.as_ref()].into_iter().flatten();
        let all: Vec<&Process> = restarted().chain([&self.agent, &self.crm]).collect();
        loop {
            let start = Instant::now();
            let error = match ground.supervise(until, &all) {
                Err(error) => error,
                ended => return ended,
            };
            let Error::Died { program, status, .. } = &error else { return Err(error) };
            let Some(ended) = restarted().find(|process| process.name() == program) else { return Err(error) };
            if short_lives >= SHORT_LIVES {
                return Err(error);
            }
            eprintln!("demo: the {program} ended ({status}); it is started again, as Kubernetes would");
            short_lives = if start.elapsed() < SHORT_LIFE { short_lives + 1 } else { 0 };
            ended.start_again()?;
            self.tell_pids(ground)?;
        }
    }

    /// How many usage events came that the operator's ledger had already.
    pub(super) fn duplicates(&self) -> Result<u64, Error> {
        let metrics = http::get(self.port, "localhost", "/metrics").map_err(|why| Error::Missing {
            what: format!("the operator's metrics can't be read: {why}"),
            hint: "log/operator.log in the demo's folder tells more".into(),
        })?;
        let line = metrics.body.lines().find_map(|line| line.strip_prefix(DUPLICATES));
        Ok(line.and_then(|number| number.trim().parse().ok()).unwrap_or(0))
    }

    /// Those that may be killed at any moment, and are started again.
    pub(super) fn mortal(&self) -> Vec<&Process> {
        [Some(&self.operator), self.relay.as_ref(), Some(&self.agent)].into_iter().flatten().collect()
    }

    pub(super) fn tell_pids(&self, ground: &mut Devcluster) -> Result<(), Error> {
        let pids = [("OPERATOR_PID", Some(&self.operator)), ("RELAY_PID", self.relay.as_ref())];
        for (name, process) in pids {
            if let Some(pid) = process.and_then(Process::pid) {
                ground.set_env(name, &pid.to_string())?;
            }
        }
        Ok(())
    }
}

/// Waits for a ServiceAccount that the operator makes.
async fn await_account(client: Client, namespace: &str, name: &str) -> Result<(), Error> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "ServiceAccount"));
    let accounts: Api<DynamicObject> = Api::namespaced_with(client, namespace, &kind);
    let since = Instant::now();
    loop {
        if accounts.get_opt(name).await.map_err(boot::failed("look for the relay's ServiceAccount"))?.is_some() {
            return Ok(());
        }
        if since.elapsed() > PROGRAM_READY {
            return Err(Error::Missing {
                what: format!("the operator has made no ServiceAccount {namespace}/{name}"),
                hint: "`kubectl get databaseserver main -o yaml` and log/operator.log tell why".into(),
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Whether the agent has every tenant of its first list on disk; if not, why not.
fn listed(tenantry: &Path, folder: &Path) -> Result<(), String> {
    let check = Command::new(tenantry).args(["agent", "--check", "--dir"]).arg(folder).output();
    let check = check.map_err(|error| error.to_string())?;
    match check.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&check.stderr).trim().to_owned()),
    }
}

fn pair() -> Result<(UnixStream, UnixStream), Error> {
    UnixStream::pair().map_err(|source| no_pipe(&source))
}

fn no_pipe(source: &std::io::Error) -> Error {
    Error::Missing {
        what: format!("no pipe can be made: {source}"),
        hint: "raise the limit of open files (ulimit -n)".into(),
    }
}

/// Ends when a descriptor becomes readable, or its other end closes.
pub(super) fn closed(stream: UnixStream) -> Result<impl Future<Output = ()>, Error> {
    stream.set_nonblocking(true).map_err(|source| no_pipe(&source))?;
    let stream = tokio::net::UnixStream::from_std(stream).map_err(|source| no_pipe(&source))?;
    Ok(async move {
        // An error is an end too.
        let _ = stream.readable().await;
    })
}

/// What a user puts into the operator's namespace for a DatabaseServer, and an identity
/// for the one agent that stands for those of all pools.
async fn prepare(client: Client, admin: Admin, ca: &str) -> Result<(), Error> {
    let secret = |name: &str, data: Value| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}, "stringData": data});
    let objects = [
        secret("main-admin", json!({"username": admin.user, "password": admin.password})),
        secret("main-ca", json!({"ca.crt": ca})),
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "demo-agent", "namespace": NAMESPACE},
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "demo-agent"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "tenantry-agent"},
            "subjects": [{"kind": "ServiceAccount", "name": "demo-agent", "namespace": NAMESPACE}],
        }),
    ];
    for object in &objects {
        apply(client.clone(), object).await?;
    }
    Ok(())
}

async fn apply(client: Client, object: &Value) -> Result<(), Error> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (group, version) = text("/apiVersion").split_once('/').unwrap_or(("", text("/apiVersion")));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text("/kind")));
    let api: Api<DynamicObject> = match text("/metadata/namespace") {
        "" => Api::all_with(client, &resource),
        namespace => Api::namespaced_with(client, namespace, &resource),
    };
    let (name, action) = (text("/metadata/name"), format!("apply {} {}", text("/kind"), text("/metadata/name")));
    let applied = api.patch(name, &PatchParams::apply("demo").force(), &Patch::Apply(object)).await;
    applied.map(drop).map_err(boot::failed(&action))
}
