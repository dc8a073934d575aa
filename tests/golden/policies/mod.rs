//! An evaluator of NetworkPolicies: who may connect to whom, as the API's documentation says.
//!
//! Where implementations differ it takes the generous reading, so that a `no` holds with each
//! of them: an `ipBlock` matches pods by their address too.

mod documentation;

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

/// Labels, of a pod or a namespace.
pub type Labels = BTreeMap<String, String>;

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub address: IpAddr,
    /// Its named ports: name, protocol, number.
    pub ports: Vec<(String, String, i32)>,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    Pod(Pod),
    /// Whoever is outside of the cluster.
    Outside(IpAddr),
}

impl End {
    fn pod(&self) -> Option<&Pod> {
        match self {
            Self::Pod(pod) => Some(pod),
            Self::Outside(_) => None,
        }
    }

    fn address(&self) -> IpAddr {
        match self {
            Self::Pod(pod) => pod.address,
            Self::Outside(address) => *address,
        }
    }
}

/// Namespaces with their labels, and all policies.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub namespaces: BTreeMap<String, Labels>,
    pub policies: Vec<NetworkPolicy>,
}

/// A direction of a policy.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Ingress,
    Egress,
}

impl Cluster {
    /// Whether a connection can be made: the policies of both ends must let it pass.
    pub fn allows(&self, from: &End, to: &End, protocol: &str, port: i32) -> bool {
        // A pod can't be kept from itself.
        from == to
            || (self.lets(Direction::Egress, from, to, to, protocol, port)
                && self.lets(Direction::Ingress, to, from, to, protocol, port))
    }

    /// Whether the policies that select `own` let `other` pass; `to` is the end that is
    /// connected to, whose ports count.
    fn lets(&self, direction: Direction, own: &End, other: &End, to: &End, protocol: &str, port: i32) -> bool {
        let Some(pod) = own.pod() else { return true };
        let mut selecting = self
            .policies
            .iter()
            .filter(|policy| policy.metadata.namespace.as_deref() == Some(pod.namespace.as_str()))
            .filter_map(|policy| policy.spec.as_ref())
            .filter(|spec| applies(spec, direction))
            // An empty selector, or none, selects every pod of the namespace.
            .filter(|spec| spec.pod_selector.as_ref().is_none_or(|selector| selects(selector, &pod.labels)))
            .peekable();
        if selecting.peek().is_none() {
            return true;
        }
        let allowed = |(peers, ports): (Option<&[NetworkPolicyPeer]>, Option<&[NetworkPolicyPort]>)| {
            // Left out or empty means everybody, and every port.
            let peers = peers.unwrap_or_default();
            let ports = ports.unwrap_or_default();
            (peers.is_empty() || peers.iter().any(|peer| self.matches(peer, &pod.namespace, other)))
                && (ports.is_empty() || ports.iter().any(|it| port_matches(it, to, protocol, port)))
        };
        selecting.any(|spec| match direction {
            Direction::Ingress => {
                spec.ingress.iter().flatten().any(|rule| allowed((rule.from.as_deref(), rule.ports.as_deref())))
            }
            Direction::Egress => {
                spec.egress.iter().flatten().any(|rule| allowed((rule.to.as_deref(), rule.ports.as_deref())))
            }
        })
    }

    /// Whether a peer of a policy in `namespace` means this end.
    fn matches(&self, peer: &NetworkPolicyPeer, namespace: &str, end: &End) -> bool {
        if let Some(block) = &peer.ip_block {
            let within = |cidr: &String| contains(cidr, end.address());
            return within(&block.cidr) && !block.except.iter().flatten().any(within);
        }
        let Some(pod) = end.pod() else { return false };
        let in_namespace = match &peer.namespace_selector {
            Some(selector) => self.namespaces.get(&pod.namespace).is_some_and(|labels| selects(selector, labels)),
            None => pod.namespace == namespace,
        };
        in_namespace && peer.pod_selector.as_ref().is_none_or(|selector| selects(selector, &pod.labels))
    }
}

/// Whether a policy is about a direction. Where it doesn't say: ingress always, egress where
/// it has rules for it.
fn applies(spec: &NetworkPolicySpec, direction: Direction) -> bool {
    match spec.policy_types.as_deref().unwrap_or_default() {
        [] => direction == Direction::Ingress || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        types => types.iter().any(|it| it == if direction == Direction::Ingress { "Ingress" } else { "Egress" }),
    }
}

fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let mut exact = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    exact.all(|(label, value)| labels.get(label) == Some(value))
        && expressions.all(|requirement| {
            let found = labels.get(&requirement.key);
            let listed = found.is_some_and(|value| requirement.values.iter().flatten().any(|other| other == value));
            match requirement.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                other => panic!("there is no operator {other}"),
            }
        })
}

fn port_matches(rule: &NetworkPolicyPort, to: &End, protocol: &str, port: i32) -> bool {
    if rule.protocol.as_deref().unwrap_or("TCP") != protocol {
        return false;
    }
    match (&rule.port, rule.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), None) => *first == port,
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&port),
        // A name means the port that the pod which is connected to calls so.
        (Some(IntOrString::String(name)), _) => to.pod().is_some_and(|pod| {
            pod.ports.iter().any(|(other, of, number)| other == name && of == protocol && *number == port)
        }),
    }
}

/// Whether an address is in a network.
fn contains(cidr: &str, address: IpAddr) -> bool {
    let (network, length) = cidr.split_once('/').unwrap();
    let length: u32 = length.parse().unwrap();
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let (network, of_network) = bits(network.parse().unwrap());
    let (address, of_address) = bits(address);
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    of_network == of_address && network & mask == address & mask
}
