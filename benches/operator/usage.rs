//! How many calls of `record_usage` a server takes, against plain inserts in the same run.

use std::time::{Duration, Instant};

use anyhow::Result;
use devcluster::{Postgres, PostgresOptions};
use tenantry::database::{
    Credentials, DatabaseSpec, MeterDefinition, MeterKind, MeterSource, Password, Purpose, Server, ServerConfig,
    TenantId, TenantSettings, TenantSpec, Timeouts, Tls,
};
use tokio_postgres::{Client, NoTls};

use crate::report::Report;

const DATABASE: &str = "bench";
const CLUSTER: &str = "bench";
/// Writers at most, and tenants.
const MOST: usize = 64;
/// How long an application works before or after it counts.
const WORK: Duration = Duration::from_millis(10);

/// What a transaction does beside an insert.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Nothing.
    Insert,
    /// It counts, as the last thing.
    Count,
    /// It works for 10 ms after the insert, then commits.
    WorkInsert,
    /// It works for 10 ms, then counts, as the documentation advises.
    WorkThenCount,
    /// It counts first, and works for 10 ms while it holds the counter.
    CountThenWork,
}

/// Measures each case for as long as `each`.
pub async fn measure(report: &mut Report, each: Duration) -> Result<()> {
    let settings = [("max_connections", "200"), ("shared_buffers", "512MB")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let options = PostgresOptions { settings, ..PostgresOptions::default() };
    let postgres = tokio::task::spawn_blocking(|| Postgres::start(options)).await??;
    let logins = prepare(&postgres).await?;
    let mut clients = Vec::new();
    for login in &logins {
        clients.push(client(&postgres, login).await?);
    }
    let mut of_one = Vec::new();
    for _ in 0..MOST {
        of_one.push(client(&postgres, &logins[0]).await?);
    }
    // As a migration makes it: the application itself may make no tables.
    let superuser = connect(&postgres, "postgres", postgres.superuser_password()).await?;
    for login in &logins {
        let schema = &login.schema;
        let table = format!(
            "CREATE TABLE {schema}.things (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);
             GRANT INSERT ON {schema}.things TO PUBLIC"
        );
        superuser.batch_execute(&table).await?;
    }
    for (writers, name) in [(1, "1 writer"), (16, "16 writers"), (MOST, "64 writers")] {
        compare(report, &format!("one meter, {name}"), &of_one[..writers], each).await?;
    }
    compare(report, "64 meters of 64 tenants, a writer each", &clients, each).await
}

/// The same clients with and without counting.
async fn compare(report: &mut Report, what: &str, clients: &[Client], each: Duration) -> Result<()> {
    let plain = rate(clients, Does::Insert, each).await?;
    let counted = rate(clients, Does::Count, each).await?;
    report.add(
        "i",
        &format!("record_usage, {what}"),
        format!("{counted:.0}/s; {:.2} of {plain:.0}/s plain inserts", counted / plain),
        "",
    );
    let worked = rate(clients, Does::WorkInsert, each).await?;
    for (does, words) in
        [(Does::WorkThenCount, "10 ms of work before it"), (Does::CountThenWork, "10 ms of work after it")]
    {
        let counted = rate(clients, does, each).await?;
        report.add(
            "i",
            &format!("record_usage, {what}, {words}"),
            format!("{counted:.0}/s; {:.2} of {worked:.0}/s inserts with that work", counted / worked),
            "",
        );
    }
    Ok(())
}

/// Transactions per second of all clients together.
async fn rate(clients: &[Client], does: Does, each: Duration) -> Result<f64> {
    let start = Instant::now();
    let end = start + each;
    let runs = clients.iter().map(|client| async move {
        let mut done = 0_u64;
        while Instant::now() < end {
            transaction(client, does).await?;
            done += 1;
        }
        anyhow::Ok(done)
    });
    let done: u64 = futures::future::try_join_all(runs).await?.into_iter().sum();
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

async fn transaction(client: &Client, does: Does) -> Result<()> {
    const INSERT: &str = "INSERT INTO things (name) VALUES ('x')";
    const COUNT: &str = "SELECT record_usage('users', 1, 'thing')";
    if does == Does::Insert {
        return Ok(client.batch_execute(&format!("BEGIN; {INSERT}; COMMIT")).await?);
    }
    if does == Does::Count {
        return Ok(client.batch_execute(&format!("BEGIN; {INSERT}; {COUNT}; COMMIT")).await?);
    }
    let first =
        if does == Does::CountThenWork { format!("BEGIN; {INSERT}; {COUNT}") } else { format!("BEGIN; {INSERT}") };
    client.batch_execute(&first).await?;
    tokio::time::sleep(WORK).await;
    let last = if does == Does::WorkThenCount { format!("{COUNT}; COMMIT") } else { "COMMIT".to_owned() };
    Ok(client.batch_execute(&last).await?)
}

/// A database with tenants whose logins take as many sessions as are wanted.
async fn prepare(postgres: &Postgres) -> Result<Vec<Credentials>> {
    let admin = postgres.admin();
    let server = Server::new(ServerConfig {
        host: postgres.host().to_owned(),
        port: postgres.port(),
        database: "postgres".to_owned(),
        user: admin.user,
        password: Password::new(admin.password),
        tls: Tls::VerifyFull { ca_pem: postgres.ca_pem().to_owned() },
        endpoint: None,
        connections: 8,
        timeouts: Timeouts::default(),
    })?;
    let spec = DatabaseSpec {
        name: DATABASE.to_owned(),
        cluster_id: CLUSTER.to_owned(),
        purpose: Purpose::Pool(DATABASE.to_owned()),
        connection_limit: None,
    };
    server.ensure_database(&spec).await?;
    let users = MeterDefinition { name: "users".into(), kind: MeterKind::Level, source: MeterSource::Database };
    server.set_meters(DATABASE, "crm", &[users]).await?;
    let mut logins = Vec::new();
    for number in 0..MOST {
        let uid = format!("bench-{number}");
        let spec = TenantSpec {
            id: TenantId::from_uid(&uid),
            name: format!("bench-{number}"),
            uid,
            cluster_id: CLUSTER.to_owned(),
            application: "crm".to_owned(),
            settings: TenantSettings {
                plan: "enterprise".to_owned(),
                plan_revision: "1".to_owned(),
                suspended: false,
                connection_limit: u32::try_from(MOST)? + 1,
                temp_file_limit: None,
                statement_timeout: None,
                max_transaction: None,
                period_anchor: jiff::Timestamp::UNIX_EPOCH,
                time_zone: "UTC".to_owned(),
            },
        };
        let (_, issued) = server.create_tenant(DATABASE, &spec).await?;
        server.login_published(DATABASE, &spec.id, issued.slot).await?;
        logins.push(Credentials {
            database: DATABASE.to_owned(),
            schema: spec.id.to_string(),
            username: issued.username,
            password: issued.password,
        });
    }
    Ok(logins)
}

async fn client(postgres: &Postgres, login: &Credentials) -> Result<Client> {
    connect(postgres, &login.username, login.password.expose()).await
}

async fn connect(postgres: &Postgres, user: &str, password: &str) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config.host(postgres.host()).port(postgres.port()).user(user).password(password).dbname(DATABASE);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
