//! The only place that speaks SQL to the servers that tenants live on: it makes databases and
//! tenants in them, proves their isolation, rotates logins, runs migrations, and takes tenants
//! out of use. It knows nothing of Kubernetes.
//!
//! Every operation may be repeated after any failure, and the records in schema `tenantry` of
//! each database say whose a tenant is: nothing that another owner made is adopted or dropped.

mod breaker;
mod connection;
mod error;
mod identity;
mod logins;
mod meters;
mod migrate;
mod outbox;
mod pool;
mod prove;
mod records;
mod relay;
mod remove;
mod roles;
mod schema;
mod server;
mod sql;
mod sweep;
mod takeover;
mod tenants;
mod tls;
mod types;
mod unsent;
mod watchdog;

pub use error::{Error, ErrorClass, Result};
pub use identity::{Password, PasswordDigest, Slot, TenantId};
pub use outbox::{LeasedEvent, Mark, Outbox, OutboxSize, Settlement, Standing};
pub use relay::{DeadLetter, RelayAccess, relay_role};
pub use server::{Endpoint, Server, ServerConfig, Timeouts, Tls};
pub use types::*;
