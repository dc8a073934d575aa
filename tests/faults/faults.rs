//! The API server refuses, is silent, breaks off or comes late; watches end and can't go on;
//! connections to PostgreSQL are cut at each write; both are killed. Tenants that are made,
//! rotated and deleted meanwhile end as others do.

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use serde_json::{Value, json};

use super::{
    gate::Happening,
    gated::{Gated, all_become, delete, is_gone, is_ready, is_rotated, rotate, undisturbed, works},
    ground::{eventually, tenant},
    proxy::{Calls, Fault},
    snapshot::Names,
};

/// The API server is given up on soon, and what needs looking after is looked after often.
const FLAGS: [&str; 14] = [
    "--lease-identity",
    "the-same",
    "--api-timeout",
    "3s",
    "--health-interval",
    "1s",
    "--watchdog-interval",
    "200ms",
    "--sweep-interval",
    "1s",
    "--rotation-overlap",
    "200ms",
    "--rotation-max-overlap",
    "2s",
];

/// What tenants look like to which nothing happened.
struct Models {
    made: BTreeSet<String>,
    rotated: BTreeSet<String>,
}

fn spec() -> Value {
    json!({"spec": {"deletionPolicy": "Delete"}})
}

impl Models {
    async fn of(gated: &Gated) -> Self {
        let model = gated.make(&tenant("model", spec()), None).await;
        is_ready(gated, &model).await;
        let made = undisturbed(gated, &model).await;
        rotate(gated, &model, None).await;
        is_rotated(gated, &model).await;
        let rotated = undisturbed(gated, &model).await;
        gated.gate.open();
        Self { made, rotated }
    }
}

/// Three tenants to which something happens: one is made, one rotated, one deleted.
struct Trio {
    what: String,
    rotated: Names,
    deleted: Names,
}

impl Trio {
    /// The two that are there before.
    async fn before(gated: &Gated, number: usize, what: &str) -> Self {
        let rotated = gated.make(&tenant(&format!("t{number:02}r"), spec()), None).await;
        let deleted = gated.make(&tenant(&format!("t{number:02}d"), spec()), None).await;
        Self { what: what.to_owned(), rotated, deleted }
    }

    /// Lets all of it happen; returns the one that is made.
    async fn go(&self, gated: &Gated) -> Names {
        let name = self.rotated.name.replace('r', "m");
        let made = gated.make(&tenant(&name, spec()), None).await;
        rotate(gated, &self.rotated, None).await;
        delete(gated, &self.deleted, "Delete", None).await;
        made
    }

    /// Waits until all ended as it should.
    async fn end(&self, gated: &Gated, made: &Names, models: &Models) {
        tokio::join!(is_ready(gated, made), is_rotated(gated, &self.rotated), is_gone(gated, &self.deleted));
        let none = BTreeSet::new();
        let wanted = [(made, &models.made), (&self.rotated, &models.rotated), (&self.deleted, &none)];
        all_become(gated, &wanted, &self.what).await;
        works(gated.client(), &made.name).await;
        works(gated.client(), &self.rotated.name).await;
    }
}

/// What goes wrong at once, and whether all connections are cut at its beginning.
type Case = (&'static str, &'static [(Calls, usize, Fault)], bool);

const CASES: [Case; 13] = [
    ("writes are in conflict", &[(Calls::Writes, 2, Fault::Refused(409, None))], false),
    ("writes are invalid", &[(Calls::Writes, 3, Fault::Refused(422, None))], false),
    ("too many requests", &[(Calls::Writes, 5, Fault::Refused(429, Some(1)))], false),
    ("the API server fails", &[(Calls::Writes, 2, Fault::Refused(500, None))], false),
    ("the API server is overloaded", &[(Calls::Writes, 3, Fault::Refused(503, None))], false),
    ("no answer", &[(Calls::Writes, 5, Fault::Silence)], false),
    ("answers end in their middle", &[(Calls::Writes, 3, Fault::Broken)], false),
    ("watches are dropped", &[], true),
    ("watches are refused", &[(Calls::Watches, 2, Fault::Refused(500, None))], true),
    ("watches are refused as expired", &[(Calls::Watches, 2, Fault::Refused(410, None))], true),
    ("watches say that they are expired", &[(Calls::Watches, 2, Fault::Expired)], true),
    (
        "lists come late",
        &[(Calls::Watches, 2, Fault::Expired), (Calls::Lists, 1, Fault::Late(Duration::from_millis(500)))],
        true,
    ),
    ("lists are not answered", &[(Calls::Watches, 2, Fault::Expired), (Calls::Lists, 4, Fault::Silence)], true),
];

