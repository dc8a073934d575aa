//! `tenantry relay` between a real API server, real databases and an API that fails in every way.

mod api;
mod delivery;
mod faults;
mod ground;
mod killed;
mod marks;
mod several;
#[path = "../database/support.rs"]
#[allow(dead_code, reason = "shared with the tests of the database, which use all of it")]
mod support;
mod tls;
