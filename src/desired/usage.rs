//! What one pod counts for under a ResourceQuota, as the API server's own pod evaluator
//! reckons (kubernetes 1.36, pkg/quota/v1/evaluator/core and component-helpers/resource).

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, LimitRangeItem, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};

use super::quantity::Amount;

/// Amounts by resource.
type Amounts = BTreeMap<String, Amount>;

/// What a container asks for and may use, once the API server has filled in what its template
/// leaves out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Effective {
    pub requests: Amounts,
    pub limits: Amounts,
}

/// The amounts of a container: a limit is also the request where none is named, and then the
/// LimitRange fills in what is still missing.
pub(super) fn container(container: &Container, range: Option<&LimitRangeItem>) -> Effective {
    let resources = container.resources.as_ref();
    let mut effective = with_limits_as_requests(
        amounts(resources.and_then(|resources| resources.requests.as_ref())),
        amounts(resources.and_then(|resources| resources.limits.as_ref())),
    );
    if let Some(range) = range {
        fill(&mut effective.requests, amounts(range.default_request.as_ref()));
        fill(&mut effective.limits, amounts(range.default.as_ref()));
    }
    effective
}

/// What one pod counts for, by the quota's names.
pub(super) fn pod(spec: &PodSpec, range: Option<&LimitRangeItem>) -> Amounts {
    let Effective { requests, limits } = pod_amounts(spec, range);
    let mut usage = Amounts::from([("pods".to_owned(), Amount::whole(1)), ("count/pods".to_owned(), Amount::whole(1))]);
    for (resource, amount) in requests {
        if ["cpu", "memory", "ephemeral-storage"].contains(&resource.as_str()) || resource.starts_with("hugepages-") {
            usage.insert(resource.clone(), amount);
        }
        usage.insert(format!("requests.{resource}"), amount);
    }
    for (resource, amount) in limits {
        if ["cpu", "memory", "ephemeral-storage"].contains(&resource.as_str()) {
            usage.insert(format!("limits.{resource}"), amount);
        }
    }
    add(&mut usage, &claims(spec));
    usage
}

