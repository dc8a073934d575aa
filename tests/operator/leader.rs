//! Of several operators one leads, and one that only believes so writes nothing.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
};

use devcluster::Options;
use futures::future::join_all;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::ConfigMap};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use tenantry::api::Tenant;

use super::{
    ground::{
        Ground, NAMESPACE, OPERATOR, apply, await_tenant, credentials, eventually, is, ready_tenant, root, tenant,
    },
    verbs::{log_in, ours, patch, place, rows, superuser},
};

fn leases(client: &Client) -> Api<Lease> {
    Api::namespaced(client.clone(), NAMESPACE)
}

/// Who holds the lease, and the number of the term.
async fn leader(client: &Client) -> (String, i32) {
    let lease = leases(client).get_opt("tenantry").await.expect("an answer");
    let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
    (spec.holder_identity.unwrap_or_default(), spec.lease_transitions.unwrap_or_default())
}

/// Waits until somebody leads; the number of the term.
async fn leads(client: &Client, who: &str) -> i32 {
    let found = eventually(async || Some(leader(client).await).filter(|(holder, _)| holder == who)).await;
    found.unwrap_or_else(|| panic!("{who} does not lead")).1
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

async fn all(client: &Client, names: &[String], what: &str, wanted: impl Fn(&Tenant) -> bool + Copy) -> Vec<Tenant> {
    join_all(names.iter().map(|name| await_tenant(client, name, what, wanted))).await
}

fn is_ready(tenant: &Tenant) -> bool {
    is(tenant, "Ready", "True")
}

fn rotated(tenant: &Tenant) -> Option<&str> {
    tenant.status.as_ref()?.database.as_ref()?.rotated.as_deref()
}

/// Waits until the API server has written down all that was answered so far.
async fn audited(ground: &Ground, marker: &str) {
    let maps = Api::<ConfigMap>::namespaced(ground.client.clone(), "default");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": marker}});
    maps.patch(marker, &PatchParams::apply("a-user"), &Patch::Apply(&map)).await.expect("a marker");
    let written = eventually(async || {
        let events = ground.cluster.audit().events(devcluster::AuditMark::default()).expect("events");
        events.iter().any(|event| event.name == marker).then_some(())
    });
    written.await.expect("the marker is written down");
}

/// Waits until neither server has anything of the operators' under way: what a process asked for
/// before it was stopped is done then, and written down. From where on both logs are to be read.
async fn quiet(ground: &Ground, marker: &str) -> (devcluster::AuditMark, u64) {
    let root = superuser(ground, "postgres").await;
    let log = ground.cluster.postgres().log_path();
    let length = || fs::metadata(log).expect("PostgreSQL's log").len();
    let mut looks = 0;
    let quiet = eventually(async || {
        let active = "SELECT FROM pg_stat_activity WHERE application_name = 'tenantry' AND state = 'active'";
        let active = root.query(active, &[]).await.expect("the superuser's session").len();
        let (mark, before) = (ground.cluster.audit().mark().expect("a mark"), length());
        looks += 1;
        audited(ground, &format!("{marker}-{looks}")).await;
        let calls = ground.cluster.audit().events(mark).expect("events");
        let quiet = active == 0 && before == length() && !calls.iter().any(|event| event.user == OPERATOR);
        quiet.then_some((mark, before))
    });
    quiet.await.expect("it becomes quiet")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_held_up_beyond_its_lease_writes_nothing_any_more() {
    let settings = vec![("log_statement".to_owned(), "all".to_owned())];
    let ground = Ground::start(Options { audit: true, postgres_settings: settings, ..Options::default() }).await;
    let client = &ground.client;
    // Not so short that a busy machine takes it away before its time.
    let short = ["--lease-duration", "20s", "--lease-renew-deadline", "16s", "--lease-retry", "500ms"];
    let mut first = ground.operator(&[&["--lease-identity", "first"][..], &short[..]].concat());
    let term = leads(client, "first").await;
    // The second one is held up as well, for a moment, and must not lose the lease by that.
    let second =
        ground.operator(&["--lease-identity", "second", "--lease-duration", "120s", "--lease-renew-deadline", "100s"]);
    second.says(200, "standing by").await;
    assert_eq!(second.metric("tenantry_leader"), Some(0.0));
    ground.examples().await;
    let (old, new) = (names("old", 4), names("new", 24));
    for name in &old {
        ready_tenant(client, name, json!({})).await;
    }
    assert_eq!(first.metric("tenantry_leader"), Some(1.0));

    // In the midst of creating and rotating.
    for name in &new {
        apply(client, &tenant(name, json!({}))).await.expect("a Tenant");
    }
    for name in &old {
        let change = json!({"metadata": {"annotations": {"tenantry.io/rotate": "now-1"}}});
        patch(client, &ours("Tenant", name), &change).await;
    }
    let tenants = Api::<Tenant>::all(client.clone());
    let list = async || tenants.list(&ListParams::default()).await.expect("a list").items;
    let is_new = |tenant: &&Tenant| new.contains(&tenant.name_any());
    let some = eventually(async || list().await.iter().filter(is_new).any(is_ready).then_some(())).await;
    assert!(some.is_some(), "none of the new tenants becomes Ready");
    first.signal("STOP");
    quiet(&ground, "first-is-stopped").await;
    let is_begun = |tenant: &Tenant| tenant.status.as_ref().is_some_and(|status| status.pool.is_some());
    let under_way = list().await.iter().filter(|tenant| is_begun(tenant) && !is_ready(tenant)).count();
    assert!(under_way > 0, "it was stopped too late to be in the midst of anything");

    // The other one takes over and finishes.
    assert_eq!(leads(client, "second").await, term + 1);
    all(client, &new, "Ready", is_ready).await;
    all(client, &old, "rotated", |tenant| rotated(tenant) == Some("now-1") && is_ready(tenant)).await;
    second.says(200, "leading").await;

    // While the new leader stands still, all that is written is the old one's.
    second.signal("STOP");
    let (mark, length) = quiet(&ground, "second-is-stopped").await;
    let log = ground.cluster.postgres().log_path().to_owned();
    first.signal("CONT");
    assert_eq!(first.ended().await, Some(1), "it ends, and says so");
    audited(&ground, "after-the-end").await;
    let calls = ground.cluster.audit().events(mark).expect("events");
    let written: Vec<_> = calls.iter().filter(|event| event.user == OPERATOR && event.is_write()).collect();
    assert!(written.is_empty(), "{written:#?}");
    let mut file = fs::File::open(&log).expect("PostgreSQL's log");
    file.seek(SeekFrom::Start(length)).expect("its end");
    let mut said = String::new();
    file.read_to_string(&mut said).expect("text");
    let sent: Vec<_> = said.lines().filter(|line| line.contains("statement:") || line.contains("execute ")).collect();
    assert!(sent.is_empty(), "{sent:#?}");

    // And the new one goes on.
    second.signal("CONT");
    let last = ready_tenant(client, "last", json!({})).await;
    for tenant in all(client, &[&old[..], &new[..]].concat(), "Ready", is_ready).await.iter().chain([&last]) {
        log_in(&credentials(client, tenant).await).await.expect("the login in the Secret works");
    }
    let (database, _) = place(&last);
    let fence = rows(&superuser(&ground, &database).await, "SELECT fence::text FROM tenantry.database").await;
    assert_eq!(fence, [(term + 1).to_string()]);
    assert_eq!(second.metric("tenantry_leader_term"), Some(f64::from(term + 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_term_begins_and_ends_in_order_and_outlives_its_lease() {
    let ground = Ground::start(Options { audit: true, ..Options::default() }).await;
    let client = &ground.client;
    // So long that whoever takes over can't have waited for its end.
    let long = ["--lease-duration", "600s", "--lease-renew-deadline", "500s", "--lease-retry", "200ms"];
    let operator = |name| ground.operator(&[&["--lease-identity", name][..], &long[..]].concat());
    let mut first = operator("first");
    let term = leads(client, "first").await;
    let second = operator("second");
    second.says(200, "standing by").await;
    ground.examples().await;
    ready_tenant(client, "before", json!({})).await;

    // Asked to end, it finishes what is under way and hands over at once.
    let many = names("many", 12);
    for name in &many {
        apply(client, &tenant(name, json!({}))).await.expect("a Tenant");
    }
    first.signal("TERM");
    assert_eq!(first.ended().await, Some(0));
    assert_eq!(leads(client, "second").await, term + 1);
    all(client, &many, "Ready", is_ready).await;

    // The lease is deleted under its holder: it goes on above its number.
    leases(client).delete("tenantry", &DeleteParams::default()).await.expect("a deletion");
    let again =
        eventually(async || Some(leader(client).await).filter(|(holder, term)| holder == "second" && *term > 0));
    assert_eq!(again.await.expect("the lease is made again").1, term + 2);
    let tenant = ready_tenant(client, "deleted", json!({})).await;
    let root = superuser(&ground, &place(&tenant).0).await;
    let fence = async || rows(&root, "SELECT fence::text FROM tenantry.database").await.remove(0);
    assert_eq!(fence().await, (term + 2).to_string());

    // And while nobody leads: its number begins anew, and rises above what databases remember.
    second.kill();
    leases(client).delete("tenantry", &DeleteParams::default()).await.expect("a deletion");
    let third = operator("third");
    ready_tenant(client, "afterwards", json!({})).await;
    assert_eq!(leader(client).await, ("third".to_owned(), term + 3));
    assert_eq!(fence().await, (term + 3).to_string());

    // Somebody takes the lease: the one that had it ends at once.
    let mut third = third;
    let taken = json!({"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 3}});
    leases(client).patch("tenantry", &PatchParams::default(), &Patch::Merge(&taken)).await.expect("a change");
    assert_eq!(third.ended().await, Some(1));
    drop(operator("fourth"));
    let log = fs::read_to_string(ground.cluster.dir().join(format!("log/operator-{}.log", std::process::id())));
    assert!(log.expect("a log").contains("\"somebody\" holds the lease now"));
    assert!(root_is_clean(&root).await);
}

/// Whether no login is left that a rotation or migration has forgotten.
async fn root_is_clean(root: &tokio_postgres::Client) -> bool {
    let open = "SELECT count(*)::text FROM tenantry.login WHERE state = 'Pending'";
    rows(root, open).await == ["0"]
}

#[test]
fn the_documentation_names_every_flag_of_the_lease() {
    let document = fs::read_to_string(root().join("docs/operations.md")).expect("docs/operations.md");
    for flag in [
        "--leader-election",
        "--lease-name",
        "--lease-namespace",
        "--lease-identity",
        "--lease-duration",
        "--lease-renew-deadline",
        "--lease-retry",
        "--shutdown-grace",
    ] {
        assert!(document.contains(&format!("`{flag}`")), "{flag}");
    }
}
