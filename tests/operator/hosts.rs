//! Who gets a host: the oldest Tenant that asks for it, and nobody a foreign one.

use serde_json::{Value, json};

use super::{
    ground::{NAMESPACE, apply, create, delete_tenant, ready_tenant, shared, tenant},
    steps::{Running, healed, route, stalled},
    verbs::{application, delete, named, ours, patch, read},
};

fn hosts(hosts: &[&str]) -> Value {
    json!({"spec": {"hosts": hosts}})
}

fn foreign(name: &str, host: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"hostnames": [host]},
    })
}

#[tokio::test]
async fn the_oldest_tenant_keeps_a_host_and_the_next_gets_it_after() {
    let (_, client) = shared().await;
    ready_tenant(&client, "older", hosts(&["crm.older.example"])).await;
    // Times of creation have whole seconds, and equally old ones are told apart by name.
    let younger = ready_tenant(&client, "younger", hosts(&["crm.younger.example"])).await;
    let running = Running::of(&client, &younger).await;
    patch(&client, &ours("Tenant", "younger"), &hosts(&["crm.younger.example", "crm.older.example"])).await;
    let says = "host crm.older.example belongs to Tenant older, which is older: remove it here, or there first";
    let tenant = stalled(&client, "younger", "HostTaken", &[says]).await;
    running.assert_untouched(&client, &tenant).await;

    delete_tenant(&client, "older").await;
    let tenant = healed(&client, "younger").await;
    let route = read(&client, &route(&tenant)).await.expect("a route");
    let hosts = ["younger.crm.example.com", "crm.younger.example", "crm.older.example"];
    assert_eq!(route["spec"]["hostnames"], json!(hosts));
    let reference = tenant.status.expect("a status").database.expect("a place").secret_ref.expect("a Secret");
    let secret = named("v1", "Secret", Some(&reference.namespace), &reference.name);
    let secret = read(&client, &secret).await.expect("a Secret");
    let annotated = secret["metadata"]["annotations"]["tenantry.io/hosts"].as_str().expect("the hosts");
    assert!(hosts.iter().all(|host| annotated.contains(host)), "{annotated}");
}

#[tokio::test]
async fn a_host_under_an_applications_domain_is_given_out_by_names_alone() {
    let (_, client) = shared().await;
    let ready = ready_tenant(&client, "squatter", hosts(&["a.later-domain.example.com"])).await;
    let running = Running::of(&client, &ready).await;
    patch(&client, &ours("Tenant", "squatter"), &hosts(&["victim.crm.example.com"])).await;
    let says = "spec.hosts[0]: host victim.crm.example.com is under crm.example.com, the domain of Application crm, \
                whose hosts are given out by tenants' names: remove it, or use a domain of the tenant's own";
    let tenant = stalled(&client, "squatter", "HostUnderApplicationDomain", &[says]).await;
    running.assert_untouched(&client, &tenant).await;
    patch(&client, &ours("Tenant", "squatter"), &hosts(&["a.later-domain.example.com"])).await;
    healed(&client, "squatter").await;

    // The same with a domain that comes, and goes again.
    application(&client, "later-domain", json!({})).await;
    let says = "the domain of Application later-domain";
    let tenant = stalled(&client, "squatter", "HostUnderApplicationDomain", &[says]).await;
    running.assert_untouched(&client, &tenant).await;
    delete(&client, &ours("Application", "later-domain")).await;
    let tenant = healed(&client, "squatter").await;
    running.assert_untouched(&client, &tenant).await;
}

#[tokio::test]
async fn a_host_of_a_foreign_route_is_not_taken_over() {
    let (_, client) = shared().await;
    create(&client, &foreign("front", "shop.foreign.example")).await;
    // For a new Tenant,
    apply(&client, &tenant("newcomer", hosts(&["shop.foreign.example"]))).await.expect("a Tenant");
    let says = "host shop.foreign.example is served by HTTPRoute tenantry-system/front, which is not Tenantry's";
    stalled(&client, "newcomer", "HostTaken", &[says]).await;
    // and for one that runs and has a route that leads somewhere.
    let ready = ready_tenant(&client, "resident", json!({})).await;
    let running = Running::of(&client, &ready).await;
    patch(&client, &ours("Tenant", "resident"), &hosts(&["shop.foreign.example"])).await;
    let tenant = stalled(&client, "resident", "HostTaken", &[says]).await;
    running.assert_untouched(&client, &tenant).await;
    // Looked at again for another reason, it is no more the tenant's than before.
    patch(&client, &ours("Tenant", "resident"), &json!({"spec": {"displayName": "Resident"}})).await;
    let tenant = stalled(&client, "resident", "HostTaken", &[says]).await;
    running.assert_untouched(&client, &tenant).await;

    delete(&client, &foreign("front", "shop.foreign.example")).await;
    healed(&client, "newcomer").await;
    let says = "host shop.foreign.example belongs to Tenant newcomer, which is older";
    stalled(&client, "resident", "HostTaken", &[says]).await;
}

#[tokio::test]
async fn a_foreign_route_that_comes_later_takes_no_host_away() {
    let (_, client) = shared().await;
    let ready = ready_tenant(&client, "settled", hosts(&["settled.foreign.example"])).await;
    let running = Running::of(&client, &ready).await;
    create(&client, &foreign("intruder", "settled.foreign.example")).await;
    // By the time that the operator knows a route that was made after it, it knows this one.
    create(&client, &foreign("intruder-too", "probe.foreign.example")).await;
    apply(&client, &tenant("probe", hosts(&["probe.foreign.example"]))).await.expect("a Tenant");
    stalled(&client, "probe", "HostTaken", &["probe.foreign.example"]).await;
    // A change of the spec is a new generation, which no route has been made for yet.
    patch(&client, &ours("Tenant", "settled"), &json!({"spec": {"displayName": "Settled"}})).await;
    let tenant = healed(&client, "settled").await;
    running.assert_untouched(&client, &tenant).await;
}
