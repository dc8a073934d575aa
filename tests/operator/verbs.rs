//! What several tests do beside the ground's own verbs: Applications of their own, logins,
//! SQL as the superuser, conditions of any resource.

use std::{collections::BTreeMap, sync::Arc};

use devcluster::Postgres;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tenantry::api::Tenant;
use tokio_postgres::Config;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::ground::{Ground, documents, dynamic, eventually, merge, root};

/// An Application like the example's, with a name and a domain of its own: its pools are
/// nobody else's. Its rollouts wait for no pod to last. A null in `more` takes a field out.
pub async fn application(client: &Client, name: &str, more: Value) {
    let mut application = documents(&root().join("examples/application.yaml")).remove(0);
    application["metadata"]["name"] = name.into();
    application["spec"]["route"]["hostTemplate"] = format!("{{tenant}}.{name}.example.com").into();
    application["spec"]["rollout"] = json!({"minReadySeconds": 0});
    merge(&mut application["spec"], more);
    without_nulls(&mut application);
    let resource = dynamic(client, &application);
    let params = PatchParams::apply("a-user").force().validation_strict();
    resource.patch(name, &params, &Patch::Apply(&application)).await.expect("an Application");
}

/// The example's web component, to be changed.
pub fn web() -> Value {
    documents(&root().join("examples/application.yaml"))[0]["spec"]["components"][0].clone()
}

/// A Tenant of an Application of one's own.
pub fn of(application: &str, more: Value) -> Value {
    let mut spec = json!({"spec": {"application": application}});
    merge(&mut spec, more);
    spec
}

/// Takes nulls out of an object.
pub fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// A name of one of the group's own kinds, or of any other.
pub fn named(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Value {
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = namespace.into();
    }
    object
}

/// A resource of the group.
pub fn ours(kind: &str, name: &str) -> Value {
    named("tenantry.io/v1alpha1", kind, None, name)
}

/// An object as it is, or nothing.
pub async fn read(client: &Client, object: &Value) -> Option<Value> {
    let name = object["metadata"]["name"].as_str().expect("a name");
    let found = dynamic(client, object).get_opt(name).await.expect("an answer");
    found.map(|found| serde_json::to_value(found).expect("JSON"))
}

/// Changes an object by a JSON merge patch, as `kubectl patch` does.
pub async fn patch(client: &Client, object: &Value, change: &Value) -> Value {
    let name = object["metadata"]["name"].as_str().expect("a name");
    let params = PatchParams { field_manager: Some("a-person".into()), ..PatchParams::default() };
    let patched = dynamic(client, object).patch(name, &params, &Patch::Merge(change)).await;
    serde_json::to_value(patched.unwrap_or_else(|error| panic!("{object}: {error}"))).expect("JSON")
}

/// Changes the status of an object, as its controller would.
pub async fn patch_status(client: &Client, object: &Value, status: &Value) {
    let name = object["metadata"]["name"].as_str().expect("a name");
    let params = PatchParams { field_manager: Some("a-controller".into()), ..PatchParams::default() };
    let api: Api<DynamicObject> = dynamic(client, object);
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(name, &params, &patch).await.unwrap_or_else(|error| panic!("{object}: {error}"));
}

/// Deletes an object.
pub async fn delete(client: &Client, object: &Value) {
    let name = object["metadata"]["name"].as_str().expect("a name");
    dynamic(client, object).delete(name, &kube::api::DeleteParams::default()).await.expect("a deletion");
}

/// Waits until an object's condition speaks of its newest generation, has this status and
/// says this.
pub async fn await_condition(client: &Client, object: &Value, kind: &str, status: &str, says: &str) -> String {
    let mut last = Value::Null;
    let found = eventually(async || {
        let live = read(client, object).await?;
        last = live["status"].clone();
        let conditions = live["status"]["conditions"].as_array()?;
        let condition = conditions.iter().find(|condition| condition["type"] == kind)?;
        let message = condition["message"].as_str()?;
        let current = condition["observedGeneration"] == live["metadata"]["generation"];
        (current && condition["status"] == status && message.contains(says)).then(|| message.to_owned())
    })
    .await;
    found.unwrap_or_else(|| {
        let what = format!("{} {}", object["kind"], object["metadata"]["name"]);
        panic!("{what}: {kind} does not become {status} with {says:?}: {last:#}")
    })
}

/// Where a login goes.
fn way(host: &str, port: u16, ca_pem: &str) -> (Config, MakeRustlsConnect) {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.expect("PEM")).expect("a certificate");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut config = Config::new();
    config.host(host).port(port).ssl_mode(tokio_postgres::config::SslMode::Require);
    (config, MakeRustlsConnect::new(tls))
}

/// Logs in with what a tenant's Secret (or the agent's files) say, over verified TLS.
pub async fn log_in(credentials: &BTreeMap<String, String>) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (mut config, tls) =
        way(&credentials["host"], credentials["port"].parse().expect("a port"), &credentials["ca.crt"]);
    config.user(&credentials["username"]).password(&credentials["password"]).dbname(&credentials["database"]);
    let (client, connection) = config.connect(tls).await?;
    tokio::spawn(async move { connection.await.ok() });
    Ok(client)
}

/// A superuser's session in a database.
pub async fn superuser(ground: &Ground, database: &str) -> tokio_postgres::Client {
    superuser_of(ground.cluster.postgres(), database).await
}

/// The same on a server that is not the ground's.
pub async fn superuser_of(postgres: &Postgres, database: &str) -> tokio_postgres::Client {
    let (mut config, tls) = way(postgres.host(), postgres.port(), postgres.ca_pem());
    config.user("postgres").password(postgres.superuser_password()).dbname(database);
    let (client, connection) = config.connect(tls).await.expect("the superuser logs in");
    tokio::spawn(async move { connection.await.ok() });
    client
}

/// The rows of a statement, each as text.
pub async fn rows(client: &tokio_postgres::Client, statement: &str) -> Vec<String> {
    let rows = client.query(statement, &[]).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    rows.iter().map(|row| row.get(0)).collect()
}

/// A tenant's id, which its names in PostgreSQL begin with.
pub fn id(tenant: &Tenant) -> String {
    tenant.status.as_ref().and_then(|status| status.id.clone()).expect("an id")
}

/// Where a tenant's database and Secret are: the database's name and the namespace.
pub fn place(tenant: &Tenant) -> (String, String) {
    let status = tenant.status.as_ref().expect("a status");
    (status.database.as_ref().expect("a place").database.clone(), status.namespace.clone().expect("a namespace"))
}
