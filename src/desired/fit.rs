//! Whether a pod's containers are such as a quota and a LimitRange let pass.

use k8s_openapi::api::core::v1::{Container, LimitRangeItem, PodSpec};

use super::{Fault, template, usage};
use crate::api::Quantities;

/// The reason of a container that doesn't say how much it needs, under a quota that asks for it.
pub(super) const NEEDS_RESOURCES: &str = "QuotaNeedsResources";

/// What a namespace demands of each container.
#[derive(Clone, Copy, Default)]
pub(super) struct Bounds<'a> {
    /// Its quota.
    pub quota: Option<&'a Quantities>,
    /// Its LimitRange.
    pub range: Option<&'a LimitRangeItem>,
    /// The Plan that both are from.
    pub plan: &'a str,
}

/// A quota on one of these is one on pods of which each container says how much: for the
/// quota's name, whether it is on requests, and the resource.
pub(super) fn demanded(name: &str) -> Option<(&'static str, &'static str)> {
    match name {
        "cpu" | "requests.cpu" => Some(("requests", "cpu")),
        "memory" | "requests.memory" => Some(("requests", "memory")),
        "limits.cpu" => Some(("limits", "cpu")),
        "limits.memory" => Some(("limits", "memory")),
        _ => None,
    }
}

/// What of a component's pods would be refused.
pub(super) fn faults(component: &str, spec: &PodSpec, bounds: Bounds<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (_, container) in template::containers("", spec) {
        let it = Checked { component, container, bounds };
        if !usage::has_pod_amounts(spec) {
            faults.extend(it.missing());
        }
        faults.extend(it.outside());
        faults.extend(it.above());
    }
    faults
}

struct Checked<'a> {
    component: &'a str,
    container: &'a Container,
    bounds: Bounds<'a>,
}

impl Checked<'_> {
    fn amounts(&self) -> usage::Effective {
        usage::container(self.container, self.bounds.range)
    }

    fn path(&self, field: &str) -> String {
        format!("Plan {}: spec.{field}", self.bounds.plan)
    }

    /// `component web, container crm`.
    fn name(&self) -> String {
        format!("component {}, container {}", self.component, self.container.name)
    }

    /// Amounts that the quota demands.
    fn missing(&self) -> Vec<Fault> {
        let amounts = self.amounts();
        let quota = self.bounds.quota.into_iter().flat_map(|quota| quota.0.keys());
        quota
            .filter_map(|name| {
                let (list, resource) = demanded(name)?;
                let there = if list == "requests" { &amounts.requests } else { &amounts.limits };
                (!there.contains_key(resource)).then(|| {
                    let message = format!(
                        "under this quota each container must say how much, and {} does not: add \
                         spec.limitRange.default.{resource} or spec.components.{}.resources.{list}.{resource} here, or \
                         resources.{list}.{resource} to the Application's template",
                        self.name(),
                        self.component,
                    );
                    Fault::new(NEEDS_RESOURCES, self.path(&format!("quota.{name}")), message)
                })
            })
            .collect()
    }

    /// Amounts beyond the LimitRange.
    fn outside(&self) -> Vec<Fault> {
        let Some(range) = self.bounds.range else { return Vec::new() };
        let usage::Effective { requests, limits } = self.amounts();
        let (min, max) = (usage::amounts(range.min.as_ref()), usage::amounts(range.max.as_ref()));
        let mut faults = Vec::new();
        let mut fault = |bound: &str, resource: &str, list: &str, message: String| {
            let path = self.path(&format!("limitRange.{bound}.{resource}"));
            let message = format!("{} has {list}.{resource} {message}: change it, or the limitRange", self.name());
            faults.push(Fault::new("OutsideLimitRange", path, message));
        };
        for (list, amounts) in [("requests", &requests), ("limits", &limits)] {
            for (resource, amount) in amounts {
                if let Some(least) = min.get(resource).filter(|least| amount < *least) {
                    fault("min", resource, list, format!("{amount}, below {least}"));
                }
                if let Some(most) = max.get(resource).filter(|most| amount > *most) {
                    fault("max", resource, list, format!("{amount}, above {most}"));
                }
            }
        }
        faults
    }

    /// Requests above limits: by a plan's or tenant's own word, or by the default limit.
    fn above(&self) -> Vec<Fault> {
        let usage::Effective { requests, limits } = self.amounts();
        let above = |(resource, request): (&String, &super::quantity::Amount)| {
            let limit = limits.get(resource).filter(|limit| request > *limit)?;
            let message = format!(
                "{} requests {request} of {resource} and is limited to {limit}, with what Plan, LimitRange and Tenant \
                 say: lower the request, or raise the limit",
                self.name()
            );
            Some(Fault::new(
                "RequestAboveLimit",
                self.path(&format!("components.{}.resources", self.component)),
                message,
            ))
        };
        requests.iter().filter_map(above).collect()
    }
}
