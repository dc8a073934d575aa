//! How GitOps tools judge an object, by their own rules.

use std::fs;

use kube::{
    Client,
    api::{Patch, PatchParams},
};
use mlua::{Lua, LuaOptions, LuaSerdeExt as _, StdLib, Table};
use serde_json::{Value, json};

use crate::ground::{apply, documents, dynamic, eventually, root};

/// A resource's status by the rules of kstatus (sigs.k8s.io/cli-utils/pkg/kstatus) for kinds
/// that it doesn't know: deletion, generation, then Reconciling, Stalled and Ready.
pub fn kstatus(object: &Value) -> &'static str {
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return "Terminating";
    }
    let observed = &object["status"]["observedGeneration"];
    if !observed.is_null() && *observed != object["metadata"]["generation"] {
        return "InProgress";
    }
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let status = |kind: &str| {
        conditions.iter().find(|condition| condition["type"] == kind).and_then(|condition| condition["status"].as_str())
    };
    match (status("Reconciling"), status("Stalled"), status("Ready")) {
        (Some("True"), ..) => "InProgress",
        (_, Some("True"), _) => "Failed",
        (.., Some("False" | "Unknown")) => "InProgress",
        _ => "Current",
    }
}

/// Argo CD's health of an object and its message, by the script that users paste, in the Lua
/// and with the libraries that Argo CD gives it.
pub fn argo(object: &Value) -> (String, String) {
    let script = fs::read_to_string(root().join("docs/gitops/health.lua")).expect("the script");
    let lua = Lua::new_with(StdLib::NONE, LuaOptions::default()).expect("Lua");
    lua.globals().set("obj", lua.to_value(object).expect("a table")).expect("a global");
    let health: Table = lua.load(script).eval().unwrap_or_else(|error| panic!("{error}"));
    (health.get("status").expect("a status"), health.get("message").expect("a message"))
}

/// What Flux' `healthCheckExprs` for Tenants say: in progress, failed, current. The API server
/// evaluates them, in the same CEL, in a policy that refuses a dry run and says what came out.
pub async fn flux(client: &Client, tenant: &Value) -> (bool, bool, bool) {
    let kustomizations = documents(&root().join("docs/gitops/flux.yaml"));
    let checks = kustomizations.iter().find_map(|one| one.pointer("/spec/healthCheckExprs/0")).expect("expressions");
    assert_eq!((&checks["apiVersion"], &checks["kind"]), (&json!("tenantry.io/v1alpha1"), &json!("Tenant")));
    let expression = |name: &str| {
        let text = checks[name].as_str().expect("an expression");
        let text = text.replace("metadata.", "object.metadata.").replace("status.obs", "object.status.obs");
        format!("({})", text.replace("status.conditions", "object.status.conditions"))
    };
    let message = ["inProgress", "failed", "current"].map(|name| format!("({} ? 'yes' : 'no')", expression(name)));
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "flux-probe"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": ["tenantry.io"], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": ["tenants"],
            }]},
            "matchConditions": [{"name": "probe", "expression": "has(object.metadata.annotations) && 'flux-probe' in object.metadata.annotations"}],
            "validations": [{"expression": "false", "messageExpression": format!("'told: ' + {}", message.join(" + ' ' + "))}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "flux-probe"},
        "spec": {"policyName": "flux-probe", "validationActions": ["Deny"]},
    });
    for object in [&policy, &binding] {
        apply(client, object).await.expect("a policy");
    }
    let name = tenant["metadata"]["name"].as_str().expect("a name");
    let probe = Patch::Merge(json!({"metadata": {"annotations": {"flux-probe": "1"}}}));
    let dry = PatchParams { dry_run: true, ..PatchParams::default() };
    // The API server learns of a policy by watch.
    let told = eventually(async || {
        let refusal = dynamic(client, tenant).patch(name, &dry, &probe).await.err()?.to_string();
        let (_, told) = refusal.split_once("told: ")?;
        Some(told.split_whitespace().take(3).map(|word| word.starts_with("yes")).collect::<Vec<_>>())
    });
    match *told.await.expect("what came out") {
        [in_progress, failed, current] => (in_progress, failed, current),
        ref other => panic!("three answers, not {other:?}"),
    }
}
