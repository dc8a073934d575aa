//! Tenants of tier bridge: compute and a namespace of their own, a schema in a database that
//! they share.

use kube::Client;
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    ground::{condition, credentials, ready_tenant, shared},
    verbs::{application, id, log_in, named, of, place, read, rows, superuser},
};

/// What a tenant of tier bridge is made of, beside the spec's `more`.
pub fn bridge(application: &str, more: Value) -> Value {
    let mut spec = of(application, json!({"spec": {"tier": "bridge"}}));
    super::ground::merge(&mut spec, more);
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn bridge_tenants_share_a_database_and_nothing_else() {
    let (ground, client) = shared().await;
    application(&client, "across", json!({})).await;
    let first = ready_tenant(&client, "across-a", bridge("across", json!({}))).await;
    let second = ready_tenant(&client, "across-b", bridge("across", json!({}))).await;
    for (tenant, name) in [(&first, "across-a"), (&second, "across-b")] {
        assert_eq!(place(tenant), ("bridge_across_1".to_owned(), format!("tenant-{name}")));
        let status = tenant.status.as_ref().expect("a status");
        assert_eq!(status.pool, None);
        println!("{}", serde_json::to_string_pretty(&status.conditions).unwrap());
    }
}
