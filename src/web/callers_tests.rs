//! What is asked of the API server, counted; what it answers to real tokens is in tests/api.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::http::{HeaderName, HeaderValue, Response};
use futures::future::join_all;
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::service_fn;

use super::*;

const RELAY: &str = "system:serviceaccount:tenantry-relay-main:relay";

/// An API server that knows the tokens `aa.bb.cc` (a ServiceAccount's) and `dd.ee.ff` (a person's,
/// whose group may get Tenant acme).
#[derive(Default)]
struct Reviews {
    asked: AtomicUsize,
    away: AtomicBool,
    /// Knows no audiences, as an API server of long ago.
    careless: AtomicBool,
    held: watch::Sender<bool>,
}

fn callers(reviews: &Arc<Reviews>) -> Callers {
    let reviews = Arc::clone(reviews);
    let service = service_fn(move |request: axum::http::Request<Body>| {
        let reviews = Arc::clone(&reviews);
        async move {
            reviews.asked.fetch_add(1, Ordering::SeqCst);
            reviews.held.subscribe().wait_for(|held| !held).await.expect("a test");
            if reviews.away.load(Ordering::SeqCst) {
                return Err("no route to host");
            }
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let mut review: Value = serde_json::from_slice(&body).expect("JSON");
            if review["kind"] == "SubjectAccessReview" {
                let spec = &review["spec"];
                let wanted = json!({"verb": "get", "group": "tenantry.io", "version": "v1alpha1", "resource": "tenants", "name": "acme"});
                let may = spec["user"] == "jane"
                    && spec["uid"] == "5"
                    && spec["groups"] == json!(["billing"])
                    && spec["extra"] == json!({"shift": ["day"]})
                    && spec["resourceAttributes"] == wanted;
                review["status"] = json!({"allowed": may});
                return Ok(Response::new(Body::from(review.to_string().into_bytes())));
            }
            let user = match review["spec"]["token"].as_str() {
                Some("aa.bb.cc") => Some(RELAY),
                Some("dd.ee.ff") => Some("jane"),
                _ => None,
            };
            let known = json!({"username": user, "uid": "5", "groups": ["billing"], "extra": {"shift": ["day"]}});
            review["status"] = json!({"authenticated": user.is_some(), "user": known});
            if user.is_some() && !reviews.careless.load(Ordering::SeqCst) {
                review["status"]["audiences"] = review["spec"]["audiences"].clone();
            }
            Ok(Response::new(Body::from(review.to_string().into_bytes())))
        }
    });
    Callers::new(Client::new(service, "default"), Counts::default())
}

fn headers(values: &[&str]) -> HeaderMap {
    let pair = |value: &&str| (AUTHORIZATION, HeaderValue::from_str(value).expect("a value"));
    let pairs: Vec<(HeaderName, HeaderValue)> = values.iter().map(pair).collect();
    pairs.into_iter().fold(HeaderMap::new(), |mut map, (name, value)| {
        map.append(name, value);
        map
    })
}

async fn account(callers: &Callers, token: &str) -> Result<Account, Stranger> {
    callers.account(&headers(&[&format!("Bearer {token}")])).await
}

#[tokio::test]
async fn nobody_is_asked_about_what_is_no_token() {
    let reviews = Arc::new(Reviews::default());
    let callers = callers(&reviews);
    let long = format!("Bearer {}.b.c", "a".repeat(16 * 1024));
    for (values, denial) in [
        (&[][..], Denial::NoToken),
        (&["Basic YTpi"], Denial::NoToken),
        (&["Bearer"], Denial::NoToken),
        (&["Bearer a.b.c", "Bearer a.b.c"], Denial::NoToken),
        (&["Bearer "], Denial::BadToken),
        (&["Bearer token"], Denial::BadToken),
        (&["Bearer a.b"], Denial::BadToken),
        (&["Bearer a..c"], Denial::BadToken),
        (&["Bearer a.b.c d"], Denial::BadToken),
        (&[long.as_str()], Denial::BadToken),
    ] {
        assert_eq!(callers.account(&headers(values)).await, Err(Stranger::Denied(denial)), "{values:?}");
    }
    assert_eq!(reviews.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn each_token_is_asked_about_once_whoever_comes_at_the_same_time() {
    let reviews = Arc::new(Reviews::default());
    reviews.held.send_replace(true);
    let callers = callers(&reviews);
    let all = join_all((0..50).map(|_| account(&callers, "aa.bb.cc")));
    let release = async {
        while reviews.asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        reviews.held.send_replace(false);
    };
    let relay = Account { namespace: "tenantry-relay-main".into(), name: "relay".into() };
    for answer in tokio::join!(all, release).0 {
        assert_eq!(answer, Ok(relay.clone()));
    }
    assert_eq!(reviews.asked.load(Ordering::SeqCst), 1);
    assert_eq!(account(&callers, "dd.ee.ff").await, Err(Stranger::Denied(Denial::NoServiceAccount)));
    for _ in 0..2 {
        assert_eq!(account(&callers, "gg.hh.ii").await, Err(Stranger::Denied(Denial::BadToken)));
    }
    assert_eq!(reviews.asked.load(Ordering::SeqCst), 3, "what is nobody's is remembered too");
}

#[tokio::test]
async fn an_api_server_that_is_away_makes_no_token_a_bad_one() {
    let reviews = Arc::new(Reviews::default());
    let callers = callers(&reviews);
    reviews.away.store(true, Ordering::SeqCst);
    let answer = account(&callers, "aa.bb.cc").await;
    assert!(matches!(&answer, Err(Stranger::Away(error)) if error.contains("no route to host")), "{answer:?}");
    reviews.away.store(false, Ordering::SeqCst);
    assert!(account(&callers, "aa.bb.cc").await.is_ok(), "a failure is not remembered");
}

#[tokio::test]
async fn a_token_for_anybody_is_for_nobody() {
    let reviews = Arc::new(Reviews::default());
    reviews.careless.store(true, Ordering::SeqCst);
    assert_eq!(account(&callers(&reviews), "aa.bb.cc").await, Err(Stranger::Denied(Denial::BadToken)));
}

#[tokio::test]
async fn the_right_to_a_name_is_asked_for_once_with_all_that_is_known_of_the_user() {
    let reviews = Arc::new(Reviews::default());
    let callers = callers(&reviews);
    let jane = callers.caller(&headers(&["Bearer dd.ee.ff"])).await.expect("jane");
    let relay = callers.caller(&headers(&["Bearer aa.bb.cc"])).await.expect("a relay");
    assert_eq!((jane.name(), jane.account()), ("jane", None));
    assert_eq!(relay.account().expect("a ServiceAccount").name, "relay");
    for _ in 0..2 {
        assert_eq!(callers.may_get(&jane, "acme").await, Ok(true));
        assert_eq!(callers.may_get(&jane, "bolt").await, Ok(false));
        assert_eq!(callers.may_get(&relay, "acme").await, Ok(false));
    }
    assert_eq!(reviews.asked.load(Ordering::SeqCst), 2 + 3);
    reviews.away.store(true, Ordering::SeqCst);
    let answer = callers.may_get(&jane, "mega").await;
    assert!(matches!(&answer, Err(error) if error.contains("no route to host")), "{answer:?}");
    reviews.away.store(false, Ordering::SeqCst);
    assert_eq!(callers.may_get(&jane, "mega").await, Ok(false), "a failure is not remembered");
}
