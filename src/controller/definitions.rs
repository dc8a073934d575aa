//! Whether the installed CustomResourceDefinitions have all that this version writes and
//! reads: the API server drops fields that a definition lacks, without a word.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::StreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::watcher::{self, Event},
};
use serde_json::Value;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    api::all_crds,
    cluster::{Watches, events},
};

/// How many missing fields are named.
const NAMED: usize = 3;

/// What is known of the installed definitions.
pub(super) struct Definitions {
    /// What is wrong with each; nothing where it is as it should be.
    faults: Mutex<BTreeMap<String, Option<String>>>,
    current: watch::Sender<bool>,
}

impl Default for Definitions {
    fn default() -> Self {
        let unknown = |crd: CustomResourceDefinition| {
            let name = crd.name_any();
            let fault = format!("it is not known yet whether definition {name} is installed");
            (name, Some(fault))
        };
        Self { faults: Mutex::new(all_crds().into_iter().map(unknown).collect()), current: watch::Sender::new(false) }
    }
}

impl Definitions {
    /// What is wrong, and what to do about it; nothing where all are as they should be.
    pub(super) fn fault(&self) -> Option<String> {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let faults: Vec<&str> = faults.values().filter_map(Option::as_deref).collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }

    /// Waits until all are as they should be.
    pub(super) async fn until_current(&self) {
        // The sender lives as long as this does.
        let _ = self.current.subscribe().wait_for(|current| *current).await;
    }

    fn set(&self, name: &str, fault: Option<String>) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.get(name) != Some(&fault) {
            match &fault {
                Some(fault) => warn!("{fault}"),
                None => info!(definition = name, "has all that this version uses"),
            }
            faults.insert(name.to_owned(), fault);
        }
        self.current.send_replace(faults.values().all(Option::is_none));
    }
}

/// Watches the definitions: one watch for each, since no rule on all of them is needed so.
pub(super) fn watch(client: &Client, watches: &Watches, definitions: &Arc<Definitions>) {
    for expected in all_crds() {
        let name = expected.name_any();
        let api = Api::<CustomResourceDefinition>::all(client.clone());
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut changes = events(api, config, watches.of("CustomResourceDefinition"));
        let definitions = Arc::clone(definitions);
        tokio::spawn(async move {
            let mut listed = None;
            while let Some(event) = changes.next().await {
                let live = match event {
                    Event::Init => {
                        listed = None;
                        continue;
                    }
                    Event::InitApply(live) => {
                        listed = Some(live);
                        continue;
                    }
                    Event::InitDone => listed.take(),
                    Event::Apply(live) => Some(live),
                    Event::Delete(_) => None,
                };
                definitions.set(&name, fault(&expected, live.as_ref()));
            }
        });
    }
}

/// What a definition lacks of what this version uses.
fn fault(expected: &CustomResourceDefinition, live: Option<&CustomResourceDefinition>) -> Option<String> {
    let name = expected.name_any();
    // What Helm installed is Helm's, and nobody else's to change unless by force.
    let remedy = "install this version's definitions (helm upgrade does, or: \
                  tenantry crds | kubectl apply --server-side --force-conflicts -f -)";
    let Some(live) = live else { return Some(format!("definition {name} is not installed: {remedy}")) };
    let missing = missing(expected, live);
    let more = missing.len().saturating_sub(NAMED);
    let named = missing[..missing.len() - more].join(", ");
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let version = env!("CARGO_PKG_VERSION");
    (!missing.is_empty())
        .then(|| format!("definition {name} is older than this operator ({version}); it lacks {named}{more}: {remedy}"))
}

