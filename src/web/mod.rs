//! Health and metrics over HTTP, and the API that takes usage events and tells tenants' usage.

mod callers;
mod connections;
mod events;
mod shares;
mod tls;
mod trouble;
mod usage;

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::State,
    http::{
        StatusCode,
        header::{CONNECTION, CONTENT_TYPE},
    },
    response::IntoResponse,
    routing::{get, post},
};
use kube::Client;
use tokio::net::TcpListener;

pub use events::ApiSettings;
pub use tls::{Tls, TlsFiles};
pub use trouble::Problem;
pub use usage::{ReadingCondition, UsageReading};

use self::{callers::Callers, connections::Service, events::Events, usage::Readings};
use crate::{
    controller::Operator,
    metering::{counts::Counts, known::Known, store::Store},
};

/// What the API is, for programs and people: OpenAPI 3.1.
pub const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// Media type of the text that Prometheus reads (OpenMetrics 1.0).
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where health and metrics are served.
pub struct Web {
    listener: TcpListener,
}

impl Web {
    /// Takes the address.
    ///
    /// # Errors
    /// When it can't be had.
    pub async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener =
            listener.with_context(|| format!("listen on {address}: choose another address with --listen"))?;
        // With port 0 this alone tells where.
        tracing::info!(address = %listener.local_addr()?, "listening");
        Ok(Self { listener })
    }

    /// Serves until `shutdown` is ready.
    ///
    /// `/livez` says that the process works, and deliberately nothing of clusters or servers,
    /// which a restart would not mend; `/readyz` that it could take over or, where it leads, that
    /// it is at work; else what is wrong.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(
        self,
        operator: Operator,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let router = Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(operator);
        Ok(axum::serve(self.listener, router).with_graceful_shutdown(shutdown).await?)
    }
}

/// Where usage events are taken, and usage is read.
pub struct Api {
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
}

impl Api {
    /// Takes the address.
    ///
    /// # Errors
    /// When it can't be had.
    pub async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener =
            listener.with_context(|| format!("listen on {address}: choose another address with --api-listen"))?;
        tracing::info!(address = %listener.local_addr()?, "the API listens");
        Ok(Self { listener, tls: None })
    }

    /// Serves TLS alone.
    #[must_use]
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls: Some(Arc::new(tls)), ..self }
    }

    /// The address.
    ///
    /// # Errors
    /// When the system doesn't tell.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` is ready, and then until what is under way is answered. Tokens are
    /// reviewed with `client`, and what their users may.
    pub async fn serve<S: Store>(
        self,
        store: S,
        client: Client,
        counts: Counts,
        settings: ApiSettings,
        shutdown: impl Future<Output = ()>,
    ) {
        let callers = Arc::new(Callers::new(client, counts.clone()));
        let known = Arc::new(Known::new(store.clone()));
        let readings = Readings::new(store.clone(), Arc::clone(&callers), Arc::clone(&known), counts.clone(), settings);
        let readings =
            Router::new().route("/v1/tenants/{name}/usage", get(usage::get_usage::<S>)).with_state(Arc::new(readings));
        let without_tls = without_tls(counts.clone());
        let tls_counts = counts.clone();
        let router = Router::new()
            .route("/v1/events", post(events::post_events::<S>))
            .route("/v1/openapi.json", get(async || ([(CONTENT_TYPE, "application/json")], OPENAPI)))
            .fallback(async || {
                let message = "there is nothing here: GET /v1/openapi.json tells what there is".to_owned();
                (StatusCode::NOT_FOUND, Json(Problem { reason: "NotFound".to_owned(), message }))
            })
            .with_state(Arc::new(Events::new(store, callers, known, counts, settings)))
            .merge(readings);
        let service = Service { router, tls: self.tls.clone(), without_tls };
        let serving = connections::serve(self.listener, service, shutdown);
        match self.tls {
            Some(tls) => tokio::select! {
                () = serving => {}
                () = tls.keep(&tls_counts) => {}
            },
            None => serving.await,
        }
    }
}

/// What is answered to plain HTTP where TLS is on. It is no answer to a batch: a relay that doesn't
/// know yet that TLS was switched on keeps its events (RFC 9110, 15.5.20).
fn without_tls(counts: Counts) -> Router {
    Router::new().fallback(async move || {
        counts.request(StatusCode::MISDIRECTED_REQUEST.as_u16());
        let message = "the API speaks TLS here: use https://. What came was sent in clear".to_owned();
        let problem = Problem { reason: "PlainHttp".to_owned(), message };
        (StatusCode::MISDIRECTED_REQUEST, [(CONNECTION, "close")], Json(problem))
    })
}

async fn readyz(State(operator): State<Operator>) -> impl IntoResponse {
    match operator.readiness() {
        Ok(state) => (StatusCode::OK, format!("ok: {state}\n")),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn metrics(State(operator): State<Operator>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPEN_METRICS)], operator.metrics())
}
