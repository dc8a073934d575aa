//! The `tenantry` program: one binary, one subcommand for each of its parts.

use std::{
    env,
    io::{IsTerminal as _, stderr},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use kube::Config;
use tenantry::{
    agent, cli, controller, crds, relay,
    web::{Api, ApiSettings, Tls, TlsFiles, Web},
};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

/// A static program would have musl's, which makes threads wait for each other.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long answers that are under way may take when everything else has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Runs one SaaS product for many customers, each at the isolation tier that its plan pays for.
#[derive(Debug, Parser)]
#[command(name = "tenantry", version, propagate_version = true)]
struct Cli {
    /// What is logged: a level, or levels by module (see tracing-subscriber's EnvFilter)
    #[arg(long, env = "TENANTRY_LOG", default_value = "info", global = true)]
    log: String,
    /// How it is logged
    #[arg(long, env = "TENANTRY_LOG_FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator: bring cluster and databases to what Tenants, Plans and the others say
    Operator(Box<controller::OperatorArgs>),
    /// Keep the tenants' Secrets of a namespace as files, for the containers beside
    Agent(agent::Args),
    /// Carry usage events from the databases of a DatabaseServer to the operator's API
    Relay(relay::Args),
    /// Print the CustomResourceDefinitions, write them to files, or print their reference
    Crds(crds::Args),
    #[command(flatten)]
    User(cli::Command),
}

fn main() -> anyhow::Result<ExitCode> {
    if cli::is_plugin(env::args_os().next().as_deref()) {
        return Ok(cli::plugin());
    }
    let cli = Cli::parse();
    start_log(&cli)?;
    match cli.command {
        Command::Operator(args) => {
            let runtime = Builder::new_multi_thread().enable_all().build()?;
            let ended = runtime.block_on(operator(*args));
            // Tasks that nobody waits for (watches, a server's maintenance) end where they are.
            runtime.shutdown_background();
            ended?;
        }
        Command::Agent(args) => {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { agent::run(args, ended()?).await.map_err(anyhow::Error::from) })?;
        }
        Command::Relay(args) => {
            let runtime = Builder::new_multi_thread().enable_all().build()?;
            let ended = runtime.block_on(async { relay::run(args, ended()?).await.map_err(anyhow::Error::from) });
            runtime.shutdown_background();
            ended?;
        }
        Command::Crds(args) => crds::run(&args)?,
        Command::User(command) => return Ok(cli::run(command)),
    }
    Ok(ExitCode::SUCCESS)
}

fn start_log(cli: &Cli) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&cli.log).with_context(|| format!("--log {:?}", cli.log))?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(stderr().is_terminal());
    match cli.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

async fn operator(args: controller::OperatorArgs) -> anyhow::Result<()> {
    let web = Web::bind(args.listen).await?;
    let api = if args.ledger_url.is_some() { Some(bind_api(&args).await?) } else { None };
    let config = Config::infer().await.context("find a cluster: set KUBECONFIG, or run in a pod")?;
    let end = ended()?;
    let asked = async move {
        end.await;
        // Listens from here on: the first signal is not the second.
        if let Ok(again) = ended() {
            tokio::spawn(async move {
                again.await;
                tracing::warn!("asked to end once more: ending at once");
                std::process::exit(1);
            });
        }
    };
    let (operator, running) = controller::start(args, config, asked).await?;
    let (stop, stopping) = tokio::sync::watch::channel(());
    let stopped = || {
        let mut stopping = stopping.clone();
        // The sender goes with this function, which ends the servers as well.
        async move { while stopping.changed().await.is_ok() {} }
    };
    let events = api.zip(operator.metering()).map(|(api, metering)| {
        let settings = ApiSettings::new(metering.window, metering.patience);
        tokio::spawn(api.serve(metering.ledger, metering.client, metering.counts, settings, stopped()))
    });
    let serving = tokio::spawn(web.serve(operator, stopped()));
    running.await?;
    drop(stop);
    // Whoever still reads an answer has had long enough by then.
    let answered = async {
        if let Some(events) = events {
            events.await?;
        }
        serving.await?
    };
    tokio::time::timeout(LAST_ANSWERS, answered).await.unwrap_or(Ok(()))
}

/// Takes the API's address, with TLS where there is a certificate.
async fn bind_api(args: &controller::OperatorArgs) -> anyhow::Result<Api> {
    let files = args.api_tls_cert.clone().zip(args.api_tls_key.clone());
    let tls = files.map(|(certificate, key)| Tls::load(TlsFiles { certificate, key })).transpose()?;
    let api = Api::bind(args.api_listen).await?;
    Ok(match tls {
        Some(tls) => api.with_tls(tls),
        None => api,
    })
}

/// Ready when the process is asked to end.
fn ended() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
