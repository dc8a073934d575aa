//! At rest the operator writes nothing, and after a restart neither.

use std::{collections::BTreeMap, time::Duration};

use devcluster::Options;
use serde_json::json;

use super::ground::{Ground, OPERATOR, await_tenant, is, ready_tenant};

/// For how long nothing may be written.
const REST: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn at_rest_and_after_a_restart_nothing_is_written() {
    let ground = Ground::start(Options { audit: true, ..Options::default() }).await;
    let operator = ground.operator(&["--health-interval", "1s", "--sweep-interval", "2s"]);
    ground.examples().await;
    for name in ["a", "ab", "a-b"] {
        ready_tenant(&ground.client, name, json!({})).await;
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    let writes = async |what: &str| {
        let audit = ground.cluster.audit();
        let mark = audit.mark().expect("a mark");
        tokio::time::sleep(REST).await;
        let mut calls: BTreeMap<String, u64> = BTreeMap::new();
        for event in audit.events(mark).expect("events") {
            if event.user == OPERATOR && event.verb != "watch" {
                *calls.entry(format!("{} {}", event.verb, event.resource)).or_default() += 1;
            }
        }
        println!("{what}: {calls:?}");
        calls
    };
    assert_eq!(writes("at rest").await, BTreeMap::new());
    operator.kill();
    let audit = ground.cluster.audit();
    let mark = audit.mark().expect("a mark");
    let _operator = ground.operator(&[]);
    tokio::time::sleep(REST).await;
    let written: Vec<_> = audit
        .events(mark)
        .expect("events")
        .into_iter()
        .filter(|event| event.user == OPERATOR && event.is_write())
        .collect();
    assert!(written.is_empty(), "{written:#?}");
    // It does work again: a new tenant becomes Ready.
    ready_tenant(&ground.client, "after", json!({})).await;
    await_tenant(&ground.client, "a", "Ready", |tenant| is(tenant, "Ready", "True")).await;
}
