//! The operator's flags.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;

use jiff::SignedDuration;

use super::patience::UsagePatience;
use crate::{
    cluster::LeaseSettings,
    database::OverlapTimes,
    desired,
    metering::{
        judge::Window,
        ledger::{EVENTS_KEPT_DAYS, EVENTS_TAKEN_DAYS, Ledger},
    },
};

/// The agent's image where nobody chooses one. It stands in pod templates, so it does not
/// follow the operator's own version: it is raised on purpose, together with the chart's
/// `agent.image.tag`, when the agent itself has changed.
const AGENT_IMAGE: &str = "ghcr.io/tenantry/tenantry:0.1.0";

/// How far ahead of the operator's clock an event's time may be.
const AHEAD: SignedDuration = SignedDuration::from_mins(5);

/// How many sessions in the ledger each operator has at most: two that write batches, the others
/// for what is asked.
const LEDGER_CONNECTIONS: usize = 8;

/// The relay's image where nobody chooses one; like the agent's, it is raised on purpose.
const RELAY_IMAGE: &str = "ghcr.io/tenantry/tenantry:0.1.0";

/// The port at which the operator serves its API, unless it is told another one.
const API_PORT: u16 = 8_081;

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
    /// The image that the agent's sidecar runs; a change restarts the pods of all pools
    #[arg(long, env = "TENANTRY_AGENT_IMAGE", default_value = AGENT_IMAGE)]
    pub agent_image: String,
    /// When the agent's image is pulled (Always, IfNotPresent, Never)
    #[arg(long, env = "TENANTRY_AGENT_PULL_POLICY")]
    pub agent_pull_policy: Option<String>,
    /// The image that the relays run
    #[arg(long, env = "TENANTRY_RELAY_IMAGE", default_value = RELAY_IMAGE)]
    pub relay_image: String,
    /// When the relays' image is pulled (Always, IfNotPresent, Never)
    #[arg(long, env = "TENANTRY_RELAY_PULL_POLICY")]
    pub relay_pull_policy: Option<String>,
    /// How many relays each DatabaseServer has; they share the work
    #[arg(long, env = "TENANTRY_RELAY_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=4))]
    pub relay_replicas: u8,
    /// Requests and limits of a relay, as JSON: {"requests": {"cpu": "50m"}, "limits": {"memory": "256Mi"}}
    #[arg(long, env = "TENANTRY_RELAY_RESOURCES", value_parser = resources)]
    pub relay_resources: Option<crate::api::Resources>,
    /// Where relays reach the operator's API [default: http://tenantry.NAMESPACE.svc:8081, or https:// with --api-tls-cert]
    #[arg(long, env = "TENANTRY_RELAY_API_URL")]
    pub relay_api_url: Option<String>,
    /// How many of a tenant's usage events may wait in its database before the older ones are folded: one per meter and day then
    #[arg(long, env = "TENANTRY_OUTBOX_CAP", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub outbox_cap: u32,
    /// How many Tenants are reconciled at a time
    #[arg(long, env = "TENANTRY_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub concurrency: u16,
    /// How long one reconcile may take; migrations may take longer
    #[arg(long, env = "TENANTRY_RECONCILE_DEADLINE", default_value = "60s", value_parser = duration)]
    pub reconcile_deadline: Duration,
    /// How long the API server may take to answer one call
    #[arg(long, env = "TENANTRY_API_TIMEOUT", default_value = "15s", value_parser = duration)]
    pub api_timeout: Duration,
    /// How many tenants are migrated at a time on one DatabaseServer, at most: never more than half of its spec.capacity.operatorConnections, and of one Application no more than half of these while there are several
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
    /// How often it is looked for data of deleted tenants that is due to be dropped
    #[arg(long, env = "TENANTRY_RETENTION_INTERVAL", default_value = "5m", value_parser = duration)]
    pub retention_interval: Duration,
    /// How often the usage in a Tenant's status is written at most, unless a limit is crossed or a period is closed
    #[arg(long, env = "TENANTRY_USAGE_INTERVAL", default_value = "10s", value_parser = duration)]
    pub usage_interval: Duration,
    /// From how many percent on an application's own count may differ from what was counted until its Tenant says so (UsageReconciled); up to 5 are never said
    #[arg(long, env = "TENANTRY_USAGE_DRIFT_PERCENT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub usage_drift_percent: u8,
    /// After how long something amiss with usage is said
    #[command(flatten)]
    pub usage_patience: UsagePatience,
    /// How often each server's health is checked
    #[arg(long, env = "TENANTRY_HEALTH_INTERVAL", default_value = "30s", value_parser = duration)]
    pub health_interval: Duration,
    /// Whether only one of several operators leads, by a Lease; switch it off only where there is never a second one
    #[arg(long, env = "TENANTRY_LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_election: bool,
    /// The name of the Lease
    #[arg(long, env = "TENANTRY_LEASE_NAME", default_value = "tenantry")]
    pub lease_name: String,
    /// The namespace of the Lease; the operator's own by default
    #[arg(long, env = "TENANTRY_LEASE_NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// Who this process is in the Lease, such as its pod's name; random by default. Whoever comes back under the same name leads at once
    #[arg(long, env = "TENANTRY_LEASE_IDENTITY")]
    pub lease_identity: Option<String>,
    /// After how long without a renewal another operator takes over
    #[arg(long, env = "TENANTRY_LEASE_DURATION", default_value = "15s", value_parser = duration)]
    pub lease_duration: Duration,
    /// After how long without a renewal the leader ends; less than the Lease's duration
    #[arg(long, env = "TENANTRY_LEASE_RENEW_DEADLINE", default_value = "10s", value_parser = duration)]
    pub lease_renew_deadline: Duration,
    /// How often the leader renews the Lease and a standby looks at it; less than the deadline
    #[arg(long, env = "TENANTRY_LEASE_RETRY", default_value = "2s", value_parser = duration)]
    pub lease_retry: Duration,
    /// How long reconciles that are under way may go on when the operator is asked to end
    #[arg(long, env = "TENANTRY_SHUTDOWN_GRACE", default_value = "20s", value_parser = duration)]
    pub shutdown_grace: Duration,
    /// The ledger of usage: postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE, or sslmode=disable; without it nothing is metered
    #[arg(long, env = "TENANTRY_LEDGER_URL", hide_env_values = true)]
    pub ledger_url: Option<LedgerUrl>,
    /// Where usage events are taken, by leader and standbys alike
    #[arg(long, env = "TENANTRY_API_LISTEN", default_value = "0.0.0.0:8081")]
    pub api_listen: SocketAddr,
    /// The API's certificate, followed by those between it and its CA, as PEM: the API serves TLS alone. It is read again as it is renewed
    #[arg(long, env = "TENANTRY_API_TLS_CERT", value_name = "FILE", requires = "api_tls_key")]
    pub api_tls_cert: Option<PathBuf>,
    /// The private key of that certificate, as PEM; read again with it
    #[arg(long, env = "TENANTRY_API_TLS_KEY", value_name = "FILE", requires = "api_tls_cert")]
    pub api_tls_key: Option<PathBuf>,
    /// The certificates that the API's is signed by, as PEM, which relays are given; read again as it is renewed [default: those that the relays' system trusts]
    #[arg(long, env = "TENANTRY_API_CA", value_name = "FILE")]
    pub api_ca: Option<PathBuf>,
    /// How old a usage event may be: 35 days at most, since the ledger forgets after 90 which ones it has counted
    #[arg(long, env = "TENANTRY_ACCEPT_WINDOW", default_value = "35d", value_parser = duration)]
    pub accept_window: Duration,
}

