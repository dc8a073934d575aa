//! Several relays of one server share its events.

use std::collections::BTreeSet;

use tenantry::relay;

use crate::{
    api::Script,
    ground::{ACKED, PENDING, Place, Program, Relay, count, count_often},
    support::one,
};

async fn two(place: &Place) -> (Relay, Relay) {
    let other = relay::Options { token_file: place.token("two"), ..place.options() };
    (
        Relay::start(relay::Options { batch: 50, ..place.options() }).await,
        Relay::start(relay::Options { batch: 50, ..other }).await,
    )
}

fn senders(script: &Script) -> BTreeSet<String> {
    let of_usage = script.posts.iter().filter(|post| post.events.iter().any(|it| it["type"] == "io.tenantry.usage.v1"));
    of_usage.map(|post| post.token.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_share_the_work_and_each_event_is_sent_and_acknowledged_once() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    let (one_relay, other) = two(&place).await;
    for _ in 0..20 {
        count_often(&place, &guest, "mails", 200).await;
        if senders(&place.api.script()).len() == 2 {
            break;
        }
    }
    place.until("all is acknowledged", PENDING, 0).await;
    place.agrees().await;
    {
        let script = place.api.script();
        assert_eq!(senders(&script).len(), 2, "both have sent");
        assert!(script.usage.values().all(|(times, _)| *times == 1), "nothing was sent by both");
    }
    one_relay.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_them_speaks_for_the_database_and_the_other_when_that_is_gone() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    count(&place.database.client(&guest.login).await, "mails", 1).await;
    let (first, second) = two(&place).await;
    place.api.until("many reports", |script| script.reports.len() >= 12).await;
    let speakers = |script: &Script, from: usize| -> BTreeSet<String> {
        script.reports.iter().skip(from).map(|(token, _)| token.clone()).collect()
    };
    // At the beginning both may take themselves for the first, before the other has logged in.
    let speaker = speakers(&place.api.script(), 6);
    assert_eq!(speaker.len(), 1, "one speaks: {speaker:?}");
    let (speaking, silent) = if speaker.contains("one") { (first, second) } else { (second, first) };
    speaking.stop().await;
    let seen = place.api.script().reports.len();
    place.api.until("the other speaks", |script| script.reports.len() > seen + 1).await;
    assert!(speakers(&place.api.script(), seen).is_disjoint(&speaker));
    silent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_one_is_killed_the_other_sends_what_it_had() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    place.api.hold(true);
    count_often(&place, &guest, "mails", 30).await;
    let killed = Program::start(&place, &[]);
    place.api.arrived(30).await;
    let other = Relay::start(place.options()).await;
    killed.kill();
    place.api.hold(false);
    place.until("all is acknowledged", ACKED, 30).await;
    place.agrees().await;
    let superuser = place.database.superuser().await;
    assert_eq!(one(&superuser, "SELECT max(attempts) FROM tenantry.outbox").await, "2");
    other.stop().await;
}
