//! The operator as a process, with exactly the rights that the chart gives it, on a real
//! control plane and a real PostgreSQL.

mod autoscaling;
mod bad_input;
mod bridge;
mod bulkheads;
mod cli;
mod counts;
mod deadlines;
mod dedicated;
mod deleting;
mod drift;
mod events;
mod faulty;
mod foreign;
#[allow(dead_code)]
mod gate;
mod gitops;
mod ground;
mod guarding;
mod health;
mod hosts;
mod in_use;
mod ingest;
mod leader;
mod leaving;
mod limits;
mod listing;
mod many;
mod migrating;
mod outages;
mod own_changes;
mod own_drift;
mod paused;
mod placing;
mod pools;
#[allow(dead_code)]
mod proxy;
mod recovery;
#[path = "../relay/api.rs"]
#[allow(dead_code)]
mod relay_api;
mod relays;
mod release;
mod rest;
mod retention;
mod rollout;
mod rotation;
mod routes;
mod saving;
mod servers;
mod steps;
mod templates;
mod tenants;
mod troubles;
mod verbs;
