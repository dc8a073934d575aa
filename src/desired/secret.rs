//! A tenant's credentials, in whatever tier.

use data_encoding::BASE64;
use serde_json::{Map, Value, json};

use super::{
    Kind, Object,
    naming::{self, Owner},
};
use crate::api::{ANNOTATION_HOSTS, ANNOTATION_ROTATED};

/// What a tenant's Secret is made from. (Not `Debug`: it has a password.)
#[derive(Clone, Copy)]
pub struct SecretInput<'a> {
    /// The Tenant's name.
    pub tenant: &'a str,
    /// The Pool that the tenant is in, for tier pooled.
    pub pool: Option<&'a str>,
    /// The Application's name.
    pub application: &'a str,
    /// The namespace of the pool or tenant.
    pub namespace: &'a str,
    /// The hosts that are the tenant's.
    pub hosts: &'a [String],
    /// The value of annotation `tenantry.io/rotate` that this login answers.
    pub rotated: Option<&'a str>,
    /// Host name or address of the tenants' endpoint.
    pub host: &'a str,
    /// Port of the endpoint.
    pub port: u16,
    /// The database.
    pub database: &'a str,
    /// The tenant's schema in it.
    pub schema: &'a str,
    /// The login.
    pub username: &'a str,
    /// Its password.
    pub password: &'a str,
    /// `verify-full` or `disable`, as libpq calls it.
    pub sslmode: &'a str,
    /// The certificates to trust, as PEM; nothing for the system's roots.
    pub ca_pem: Option<&'a str>,
}

/// The keys of a tenant's Secret. Pods of tiers bridge and dedicated name each of them in
/// their template, so that a key more would restart them all: add it here, and don't mount it.
pub(super) const KEYS: [&str; 11] =
    ["type", "provider", "host", "port", "database", "schema", "username", "password", "sslmode", "uri", "ca.crt"];

/// The Secret with a tenant's credentials, of type `servicebinding.io/postgresql`.
///
/// `uri` has everything but the certificates: a client can't be told where it finds them,
/// so it adds `sslrootcert` itself, or opens `ca.crt` beside it. `ca.crt` is empty where the
/// system's roots are to be trusted.
pub fn tenant_secret(input: &SecretInput<'_>) -> Object {
    let port = input.port.to_string();
    let uri = uri(input);
    let entries = [
        ("type", "postgresql"),
        ("provider", "tenantry"),
        ("host", input.host),
        ("port", &port),
        ("database", input.database),
        ("schema", input.schema),
        ("username", input.username),
        ("password", input.password),
        ("sslmode", input.sslmode),
        ("uri", &uri),
        ("ca.crt", input.ca_pem.unwrap_or_default()),
    ];
    // `stringData` would be simpler, but the API server moves it to `data`, where a change
    // by somebody else could not be told from our own.
    let data: Map<String, Value> =
        entries.iter().map(|(key, value)| ((*key).to_owned(), BASE64.encode(value.as_bytes()).into())).collect();
    let owner = Owner::Tenant { name: input.tenant, pool: input.pool };
    let mut annotations = json!({ANNOTATION_HOSTS: input.hosts.join(",")});
    // It stands beside the login: a rotation that the operator's end interrupted is not made twice.
    if let Some(rotated) = input.rotated {
        annotations[ANNOTATION_ROTATED] = rotated.into();
    }
    let metadata = json!({
        "name": naming::credentials_secret(input.tenant),
        "namespace": input.namespace,
        "labels": naming::labels(input.application, owner),
        "annotations": annotations,
    });
    Object::untyped(Kind::Secret, json!({"metadata": metadata, "type": "servicebinding.io/postgresql", "data": data}))
}

/// The connection as one URI (libpq, JDBC-like drivers and most libraries read it).
fn uri(input: &SecretInput<'_>) -> String {
    let host = if input.host.contains(':') { format!("[{}]", input.host) } else { input.host.to_owned() };
    format!(
        "postgresql://{}:{}@{host}:{}/{}?sslmode={}",
        percent_encode(input.username),
        percent_encode(input.password),
        input.port,
        percent_encode(input.database),
        input.sslmode,
    )
}

/// Everything but RFC 3986's unreserved characters as `%XX`.
fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input<'a>(host: &'a str, password: &'a str) -> SecretInput<'a> {
        SecretInput {
            tenant: "acme",
            pool: Some("crm-1"),
            application: "crm",
            namespace: "pool-crm-1",
            hosts: &[],
            rotated: None,
            host,
            port: 5432,
            database: "pool_crm_1",
            schema: "t_abc",
            username: "t_abc_a",
            password,
            sslmode: "verify-full",
            ca_pem: None,
        }
    }

    #[test]
    fn a_uri_survives_every_character_of_a_password_and_an_ipv6_host() {
        let found = uri(&input("2001:db8::1", "a/b:c@d?e#f%g h~é"));
        assert_eq!(
            found,
            "postgresql://t_abc_a:a%2Fb%3Ac%40d%3Fe%23f%25g%20h~%C3%A9@[2001:db8::1]:5432/pool_crm_1?sslmode=verify-full"
        );
        // This library checks certificates whatever the mode, and knows no `verify-full`.
        let input = SecretInput { sslmode: "require", ..input("db.example.com", "p@s/s") };
        let config: tokio_postgres::Config = uri(&input).parse().expect("a URI");
        assert_eq!(config.get_password(), Some("p@s/s".as_bytes()));
    }

    #[test]
    fn the_secret_has_the_keys_that_stay_and_prints_nothing() {
        let secret = tenant_secret(&input("db", "secret-word"));
        let keys: Vec<_> = secret.body["data"].as_object().expect("data").keys().map(String::as_str).collect();
        let mut expected = KEYS;
        expected.sort_unstable();
        assert_eq!(keys, expected);
        assert_eq!(format!("{secret:?}"), "Secret pool-crm-1/acme-database");
        assert_eq!(secret.body["metadata"]["annotations"][ANNOTATION_HOSTS], "");
    }
}
