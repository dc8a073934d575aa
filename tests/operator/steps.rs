//! What the tests of bad input, placement and limits have in common.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::OnceLock,
};

use kube::Client;
use serde_json::{Value, json};
use tenantry::api::Tenant;

use super::{
    ground::{Ground, Once, Operator, apply, await_tenant, condition, credentials, documents, is, merge, once, root},
    verbs::{log_in, named, read, rows, without_nulls},
};

/// A ground whose operator does nothing on its own account for as long as a test lasts: what
/// it sends is what it was asked for.
pub async fn calm() -> (&'static (Ground, Operator), Client) {
    static CALM: Once = OnceLock::new();
    once(&CALM, &["--health-interval", "1h", "--sweep-interval", "1h", "--watchdog-interval", "1h"]).await
}

/// A ground whose operator looks after everything much more often than it does by default,
/// and may take less time for one reconcile.
pub async fn quick() -> (&'static (Ground, Operator), Client) {
    static QUICK: Once = OnceLock::new();
    once(&QUICK, &["--sweep-interval", "1s", "--watchdog-interval", "200ms", "--reconcile-deadline", "4s"]).await
}

/// A Plan like the example's `smb`, under another name. A null in `more` takes a field out.
pub async fn plan(client: &Client, name: &str, more: Value) {
    let plans = documents(&root().join("examples/plans.yaml"));
    let mut plan = plans.into_iter().find(|plan| plan["metadata"]["name"] == "smb").expect("the example");
    plan["metadata"]["name"] = name.into();
    merge(&mut plan["spec"], more);
    without_nulls(&mut plan);
    apply(client, &plan).await.expect("a Plan");
}

/// Waits until a Tenant is Stalled for this reason; the message must have all these parts.
pub async fn stalled(client: &Client, name: &str, reason: &str, parts: &[&str]) -> Tenant {
    let tenant = await_tenant(client, name, &format!("Stalled for {reason}"), |tenant| {
        let conditions = tenant.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        is(tenant, "Stalled", "True") && condition(conditions, "Stalled").is_some_and(|it| it.reason == reason)
    })
    .await;
    let conditions = &tenant.status.as_ref().expect("a status").conditions;
    let message = &condition(conditions, "Stalled").expect("it was there").message;
    for part in parts {
        assert!(message.contains(part), "{message:?} should say {part:?}");
    }
    assert!(is(&tenant, "Ready", "False"), "{conditions:#?}");
    assert_eq!(condition(conditions, "Ready").expect("Ready").message, *message);
    tenant
}

/// Waits until a Tenant is Ready; then it is neither Stalled nor Reconciling.
pub async fn healed(client: &Client, name: &str) -> Tenant {
    let tenant = await_tenant(client, name, "Ready", |tenant| is(tenant, "Ready", "True")).await;
    let conditions = &tenant.status.as_ref().expect("a status").conditions;
    assert!(condition(conditions, "Stalled").is_none(), "{conditions:#?}");
    assert!(condition(conditions, "Reconciling").is_none(), "{conditions:#?}");
    tenant
}

/// All by which a Tenant runs, as it is at one moment.
#[derive(Debug, PartialEq)]
pub struct Running {
    secret: Value,
    route: Value,
    login: Vec<String>,
    credentials: BTreeMap<String, String>,
}

impl Running {
    /// What a Tenant that is placed runs by; its login works.
    pub async fn of(client: &Client, tenant: &Tenant) -> Self {
        let status = tenant.status.as_ref().expect("a status");
        let reference = status.database.as_ref().and_then(|it| it.secret_ref.as_ref()).expect("a Secret");
        let secret = named("v1", "Secret", Some(&reference.namespace), &reference.name);
        let credentials = credentials(client, tenant).await;
        let session = log_in(&credentials).await.expect("the login in the Secret works");
        let limits = "SELECT meter || ' ' || coalesce(max::text, '') || coalesce(policy, '') FROM tenantry.my_limits()";
        Self {
            secret: read(client, &secret).await.expect("a Secret"),
            route: read(client, &route(tenant)).await.expect("a route"),
            login: rows(&session, limits).await,
            credentials,
        }
    }

    /// Fails if anything of it is not as it was, down to the version of the objects.
    pub async fn assert_untouched(&self, client: &Client, tenant: &Tenant) {
        let now = Self::of(client, tenant).await;
        assert_eq!(now.secret["metadata"]["resourceVersion"], self.secret["metadata"]["resourceVersion"]);
        assert_eq!(now.route, self.route);
        assert_eq!(now.login, self.login);
        assert_eq!(now.credentials, self.credentials);
    }
}

/// The name of a Tenant's HTTPRoute.
pub fn route(tenant: &Tenant) -> Value {
    let status = tenant.status.as_ref().expect("a status");
    let name = tenant.metadata.name.as_deref().expect("a name");
    let namespace = status.namespace.as_deref().expect("a namespace");
    named("gateway.networking.k8s.io/v1", "HTTPRoute", Some(namespace), name)
}

/// A ConfigMap of SQL files in the operator's namespace.
pub fn migrations(name: &str, files: &[(&str, &str)]) -> Value {
    let data: serde_json::Map<String, Value> = files.iter().map(|(file, sql)| ((*file).into(), json!(sql))).collect();
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": super::ground::NAMESPACE}, "data": data,
    })
}

/// The operator's metrics, line by line; none while it doesn't listen yet.
fn metrics(operator: &Operator) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", operator.port)) else { return String::new() };
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// The operator's metric of this name, for one DatabaseServer; 0 if nothing was counted yet.
pub fn metric(operator: &Operator, name: &str, server: &str) -> u64 {
    let start = format!("{name}{{server=\"{server}\"}} ");
    let answer = metrics(operator);
    let value = answer.lines().find_map(|line| line.strip_prefix(&start));
    // A gauge is written with a decimal point.
    let whole = |value: &str| value.split('.').next().and_then(|whole| whole.parse().ok());
    value.map_or(0, |value| whole(value).unwrap_or_else(|| panic!("{start}{value}")))
}

/// How many reconciles of a kind there were, however they ended.
pub fn reconciles(operator: &Operator, kind: &str) -> u64 {
    let of_kind = format!("kind=\"{kind}\"");
    let answer = metrics(operator);
    let lines = answer.lines().filter(|line| line.starts_with("tenantry_reconciles_total{") && line.contains(&of_kind));
    lines.map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok()).expect("a number")).sum()
}
