//! The operator as a process, with exactly the rights that the chart gives it, on a real
//! control plane and a real PostgreSQL.

mod bad_input;
mod counts;
mod ground;
mod guarding;
mod hosts;
mod in_use;
mod limits;
mod migrating;
mod placing;
mod rest;
mod steps;
mod templates;
mod tenants;
mod verbs;
