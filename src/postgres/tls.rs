//! TLS towards a server, and what went wrong with it.

use std::error::Error as StdError;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How connections are opened.
#[derive(Clone)]
pub enum Connector {
    /// With TLS: chain and name are verified.
    Verify(MakeRustlsConnect),
    /// Without.
    Plain,
}

/// Why a server isn't trusted, or can't be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distrust(pub String);

impl Connector {
    /// TLS towards servers whose certificate was signed by one of these authorities (PEM).
    ///
    /// # Errors
    /// What is wrong with the authorities.
    pub fn verifying(ca_pem: &str) -> Result<Self, Distrust> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            let certificate = certificate.map_err(|error| Distrust(format!("the server's CA is not PEM: {error}")))?;
            roots
                .add(certificate)
                .map_err(|error| Distrust(format!("the server's CA holds no usable certificate: {error}")))?;
        }
        if roots.is_empty() {
            let text = "the server's CA holds no certificate: give its PEM, from BEGIN CERTIFICATE on";
            return Err(Distrust(text.to_owned()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Distrust(format!("TLS can't be set up: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self::Verify(MakeRustlsConnect::new(config)))
    }

    /// What the driver is to ask for.
    #[must_use]
    pub fn mode(&self) -> SslMode {
        match self {
            // rustls verifies chain and name whenever TLS is used, so `require` is verify-full.
            Self::Verify(_) => SslMode::Require,
            Self::Plain => SslMode::Disable,
        }
    }

    /// Opens a session, whose connection ends by itself when the client is dropped.
    ///
    /// # Errors
    /// What the server says, or the way to it.
    pub async fn connect(&self, config: &Config) -> Result<Client, tokio_postgres::Error> {
        match self {
            Self::Verify(tls) => {
                let (client, connection) = config.connect(tls.clone()).await?;
                tokio::spawn(connection);
                Ok(client)
            }
            Self::Plain => {
                let (client, connection) = config.connect(NoTls).await?;
                tokio::spawn(connection);
                Ok(client)
            }
        }
    }
}

/// Why `host` isn't trusted, where that is why it can't be connected to.
#[must_use]
pub fn distrust(host: &str, port: u16, error: &tokio_postgres::Error) -> Option<Distrust> {
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
            return Some(Distrust(format!("{host}:{port} is not trusted: {what}")));
        }
        cause = inner.source();
    }
    super::sources(error).contains("server does not support TLS").then(|| {
        Distrust(format!(
            "{host}:{port} offers no TLS: switch ssl on in the server, or disable TLS for it if it is on the same host"
        ))
    })
}
