//! `tenantry agent` against a real API server.

mod faults;
mod files;
mod ground;
mod program;
mod rights;
