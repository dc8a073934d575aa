//! The ledger on real PostgreSQL: what it counts, what it refuses, and what it outlives.

mod support;

mod changes;
mod closing;
mod counting;
mod keeping;
mod outages;
mod registry;
mod restored;
mod rights;