/// The ledger's URL, which has a password and is therefore never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct LedgerUrl(String);

impl From<&str> for LedgerUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl fmt::Debug for LedgerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LedgerUrl(…)")
    }
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

    /// What relays are made from; nothing where nothing is metered.
    pub(super) fn relay(&self) -> Option<desired::RelaySettings> {
        self.ledger_url.as_ref()?;
        let scheme = if self.api_tls_cert.is_some() { "https" } else { "http" };
        let own = || format!("{scheme}://tenantry.{}.svc:8081", self.namespace);
        Some(desired::RelaySettings {
            image: self.relay_image.clone(),
            pull_policy: self.relay_pull_policy.clone(),
            replicas: i32::from(self.relay_replicas),
            resources: self.relay_resources.clone(),
            api_url: self.relay_api_url.clone().unwrap_or_else(own),
            // Any port is for tests, whose relays run in no pod.
            api_port: if self.api_listen.port() == 0 { API_PORT } else { self.api_listen.port() },
        })
    }

    /// Which lease, for whom; nothing where there is no election.
    ///
    /// # Errors
    /// When the times don't fit together.
    pub(super) fn lease(&self) -> anyhow::Result<Option<LeaseSettings>> {
        if !self.leader_election {
            return Ok(None);
        }
        let (retry, deadline, duration) = (self.lease_retry, self.lease_renew_deadline, self.lease_duration);
        anyhow::ensure!(
            !retry.is_zero() && retry < deadline && deadline < duration,
            "a leader has to try more than once before it gives up, and to give up before another one leads: \
             choose --lease-retry ({retry:?}) < --lease-renew-deadline ({deadline:?}) < --lease-duration ({duration:?})"
        );
        let random = || format!("tenantry-{:016x}", rand::random::<u64>());
        Ok(Some(LeaseSettings {
            namespace: self.lease_namespace.clone().unwrap_or_else(|| self.namespace.clone()),
            name: self.lease_name.clone(),
            identity: self.lease_identity.clone().unwrap_or_else(random),
            duration,
            renew_deadline: deadline,
            retry,
        }))
    }

    /// The ledger, where there is one.
    ///
    /// # Errors
    /// When its URL can't be one, or an event could be taken that the ledger has forgotten.
    pub(super) fn ledger(&self) -> anyhow::Result<Option<Ledger>> {
        let Some(LedgerUrl(url)) = &self.ledger_url else { return Ok(None) };
        // Days are dropped whole, and begin at midnight UTC wherever an event's clock is.
        let longest = EVENTS_TAKEN_DAYS.min(EVENTS_KEPT_DAYS - 1);
        anyhow::ensure!(
            self.accept_window <= Duration::from_secs(86_400) * longest.into(),
            "the ledger remembers for {EVENTS_KEPT_DAYS} days which events it has counted, and makes room for those of \
             the last {EVENTS_TAKEN_DAYS}: choose an --accept-window of {longest}d or less"
        );
        let ledger = Ledger::new(url, LEDGER_CONNECTIONS);
        Ok(Some(ledger.map_err(|error| anyhow::anyhow!("--ledger-url (TENANTRY_LEDGER_URL): {error}"))?))
    }

    /// How far a usage event's time may be from now.
    pub(super) fn window(&self) -> Window {
        Window { back: SignedDuration::try_from(self.accept_window).unwrap_or(SignedDuration::MAX), ahead: AHEAD }
    }

    /// How long a replaced login lives on.
    pub(super) fn overlap(&self) -> OverlapTimes {
        OverlapTimes { quiet: self.rotation_overlap, max: self.rotation_max_overlap }
    }
}

