//! Leader election by a Lease (`coordination.k8s.io/v1`).
//!
//! The protocol is that of client-go: who leads renews the lease, others take it over once
//! they have seen it unchanged for its duration, by their own clock, so clocks need not
//! agree; every write names the resourceVersion that it is based on. One thing is stricter:
//! the lease's transitions grow with every acquisition, also when the same holder comes back,
//! because they are the number of the [`Term`] that databases are fenced with.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::error::{is_conflict, is_not_found};
use crate::{
    api::{FIELD_MANAGER, LABEL_MANAGED_BY, MANAGED_BY},
    term::Term,
};

/// Which lease, for whom, and how long things take.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// The lease's namespace.
    pub namespace: String,
    /// The lease's name.
    pub name: String,
    /// Who this process is. Of two processes with one identity the later one leads: the
    /// earlier sees that the transitions are no longer its own.
    pub identity: String,
    /// After how long without a renewal another one may lead.
    pub duration: Duration,
    /// After how long without a renewal a leader gives up; less than `duration`.
    pub renew_deadline: Duration,
    /// How often a leader renews, and a standby looks; less than `renew_deadline`.
    pub retry: Duration,
}

/// Why a leader no longer is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The lease could not be renewed in time.
    #[error("the lease was not renewed within {0:?}: the API server did not answer, or this process was held up")]
    Expired(Duration),
    /// Somebody else has it.
    #[error("{0:?} holds the lease now")]
    Taken(String),
}

/// What is known of a lease.
#[derive(Clone, Debug)]
struct Seen {
    /// The lease; nothing if there is none.
    lease: Option<Lease>,
    /// When it was first seen as it is.
    since: Instant,
}

/// What a candidate does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// Make the lease.
    Create,
    /// Take the lease over.
    Take,
    /// Somebody leads: look again in a while, at the latest when the lease would be over.
    Wait(Duration),
}

/// Decides what a candidate does about the lease that it sees.
fn evaluate(seen: &Seen, settings: &LeaseSettings, now: Instant) -> Move {
    let Some(lease) = &seen.lease else { return Move::Create };
    let holder = holder(lease);
    // Who holds it under this very name is an earlier life of this one.
    if holder.is_empty() || holder == settings.identity {
        return Move::Take;
    }
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let duration = seconds.map_or(settings.duration, Duration::from_secs);
    match (seen.since + duration).saturating_duration_since(now) {
        Duration::ZERO => Move::Take,
        left => Move::Wait(left.min(settings.retry)),
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

/// The number of the term that a lease stands for.
fn transitions(lease: &Lease) -> u64 {
    let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
    transitions.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

/// The lease with a new holder and the number of a new term.
fn taken(settings: &LeaseSettings, before: Option<&Lease>, number: u64) -> Lease {
    let metadata = before.map_or_else(
        || ObjectMeta {
            name: Some(settings.name.clone()),
            namespace: Some(settings.namespace.clone()),
            labels: Some([(LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned())].into()),
            ..ObjectMeta::default()
        },
        |lease| lease.metadata.clone(),
    );
    let spec = LeaseSpec {
        holder_identity: Some(settings.identity.clone()),
        lease_duration_seconds: Some(whole_seconds(settings.duration)),
        lease_transitions: Some(i32::try_from(number).unwrap_or(i32::MAX)),
        acquire_time: Some(now()),
        renew_time: Some(now()),
        ..LeaseSpec::default()
    };
    Lease { metadata, spec: Some(spec) }
}

/// In whole seconds, rounded up: others must not take over too early.
fn whole_seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis().div_ceil(1_000)).unwrap_or(i32::MAX).max(1)
}

/// The lease, made or replaced as it was seen.
async fn write(api: &Api<Lease>, is_new: bool, lease: &Lease) -> kube::Result<Lease> {
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    if is_new {
        return api.create(&params, lease).await;
    }
    api.replace(lease.metadata.name.as_deref().unwrap_or_default(), &params, lease).await
}

/// Waits until this process leads, and begins `term` then. Errors are logged and retried.
///
/// `client` must not be bound to the term, which has not begun.
pub async fn lead(client: Client, settings: LeaseSettings, term: Term) -> Leadership {
    let api = Api::<Lease>::namespaced(client, &settings.namespace);
    let mut seen: Option<Seen> = None;
    let mut told = String::new();
    loop {
        let found = match timeout(settings.renew_deadline, api.get_opt(&settings.name)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                warn!(%error, "can't read the lease; it is tried again");
                sleep(settings.retry).await;
                continue;
            }
            Err(_) => continue,
        };
        let version = |lease: &Option<Lease>| lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
        let seen = match seen.take() {
            Some(before) if version(&before.lease) == version(&found) => seen.insert(before),
            _ => seen.insert(Seen { lease: found, since: Instant::now() }),
        };
        let current = seen.lease.as_ref().map(holder).unwrap_or_default();
        if !current.is_empty() && current != settings.identity && told != current {
            info!(holder = current, "standing by");
            current.clone_into(&mut told);
        }
        let next = evaluate(seen, &settings, Instant::now());
        if let Move::Wait(wait) = next {
            sleep(wait).await;
            continue;
        }
        let number = seen.lease.as_ref().map_or(0, transitions) + 1;
        let wanted = taken(&settings, seen.lease.as_ref(), number);
        let sent = Instant::now();
        match timeout(settings.renew_deadline, write(&api, next == Move::Create, &wanted)).await {
            Ok(Ok(lease)) => {
                info!(identity = settings.identity, term = number, "leading");
                let until = sent + settings.renew_deadline;
                term.begin(number, until);
                return Leadership { api, settings, lease, until, term };
            }
            // Another candidate was faster.
            Ok(Err(error)) if is_conflict(&error) => {}
            Ok(Err(error)) => {
                warn!(%error, "can't take the lease; it is tried again");
                sleep(settings.retry).await;
            }
            Err(_) => {}
        }
    }
}

