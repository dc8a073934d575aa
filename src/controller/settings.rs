//! The operator's flags.

use std::{net::SocketAddr, time::Duration};

use clap::Args;

use crate::{database::OverlapTimes, desired};

/// Flags of `tenantry operator`.
#[derive(Args, Clone, Debug)]
pub struct OperatorArgs {
    /// The operator's own namespace: credentials of DatabaseServers, shared objects and migrations are read from it
    #[arg(long, env = "TENANTRY_NAMESPACE", default_value = "tenantry-system")]
    pub namespace: String,
    /// The operator's ServiceAccount, which it gives rights in each namespace that it makes
    #[arg(long, env = "TENANTRY_SERVICE_ACCOUNT", default_value = "tenantry")]
    pub service_account: String,
    /// Where health and metrics are served
    #[arg(long, env = "TENANTRY_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// The image that the agent's sidecar runs
    #[arg(long, env = "TENANTRY_AGENT_IMAGE", default_value = concat!("ghcr.io/tenantry/tenantry:", env!("CARGO_PKG_VERSION")))]
    pub agent_image: String,
    /// When the agent's image is pulled (Always, IfNotPresent, Never)
    #[arg(long, env = "TENANTRY_AGENT_PULL_POLICY")]
    pub agent_pull_policy: Option<String>,
    /// How many Tenants are reconciled at a time
    #[arg(long, env = "TENANTRY_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub concurrency: u16,
    /// How long one reconcile may take; migrations may take longer
    #[arg(long, env = "TENANTRY_RECONCILE_DEADLINE", default_value = "60s", value_parser = duration)]
    pub reconcile_deadline: Duration,
    /// How long the API server may take to answer one call
    #[arg(long, env = "TENANTRY_API_TIMEOUT", default_value = "15s", value_parser = duration)]
    pub api_timeout: Duration,
    /// How many tenants' migrations run at a time
    #[arg(long, env = "TENANTRY_MIGRATION_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub migration_concurrency: u16,
    /// How long nobody must have used a replaced login before it is closed
    #[arg(long, env = "TENANTRY_ROTATION_OVERLAP", default_value = "5m", value_parser = duration)]
    pub rotation_overlap: Duration,
    /// After how long a replaced login is closed in any case, and its sessions ended
    #[arg(long, env = "TENANTRY_ROTATION_MAX_OVERLAP", default_value = "1h", value_parser = duration)]
    pub rotation_max_overlap: Duration,
    /// How old credentials get before they are rotated; 0s for never
    #[arg(long, env = "TENANTRY_ROTATE_AFTER", default_value = "90d", value_parser = duration)]
    pub rotate_after: Duration,
    /// How often each database is compared with its records
    #[arg(long, env = "TENANTRY_SWEEP_INTERVAL", default_value = "5m", value_parser = duration)]
    pub sweep_interval: Duration,
    /// How often each server is asked for transactions that are too old
    #[arg(long, env = "TENANTRY_WATCHDOG_INTERVAL", default_value = "5s", value_parser = duration)]
    pub watchdog_interval: Duration,
    /// How often each server's health is checked
    #[arg(long, env = "TENANTRY_HEALTH_INTERVAL", default_value = "30s", value_parser = duration)]
    pub health_interval: Duration,
}

impl OperatorArgs {
    /// What building desired state has to know.
    pub(super) fn desired(&self) -> desired::Settings {
        desired::Settings {
            operator_namespace: self.namespace.clone(),
            operator_service_account: self.service_account.clone(),
            agent_image: self.agent_image.clone(),
            agent_pull_policy: self.agent_pull_policy.clone(),
            agent_resources: None,
        }
    }

    /// How long a replaced login lives on.
    pub(super) fn overlap(&self) -> OverlapTimes {
        OverlapTimes { quiet: self.rotation_overlap, max: self.rotation_max_overlap }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = crate::api::Duration::from(text).get();
    parsed.ok_or_else(|| format!("{text:?} is not a duration: write a whole number and one of ms, s, m, h, d"))
}
