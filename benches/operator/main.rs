//! `make bench`: what the operator does for a thousand and for ten thousand tenants, on a real
//! control plane and a real PostgreSQL, in one run. The figures and what they mean are in
//! docs/performance.md.
//!
//! Nothing here fails because something is slow: it only measures.

mod bulkhead;
mod drift;
mod fleet;
mod ground;
mod metered;
mod onboarding;
mod pipeline;
mod processors;
mod record;
mod replay;
mod report;
mod statements;
mod tenants;
mod usage;

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use kube::{Api, api::ListParams};
use tenantry::api::Tenant;

use self::{
    ground::{Ground, Operator},
    onboarding::settle,
    report::Report,
    tenants::Watch,
};

/// Measures the operator.
#[derive(Parser)]
#[command(name = "bench")]
struct Args {
    /// What is measured; everything where nothing is named
    #[arg(value_enum)]
    figures: Vec<Figure>,
    /// How many pooled tenants are onboarded against the clock
    #[arg(long, default_value_t = 1_000)]
    pooled: usize,
    /// How many dedicated tenants are onboarded against the clock
    #[arg(long, default_value_t = 200)]
    dedicated: usize,
    /// How many pooled tenants there are for rest, restart, memory, drift and limit
    #[arg(long, default_value_t = 10_000)]
    tenants: usize,
    /// How often each kind of drift is made
    #[arg(long, default_value_t = 50)]
    samples: usize,
    /// How many tenants a frozen server has
    #[arg(long, default_value_t = 500)]
    frozen: usize,
    /// How many tenants count, for what is on its way from the transaction
    #[arg(long, default_value_t = 100)]
    counting: usize,
    /// How many events of theirs wait for the relay
    #[arg(long, default_value_t = 200_000)]
    waiting: usize,
    /// Write the table to docs/performance.md
    #[arg(long)]
    write: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// (a), (b): tenants per second, calls and statements per tenant
    Onboarding,
    /// (c): a minute in which nothing happens
    Rest,
    /// (d): a clean restart
    Restart,
    /// (e): resident memory
    Memory,
    /// (e): resident memory, while tenants come and go for good
    Churn,
    /// (f): repair of what was changed by hand
    Drift,
    /// (g): a plan's limit, until it is enforced on all
    Limit,
    /// (h): tenants of one server while another stands still
    Bulkhead,
    /// (a), (b) for tier dedicated
    Dedicated,
    /// (i): calls of record_usage
    Usage,
    /// (l): a ledger for all tenants, at rest and while they count
    Metered,
    /// (j), (k): usage from the transaction into the ledger, to who reads it there, and into status
    Pipeline,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if args.write {
        report::check()?;
    }
    let command = command();
    println!("{}", report::circumstances(&command)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut report = Report::default();
    runtime.block_on(measure(&args, &mut report))?;
    println!("\n{}", report.table());
    if args.write { report.write(&command) } else { Ok(()) }
}

fn command() -> String {
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if words.is_empty() { "make bench".into() } else { format!("make bench ARGS=\"{}\"", words.join(" ")) }
}

/// For how long each kind of transaction is counted.
const SPELL: Duration = Duration::from_secs(3);

async fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let wants = |figure| args.figures.is_empty() || args.figures.contains(&figure);
    if wants(Figure::Usage) {
        usage::measure(report, SPELL).await?;
    }
    // Dedicated tenants are made three times: in search of the ceiling, by the bare client, by the
    // operator; at least as many as are made at a time. Each has three pods.
    let pods = (args.dedicated * 3 + 200) * 3 + args.tenants / 100 + 100;
    let ground = Ground::start(pods).await?;
    let base = base(&ground, report, wants(Figure::Memory)).await?;
    let mut operator = if wants(Figure::Onboarding) && args.pooled > 0 {
        onboarding::measure(&ground, report, "pooled", args.pooled).await?
    } else {
        ground.operator(&[])?
    };
    let of_fleet = [Figure::Rest, Figure::Restart, Figure::Memory, Figure::Drift, Figure::Limit, Figure::Metered];
    if of_fleet.into_iter().any(wants) {
        ground.await_server("main").await?;
        fleet::fill(&ground, report, &operator, args.tenants).await?;
        if wants(Figure::Memory) {
            memory(&ground, report, &operator, "after they were made", base).await?;
        }
        if wants(Figure::Restart) || wants(Figure::Rest) {
            operator = fleet::restart(&ground, report, operator).await?;
        }
        if wants(Figure::Rest) {
            fleet::rest(&ground, report, &operator).await?;
        }
        if wants(Figure::Memory) {
            memory(&ground, report, &operator, "after a restart", base).await?;
        }
        if wants(Figure::Drift) {
            drift::measure(&ground, report, args.samples).await?;
        }
        if wants(Figure::Limit) {
            fleet::limit(&ground, report).await?;
        }
        if wants(Figure::Metered) {
            operator = metered::measure(&ground, report, operator).await?;
        }
    }
    if wants(Figure::Bulkhead) {
        ground.await_server("main").await?;
        bulkhead::measure(&ground, report, args.frozen, args.frozen / 5).await?;
    }
    if wants(Figure::Churn) {
        ground.await_server("main").await?;
        churn(&ground, report, &operator).await?;
    }
    if wants(Figure::Memory) {
        emptied(&ground, report, &operator, base).await?;
    }
    if wants(Figure::Dedicated) && args.dedicated > 0 {
        operator.stop()?;
        operator = onboarding::measure(&ground, report, "dedicated", args.dedicated).await?;
    }
    operator.stop()?;
    if wants(Figure::Pipeline) {
        pipeline::measure(&ground, report, args.counting, args.waiting).await?;
    }
    Ok(())
}

