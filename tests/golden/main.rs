//! Desired state against files: what a user writes, and the objects that come of it.

#![expect(clippy::unwrap_used, reason = "a fixture that can't be read is a failed test")]

mod fixtures;
mod kept;
mod live;
mod module_order;
mod objects;
mod own;
mod periods;
mod policies;
mod properties;
mod quotas;
mod reach;
mod relay;
mod rollout;
mod templates;
mod tenants;
mod troubles;
