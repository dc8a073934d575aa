//! Each DatabaseServer has a relay where something is metered: made, repaired, and gone with it.

use std::{
    collections::BTreeMap,
    process::{Child, Command, Stdio},
};

use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        core::v1::{Secret, ServiceAccount},
    },
};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};

use super::{
    bridge::bridge,
    dedicated::dedicated,
    drift::{Child as Object, add, comes_back, remove, replace},
    ground::{Ground, Once, create, credentials, delete_tenant, eventually, once, ready_tenant, spawn},
    relay_api::{self, Script},
    verbs::{application, await_condition, delete, id, log_in, named, of, ours, place, read, rows, superuser},
};

/// Nobody is there: the operator makes relays all the same, and tenants.
const FLAGS: [&str; 10] = [
    "--ledger-url",
    "postgres://nobody:none@127.0.0.1:9/ledger?sslmode=disable",
    "--relay-image",
    "registry.example.com/tenantry:relay",
    "--relay-replicas",
    "2",
    "--retention-interval",
    "1s",
    "--api-listen",
    "127.0.0.1:0",
];

async fn metered() -> (&'static Ground, Client) {
    static SHARED: Once = Once::new();
    let ((ground, _), client) = once(&SHARED, &FLAGS).await;
    (ground, client)
}

/// A DatabaseServer and an Application of its own on it.
async fn server(ground: &Ground, client: &Client, name: &str) {
    ground.server(client, name, json!({})).await;
    let on = json!({"servers": [name]});
    let database = json!({"pooled": on, "bridge": on, "dedicated": on});
    application(client, name, json!({"database": database, "migrations": null})).await;
}

fn in_relay(server: &str, api_version: &str, kind: &str, name: &str) -> Value {
    named(api_version, kind, Some(&format!("tenantry-relay-{server}")), name)
}

/// The relay's login in a database, by its Secret; nothing where there is none.
async fn login(client: &Client, server: &str, database: &str) -> Option<BTreeMap<String, String>> {
    let secrets = Api::<Secret>::namespaced(client.clone(), &format!("tenantry-relay-{server}"));
    let secret = secrets.get_opt(&database.replace('_', "-")).await.expect("an answer")?;
    let text = |bytes: ByteString| String::from_utf8(bytes.0).expect("text");
    Some(secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value))).collect())
}

