//! A way to the API server that stops one call: before it is made, or before its answer.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{
        Method,
        header::{AUTHORIZATION, CONTENT_LENGTH, HOST},
    },
    response::Response,
};
use kube::Client;
use serde_json::json;
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};

use super::ground::{Ground, NAMESPACE};

/// When a call is stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The API server never hears of it.
    BeforeTheCall,
    /// It is done, and the caller never hears of it.
    BeforeTheAnswer,
}

struct Inner {
    client: Client,
    armed: Mutex<Option<(String, Moment)>>,
    reached: Notify,
}

/// Passes calls on as the operator's ServiceAccount.
pub struct Proxy {
    /// Leads here.
    pub kubeconfig: PathBuf,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(ground: &Ground) -> Self {
        let client = ground.cluster.service_account_client(NAMESPACE, "tenantry").await.expect("a client");
        let inner = Arc::new(Inner { client, armed: Mutex::default(), reached: Notify::new() });
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
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { kubeconfig, inner, task }
    }

    /// Stops the next PATCH whose path ends so.
    pub fn arm(&self, path: &str, moment: Moment) {
        *self.inner.armed.lock().expect("no panic") = Some((path.to_owned(), moment));
    }

    /// Waits until it was stopped. Later calls pass.
    pub async fn reached(&self) {
        let patience = std::time::Duration::from_secs(60);
        tokio::time::timeout(patience, self.inner.reached.notified()).await.expect("the call is made");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let stop = {
        let mut armed = inner.armed.lock().expect("no panic");
        let hit = armed
            .as_ref()
            .is_some_and(|(path, _)| request.method() == Method::PATCH && request.uri().path().ends_with(path));
        if hit { armed.take().map(|(_, moment)| moment) } else { None }
    };
    if stop == Some(Moment::BeforeTheCall) {
        hold(&inner).await;
    }
    let (mut parts, body) = request.into_parts();
    for header in [AUTHORIZATION, CONTENT_LENGTH, HOST] {
        parts.headers.remove(header);
    }
    let body = to_bytes(body, usize::MAX).await.expect("a whole request");
    parts.uri = parts.uri.path_and_query().expect("a path").as_str().parse().expect("a path");
    let call = Request::from_parts(parts, kube::client::Body::from(body.to_vec()));
    let answer = inner.client.send(call).await.expect("an answer of the API server");
    if stop == Some(Moment::BeforeTheAnswer) {
        hold(&inner).await;
    }
    let (parts, body) = answer.into_parts();
    Response::from_parts(parts, Body::new(body))
}

/// Until the caller is gone.
async fn hold(inner: &Inner) {
    inner.reached.notify_one();
    std::future::pending::<()>().await;
}
