//! The API and the databases fail, each in its own way: nothing is lost, and nothing is counted
//! twice.

use std::time::Duration;

use tenantry::database::{Settlement, Tls};

use crate::{
    api::Say,
    ground::{ACKED, DEAD, PENDING, Place, count, count_often},
    support::{one, own_server, rows, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_api_says_everything_arrives() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    let relay = place.relay().await;
    let says = [
        Say::Status(500, None),
        Say::Status(503, Some(1)),
        Say::Status(429, None),
        Say::Status(401, None),
        Say::Status(403, None),
        Say::Status(404, None),
        Say::Silence,
        Say::Cut,
        Say::TakeAndCut,
        Say::Garbage,
    ];
    let client = place.database.client(&guest.login).await;
    for (round, say) in says.into_iter().enumerate() {
        place.api.script().next.push_back(say.clone());
        count(&client, "mails", 1).await;
        let said = |script: &crate::api::Script| script.posts.iter().any(|post| post.said == say);
        place.api.until(&format!("{say:?}"), said).await;
        place.api.arrived(round + 1).await;
        let all = i64::try_from(round).expect("few") + 1;
        place.until("it is acknowledged", ACKED, all).await;
        place.agrees().await;
    }
    assert_eq!(one(&place.database.superuser().await, DEAD).await, "0", "nothing is given up");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_relay_waits_as_long_as_it_is_told() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    place.api.script().always = Some(Say::Status(429, Some(2)));
    count_often(&place, &guest, "mails", 3_000).await;
    let relay = place.relay().await;
    let told = |script: &crate::api::Script| script.posts.iter().filter(|post| post.said != Say::Answer).count() >= 1;
    place.api.until("it is told to wait", told).await;
    // Until then what was under way together may still come.
    let asked = place.api.script().posts.last().expect("a post").at;
    place
        .api
        .until("it asks again", |script| script.posts.iter().any(|post| post.at >= asked + Duration::from_secs(2)))
        .await;
    let early = {
        let script = place.api.script();
        let first = script.posts.first().expect("a post").at;
        script.posts.iter().filter(|post| post.at < first + Duration::from_secs(2)).count()
    };
    // Two sessions of one database, and its report.
    assert!(early <= 3, "{early} posts where it was to wait");
    place.api.script().always = None;
    place.until("all is acknowledged", PENDING, 0).await;
    place.agrees().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_goes_in_smaller_ones() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    count_often(&place, &guest, "mails", 500).await;
    place.api.script().most = Some(30);
    let relay = place.relay().await;
    place.until("all is acknowledged", ACKED, 500).await;
    place.agrees().await;
    {
        let script = place.api.script();
        assert!(script.posts.iter().any(|post| post.said == Say::Status(413, None)), "it was too large");
        assert!(script.usage.values().all(|(times, _)| *times == 1), "and no part was sent twice");
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_batch_that_is_refused_as_a_whole_only_the_bad_ones_die() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    count_often(&place, &guest, "mails", 200).await;
    place.api.script().poison.extend([1, 77, 78, 200]);
    let relay = place.relay().await;
    place.until("the good ones are acknowledged", ACKED, 196).await;
    place.until("the bad ones are dead", DEAD, 4).await;
    let superuser = place.database.superuser().await;
    let dead = "SELECT sequence FROM tenantry.outbox WHERE dead_at IS NOT NULL ORDER BY 1";
    assert_eq!(rows(&superuser, dead).await, ["1", "77", "78", "200"]);
    place.agrees().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_everything_kills_nothing() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    count_often(&place, &guest, "mails", 100).await;
    place.api.script().always = Some(Say::Status(400, None));
    let relay = place.relay().await;
    place.api.until("it is refused many times", |script| script.posts.len() >= 60).await;
    assert_eq!(one(&place.database.superuser().await, DEAD).await, "0");
    // Between two batches: of one whose others are taken, those that were refused would be to blame.
    let away = Say::Status(503, None);
    place.api.script().always = Some(away.clone());
    place.api.until("no batch is under way", |script| script.posts.last().is_some_and(|post| post.said == away)).await;
    place.api.script().always = None;
    place.until("all is acknowledged", ACKED, 100).await;
    place.agrees().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_api_is_away_applications_notice_nothing_and_all_arrives_after() {
    let place = Place::new().await;
    let (acme, bolt) = (place.database.tenant("acme").await, place.database.tenant("bolt").await);
    place.api.script().always = Some(Say::Status(503, None));
    let relay = place.relay().await;
    place.api.until("it is away", |script| !script.posts.is_empty()).await;
    count_often(&place, &acme, "mails", 4_000).await;
    count_often(&place, &bolt, "mails", 50).await;
    let client = place.database.client(&acme.login).await;
    client.batch_execute("SELECT set_usage('users', 40, 'import')").await.expect("set");
    assert_eq!(
        crate::support::refused(&client, "SELECT record_usage('users', 11, 'x')").await,
        "TN001",
        "hard limits hold all the while"
    );
    // It was away for so long that there is too much: what was never tried is folded.
    let folded = place.database.server.fold_outbox(&place.database.database, 1_000).await.expect("folded");
    let fewer: u64 = folded.iter().filter(|(id, _)| *id == acme.id).map(|(_, fewer)| fewer).sum();
    assert!(fewer > 3_000, "{folded:?}");
    assert_eq!(folded.len(), 1, "nobody else's");
    assert!(place.api.script().usage.is_empty());
    place.api.script().always = None;
    place.until("all is acknowledged", PENDING, 0).await;
    place.agrees().await;
    {
        let script = place.api.script();
        assert_eq!(script.sum(acme.id.as_str(), "mails"), 4_000);
        assert_eq!((script.sum(acme.id.as_str(), "users"), script.sum(bolt.id.as_str(), "mails")), (40, 50));
        // Every sequence is there, alone or in a folded range.
        let mut covered = Vec::new();
        for (_, event) in script.usage.values() {
            if event["subject"] == acme.id.as_str() && event["data"]["meter"] == "mails" {
                let last = event["data"]["sequence"].as_i64().expect("a sequence");
                covered.push((event["data"]["folded"]["firstSequence"].as_i64().unwrap_or(last), last));
            }
        }
        covered.sort_unstable();
        let mut next = 1;
        for (first, last) in covered {
            assert_eq!(first, next);
            next = last + 1;
        }
        assert_eq!(next, 4_001);
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_dies_or_freezes_loses_nothing() {
    let postgres = own_server(&[]);
    let place = Place::on(&postgres).await;
    let guest = place.database.tenant("acme").await;
    let relay = place.relay().await;
    count_often(&place, &guest, "mails", 100).await;
    // Noted too: else the same ones come again and again while answers are held.
    place.until("they are acknowledged", ACKED, 100).await;
    // It dies while an answer is on its way: what was taken can't be noted.
    place.api.hold(true);
    count_often(&place, &guest, "mails", 100).await;
    place.api.arrived(101).await;
    postgres.kill();
    place.api.hold(false);
    postgres.start_again().expect("it starts again");
    place.until("all is acknowledged", ACKED, 200).await;
    place.agrees().await;
    // It stands still for a while, also for those who log in.
    let client = place.database.client(&guest.login).await;
    postgres.freeze();
    let counting = tokio::spawn(async move {
        count(&client, "mails", 1).await;
    });
    let before = place.api.script().reports.len();
    assert_eq!(place.api.script().usage.len(), 200, "nothing comes from there");
    postgres.thaw();
    counting.await.expect("counted");
    place.api.arrived(201).await;
    place.api.until("it reports again", |script| script.reports.len() > before).await;
    place.until("all is acknowledged", ACKED, 201).await;
    place.agrees().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_database_that_is_stuck_holds_up_no_other() {
    let place = Place::new().await;
    let stuck = place.database.tenant("acme").await;
    let other = crate::support::Ground::new("relayed").await;
    let access = other.server.ensure_relay(&other.database, None).await.expect("made").expect("issued");
    let lively = other.tenant("bolt").await;
    place.publish(&access).await;
    let relay = place.relay().await;
    place
        .api
        .until("both report", |script| {
            let databases: std::collections::HashSet<_> =
                script.reports.iter().map(|(_, report)| &report["subject"]).collect();
            databases.len() == 2
        })
        .await;
    let superuser = place.database.superuser().await;
    superuser.batch_execute("BEGIN; LOCK TABLE tenantry.outbox IN ACCESS EXCLUSIVE MODE").await.expect("locked");
    count(&other.client(&lively.login).await, "mails", 1).await;
    place.api.arrived(1).await;
    superuser.batch_execute("ROLLBACK").await.expect("unlocked");
    count(&place.database.client(&stuck.login).await, "mails", 1).await;
    place.api.arrived(2).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_nobody_settled_is_given_anew() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    count_often(&place, &guest, "mails", 5).await;
    let tls = Tls::VerifyFull { ca_pem: crate::support::shared_server().ca_pem().to_owned() };
    let gone = tenantry::database::Outbox::connect(&place.access, &tls, Duration::from_secs(10)).await.expect("in");
    let leased = gone.lease(3, Duration::from_millis(500)).await.expect("leased");
    assert_eq!(leased.len(), 3);
    let relay = place.relay().await;
    place.until("all is acknowledged", ACKED, 5).await;
    // The late word of the one that was gone changes nothing.
    let late = Settlement::Dead { error: "late".to_owned() };
    let outcomes: Vec<_> = leased.iter().map(|event| (event, late.clone())).collect();
    gone.settle(&outcomes).await.expect("heard");
    let superuser = place.database.superuser().await;
    until("it stays acknowledged", async || one(&superuser, ACKED).await == "5").await;
    assert_eq!(one(&superuser, DEAD).await, "0");
    place.agrees().await;
    relay.stop().await;
}