/// What the claims count for that are made with a pod: of its generic ephemeral volumes.
fn claims(spec: &PodSpec) -> Amounts {
    let mut usage = Amounts::new();
    let ephemeral = spec.volumes.iter().flatten().filter_map(|volume| volume.ephemeral.as_ref());
    for claim in ephemeral.filter_map(|source| source.volume_claim_template.as_ref()).map(|template| &template.spec) {
        let storage = amounts(claim.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
        let storage = storage.get("storage").copied().unwrap_or(Amount::ZERO);
        let number = Amount::whole(1);
        let mut counted = vec![
            ("persistentvolumeclaims".to_owned(), number),
            ("count/persistentvolumeclaims".to_owned(), number),
            ("requests.storage".to_owned(), storage),
        ];
        if let Some(class) = claim.storage_class_name.as_deref().filter(|class| !class.is_empty()) {
            let of_class = |resource| format!("{class}.storageclass.storage.k8s.io/{resource}");
            counted.push((of_class("persistentvolumeclaims"), number));
            counted.push((of_class("requests.storage"), storage));
        }
        add(&mut usage, &counted.into_iter().collect());
    }
    usage
}

/// Whether the pod names amounts for itself as a whole; then its containers need not.
pub(super) fn has_pod_amounts(spec: &PodSpec) -> bool {
    let resources = spec.resources.iter();
    let mut maps = resources.flat_map(|resources| [resources.requests.as_ref(), resources.limits.as_ref()]);
    maps.any(|amounts| amounts.is_some_and(|amounts| amounts.keys().any(|resource| is_pod_resource(resource))))
}

fn is_pod_resource(resource: &str) -> bool {
    ["cpu", "memory"].contains(&resource) || resource.starts_with("hugepages-")
}

fn pod_amounts(spec: &PodSpec, range: Option<&LimitRangeItem>) -> Effective {
    let mut total = aggregate(spec, range);
    if let Some(resources) = &spec.resources {
        let limits = amounts(resources.limits.as_ref());
        let mut requests = amounts(resources.requests.as_ref());
        if !limits.is_empty() {
            // Before a LimitRange is looked at: from the containers, else from the limits.
            fill(&mut requests, aggregate(spec, None).requests);
            fill(&mut requests, limits.clone());
        }
        let of_pods = |amounts: Amounts| amounts.into_iter().filter(|(resource, _)| is_pod_resource(resource));
        total.requests.extend(of_pods(requests));
        total.limits.extend(of_pods(limits));
    }
    for (resource, amount) in amounts(spec.overhead.as_ref()) {
        if let Some(limit) = total.limits.get_mut(&resource).filter(|limit| **limit != Amount::ZERO) {
            *limit = limit.plus(amount);
        }
        add(&mut total.requests, &Amounts::from([(resource, amount)]));
    }
    total
}

/// The containers' amounts together: those that run at the same time are added, and an init
/// container counts with the sidecars before it where that is more.
fn aggregate(spec: &PodSpec, range: Option<&LimitRangeItem>) -> Effective {
    let mut total = Effective::default();
    for it in &spec.containers {
        total.add(&container(it, range));
    }
    let (mut sidecars, mut starting) = (Effective::default(), Effective::default());
    for it in spec.init_containers.iter().flatten() {
        let mut own = container(it, range);
        if it.restart_policy.as_deref() == Some("Always") {
            total.add(&own);
            sidecars.add(&own);
            own = sidecars.clone();
        } else {
            own.add(&sidecars);
        }
        raise(&mut starting.requests, &own.requests);
        raise(&mut starting.limits, &own.limits);
    }
    raise(&mut total.requests, &starting.requests);
    raise(&mut total.limits, &starting.limits);
    total
}

impl Effective {
    fn add(&mut self, other: &Self) {
        add(&mut self.requests, &other.requests);
        add(&mut self.limits, &other.limits);
    }
}

fn with_limits_as_requests(mut requests: Amounts, limits: Amounts) -> Effective {
    fill(&mut requests, limits.clone());
    Effective { requests, limits }
}

/// Quantities as amounts. What isn't a quantity was refused where it was written.
pub(super) fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    let pairs = quantities.into_iter().flatten();
    pairs.filter_map(|(resource, quantity)| Some((resource.clone(), Amount::parse(&quantity.0)?))).collect()
}

/// Takes over what is missing.
fn fill(target: &mut Amounts, from: Amounts) {
    for (resource, amount) in from {
        target.entry(resource).or_insert(amount);
    }
}

fn add(target: &mut Amounts, other: &Amounts) {
    for (resource, amount) in other {
        let sum = target.get(resource).copied().unwrap_or(Amount::ZERO).plus(*amount);
        target.insert(resource.clone(), sum);
    }
}

