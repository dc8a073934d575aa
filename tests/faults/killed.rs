//! The operator is killed after each write of a tenant's creation, rotation and deletion, and
//! started again: all ends as if nothing had happened.

use std::collections::BTreeSet;

use futures::future::join_all;
use serde_json::{Value, json};

use super::{
    gate::Happening,
    gated::{Gated, all_become, delete, is_gone, is_ready, is_rotated, rotate, undisturbed, works},
    ground::tenant,
    snapshot::{Names, logins},
};

/// Everything is looked after often, so that what another operator left is taken up at once; and
/// who comes back is the leader at once.
const FLAGS: [&str; 12] = [
    "--lease-identity",
    "the-same",
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

/// Every how many writes the operator is killed. TENANTRY_TEST_EVERY_WRITE=1 has it killed after
/// each, which takes four times as long.
fn step() -> usize {
    if std::env::var_os("TENANTRY_TEST_EVERY_WRITE").is_some() { 1 } else { 4 }
}

/// Kills the operator after the first write of what `act` asks for, then `step` later, each
/// time with another tenant, until all is done before the gate is reached. `act` is told the
/// tenant's number, from 0, and that of the write, from 1. Returns the tenants that were disturbed.
async fn kill_after_each_write<A, D>(gated: &mut Gated, what: &str, writes: usize, act: A, done: D) -> Vec<Names>
where
    A: AsyncFn(&Gated, usize, usize) -> Names,
    D: AsyncFn(&Gated, &Names),
{
    let mut disturbed = Vec::new();
    loop {
        let names = act(gated, disturbed.len(), disturbed.len() * step() + 1).await;
        let reached = gated.is_reached(done(gated, &names)).await;
        if !reached {
            gated.gate.open();
            disturbed.push(names);
            break;
        }
        gated.gate.open();
        gated.restart();
        disturbed.push(names);
    }
    let kills = disturbed.len() - 1;
    println!("{what}: killed {kills} times, every {} writes", step());
    assert!((kills + 1) * step() >= writes, "{what} took {writes} writes undisturbed, and was disturbed at {kills}");
    disturbed
}

/// How many writes there are at least: some are made again until something has ended, as often
/// as that takes.
fn sorts(writes: &[String]) -> usize {
    writes.iter().collect::<BTreeSet<_>>().len()
}

fn each<'a>(tenants: &'a [Names], wanted: &'a BTreeSet<String>) -> Vec<(&'a Names, &'a BTreeSet<String>)> {
    tenants.iter().map(|names| (names, wanted)).collect()
}

/// Creation, rotation and both deletions of tenants that are made like `spec`.
async fn a_whole_life(gated: &mut Gated, prefix: &str, spec: Value) {
    let named = |number: usize| format!("{prefix}{number:02}");
    let create = |number: usize| tenant(&named(number), spec.clone());

    let model = gated.make(&create(0), None).await;
    is_ready(gated, &model).await;
    let writes = gated.gate.open();
    println!("creation: {writes:#?}");
    let act = async |gated: &Gated, index: usize, number: usize| {
        gated.make(&create(index + 1), Some((number, Happening::Last))).await
    };
    let tenants = kill_after_each_write(gated, "creation", sorts(&writes), act, is_ready).await;
    join_all(tenants.iter().map(|names| is_ready(gated, names))).await;
    let made = undisturbed(gated, &model).await;
    all_become(gated, &each(&tenants, &made), "creation").await;
    assert_eq!(logins(&made), [("Closed".to_owned(), 2), ("Current".to_owned(), 1)].into(), "{made:#?}");
    for names in &tenants {
        works(gated.client(), &names.name).await;
    }

    rotate(gated, &model, None).await;
    is_rotated(gated, &model).await;
    let writes = gated.gate.open();
    println!("rotation: {writes:#?}");
    let rotated = undisturbed(gated, &model).await;
    let act = async |gated: &Gated, index: usize, number: usize| {
        let names = tenants[index].clone();
        rotate(gated, &names, Some((number, Happening::Last))).await;
        names
    };
    let disturbed = kill_after_each_write(gated, "rotation", sorts(&writes), act, is_rotated).await;
    all_become(gated, &each(&disturbed, &rotated), "rotation").await;
    for names in &disturbed {
        works(gated.client(), &names.name).await;
    }

    let mut left = tenants;
    let mut model = Some(model);
    for (policy, spare) in [("Retain", 40), ("Delete", 60)] {
        // A write that is made again until something has ended may take more tenants than the
        // creation had: the rest are made undisturbed.
        let another = async |gated: &Gated, number: usize| {
            let names = gated.make(&create(spare + number), None).await;
            is_ready(gated, &names).await;
            gated.gate.open();
            names
        };
        let model = match model.take().or_else(|| left.pop()) {
            Some(model) => model,
            None => another(gated, 0).await,
        };
        delete(gated, &model, policy, None).await;
        is_gone(gated, &model).await;
        let writes = gated.gate.open();
        println!("deletion with {policy}: {writes:#?}");
        let ended = undisturbed(gated, &model).await;
        let act = async |gated: &Gated, index: usize, number: usize| {
            let names = match left.iter().rev().nth(index) {
                Some(names) => names.clone(),
                None => another(gated, index + 1).await,
            };
            delete(gated, &names, policy, Some((number, Happening::Last))).await;
            names
        };
        let disturbed = kill_after_each_write(gated, policy, sorts(&writes), act, is_gone).await;
        join_all(disturbed.iter().map(|names| is_gone(gated, names))).await;
        all_become(gated, &each(&disturbed, &ended), policy).await;
        left.truncate(left.len().saturating_sub(disturbed.len()));
        match policy {
            "Retain" => assert!(logins(&ended).keys().all(|state| state == "Closed"), "{ended:#?}"),
            _ => assert_eq!(ended, BTreeSet::new(), "nothing is left"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_each_write_of_a_pooled_tenant() {
    let mut gated = Gated::start(&FLAGS).await;
    a_whole_life(&mut gated, "kp", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_each_write_of_a_bridge_tenant() {
    let mut gated = Gated::start(&FLAGS).await;
    a_whole_life(&mut gated, "kb", json!({"spec": {"tier": "bridge"}})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_each_write_of_a_dedicated_tenant() {
    let mut gated = Gated::start(&FLAGS).await;
    a_whole_life(&mut gated, "kd", json!({"spec": {"tier": "dedicated", "plan": "enterprise"}})).await;
}
