//! While a spec, or what it refers to, has a fault, what ran before is looked after as ever: it
//! is repaired, suspended and rotated. Only what the fault is about stays as it is.

use kube::Client;
use serde_json::{Value, json};

use super::{
    bridge::bridge,
    dedicated::dedicated,
    drift::{Child, add, comes_back, replace},
    ground::{NAMESPACE, apply, await_tenant, credentials, eventually, is, ready_tenant, shared, tenant},
    steps::{Running, healed, migrations, plan, route, stalled},
    verbs::{application, await_condition, delete, log_in, named, of, ours, patch, place, read, web},
};

fn deny(namespace: &str) -> Child {
    let object = named("networking.k8s.io/v1", "NetworkPolicy", Some(namespace), "default-deny");
    Child { object, changes: vec![add("/spec/egress", json!([{}]))] }
}

fn secret(namespace: &str, tenant: &str) -> Child {
    Child { object: named("v1", "Secret", Some(namespace), &format!("{tenant}-database")), changes: Vec::new() }
}

fn deployment(namespace: &str) -> Value {
    named("apps/v1", "Deployment", Some(namespace), "web")
}

/// A container that somebody adds to a Deployment, or an image that somebody changes.
fn spies() -> Vec<Value> {
    let pod = "/spec/template/spec";
    vec![
        add(&format!("{pod}/containers/-"), json!({"name": "spy", "image": "registry.example.com/spy:1"})),
        replace(&format!("{pod}/containers/0/image"), "registry.example.com/spy:1"),
    ]
}

/// A leak: the old login is closed at once, and the Secret has one that works.
async fn rotates(client: &Client, name: &str) {
    let before = await_tenant(client, name, "there", |_| true).await;
    let old = credentials(client, &before).await;
    log_in(&old).await.expect("the login in the Secret works");
    let asked = json!({"metadata": {"annotations": {"tenantry.io/rotate": "now-leaked"}}});
    patch(client, &ours("Tenant", name), &asked).await;
    let rotated = eventually(async || {
        let new = credentials(client, &before).await;
        (new["password"] != old["password"] && log_in(&old).await.is_err() && log_in(&new).await.is_ok()).then_some(())
    })
    .await;
    assert!(rotated.is_some(), "{name} is not rotated");
}

/// Suspended, it is locked out and its route goes; both come back.
async fn suspends(client: &Client, name: &str) {
    let before = await_tenant(client, name, "there", |_| true).await;
    let (subject, route) = (ours("Tenant", name), route(&before));
    for suspended in [true, false] {
        patch(client, &subject, &json!({"spec": {"suspended": suspended}})).await;
        let done = eventually(async || {
            let is_open = log_in(&credentials(client, &before).await).await.is_ok();
            (is_open != suspended && read(client, &route).await.is_some() != suspended).then_some(())
        })
        .await;
        assert!(done.is_some(), "{name} with suspended: {suspended}");
    }
}

