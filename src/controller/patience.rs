//! How long is waited until something amiss with usage is said.

use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;

use super::settings::duration;
use crate::metering::usage;

/// Flags of `tenantry operator`: after how long something amiss with usage is worth a word. What
/// passes by itself, such as a restart, is none.
#[derive(Args, Clone, Copy, Debug)]
pub struct UsagePatience {
    /// How long events of a meter may be missing until its Tenant says so (UsageComplete): two leases of a relay, in which a batch that got lost is sent again
    #[arg(long, env = "TENANTRY_USAGE_GAP_AFTER", default_value = "60s", value_parser = duration)]
    pub usage_gap_after: Duration,
    /// How long after an event its database may take to say how far it is, until its Tenant says so (UsageComplete): a relay tells once a minute
    #[arg(long, env = "TENANTRY_USAGE_MARK_AFTER", default_value = "3m", value_parser = duration)]
    pub usage_mark_after: Duration,
    /// How long a relay may say nothing until that is said (UsageDelivered, MeteringDegraded): it reports every 30 seconds
    #[arg(long, env = "TENANTRY_USAGE_SILENT_AFTER", default_value = "3m", value_parser = duration)]
    pub usage_silent_after: Duration,
    /// How long a usage event may wait in its database until that is said (UsageDelivered, MeteringDegraded)
    #[arg(long, env = "TENANTRY_USAGE_WAIT_AFTER", default_value = "10m", value_parser = duration)]
    pub usage_wait_after: Duration,
    /// How long the ledger may be away until that is said (UsageDelivered, MeteringDegraded)
    #[arg(long, env = "TENANTRY_LEDGER_AWAY_AFTER", default_value = "5m", value_parser = duration)]
    pub ledger_away_after: Duration,
}

impl UsagePatience {
    /// How long usage may be on its way.
    pub(super) fn arrival(&self) -> usage::Patience {
        usage::Patience {
            gap: signed(self.usage_gap_after),
            mark: signed(self.usage_mark_after),
            silent: signed(self.usage_silent_after),
        }
    }

    /// How long an event may wait.
    pub(super) fn wait(&self) -> SignedDuration {
        signed(self.usage_wait_after)
    }

    /// How long the ledger may be away.
    pub(super) fn away(&self) -> SignedDuration {
        signed(self.ledger_away_after)
    }
}

fn signed(time: Duration) -> SignedDuration {
    SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX)
}
