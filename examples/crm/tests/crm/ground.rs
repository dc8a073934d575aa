//! PostgreSQL, the agent's folder and the CRM, for one test.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crm::{Limits, Tenants, router};
use devcluster::{Postgres, PostgresOptions};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use tenantry::agent::keeper::Keeper;
use tenantry::database::{
    self, DatabaseSpec, IssuedLogin, Limit, MeterDefinition, MeterKind, MeterSource, Migration, Password, Policy,
    Purpose, ServerConfig, TenantId, TenantSettings, TenantSpec, Timeouts, Tls,
};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_postgres::Client;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::http::{Response, request};

/// Serves the CRM for the tenants below a folder, until it is dropped.
pub struct Crm {
    pub address: SocketAddr,
    tasks: [AbortHandle; 2],
}

impl Crm {
    pub async fn serve(dir: &Path, limits: Limits) -> Self {
        let tenants = Arc::new(Tenants::new(dir, limits));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let routes = router(Arc::clone(&tenants));
        let server = tokio::spawn(async move { axum::serve(listener, routes).await });
        let tidy = tokio::spawn(async move { tenants.tidy().await });
        Self { address, tasks: [server.abort_handle(), tidy.abort_handle()] }
    }
}

impl Drop for Crm {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// A server with TLS, and its superuser's session for looking at it.
pub struct Server {
    pub postgres: Postgres,
    pub superuser: Client,
}

impl Server {
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let options = PostgresOptions { settings, ..PostgresOptions::default() };
        let postgres = tokio::task::spawn_blocking(|| Postgres::start(options))
            .await
            .expect("no panic")
            .expect("PostgreSQL starts");
        let superuser = connect(&postgres, "postgres", postgres.superuser_password(), "postgres").await;
        Self { postgres, superuser }
    }

    /// Holds requests that touch `table` up, until the returned session is dropped or commits.
    ///
    /// A session of its own: within a transaction `pg_stat_activity` stands still.
    pub async fn lock(&self, table: &str) -> Client {
        let session = connect(&self.postgres, "postgres", self.postgres.superuser_password(), "postgres").await;
        session.batch_execute(&format!("BEGIN; LOCK {table}")).await.expect("the table is there");
        session
    }

    /// How many sessions each of the CRM's logins has, most first.
    pub async fn sessions(&self) -> Vec<(String, i64)> {
        const SESSIONS: &str = "SELECT usename::text, count(*) FROM pg_stat_activity \
                                WHERE application_name = 'crm' GROUP BY 1 ORDER BY 2 DESC, 1";
        let rows = self.superuser.query(SESSIONS, &[]).await.expect("the superuser may look");
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Tenants that have a login, a schema and the CRM's tables, without what Tenantry adds: quickly made, and enough for
    /// what is about connections alone. Their hosts are `NAME.example.com`.
    pub async fn plain_tenants(&self, keeper: &mut Keeper, names: &[String]) {
        let mut sql = String::new();
        for name in names {
            sql += &format!(
                "CREATE ROLE {name} LOGIN PASSWORD 'pw-{name}'; CREATE SCHEMA {name} AUTHORIZATION {name}; \
                 ALTER ROLE {name} SET search_path = {name}; SET search_path = {name}; SET ROLE {name}; {} RESET ROLE;",
                migrations()
            );
        }
        self.superuser.batch_execute(&sql).await.expect("tenants are made");
        for name in names {
            let login = Login { username: name, password: &format!("pw-{name}"), database: "postgres" };
            keeper.changed(secret(&self.postgres, name, &login));
        }
    }
}

/// The login that a tenant's Secret holds.
pub struct Login<'a> {
    pub username: &'a str,
    pub password: &'a str,
    pub database: &'a str,
}

/// A tenant's Secret as the operator makes it and the API server returns it.
pub fn secret(postgres: &Postgres, tenant: &str, login: &Login<'_>) -> Secret {
    let (host, port) = (postgres.host(), postgres.port());
    let Login { username, password, database } = login;
    let uri = format!("postgresql://{username}:{password}@{host}:{port}/{database}?sslmode=verify-full");
    let data = [("uri", uri.as_str()), ("username", username), ("password", password), ("ca.crt", postgres.ca_pem())];
    let mut secret = Secret::default();
    secret.metadata.namespace = Some("pool".into());
    secret.metadata.name = Some(tenant.to_owned());
    secret.metadata.labels = Some([("tenantry.io/tenant".to_owned(), tenant.to_owned())].into());
    let hosts = format!("{tenant}.example.com, {tenant}.example.org");
    secret.metadata.annotations = Some([("tenantry.io/hosts".to_owned(), hosts)].into());
    secret.data = Some(data.map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec()))).into());
    secret
}

/// The part of the agent that writes files, as it is after a first list without tenants.
pub fn agent(dir: &Path) -> Keeper {
    let mut keeper = Keeper::open(dir, Duration::from_secs(60)).expect("the folder is ours");
    keeper.list_begins();
    keeper.list_ends();
    keeper
}

/// All of the CRM's SQL, in order.
pub fn migrations() -> String {
    [
        include_str!("../../migrations/001_users.sql"),
        include_str!("../../migrations/002_accounts.sql"),
        include_str!("../../migrations/003_opportunities.sql"),
    ]
    .concat()
}

pub async fn connect(postgres: &Postgres, user: &str, password: &str, database: &str) -> Client {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(postgres.ca_pem().as_bytes()) {
        roots.add(certificate.expect("PEM")).expect("a certificate");
    }
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (client, connection) = tokio_postgres::Config::new()
        .host(postgres.host())
        .port(postgres.port())
        .user(user)
        .password(password)
        .dbname(database)
        .ssl_mode(tokio_postgres::config::SslMode::Require)
        .connect(MakeRustlsConnect::new(tls))
        .await
        .expect("the login works");
    tokio::spawn(connection);
    client
}

