//! A plan's LimitRange, with what the API server would fill in.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::LimitRangeItem, apimachinery::pkg::api::resource::Quantity};

use super::{Fault, quantity, usage};
use crate::api::{LimitRangeSettings, Plan};

/// The LimitRange's one item, for containers; nothing where the settings have no amount.
///
/// A maximum is also the default limit, a default limit also the default request, and a
/// minimum the default request, where nothing else is said: so the API server reads it.
pub(super) fn item(settings: &LimitRangeSettings) -> Option<LimitRangeItem> {
    let amounts = |quantities| -> BTreeMap<String, Quantity> { quantity::typed(quantities).unwrap_or_default() };
    let (max, min) = (amounts(settings.max.as_ref()), amounts(settings.min.as_ref()));
    let mut default = max.clone();
    default.extend(amounts(settings.default.as_ref()));
    let mut default_request = min.clone();
    default_request.extend(default.clone());
    default_request.extend(amounts(settings.default_request.as_ref()));
    let all = |amounts: BTreeMap<_, _>| (!amounts.is_empty()).then_some(amounts);
    let item = LimitRangeItem {
        type_: "Container".to_owned(),
        default: all(default),
        default_request: all(default_request),
        max: all(max),
        min: all(min),
        max_limit_request_ratio: None,
    };
    (item.default_request.is_some() || item.default.is_some()).then_some(item)
}

/// A LimitRange that contradicts itself; the API server would refuse it.
pub(super) fn faults(plan: &Plan, plan_name: &str) -> Vec<Fault> {
    let Some(settings) = &plan.spec.limit_range else { return Vec::new() };
    let amounts = |written| usage::amounts(quantity::typed(written).as_ref());
    // What is left out follows from these, and never contradicts more than they do themselves.
    let lists: BTreeMap<_, _> = [
        ("min", amounts(settings.min.as_ref())),
        ("defaultRequest", amounts(settings.default_request.as_ref())),
        ("default", amounts(settings.default.as_ref())),
        ("max", amounts(settings.max.as_ref())),
    ]
    .into();
    let mut faults = Vec::new();
    let names = lists.values().flat_map(BTreeMap::keys).collect::<std::collections::BTreeSet<_>>();
    for resource in names {
        let path = |list: &str| format!("Plan {plan_name}: spec.limitRange.{list}.{resource}");
        let standard = ["cpu", "memory", "ephemeral-storage"].contains(&resource.as_str());
        if !standard && !resource.starts_with("hugepages-") && !resource.contains('/') {
            let list = lists.iter().find(|(_, amounts)| amounts.contains_key(resource)).map_or("max", |(list, _)| list);
            let message = format!(
                "a container has no resource {resource}: write cpu, memory, ephemeral-storage, hugepages-SIZE or the \
                 name of an extended resource"
            );
            faults.push(Fault::new("InvalidLimitRange", path(list), message));
            continue;
        }
        // Each of these is at most each of those after it.
        let order = ["min", "defaultRequest", "default", "max"];
        let pairs =
            order.iter().enumerate().flat_map(|(index, low)| order[index + 1..].iter().map(move |high| (low, high)));
        for (low, high) in pairs {
            let amount = |list: &str| lists[list].get(resource);
            let (Some(below), Some(above)) = (amount(low), amount(high)) else { continue };
            if below > above {
                let message = format!("{low} is {below}, and {high} is {above}: correct one of them");
                faults.push(Fault::new("InvalidLimitRange", path(low), message));
                break;
            }
        }
    }
    faults
}
