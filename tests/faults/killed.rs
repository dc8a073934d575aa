//! The operator is killed after each write of a tenant's creation, rotation and deletion, and
//! started again: all ends as if nothing had happened.

use std::{collections::BTreeSet, time::Instant};

use futures::future::join_all;
use kube::Api;
use serde_json::{Value, json};
use tenantry::api::{Application, Pool};

use super::{
    gate::{Happening, Write},
    gated::{Act, Gated, Job, all_become, all_done, works},
    ground::{await_tenant, eventually, is, merge, tenant},
    snapshot::{Names, logins},
    verbs::{application, of, ours, patch},
};

/// Everything is looked after often, so that what another operator left is taken up at once.
const FLAGS: [&str; 10] = [
    "--health-interval",
    "1s",
    "--watchdog-interval",
    "200ms",
    // It closes the login of migrations that were over when the operator ended.
    "--sweep-interval",
    "1s",
    "--rotation-overlap",
    "200ms",
    "--rotation-max-overlap",
    "2s",
];

/// How many tenants are each held after a write of their own when the operator is killed. Each
/// may hold a connection to PostgreSQL, of which there have to be more.
const AT_A_TIME: usize = 12;

/// Has the operator killed when each of these is held after its write, and started again.
async fn kill_at(gated: &mut Gated, jobs: &[Job]) {
    let begun = Instant::now();
    for batch in jobs.chunks(AT_A_TIME) {
        let held = async |job: &Job| {
            let counted = job.begin(gated).await;
            tokio::select! {
                biased;
                () = counted.reached() => {}
                () = job.act.is_done(gated, &job.names) => job.assert_reached(&counted),
            }
        };
        join_all(batch.iter().map(held)).await;
        gated.gate.open();
        gated.restart();
    }
    println!("{} writes in {:?}", jobs.len(), begun.elapsed());
}

/// Tenants that are made alike.
struct Line {
    prefix: &'static str,
    spec: Value,
    made: usize,
}

impl Line {
    fn next(&mut self) -> Value {
        self.made += 1;
        tenant(&format!("{}{:03}", self.prefix, self.made), self.spec.clone())
    }

    /// Some that are there and undisturbed.
    async fn ready(&mut self, gated: &Gated, count: usize) -> Vec<Names> {
        let all: Vec<_> = (0..count).map(|_| self.next()).collect();
        let names = join_all(all.iter().map(|tenant| gated.make(tenant))).await;
        all_done(gated, Act::Create, &names).await;
        names
    }
}

fn jobs(act: Act, writes: &[Write], tenants: &[Names]) -> Vec<Job> {
    assert_eq!(writes.len(), tenants.len());
    let job = |(at, names): (&Write, &Names)| Job { act, names: names.clone(), at: at.clone(), how: Happening::Last };
    writes.iter().zip(tenants).map(job).collect()
}

/// Settles what deletion will do with these, before anything is counted.
async fn choose(gated: &Gated, tenants: &[Names], policy: &str) {
    let change = json!({"spec": {"deletionPolicy": policy}});
    let choose = async |names: &Names| {
        patch(gated.client(), &ours("Tenant", &names.name), &change).await;
        await_tenant(gated.client(), &names.name, "Ready", |tenant| is(tenant, "Ready", "True")).await;
    };
    join_all(tenants.iter().map(choose)).await;
}

