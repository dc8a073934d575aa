//! An API server and a PostgreSQL for all tests, a ledger and a listener for each, and requests
//! written by hand.

use std::{
    net::SocketAddr,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use devcluster::{Devcluster, Options, Postgres, PostgresOptions};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api as Kube, Client,
    api::{ObjectMeta, PostParams},
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde_json::{Value, json};
use tenantry::{
    metering::{
        counts::Counts,
        judge::Window,
        ledger::{Ledger, LedgerTenant, MeterDefinition, MeterState, Placement},
    },
    web::{Api, ApiSettings, OPENAPI, Tls},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{OnceCell, oneshot},
    task::JoinHandle,
};

const LOGIN: &str = "ledger_operator";
const PASSWORD: &str = "a password";

pub const BATCH: &str = "application/cloudevents-batch+json";
pub const ONE: &str = "application/cloudevents+json";

/// The API server that all tests share.
pub fn cluster() -> &'static Devcluster {
    static CLUSTER: LazyLock<Devcluster> = LazyLock::new(|| {
        let options = Options { api_only: true, postgres: false, gateway_api: false, ..Options::default() };
        Devcluster::start(options).expect("an API server")
    });
    &CLUSTER
}

/// The server of ledgers that are left alone, with one to copy.
async fn shared_server() -> &'static Postgres {
    static SERVER: OnceCell<Postgres> = OnceCell::const_new();
    SERVER.get_or_init(|| async { own_server().await }).await
}

/// A server of its own, for a test that stops it.
pub async fn own_server() -> Postgres {
    let postgres = Postgres::start(PostgresOptions::default()).expect("PostgreSQL starts");
    create(&postgres, "ledger_template", "template1").await;
    let admin = postgres.admin();
    let url = postgres.url(&admin.user, &admin.password, "ledger_template");
    Ledger::migrate(&url, LOGIN, Some(PASSWORD)).await.expect("migrated");
    postgres
}

pub async fn create(postgres: &Postgres, database: &str, template: &str) {
    let admin = postgres.admin();
    let mut config = tokio_postgres::Config::new();
    config.host(postgres.host()).port(postgres.port()).user(&admin.user).password(&admin.password).dbname("postgres");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("a session");
    tokio::spawn(connection);
    // A template can be copied by one at a time, and by none who is in it.
    loop {
        match client.batch_execute(&format!("CREATE DATABASE {database} TEMPLATE {template}")).await {
            Err(error) if error.code().is_some_and(|code| code.code() == "55006") => tokio::task::yield_now().await,
            made => return made.expect("a database"),
        }
    }
}

/// A ledger and an API before it.
pub struct Ground {
    pub ledger: Ledger,
    pub address: SocketAddr,
    metrics: Registry,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

pub fn settings() -> ApiSettings {
    let window = Window { back: SignedDuration::from_hours(35 * 24), ahead: SignedDuration::from_mins(5) };
    let (gap, mark, silent) =
        (SignedDuration::from_mins(1), SignedDuration::from_mins(3), SignedDuration::from_mins(3));
    ApiSettings::new(window, tenantry::metering::usage::Patience { gap, mark, silent })
}

fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Ground {
    pub async fn new() -> Self {
        Self::set(settings()).await
    }

    pub async fn set(settings: ApiSettings) -> Self {
        Self::with(shared_server().await, settings).await
    }

    pub async fn with(postgres: &Postgres, settings: ApiSettings) -> Self {
        let client = tokio::task::spawn_blocking(cluster).await.expect("a cluster").client().await.expect("a client");
        Self::asking(postgres, settings, client).await
    }

    /// With this client for the review of tokens.
    pub async fn asking(postgres: &Postgres, settings: ApiSettings, client: Client) -> Self {
        Self::start(postgres, settings, client, None).await
    }

    /// Over TLS.
    pub async fn secured(tls: Tls) -> Self {
        let client = tokio::task::spawn_blocking(cluster).await.expect("a cluster").client().await.expect("a client");
        Self::start(shared_server().await, settings(), client, Some(tls)).await
    }

    async fn start(postgres: &Postgres, settings: ApiSettings, client: Client, tls: Option<Tls>) -> Self {
        let database = format!("ledger_{}", number());
        create(postgres, &database, "ledger_template").await;
        let ledger = Ledger::new(&postgres.url(LOGIN, PASSWORD, &database), 8).expect("a ledger");
        let counts = Counts::default();
        let mut metrics = Registry::default();
        counts.register(&mut metrics);
        let api = Api::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
        let api = match tls {
            Some(tls) => api.with_tls(tls),
            None => api,
        };
        let address = api.address().expect("an address");
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(api.serve(ledger.clone(), client, counts, settings, async {
            let _ = stopped.await;
        }));
        Self { ledger, address, metrics, stop: Some(stop), task }
    }

    /// Ends the API in order.
    pub async fn stop(mut self) {
        self.stop.take().expect("it runs").send(()).expect("it runs");
        self.task.await.expect("no panic");
    }

    /// A metric, with its labels as they are written.
    pub fn metric(&self, name: &str) -> f64 {
        let mut text = String::new();
        encode(&mut text, &self.metrics).expect("text");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name}: {text}"))
    }

