//! Tenantry runs a SaaS product for many customers on Kubernetes, each at the isolation
//! tier that its plan pays for.
//!
//! Data flows one way: watch, observe, desired (pure), apply, status. A module may use only
//! what stands before it in the line api, term, tls, postgres and event, desired and billing, cluster, database and metering,
//! controller and relay and agent and web, cli; a test holds them to it.

pub mod agent;
pub mod api;
pub mod billing;
pub mod cli;
pub mod cluster;
pub mod controller;
pub mod crds;
pub mod database;
pub mod desired;
pub mod event;
pub mod metering;
pub mod postgres;
pub mod relay;
pub mod term;
pub mod tls;
pub mod web;
