//! (c) to (g): an operator with ten thousand pooled tenants.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kube::Api;
use serde_json::json;
use tenantry::api::{Pool, Tenant};

use crate::{
    ground::{Ground, Operator, eventually},
    onboarding::{settle, tenants},
    processors::Usage,
    report::{Report, calls, listed, of_lease, writes_and_reads},
    statements::{self, StatementLog},
    tenants::{Watch, count, create_all},
};

/// How often each database is compared with its records while the operator is watched at rest:
/// often enough that the minute holds sweeps.
const SWEEP: &str = "30s";
/// How long the operator is watched at rest.
pub const MINUTE: Duration = Duration::from_secs(60);

/// Fills up to this many pooled tenants, all Ready.
pub async fn fill(ground: &Ground, report: &mut Report, operator: &Operator, size: usize) -> Result<()> {
    let there = count(&ground.client).await?;
    let missing = size.saturating_sub(there);
    if missing == 0 {
        return Ok(());
    }
    let watch = Watch::tenants(&ground.client).await?;
    let (start, usage) = (Instant::now(), Usage::now(ground, Some(operator))?);
    create_all(&ground.client, tenants("pooled", "fill", missing)).await?;
    let end = watch.await_holding("fillpooled", missing).await?;
    let rate = missing as f64 / end.duration_since(start).as_secs_f64();
    let (processor, shares) = Usage::now(ground, Some(operator))?.since(&usage, missing);
    let figure = format!("{rate:.1} tenants/s; processor time per tenant {processor:.1} ms ({shares})");
    report.add("a", &format!("from {there} to {size} pooled tenants"), figure, "");
    settle(ground, Duration::from_secs(5)).await
}

/// (d) Ends the operator and starts it again.
pub async fn restart(ground: &Ground, report: &mut Report, operator: Operator) -> Result<Operator> {
    let size = count(&ground.client).await? as u64;
    operator.stop()?;
    let audit = ground.cluster.audit();
    let mark = audit.mark()?;
    let operator = ground.operator(&["--sweep-interval", SWEEP])?;
    // Every tenant was looked at once the count of reconciles stands still, and not below the
    // number of tenants: the last change of the count is the end.
    let (mut known, mut last) = (0, None);
    eventually("every tenant was looked at", async || {
        // Often enough to know it to a quarter of a second, and too rarely to slow it down.
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = operator.metric("tenantry_reconciles_total", &["kind=\"Tenant\""]).unwrap_or(0);
        if now != known {
            (known, last) = (now, Some(Instant::now()));
        }
        Ok(last.filter(|last| known >= size && last.elapsed() > Duration::from_secs(3)))
    })
    .await?;
    let took = last.context("the count has changed")?.duration_since(operator.started).as_secs_f64();
    settle(ground, Duration::from_secs(3)).await?;
    let calls = calls(&audit.events(mark)?);
    let (writes, _) = writes_and_reads(&calls);
    let completed = operator.metric("tenantry_reconciles_total", &["kind=\"Tenant\"", "result=\"completed\""])?;
    report.add(
        "d",
        &format!("clean restart with {size} tenants, until each was reconciled"),
        format!(
            "{took:.1} s ({known} reconciles, {completed} of them completed; processor time {:.1} s)",
            operator.cpu()?.as_secs_f64()
        ),
        "15 s",
    );
    report.add("d", "API calls of a clean restart", format!("{writes} writes ({})", listed(&calls, 1)), "0 writes");
    Ok(operator)
}

/// (c) Counts what the operator does in a minute in which nothing happens.
pub async fn rest(ground: &Ground, report: &mut Report, operator: &Operator) -> Result<()> {
    let size = count(&ground.client).await?;
    settle(ground, Duration::from_secs(10)).await?;
    let log = StatementLog::of(ground.cluster.postgres()).await?;
    log.switch(true).await?;
    let (audit, from) = (ground.cluster.audit(), log.mark()?);
    let (mark, cpu) = (audit.mark()?, operator.cpu()?);
    tokio::time::sleep(MINUTE).await;
    let cpu = operator.cpu()?.saturating_sub(cpu);
    let events = audit.events(mark)?;
    let calls = calls(&events);
    let sent = log.since(from).await?;
    log.switch(false).await?;
    let (writes, reads) = writes_and_reads(&calls);
    report.add(
        "c",
        &format!("a minute at rest with {size} tenants: API calls"),
        format!(
            "{writes} writes, {reads} live reads ({} calls for the lease; processor time {:.2} s)",
            of_lease(&events),
            cpu.as_secs_f64()
        ),
        "0 writes, 0 live reads",
    );
    let mut sorts: BTreeMap<&str, usize> = BTreeMap::new();
    for statement in &sent {
        let sort = sort(&statement.text);
        if sort == OTHER {
            println!("  at rest, in {}: {}", statement.database, statement.text);
        }
        *sorts.entry(sort).or_default() += statements::count(&statement.text);
    }
    let sorts = sorts.into_iter().map(|(sort, count)| (sort.to_owned(), count)).collect();
    report.add(
        "c",
        &format!("the same: SQL statements (a sweep each {SWEEP} instead of 5 min)"),
        listed(&sorts, 1),
        "sweeps and health checks",
    );
    Ok(())
}