fn resources(text: &str) -> Result<crate::api::Resources, String> {
    serde_json::from_str(text).map_err(|error| format!("not requests and limits as JSON: {error}"))
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = crate::api::Duration::from(text).get();
    parsed.ok_or_else(|| format!("{text:?} is not a duration: write a whole number and one of ms, s, m, h, d"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: OperatorArgs,
    }

    fn args(more: &[&str]) -> OperatorArgs {
        Cli::parse_from([&["operator"], more].concat()).args
    }

    const URL: &str = "postgres://operator:secret@localhost/ledger?sslmode=disable";

    #[test]
    fn no_event_is_taken_that_the_ledger_may_have_forgotten() {
        for (window, fits) in [("1h", true), ("35d", true), ("36d", false), ("90d", false)] {
            let answer = args(&["--ledger-url", URL, "--accept-window", window]).ledger();
            assert_eq!(answer.is_ok(), fits, "{window}");
            if let Err(error) = answer {
                assert!(error.to_string().contains("--accept-window of 35d or less"), "{error}");
            }
        }
        assert!(args(&["--accept-window", "400d"]).ledger().expect("no ledger").is_none());
    }

    #[test]
    fn relays_come_with_tls_where_the_api_has_a_certificate() {
        let url = |more: &[&str]| args(&[&["--ledger-url", URL], more].concat()).relay().expect("relays").api_url;
        let tls = ["--api-tls-cert", "tls.crt", "--api-tls-key", "tls.key"];
        assert_eq!(url(&[]), "http://tenantry.tenantry-system.svc:8081");
        assert_eq!(url(&tls), "https://tenantry.tenantry-system.svc:8081");
        let chosen = "https://usage.example.com";
        assert_eq!(url(&[&tls[..], &["--relay-api-url", chosen]].concat()), chosen);
    }

    #[test]
    fn a_url_that_is_none_is_said_and_never_shown() {
        let args = args(&["--ledger-url", "postgres://operator:secret@localhost/ledger?sslmode=prefer"]);
        let error = args.ledger().err().expect("no URL").to_string();
        assert!(error.contains("--ledger-url (TENANTRY_LEDGER_URL)") && !error.contains("secret"), "{error}");
        assert!(!format!("{args:?}").contains("secret"), "it is logged");
    }
}
