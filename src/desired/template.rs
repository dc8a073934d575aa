//! Pod templates: decoded, and held to what the operator can run.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec, Volume};
use serde_json::Value;

use super::{
    Fault, clean,
    naming::{POD_LABELS, RESERVED_PREFIX, TENANTS_DIR},
    quantity::{self, Amount},
    restricted, usage,
};
use crate::api::{Component, PodTemplate};

/// The reason of every fault here.
pub(super) const INVALID: &str = "InvalidTemplate";

/// The version of Kubernetes whose pod templates are known here.
const KNOWN_VERSION: &str = "1.36";

/// A component's pod template, or everything that is wrong with it. `path` is the template's
/// own, such as `spec.components[0].template`.
pub(super) fn decode(path: &str, component: &Component) -> Result<PodTemplateSpec, Vec<Fault>> {
    let template = read(path, &component.template)?;
    let mut faults = label_faults(path, &template);
    let spec_path = format!("{path}.spec");
    // A template without a spec has no container, and that fault says what to add.
    let spec = template.spec.clone().unwrap_or_default();
    faults.extend(pod_faults(&spec_path, &spec));
    faults.extend(container_faults(&spec_path, &spec));
    faults.extend(volume_faults(&spec_path, &spec));
    faults.extend(account_faults(&spec_path, &spec, component.database));
    faults.extend(restricted::faults(&spec_path, &spec));
    if faults.is_empty() { Ok(template) } else { Err(faults) }
}

/// Decodes the template, and finds fields that Kubernetes doesn't know: it would drop them,
/// and a mistyped `securityContext` with them.
fn read(path: &str, template: &PodTemplate) -> Result<PodTemplateSpec, Vec<Fault>> {
    let mut raw = Value::Object(template.0.clone());
    clean::clean(&mut raw);
    let mut faults = Vec::new();
    quantity::canonicalize(path, &mut raw, &mut faults);
    let decoded: PodTemplateSpec = serde_path_to_error::deserialize(&raw).map_err(|error| {
        let field = error.path().to_string();
        let field = if field == "." { path.to_owned() } else { format!("{path}.{field}") };
        vec![Fault::new(INVALID, field, error.inner().to_string())]
    })?;
    let known = serde_json::to_value(&decoded).expect("Kubernetes' own types are JSON");
    unknown_fields(path, &raw, &known, &mut faults);
    if faults.is_empty() { Ok(decoded) } else { Err(faults) }
}

fn unknown_fields(path: &str, raw: &Value, known: &Value, faults: &mut Vec<Fault>) {
    match (raw, known) {
        (Value::Object(raw), Value::Object(known)) => {
            for (key, value) in raw {
                let path = format!("{path}.{key}");
                match known.get(key) {
                    Some(known) => unknown_fields(&path, value, known, faults),
                    None => faults.push(Fault::new(
                        INVALID,
                        path,
                        format!("Kubernetes {KNOWN_VERSION} knows no such field: correct its name, or remove it"),
                    )),
                }
            }
        }
        (Value::Array(raw), Value::Array(known)) => {
            for (index, (raw, known)) in raw.iter().zip(known).enumerate() {
                unknown_fields(&format!("{path}[{index}]"), raw, known, faults);
            }
        }
        _ => {}
    }
}

fn label_faults(path: &str, template: &PodTemplateSpec) -> Vec<Fault> {
    let labels = template.metadata.iter().flat_map(|metadata| metadata.labels.iter().flatten());
    labels
        .filter(|(label, _)| POD_LABELS.contains(&label.as_str()))
        .map(|(label, _)| {
            let message = format!("label {label} is set by Tenantry: remove it");
            Fault::new(INVALID, format!("{path}.metadata.labels"), message)
        })
        .collect()
}

/// What a Deployment's pods can't have.
fn pod_faults(path: &str, spec: &PodSpec) -> Vec<Fault> {
    let mut faults = Vec::new();
    if spec.restart_policy.as_deref().is_some_and(|policy| policy != "Always") {
        let message = "the pods of a Deployment are always restarted: remove restartPolicy";
        faults.push(Fault::new(INVALID, format!("{path}.restartPolicy"), message));
    }
    if spec.active_deadline_seconds.is_some() {
        let message = "the pods of a Deployment have no deadline: remove activeDeadlineSeconds";
        faults.push(Fault::new(INVALID, format!("{path}.activeDeadlineSeconds"), message));
    }
    if spec.ephemeral_containers.is_some() {
        let message = "ephemeral containers are added to running pods alone: remove ephemeralContainers";
        faults.push(Fault::new(INVALID, format!("{path}.ephemeralContainers"), message));
    }
    faults
}

/// Init containers, then containers, each with its path.
pub(super) fn containers<'a>(path: &'a str, spec: &'a PodSpec) -> impl Iterator<Item = (String, &'a Container)> {
    let list = |field: &'static str, containers: &'a [Container]| {
        containers.iter().enumerate().map(move |(index, container)| (format!("{path}.{field}[{index}]"), container))
    };
    let init = spec.init_containers.as_deref().unwrap_or_default();
    list("initContainers", init).chain(list("containers", &spec.containers))
}

