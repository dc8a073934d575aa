//! All components of an Application in one namespace.

use super::{Fault, Object, component::Workload, quota::Footprint};

/// What an Application's components come to, by sort.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    pub services: Vec<Object>,
    pub disruption_budgets: Vec<Object>,
    pub autoscalers: Vec<Object>,
    pub deployments: Vec<Object>,
    /// What the pods need.
    pub footprints: Vec<Footprint>,
    /// What keeps the pods from being made, although the templates are without fault.
    pub unfit: Vec<Fault>,
}

impl Workloads {
    /// The objects of all components, or everything that is wrong with their templates.
    pub(super) fn of<'a>(components: impl IntoIterator<Item = Workload<'a>>) -> Result<Self, Vec<Fault>> {
        let (mut workloads, mut faults) = (Self::default(), Vec::new());
        for component in components {
            match component.objects() {
                Ok(objects) => {
                    workloads.services.extend(objects.service);
                    workloads.disruption_budgets.extend(objects.disruption_budget);
                    workloads.autoscalers.extend(objects.autoscaler);
                    workloads.deployments.push(objects.deployment);
                    workloads.footprints.push(objects.footprint);
                    workloads.unfit.extend(objects.unfit);
                }
                Err(found) => faults.extend(found),
            }
        }
        if faults.is_empty() { Ok(workloads) } else { Err(faults) }
    }

    /// Every object.
    pub(super) fn objects(&self) -> impl Iterator<Item = &Object> {
        let Self { services, disruption_budgets, autoscalers, deployments, footprints: _, unfit: _ } = self;
        services.iter().chain(disruption_budgets).chain(autoscalers).chain(deployments)
    }
}
