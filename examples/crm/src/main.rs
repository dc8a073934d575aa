//! `crm`: serves the CRM over HTTP until it is told to stop.

use std::future::IntoFuture;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use crm::{Limits, Tenants, router};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tracing_subscriber::EnvFilter;

/// How long requests in flight may take after a signal to stop.
const GRACE: Duration = Duration::from_secs(20);

/// A small CRM for many customers: the tenant is the Host header
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Address and port to listen on; port 0 takes a free one, which is logged
    #[arg(long, env = "CRM_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDR")]
    listen: SocketAddr,

    /// Folder that tenantry agent keeps
    #[arg(long, env = "CRM_TENANTS_DIR", default_value = "/var/run/tenantry", value_name = "DIR")]
    tenants_dir: PathBuf,

    /// Database connections open at once, over all tenants
    #[arg(long, env = "CRM_CONNECTIONS", default_value_t = Limits::default().open, value_name = "N")]
    connections: usize,

    /// Database connections open at once per tenant
    #[arg(long, env = "CRM_CONNECTIONS_PER_TENANT", default_value_t = Limits::default().open_per_tenant, value_name = "N")]
    connections_per_tenant: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();

    let limits = Limits {
        open: args.connections.max(1),
        open_per_tenant: args.connections_per_tenant.max(1),
        ..Limits::default()
    };
    let tenants = Arc::new(Tenants::new(&args.tenants_dir, limits));
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr().context("cannot tell the address that is listened on")?;
    tracing::info!(%address, tenants_dir = %args.tenants_dir.display(), "serving");

    let stopping = Arc::new(Notify::new());
    let stopped = Arc::clone(&stopping);
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let server = axum::serve(listener, router(Arc::clone(&tenants)))
        .with_graceful_shutdown(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            stopped.notify_one();
        })
        .into_future();
    let patience = async {
        stopping.notified().await;
        tracing::info!("finishing the requests in flight");
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = server => served.context("cannot serve any longer")?,
        () = patience => tracing::warn!("some requests did not finish in time"),
        () = tenants.tidy() => {}
    }
    tenants.close();
    Ok(())
}
