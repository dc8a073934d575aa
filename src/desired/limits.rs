//! A plan's limits, as the database enforces them.

use crate::api::{Limit, LimitPolicy, Plan};

/// The limit of one meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterLimit {
    /// The meter's name.
    pub meter: String,
    /// The most, in the meter's unit.
    pub max: i64,
    /// What happens beyond it.
    pub policy: MeterPolicy,
}

/// What happens beyond a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeterPolicy {
    /// Use beyond it is refused.
    Hard,
    /// Use beyond it is counted and reported.
    Soft,
    /// Use beyond it is accepted for a while and up to a point, then refused.
    Grace {
        /// For how many days.
        days: i32,
        /// For how many percent of the limit.
        percent: i32,
    },
}

impl MeterPolicy {
    /// Whether use is refused at some point.
    pub fn refuses(self) -> bool {
        !matches!(self, Self::Soft)
    }
}

/// The limits of a plan, by meter name; a meter that isn't there is unlimited.
pub fn plan_limits(plan: &Plan) -> Vec<MeterLimit> {
    let limits = plan.spec.limits.iter().flatten();
    limits.map(|(meter, limit)| MeterLimit { meter: meter.clone(), max: limit.max, policy: policy(limit) }).collect()
}

/// The API server refuses a limit without a policy, and Grace without its two numbers; where
/// one got past it all the same, the strictest reading holds.
fn policy(limit: &Limit) -> MeterPolicy {
    match limit.policy {
        Some(LimitPolicy::Soft) => MeterPolicy::Soft,
        Some(LimitPolicy::Grace) => {
            MeterPolicy::Grace { days: limit.days.unwrap_or(0), percent: limit.percent.unwrap_or(0) }
        }
        Some(LimitPolicy::Hard) | None => MeterPolicy::Hard,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn policies_are_carried_over() {
        let plan: Plan = serde_json::from_value(json!({
            "apiVersion": "tenantry.io/v1alpha1", "kind": "Plan", "metadata": {"name": "p"},
            "spec": {"tier": "pooled", "limits": {
                "accounts": {"max": 5, "policy": "Soft"},
                "emails": {"max": 7, "policy": "Grace", "days": 3, "percent": 10},
                "users": {"max": 0, "policy": "Hard"},
                "zero": {"max": 1},
            }},
        }))
        .expect("a plan");
        let found: Vec<_> =
            plan_limits(&plan).into_iter().map(|limit| (limit.meter, limit.max, limit.policy)).collect();
        assert_eq!(
            found,
            [
                ("accounts".to_owned(), 5, MeterPolicy::Soft),
                ("emails".to_owned(), 7, MeterPolicy::Grace { days: 3, percent: 10 }),
                ("users".to_owned(), 0, MeterPolicy::Hard),
                ("zero".to_owned(), 1, MeterPolicy::Hard),
            ]
        );
    }
}
