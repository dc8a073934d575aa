//! The relay of a DatabaseServer: a namespace of its own, with the process that carries usage
//! events from the server's databases to the operator's API.

use std::{collections::BTreeMap, net::IpAddr};

use data_encoding::BASE64;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            ConfigMap, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, HTTPGetAction, PodSecurityContext,
            PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, TopologySpreadConstraint, Volume,
        },
        networking::v1::{
            IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
            NetworkPolicySpec,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use serde_json::{Map, Value, json};

use super::{
    Kind, Object,
    namespace::Scope,
    naming::{self, RELAY},
    network::port,
    peers, quantity,
    settings::Settings,
    sidecar::{self, AGENT_ID, TOKEN_DIR, mount, projected, token_projection, token_volume},
};
use crate::api::{DatabaseServer, Resources};

/// Where the relay finds the token for the operator's API.
const API_TOKEN_DIR: &str = "/var/run/secrets/tenantry";
/// Where it finds whom to trust as that API: a folder, since a file that is mounted alone is never
/// renewed.
const API_CA_DIR: &str = "/etc/tenantry/api-ca";
/// The file in it, and the key of the ConfigMap.
const API_CA_FILE: &str = "ca.crt";
/// The port of its health and metrics.
const HTTP: i32 = 8_080;
/// How long the relay may take to end: batches that are under way are settled within 20 s.
const GRACE_SECONDS: i64 = 30;
/// How long the API server keeps earlier templates of the Deployment.
const REVISION_HISTORY: i32 = 3;

/// What holds for the relays of all DatabaseServers.
#[derive(Clone, Debug, PartialEq)]
pub struct RelaySettings {
    /// The relay's image: the operator's own.
    pub image: String,
    /// When it is pulled; Kubernetes' default when left out.
    pub pull_policy: Option<String>,
    /// How many there are of each: they share the work.
    pub replicas: i32,
    /// Its requests and limits; some that do for most when left out.
    pub resources: Option<Resources>,
    /// The base URL of the operator's API.
    pub api_url: String,
    /// The port at which the operator's pods serve it.
    pub api_port: u16,
}

/// What a relay's objects are made from.
#[derive(Clone, Copy)]
pub struct RelayInput<'a> {
    /// The server.
    pub server: &'a DatabaseServer,
    /// What holds for the operator as a whole.
    pub settings: &'a Settings,
    /// What holds for relays.
    pub relay: &'a RelaySettings,
    /// Where the relay reaches the API server: the endpoints behind Service `kubernetes`.
    pub api_server: &'a [(IpAddr, u16)],
    /// The certificates that the operator's API is signed by, as PEM; the system's when left out.
    pub api_ca: Option<&'a str>,
}

/// What a relay's Secret is made from. (Not `Debug`: it has a password.)
#[derive(Clone, Copy)]
pub struct RelaySecretInput<'a> {
    /// The DatabaseServer's name.
    pub server: &'a str,
    /// Host name or address of the server itself.
    pub host: &'a str,
    /// Its port.
    pub port: u16,
    /// The database.
    pub database: &'a str,
    /// The relay's login there.
    pub username: &'a str,
    /// Its password.
    pub password: &'a str,
    /// `verify-full` or `disable`, as libpq calls it.
    pub sslmode: &'a str,
    /// The certificates to trust, as PEM.
    pub ca_pem: Option<&'a str>,
}

/// All objects of a relay but its Secrets, in the order in which they are applied.
pub fn relay_objects(input: &RelayInput<'_>) -> Vec<Object> {
    let server = input.server.metadata.name.as_deref().unwrap_or_default();
    let (namespace, labels) = (naming::relay_namespace(server), naming::relay_labels(server));
    let scope = Scope { namespace: &namespace, labels: &labels };
    let relay = Relay { input, server, scope };
    [scope.namespace(), scope.operator_binding(input.settings)]
        .into_iter()
        .chain(scope.relay())
        .chain(relay.policies())
        .chain(relay.disruption_budget())
        .chain(relay.api_ca())
        .chain([relay.deployment()])
        .collect()
}

