//! From resources to Kubernetes objects: pure.
//!
//! Nothing here has a client, reads a clock, or draws a random number. The same input gives
//! the same objects, byte for byte, so that "nothing changed" can be seen by comparing.

pub mod availability;
mod checks;
mod clean;
mod component;
pub mod earlier;
mod fault;
mod faults;
mod fit;
pub mod hosts;
mod kept;
mod kind;
mod limit_range;
pub mod limits;
mod mounted;
mod namespace;
pub mod naming;
mod network;
mod object;
mod own;
mod peers;
pub mod placement;
mod pod;
mod pool;
mod quantity;
mod quota;
mod relay;
mod restricted;
pub mod rollout;
mod route;
mod secret;
mod settings;
mod shared;
mod sidecar;
mod template;
mod tenant;
pub mod trouble;
mod tuning;
mod usage;
mod validate;
mod workloads;

pub use checks::{find_time_zone, limits as limit_faults, periods as period_faults};
pub use fault::{Fault, count, join_faults};
pub use faults::{application_faults, pool_faults, server_faults};
pub use kept::Kept;
pub use kind::Kind;
pub use namespace::operator_binding;
pub use object::Object;
pub use own::placement_fault;
pub use pool::{PoolInput, PoolObjects, pool_capacity, pool_objects, schemas_per_database};
pub use relay::{RelayInput, RelaySecretInput, RelaySettings, relay_objects, relay_secret};
pub use route::{RouteInput, RouteState, route, route_accepted, route_kind};
pub use secret::{SecretInput, tenant_secret};
pub use settings::Settings;
pub use shared::SharedContent;
pub use tenant::{TenantObjects, TenantObjectsInput, tenant_objects};
pub use validate::{Anchor, Catalog, DatabaseSettings, Effective, as_it_runs, database_settings, effective};
