//! From a Secret to the way into a database.

use k8s_openapi::api::core::v1::Secret;

use crate::database::{Password, RelayAccess, Tls};

/// A database that the relay is to empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) relay: RelayAccess,
    pub(super) tls: Tls,
}

impl Access {
    /// Reads a Secret as the operator makes it.
    ///
    /// # Errors
    /// Which key is wrong, without what is in it.
    pub(super) fn of(secret: &Secret) -> Result<Self, String> {
        let value = |key: &str| -> Result<Option<String>, String> {
            let Some(bytes) = secret.data.as_ref().and_then(|data| data.get(key)) else { return Ok(None) };
            let text = String::from_utf8(bytes.0.clone()).map_err(|_| format!("key {key} is not text"))?;
            Ok(Some(text).filter(|text| !text.is_empty()))
        };
        let required = |key: &str| value(key)?.ok_or_else(|| format!("key {key} is missing"));
        let port = required("port")?;
        let port = port.parse().map_err(|_| "key port is no port: write a number up to 65535".to_owned())?;
        let tls = match required("sslmode")?.as_str() {
            "verify-full" => Tls::VerifyFull { ca_pem: required("ca.crt")? },
            "disable" => Tls::Disable,
            _ => return Err("key sslmode is neither verify-full nor disable".to_owned()),
        };
        let relay = RelayAccess {
            host: required("host")?,
            port,
            database: required("database")?,
            user: required("username")?,
            password: Password::new(required("password")?),
        };
        Ok(Self { relay, tls })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;

    use super::*;

    fn secret(without: &str, changed: &[(&str, &str)]) -> Secret {
        let data = [
            ("host", "db.example.com"),
            ("port", "5432"),
            ("database", "pool_crm_1"),
            ("username", "pool_crm_1_relay"),
            ("password", "secret word"),
            ("sslmode", "verify-full"),
            ("ca.crt", "PEM"),
        ];
        let data = data.into_iter().filter(|(key, _)| *key != without).chain(changed.iter().copied());
        let data = data.map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec())));
        Secret { data: Some(data.collect::<BTreeMap<_, _>>()), ..Secret::default() }
    }

    #[test]
    fn a_secret_is_read_whole() {
        let access = Access::of(&secret("", &[])).expect("good");
        assert_eq!((access.relay.host.as_str(), access.relay.port), ("db.example.com", 5432));
        assert_eq!(access.tls, Tls::VerifyFull { ca_pem: "PEM".to_owned() });
        assert!(!format!("{access:?}").contains("secret word"), "no log has a password");
        let plain = Access::of(&secret("ca.crt", &[("sslmode", "disable")])).expect("good");
        assert_eq!(plain.tls, Tls::Disable);
    }

    #[test]
    fn what_is_wrong_is_named_and_not_shown() {
        for key in ["host", "port", "database", "username", "password", "sslmode", "ca.crt"] {
            let error = Access::of(&secret(key, &[])).expect_err("bad");
            assert!(error.contains(key), "{error}");
        }
        for (key, value) in [("port", "70000"), ("port", "x"), ("sslmode", "prefer"), ("host", "")] {
            let error = Access::of(&secret("", &[(key, value)])).expect_err("bad");
            assert!(error.contains(key) && !error.contains("secret word"), "{error}");
        }
    }
}
