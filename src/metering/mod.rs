//! From usage events to what is known of each tenant's usage: the events as they travel, the
//! ledger that keeps them, and what a status says of them.

pub mod batches;
pub mod cloudevents;
pub mod counts;
pub mod judge;
pub mod known;
pub mod ledger;
pub mod store;
pub mod usage;

// Stands before the databases, since they write what travels.
pub use crate::event;
