//! A template made whole: safe where it says nothing, and with the operator's own parts.

use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapKeySelector, Container, EnvVar, EnvVarSource, PodSpec, PodTemplateSpec, SeccompProfile,
        SecurityContext, TopologySpreadConstraint,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::{
    component::{Files, Workload},
    mounted,
    naming::{self, Owner},
    sidecar,
};

/// The pod template of a workload's Deployment. What the user wrote stays; what would break
/// Pod Security was refused when the template was decoded.
pub(super) fn complete(workload: &Workload<'_>, mut template: PodTemplateSpec) -> PodTemplateSpec {
    let metadata = template.metadata.get_or_insert_default();
    metadata.labels.get_or_insert_default().extend(workload.labels());
    let spec = template.spec.get_or_insert_default();
    let context = spec.security_context.get_or_insert_default();
    context.run_as_non_root.get_or_insert(true);
    context.seccomp_profile.get_or_insert_with(default_seccomp);
    spec.automount_service_account_token.get_or_insert(false);
    // Variables such as API_PORT, one for each Service: noise, and a limit on their number.
    spec.enable_service_links.get_or_insert(false);
    let env = environment(workload);
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        complete_container(container, &env);
    }
    spread(workload, spec);
    add_files(workload, spec);
    template
}

fn default_seccomp() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}

/// What the operator tells every container.
fn environment(workload: &Workload<'_>) -> Vec<EnvVar> {
    let variable =
        |name: &str, value: &str| EnvVar { name: name.to_owned(), value: Some(value.to_owned()), ..EnvVar::default() };
    let mut env = match workload.owner {
        Owner::Pool(pool) => vec![variable(naming::ENV_POOL, pool)],
        // Who the tenant is never changes, and no ConfigMap that its people edit decides it.
        Owner::Tenant { name, .. } => {
            vec![variable(naming::ENV_TENANT, name), fact(naming::ENV_PLAN, "plan"), fact(naming::ENV_HOST, "host")]
        }
    };
    if workload.component.database {
        env.push(variable(naming::ENV_TENANTS_DIR, naming::TENANTS_DIR));
    }
    env
}

/// A variable that is read from the tenant's ConfigMap as the container starts.
fn fact(name: &str, key: &str) -> EnvVar {
    let selector = ConfigMapKeySelector { name: naming::FACTS.to_owned(), key: key.to_owned(), optional: None };
    let source = EnvVarSource { config_map_key_ref: Some(selector), ..EnvVarSource::default() };
    EnvVar { name: name.to_owned(), value_from: Some(source), ..EnvVar::default() }
}

fn complete_container(container: &mut Container, env: &[EnvVar]) {
    let context = container.security_context.get_or_insert_with(SecurityContext::default);
    context.allow_privilege_escalation.get_or_insert(false);
    context.read_only_root_filesystem.get_or_insert(true);
    let capabilities = context.capabilities.get_or_insert_with(Capabilities::default);
    capabilities.drop.get_or_insert_with(|| vec!["ALL".to_owned()]);
    for port in container.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".to_owned());
    }
    // In front, so that the template's own variables can refer to them.
    let own = container.env.take().unwrap_or_default();
    let missing = env.iter().filter(|variable| own.iter().all(|other| other.name != variable.name)).cloned();
    container.env = Some(missing.chain(own.iter().cloned()).collect());
}

/// Replicas on different nodes where that is possible, unless the template says otherwise.
fn spread(workload: &Workload<'_>, spec: &mut PodSpec) {
    spec.topology_spread_constraints.get_or_insert_with(|| {
        vec![TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(LabelSelector { match_labels: Some(workload.selector()), ..LabelSelector::default() }),
            ..TopologySpreadConstraint::default()
        }]
    });
}

/// The tenants' credentials, at the same paths in every tier, for a component that gets them.
fn add_files(workload: &Workload<'_>, spec: &mut PodSpec) {
    if matches!(workload.files, Files::Mounted { .. }) {
        spec.service_account_name = Some(naming::WORKLOAD_ACCOUNT.to_owned());
    }
    if !workload.component.database {
        return;
    }
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        container.volume_mounts.get_or_insert_default().push(sidecar::tenants_mount());
    }
    match workload.files {
        Files::Agent(agent) => {
            // First of all init containers, since these may need its files.
            spec.init_containers.get_or_insert_default().insert(0, agent.container());
            spec.volumes.get_or_insert_default().extend(agent.volumes());
            spec.service_account_name = Some(naming::AGENT.to_owned());
        }
        Files::Mounted { tenant, hosts } => {
            spec.volumes.get_or_insert_default().push(mounted::volume(tenant, hosts));
        }
    }
    spec.security_context.get_or_insert_default().fs_group.get_or_insert(sidecar::AGENT_ID);
}
