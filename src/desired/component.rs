//! One component in one namespace: Deployment, Service, autoscaler, disruption budget.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        autoscaling::v2::{
            CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec,
            MetricTarget, ResourceMetricSource,
        },
        core::v1::{Container, PodSpec, PodTemplateSpec, Service, ServicePort, ServiceSpec},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use serde_json::Value;

use super::{
    Fault, Kind, Object,
    fit::{self, Bounds},
    naming::{self, Owner},
    pod,
    quota::Footprint,
    sidecar::Sidecar,
    template,
    tuning::{Scale, Tuning},
};
use crate::api::{Component, Quantities, Tier};

/// How many more pods a rollout makes before it takes old ones away, in percent of the
/// replicas, rounded up.
pub(super) const SURGE_PERCENT: u64 = 25;
/// How many ReplicaSets of earlier rollouts a Deployment keeps.
pub(super) const REVISION_HISTORY: i32 = 3;

/// One component in one namespace.
#[derive(Clone)]
pub(super) struct Workload<'a> {
    pub component: &'a Component,
    /// The field of the component, such as `spec.components[0]`.
    pub path: String,
    pub tier: Tier,
    pub application: &'a str,
    pub owner: Owner<'a>,
    pub namespace: &'a str,
    /// How the credentials reach the containers of a component that gets them.
    pub files: Files<'a>,
    /// What the plan and the tenant change of it.
    pub tuning: Tuning,
    /// Whether no pod shall run.
    pub suspended: bool,
    /// How long a rollout may take, in seconds.
    pub deadline_seconds: Option<i32>,
    /// How long the new pods of a rollout must stay ready before they count, in seconds.
    pub min_ready_seconds: Option<i32>,
    /// The quota of a pool's namespace, under which the templates themselves must name amounts.
    pub quota: Option<&'a Quantities>,
    /// What a tenant's namespace demands of each container.
    pub bounds: Bounds<'a>,
    /// The replicas to hold while an autoscaler has not set any yet.
    pub held_replicas: Option<i32>,
}

/// How credentials reach the containers, always at the same paths.
#[derive(Clone, Copy)]
pub(super) enum Files<'a> {
    /// Those of every tenant of a pool, kept by the agent.
    Agent(Sidecar<'a>),
    /// Those of one tenant, mounted by the kubelet.
    Mounted {
        /// The tenant's name.
        tenant: &'a str,
        /// Its hosts.
        hosts: &'a [String],
    },
}

/// What one component comes to.
pub(super) struct WorkloadObjects {
    /// Without a pod template (`null`) where that has a fault.
    pub deployment: Object,
    pub service: Option<Object>,
    pub autoscaler: Option<Object>,
    pub disruption_budget: Option<Object>,
    /// Its pods, or everything that is wrong with their template.
    pub pods: Result<Pods, Vec<Fault>>,
}

/// What is known of a component's pods.
pub(super) struct Pods {
    /// What they need.
    pub footprint: Footprint,
    /// What keeps them from being made in this namespace.
    pub unfit: Vec<Fault>,
}

/// What is wrong with a component that runs under a quota.
pub(super) fn component_faults(path: &str, component: &Component, quota: Option<&Quantities>) -> Vec<Fault> {
    decode(path, component, quota).err().unwrap_or_default()
}

fn decode(path: &str, component: &Component, quota: Option<&Quantities>) -> Result<PodTemplateSpec, Vec<Fault>> {
    let template_path = format!("{path}.template");
    let template = template::decode(&template_path, component)?;
    let spec = template.spec.clone().unwrap_or_default();
    let spec_path = format!("{template_path}.spec");
    let faults = [autoscaling_faults(&spec_path, component, &spec), quota_faults(&spec_path, &spec, quota)].concat();
    if faults.is_empty() { Ok(template) } else { Err(faults) }
}

