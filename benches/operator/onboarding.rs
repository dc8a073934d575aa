//! (a) and (b): how fast tenants become Ready, as a share of what a bare client reaches, and
//! what that takes of API server and PostgreSQL.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{
    ground::{Ground, Operator, eventually},
    processors::Usage,
    record::{Recipe, Recorder},
    replay::{Levels, Replay, ceiling, part},
    report::{self, Report, calls, listed, writes_and_reads},
    statements::StatementLog,
    tenants::{Watch, create_all, tenant},
};

/// Nothing happens by itself while one tenant is recorded.
const QUIET: [&str; 6] = ["--watchdog-interval", "1h", "--sweep-interval", "1h", "--health-interval", "1h"];
/// How many tenants are made before anything is measured, so that everything is warm.
const WARM_UP: usize = 20;

/// Measures one tier. Ends with a running operator; returns it with how many tenants it has made
/// Ready, and how many the bare client made.
pub async fn measure(ground: &Ground, report: &mut Report, tier: &'static str, count: usize) -> Result<Operator> {
    let watch = Watch::tenants(&ground.client).await?;
    let log = StatementLog::of(ground.cluster.postgres()).await?;
    let recorder = Recorder::start(ground).await?;
    let operator = ground.operator_by(&recorder.kubeconfig, &QUIET)?;
    ground.await_server("main").await?;
    let levels = if tier == "pooled" { Levels { first: 4, most: 64 } } else { Levels { first: 2, most: 32 } };
    let pools = pools(ground, tier, count + levels.tries() * part(count)).await?;
    create_all(&ground.client, tenants(tier, "warm", WARM_UP)).await?;
    watch.await_holding(&format!("warm{tier}"), WARM_UP).await?;
    settle(ground, Duration::from_secs(3)).await?;
    let recipe = recorder.recipe(ground, &log, &watch, tier).await?;
    operator.stop()?;
    drop(recorder);
    describe(&recipe);

    let deployments = if tier == "pooled" { None } else { Some(Watch::deployments(&ground.client).await?) };
    let replay = Replay::new(ground, &recipe, deployments.as_ref()).await?;
    let bare = ceiling(&replay, &format!("bare{tier}"), count, levels, &pools).await?;
    drop(replay);
    drop(deployments);

    let audit = ground.cluster.audit();
    let mark = audit.mark()?;
    let operator = ground.operator(&[])?;
    ground.await_server("main").await?;
    settle(ground, Duration::from_secs(5)).await?;
    let taken_over = calls(&audit.events(mark)?);
    println!("  after the bare client, the operator finds to change: {}", writes_listed(&taken_over));

    let sql = || -> Result<_> {
        let count = |name| operator.metric(name, &[]);
        Ok((count("tenantry_database_statements_total")?, count("tenantry_database_connections_opened_total")?))
    };
    let (mark, before) = (audit.mark()?, sql()?);
    let usage = Usage::now(ground, Some(&operator))?;
    let bodies = tenants(tier, "own", count);
    let start = Instant::now();
    create_all(&ground.client, bodies).await?;
    let end = watch.await_holding(&format!("own{tier}"), count).await?;
    let took = end.duration_since(start).as_secs_f64();
    let (processor, shares) = Usage::now(ground, Some(&operator))?.since(&usage, count);
    let rate = count as f64 / took;
    settle(ground, Duration::from_secs(3)).await?;
    report.add(
        "a",
        &format!("{count} {tier} tenants to Ready"),
        format!(
            "{rate:.1} tenants/s; a bare client {:.1} ({} at a time): {:.2} of the ceiling",
            bare.rate,
            bare.concurrency,
            rate / bare.rate
        ),
        "0.8 of the ceiling",
    );
    report.add(
        "a",
        &format!("processor time per {tier} tenant"),
        format!("{processor:.1} ms ({shares}); with the bare client {:.1} ms ({})", bare.processor, bare.shares),
        "",
    );
    let calls = calls(&audit.events(mark)?);
    let (writes, reads) = writes_and_reads(&calls);
    let now = sql()?;
    let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / count as f64;
    report.add(
        "b",
        &format!("API calls per {tier} tenant"),
        format!(
            "{:.2} writes, {:.2} live reads ({})",
            writes as f64 / count as f64,
            reads as f64 / count as f64,
            listed(&calls, count)
        ),
        "",
    );
    report.add(
        "b",
        &format!("SQL statements per {tier} tenant"),
        format!("{:.1}, by {:.1} logins", each(now.0, before.0), each(now.1, before.1)),
        "",
    );
    Ok(operator)
}

fn describe(recipe: &Recipe) {
    let (tier, calls, messages) = (recipe.tier, recipe.calls(), recipe.messages());
    println!("  recorded of one {tier} tenant: {calls} API writes, {messages} messages of SQL");
}

fn writes_listed(calls: &std::collections::BTreeMap<String, usize>) -> String {
    let writes = calls.iter().filter(|(call, _)| !call.starts_with("get ") && !call.starts_with("list "));
    report::listed(&writes.map(|(call, count)| (call.clone(), *count)).collect(), 1)
}

/// Tenants of a tier that are told apart by the beginning of their names.
pub fn tenants(tier: &str, prefix: &str, count: usize) -> Vec<serde_json::Value> {
    (0..count).map(|number| tenant(&format!("{prefix}{tier}{number:05}"), "crm", tier)).collect()
}

/// The pools that the bare client fills with so many tenants, made by the operator beforehand.
async fn pools(ground: &Ground, tier: &str, count: usize) -> Result<Vec<String>> {
    if tier != "pooled" {
        return Ok(Vec::new());
    }
    // 500 to a pool, and those that are made before anything is measured are all in one.
    let names: Vec<_> = (0..count.div_ceil(500 - WARM_UP - 1)).map(|number| format!("crm-9{number:02}")).collect();
    for name in &names {
        ground.pool(name).await?;
    }
    Ok(names)
}

/// Waits until the operator has made no call for a while.
pub async fn settle(ground: &Ground, quiet: Duration) -> Result<()> {
    let audit = ground.cluster.audit();
    let (mut mark, mut since) = (audit.mark()?, Instant::now());
    eventually("the operator is at rest", async || {
        let next = audit.mark()?;
        if next > mark && !calls(&audit.events(mark)?).is_empty() {
            since = Instant::now();
        }
        mark = next;
        Ok((since.elapsed() >= quiet).then_some(()))
    })
    .await
}
