//! Every name and label that the operator gives, in one place.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use crate::api::{LABEL_MANAGED_BY, LABEL_POOL, LABEL_RELAY, LABEL_TENANT, MANAGED_BY, Pool, Route};

/// The ClusterRole that the operator binds itself to in each namespace that it makes.
pub const NAMESPACE_ROLE: &str = "tenantry-namespace";
/// The agent: its ClusterRole, and in each namespace its ServiceAccount, RoleBinding and
/// container.
pub const AGENT: &str = "tenantry-agent";
/// The volume that has the tenants' credentials as files.
pub const TENANTS_VOLUME: &str = "tenantry-tenants";
/// The volume that has the agent's token.
pub const TOKEN_VOLUME: &str = "tenantry-agent-token";
/// A tenant's own people: their ClusterRole, and in the tenant's namespace their RoleBinding.
pub const OWNER_ROLE: &str = "tenantry-owner";
/// The ServiceAccount of a tenant's pods, which has no right and no token.
pub const WORKLOAD_ACCOUNT: &str = "tenantry-workload";
/// The ConfigMap that tells a tenant's pods its plan and host.
pub const FACTS: &str = "tenantry-tenant";
/// The ConfigMap that tells a relay whom to trust as the operator's API, and the volume that has it.
pub const API_CA: &str = "api-ca";
/// Containers and volumes whose names begin so are the operator's.
pub const RESERVED_PREFIX: &str = "tenantry-";
/// Where the tenants' credentials are in a pod.
pub const TENANTS_DIR: &str = "/var/run/tenantry";
/// The operator's ResourceQuota and LimitRange.
pub const QUOTA: &str = "tenantry";
/// How the Secrets of tenants end.
pub const SECRET_SUFFIX: &str = "-database";

/// Label: the product.
pub const LABEL_NAME: &str = "app.kubernetes.io/name";
/// Label: the pool or tenant that an object is for.
pub const LABEL_INSTANCE: &str = "app.kubernetes.io/instance";
/// Label: the component.
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Label: the Application.
pub const LABEL_PART_OF: &str = "app.kubernetes.io/part-of";

/// The labels that the operator sets on pods, and that a template therefore can't.
pub const POD_LABELS: [&str; 8] = [
    LABEL_NAME,
    LABEL_INSTANCE,
    LABEL_COMPONENT,
    LABEL_PART_OF,
    LABEL_MANAGED_BY,
    LABEL_POOL,
    LABEL_TENANT,
    LABEL_RELAY,
];

/// What an object belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A pool.
    Pool(&'a str),
    /// A tenant; with its pool where it is in one.
    Tenant {
        /// The Tenant's name.
        name: &'a str,
        /// The Pool's name, for tier pooled.
        pool: Option<&'a str>,
    },
}

/// The labels of every object of an owner.
pub fn labels(application: &str, owner: Owner<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned()),
        (LABEL_PART_OF.to_owned(), application.to_owned()),
    ]);
    let mut set = |label: &str, value: &str| labels.insert(label.to_owned(), value.to_owned());
    match owner {
        Owner::Pool(pool) => {
            set(LABEL_POOL, pool);
        }
        Owner::Tenant { name, pool } => {
            set(LABEL_TENANT, name);
            pool.map(|pool| set(LABEL_POOL, pool));
        }
    }
    labels
}

/// The labels by which a component's pods are found: as few as will do, since a
/// Deployment's selector can never change.
pub fn selector(instance: &str, component: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (LABEL_INSTANCE.to_owned(), instance.to_owned()),
        (LABEL_COMPONENT.to_owned(), component.to_owned()),
    ])
}

/// The namespace of a pool.
pub fn pool_namespace(pool: &str) -> String {
    Pool::namespace_name(pool)
}

/// The namespace of a tenant of tier bridge or dedicated.
pub fn tenant_namespace(tenant: &str) -> String {
    format!("tenant-{tenant}")
}

/// The relay of a DatabaseServer: its ServiceAccount, Deployment and container, and what is its
/// alone in its namespace.
pub const RELAY: &str = "relay";

/// The audience of the tokens that the operator's API takes.
pub const AUDIENCE: &str = "tenantry";

/// The longest name of a namespace.
const LONGEST_NAMESPACE: usize = 63;

