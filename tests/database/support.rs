//! What the tests stand on: one server for all that don't disturb each other, a database of its
//! own for each test, and plain clients that log in as a tenant does.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use devcluster::{Postgres, PostgresOptions};
use jiff::Timestamp;
use tenantry::database::{
    Credentials, DatabaseSpec, IssuedLogin, Limit, MeterDefinition, MeterKind, MeterSource, Password, Policy, Purpose,
    Server, ServerConfig, TenantId, TenantRecord, TenantSettings, TenantSpec, Timeouts, Tls,
};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

pub(crate) const CLUSTER: &str = "11111111-2222-4333-8444-555555555555";

/// A server that only this test uses.
pub(crate) fn own_server(settings: &[(&str, &str)]) -> Postgres {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).expect("PostgreSQL starts")
}

/// The server of the tests that leave each other alone. It ends with the process.
pub(crate) fn shared_server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let postgres = own_server(&[("max_connections", "300")]);
        // What the documentation asks a superuser to do once.
        let sql = "GRANT SET ON PARAMETER temp_file_limit TO tenantry_admin;
                   REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1 FROM PUBLIC;
                   GRANT CONNECT ON DATABASE postgres TO tenantry_admin";
        superuser_blocking(&postgres, sql);
        postgres
    })
}

fn superuser_blocking(postgres: &Postgres, sql: &str) {
    let output = std::process::Command::new("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, &postgres.superuser_url()])
        .output()
        .expect("psql runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn config(postgres: &Postgres) -> ServerConfig {
    let admin = postgres.admin();
    ServerConfig {
        host: postgres.host().to_owned(),
        port: postgres.port(),
        database: "postgres".to_owned(),
        user: admin.user.clone(),
        password: Password::new(admin.password.clone()),
        tls: Tls::VerifyFull { ca_pem: postgres.ca_pem().to_owned() },
        endpoint: None,
        connections: 8,
        timeouts: Timeouts::default(),
    }
}

/// A database for one test.
pub(crate) struct Ground {
    pub(crate) server: Server,
    pub(crate) database: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    superuser_password: String,
}

/// A tenant and the login that an application of it would have.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) id: TenantId,
    pub(crate) record: TenantRecord,
    pub(crate) login: Credentials,
}

impl Ground {
    /// On the shared server.
    pub(crate) async fn new(purpose: &str) -> Self {
        Self::on(shared_server(), purpose).await
    }

    pub(crate) async fn on(postgres: &Postgres, purpose: &str) -> Self {
        let server = Server::new(config(postgres)).expect("a good configuration");
        Self::with(postgres, server, purpose).await
    }

    pub(crate) async fn with(postgres: &Postgres, server: Server, purpose: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let database = format!("{purpose}_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let ground = Self {
            server,
            database,
            host: postgres.host().to_owned(),
            port: postgres.port(),
            superuser_password: postgres.superuser_password().to_owned(),
        };
        ground.server.ensure_database(&ground.spec()).await.expect("a database");
        ground.server.set_meters(&ground.database, "crm", &meters()).await.expect("meters");
        ground
            .server
            .set_plan_limits(&ground.database, "smb", &[limit("users", 50, Policy::Hard)])
            .await
            .expect("limits");
        ground
    }

    pub(crate) fn spec(&self) -> DatabaseSpec {
        DatabaseSpec {
            name: self.database.clone(),
            cluster_id: CLUSTER.to_owned(),
            purpose: Purpose::Pool(self.database.clone()),
            connection_limit: None,
        }
    }

    pub(crate) fn tenant_spec(&self, name: &str) -> TenantSpec {
        tenant_spec(name, &format!("uid-of-{name}-in-{}", self.database))
    }

    /// A tenant whose first login is published.
    pub(crate) async fn tenant(&self, name: &str) -> Guest {
        self.tenant_of(&self.tenant_spec(name)).await
    }

    pub(crate) async fn tenant_of(&self, spec: &TenantSpec) -> Guest {
        let (_, issued) = self.server.create_tenant(&self.database, spec).await.expect("a tenant");
        self.server.login_published(&self.database, &spec.id, issued.slot).await.expect("published");
        let record = self.server.record(&self.database, &spec.id).await.expect("readable").expect("there");
        Guest { id: spec.id.clone(), login: self.credentials(&spec.id, &issued), record }
    }

    pub(crate) fn credentials(&self, id: &TenantId, issued: &IssuedLogin) -> Credentials {
        Credentials {
            database: self.database.clone(),
            schema: id.to_string(),
            username: issued.username.clone(),
            password: issued.password.clone(),
        }
    }

    /// A session as a tenant's application has it.
    pub(crate) async fn client(&self, login: &Credentials) -> Client {
        self.try_client(login).await.expect("the login works")
    }

    pub(crate) async fn try_client(&self, login: &Credentials) -> Result<Client, tokio_postgres::Error> {
        connect(&self.host, self.port, &login.username, login.password.expose(), &login.database).await
    }

    /// A session as the superuser, in the test's database.
    pub(crate) async fn superuser(&self) -> Client {
        connect(&self.host, self.port, "postgres", &self.superuser_password, &self.database)
            .await
            .expect("the superuser's login works")
    }

    /// A session as the tenant's migration login, which a superuser opens for the purpose.
    pub(crate) async fn migrator(&self, guest: &Guest) -> Client {
        let login = format!("{}_mig", guest.id);
        let superuser = self.superuser().await;
        superuser
            .batch_execute(&format!(
                "SET password_encryption = 'scram-sha-256'; ALTER ROLE {login} LOGIN CONNECTION LIMIT 5 PASSWORD 'test'"
            ))
            .await
            .expect("opened");
        connect(&self.host, self.port, &login, "test", &self.database).await.expect("the migration login works")
    }
}

pub(crate) async fn connect(
    host: &str,
    port: u16,
    user: &str,
    password: &str,
    database: &str,
) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(host)
        .port(port)
        .user(user)
        .password(password)
        .dbname(database)
        .connect_timeout(Duration::from_secs(10));
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move { connection.await.ok() });
    Ok(client)
}

