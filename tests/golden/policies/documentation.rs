//! The evaluator against what the documentation of NetworkPolicy says
//! (kubernetes.io/docs/concepts/services-networking/network-policies), case by case.

use serde_json::{Value, json};

use super::*;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect()
}

fn pod(namespace: &str, name: &str, pairs: &[(&str, &str)], address: &str) -> End {
    End::Pod(Pod {
        namespace: namespace.into(),
        name: name.into(),
        labels: labels(pairs),
        address: address.parse().unwrap(),
        ports: vec![("redis".into(), "TCP".into(), 6379), ("dns".into(), "UDP".into(), 53)],
    })
}

fn database() -> End {
    pod("default", "db", &[("role", "db")], "10.1.0.1")
}

fn frontend() -> End {
    pod("default", "front", &[("role", "frontend")], "10.1.0.2")
}

fn stranger() -> End {
    pod("default", "other", &[("role", "other")], "10.1.0.3")
}

/// In namespace `mine`, which has label project=myproject.
fn colleague(pairs: &[(&str, &str)]) -> End {
    pod("mine", "colleague", pairs, "10.1.1.1")
}

fn outside(address: &str) -> End {
    End::Outside(address.parse().unwrap())
}

/// A cluster whose namespace `default` has policies with these specs.
fn cluster(specs: &[Value]) -> Cluster {
    let policy = |spec: &Value| {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "default"}, "spec": spec})).unwrap()
    };
    let namespace = |name: &str, pairs: &[(&str, &str)]| {
        let mut labels = labels(pairs);
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
        (name.to_owned(), labels)
    };
    Cluster {
        namespaces: [namespace("default", &[]), namespace("mine", &[("project", "myproject")])].into(),
        policies: specs.iter().map(policy).collect(),
    }
}

/// Asserts of each connection whether it is allowed.
fn check(cluster: &Cluster, cases: &[(End, End, &str, i32, bool)]) {
    for (from, to, protocol, port, expected) in cases {
        let allowed = cluster.allows(from, to, protocol, *port);
        assert_eq!(allowed, *expected, "{from:?} -> {to:?} {protocol} {port}");
    }
}

#[test]
fn without_a_policy_that_selects_it_a_pod_is_open() {
    check(
        &cluster(&[]),
        &[(stranger(), database(), "TCP", 6379, true), (outside("192.0.2.1"), database(), "TCP", 1, true)],
    );
    let other = json!({"podSelector": {"matchLabels": {"role": "other"}}, "policyTypes": ["Ingress", "Egress"]});
    check(
        &cluster(&[other]),
        &[
            (frontend(), database(), "TCP", 6379, true),
            (stranger(), database(), "TCP", 6379, false),
            (frontend(), stranger(), "TCP", 80, false),
            (stranger(), stranger(), "TCP", 80, true),
        ],
    );
}

#[test]
fn default_policies() {
    let (out, into) = ((database(), frontend()), (outside("192.0.2.1"), database()));
    let all = |types: Value, rules: Option<(&str, Value)>| {
        let mut spec = json!({"podSelector": {}, "policyTypes": types});
        if let Some((field, rules)) = rules {
            spec[field] = rules;
        }
        spec
    };
    let cases = [
        // Deny ingress, allow ingress, deny egress, allow egress, deny both.
        (all(json!(["Ingress"]), None), false, false),
        (all(json!(["Ingress"]), Some(("ingress", json!([{}])))), true, true),
        (all(json!(["Egress"]), None), false, true),
        (all(json!(["Egress"]), Some(("egress", json!([{}])))), true, true),
        (all(json!(["Ingress", "Egress"]), None), false, false),
    ];
    for (spec, inside, from_outside) in cases {
        let cluster = cluster(std::slice::from_ref(&spec));
        assert_eq!(cluster.allows(&out.0, &out.1, "TCP", 80), inside, "{spec}");
        assert_eq!(cluster.allows(&into.0, &into.1, "TCP", 80), from_outside, "{spec}");
    }
    // Whoever is denied egress alone can still be reached.
    let egress = cluster(&[all(json!(["Egress"]), None)]);
    assert!(egress.allows(&colleague(&[]), &database(), "TCP", 80));
}

