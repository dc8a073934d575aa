//! `GET /v1/tenants/{name}/usage`: who reads, whether he may, and what the ledger knows.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header::CACHE_CONTROL},
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tracing::error;

use super::{
    callers::{Caller, Callers},
    events::ApiSettings,
    shares::{Load, Shares},
    trouble::{Trouble, within},
};
use crate::{
    api::{ClosedUsage, ConditionType, TenantUsage},
    billing::Periods,
    controller::{closed_usage, current_usage},
    metering::{
        counts::{Counts, Denial},
        known::Known,
        ledger::{LedgerError, MeterState, MeteredTenant},
        store::Store,
        usage::{Delivery, Finding, MeterTerms, Patience, Terms, project, silent_since},
    },
};

/// What a tenant uses, read from the ledger: what its status says of usage, at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageReading {
    /// Name of the Tenant.
    pub tenant: String,
    /// Its id, which no other tenant ever has, also if it is called the same.
    pub id: String,
    /// Since when there is no such Tenant any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<Time>,
    /// As `status.usage` of the Tenant, with the Application's meters by name, and without limits.
    /// Absent where the tenant was gone before this usage period began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<TenantUsage>,
    /// As `status.history` of the Tenant: the last 13 closed periods, the newest first, each with
    /// all meters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<ClosedUsage>,
    /// Whether all usage has arrived: condition UsageComplete.
    pub conditions: Vec<ReadingCondition>,
}

/// A condition of a reading: as that of a Tenant, without the times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadingCondition {
    /// Which.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// What all readers share.
pub(super) struct Readings<S> {
    settings: ApiSettings,
    callers: Arc<Callers>,
    known: Arc<Known<S>>,
    store: S,
    /// Of each user, how many requests are under way.
    shares: Arc<Shares<String>>,
    /// Those who write into the ledger keep sessions of their own.
    room: Semaphore,
    counts: Counts,
}

