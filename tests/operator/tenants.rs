//! Pooled tenants from `kubectl apply` to Ready.

use serde_json::json;

use super::ground::{ready_tenant, shared};

#[tokio::test]
async fn a_tenant_becomes_ready() {
    let (_, client) = shared().await;
    let started = std::time::Instant::now();
    let tenant = ready_tenant(&client, "acme", json!({})).await;
    println!("ready after {:?}", started.elapsed());
    let status = tenant.status.expect("a status");
    assert_eq!(status.pool.as_deref(), Some("crm-1"));
    assert_eq!(status.url.as_deref(), Some("https://acme.crm.example.com"));
}
