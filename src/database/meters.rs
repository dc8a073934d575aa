//! What is counted, and how far it may go: rows that plans and Applications decide.

use std::collections::BTreeMap;

use super::error::{Error, Result};
use super::server::{OWNER, Server};
use super::sql::{Script, literal, texts};
use super::types::{Limit, MeterDefinition, MeterKind, MeterSource, Policy};

impl Server {
    /// Says which meters an Application declares. One that is left out is no longer accepted;
    /// its counts stay.
    ///
    /// # Errors
    /// Permanent, with SQLSTATE `TN005`, for a meter of another kind or source than it has here while
    /// there are tenants with counts of it; then nothing is changed.
    pub async fn set_meters(&self, database: &str, application: &str, meters: &[MeterDefinition]) -> Result<()> {
        let column = |field: fn(&MeterDefinition) -> &str| texts(meters.iter().map(field));
        let mut script = Script::new();
        script.add(format!("SET LOCAL ROLE {OWNER}")).add(format!(
            "SELECT tenantry.define_meters({}, {}, {}, {})",
            literal(application),
            column(|meter| &meter.name),
            column(|meter| meter.kind.as_str()),
            column(|meter| meter.source.as_str()),
        ));
        self.connect(database).await?.run("can't set the Application's meters", &script).await?;
        Ok(())
    }

    /// Says what a plan's limits are, for all tenants of the plan at once. In effect with their
    /// next `record_usage`. A meter that is left out is unlimited.
    pub async fn set_plan_limits(&self, database: &str, plan: &str, limits: &[Limit]) -> Result<()> {
        let doing = "can't set the plan's limits";
        let plan = literal(plan);
        let mut rows = Vec::with_capacity(limits.len());
        for limit in limits {
            let max = i64::try_from(limit.max).map_err(|_| {
                Error::permanent(format!(
                    "limit {} of meter {:?} is more than can be counted: at most {}",
                    limit.max,
                    limit.meter,
                    i64::MAX
                ))
            })?;
            let (policy, grace) = match limit.policy {
                Policy::Hard => ("Hard", "NULL, NULL".to_owned()),
                Policy::Soft => ("Soft", "NULL, NULL".to_owned()),
                Policy::Grace { days, percent } => ("Grace", format!("{}, {}", small(days), small(percent))),
            };
            rows.push(format!("({plan}, {}, {max}, '{policy}', {grace})", literal(&limit.meter)));
        }
        let mut script = Script::new();
        script.add(format!(
            "DELETE FROM tenantry.meter_limit WHERE plan = {plan} AND meter <> ALL ({})",
            texts(limits.iter().map(|limit| limit.meter.as_str()))
        ));
        if !rows.is_empty() {
            script.add(format!(
                "INSERT INTO tenantry.meter_limit AS l (plan, meter, max, policy, grace_days, grace_percent) VALUES {}
                 ON CONFLICT (plan, meter) DO UPDATE SET max = excluded.max, policy = excluded.policy,
                     grace_days = excluded.grace_days, grace_percent = excluded.grace_percent, since = clock_timestamp()
                  WHERE (l.max, l.policy, l.grace_days, l.grace_percent)
                        IS DISTINCT FROM (excluded.max, excluded.policy, excluded.grace_days, excluded.grace_percent)",
                rows.join(", ")
            ));
        }
        self.connect(database).await?.run(doing, &script).await?;
        Ok(())
    }

    /// The limits of all plans, as [`set_plan_limits`](Self::set_plan_limits) left them.
    pub async fn plan_limits(&self, database: &str) -> Result<BTreeMap<String, Vec<Limit>>> {
        let rows = self
            .connect(database)
            .await?
            .query(
                "can't read the plans' limits",
                "SELECT plan, meter, max, policy, grace_days, grace_percent FROM tenantry.meter_limit ORDER BY plan, meter",
                &[],
            )
            .await?;
        let mut plans: BTreeMap<String, Vec<Limit>> = BTreeMap::new();
        let natural = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        for row in rows {
            let policy = match row.get(3) {
                "Soft" => Policy::Soft,
                "Grace" => Policy::Grace { days: natural(row.get(4)), percent: natural(row.get(5)) },
                _ => Policy::Hard,
            };
            let max = u64::try_from(row.get::<_, i64>(2)).unwrap_or(0);
            plans.entry(row.get(0)).or_default().push(Limit { meter: row.get(1), max, policy });
        }
        Ok(plans)
    }
}

/// A row for each meter that these tenants (alias `t`) count in the database: so that it can be
/// said of one, and proven by its lock, that nothing was ever counted. A relay asks for what has
/// changed since it asked last, and so hears of these.
pub(super) fn counters(tenants: &str) -> String {
    format!(
        "INSERT INTO tenantry.meter (tenant, meter, period_start, last_at)
         SELECT t.id, d.meter, '-infinity', clock_timestamp() FROM tenantry.tenant t
           JOIN tenantry.meter_definition d ON d.application = t.application AND d.source = 'Database'
          WHERE {tenants} ON CONFLICT DO NOTHING"
    )
}

/// Days or percent that fit an integer column; more of them mean the same.
fn small(number: u32) -> u32 {
    number.min(1_000_000)
}

impl MeterKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Level => "Level",
            Self::Total => "Total",
        }
    }
}

impl MeterSource {
    fn as_str(self) -> &'static str {
        match self {
            Self::Database => "Database",
            Self::Api => "Api",
        }
    }
}
