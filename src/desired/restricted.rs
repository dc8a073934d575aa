//! Kubernetes' Pod Security Standard `restricted`, to which every namespace of the operator
//! is held. The API server would refuse such pods too, but only once a Deployment tries to
//! make them, far from the field that is at fault.

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, PodSpec, Probe, SeccompProfile, Volume};

use super::{Fault, template::containers};

/// The reason of every fault here.
const FORBIDDEN: &str = "ForbiddenByPodSecurity";

/// Sysctls that the standard takes for safe (1.36).
const SAFE_SYSCTLS: [&str; 11] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// SELinux types that the standard takes for safe (1.36).
const SAFE_SELINUX_TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

/// What the standard forbids in a pod. Fields that are left out get safe values later on.
pub(super) fn faults(path: &str, spec: &PodSpec) -> Vec<Fault> {
    let mut report = Report::default();
    report.pod(path, spec);
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        report.volume(&format!("{path}.volumes[{index}]"), volume);
    }
    for (path, container) in containers(path, spec) {
        report.container(&path, container);
        report.container_security(&format!("{path}.securityContext"), container);
        report.hosts(&path, container);
    }
    report.0
}

#[derive(Default)]
struct Report(Vec<Fault>);

impl Report {
    /// Where `forbidden` holds: the field, and what to do about it.
    fn check(&mut self, forbidden: bool, path: String, change: &str) {
        if forbidden {
            let message =
                format!("Pod Security `restricted`, to which every tenant's namespace is held, forbids this: {change}");
            self.0.push(Fault::new(FORBIDDEN, path, message));
        }
    }

    fn pod(&mut self, path: &str, spec: &PodSpec) {
        self.check(spec.host_network == Some(true), format!("{path}.hostNetwork"), "remove hostNetwork");
        self.check(spec.host_pid == Some(true), format!("{path}.hostPID"), "remove hostPID");
        self.check(spec.host_ipc == Some(true), format!("{path}.hostIPC"), "remove hostIPC");
        let Some(context) = &spec.security_context else { return };
        let path = format!("{path}.securityContext");
        self.root(&path, context.run_as_non_root, context.run_as_user);
        self.seccomp(&path, context.seccomp_profile.as_ref());
        self.selinux(&path, context.se_linux_options.as_ref());
        self.app_armor(&path, context.app_armor_profile.as_ref());
        for (index, sysctl) in context.sysctls.iter().flatten().enumerate() {
            let unsafe_sysctl = !SAFE_SYSCTLS.contains(&sysctl.name.as_str());
            self.check(unsafe_sysctl, format!("{path}.sysctls[{index}]"), "remove this sysctl");
        }
    }

    fn volume(&mut self, path: &str, volume: &Volume) {
        let allowed = volume.config_map.is_some()
            || volume.csi.is_some()
            || volume.downward_api.is_some()
            || volume.empty_dir.is_some()
            || volume.ephemeral.is_some()
            || volume.persistent_volume_claim.is_some()
            || volume.projected.is_some()
            || volume.secret.is_some()
            || volume.image.is_some();
        self.check(
            !allowed || volume.host_path.is_some(),
            path.to_owned(),
            "use configMap, csi, downwardAPI, emptyDir, ephemeral, image, persistentVolumeClaim, projected or secret",
        );
    }

