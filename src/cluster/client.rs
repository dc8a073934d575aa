//! The way to the API server.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use hyper_timeout::TimeoutConnector;
use hyper_util::rt::TokioExecutor;
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt as _},
};
use tokio::time::{Instant, Sleep, sleep_until};
use tower::{BoxError, Layer, Service, ServiceBuilder};

use super::{
    fence::fenced,
    guard::{Calls, Guard},
};
use crate::term::Term;

/// The longest that the API server may be silent on a watch before it counts as dead: longer
/// than the time after which the API server itself ends one.
const WATCH_SILENCE: Duration = Duration::from_secs(300);

/// The longest pause that the API server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A client for the operator. A call that isn't answered within `answer` has failed (what an
/// answered watch brings later has no such bound), and after `429 Too Many Requests` or `503`
/// with `Retry-After` nothing is sent for as long as that says. Calls are counted; with a term,
/// what would change something is sent only while that is current.
///
/// # Errors
/// When the configuration names files or certificates that can't be used.
pub fn client(config: Config, answer: Duration, term: Option<Term>, calls: &Calls) -> kube::Result<Client> {
    // An error means that another one was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // kube's own stack, but for two things: the controllers retry by themselves, later and later,
    // where the client's retries would hold a slot for minutes; and bodies have a fence.
    let mut connector = TimeoutConnector::new(config.rustls_https_connector()?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(Some(WATCH_SILENCE));
    connector.set_write_timeout(config.write_timeout);
    let connections = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let fence = term.clone();
    let stack = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_request(move |request| fenced(request, fence.as_ref()))
        .map_err(BoxError::from)
        .service(connections);
    // The guard is the inner one: what had to wait is looked at when it is sent.
    let guarded = ClientBuilder::new(stack, config.default_namespace).with_layer(&Guard::new(term, calls.clone()));
    Ok(guarded.with_layer(&Polite { answer }).build())
}

/// Waits for no answer for ever, and asks nothing while it was asked to wait.
struct Polite {
    answer: Duration,
}

impl<S> Layer<S> for Polite {
    type Service = PoliteService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PoliteService { inner, answer: self.answer, pause: Pause::default(), waiting: None }
    }
}

struct PoliteService<S> {
    inner: S,
    answer: Duration,
    pause: Pause,
    waiting: Option<Pin<Box<Sleep>>>,
}

/// Until when nothing is to be sent.
#[derive(Clone, Default)]
struct Pause(Arc<Mutex<Option<Instant>>>);

impl Pause {
    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in an answer.
    fn note<B>(&self, response: &http::Response<B>) {
        let asked =
            response.headers().get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        if let (429 | 503, Some(seconds)) = (response.status().as_u16(), asked) {
            let until = Instant::now() + Duration::from_secs(seconds).min(LONGEST_PAUSE);
            let mut pause = self.lock();
            *pause = pause.max(Some(until));
        }
    }
}

impl<S, B> Service<http::Request<Body>> for PoliteService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(context));
                self.waiting = None;
            }
            let Some(until) = self.pause.lock().take() else { break };
            self.waiting = Some(Box::pin(sleep_until(until)));
        }
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (answer, pause) = (self.answer, self.pause.clone());
        let call = self.inner.call(request);
        async move {
            let response = tokio::time::timeout(answer, call)
                .await
                .map_err(|_| BoxError::from(format!("the API server doesn't answer within {answer:?}")))?
                .map_err(Into::into)?;
            pause.note(&response);
            Ok(response)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Pending, Ready, pending, ready};

    use futures::{FutureExt as _, future::poll_fn};
    use http::Response;
    use tower::service_fn;

    use super::*;

    type Answer = Response<()>;

    fn answer(code: u16, retry_after: &str) -> Answer {
        let answer = Response::builder().status(code).header("Retry-After", retry_after);
        answer.body(()).expect("a response")
    }

    async fn is_ready<S>(service: &mut S) -> bool
    where
        S: Service<http::Request<Body>>,
    {
        poll_fn(|context| service.poll_ready(context)).now_or_never().is_some()
    }

    #[tokio::test]
    async fn nothing_is_sent_while_the_server_asks_to_wait() {
        for (code, retry_after, waits) in
            [(429, "3600", true), (503, "1", true), (200, "1", false), (429, "soon", false)]
        {
            let busy = move |_: http::Request<Body>| -> Ready<Result<Answer, BoxError>> {
                ready(Ok(answer(code, retry_after)))
            };
            let mut service = Polite { answer: Duration::from_secs(60) }.layer(service_fn(busy));
            assert!(is_ready(&mut service).await, "nobody asked yet");
            service.call(http::Request::new(Body::empty())).await.expect("an answer");
            let until = *service.pause.lock();
            assert!(until.is_none_or(|until| until <= Instant::now() + LONGEST_PAUSE), "an hour is too long");
            assert_eq!(!is_ready(&mut service).await, waits, "{code} with {retry_after}");
        }
    }

    #[tokio::test]
    async fn what_is_not_answered_fails() {
        let silent = |_: http::Request<Body>| -> Pending<Result<Answer, BoxError>> { pending() };
        let mut service = Polite { answer: Duration::from_millis(1) }.layer(service_fn(silent));
        let error = service.call(http::Request::new(Body::empty())).await.expect_err("no answer");
        assert!(error.to_string().contains("doesn't answer within 1ms"), "{error}");
    }
}
