//! How a tenant is reached: an HTTPRoute at a Gateway, or an Ingress.

use serde_json::{Value, json};

use super::{
    Kind, Object,
    naming::{self, Owner},
};
use crate::api::{Application, ParentReference, Route};

/// What a tenant's route is made from.
#[derive(Clone, Copy, Debug)]
pub struct RouteInput<'a> {
    /// The Tenant's name.
    pub tenant: &'a str,
    /// The Pool that the tenant is in, for tier pooled.
    pub pool: Option<&'a str>,
    /// The namespace of the pool or tenant.
    pub namespace: &'a str,
    /// The Application.
    pub application: &'a Application,
    /// The hosts that are the tenant's.
    pub hosts: &'a [String],
}

/// The kind of a route's objects.
pub fn route_kind(route: &Route) -> Kind {
    if route.ingress_class_name.is_some() { Kind::Ingress } else { Kind::HttpRoute }
}

/// A tenant's route; none when the Application has no route or the tenant no host. (For a
/// suspended tenant, don't ask.)
pub fn route(input: &RouteInput<'_>) -> Option<Object> {
    let spec = input.application.spec.route.as_ref()?;
    let component = input.application.spec.components.iter().find(|component| component.name == spec.component)?;
    let port = component.port?;
    if input.hosts.is_empty() {
        return None;
    }
    let application = input.application.metadata.name.as_deref().unwrap_or_default();
    let owner = Owner::Tenant { name: input.tenant, pool: input.pool };
    let body = match route_kind(spec) {
        Kind::Ingress => ingress_spec(input, spec, port),
        _ => http_route_spec(input, spec, port),
    };
    let metadata = json!({
        "name": naming::tenant_route(input.tenant),
        "namespace": input.namespace,
        "labels": naming::labels(application, owner),
        "annotations": spec.annotations,
    });
    Some(Object::untyped(route_kind(spec), json!({"metadata": metadata, "spec": body})))
}

/// Everything that the API server would fill in stands here, so that applying it again
/// changes nothing.
fn http_route_spec(input: &RouteInput<'_>, route: &Route, port: i32) -> Value {
    let parents = route.parent_refs.iter().flatten().map(|parent| {
        json!({
            "group": GATEWAY_GROUP,
            "kind": "Gateway",
            "name": parent.name,
            "namespace": parent.namespace,
            "sectionName": parent.section_name,
        })
    });
    json!({
        "parentRefs": parents.collect::<Vec<_>>(),
        "hostnames": input.hosts,
        "rules": [{
            "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
            "backendRefs": [{"group": "", "kind": "Service", "name": route.component, "port": port, "weight": 1}],
        }],
    })
}

fn ingress_spec(input: &RouteInput<'_>, route: &Route, port: i32) -> Value {
    let rule = |host: &String| {
        json!({
            "host": host,
            "http": {"paths": [{
                "path": "/",
                "pathType": "Prefix",
                "backend": {"service": {"name": route.component, "port": {"number": port}}},
            }]},
        })
    };
    let tls = route
        .tls
        .iter()
        .map(|tls| json!({"hosts": input.hosts, "secretName": tls.secret_name.replace("{tenant}", input.tenant)}));
    json!({
        "ingressClassName": route.ingress_class_name,
        "rules": input.hosts.iter().map(rule).collect::<Vec<_>>(),
        "tls": tls.collect::<Vec<_>>(),
    })
}

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// What a route's parent says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteState {
    /// It is served.
    Accepted,
    /// The parent has not spoken yet, or only of an older generation.
    Pending {
        /// Who is waited for.
        message: String,
    },
    /// The parent refuses it.
    Refused {
        /// The parent's own word, such as `NotAllowedByListeners`.
        reason: String,
        /// Which parent, and its own message.
        message: String,
    },
}

/// What the parents of a live route (HTTPRoute or Ingress) say of it: all of them must have
/// accepted its present generation and resolved its backends.
pub fn route_accepted(live: &Value) -> RouteState {
    if live["kind"] == Kind::Ingress.as_str() {
        return ingress_accepted(live);
    }
    let namespace = live["metadata"]["namespace"].as_str().unwrap_or_default();
    let generation = &live["metadata"]["generation"];
    let parents = live["spec"]["parentRefs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let states: Vec<RouteState> =
        parents.iter().map(|parent| parent_accepted(live, parent, namespace, generation)).collect();
    let refused = states.iter().find(|state| matches!(state, RouteState::Refused { .. }));
    let pending = || states.iter().find(|state| matches!(state, RouteState::Pending { .. }));
    refused.or_else(pending).cloned().unwrap_or(RouteState::Accepted)
}

fn ingress_accepted(live: &Value) -> RouteState {
    if live["status"]["loadBalancer"]["ingress"].as_array().is_some_and(|addresses| !addresses.is_empty()) {
        return RouteState::Accepted;
    }
    let class = live["spec"]["ingressClassName"].as_str().unwrap_or("of the cluster's default class");
    RouteState::Pending { message: format!("the Ingress controller {class} has not given the Ingress an address yet") }
}

fn parent_accepted(live: &Value, parent: &Value, namespace: &str, generation: &Value) -> RouteState {
    let name = parent_name(parent, namespace);
    let entries = live["status"]["parents"].as_array().map(Vec::as_slice).unwrap_or_default();
    let entry = entries.iter().find(|entry| parent_name(&entry["parentRef"], namespace) == name);
    let Some(entry) = entry else {
        return RouteState::Pending {
            message: format!("Gateway {name} has not answered yet: does it exist, and does its controller run?"),
        };
    };
    for kind in ["Accepted", "ResolvedRefs"] {
        let conditions = entry["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let condition = conditions.iter().find(|condition| condition["type"] == kind);
        let current = condition.filter(|condition| &condition["observedGeneration"] == generation);
        let Some(condition) = current else {
            return RouteState::Pending {
                message: format!("Gateway {name} has not set {kind} for the route's present generation yet"),
            };
        };
        if condition["status"] != "True" {
            let reason = condition["reason"].as_str().filter(|reason| !reason.is_empty()).unwrap_or("NotAccepted");
            let message = condition["message"].as_str().unwrap_or_default();
            return RouteState::Refused {
                reason: reason.to_owned(),
                message: format!(
                    "Gateway {name} sets {kind} to {}: {reason}: {message}",
                    condition["status"].as_str().unwrap_or("Unknown")
                ),
            };
        }
    }
    RouteState::Accepted
}

/// `NAMESPACE/NAME`, and `/SECTION` where the reference names one.
fn parent_name(parent: &Value, route_namespace: &str) -> String {
    let reference = ParentReference {
        name: parent["name"].as_str().unwrap_or_default().to_owned(),
        namespace: parent["namespace"].as_str().unwrap_or(route_namespace).to_owned(),
        section_name: parent["sectionName"].as_str().map(str::to_owned),
    };
    match reference.section_name {
        Some(section) => format!("{}/{}/{section}", reference.namespace, reference.name),
        None => format!("{}/{}", reference.namespace, reference.name),
    }
}