/// The lease, held by this process.
pub struct Leadership {
    api: Api<Lease>,
    settings: LeaseSettings,
    /// As this process wrote it last.
    lease: Lease,
    /// Until when it is surely ours.
    until: Instant,
    term: Term,
}

impl Leadership {
    /// Renews the lease until it is lost. Where a database has seen a higher number than this
    /// term's (the lease was deleted, or the cluster came back from a backup), the term goes
    /// on under one above that: the lease says whether this process still leads.
    pub async fn hold(&mut self) -> Lost {
        loop {
            let overtaken = tokio::select! {
                seen = self.term.until_overtaken() => Some(seen),
                () = sleep(self.settings.retry) => None,
            };
            if let Err(lost) = self.renew(overtaken).await {
                self.term.end();
                return lost;
            }
        }
    }

    async fn renew(&mut self, overtaken_by: Option<u64>) -> Result<(), Lost> {
        let mut number = overtaken_by.map_or(self.term.number(), |seen| seen.saturating_add(1));
        if let Some(seen) = overtaken_by {
            warn!(seen, term = number, "databases know a later term than the lease: it goes on above that");
        }
        let mut is_gone = false;
        loop {
            let patience = self.patience()?;
            let mut wanted = self.lease.clone();
            if is_gone {
                wanted = taken(&self.settings, None, number);
            } else if let Some(spec) = &mut wanted.spec {
                spec.renew_time = Some(now());
                spec.lease_transitions = Some(i32::try_from(number).unwrap_or(i32::MAX));
            }
            // Measured before it is sent: who counts from when it arrives counts from later.
            let sent = Instant::now();
            match timeout(patience, write(&self.api, is_gone, &wanted)).await {
                Ok(Ok(lease)) => {
                    self.lease = lease;
                    self.until = sent + self.settings.renew_deadline;
                    self.left()?;
                    self.term.begin(number, self.until);
                    return Ok(());
                }
                Ok(Err(error)) if is_conflict(&error) || is_not_found(&error) => {}
                Ok(Err(error)) => {
                    warn!(%error, "can't renew the lease; it is tried again");
                    sleep(self.settings.retry.min(self.left()?)).await;
                    continue;
                }
                Err(_) => {
                    warn!(?patience, "no answer to the renewal of the lease; it is tried again");
                    continue;
                }
            }
            // Somebody wrote it, or took it away; or an earlier answer to this process was lost.
            match timeout(self.patience()?, self.api.get_opt(&self.settings.name)).await {
                Ok(Ok(Some(lease))) => {
                    let known = [self.term.number(), number];
                    if holder(&lease) != self.settings.identity || !known.contains(&transitions(&lease)) {
                        return Err(Lost::Taken(holder(&lease).to_owned()));
                    }
                    (self.lease, is_gone) = (lease, false);
                }
                Ok(Ok(None)) if !is_gone => {
                    warn!("the lease was deleted; it is made again");
                    (is_gone, number) = (true, number.saturating_add(1));
                }
                Ok(Ok(None)) | Err(_) => {}
                Ok(Err(error)) => {
                    warn!(%error, "can't read the lease; it is tried again");
                    sleep(self.settings.retry.min(self.left()?)).await;
                }
            }
        }
    }

    /// How long one call is waited for: one that is lost on its way must leave time for another.
    fn patience(&self) -> Result<Duration, Lost> {
        Ok(self.left()?.min(self.settings.renew_deadline / 2))
    }

