//! Compares an object as it is with how it should be. Pure.
//!
//! Server-side apply restores what we set, but leaves what others added (a container, a
//! port, a key of data). `managedFields` tells who set what, so an addition is a path that
//! is not in the desired object and that somebody owns; defaults belong to nobody.
//! Labels, annotations, finalizers and owner references of others stay.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Map, Value, json};

use crate::api::FIELD_MANAGER;

/// The manager that holds a Deployment's replica count while it goes from us to an autoscaler.
pub(super) const REPLICAS_MANAGER: &str = "tenantry-replicas";

/// What `kubectl rollout restart` leaves in a pod template: a person asked for it, and to
/// take it out would restart the pods once more.
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";

/// How an object differs from what it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Something that should be there is missing or different: apply it.
    pub missing: bool,
    /// What should not be there: remove it. Later places of a list stand before earlier ones.
    pub additions: Vec<Path>,
}

impl Drift {
    /// Whether the object is as it should be.
    pub fn is_none(&self) -> bool {
        !self.missing && self.additions.is_empty()
    }
}

/// A place in an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Index(usize),
}

impl Path {
    /// The place as a JSON pointer (RFC 6901).
    pub fn pointer(&self) -> String {
        self.0.iter().fold(String::new(), |mut pointer, step| {
            pointer.push('/');
            match step {
                Step::Key(key) => pointer.push_str(&key.replace('~', "~0").replace('/', "~1")),
                Step::Index(index) => pointer.push_str(&index.to_string()),
            }
            pointer
        })
    }
}

/// What has to change so that `live` is as `desired`.
pub fn compare(desired: &Value, live: &Value) -> Drift {
    let (mut additions, mut taken_over) = (Vec::new(), false);
    let entries = managed_fields(live);
    let applied = entries.iter().find(|entry| {
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && entry.subresource.is_none()
    });
    let applied = applied.and_then(|entry| entry.fields_v1.as_ref()?.0.as_object());
    for entry in &entries {
        if entry.subresource.is_some() || entry.manager.as_deref() == Some(REPLICAS_MANAGER) {
            continue;
        }
        let Some(fields) = entry.fields_v1.as_ref().and_then(|fields| fields.0.as_object()) else { continue };
        let ours = entry.manager.as_deref() == Some(FIELD_MANAGER);
        collect_additions(fields, Some(desired), Some(live), ours, &mut Vec::new(), &mut additions);
        taken_over |= !ours && takes_over(fields, applied, desired);
    }
    additions.sort_unstable_by(|a, b| b.cmp(a));
    additions.dedup();
    Drift { missing: taken_over || !covers(desired, live), additions }
}

/// Whether the pod template of a live Deployment has to change to be the desired one.
pub fn template_differs(desired: &Value, live: &Value) -> bool {
    let wanted = json!({"spec": {"template": desired["spec"]["template"]}});
    let drift = compare(&wanted, live);
    drift.missing || drift.additions.iter().any(|path| path.pointer().starts_with("/spec/template/"))
}

/// Whether somebody else has set anything in the pod template of a live Deployment, beyond
/// asking for a restart.
pub fn template_is_touched(live: &Value) -> bool {
    fn sets_anything(fields: &Value) -> bool {
        let Some(fields) = fields.as_object() else { return false };
        fields.iter().any(|(key, below)| {
            let is_leaf = below.as_object().is_none_or(Map::is_empty);
            let counts = key != "." && key.strip_prefix("f:") != Some(RESTARTED_AT);
            counts && (is_leaf || sets_anything(below))
        })
    }
    let others = managed_fields(live).into_iter().filter(|entry| {
        entry.subresource.is_none() && entry.manager.as_deref().is_none_or(|manager| manager != FIELD_MANAGER)
    });
    others
        .filter_map(|entry| entry.fields_v1)
        .any(|fields| fields.0.pointer("/f:spec/f:template").is_some_and(sets_anything))
}

/// Whether an owner has a map or list of ours that it can only own as a whole (a selector,
/// say): it has changed something in it, or else we would own it as well.
fn takes_over(fields: &Map<String, Value>, applied: Option<&Map<String, Value>>, desired: &Value) -> bool {
    fields.iter().any(|(key, below)| {
        let Some((_, wanted)) = resolve(key, desired) else { return false };
        let (applied, below) = (applied.and_then(|applied| applied.get(key)), below.as_object());
        match below.filter(|below| !below.is_empty()) {
            Some(below) => takes_over(below, applied.and_then(Value::as_object), wanted),
            None => applied.is_none() && (wanted.is_object() || wanted.is_array()),
        }
    })
}

