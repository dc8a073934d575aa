//! NetworkPolicy peers and ports, as users write them.

use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Fault;

/// The reason of every fault here.
const INVALID: &str = "InvalidPeer";

/// What the API server would refuse in peers.
pub(super) fn peer_faults(path: &str, peers: &[NetworkPolicyPeer]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (index, peer) in peers.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let selects = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
        match &peer.ip_block {
            Some(_) if selects => {
                let message = "a peer is either an ipBlock or selectors: make two peers of it";
                faults.push(Fault::new(INVALID, path, message));
            }
            Some(block) => faults.extend(block_faults(&format!("{path}.ipBlock"), block)),
            None if !selects => {
                let message = "the peer is empty: give it an ipBlock, a namespaceSelector or a podSelector";
                faults.push(Fault::new(INVALID, path, message));
            }
            None => {}
        }
    }
    faults
}

fn block_faults(path: &str, block: &IPBlock) -> Vec<Fault> {
    let Some(cidr) = Cidr::parse(&block.cidr) else {
        let message = format!("{:?} is not a network: write one such as 10.20.0.0/16 or 2001:db8::/32", block.cidr);
        return vec![Fault::new(INVALID, format!("{path}.cidr"), message)];
    };
    let exceptions = block.except.iter().flatten().enumerate();
    exceptions
        .filter(|(_, text)| !Cidr::parse(text).is_some_and(|inner| cidr.holds(inner)))
        .map(|(index, text)| {
            let message = format!("{text:?} is not a network within {}: correct or remove it", block.cidr);
            Fault::new(INVALID, format!("{path}.except[{index}]"), message)
        })
        .collect()
}

/// A network: the address as a number of 32 or 128 bits, and how many of them count.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cidr {
    address: u128,
    length: u32,
    bits: u32,
}

impl Cidr {
    fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        let length = length.parse().ok()?;
        let (address, bits) = match address.parse().ok()? {
            IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        (length <= bits).then_some(Self { address, length, bits })
    }

    /// Whether `inner` is a smaller network within this one.
    fn holds(self, inner: Self) -> bool {
        let shift = self.bits - self.length;
        let network = |address: u128| address.checked_shr(shift).unwrap_or(0);
        self.bits == inner.bits && inner.length > self.length && network(self.address) == network(inner.address)
    }
}

/// Where clouds answer any pod with the node's own credentials, and what else is of the node's
/// link alone: link-local addresses (AWS, Azure, Google, OpenStack and most others), Alibaba's,
/// Azure's host and Oracle's in IPv4; link-local, AWS's and Google's in IPv6.
const OF_THE_NODE: [&str; 7] = [
    "169.254.0.0/16",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
    "fe80::/10",
    "fd00:ec2::/32",
    "fd20:ce::254/128",
];

/// Peers to connect to, of which a wide network (`0.0.0.0/0`, say) is no way to the node's
/// metadata service. Whoever needs an address of these names it, in a block that lies within.
pub(super) fn without_metadata(peers: &[NetworkPolicyPeer]) -> Vec<NetworkPolicyPeer> {
    let narrowed = |peer: &NetworkPolicyPeer| NetworkPolicyPeer {
        ip_block: peer.ip_block.as_ref().map(narrowed_block),
        ..peer.clone()
    };
    peers.iter().map(narrowed).collect()
}

fn narrowed_block(block: &IPBlock) -> IPBlock {
    let mut except = block.except.clone().unwrap_or_default();
    let Some(cidr) = Cidr::parse(&block.cidr) else { return block.clone() };
    for text in OF_THE_NODE {
        let node = Cidr::parse(text).expect("the table has networks");
        let excepted =
            except.iter().filter_map(|text| Cidr::parse(text)).any(|other| other == node || other.holds(node));
        if cidr.holds(node) && !excepted {
            except.push(text.to_owned());
        }
    }
    IPBlock { cidr: block.cidr.clone(), except: (!except.is_empty()).then_some(except) }
}