/// What is sent for nothing that is known to be done at rest.
const OTHER: &str = "other";

/// What a statement is for.
fn sort(text: &str) -> &'static str {
    const SWEEPS: [&str; 4] = [
        include_str!("../../src/database/sql/sweep_roles.sql"),
        include_str!("../../src/database/sql/sweep_memberships.sql"),
        include_str!("../../src/database/sql/sweep_grants.sql"),
        include_str!("../../src/database/sql/sweep_missing.sql"),
    ];
    const SORTS: [(&str, &str); 4] = [
        ("current_setting('server_version_num')", "health check"),
        ("WHERE c.comment LIKE 'tenantry {%'", "watchdog"),
        ("WHERE l.state = 'Closing'", "closing of logins"),
        ("tenantry.hold_fence(", "a write"),
    ];
    if SWEEPS.iter().any(|sweep| text.trim() == sweep.trim()) {
        return "sweep";
    }
    SORTS.iter().find(|(part, _)| text.contains(part)).map_or(OTHER, |(_, sort)| sort)
}

/// (g) Changes a limit of the plan that all tenants have; waits until it is enforced on all.
pub async fn limit(ground: &Ground, report: &mut Report) -> Result<()> {
    let size = count(&ground.client).await?;
    let postgres = ground.cluster.postgres();
    let pools = Api::<Pool>::all(ground.client.clone()).list(&Default::default()).await?;
    let tenants = Api::<Tenant>::all(ground.client.clone()).list(&Default::default()).await?;
    // A tenant of each database, with its own login: what it is refused, all of that plan in
    // that database are refused.
    let mut logins = Vec::new();
    for pool in &pools.items {
        let namespace = pool.status.as_ref().and_then(|status| status.namespace.clone()).context("a namespace")?;
        let is_in = |tenant: &&Tenant| {
            tenant.status.as_ref().is_some_and(|status| status.namespace.as_ref() == Some(&namespace))
        };
        let Some(tenant) = tenants.items.iter().find(is_in) else { continue };
        let database = tenant.status.as_ref().and_then(|status| status.database.clone()).context("a database")?;
        if database.server != "main" {
            continue;
        }
        let reference = database.secret_ref.context("a Secret")?;
        let secrets = Api::<k8s_openapi::api::core::v1::Secret>::namespaced(ground.client.clone(), &namespace);
        let data = secrets.get(&reference.name).await?.data.unwrap_or_default();
        let text = |key: &str| data.get(key).map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
        let (user, password) = (text("username").context("username")?, text("password").context("password")?);
        logins.push(statements::connect(postgres, &user, &password, &database.database).await?);
    }
    ensure!(!logins.is_empty(), "no pool has a tenant");
    let refused = async |login: &tokio_postgres::Client| {
        let asked = login.batch_execute("BEGIN; SELECT tenantry.record_usage('users', 1, 'bench')").await;
        login.batch_execute("ROLLBACK").await?;
        match asked {
            Ok(()) => Ok(false),
            Err(error) if error.code().is_some_and(|code| code.code() == "TN001") => Ok(true),
            Err(error) => Err(anyhow::Error::from(error)),
        }
    };
    for login in &logins {
        ensure!(!refused(login).await?, "a tenant was at its limit before it was changed");
    }
    let plan = json!({"apiVersion": "tenantry.io/v1alpha1", "kind": "Plan", "metadata": {"name": "smb"}});
    let patch = |max: i64| json!({"spec": {"limits": {"users": {"max": max, "policy": "Hard"}}}});
    let start = Instant::now();
    ground.merge(&plan, &patch(0)).await?;
    for login in &logins {
        eventually("the new limit is enforced", async || Ok(refused(login).await?.then_some(()))).await?;
    }
    let took = start.elapsed();
    report.add(
        "g",
        &format!("a limit of the plan changed for {size} tenants, until enforced in all {} databases", logins.len()),
        format!("{:.2} s", took.as_secs_f64()),
        "5 s",
    );
    ground.merge(&plan, &patch(50)).await?;
    for login in &logins {
        eventually("the old limit is back", async || Ok((!refused(login).await?).then_some(()))).await?;
    }
    settle(ground, Duration::from_secs(3)).await
}
