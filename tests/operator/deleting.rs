//! Tenants that are deleted, taken back, or whose status is lost.

use kube::{Api, api::DeleteParams};
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    ground::{apply, await_tenant, credentials, delete_tenant, dynamic, eventually, is, ready_tenant, shared, tenant},
    verbs::{
        application, await_condition, delete, id, log_in, named, of, ours, patch, patch_status, place, read, rows,
        superuser, without_nulls,
    },
};

/// Puts a user into a tenant's own table, and counts it.
async fn add_user(client: &kube::Client, tenant: &Tenant, email: &str) {
    let session = log_in(&credentials(client, tenant).await).await.expect("the tenant logs in");
    session.execute("INSERT INTO users (email, name) VALUES ($1, 'A User')", &[&email]).await.expect("a row");
    session.query("SELECT record_usage('users', 1, $1)", &[&email]).await.expect("counted");
}

async fn users(client: &kube::Client, tenant: &Tenant) -> Vec<String> {
    let session = log_in(&credentials(client, tenant).await).await.expect("the tenant logs in");
    rows(&session, "SELECT email FROM users ORDER BY 1").await
}

fn secret_of(tenant: &Tenant) -> Value {
    named("v1", "Secret", Some(&place(tenant).1), &format!("{}-database", name(tenant)))
}

fn route_of(tenant: &Tenant) -> Value {
    named("gateway.networking.k8s.io/v1", "HTTPRoute", Some(&place(tenant).1), name(tenant))
}

fn name(tenant: &Tenant) -> &str {
    tenant.metadata.name.as_deref().expect("a name")
}

fn uid(tenant: &Tenant) -> &str {
    tenant.metadata.uid.as_deref().expect("a UID")
}

/// Roles, schemas and databases whose names begin with a tenant's id.
async fn names_in_postgres(admin: &tokio_postgres::Client, tenant: &Tenant) -> Vec<String> {
    let id = id(tenant);
    rows(
        admin,
        &format!(
            "SELECT rolname::text || CASE WHEN rolcanlogin THEN ' logs in' ELSE '' END FROM pg_roles WHERE rolname ~ '{id}'
             UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname ~ '{id}' ORDER BY 1"
        ),
    )
    .await
}

#[tokio::test]
async fn retain_keeps_the_data_locked_and_delete_leaves_nothing_and_neighbours_work_on() {
    let (ground, client) = shared().await;
    application(&client, "leaving", json!({})).await;
    let tenants = futures::future::join_all(["x", "xy", "x-y", "x-yz"].map(|name| {
        let policy = if name == "xy" { "Delete" } else { "Retain" };
        ready_tenant(&client, name, of("leaving", json!({"spec": {"deletionPolicy": policy}})))
    }))
    .await;
    let [kept, dropped, neighbour, silent] = &tenants[..] else { unreachable!("four tenants") };
    for tenant in &tenants[..3] {
        add_user(&client, tenant, &format!("one@{}.example", name(tenant))).await;
    }
    let (database, _) = place(kept);
    let admin = superuser(ground, &database).await;
    let session = log_in(&credentials(&client, kept).await).await.expect("a session");
    let old = credentials(&client, kept).await;

    delete_tenant(&client, "x").await;
    assert!(session.query("SELECT 1", &[]).await.is_err(), "its session was ended");
    assert!(log_in(&old).await.is_err(), "its logins are locked");
    let left = names_in_postgres(&admin, kept).await;
    assert!(left.contains(&format!("schema d_{}", id(kept))), "the schema is renamed: {left:?}");
    assert!(!left.iter().any(|name| name.ends_with("logs in")), "{left:?}");
    let email = format!("SELECT email FROM d_{}.users", id(kept));
    assert_eq!(rows(&admin, &email).await, ["one@x.example"], "the data is there");
    assert_eq!((read(&client, &secret_of(kept)).await, read(&client, &route_of(kept)).await), (None, None));

    delete_tenant(&client, "xy").await;
    assert_eq!(names_in_postgres(&admin, dropped).await, [""; 0], "no role and no schema is left");
    let record = |tenant: &Tenant| format!("SELECT state FROM tenantry.tenant WHERE id = '{}'", id(tenant));
    let unsent = format!("SELECT meter FROM tenantry.outbox WHERE tenant = '{}' AND acked_at IS NULL", id(dropped));
    assert_eq!(rows(&admin, &unsent).await, ["users"], "what was not sent yet is kept");
    assert_eq!(rows(&admin, &record(dropped)).await, ["Dropped"], "and whose it is");
    assert_eq!((read(&client, &secret_of(dropped)).await, read(&client, &route_of(dropped)).await), (None, None));

    // A tenant that never counted anything leaves no record either.
    patch(&client, &ours("Tenant", "x-yz"), &json!({"spec": {"deletionPolicy": "Delete"}})).await;
    delete_tenant(&client, "x-yz").await;
    assert_eq!(names_in_postgres(&admin, silent).await, [""; 0]);
    assert_eq!(rows(&admin, &record(silent)).await, [""; 0], "no record is left");

    add_user(&client, neighbour, "two@x-y.example").await;
    assert_eq!(users(&client, neighbour).await, ["one@x-y.example", "two@x-y.example"]);
    assert!(
        read(&client, &secret_of(neighbour)).await.is_some() && read(&client, &route_of(neighbour)).await.is_some()
    );
}

