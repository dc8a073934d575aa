//! The fixtures, and what the operator adds to them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tenantry::{
    api::{Application, DatabaseServer, Plan, Pool, Tenant, Tier},
    desired::{
        Catalog, Effective, Fault, Kind, Object, PoolInput, PoolObjects, RelayInput, RelaySettings, Settings,
        SharedContent, TenantObjects, TenantObjectsInput, effective, pool_objects, relay_objects, tenant_objects,
    },
};

fn read<T: DeserializeOwned>(text: &str) -> T {
    serde_saphyr::from_str(text).unwrap()
}

pub fn application() -> Application {
    read(include_str!("fixtures/application.yaml"))
}

pub fn server() -> DatabaseServer {
    read(include_str!("fixtures/server.yaml"))
}

pub fn pool() -> Pool {
    read(include_str!("fixtures/pool.yaml"))
}

pub fn plan() -> Plan {
    read(include_str!("fixtures/plan.yaml"))
}

/// The plan of the dedicated tenant.
pub fn enterprise() -> Plan {
    read(include_str!("fixtures/enterprise.yaml"))
}

/// The dedicated tenant.
pub fn mega() -> Tenant {
    read(include_str!("fixtures/mega.yaml"))
}

pub fn tenant() -> Tenant {
    read(include_str!("fixtures/tenant.yaml"))
}

/// An application with one component of the given name whose template is `template`.
pub fn application_with(component: Value) -> Application {
    let mut application = application();
    application.spec.components = vec![serde_json::from_value(component).unwrap()];
    application.spec.route = None;
    application.spec.shared = None;
    application.spec.pools = None;
    application
}

pub fn settings() -> Settings {
    Settings {
        operator_namespace: "tenantry-system".into(),
        operator_service_account: "tenantry".into(),
        agent_image: "ghcr.io/tenantry/tenantry:0.1.0".into(),
        agent_pull_policy: Some("IfNotPresent".into()),
        agent_resources: None,
    }
}

pub fn relay_settings() -> RelaySettings {
    RelaySettings {
        image: "ghcr.io/tenantry/tenantry:0.1.0".into(),
        pull_policy: Some("IfNotPresent".into()),
        replicas: 2,
        resources: None,
        api_url: "http://tenantry.tenantry-system.svc:8081".into(),
        api_port: 8081,
    }
}

/// All objects of a server's relay, but its Secrets.
pub fn build_relay(server: &DatabaseServer) -> Vec<Object> {
    build_any_relay(server, &relay_settings(), None)
}

/// The objects of a relay that is made from other settings.
pub fn build_any_relay(server: &DatabaseServer, relay: &RelaySettings, api_ca: Option<&str>) -> Vec<Object> {
    relay_objects(&RelayInput { server, settings: &settings(), relay, api_server: &API_SERVER, api_ca })
}

pub fn shared() -> Vec<SharedContent> {
    vec![
        SharedContent {
            kind: Kind::Secret,
            name: "registry".into(),
            type_: Some("kubernetes.io/dockerconfigjson".into()),
            data: BTreeMap::from([(".dockerconfigjson".into(), "e30=".into())]),
            binary_data: BTreeMap::new(),
        },
        SharedContent {
            kind: Kind::ConfigMap,
            name: "branding".into(),
            type_: None,
            data: BTreeMap::from([("colour".into(), "teal".into())]),
            binary_data: BTreeMap::from([("logo.png".into(), "iVBORw0KGgo=".into())]),
        },
    ]
}

/// The API server's endpoints, one of each family.
pub const API_SERVER: [(IpAddr, u16); 2] = [
    (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)), 6443),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 6443),
];

/// The objects of the fixture's pool with another application and server.
pub fn build(
    application: &Application,
    server: &DatabaseServer,
    held: &BTreeMap<String, i32>,
) -> Result<PoolObjects, Vec<Fault>> {
    build_pool(&pool(), application, server, held)
}

/// The objects of any pool.
pub fn build_pool(
    pool: &Pool,
    application: &Application,
    server: &DatabaseServer,
    held: &BTreeMap<String, i32>,
) -> Result<PoolObjects, Vec<Fault>> {
    let objects = pool_objects(&PoolInput {
        pool,
        application,
        server,
        shared: &shared(),
        settings: &settings(),
        api_server: &API_SERVER,
        held_replicas: held,
    });
    if objects.kept.is_none() { Ok(objects) } else { Err(objects.kept.all_faults()) }
}

