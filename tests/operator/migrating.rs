//! An Application's tables: files run once on every tenant, each whole or not at all.

use serde_json::json;

use super::{
    ground::{NAMESPACE, apply, await_tenant, condition, credentials, eventually, is, ready_tenant, shared, tenant},
    steps::{Running, healed, migrations, quick, stalled},
    verbs::{application, id, log_in, named, of, patch, place, rows, superuser},
};

const TABLES: &str = "SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1";

fn map(name: &str) -> serde_json::Value {
    named("v1", "ConfigMap", Some(NAMESPACE), name)
}

fn migrated_by(map: &str) -> serde_json::Value {
    json!({"migrations": {"sql": {"configMaps": [{"name": map}]}}})
}

#[tokio::test]
async fn a_file_that_fails_is_named_leaves_nothing_and_heals_when_it_is_mended() {
    let (ground, client) = shared().await;
    let files = [
        ("001_first.sql", "CREATE TABLE first (id int);"),
        ("002_second.sql", "CREATE TABLE second (id int);\nINSERT INTO second VALUES (1);\nSELECT 1 / 0;\n"),
        ("003_third.sql", "CREATE TABLE third (id int);"),
        ("readme.txt", "this is no SQL"),
    ];
    apply(&client, &migrations("failing", &files)).await.expect("a ConfigMap");
    application(&client, "failing", migrated_by("failing")).await;
    apply(&client, &tenant("fails", of("failing", json!({})))).await.expect("a Tenant");
    let parts = ["migration 002_second.sql", "division by zero", "SQLSTATE 22012"];
    let failed = stalled(&client, "fails", "MigrationFailed", &parts).await;
    let conditions = &failed.status.as_ref().expect("a status").conditions;
    assert_eq!(condition(conditions, "Migrated").map(|it| it.status.as_str()), Some("False"));
    let session = log_in(&credentials(&client, &failed).await).await.expect("a login");
    assert_eq!(rows(&session, TABLES).await, ["first"], "what ran before stays, and nothing of what failed");
    let root = superuser(ground, &place(&failed).0).await;
    let recorded = format!("SELECT name FROM tenantry.migration WHERE tenant = '{}' ORDER BY 1", id(&failed));
    assert_eq!(rows(&root, &recorded).await, ["001_first.sql"]);

    let mended = json!({"data": {"002_second.sql": "CREATE TABLE second (id int);"}});
    patch(&client, &map("failing"), &mended).await;
    healed(&client, "fails").await;
    assert_eq!(rows(&session, TABLES).await, ["first", "second", "third"]);
    assert_eq!(rows(&root, &recorded).await, ["001_first.sql", "002_second.sql", "003_third.sql"]);
}

#[tokio::test]
async fn a_file_that_has_run_is_not_to_be_changed_and_a_new_one_reaches_every_tenant() {
    let (_, client) = shared().await;
    apply(&client, &migrations("growing", &[("001.sql", "CREATE TABLE one (id int);")])).await.expect("a ConfigMap");
    application(&client, "growing", migrated_by("growing")).await;
    let names = ["grows-a", "grows-b", "grows-c"];
    let mut tenants = Vec::new();
    for name in names {
        tenants.push(ready_tenant(&client, name, of("growing", json!({}))).await);
    }
    let running = Running::of(&client, &tenants[0]).await;
    patch(&client, &map("growing"), &json!({"data": {"001.sql": "CREATE TABLE one (id bigint);"}})).await;
    for name in names {
        let says = "migration 001.sql was changed after it had run; put it back as it was and write a new file";
        let tenant = stalled(&client, name, "MigrationFailed", &[says]).await;
        if name == names[0] {
            running.assert_untouched(&client, &tenant).await;
        }
    }
    let back = json!({"data": {"001.sql": "CREATE TABLE one (id int);", "002.sql": "CREATE TABLE two (id int);"}});
    patch(&client, &map("growing"), &back).await;
    for (name, tenant) in names.iter().zip(&tenants) {
        healed(&client, name).await;
        let session = log_in(&credentials(&client, tenant).await).await.expect("a login");
        assert_eq!(rows(&session, TABLES).await, ["one", "two"]);
    }
    // And to those who had nothing to mend.
    patch(&client, &map("growing"), &json!({"data": {"003.sql": "CREATE TABLE three (id int);"}})).await;
    for (name, tenant) in names.iter().zip(&tenants) {
        let session = log_in(&credentials(&client, tenant).await).await.expect("a login");
        let reached = eventually(async || (rows(&session, TABLES).await.contains(&"three".into())).then_some(())).await;
        assert!(reached.is_some(), "{name} has {:?}", rows(&session, TABLES).await);
        healed(&client, name).await;
    }
}

