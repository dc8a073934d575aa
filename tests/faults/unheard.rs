//! A tenant is made in its database, the answer is lost, and its Tenant is deleted before the
//! operator tries again: what nobody heard of goes as its policy says all the same.

use kube::{Api, api::DeleteParams};
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    gate::{Happening, Write},
    gated::{Act, Gated},
    ground::tenant,
    verbs::{rows, superuser},
};

const FLAGS: [&str; 2] = ["--health-interval", "1s"];

fn spec(policy: &str) -> Value {
    json!({"spec": {"deletionPolicy": policy}})
}

/// Which of the writes of a pooled tenant's creation makes it in its database.
async fn creation(gated: &Gated) -> Write {
    // The first one waits for its pool, and says so.
    let first = gated.make(&tenant("first", spec("Retain"))).await;
    Act::Create.is_done(gated, &first).await;
    let model = gated.prepare(&tenant("model", spec("Retain"))).await;
    let writes = gated.observe(Act::Create, &model).await;
    let at = writes.iter().find(|write| write.what.starts_with("SQL INSERT INTO tenantry.tenant"));
    at.unwrap_or_else(|| panic!("nothing made the tenant: {writes:#?}")).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_nobody_heard_of_is_undone() {
    let gated = Gated::start(&FLAGS).await;
    let at = creation(&gated).await;
    let admin = superuser(&gated.ground, "pool_crm_1").await;
    for (name, policy, left) in [("unheard-r", "Retain", "Retained"), ("unheard-d", "Delete", "")] {
        let names = gated.prepare(&tenant(name, spec(policy))).await;
        let counted = gated.gate.arm(names.marks(), Some((at.clone(), Happening::Last)));
        Act::Create.begin(&gated, &names).await;
        counted.reached().await;
        let record = format!("SELECT state FROM tenantry.tenant WHERE id = '{}'", names.id);
        assert_eq!(rows(&admin, &record).await, ["Live"], "it is there");
        // Nothing that the operator asks for passes until the gate is opened: the next that it
        // does for this Tenant is to take it out.
        let tenants = Api::<Tenant>::all(gated.client().clone());
        tenants.delete(name, &DeleteParams::default()).await.expect("a deletion");
        gated.gate.open();
        gated.sql.cut_all();
        Act::Delete.is_done(&gated, &names).await;
        let found = rows(&admin, &record).await;
        assert_eq!(found.concat(), left, "{name}");
        let open = format!("SELECT rolname::text FROM pg_roles WHERE rolname ~ '{}' AND rolcanlogin", names.id);
        assert_eq!(rows(&admin, &open).await, [""; 0], "{name} can log in");
        let roles = format!("SELECT rolname::text FROM pg_roles WHERE rolname ~ '{}'", names.id);
        assert_eq!(rows(&admin, &roles).await.is_empty(), policy == "Delete", "{name}");
    }
}