/// Waits until a Deployment wants so many replicas.
async fn wants(client: &Client, deployment: &Value, replicas: i64) {
    let found = eventually(async || (read(client, deployment).await?["spec"]["replicas"] == replicas).then_some(()));
    assert!(found.await.is_some(), "{:#?}", read(client, deployment).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_tenant_whose_quota_became_too_small() {
    let (_, client) = shared().await;
    application(&client, "squeezed", json!({})).await;
    plan(&client, "squeezed", json!({"quota": {"requests.cpu": "2"}})).await;
    let spec = bridge("squeezed", json!({"spec": {"plan": "squeezed"}}));
    let ready = ready_tenant(&client, "squeezed", spec).await;
    let (_, namespace) = place(&ready);
    let web = deployment(&namespace);
    let quota = named("v1", "ResourceQuota", Some(&namespace), "tenantry");
    let before = read(&client, &quota).await.expect("a quota");
    plan(&client, "squeezed", json!({"quota": {"requests.cpu": "1m"}})).await;
    stalled(&client, "squeezed", "QuotaTooSmall", &["1m"]).await;

    let account =
        Child { object: named("v1", "ServiceAccount", Some(&namespace), "tenantry-workload"), changes: vec![] };
    let pods = Child { object: web.clone(), changes: spies() };
    for child in [deny(&namespace), account, pods, secret(&namespace, "squeezed")] {
        comes_back(&client, &child).await;
    }
    rotates(&client, "squeezed").await;
    patch(&client, &ours("Tenant", "squeezed"), &json!({"spec": {"suspended": true}})).await;
    wants(&client, &web, 0).await;
    suspends(&client, "squeezed").await;
    wants(&client, &web, 1).await;
    // More than there is room for is not asked for, however often the tenant is looked at.
    let more = json!({"spec": {"overrides": [{"component": "web", "replicas": 9}]}});
    patch(&client, &ours("Tenant", "squeezed"), &more).await;
    stalled(&client, "squeezed", "QuotaTooSmall", &[]).await;
    await_tenant(&client, "squeezed", "looked at", |tenant| is(tenant, "WorkloadReady", "True")).await;
    wants(&client, &web, 1).await;
    assert_eq!(read(&client, &quota).await.expect("a quota")["spec"], before["spec"], "the quota that it had");
    patch(&client, &ours("Tenant", "squeezed"), &json!({"spec": {"overrides": null}})).await;
    plan(&client, "squeezed", json!({"quota": {"requests.cpu": "3"}})).await;
    healed(&client, "squeezed").await;
    assert_eq!(read(&client, &quota).await.expect("a quota")["spec"]["hard"]["requests.cpu"], "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooled_tenant_whose_spec_and_plan_are_at_fault() {
    let (_, client) = shared().await;
    application(&client, "flawed", json!({})).await;
    plan(&client, "flawed", json!({"allowedTiers": ["pooled", "bridge"]})).await;
    let subject = ours("Tenant", "flawed");
    let ready = ready_tenant(&client, "flawed", of("flawed", json!({"spec": {"plan": "flawed"}}))).await;
    let (_, namespace) = place(&ready);
    let faults = [
        ("TierChange", subject.clone(), json!({"tier": "bridge"}), json!({"tier": null})),
        ("UnknownPlan", subject.clone(), json!({"plan": "gone"}), json!({"plan": "flawed"})),
        (
            "UndeclaredMeter",
            ours("Plan", "flawed"),
            json!({"limits": {"seats": {"max": 9, "policy": "Hard"}}}),
            json!({"limits": {"seats": null}}),
        ),
    ];
    for (reason, object, fault, mended) in faults {
        patch(&client, &object, &json!({"spec": fault})).await;
        stalled(&client, "flawed", reason, &[]).await;
        comes_back(&client, &secret(&namespace, "flawed")).await;
        suspends(&client, "flawed").await;
        if reason == "UnknownPlan" {
            rotates(&client, "flawed").await;
        }
        let still = stalled(&client, "flawed", reason, &[]).await;
        assert_eq!(place(&still), place(&ready));
        assert_eq!(still.status.as_ref().and_then(|status| status.plan.as_deref()), Some("flawed"));
        patch(&client, &object, &json!({"spec": mended})).await;
        healed(&client, "flawed").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_stay_while_one_is_somebody_elses() {
    let (_, client) = shared().await;
    application(&client, "hosting", json!({})).await;
    let with = |hosts: &[&str]| bridge("hosting", json!({"spec": {"hosts": hosts}}));
    ready_tenant(&client, "host-a", with(&["first.hosting.example"])).await;
    let ready = ready_tenant(&client, "host-b", with(&["second.hosting.example"])).await;
    let had = json!(["host-b.hosting.example.com", "second.hosting.example"]);
    assert_eq!(json!(ready.status.as_ref().and_then(|status| status.hosts.clone())), had);
    patch(&client, &ours("Tenant", "host-b"), &json!({"spec": {"hosts": ["first.hosting.example"]}})).await;
    stalled(&client, "host-b", "HostTaken", &[]).await;
    comes_back(&client, &secret(&place(&ready).1, "host-b")).await;
    comes_back(&client, &Child { object: route(&ready), changes: vec![] }).await;
    assert_eq!(read(&client, &route(&ready)).await.expect("a route")["spec"]["hostnames"], had);
    // What it no longer asks for, somebody else may have.
    ready_tenant(&client, "host-c", with(&["second.hosting.example"])).await;
    rotates(&client, "host-b").await;
    let left = eventually(async || {
        let hosts = read(&client, &route(&ready)).await?["spec"]["hostnames"].clone();
        (hosts == json!(["host-b.hosting.example.com"])).then_some(())
    });
    assert!(left.await.is_some(), "two tenants have one host");
    patch(&client, &ours("Tenant", "host-b"), &json!({"spec": {"hosts": null}})).await;
    healed(&client, "host-b").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_can_not_be_used_takes_nothing_from_who_runs() {
    let (_, client) = shared().await;
    application(&client, "mistyped", json!({"migrations": null})).await;
    let (own, pooled) = tokio::join!(
        ready_tenant(&client, "mistyped-b", bridge("mistyped", json!({}))),
        ready_tenant(&client, "mistyped-p", of("mistyped", json!({}))),
    );
    let mut mistyped = web();
    mistyped["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = "eighty".into();
    application(&client, "mistyped", json!({"components": [mistyped], "migrations": null})).await;
    await_condition(&client, &ours("Tenant", "mistyped-b"), "RolledOut", "False", "eighty").await;
    await_condition(&client, &ours("Pool", "mistyped-1"), "Stalled", "True", "eighty").await;
    // Ready in each tier alike: the Application says that it is Stalled.
    healed(&client, "mistyped-p").await;
    healed(&client, "mistyped-b").await;
    for namespace in [&place(&own).1, &place(&pooled).1] {
        let service = Child { object: named("v1", "Service", Some(namespace), "web"), changes: vec![] };
        let rights = named("rbac.authorization.k8s.io/v1", "RoleBinding", Some(namespace), "tenantry-namespace");
        for child in [deny(namespace), service, Child { object: rights, changes: vec![] }] {
            comes_back(&client, &child).await;
        }
        // What was applied last is known as long as the Deployment is there.
        let web = deployment(namespace);
        for change in spies() {
            let before = read(&client, &web).await.expect("a Deployment")["spec"]["template"].clone();
            super::drift::edit(&client, &web, &change).await;
            let back = eventually(async || (read(&client, &web).await?["spec"]["template"] == before).then_some(()));
            assert!(back.await.is_some(), "{change} stays in {namespace}");
        }
    }
    comes_back(&client, &secret(&place(&pooled).1, "mistyped-p")).await;
    patch(&client, &ours("Tenant", "mistyped-b"), &json!({"spec": {"suspended": true}})).await;
    wants(&client, &deployment(&place(&own).1), 0).await;
    patch(&client, &ours("Tenant", "mistyped-b"), &json!({"spec": {"suspended": null}})).await;
    healed(&client, "mistyped-b").await;
    // A newcomer can't start, and says why.
    apply(&client, &tenant("mistyped-c", bridge("mistyped", json!({})))).await.expect("a Tenant");
    stalled(&client, "mistyped-c", "InvalidTemplate", &["eighty"]).await;
    assert!(read(&client, &named("v1", "Namespace", None, "tenant-mistyped-c")).await.is_none(), "something was made");
    application(&client, "mistyped", json!({"migrations": null})).await;
    for name in ["mistyped-b", "mistyped-c", "mistyped-p"] {
        await_condition(&client, &ours("Tenant", name), "Ready", "True", "").await;
    }
    await_condition(&client, &ours("Tenant", "mistyped-b"), "RolledOut", "True", "").await;
    await_condition(&client, &ours("Pool", "mistyped-1"), "Ready", "True", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_more_pools_and_a_shared_object_that_went() {
    let (ground, client) = shared().await;
    ground.server(&client, "closing", json!({})).await;
    let map = named("v1", "ConfigMap", Some(NAMESPACE), "closing-settings");
    let mut full = map.clone();
    full["data"] = json!({"colour": "blue"});
    apply(&client, &full).await.expect("a ConfigMap");
    let servers = json!({"servers": ["closing"]});
    let more = json!({
        "database": {"pooled": servers, "bridge": servers},
        "shared": {"configMaps": ["closing-settings"]},
        "migrations": null,
    });
    application(&client, "closing", more).await;
    let (own, pooled) = tokio::join!(
        ready_tenant(&client, "closing-b", bridge("closing", json!({}))),
        ready_tenant(&client, "closing-p", of("closing", json!({}))),
    );
    let namespaces = [place(&own).1, place(&pooled).1];
    let copies = namespaces.each_ref().map(|name| named("v1", "ConfigMap", Some(name), "closing-settings"));
    // A copy is kept equal in a namespace of a tenant's own, too.
    patch(&client, &map, &json!({"data": {"colour": null, "shape": "round"}})).await;
    for copy in &copies {
        let equal =
            eventually(async || (read(&client, copy).await?["data"] == json!({"shape": "round"})).then_some(()));
        assert!(equal.await.is_some(), "{:#?}", read(&client, copy).await);
    }
    delete(&client, &map).await;
    await_condition(&client, &ours("Pool", "closing-1"), "WorkloadReady", "False", "closing-settings").await;
    stalled(&client, "closing-b", "SharedObjectMissing", &["Application closing: spec.shared.configMaps[0]"]).await;
    patch(&client, &ours("DatabaseServer", "closing"), &json!({"spec": {"accepts": ["dedicated"]}})).await;
    await_condition(&client, &ours("Pool", "closing-1"), "Stalled", "True", "spec.accepts").await;
    for name in ["closing-b", "closing-p"] {
        stalled(&client, name, "NoServerForTier", &["spec.accepts"]).await;
    }
    for namespace in &namespaces {
        comes_back(&client, &deny(namespace)).await;
        comes_back(&client, &Child { object: deployment(namespace), changes: spies() }).await;
    }
    comes_back(&client, &secret(&namespaces[0], "closing-b")).await;
    comes_back(&client, &secret(&namespaces[1], "closing-p")).await;
    for copy in &copies {
        assert_eq!(read(&client, copy).await.expect("the copy stays")["data"], json!({"shape": "round"}));
    }
    patch(&client, &ours("DatabaseServer", "closing"), &json!({"spec": {"accepts": null}})).await;
    apply(&client, &full).await.expect("a ConfigMap");
    for name in ["closing-b", "closing-p"] {
        healed(&client, name).await;
    }
    await_condition(&client, &ours("Pool", "closing-1"), "Ready", "True", "").await;
}

#[tokio::test]
async fn a_server_of_ones_own_is_refused_where_the_data_is_on_a_shared_one() {
    let (ground, client) = shared().await;
    ground.server(&client, "common", json!({})).await;
    let placed = |placement: &str| json!({"database": {"dedicated": {"servers": ["common"], "placement": placement}}, "migrations": null});
    application(&client, "promoted", placed("Database")).await;
    let ready = ready_tenant(&client, "promoted", dedicated("promoted", json!({}))).await;
    let running = Running::of(&client, &ready).await;
    application(&client, "promoted", placed("Server")).await;
    let says = ["spec.database.dedicated.placement", "DatabaseServer common", "set the placement back to Database"];
    let refused = stalled(&client, "promoted", "PlacementChange", &says).await;
    assert_eq!(place(&refused), place(&ready));
    running.assert_untouched(&client, &refused).await;
    comes_back(&client, &deny(&place(&ready).1)).await;
    // Another one that is reserved for it changes nothing for the data that there is.
    ground.server(&client, "promoted-own", json!({"reservedFor": "promoted"})).await;
    let servers = json!({"servers": ["common", "promoted-own"], "placement": "Server"});
    application(&client, "promoted", json!({"database": {"dedicated": servers}, "migrations": null})).await;
    stalled(&client, "promoted", "PlacementChange", &says).await;
    application(&client, "promoted", placed("Database")).await;
    let tenant = healed(&client, "promoted").await;
    running.assert_untouched(&client, &tenant).await;
}

#[tokio::test]
async fn a_tenant_that_was_suspended_before_its_tables_were_there_waits_for_them_still() {
    let (_, client) = shared().await;
    apply(&client, &migrations("drowsy", &[("001.sql", "SELECT 1 / 0")])).await.expect("a ConfigMap");
    application(&client, "drowsy", json!({"migrations": {"sql": {"configMaps": [{"name": "drowsy"}]}}})).await;
    apply(&client, &tenant("drowsy", bridge("drowsy", json!({})))).await.expect("a Tenant");
    stalled(&client, "drowsy", "MigrationFailed", &["001.sql"]).await;
    for suspended in [true, false] {
        patch(&client, &ours("Tenant", "drowsy"), &json!({"spec": {"suspended": suspended}})).await;
        let says = "once all that they need";
        await_condition(&client, &ours("Tenant", "drowsy"), "WorkloadReady", "False", says).await;
    }
    assert!(read(&client, &deployment("tenant-drowsy")).await.is_none(), "pods run without their tables");
    let fixed = migrations("drowsy", &[("001.sql", "CREATE TABLE users (id bigint PRIMARY KEY)")]);
    apply(&client, &fixed).await.expect("a ConfigMap");
    healed(&client, "drowsy").await;
}
