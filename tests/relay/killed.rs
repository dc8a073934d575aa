//! A relay ends without a word, between any two of its steps.

use std::time::Duration;

use crate::{
    api::Say,
    ground::{ACKED, PENDING, Place, Program, count, count_often},
    support::{one, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_any_step_nothing_is_lost_and_nothing_acknowledged_twice() {
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    let superuser = place.database.superuser().await;
    let mut all = 0;
    // Leased, and the API has it but took nothing: the relay waits for an answer when it dies.
    all += 40;
    count_often(&place, &guest, "mails", 40).await;
    place.api.script().always = Some(Say::Silence);
    let program = Program::start(&place, &[]);
    place.api.until("it is sent", |script| script.posts.iter().any(|post| post.events.len() >= 40)).await;
    program.kill();
    assert!(place.api.script().usage.is_empty());
    place.api.script().always = None;

    // Taken, and the answer is on its way when it dies.
    place.api.hold(true);
    let program = Program::start(&place, &[]);
    place.api.arrived(all).await;
    program.kill();
    place.api.hold(false);
    assert_eq!(one(&superuser, ACKED).await, "0", "nobody noted it");

    // Answered, and the note is being made when it dies: a lock keeps it from being made.
    all += 1;
    count_often(&place, &guest, "mails", 1).await;
    place.api.hold(true);
    let program = Program::start(&place, &[]);
    place.api.arrived(all).await;
    superuser.batch_execute("BEGIN; LOCK TABLE tenantry.outbox IN ACCESS EXCLUSIVE MODE").await.expect("locked");
    place.api.hold(false);
    let watcher = place.database.superuser().await;
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = '{}' AND wait_event_type = 'Lock'",
        place.access.user
    );
    until("it waits for the lock", async || one(&watcher, &waits).await != "0").await;
    program.kill();
    superuser.batch_execute("ROLLBACK").await.expect("unlocked");

    // The next one finds all of it.
    let program = Program::start(&place, &[]);
    place.until("all is acknowledged", ACKED, i64::try_from(all).expect("few")).await;
    place.agrees().await;
    assert!(program.terminate().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_while_applications_count() {
    let place = Place::new().await;
    let (acme, bolt) = (place.database.tenant("acme").await, place.database.tenant("bolt").await);
    let done = tokio::sync::watch::Sender::new(false);
    let writers: Vec<_> = [&acme, &bolt]
        .map(|guest| {
            let (login, stop) = (guest.login.clone(), done.subscribe());
            let (host, port) = (place.database.host.clone(), place.database.port);
            tokio::spawn(async move {
                let client =
                    crate::support::connect(&host, port, &login.username, login.password.expose(), &login.database);
                let client = client.await.expect("a login");
                let mut counted = 0;
                while !*stop.borrow() {
                    count(&client, "mails", 1).await;
                    client.batch_execute("BEGIN; SELECT record_usage('mails', 1, 'x'); ROLLBACK").await.expect("none");
                    counted += 1;
                }
                counted
            })
        })
        .into();
    let mut says = [Say::TakeAndCut, Say::Status(500, None), Say::Cut, Say::Garbage].into_iter().cycle();
    for round in 0..8 {
        let program = Program::start(&place, &["--batch", "20"]);
        let seen = place.api.script().posts.len();
        place.api.until("it is at work", |script| script.posts.len() > seen + round).await;
        place.api.script().next.extend(says.next());
        place.api.until("it goes on", |script| script.posts.len() > seen + round + 2).await;
        program.kill();
    }
    done.send_replace(true);
    let mut counted = Vec::new();
    for writer in writers {
        counted.push(writer.await.expect("no panic"));
    }
    let program = Program::start(&place, &[]);
    place.until("all is acknowledged", PENDING, 0).await;
    place.agrees().await;
    {
        let script = place.api.script();
        let sums = [script.sum(acme.id.as_str(), "mails"), script.sum(bolt.id.as_str(), "mails")];
        assert_eq!(sums.to_vec(), counted, "what was committed is what arrived, each once");
    }
    tokio::time::timeout(Duration::from_secs(60), program.terminate()).await.expect("it ends");
}
