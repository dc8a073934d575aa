//! `POST /v1/events`: who sends, what comes, what of it is taken, and the answer.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header::CONTENT_LENGTH},
    response::{IntoResponse as _, Response},
};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    callers::{Account, Callers},
    shares::{Load, Share, Shares},
    trouble::{Trouble, later, within},
};
use crate::{
    desired::naming,
    metering::{
        batches::{BatchSettings, Batches, Fate, Unavailable},
        cloudevents::{self, CloudEvent, EventFault, Mode, RequestFault},
        counts::{Counts, Denial},
        event::{Answer, Refusal},
        judge::{Item, Objection, Reason, Sender, TenantFacts, Window, judge, tenant_of},
        known::Known,
        ledger::Outcome,
        store::Store,
        usage::Patience,
    },
};

/// How much is taken, and from when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiSettings {
    /// How far an event's time may be from now.
    pub window: Window,
    /// How long usage may be on its way until that is said.
    pub arrival: Patience,
    /// The largest body, in bytes.
    pub body: usize,
    /// The most events of a batch.
    pub events: usize,
    /// How many bytes of bodies may be in memory.
    pub bodies: usize,
    /// How many requests of one caller may be under way; those that read are counted apart.
    pub caller_requests: usize,
    /// How many bytes of their bodies.
    pub caller_bodies: usize,
    /// How many events of one caller may wait for the ledger.
    pub caller_events: usize,
    /// How long a body may take to come.
    pub body_patience: Duration,
    /// How many questions of readers the ledger is asked at a time.
    pub reads: usize,
    /// How long the ledger may take to say what has to be known of tenants.
    pub facts_patience: Duration,
    /// How long a request waits for its events to be stored.
    pub patience: Duration,
    /// How they are written.
    pub batches: BatchSettings,
}

impl ApiSettings {
    /// What serves a relay per server and workloads of many tenants in 512 MiB.
    #[must_use]
    pub fn new(window: Window, arrival: Patience) -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            window,
            arrival,
            body: 4 * MIB,
            events: 5_000,
            bodies: 64 * MIB,
            caller_requests: 32,
            caller_bodies: 16 * MIB,
            caller_events: 10_000,
            body_patience: Duration::from_secs(10),
            reads: 3,
            facts_patience: Duration::from_secs(5),
            patience: Duration::from_secs(20),
            batches: BatchSettings::default(),
        }
    }
}

/// What all requests share.
pub(super) struct Events<S> {
    settings: ApiSettings,
    callers: Arc<Callers>,
    known: Arc<Known<S>>,
    batches: Batches<S>,
    shares: Arc<Shares<Sender>>,
    /// Bytes of bodies that may still come into memory.
    room: Arc<Semaphore>,
    counts: Counts,
}

impl<S: Store> Events<S> {
    pub(super) fn new(
        store: S,
        callers: Arc<Callers>,
        known: Arc<Known<S>>,
        counts: Counts,
        settings: ApiSettings,
    ) -> Self {
        let most =
            Load { requests: settings.caller_requests, bytes: settings.caller_bodies, events: settings.caller_events };
        Self {
            settings,
            callers,
            known,
            batches: Batches::start(store, settings.batches, counts.clone()),
            shares: Shares::new(most),
            room: Arc::new(Semaphore::new(settings.bodies)),
            counts,
        }
    }
}

/// Why a request is not answered with what became of its events.
enum Refused {
    /// With the body unread.
    Early(Body, Trouble),
    Late(Trouble),
}

/// Takes events.
pub(super) async fn post_events<S: Store>(State(api): State<Arc<Events<S>>>, request: Request) -> Response {
    let response = match api.take(request).await {
        Ok((mode, answer)) => {
            api.counts.answered(&answer);
            answered(mode, answer)
        }
        Err(Refused::Late(trouble)) => trouble.response(),
        Err(Refused::Early(body, trouble)) => {
            // A connection that is closed on whoever still writes takes the answer with it.
            let _ = tokio::time::timeout(api.settings.body_patience, drained(body, 8 * api.settings.body)).await;
            trouble.response()
        }
    };
    api.counts.request(response.status().as_u16());
    response
}