#[tokio::test]
async fn a_migration_may_take_longer_than_a_reconcile() {
    let (_, client) = quick().await;
    // The operator of this ground gives a reconcile 4 seconds.
    let sql = "CREATE TABLE slow (id int); SELECT pg_sleep(6); INSERT INTO slow VALUES (1);";
    apply(&client, &migrations("patient", &[("001_slow.sql", sql)])).await.expect("a ConfigMap");
    application(&client, "patient", migrated_by("patient")).await;
    apply(&client, &tenant("awaits", of("patient", json!({})))).await.expect("a Tenant");
    let waits = await_tenant(&client, "awaits", "migrating", |tenant| {
        let conditions = tenant.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        is(tenant, "Migrated", "False") && condition(conditions, "Migrated").is_some_and(|it| it.reason == "Running")
    })
    .await;
    assert!(is(&waits, "Ready", "False") && is(&waits, "Reconciling", "True"), "{:#?}", waits.status);
    // A neighbour doesn't wait for it.
    ready_tenant(&client, "passes", json!({})).await;
    let ready = healed(&client, "awaits").await;
    let session = log_in(&credentials(&client, &ready).await).await.expect("a login");
    assert_eq!(rows(&session, "SELECT id::text FROM slow").await, ["1"], "it ran to its end, and once");
}

#[tokio::test]
async fn files_that_are_not_there_or_not_clear_are_named() {
    let (_, client) = shared().await;
    application(
        &client,
        "scattered",
        json!({"migrations": {"sql": {"configMaps": [{"name": "part-a"}, {"name": "part-b"}]}}}),
    )
    .await;
    apply(&client, &migrations("part-a", &[("001.sql", "CREATE TABLE a (id int);")])).await.expect("a ConfigMap");
    let application = super::verbs::ours("Application", "scattered");
    let says = "ConfigMap part-b is not in namespace tenantry-system: create it, or correct";
    super::verbs::await_condition(&client, &application, "Migrated", "False", says).await;
    apply(&client, &tenant("gathers", of("scattered", json!({})))).await.expect("a Tenant");
    await_tenant(&client, "gathers", "waiting for a ConfigMap", |tenant| {
        let conditions = tenant.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        condition(conditions, "Migrated").is_some_and(|it| it.status == "False" && it.message.contains(says))
    })
    .await;
    apply(&client, &migrations("part-b", &[("001.sql", "CREATE TABLE b (id int);")])).await.expect("a ConfigMap");
    stalled(&client, "gathers", "MigrationsAmbiguous", &["file 001.sql is in more than one ConfigMap"]).await;
    let renamed = json!({"data": {"001.sql": null, "002.sql": "CREATE TABLE b (id int);"}});
    patch(&client, &map("part-b"), &renamed).await;
    let ready = healed(&client, "gathers").await;
    let session = log_in(&credentials(&client, &ready).await).await.expect("a login");
    assert_eq!(rows(&session, TABLES).await, ["a", "b"]);
    // What this version does not do, it says.
    let job = json!({"spec": {"migrations": {"sql": null, "job": {"image": "registry.example.com/migrator:1"}}}});
    patch(&client, &application, &job).await;
    stalled(&client, "gathers", "MigrationJobNotReconciled", &["use spec.migrations.sql"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_takes_long_leaves_places_to_other_applications() {
    let ((ground, _), client) = quick().await;
    apply(&client, &migrations("lengthy", &[("001.sql", "CREATE TABLE one (id int);")])).await.expect("a ConfigMap");
    application(&client, "lengthy", migrated_by("lengthy")).await;
    // More than a server has places for migrations.
    let names: Vec<String> = (0..6).map(|number| format!("lengthy-{number}")).collect();
    let mut database = String::new();
    for name in &names {
        database = place(&ready_tenant(&client, name, of("lengthy", json!({}))).await).0;
    }
    let root = superuser(ground, &database).await;
    root.batch_execute("SELECT pg_advisory_lock(4713)").await.expect("a lock");
    // A release that ends when this test lets it.
    let sql = "SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock_shared(4713); CREATE TABLE two (id int);";
    patch(&client, &map("lengthy"), &json!({"data": {"002.sql": sql}})).await;
    let running = "SELECT usename::text FROM pg_stat_activity WHERE datname = current_database()
                    AND usename LIKE '%\\_mig' AND wait_event_type = 'Lock'";
    let mut at_work = Vec::new();
    let begun = eventually(async || {
        at_work = rows(&root, running).await;
        (at_work.len() == 2).then_some(())
    });
    assert!(begun.await.is_some(), "half of the four places are in use: {at_work:?}");
    // New tenants of another Application, on the same server, are migrated meanwhile.
    for name in ["unhurt-a", "unhurt-b"] {
        ready_tenant(&client, name, json!({})).await;
    }
    assert_eq!(rows(&root, running).await.len(), 2, "the others wait for these, and none has failed");
    for name in &names {
        let tenant = await_tenant(&client, name, "migrating", |tenant| is(tenant, "Migrated", "False")).await;
        let conditions = &tenant.status.as_ref().expect("a status").conditions;
        assert_eq!(condition(conditions, "Migrated").map(|it| it.reason.as_str()), Some("Running"));
    }
    root.batch_execute("SELECT pg_advisory_unlock(4713)").await.expect("let go");
    for name in &names {
        healed(&client, name).await;
    }
}