    fn container(&mut self, path: &str, container: &Container) {
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let taken = port.host_port.is_some_and(|port| port != 0);
            self.check(taken, format!("{path}.ports[{index}].hostPort"), "remove hostPort");
        }
    }

    fn container_security(&mut self, path: &str, container: &Container) {
        let Some(context) = &container.security_context else { return };
        self.check(context.privileged == Some(true), format!("{path}.privileged"), "remove privileged");
        self.check(
            context.allow_privilege_escalation == Some(true),
            format!("{path}.allowPrivilegeEscalation"),
            "set it to false, or remove it",
        );
        self.root(path, context.run_as_non_root, context.run_as_user);
        self.seccomp(path, context.seccomp_profile.as_ref());
        self.selinux(path, context.se_linux_options.as_ref());
        self.app_armor(path, context.app_armor_profile.as_ref());
        let unmasked = context.proc_mount.as_deref().is_some_and(|mount| mount != "Default");
        self.check(unmasked, format!("{path}.procMount"), "remove procMount");
        let Some(capabilities) = &context.capabilities else { return };
        let added = capabilities.add.iter().flatten().any(|name| name != "NET_BIND_SERVICE");
        self.check(added, format!("{path}.capabilities.add"), "add none, or NET_BIND_SERVICE alone");
        let kept = capabilities.drop.as_ref().is_some_and(|names| !names.iter().any(|name| name == "ALL"));
        self.check(kept, format!("{path}.capabilities.drop"), "drop ALL, or remove the field");
    }

    fn root(&mut self, path: &str, non_root: Option<bool>, user: Option<i64>) {
        self.check(non_root == Some(false), format!("{path}.runAsNonRoot"), "set it to true, or remove it");
        self.check(user == Some(0), format!("{path}.runAsUser"), "choose a user other than 0, or remove it");
    }

    fn seccomp(&mut self, path: &str, profile: Option<&SeccompProfile>) {
        let loose = profile.is_some_and(|profile| !["RuntimeDefault", "Localhost"].contains(&profile.type_.as_str()));
        self.check(loose, format!("{path}.seccompProfile"), "use RuntimeDefault, or remove it");
    }

    fn selinux(&mut self, path: &str, options: Option<&k8s_openapi::api::core::v1::SELinuxOptions>) {
        let Some(options) = options else { return };
        let type_ = options.type_.as_deref().unwrap_or_default();
        self.check(!SAFE_SELINUX_TYPES.contains(&type_), format!("{path}.seLinuxOptions.type"), "remove it");
        let named = |name: &Option<String>| name.as_deref().is_some_and(|name| !name.is_empty());
        self.check(
            named(&options.user) || named(&options.role),
            format!("{path}.seLinuxOptions"),
            "remove user and role",
        );
    }

    fn app_armor(&mut self, path: &str, profile: Option<&k8s_openapi::api::core::v1::AppArmorProfile>) {
        let loose = profile.is_some_and(|profile| !["RuntimeDefault", "Localhost"].contains(&profile.type_.as_str()));
        self.check(loose, format!("{path}.appArmorProfile"), "use RuntimeDefault, or remove it");
    }

    /// Probes and hooks that make the kubelet connect to hosts of the template's choice.
    fn hosts(&mut self, path: &str, container: &Container) {
        let probes = [
            ("livenessProbe", &container.liveness_probe),
            ("readinessProbe", &container.readiness_probe),
            ("startupProbe", &container.startup_probe),
        ];
        for (field, probe) in probes {
            let elsewhere = probe.as_ref().is_some_and(probe_host);
            self.check(elsewhere, format!("{path}.{field}"), "remove host: a probe asks the pod itself");
        }
        let Some(lifecycle) = &container.lifecycle else { return };
        for (field, handler) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
            let elsewhere = handler.as_ref().is_some_and(handler_host);
            self.check(elsewhere, format!("{path}.lifecycle.{field}"), "remove host: a hook asks the pod itself");
        }
    }
}

fn named(host: Option<&String>) -> bool {
    host.is_some_and(|host| !host.is_empty())
}

fn probe_host(probe: &Probe) -> bool {
    named(probe.http_get.as_ref().and_then(|get| get.host.as_ref()))
        || named(probe.tcp_socket.as_ref().and_then(|socket| socket.host.as_ref()))
}

fn handler_host(handler: &LifecycleHandler) -> bool {
    named(handler.http_get.as_ref().and_then(|get| get.host.as_ref()))
        || named(handler.tcp_socket.as_ref().and_then(|socket| socket.host.as_ref()))
}
