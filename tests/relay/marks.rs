//! How far each meter is, and how much waits.

use serde_json::Value;

use crate::{
    api::{Say, Script},
    ground::{ACKED, Place, count, count_often},
};

/// The last mark of a tenant's meter: sequence and value.
fn mark(script: &Script, tenant: &str, meter: &str) -> Option<(i64, i64)> {
    let of = |mark: &&Value| mark["subject"] == tenant && mark["data"]["meter"] == meter;
    let data = &script.marks.iter().rev().find(of)?["data"];
    Some((data["sequence"].as_i64()?, data["value"].as_i64()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_meter_is_marked_and_then_those_that_change() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    let id = guest.id.to_string();
    let client = place.database.client(&guest.login).await;
    count(&client, "users", 3).await;
    let relay = place.relay().await;
    let all =
        |script: &Script| mark(script, &id, "users") == Some((1, 3)) && mark(script, &id, "accounts") == Some((0, 0));
    place.api.until("every meter is marked", all).await;
    assert!(place.api.script().marks.iter().all(|mark| mark["data"]["meter"] != "requests"), "not one of source API");
    let marks = place.api.script().marks.len();
    let reports = place.api.script().reports.len();
    place.api.until("it reports", |script| script.reports.len() > reports + 2).await;
    assert_eq!(place.api.script().marks.len(), marks, "what did not change is not marked again");
    client.batch_execute("SELECT record_usages('{accounts,users}', '{5,-1}', 'x')").await.expect("counted");
    place
        .api
        .until("the change is marked", |script| {
            mark(script, &id, "users") == Some((2, 2)) && mark(script, &id, "accounts") == Some((1, 5))
        })
        .await;
    {
        let script = place.api.script();
        let newer = script.marks[marks..]
            .iter()
            .map(|mark| &mark["data"]["meter"])
            .all(|meter| meter == "users" || meter == "accounts");
        assert!(newer, "nothing else is");
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_that_nobody_took_are_sent_again() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    let id = guest.id.to_string();
    place.api.script().next.extend([Say::Status(503, None), Say::Cut]);
    place.api.script().defer.insert(-1);
    let relay = place.relay().await;
    place
        .api
        .until("they are deferred", |script| script.posts.iter().filter(|post| post.said == Say::Answer).count() > 2)
        .await;
    assert!(place.api.script().marks.is_empty());
    place.api.script().defer.clear();
    place.api.until("they are taken", |script| mark(script, &id, "users") == Some((0, 0))).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_tenant_that_comes_later_it_is_said_that_it_has_counted_nothing() {
    let place = Place::new().await;
    let first = place.database.tenant("acme").await.id.to_string();
    let relay = place.relay().await;
    place.api.until("one is marked", |script| mark(script, &first, "users") == Some((0, 0))).await;
    let later = place.database.tenant("bolt").await.id.to_string();
    place.api.until("the other one is marked", |script| mark(script, &later, "users") == Some((0, 0))).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_meter_whose_transaction_is_open_is_marked_after_it() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    let id = guest.id.to_string();
    let relay = place.relay().await;
    place.api.until("it is marked", |script| mark(script, &id, "users") == Some((0, 0))).await;
    let client = place.database.client(&guest.login).await;
    client.batch_execute("BEGIN; SELECT record_usage('users', 4, 'x')").await.expect("counted");
    let reports = place.api.script().reports.len();
    place.api.until("it reports", |script| script.reports.len() > reports + 2).await;
    assert_eq!(mark(&place.api.script(), &id, "users"), Some((0, 0)), "nothing is said of what may be rolled back");
    client.batch_execute("COMMIT").await.expect("committed");
    place.api.until("it is marked", |script| mark(script, &id, "users") == Some((1, 4))).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_says_what_waits_and_what_is_dead_and_whose() {
    let place = Place::new().await;
    let (acme, bolt) = (place.database.tenant("acme").await, place.database.tenant("bolt").await);
    count_often(&place, &acme, "mails", 3).await;
    count_often(&place, &bolt, "mails", 4).await;
    place.api.script().reject.extend([1, 2]);
    place.api.script().defer.insert(3);
    let relay = place.relay().await;
    place.until("one is acknowledged", ACKED, 1).await;
    place
        .api
        .until("the report says so", |script| {
            let data = &script.reports.last().map(|(_, report)| report["data"].clone()).unwrap_or_default();
            data["waiting"] == 2
                && data["oldest"].is_string()
                && data["dead"].as_array().is_some_and(|dead| dead.len() == 2)
        })
        .await;
    {
        let script = place.api.script();
        let report = &script.reports.last().expect("a report").1;
        let mut dead: Vec<(&str, i64)> = report["data"]["dead"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|dead| (dead["tenant"].as_str().expect("an id"), dead["events"].as_i64().expect("a number")))
            .collect();
        dead.sort_unstable();
        let mut expected = vec![(acme.id.as_str(), 2), (bolt.id.as_str(), 2)];
        expected.sort_unstable();
        assert_eq!(dead, expected);
        assert_eq!(report["subject"], place.database.database.as_str());
    }
    relay.stop().await;
}
