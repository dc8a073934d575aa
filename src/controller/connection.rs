//! How to connect to a DatabaseServer, from its spec and the Secrets that it names.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;

use super::failure::Failure;
use crate::{
    api::{DatabaseServer, TlsMode},
    database::{Endpoint, Password, ServerConfig, Timeouts, Tls},
};

/// How many connections the operator holds to a server, unless the server says otherwise.
const CONNECTIONS: usize = 8;

/// The Secrets of the operator's namespace.
struct Secrets<'a, F> {
    namespace: &'a str,
    find: F,
}

/// How to connect to a server as its admin, for a command of the user's.
///
/// # Errors
/// What is missing, as a sentence that says what to change.
pub fn server_config(
    server: &DatabaseServer,
    namespace: &str,
    secret: impl Fn(&str) -> Option<Arc<Secret>>,
) -> Result<ServerConfig, String> {
    config(server, namespace, secret).map(|(config, _)| config).map_err(|failure| failure.message)
}

/// How to connect to a server as its admin, and a hash of all that this depends on. `find`
/// looks up Secrets of the operator's namespace.
pub(super) fn config(
    server: &DatabaseServer,
    namespace: &str,
    find: impl Fn(&str) -> Option<Arc<Secret>>,
) -> Result<(ServerConfig, u64), Failure> {
    let secrets = Secrets { namespace, find };
    let admin = &server.spec.admin;
    let secret = secrets.get(&admin.credentials_secret.name, "spec.admin.credentialsSecret")?;
    let user = text(&secret, "username")?;
    let password = text(&secret, "password")?;
    let tls = server.spec.tls.clone().unwrap_or_default();
    let tls = match (tls.mode, &tls.ca_secret) {
        (TlsMode::Disable, _) => Tls::Disable,
        (TlsMode::VerifyFull, None) => {
            return Err(Failure::permanent(
                "CaMissing",
                "spec.tls.caSecret is missing: name the Secret with the server's CA certificates",
            ));
        }
        (TlsMode::VerifyFull, Some(reference)) => {
            let secret = secrets.get(&reference.name, "spec.tls.caSecret")?;
            Tls::VerifyFull { ca_pem: text(&secret, "ca.crt")? }
        }
    };
    let port = |port: Option<i32>| port.and_then(|port| u16::try_from(port).ok());
    let admin_port = port(admin.port).unwrap_or(5432);
    let endpoint = server
        .spec
        .endpoint
        .as_ref()
        .map(|endpoint| Endpoint { host: endpoint.host.clone(), port: port(endpoint.port).unwrap_or(admin_port) });
    let capacity = server.spec.capacity.as_ref();
    let connections = capacity.and_then(|capacity| capacity.operator_connections).and_then(|n| usize::try_from(n).ok());
    let identity = serde_json::json!([
        admin.host,
        admin_port,
        admin.database,
        user,
        password,
        server.spec.tls,
        match &tls {
            Tls::VerifyFull { ca_pem } => Some(ca_pem),
            Tls::Disable => None,
        },
        endpoint.as_ref().map(|endpoint| (&endpoint.host, endpoint.port)),
        connections,
    ]);
    let config = ServerConfig {
        host: admin.host.clone(),
        port: admin_port,
        database: admin.database.clone().unwrap_or_else(|| "postgres".into()),
        user,
        password: Password::new(password),
        tls,
        endpoint,
        connections: connections.unwrap_or(CONNECTIONS),
        timeouts: Timeouts::default(),
    };
    Ok((config, crate::cluster::desired_hash(&identity)))
}

impl<F: Fn(&str) -> Option<Arc<Secret>>> Secrets<'_, F> {
    fn get(&self, name: &str, field: &str) -> Result<Arc<Secret>, Failure> {
        (self.find)(name).ok_or_else(|| {
            let namespace = self.namespace;
            Failure::waiting(
                "SecretMissing",
                format!("Secret {name} is not in namespace {namespace}: create it, or correct {field}"),
            )
        })
    }
}

fn text(secret: &Secret, key: &str) -> Result<String, Failure> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key)).ok_or_else(|| {
        Failure::waiting("SecretIncomplete", format!("Secret {} has no key {key}: add it", secret.name_any()))
    })?;
    String::from_utf8(bytes.0.clone()).map_err(|_| {
        Failure::waiting("SecretIncomplete", format!("key {key} of Secret {} is not text", secret.name_any()))
    })
}
