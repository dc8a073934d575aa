//! DatabaseServers that can't be used, each with a condition that says what to change, and
//! back again.

use devcluster::pki::Authority;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use super::{
    ground::{Ground, NAMESPACE, credentials, ready_tenant, secret, shared},
    verbs::{application, await_condition, delete, log_in, named, of, ours, patch, rows, superuser},
};

fn secrets(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), NAMESPACE)
}

/// Waits until a server works, and sees that a tenant gets onto it.
async fn serves(client: &Client, server: &str) {
    await_condition(client, &ours("DatabaseServer", server), "Ready", "True", "").await;
    let tenant = format!("{server}-tenant");
    ready_tenant(client, &tenant, of(server, json!({}))).await;
}

/// A server and an Application of its own on it.
async fn server(ground: &Ground, client: &Client, name: &str, more: Value) {
    ground.server(client, name, more).await;
    application(
        client,
        name,
        json!({"database": {"pooled": {"servers": [name]}, "bridge": null, "dedicated": null}, "migrations": null}),
    )
    .await;
}

#[tokio::test]
async fn a_wrong_ca_is_refused_and_a_right_one_heals() {
    let (ground, client) = shared().await;
    server(ground, &client, "wrong-ca", json!({})).await;
    let object = ours("DatabaseServer", "wrong-ca");
    await_condition(&client, &object, "Ready", "True", "").await;
    let other = Authority::new("somebody else").expect("an authority").certificate_pem();
    secret(&secrets(&client), "wrong-ca-ca", &[("ca.crt", &other)]).await;
    let message = await_condition(&client, &object, "Reachable", "False", "not signed by the given CA").await;
    assert!(message.contains("give the CA that signed it"), "{message}");
    secret(&secrets(&client), "wrong-ca-ca", &[("ca.crt", "no certificate")]).await;
    await_condition(&client, &object, "Reachable", "False", "holds no certificate").await;
    secret(&secrets(&client), "wrong-ca-ca", &[("ca.crt", ground.cluster.postgres().ca_pem())]).await;
    serves(&client, "wrong-ca").await;
}

/// The same server at an address that its certificate doesn't have; returns the port.
async fn elsewhere(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("all of 127.0.0.0/8 is this machine");
    let found = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let mut to = TcpStream::connect(("127.0.0.1", port)).await.expect("PostgreSQL");
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await.ok() });
        }
    });
    found
}

#[tokio::test]
async fn a_name_that_the_certificate_lacks_is_refused() {
    let (ground, client) = shared().await;
    let elsewhere = elsewhere(ground.cluster.postgres().port()).await;
    server(ground, &client, "wrong-name", json!({"admin": {"host": "127.0.0.2", "port": elsewhere}})).await;
    let object = ours("DatabaseServer", "wrong-name");
    let message = await_condition(&client, &object, "Reachable", "False", "is not for the name").await;
    assert!(message.contains("use a name that it carries"), "{message}");
    let right = json!({"host": ground.cluster.postgres().host(), "port": ground.cluster.postgres().port()});
    patch(&client, &object, &json!({"spec": {"admin": right}})).await;
    serves(&client, "wrong-name").await;
}

#[tokio::test]
async fn a_wrong_password_is_named_and_a_right_one_heals() {
    let (ground, client) = shared().await;
    server(ground, &client, "wrong-word", json!({})).await;
    let object = ours("DatabaseServer", "wrong-word");
    await_condition(&client, &object, "Ready", "True", "").await;
    let admin = ground.cluster.postgres().admin();
    secret(&secrets(&client), "wrong-word-admin", &[("username", &admin.user), ("password", "guessed")]).await;
    let message = await_condition(&client, &object, "Reachable", "False", "28P01").await;
    assert!(message.contains(&admin.user) && message.contains("wrong-word-admin"), "{message}");
    assert!(!message.contains("guessed"), "{message}");
    secret(&secrets(&client), "wrong-word-admin", &[("username", &admin.user), ("password", &admin.password)]).await;
    serves(&client, "wrong-word").await;
}

#[tokio::test]
async fn missing_secrets_and_keys_are_named() {
    let (ground, client) = shared().await;
    server(
        ground,
        &client,
        "bare",
        json!({"admin": {"credentialsSecret": {"name": "bare-login"}}, "tls": {"caSecret": {"name": "bare-roots"}}}),
    )
    .await;
    let object = ours("DatabaseServer", "bare");
    let says = async |text: &str| await_condition(&client, &object, "Reachable", "False", text).await;
    let message = says("bare-login").await;
    assert!(message.contains(NAMESPACE) && message.contains("spec.admin.credentialsSecret"), "{message}");
    let admin = ground.cluster.postgres().admin();
    secret(&secrets(&client), "bare-login", &[("username", &admin.user)]).await;
    says("has no key password").await;
    secret(&secrets(&client), "bare-login", &[("username", &admin.user), ("password", &admin.password)]).await;
    let message = says("bare-roots").await;
    assert!(message.contains("spec.tls.caSecret"), "{message}");
    secret(&secrets(&client), "bare-roots", &[("crt", "")]).await;
    says("has no key ca.crt").await;
    secret(&secrets(&client), "bare-roots", &[("ca.crt", ground.cluster.postgres().ca_pem())]).await;
    serves(&client, "bare").await;
    // A Secret that goes later is named as well, and tenants that are there work on.
    delete(&client, &named("v1", "Secret", Some(NAMESPACE), "bare-login")).await;
    says("bare-login").await;
}

#[tokio::test]
async fn tenants_log_in_over_verified_tls() {
    let (ground, client) = shared().await;
    application(&client, "private", json!({})).await;
    let tenant = ready_tenant(&client, "whisper", of("private", json!({}))).await;
    let mut credentials = credentials(&client, &tenant).await;
    assert_eq!(credentials["sslmode"], "verify-full");
    assert!(credentials["uri"].ends_with("?sslmode=verify-full"), "{}", credentials["uri"]);
    assert_eq!(credentials["ca.crt"], ground.cluster.postgres().ca_pem());
    let session = log_in(&credentials).await.expect("the tenant logs in");
    let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.expect("a row").get(0);
    let admin = superuser(ground, "postgres").await;
    let encrypted = format!("SELECT ssl::text FROM pg_stat_ssl WHERE pid = {pid}");
    assert_eq!(rows(&admin, &encrypted).await, ["true"]);
    let other = Authority::new("somebody else").expect("an authority").certificate_pem();
    credentials.insert("ca.crt".into(), other);
    assert!(log_in(&credentials).await.is_err(), "another CA's server is not trusted");
}
