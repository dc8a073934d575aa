//! An operator that goes both of its ways, to the API server and to PostgreSQL, through proxies
//! with a gate in common.

use std::{collections::BTreeSet, sync::Arc};

use devcluster::Options;
use kube::{Api, Client, api::DeleteParams};
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    gate::{Gate, Happening},
    ground::{Ground, Operator, apply, await_tenant, credentials, eventually, is},
    proxy::Proxy,
    snapshot::{Names, Snapshot, assert_same},
    sql_proxy::SqlProxy,
    verbs::{ours, patch, place, rows, superuser},
};

/// A ground whose operator goes both of its ways through a gate.
pub struct Gated {
    pub ground: Ground,
    pub gate: Arc<Gate>,
    pub api: Proxy,
    pub sql: SqlProxy,
    operator: Option<Operator>,
    flags: &'static [&'static str],
}

impl Gated {
    pub async fn start(flags: &'static [&'static str]) -> Self {
        let mut ground = Ground::start(Options::default()).await;
        let gate = Arc::new(Gate::default());
        let api = Proxy::with_gate(&ground, Some(Arc::clone(&gate))).await;
        ground.kubeconfig.clone_from(&api.kubeconfig);
        let postgres = ground.cluster.postgres();
        let sql = SqlProxy::start(postgres.host(), postgres.port(), Arc::clone(&gate)).await;
        ground.examples().await;
        // Without TLS: the proxy has to understand what passes.
        let way = json!({"spec": {"admin": {"host": "127.0.0.1", "port": sql.port}, "tls": {"mode": "Disable", "caSecret": null}}});
        patch(&ground.client, &ours("DatabaseServer", "main"), &way).await;
        let mut gated = Self { ground, gate, api, sql, operator: None, flags };
        gated.restart();
        gated
    }

    pub fn client(&self) -> &Client {
        &self.ground.client
    }

    /// Kills the operator and starts it again.
    pub fn restart(&mut self) {
        if let Some(operator) = self.operator.take() {
            operator.kill();
        }
        self.operator = Some(self.ground.operator(self.flags));
    }

    /// Makes a Tenant while its writes are counted.
    pub async fn make(&self, tenant: &Value, at: Option<(usize, Happening)>) -> Names {
        // Its UID is not known before it is there, and its name stands in the first write.
        let name = tenant["metadata"]["name"].as_str().expect("a name").to_owned();
        self.gate.arm(&[name], at);
        let made = apply(self.client(), tenant).await.expect("a Tenant");
        let made: Tenant = serde_json::from_value(serde_json::to_value(made).expect("JSON")).expect("a Tenant");
        let names = Names::of(&made);
        self.gate.also(&names.marks()[1..]);
        names
    }

    /// Waits until something is done, or the gate is reached; tells whether it was.
    pub async fn is_reached(&self, done: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = self.gate.reached() => true,
            () = done => false,
        }
    }
}

pub async fn is_ready(gated: &Gated, names: &Names) {
    await_tenant(gated.client(), &names.name, "Ready", |tenant| is(tenant, "Ready", "True")).await;
}

pub async fn is_gone(gated: &Gated, names: &Names) {
    let (tenants, name) = (Api::<Tenant>::all(gated.client().clone()), &names.name);
    let gone = eventually(async || tenants.get_opt(name).await.ok()?.is_none().then_some(())).await;
    assert!(gone.is_some(), "{name} does not go: {:#?}", tenants.get(name).await);
}

/// Rotated, and the old login is closed: that is a part of it, and comes a little later.
pub async fn is_rotated(gated: &Gated, names: &Names) {
    let tenant = await_tenant(gated.client(), &names.name, "rotated", |tenant| {
        let database = tenant.status.as_ref().and_then(|status| status.database.as_ref());
        database.and_then(|database| database.rotated.as_deref()) == Some("once")
    })
    .await;
    let session = superuser(&gated.ground, &place(&tenant).0).await;
    let open = format!("SELECT name FROM tenantry.login WHERE tenant = '{}' AND state <> 'Closed'", names.id);
    let closed = eventually(async || (rows(&session, &open).await.len() == 1).then_some(())).await;
    assert!(closed.is_some(), "the old login of {} is not closed", names.name);
}

/// Waits until the state of each of these tenants is as it should be; fails with the differences.
pub async fn all_become(gated: &Gated, tenants: &[(&Names, &BTreeSet<String>)], what: &str) {
    let states = async || {
        let snapshot = Snapshot::of(&gated.ground, gated.client()).await;
        tenants.iter().map(|(names, _)| snapshot.tenant(names)).collect::<Vec<_>>()
    };
    let same = eventually(async || {
        let all = states().await.iter().zip(tenants).all(|(state, (_, wanted))| state == *wanted);
        all.then_some(())
    })
    .await;
    if same.is_none() {
        for ((names, wanted), state) in tenants.iter().zip(states().await) {
            assert_same(&state, wanted, &format!("{} after {what}", names.name));
        }
    }
}

/// Asks for new credentials, while the tenant's writes are counted.
pub async fn rotate(gated: &Gated, names: &Names, at: Option<(usize, Happening)>) {
    gated.gate.arm(&names.marks(), at);
    let annotation = json!({"metadata": {"annotations": {"tenantry.io/rotate": "once"}}});
    patch(gated.client(), &ours("Tenant", &names.name), &annotation).await;
}

/// Deletes a Tenant with this policy, while its writes are counted.
pub async fn delete(gated: &Gated, names: &Names, policy: &str, at: Option<(usize, Happening)>) {
    patch(gated.client(), &ours("Tenant", &names.name), &json!({"spec": {"deletionPolicy": policy}})).await;
    gated.gate.arm(&names.marks(), at);
    let tenants = Api::<Tenant>::all(gated.client().clone());
    tenants.delete(&names.name, &DeleteParams::default()).await.expect("a deletion");
}

/// The state of a tenant to which nothing happened.
pub async fn undisturbed(gated: &Gated, names: &Names) -> BTreeSet<String> {
    Snapshot::of(&gated.ground, gated.client()).await.tenant(names)
}

/// The login in a tenant's Secret works.
pub async fn works(client: &Client, name: &str) {
    let tenant = Api::<Tenant>::all(client.clone()).get(name).await.expect("a Tenant");
    let credentials = credentials(client, &tenant).await;
    let text = |key: &str| credentials[key].as_str();
    let mut login = tokio_postgres::Config::new();
    login.host(text("host")).port(text("port").parse().expect("a port")).dbname(text("database"));
    login.user(text("username")).password(text("password"));
    let (session, connection) =
        login.connect(tokio_postgres::NoTls).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    tokio::spawn(async move { connection.await.ok() });
    assert_eq!(rows(&session, "SELECT count(*)::text FROM users").await, ["0"], "{name}");
}
