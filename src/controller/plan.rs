//! Plans: revisions of the price, limits in every database, the count of tenants.

use std::sync::Arc;

use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{
    conditions::{Concerns, now},
    failure::Failure,
    limits,
    queue::Outcome,
    world::World,
};
use crate::{
    api::{ConditionType, Plan, PlanStatus, Verdict},
    cluster::{add_finalizer, remove_finalizer},
    desired::{Kind, Object, count},
};

pub(super) async fn reconcile(plan: Arc<Plan>, world: Arc<World>) -> Outcome {
    if super::is_paused(&*plan) {
        return Ok(None);
    }
    let name = plan.name_any();
    let tenants = world.count_tenants(|tenant| tenant.spec.plan == name);
    if plan.metadata.deletion_timestamp.is_some() {
        if tenants == 0 {
            world.statuses.plans.forget(plan.metadata.uid.as_deref().unwrap_or_default());
            remove_finalizer(world.cluster.client(), &*plan).await?;
            return Ok(None);
        }
        let message =
            format!("used by {}: move them to another Plan (spec.plan) or delete them first", count(tenants, "Tenant"));
        return write(&plan, &world, tenants, &[Verdict::no(ConditionType::Ready, "InUse", message)], None).await;
    }
    add_finalizer(world.cluster.client(), &*plan).await?;
    let revision = keep_revision(&plan, &world).await;
    let limits = limits::plan_changed(&world, &plan).await;
    let mut verdicts = Vec::new();
    let failure = revision.as_ref().err().or(limits.as_ref().err()).cloned();
    match &failure {
        None => verdicts.push(Verdict::yes(ConditionType::Ready, "Ready", "limits are in effect in every database")),
        Some(failure) => verdicts.extend(Concerns::not_ready(failure)),
    }
    let next = write(&plan, &world, tenants, &verdicts, revision.ok()).await?;
    failure.map_or(Ok(next), Err)
}

/// The name of the revision that a plan's price and trial are: it follows from their content.
pub(super) fn revision_name(plan: &Plan) -> String {
    format!("{}-{:016x}", plan.name_any(), crate::cluster::desired_hash(&revision_content(plan)))
}

fn revision_content(plan: &Plan) -> Value {
    json!({"price": plan.spec.price, "trial": plan.spec.trial})
}

/// Keeps price and trial as they are now, under a name that follows from their content.
async fn keep_revision(plan: &Plan, world: &World) -> Result<String, Failure> {
    let name = revision_name(plan);
    let body = json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision",
        "metadata": {
            "name": format!("plan-{name}"), "namespace": world.args.namespace,
            "labels": {crate::api::LABEL_MANAGED_BY: crate::api::MANAGED_BY, "tenantry.io/plan": plan.name_any()},
        },
        "data": revision_content(plan),
        "revision": 1,
    });
    let object = Object {
        kind: Kind::ControllerRevision,
        namespace: Some(world.args.namespace.clone()),
        name: format!("plan-{name}"),
        body,
    };
    world.cluster.apply(&object).await?;
    Ok(name)
}

async fn write(plan: &Plan, world: &World, tenants: i64, verdicts: &[Verdict], revision: Option<String>) -> Outcome {
    let old = world.statuses.plans.current(plan, plan.status.as_ref()).unwrap_or_default();
    let status = PlanStatus {
        observed_generation: plan.metadata.generation,
        tenants,
        revision: revision.or_else(|| old.revision.clone()),
        conditions: crate::api::merge_conditions(&old.conditions, verdicts, plan.metadata.generation, now()),
    };
    if let Some(wait) = super::count_only(world, plan, PlanStatus { tenants, ..old.clone() } == status && old != status)
    {
        return Ok(Some(wait));
    }
    if world.statuses.plans.write(world.cluster.client(), plan, plan.status.as_ref(), &status).await? {
        world.events.transitions(plan, &old.conditions, &status.conditions);
    }
    Ok(None)
}
