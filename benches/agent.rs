//! What `tenantry agent` costs for 1,000 tenants: resident memory, size of the volume, time of the first list.
//!
//! `cargo bench --bench agent [-- TENANTS]`. The agent is the program that users run.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use devcluster::{Devcluster, Options};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};
use tenantry::agent;

/// How many calls of the API are under way at once.
const CALLS: usize = 16;

fn main() -> Result<()> {
    let tenants = env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1000);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let cluster =
        Devcluster::start(Options { api_only: true, postgres: false, gateway_api: false, ..Options::default() })?;
    runtime.block_on(measure(&cluster, tenants))
}

/// An agent that ends with this value.
struct Agent(Child);

impl Agent {
    fn start(cluster: &Devcluster, dir: &Path) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenantry"));
        command.args(["--log", "warn", "agent", "--linger-seconds", "1", "--dir"]).arg(dir);
        Ok(Self(command.env("KUBECONFIG", cluster.kubeconfig()).spawn()?))
    }

    /// A line of its status, in KiB.
    fn memory(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
        Ok(line.trim_matches([':', '\t', ' ']).trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn measure(cluster: &Devcluster, tenants: usize) -> Result<()> {
    let client = cluster.client().await?;
    write(&client, tenants, "first").await?;
    // In memory, as the volume of a pool's pods is.
    let folder = tempfile::Builder::new().prefix("tenantry-agent-").tempdir_in("/dev/shm")?;
    let dir = folder.path().join("run");

    let start = Instant::now();
    let agent = Agent::start(cluster, &dir)?;
    let status = wait(|| agent::check(&dir).ok()).await?;
    ensure!(status.tenants == tenants, "{} of {tenants} tenants", status.tenants);
    println!("tenants                     {tenants}");
    println!("first list on disk after    {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    println!("resident after the list     {} KiB (most: {} KiB)", agent.memory("VmRSS")?, agent.memory("VmHWM")?);
    println!("volume                      {} KiB", volume(&dir)?);

    write(&client, tenants, "second").await?;
    wait(|| agent::check(&dir).ok().filter(|status| status.written == 2 * tenants as u64)).await?;
    println!("resident after all rotated  {} KiB (most: {} KiB)", agent.memory("VmRSS")?, agent.memory("VmHWM")?);
    Ok(())
}

/// Writes each tenant's Secret, as large as a real one.
async fn write(client: &Client, tenants: usize, password: &str) -> Result<()> {
    let secrets: Api<Secret> = Api::default_namespaced(client.clone());
    stream::iter(0..tenants)
        .map(|number| {
            let secret = secret(number, password);
            let secrets = secrets.clone();
            async move {
                let name = format!("tenant-{number}");
                secrets.patch(&name, &PatchParams::apply("bench").force(), &Patch::Apply(&secret)).await.map(drop)
            }
        })
        .buffer_unordered(CALLS)
        .try_collect::<()>()
        .await
        .context("cannot write the Secrets")
}

fn secret(number: usize, password: &str) -> Secret {
    let tenant = format!("tenant-{number}");
    let password = format!("{password}-{number:0>32}");
    let username = format!("t_{number:0>12}_a");
    let uri = format!("postgresql://{username}:{password}@db.example.com:5432/pool-1?sslmode=verify-full");
    let authority = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", "x".repeat(1600));
    let data = [
        ("type", "postgresql"),
        ("provider", "tenantry"),
        ("host", "db.example.com"),
        ("port", "5432"),
        ("database", "pool-1"),
        ("schema", username.as_str()),
        ("username", username.as_str()),
        ("password", password.as_str()),
        ("sslmode", "verify-full"),
        ("uri", uri.as_str()),
        ("ca.crt", authority.as_str()),
    ];
    Secret {
        metadata: ObjectMeta {
            name: Some(tenant.clone()),
            labels: Some([("tenantry.io/tenant".to_owned(), tenant.clone())].into()),
            annotations: Some([("tenantry.io/hosts".to_owned(), format!("{tenant}.crm.example.com"))].into()),
            ..ObjectMeta::default()
        },
        type_: Some(agent::binding::SECRET_TYPE.to_owned()),
        data: Some(data.map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec()))).into()),
        ..Secret::default()
    }
}

/// Size of what is in the volume, in KiB.
fn volume(dir: &Path) -> Result<u64> {
    let output = Command::new("du").arg("-sk").arg(dir).output().context("cannot run du")?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().next().context("du says nothing")?.parse()?)
}

async fn wait<T>(mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return Ok(seen);
        }
        ensure!(start.elapsed() < Duration::from_secs(120), "waited in vain");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
