//! Many tenants that go at once.

use std::collections::BTreeSet;

use futures::{StreamExt as _, stream};
use kube::{Api, ResourceExt, api::DeleteParams};
use serde_json::json;
use tenantry::api::Tenant;

use super::{
    bridge::bridge,
    dedicated::dedicated,
    ground::{apply, await_tenant, credentials, eventually, is, merge, tenant},
    leaving::objects,
    steps::calm,
    verbs::{application, id, log_in, of, place, rows, superuser},
};

/// How many of each tier: pooled ones are what a server has many of.
const POOLED: usize = 190;
const OWN: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_tenants_deleted_at_once_leave_nothing_behind() {
    let ((ground, _), client) = calm().await;
    application(&client, "exodus", json!({})).await;
    let names: Vec<String> = (0..POOLED + 2 * OWN).map(|number| format!("leaver-{number}")).collect();
    let spec = |number: usize| {
        let mut spec = match number {
            0..POOLED => of("exodus", json!({})),
            _ if number < POOLED + OWN => bridge("exodus", json!({})),
            _ => dedicated("exodus", json!({})),
        };
        merge(&mut spec, json!({"spec": {"deletionPolicy": "Delete"}}));
        spec
    };
    let made = names.iter().enumerate().map(|(number, name)| (name, tenant(name, spec(number))));
    let tenants: Vec<Tenant> = stream::iter(made)
        .map(async |(name, object)| {
            apply(&client, &object).await.expect("a Tenant");
            await_tenant(&client, name, "Ready", |tenant| is(tenant, "Ready", "True")).await
        })
        // Each is asked for again and again: few at a time.
        .buffered(20)
        .collect()
        .await;
    // One of each tier counts something. Nobody takes such events yet, so they are kept, with the
    // record that says whose they are, and with a dedicated tenant's database.
    let counted = [0, POOLED, POOLED + OWN];
    for number in counted {
        let session = log_in(&credentials(&client, &tenants[number]).await).await.expect("the tenant logs in");
        session.query("SELECT record_usage('users', 1, 'one')", &[]).await.expect("counted");
    }
    let kept = place(&tenants[POOLED + OWN]).0;
    let databases: BTreeSet<String> = tenants.iter().map(|tenant| place(tenant).0).collect();
    let ids: Vec<String> = tenants.iter().map(id).collect();
    let uids: Vec<String> = tenants.iter().filter_map(ResourceExt::uid).collect();

    let api = Api::<Tenant>::all(client.clone());
    let deleted = names.iter().map(async |name| api.delete(name, &DeleteParams::default()).await.expect("a deletion"));
    futures::future::join_all(deleted).await;
    let mut left = names.clone();
    // On a busy machine it takes its time; patience ends when none goes any more.
    while !left.is_empty() {
        let before = left.len();
        let fewer = eventually(async || {
            let all = api.list_metadata(&Default::default()).await.expect("a list");
            left = all.iter().map(ResourceExt::name_any).filter(|name| names.contains(name)).collect();
            (left.len() < before).then_some(())
        })
        .await;
        if fewer.is_none() {
            panic!("{before} do not go: {:#?}", api.get(&left[0]).await.map(|tenant| tenant.status));
        }
    }

    // In the cluster: of every kind, by label and by name.
    let own = |object: &String| {
        let name = object.split_once(' ').map_or("", |(_, name)| name);
        names
            .iter()
            .any(|tenant| name == tenant || name == format!("{tenant}-database") || name == format!("tenant-{tenant}"))
    };
    let everything = objects(&client, None, "").await;
    assert!(everything.len() > 50, "the list is one of all there is");
    let of_tenants: Vec<_> = everything.iter().filter(|object| own(object) && !object.starts_with("Event ")).collect();
    assert_eq!(of_tenants, [""; 0], "by name");
    for label in names.chunks(40) {
        let selector = format!("tenantry.io/tenant in ({})", label.join(","));
        assert_eq!(objects(&client, None, &selector).await, [""; 0], "by label");
    }

    // In PostgreSQL: roles, databases, and in each database that is left schemas and records.
    let admin = superuser(ground, "postgres").await;
    let ids_pattern = ids.iter().map(|id| id.trim_start_matches("t_")).collect::<Vec<_>>().join("|");
    let shared = format!(
        "SELECT 'role ' || rolname FROM pg_roles WHERE rolname ~ '{ids_pattern}'
         UNION ALL SELECT 'database ' || datname FROM pg_database WHERE datname ~ '{ids_pattern}' ORDER BY 1"
    );
    assert_eq!(rows(&admin, &shared).await, [format!("database {kept}"), format!("role {kept}_tenants")]);
    let names_of_databases = rows(&admin, "SELECT datname::text FROM pg_database").await;
    let mut looked = 0;
    for database in databases.iter().filter(|database| names_of_databases.contains(database)) {
        let own = superuser(ground, database).await;
        let schemas = format!(
            "SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname ~ '{ids_pattern}'
             UNION ALL SELECT concat_ws(' ', 'record of', id, state) FROM tenantry.tenant WHERE uid IN ('{}')
             UNION ALL SELECT concat_ws(' ', 'event of', tenant, meter, sequence, acked_at, dead_at) FROM tenantry.outbox
             UNION ALL SELECT 'login ' || name FROM tenantry.login WHERE tenant ~ '{ids_pattern}'
             UNION ALL SELECT 'meter ' || meter FROM tenantry.meter WHERE tenant ~ '{ids_pattern}'
             UNION ALL SELECT 'migration ' || name FROM tenantry.migration WHERE tenant ~ '{ids_pattern}' ORDER BY 1",
            uids.join("', '")
        );
        let here = counted.iter().filter(|number| place(&tenants[**number]).0 == *database).map(|number| &ids[*number]);
        let expected: Vec<String> =
            here.flat_map(|id| [format!("event of {id} users 1"), format!("record of {id} Dropped")]).collect();
        assert_eq!(rows(&own, &schemas).await, expected, "{database}");
        looked += 1;
    }
    assert_eq!(looked, 3, "of the pool, of tier bridge, and of the one that counted: {names_of_databases:?}");
}
