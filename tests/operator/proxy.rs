//! A way to the API server that stops calls, spoils answers, and counts writes.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{
        Method, StatusCode,
        header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER},
    },
    response::Response,
    serve::Listener,
};
use futures::stream;
use kube::Client;
use serde_json::json;
use tokio::{
    io::DuplexStream,
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::{
    gate::{Gate, Happening, Verdict},
    ground::{Ground, NAMESPACE},
};

/// When a call is stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The API server never hears of it.
    BeforeTheCall,
    /// It is done, and the caller never hears of it.
    BeforeTheAnswer,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It is refused with this code, and nothing is done; with a time after which to come back.
    Refused(u16, Option<u32>),
    /// It is taken and never answered, and nothing is done.
    Silence,
    /// It is done, and the answer ends in its middle with the connection.
    Broken,
    /// It is done, and the answer comes late.
    Late(Duration),
    /// A watch begins, and says at once that it can't go on from where it was to.
    Expired,
}

/// Which calls a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Everything that changes something.
    Writes,
    /// The beginnings of watches.
    Watches,
    /// Lists.
    Lists,
}

impl Calls {
    fn of(request: &Request) -> Option<Self> {
        let query = request.uri().query().unwrap_or_default();
        let path = request.uri().path();
        match *request.method() {
            // The lease is not what is tested; and an Event is only told of, off the path of what is
            // done, but would keep step with what is tried again.
            _ if path.contains("/leases") || path.contains("/events") => None,
            Method::GET if query.contains("watch=") => Some(Self::Watches),
            Method::GET if query.contains("limit=") => Some(Self::Lists),
            Method::GET => None,
            _ => Some(Self::Writes),
        }
    }
}

/// A fault that each `every`th call of a sort has, of those in whose path this stands.
#[derive(Debug)]
struct Rule {
    fault: Fault,
    calls: Calls,
    /// What stands in their path.
    about: String,
    every: usize,
    seen: usize,
    hit: usize,
}

struct Inner {
    client: Client,
    armed: Mutex<Option<(String, Moment)>>,
    rules: Mutex<Vec<Rule>>,
    gate: Option<Arc<Gate>>,
    reached: Notify,
    released: Notify,
}

impl Inner {
    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes wrong with this call: the first rule for such calls decides.
    fn fault(&self, calls: Option<Calls>, path: &str) -> Option<Fault> {
        let mut rules = self.rules();
        let rule = rules.iter_mut().find(|rule| Some(rule.calls) == calls && path.contains(&rule.about))?;
        rule.seen += 1;
        if rule.seen % rule.every != 0 {
            return None;
        }
        rule.hit += 1;
        Some(rule.fault)
    }
}

/// Passes calls on as the operator's ServiceAccount.
pub struct Proxy {
    /// Leads here.
    pub kubeconfig: PathBuf,
    inner: Arc<Inner>,
    cut: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(ground: &Ground) -> Self {
        Self::with_gate(ground, None).await
    }

    /// One whose writes are counted at a gate.
    pub async fn with_gate(ground: &Ground, gate: Option<Arc<Gate>>) -> Self {
        let client = ground.cluster.service_account_client(NAMESPACE, "tenantry").await.expect("a client");
        let inner = Arc::new(Inner {
            client,
            armed: Mutex::default(),
            rules: Mutex::default(),
            gate,
            reached: Notify::new(),
            released: Notify::new(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = format!("http://{}", listener.local_addr().expect("an address"));
        let kubeconfig = ground.cluster.dir().join("proxy-kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": server}}],
            "users": [{"name": "proxy", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        });
        std::fs::write(&kubeconfig, config.to_string()).expect("a file");
        let router = Router::new().fallback(forward).with_state(Arc::clone(&inner));
        let (cut, _) = watch::channel(0);
        let listener = Cuttable { listener, cut: cut.clone() };
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { kubeconfig, inner, cut, task }
    }

    /// Stops the next PATCH whose path, or query, ends so.
    pub fn arm(&self, path: &str, moment: Moment) {
        *self.inner.armed.lock().expect("no panic") = Some((path.to_owned(), moment));
    }

    /// Waits until it was stopped. Later calls pass.
    pub async fn reached(&self) {
        let patience = Duration::from_secs(60);
        tokio::time::timeout(patience, self.inner.reached.notified()).await.expect("the call is made");
    }

    /// Lets a call that was stopped before it go on.
    pub fn release(&self) {
        self.inner.released.notify_one();
    }

    /// Lets each `every`th call of a sort go wrong, from now on; of those with this in their path,
    /// and for which nothing was said before.
    pub fn spoil(&self, calls: Calls, about: &str, every: usize, fault: Fault) {
        self.inner.rules().push(Rule { fault, calls, about: about.to_owned(), every, seen: 0, hit: 0 });
    }

    /// How many calls went wrong since then, by each of what was asked for, in that order.
    pub fn spoilt(&self) -> Vec<usize> {
        self.inner.rules().iter().map(|rule| rule.hit).collect()
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.inner.rules().clear();
    }

    /// Cuts every connection that there is, watches among them.
    pub fn cut_all(&self) {
        self.cut.send_modify(|times| *times += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut_all();
    }
}

/// A listener whose connections can be cut.
struct Cuttable {
    listener: TcpListener,
    cut: watch::Sender<u64>,
}

impl Listener for Cuttable {
    type Io = DuplexStream;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (mut client, address) = Listener::accept(&mut self.listener).await;
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let mut cut = self.cut.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut far) => {}
                _ = cut.changed() => {}
            }
        });
        (near, address)
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