pub(crate) fn tenant_spec(name: &str, uid: &str) -> TenantSpec {
    TenantSpec {
        id: TenantId::from_uid(uid),
        name: name.to_owned(),
        uid: uid.to_owned(),
        cluster_id: CLUSTER.to_owned(),
        application: "crm".to_owned(),
        settings: settings("smb"),
    }
}

pub(crate) fn settings(plan: &str) -> TenantSettings {
    TenantSettings {
        plan: plan.to_owned(),
        plan_revision: "1".to_owned(),
        suspended: false,
        connection_limit: 40,
        temp_file_limit: Some(1 << 20),
        statement_timeout: Some(Duration::from_secs(30)),
        max_transaction: Some(Duration::from_secs(60)),
        period_anchor: Timestamp::UNIX_EPOCH,
        time_zone: "UTC".to_owned(),
    }
}

pub(crate) fn meters() -> Vec<MeterDefinition> {
    let meter = |name: &str, kind, source| MeterDefinition { name: name.to_owned(), kind, source };
    vec![
        meter("users", MeterKind::Level, MeterSource::Database),
        meter("accounts", MeterKind::Level, MeterSource::Database),
        meter("opportunities", MeterKind::Level, MeterSource::Database),
        meter("mails", MeterKind::Total, MeterSource::Database),
        meter("requests", MeterKind::Total, MeterSource::Api),
    ]
}

pub(crate) fn limit(meter: &str, max: u64, policy: Policy) -> Limit {
    Limit { meter: meter.to_owned(), max, policy }
}

/// The SQLSTATE of a statement that must fail.
pub(crate) async fn refused(client: &Client, sql: &str) -> String {
    match client.batch_execute(sql).await {
        Ok(()) => panic!("not refused: {sql}"),
        Err(error) => error.code().unwrap_or_else(|| panic!("{sql}: {error}")).code().to_owned(),
    }
}

/// The first column of the first row, as text.
pub(crate) async fn one(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    messages
        .iter()
        .find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
            _ => None,
        })
        .unwrap_or_else(|| panic!("no row: {sql}"))
}

/// All rows, columns joined by `|`.
pub(crate) async fn rows(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|at| row.get(at).unwrap_or("NULL")).collect::<Vec<_>>().join("|"))
            }
            _ => None,
        })
        .collect()
}

/// Asks again until it is so; the limit only ends a test that would never end.
pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}
