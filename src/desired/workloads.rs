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
    /// What is wrong with templates.
    pub faults: Vec<Fault>,
    /// The components whose templates have a fault.
    pub faulty: Vec<String>,
}

impl Workloads {
    /// The objects of all components, and everything that is wrong with their templates.
    pub(super) fn of<'a>(components: impl IntoIterator<Item = Workload<'a>>) -> Self {
        let mut workloads = Self::default();
        for component in components {
            let objects = component.objects();
            workloads.services.extend(objects.service);
            workloads.disruption_budgets.extend(objects.disruption_budget);
            workloads.autoscalers.extend(objects.autoscaler);
            workloads.deployments.push(objects.deployment);
            match objects.pods {
                Ok(pods) => {
                    workloads.footprints.push(pods.footprint);
                    workloads.unfit.extend(pods.unfit);
                }
                Err(faults) => {
                    workloads.faulty.push(component.component.name.clone());
                    workloads.faults.extend(faults);
                }
            }
        }
        workloads
    }

    /// Every object.
    pub(super) fn objects(&self) -> impl Iterator<Item = &Object> {
        let Self { services, disruption_budgets, autoscalers, deployments, .. } = self;
        services.iter().chain(disruption_budgets).chain(autoscalers).chain(deployments)
    }
}
