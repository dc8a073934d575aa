//! What `kubectl` shows, selects and merges.

use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::ground::{api, apply, attempt, client, example, ground, output};

async fn put(kind: &str, name: &str, spec: Value, status: Value) {
    let client = client().await;
    let object = json!({"apiVersion": "tenantry.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    apply(client.clone(), &object, false).await.expect("a good object");
    let status = json!({"apiVersion": "tenantry.io/v1alpha1", "kind": kind, "status": status});
    let params = PatchParams::apply("tenantry");
    api(client, kind).patch_status(name, &params, &Patch::Apply(&status)).await.expect("a good status");
}

async fn remove(kind: &str, name: &str) {
    let client = client().await;
    let params = PatchParams::apply("tenantry");
    let empty = json!({"apiVersion": "tenantry.io/v1alpha1", "kind": kind, "status": {}});
    api(client.clone(), kind).patch_status(name, &params, &Patch::Apply(&empty)).await.expect("an empty status");
    api(client, kind).delete(name, &DeleteParams::default()).await.expect("removed");
}

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({
        "type": kind, "status": status, "reason": reason, "message": "",
        "lastTransitionTime": "2026-11-22T10:00:00Z",
    })
}

/// The cells of the first two lines of a table.
fn table(args: &[&str]) -> (Vec<String>, Vec<String>) {
    let text = output(ground().kubectl().args(args));
    let mut lines = text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    (lines.next().expect("a header"), lines.next().expect("a row"))
}

#[tokio::test]
async fn columns_and_short_names() {
    let spec = example("tenants.yaml", "acme")["spec"].clone();
    let status = json!({
        "tier": "pooled", "pool": "crm-1", "url": "https://shown.crm.example.com",
        "usage": {
            "asOf": "2026-11-05T00:00:00Z",
            "period": {"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
            "meters": [
                {"name": "accounts", "current": 7, "display": "7", "complete": true},
                {"name": "users", "current": 42, "limit": 50, "display": "42/50", "complete": true},
            ],
        },
        "conditions": [condition("Ready", "True", "Ready")],
    });
    put("Tenant", "shown", spec, status).await;
    let (header, row) = table(&["get", "tn", "shown"]);
    assert_eq!(header, ["NAME", "PLAN", "TIER", "READY", "USERS", "AGE"]);
    assert_eq!(row[..5], ["shown", "smb", "pooled", "True", "42/50"]);
    let (header, row) = table(&["get", "tn", "shown", "-o", "wide"]);
    assert_eq!(header, ["NAME", "PLAN", "TIER", "READY", "USERS", "REASON", "POOL", "URL", "AGE"]);
    assert_eq!(row[5..8], ["Ready", "crm-1", "https://shown.crm.example.com"]);
    remove("Tenant", "shown").await;

    let status = json!({"tenants": 0, "capacity": 500, "conditions": [condition("Ready", "False", "Waiting")]});
    put("Pool", "shown", json!({"application": "crm", "server": "main"}), status).await;
    let (header, row) = table(&["get", "tpool", "shown"]);
    assert_eq!(header, ["NAME", "APPLICATION", "SERVER", "READY", "TENANTS", "CAPACITY", "AGE"]);
    assert_eq!(row[..6], ["shown", "crm", "main", "False", "0", "500"]);
    remove("Pool", "shown").await;

    put("Plan", "shown", example("plans.yaml", "smb")["spec"].clone(), json!({"tenants": 0})).await;
    let (header, row) = table(&["get", "tplan", "shown"]);
    assert_eq!(header, ["NAME", "TIER", "CURRENCY", "BASE", "TENANTS", "AGE"]);
    assert_eq!(row[..5], ["shown", "pooled", "KRW", "60000", "0"]);
    remove("Plan", "shown").await;

    let status = json!({"tenants": 0, "pools": 0, "conditions": [condition("Ready", "True", "Ready")]});
    put("Application", "shown", example("application.yaml", "crm")["spec"].clone(), status).await;
    let (header, row) = table(&["get", "tapp", "shown"]);
    assert_eq!(header, ["NAME", "READY", "TENANTS", "POOLS", "AGE"]);
    assert_eq!(row[..4], ["shown", "True", "0", "0"]);
    remove("Application", "shown").await;

    let status = json!({"version": "15.18", "databases": 1, "conditions": [condition("Ready", "True", "Ready")]});
    put("DatabaseServer", "shown", example("server.yaml", "main")["spec"].clone(), status).await;
    let (header, row) = table(&["get", "dbs", "shown"]);
    assert_eq!(header, ["NAME", "READY", "VERSION", "DATABASES", "TENANTS", "AGE"]);
    assert_eq!(row[..5], ["shown", "True", "15.18", "1", "0"]);
    remove("DatabaseServer", "shown").await;
}

#[tokio::test]
async fn one_category_lists_all_five() {
    let text = output(ground().kubectl().args(["api-resources", "--categories=tenantry", "-o", "name"]));
    let mut names: Vec<_> = text.lines().collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "applications.tenantry.io",
            "databaseservers.tenantry.io",
            "plans.tenantry.io",
            "pools.tenantry.io",
            "tenants.tenantry.io"
        ]
    );
}

