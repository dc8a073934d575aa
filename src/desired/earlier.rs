//! What earlier Tenants of a name may have left: which servers have to be asked, and what was
//! decided about it.

use crate::api::{
    ANNOTATION_ABANDON, ANNOTATION_RESTORE_FROM, ANNOTATION_SKIP_LOOKUP, Application, DatabaseServer, Pool,
};

/// Whether a server that was not reached yet may have data of a tenant of this name, as far as
/// that is known without it: then nobody of that name is made anew before it has answered. A
/// tenant may come back to other servers than it was made on: lists, tiers and what a server
/// takes change. One that nobody names and that had nothing when it was reached last, or nothing
/// but the databases of other Applications' pools, is waited for by nobody: it would keep all
/// others from being served.
pub fn may_have_data(server: &DatabaseServer, tenant: &str, application: &Application, pools: &[&Pool]) -> bool {
    let metadata = &server.metadata;
    let skipped = metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION_SKIP_LOOKUP));
    if skipped.is_some_and(|value| value == "true") {
        return false;
    }
    let (name, application_name) = (metadata.name.as_deref(), metadata_name(application));
    let database = &application.spec.database;
    let choices = [&database.pooled, &database.bridge, &database.dedicated];
    let mut listed = choices.into_iter().flatten().flat_map(|choice| &choice.servers);
    let here = pools.iter().filter(|pool| Some(pool.spec.server.as_str()) == name);
    let (own, others): (Vec<&Pool>, Vec<&Pool>) = here.partition(|pool| pool.spec.application == application_name);
    let of_others = i64::try_from(others.len()).unwrap_or(i64::MAX);
    listed.any(|listed| Some(listed.as_str()) == name)
        || !own.is_empty()
        || server.spec.reserved_for.as_deref() == Some(tenant)
        || server
            .status
            .as_ref()
            .is_some_and(|status| status.databases > of_others || status.databases == 0 && status.tenants > 0)
}

fn metadata_name(application: &Application) -> &str {
    application.metadata.name.as_deref().unwrap_or_default()
}

/// Whether annotation [`ANNOTATION_ABANDON`], UIDs with commas between them, names this one.
pub fn is_abandoned(annotation: Option<&str>, uid: &str) -> bool {
    abandoned(annotation).any(|named| named == uid)
}

fn abandoned(annotation: Option<&str>) -> impl Iterator<Item = &str> {
    annotation.unwrap_or_default().split(',').map(str::trim).filter(|uid| !uid.is_empty())
}

/// The annotation by which a Tenant starts empty, beside all that was decided before.
pub fn abandon_annotation<'a>(annotation: Option<&'a str>, uids: impl IntoIterator<Item = &'a str>) -> String {
    let mut all: Vec<&str> = Vec::new();
    for uid in abandoned(annotation).chain(uids) {
        if !all.contains(&uid) {
            all.push(uid);
        }
    }
    format!("{ANNOTATION_ABANDON}={}", all.join(","))
}

/// Data that an earlier Tenant left.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// The Tenant's name.
    pub tenant: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// The database that has the data.
    pub database: &'a str,
}