    /// How long the lease is still surely ours.
    fn left(&self) -> Result<Duration, Lost> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(Lost::Expired(self.settings.renew_deadline)),
            left => Ok(left),
        }
    }

    /// Ends the term and gives the lease up, so that another one takes over at once.
    pub async fn release(mut self) {
        self.term.end();
        let Ok(left) = self.left() else { return };
        if let Some(spec) = &mut self.lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(now());
        }
        match timeout(left, write(&self.api, false, &self.lease)).await {
            Ok(Ok(_)) => info!("the lease is given up"),
            Ok(Err(error)) => warn!(%error, "the lease is not given up, and runs out"),
            Err(_) => warn!("the lease is not given up, and runs out: no answer in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LeaseSettings {
        LeaseSettings {
            namespace: "tenantry-system".into(),
            name: "tenantry".into(),
            identity: "me".into(),
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }

    fn held_by(holder: &str, seconds: i32) -> Lease {
        let settings = LeaseSettings { identity: holder.into(), ..settings() };
        let mut lease = taken(&settings, None, 7);
        lease.spec.as_mut().expect("a spec").lease_duration_seconds = Some(seconds);
        lease
    }

    #[test]
    fn a_candidate_takes_what_nobody_holds_and_waits_for_what_somebody_does() {
        let (since, settings) = (Instant::now(), settings());
        let after = |lease: Option<Lease>, seconds: u64| {
            evaluate(&Seen { lease, since }, &settings, since + Duration::from_secs(seconds))
        };
        assert_eq!(after(None, 0), Move::Create);
        assert_eq!(after(Some(held_by("", 15)), 0), Move::Take, "it was given up");
        assert_eq!(after(Some(held_by("me", 15)), 0), Move::Take, "an earlier life of this process");
        assert_eq!(after(Some(Lease::default()), 0), Move::Take);
        let other = || Some(held_by("other", 15));
        assert_eq!(after(other(), 0), Move::Wait(settings.retry));
        assert_eq!(after(other(), 14), Move::Wait(Duration::from_secs(1)), "no longer than it may last");
        assert_eq!(after(other(), 15), Move::Take, "unchanged for as long as it lasts");
        assert_eq!(
            after(Some(held_by("other", 60)), 59),
            Move::Wait(Duration::from_secs(1)),
            "its holder says how long"
        );
    }

    #[test]
    fn the_time_in_a_lease_decides_nothing() {
        let since = Instant::now();
        let mut lease = held_by("other", 15);
        lease.spec.as_mut().expect("a spec").renew_time = Some(MicroTime(Timestamp::UNIX_EPOCH));
        let move_ = evaluate(&Seen { lease: Some(lease), since }, &settings(), since);
        assert_eq!(move_, Move::Wait(Duration::from_secs(2)), "clocks need not agree");
    }

    #[test]
    fn each_term_has_a_number_of_its_own() {
        let before = held_by("me", 15);
        let lease = taken(&settings(), Some(&before), transitions(&before) + 1);
        assert_eq!((holder(&lease), transitions(&lease)), ("me", 8), "also where the same one comes back");
        assert_eq!(transitions(&Lease::default()), 0);
    }

    /// An API server that is silent to the first `silent` calls and grants every other one.
    fn mostly_silent(silent: usize) -> Client {
        let mut calls = 0;
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            calls += 1;
            let answers = calls > silent;
            async move {
                if !answers {
                    std::future::pending::<()>().await;
                }
                let written = request.into_body().collect_bytes().await.expect("a whole request");
                Ok::<_, tower::BoxError>(http::Response::new(kube::client::Body::from(written)))
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn one_renewal_without_an_answer_does_not_cost_the_lease() {
        let renew_deadline = Duration::from_secs(2);
        let renew = async |silent: usize| {
            let settings = LeaseSettings { renew_deadline, retry: Duration::from_millis(1), ..settings() };
            let term = Term::of_standby();
            let until = Instant::now() + renew_deadline;
            term.begin(7, until);
            let api = Api::namespaced(mostly_silent(silent), &settings.namespace);
            let mut leadership = Leadership { api, lease: held_by("me", 15), settings, until, term };
            leadership.renew(None).await.map(|()| leadership.term.is_current())
        };
        assert_eq!(renew(1).await, Ok(true), "the second one is in time");
        assert_eq!(renew(usize::MAX).await, Err(Lost::Expired(renew_deadline)));
    }

    #[test]
    fn others_wait_no_shorter_than_the_lease_lasts() {
        assert_eq!(whole_seconds(Duration::from_millis(1_500)), 2);
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
    }
}
