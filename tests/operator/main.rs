//! The operator as a process, with exactly the rights that the chart gives it, on a real
//! control plane and a real PostgreSQL.

mod deleting;
mod drift;
mod foreign;
mod ground;
mod outages;
mod pools;
mod proxy;
mod rest;
mod rotation;
mod routes;
mod servers;
mod tenants;
mod verbs;
