//! A small CRM for many customers, as a SaaS team would write it on Tenantry's contracts:
//!
//! * the tenant is the Host header ([`TenantHost`]), checked before it gets near a path;
//! * the tenant's login is a file that `tenantry agent` keeps ([`Tenants`]), looked at with each request, so that new
//!   customers, gone ones and rotated passwords need no restart;
//! * connections are few and shared fairly ([`Limits`]);
//! * each change is counted by `record_usage` in its own transaction, and a plan's hard limit is an answer 402.
//!
//! The same program serves one customer in a pod of its own: there the kubelet mounts the files.

mod database;
mod error;
mod host;
mod pool;
mod resources;
mod routes;
mod tenants;
mod transaction;
mod work;

pub use error::Error;
pub use host::TenantHost;
pub use pool::Limits;
pub use routes::router;
pub use tenants::Tenants;
