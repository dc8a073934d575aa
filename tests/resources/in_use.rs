//! What Tenants use can't be deleted under them, and nothing else is held up by that.

use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::ground::{api, apply, attempt, client, example, ground, install, output, with_chart};

fn object(kind: &str, name: &str) -> Value {
    let mut object = match kind {
        "Plan" => example("plans.yaml", "smb"),
        "Application" => example("application.yaml", "crm"),
        "DatabaseServer" => example("server.yaml", "main"),
        _ => {
            json!({"apiVersion": "tenantry.io/v1alpha1", "kind": "Pool", "spec": {"application": "crm", "server": "main"}})
        }
    };
    object["metadata"] = json!({"name": name, "labels": {"test": "in-use"}});
    object
}

async fn count(client: kube::Client, kind: &str, name: &str, tenants: i64) {
    let status = json!({"status": {"tenants": tenants}});
    let api = api(client, kind);
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.expect("a status");
}

#[tokio::test]
async fn deleting_what_tenants_use_is_refused() {
    for (kind, advice) in [
        ("Plan", "move them to another Plan (spec.plan) or delete them first"),
        ("Application", "delete them first"),
        ("DatabaseServer", "delete them or move them elsewhere first"),
        ("Pool", "delete them or move them elsewhere first"),
    ] {
        let client = client().await;
        apply(client.clone(), &object(kind, "used"), false).await.expect("a good object");
        let api = api(client.clone(), kind);
        for (tenants, words) in [(1, "1 Tenant"), (3, "3 Tenants")] {
            count(client.clone(), kind, "used", tenants).await;
            let refusal = api.delete("used", &DeleteParams::default()).await.expect_err("it is in use");
            let says = format!("{kind} used is used by {words}: {advice}");
            assert!(refusal.to_string().contains(&says), "should say: {says}\nbut says: {refusal}");
        }
        let all = ListParams::default().labels("test=in-use");
        api.delete_collection(&DeleteParams::default(), &all).await.expect_err("nor all at once");
        api.get("used").await.expect("it is still there");

        // A finalizer, a change of spec or status are no deletion.
        let finalizer = json!({"metadata": {"finalizers": ["tenantry.io/finalizer"]}});
        api.patch("used", &PatchParams::default(), &Patch::Merge(&finalizer)).await.expect("updates pass");
        let finalizer = json!({"metadata": {"finalizers": []}});
        api.patch("used", &PatchParams::default(), &Patch::Merge(&finalizer)).await.expect("updates pass");

        count(client, kind, "used", 0).await;
        api.delete("used", &DeleteParams::default()).await.expect("nobody uses it any more");
    }
}

#[tokio::test]
async fn the_operator_itself_deletes_no_pool() {
    let client = client().await;
    apply(client.clone(), &object("Pool", "full"), false).await.expect("a good Pool");
    let operator = ground().service_account_client("tenantry-system", "tenantry").await.expect("the operator's client");
    let refusal = api(operator, "Pool").delete("full", &DeleteParams::default()).await.expect_err("it has no right to");
    assert!(refusal.to_string().contains("cannot delete resource \"pools\""), "{refusal}");
    api(client, "Pool").delete("full", &DeleteParams::default()).await.expect("a person does, once it is empty");
}

/// Uninstalling keeps every definition and object; deleting a definition goes through
/// although its objects are in use; and the chart can be installed again.
#[tokio::test]
async fn a_teardown_is_not_held_up() {
    let ground = with_chart();
    let client = ground.client().await.expect("a client");
    apply(client.clone(), &object("Plan", "used"), false).await.expect("a good Plan");
    count(client.clone(), "Plan", "used", 3).await;

    output(ground.helm().args(["uninstall", "tenantry", "--namespace", "tenantry-system"]));
    api(client.clone(), "Plan").get("used").await.expect("uninstalling deletes no customer");
    install(&ground);
    api(client.clone(), "Plan").get("used").await.expect("nor does installing again");

    let (success, _, errors) = attempt(ground.kubectl().args(["delete", "plan", "used"]));
    assert!(!success && errors.contains("Plan used is used by 3 Tenants"), "{errors}");
    output(ground.kubectl().args(["delete", "crd", "plans.tenantry.io", "--timeout=60s"]));
}
