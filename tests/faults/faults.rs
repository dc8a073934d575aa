//! The API server refuses, is silent, breaks off or comes late; watches end and can't go on;
//! connections to PostgreSQL are cut at each write; both are killed. Tenants that are made,
//! rotated and deleted meanwhile end as others do.

use std::{
    collections::BTreeSet,
    slice::from_ref,
    time::{Duration, Instant},
};

use futures::future::join_all;
use serde_json::{Value, json};

use super::{
    gate::{Happening, Write},
    gated::{Act, Gated, Job, all_become, all_done, works},
    ground::{eventually, tenant},
    proxy::{Calls, Fault},
    snapshot::Names,
};

/// The API server is given up on soon, and what needs looking after is looked after often.
const FLAGS: [&str; 12] = [
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

/// What it takes to do something undisturbed, and the state in the end.
struct Model {
    writes: Vec<Write>,
    end: BTreeSet<String>,
}

impl Model {
    async fn of(gated: &Gated, act: Act, names: &Names) -> Self {
        let writes = gated.observe(act, names).await;
        Self { writes, end: gated.settled(names).await }
    }

    /// The first write that is worded so.
    fn write(&self, begin: &str) -> Write {
        let found = self.writes.iter().find(|write| write.what.starts_with(begin));
        found.unwrap_or_else(|| panic!("no {begin} in {:#?}", self.writes)).clone()
    }
}

/// What becomes of tenants to which nothing happens.
struct Models {
    made: Model,
    rotated: Model,
    deleted: Model,
    bridge: BTreeSet<String>,
}

fn pooled(name: &str) -> Value {
    tenant(name, json!({"spec": {"deletionPolicy": "Delete"}}))
}

fn bridge(name: &str) -> Value {
    tenant(name, json!({"spec": {"deletionPolicy": "Delete", "tier": "bridge"}}))
}

impl Models {
    async fn of(gated: &Gated) -> Self {
        // Where they are placed has to be there before anything is counted.
        let others = [gated.make(&pooled("model-0")).await, gated.make(&bridge("model-b")).await];
        all_done(gated, Act::Create, &others).await;
        let model = gated.prepare(&pooled("model-1")).await;
        let made = Model::of(gated, Act::Create, &model).await;
        let rotated = Model::of(gated, Act::Rotate, &model).await;
        let deleted = Model::of(gated, Act::Delete, &model).await;
        assert_eq!(deleted.end, BTreeSet::new(), "nothing is left");
        Self { made, rotated, deleted, bridge: gated.settled(&others[1]).await }
    }

    fn of_act(&self, act: Act) -> &Model {
        match act {
            Act::Create => &self.made,
            Act::Rotate => &self.rotated,
            Act::Delete => &self.deleted,
        }
    }
}

/// Three tenants to which something happens: one is made, one rotated, one deleted.
struct Trio {
    what: &'static str,
    made: Names,
    rotated: Names,
    deleted: Names,
}

impl Trio {
    /// Those of each number that are there before.
    async fn before(gated: &Gated, prefix: &str, whats: &[&'static str]) -> Vec<Self> {
        let mut trios = Vec::new();
        for (number, what) in whats.iter().enumerate() {
            let named = |letter: &str| pooled(&format!("{prefix}{number:02}{letter}"));
            let made = gated.prepare(&named("m")).await;
            let (rotated, deleted) = (gated.make(&named("r")).await, gated.make(&named("d")).await);
            trios.push(Self { what, made, rotated, deleted });
        }
        let there: Vec<_> = trios.iter().flat_map(|trio| [trio.rotated.clone(), trio.deleted.clone()]).collect();
        all_done(gated, Act::Create, &there).await;
        trios
    }

    fn parts(&self) -> [(Act, &Names); 3] {
        [(Act::Create, &self.made), (Act::Rotate, &self.rotated), (Act::Delete, &self.deleted)]
    }

    /// Lets all of it happen.
    async fn go(&self, gated: &Gated) {
        join_all(self.parts().map(|(act, names)| act.begin(gated, names))).await;
    }

    /// Waits until all ended as it should.
    async fn end(&self, gated: &Gated, models: &Models) {
        join_all(self.parts().map(|(act, names)| act.is_done(gated, names))).await;
        for (act, names) in self.parts() {
            all_become(gated, from_ref(names), &models.of_act(act).end, self.what).await;
        }
        works(gated, &self.made).await;
        works(gated, &self.rotated).await;
    }
}

/// What goes wrong at once, and whether all connections are cut at its beginning.
type Case = (&'static str, &'static [(Calls, usize, Fault)], bool);

const CASES: [Case; 13] = [
    ("writes are in conflict", &[(Calls::Writes, 3, Fault::Refused(409, None))], false),
    ("writes are invalid", &[(Calls::Writes, 3, Fault::Refused(422, None))], false),
    ("too many requests", &[(Calls::Writes, 5, Fault::Refused(429, Some(1)))], false),
    ("the API server fails", &[(Calls::Writes, 3, Fault::Refused(500, None))], false),
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

/// How the names of those tenants of tier bridge begin that faults are for. They have many times
/// the writes of others, each of which the next one waits for, and after each failure for longer:
/// fewer of them go wrong.
const BRIDGE: &str = "tb";
const FEWER: usize = 8;

/// Each fault, while three tenants live through it; and one of tier bridge that is made, and one,
/// from the case before, whose deletion begins. (Kubernetes takes ten seconds to empty a namespace,
/// and so it ends in the case after.)
async fn the_api_server_is_faulty(gated: &Gated, models: &Models) {
    let trios = Trio::before(gated, "t", &CASES.map(|(what, ..)| what)).await;
    let first = gated.make(&bridge(&format!("{BRIDGE}-first"))).await;
    all_done(gated, Act::Create, from_ref(&first)).await;
    let mut bridges = vec![first];
    for ((number, trio), (what, faults, cut)) in trios.iter().enumerate().zip(CASES) {
        let begun = Instant::now();
        let own = gated.prepare(&bridge(&format!("{BRIDGE}{number:02}"))).await;
        for (calls, every, fault) in faults {
            if *calls == Calls::Writes {
                gated.api.spoil(*calls, BRIDGE, FEWER, *fault);
            }
            gated.api.spoil(*calls, "", *every, *fault);
        }
        if cut {
            gated.api.cut_all();
        }
        trio.go(gated).await;
        Act::Create.begin(gated, &own).await;
        Act::Delete.begin(gated, bridges.last().expect("the first one")).await;
        if cut {
            // In the middle of it, once more, and those to PostgreSQL as well.
            gated.api.cut_all();
            gated.sql.cut_all();
        }
        let each = eventually(async || gated.api.spoilt().iter().all(|hits| *hits > 0).then_some(())).await;
        assert!(each.is_some(), "{what}: not everything went wrong: {:?}", gated.api.spoilt());
        // It ends while the fault lasts: a share of all calls goes wrong, and not all of them.
        trio.end(gated, models).await;
        all_done(gated, Act::Create, from_ref(&own)).await;
        all_become(gated, from_ref(&own), &models.bridge, what).await;
        works(gated, &own).await;
        println!("{what}: {:?} calls went wrong, {:?}", gated.api.spoilt(), begun.elapsed());
        gated.api.heal();
        bridges.push(own);
    }
    Act::Delete.begin(gated, bridges.last().expect("the last one")).await;
    all_done(gated, Act::Delete, &bridges).await;
    all_become(gated, &bridges, &BTreeSet::new(), "faults of the API server").await;
}

/// Does something with as many tenants as there are writes for it, and cuts the connection of
/// each at another one, all of them at once. Cuts that only PostgreSQL can tell from others are
/// made at its writes alone.
async fn cut(gated: &Gated, models: &Models, act: Act, how: Happening, tenants: &[Names]) {
    let begun = Instant::now();
    let of_postgres = [Happening::CutHalfway, Happening::CutWithin].contains(&how);
    let model = models.of_act(act);
    let writes = model.writes.iter().filter(|write| !of_postgres || write.what.starts_with("SQL "));
    let job = |(at, names): (&Write, &Names)| Job { act, names: names.clone(), at: at.clone(), how };
    let jobs: Vec<_> = writes.zip(tenants).map(job).collect();
    let counted = join_all(jobs.iter().map(|job| job.begin(gated))).await;
    let (cut, others) = tenants.split_at(jobs.len());
    if act == Act::Create {
        join_all(others.iter().map(|names| act.begin(gated, names))).await;
        all_done(gated, act, others).await;
    }
    all_done(gated, act, cut).await;
    for (job, counted) in jobs.iter().zip(&counted) {
        job.assert_reached(counted);
    }
    gated.gate.open();
    all_become(gated, cut, &model.end, &format!("{how:?}")).await;
    println!("{act:?}: {how:?} at each of {} writes, {:?}", jobs.len(), begun.elapsed());
}

/// Cuts the connection of each write of a tenant's life, in each way.
async fn connections_are_cut(gated: &Gated, models: &Models) {
    let acts = [Act::Create, Act::Rotate, Act::Delete];
    let most = acts.map(|act| models.of_act(act).writes.len()).into_iter().max().unwrap_or_default();
    let ways = [Happening::CutBefore, Happening::CutHalfway, Happening::CutWithin, Happening::CutAfter];
    for (way, how) in ways.into_iter().enumerate() {
        let mut tenants = Vec::new();
        for number in 0..most {
            tenants.push(gated.prepare(&pooled(&format!("x{way}-{number:02}"))).await);
        }
        for act in acts {
            cut(gated, models, act, how, &tenants).await;
        }
    }
}

/// Both are killed in the midst of it and started again: PostgreSQL while transactions are open
/// that have done everything, the API server before it is heard that something is done.
async fn both_are_killed(gated: &Gated, models: &Models) {
    let api = gated.ground.cluster.program("kube-apiserver");
    let postgres = gated.ground.cluster.postgres();
    let whats = ["PostgreSQL is killed", "the API server is killed", "both are killed"];
    let trios = Trio::before(gated, "k", &whats).await;
    for (trio, (kill_postgres, kill_api)) in trios.iter().zip([(true, false), (false, true), (true, true)]) {
        let begun = Instant::now();
        // With both, some of each.
        let in_postgres = [kill_postgres, kill_postgres && !kill_api, kill_postgres];
        let writes =
            [("SQL INSERT", "PATCH /api/v1"), ("SQL DO E'BEGIN UPDATE", "PATCH /api/v1"), ("SQL GRANT", "DELETE")];
        let parts = trio.parts().into_iter().zip(writes).zip(in_postgres);
        let jobs = parts.map(|(((act, names), (sql, call)), in_postgres)| {
            let (write, how) = if in_postgres { (sql, Happening::Open) } else { (call, Happening::Last) };
            Job { act, names: names.clone(), at: models.of_act(act).write(write), how }
        });
        let jobs: Vec<_> = jobs.collect();
        let under_way = join_all(jobs.iter().map(|job| job.begin(gated))).await;
        for (job, counted) in jobs.iter().zip(&under_way) {
            let reached = eventually(async || counted.is_reached().then_some(())).await;
            assert!(reached.is_some(), "{}: {:?} is not reached: {:#?}", trio.what, job.at, counted.writes());
        }
        if kill_postgres {
            postgres.kill();
        }
        if kill_api {
            api.kill();
        }
        gated.gate.open();
        if kill_api {
            gated.api.cut_all();
            api.start_again().expect("it starts again");
        }
        if kill_postgres {
            postgres.start_again().expect("it starts again");
        }
        gated.ground.cluster.await_api().await.expect("it answers");
        trio.end(gated, models).await;
        println!("{}: {:?}", trio.what, begun.elapsed());
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
