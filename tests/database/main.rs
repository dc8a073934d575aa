//! The database module against real PostgreSQL, as an admin that is no superuser.

mod support;
mod sweep;

mod isolation;
mod lifecycle;
mod migrations;
mod probes;
mod proxy;
mod rotation;
mod server;
mod usage;
