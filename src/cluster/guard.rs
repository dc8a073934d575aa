//! What every call to the API server goes through: it is counted, and what would change
//! something is refused once the term of leadership is over.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Method, Request, Response};
use kube::client::Body;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tower::{BoxError, Layer, Service};

use crate::term::Term;

/// Calls by what they were and how they were answered.
pub type Calls = Family<Call, Counter>;

/// One sort of call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Call {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: &'static str,
    /// The resource in plural, with its subresource, such as `tenants/status`.
    pub resource: String,
    /// The HTTP status of the answer, or `error` where there was none.
    pub code: String,
}

/// A write was not sent: the term is over.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("this process no longer leads: nothing is written")]
pub struct TermOver;

/// Counts calls, and refuses writes outside the term.
#[derive(Clone)]
pub(super) struct Guard {
    term: Option<Term>,
    calls: Calls,
}

impl Guard {
    /// With a term, writes are sent only while that is current.
    pub(super) fn new(term: Option<Term>, calls: Calls) -> Self {
        Self { term, calls }
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: self.clone() }
    }
}

pub(super) struct Guarded<S> {
    inner: S,
    guard: Guard,
}

impl<S, B> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (verb, resource) = name(request.method(), request.uri().path(), request.uri().query());
        let term = self.guard.term.clone().filter(|_| writes(request.method()));
        if term.as_ref().is_some_and(|term| !term.is_current()) {
            return Box::pin(std::future::ready(Err(TermOver.into())));
        }
        let calls = self.guard.calls.clone();
        let mut call = Box::pin(self.inner.call(request));
        Box::pin(async move {
            // Asked at each step: one that was held up before it was sent is not sent.
            let answer = std::future::poll_fn(|context| match &term {
                Some(term) if !term.is_current() => Poll::Ready(Err(TermOver.into())),
                _ => call.as_mut().poll(context),
            })
            .await;
            let code =
                answer.as_ref().map_or_else(|_| "error".to_owned(), |answer| answer.status().as_str().to_owned());
            calls.get_or_create(&Call { verb, resource, code }).inc();
            answer
        })
    }
}

/// Whether a call of this method would change something.
pub(super) fn writes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD)
}

/// What a call does, and to which resource, as Kubernetes names both.
fn name(method: &Method, path: &str, query: Option<&str>) -> (&'static str, String) {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let is_api = match parts.next() {
        Some("api") => parts.next().is_some(),
        Some("apis") => parts.next().is_some() && parts.next().is_some(),
        _ => false,
    };
    let mut rest: Vec<&str> = if is_api { parts.collect() } else { Vec::new() };
    // A namespace's own path has two parts, that of something in it at least three.
    if rest.first() == Some(&"namespaces") && rest.len() > 2 {
        rest.drain(..2);
    }
    let resource = match rest.as_slice() {
        [resource, _, subresource, ..] => format!("{resource}/{subresource}"),
        [resource, ..] => (*resource).to_owned(),
        [] => "none".to_owned(),
    };
    let watches = query.is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ if watches => "watch",
        _ if rest.len() == 1 => "list",
        _ => "get",
    };
    (verb, resource)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn calls_are_named_as_kubernetes_names_them() {
        let of = |method: Method, path: &str, query: Option<&str>| {
            let (verb, resource) = name(&method, path, query);
            format!("{verb} {resource}")
        };
        let group = "/apis/tenantry.io/v1alpha1";
        assert_eq!(of(Method::GET, &format!("{group}/tenants"), Some("limit=200")), "list tenants");
        assert_eq!(of(Method::GET, &format!("{group}/tenants"), Some("a=b&watch=true")), "watch tenants");
        assert_eq!(of(Method::PATCH, &format!("{group}/tenants/a/status"), None), "patch tenants/status");
        assert_eq!(of(Method::GET, "/api/v1/namespaces/kube-system", None), "get namespaces");
        assert_eq!(of(Method::GET, "/api/v1/namespaces", None), "list namespaces");
        assert_eq!(of(Method::DELETE, "/api/v1/namespaces/a/secrets/b", None), "delete secrets");
        assert_eq!(of(Method::POST, "/apis/events.k8s.io/v1/namespaces/default/events", None), "create events");
        assert_eq!(of(Method::GET, "/version", None), "get none");
    }

    #[tokio::test]
    async fn nothing_is_written_once_the_term_is_over_and_everything_can_be_read() {
        static SENT: AtomicUsize = AtomicUsize::new(0);
        let inner = tower::service_fn(|_: Request<Body>| async {
            SENT.fetch_add(1, Ordering::Relaxed);
            Ok::<_, BoxError>(Response::new(Body::empty()))
        });
        let term = Term::of_standby();
        let calls = Calls::default();
        let mut service = Guard { term: Some(term.clone()), calls: calls.clone() }.layer(inner);
        let mut call = |method: Method| {
            let request = Request::builder().method(method).uri("/api/v1/namespaces/a/pods/b");
            service.call(request.body(Body::empty()).expect("a request"))
        };
        assert!(call(Method::PATCH).await.is_err_and(|error| error.is::<TermOver>()));
        call(Method::GET).await.expect("a standby reads");
        term.begin(1, Instant::now() + Duration::from_secs(60));
        call(Method::PATCH).await.expect("a leader writes");
        // One that was made in time and is sent too late.
        let late = call(Method::DELETE);
        term.end();
        assert!(late.await.is_err_and(|error| error.is::<TermOver>()));
        assert_eq!(SENT.load(Ordering::Relaxed), 2);
        let counted = Call { verb: "patch", resource: "pods".into(), code: "200".into() };
        assert_eq!(calls.get_or_create(&counted).get(), 1);
    }
}