/// Waits until `look` sees what is waited for; panics with `what` after 20 s.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Tenants as the operator makes them, each with a login of its own and Tenantry's counters.
pub struct Saas {
    pub server: Server,
    pub operator: database::Server,
    _dir: tempfile::TempDir,
    pub keeper: Keeper,
    pub crm: Crm,
}

/// The database that all tenants of [`Saas`] share.
pub const DATABASE: &str = "pool-1";
/// UID of the cluster that the tenants are made for.
const CLUSTER: &str = "11111111-1111-1111-1111-111111111111";

impl Saas {
    pub async fn start(limits: Limits) -> Self {
        let server = Server::start(&[]).await;
        let admin = server.postgres.admin();
        let operator = database::Server::new(ServerConfig {
            host: server.postgres.host().into(),
            port: server.postgres.port(),
            database: "postgres".into(),
            user: admin.user,
            password: Password::new(admin.password),
            tls: Tls::VerifyFull { ca_pem: server.postgres.ca_pem().into() },
            endpoint: None,
            connections: 8,
            timeouts: Timeouts::default(),
        })
        .expect("a usable configuration");
        let spec = DatabaseSpec {
            name: DATABASE.into(),
            cluster_id: CLUSTER.into(),
            purpose: Purpose::Pool("pool-1".into()),
            connection_limit: None,
        };
        operator.ensure_database(&spec).await.expect("a database");
        let meters = ["users", "accounts", "opportunities"].map(|name| MeterDefinition {
            name: name.into(),
            kind: MeterKind::Level,
            source: MeterSource::Database,
        });
        operator.set_meters(DATABASE, "crm", &meters).await.expect("meters");
        let dir = tempfile::tempdir().expect("a folder");
        let keeper = agent(dir.path());
        let crm = Crm::serve(dir.path(), limits).await;
        Self { server, operator, _dir: dir, keeper, crm }
    }

    /// Limits the users of a plan.
    pub async fn limit_users(&self, plan: &str, max: u64) {
        let limit = Limit { meter: "users".into(), max, policy: Policy::Hard };
        self.operator.set_plan_limits(DATABASE, plan, &[limit]).await.expect("limits");
    }

    /// Makes a tenant with its tables; its hosts are `NAME.example.com` and `NAME.example.org`.
    pub async fn tenant(&mut self, name: &str, plan: &str) -> TenantId {
        let (id, login) = self.tenant_without_tables(name, plan).await;
        let files = [
            ("001_users.sql", include_str!("../../migrations/001_users.sql")),
            ("002_accounts.sql", include_str!("../../migrations/002_accounts.sql")),
            ("003_opportunities.sql", include_str!("../../migrations/003_opportunities.sql")),
        ];
        let files = files.map(|(name, sql)| Migration { name: name.into(), sql: sql.into(), checksum: name.into() });
        self.operator.migrate(DATABASE, &id, &files).await.expect("tables");
        self.publish(name, &login);
        id
    }

    pub async fn tenant_without_tables(&mut self, name: &str, plan: &str) -> (TenantId, IssuedLogin) {
        let uid = format!("uid-of-{name}");
        let spec = TenantSpec {
            id: TenantId::from_uid(&uid),
            name: name.into(),
            uid,
            cluster_id: CLUSTER.into(),
            application: "crm".into(),
            settings: TenantSettings {
                plan: plan.into(),
                plan_revision: "1".into(),
                suspended: false,
                connection_limit: 20,
                temp_file_limit: None,
                statement_timeout: None,
                max_transaction: None,
                period_anchor: "2026-01-01T00:00:00Z".parse().expect("a time"),
                time_zone: "Asia/Seoul".into(),
            },
        };
        let (record, login) = self.operator.create_tenant(DATABASE, &spec).await.expect("a tenant");
        self.operator.login_published(DATABASE, &record.id, login.slot).await.expect("a current login");
        (record.id, login)
    }

    /// Puts a login into the tenant's Secret, which the agent sees.
    pub fn publish(&mut self, name: &str, login: &IssuedLogin) {
        let login = Login { username: &login.username, password: login.password.expose(), database: DATABASE };
        self.keeper.changed(secret(&self.server.postgres, name, &login));
    }

    /// The superuser's session in the tenants' database.
    pub async fn superuser(&self) -> Client {
        connect(&self.server.postgres, "postgres", self.server.postgres.superuser_password(), DATABASE).await
    }

    /// Rows of a tenant's table, and what its meter says.
    pub async fn rows_and_count(&self, id: &TenantId, table: &str) -> (i64, i64) {
        let sql = format!(
            "SELECT (SELECT count(*) FROM {id}.{table}), \
             coalesce((SELECT value FROM tenantry.meter WHERE tenant = '{id}' AND meter = '{table}'), 0)"
        );
        let row = self.superuser().await.query_one(&sql, &[]).await.expect("the superuser may look");
        (row.get(0), row.get(1))
    }

    pub async fn post(&self, host: &str, path: &str, body: &Value) -> Response {
        request(self.crm.address, "POST", host, path, &body.to_string()).await
    }

    pub async fn get(&self, host: &str, path: &str) -> Response {
        request(self.crm.address, "GET", host, path, "").await
    }

    pub async fn delete(&self, host: &str, path: &str) -> Response {
        request(self.crm.address, "DELETE", host, path, "").await
    }
}
