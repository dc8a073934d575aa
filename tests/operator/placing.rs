//! Which pool a Tenant gets, and when there is none.

use std::collections::BTreeMap;

use devcluster::Options;
use jiff::Timestamp;
use kube::{Api, Client};
use serde_json::{Value, json};
use tenantry::api::{Pool, Tenant};

use super::{
    ground::{
        Ground, OPERATOR, apply, await_pool, await_tenant, condition, create, delete_tenant, eventually, is,
        ready_tenant, tenant,
    },
    steps::{calm, healed},
    verbs::{application, id, of, ours, patch, patch_status, place, rows, superuser},
};

fn pool_of(tenant: &Tenant) -> Option<&str> {
    tenant.status.as_ref()?.pool.as_deref()
}

/// The Tenants of an application that are Ready by pool, and those that wait; once there
/// are as many as that.
async fn await_placed(
    client: &Client,
    application: &str,
    ready: usize,
    waiting: usize,
) -> BTreeMap<String, Vec<String>> {
    let mut last = (0, 0);
    let placed = eventually(async || {
        let all = Api::<Tenant>::all(client.clone()).list(&Default::default()).await.expect("Tenants").items;
        let all: Vec<_> = all.into_iter().filter(|tenant| tenant.spec.application == application).collect();
        let waits = |tenant: &&Tenant| {
            let conditions = tenant.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            pool_of(tenant).is_none() && condition(conditions, "Placed").is_some_and(|it| it.reason == "NoCapacity")
        };
        let mut pools: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for tenant in all.iter().filter(|tenant| is(tenant, "Ready", "True")) {
            let pool = pool_of(tenant).expect("who is Ready has a pool").to_owned();
            pools.entry(pool).or_default().push(tenant.metadata.name.clone().expect("a name"));
        }
        last = (pools.values().map(Vec::len).sum(), all.iter().filter(waits).count());
        (last == (ready, waiting)).then_some(pools)
    })
    .await;
    placed.unwrap_or_else(|| panic!("{} are Ready and {} wait, not {ready} and {waiting}", last.0, last.1))
}

fn sizes(placed: &BTreeMap<String, Vec<String>>) -> Vec<(&str, usize)> {
    placed.iter().map(|(pool, tenants)| (pool.as_str(), tenants.len())).collect()
}