/// The operations of a JSON patch that take out what was added, where that can't be done
/// after an apply: a list that something was added to becomes the desired one at once.
pub(super) fn overwrite(desired: &Value, live: &Value) -> Vec<Value> {
    let mut operations: Vec<Value> = Vec::new();
    for path in compare(desired, live).additions {
        let list = path.0.iter().take_while(|step| matches!(step, Step::Key(_))).cloned().collect();
        let (list, whole) = (Path(list).pointer(), path.pointer());
        let operation = match desired.pointer(&list) {
            Some(wanted) if list != whole => json!({"op": "replace", "path": list, "value": wanted}),
            _ => json!({"op": "remove", "path": whole}),
        };
        if !operations.contains(&operation) {
            operations.push(operation);
        }
    }
    operations
}

/// Whether anything of the object was set by us.
pub fn is_ours(live: &Value) -> bool {
    managed_fields(live).iter().any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER))
}

/// Whether we own the replica count of this Deployment.
pub(super) fn owns_replicas(live: &Value) -> bool {
    managed_fields(live).iter().any(|entry| {
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.subresource.is_none()
            && entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some())
    })
}

/// Keeps of managedFields what is looked at here: who set which fields, and that something is
/// ours. Who set the status is nobody's concern, nor when that was.
pub(super) fn keep_owners(live: &mut Value) {
    let Some(entries) = live.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut) else { return };
    let is_of_part = |entry: &Value| entry.get("subresource").is_some_and(|it| !it.is_null());
    entries.retain(|entry| !is_of_part(entry) || entry["manager"] == FIELD_MANAGER);
    for entry in entries {
        let fields: &[&str] = if is_of_part(entry) {
            &["time", "apiVersion", "fieldsType", "fieldsV1"]
        } else {
            &["time", "apiVersion", "fieldsType", "subresource"]
        };
        if let Some(entry) = entry.as_object_mut() {
            entry.retain(|field, _| !fields.contains(&field.as_str()));
        }
    }
}

fn managed_fields(live: &Value) -> Vec<ManagedFieldsEntry> {
    live.pointer("/metadata/managedFields")
        .and_then(|fields| serde_json::from_value(fields.clone()).ok())
        .unwrap_or_default()
}

/// Whether every leaf of `desired` stands in `live`. Maps may have more; lists may not.
/// (Quantities are compared as text: desired objects have them in the API server's own form.)
fn covers(desired: &Value, live: &Value) -> bool {
    match (desired, live) {
        (Value::Object(desired), Value::Object(live)) => desired
            .iter()
            .all(|(key, wanted)| live.get(key).map_or_else(|| is_empty(wanted), |found| covers(wanted, found))),
        (Value::Array(desired), Value::Array(live)) => {
            desired.len() == live.len() && desired.iter().zip(live).all(|(wanted, found)| covers(wanted, found))
        }
        (wanted, found) => wanted == found,
    }
}

/// The API server drops what is empty, unless its presence means something.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        _ => false,
    }
}

/// Walks an owner's fields (format FieldsV1) and notes those that `desired` doesn't have.
fn collect_additions(
    fields: &Map<String, Value>,
    desired: Option<&Value>,
    live: Option<&Value>,
    ours: bool,
    path: &mut Vec<Step>,
    additions: &mut Vec<Path>,
) {
    for (key, below) in fields {
        let Some((step, found)) = live.and_then(|live| resolve(key, live)) else { continue };
        if path.is_empty() && step == Step::Key("status".into()) {
            continue;
        }
        let whole = path.is_empty() && step == Step::Key("metadata".into());
        if !ours && (whole || step == Step::Key(RESTARTED_AT.into())) {
            continue;
        }
        let wanted = desired.and_then(|desired| resolve(key, desired)).map(|(_, wanted)| wanted);
        let annotations = step == Step::Key("annotations".into());
        path.push(step);
        match (wanted, below) {
            // One by one: not all of them are to go.
            (None, Value::Object(below)) if annotations && !below.is_empty() => {
                collect_additions(below, None, Some(found), ours, path, additions);
            }
            (None, _) => additions.push(Path(path.clone())),
            (Some(wanted), Value::Object(below)) => {
                collect_additions(below, Some(wanted), Some(found), ours, path, additions);
            }
            (Some(_), _) => {}
        }
        path.pop();
    }
}