/// (e) What an operator without tenants takes, in kB.
async fn base(ground: &Ground, report: &mut Report, wanted: bool) -> Result<u64> {
    if !wanted {
        return Ok(0);
    }
    let operator = ground.operator(&[])?;
    ground.await_server("main").await?;
    settle(ground, Duration::from_secs(5)).await?;
    let base = operator.memory("VmRSS")?;
    report.add("e", "resident without tenants", format!("{:.1} MB", megabytes(base)), "40 MB");
    operator.stop()?;
    Ok(base)
}

/// (e) What an operator with all its tenants takes.
async fn memory(ground: &Ground, report: &mut Report, operator: &Operator, when: &str, base: u64) -> Result<()> {
    settle(ground, Duration::from_secs(10)).await?;
    let (now, most) = (operator.memory("VmRSS")?, operator.memory("VmHWM")?);
    let count = tenants::count(&ground.client).await?;
    let per_tenant = |beyond: f64| (megabytes(now) - beyond) * 1e3 / count as f64;
    let (each, beyond) = (per_tenant(megabytes(base)), per_tenant(40.0));
    report.add(
        "e",
        &format!("resident with {count} tenants, {when}"),
        format!(
            "{:.1} MB (most: {:.1} MB): {each:.1} kB per tenant over its base, {beyond:.1} over 40 MB",
            megabytes(now),
            megabytes(most)
        ),
        "10 kB per tenant over 40 MB",
    );
    Ok(())
}

/// How many tenants come and go at a time, and how often.
const COMERS: (usize, usize) = (500, 4);

/// (e) What an operator takes while tenants are made and deleted, with their data, again and again.
async fn churn(ground: &Ground, report: &mut Report, operator: &Operator) -> Result<()> {
    let watch = Watch::tenants(&ground.client).await?;
    let (each, rounds) = COMERS;
    let mut resident = vec![format!("{:.1} MB", megabytes(operator.memory("VmRSS")?))];
    for round in 0..rounds {
        let mut bodies = onboarding::tenants("pooled", &format!("comer{round}x"), each);
        let names: Vec<_> =
            bodies.iter().filter_map(|body| body["metadata"]["name"].as_str().map(str::to_owned)).collect();
        for body in &mut bodies {
            body["spec"]["deletionPolicy"] = "Delete".into();
        }
        tenants::create_all(&ground.client, bodies).await?;
        watch.await_holding(&format!("comer{round}x"), each).await?;
        tenants::delete_all(&ground.client, &names).await?;
        watch.await_gone(&format!("comer{round}x")).await?;
        settle(ground, Duration::from_secs(15)).await?;
        resident.push(format!("{:.1} MB", megabytes(operator.memory("VmRSS")?)));
    }
    report.add(
        "e",
        &format!("resident before, and after each of {rounds} times {each} tenants made and deleted (Delete)"),
        resident.join(", "),
        "the last as the first",
    );
    Ok(())
}

/// (e) What an operator takes whose tenants were all deleted.
async fn emptied(ground: &Ground, report: &mut Report, operator: &Operator, base: u64) -> Result<()> {
    let watch = Watch::tenants(&ground.client).await?;
    let all = Api::<Tenant>::all(ground.client.clone()).list_metadata(&ListParams::default()).await?;
    let names: Vec<_> = all.items.into_iter().filter_map(|tenant| tenant.metadata.name).collect();
    let start = std::time::Instant::now();
    tenants::delete_all(&ground.client, &names).await?;
    watch.await_gone("").await?;
    let rate = names.len() as f64 / start.elapsed().as_secs_f64();
    report.add("a", &format!("{} tenants deleted (Retain)", names.len()), format!("{rate:.1} tenants/s"), "");
    settle(ground, Duration::from_secs(15)).await?;
    let now = operator.memory("VmRSS")?;
    report.add(
        "e",
        "resident after all were deleted",
        format!("{:.1} MB, {:+.1} MB over its base", megabytes(now), megabytes(now) - megabytes(base)),
        "near its base",
    );
    Ok(())
}

/// From kB of 1,024 bytes, as /proc counts.
fn megabytes(kilobytes: u64) -> f64 {
    kilobytes as f64 * 1024.0 / 1e6
}
