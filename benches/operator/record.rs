//! What the operator does for one tenant, written down: its API writes and its SQL, in order.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{
        Method,
        header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST},
    },
    response::{IntoResponse as _, Response},
};
use kube::{Api, Client};
use serde_json::{Value, json};
use sha2::Digest as _;
use tenantry::api::Tenant;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    ground::{Ground, NAMESPACE},
    onboarding::settle,
    statements::{Statement, StatementLog},
    tenants::{Watch, create, tenant},
};

/// A write to the API server.
#[derive(Clone, Debug)]
pub struct Call {
    pub at: String,
    pub method: Method,
    /// Path and query.
    pub path: String,
    pub content_type: String,
    pub body: String,
}

/// What the operator did, in order.
#[derive(Clone, Debug)]
pub enum Step {
    Call(Call),
    Statement(Statement),
}

/// All that the operator did to make one tenant Ready, and what in it is this tenant's own.
pub struct Recipe {
    pub tier: &'static str,
    pub name: String,
    pub uid: String,
    pub id: String,
    pub password: String,
    /// Lower-case hexadecimal SHA-256 of the password.
    pub digest: String,
    pub pool: Option<String>,
    pub steps: Vec<Step>,
}

impl Recipe {
    pub fn calls(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step, Step::Call(_))).count()
    }

    /// How many messages went to PostgreSQL; a script of many statements is one.
    pub fn messages(&self) -> usize {
        self.steps.len() - self.calls()
    }
}

struct Inner {
    client: Client,
    calls: Mutex<Vec<Call>>,
}

/// A way to the API server that writes down each write.
pub struct Recorder {
    /// Leads here.
    pub kubeconfig: PathBuf,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Recorder {
    pub async fn start(ground: &Ground) -> Result<Self> {
        let client = ground.cluster.service_account_client(NAMESPACE, "tenantry").await?;
        let inner = Arc::new(Inner { client, calls: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let server = format!("http://{}", listener.local_addr()?);
        let kubeconfig = ground.cluster.dir().join("recorder-kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "recorder",
            "clusters": [{"name": "recorder", "cluster": {"server": server}}],
            "users": [{"name": "recorder", "user": {}}],
            "contexts": [{"name": "recorder", "context": {"cluster": "recorder", "user": "recorder"}}],
        });
        std::fs::write(&kubeconfig, config.to_string())?;
        let router = Router::new().fallback(forward).with_state(Arc::clone(&inner));
        let task = tokio::spawn(async move {
            // It ends with its task.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { kubeconfig, inner, task })
    }

    /// The operator makes one tenant Ready; writes down how. It must have nothing else to do.
    pub async fn recipe(
        &self,
        ground: &Ground,
        log: &StatementLog,
        watch: &Watch,
        tier: &'static str,
    ) -> Result<Recipe> {
        let name = format!("recorded{tier}");
        self.calls().clear();
        log.switch(true).await?;
        let mark = log.mark()?;
        let uid = create(&ground.client, &tenant(&name, "crm", tier)).await?;
        watch.await_holding(&name, 1).await?;
        // Whatever follows when the tenant is Ready already.
        settle(ground, Duration::from_secs(3)).await?;
        let statements = log.since(mark).await?;
        log.switch(false).await?;
        let calls = std::mem::take(&mut *self.calls());

        let status = Api::<Tenant>::all(ground.client.clone()).get(&name).await?.status.unwrap_or_default();
        let id = status.id.context("a Ready tenant has an id")?;
        let database = status.database.context("a Ready tenant has a database")?;
        let reference = database.secret_ref.context("a Ready tenant has a Secret")?;
        let secrets =
            Api::<k8s_openapi::api::core::v1::Secret>::namespaced(ground.client.clone(), &reference.namespace);
        let data = secrets.get(&reference.name).await?.data.unwrap_or_default();
        let password = String::from_utf8(data.get("password").context("a Secret has a password")?.0.clone())?;
        let digest = data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(password.as_bytes()));

        let its = |text: &str| text.contains(&name) || text.contains(id.trim_start_matches("t_"));
        // Kubernetes Events are left out: the operator makes them beside its reconciles, at a pace
        // that it sets itself, and some of them when the clock has stopped.
        let counts = |call: &Call| !call.path.contains("/events.k8s.io/") && (its(&call.path) || its(&call.body));
        let mut steps: Vec<Step> = Vec::new();
        steps.extend(calls.into_iter().filter(counts).map(Step::Call));
        // At this moment the operator sends SQL for nothing else.
        steps.extend(statements.into_iter().map(Step::Statement));
        steps.sort_by(|a, b| a.at().cmp(b.at()));
        ensure!(!steps.is_empty(), "nothing was recorded of {name}");
        Ok(Recipe { tier, name, uid, id, password, digest, pool: status.pool, steps })
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, Vec<Call>> {
        self.inner.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Step {
    fn at(&self) -> &str {
        match self {
            Self::Call(call) => &call.at,
            Self::Statement(statement) => &statement.at,
        }
    }
}

async fn forward(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    match pass(&inner, request).await {
        Ok(answer) => answer,
        Err(error) => (axum::http::StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

async fn pass(inner: &Inner, request: Request) -> Result<Response> {
    let at = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S%.3f UTC").to_string();
    let (mut parts, body) = request.into_parts();
    for header in [AUTHORIZATION, CONTENT_LENGTH, HOST] {
        parts.headers.remove(header);
    }
    let body = to_bytes(body, usize::MAX).await?;
    let path = parts.uri.path_and_query().context("a path")?.as_str().to_owned();
    let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (method, content_type) = (parts.method.clone(), content_type.to_owned());
    parts.uri = path.parse()?;
    let answer = inner.client.send(Request::from_parts(parts, kube::client::Body::from(body.to_vec()))).await?;
    // What is refused because the rights in a new namespace are on their way is sent again.
    if method != Method::GET && answer.status().is_success() {
        let body = String::from_utf8(body.to_vec())?;
        let call = Call { at, method, path, content_type, body };
        inner.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }
    let (parts, body) = answer.into_parts();
    Ok(Response::from_parts(parts, Body::new(body)))
}

/// The body of a call with each of these words replaced by another, also inside a Secret's data.
pub fn replaced(body: &str, replace: &impl Fn(&str) -> String) -> Result<String> {
    let mut value: Value = match serde_json::from_str(body) {
        Ok(value) => value,
        Err(_) => return Ok(replace(body)),
    };
    if value["kind"] != "Secret" {
        return Ok(replace(body));
    }
    for (_, text) in value["data"].as_object_mut().into_iter().flatten() {
        let bytes = data_encoding::BASE64.decode(text.as_str().context("data is text")?.as_bytes())?;
        *text = data_encoding::BASE64.encode(replace(&String::from_utf8(bytes)?).as_bytes()).into();
    }
    Ok(replace(&value.to_string()))
}
