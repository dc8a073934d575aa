//! The operator as a process, with exactly the rights that the chart gives it, on a real
//! control plane and a real PostgreSQL.

mod ground;
mod rest;
mod tenants;