/// The versions, fields and values that a definition lacks, as paths.
fn missing(expected: &CustomResourceDefinition, live: &CustomResourceDefinition) -> Vec<String> {
    let mut missing = Vec::new();
    for version in expected.spec.versions.iter().filter(|version| version.served) {
        let Some(found) = live.spec.versions.iter().find(|found| found.name == version.name && found.served) else {
            missing.push(format!("version {}", version.name));
            continue;
        };
        if version.subresources.as_ref().is_some_and(|it| it.status.is_some())
            && found.subresources.as_ref().is_none_or(|it| it.status.is_none())
        {
            missing.push("subresource status".into());
        }
        let schema = |schema| serde_json::to_value(schema).unwrap_or_default();
        compare(
            &schema(&version.schema)["openAPIV3Schema"],
            &schema(&found.schema)["openAPIV3Schema"],
            "",
            &mut missing,
        );
    }
    missing
}

fn compare(expected: &Value, live: &Value, path: &str, missing: &mut Vec<String>) {
    if live["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    for (name, below) in expected["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match live["properties"].get(name) {
            Some(found) => compare(below, found, &path, missing),
            None => missing.push(path),
        }
    }
    for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let (Some(below), Some(found)) = (expected.get(key), live.get(key)) {
            compare(below, found, &format!("{path}{suffix}"), missing);
        }
    }
    if let (Some(values), Some(known)) = (expected["enum"].as_array(), live["enum"].as_array()) {
        missing.extend(values.iter().filter(|value| !known.contains(value)).map(|value| format!("{path}={value}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant() -> CustomResourceDefinition {
        all_crds().into_iter().find(|crd| crd.name_any() == "tenants.tenantry.io").expect("a definition")
    }

    /// The definition after a change of its first version, as JSON.
    fn changed(change: impl FnOnce(&mut Value)) -> CustomResourceDefinition {
        let mut crd = serde_json::to_value(tenant()).expect("JSON");
        change(&mut crd["spec"]["versions"][0]);
        serde_json::from_value(crd).expect("a definition")
    }

    #[test]
    fn a_definition_that_has_all_or_more_is_current() {
        for crd in all_crds() {
            assert_eq!(fault(&crd, Some(&crd)), None);
        }
        let newer = changed(|version| {
            version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["later"] =
                serde_json::json!({"type": "string"});
        });
        assert_eq!(fault(&tenant(), Some(&newer)), None);
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let take = |pointer: &'static str, name: &'static str| {
            let older = changed(|version| {
                let parent = version.pointer_mut(pointer).and_then(Value::as_object_mut).expect(pointer);
                parent.remove(name).expect(name);
            });
            fault(&tenant(), Some(&older)).expect("something is missing")
        };
        let properties = "/schema/openAPIV3Schema/properties";
        let found = take(properties, "status");
        assert!(found.contains("tenants.tenantry.io is older") && found.contains("it lacks status:"), "{found}");
        assert!(found.contains("helm upgrade"), "{found}");
        let found = take("/schema/openAPIV3Schema/properties/status/properties/conditions/items/properties", "reason");
        assert!(found.contains("it lacks status.conditions[].reason:"), "{found}");
        let found = take("/subresources", "status");
        assert!(found.contains("it lacks subresource status:"), "{found}");
        let none = fault(&tenant(), None).expect("nothing is there");
        assert!(none.contains("is not installed"), "{none}");
        let unserved = fault(&tenant(), Some(&changed(|version| version["served"] = false.into()))).expect("a fault");
        assert!(unserved.contains("it lacks version v1alpha1:"), "{unserved}");
        let empty = changed(|version| {
            version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"] = serde_json::json!({});
        });
        let found = fault(&tenant(), Some(&empty)).expect("much is missing");
        assert!(found.contains(" more: "), "no list of everything: {found}");
    }

    #[tokio::test]
    async fn nothing_runs_before_all_are_known_to_be_current() {
        let definitions = Definitions::default();
        assert!(definitions.fault().is_some_and(|fault| fault.contains("not known yet")));
        for crd in all_crds() {
            assert!(definitions.fault().is_some());
            definitions.set(&crd.name_any(), None);
        }
        definitions.until_current().await;
        assert_eq!(definitions.fault(), None);
        definitions.set("tenants.tenantry.io", Some("gone".into()));
        assert_eq!(definitions.fault(), Some("gone".into()));
    }
}
