//! What is committed arrives, and each event meets its own fate.

use std::time::Duration;

use serde_json::json;
use tenantry::database::Outbox;

use crate::{
    api::Say,
    ground::{ACKED, DEAD, PENDING, Place, Program, Relay, count, count_often, metric},
    support::{one, rows},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_arrives_and_what_was_rolled_back_never_does() {
    let place = Place::new().await;
    let (acme, bolt) = (place.database.tenant("acme").await, place.database.tenant("bolt").await);
    let relay = place.relay().await;
    let client = place.database.client(&acme.login).await;
    for _ in 0..5 {
        count(&client, "users", 1).await;
        client.batch_execute("BEGIN; SELECT record_usage('users', 1, 'x'); ROLLBACK").await.expect("rolled back");
    }
    client.batch_execute("SELECT record_usages('{accounts,opportunities}', '{2,3}', 'deal')").await.expect("counted");
    client.batch_execute("SELECT set_usage('accounts', 7, 'reconcile')").await.expect("set");
    count(&place.database.client(&bolt.login).await, "mails", 4).await;
    place.api.arrived(9).await;
    place.until("all is acknowledged", PENDING, 0).await;
    place.agrees().await;
    {
        let script = place.api.script();
        let (acme, bolt) = (acme.id.to_string(), bolt.id.to_string());
        assert_eq!((script.sum(&acme, "users"), script.sum(&acme, "accounts"), script.sum(&bolt, "mails")), (5, 7, 4));
        let set =
            script.usage.values().map(|(_, event)| event).find(|event| event["data"]["kind"] == "Set").expect("set");
        let source = format!("/tenantry/{}/{}", place.server, place.database.database);
        assert_eq!(
            (&set["source"], &set["subject"], &set["specversion"]),
            (&json!(source), &json!(acme), &json!("1.0"))
        );
        assert_eq!((&set["data"]["delta"], &set["data"]["reason"]), (&json!(5), &json!("reconcile")));
        let total =
            script.usage.values().map(|(_, event)| event).find(|event| event["subject"] == bolt).expect("a total");
        assert!(total["data"]["periodStart"].is_string(), "a total says its period: {total}");
        assert!(script.posts.iter().all(|post| post.token == "one"));
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_has_its_own_fate() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    count_often(&place, &guest, "users", 10).await;
    place.api.script().reject.extend([2, 3]);
    place.api.script().defer.extend([5]);
    let relay = place.relay().await;
    place.until("the rest is acknowledged", ACKED, 7).await;
    place.until("two are dead", DEAD, 2).await;
    let superuser = place.database.superuser().await;
    let dead =
        rows(&superuser, "SELECT sequence, last_error FROM tenantry.outbox WHERE dead_at IS NOT NULL ORDER BY 1");
    assert_eq!(dead.await, ["2|TooOld: as the test says", "3|TooOld: as the test says"]);
    let deferred = "SELECT count(*) FROM tenantry.outbox WHERE sequence = 5 AND lease_until IS NOT NULL";
    assert_eq!(one(&superuser, deferred).await, "1");
    place.api.script().defer.clear();
    place.until("what was deferred is taken later", ACKED, 8).await;
    // A person looked, and sends the dead ones again.
    place.api.script().reject.clear();
    assert_eq!(place.database.server.redrive(&place.database.database, None).await.expect("redriven"), 2);
    place.until("all are acknowledged", ACKED, 10).await;
    place.agrees().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_events_go_in_full_batches_and_a_noisy_tenant_delays_nobody() {
    let place = Place::new().await;
    let (noisy, quiet) = (place.database.tenant("noisy").await, place.database.tenant("quiet").await);
    count_often(&place, &noisy, "users", 1).await;
    count_often(&place, &noisy, "mails", 6_000).await;
    count_often(&place, &quiet, "mails", 3).await;
    let relay = place.relay().await;
    place.api.arrived(6_004).await;
    place.until("all is acknowledged", PENDING, 0).await;
    place.agrees().await;
    {
        let script = place.api.script();
        let of_quiet = |id: &String| script.usage[id].1["subject"] == quiet.id.to_string();
        let last_of_quiet = script.order.iter().rposition(of_quiet).expect("it arrived");
        assert!(last_of_quiet < 1_500, "the quiet one's came {last_of_quiet}th, behind the noisy one's");
        let largest = script.posts.iter().map(|post| post.events.len()).max().expect("posts");
        assert!((500..=1_000).contains(&largest), "{largest} in the largest batch");
    }
    let superuser = place.database.superuser().await;
    let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}'", place.access.user);
    crate::support::until("at rest it holds one session", async || one(&superuser, &sessions).await == "1").await;
    relay.stop().await;
    crate::support::until("and none after its end", async || one(&superuser, &sessions).await == "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_come_and_go_with_their_secrets_and_a_new_login_is_taken_up() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    let relay = place.relay().await;
    let client = place.database.client(&guest.login).await;
    count(&client, "mails", 1).await;
    place.api.arrived(1).await;
    // Somebody deleted the Secret: the operator makes a new login, and the old password is of no use.
    let renewed = place.database.server.ensure_relay(&place.database.database, None).await.expect("made");
    let renewed = renewed.expect("issued");
    place.publish(&renewed).await;
    count(&client, "mails", 1).await;
    place.api.arrived(2).await;
    let tls = tenantry::database::Tls::VerifyFull { ca_pem: crate::support::shared_server().ca_pem().to_owned() };
    let old = Outbox::connect(&place.access, &tls, Duration::from_secs(5)).await;
    assert!(old.is_err(), "the old password is refused");
    // Another database appears while the relay runs.
    let other = crate::support::Ground::new("relayed").await;
    let access = other.server.ensure_relay(&other.database, None).await.expect("made").expect("issued");
    let neighbour = other.tenant("bolt").await;
    count(&other.client(&neighbour.login).await, "mails", 1).await;
    place.publish(&access).await;
    place.api.arrived(3).await;
    // A Secret of no use changes nothing for the others.
    let broken = tenantry::database::RelayAccess { host: String::new(), ..access.clone() };
    place.publish(&broken).await;
    count(&other.client(&neighbour.login).await, "mails", 1).await;
    place.api.arrived(4).await;
    place.withdraw(&access).await;
    let superuser = other.superuser().await;
    let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}'", access.user);
    crate::support::until("it leaves the database", async || one(&superuser, &sessions).await == "0").await;
    count(&client, "mails", 1).await;
    place.api.arrived(5).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_is_settled_before_the_end() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    let relay = place.relay().await;
    place.api.until("it reports", |script| !script.reports.is_empty()).await;
    place.api.hold(true);
    count_often(&place, &guest, "users", 20).await;
    place.api.arrived(1).await;
    let ended = relay.stopping();
    place.api.hold(false);
    ended.await;
    let superuser = place.database.superuser().await;
    let taken = place.api.script().usage.len();
    assert_eq!(one(&superuser, ACKED).await, taken.to_string(), "what was taken is noted");
    place.agrees().await;
    // The rest waits for the next one, unharmed.
    let next = Relay::start(place.options()).await;
    place.until("all is acknowledged", ACKED, 20).await;
    assert!(place.api.script().usage.values().all(|(times, _)| *times == 1), "and nothing was sent twice");
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_says_how_it_is_and_logs_no_password() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    count_often(&place, &guest, "users", 7).await;
    place.api.script().reject.insert(7);
    place.api.script().next.push_back(Say::Status(500, None));
    let program = Program::start(&place, &["--report-seconds", "1"]);
    place.until("the rest is acknowledged", ACKED, 6).await;
    place.until("one is dead", DEAD, 1).await;
    let database = &place.database.database;
    let (mut text, mut dead) = (String::new(), None);
    for _ in 0..600 {
        let (status, body) = program.get("/metrics").await;
        assert_eq!(status, 200);
        text = body;
        let labels = format!("{{server=\"{}\",database=\"{database}\"}}", place.server);
        dead = metric(&text, &format!("tenantry_relay_outbox_dead_events{labels}"));
        let waiting = metric(&text, &format!("tenantry_relay_outbox_events{labels}"));
        if dead == Some(1.0) && waiting == Some(0.0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(dead, Some(1.0), "{text}");
    let of = |name: &str, label: &str| {
        metric(&text, &format!("tenantry_relay_{name}{{server=\"{}\"{label}}}", place.server))
    };
    assert_eq!(of("events_total", ",result=\"rejected\""), Some(1.0), "{text}");
    assert!(of("posts_total", ",result=\"failed\"").is_some_and(|failed| failed >= 1.0), "{text}");
    assert!(of("last_success_timestamp_seconds", "").is_some_and(|at| at > 1e9), "{text}");
    assert_eq!((of("databases", ""), of("api_available", "")), (Some(1.0), Some(1.0)), "{text}");
    assert_eq!((program.get("/livez").await.0, program.get("/readyz").await.0), (200, 200));
    let log = program.log();
    assert!(log.contains("dead letter") && log.contains(database.as_str()), "{log}");
    assert!(!log.contains(place.access.password.expose()), "no password is logged");
    assert!(program.terminate().await, "SIGTERM is the usual end");
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_that_can_not_work_are_refused_with_advice() {
    let place = Place::new().await;
    let cases: [(&[&str], &str); 4] = [
        (&["--timeout-seconds", "30"], "--timeout-seconds"),
        (&["--api-url", "localhost:80"], "--api-url"),
        (&["--api-ca", "/nonexistent"], "--api-ca /nonexistent can't be read"),
        (&["--batch", "0"], "--batch"),
    ];
    for (flags, advice) in cases {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tenantry"));
        command.args(["relay", "--server", "main", "--listen", "127.0.0.1:0"]);
        if !flags.contains(&"--api-url") {
            command.args(["--api-url", &place.api.url]);
        }
        let output = command.args(flags).env("KUBECONFIG", crate::ground::CLUSTER.kubeconfig()).output();
        let output = output.expect("the program is there");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(advice), "{flags:?}: {text}");
    }
}
