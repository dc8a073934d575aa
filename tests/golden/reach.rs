//! Who may reach whom in each tier, by the policies that are really made and the pods that
//! the Deployments really have.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::{Value, json};
use tenantry::{
    api::Tier,
    desired::{Kind, Object},
};

use crate::{
    fixtures::{API_SERVER, Own, application, build_pool, build_relay, pool, server},
    policies::{Cluster, End, Labels, Pod},
};

/// A cluster with two of each tier, and everything around.
struct World {
    cluster: Cluster,
    pods: BTreeMap<(String, String), Pod>,
}

impl World {
    /// With the fixtures after `change`, which has to leave the names of components alone.
    fn new(change: impl Fn(&mut Own)) -> Self {
        let mut world = Self { cluster: Cluster::default(), pods: BTreeMap::new() };
        let own = Own::bridge().with(&change);
        for name in ["crm-1", "crm-2"] {
            let mut pool = pool();
            pool.metadata.name = Some(name.into());
            let objects = build_pool(&pool, &own.application, &own.server, &BTreeMap::new());
            world.add(&objects.unwrap().into_ordered());
        }
        for (own, other) in [(Own::bridge(), "apex"), (Own::dedicated(), "giga")] {
            let other = own.clone().with(|own| own.tenant.metadata.name = Some(other.into()));
            world.add(&own.with(&change).ordered());
            world.add(&other.with(&change).ordered());
        }
        for name in ["main", "other"] {
            let mut server = server().clone();
            server.metadata.name = Some(name.to_owned());
            server.spec.network = Own::bridge().with(&change).server.spec.network;
            world.add(&build_relay(&server));
        }
        let around =
            [("gateways", "gateway"), ("kube-system", "dns"), ("shop", "stranger"), ("tenantry-system", "other")];
        for (namespace, name) in around {
            let labels = [("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())].into();
            world.cluster.namespaces.insert(namespace.to_owned(), labels);
            world.add_pod(namespace, name, Labels::new(), Vec::new());
        }
        let operator = [("app.kubernetes.io/name", "tenantry"), ("app.kubernetes.io/component", "operator")];
        let operator = operator.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        world.add_pod("tenantry-system", "operator", operator, Vec::new());
        world
    }

    /// Takes in what an operator applied: namespaces, policies, and one pod per Deployment.
    fn add(&mut self, objects: &[Object]) {
        let labels = |value: &Value| -> Labels { serde_json::from_value(value.clone()).unwrap() };
        for object in objects {
            match object.kind {
                Kind::Namespace => {
                    let mut labels = labels(&object.body["metadata"]["labels"]);
                    labels.insert("kubernetes.io/metadata.name".into(), object.name.clone());
                    self.cluster.namespaces.insert(object.name.clone(), labels);
                }
                Kind::NetworkPolicy => self.cluster.policies.push(serde_json::from_value(object.body.clone()).unwrap()),
                Kind::Deployment => {
                    let template = &object.body["spec"]["template"];
                    let containers = template["spec"]["containers"].as_array().unwrap().iter();
                    let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
                    let text = |value: &Value| value.as_str().unwrap().to_owned();
                    let number = |value: &Value| i32::try_from(value.as_i64().unwrap()).unwrap();
                    let port =
                        |port: &Value| (text(&port["name"]), text(&port["protocol"]), number(&port["containerPort"]));
                    let ports = ports.map(port).collect();
                    let labels = labels(&template["metadata"]["labels"]);
                    self.add_pod(object.namespace.as_ref().unwrap(), &object.name, labels, ports);
                }
                _ => {}
            }
        }
    }

    fn add_pod(&mut self, namespace: &str, name: &str, labels: Labels, ports: Vec<(String, String, i32)>) {
        let address = format!("10.244.0.{}", self.pods.len() + 1).parse().unwrap();
        let (key, namespace) = ((namespace.to_owned(), name.to_owned()), namespace.to_owned());
        self.pods.insert(key, Pod { namespace, name: name.to_owned(), labels, address, ports });
    }

    /// `NAMESPACE/POD`, or an address outside.
    fn end(&self, name: &str) -> End {
        match name.split_once('/') {
            Some((namespace, pod)) => End::Pod(self.pods[&(namespace.to_owned(), pod.to_owned())].clone()),
            None => End::Outside(name.parse().unwrap()),
        }
    }

    fn allows(&self, from: &str, to: &str, protocol: &str, port: i32) -> bool {
        self.cluster.allows(&self.end(from), &self.end(to), protocol, port)
    }
}

/// The namespaces of each tier.
const NAMESPACES: [(Tier, &str); 6] = [
    (Tier::Pooled, "pool-crm-1"),
    (Tier::Pooled, "pool-crm-2"),
    (Tier::Bridge, "tenant-acme"),
    (Tier::Bridge, "tenant-apex"),
    (Tier::Dedicated, "tenant-mega"),
    (Tier::Dedicated, "tenant-giga"),
];
const GATEWAY: &str = "gateways/gateway";
const STRANGER: &str = "shop/stranger";
const DNS: &str = "kube-system/dns";
/// Within the declared network of the server, and at the declared port of its endpoint.
const DATABASE: &str = "10.20.0.5";
const DATABASE_PORT: i32 = 6432;
const METADATA: &str = "169.254.169.254";
const INTERNET: &str = "203.0.113.9";
/// What the Application declares.
const PARTNER: &str = "198.51.100.7";

/// Asserts of each connection whether it is allowed, and names all that are not as expected.
fn check(world: &World, cases: Vec<(String, String, &str, i32, bool)>) {
    let wrong: Vec<String> = cases
        .into_iter()
        .filter(|(from, to, protocol, port, expected)| world.allows(from, to, protocol, *port) != *expected)
        .map(|(from, to, protocol, port, expected)| {
            format!("{from} -> {to} {protocol} {port}: should be {}", if expected { "allowed" } else { "refused" })
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// `(from, to, protocol, port, expected)` in one namespace; `@x` is the namespace's pod `x`.
fn within(
    namespace: &str,
    cases: &[(&str, &str, &'static str, i32, bool)],
) -> Vec<(String, String, &'static str, i32, bool)> {
    let name = |end: &str| end.strip_prefix('@').map_or_else(|| end.to_owned(), |pod| format!("{namespace}/{pod}"));
    cases
        .iter()
        .map(|(from, to, protocol, port, expected)| (name(from), name(to), *protocol, *port, *expected))
        .collect()
}

#[test]
fn in_each_tier_everybody_reaches_what_is_declared_and_nothing_else() {
    let world = World::new(|_| ());
    let api_server = API_SERVER[0].0.to_string();
    for (tier, namespace) in NAMESPACES {
        let agent = tier == Tier::Pooled;
        let cases = [
            // The gateway reaches the component that the route names, at its port.
            (GATEWAY, "@web", "TCP", 3000, true),
            (GATEWAY, "@web", "TCP", 8080, false),
            (GATEWAY, "@web", "UDP", 3000, false),
            (GATEWAY, "@api", "TCP", 8080, false),
            (GATEWAY, "@worker", "TCP", 3000, false),
            (STRANGER, "@web", "TCP", 3000, false),
            (STRANGER, "@api", "TCP", 8080, false),
            (DNS, "@web", "TCP", 3000, false),
            (INTERNET, "@web", "TCP", 3000, false),
            // Components reach each other at the ports that they serve.
            ("@web", "@api", "TCP", 8080, true),
            ("@api", "@web", "TCP", 3000, true),
            ("@web", "@api", "TCP", 8081, false),
            ("@api", "@worker", "TCP", 8080, false),
            // Those that get credentials reach the database, at its port.
            ("@api", DATABASE, "TCP", DATABASE_PORT, true),
            ("@worker", DATABASE, "TCP", DATABASE_PORT, true),
            ("@web", DATABASE, "TCP", DATABASE_PORT, false),
            ("@api", DATABASE, "TCP", 5432, false),
            ("@api", DATABASE, "TCP", 22, false),
            ("@api", "10.20.0.200", "TCP", DATABASE_PORT, false),
            (DATABASE, "@api", "TCP", 8080, false),
            // The agent watches Secrets; without one nobody needs the API server.
            ("@api", &api_server, "TCP", 6443, agent),
            ("@worker", &api_server, "TCP", 6443, agent),
            ("@web", &api_server, "TCP", 6443, false),
            ("@api", &api_server, "TCP", 22, false),
            // Names are resolved.
            ("@web", DNS, "UDP", 53, true),
            ("@api", DNS, "TCP", 53, true),
            ("@api", DNS, "TCP", 9153, false),
            ("@api", "8.8.8.8", "UDP", 53, false),
            // What the Application declares, and no more of the world.
            ("@api", PARTNER, "TCP", 443, true),
            ("@web", PARTNER, "UDP", 3478, true),
            ("@api", PARTNER, "TCP", 80, false),
            ("@api", INTERNET, "TCP", 443, false),
            ("@web", METADATA, "TCP", 80, false),
            ("@api", METADATA, "TCP", 80, false),
            ("@web", STRANGER, "TCP", 80, false),
            ("@web", GATEWAY, "TCP", 443, false),
        ];
        check(&world, within(namespace, &cases));
    }
}

#[test]
fn a_relay_reaches_its_server_and_the_operator_and_nobody_reaches_a_relay() {
    let api_server = API_SERVER[0].0.to_string();
    let operator = "tenantry-system/operator";
    for world in [World::new(|_| ()), World::new(wide_open)] {
        let cases = [
            // The server itself, at its own port: not the tenants' pooler.
            ("@relay", DATABASE, "TCP", 5432, true),
            ("@relay", DATABASE, "TCP", DATABASE_PORT, false),
            ("@relay", DATABASE, "TCP", 22, false),
            ("@relay", &api_server, "TCP", 6443, true),
            ("@relay", operator, "TCP", 8081, true),
            ("@relay", operator, "TCP", 8080, false),
            ("@relay", "tenantry-system/other", "TCP", 8081, false),
            ("@relay", DNS, "UDP", 53, true),
            ("@relay", DNS, "TCP", 8081, false),
            ("@relay", INTERNET, "TCP", 443, false),
            ("@relay", PARTNER, "TCP", 443, false),
            ("@relay", METADATA, "TCP", 80, false),
            ("@relay", METADATA, "TCP", 5432, false),
            ("@relay", STRANGER, "TCP", 8081, false),
            (STRANGER, "@relay", "TCP", 8080, false),
            (GATEWAY, "@relay", "TCP", 8080, false),
            (INTERNET, "@relay", "TCP", 8080, false),
            (operator, "@relay", "TCP", 8080, false),
        ];
        for namespace in ["tenantry-relay-main", "tenantry-relay-other"] {
            check(&world, within(namespace, &cases));
            for (_, tenants) in NAMESPACES {
                for pod in ["api", "worker", "web"] {
                    let (relay, pod) = (format!("{namespace}/relay"), format!("{tenants}/{pod}"));
                    for port in [80, 3000, 5432, 8080, 8081] {
                        check(&world, vec![(pod.clone(), relay.clone(), "TCP", port, false)]);
                        check(&world, vec![(relay.clone(), pod.clone(), "TCP", port, false)]);
                    }
                }
            }
        }
        let one_to_another = ("tenantry-relay-main/relay".to_owned(), "tenantry-relay-other/relay".to_owned());
        check(&world, vec![(one_to_another.0, one_to_another.1, "TCP", 8080, false)]);
    }
    let silent = World::new(|own| own.server.spec.network = None);
    assert!(!silent.allows("tenantry-relay-main/relay", DATABASE, "TCP", 5432), "no way to everywhere");
}

/// Every pod of one namespace to every pod of another, at every port that anybody serves.
fn across(from: &str, to: &str) -> Vec<(String, String, &'static str, i32, bool)> {
    let mut cases = Vec::new();
    for source in ["api", "worker", "web"] {
        for target in ["api", "worker", "web"] {
            for port in [80, 3000, 5432, 6432, 8080] {
                for protocol in ["TCP", "UDP"] {
                    cases.push((format!("{from}/{source}"), format!("{to}/{target}"), protocol, port, false));
                }
            }
        }
    }
    cases
}

/// Changes of the Application that open it to the world.
fn wide_open(own: &mut Own) {
    let to =
        json!([{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}, {"namespaceSelector": {}}]}]);
    own.application.spec.egress = serde_json::from_value(to).unwrap();
    own.server.spec.network = serde_json::from_value(json!({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]})).unwrap();
}

#[test]
fn no_tenant_reaches_another_or_the_pool() {
    for world in [World::new(|_| ()), World::new(wide_open)] {
        for (_, from) in NAMESPACES {
            for (_, to) in NAMESPACES.iter().filter(|(_, to)| *to != from) {
                check(&world, across(from, to));
            }
        }
    }
}

#[test]
fn who_declares_the_whole_internet_gets_it_without_the_nodes_metadata() {
    let world = World::new(wide_open);
    for (_, namespace) in NAMESPACES {
        let cases = [
            ("@web", INTERNET, "TCP", 443, true),
            ("@web", "2001:db8:1::9", "TCP", 443, true),
            ("@web", METADATA, "TCP", 80, false),
            ("@api", METADATA, "TCP", 80, false),
            ("@api", METADATA, "TCP", DATABASE_PORT, false),
            ("@api", "169.254.170.2", "TCP", 80, false),
            ("@api", "fd00:ec2::254", "TCP", 80, false),
            ("@api", "fe80::a9fe:a9fe", "TCP", 80, false),
            ("@api", "fd20:ce::254", "TCP", 80, false),
            ("@api", "100.100.100.200", "TCP", 80, false),
            ("@api", "168.63.129.16", "TCP", 80, false),
            ("@api", "192.0.0.192", "TCP", 80, false),
            // Whoever may go out can still not be reached.
            (INTERNET, "@web", "TCP", 3000, false),
            (STRANGER, "@api", "TCP", 8080, false),
        ];
        check(&world, within(namespace, &cases));
    }
    // Named on purpose, it is open.
    let named = World::new(|own| {
        let to = json!([{"to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}], "ports": [{"port": 80}]}]);
        own.application.spec.egress = serde_json::from_value(to).unwrap();
    });
    assert!(named.allows("tenant-mega/api", METADATA, "TCP", 80));
    assert!(!named.allows("tenant-mega/api", METADATA, "TCP", 443));
}

#[test]
fn without_declared_peers_nobody_reaches_the_database_or_is_reached() {
    let world = World::new(|own| {
        own.server.spec.network = None;
        own.application.spec.route.as_mut().unwrap().from = None;
    });
    for (_, namespace) in NAMESPACES {
        let cases = [
            ("@api", DATABASE, "TCP", DATABASE_PORT, false),
            ("@worker", DATABASE, "TCP", DATABASE_PORT, false),
            (GATEWAY, "@web", "TCP", 3000, false),
            ("@web", "@api", "TCP", 8080, true),
        ];
        check(&world, within(namespace, &cases));
    }
}

/// The cases above would tell a policy that is missing: without any, everything is open.
#[test]
fn without_policies_the_same_world_is_open() {
    let mut world = World::new(|_| ());
    world.cluster.policies.clear();
    let address: IpAddr = METADATA.parse().unwrap();
    assert!(world.allows("tenant-acme/web", "tenant-mega/api", "TCP", 8080));
    assert!(world.cluster.allows(&world.end("pool-crm-1/web"), &End::Outside(address), "TCP", 80));
    assert!(world.allows(STRANGER, "tenant-acme/api", "TCP", 8080));
    assert_eq!((application().spec.components.len(), server().spec.reserved_for), (3, None));
}