fn answered(mode: Mode, answer: Answer) -> Response {
    let refusal = answer.rejected.first().map(|refusal| refusal.reason.as_str());
    let status = match (mode, refusal) {
        (Mode::Batched, _) => StatusCode::OK,
        (_, Some("Forbidden")) => StatusCode::FORBIDDEN,
        (_, Some(_)) => StatusCode::BAD_REQUEST,
        _ if !answer.deferred.is_empty() => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    let waits = !answer.deferred.is_empty();
    let mut response = (status, Json(answer)).into_response();
    if waits {
        later(response.headers_mut(), "Deferred");
    }
    response
}

impl<S: Store> Events<S> {
    async fn take(&self, request: Request) -> Result<(Mode, Answer), Refused> {
        let (parts, body) = request.into_parts();
        let admitted = match self.admit(&parts.headers).await {
            Ok(admitted) => admitted,
            Err(trouble) => return Err(Refused::Early(body, trouble)),
        };
        let body = self.read(body).await?;
        self.answer(admitted, &parts.headers, &body).await.map_err(Refused::Late)
    }

    /// Everything that can be told before the body is read.
    async fn admit(&self, headers: &HeaderMap) -> Result<Admitted, Trouble> {
        let sender = self.sender(headers).await?;
        cloudevents::mode(headers).map_err(|fault| unread(&fault))?;
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        // One that doesn't say how long it is may be as long as any.
        let bytes = length.map_or(self.settings.body, |length| usize::try_from(length).unwrap_or(usize::MAX));
        if bytes > self.settings.body {
            return Err(self.too_large());
        }
        let load = Load { requests: 1, bytes, events: 0 };
        let share = self.shares.take(&sender, load).ok_or_else(Trouble::too_much)?;
        let room =
            u32::try_from(bytes).ok().and_then(|bytes| Arc::clone(&self.room).try_acquire_many_owned(bytes).ok());
        let room = room.ok_or_else(|| {
            Trouble::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", "too many requests are under way: send it again")
        })?;
        Ok(Admitted { sender, _share: share, _room: room })
    }

    fn too_large(&self) -> Trouble {
        let message = format!("the body has more than {} bytes: send several requests", self.settings.body);
        Trouble::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", message)
    }

    /// In whose name a request speaks.
    async fn sender(&self, headers: &HeaderMap) -> Result<Sender, Trouble> {
        let account = self.callers.account(headers).await;
        let account = account.map_err(|stranger| Trouble::stranger(stranger, &self.counts))?;
        let Account { namespace, name } = account;
        // Of which server's relay it is, the source of each event must fit.
        if name == naming::RELAY && namespace.starts_with(&naming::relay_namespace("")) {
            return Ok(Sender::Relay { namespace });
        }
        let tenant = within(self.settings.facts_patience, self.known.tenant_of_namespace(&namespace)).await?;
        tenant
            .map(|tenant| Sender::Workload { tenant })
            .ok_or_else(|| Trouble::denied(Denial::ForeignNamespace, &self.counts))
    }

    async fn read(&self, mut body: Body) -> Result<Bytes, Refused> {
        let most = self.settings.body;
        let read = async {
            let mut bytes = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| {
                    let message = format!("the body broke off: {error}");
                    Trouble::new(StatusCode::BAD_REQUEST, "Malformed", message)
                })?;
                let Ok(data) = frame.into_data() else { continue };
                if bytes.len() + data.len() > most {
                    return Err(self.too_large());
                }
                bytes.extend_from_slice(&data);
            }
            Ok(Bytes::from(bytes))
        };
        let read = tokio::time::timeout(self.settings.body_patience, read).await;
        match read {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(trouble)) => Err(Refused::Early(body, trouble)),
            Err(_) => {
                let message = format!("the body did not come within {:?}", self.settings.body_patience);
                Err(Refused::Late(Trouble::new(StatusCode::REQUEST_TIMEOUT, "TooSlow", message)))
            }
        }
    }

    async fn answer(&self, admitted: Admitted, headers: &HeaderMap, body: &[u8]) -> Result<(Mode, Answer), Trouble> {
        let parsed = cloudevents::parse(headers, body, self.settings.events).map_err(|fault| unread(&fault))?;
        let mut verdicts = self.judged(&parsed.events, &admitted.sender).await?;
        let mut items = Vec::new();
        let mut places = Vec::new();
        for (place, verdict) in verdicts.iter_mut().enumerate() {
            if let Ok(item) = verdict {
                places.push(place);
                items.extend(item.take());
            }
        }
        let mut answer = Answer::default();
        for (place, fate) in places.into_iter().zip(self.stored(items, &admitted.sender).await?) {
            match fate {
                Fate::Kept(None | Some(Outcome::Accepted)) => answer.accepted += 1,
                Fate::Kept(Some(Outcome::Duplicate)) => answer.duplicates += 1,
                Fate::Kept(Some(Outcome::Conflict | Outcome::Restored)) => answer.quarantined += 1,
                Fate::Unfit(message) => verdicts[place] = Err(Objection { reason: Reason::Refused, message }),
            }
        }
        for (index, (verdict, event)) in verdicts.into_iter().zip(&parsed.events).enumerate() {
            let Err(Objection { reason, message }) = verdict else { continue };
            self.counts.refused(reason);
            let id = match event {
                Ok(event) => Some(event.id.to_string()),
                Err(fault) => fault.id.clone(),
            };
            let refusal = Refusal { index, id, reason: reason.to_string(), message };
            if reason.passes() { &mut answer.deferred } else { &mut answer.rejected }.push(refusal);
        }
        Ok((parsed.mode, answer))
    }

    /// What of each event is to be kept.
    async fn judged(
        &self,
        events: &[Result<CloudEvent<'_>, EventFault>],
        sender: &Sender,
    ) -> Result<Vec<Result<Option<Item>, Objection>>, Trouble> {
        let tenants: BTreeSet<&str> = events.iter().flatten().filter_map(|event| tenant_of(event, sender)).collect();
        let tenants: Vec<&str> = tenants.into_iter().collect();
        let facts = within(self.settings.facts_patience, self.known.tenants(&tenants)).await?;
        let now = Timestamp::now();
        let decide = |event: &Result<CloudEvent<'_>, EventFault>, facts: &HashMap<String, Arc<TenantFacts>>| match event
        {
            Ok(event) => {
                let facts = tenant_of(event, sender).and_then(|tenant| facts.get(tenant));
                judge(event, sender, now, self.settings.window, facts.map(Arc::as_ref)).map(Some)
            }
            Err(fault) => Err(Objection { reason: Reason::Malformed, message: fault.message.clone() }),
        };
        let mut verdicts: Vec<_> = events.iter().map(|event| decide(event, &facts)).collect();
        // What was true half a minute ago refuses nobody: a tenant may just have moved here.
        let doubtful = |verdict: &Result<Option<Item>, Objection>| {
            let doubtful = [Reason::Forbidden, Reason::UnknownMeter, Reason::UnknownTenant];
            verdict.as_ref().err().is_some_and(|objection| doubtful.contains(&objection.reason))
        };
        let again: BTreeSet<&str> = verdicts
            .iter()
            .zip(events)
            .filter(|(verdict, _)| doubtful(verdict))
            .filter_map(|(_, event)| tenant_of(event.as_ref().ok()?, sender))
            .collect();
        if !again.is_empty() {
            let again: Vec<&str> = again.into_iter().collect();
            let facts = within(self.settings.facts_patience, self.known.in_doubt(&again)).await?;
            for (verdict, event) in verdicts.iter_mut().zip(events).filter(|(verdict, _)| doubtful(verdict)) {
                *verdict = decide(event, &facts);
            }
        }
        Ok(verdicts)
    }

    async fn stored(&self, items: Vec<Item>, sender: &Sender) -> Result<Vec<Fate>, Trouble> {
        let load = Load { requests: 0, bytes: 0, events: items.len() };
        let share: Share<Sender> = self.shares.take(sender, load).ok_or_else(Trouble::too_much)?;
        let patience = self.settings.patience;
        match tokio::time::timeout(patience, self.batches.post(items, Arc::new(share))).await {
            Ok(Ok(fates)) => Ok(fates),
            Ok(Err(Unavailable::Full)) => {
                let message = "too many events wait for the ledger: send it again";
                Err(Trouble::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", message))
            }
            Ok(Err(Unavailable::Ledger(message))) => {
                Err(Trouble::new(StatusCode::SERVICE_UNAVAILABLE, "LedgerAway", message))
            }
            Err(_) => {
                let message = format!("the ledger did not store it within {patience:?}: send it again");
                Err(Trouble::new(StatusCode::SERVICE_UNAVAILABLE, "LedgerAway", message))
            }
        }
    }
}

/// A request whose body may be read.
struct Admitted {
    sender: Sender,
    _share: Share<Sender>,
    _room: OwnedSemaphorePermit,
}

fn unread(fault: &RequestFault) -> Trouble {
    let (status, reason) = match fault {
        RequestFault::Unsupported(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType"),
        RequestFault::Malformed(_) => (StatusCode::BAD_REQUEST, "Malformed"),
        RequestFault::TooMany(_) => (StatusCode::PAYLOAD_TOO_LARGE, "TooManyEvents"),
    };
    Trouble::new(status, reason, fault.to_string())
}

/// Reads a body to its end, for nothing, or until it is too long.
async fn drained(mut body: Body, most: usize) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > most {
            return;
        }
    }
}
