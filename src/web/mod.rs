//! Health and metrics over HTTP.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use crate::controller::Operator;

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

async fn readyz(State(operator): State<Operator>) -> impl IntoResponse {
    match operator.readiness() {
        Ok(state) => (StatusCode::OK, format!("ok: {state}\n")),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn metrics(State(operator): State<Operator>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPEN_METRICS)], operator.metrics())
}