/// Finds what a key of FieldsV1 stands for: `f:` a field, `k:` the element of a list with
/// these keys, `v:` an element of a set, `i:` an index. `.` is the element itself.
fn resolve<'v>(key: &str, value: &'v Value) -> Option<(Step, &'v Value)> {
    if let Some(field) = key.strip_prefix("f:") {
        return Some((Step::Key(field.to_owned()), value.get(field)?));
    }
    let items = value.as_array()?;
    let index = if let Some(keys) = key.strip_prefix("k:") {
        let keys: Map<String, Value> = serde_json::from_str(keys).ok()?;
        items.iter().position(|item| keys.iter().all(|(key, wanted)| item.get(key) == Some(wanted)))?
    } else if let Some(element) = key.strip_prefix("v:") {
        let element: Value = serde_json::from_str(element).ok()?;
        items.iter().position(|item| *item == element)?
    } else {
        key.strip_prefix("i:")?.parse().ok()?
    };
    Some((Step::Index(index), items.get(index)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(mut live: Value, entries: Value) -> Value {
        live["metadata"]["managedFields"] = entries;
        live
    }

    #[expect(clippy::needless_pass_by_value, reason = "it is called with json!")]
    fn entry(manager: &str, fields: Value) -> Value {
        json!({"manager": manager, "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": fields})
    }

    #[test]
    fn defaults_that_nobody_owns_are_no_drift() {
        let desired = json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}]}});
        let found = live(
            json!({"metadata": {}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}}),
            json!([entry(
                "tenantry",
                json!({"f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}}})
            )]),
        );
        assert!(compare(&desired, &found).is_none());
    }

    #[test]
    fn a_container_that_somebody_added_is_removed() {
        let desired = json!({"spec": {"containers": [{"name": "web"}]}});
        let found = live(
            json!({"metadata": {}, "spec": {"containers": [{"name": "spy"}, {"name": "web"}]}}),
            json!([entry(
                "kubectl-edit",
                json!({"f:spec": {"f:containers": {"k:{\"name\":\"spy\"}": {".": {}, "f:name": {}}}}})
            )]),
        );
        let drift = compare(&desired, &found);
        assert!(drift.missing, "the list has another length");
        assert_eq!(drift.additions.iter().map(Path::pointer).collect::<Vec<_>>(), ["/spec/containers/0"]);
    }

    #[test]
    fn what_is_kept_of_managed_fields_tells_the_same() {
        let desired = json!({"data": {"a": "1"}, "spec": {"replicas": 2}});
        let mut of_status = entry("tenantry", json!({"f:status": {"f:x": {}}}));
        of_status["subresource"] = json!("status");
        let mut of_gateway = of_status.clone();
        of_gateway["manager"] = json!("gateway");
        let mut ours = entry("tenantry", json!({"f:data": {"f:a": {}, "f:old": {}}, "f:spec": {"f:replicas": {}}}));
        ours["operation"] = json!("Apply");
        ours["time"] = json!("2026-11-01T00:00:00Z");
        let found = live(
            json!({"metadata": {}, "data": {"a": "1", "b": "2", "old": "3"}, "spec": {"replicas": 2}}),
            json!([ours, entry("x", json!({"f:data": {"f:b": {}}})), of_status, of_gateway]),
        );
        let mut kept = found.clone();
        keep_owners(&mut kept);
        assert!(kept.to_string().len() + 150 < found.to_string().len(), "{kept}");
        let drift = compare(&desired, &found);
        assert_eq!(drift.additions.iter().map(Path::pointer).collect::<Vec<_>>(), ["/data/old", "/data/b"]);
        assert_eq!(compare(&desired, &kept), drift);
        assert_eq!((is_ours(&kept), owns_replicas(&kept)), (true, true));
        assert_eq!(template_is_touched(&kept), template_is_touched(&found));
    }

    #[test]
    fn additions_to_one_list_are_removed_from_its_end() {
        let desired = json!({"spec": {"c": [{"name": "b"}]}});
        let found = live(
            json!({"metadata": {}, "spec": {"c": [{"name": "a"}, {"name": "b"}, {"name": "x"}]}}),
            json!([entry(
                "k",
                json!({"f:spec": {"f:c": {"k:{\"name\":\"a\"}": {".": {}}, "k:{\"name\":\"x\"}": {".": {}}}}})
            )]),
        );
        let pointers: Vec<_> = compare(&desired, &found).additions.iter().map(Path::pointer).collect();
        assert_eq!(pointers, ["/spec/c/2", "/spec/c/0"]);
    }

    #[test]
    fn labels_of_others_stay_and_our_own_stale_ones_go() {
        let desired = json!({"metadata": {"labels": {"a": "1"}}});
        let found = live(
            json!({"metadata": {"labels": {"a": "1", "old": "x", "team": "y"}}}),
            json!([
                entry("tenantry", json!({"f:metadata": {"f:labels": {"f:a": {}, "f:old": {}}}})),
                entry("kubectl-label", json!({"f:metadata": {"f:labels": {"f:team": {}}}})),
            ]),
        );
        let drift = compare(&desired, &found);
        assert!(!drift.missing);
        assert_eq!(drift.additions.iter().map(Path::pointer).collect::<Vec<_>>(), ["/metadata/labels/old"]);
    }

    #[test]
    fn what_was_removed_or_changed_is_missing() {
        let desired = json!({"data": {"a": "1"}});
        assert!(compare(&desired, &json!({"data": {}})).missing);
        assert!(compare(&desired, &json!({"data": {"a": "2"}})).missing);
        assert!(!compare(&desired, &json!({"data": {"a": "1"}})).missing);
    }

    #[test]
    fn keys_of_data_that_somebody_added_are_removed() {
        let desired = json!({"data": {"a": "1"}});
        let found = live(
            json!({"metadata": {}, "data": {"a": "1", "b/c": "2"}}),
            json!([entry("x", json!({"f:data": {"f:b/c": {}}}))]),
        );
        assert_eq!(compare(&desired, &found).additions[0].pointer(), "/data/b~1c");
    }

    #[test]
    fn a_list_that_others_changed_is_overwritten_as_a_whole() {
        let desired = json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}]}});
        let found = live(
            json!({"metadata": {}, "spec": {"externalIPs": ["203.0.113.7"], "ports": [{"port": 81, "protocol": "TCP"}]}}),
            json!([entry(
                "x",
                json!({"f:spec": {
                    "f:externalIPs": {},
                    "f:ports": {"k:{\"port\":81,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}},
                }})
            )]),
        );
        let expected = [
            json!({"op": "replace", "path": "/spec/ports", "value": desired["spec"]["ports"]}),
            json!({"op": "remove", "path": "/spec/externalIPs"}),
        ];
        assert_eq!(overwrite(&desired, &found), expected);
    }

    #[test]
    fn a_selector_that_somebody_narrowed_is_put_back() {
        let desired = json!({"spec": {"podSelector": {}, "policyTypes": ["Egress"]}});
        let body =
            json!({"metadata": {}, "spec": {"podSelector": {"matchLabels": {"a": "b"}}, "policyTypes": ["Egress"]}});
        let apply = |fields: Value| {
            let mut entry = entry("tenantry", fields);
            entry["operation"] = "Apply".into();
            entry
        };
        let theirs = entry("x", json!({"f:spec": {"f:podSelector": {}}}));
        let found = live(body.clone(), json!([apply(json!({"f:spec": {"f:policyTypes": {}}})), theirs.clone()]));
        assert!(compare(&desired, &found).missing);
        // Who applies the very same owns it together with us.
        let both = apply(json!({"f:spec": {"f:podSelector": {}, "f:policyTypes": {}}}));
        let found = live(json!({"metadata": {}, "spec": desired["spec"]}), json!([both, theirs]));
        assert!(compare(&desired, &found).is_none());
    }

    #[test]
    fn a_restart_that_a_person_asked_for_stays() {
        let desired = json!({"spec": {"template": {"metadata": {"labels": {"a": "1"}}}}});
        let annotations = json!({"f:kubectl.kubernetes.io/restartedAt": {}, "f:spy": {}});
        let found = live(
            json!({"metadata": {}, "spec": {"template": {"metadata": {"annotations": {
                "kubectl.kubernetes.io/restartedAt": "2026-11-01T00:00:00Z", "spy": "on",
            }}}}}),
            json!([entry(
                "kubectl-rollout",
                json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": annotations}}}})
            )]),
        );
        let pointers: Vec<_> = compare(&desired, &found).additions.iter().map(Path::pointer).collect();
        assert_eq!(pointers, ["/spec/template/metadata/annotations/spy"]);
    }

    #[test]
    fn status_and_subresources_are_left_alone() {
        let mut scale = entry("kcm", json!({"f:spec": {"f:replicas": {}}}));
        scale["subresource"] = json!("scale");
        let found = live(
            json!({"metadata": {}, "spec": {"replicas": 5}, "status": {"x": 1}}),
            json!([scale, entry("kcm", json!({"f:status": {"f:x": {}}}))]),
        );
        assert!(compare(&json!({"spec": {}}), &found).is_none());
    }

    #[test]
    fn what_the_server_drops_because_it_is_empty_is_not_missing() {
        assert!(compare(&json!({"spec": {"env": [], "x": null, "y": {}}}), &json!({"spec": {}})).is_none());
    }
}