fn container_faults(path: &str, spec: &PodSpec) -> Vec<Fault> {
    let mut faults = Vec::new();
    if spec.containers.is_empty() {
        let message = "the template has no container: add one with a name and an image";
        faults.push(Fault::new(INVALID, format!("{path}.containers"), message));
    }
    let volumes: BTreeSet<&str> = spec.volumes.iter().flatten().map(|volume| volume.name.as_str()).collect();
    let mut names = BTreeSet::new();
    for (path, container) in containers(path, spec) {
        faults.extend(name_fault(&format!("{path}.name"), "container", &container.name, &mut names));
        if container.image.as_deref().unwrap_or_default().is_empty() {
            faults.push(Fault::new(INVALID, format!("{path}.image"), "the container has no image: name one"));
        }
        faults.extend(request_faults(&path, container));
        for (index, port) in container.ports.iter().flatten().enumerate() {
            if !(1..=65_535).contains(&port.container_port) {
                let message = format!("{} is not a port: choose one between 1 and 65535", port.container_port);
                faults.push(Fault::new(INVALID, format!("{path}.ports[{index}].containerPort"), message));
            }
        }
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let path = format!("{path}.volumeMounts[{index}]");
            let inside = mount.mount_path.trim_end_matches('/');
            if inside == TENANTS_DIR || inside.starts_with(&format!("{TENANTS_DIR}/")) {
                let message = format!("{TENANTS_DIR} is where Tenantry puts the tenants' files: choose another path");
                faults.push(Fault::new(INVALID, format!("{path}.mountPath"), message));
            }
            if !volumes.contains(mount.name.as_str()) && !mount.name.starts_with(RESERVED_PREFIX) {
                let message = format!("there is no volume {}: add it to spec.volumes, or correct the name", mount.name);
                faults.push(Fault::new(INVALID, format!("{path}.name"), message));
            }
            if mount.name.starts_with(RESERVED_PREFIX) {
                let message = format!("volumes whose names begin with {RESERVED_PREFIX} are Tenantry's own");
                faults.push(Fault::new(INVALID, format!("{path}.name"), message));
            }
        }
    }
    faults
}

/// Requests above their own limits.
fn request_faults(path: &str, container: &Container) -> Vec<Fault> {
    let Some(resources) = &container.resources else { return Vec::new() };
    let limits = usage::amounts(resources.limits.as_ref());
    let above = |(resource, request): (String, Amount)| {
        let limit = limits.get(&resource).filter(|limit| request > **limit)?;
        let message = format!("{request} is above the limit, which is {limit}: lower it, or raise the limit");
        Some(Fault::new(INVALID, format!("{path}.resources.requests.{resource}"), message))
    };
    usage::amounts(resources.requests.as_ref()).into_iter().filter_map(above).collect()
}

fn volume_faults(path: &str, spec: &PodSpec) -> Vec<Fault> {
    let mut names = BTreeSet::new();
    let volumes = spec.volumes.iter().flatten().enumerate();
    volumes
        .filter_map(|(index, volume)| {
            name_fault(&format!("{path}.volumes[{index}].name"), "volume", &volume.name, &mut names)
        })
        .collect()
}

/// A name that is missing, no DNS label, taken, or reserved.
fn name_fault<'a>(path: &str, sort: &str, name: &'a str, taken: &mut BTreeSet<&'a str>) -> Option<Fault> {
    let message = if !is_dns_label(name) {
        format!("{name:?} is no name for a {sort}: it has at most 63 lower-case letters, digits and '-'")
    } else if name.starts_with(RESERVED_PREFIX) {
        format!("names that begin with {RESERVED_PREFIX} are Tenantry's own: choose another for the {sort}")
    } else if !taken.insert(name) {
        format!("another {sort} has the name {name}: choose another")
    } else {
        return None;
    };
    Some(Fault::new(INVALID, path, message))
}

fn is_dns_label(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.len() <= 63 && edge(name.chars().next()) && edge(name.chars().last()) && name.chars().all(inside)
}

/// Identities: none of the user's ServiceAccounts are in the operator's namespaces, and the
/// agent's token, which reads every Secret of the namespace, is the agent's alone.
fn account_faults(path: &str, spec: &PodSpec, database: bool) -> Vec<Fault> {
    let mut faults = Vec::new();
    let fields = [("serviceAccountName", &spec.service_account_name), ("serviceAccount", &spec.service_account)];
    for (field, account) in fields {
        if account.is_some() {
            let message = format!("the operator's namespaces have no ServiceAccounts of yours: remove {field}");
            faults.push(Fault::new(INVALID, format!("{path}.{field}"), message));
        }
    }
    if !database {
        return faults;
    }
    if spec.automount_service_account_token == Some(true) {
        let message = "a component with `database: true` can't have the pod's token, which is the agent's: remove it";
        faults.push(Fault::new(INVALID, format!("{path}.automountServiceAccountToken"), message));
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        if has_api_token(volume) {
            let message = "a component with `database: true` can't have a token for the API server, which would be \
                           the agent's: remove it, or set its audience to tenantry";
            faults.push(Fault::new(INVALID, format!("{path}.volumes[{index}].projected"), message));
        }
    }
    faults
}

fn has_api_token(volume: &Volume) -> bool {
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let mut tokens = sources.filter_map(|source| source.service_account_token.as_ref());
    tokens.any(|token| token.audience.as_deref() != Some("tenantry"))
}
