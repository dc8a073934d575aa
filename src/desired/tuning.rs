//! What a Plan and a Tenant change of a component: replicas and resources.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::PodSpec, apimachinery::pkg::api::resource::Quantity};

use super::quantity;
use crate::api::{Autoscaling, Component, Plan, Quantities, Resources, Tenant, Tier};

/// What differs from the Application's own words for one component.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tuning {
    replicas: Option<i32>,
    requests: BTreeMap<String, Quantity>,
    limits: BTreeMap<String, Quantity>,
}

/// How many replicas a component has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// Always so many.
    Fixed(i32),
    /// As many as its autoscaler finds right.
    Auto(Autoscaling),
}

impl Tuning {
    /// What the Plan says of a component, and above it what the Tenant says.
    pub(super) fn of(component: &str, plan: &Plan, tenant: &Tenant) -> Self {
        let mut tuning = Self::default();
        if let Some(settings) = plan.spec.components.as_ref().and_then(|components| components.get(component)) {
            tuning.add(settings.replicas, settings.resources.as_ref());
        }
        for overrides in tenant.spec.overrides.iter().flatten().filter(|it| it.component == component) {
            tuning.add(overrides.replicas, overrides.resources.as_ref());
        }
        tuning
    }

    fn add(&mut self, replicas: Option<i32>, resources: Option<&Resources>) {
        self.replicas = replicas.or(self.replicas);
        let amounts = |quantities: Option<&Quantities>| quantity::typed(quantities).unwrap_or_default();
        self.requests.extend(amounts(resources.and_then(|resources| resources.requests.as_ref())));
        self.limits.extend(amounts(resources.and_then(|resources| resources.limits.as_ref())));
    }

    /// How many replicas the component has. A number that the Plan or the Tenant names stands
    /// instead of the Application's, its autoscaler included.
    pub(super) fn scale(&self, component: &Component, tier: Tier) -> Scale {
        let autoscaling = component.autoscaling.as_ref().and_then(|autoscaling| autoscaling.get(tier));
        match (self.replicas, autoscaling) {
            (Some(replicas), _) => Scale::Fixed(replicas),
            (None, Some(autoscaling)) => Scale::Auto(*autoscaling),
            (None, None) => {
                let replicas = component.replicas.as_ref().and_then(|replicas| replicas.get(tier));
                Scale::Fixed(replicas.map_or(1, |replicas| replicas.0))
            }
        }
    }

    /// Writes the amounts over those of the component's main container: the one of its name,
    /// else the first. An amount that isn't named here stays.
    pub(super) fn apply(&self, component: &str, spec: &mut PodSpec) {
        let main = spec.containers.iter().position(|container| container.name == component).unwrap_or(0);
        let Some(container) = spec.containers.get_mut(main) else { return };
        if self.requests.is_empty() && self.limits.is_empty() {
            return;
        }
        let resources = container.resources.get_or_insert_default();
        resources.requests.get_or_insert_default().extend(self.requests.clone());
        resources.limits.get_or_insert_default().extend(self.limits.clone());
    }
}