/// Says what is left and how to decide about it; the first is what most likely is wanted.
pub fn undecided_message(left: &[Left<'_>], annotation: Option<&str>) -> String {
    let Some((first, others)) = left.split_first() else { return String::new() };
    let Left { tenant, uid, database } = first;
    let more: String = others
        .iter()
        .map(|Left { uid, database, .. }| format!(", and database {database} what UID {uid} left"))
        .collect();
    let choice = if others.is_empty() { "it" } else { "the first" };
    let abandoned = abandon_annotation(annotation, left.iter().map(|left| left.uid));
    format!(
        "database {database} has data that a Tenant of this name with UID {uid} left{more}: take {choice} with annotation \
         {ANNOTATION_RESTORE_FROM}={uid} (tenantry adopt {tenant} does that), or start empty with {abandoned}"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn server(more: &Value) -> DatabaseServer {
        let mut server = json!({
            "apiVersion": "tenantry.io/v1alpha1", "kind": "DatabaseServer", "metadata": {"name": "away"},
            "spec": {"admin": {"host": "away", "credentialsSecret": {"name": "admin"}}},
        });
        for (field, value) in more.as_object().expect("a map") {
            for (key, value) in value.as_object().expect("a map") {
                server[field][key] = value.clone();
            }
        }
        serde_json::from_value(server).expect("a DatabaseServer")
    }

    fn application(database: &Value) -> Application {
        let application = json!({
            "apiVersion": "tenantry.io/v1alpha1", "kind": "Application", "metadata": {"name": "crm"},
            "spec": {"components": [], "database": database},
        });
        serde_json::from_value(application).expect("an Application")
    }

    #[test]
    fn a_server_that_may_have_data_is_waited_for_and_one_that_never_had_any_is_not() {
        let elsewhere = application(&json!({"pooled": {"servers": ["main"]}}));
        let asked = |more: Value, application: &Application, pools: &[&Pool]| {
            may_have_data(&server(&more), "acme", application, pools)
        };
        assert!(!asked(json!({}), &elsewhere, &[]), "nobody names it, and nothing is known to be there");
        let empty = json!({"status": {"version": "16.1", "databases": 0, "tenants": 0}});
        assert!(!asked(empty, &elsewhere, &[]));
        for tier in ["pooled", "bridge", "dedicated"] {
            let listed = application(&json!({"pooled": {"servers": ["main"]}, tier: {"servers": ["main", "away"]}}));
            assert!(asked(json!({}), &listed, &[]), "{tier}, whichever the tenant's own tier");
        }
        for has in [json!({"databases": 1}), json!({"tenants": 1})] {
            assert!(asked(json!({"status": has}), &elsewhere, &[]), "{has}: others don't list it any more");
        }
        assert!(asked(json!({"spec": {"reservedFor": "acme"}}), &elsewhere, &[]));
        assert!(!asked(json!({"spec": {"reservedFor": "bolt"}}), &elsewhere, &[]));
        let pool = |application: &str| {
            let spec = json!({"application": application, "server": "away"});
            let pool =
                json!({"apiVersion": "tenantry.io/v1alpha1", "kind": "Pool", "metadata": {"name": "p"}, "spec": spec});
            serde_json::from_value::<Pool>(pool).expect("a Pool")
        };
        assert!(asked(json!({}), &elsewhere, &[&pool("crm")]), "its status may be lost with all others");
        assert!(!asked(json!({}), &elsewhere, &[&pool("another")]));
        let one = || json!({"status": {"databases": 1, "tenants": 40}});
        assert!(!asked(one(), &elsewhere, &[&pool("another")]), "all that is there is another Application's");
        assert!(asked(one(), &elsewhere, &[&pool("crm")]));
        let two = json!({"status": {"databases": 2, "tenants": 41}});
        assert!(asked(two, &elsewhere, &[&pool("another")]), "and one that no pool has");
    }

    #[test]
    fn a_person_may_have_it_left_out() {
        let skip = |value: &str| json!({"annotations": {ANNOTATION_SKIP_LOOKUP: value}});
        let listed = application(&json!({"pooled": {"servers": ["away"]}}));
        let asked = |metadata: Value| {
            may_have_data(&server(&json!({"metadata": metadata, "status": {"databases": 1}})), "acme", &listed, &[])
        };
        assert!(asked(skip("false")) && !asked(skip("true")));
    }

    #[test]
    fn what_is_abandoned_is_a_list() {
        let annotation = Some("one, two,,three ");
        assert!(["one", "two", "three"].iter().all(|uid| is_abandoned(annotation, uid)));
        assert!(!["", "on", "four", "one, two"].iter().any(|uid| is_abandoned(annotation, uid)));
        assert!(!is_abandoned(None, ""));
        assert_eq!(abandon_annotation(None, ["one"]), "tenantry.io/abandon=one");
        assert_eq!(abandon_annotation(Some("one, two"), ["three", "two"]), "tenantry.io/abandon=one,two,three");
    }

    #[test]
    fn a_tenant_with_much_to_decide_is_told_all_of_it() {
        let left = ["one", "two"].map(|uid| Left { tenant: "acme", uid, database: "pool_crm_1" });
        let message = undecided_message(&left[..1], None);
        assert!(message.ends_with("start empty with tenantry.io/abandon=one"), "{message}");
        let message = undecided_message(&left, Some("zero"));
        for part in ["UID one left, and", "UID two left:", "restore-from=one (", "tenantry.io/abandon=zero,one,two"] {
            assert!(message.contains(part), "{message}");
        }
    }
}
