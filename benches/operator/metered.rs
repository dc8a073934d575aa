//! (l): ten thousand tenants that are metered: at rest, and while all of them count.

use std::{
    collections::{BTreeMap, HashMap},
    net::TcpListener,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use kube::Api;
use tenantry::api::Tenant;
use tokio_postgres::Client;

use crate::{
    fleet::MINUTE,
    ground::{Ground, Operator, eventually},
    onboarding::settle,
    pipeline::{Relay, ledger, superuser},
    report::{Report, calls, listed, of_lease, writes_and_reads},
    tenants::{Watch, count},
};

/// How many tenants count in a second.
const RATE: usize = 200;

/// Meters tenants that are there: the ledger, which knows none of them yet, is told of all.
///
/// Ends with that operator, without its relay.
pub async fn measure(ground: &Ground, report: &mut Report, operator: Operator) -> Result<Operator> {
    let size = count(&ground.client).await?;
    operator.stop()?;
    let ledger = ledger(ground.cluster.postgres()).await?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let listen = format!("127.0.0.1:{port}");
    let watch = Watch::start(&ground.client, crate::tenants::TENANTS, "UsageComplete").await?;
    let operator = ground.operator(&["--ledger-url", &ledger, "--api-listen", &listen])?;
    ground.await_server("main").await?;
    let mut relay = Relay::start(ground, &format!("http://{listen}")).await?;
    let told = watch.await_holding("", size).await?.duration_since(operator.started).as_secs_f64();
    let what = format!("a ledger is given to {size} tenants, until the status of each tells its usage");
    report.add("l", &what, format!("{told:.1} s ({:.0} tenants/s)", size as f64 / told), "");

    settle(ground, Duration::from_secs(10)).await?;
    let audit = ground.cluster.audit();
    let (mark, cpu) = (audit.mark()?, operator.cpu()?);
    tokio::time::sleep(MINUTE).await;
    let cpu = operator.cpu()?.saturating_sub(cpu).as_secs_f64();
    let events = audit.events(mark)?;
    let made = calls(&events);
    let (writes, reads) = writes_and_reads(&made);
    report.add(
        "l",
        &format!("a minute at rest with {size} metered tenants: API calls"),
        format!(
            "{writes} writes, {reads} live reads ({}; {} calls for the lease; processor time {cpu:.2} s)",
            listed(&made, 1),
            of_lease(&events)
        ),
        "0 writes, 0 live reads",
    );
    report.add("l", "resident with them", format!("{:.1} MB", crate::megabytes(operator.memory("VmRSS")?)), "");

    let (mark, cpu) = (audit.mark()?, operator.cpu()?);
    let users = count_for_a_minute(ground).await?;
    let counted = Instant::now();
    let tenants = Api::<Tenant>::all(ground.client.clone());
    let late = eventually("each status tells what was counted", async || {
        let all = tenants.list(&Default::default()).await?;
        let tells = |tenant: &Tenant| {
            let status = tenant.status.as_ref()?;
            let usage = status.usage.as_ref()?;
            let users_now = usage.meters.iter().find(|meter| meter.name == "users")?.current;
            let counted = users.get(status.id.as_ref()?).copied().unwrap_or(0);
            (users_now == counted).then_some(())
        };
        Ok(all.iter().all(|tenant| tells(tenant).is_some()).then(|| counted.elapsed()))
    });
    let late = late.await?.as_secs_f64();
    let cpu = operator.cpu()?.saturating_sub(cpu).as_secs_f64();
    let made: i64 = users.values().sum();
    let written = calls(&audit.events(mark)?);
    report.add(
        "l",
        &format!("{made} changes of users in a minute, over {size} tenants: API calls"),
        format!("{} (processor time of the operator {cpu:.1} s)", listed(&written, 1)),
        "no more writes than changes",
    );
    report.add("l", "the last of these committed, until the status of each tenant agrees", format!("{late:.1} s"), "");
    relay.stop();
    Ok(operator)
}

/// All tenants add users in turn for a minute, [`RATE`] of them in a second; how many each has.
async fn count_for_a_minute(ground: &Ground) -> Result<HashMap<String, i64>> {
    let mut databases: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for tenant in Api::<Tenant>::all(ground.client.clone()).list(&Default::default()).await? {
        let status = tenant.status.context("a status")?;
        let (id, database) = (status.id.context("an id")?, status.database.context("a database")?);
        if database.server == "main" {
            databases.entry(database.database).or_default().push(id);
        }
    }
    ensure!(!databases.is_empty(), "no tenant counts");
    let each = RATE as f64 / databases.len() as f64;
    let counting = databases.into_iter().map(|(database, ids)| async move {
        let client = superuser(ground.cluster.postgres(), &database).await?;
        count_in(&client, &ids, each).await
    });
    Ok(try_join_all(counting).await?.into_iter().flatten().collect())
}

/// The tenants of one database, this many of them in a second.
async fn count_in(client: &Client, ids: &[String], rate: f64) -> Result<HashMap<String, i64>> {
    let mut users: HashMap<String, i64> = HashMap::new();
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    let end = Instant::now() + MINUTE;
    for id in ids.iter().cycle() {
        ticks.tick().await;
        if Instant::now() >= end {
            break;
        }
        // As the tenant: a login of each would take ten thousand sessions.
        let statement = format!("SET SESSION AUTHORIZATION {id}_app_a; SELECT tenantry.record_usage('users', 1, NULL)");
        let counted = client.batch_execute(&statement).await;
        client.batch_execute("RESET SESSION AUTHORIZATION").await?;
        counted.with_context(|| format!("{id} counts"))?;
        *users.entry(id.clone()).or_default() += 1;
    }
    Ok(users)
}
