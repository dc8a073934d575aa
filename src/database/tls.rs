//! TLS towards a server, and what went wrong with it in words that help.

use std::error::Error as StdError;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{Error, Result, sources};
use super::server::Tls;

/// How connections are opened, made once from a [`Tls`].
#[derive(Clone)]
pub(super) enum Connector {
    Verify(MakeRustlsConnect),
    Plain,
}

impl Connector {
    pub(super) fn new(tls: &Tls) -> Result<Self> {
        let Tls::VerifyFull { ca_pem } = tls else {
            return Ok(Self::Plain);
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            let certificate =
                certificate.map_err(|error| Error::permanent(format!("the server's CA is not PEM: {error}")))?;
            roots
                .add(certificate)
                .map_err(|error| Error::permanent(format!("the server's CA holds no usable certificate: {error}")))?;
        }
        if roots.is_empty() {
            return Err(Error::permanent(
                "the server's CA holds no certificate: give its PEM, from BEGIN CERTIFICATE on",
            ));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::permanent(format!("TLS can't be set up: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self::Verify(MakeRustlsConnect::new(config)))
    }

    pub(super) fn mode(&self) -> SslMode {
        match self {
            // rustls verifies chain and name whenever TLS is used, so `require` is verify-full.
            Self::Verify(_) => SslMode::Require,
            Self::Plain => SslMode::Disable,
        }
    }
}

/// What a failed connection to `host` means.
pub(super) fn explain(host: &str, port: u16, user: &str, error: &tokio_postgres::Error) -> Error {
    if error.as_db_error().is_some() {
        return Error::from_postgres(&format!("can't log in at {host}:{port} as {user}"), error);
    }
    let text = sources(error);
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(inner) = cause {
        // An io::Error shows what it wraps by get_ref, not by source.
        let inner = inner
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .map_or(inner, |wrapped| wrapped as &(dyn StdError + 'static));
        if let Some(rustls::Error::InvalidCertificate(reason)) = inner.downcast_ref::<rustls::Error>() {
            let what = match reason {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    "its certificate is not signed by the given CA; give the CA that signed it".to_owned()
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    format!("its certificate is not for the name {host}; use a name that it carries")
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "its certificate has expired; renew it".to_owned()
                }
                other => format!("its certificate is refused: {other}"),
            };
            return Error::permanent(format!("{host}:{port} is not trusted: {what}"));
        }
        cause = inner.source();
    }
    if text.contains("server does not support TLS") {
        return Error::permanent(format!(
            "{host}:{port} offers no TLS: switch ssl on in the server, or disable TLS for it if it is on the same host"
        ));
    }
    Error::transient(format!("{host}:{port} can't be reached: {text}"))
}
