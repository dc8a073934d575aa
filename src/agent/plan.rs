//! What to change on disk: a pure function from what is there and what the Secrets say.

use std::collections::{BTreeMap, BTreeSet};

use super::binding::{SecretKey, Seniority, Version};

/// What the agent remembers of a Secret: no data, only who claims what and which version holds its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The Secret that claims.
    pub secret: SecretKey,
    /// Decides between two claims.
    pub seniority: Seniority,
    /// The claimed tenant name.
    pub tenant: String,
    /// The claimed hosts.
    pub hosts: BTreeSet<String>,
    /// The version that holds the Secret's files; none as long as these could not be written.
    pub version: Option<Version>,
}

/// The links and folders that are on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Links in `tenants/`: name to target.
    pub tenants: BTreeMap<String, String>,
    /// Links in `hosts/`: host to target.
    pub hosts: BTreeMap<String, String>,
    /// Complete folders in `.versions/`.
    pub versions: BTreeSet<Version>,
}

/// One step, atomic by itself for every reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Point `tenants/TENANT` at a version.
    LinkTenant {
        /// The tenant.
        tenant: String,
        /// The version that it gets.
        version: Version,
    },
    /// Point `hosts/HOST` at a tenant.
    LinkHost {
        /// The host.
        host: String,
        /// The tenant that it gets.
        tenant: String,
    },
    /// Remove `hosts/HOST`.
    UnlinkHost {
        /// The host.
        host: String,
    },
    /// Remove `tenants/TENANT`.
    UnlinkTenant {
        /// The tenant.
        tenant: String,
    },
    /// Nothing leads to this version any more: remove it once slow readers are done.
    Retire {
        /// The version.
        version: Version,
    },
}

/// A claim that lost against an older one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conflict {
    /// Two Secrets of one tenant.
    Tenant {
        /// The tenant.
        tenant: String,
        /// The Secret that keeps it.
        kept_by: SecretKey,
        /// The Secret that is not served.
        refused: SecretKey,
    },
    /// Two Secrets that claim one host.
    Host {
        /// The host.
        host: String,
        /// The Secret that keeps it.
        kept_by: SecretKey,
        /// The Secret that does not get it.
        refused: SecretKey,
    },
}

/// What to do, in this order, and what had to be refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps. After each of them every host link leads to a tenant and every tenant link to a version.
    pub operations: Vec<Operation>,
    /// Claims that lost.
    pub conflicts: Vec<Conflict>,
}

/// The target of `tenants/NAME`.
pub fn tenant_target(version: &Version) -> String {
    format!("../.versions/{}", version.as_str())
}

/// The target of `hosts/HOST`.
pub fn host_target(tenant: &str) -> String {
    format!("../tenants/{tenant}")
}