async fn await_login(client: &Client, server: &str, database: &str) -> BTreeMap<String, String> {
    let found = eventually(async || login(client, server, database).await).await;
    found.unwrap_or_else(|| panic!("the relay of {server} gets no login in {database}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_database_has_a_login_of_its_relays() {
    let (ground, client) = metered().await;
    server(ground, &client, "logins").await;
    let object = ours("DatabaseServer", "logins");
    await_condition(&client, &object, "RelayReady", "True", "").await;
    let pooled = ready_tenant(&client, "logins-p", of("logins", json!({}))).await;
    let bridged = ready_tenant(&client, "logins-b", bridge("logins", json!({}))).await;
    let alone = ready_tenant(&client, "logins-d", dedicated("logins", json!({}))).await;
    for tenant in [&pooled, &bridged, &alone] {
        let (database, _) = place(tenant);
        let access = await_login(&client, "logins", &database).await;
        assert_eq!(
            (&access["database"], access["username"].as_str()),
            (&database, format!("{database}_relay").as_str())
        );
        let session = log_in(&access).await.expect("it works");
        rows(&session, "SELECT tenant FROM tenantry.outbox").await;
        let denied = session.simple_query("SELECT FROM tenantry.tenant").await.expect_err("nothing else");
        assert_eq!(denied.code().expect("refused").code(), "42501");
        // The tenant's own Secret is another one.
        assert_ne!(credentials(&client, tenant).await["password"], access["password"]);
    }
    let deployment = read(&client, &in_relay("logins", "apps/v1", "Deployment", "relay")).await.expect("a relay");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!((&container["image"], &deployment["spec"]["replicas"]), (&json!(FLAGS[3]), &json!(2)));
    // A database that is dropped takes its login along.
    let (database, _) = place(&alone);
    let gone = json!({"spec": {"deletionPolicy": "Delete"}});
    super::verbs::patch(&client, &ours("Tenant", "logins-d"), &gone).await;
    delete_tenant(&client, "logins-d").await;
    let gone = eventually(async || login(&client, "logins", &database).await.is_none().then_some(())).await;
    assert!(gone.is_some(), "the login stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_deleted_or_edited_is_made_anew_with_another_password() {
    let (ground, client) = metered().await;
    server(ground, &client, "repair").await;
    let tenant = ready_tenant(&client, "repair-a", of("repair", json!({}))).await;
    let (database, _) = place(&tenant);
    let first = await_login(&client, "repair", &database).await;
    let secret = in_relay("repair", "v1", "Secret", &database.replace('_', "-"));
    let renewed = async |old: &BTreeMap<String, String>| {
        let found = eventually(async || {
            let new = login(&client, "repair", &database).await?;
            let works = new["password"] != old["password"] && log_in(&new).await.is_ok();
            works.then_some(new)
        });
        found.await.expect("a new login")
    };
    delete(&client, &secret).await;
    let second = renewed(&first).await;
    assert!(log_in(&first).await.is_err(), "the old password is of no use");
    super::verbs::patch(&client, &secret, &json!({"data": {"password": "Z3Vlc3NlZA=="}})).await;
    let guessed = BTreeMap::from([("password".to_owned(), "guessed".to_owned())]);
    let third = renewed(&guessed).await;
    assert_ne!(second["password"], third["password"]);
    // What is not its password is put back with the same.
    super::verbs::patch(&client, &secret, &json!({"data": {"host": "ZXZpbC5leGFtcGxl"}})).await;
    let back = eventually(async || (login(&client, "repair", &database).await? == third).then_some(())).await;
    assert!(back.is_some(), "it is as it was");
    // Somebody locked the role: found with the next sweep, or when the Secret is looked at.
    let superuser = superuser(ground, &database).await;
    superuser.batch_execute(&format!("ALTER ROLE {database}_relay NOLOGIN")).await.expect("locked");
    delete(&client, &secret).await;
    renewed(&third).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_changes_is_as_it_was() {
    let (ground, client) = metered().await;
    server(ground, &client, "drifted").await;
    await_condition(&client, &ours("DatabaseServer", "drifted"), "RelayReady", "True", "").await;
    let pod = "/spec/template/spec";
    let mallory = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "mallory"});
    let object = |api_version: &str, kind: &str, name: &str, changes: Vec<Value>| Object {
        object: in_relay("drifted", api_version, kind, name),
        changes,
    };
    let objects = [
        object(
            "apps/v1",
            "Deployment",
            "relay",
            vec![
                replace(&format!("{pod}/containers/0/image"), "registry.example.com/spy:1"),
                add(&format!("{pod}/containers/-"), json!({"name": "spy", "image": "registry.example.com/spy:1"})),
                replace("/spec/replicas", 0),
                remove("/metadata/labels/tenantry.io~1relay"),
            ],
        ),
        object(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            "default-deny",
            vec![replace("/spec/policyTypes", json!(["Ingress"]))],
        ),
        object("networking.k8s.io/v1", "NetworkPolicy", "allow-database", vec![add("/spec/egress/-", json!({}))]),
        object("rbac.authorization.k8s.io/v1", "RoleBinding", "tenantry-agent", vec![add("/subjects/-", mallory)]),
        object("v1", "ServiceAccount", "relay", vec![replace("/automountServiceAccountToken", true)]),
        object("policy/v1", "PodDisruptionBudget", "relay", vec![replace("/spec/maxUnavailable", 2)]),
    ];
    for object in &objects {
        comes_back(&client, object).await;
    }
    // With the server goes all of it.
    super::verbs::delete(&client, &ours("Application", "drifted")).await;
    super::verbs::delete(&client, &ours("DatabaseServer", "drifted")).await;
    let namespace = named("v1", "Namespace", None, "tenantry-relay-drifted");
    let gone = eventually(async || read(&client, &namespace).await.is_none().then_some(())).await;
    assert!(gone.is_some(), "the namespace stays");
    let gone =
        eventually(async || read(&client, &ours("DatabaseServer", "drifted")).await.is_none().then_some(())).await;
    assert!(gone.is_some(), "the server stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_namespace_is_named_and_never_taken() {
    let (ground, client) = metered().await;
    let namespace = named("v1", "Namespace", None, "tenantry-relay-strange");
    create(&client, &namespace).await;
    server(ground, &client, "strange").await;
    let object = ours("DatabaseServer", "strange");
    await_condition(&client, &object, "RelayReady", "False", "tenantry-relay-strange").await;
    await_condition(&client, &object, "Ready", "True", "").await;
    // Its tenants notice nothing.
    ready_tenant(&client, "strange-a", of("strange", json!({}))).await;
    let live = read(&client, &namespace).await.expect("it is there");
    assert!(live["metadata"]["labels"].get("tenantry.io/relay").is_none(), "{live}");
    delete(&client, &namespace).await;
    await_condition(&client, &object, "RelayReady", "True", "").await;
}

/// A token of the relay's ServiceAccount, as the kubelet would project it.
pub async fn token(client: &Client, server: &str) -> String {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), &format!("tenantry-relay-{server}"));
    let spec = TokenRequestSpec { audiences: Some(vec!["tenantry".to_owned()]), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let answer = accounts.create_token_request("relay", &PostParams::default(), &request).await.expect("a token");
    answer.status.and_then(|status| status.token).expect("a token")
}

/// A running relay; ended when dropped, as a crash would.
pub struct Program {
    child: Child,
    /// The file with its token.
    _folder: tempfile::TempDir,
}

impl Program {
    /// Starts a relay of a DatabaseServer with its ServiceAccount's rights and this token, which
    /// reports every second.
    pub async fn start(ground: &Ground, server: &str, api_url: &str, token: &str) -> Self {
        Self::with(ground, server, api_url, token, &[]).await
    }

    /// The same, with further flags.
    pub async fn with(ground: &Ground, server: &str, api_url: &str, token: &str, more: &[&str]) -> Self {
        let namespace = format!("tenantry-relay-{server}");
        let kubeconfig = ground.cluster.service_account_kubeconfig(&namespace, "relay").await.expect("a kubeconfig");
        let folder = tempfile::tempdir().expect("a folder");
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, token).expect("a file");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_tenantry"), "relay"])
            .args(["--server", server, "--namespace", &namespace, "--api-url", api_url])
            .args(["--listen", "127.0.0.1:0", "--report-seconds", "1", "--token-file"])
            .arg(&token_file)
            .args(more)
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self { child: spawn(command), _folder: folder }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_rights_of_its_service_account_a_relay_carries_what_tenants_count() {
    let (ground, client) = metered().await;
    server(ground, &client, "carried").await;
    let first = ready_tenant(&client, "carried-p", of("carried", json!({}))).await;
    let api = relay_api::Api::start().await;
    let token = token(&client, "carried").await;
    let _relay = Program::start(ground, "carried", &api.url, &token).await;
    let counts = async |tenant: &tenantry::api::Tenant, delta: i64| {
        let session = log_in(&credentials(&client, tenant).await).await.expect("a login");
        session.simple_query(&format!("SELECT record_usage('users', {delta}, 'x')")).await.expect("counted");
    };
    counts(&first, 3).await;
    // A tenant that comes later, with a database of its own.
    let second = ready_tenant(&client, "carried-d", dedicated("carried", json!({}))).await;
    counts(&second, 5).await;
    let (one, other) = (id(&first), id(&second));
    let arrived = |script: &Script| script.sum(&one, "users") == 3 && script.sum(&other, "users") == 5;
    api.until("both are carried", arrived).await;
    let script = api.script();
    assert!(script.posts.iter().all(|post| post.token == token));
    let (database, _) = place(&second);
    let source = format!("/tenantry/carried/{database}");
    assert!(script.usage.values().any(|(_, event)| event["source"] == source.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_dropped_while_what_was_counted_is_neither_carried_nor_saved() {
    let (ground, client) = metered().await;
    server(ground, &client, "unsaved").await;
    let drops = json!({"spec": {"deletionPolicy": "Delete"}});
    let tenant = ready_tenant(&client, "unsaved-a", of("unsaved", drops)).await;
    let session = log_in(&credentials(&client, &tenant).await).await.expect("a login");
    session.simple_query("SELECT record_usage('users', 3, 'x')").await.expect("counted");
    let tenants = Api::<tenantry::api::Tenant>::all(client.clone());
    tenants.delete("unsaved-a", &kube::api::DeleteParams::default()).await.expect("a deletion");
    // There is no ledger at the address that the operator has.
    let waits = super::ground::await_tenant(&client, "unsaved-a", "waiting", |tenant| {
        let conditions = tenant.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        super::ground::condition(conditions, "Ready").is_some_and(|ready| ready.reason == "LedgerUnavailable")
    });
    waits.await;
    let root = superuser(ground, &place(&tenant).0).await;
    let schemas = format!("SELECT nspname::text FROM pg_namespace WHERE nspname = '{}'", id(&tenant));
    assert_eq!(rows(&root, &schemas).await.len(), 1, "its data is there");
    // A relay carries it: now it can go.
    let acked = "UPDATE tenantry.outbox SET acked_at = now() WHERE acked_at IS NULL";
    root.batch_execute(acked).await.expect("carried");
    let gone = eventually(async || tenants.get_opt("unsaved-a").await.ok()?.is_none().then_some(())).await;
    assert!(gone.is_some(), "it does not go");
    assert!(rows(&root, &schemas).await.is_empty(), "its data is gone");
}
