//! The credentials of one tenant as files, mounted by the kubelet: the layout is the agent's,
//! so that one image runs in every tier.

use k8s_openapi::api::core::v1::{KeyToPath, ProjectedVolumeSource, SecretProjection, Volume, VolumeProjection};

use super::{naming, secret};

/// Owner and group read, as the agent's files: the application runs with a user of its own,
/// and shares the volume's fsGroup.
const FILE_MODE: i32 = 0o440;

/// The volume with `tenants/NAME/KEY`, and `hosts/HOST/KEY` for each host.
///
/// One projected volume, not a mount for each folder: the kubelet replaces the whole of a
/// volume by one rename, so that a folder that was resolved once (`realpath`, or an open
/// directory) is one version of all values. With mounts of their own, each file would be
/// resolved anew.
pub(super) fn volume(tenant: &str, hosts: &[String]) -> Volume {
    // In order of their names: a host that only moves in the list restarts no pod.
    let mut hosts: Vec<&String> = hosts.iter().collect();
    hosts.sort_unstable();
    let folders = std::iter::once(format!("tenants/{tenant}")).chain(hosts.iter().map(|host| format!("hosts/{host}")));
    let item = |folder: &str, key: &str| KeyToPath { key: key.to_owned(), path: format!("{folder}/{key}"), mode: None };
    let items = folders.flat_map(|folder| secret::KEYS.map(|key| item(&folder, key))).collect();
    let source = SecretProjection { name: naming::credentials_secret(tenant), items: Some(items), optional: None };
    Volume {
        name: naming::TENANTS_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(FILE_MODE),
            sources: Some(vec![VolumeProjection { secret: Some(source), ..VolumeProjection::default() }]),
        }),
        ..Volume::default()
    }
}