async fn the_api_server_is_faulty(gated: &Gated, models: &Models) {
    let mut trios = Vec::new();
    for (number, (what, ..)) in CASES.iter().enumerate() {
        trios.push(Trio::before(gated, number, what).await);
    }
    join_all(trios.iter().flat_map(|trio| [is_ready(gated, &trio.rotated), is_ready(gated, &trio.deleted)])).await;
    for (trio, (what, faults, cut)) in trios.iter().zip(CASES) {
        let begun = std::time::Instant::now();
        for (calls, every, fault) in faults {
            gated.api.spoil(*calls, *every, *fault);
        }
        if cut {
            gated.api.cut_all();
        }
        let made = trio.go(gated).await;
        if cut {
            // In the middle of it, once more, and those to PostgreSQL as well.
            gated.api.cut_all();
            gated.sql.cut_all();
        }
        let hit = eventually(async || (gated.api.spoilt() >= faults.len()).then_some(())).await;
        assert!(hit.is_some(), "{what}: nothing went wrong");
        // It ends while the fault lasts: a share of all calls goes wrong, and not all of them.
        trio.end(gated, &made, models).await;
        println!("{what}: {} calls went wrong, {:?}", gated.api.spoilt(), begun.elapsed());
        gated.api.heal();
    }
}

/// Cuts the connection of each write of a tenant's life, in each way.
async fn connections_are_cut(gated: &Gated, models: &Models) {
    for (how, letter) in [(Happening::CutBefore, 'b'), (Happening::CutHalfway, 'h'), (Happening::CutAfter, 'a')] {
        let begun = std::time::Instant::now();
        let mut made = Vec::new();
        loop {
            let number = made.len() + 1;
            let names = gated.make(&tenant(&format!("x{letter}-{number:02}"), spec()), Some((number, how))).await;
            let reached = gated.is_reached(is_ready(gated, &names)).await;
            gated.gate.open();
            made.push(names);
            if !reached {
                break;
            }
        }
        let cuts = made.len() - 1;
        assert!(cuts >= 12, "{how:?} at {cuts} writes");
        join_all(made.iter().map(|names| is_ready(gated, names))).await;
        all_become(gated, &made.iter().map(|names| (names, &models.made)).collect::<Vec<_>>(), "a cut").await;
        let mut rotated = 0;
        while gated_cut(gated, &made[rotated], rotated + 1, how).await {
            rotated += 1;
        }
        let wanted: Vec<_> = made[..=rotated].iter().map(|names| (names, &models.rotated)).collect();
        all_become(gated, &wanted, "a cut in a rotation").await;
        let mut deleted = 0;
        loop {
            delete(gated, &made[deleted], "Delete", Some((deleted + 1, how))).await;
            let reached = gated.is_reached(is_gone(gated, &made[deleted])).await;
            gated.gate.open();
            if !reached {
                break;
            }
            deleted += 1;
        }
        let none = BTreeSet::new();
        let wanted: Vec<_> = made[..=deleted].iter().map(|names| (names, &none)).collect();
        all_become(gated, &wanted, "a cut in a deletion").await;
        println!(
            "{how:?}: {cuts} writes of a creation, {rotated} of a rotation, {deleted} of a deletion, {:?}",
            begun.elapsed()
        );
        assert!(rotated >= 4 && deleted >= 3, "{rotated} and {deleted}");
    }
}

/// Rotates a tenant, cut at one of its writes; tells whether it came to that.
async fn gated_cut(gated: &Gated, names: &Names, at: usize, how: Happening) -> bool {
    rotate(gated, names, Some((at, how))).await;
    let reached = gated.is_reached(is_rotated(gated, names)).await;
    gated.gate.open();
    reached
}

/// Both are killed in the middle of it and started again.
async fn both_are_killed(gated: &Gated, models: &Models) {
    let mut trios = Vec::new();
    for number in 50..53 {
        trios.push(Trio::before(gated, number, "a kill").await);
    }
    join_all(trios.iter().flat_map(|trio| [is_ready(gated, &trio.rotated), is_ready(gated, &trio.deleted)])).await;
    let api = gated.ground.cluster.program("kube-apiserver");
    let postgres = gated.ground.cluster.postgres();
    for (trio, (kill_postgres, kill_api)) in trios.iter().zip([(true, false), (false, true), (true, true)]) {
        let made = trio.go(gated).await;
        if kill_postgres {
            postgres.kill();
        }
        if kill_api {
            api.kill();
            api.start_again().expect("it starts again");
        }
        if kill_postgres {
            postgres.start_again().expect("it starts again");
        }
        gated.ground.cluster.await_api().await.expect("it answers");
        trio.end(gated, &made, models).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_ends_as_it_would_have() {
    let gated = Gated::start(&FLAGS).await;
    let models = Models::of(&gated).await;
    the_api_server_is_faulty(&gated, &models).await;
    connections_are_cut(&gated, &models).await;
    both_are_killed(&gated, &models).await;
}