    /// A tenant that the ledger knows, on these servers, with a namespace of its own or none.
    pub async fn tenant(&self, servers: &[&str], namespace: Option<&str>) -> String {
        let meter = |name: &str, is_total, from_api| MeterDefinition { name: name.to_owned(), is_total, from_api };
        let meters = [meter("users", false, false), meter("mails", true, false), meter("exports", true, true)];
        self.ledger.define("crm", &meters).await.expect("meters");
        let id = tenant_id();
        self.register(&id, servers, namespace).await;
        id
    }

    pub async fn register(&self, id: &str, servers: &[&str], namespace: Option<&str>) {
        self.register_named(id, &format!("name-{}", &id[2..]), servers, namespace).await;
    }

    pub async fn register_named(&self, id: &str, name: &str, servers: &[&str], namespace: Option<&str>) {
        let tenant = LedgerTenant {
            id: id.to_owned(),
            uid: format!("uid-{id}"),
            name: name.to_owned(),
            application: "crm".to_owned(),
            plan: "smb".to_owned(),
            namespace: namespace.map(str::to_owned),
            anchor: "2026-01-01T00:00:00Z".parse().expect("a time"),
            time_zone: "Asia/Seoul".to_owned(),
        };
        for server in servers {
            let placement =
                Placement { tenant: id.to_owned(), server: (*server).to_owned(), database: "pool_crm_1".to_owned() };
            self.ledger.register(std::slice::from_ref(&tenant), &[placement]).await.expect("registered");
        }
    }

    pub async fn state(&self, tenant: &str, meter: &str) -> Option<MeterState> {
        let states = self.ledger.usage(&[tenant.to_owned()]).await.expect("read");
        states.into_iter().find(|state| state.meter == meter)
    }

    /// Posts a body with a media type and further headers.
    pub async fn post(&self, token: Option<&str>, media: &str, more: &[(&str, &str)], body: &str) -> Reply {
        let mut head =
            format!("POST /v1/events HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !media.is_empty() {
            head += &format!("Content-Type: {media}\r\n");
        }
        head.extend(token.map(|token| format!("Authorization: Bearer {token}\r\n")));
        head.extend(more.iter().map(|(name, value)| format!("{name}: {value}\r\n")));
        self.raw(&[head.as_bytes(), b"\r\n", body.as_bytes()].concat()).await
    }

    /// Posts a batch.
    pub async fn batch(&self, token: &str, events: &[Value]) -> Reply {
        self.post(Some(token), BATCH, &[], &json!(events).to_string()).await
    }

    /// Reads a tenant's usage, by the tenant's name.
    pub async fn usage(&self, token: Option<&str>, name: &str) -> Reply {
        let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let head =
            format!("GET /v1/tenants/{name}/usage HTTP/1.1\r\nHost: api\r\nConnection: close\r\n{authorization}\r\n");
        self.raw(head.as_bytes()).await
    }

