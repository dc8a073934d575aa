//! The custom resources of group `tenantry.io`, and the words they share.
//!
//! Types alone: nothing here reads a cluster or a database. Every struct's comment is also
//! its description in the CRD, so it speaks to the person who writes the YAML.

mod application;
mod condition;
mod crd;
mod fields;
mod part;
mod plan;
mod pool;
mod server;
mod template;
mod tenant;
mod usage;

pub use application::{
    Application, ApplicationDatabase, ApplicationSpec, ApplicationStatus, Autoscaling, Component, DatabaseChoice,
    EgressRule, JobMigrations, KnownMeter, Meter, MeterKind, MeterSource, Migrations, ParentReference, PerTier,
    Placement, PoolSettings, Replicas, Rollout, Route, RouteTls, SharedObjects, SqlMigrations,
};
pub use condition::{
    ConditionType, HasConditions, METERING, Reason, Verdict, find_condition, is_true, keep_conditions, merge_conditions,
};
pub use crd::{all_crds, crd_yaml};
pub use fields::{Duration, LocalReference, Money, Quantities, Resources, Size};
pub use part::{StatusPart, TenantMetering};
pub use plan::{
    Limit, LimitPolicy, LimitRangeSettings, Plan, PlanComponent, PlanDatabase, PlanSpec, PlanStatus, Price, Proration,
    Trial, TrialEnd, UnitPrice,
};
pub use pool::{Pool, PoolSpec, PoolStatus};
pub use server::{
    Accepts, AdminConnection, Capacity, DatabaseServer, DatabaseServerSpec, DatabaseServerStatus, Endpoint,
    ServerNetwork, Tls, TlsMode,
};
pub use template::PodTemplate;
pub use tenant::{
    Billing, BillingCycle, ComponentOverride, ConflictState, DeletionPolicy, Owner, OwnerKind, SecretReference,
    Standing, Tenant, TenantConflict, TenantDatabase, TenantSpec, TenantStatus, Term,
};
pub use usage::{ClosedMeterUsage, ClosedUsage, MeterUsage, TenantUsage, UsagePeriod};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The API group of every resource here.
pub const GROUP: &str = "tenantry.io";
/// The only version served so far; it grows by optional fields.
pub const VERSION: &str = "v1alpha1";
/// The field manager of every write the operator makes.
pub const FIELD_MANAGER: &str = "tenantry";
/// The field manager of what the operator writes of usage into a Tenant's status.
pub const FIELD_MANAGER_METERING: &str = "tenantry-metering";
/// The finalizer on Tenants, Pools and what they use.
pub const FINALIZER: &str = "tenantry.io/finalizer";
/// Label: the name of the Tenant that an object belongs to.
pub const LABEL_TENANT: &str = "tenantry.io/tenant";
/// Label: the name of the Pool that an object belongs to.
pub const LABEL_POOL: &str = "tenantry.io/pool";
/// Label: the name of the DatabaseServer whose relay an object is for.
pub const LABEL_RELAY: &str = "tenantry.io/relay";
/// Label on every object that the operator made.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`LABEL_MANAGED_BY`].
pub const MANAGED_BY: &str = "tenantry";
/// Annotation on a tenant's Secret: the hosts that lead to this tenant, comma separated.
pub const ANNOTATION_HOSTS: &str = "tenantry.io/hosts";
/// Annotation on any resource of the group: `"true"` stops every write for that object.
pub const ANNOTATION_PAUSED: &str = "tenantry.io/paused";
/// Annotation on a Tenant: a value that differs from the last one honoured rotates the
/// credentials; a value that starts with `now-` closes the old ones at once.
pub const ANNOTATION_ROTATE: &str = "tenantry.io/rotate";
/// Annotation of a tenant's Secret: the value of [`ANNOTATION_ROTATE`] that its login answers.
pub const ANNOTATION_ROTATED: &str = "tenantry.io/rotated";
/// Annotation on a Tenant: take the data that the Tenant with this UID left.
pub const ANNOTATION_RESTORE_FROM: &str = "tenantry.io/restore-from";
/// Annotation on a Tenant: start empty, although the Tenants with these UIDs, comma separated,
/// left data.
pub const ANNOTATION_ABANDON: &str = "tenantry.io/abandon";
/// Annotation on a namespace that a deleted Tenant left: what of others it was kept for.
pub const ANNOTATION_KEPT: &str = "tenantry.io/kept-for";
/// Annotation on a DatabaseServer: take over the databases that the cluster with this id (UID
/// of its namespace kube-system) left there. Acts when it differs from the last one honoured.
pub const ANNOTATION_ADOPT_CLUSTER: &str = "tenantry.io/adopt-cluster";
/// Annotation on a DatabaseServer: `"true"` lets new Tenants be placed before the server could be
/// asked whether it has data of their names.
pub const ANNOTATION_SKIP_LOOKUP: &str = "tenantry.io/skip-lookup";

/// How isolated a tenant runs: pooled (shared containers, a schema in the pool's database),
/// bridge (own containers in an own namespace, a schema in a shared database) or dedicated
/// (own containers in an own namespace, a database or server of its own). AWS calls these
/// pool, bridge and silo.
//
// The schema of an optional field of an enum type has the enum's description, not the
// field's (kube hoists it), so enums of optional fields say what leaving them out means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Shared containers, a schema in the pool's database.
    Pooled,
    /// Own containers in an own namespace, a schema in a shared database.
    Bridge,
    /// Own containers in an own namespace, a database or a server of its own.
    Dedicated,
}

impl Tier {
    /// The tier as it is written in YAML.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pooled => "pooled",
            Self::Bridge => "bridge",
            Self::Dedicated => "dedicated",
        }
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}
