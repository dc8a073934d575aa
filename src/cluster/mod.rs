//! The only place that calls the Kubernetes API: observe, apply, prune.

mod apply;
mod children;
mod drift;
mod error;
mod status;
mod watch;

pub use apply::{Applied, Cluster, Deleted, api_resource};
pub use children::{Children, Extract, Key, Observed, Owner, desired_hash};
pub use drift::{Drift, Path, compare, is_ours};
pub use error::{Error, ErrorClass, Result};
pub use status::{GroupResource, Statuses, add_finalizer, remove_finalizer};
pub use watch::{Change, events, reflect, watch_children};