/// What the API server would refuse in ports.
pub(super) fn port_faults(path: &str, ports: &[NetworkPolicyPort]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let mut fault =
            |field: &str, message: String| faults.push(Fault::new(INVALID, format!("{path}.{field}"), message));
        if let Some(protocol) = port.protocol.as_deref().filter(|name| !["TCP", "UDP", "SCTP"].contains(name)) {
            fault("protocol", format!("{protocol:?} is not a protocol: choose TCP, UDP or SCTP"));
        }
        let number = match &port.port {
            Some(IntOrString::Int(number)) => Some(*number),
            _ => None,
        };
        if number.is_some_and(|number| !(1..=65_535).contains(&number)) {
            fault("port", "a port is between 1 and 65535".to_owned());
        }
        if let Some(end) = port.end_port
            && number.is_none_or(|number| end < number || end > 65_535)
        {
            fault("endPort", "endPort needs a port that is a number and not above it, and is at most 65535".to_owned());
        }
    }
    faults
}

/// Ports with the protocol written out, as the API server stores them.
pub(super) fn explicit(ports: &[NetworkPolicyPort]) -> Vec<NetworkPolicyPort> {
    let with_protocol = |port: &NetworkPolicyPort| NetworkPolicyPort {
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        ..port.clone()
    };
    ports.iter().map(with_protocol).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(peers: serde_json::Value) -> Vec<String> {
        let peers: Vec<NetworkPolicyPeer> = serde_json::from_value(peers).expect("peers");
        peer_faults("to", &peers).into_iter().map(|fault| fault.path).collect()
    }

    #[test]
    fn peers_are_held_to_what_the_api_server_takes() {
        let good = json!([
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
            {"ipBlock": {"cidr": "2001:db8::/32"}},
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}},
            {"namespaceSelector": {}},
            {"podSelector": {"matchLabels": {"a": "b"}}},
        ]);
        assert!(paths(good).is_empty());
        let bad = json!([
            {"ipBlock": {"cidr": "10.0.0.0"}},
            {"ipBlock": {"cidr": "10.0.0.0/33"}},
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16", "10.0.0.0/8"]}},
            {"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}},
            {},
        ]);
        let expected = [
            "to[0].ipBlock.cidr",
            "to[1].ipBlock.cidr",
            "to[2].ipBlock.except[0]",
            "to[2].ipBlock.except[1]",
            "to[3]",
            "to[4]",
        ];
        assert_eq!(paths(bad), expected);
    }

    #[test]
    fn a_wide_network_is_no_way_to_the_nodes_metadata() {
        let block = |cidr: &str, except: &[&str]| {
            let except = except.iter().map(|text| (*text).to_owned()).collect();
            let block = IPBlock { cidr: cidr.to_owned(), except: Some(except) };
            without_metadata(&[NetworkPolicyPeer { ip_block: Some(block), ..NetworkPolicyPeer::default() }])
        };
        let excepted = |cidr: &str, except: &[&str]| {
            block(cidr, except)[0].ip_block.as_ref().and_then(|block| block.except.clone()).unwrap_or_default()
        };
        let v4 = ["169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"];
        assert_eq!(excepted("0.0.0.0/0", &[]), v4);
        assert_eq!(excepted("::/0", &[]), ["fe80::/10", "fd00:ec2::/32", "fd20:ce::254/128"]);
        assert_eq!(excepted("168.0.0.0/5", &[]), ["169.254.0.0/16", "168.63.129.16/32"]);
        assert_eq!(
            excepted("0.0.0.0/0", &["169.0.0.0/8", "100.64.0.0/10"])[2..],
            ["168.63.129.16/32", "192.0.0.192/32"]
        );
        assert!(excepted("10.0.0.0/8", &[]).is_empty());
        // Named on purpose: the whole of it, or an address in it.
        assert!(excepted("169.254.0.0/16", &[]).is_empty());
        assert!(excepted("169.254.169.254/32", &[]).is_empty());
    }

    #[test]
    fn ports_are_held_to_what_the_api_server_takes() {
        let ports: Vec<NetworkPolicyPort> = serde_json::from_value(json!([
            {"port": 443}, {"port": "https", "protocol": "TCP"}, {"port": 1000, "endPort": 2000},
            {"port": 0}, {"port": 1, "protocol": "tcp"}, {"port": "a", "endPort": 5}, {"port": 9, "endPort": 8},
        ]))
        .expect("ports");
        let paths: Vec<_> = port_faults("ports", &ports).into_iter().map(|fault| fault.path).collect();
        assert_eq!(paths, ["ports[3].port", "ports[4].protocol", "ports[5].endPort", "ports[6].endPort"]);
        assert_eq!(explicit(&ports)[0].protocol.as_deref(), Some("TCP"));
    }
}