/// Plans how `disk` becomes what `claims`, in any order, ask for.
///
/// A tenant whose newest files could not be written keeps the version it has; one that never had any gets no links,
/// and its hosts lead nowhere rather than to a younger claimant.
pub fn plan<'a>(disk: &Disk, claims: impl IntoIterator<Item = &'a Claim>) -> Plan {
    let mut claims: Vec<&Claim> = claims.into_iter().collect();
    claims.sort_by(|a, b| (&a.seniority, &a.secret).cmp(&(&b.seniority, &b.secret)));

    let mut conflicts = Vec::new();
    let mut tenants: BTreeMap<&str, &Claim> = BTreeMap::new();
    let mut hosts: BTreeMap<&str, &Claim> = BTreeMap::new();
    for claim in claims {
        if let Some(holder) = tenants.get(claim.tenant.as_str()) {
            conflicts.push(Conflict::Tenant {
                tenant: claim.tenant.clone(),
                kept_by: holder.secret.clone(),
                refused: claim.secret.clone(),
            });
            continue;
        }
        tenants.insert(&claim.tenant, claim);
        for host in &claim.hosts {
            if let Some(holder) = hosts.get(host.as_str()) {
                conflicts.push(Conflict::Host {
                    host: host.clone(),
                    kept_by: holder.secret.clone(),
                    refused: claim.secret.clone(),
                });
            } else {
                hosts.insert(host, claim);
            }
        }
    }

    // Links are made from the tenant outwards and removed from the host inwards, so that no host ever dangles.
    let complete: BTreeSet<String> = disk.versions.iter().map(tenant_target).collect();
    let mut operations = Vec::new();
    let mut targets: BTreeMap<&str, String> = BTreeMap::new();
    for (tenant, claim) in &tenants {
        let kept = || disk.tenants.get(*tenant).filter(|target| complete.contains(*target)).cloned();
        let Some(target) = claim.version.as_ref().map(tenant_target).or_else(kept) else {
            continue;
        };
        if let Some(version) = &claim.version
            && disk.tenants.get(*tenant) != Some(&target)
        {
            operations.push(Operation::LinkTenant { tenant: (*tenant).to_owned(), version: version.clone() });
        }
        targets.insert(tenant, target);
    }
    hosts.retain(|_, claim| targets.contains_key(claim.tenant.as_str()));
    for (host, claim) in &hosts {
        if disk.hosts.get(*host) != Some(&host_target(&claim.tenant)) {
            operations.push(Operation::LinkHost { host: (*host).to_owned(), tenant: claim.tenant.clone() });
        }
    }
    for host in disk.hosts.keys().filter(|host| !hosts.contains_key(host.as_str())) {
        operations.push(Operation::UnlinkHost { host: host.clone() });
    }
    for tenant in disk.tenants.keys().filter(|tenant| !targets.contains_key(tenant.as_str())) {
        operations.push(Operation::UnlinkTenant { tenant: tenant.clone() });
    }
    let used: BTreeSet<&str> = targets.values().map(String::as_str).collect();
    for version in disk.versions.iter().filter(|version| !used.contains(tenant_target(version).as_str())) {
        operations.push(Operation::Retire { version: version.clone() });
    }
    Plan { operations, conflicts }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use proptest::prelude::*;

    impl Disk {
        /// The model of what the store does with a step. `Retire` keeps the folder: readers may still be in it.
        fn apply(&mut self, operation: &Operation) {
            match operation {
                Operation::LinkTenant { tenant, version } => {
                    self.tenants.insert(tenant.clone(), tenant_target(version));
                }
                Operation::LinkHost { host, tenant } => {
                    self.hosts.insert(host.clone(), host_target(tenant));
                }
                Operation::UnlinkHost { host } => {
                    assert!(self.hosts.remove(host).is_some(), "{host} wasn't there")
                }
                Operation::UnlinkTenant { tenant } => {
                    assert!(self.tenants.remove(tenant).is_some(), "{tenant}")
                }
                Operation::Retire { version } => {
                    assert!(self.versions.contains(version), "{version:?}")
                }
            }
        }

        /// Every host leads to a tenant, every tenant to a version.
        fn dangles(&self) -> Option<String> {
            let tenants: BTreeSet<String> = self.tenants.keys().map(|tenant| host_target(tenant)).collect();
            let versions: BTreeSet<String> = self.versions.iter().map(tenant_target).collect();
            self.hosts
                .iter()
                .find(|(_, target)| !tenants.contains(*target))
                .or_else(|| self.tenants.iter().find(|(_, target)| !versions.contains(*target)))
                .map(|(name, target)| format!("{name} -> {target}"))
        }
    }

    fn claim() -> impl Strategy<Value = Claim> {
        (0..4u8, 0..3i64, "[ab]", proptest::collection::btree_set("[h-k]", 0..3), proptest::option::of(0..3u8))
            .prop_map(|(name, second, tenant, hosts, content)| Claim {
                secret: SecretKey { namespace: "n".into(), name: name.to_string() },
                seniority: Seniority { created: Timestamp::from_second(second).unwrap(), uid: format!("uid-{name}") },
                version: content.map(|content| Version::from_folder(format!("{tenant}.{content}"))),
                tenant,
                hosts,
            })
    }

    /// At most one claim per Secret, as a list of the API server has it.
    fn claims() -> impl Strategy<Value = Vec<Claim>> {
        proptest::collection::vec(claim(), 0..6).prop_map(|all| {
            let by_key: BTreeMap<SecretKey, Claim> = all.into_iter().map(|c| (c.secret.clone(), c)).collect();
            by_key.into_values().collect()
        })
    }

    /// A disk as an earlier run left it: consistent, but with any content.
    fn disk() -> impl Strategy<Value = Disk> {
        (
            proptest::collection::btree_map("[a-c]", 0..3u8, 0..3),
            proptest::collection::btree_map("[h-l]", "[a-c]", 0..4),
            proptest::collection::btree_set("[a-c]\\.[0-3]", 0..4),
        )
            .prop_map(|(tenants, hosts, spare)| {
                let tenants: BTreeMap<String, Version> =
                    tenants.into_iter().map(|(t, v)| (t.clone(), Version::from_folder(format!("{t}.{v}")))).collect();
                Disk {
                    hosts: hosts
                        .into_iter()
                        .filter(|(_, tenant)| tenants.contains_key(tenant))
                        .map(|(host, tenant)| (host, host_target(&tenant)))
                        .collect(),
                    versions: spare.into_iter().map(Version::from_folder).chain(tenants.values().cloned()).collect(),
                    tenants: tenants.into_iter().map(|(t, v)| (t, tenant_target(&v))).collect(),
                }
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_plan_leads_to_what_the_claims_ask_for(mut disk in disk(), claims in claims(), seed in 0..24usize) {
            // What is written is on disk before anything is planned.
            disk.versions.extend(claims.iter().filter_map(|claim| claim.version.clone()));
            let before = disk.clone();
            let plan = plan(&disk, &claims);

            let mut shuffled = claims.clone();
            if !shuffled.is_empty() {
                let by = seed % shuffled.len();
                shuffled.rotate_left(by);
            }
            prop_assert_eq!(&plan, &super::plan(&disk, &shuffled), "the order of the list decides nothing");

            let mut retired = BTreeSet::new();
            for operation in &plan.operations {
                disk.apply(operation);
                if let Operation::Retire { version } = operation {
                    retired.insert(tenant_target(version));
                }
                prop_assert_eq!(disk.dangles(), None, "after {:?}", operation);
            }
            prop_assert!(disk.tenants.values().all(|target| !retired.contains(target)), "a served version is kept");

            // Said another way than the planner does: the eldest claim of a name holds it.
            let eldest = |of: &dyn Fn(&Claim) -> bool| {
                claims.iter().filter(|c| of(c)).min_by_key(|c| (c.seniority.clone(), c.secret.clone()))
            };
            for tenant in ["a", "b", "c"] {
                let expected = eldest(&|c| c.tenant == tenant).and_then(|holder| match &holder.version {
                    Some(version) => Some(tenant_target(version)),
                    None => before.tenants.get(tenant).cloned(),
                });
                prop_assert_eq!(disk.tenants.get(tenant).cloned(), expected);
            }
            for host in ["h", "i", "j", "k", "l"] {
                let serves = |c: &Claim| eldest(&|other| other.tenant == c.tenant) == Some(c);
                let expected = eldest(&|c| c.hosts.contains(host) && serves(c))
                    .filter(|holder| disk.tenants.contains_key(&holder.tenant))
                    .map(|holder| host_target(&holder.tenant));
                prop_assert_eq!(disk.hosts.get(host).cloned(), expected);
            }
            let again = super::plan(&disk, &claims);
            prop_assert!(again.operations.iter().all(|o| matches!(o, Operation::Retire { .. })), "at rest: {:?}", again);
        }
    }
}