fn raise(target: &mut Amounts, other: &Amounts) {
    for (resource, amount) in other {
        let most = target.get(resource).copied().unwrap_or(Amount::ZERO).max(*amount);
        target.insert(resource.clone(), most);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn usage(spec: Value, range: Option<Value>) -> BTreeMap<String, String> {
        let spec: PodSpec = serde_json::from_value(spec).expect("a pod spec");
        let range: Option<LimitRangeItem> = range.map(|range| serde_json::from_value(range).expect("an item"));
        pod(&spec, range.as_ref()).into_iter().map(|(name, amount)| (name, amount.to_string())).collect()
    }

    fn container(name: &str, requests: &Value, limits: &Value) -> Value {
        json!({"name": name, "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn what_runs_at_the_same_time_is_added_and_what_starts_before_counts_where_it_is_more() {
        let mut sidecar = container("proxy", &json!({"cpu": "100m", "memory": "64Mi"}), &json!({}));
        sidecar["restartPolicy"] = json!("Always");
        let spec = json!({
            "initContainers": [
                container("before", &json!({"cpu": "900m", "memory": "16Mi"}), &json!({})),
                sidecar,
                container("after", &json!({"cpu": "850m"}), &json!({"memory": "1Gi"})),
            ],
            "containers": [
                container("a", &json!({"cpu": "300m", "memory": "100Mi"}), &json!({})),
                container("b", &json!({"cpu": "200m", "memory": "100Mi"}), &json!({"cpu": "1"})),
            ],
        });
        let usage = usage(spec, None);
        // 300 + 200 + 100 while it runs; 850 + 100 while `after` starts; 900 for `before`.
        assert_eq!(usage["requests.cpu"], "950m");
        assert_eq!(usage["cpu"], "950m");
        // 1Gi of `after` (its limit is its request) and the sidecar's 64Mi.
        assert_eq!(usage["requests.memory"], "1088Mi");
        assert_eq!(usage["limits.memory"], "1Gi");
        assert_eq!(usage["limits.cpu"], "1");
        assert_eq!((usage["pods"].as_str(), usage["count/pods"].as_str()), ("1", "1"));
    }

    #[test]
    fn a_limit_range_fills_in_after_limits_became_requests() {
        let range = json!({
            "type": "Container",
            "default": {"cpu": "2", "memory": "512Mi"}, "defaultRequest": {"cpu": "50m", "memory": "128Mi"},
        });
        let spec = json!({"containers": [
            {"name": "none"},
            container("limited", &json!({}), &json!({"memory": "1Gi"})),
            container("asks", &json!({"cpu": "1"}), &json!({})),
        ]});
        let usage = usage(spec, Some(range));
        assert_eq!(usage["requests.memory"], "1280Mi");
        assert_eq!(usage["limits.memory"], "2Gi");
        assert_eq!(usage["requests.cpu"], "1100m");
        assert_eq!(usage["limits.cpu"], "6");
    }

    #[test]
    fn the_claims_of_ephemeral_volumes_are_counted_with_the_pod() {
        let volume = |name: &str, class: &Value, storage: &str| {
            let claim = json!({
                "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "resources": {"requests": {"storage": storage}},
            });
            json!({"name": name, "ephemeral": {"volumeClaimTemplate": {"spec": claim}}})
        };
        let spec = json!({
            "containers": [{"name": "a"}],
            "volumes": [
                volume("scratch", &json!("fast"), "2Gi"), volume("cache", &Value::Null, "1Gi"),
                {"name": "tmp", "emptyDir": {}}, {"name": "kept", "persistentVolumeClaim": {"claimName": "kept"}},
            ],
        });
        let usage = usage(spec, None);
        assert_eq!(usage["requests.storage"], "3Gi");
        assert_eq!(usage["persistentvolumeclaims"], "2");
        assert_eq!(usage["count/persistentvolumeclaims"], "2");
        assert_eq!(usage["fast.storageclass.storage.k8s.io/requests.storage"], "2Gi");
        assert_eq!(usage["fast.storageclass.storage.k8s.io/persistentvolumeclaims"], "1");
        assert_eq!(usage.len(), 7, "{usage:?}");
    }

    #[test]
    fn a_pods_own_amounts_stand_instead_of_its_containers_and_overhead_is_added() {
        let spec = json!({
            "resources": {"limits": {"cpu": "4", "memory": "4Gi"}, "requests": {"memory": "1Gi"}},
            "overhead": {"cpu": "10m", "memory": "8Mi"},
            "containers": [container("a", &json!({"cpu": "300m", "nvidia.com/gpu": "1"}), &json!({"nvidia.com/gpu": "1"}))],
        });
        let usage = usage(spec, None);
        assert_eq!(usage["requests.cpu"], "310m");
        assert_eq!(usage["requests.memory"], "1032Mi");
        assert_eq!(usage["limits.cpu"], "4010m");
        assert_eq!(usage["requests.nvidia.com/gpu"], "1");
        assert!(!usage.contains_key("nvidia.com/gpu"));
    }
}
