//! The operator is killed after each write of a tenant's creation, rotation and deletion, and
//! started again: all ends as if nothing had happened.

use std::{collections::BTreeSet, sync::Arc};

use devcluster::Options;
use futures::future::join_all;
use kube::{Api, Client, api::DeleteParams};
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    gate::{Gate, Happening},
    ground::{Ground, Operator, apply, await_tenant, credentials, eventually, is, tenant},
    proxy::Proxy,
    snapshot::{Names, Snapshot, assert_same, logins},
    sql_proxy::SqlProxy,
    verbs::{ours, patch, place, rows, superuser},
};

/// Everything is looked after often, so that what another operator left is taken up at once; and
/// who comes back is the leader at once.
const FLAGS: [&str; 12] = [
    "--lease-identity",
    "the-same",
    "--health-interval",
    "1s",
    "--watchdog-interval",
    "200ms",
    // It closes the login of migrations that were over when the operator ended.
    "--sweep-interval",
    "1s",
    "--rotation-overlap",
    "200ms",
    "--rotation-max-overlap",
    "2s",
];

/// A ground whose operator goes both of its ways through a gate.
pub struct Gated {
    pub ground: Ground,
    pub gate: Arc<Gate>,
    pub api: Proxy,
    pub sql: SqlProxy,
    operator: Option<Operator>,
}

impl Gated {
    pub async fn start(flags: &[&str]) -> Self {
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
        let mut gated = Self { ground, gate, api, sql, operator: None };
        gated.restart(flags);
        gated
    }

    pub fn client(&self) -> &Client {
        &self.ground.client
    }

    pub fn restart(&mut self, flags: &[&str]) {
        if let Some(operator) = self.operator.take() {
            operator.kill();
        }
        self.operator = Some(self.ground.operator(flags));
    }

    /// Makes a Tenant while its writes are counted.
    async fn make(&self, tenant: &Value, at: Option<(usize, Happening)>) -> Names {
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
    async fn is_reached(&self, done: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = self.gate.reached() => true,
            () = done => false,
        }
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

/// The state of each of these tenants, as soon as all are as `wanted`; fails with the differences.
async fn all_become(gated: &Gated, tenants: &[Names], wanted: &BTreeSet<String>, what: &str) {
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

/// The state of a tenant to which nothing happened.
async fn undisturbed(gated: &Gated, names: &Names) -> BTreeSet<String> {
    Snapshot::of(&gated.ground, gated.client()).await.tenant(names)
}

/// Kills the operator after the first write of what `act` asks for, then after the second, each
/// time with another tenant, until all is done before the gate is reached. Returns the tenants
/// that were disturbed.
async fn kill_after_each_write<A, D>(gated: &mut Gated, what: &str, writes: usize, act: A, done: D) -> Vec<Names>
where
    A: AsyncFn(&Gated, usize) -> Names,
    D: AsyncFn(&Gated, &Names),
{
    let mut disturbed = Vec::new();
    loop {
        let names = act(gated, disturbed.len() + 1).await;
        let reached = gated.is_reached(done(gated, &names)).await;
        if !reached {
            gated.gate.open();
            disturbed.push(names);
            break;
        }
        gated.gate.open();
        gated.restart(&FLAGS);
        disturbed.push(names);
    }
    let kills = disturbed.len() - 1;
    println!("{what}: killed after each of {kills} writes");
    assert!(kills + 1 >= writes, "{what} took {writes} writes undisturbed, and was disturbed at {kills}");
    disturbed
}

/// Creation, rotation and both deletions of tenants that are made like `spec`.
async fn a_whole_life(gated: &mut Gated, prefix: &str, spec: Value) {
    let named = |number: usize| format!("{prefix}{number:02}");
    let create = |number: usize| tenant(&named(number), spec.clone());

    let model = gated.make(&create(0), None).await;
    is_ready(gated, &model).await;
    let writes = gated.gate.open();
    println!("creation: {writes:#?}");
    let act = async |gated: &Gated, number: usize| gated.make(&create(number), Some((number, Happening::Last))).await;
    let tenants = kill_after_each_write(gated, "creation", writes.len(), act, is_ready).await;
    join_all(tenants.iter().map(|names| is_ready(gated, names))).await;
    let made = undisturbed(gated, &model).await;
    all_become(gated, &tenants, &made, "creation").await;
    assert_eq!(logins(&made), [("Closed".to_owned(), 2), ("Current".to_owned(), 1)].into(), "{made:#?}");
    for names in &tenants {
        works(gated.client(), &names.name).await;
    }

    let rotate = async |gated: &Gated, names: &Names, at| {
        gated.gate.arm(&names.marks(), at);
        let annotation = json!({"metadata": {"annotations": {"tenantry.io/rotate": "once"}}});
        patch(gated.client(), &ours("Tenant", &names.name), &annotation).await;
    };
    rotate(gated, &model, None).await;
    is_rotated(gated, &model).await;
    let writes = gated.gate.open();
    println!("rotation: {writes:#?}");
    let rotated = undisturbed(gated, &model).await;
    let act = async |gated: &Gated, number: usize| {
        let names = tenants[number - 1].clone();
        rotate(gated, &names, Some((number, Happening::Last))).await;
        names
    };
    let disturbed = kill_after_each_write(gated, "rotation", writes.len(), act, is_rotated).await;
    all_become(gated, &disturbed, &rotated, "rotation").await;
    for names in &disturbed {
        works(gated.client(), &names.name).await;
    }

    let delete = async |gated: &Gated, names: &Names, policy: &str, at| {
        patch(gated.client(), &ours("Tenant", &names.name), &json!({"spec": {"deletionPolicy": policy}})).await;
        gated.gate.arm(&names.marks(), at);
        let tenants = Api::<Tenant>::all(gated.client().clone());
        tenants.delete(&names.name, &DeleteParams::default()).await.expect("a deletion");
    };
    let (mut left, mut model) = (tenants, Some(model));
    for policy in ["Retain", "Delete"] {
        let model = model.take().unwrap_or_else(|| left.pop().expect("tenants enough"));
        delete(gated, &model, policy, None).await;
        is_gone(gated, &model).await;
        let writes = gated.gate.open();
        println!("deletion with {policy}: {writes:#?}");
        let ended = undisturbed(gated, &model).await;
        let act = async |gated: &Gated, number: usize| {
            let names = left[left.len() - number].clone();
            delete(gated, &names, policy, Some((number, Happening::Last))).await;
            names
        };
        let disturbed = kill_after_each_write(gated, policy, writes.len(), act, is_gone).await;
        join_all(disturbed.iter().map(|names| is_gone(gated, names))).await;
        all_become(gated, &disturbed, &ended, policy).await;
        left.truncate(left.len() - disturbed.len());
        match policy {
            "Retain" => assert!(logins(&ended).keys().all(|state| state == "Closed"), "{ended:#?}"),
            _ => assert_eq!(ended, BTreeSet::new(), "nothing is left"),
        }
    }
}

/// The login in a tenant's Secret works.
async fn works(client: &Client, name: &str) {
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

#[tokio::test(flavor = "multi_thread")]
async fn after_each_write_of_a_pooled_tenant() {
    let mut gated = Gated::start(&FLAGS).await;
    a_whole_life(&mut gated, "kp", json!({})).await;
}
