//! Who calls, by the token that comes with a request, and whether he may read: the API server is
//! asked once in a while.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, header::AUTHORIZATION};
use k8s_openapi::api::authentication::v1::UserInfo;
use kube::Client;
use moka::{Expiry, future::Cache};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::{
    api::Tenant,
    cluster::{may_get, review_token},
    desired::naming::AUDIENCE,
    metering::counts::{Counts, Denial},
};

/// How long a token is taken for what the API server said of it, and its user for one who may read:
/// so long may be used what was withdrawn.
const KNOWN: Duration = Duration::from_secs(60);

/// How long a token is taken for nobody's, and its user for one who may not read.
const UNKNOWN: Duration = Duration::from_secs(5);

/// How many tokens are remembered, and how many rights.
const MOST: u64 = 10_000;

/// The longest token that is looked at, in bytes.
const LONGEST: usize = 16 * 1024;

/// How many questions to the API server are under way at most, of tokens and of rights each: whoever
/// sends random tokens or names keeps the operator from no other call.
const QUESTIONS: usize = 16;

/// How long a question may take, the wait for others included.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why it isn't known who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stranger {
    /// It will be the same next time.
    Denied(Denial),
    /// The API server can't be asked now.
    Away(String),
}

/// A ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Account {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Account {
    fn of_user(user: &str) -> Option<Self> {
        let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        Some(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// Whoever sends a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Caller {
    /// SHA-256 of the token: whoever comes with the same may do the same.
    token: [u8; 32],
    user: Arc<UserInfo>,
}

impl Caller {
    /// The user's name.
    pub(super) fn name(&self) -> &str {
        self.user.username.as_deref().unwrap_or_default()
    }

    /// The ServiceAccount, if it is one.
    pub(super) fn account(&self) -> Option<Account> {
        Account::of_user(self.name())
    }
}

/// Knows callers by their tokens.
pub(super) struct Callers {
    client: Client,
    counts: Counts,
    token_questions: Semaphore,
    right_questions: Semaphore,
    /// The user of a token, by the token's SHA-256: nobody who reads this memory gets a token.
    users: Cache<[u8; 32], Option<Arc<UserInfo>>>,
    /// Whether the user of a token may get a Tenant, by that and the Tenant's name.
    rights: Cache<([u8; 32], String), bool>,
}

/// Tokens that are nobody's are soon asked about again: one may have come before the API server
/// knew the key that signed it. So are users who may not: a right may just have been given.
struct ByAnswer;

impl Expiry<[u8; 32], Option<Arc<UserInfo>>> for ByAnswer {
    fn expire_after_create(&self, _: &[u8; 32], user: &Option<Arc<UserInfo>>, _: Instant) -> Option<Duration> {
        Some(if user.is_some() { KNOWN } else { UNKNOWN })
    }
}

impl Expiry<([u8; 32], String), bool> for ByAnswer {
    fn expire_after_create(&self, _: &([u8; 32], String), may: &bool, _: Instant) -> Option<Duration> {
        Some(if *may { KNOWN } else { UNKNOWN })
    }
}

impl Callers {
    pub(super) fn new(client: Client, counts: Counts) -> Self {
        let users = Cache::builder().max_capacity(MOST).expire_after(ByAnswer).build();
        let rights = Cache::builder().max_capacity(MOST).expire_after(ByAnswer).build();
        let (token_questions, right_questions) = (Semaphore::new(QUESTIONS), Semaphore::new(QUESTIONS));
        Self { client, counts, token_questions, right_questions, users, rights }
    }

    /// The ServiceAccount that sends a request.
    pub(super) async fn account(&self, headers: &HeaderMap) -> Result<Account, Stranger> {
        self.caller(headers).await?.account().ok_or(Stranger::Denied(Denial::NoServiceAccount))
    }

    /// Who sends a request, ServiceAccount or not.
    pub(super) async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Stranger> {
        let token = token(headers)?;
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        // Whoever asks about the same token meanwhile waits for the same answer. A failure is not
        // remembered.
        let user = self.users.try_get_with(key, self.ask(token)).await;
        let user = user.map_err(|error: Arc<String>| Stranger::Away(error.to_string()))?;
        let user = user.ok_or(Stranger::Denied(Denial::BadToken))?;
        Ok(Caller { token: key, user })
    }

    /// Whether a caller may get the Tenant with a name.
    ///
    /// # Errors
    /// When the API server can't be asked.
    pub(super) async fn may_get(&self, caller: &Caller, tenant: &str) -> Result<bool, String> {
        let asking = async {
            let question = may_get::<Tenant>(&self.client, &caller.user, tenant);
            let answer = answer(&self.right_questions, question).await;
            self.counts.access_reviewed(answer.as_ref().ok().copied());
            answer
        };
        let may = self.rights.try_get_with((caller.token, tenant.to_owned()), asking).await;
        may.map_err(|error: Arc<String>| error.to_string())
    }

    async fn ask(&self, token: &str) -> Result<Option<Arc<UserInfo>>, String> {
        let answer = answer(&self.token_questions, review_token(&self.client, token, AUDIENCE)).await;
        self.counts.reviewed(answer.as_ref().ok().map(Option::is_some));
        Ok(answer?.map(Arc::from))
    }
}

/// What the API server answers, when there is room to ask it, and in time.
async fn answer<T>(room: &Semaphore, question: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    let answer = tokio::time::timeout(PATIENCE, async {
        let _question = room.acquire().await.map_err(|error| error.to_string())?;
        question.await.map_err(|error| error.to_string())
    });
    answer.await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}

/// The bearer token of a request, if it can be one at all.
fn token(headers: &HeaderMap) -> Result<&str, Stranger> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (given.next(), given.next()) else { return Err(Stranger::Denied(Denial::NoToken)) };
    let (scheme, token) = value.to_str().ok().and_then(|value| value.split_once(' ')).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Stranger::Denied(Denial::NoToken));
    }
    // Three parts of base64url: nobody need be asked about anything else.
    let is_part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let token = token.trim();
    match token.len() <= LONGEST && token.split('.').count() == 3 && token.split('.').all(is_part) {
        true => Ok(token),
        false => Err(Stranger::Denied(Denial::BadToken)),
    }
}

#[cfg(test)]
#[path = "callers_tests.rs"]
mod tests;