async fn forward(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let stop = {
        let mut armed = inner.armed.lock().expect("no panic");
        let uri = request.uri();
        let ends = |end: &str| uri.path().ends_with(end) || uri.query().is_some_and(|query| query.ends_with(end));
        let hit = armed.as_ref().is_some_and(|(end, _)| request.method() == Method::PATCH && ends(end));
        if hit { armed.take().map(|(_, moment)| moment) } else { None }
    };
    if stop == Some(Moment::BeforeTheCall) {
        inner.reached.notify_one();
        inner.released.notified().await;
    }
    let calls = Calls::of(&request);
    let fault = inner.fault(calls, request.uri().path());
    match fault {
        Some(Fault::Refused(code, after)) => return refused(code, after),
        Some(Fault::Silence) => return Gate::hold().await,
        Some(Fault::Expired) => return expired(),
        Some(Fault::Broken | Fault::Late(_)) | None => {}
    }
    let (mut parts, body) = request.into_parts();
    for header in [AUTHORIZATION, CONTENT_LENGTH, HOST] {
        parts.headers.remove(header);
    }
    let body = to_bytes(body, usize::MAX).await.expect("a whole request");
    let is_write = calls == Some(Calls::Writes);
    let described = format!("{} {}", parts.method, parts.uri.path());
    let text = if inner.gate.is_some() && is_write {
        format!("{described} {}", String::from_utf8_lossy(&body))
    } else {
        String::new()
    };
    let verdict = match &inner.gate {
        Some(gate) => gate.judge(is_write, &text, || described.clone()),
        None => Verdict::Pass,
    };
    let event = match verdict {
        Verdict::Hold => return Gate::hold().await,
        Verdict::Happens(event) if [Happening::CutBefore, Happening::CutHalfway].contains(&event.happening) => {
            event.happened();
            return broken(Bytes::new());
        }
        Verdict::Happens(event) => Some(event),
        Verdict::Pass => None,
    };
    parts.uri = parts.uri.path_and_query().expect("a path").as_str().parse().expect("a path");
    let call = Request::from_parts(parts, kube::client::Body::from(body.to_vec()));
    // An API server that is away breaks the connection, as it would without this.
    let Ok(answer) = inner.client.send(call).await else { return broken(Bytes::new()) };
    if stop == Some(Moment::BeforeTheAnswer) {
        hold(&inner).await;
    }
    // Rights in a new namespace come a moment after it; what is refused until then is no write.
    let too_early = answer.status() == StatusCode::FORBIDDEN;
    if let Some(gate) = inner.gate.as_ref().filter(|_| is_write && too_early) {
        gate.refused(&text, &described);
    }
    if let Some(event) = event.filter(|_| !too_early) {
        event.happened();
        return match event.happening {
            Happening::Last | Happening::Open => Gate::hold().await,
            _ => broken(Bytes::new()),
        };
    }
    let (parts, body) = answer.into_parts();
    match fault {
        Some(Fault::Broken) => {
            let whole = to_bytes(Body::new(body), usize::MAX).await.unwrap_or_default();
            broken(whole.slice(..whole.len() / 2))
        }
        Some(Fault::Late(late)) => {
            tokio::time::sleep(late).await;
            Response::from_parts(parts, Body::new(body))
        }
        _ => Response::from_parts(parts, Body::new(body)),
    }
}

/// A refusal as the API server words it.
fn refused(code: u16, after: Option<u32>) -> Response {
    let reason = match code {
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "an injected fault", "reason": reason, "code": code,
    });
    let mut response = Response::builder().status(code).header(CONTENT_TYPE, "application/json");
    if let Some(seconds) = after {
        response = response.header(RETRY_AFTER, seconds);
    }
    response.body(status.to_string().into()).expect("a response")
}

/// A watch whose one event says that it can't be resumed.
fn expired() -> Response {
    let event = json!({"type": "ERROR", "object": {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version", "reason": "Expired", "code": 410,
    }});
    let response = Response::builder().status(StatusCode::OK).header(CONTENT_TYPE, "application/json");
    response.body(format!("{event}\n").into()).expect("a response")
}

/// An answer that begins so and ends with the connection.
fn broken(begin: Bytes) -> Response {
    let end = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let body = Body::from_stream(stream::iter([Ok(begin), Err(end)]));
    Response::builder().header(CONTENT_TYPE, "application/json").body(body).expect("a response")
}

/// Until the caller is gone.
async fn hold(inner: &Inner) {
    inner.reached.notify_one();
    Gate::hold::<()>().await;
}
