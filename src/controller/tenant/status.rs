//! A Tenant's status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Case, place::Place};
use crate::{
    api::{
        ConditionType, SecretReference, Tenant, TenantConflict, TenantDatabase, TenantStatus, Verdict, keep_conditions,
        merge_conditions,
    },
    cluster::Result,
    controller::{conditions::now, plan::revision_name, world::World},
    database::TenantSettings,
    desired::naming,
};

/// The concerns that stay as they were where a reconcile doesn't come to them.
const CONCERNS: [ConditionType; 9] = [
    ConditionType::Placed,
    ConditionType::NamespaceReady,
    ConditionType::DatabaseReady,
    ConditionType::CredentialsReady,
    ConditionType::Migrated,
    ConditionType::WorkloadReady,
    ConditionType::RouteReady,
    ConditionType::NetworkDeclared,
    ConditionType::RolledOut,
];

/// A Tenant's status as a reconcile makes it.
pub(super) struct Report<'a> {
    tenant: &'a Tenant,
    world: &'a World,
    old: TenantStatus,
    new: TenantStatus,
    pub(super) verdicts: Vec<Verdict>,
}

impl<'a> Report<'a> {
    /// Begins with the status that is there.
    pub(super) fn new(tenant: &'a Tenant, world: &'a World) -> Self {
        let old = world.statuses.tenants.current(tenant, tenant.status.as_ref()).unwrap_or_default();
        Self { tenant, world, new: old.clone(), old, verdicts: Vec::new() }
    }

    /// The status before this reconcile.
    pub(super) fn old(&self) -> &TenantStatus {
        &self.old
    }

    /// What follows from the spec alone.
    pub(super) fn set_effective(&mut self, case: &Case<'_>) {
        let pinned = self.old.plan_revision.clone().filter(|_| self.old.plan.as_deref() == Some(&case.effective.plan));
        self.new.plan_revision = pinned.or_else(|| Some(revision_name(case.plan)));
        self.new.plan = Some(case.effective.plan.clone());
        self.new.tier = Some(case.effective.tier);
        self.new.suspended = Some(case.effective.suspended).filter(|suspended| *suspended);
        self.new.url.clone_from(&case.effective.url);
        self.new.hosts = (!case.hosts.is_empty()).then(|| case.hosts.clone());
    }

    /// The plan's revision that a tenant is pinned to by its record, where its place was lost: a
    /// published price doesn't change because a cluster was restored. What the status says in
    /// the meantime, while nobody has decided about the data, pins nothing.
    pub(super) fn keep_revision(&mut self, settings: &TenantSettings) {
        if self.new.plan.as_ref() == Some(&settings.plan) {
            self.new.plan_revision = Some(settings.plan_revision.clone());
        }
    }

    /// The place, which is written before anything is made there.
    pub(super) fn set_place(&mut self, case: &Case<'_>, place: &Place) {
        self.new.id = Some(place.id.to_string());
        self.new.tier = Some(place.tier);
        self.new.pool.clone_from(&place.pool);
        self.new.namespace = Some(place.namespace.clone());
        let rotated = self.new.database.take().and_then(|database| database.rotated);
        self.new.database = Some(TenantDatabase {
            server: place.server.clone(),
            database: place.database.clone(),
            schema: place.id.to_string(),
            secret_ref: Some(SecretReference {
                namespace: place.namespace.clone(),
                name: naming::credentials_secret(case.name),
            }),
            rotated,
        });
    }

    /// The tenant is nowhere: it is placed anew, or let go.
    pub(super) fn clear_place(&mut self) {
        self.new = TenantStatus { conditions: std::mem::take(&mut self.new.conditions), ..TenantStatus::default() };
        let of_place = |kind: &str| CONCERNS.iter().any(|concern| concern.as_str() == kind);
        self.new.conditions.retain(|condition| !of_place(&condition.type_));
    }

    /// Data of an earlier Tenant of this name, about which nobody has decided. What was known
    /// before keeps the time since when.
    pub(super) fn set_conflict(&mut self, conflict: TenantConflict) {
        let known = self.old.conflict.as_ref().filter(|old| {
            (&old.server, &old.database, &old.uid) == (&conflict.server, &conflict.database, &conflict.uid)
        });
        let since = known.map_or_else(|| whole_seconds(&conflict.since), |old| old.since.clone());
        let drop_after = conflict.drop_after.as_ref().map(whole_seconds);
        self.new.conflict = Some(TenantConflict { since, drop_after, ..conflict });
    }

    /// No such data is in the way, as far as is known.
    pub(super) fn clear_conflict(&mut self) {
        self.new.conflict = None;
    }

    /// The value of annotation `tenantry.io/rotate` that was honoured last.
    pub(super) fn rotated(&self) -> Option<&str> {
        self.new.database.as_ref()?.rotated.as_deref()
    }

    /// Notes that a value of annotation `tenantry.io/rotate` was honoured.
    pub(super) fn set_rotated(&mut self, value: &str) {
        if let Some(database) = &mut self.new.database {
            database.rotated = Some(value.to_owned());
        }
    }

    /// Writes the status, if it differs.
    pub(super) async fn write(&mut self) -> Result<bool> {
        self.new.observed_generation = self.tenant.metadata.generation;
        let old = &self.old.conditions;
        self.new.conditions = merge_conditions(old, &self.verdicts, self.tenant.metadata.generation, now());
        keep_conditions(&mut self.new.conditions, old, &CONCERNS);
        self.write_new().await
    }

    /// The Tenant has no place any more.
    pub(super) fn leave_place(&mut self) {
        self.new.pool = None;
        self.new.namespace = None;
        self.new.database = None;
    }

    /// Writes the status, if it differs, with the verdicts as its only conditions: of a Tenant
    /// that has nothing any more.
    pub(super) async fn write_without_concerns(&mut self) -> Result<bool> {
        self.new.observed_generation = self.tenant.metadata.generation;
        self.new.conditions =
            merge_conditions(&self.old.conditions, &self.verdicts, self.tenant.metadata.generation, now());
        self.write_new().await
    }

    /// Writes the place alone: the conditions follow.
    pub(super) async fn write_place(&mut self) -> Result<bool> {
        self.write_new().await
    }

    async fn write_new(&self) -> Result<bool> {
        let statuses = &self.world.statuses.tenants;
        let client = self.world.cluster.client();
        let written = statuses.write(client, self.tenant, self.tenant.status.as_ref(), &self.new).await?;
        if written {
            self.world.events.transitions(self.tenant, &self.old.conditions, &self.new.conditions);
        }
        Ok(written)
    }
}

/// A time as the API server keeps it; with more, it would differ from what is read back.
fn whole_seconds(time: &Time) -> Time {
    Time(time.0.round(jiff::Unit::Second).unwrap_or(time.0))
}