/// Answers with a reading.
pub(super) async fn get_usage<S: Store>(
    State(api): State<Arc<Readings<S>>>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Response {
    // What can't be decoded is no name either.
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let mut response = match api.read(&name, &headers).await {
        Ok(reading) => Json(reading).into_response(),
        Err(trouble) => trouble.response(),
    };
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    api.counts.request(response.status().as_u16());
    response
}

impl<S: Store> Readings<S> {
    pub(super) fn new(
        store: S,
        callers: Arc<Callers>,
        known: Arc<Known<S>>,
        counts: Counts,
        settings: ApiSettings,
    ) -> Self {
        let most = Load { requests: settings.caller_requests, bytes: 0, events: 0 };
        let room = Semaphore::new(settings.reads);
        Self { settings, callers, known, store, shares: Shares::new(most), room, counts }
    }

    async fn read(&self, name: &str, headers: &HeaderMap) -> Result<UsageReading, Trouble> {
        let caller = self.callers.caller(headers).await;
        let caller = caller.map_err(|stranger| Trouble::stranger(stranger, &self.counts))?;
        let load = Load { requests: 1, bytes: 0, events: 0 };
        let _share = self.shares.take(&caller.name().to_owned(), load).ok_or_else(Trouble::too_much)?;
        if !is_name(name) {
            let message =
                "no Tenant can have this name: it has at most 40 characters, lower-case letters, digits and '-'";
            return Err(Trouble::new(StatusCode::BAD_REQUEST, "Malformed", message));
        }
        // Whoever may not read learns nothing, not even whether there is such a tenant.
        let tenant = match self.own(&caller, name).await? {
            Some(tenant) => tenant,
            None => {
                let may = self.callers.may_get(&caller, name).await;
                if !may.map_err(|error| Trouble::api_server(&error))? {
                    return Err(Trouble::denied(Denial::Forbidden, &self.counts));
                }
                self.asked(self.store.tenant_named(name)).await?.ok_or_else(|| {
                    let message =
                        format!("the ledger knows no tenant {name}; one that was just made is known in a moment");
                    Trouble::new(StatusCode::NOT_FOUND, "UnknownTenant", message)
                })?
            }
        };
        // What the ledger has by then is in what it says.
        let as_of = Timestamp::now();
        let ids = [tenant.tenant.id.clone()];
        let states = self.asked(self.store.usage(&ids)).await?;
        reading(tenant, &states, self.settings.arrival, as_of)
    }

    /// The tenant with a name, where the caller is a ServiceAccount of that tenant's own namespace.
    async fn own(&self, caller: &Caller, name: &str) -> Result<Option<MeteredTenant>, Trouble> {
        let Some(account) = caller.account() else { return Ok(None) };
        let asked = self.known.tenant_of_namespace(&account.namespace);
        let Some(own) = self.asked(asked).await? else { return Ok(None) };
        Ok(self.asked(self.store.tenant_named(name)).await?.filter(|tenant| tenant.tenant.id == own))
    }

    /// What the ledger says, when there is room to ask it, and in time.
    async fn asked<T>(&self, question: impl Future<Output = Result<T, LedgerError>>) -> Result<T, Trouble> {
        let patience = self.settings.facts_patience;
        let Ok(Ok(_room)) = tokio::time::timeout(patience, self.room.acquire()).await else {
            return Err(Trouble::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", "too many read usage: ask again"));
        };
        within(patience, question).await
    }
}

/// Whether a Tenant can have this name.
fn is_name(name: &str) -> bool {
    let is_letter = |byte: &u8| byte.is_ascii_lowercase();
    let is_end = |byte: &u8| is_letter(byte) || byte.is_ascii_digit();
    name.len() <= 40
        && name.as_bytes().first().is_some_and(is_letter)
        && name.as_bytes().last().is_some_and(is_end)
        && name.bytes().all(|byte| is_end(&byte) || byte == b'-')
        && !name.starts_with("xn--")
}

/// What the ledger says, by the projection that statuses are made by.
fn reading(
    metered: MeteredTenant,
    states: &[MeterState],
    patience: Patience,
    as_of: Timestamp,
) -> Result<UsageReading, Trouble> {
    let MeteredTenant { tenant, gone_at, meters, server, heard_at } = metered;
    let periods = Periods::new(tenant.anchor, &tenant.time_zone).map_err(|problem| {
        error!(tenant = tenant.name, %problem, "the usage periods of a tenant can't be told");
        // A newer program may know it: one of the others, while they are upgraded.
        let message = format!("the tenant's time zone {} isn't known here", tenant.time_zone);
        Trouble::new(StatusCode::SERVICE_UNAVAILABLE, "UnknownTimeZone", message)
    })?;
    let meters: Vec<MeterTerms> = meters
        .into_iter()
        .map(|meter| MeterTerms { name: meter.name, is_total: meter.is_total, from_api: meter.from_api, limit: None })
        .collect();
    let delivery = Delivery {
        server: server.unwrap_or_default(),
        // While the ledger was away no relay could be heard. What it says right after that is old, and so it is told.
        silent_since: heard_at.and_then(|heard| silent_since(heard, heard, as_of, &patience)),
        ..Delivery::default()
    };
    // Drift is a condition of the Tenant alone: how much of it may be is the operator's to say.
    let terms = Terms {
        periods: &periods,
        meters: &meters,
        delivery: &delivery,
        patience,
        drift_percent: 100,
        history_meters: usize::MAX,
    };
    let usage = project(states, &terms, as_of);
    let was_there = gone_at.is_none_or(|gone| gone > usage.period.start);
    Ok(UsageReading {
        usage: was_there.then(|| current_usage(&usage, as_of)),
        history: closed_usage(&usage),
        conditions: vec![condition(ConditionType::UsageComplete, &usage.complete)],
        tenant: tenant.name,
        id: tenant.id,
        gone_at: gone_at.map(Time),
    })
}

fn condition(kind: ConditionType, finding: &Finding) -> ReadingCondition {
    let status = match finding.holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    ReadingCondition {
        type_: kind.as_str().to_owned(),
        status: status.to_owned(),
        reason: finding.reason.to_owned(),
        message: finding.message.clone(),
    }
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