    /// Sends bytes and reads the answer to its end.
    pub async fn raw(&self, request: &[u8]) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.expect("a connection");
        stream.write_all(request).await.expect("written");
        let reply = Reply::read(&mut stream).await;
        if request.starts_with(b"POST /v1/events ") {
            reply.documented("/v1/events", "post");
        } else if request.starts_with(b"GET /v1/tenants/") {
            reply.documented("/v1/tenants/{name}/usage", "get");
        }
        reply
    }
}

/// What the API answered.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect("an answer");
        let text = String::from_utf8(bytes).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    /// Asserts that the document tells of such an answer.
    fn documented(&self, path: &str, method: &str) {
        let document: Value = serde_json::from_str(OPENAPI).expect("JSON");
        let answer = &document["paths"][path][method]["responses"][self.status.to_string()];
        let schema = &answer["content"]["application/json"]["schema"];
        let references = schema["oneOf"].as_array().cloned().unwrap_or_else(|| vec![schema.clone()]);
        let fits = |reference: &Value| {
            let name = reference["$ref"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
            let schema = &document["components"]["schemas"][name];
            let body = self.json();
            let body = body.as_object().expect("an object");
            schema["required"]
                .as_array()
                .is_some_and(|all| all.iter().all(|name| body.contains_key(name.as_str().unwrap_or_default())))
                && body.keys().all(|name| schema["properties"].get(name).is_some())
        };
        assert!(references.iter().any(fits), "docs/openapi.json tells of no such answer: {self:?}");
        for header in ["retry-after", "www-authenticate"] {
            let told = answer["headers"]
                .as_object()
                .is_some_and(|headers| headers.keys().any(|name| name.eq_ignore_ascii_case(header)));
            assert!(told || !self.head.contains(&format!("\r\n{header}: ")), "{self:?}");
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts what was answered: the status, and how many were accepted, duplicates and put aside.
    #[track_caller]
    pub fn took(&self, status: u16, accepted: u64, duplicates: u64, quarantined: u64) -> &Self {
        let answer = self.json();
        let numbers = ["accepted", "duplicates", "quarantined"].map(|name| answer[name].as_u64());
        assert_eq!((self.status, numbers), (status, [Some(accepted), Some(duplicates), Some(quarantined)]), "{answer}");
        self
    }

    /// Asserts which events were not taken, as `index reason`, the rejected and then the deferred.
    #[track_caller]
    pub fn left(&self, rejected: &[&str], deferred: &[&str]) -> &Self {
        let answer = self.json();
        for (list, wanted) in [("rejected", rejected), ("deferred", deferred)] {
            let of =
                |refusal: &Value| format!("{} {}", refusal["index"], refusal["reason"].as_str().unwrap_or_default());
            let is: Vec<String> = answer[list].as_array().expect("a list").iter().map(of).collect();
            assert_eq!(is, wanted, "{list}: {answer}");
        }
        self
    }

    /// Asserts that no event was looked at, and why.
    #[track_caller]
    pub fn problem(&self, status: u16, reason: &str) -> &Self {
        assert_eq!((self.status, self.json()["reason"].as_str()), (status, Some(reason)), "{self:?}");
        assert!(self.json()["message"].as_str().is_some_and(|message| message.len() > 10), "{self:?}");
        assert_eq!(self.head.contains("\r\nretry-after: "), matches!(status, 429 | 503), "{self:?}");
        self
    }
}

/// An id that no other tenant has.
pub fn tenant_id() -> String {
    let digits = format!("{:06}", number());
    let letters: String = digits.bytes().map(|digit| char::from(b'a' + digit - b'0')).collect();
    format!("t_tenant{letters}")
}

/// A ServiceAccount's token, for an audience or, if that is empty, for the API server.
pub async fn token_for(namespace: &str, account: &str, audience: &str) -> String {
    let client = tokio::task::spawn_blocking(cluster).await.expect("a cluster").client().await.expect("a client");
    let named = |name: &str| ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    let params = PostParams::default();
    let namespaces: Kube<Namespace> = Kube::all(client.clone());
    let object = Namespace { metadata: named(namespace), ..Namespace::default() };
    ignore_conflict(namespaces.create(&params, &object).await);
    let accounts: Kube<ServiceAccount> = Kube::namespaced(client, namespace);
    let object = ServiceAccount { metadata: named(account), ..ServiceAccount::default() };
    ignore_conflict(accounts.create(&params, &object).await);
    // For none it is the API server itself.
    let audiences = (!audience.is_empty()).then(|| vec![audience.to_owned()]);
    let spec = TokenRequestSpec { audiences, expiration_seconds: Some(3_600), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let answer = accounts.create_token_request(account, &params, &request).await.expect("a token");
    answer.status.and_then(|status| status.token).expect("a token")
}

fn ignore_conflict<T: std::fmt::Debug>(made: kube::Result<T>) {
    if let Err(error) = made {
        assert!(matches!(&error, kube::Error::Api(status) if status.code == 409), "{error}");
    }
}

/// The token of a server's relay.
pub async fn relay(server: &str) -> String {
    token_for(&format!("tenantry-relay-{server}"), "relay", "tenantry").await
}

/// Lets a ServiceAccount get the Tenants with these names, or all of them where there is none.
pub async fn let_get(namespace: &str, account: &str, tenants: &[&str]) {
    let client = tokio::task::spawn_blocking(cluster).await.expect("a cluster").client().await.expect("a client");
    let name = format!("read-{namespace}-{account}");
    let names = (!tenants.is_empty()).then(|| json!(tenants));
    let rule =
        json!({"apiGroups": ["tenantry.io"], "resources": ["tenants"], "verbs": ["get"], "resourceNames": names});
    let role = json!({"metadata": {"name": name}, "rules": [rule]});
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    });
    let role: ClusterRole = serde_json::from_value(role).expect("a role");
    let binding: ClusterRoleBinding = serde_json::from_value(binding).expect("a binding");
    ignore_conflict(Kube::all(client.clone()).create(&PostParams::default(), &role).await);
    ignore_conflict(Kube::all(client).create(&PostParams::default(), &binding).await);
}

/// A token of a program in a namespace.
pub async fn workload(namespace: &str) -> String {
    token_for(namespace, "exporter", "tenantry").await
}

/// A moment, in whole microseconds.
pub fn ago(seconds: i64) -> Timestamp {
    let moment = Timestamp::now() - SignedDuration::from_secs(seconds);
    Timestamp::from_microsecond(moment.as_microsecond()).expect("in range")
}

/// A usage event of a relay: the `sequence`th, after which the value is `value`.
pub fn counted(server: &str, tenant: &str, sequence: i64, delta: i64, value: i64) -> Value {
    json!({
        "specversion": "1.0", "id": format!("{tenant}-{sequence}"), "source": format!("/tenantry/{server}/pool_crm_1"),
        "type": "io.tenantry.usage.v1", "subject": tenant, "time": ago(60).to_string(),
        "data": {"meter": "users", "delta": delta, "kind": "Add", "epoch": 1, "sequence": sequence, "value": value},
    })
}

/// A usage event of a workload.
pub fn plain(id: &str, delta: i64) -> Value {
    json!({
        "specversion": "1.0", "id": id, "source": "/exporter", "type": "io.tenantry.usage.v1",
        "time": ago(60).to_string(), "data": {"meter": "exports", "delta": delta},
    })
}

/// An event with another value at a pointer; null takes it away.
pub fn with(mut event: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = event.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
    if value.is_null() {
        parent.remove(key);
    } else {
        parent.insert(key.to_owned(), value);
    }
    event
}

/// Asks again and again until there is an answer, or patience ends.
pub async fn eventually<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask().await {
            return Some(answer);
        }
        if Instant::now() > end {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
