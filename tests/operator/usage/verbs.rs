//! The verbs about usage.

use serde_json::json;

use super::{
    super::{
        cli::tenantry,
        ground::{condition, credentials, eventually, ready_tenant},
        verbs::{id, log_in, of, place, rows, superuser},
    },
    ledger::{Relay, counting, shared},
    shows,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_correction_travels_by_the_way_of_all_usage_with_name_and_reason() {
    let (metered, client) = shared().await;
    counting(&client, "corrected").await;
    let tenant = ready_tenant(&client, "corrected", of("corrected", json!({"spec": {"plan": "corrected"}}))).await;
    let session = log_in(&credentials(&client, &tenant).await).await.expect("a login");
    session.batch_execute("SELECT tenantry.record_usage('users', 6, 'a')").await.expect("counted");
    let relay = Relay::of(metered, &tenant).await;
    relay.carries().await;
    shows(&client, "corrected", "users", "6/10").await;

    let run = |args: &[&str]| tenantry(&metered.ground, &[&["correct", "corrected"], args].concat());
    let ran = run(&["users", "--by", "-2", "--reason", "two test accounts", "-o", "json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let said = ran.json();
    assert_eq!((&said["value"], &said["by"], &said["meter"]), (&json!(4), &json!(-2), &json!("users")));
    let actor = said["actor"].as_str().expect("who").to_owned();
    assert!(!actor.is_empty());
    // The limit's side knows at once, the ledger's when it was carried.
    assert_eq!(rows(&session, "SELECT value::text FROM tenantry.my_limits() WHERE meter = 'users'").await, ["4"]);
    let root = superuser(&metered.ground, &place(&tenant).0).await;
    let row = format!(
        "SELECT concat_ws('|', kind, delta, value, reason, actor) FROM tenantry.outbox WHERE tenant = '{}' AND kind = 'Correct'",
        id(&tenant)
    );
    assert_eq!(rows(&root, &row).await, [format!("Correct|-2|4|two test accounts|{actor}")]);
    relay.carries().await;
    shows(&client, "corrected", "users", "4/10").await;
    // Over the limit too, since it states a fact.
    assert_eq!(run(&["users", "--by", "7", "--reason", "forgotten ones"]).code, 0);
    relay.carries().await;
    let over = shows(&client, "corrected", "users", "11/10").await;
    let conditions = &over.status.as_ref().expect("a status").conditions;
    assert_eq!(condition(conditions, "WithinLimits").map(|it| it.reason.as_str()), Some("OverHardLimit"));

    for (args, says) in [
        (["users", "--by", "-99", "--reason", "x"], "below zero"),
        (["nothing", "--by", "1", "--reason", "x"], "no meter"),
        (["users", "--by", "0", "--reason", "x"], "changes nothing"),
        (["users", "--by", "1", "--reason", " "], "say why"),
    ] {
        let ran = run(&args);
        assert!(ran.code == 1 && ran.stderr.contains(says), "{says}: {ran:?}");
    }
    let status = tenantry(&metered.ground, &["status", "corrected"]);
    assert!(status.stdout.contains("11/10"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_events_are_listed_and_sent_again_and_so_is_what_a_ledger_lost() {
    let (metered, client) = shared().await;
    counting(&client, "letters").await;
    let tenant = ready_tenant(&client, "letters", of("letters", json!({"spec": {"plan": "letters"}}))).await;
    let session = log_in(&credentials(&client, &tenant).await).await.expect("a login");
    for _ in 0..3 {
        session.batch_execute("SELECT tenantry.record_usage('users', 1, 'a')").await.expect("counted");
    }
    let root = superuser(&metered.ground, &place(&tenant).0).await;
    let refuse = "UPDATE tenantry.outbox SET dead_at = now(), attempts = 1, last_error = 'TooOld: it is too old' WHERE sequence < 3";
    root.batch_execute(refuse).await.expect("refused");
    let run = |args: &[&str]| tenantry(&metered.ground, &[&["deadletters"], args].concat());
    let listed = run(&["list", "--tenant", "letters", "-o", "json"]);
    assert_eq!(listed.code, 0, "{listed:?}");
    let items = listed.json()["items"].as_array().cloned().expect("items");
    assert_eq!(items.len(), 2, "{items:#?}");
    assert_eq!(
        (&items[0]["tenant"], &items[0]["meter"], &items[0]["server"]),
        (&json!("letters"), &json!("users"), &json!("main"))
    );
    assert!(run(&["list"]).stdout.contains("TooOld"), "for people, too");
    let other = run(&["list", "--tenant", "nobody", "-o", "json"]).json();
    assert_eq!(other["items"], json!([]));
    assert_eq!(run(&["redrive"]).code, 2, "neither an id nor all");
    assert_eq!(run(&["list", "--server", "nowhere"]).code, 1);

    let first = items[0]["id"].as_str().expect("an id");
    let again = run(&["redrive", "--id", first, "-o", "json"]).json();
    assert_eq!(again["redriven"], 1, "{again:#}");
    let again = run(&["redrive", "--all", "--tenant", "letters", "-o", "json"]).json();
    assert_eq!(again["redriven"], 1, "{again:#}");
    let relay = Relay::of(metered, &tenant).await;
    assert_eq!(relay.carries().await, 3);
    shows(&client, "letters", "users", "3/10").await;

    // What was acknowledged waits once more, twice if need be, and is counted once.
    let resync = || {
        let ran = tenantry(&metered.ground, &["ledger", "resync", "--since", "1h", "-o", "json"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let items = ran.json()["items"].as_array().cloned().expect("items");
        let ours = items.iter().find(|item| item["database"] == place(&tenant).0.as_str()).expect("the database");
        ours["events"].as_u64().expect("a number")
    };
    assert_eq!(resync(), 3);
    assert_eq!(resync(), 0, "they wait already");
    assert_eq!(relay.carries().await, 3);
    assert_eq!(resync(), 3);
    assert_eq!(relay.carries().await, 3);
    session.batch_execute("SELECT tenantry.record_usage('users', 1, 'a')").await.expect("counted");
    relay.carries().await;
    shows(&client, "letters", "users", "4/10").await;
    let none = eventually(async || (relay.carries().await == 0).then_some(())).await;
    assert!(none.is_some());
}
