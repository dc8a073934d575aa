//! An operator that goes both of its ways, to the API server and to PostgreSQL, through proxies
//! with a gate in common.

use std::{collections::BTreeSet, sync::Arc};

use devcluster::Options;
use futures::future::join_all;
use kube::{Api, Client};
use serde_json::{Value, json};
use tenantry::api::{ANNOTATION_PAUSED, ANNOTATION_ROTATE, Tenant};
use tokio::sync::{Mutex, MutexGuard};

use super::{
    gate::{Counted, Gate, Happening, Write},
    ground::{Ground, Operator, apply, await_tenant, credentials, eventually, is},
    proxy::Proxy,
    snapshot::{Names, Snapshot, assert_same},
    sql_proxy::SqlProxy,
    verbs::{self, ours, patch, place, rows, superuser},
};

/// These tests need the machine for themselves: one at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A ground whose operator goes both of its ways through a gate.
pub struct Gated {
    pub ground: Ground,
    pub gate: Arc<Gate>,
    pub api: Proxy,
    pub sql: SqlProxy,
    operator: Option<Operator>,
    flags: &'static [&'static str],
    // Given back last of all.
    _alone: MutexGuard<'static, ()>,
}

impl Gated {
    pub async fn start(flags: &'static [&'static str]) -> Self {
        let alone = ALONE.lock().await;
        let mut ground = Ground::start(Options::default()).await;
        let gate = Arc::new(Gate::default());
        let api = Proxy::with_gate(&ground, Some(Arc::clone(&gate))).await;
        ground.kubeconfig.clone_from(&api.kubeconfig);
        let sql = SqlProxy::start(ground.cluster.postgres(), Arc::clone(&gate)).await;
        ground.examples().await;
        // Without TLS: the proxy has to understand what passes. And with room for those that are
        // held, and for as many besides.
        let way = json!({"spec": {
            "admin": {"host": "127.0.0.1", "port": sql.port}, "tls": {"mode": "Disable", "caSecret": null},
            "capacity": {"operatorConnections": 24},
        }});
        patch(&ground.client, &ours("DatabaseServer", "main"), &way).await;
        let mut gated = Self { ground, gate, api, sql, operator: None, flags, _alone: alone };
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

    /// A Tenant of which nothing is made yet: its UID has to be known before its first write.
    pub async fn prepare(&self, tenant: &Value) -> Names {
        let mut tenant = tenant.clone();
        tenant["metadata"]["annotations"] = json!({ANNOTATION_PAUSED: "true"});
        let made = apply(self.client(), &tenant).await.expect("a Tenant");
        Names::of(&serde_json::from_value(serde_json::to_value(made).expect("JSON")).expect("a Tenant"))
    }

    /// A Tenant that is being made, as all of them are.
    pub async fn make(&self, tenant: &Value) -> Names {
        let names = self.prepare(tenant).await;
        Act::Create.begin(self, &names).await;
        names
    }

    /// Lets something be done undisturbed, and returns its writes.
    pub async fn observe(&self, act: Act, names: &Names) -> Vec<Write> {
        let counted = self.gate.arm(names.marks(), None);
        act.begin(self, names).await;
        act.is_done(self, names).await;
        let writes = counted.writes();
        println!("{act:?} {}: {:#?}", names.name, writes.iter().map(|write| &write.what).collect::<Vec<_>>());
        writes
    }

    /// The state of a tenant to which nothing happens any more.
    pub async fn settled(&self, names: &Names) -> BTreeSet<String> {
        let mut last = None;
        let settled = eventually(async || {
            let now = Snapshot::of(&self.ground, self.client()).await.tenant(names);
            last.replace(now.clone()).filter(|last| *last == now)
        });
        settled.await.unwrap_or_else(|| panic!("{} does not settle", names.name))
    }
}

/// What is done with a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Create,
    Rotate,
    Delete,
}