#[test]
fn types_that_are_left_out_follow_from_the_rules() {
    let ingress = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    check(
        &cluster(&[ingress]),
        &[
            (stranger(), database(), "TCP", 1, true),
            (database(), outside("192.0.2.1"), "TCP", 1, true),
            (colleague(&[]), database(), "TCP", 1, false),
        ],
    );
    let egress = json!({"podSelector": {}, "egress": [{"to": [{"podSelector": {}}]}]});
    check(
        &cluster(&[egress]),
        &[(database(), outside("192.0.2.1"), "TCP", 1, false), (stranger(), database(), "TCP", 1, false)],
    );
}

/// The example at the top of the page.
#[test]
fn the_resource_of_the_documentation() {
    let spec = json!({
        "podSelector": {"matchLabels": {"role": "db"}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{
            "from": [
                {"ipBlock": {"cidr": "172.17.0.0/16", "except": ["172.17.1.0/24"]}},
                {"namespaceSelector": {"matchLabels": {"project": "myproject"}}},
                {"podSelector": {"matchLabels": {"role": "frontend"}}},
            ],
            "ports": [{"protocol": "TCP", "port": 6379}],
        }],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/24"}}], "ports": [{"protocol": "TCP", "port": 5978}]}],
    });
    let db = database();
    check(
        &cluster(&[spec]),
        &[
            (frontend(), db.clone(), "TCP", 6379, true),
            (frontend(), db.clone(), "TCP", 6380, false),
            (frontend(), db.clone(), "UDP", 6379, false),
            (stranger(), db.clone(), "TCP", 6379, false),
            (colleague(&[]), db.clone(), "TCP", 6379, true),
            // A frontend, but in another namespace: a podSelector alone means its own.
            (pod("third", "f", &[("role", "frontend")], "10.1.2.1"), db.clone(), "TCP", 6379, false),
            (outside("172.17.0.255"), db.clone(), "TCP", 6379, true),
            (outside("172.17.1.1"), db.clone(), "TCP", 6379, false),
            (outside("172.17.2.1"), db.clone(), "TCP", 6379, true),
            (outside("172.18.0.1"), db.clone(), "TCP", 6379, false),
            (db.clone(), outside("10.0.0.7"), "TCP", 5978, true),
            (db.clone(), outside("10.0.0.7"), "TCP", 5979, false),
            (db.clone(), outside("10.0.1.7"), "TCP", 5978, false),
            (db.clone(), db, "TCP", 1, true),
        ],
    );
}

#[test]
fn two_selectors_in_one_peer_are_both_asked_for_and_in_two_peers_either() {
    let both = json!({"namespaceSelector": {"matchLabels": {"project": "myproject"}}, "podSelector": {"matchLabels": {"role": "client"}}});
    let spec = |peers: Value| json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": peers}]});
    let (client, other) = (colleague(&[("role", "client")]), colleague(&[("role", "other")]));
    let own_client = pod("default", "c", &[("role", "client")], "10.1.0.9");
    check(
        &cluster(&[spec(json!([both]))]),
        &[
            (client.clone(), database(), "TCP", 1, true),
            (other.clone(), database(), "TCP", 1, false),
            (own_client.clone(), database(), "TCP", 1, false),
        ],
    );
    let either = json!([
        {"namespaceSelector": {"matchLabels": {"project": "myproject"}}},
        {"podSelector": {"matchLabels": {"role": "client"}}},
    ]);
    check(
        &cluster(&[spec(either)]),
        &[
            (client, database(), "TCP", 1, true),
            (other, database(), "TCP", 1, true),
            (own_client, database(), "TCP", 1, true),
            (stranger(), database(), "TCP", 1, false),
            (outside("192.0.2.1"), database(), "TCP", 1, false),
        ],
    );
}

