//! From a tenant's Secret to what the agent keeps of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::names::{is_dns_label, is_dns_name, is_file_key};
use crate::api::{ANNOTATION_HOSTS, LABEL_TENANT};

/// The type of a tenant's Secret, as the Service Binding specification names it.
pub const SECRET_TYPE: &str = "servicebinding.io/postgresql";

/// Which Secret: namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretKey {
    /// The Secret's namespace.
    pub namespace: String,
    /// The Secret's name.
    pub name: String,
}

impl SecretKey {
    /// The key of a Secret as the API server returned it.
    pub fn of(secret: &Secret) -> Self {
        Self {
            namespace: secret.metadata.namespace.clone().unwrap_or_default(),
            name: secret.metadata.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Who came first. The older Secret keeps what two of them claim; of the same second, the lesser uid, so that every
/// agent decides alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seniority {
    /// When the Secret was made.
    pub created: Timestamp,
    /// The Secret's uid.
    pub uid: String,
}

/// One set of files as a folder of its own, named by tenant and content: `NAME.DIGEST`.
///
/// Content that is the same has the same name, so nothing is written again after a list or a restart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(String);

impl Version {
    /// The version of this tenant with these files.
    pub fn of(tenant: &str, files: &BTreeMap<String, Vec<u8>>) -> Self {
        let mut hash = Sha256::new();
        // Lengths keep ("a", "bc") and ("ab", "c") apart.
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(tenant.as_bytes());
        for (key, value) in files {
            part(key.as_bytes());
            part(value);
        }
        let digest = data_encoding::HEXLOWER.encode(&hash.finalize()[..16]);
        Self(format!("{tenant}.{digest}"))
    }

    /// A version by the name of its folder.
    pub fn from_folder(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name of its folder.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a tenant's Secret says, taken apart and safe to write.
pub struct Binding {
    /// The tenant's name, a DNS-1123 label.
    pub tenant: String,
    /// The tenant's hosts, DNS-1123 names.
    pub hosts: BTreeSet<String>,
    /// How old the claim is.
    pub seniority: Seniority,
    /// File name to content. Empty after [`Binding::of`] only if the Secret has no data.
    pub files: BTreeMap<String, Vec<u8>>,
    /// What was left out: hosts and keys that are no safe names.
    pub faults: Vec<Fault>,
}

/// A part of a Secret that the agent refuses to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The Secret as a whole is left out.
    #[error("label {LABEL_TENANT} is {0:?}, which is no DNS label; give the Secret the tenant's name")]
    Tenant(String),
    /// This host is left out, the rest is served.
    #[error("annotation {ANNOTATION_HOSTS} names {0:?}, which is no lower-case DNS name of at most 253 characters")]
    Host(String),
    /// This key is left out, the rest is served.
    #[error("data key {0:?} is no plain file name")]
    Key(String),
}

impl Binding {
    /// Takes a Secret apart, moving its data out. An error means that nothing of the Secret can be served.
    pub fn of(secret: Secret) -> Result<Self, Fault> {
        let metadata = secret.metadata;
        let tenant = metadata.labels.and_then(|mut labels| labels.remove(LABEL_TENANT)).unwrap_or_default();
        if !is_dns_label(&tenant) {
            return Err(Fault::Tenant(tenant));
        }
        let mut faults = Vec::new();
        let mut hosts = BTreeSet::new();
        let annotation = metadata.annotations.and_then(|mut all| all.remove(ANNOTATION_HOSTS)).unwrap_or_default();
        for host in annotation.split(',').map(str::trim).filter(|host| !host.is_empty()) {
            if is_dns_name(host) {
                hosts.insert(host.to_owned());
            } else {
                faults.push(Fault::Host(host.to_owned()));
            }
        }
        let mut files = BTreeMap::new();
        for (key, value) in secret.data.unwrap_or_default() {
            if is_file_key(&key) {
                files.insert(key, value.0);
            } else {
                faults.push(Fault::Key(key));
            }
        }
        let seniority = Seniority {
            // An object of the API server always has both; a missing time counts as the youngest.
            created: metadata.creation_timestamp.map_or(Timestamp::MAX, |time| time.0),
            uid: metadata.uid.unwrap_or_default(),
        };
        Ok(Self { tenant, hosts, seniority, files, faults })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(tenant: &str, hosts: &str, data: &[(&str, &str)]) -> Secret {
        let mut secret = Secret::default();
        secret.metadata.labels = Some([(LABEL_TENANT.to_owned(), tenant.to_owned())].into());
        secret.metadata.annotations = Some([(ANNOTATION_HOSTS.to_owned(), hosts.to_owned())].into());
        secret.data = Some(data.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect());
        secret
    }

    #[test]
    fn hosts_are_split_trimmed_and_bad_ones_left_out() {
        let binding = Binding::of(secret("acme", "a.example.com, b.example.com,,../x,A.example.com", &[])).unwrap();
        assert_eq!(binding.hosts, ["a.example.com", "b.example.com"].map(String::from).into());
        assert_eq!(binding.faults, [Fault::Host("../x".into()), Fault::Host("A.example.com".into())]);
    }

    #[test]
    fn a_bad_tenant_name_leaves_the_secret_out() {
        for name in ["", "..", "a/b", "a.b", "Acme"] {
            assert_eq!(Binding::of(secret(name, "", &[])).err(), Some(Fault::Tenant(name.into())));
        }
    }

    #[test]
    fn keys_are_checked_though_the_api_server_does_too() {
        let binding = Binding::of(secret("acme", "", &[("uri", "x"), ("../uri", "y"), ("ca.crt", "z")])).unwrap();
        assert_eq!(binding.files.keys().collect::<Vec<_>>(), ["ca.crt", "uri"]);
        assert_eq!(binding.faults, [Fault::Key("../uri".into())]);
    }

    #[test]
    fn versions_differ_by_tenant_and_every_byte() {
        let files = |pairs: &[(&str, &str)]| -> BTreeMap<String, Vec<u8>> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect()
        };
        let base = Version::of("a", &files(&[("k", "v")]));
        assert_eq!(base, Version::of("a", &files(&[("k", "v")])));
        assert_ne!(base, Version::of("b", &files(&[("k", "v")])));
        assert_ne!(base, Version::of("a", &files(&[("k", "w")])));
        assert_ne!(Version::of("a", &files(&[("k", "vx")])), Version::of("a", &files(&[("kv", "x")])));
        assert_ne!(base, Version::of("a", &files(&[("k", "v"), ("l", "")])));
    }
}