#[tokio::test]
async fn fields_select() {
    let spec = |plan: &str| json!({"application": "selected", "plan": plan, "tier": "bridge"});
    put("Tenant", "selected-a", spec("a"), json!({})).await;
    put("Tenant", "selected-b", spec("b"), json!({})).await;
    let found = async |kind: &str, selector: &str| -> Vec<String> {
        let list = api(client().await, kind).list(&ListParams::default().fields(selector)).await.expect("a list");
        list.items.into_iter().filter_map(|item| item.metadata.name).collect()
    };
    assert_eq!(found("Tenant", "spec.application=selected").await, ["selected-a", "selected-b"]);
    assert_eq!(found("Tenant", "spec.application=selected,spec.plan=b").await, ["selected-b"]);
    assert_eq!(found("Tenant", "spec.application=selected,spec.tier=bridge").await, ["selected-a", "selected-b"]);
    assert_eq!(found("Tenant", "spec.application=selected,spec.tier=pooled").await, [""; 0]);
    put("Pool", "selected", json!({"application": "selected", "server": "s"}), json!({})).await;
    assert_eq!(found("Pool", "spec.server=s").await, ["selected"]);
    let (success, _, errors) =
        attempt(ground().kubectl().args(["get", "tn", "--field-selector", "spec.suspended=true"]));
    assert!(!success && errors.contains("field label not supported"), "{errors}");
    for (kind, name) in [("Tenant", "selected-a"), ("Tenant", "selected-b"), ("Pool", "selected")] {
        remove(kind, name).await;
    }
}

/// Each writer owns its own conditions; one that a writer leaves out goes.
#[tokio::test]
async fn conditions_are_a_map_by_type() {
    let client = client().await;
    put("Tenant", "merged", json!({"application": "a", "plan": "p"}), json!({})).await;
    let write = async |manager: &str, conditions: Value| {
        let status =
            json!({"apiVersion": "tenantry.io/v1alpha1", "kind": "Tenant", "status": {"conditions": conditions}});
        let params = PatchParams::apply(manager);
        let tenant = api(client.clone(), "Tenant").patch_status("merged", &params, &Patch::Apply(&status)).await;
        let tenant = tenant.expect("a good status");
        let mut types: Vec<_> = tenant.data["status"]["conditions"]
            .as_array()
            .expect("conditions")
            .iter()
            .map(|condition| condition["type"].as_str().expect("a type").to_owned())
            .collect();
        types.sort_unstable();
        types
    };
    assert_eq!(
        write("tenantry", json!([condition("Ready", "False", "A"), condition("Stalled", "True", "B")])).await,
        ["Ready", "Stalled"]
    );
    assert_eq!(write("another", json!([condition("Audited", "True", "C")])).await, ["Audited", "Ready", "Stalled"]);
    assert_eq!(write("tenantry", json!([condition("Ready", "True", "D")])).await, ["Audited", "Ready"]);
    remove("Tenant", "merged").await;
}