#[test]
fn namespaces_are_chosen_by_label_and_by_name() {
    let spec = |selector: Value| {
        let peer = json!({"namespaceSelector": selector});
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [peer]}]})
    };
    let name = "kubernetes.io/metadata.name";
    let cases = [
        (json!({}), true, true),
        (json!({"matchLabels": {name: "mine"}}), true, false),
        (json!({"matchExpressions": [{"key": name, "operator": "In", "values": ["mine", "yours"]}]}), true, false),
        (json!({"matchExpressions": [{"key": name, "operator": "NotIn", "values": ["mine"]}]}), false, true),
        (json!({"matchExpressions": [{"key": "project", "operator": "Exists"}]}), true, false),
        (json!({"matchExpressions": [{"key": "project", "operator": "DoesNotExist"}]}), false, true),
    ];
    for (selector, to_mine, to_default) in cases {
        let cluster = cluster(&[spec(selector.clone())]);
        assert_eq!(cluster.allows(&database(), &colleague(&[]), "TCP", 1), to_mine, "{selector}");
        assert_eq!(cluster.allows(&database(), &frontend(), "TCP", 1), to_default, "{selector}");
        assert!(!cluster.allows(&database(), &outside("192.0.2.1"), "TCP", 1), "no namespace is outside");
    }
}

#[test]
fn ports_are_single_ranges_or_named() {
    let spec = |ports: Value| {
        let rule = json!({"ports": ports});
        json!({"podSelector": {"matchLabels": {"role": "db"}}, "policyTypes": ["Ingress"], "ingress": [rule]})
    };
    let cases = [
        (json!([]), "UDP", 9, true),
        (json!([{"port": 80}]), "TCP", 80, true),
        (json!([{"port": 80}]), "UDP", 80, false),
        (json!([{"protocol": "UDP"}]), "UDP", 4711, true),
        (json!([{"protocol": "UDP"}]), "TCP", 4711, false),
        // The range of the documentation.
        (json!([{"port": 32000, "endPort": 32768}]), "TCP", 32000, true),
        (json!([{"port": 32000, "endPort": 32768}]), "TCP", 32768, true),
        (json!([{"port": 32000, "endPort": 32768}]), "TCP", 32769, false),
        (json!([{"port": "redis"}]), "TCP", 6379, true),
        (json!([{"port": "redis"}]), "TCP", 6380, false),
        (json!([{"port": "dns"}]), "TCP", 53, false),
        (json!([{"port": "dns", "protocol": "UDP"}]), "UDP", 53, true),
        (json!([{"port": 1}, {"port": 2}]), "TCP", 2, true),
        (json!([{"protocol": "SCTP", "port": 7}]), "SCTP", 7, true),
    ];
    for (ports, protocol, port, expected) in cases {
        let cluster = cluster(&[spec(ports.clone())]);
        assert_eq!(cluster.allows(&frontend(), &database(), protocol, port), expected, "{ports} {protocol} {port}");
    }
    // A name of the pod that is connected to, not of the one that connects.
    let egress = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "redis"}]}]});
    let cluster = cluster(&[egress]);
    assert!(cluster.allows(&frontend(), &database(), "TCP", 6379));
    assert!(!cluster.allows(&frontend(), &outside("192.0.2.1"), "TCP", 6379), "nothing outside has a named port");
}

#[test]
fn policies_add_up_and_both_ends_must_agree() {
    let deny = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    let out = json!({"podSelector": {"matchLabels": {"role": "frontend"}}, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {"matchLabels": {"role": "db"}}}]}]});
    let into = json!({"podSelector": {"matchLabels": {"role": "db"}}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "frontend"}}}]}]});
    let one = |specs: &[&Value]| {
        let specs: Vec<Value> = specs.iter().map(|spec| (*spec).clone()).collect();
        cluster(&specs).allows(&frontend(), &database(), "TCP", 5432)
    };
    assert!(!one(&[&deny]));
    assert!(!one(&[&deny, &out]), "the database lets nobody in");
    assert!(!one(&[&deny, &into]), "the frontend lets nothing out");
    assert!(one(&[&deny, &out, &into]));
    assert!(!cluster(&[deny, out, into]).allows(&database(), &frontend(), "TCP", 5432), "a way has a direction");
}

#[test]
fn networks_of_both_families_are_told_apart() {
    let contains = |cidr: &str, address: &str| super::contains(cidr, address.parse().unwrap());
    assert!(contains("0.0.0.0/0", "192.0.2.1") && !contains("0.0.0.0/0", "2001:db8::1"));
    assert!(contains("::/0", "2001:db8::1") && !contains("::/0", "192.0.2.1"));
    assert!(contains("192.0.2.1/32", "192.0.2.1") && !contains("192.0.2.1/32", "192.0.2.2"));
    assert!(contains("2001:db8::/32", "2001:db8:ffff::1") && !contains("2001:db8::/32", "2001:db9::1"));
}
