//! Certificates in PEM files, and what is made from them.

use std::sync::Arc;

use data_encoding::BASE64;
use rustls::{
    ClientConfig, ConfigBuilder, ConfigSide, Error, InconsistentKeys, RootCertStore, ServerConfig, WantsVerifier,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use x509_cert::{Certificate, der::Decode as _};

/// How many characters a line of PEM has (RFC 7468, section 2).
const LINE: usize = 64;

/// The certificates of a PEM file that others are signed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorities(Vec<CertificateDer<'static>>);

impl Authorities {
    /// Reads them. What else the file has (comments, and keys that don't belong there) is left out.
    ///
    /// # Errors
    /// What is wrong with the file, as the end of a sentence that begins with its name.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let certificates = certificates(pem)?;
        roots(&certificates)?;
        Ok(Self(certificates))
    }

    /// The certificates alone, as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        let mut text = String::new();
        for certificate in &self.0 {
            text.push_str("-----BEGIN CERTIFICATE-----\n");
            let encoded = BASE64.encode(certificate);
            let mut rest = encoded.as_str();
            while !rest.is_empty() {
                let (line, more) = rest.split_at(rest.len().min(LINE));
                text.push_str(line);
                text.push('\n');
                rest = more;
            }
            text.push_str("-----END CERTIFICATE-----\n");
        }
        text
    }

    /// TLS towards servers whose certificate was signed by one of these.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn client(&self) -> Result<ClientConfig, String> {
        client(roots(&self.0)?)
    }
}

/// TLS towards servers whose certificate was signed by one of these roots: TLS 1.2 or newer, chain
/// and name are verified.
///
/// # Errors
/// When TLS can't be set up.
pub fn client(roots: RootCertStore) -> Result<ClientConfig, String> {
    let builder = safe(ClientConfig::builder_with_provider(provider()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// What a server shows to its clients.
#[derive(Clone, Debug)]
pub struct Identity {
    /// TLS with it: TLS 1.2 or newer, HTTP/1.1.
    pub config: Arc<ServerConfig>,
    /// When the server's own certificate ends, in seconds since 1970.
    pub expires: i64,
}

/// Which of its two files an identity can't be made from, and why, as the end of a sentence that
/// begins with that file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The certificates.
    Certificate(String),
    /// The private key.
    Key(String),
}

impl Identity {
    /// Reads a server's certificate, followed by those between it and its authority, and its
    /// private key (PKCS #8, PKCS #1 or SEC 1).
    ///
    /// # Errors
    /// Which file is of no use, and why.
    pub fn parse(certificate_pem: &[u8], key_pem: &[u8]) -> Result<Self, Unusable> {
        let chain = certificates(certificate_pem).map_err(Unusable::Certificate)?;
        let expires = expires(&chain[0]).map_err(Unusable::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem)
            .map_err(|error| Unusable::Key(format!("holds no private key as PEM: {error}")))?;
        let builder = safe(ServerConfig::builder_with_provider(provider())).map_err(Unusable::Key)?;
        let mut config = builder.with_no_client_auth().with_single_cert(chain, key).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                Unusable::Key("is not the key of that certificate".to_owned())
            }
            Error::InvalidCertificate(why) => Unusable::Certificate(format!("holds no usable certificate: {why}")),
            other => Unusable::Key(format!("holds no usable key: {other}")),
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), expires })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn safe<S: ConfigSide>(
    builder: ConfigBuilder<S, rustls::WantsVersions>,
) -> Result<ConfigBuilder<S, WantsVerifier>, String> {
    builder.with_safe_default_protocol_versions().map_err(|error| format!("TLS can't be set up: {error}"))
}

/// One certificate or more.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|error| format!("is not PEM: {error}"))?;
    match certificates.is_empty() {
        true => Err("holds no certificate: give its PEM, from BEGIN CERTIFICATE on".to_owned()),
        false => Ok(certificates),
    }
}

fn roots(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let added = roots.add(certificate.clone());
        added.map_err(|error| format!("holds a certificate that is of no use: {error}"))?;
    }
    Ok(roots)
}

fn expires(certificate: &CertificateDer<'_>) -> Result<i64, String> {
    let certificate =
        Certificate::from_der(certificate).map_err(|error| format!("holds no usable certificate: {error}"))?;
    let end = certificate.tbs_certificate.validity.not_after.to_unix_duration().as_secs();
    Ok(i64::try_from(end).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use devcluster::pki::Authority;

    use super::*;

    #[test]
    fn what_is_handed_on_are_the_certificates_alone() {
        let (one, other) = (Authority::new("one").expect("made"), Authority::new("other").expect("made"));
        let file = format!("# ours\n{}{}{}", one.certificate_pem(), one.key_pem(), other.certificate_pem());
        let pem = Authorities::parse(file.as_bytes()).expect("two").pem();
        assert_eq!(pem, format!("{}{}", one.certificate_pem(), other.certificate_pem()).replace("\r\n", "\n"));
        for bad in ["", "nothing", &one.key_pem(), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(Authorities::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn of_a_pair_it_is_said_which_file_is_bad() {
        let authority = Authority::new("one").expect("made");
        let (pair, other) =
            (authority.server("api", &["api"]).expect("made"), authority.server("api", &["api"]).expect("made"));
        let parse = |certificate: &str, key: &str| Identity::parse(certificate.as_bytes(), key.as_bytes());
        // rcgen's certificates end in the year 4096.
        assert_eq!(parse(&pair.certificate_pem, &pair.key_pem).expect("a pair").expires, 67_090_118_400);
        let mismatch = parse(&pair.certificate_pem, &other.key_pem).expect_err("of another");
        assert_eq!(mismatch, Unusable::Key("is not the key of that certificate".to_owned()));
        for bad in ["", "nothing", &pair.key_pem, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let error = parse(bad, &pair.key_pem).expect_err("no certificate");
            assert!(matches!(error, Unusable::Certificate(_)), "{bad}: {error:?}");
        }
        for bad in
            ["", "nothing", &pair.certificate_pem, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
        {
            let error = parse(&pair.certificate_pem, bad).expect_err("no key");
            assert!(matches!(error, Unusable::Key(_)), "{bad}: {error:?}");
        }
    }
}