/// Whether a container names an amount; a limit stands in for a request that is left out.
fn names_amount(container: &Container, request: bool, resource: &str) -> bool {
    let resources = container.resources.as_ref();
    let has = |amounts: Option<&BTreeMap<String, _>>| amounts.is_some_and(|amounts| amounts.contains_key(resource));
    let limited = has(resources.and_then(|resources| resources.limits.as_ref()));
    limited || (request && has(resources.and_then(|resources| resources.requests.as_ref())))
}

/// An autoscaler divides use by what is requested, so it needs a request of every container.
fn autoscaling_faults(path: &str, component: &Component, spec: &PodSpec) -> Vec<Fault> {
    let tiers = [Tier::Pooled, Tier::Bridge, Tier::Dedicated];
    let autoscaled = |tier| component.autoscaling.as_ref().is_some_and(|autoscaling| autoscaling.get(tier).is_some());
    if !tiers.into_iter().any(autoscaled) {
        return Vec::new();
    }
    let containers = spec.containers.iter().enumerate();
    containers
        .filter(|(_, container)| !names_amount(container, true, "cpu"))
        .map(|(index, _)| {
            let message = "autoscaling measures CPU use in percent of the request, and this container requests none: \
                           add resources.requests.cpu";
            Fault::new(template::INVALID, format!("{path}.containers[{index}].resources"), message)
        })
        .collect()
}

