//! The operator's API as a relay sees it, with a ledger that counts each event once; it can be told
//! to fail.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Response, StatusCode, header},
    response::IntoResponse as _,
    routing::post,
    serve::Listener,
};
use serde_json::{Value, json};
use tokio::sync::watch;

/// How a post fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Say {
    /// An answer for each event.
    Answer,
    /// This status, nothing taken, and for how many seconds the relay is to wait.
    Status(u16, Option<u64>),
    /// No answer at all.
    Silence,
    /// The connection ends, nothing taken.
    Cut,
    /// The connection ends, all taken.
    TakeAndCut,
    /// All taken, and an answer that says nothing.
    Garbage,
}

/// What one post was.
#[derive(Clone, Debug)]
pub struct Post {
    pub at: Instant,
    pub token: String,
    pub events: Vec<Value>,
    pub said: Say,
}

/// How the API behaves, and what it has seen.
#[derive(Default)]
pub struct Script {
    /// For the next posts, one each.
    pub next: VecDeque<Say>,
    /// For all after these.
    pub always: Option<Say>,
    /// A batch with more events is too large.
    pub most: Option<usize>,
    /// A batch with the event of one of these subjects is refused as a whole.
    pub poison: HashSet<i64>,
    /// Sequences that are refused for good, and for now.
    pub reject: HashSet<i64>,
    pub defer: HashSet<i64>,
    pub posts: Vec<Post>,
    /// Usage events by id: how often they were taken, and what they say.
    pub usage: BTreeMap<String, (u64, Value)>,
    /// Their ids in the order in which they came.
    pub order: Vec<String>,
    pub marks: Vec<Value>,
    pub reports: Vec<(String, Value)>,
}

/// The API, until it is dropped.
#[derive(Clone)]
pub struct Api {
    pub url: String,
    script: Arc<Mutex<Script>>,
    changed: watch::Sender<u64>,
    /// While it is true, posts that are answered wait.
    held: watch::Sender<bool>,
}

impl Api {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        Self::serve(url, listener)
    }

    /// Serves what a listener accepts.
    pub fn serve(url: String, listener: impl Listener<Addr: std::fmt::Debug>) -> Self {
        let api = Self { url, script: Arc::default(), changed: watch::Sender::new(0), held: watch::Sender::new(false) };
        let router = Router::new()
            .route("/v1/events", post(events))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        api
    }

    pub fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers wait until it is called with false.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Waits until the API has seen what is waited for.
    pub async fn until(&self, what: &str, so: impl Fn(&Script) -> bool) {
        let mut changed = self.changed.subscribe();
        let seen = async {
            while !so(&self.script()) {
                changed.changed().await.expect("it lives");
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(60), seen).await;
        if seen.is_err() {
            let script = self.script();
            let last: Vec<_> = script.posts.iter().rev().take(5).map(|post| (&post.said, post.events.len())).collect();
            panic!("never: {what}; {} events, last posts {last:?}", script.usage.len());
        }
    }

    /// Waits until so many events have arrived.
    pub async fn arrived(&self, events: usize) {
        self.until(&format!("{events} events arrive"), |script| script.usage.len() >= events).await;
    }
}

impl Script {
    /// The sum of the deltas of a tenant's meter: each event once.
    pub fn sum(&self, tenant: &str, meter: &str) -> i64 {
        let of = |event: &&Value| event["subject"] == tenant && event["data"]["meter"] == meter;
        let events = self.usage.values().map(|(_, event)| event).filter(of);
        events.map(|event| event["data"]["delta"].as_i64().expect("a delta")).sum()
    }

    fn decide(&mut self, events: &[Value]) -> Say {
        if let Some(say) = self.next.pop_front().or_else(|| self.always.clone()) {
            return say;
        }
        if self.most.is_some_and(|most| events.len() > most) {
            return Say::Status(413, None);
        }
        match events.iter().any(|event| self.poison.contains(&sequence(event))) {
            true => Say::Status(400, None),
            false => Say::Answer,
        }
    }

    /// Takes events as the ledger does, and answers.
    fn take(&mut self, token: &str, events: &[Value]) -> Value {
        let (mut accepted, mut duplicates) = (0, 0);
        let (mut rejected, mut deferred) = (Vec::new(), Vec::new());
        for (index, event) in events.iter().enumerate() {
            let id = event["id"].as_str().expect("an id").to_owned();
            let refusal =
                |reason: &str| json!({"index": index, "id": id, "reason": reason, "message": "as the test says"});
            if self.reject.contains(&sequence(event)) {
                rejected.push(refusal("TooOld"));
                continue;
            }
            if self.defer.contains(&sequence(event)) {
                deferred.push(refusal("UnknownTenant"));
                continue;
            }
            match event["type"].as_str().expect("a type") {
                "io.tenantry.usage.v1" => {
                    let known = self.usage.entry(id.clone()).or_insert_with(|| (0, event.clone()));
                    assert_eq!(known.1, *event, "an event is the same however often it is sent");
                    known.0 += 1;
                    if known.0 > 1 {
                        duplicates += 1;
                        continue;
                    }
                    self.order.push(id.clone());
                }
                "io.tenantry.mark.v1" => self.marks.push(event.clone()),
                "io.tenantry.outbox.v1" => self.reports.push((token.to_owned(), event.clone())),
                other => panic!("an event of type {other}"),
            }
            accepted += 1;
        }
        json!({"accepted": accepted, "duplicates": duplicates, "quarantined": 0, "rejected": rejected, "deferred": deferred})
    }
}

fn sequence(event: &Value) -> i64 {
    match event["type"] == "io.tenantry.usage.v1" {
        true => event["data"]["sequence"].as_i64().expect("a sequence"),
        false => -1,
    }
}

async fn events(State(api): State<Api>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let header = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert_eq!(header(header::CONTENT_TYPE), "application/cloudevents-batch+json");
    let token = header(header::AUTHORIZATION).strip_prefix("Bearer ").expect("a token").to_owned();
    let events: Vec<Value> = serde_json::from_slice(&body).expect("a JSON list");
    let at = Instant::now();
    let said = {
        let mut script = api.script();
        let said = script.decide(&events);
        script.posts.push(Post { at, token: token.clone(), events: events.clone(), said: said.clone() });
        said
    };
    api.changed.send_modify(|count| *count += 1);
    let cut = || {
        let broken = futures::stream::once(async { Err::<Bytes, _>(std::io::Error::other("cut")) });
        Response::builder().header(header::CONTENT_LENGTH, 100).body(Body::from_stream(broken)).expect("a response")
    };
    let answer = match &said {
        Say::Answer => {
            let answer = api.script().take(&token, &events);
            api.changed.send_modify(|count| *count += 1);
            let mut held = api.held.subscribe();
            held.wait_for(|held| !*held).await.expect("it lives");
            axum::Json(answer).into_response()
        }
        Say::Status(status, wait) => {
            let status = StatusCode::from_u16(*status).expect("a status");
            let mut response = (status, "as the test says").into_response();
            if let Some(wait) = wait {
                response.headers_mut().insert(header::RETRY_AFTER, (*wait).into());
            }
            response
        }
        Say::Silence => std::future::pending().await,
        Say::Cut => cut(),
        Say::TakeAndCut => {
            api.script().take(&token, &events);
            cut()
        }
        Say::Garbage => {
            api.script().take(&token, &events);
            "{}x".into_response()
        }
    };
    api.changed.send_modify(|count| *count += 1);
    answer
}