#[tokio::test]
async fn a_tenant_of_the_same_name_gets_the_old_data_or_none_as_its_annotation_says() {
    let (_, client) = shared().await;
    application(&client, "returning", json!({})).await;
    let first = ready_tenant(&client, "phoenix", of("returning", json!({}))).await;
    add_user(&client, &first, "one@phoenix.example").await;
    delete_tenant(&client, "phoenix").await;

    apply(&client, &tenant("phoenix", of("returning", json!({})))).await.expect("a Tenant");
    let object = ours("Tenant", "phoenix");
    let message = await_condition(&client, &object, "Stalled", "True", uid(&first)).await;
    for annotation in ["tenantry.io/restore-from", "tenantry.io/abandon"] {
        assert!(message.contains(&format!("{annotation}={}", uid(&first))), "{message}");
    }
    // An annotation that names other data resolves nothing.
    patch(&client, &object, &json!({"metadata": {"annotations": {"tenantry.io/restore-from": "another"}}})).await;
    await_condition(&client, &object, "Stalled", "True", uid(&first)).await;

    patch(&client, &object, &json!({"metadata": {"annotations": {"tenantry.io/restore-from": uid(&first)}}})).await;
    let second = await_tenant(&client, "phoenix", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    assert_eq!(id(&second), id(&first));
    assert_eq!(users(&client, &second).await, ["one@phoenix.example"]);
    add_user(&client, &second, "two@phoenix.example").await;

    delete_tenant(&client, "phoenix").await;
    apply(&client, &tenant("phoenix", of("returning", json!({})))).await.expect("a Tenant");
    await_condition(&client, &object, "Stalled", "True", uid(&second)).await;
    patch(&client, &object, &json!({"metadata": {"annotations": {"tenantry.io/abandon": uid(&second)}}})).await;
    let third = await_tenant(&client, "phoenix", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    assert_ne!(id(&third), id(&second));
    assert_eq!(users(&client, &third).await, [""; 0]);
    // What was abandoned is still kept, and a change of the tenant brings no question back.
    patch(&client, &object, &json!({"spec": {"displayName": "Phoenix"}})).await;
    await_tenant(&client, "phoenix", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    let (ground, _) = shared().await;
    let admin = superuser(ground, &place(&third).0).await;
    let kept = format!("SELECT email FROM d_{}.users ORDER BY 1", id(&second));
    assert_eq!(rows(&admin, &kept).await, ["one@phoenix.example", "two@phoenix.example"]);

    // With two of them left, it says both, and takes a word about both.
    delete_tenant(&client, "phoenix").await;
    apply(&client, &tenant("phoenix", of("returning", json!({})))).await.expect("a Tenant");
    let message = await_condition(&client, &object, "Stalled", "True", "tenantry.io/abandon=").await;
    let (second, third) = (uid(&second), uid(&third));
    let both = [format!("abandon={second},{third}"), format!("abandon={third},{second}")];
    assert!(both.iter().any(|both| message.contains(both)), "{message}");
    patch(&client, &object, &json!({"metadata": {"annotations": {"tenantry.io/abandon": third}}})).await;
    let message = await_condition(&client, &object, "Stalled", "True", &format!("restore-from={second}")).await;
    assert!(message.contains(&format!("abandon={third},{second}")), "{message}");
    let decided = format!("{third}, {second}");
    patch(&client, &object, &json!({"metadata": {"annotations": {"tenantry.io/abandon": decided}}})).await;
    let fourth = await_tenant(&client, "phoenix", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    assert_eq!(users(&client, &fourth).await, [""; 0]);
}

/// Annotation that keeps the operator from an object, or no longer.
fn paused(value: &Value) -> Value {
    json!({"metadata": {"annotations": {"tenantry.io/paused": value}}})
}

/// Takes a Tenant away without a word to the operator.
async fn lose(client: &kube::Client, tenant: &Tenant) {
    let object = ours("Tenant", name(tenant));
    patch(client, &object, &paused(&"true".into())).await;
    let tenants = Api::<Tenant>::all(client.clone());
    tenants.delete(name(tenant), &DeleteParams::default()).await.expect("a deletion");
    patch(client, &object, &json!({"metadata": {"finalizers": null}})).await;
}

/// Makes a Tenant anew, with another UID and the status that it had, as a backup tool does that
/// restores statuses.
async fn bring_back(client: &kube::Client, before: &Tenant) {
    let object = ours("Tenant", name(before));
    let mut again = tenant(name(before), serde_json::to_value(before).expect("JSON"));
    again["metadata"] = paused(&"true".into())["metadata"].clone();
    again["metadata"]["name"] = name(before).into();
    let status = again["status"].take();
    without_nulls(&mut again);
    apply(client, &again).await.expect("a Tenant");
    patch_status(client, &object, &status).await;
    patch(client, &object, &paused(&Value::Null)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_comes_back_with_another_uid_gives_nobody_anothers_data() {
    let (ground, client) = shared().await;
    application(&client, "backup", json!({})).await;
    let specs = [
        ("kept-p", of("backup", json!({}))),
        ("kept-b", super::bridge::bridge("backup", json!({}))),
        ("left-p", of("backup", json!({"spec": {"deletionPolicy": "Delete"}}))),
        ("left-d", super::dedicated::dedicated("backup", json!({}))),
    ];
    for (name, spec) in specs {
        let before = ready_tenant(&client, name, spec).await;
        add_user(&client, &before, "one@backup.example").await;
        let old = credentials(&client, &before).await;
        let record = format!("SELECT state || ' ' || uid FROM tenantry.tenant WHERE id = '{}'", id(&before));
        let admin = superuser(ground, &place(&before).0).await;
        let object = ours("Tenant", name);
        let is_asked = async || {
            bring_back(&client, &before).await;
            let message = await_condition(&client, &object, "Stalled", "True", uid(&before)).await;
            assert!(message.contains("tenantry.io/restore-from"), "{message}");
            // What only the backup's status says goes a moment after what is true is said.
            await_tenant(&client, name, "nowhere", |tenant| {
                let status = tenant.status.as_ref();
                status.is_some_and(|status| {
                    status.conflict.is_some() && (&status.database, &status.pool) == (&None, &None)
                })
            })
            .await;
            assert_eq!(rows(&admin, &record).await, [format!("Live {}", uid(&before))], "nothing was changed");
            log_in(&old).await.expect("who works with the data works on");
        };
        lose(&client, &before).await;
        is_asked().await;
        // One that goes before anybody decided takes nobody's data with it.
        delete_tenant(&client, name).await;
        assert_eq!(rows(&admin, &record).await, [format!("Live {}", uid(&before))]);
        is_asked().await;
        let (annotation, state) = match name.starts_with("kept") {
            true => ("tenantry.io/restore-from", "Live"),
            false => ("tenantry.io/abandon", "Retained"),
        };
        patch(&client, &object, &json!({"metadata": {"annotations": {annotation: uid(&before)}}})).await;
        let after = await_tenant(&client, name, "Ready", |tenant| is(tenant, "Ready", "True")).await;
        let state = [format!("{state} {}", uid(if state == "Live" { &after } else { &before }))];
        assert_eq!(rows(&admin, &record).await, state);
        if annotation == "tenantry.io/restore-from" {
            assert_eq!((id(&after), place(&after)), (id(&before), place(&before)));
            assert_eq!(users(&client, &after).await, ["one@backup.example"]);
            continue;
        }
        assert_ne!(id(&after), id(&before));
        assert_eq!(users(&client, &after).await, [""; 0], "it starts empty");
        assert!(log_in(&old).await.is_err(), "what was abandoned is locked");
        assert_eq!(place(&after).0 == place(&before).0, name == "left-p", "a dedicated database is one Tenant's");
        let email = format!("SELECT email FROM d_{}.users", id(&before));
        assert_eq!(rows(&admin, &email).await, ["one@backup.example"], "and kept");
    }
}

#[tokio::test]
async fn a_lost_status_comes_back_with_the_same_place_and_data() {
    let (_, client) = shared().await;
    application(&client, "forgetful", json!({})).await;
    let before = ready_tenant(&client, "amnesia", of("forgetful", json!({}))).await;
    add_user(&client, &before, "one@amnesia.example").await;
    let secret = credentials(&client, &before).await;
    let tenants = Api::<Tenant>::all(client.clone());
    let mut lost = tenants.get("amnesia").await.expect("a Tenant");
    lost.status = None;
    tenants.replace_status("amnesia", &Default::default(), &lost).await.expect("no status");
    let after = await_tenant(&client, "amnesia", "Ready", |tenant| is(tenant, "Ready", "True")).await;
    assert_eq!((id(&after), place(&after)), (id(&before), place(&before)));
    assert_eq!(users(&client, &after).await, ["one@amnesia.example"]);
    assert_eq!(credentials(&client, &after).await, secret, "nothing was rotated for it");
}

#[tokio::test]
async fn a_paused_tenant_is_left_alone() {
    let (_, client) = shared().await;
    application(&client, "resting", json!({})).await;
    let paused = ready_tenant(&client, "sleeper", of("resting", json!({}))).await;
    let object = ours("Tenant", "sleeper");
    patch(&client, &object, &json!({"metadata": {"annotations": {"tenantry.io/paused": "true"}}})).await;
    patch(&client, &object, &json!({"spec": {"suspended": true}})).await;
    delete(&client, &secret_of(&paused)).await;
    Api::<Tenant>::all(client.clone()).delete("sleeper", &DeleteParams::default()).await.expect("a deletion");
    // What comes later is done while the paused one waits.
    let later = ready_tenant(&client, "awake", of("resting", json!({}))).await;
    delete(&client, &secret_of(&later)).await;
    let back = eventually(async || read(&client, &secret_of(&later)).await).await;
    assert!(back.is_some(), "the other tenant's Secret is repaired");
    let sleeper = Api::<Tenant>::all(client.clone()).get("sleeper").await.expect("it is still there");
    assert_eq!(sleeper.status.as_ref().and_then(|status| status.observed_generation), paused.metadata.generation);
    assert!(read(&client, &secret_of(&paused)).await.is_none(), "nothing of it is repaired");
    assert!(read(&client, &route_of(&paused)).await.is_some(), "nothing of it is removed");

    patch(&client, &object, &json!({"metadata": {"annotations": {"tenantry.io/paused": null}}})).await;
    let gone =
        eventually(async || dynamic(&client, &object).get_opt("sleeper").await.ok()?.is_none().then_some(())).await;
    assert!(gone.is_some(), "it goes once it is no longer paused");
    assert!(read(&client, &route_of(&paused)).await.is_none());
}