/// The Secret with the relay's login in one database.
pub fn relay_secret(input: &RelaySecretInput<'_>) -> Object {
    let port = input.port.to_string();
    let entries = [
        ("type", "postgresql"),
        ("provider", "tenantry"),
        ("host", input.host),
        ("port", &port),
        ("database", input.database),
        ("username", input.username),
        ("password", input.password),
        ("sslmode", input.sslmode),
        ("ca.crt", input.ca_pem.unwrap_or_default()),
    ];
    let data: Map<String, Value> =
        entries.iter().map(|(key, value)| ((*key).to_owned(), BASE64.encode(value.as_bytes()).into())).collect();
    let metadata = json!({
        "name": naming::relay_secret(input.database),
        "namespace": naming::relay_namespace(input.server),
        "labels": naming::relay_labels(input.server),
    });
    Object::untyped(Kind::Secret, json!({"metadata": metadata, "type": "servicebinding.io/postgresql", "data": data}))
}

struct Relay<'a> {
    input: &'a RelayInput<'a>,
    server: &'a str,
    scope: Scope<'a>,
}

impl Relay<'_> {
    fn selector(&self) -> BTreeMap<String, String> {
        naming::selector(self.server, RELAY)
    }

    fn label_selector(&self) -> LabelSelector {
        LabelSelector { match_labels: Some(self.selector()), ..LabelSelector::default() }
    }

    /// The labels of the Deployment and its pods.
    fn pod_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.scope.labels.clone();
        labels.insert(naming::LABEL_NAME.to_owned(), "tenantry-relay".to_owned());
        labels.extend(self.selector());
        labels
    }

    fn metadata(&self) -> ObjectMeta {
        ObjectMeta { labels: Some(self.pod_labels()), ..self.scope.metadata(RELAY) }
    }

    /// Whom it trusts as the operator's API. The relay reads it again, so that a renewal changes no
    /// pod template.
    fn api_ca(&self) -> Option<Object> {
        let map = ConfigMap {
            metadata: self.scope.metadata(naming::API_CA),
            data: Some(BTreeMap::from([(API_CA_FILE.to_owned(), self.input.api_ca?.to_owned())])),
            ..ConfigMap::default()
        };
        Some(Object::typed(Kind::ConfigMap, &map))
    }

    fn deployment(&self) -> Object {
        let deployment = Deployment {
            metadata: self.metadata(),
            spec: Some(DeploymentSpec {
                replicas: Some(self.input.relay.replicas),
                selector: self.label_selector(),
                template: PodTemplateSpec {
                    metadata: Some(ObjectMeta { labels: Some(self.pod_labels()), ..ObjectMeta::default() }),
                    spec: Some(self.pod()),
                },
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".to_owned()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: Some(IntOrString::Int(1)),
                        max_unavailable: Some(IntOrString::Int(0)),
                    }),
                }),
                revision_history_limit: Some(REVISION_HISTORY),
                ..DeploymentSpec::default()
            }),
            status: None,
        };
        Object::typed(Kind::Deployment, &deployment)
    }

    fn pod(&self) -> PodSpec {
        let api_ca = self.input.api_ca.map(|_| Volume {
            name: naming::API_CA.to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: naming::API_CA.to_owned(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        });
        let tokens =
            [token_volume("api-server-token"), projected("api-token", vec![token_projection(Some(naming::AUDIENCE))])];
        PodSpec {
            service_account_name: Some(RELAY.to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                // The group through which the tokens can be read.
                fs_group: Some(AGENT_ID),
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
                ..PodSecurityContext::default()
            }),
            containers: vec![self.container()],
            volumes: Some(tokens.into_iter().chain(api_ca).collect()),
            topology_spread_constraints: Some(vec![TopologySpreadConstraint {
                max_skew: 1,
                topology_key: "kubernetes.io/hostname".to_owned(),
                when_unsatisfiable: "ScheduleAnyway".to_owned(),
                label_selector: Some(self.label_selector()),
                ..TopologySpreadConstraint::default()
            }]),
            ..PodSpec::default()
        }
    }

    fn container(&self) -> Container {
        let RelaySettings { image, pull_policy, api_url, .. } = self.input.relay;
        let variable = |name: &str, value: &str| EnvVar {
            name: name.to_owned(),
            value: Some(value.to_owned()),
            ..EnvVar::default()
        };
        let api_ca = self.input.api_ca;
        let ca_file = api_ca.map(|_| variable("TENANTRY_RELAY_API_CA", &format!("{API_CA_DIR}/{API_CA_FILE}")));
        let variables = [
            variable("TENANTRY_RELAY_SERVER", self.server),
            variable("TENANTRY_RELAY_NAMESPACE", self.scope.namespace),
            variable("TENANTRY_RELAY_API_URL", api_url),
            variable("TENANTRY_RELAY_TOKEN_FILE", &format!("{API_TOKEN_DIR}/token")),
        ];
        let mounts = [mount("api-server-token", TOKEN_DIR, true), mount("api-token", API_TOKEN_DIR, true)];
        Container {
            name: RELAY.to_owned(),
            image: Some(image.clone()),
            image_pull_policy: pull_policy.clone(),
            args: Some(vec!["relay".to_owned()]),
            env: Some(variables.into_iter().chain(ca_file).collect()),
            ports: Some(vec![ContainerPort {
                name: Some("http".to_owned()),
                container_port: HTTP,
                protocol: Some("TCP".to_owned()),
                ..ContainerPort::default()
            }]),
            liveness_probe: Some(probe("/livez", 10)),
            readiness_probe: Some(probe("/readyz", 5)),
            resources: Some(self.resources()),
            security_context: Some(sidecar::security()),
            volume_mounts: Some(
                mounts.into_iter().chain(api_ca.map(|_| mount(naming::API_CA, API_CA_DIR, true))).collect(),
            ),
            ..Container::default()
        }
    }

    /// Eight batches of a thousand events that are under way take about 16 MiB.
    fn resources(&self) -> ResourceRequirements {
        if let Some(resources) = &self.input.relay.resources {
            return quantity::typed_resources(resources);
        }
        let amount = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
        ResourceRequirements {
            requests: Some(BTreeMap::from([amount("cpu", "50m"), amount("memory", "64Mi")])),
            limits: Some(BTreeMap::from([amount("memory", "256Mi")])),
            claims: None,
        }
    }

    /// Only where there is more than one: one alone needs no budget.
    fn disruption_budget(&self) -> Option<Object> {
        if self.input.relay.replicas < 2 {
            return None;
        }
        let budget = PodDisruptionBudget {
            metadata: self.metadata(),
            spec: Some(PodDisruptionBudgetSpec {
                selector: Some(self.label_selector()),
                max_unavailable: Some(IntOrString::Int(1)),
                unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: None,
        };
        Some(Object::typed(Kind::PodDisruptionBudget, &budget))
    }

    /// What may connect to what: nothing comes in, and nothing goes out but to DNS, the server, the
    /// API server and the operator's API.
    fn policies(&self) -> Vec<Object> {
        let deny = NetworkPolicySpec {
            pod_selector: Some(LabelSelector::default()),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ..NetworkPolicySpec::default()
        };
        let dns =
            self.egress("allow-dns", vec![to(vec![in_namespace("kube-system", &[])], &[("UDP", 53), ("TCP", 53)])]);
        [Some(self.policy("default-deny", deny)), Some(dns), self.to_database(), self.to_api_server()]
            .into_iter()
            .chain([Some(self.to_api()), Some(self.metrics_ingress())])
            .flatten()
            .collect()
    }

    /// To the server itself, since the relay never goes through a pooler. Without declared peers
    /// there is no way: never a way to everywhere.
    fn to_database(&self) -> Option<Object> {
        let spec = &self.input.server.spec;
        let peers = &spec.network.as_ref()?.to;
        let number = spec.admin.port.unwrap_or(5_432);
        (!peers.is_empty())
            .then(|| self.egress("allow-database", vec![to(peers::without_metadata(peers), &[("TCP", number)])]))
    }

    fn to_api_server(&self) -> Option<Object> {
        let rule = |(address, number): &(IpAddr, u16)| {
            let length = if address.is_ipv4() { 32 } else { 128 };
            let block = IPBlock { cidr: format!("{address}/{length}"), except: None };
            let peer = NetworkPolicyPeer { ip_block: Some(block), ..NetworkPolicyPeer::default() };
            to(vec![peer], &[("TCP", i32::from(*number))])
        };
        let rules: Vec<_> = self.input.api_server.iter().map(rule).collect();
        (!rules.is_empty()).then(|| self.egress("allow-api-server", rules))
    }

    fn to_api(&self) -> Object {
        let operator = [(naming::LABEL_NAME, "tenantry"), (naming::LABEL_COMPONENT, "operator")];
        let peer = in_namespace(&self.input.settings.operator_namespace, &operator);
        self.egress("allow-api", vec![to(vec![peer], &[("TCP", i32::from(self.input.relay.api_port))])])
    }

    /// Metrics are no secret of a tenant's: whoever may reach the namespaces of a cluster's
    /// monitoring, by the label that those carry, may read them.
    fn metrics_ingress(&self) -> Object {
        let labels = BTreeMap::from([(LABEL_MONITORING.to_owned(), "true".to_owned())]);
        let peer = NetworkPolicyPeer {
            namespace_selector: Some(LabelSelector { match_labels: Some(labels), ..LabelSelector::default() }),
            ..NetworkPolicyPeer::default()
        };
        let rule = NetworkPolicyIngressRule { from: Some(vec![peer]), ports: Some(vec![port("TCP", HTTP)]) };
        let spec = NetworkPolicySpec {
            pod_selector: Some(self.label_selector()),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![rule]),
            egress: None,
        };
        self.policy("allow-metrics", spec)
    }

    fn egress(&self, name: &str, rules: Vec<NetworkPolicyEgressRule>) -> Object {
        let spec = NetworkPolicySpec {
            pod_selector: Some(self.label_selector()),
            policy_types: Some(vec!["Egress".to_owned()]),
            egress: Some(rules),
            ingress: None,
        };
        self.policy(name, spec)
    }

    fn policy(&self, name: &str, spec: NetworkPolicySpec) -> Object {
        let metadata = self.scope.metadata(name);
        Object::typed(Kind::NetworkPolicy, &NetworkPolicy { metadata, spec: Some(spec) })
    }
}

/// Label of a namespace whose pods may read the relays' metrics.
const LABEL_MONITORING: &str = "tenantry.io/monitoring";

fn to(peers: Vec<NetworkPolicyPeer>, ports: &[(&str, i32)]) -> NetworkPolicyEgressRule {
    let ports = ports.iter().map(|(protocol, number)| port(protocol, *number)).collect();
    NetworkPolicyEgressRule { to: Some(peers), ports: Some(ports) }
}

/// The pods of a namespace that have these labels.
fn in_namespace(namespace: &str, labels: &[(&str, &str)]) -> NetworkPolicyPeer {
    let select =
        |labels: BTreeMap<String, String>| LabelSelector { match_labels: Some(labels), ..LabelSelector::default() };
    let name = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]);
    let labels: BTreeMap<_, _> = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    NetworkPolicyPeer {
        namespace_selector: Some(select(name)),
        pod_selector: (!labels.is_empty()).then(|| select(labels)),
        ip_block: None,
    }
}

fn probe(path: &str, period: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        ..Probe::default()
    }
}
