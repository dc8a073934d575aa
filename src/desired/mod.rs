//! From resources to Kubernetes objects: pure.
//!
//! Nothing here has a client, reads a clock, or draws a random number. The same input gives
//! the same objects, byte for byte, so that "nothing changed" can be seen by comparing.

pub mod availability;
mod clean;
mod fault;
pub mod hosts;
mod kind;
pub mod limits;
pub mod naming;
mod object;
pub mod placement;
mod pool;
mod route;
mod tenant;
mod validate;

pub use fault::{Fault, join_faults};
pub use kind::Kind;
pub use object::Object;
pub use pool::{PoolInput, PoolObjects, Settings, SharedContent, pool_capacity, pool_objects};
pub use route::{RouteInput, RouteState, route, route_accepted, route_kind};
pub use tenant::{TenantInput, pooled_secret};
pub use validate::{
    Anchor, Catalog, DatabaseSettings, Effective, application_faults, effective, pool_faults, server_faults,
};
