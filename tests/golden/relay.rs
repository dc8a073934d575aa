//! The relay of a DatabaseServer: its objects as they are applied.

use serde_json::{Value, json};
use tenantry::desired::{Kind, RelaySecretInput, RelaySettings, naming, relay_secret};

use crate::fixtures::{build_any_relay, build_relay, find, relay_settings, server, yaml};

#[test]
fn the_objects_of_a_relay() {
    insta::assert_snapshot!("relay", yaml(&build_relay(&server())));
}

/// A renewed CA is another ConfigMap, and nothing else: the relay reads it again.
#[test]
fn whom_a_relay_trusts_is_a_config_map_that_no_pod_template_follows() {
    let relay = RelaySettings { api_url: "https://tenantry.tenantry-system.svc:8081".into(), ..relay_settings() };
    let build = |api_ca| build_any_relay(&server(), &relay, api_ca);
    let (one, other) = (build(Some("one\n")), build(Some("other\n")));
    let of = |objects: &[tenantry::desired::Object], kind: Kind| -> Vec<_> {
        objects.iter().filter(|object| object.kind == kind).cloned().collect()
    };
    insta::assert_snapshot!("relay_tls", yaml(&[of(&one, Kind::ConfigMap), of(&one, Kind::Deployment)].concat()));
    let differ: Vec<_> = one.iter().zip(&other).filter(|(one, other)| one != other).map(|(one, _)| one.kind).collect();
    assert_eq!(differ, [Kind::ConfigMap]);
    // A file that is mounted alone is never renewed.
    let pod = &find(&one, Kind::Deployment, "relay")["spec"]["template"]["spec"];
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().all(|mount| mount.get("subPath").is_none()), "{mounts:?}");
    assert!(of(&build(None), Kind::ConfigMap).is_empty());
}

#[test]
fn every_object_is_in_the_relays_namespace_and_says_whose_it_is() {
    for object in build_relay(&server()) {
        let labels = &object.body["metadata"]["labels"];
        assert_eq!(labels["tenantry.io/relay"], "main", "{object}");
        assert_eq!(labels["app.kubernetes.io/managed-by"], "tenantry", "{object}");
        let namespace = object.namespace.as_deref().unwrap_or(&object.name);
        assert_eq!(namespace, "tenantry-relay-main", "{object}");
    }
}

#[test]
fn a_relay_that_is_alone_has_no_budget_and_one_of_none_stays_off() {
    for replicas in [0, 1] {
        let objects = build_any_relay(&server(), &RelaySettings { replicas, ..relay_settings() }, None);
        assert!(objects.iter().all(|object| object.kind != Kind::PodDisruptionBudget));
        assert_eq!(find(&objects, Kind::Deployment, "relay")["spec"]["replicas"], replicas);
    }
}

#[test]
fn chosen_resources_are_the_relays() {
    let resources = serde_json::from_value(json!({"limits": {"memory": "1Gi"}})).unwrap();
    let relay = RelaySettings { resources: Some(resources), ..relay_settings() };
    let objects = build_any_relay(&server(), &relay, None);
    let pod = &find(&objects, Kind::Deployment, "relay")["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["resources"], json!({"limits": {"memory": "1Gi"}}));
}

#[test]
fn a_relays_secret_has_its_login_and_no_object_prints_it() {
    let input = RelaySecretInput {
        server: "main",
        host: "db.example.internal",
        port: 5432,
        database: "pool_crm_1",
        username: "pool_crm_1_relay",
        password: "secret word",
        sslmode: "verify-full",
        ca_pem: Some("PEM"),
    };
    let secret = relay_secret(&input);
    assert!(!format!("{secret:?} {secret}").contains("secret word"));
    assert_eq!((secret.namespace.as_deref(), secret.name.as_str()), (Some("tenantry-relay-main"), "pool-crm-1"));
    let value = |key: &str| {
        let encoded = secret.body["data"][key].as_str().unwrap_or_else(|| panic!("no key {key}"));
        String::from_utf8(data_encoding::BASE64.decode(encoded.as_bytes()).unwrap()).unwrap()
    };
    assert_eq!(
        (value("password"), value("port"), value("ca.crt")),
        ("secret word".into(), "5432".into(), "PEM".into())
    );
    assert_eq!(secret.body["metadata"]["labels"]["tenantry.io/relay"], Value::from("main"));
    assert_eq!(naming::relay_user("main"), "system:serviceaccount:tenantry-relay-main:relay");
}