/// Under a quota on CPU or memory, the API server makes no pod of which one container does
/// not say what it needs.
fn quota_faults(path: &str, spec: &PodSpec, quota: Option<&Quantities>) -> Vec<Fault> {
    if spec.resources.is_some() {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for name in quota.into_iter().flat_map(|quota| quota.0.keys()) {
        let Some((field, resource)) = fit::demanded(name) else { continue };
        let request = field == "requests";
        for (path, _) in template::containers(path, spec).filter(|(_, it)| !names_amount(it, request, resource)) {
            let message = format!(
                "the quota has {name}, so that each container must say how much: add resources.{field}.{resource}"
            );
            faults.push(Fault::new(fit::NEEDS_RESOURCES, format!("{path}.resources.{field}.{resource}"), message));
        }
    }
    faults
}

impl Workload<'_> {
    /// The objects of the component.
    pub(super) fn objects(&self) -> WorkloadObjects {
        let template = decode(&self.path, self.component, self.quota).map(|mut template| {
            self.tuning.apply(&self.component.name, template.spec.get_or_insert_default());
            pod::complete(self, template)
        });
        let pods = |template: &PodTemplateSpec| {
            let spec = template.spec.clone().unwrap_or_default();
            Pods {
                footprint: Footprint::of(&self.component.name, self.scale(), &spec, self.bounds.range),
                unfit: fit::faults(&self.component.name, &spec, self.bounds),
            }
        };
        WorkloadObjects {
            pods: template.as_ref().map(pods).map_err(Clone::clone),
            deployment: self.deployment(template.ok()),
            service: self.component.port.map(|port| self.service(port)),
            autoscaler: self.autoscaler(),
            disruption_budget: self.disruption_budget(),
        }
    }

    /// The pool or tenant that the component runs for.
    pub(super) fn instance(&self) -> &str {
        match self.owner {
            Owner::Pool(name) | Owner::Tenant { name, .. } => name,
        }
    }

    pub(super) fn selector(&self) -> BTreeMap<String, String> {
        naming::selector(self.instance(), &self.component.name)
    }

    /// The labels of the component's objects and pods.
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = naming::labels(self.application, self.owner);
        labels.insert(naming::LABEL_NAME.to_owned(), self.application.to_owned());
        labels.extend(self.selector());
        labels
    }

    fn metadata(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.component.name.clone()),
            namespace: Some(self.namespace.to_owned()),
            labels: Some(self.labels()),
            ..ObjectMeta::default()
        }
    }

    fn label_selector(&self) -> LabelSelector {
        LabelSelector { match_labels: Some(self.selector()), ..LabelSelector::default() }
    }

    fn scale(&self) -> Scale {
        self.tuning.scale(self.component, self.tier)
    }

    fn deployment(&self, template: Option<PodTemplateSpec>) -> Object {
        let has_template = template.is_some();
        // An autoscaler owns the count once it has set one; see `PoolInput::held_replicas`.
        let replicas = match self.scale() {
            // It also keeps its hands off a Deployment that is scaled to zero.
            _ if self.suspended => Some(0),
            Scale::Auto(_) => self.held_replicas,
            Scale::Fixed(replicas) => Some(replicas),
        };
        let deployment = Deployment {
            metadata: self.metadata(),
            spec: Some(DeploymentSpec {
                replicas,
                selector: self.label_selector(),
                template: template.unwrap_or_default(),
                // A new pod must be available before an old one goes, so that a rollout is
                // never an outage, also with a single replica.
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".to_owned()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: Some(IntOrString::String(format!("{SURGE_PERCENT}%"))),
                        max_unavailable: Some(IntOrString::Int(0)),
                    }),
                }),
                // Taken out again where nobody waits for it: see `rollout::recorded`.
                min_ready_seconds: self.min_ready_seconds,
                progress_deadline_seconds: self.deadline_seconds,
                revision_history_limit: Some(REVISION_HISTORY),
                ..DeploymentSpec::default()
            }),
            status: None,
        };
        let mut object = Object::typed(Kind::Deployment, &deployment);
        if !has_template {
            object.body["spec"]["template"] = Value::Null;
        }
        object
    }

    fn service(&self, port: i32) -> Object {
        let service = Service {
            metadata: self.metadata(),
            spec: Some(ServiceSpec {
                type_: Some("ClusterIP".to_owned()),
                selector: Some(self.selector()),
                ports: Some(vec![ServicePort {
                    port,
                    protocol: Some("TCP".to_owned()),
                    target_port: Some(IntOrString::Int(port)),
                    ..ServicePort::default()
                }]),
                ..ServiceSpec::default()
            }),
            status: None,
        };
        Object::typed(Kind::Service, &service)
    }

    fn autoscaler(&self) -> Option<Object> {
        let Scale::Auto(autoscaling) = self.scale() else { return None };
        let autoscaler = HorizontalPodAutoscaler {
            metadata: self.metadata(),
            spec: HorizontalPodAutoscalerSpec {
                min_replicas: Some(autoscaling.min_replicas),
                max_replicas: autoscaling.max_replicas,
                scale_target_ref: CrossVersionObjectReference {
                    api_version: Some(Kind::Deployment.api_version()),
                    kind: Kind::Deployment.as_str().to_owned(),
                    name: self.component.name.clone(),
                },
                metrics: Some(vec![MetricSpec {
                    type_: "Resource".to_owned(),
                    resource: Some(ResourceMetricSource {
                        name: "cpu".to_owned(),
                        target: MetricTarget {
                            type_: "Utilization".to_owned(),
                            average_utilization: Some(autoscaling.target_cpu_percent),
                            ..MetricTarget::default()
                        },
                    }),
                    ..MetricSpec::default()
                }]),
                ..HorizontalPodAutoscalerSpec::default()
            },
            status: None,
        };
        Some(Object::typed(Kind::HorizontalPodAutoscaler, &autoscaler))
    }

    /// Only where there can be more than one replica: one alone needs no budget. While an
    /// autoscaler has it at one, the budget lets that one go, too.
    fn disruption_budget(&self) -> Option<Object> {
        let most = match self.scale() {
            Scale::Auto(autoscaling) => autoscaling.max_replicas,
            Scale::Fixed(replicas) => replicas,
        };
        if most < 2 {
            return None;
        }
        let budget = PodDisruptionBudget {
            metadata: self.metadata(),
            spec: Some(PodDisruptionBudgetSpec {
                selector: Some(self.label_selector()),
                max_unavailable: Some(self.component.max_unavailable.clone().unwrap_or(IntOrString::Int(1))),
                unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: None,
        };
        Some(Object::typed(Kind::PodDisruptionBudget, &budget))
    }
}
