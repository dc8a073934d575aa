//! The body of a request, which is sent only while the term of leadership lasts.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::Request;
use http_body::{Frame, SizeHint};
use kube::client::Body;
use tower::BoxError;

use super::guard::{TermOver, writes};
use crate::term::Term;

/// A request's body. Connections have tasks of their own, which may come to a request long after it
/// was handed over to them: where the term is over by then, the body of one that would change
/// something isn't sent, and without that the API server does nothing.
pub(super) struct Fenced {
    body: Body,
    term: Option<Term>,
}

/// The request with its body behind the fence, if it would change something.
pub(super) fn fenced(request: Request<Body>, term: Option<&Term>) -> Request<Fenced> {
    let term = term.filter(|_| writes(request.method())).cloned();
    request.map(|body| Fenced { body, term })
}

impl http_body::Body for Fenced {
    type Data = <Body as http_body::Body>::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, BoxError>>> {
        if self.term.as_ref().is_some_and(|term| !term.is_current()) {
            return Poll::Ready(Some(Err(TermOver.into())));
        }
        Pin::new(&mut self.body).poll_frame(context).map_err(BoxError::from)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use futures::{FutureExt as _, future::poll_fn};
    use http::Method;
    use http_body::Body as _;

    use super::*;

    async fn send(request: &mut Request<Fenced>) -> Option<Result<Vec<u8>, BoxError>> {
        let frame = poll_fn(|context| Pin::new(request.body_mut()).poll_frame(context)).now_or_never();
        let frame = frame.expect("it is all there")?;
        Some(frame.map(|frame| frame.into_data().map(|data| data.to_vec()).unwrap_or_default()))
    }

    fn request(method: Method, term: &Term) -> Request<Fenced> {
        let request = Request::builder().method(method).body(Body::from(b"{}".to_vec())).expect("a request");
        fenced(request, Some(term))
    }

    #[tokio::test]
    async fn what_a_connection_comes_to_after_the_term_is_not_sent() {
        let term = Term::of_standby();
        term.begin(1, Instant::now() + Duration::from_secs(60));
        let (mut early, mut late, mut read) =
            (request(Method::PATCH, &term), request(Method::PATCH, &term), request(Method::GET, &term));
        assert_eq!(early.body().size_hint().exact(), Some(2));
        assert_eq!(send(&mut early).await.expect("a body").expect("sent"), b"{}");
        term.end();
        let error = send(&mut late).await.expect("a body").expect_err("not sent");
        assert!(error.is::<TermOver>(), "{error}");
        assert_eq!(send(&mut read).await.expect("a body").expect("sent"), b"{}");
    }
}