/// The namespace of a DatabaseServer's relay. Of a name that is too long, the end is told by a hash.
pub fn relay_namespace(server: &str) -> String {
    let name = format!("tenantry-relay-{server}");
    if name.len() <= LONGEST_NAMESPACE {
        return name;
    }
    let hash = HEXLOWER.encode(&Sha256::digest(server.as_bytes())[..5]);
    // Names of DatabaseServers are ASCII.
    let kept = name.get(..LONGEST_NAMESPACE - hash.len() - 1).unwrap_or(&name);
    format!("{}-{hash}", kept.trim_end_matches('-'))
}

/// The user that a DatabaseServer's relay is to the API server.
pub fn relay_user(server: &str) -> String {
    format!("system:serviceaccount:{}:{RELAY}", relay_namespace(server))
}

/// The labels of every object that is for a DatabaseServer's relay.
pub fn relay_labels(server: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned()), (LABEL_RELAY.to_owned(), server.to_owned())])
}

/// The Secret with the relay's login in a database. No two of the names that are given to databases
/// here differ in `-` and `_` alone.
pub fn relay_secret(database: &str) -> String {
    database.replace('_', "-")
}

/// The `number`th database that bridge tenants of an application share: at most 63 bytes, so
/// never cut by PostgreSQL. No two applications have the same, since the number comes last.
pub fn bridge_database(application: &str, number: usize) -> String {
    format!("bridge_{}_{number}", application.replace('-', "_"))
}

/// The database of a dedicated tenant, by its opaque id: the customer's name is nobody's
/// business in `pg_database`, which every login can read.
pub fn dedicated_database(id: &str) -> String {
    format!("dedicated_{}", id.trim_start_matches("t_"))
}

/// The `number`th pool of an application.
pub fn pool_name(application: &str, number: usize) -> String {
    format!("{application}-{number}")
}

/// The Secret with a tenant's credentials.
pub fn credentials_secret(tenant: &str) -> String {
    format!("{tenant}{SECRET_SUFFIX}")
}

/// The HTTPRoute or Ingress of a tenant.
pub fn tenant_route(tenant: &str) -> String {
    tenant.to_owned()
}

/// The domain under which an application's tenants are: the host template without
/// `{tenant}.`.
pub fn application_domain(route: &Route) -> &str {
    route.host_template.strip_prefix("{tenant}.").unwrap_or(&route.host_template)
}

/// The host of a tenant under its application's domain.
pub fn tenant_host(route: &Route, tenant: &str) -> String {
    route.host_template.replace("{tenant}", tenant)
}

/// Every host of a tenant: the one under the application's domain, then its own, each once.
pub fn tenant_hosts(route: Option<&Route>, tenant: &str, own: &[String]) -> Vec<String> {
    let mut hosts: Vec<String> = route.map(|route| tenant_host(route, tenant)).into_iter().collect();
    for host in own {
        if !hosts.contains(host) {
            hosts.push(host.clone());
        }
    }
    hosts
}

/// Where a tenant is reached. A Gateway's listeners are taken to speak TLS; an Ingress does
/// where the route says so.
pub fn tenant_url(route: &Route, tenant: &str) -> String {
    let scheme = if route.ingress_class_name.is_some() && route.tls.is_none() { "http" } else { "https" };
    format!("{scheme}://{}", tenant_host(route, tenant))
}

/// The environment variable that tells a pod its pool.
pub const ENV_POOL: &str = "TENANTRY_POOL";
/// The environment variable that tells a pod its tenant (tiers bridge and dedicated).
pub const ENV_TENANT: &str = "TENANTRY_TENANT";
/// The environment variable that tells a pod the plan that its tenant had when it started.
pub const ENV_PLAN: &str = "TENANTRY_PLAN";
/// The environment variable that tells a pod the first host of its tenant, as it started.
pub const ENV_HOST: &str = "TENANTRY_HOST";
/// The environment variable that tells a container where the tenants' files are.
pub const ENV_TENANTS_DIR: &str = "TENANTRY_TENANTS_DIR";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_of_a_relay_is_never_too_long_and_never_anothers() {
        assert_eq!(relay_namespace("main"), "tenantry-relay-main");
        let longest = relay_namespace(&"a".repeat(48));
        assert_eq!(longest.len(), 63);
        let (one, other) = (relay_namespace(&"a".repeat(63)), relay_namespace(&format!("{}b", "a".repeat(62))));
        assert_ne!(one, other);
        for name in [&one, &other, &relay_namespace(&format!("{}-{}", "a".repeat(36), "b".repeat(26)))] {
            assert!(name.len() <= 63 && name.starts_with("tenantry-relay-a") && !name.contains("--"), "{name}");
        }
    }
}
