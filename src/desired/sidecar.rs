//! The agent beside a component's containers: it keeps the tenants' credentials as files.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapProjection, Container, DownwardAPIProjection, DownwardAPIVolumeFile,
        EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction, KeyToPath, ObjectFieldSelector, Probe,
        ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecurityContext, ServiceAccountTokenProjection,
        Volume, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{
    naming::{AGENT, TENANTS_DIR, TENANTS_VOLUME, TOKEN_VOLUME},
    quantity,
    settings::Settings,
};

/// Where client libraries look for a pod's token.
pub(super) const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a token is valid; the kubelet renews it at four fifths of that.
const TOKEN_SECONDS: i64 = 3_600;
/// The user and group of the agent, and the pod's fsGroup where the template names none: the
/// group through which the other containers may read the files.
pub(super) const AGENT_ID: i64 = 65_532;
/// A tenant's files take 16 KiB in memory (`benches/agent.rs`), twice that while all of them change;
/// half as much again for longer certificates.
const KIB_PER_TENANT: u64 = 48;
/// What the agent itself needs.
const AGENT_MIB: u64 = 64;
/// How long the agent may take for its first list, in probes of a second: it waits out an
/// API server that is away for a while, and is started anew after that.
const STARTUP_PROBES: i32 = 600;

/// The agent of one pool.
#[derive(Clone, Copy)]
pub(super) struct Sidecar<'a> {
    pub settings: &'a Settings,
    /// How many tenants the pool takes.
    pub capacity: u32,
}

impl Sidecar<'_> {
    /// The container: an init container that keeps running, so that it has started before
    /// the application's containers do, and ends after them.
    pub(super) fn container(&self) -> Container {
        let strings = |items: &[&str]| Some(items.iter().map(|item| (*item).to_owned()).collect());
        Container {
            name: AGENT.to_owned(),
            image: Some(self.settings.agent_image.clone()),
            image_pull_policy: self.settings.agent_pull_policy.clone(),
            restart_policy: Some("Always".to_owned()),
            args: strings(&["agent", "--dir", TENANTS_DIR]),
            env: Some(vec![EnvVar {
                name: "TENANTRY_AGENT_NAMESPACE".to_owned(),
                value_from: Some(EnvVarSource {
                    field_ref: Some(ObjectFieldSelector {
                        api_version: Some("v1".to_owned()),
                        field_path: "metadata.namespace".to_owned(),
                    }),
                    ..EnvVarSource::default()
                }),
                ..EnvVar::default()
            }]),
            startup_probe: Some(Probe {
                exec: Some(ExecAction { command: strings(&["/tenantry", "agent", "--check", "--dir", TENANTS_DIR]) }),
                period_seconds: Some(1),
                timeout_seconds: Some(5),
                failure_threshold: Some(STARTUP_PROBES),
                ..Probe::default()
            }),
            resources: Some(self.resources()),
            security_context: Some(security()),
            volume_mounts: Some(vec![mount(TENANTS_VOLUME, TENANTS_DIR, false), mount(TOKEN_VOLUME, TOKEN_DIR, true)]),
            ..Container::default()
        }
    }

    /// The files in memory, and the agent's token, which no other container mounts.
    pub(super) fn volumes(&self) -> [Volume; 2] {
        [
            Volume {
                name: TENANTS_VOLUME.to_owned(),
                empty_dir: Some(EmptyDirVolumeSource {
                    medium: Some("Memory".to_owned()),
                    size_limit: Some(mebibytes(self.files_mib())),
                }),
                ..Volume::default()
            },
            token_volume(TOKEN_VOLUME),
        ]
    }

    /// Room for every tenant's files, by the next power of two of the capacity, so that a
    /// capacity that grows a little restarts no pod.
    fn files_mib(&self) -> u64 {
        16 + u64::from(self.capacity).next_power_of_two() * KIB_PER_TENANT / 1_024
    }

    /// The agent's memory has the files in it: a volume in memory counts for who writes it.
    fn resources(&self) -> ResourceRequirements {
        if let Some(resources) = &self.settings.agent_resources {
            return quantity::typed_resources(resources);
        }
        let with_cpu = |cpu: &str, memory: Quantity| {
            Some(BTreeMap::from([("cpu".to_owned(), Quantity(cpu.to_owned())), ("memory".to_owned(), memory)]))
        };
        ResourceRequirements {
            requests: with_cpu("10m", mebibytes(32)),
            limits: with_cpu("500m", mebibytes(AGENT_MIB + self.files_mib())),
            claims: None,
        }
    }
}

/// What a client library needs to reach the API server: token, certificates and namespace.
pub(super) fn token_volume(name: &str) -> Volume {
    let projection = [
        token_projection(None),
        VolumeProjection {
            config_map: Some(ConfigMapProjection {
                name: "kube-root-ca.crt".to_owned(),
                items: Some(vec![KeyToPath { key: "ca.crt".into(), path: "ca.crt".into(), mode: None }]),
                optional: None,
            }),
            ..VolumeProjection::default()
        },
        VolumeProjection {
            downward_api: Some(DownwardAPIProjection {
                items: Some(vec![DownwardAPIVolumeFile {
                    path: "namespace".to_owned(),
                    field_ref: Some(ObjectFieldSelector {
                        api_version: Some("v1".to_owned()),
                        field_path: "metadata.namespace".to_owned(),
                    }),
                    ..DownwardAPIVolumeFile::default()
                }]),
            }),
            ..VolumeProjection::default()
        },
    ];
    projected(name, projection.into())
}

/// The pod's token, for the API server or for somebody else.
pub(super) fn token_projection(audience: Option<&str>) -> VolumeProjection {
    VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            expiration_seconds: Some(TOKEN_SECONDS),
            path: "token".to_owned(),
            audience: audience.map(str::to_owned),
        }),
        ..VolumeProjection::default()
    }
}

pub(super) fn projected(name: &str, sources: Vec<VolumeProjection>) -> Volume {
    Volume {
        name: name.to_owned(),
        projected: Some(ProjectedVolumeSource { sources: Some(sources), default_mode: None }),
        ..Volume::default()
    }
}

/// What every container of the operator's own is held to.
pub(super) fn security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        run_as_user: Some(AGENT_ID),
        run_as_group: Some(AGENT_ID),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..SecurityContext::default()
    }
}

/// The mount of the files in an application's container.
pub(super) fn tenants_mount() -> VolumeMount {
    mount(TENANTS_VOLUME, TENANTS_DIR, true)
}

pub(super) fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn mebibytes(number: u64) -> Quantity {
    let text = format!("{number}Mi");
    Quantity(quantity::canonical(&text).unwrap_or(text))
}
