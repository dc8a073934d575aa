//! One version of a tenant's login, as the files say it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::Semaphore;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

/// The content of a tenant's files: two that are equal are the same database and login.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Files {
    /// `uri`: user, password, server, database and TLS mode, which belong together because they are one file.
    pub(crate) uri: String,
    /// `ca.crt`: the authority that signs the server's certificate; empty without TLS.
    pub(crate) authority: Vec<u8>,
}

/// A tenant's database by one login. A rotated password makes a new one.
pub(crate) struct Database {
    pub(crate) config: tokio_postgres::Config,
    pub(crate) tls: Option<MakeRustlsConnect>,
    /// How many connections this tenant may have open at once here.
    pub(crate) turns: Arc<Semaphore>,
    /// How many hosts lead here.
    hosts: AtomicUsize,
}

/// Why a tenant's files are of no use. Never says what is in them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("uri is no PostgreSQL URI: {0}")]
    Uri(#[source] tokio_postgres::Error),
    #[error("ca.crt holds no certificate, and sslmode is not disable")]
    NoAuthority,
    #[error("ca.crt: {0}")]
    Authority(String),
}

/// TLS for each authority. A thousand tenants have one server and one authority, and share its set-up.
#[derive(Default)]
pub(crate) struct Authorities(HashMap<Vec<u8>, MakeRustlsConnect>);

impl Authorities {
    fn tls(&mut self, authority: &[u8]) -> Result<MakeRustlsConnect, FilesError> {
        if let Some(tls) = self.0.get(authority) {
            return Ok(tls.clone());
        }
        let tls = MakeRustlsConnect::new(tls(authority)?);
        self.0.insert(authority.to_vec(), tls.clone());
        Ok(tls)
    }
}

impl Database {
    /// `most` is how many connections the tenant may have open at once.
    pub(crate) fn new(files: &Files, authorities: &mut Authorities, most: usize) -> Result<Self, FilesError> {
        let (uri, mode) = without_ssl_parameters(&files.uri);
        let mut config: tokio_postgres::Config = uri.parse().map_err(FilesError::Uri)?;
        let plain = mode == Some("disable");
        // Whatever else it says, TLS is on, with the name and the authority checked.
        config.ssl_mode(if plain { SslMode::Disable } else { SslMode::Require });
        config.application_name("crm").connect_timeout(Duration::from_secs(5));
        // A server that vanished without a word is noticed in seconds, not in the two hours of a system's default.
        config.keepalives_idle(Duration::from_secs(15)).tcp_user_timeout(Duration::from_secs(15));
        Ok(Self {
            config,
            tls: if plain { None } else { Some(authorities.tls(&files.authority)?) },
            turns: Arc::new(Semaphore::new(most)),
            hosts: AtomicUsize::new(0),
        })
    }

    /// One more host leads here.
    pub(crate) fn assigned(&self) {
        self.hosts.fetch_add(1, Ordering::AcqRel);
    }

    /// One host less leads here.
    pub(crate) fn unassigned(&self) {
        self.hosts.fetch_sub(1, Ordering::AcqRel);
    }

    /// No host leads here any more: a newer login has taken over, or the tenant is gone. Connections that are in use finish
    /// their work, none is kept for later.
    pub(crate) fn is_retired(&self) -> bool {
        self.hosts.load(Ordering::Acquire) == 0
    }
}

/// Takes `sslmode` and `sslrootcert` off a URI: tokio-postgres doesn't know the values that libpq does.
fn without_ssl_parameters(uri: &str) -> (String, Option<&str>) {
    let uri = uri.trim();
    let Some((base, query)) = uri.split_once('?') else {
        return (uri.to_owned(), None);
    };
    let mut mode = None;
    let kept: Vec<&str> = query
        .split('&')
        .filter(|parameter| match parameter.split_once('=') {
            Some(("sslmode", value)) => {
                mode = Some(value);
                false
            }
            Some(("sslrootcert", _)) => false,
            _ => true,
        })
        .collect();
    let uri = if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
    (uri, mode)
}

fn tls(authority: &[u8]) -> Result<rustls::ClientConfig, FilesError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority) {
        let certificate = certificate.map_err(|error| FilesError::Authority(error.to_string()))?;
        roots.add(certificate).map_err(|error| FilesError::Authority(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(FilesError::NoAuthority);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| FilesError::Authority(error.to_string()))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    // PostgreSQL resumes no TLS session, so none is worth remembering.
    config.resumption = Resumption::disabled();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssl_parameters_are_read_and_taken_off() {
        let cases = [
            ("postgresql://u:p@h:5/d", "postgresql://u:p@h:5/d", None),
            ("postgresql://u:p@h/d?sslmode=verify-full\n", "postgresql://u:p@h/d", Some("verify-full")),
            ("postgresql://h/d?a=b&sslmode=disable&sslrootcert=%2Fx&c=d", "postgresql://h/d?a=b&c=d", Some("disable")),
        ];
        for (uri, rest, mode) in cases {
            assert_eq!(without_ssl_parameters(uri), (rest.to_owned(), mode));
        }
    }

    #[test]
    fn only_an_explicit_disable_goes_without_tls() {
        let database = |uri: &str| {
            Database::new(&Files { uri: uri.into(), authority: Vec::new() }, &mut Authorities::default(), 1)
        };
        assert!(database("postgresql://u:p@h/d?sslmode=disable").is_ok_and(|database| database.tls.is_none()));
        for mode in ["", "?sslmode=prefer", "?sslmode=verify-full", "?sslmode=nonsense"] {
            assert!(matches!(database(&format!("postgresql://u:p@h/d{mode}")), Err(FilesError::NoAuthority)), "{mode}");
        }
    }

    #[test]
    fn an_error_does_not_say_the_password() {
        let files = Files { uri: "postgresql://u:s3cret@h:port/d?sslmode=disable".into(), authority: Vec::new() };
        let error = Database::new(&files, &mut Authorities::default(), 1).err().expect("a port that is no number");
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    }
}
