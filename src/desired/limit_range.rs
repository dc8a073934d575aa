//! A plan's LimitRange, with what the API server would fill in.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::LimitRangeItem, apimachinery::pkg::api::resource::Quantity};

use super::quantity;
use crate::api::LimitRangeSettings;

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
