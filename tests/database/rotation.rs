//! Rotation: at every moment a login works for whoever has a password that was ever published,
//! until its overlap is over.

use std::time::Duration;

use tenantry::database::{Credentials, ErrorClass, LoginState, Overlap, OverlapTimes, Slot};

use crate::support::{Ground, Guest, one, until};

/// Times short enough to wait for.
fn times(quiet: u64, max: u64) -> OverlapTimes {
    OverlapTimes { quiet: Duration::from_millis(quiet), max: Duration::from_millis(max) }
}

async fn states(ground: &Ground, guest: &Guest) -> Vec<(Slot, LoginState)> {
    let record = ground.server.record(&ground.database, &guest.id).await.expect("readable").expect("there");
    record.logins.iter().map(|login| (login.slot, login.state)).collect()
}

async fn rotate(ground: &Ground, guest: &Guest) -> Credentials {
    let issued = ground.server.issue_login(&ground.database, &guest.id, Overlap::Respect).await.expect("issued");
    ground.server.login_published(&ground.database, &guest.id, issued.slot).await.expect("published");
    ground.credentials(&guest.id, &issued)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_logins_work_until_the_old_one_is_quiet() {
    let ground = Ground::new("rotate").await;
    let guest = ground.tenant("acme").await;
    let new = rotate(&ground, &guest).await;
    assert_eq!(states(&ground, &guest).await, [(Slot::A, LoginState::Closing), (Slot::B, LoginState::Current)]);
    ground.server.prove(&new).await.expect("the new one works");
    ground.server.prove(&guest.login).await.expect("so does the old one");

    // A client with old files holds a session: the old login stays, however quiet it was.
    let late = ground.client(&guest.login).await;
    let close = async |times| {
        ground.server.close_logins(&ground.database, None, times, Overlap::Respect).await.expect("looked")
    };
    let outcome = close(times(0, 3_600_000)).await;
    assert_eq!((outcome.closed.len(), outcome.closing), (0, 1), "in use");
    assert!(outcome.next_check.is_some());
    assert_eq!(
        one(&late, "SELECT record_usage('users', 1, 'x')").await,
        "1",
        "the old login counts for the same tenant"
    );
    // In use for longer than the while that nobody may have used it: still there.
    let quiet = Duration::from_millis(600);
    let rotated = std::time::Instant::now();
    let mut looked = rotated;
    while rotated.elapsed() < quiet * 2 {
        looked = std::time::Instant::now();
        assert!(close(times(600, 3_600_000)).await.closed.is_empty());
    }
    // The while begins when it was last seen, not at the rotation.
    drop(late);
    until("the old login is closed", async || !close(times(600, 3_600_000)).await.closed.is_empty()).await;
    assert!(looked.elapsed() >= quiet, "closed after {:?}", looked.elapsed());
    let refused = ground.server.prove(&guest.login).await.expect_err("closed");
    assert_eq!(refused.sqlstate(), Some("28P01"), "{refused}");
    ground.server.prove(&new).await.expect("the new one works on");
    assert_eq!(states(&ground, &guest).await, [(Slot::B, LoginState::Current)]);

    // And back to the first slot.
    let third = rotate(&ground, &guest).await;
    assert_eq!(third.username, guest.login.username);
    assert_ne!(third.password, guest.login.password);
    ground.server.prove(&third).await.expect("proven");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_rotation_waits_for_the_first_and_max_overlap_ends_it() {
    let ground = Ground::new("rotate").await;
    let guest = ground.tenant("acme").await;
    rotate(&ground, &guest).await;
    let late = ground.client(&guest.login).await;
    let error = ground.server.issue_login(&ground.database, &guest.id, Overlap::Respect).await.expect_err("too early");
    assert_eq!(error.class(), ErrorClass::Waiting, "{error}");

    until("max overlap is over", async || {
        let outcome = ground
            .server
            .close_logins(&ground.database, Some(&guest.id), times(3_600_000, 300), Overlap::Respect)
            .await;
        outcome.expect("looked").closed == [guest.login.username.clone()]
    })
    .await;
    until("its session is ended", async || late.is_closed()).await;
    rotate(&ground, &guest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaked_password_is_closed_at_once() {
    let ground = Ground::new("rotate").await;
    let guest = ground.tenant("acme").await;
    let thief = ground.client(&guest.login).await;
    let new = rotate(&ground, &guest).await;
    let bystander = ground.tenant("bolt").await;
    rotate(&ground, &bystander).await;
    let outcome =
        ground.server.close_logins(&ground.database, Some(&guest.id), OverlapTimes::default(), Overlap::Cut).await;
    assert_eq!(outcome.expect("closed").closed, std::slice::from_ref(&guest.login.username));
    until("the thief is out", async || thief.is_closed()).await;
    assert!(ground.try_client(&guest.login).await.is_err());
    ground.server.prove(&new).await.expect("the new one works");
    ground.server.prove(&bystander.login).await.expect("another tenant's old login is not touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn cutting_gives_the_closing_slot_a_new_password_and_ends_its_sessions() {
    let ground = Ground::new("rotate").await;
    let guest = ground.tenant("acme").await;
    let current = rotate(&ground, &guest).await;
    let late = ground.client(&guest.login).await;
    let issued = ground.server.issue_login(&ground.database, &guest.id, Overlap::Cut).await.expect("issued");
    assert_eq!(issued.username, guest.login.username);
    until("sessions of the old password end", async || late.is_closed()).await;
    assert!(ground.try_client(&guest.login).await.is_err(), "the old password");
    ground.client(&current).await;
    ground.client(&ground.credentials(&guest.id, &issued)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_verifier_and_secret_costs_no_login() {
    let ground = Ground::new("rotate").await;
    let guest = ground.tenant("acme").await;
    // Issued, and the operator dies: the Secret still has the old one.
    let lost = ground.server.issue_login(&ground.database, &guest.id, Overlap::Respect).await.expect("issued");
    ground.server.prove(&guest.login).await.expect("what the Secret has works");
    let record = ground.server.record(&ground.database, &guest.id).await.expect("readable").expect("there");
    let known = record.login_of(&guest.login.username, &guest.login.password.digest()).expect("recognised");
    assert_eq!(known.state, LoginState::Current);
    let closed = ground.server.close_logins(&ground.database, None, times(0, 0), Overlap::Cut).await.expect("looked");
    assert!(closed.closed.is_empty(), "a pending login is not closed, nor is the current one");

    // The next leader issues again, on the same slot.
    let again = ground.server.issue_login(&ground.database, &guest.id, Overlap::Respect).await.expect("issued");
    assert_eq!(again.username, lost.username);
    assert!(ground.try_client(&ground.credentials(&guest.id, &lost)).await.is_err(), "never published");
    // It writes the Secret and dies before it says so: the digest tells the one after it.
    let record = ground.server.record(&ground.database, &guest.id).await.expect("readable").expect("there");
    let pending = record.login_of(&again.username, &again.password.digest()).expect("recognised");
    assert_eq!(pending.state, LoginState::Pending);
    for round in ["published", "said twice"] {
        ground.server.login_published(&ground.database, &guest.id, pending.slot).await.expect(round);
    }
    assert_eq!(states(&ground, &guest).await, [(Slot::A, LoginState::Closing), (Slot::B, LoginState::Current)]);
    let error = ground.server.login_published(&ground.database, &guest.id, Slot::A).await.expect_err("not pending");
    assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
}

/// Clients that always use the newest password they have seen, one of them late, all through
/// several rotations: not one login fails.
#[tokio::test(flavor = "multi_thread")]
async fn no_login_ever_fails_while_passwords_rotate() {
    let ground = std::sync::Arc::new(Ground::new("rotate").await);
    let guest = ground.tenant("acme").await;
    let quiet = Duration::from_millis(800);
    let delay = quiet / 2;
    let (publish, secret) = tokio::sync::watch::channel(guest.login.clone());
    let (finish, finished) = tokio::sync::watch::channel(false);
    let mut clients = tokio::task::JoinSet::new();
    for late in [false, true] {
        let (ground, mut secret, finished) = (ground.clone(), secret.clone(), finished.clone());
        clients.spawn(async move {
            let mut login = secret.borrow_and_update().clone();
            let mut seen: Option<(std::time::Instant, Credentials)> = None;
            let mut logins = 0_u32;
            while !*finished.borrow() {
                if secret.has_changed().expect("open") {
                    seen = Some((std::time::Instant::now(), secret.borrow_and_update().clone()));
                }
                // The late one sees each file this much later.
                if let Some((_, new)) = seen.take_if(|(when, _)| !late || when.elapsed() >= delay) {
                    login = new;
                }
                let client = ground.try_client(&login).await.expect("no login fails");
                assert_eq!(one(&client, "SELECT 1").await, "1");
                logins += 1;
            }
            logins
        });
    }
    for _ in 0..3 {
        let mut next = None;
        until("a login is free", async || {
            ground
                .server
                .close_logins(&ground.database, None, OverlapTimes { quiet, max: quiet * 100 }, Overlap::Respect)
                .await
                .expect("looked");
            next = ground.server.issue_login(&ground.database, &guest.id, Overlap::Respect).await.ok();
            next.is_some()
        })
        .await;
        let issued = next.expect("issued");
        publish.send(ground.credentials(&guest.id, &issued)).expect("somebody reads");
        ground.server.login_published(&ground.database, &guest.id, issued.slot).await.expect("published");
    }
    finish.send(true).expect("somebody reads");
    while let Some(logins) = clients.join_next().await {
        assert!(logins.expect("no login failed") > 10);
    }
}
