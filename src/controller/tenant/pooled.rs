//! Tenants of tier pooled: their compute is their pool's.

use super::{
    Case,
    data::{self, Data},
    place::Place,
    provision,
    status::Report,
};
use crate::{
    api::{ConditionType, Pool, find_condition},
    controller::{conditions::Concerns, failure::Failure, pool, queue::Next},
};

/// Sees to the data. Returns when to look again, or nothing where there is none to route to.
pub(super) async fn serve(
    case: &Case<'_>,
    place: &Place,
    pool: &str,
    concerns: &mut Concerns,
    report: &mut Report<'_>,
) -> Option<Next> {
    workload(case, pool, concerns);
    let mut next = None;
    let data = match provision::provision(case, place).await {
        Ok(provisioned) => data::publish(case, place, provisioned, report, &mut next).await,
        Err(failure) => Data::failed(ConditionType::DatabaseReady, failure),
    };
    let published = data.is_published();
    data.judge(concerns);
    if published && case.effective.suspended {
        let message = "suspended: logins are locked and the route is removed; the data stays";
        concerns.rests(ConditionType::WorkloadReady, "Suspended", message);
    }
    published.then_some(next)
}

/// A tenant's workload is its pool's: available or not. How far a rollout is changes nothing.
fn workload(case: &Case<'_>, pool: &str, concerns: &mut Concerns) {
    if case.effective.suspended {
        return;
    }
    let status = case.world.pool(pool).and_then(|pool| pool.status.clone()).unwrap_or_default();
    match find_condition(&status.conditions, ConditionType::Available) {
        Some(condition) if condition.status == "True" => {
            concerns.holds(ConditionType::WorkloadReady, "Available", "the pool serves");
        }
        Some(condition) => concerns.fails(
            ConditionType::WorkloadReady,
            Failure::waiting("PoolUnavailable", format!("Pool {pool}: {}", condition.message)),
        ),
        None => concerns.fails(
            ConditionType::WorkloadReady,
            Failure::waiting("PoolNotReady", format!("Pool {pool} is being made")),
        ),
    }
}

/// Whether a pool has all that a tenant needs, or what it waits for: less for one that is in
/// it than for a new one, since a fault in the pool's templates takes nothing from who runs.
pub(super) fn check_pool(pool: Option<&Pool>, name: &str, is_in_it: bool) -> Result<(), Failure> {
    let enough = if is_in_it { pool::has_database } else { pool::takes_tenants };
    match pool {
        Some(pool) if enough(pool) => Ok(()),
        Some(pool) => {
            let conditions = pool.status.clone().unwrap_or_default().conditions;
            let why = find_condition(&conditions, ConditionType::Ready).filter(|ready| ready.status == "False");
            let why =
                why.map_or_else(|| "is being made".to_owned(), |ready| format!("is not ready: {}", ready.message));
            Err(Failure::waiting("PoolNotReady", format!("Pool {name} {why}")))
        }
        None => Err(Failure::waiting("PoolNotReady", format!("Pool {name} is being made"))),
    }
}