impl Act {
    /// Asks for it.
    pub async fn begin(self, gated: &Gated, names: &Names) {
        let tenant = ours("Tenant", &names.name);
        let annotate = async |annotation: Value| {
            patch(gated.client(), &tenant, &json!({"metadata": {"annotations": annotation}})).await;
        };
        match self {
            Self::Create => annotate(json!({ANNOTATION_PAUSED: null})).await,
            Self::Rotate => annotate(json!({ANNOTATION_ROTATE: "once"})).await,
            Self::Delete => verbs::delete(gated.client(), &tenant).await,
        }
    }

    /// Waits until it is done.
    pub async fn is_done(self, gated: &Gated, names: &Names) {
        match self {
            Self::Create => is_ready(gated, names).await,
            Self::Rotate => is_rotated(gated, names).await,
            Self::Delete => is_gone(gated, names).await,
        }
    }
}

/// Something that is done with a tenant, and what happens at one of the writes for it.
pub struct Job {
    pub act: Act,
    pub names: Names,
    pub at: Write,
    pub how: Happening,
}

impl Job {
    /// Asks for it.
    pub async fn begin(&self, gated: &Gated) -> Arc<Counted> {
        let counted = gated.gate.arm(self.names.marks(), Some((self.at.clone(), self.how)));
        self.act.begin(gated, &self.names).await;
        counted
    }

    /// Fails unless it happened. How often a status is written depends on what is seen of a step
    /// before the next one.
    pub fn assert_reached(&self, counted: &Counted) {
        let by_chance = self.at.time > 1 && self.at.what.ends_with("/status");
        let Self { act, names, at, how } = self;
        assert!(
            by_chance || counted.is_reached(),
            "{act:?} {}: no {how:?} at {at:?} of {:#?}",
            names.name,
            counted.writes()
        );
    }
}

async fn is_ready(gated: &Gated, names: &Names) {
    await_tenant(gated.client(), &names.name, "Ready", |tenant| is(tenant, "Ready", "True")).await;
}

async fn is_gone(gated: &Gated, names: &Names) {
    let (tenants, name) = (Api::<Tenant>::all(gated.client().clone()), &names.name);
    let gone = eventually(async || tenants.get_opt(name).await.ok()?.is_none().then_some(())).await;
    assert!(gone.is_some(), "{name} does not go: {:#?}", tenants.get(name).await);
}

/// Rotated, and the old login is closed: that is a part of it, and comes a little later.
async fn is_rotated(gated: &Gated, names: &Names) {
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

/// Waits until something is done with each of these.
pub async fn all_done(gated: &Gated, act: Act, tenants: &[Names]) {
    join_all(tenants.iter().map(|names| act.is_done(gated, names))).await;
}

/// Waits until the state of each of these tenants is as it should be; fails with the differences.
pub async fn all_become(gated: &Gated, tenants: &[Names], wanted: &BTreeSet<String>, what: &str) {
    let states = async || {
        let snapshot = Snapshot::of(&gated.ground, gated.client()).await;
        tenants.iter().map(|names| snapshot.tenant(names)).collect::<Vec<_>>()
    };
    let same = eventually(async || states().await.iter().all(|state| state == wanted).then_some(())).await;
    if same.is_none() {
        for (names, state) in tenants.iter().zip(states().await) {
            assert_same(&state, wanted, &format!("{} after {what}", names.name));
        }
    }
}

/// The login in a tenant's Secret works.
pub async fn works(gated: &Gated, names: &Names) {
    let name = &names.name;
    let tenant = Api::<Tenant>::all(gated.client().clone()).get(name).await.expect("a Tenant");
    let credentials = credentials(gated.client(), &tenant).await;
    let text = |key: &str| credentials[key].as_str();
    let mut login = tokio_postgres::Config::new();
    login.host(text("host")).port(text("port").parse().expect("a port")).dbname(text("database"));
    login.user(text("username")).password(text("password"));
    let (session, connection) =
        login.connect(tokio_postgres::NoTls).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    tokio::spawn(async move { connection.await.ok() });
    assert_eq!(rows(&session, "SELECT count(*)::text FROM users").await, ["0"], "{name}");
}
