//! The CRM through its own door, HTTP, with a real PostgreSQL and the agent's own files.

mod ground;
mod hosts;
mod http;
mod pool;
mod program;
mod rotation;
mod usage;