/// Everything that the objects of a tenant with a namespace of its own are made from.
#[derive(Clone)]
pub struct Own {
    pub tenant: Tenant,
    pub plan: Plan,
    pub application: Application,
    pub server: DatabaseServer,
    pub tier: Tier,
    pub hosts: Vec<String>,
    pub suspended: bool,
    pub held: BTreeMap<String, i32>,
}

impl Own {
    /// The fixture's tenant at tier bridge.
    pub fn bridge() -> Self {
        let mut tenant = tenant();
        tenant.spec.tier = Some(Tier::Bridge);
        Self::of(tenant, plan(), &["acme.crm.example.com", "crm.acme.example"])
    }

    /// The fixture's dedicated tenant.
    pub fn dedicated() -> Self {
        Self::of(mega(), enterprise(), &["mega.crm.example.com"])
    }

    fn of(tenant: Tenant, plan: Plan, hosts: &[&str]) -> Self {
        let mut application = application();
        application.spec.database.dedicated = application.spec.database.bridge.clone();
        Self {
            tier: tenant.spec.tier.unwrap_or(plan.spec.tier),
            tenant,
            plan,
            application,
            server: server(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            suspended: false,
            held: BTreeMap::new(),
        }
    }

    /// The same after a change.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// What the spec comes to: every fixture passes the real validation.
    pub fn effective(&self) -> Result<Effective, Vec<Fault>> {
        let plan_name = self.plan.metadata.name.clone().unwrap();
        let servers = BTreeMap::from([("main".to_owned(), self.server.clone())]);
        let shelf = Shelf { servers, plans: vec![plan_name], domains: Vec::new() };
        effective(&self.tenant, Some(&self.plan), Some(&self.application), &shelf)
    }

    /// The objects of a tenant without faults.
    pub fn objects(&self) -> TenantObjects {
        self.effective().unwrap();
        self.try_objects().unwrap()
    }

    pub fn try_objects(&self) -> Result<TenantObjects, Vec<Fault>> {
        let objects = self.objects_with_faults();
        if objects.kept.is_none() { Ok(objects) } else { Err(objects.kept.all_faults()) }
    }

    /// The objects, whatever is wrong.
    pub fn objects_with_faults(&self) -> TenantObjects {
        tenant_objects(&TenantObjectsInput {
            tenant: &self.tenant,
            plan: &self.plan,
            application: &self.application,
            server: &self.server,
            tier: self.tier,
            hosts: &self.hosts,
            shared: &shared(),
            settings: &settings(),
            suspended: self.suspended,
            held_replicas: &self.held,
        })
    }

    /// The objects in the order in which they are applied.
    pub fn ordered(&self) -> Vec<Object> {
        self.objects().into_ordered()
    }
}

/// The object of a kind and name.
pub fn find<'a>(objects: &'a [Object], kind: Kind, name: &str) -> &'a Value {
    let object = objects.iter().find(|object| object.kind == kind && object.name == name);
    &object.unwrap_or_else(|| panic!("there is no {kind} {name}")).body
}

/// Objects as one YAML stream.
pub fn yaml<'a>(objects: impl IntoIterator<Item = &'a Object>) -> String {
    let document = |object: &Object| serde_saphyr::to_string(&object.body).unwrap();
    objects.into_iter().map(document).collect::<Vec<_>>().join("---\n")
}

/// A catalog of the servers and plans that are put into it.
#[derive(Default)]
pub struct Shelf {
    pub servers: BTreeMap<String, DatabaseServer>,
    pub plans: Vec<String>,
    pub domains: Vec<(String, String)>,
}

impl Catalog for Shelf {
    fn server(&self, name: &str) -> Option<Arc<DatabaseServer>> {
        self.servers.get(name).cloned().map(Arc::new)
    }

    fn has_plan(&self, name: &str) -> bool {
        self.plans.iter().any(|plan| plan == name)
    }

    fn domains(&self) -> Vec<(String, String)> {
        self.domains.clone()
    }
}

/// The catalog with the fixture's server and plan.
pub fn shelf() -> Shelf {
    Shelf {
        servers: BTreeMap::from([("main".to_owned(), server())]),
        plans: vec!["smb".to_owned()],
        domains: Vec::new(),
    }
}

/// Faults as `reason path`, for comparing.
pub fn brief(faults: &[Fault]) -> Vec<String> {
    faults.iter().map(|fault| format!("{} {}", fault.reason, fault.path)).collect()
}
