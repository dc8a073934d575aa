//! The only place that calls the Kubernetes API: observe, apply, prune.

mod apply;
mod children;
mod client;
mod delays;
mod drift;
mod error;
mod fence;
mod guard;
mod lease;
mod status;
mod tokens;
mod watch;
mod watches;

pub use apply::{Applied, Cluster, Deleted, api_resource};
pub use children::{Children, Extract, Key, Observed, Owner, desired_hash};
pub use client::client;
pub use delays::{Delays, Reconnect, after, jittered};
pub use drift::{Drift, Path, compare, is_ours, template_differs, template_is_touched};
pub use error::{Error, ErrorClass, Result};
pub use guard::{Call, Calls, TermOver};
pub use lease::{Leadership, LeaseSettings, Lost, lead};
pub use status::{GroupResource, Statuses, add_finalizer, remove_finalizer};
pub use tokens::{may_get, review_token};
pub use watch::{Change, events, reflect, watch_children};
pub use watches::{Watch, Watched, Watches};