/// The Tenants that live in a pool's database, as its records tell.
async fn recorded(ground: &Ground, pool: &str) -> usize {
    let root = superuser(ground, &Pool::database_name(pool)).await;
    rows(&root, "SELECT name FROM tenantry.tenant WHERE state = 'Live'").await.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_tenants_at_once_fill_two_pools_and_the_rest_waits_for_room() {
    // Its PostgreSQL has nobody else's databases: they would count.
    let ground = &Ground::start(Options::default()).await;
    let (client, _operator) = (ground.client.clone(), ground.operator(&[]));
    ground.examples().await;
    ground.server(&client, "tiny", json!({"capacity": {"databases": 2}})).await;
    let crowd = json!({"database": {"pooled": {"servers": ["tiny"]}}, "pools": {"maxTenants": 4}});
    application(&client, "crowd", crowd).await;
    let names: Vec<String> = (0..30).map(|number| format!("crowd-t{number}")).collect();
    let made = names.iter().map(async |name| apply(&client, &tenant(name, of("crowd", json!({})))).await.map(drop));
    for result in futures::future::join_all(made).await {
        result.expect("a Tenant");
    }
    let placed = await_placed(&client, "crowd", 8, 22).await;
    assert_eq!(sizes(&placed), [("crowd-1", 4), ("crowd-2", 4)]);
    for pool in ["crowd-1", "crowd-2"] {
        assert_eq!(recorded(ground, pool).await, 4);
        await_pool(&client, pool, "full", |pool| {
            pool.status.as_ref().is_some_and(|status| (status.tenants, status.capacity) == (4, 4))
        })
        .await;
    }
    let waits = names.iter().find(|name| !placed.values().flatten().any(|other| other == *name)).expect("one waits");
    let waits = Api::<Tenant>::all(client.clone()).get(waits).await.expect("a Tenant");
    let conditions = &waits.status.as_ref().expect("a status").conditions;
    let message = &condition(conditions, "Placed").expect("Placed").message;
    for part in [
        "none of the Application's 2 pools has room",
        "DatabaseServer tiny has 2 of 2 databases (spec.capacity.databases)",
        "Raise maxTenants of a Pool or the capacity of a server, or add a DatabaseServer",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(is(&waits, "Ready", "False") && is(&waits, "Reconciling", "True"), "{conditions:#?}");
    assert!(condition(conditions, "Stalled").is_none(), "waiting is no mistake: {conditions:#?}");

    // Room by a tenant that goes, by a larger server, by a larger pool, by a pool made by hand.
    delete_tenant(&client, &placed["crowd-2"][0]).await;
    assert_eq!(sizes(&await_placed(&client, "crowd", 8, 21).await), [("crowd-1", 4), ("crowd-2", 4)]);
    patch(&client, &ours("DatabaseServer", "tiny"), &json!({"spec": {"capacity": {"databases": 3}}})).await;
    let placed = await_placed(&client, "crowd", 12, 17).await;
    assert_eq!(sizes(&placed), [("crowd-1", 4), ("crowd-2", 4), ("crowd-3", 4)]);
    patch(&client, &ours("Pool", "crowd-2"), &json!({"spec": {"maxTenants": 6}})).await;
    let placed = await_placed(&client, "crowd", 14, 15).await;
    assert_eq!(sizes(&placed), [("crowd-1", 4), ("crowd-2", 6), ("crowd-3", 4)]);
    let mut by_hand = ours("Pool", "overflow");
    by_hand["spec"] = json!({"application": "crowd", "server": "tiny", "maxTenants": 3});
    create(&client, &by_hand).await;
    let placed = await_placed(&client, "crowd", 17, 12).await;
    assert_eq!(sizes(&placed), [("crowd-1", 4), ("crowd-2", 6), ("crowd-3", 4), ("overflow", 3)]);
    for (pool, tenants) in &placed {
        assert_eq!(recorded(ground, pool).await, tenants.len(), "{pool}");
    }
}

#[tokio::test]
async fn the_fullest_pool_that_has_room_is_taken() {
    let (_, client) = calm().await;
    application(&client, "fill", json!({"pools": {"maxTenants": 3}})).await;
    let mut pool = ours("Pool", "fill-by-hand");
    pool["spec"] = json!({"application": "fill", "server": "main", "maxTenants": 3});
    create(&client, &pool).await;
    await_pool(&client, "fill-by-hand", "ready", |pool| {
        pool.status.as_ref().is_some_and(|it| condition(&it.conditions, "Ready").is_some_and(|it| it.status == "True"))
    })
    .await;
    let mut placed = BTreeMap::new();
    for number in 0..5 {
        let tenant = ready_tenant(&client, &format!("fill-t{number}"), of("fill", json!({}))).await;
        placed.insert(number, pool_of(&tenant).expect("a pool").to_owned());
    }
    // The one that is there first, then one that is made.
    let expected = ["fill-by-hand", "fill-by-hand", "fill-by-hand", "fill-1", "fill-1"];
    assert_eq!(placed.into_values().collect::<Vec<_>>(), expected);
    // Both have room now: 2 of 3 is fuller than 1 of 3.
    delete_tenant(&client, "fill-t0").await;
    delete_tenant(&client, "fill-t1").await;
    for (name, pool) in [("fill-x", "fill-1"), ("fill-y", "fill-by-hand"), ("fill-z", "fill-by-hand")] {
        let tenant = ready_tenant(&client, name, of("fill", json!({}))).await;
        assert_eq!(pool_of(&tenant), Some(pool), "{name}");
    }
}

/// One write of the operator, with the times between which it was done.
struct Write {
    what: String,
    begun: Timestamp,
    done: Timestamp,
}

/// The operator's writes that name one of these objects, in order.
fn writes(ground: &Ground, names: &[&str]) -> Vec<Write> {
    let log = std::fs::read_to_string(ground.cluster.audit().path()).expect("the audit log");
    let mut writes: Vec<Write> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| event["stage"] == "ResponseComplete" && event["user"]["username"] == OPERATOR)
        .filter(|event| matches!(event["verb"].as_str(), Some("create" | "patch" | "update" | "delete")))
        .filter(|event| event["responseStatus"]["code"].as_u64().is_some_and(|code| code < 300))
        .filter_map(|event| {
            let object = &event["objectRef"];
            let name = object["name"].as_str().filter(|name| names.contains(name))?;
            let part = object["subresource"].as_str().map(|part| format!("/{part}")).unwrap_or_default();
            let time = |field: &str| event[field].as_str().and_then(|time| time.parse().ok());
            Some(Write {
                what: format!("{}{part} {name}", object["resource"].as_str()?),
                begun: time("requestReceivedTimestamp")?,
                done: time("stageTimestamp")?,
            })
        })
        .collect();
    writes.sort_by_key(|write| write.begun);
    writes
}

#[tokio::test]
async fn a_placement_is_written_before_anything_is_made_for_it() {
    let ((ground, _), client) = calm().await;
    application(&client, "order", json!({})).await;
    let first = ready_tenant(&client, "order-a", of("order", json!({}))).await;
    let second = ready_tenant(&client, "order-b", of("order", json!({}))).await;
    for (tenant, name, made) in [
        (
            &first,
            "order-a",
            vec!["pools order-1", "namespaces pool-order-1", "secrets order-a-database", "httproutes order-a"],
        ),
        (&second, "order-b", vec!["secrets order-b-database", "httproutes order-b"]),
    ] {
        let secret =
            tenant.status.as_ref().and_then(|it| it.database.clone()).and_then(|it| it.secret_ref).expect("a Secret");
        let names = [name, "order-1", "pool-order-1", &secret.name];
        let writes = writes(ground, &names);
        let written = writes.iter().find(|write| write.what == format!("tenants/status {name}")).expect("a placement");
        let mut seen = Vec::new();
        for what in &made {
            let write = writes.iter().find(|write| write.what == *what);
            let write = write.unwrap_or_else(|| {
                panic!("{what} is not among {:?}", writes.iter().map(|write| &write.what).collect::<Vec<_>>())
            });
            assert!(written.done <= write.begun, "{what} was made before the placement of {name} was written");
            seen.push(write.begun);
        }
        assert!(seen.is_sorted(), "the order is {made:?}");
        let root = superuser(ground, &place(tenant).0).await;
        let logins = format!(
            "SELECT (min(since) AT TIME ZONE 'UTC')::text || 'Z' FROM tenantry.login WHERE tenant = '{}'",
            id(tenant)
        );
        let login: Timestamp = rows(&root, &logins).await.first().and_then(|time| time.parse().ok()).expect("a time");
        assert!(written.done <= login, "{name} was made in the database before its placement was written");
    }
}

#[tokio::test]
async fn a_pool_that_was_never_made_is_made_for_whom_it_was_chosen() {
    let ((_, _), client) = calm().await;
    application(&client, "ghost", json!({})).await;
    // What is there when the operator ends between the status and the pool.
    let paused = json!({"metadata": {"annotations": {"tenantry.io/paused": "true"}}});
    let mut spec = of("ghost", json!({}));
    super::ground::merge(&mut spec, paused);
    apply(&client, &tenant("haunted", spec)).await.expect("a Tenant");
    let status = json!({
        "pool": "ghost-1", "namespace": "pool-ghost-1",
        "database": {"server": "main", "database": "pool_ghost_1", "schema": "t_none"},
    });
    patch_status(&client, &ours("Tenant", "haunted"), &status).await;
    await_tenant(&client, "haunted", "placed", |tenant| pool_of(tenant) == Some("ghost-1")).await;
    // The name is taken: another tenant goes into the same pool.
    let other = ready_tenant(&client, "visitor", of("ghost", json!({}))).await;
    assert_eq!(pool_of(&other), Some("ghost-1"));
    delete_tenant(&client, "visitor").await;
    patch(&client, &ours("Tenant", "haunted"), &json!({"metadata": {"annotations": {"tenantry.io/paused": null}}}))
        .await;
    let ready = healed(&client, "haunted").await;
    assert_eq!(pool_of(&ready), Some("ghost-1"));
    assert!(Api::<Pool>::all(client.clone()).get_opt("ghost-1").await.expect("an answer").is_some());
}