/// Creation, rotation and both deletions of tenants that are made like `spec`. Returns the
/// writes of a creation.
async fn a_whole_life(gated: &mut Gated, prefix: &'static str, spec: Value) -> Vec<Write> {
    let mut line = Line { prefix, spec, made: 0 };
    // Where they are placed has to be there before the model's writes are counted.
    let models = line.ready(gated, 2).await;
    let (kept, dropped) = (&models[0], &models[1]);
    let model = gated.prepare(&line.next()).await;
    let creation = gated.observe(Act::Create, &model).await;
    let made = gated.settled(&model).await;
    assert_eq!(logins(&made), [("Closed".to_owned(), 2), ("Current".to_owned(), 1)].into(), "{made:#?}");
    let mut tenants = Vec::new();
    for _ in &creation {
        tenants.push(gated.prepare(&line.next()).await);
    }
    kill_at(gated, &jobs(Act::Create, &creation, &tenants)).await;
    all_done(gated, Act::Create, &tenants).await;
    all_become(gated, &tenants, &made, "creation").await;
    join_all(tenants.iter().map(|names| works(gated, names))).await;

    choose(gated, &models[..1], "Retain").await;
    choose(gated, &models[1..], "Delete").await;
    let (mut rotation, retaining, dropping) = tokio::join!(
        gated.observe(Act::Rotate, &model),
        gated.observe(Act::Delete, kept),
        gated.observe(Act::Delete, dropped)
    );
    let (rotated, retained) = (gated.settled(&model).await, gated.settled(kept).await);
    assert!(logins(&retained).keys().all(|state| state == "Closed"), "{retained:#?}");
    assert_eq!(gated.settled(dropped).await, BTreeSet::new(), "nothing is left");

    let needed = rotation.len() + retaining.len() + dropping.len();
    tenants.extend(line.ready(gated, needed.saturating_sub(tenants.len())).await);
    let (to_rotate, rest) = tenants.split_at(rotation.len());
    let (to_retain, rest) = rest.split_at(retaining.len());
    let to_drop = &rest[..dropping.len()];
    choose(gated, to_retain, "Retain").await;
    choose(gated, to_drop, "Delete").await;
    // Old logins are closed for all tenants of a server in turn: none waits behind one that is held.
    let closing = rotation.split_off(rotation.len() - 1);
    let (to_close, to_rotate_first) = to_rotate.split_last().expect("a rotation has writes");
    let all = [
        jobs(Act::Rotate, &rotation, to_rotate_first),
        jobs(Act::Delete, &retaining, to_retain),
        jobs(Act::Delete, &dropping, to_drop),
    ];
    kill_at(gated, &all.into_iter().flatten().collect::<Vec<_>>()).await;
    kill_at(gated, &jobs(Act::Rotate, &closing, std::slice::from_ref(to_close))).await;
    all_done(gated, Act::Rotate, to_rotate).await;
    all_done(gated, Act::Delete, to_retain).await;
    all_done(gated, Act::Delete, to_drop).await;
    all_become(gated, to_rotate, &rotated, "rotation").await;
    all_become(gated, to_retain, &retained, "deletion with Retain").await;
    all_become(gated, to_drop, &BTreeSet::new(), "deletion with Delete").await;
    join_all(to_rotate.iter().map(|names| works(gated, names))).await;
    println!("killed after {} writes of a creation and {needed} of the rest", creation.len());
    creation
}

/// A Tenant that is the first of an Application of its own, whose name is its own.
async fn first(gated: &Gated, name: &str, spec: &Value) -> Names {
    application(gated.client(), name, json!({})).await;
    let mut spec = spec.clone();
    merge(&mut spec, of(name, json!({})));
    gated.prepare(&tenant(name, spec)).await
}

/// The writes for what the first tenant of an Application needs: its pool, or a database. Those
/// that others have as well are `known`.
async fn the_first_of_an_application(gated: &mut Gated, prefix: &str, spec: Value, known: &[Write]) {
    let named = |number: usize| format!("{prefix}{number:03}");
    let model = first(gated, &named(0), &spec).await;
    let mut writes = gated.observe(Act::Create, &model).await;
    // Counts of tenants are written every few seconds.
    writes.retain(|write| !known.contains(write) && !write.what.contains("/applications/"));
    counted(gated, &model.name).await;
    let made = gated.settled(&model).await;
    let mut tenants = Vec::new();
    for number in 1..=writes.len() {
        tenants.push(first(gated, &named(number), &spec).await);
    }
    kill_at(gated, &jobs(Act::Create, &writes, &tenants)).await;
    all_done(gated, Act::Create, &tenants).await;
    all_become(gated, &tenants, &made, "the creation of the first of an Application").await;
    join_all(tenants.iter().map(|names| works(gated, names))).await;
    println!("killed after {} writes for the first of an Application", writes.len());
}

/// Waits until an Application and its pools say that they have a tenant.
async fn counted(gated: &Gated, name: &str) {
    let applications = Api::<Application>::all(gated.client().clone());
    let pools = Api::<Pool>::all(gated.client().clone());
    let counted = eventually(async || {
        let application = applications.get(name).await.ok()?;
        let pools = pools.list(&Default::default()).await.ok()?;
        let mut of_it = pools.items.iter().filter(|pool| pool.spec.application == name);
        let all = of_it.all(|pool| pool.status.as_ref().is_some_and(|status| status.tenants == 1));
        (all && application.status?.tenants == 1).then_some(())
    });
    assert!(counted.await.is_some(), "{name} does not count its tenant");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_each_write_of_a_pooled_tenant_and_its_pool() {
    let mut gated = Gated::start(&FLAGS).await;
    let creation = a_whole_life(&mut gated, "kp", json!({})).await;
    the_first_of_an_application(&mut gated, "fp", json!({}), &creation).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_each_write_of_a_bridge_tenant_and_its_database() {
    let mut gated = Gated::start(&FLAGS).await;
    let spec = json!({"spec": {"tier": "bridge"}});
    let creation = a_whole_life(&mut gated, "kb", spec.clone()).await;
    the_first_of_an_application(&mut gated, "fb", spec, &creation).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_each_write_of_a_dedicated_tenant() {
    let mut gated = Gated::start(&FLAGS).await;
    a_whole_life(&mut gated, "kd", json!({"spec": {"tier": "dedicated", "plan": "enterprise"}})).await;
}
