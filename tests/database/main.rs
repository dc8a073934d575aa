//! The database module against real PostgreSQL, as an admin that is no superuser.

mod support;
mod sweep;

mod isolation;
mod lifecycle;
mod limits;
mod migrations;
mod ownership;
mod probes;
mod proof;
mod proxy;
mod relay;
mod resume;
mod rotation;
mod server;
mod silence;
mod upgrade;
mod usage;
