//! What may connect to what in a namespace: nothing, but what is named here.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::{
    Kind, Object,
    naming::{self, LABEL_COMPONENT},
    peers,
};
use crate::api::{Application, DatabaseServer};

/// The policies that are made from peers which somebody declares.
pub(super) const ROUTE: &str = "allow-route";
pub(super) const EGRESS: &str = "allow-egress";
pub(super) const DATABASE: &str = "allow-database";

/// What a namespace's policies are made from.
#[derive(Clone, Copy)]
pub(super) struct Network<'a> {
    pub namespace: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    /// The pool or tenant that the namespace is for.
    pub instance: &'a str,
    pub application: &'a Application,
    pub server: &'a DatabaseServer,
    /// Where the agent reaches the API server; empty where no agent runs.
    pub api_server: &'a [(IpAddr, u16)],
}

impl Network<'_> {
    /// The policies, each for one purpose.
    pub(super) fn policies(&self) -> Vec<Object> {
        [Some(self.default_deny()), Some(self.dns())]
            .into_iter()
            .chain([self.database(), self.api_server(), self.route()])
            .chain(self.components_ingress())
            .chain([self.components_egress(), self.application_egress()])
            .flatten()
            .collect()
    }

    /// Nothing comes in and nothing goes out, unless another policy allows it.
    fn default_deny(&self) -> Object {
        let spec = NetworkPolicySpec {
            pod_selector: Some(LabelSelector::default()),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ..NetworkPolicySpec::default()
        };
        self.policy("default-deny", spec)
    }

    fn dns(&self) -> Object {
        let system = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), "kube-system".to_owned())]);
        let peer = NetworkPolicyPeer {
            namespace_selector: Some(LabelSelector { match_labels: Some(system), ..LabelSelector::default() }),
            ..NetworkPolicyPeer::default()
        };
        let rule =
            NetworkPolicyEgressRule { to: Some(vec![peer]), ports: Some(vec![port("UDP", 53), port("TCP", 53)]) };
        self.egress("allow-dns", LabelSelector::default(), vec![rule])
    }

    /// From the components that get credentials to the server. Without declared peers there
    /// is no policy, and so no way: never a way to everywhere.
    fn database(&self) -> Option<Object> {
        let clients = self.database_clients()?;
        let peers = &self.server.spec.network.as_ref()?.to;
        if peers.is_empty() {
            return None;
        }
        let rule = NetworkPolicyEgressRule {
            to: Some(peers::without_metadata(peers)),
            ports: Some(vec![port("TCP", endpoint_port(self.server))]),
        };
        Some(self.egress(DATABASE, clients, vec![rule]))
    }

    /// From the agents' pods to the API server.
    fn api_server(&self) -> Option<Object> {
        let clients = self.database_clients()?;
        let rules: Vec<_> = self
            .api_server
            .iter()
            .map(|(address, number)| {
                let length = if address.is_ipv4() { 32 } else { 128 };
                let block = IPBlock { cidr: format!("{address}/{length}"), except: None };
                let peer = NetworkPolicyPeer { ip_block: Some(block), ..NetworkPolicyPeer::default() };
                NetworkPolicyEgressRule { to: Some(vec![peer]), ports: Some(vec![port("TCP", i32::from(*number))]) }
            })
            .collect();
        (!rules.is_empty()).then(|| self.egress("allow-api-server", clients, rules))
    }

    /// From the declared peers (a Gateway's pods, say) to the component that serves.
    fn route(&self) -> Option<Object> {
        let route = self.application.spec.route.as_ref()?;
        let from = route.from.as_ref().filter(|peers| !peers.is_empty())?;
        let components = &self.application.spec.components;
        let serving = components.iter().find(|component| component.name == route.component)?;
        let rule = NetworkPolicyIngressRule { from: Some(from.clone()), ports: Some(vec![port("TCP", serving.port?)]) };
        Some(self.ingress(ROUTE, self.component(&serving.name), rule))
    }

    /// The components with a port, if there is anyone else in the namespace to call them.
    fn called(&self) -> impl Iterator<Item = (&str, i32)> {
        let components = &self.application.spec.components;
        let ported = components.iter().filter(|_| components.len() > 1);
        ported.filter_map(|component| Some((component.name.as_str(), component.port?)))
    }

    fn components_ingress(&self) -> Vec<Option<Object>> {
        let policy = |(name, number): (&str, i32)| {
            let neighbours =
                NetworkPolicyPeer { pod_selector: Some(LabelSelector::default()), ..NetworkPolicyPeer::default() };
            let rule =
                NetworkPolicyIngressRule { from: Some(vec![neighbours]), ports: Some(vec![port("TCP", number)]) };
            Some(self.ingress(&format!("allow-component-{name}"), self.component(name), rule))
        };
        self.called().map(policy).collect()
    }

    fn components_egress(&self) -> Option<Object> {
        let rules: Vec<_> = self
            .called()
            .map(|(name, number)| {
                let peer =
                    NetworkPolicyPeer { pod_selector: Some(self.component(name)), ..NetworkPolicyPeer::default() };
                NetworkPolicyEgressRule { to: Some(vec![peer]), ports: Some(vec![port("TCP", number)]) }
            })
            .collect();
        (!rules.is_empty()).then(|| self.egress("allow-components", LabelSelector::default(), rules))
    }

    /// Where the Application says that its containers may connect to.
    fn application_egress(&self) -> Option<Object> {
        let declared = self.application.spec.egress.iter().flatten().filter(|rule| !rule.to.is_empty());
        let rules: Vec<_> = declared
            .map(|rule| NetworkPolicyEgressRule {
                to: Some(peers::without_metadata(&rule.to)),
                ports: rule.ports.as_deref().map(peers::explicit),
            })
            .collect();
        (!rules.is_empty()).then(|| self.egress(EGRESS, LabelSelector::default(), rules))
    }

    /// The pods of the components that get credentials; nothing when none does.
    fn database_clients(&self) -> Option<LabelSelector> {
        let components = self.application.spec.components.iter().filter(|component| component.database);
        let names: Vec<String> = components.map(|component| component.name.clone()).collect();
        (!names.is_empty()).then(|| LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: LABEL_COMPONENT.to_owned(),
                operator: "In".to_owned(),
                values: Some(names),
            }]),
            ..LabelSelector::default()
        })
    }

    fn component(&self, name: &str) -> LabelSelector {
        LabelSelector { match_labels: Some(naming::selector(self.instance, name)), ..LabelSelector::default() }
    }

    fn egress(&self, name: &str, pods: LabelSelector, rules: Vec<NetworkPolicyEgressRule>) -> Object {
        let spec = NetworkPolicySpec {
            pod_selector: Some(pods),
            policy_types: Some(vec!["Egress".to_owned()]),
            egress: Some(rules),
            ingress: None,
        };
        self.policy(name, spec)
    }

    fn ingress(&self, name: &str, pods: LabelSelector, rule: NetworkPolicyIngressRule) -> Object {
        let spec = NetworkPolicySpec {
            pod_selector: Some(pods),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![rule]),
            egress: None,
        };
        self.policy(name, spec)
    }

    fn policy(&self, name: &str, spec: NetworkPolicySpec) -> Object {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.to_owned()),
            labels: Some(self.labels.clone()),
            ..ObjectMeta::default()
        };
        Object::typed(Kind::NetworkPolicy, &NetworkPolicy { metadata, spec: Some(spec) })
    }
}

/// Whether the way to the database is declared, or nobody needs it.
pub(super) fn declared(application: &Application, server: &DatabaseServer) -> bool {
    let needed = application.spec.components.iter().any(|component| component.database);
    !needed || server.spec.network.as_ref().is_some_and(|network| !network.to.is_empty())
}

/// The port at which tenants connect.
fn endpoint_port(server: &DatabaseServer) -> i32 {
    let endpoint = server.spec.endpoint.as_ref().and_then(|endpoint| endpoint.port);
    endpoint.or(server.spec.admin.port).unwrap_or(5_432)
}

/// The protocol is always written out: the API server would fill it in.
pub(super) fn port(protocol: &str, number: i32) -> NetworkPolicyPort {
    NetworkPolicyPort { protocol: Some(protocol.to_owned()), port: Some(IntOrString::Int(number)), end_port: None }
}
