//! The certificates of one ground: one authority, and what it signs.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::Error;

/// A certificate authority whose key lives in memory and, where the
/// controller-manager signs with it, in the folder of the ground.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its private key, both as PEM.
pub struct Certificate {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key (PKCS #8).
    pub key_pem: String,
}

impl Authority {
    /// A new authority of this name. Two of the same name have different keys,
    /// so neither accepts what the other signed.
    pub fn new(name: &str) -> Result<Authority, Error> {
        let mut params = parameters(name, None, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        Ok(Authority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// The authority's own certificate.
    pub fn certificate_pem(&self) -> String {
        self.issuer.pem()
    }

    /// The same as bytes.
    pub(crate) fn certificate_der(&self) -> Vec<u8> {
        self.issuer.der().to_vec()
    }

    /// The authority's private key.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A server's certificate for these names: DNS names or IP addresses.
    pub fn server(&self, common_name: &str, names: &[&str]) -> Result<Certificate, Error> {
        self.issue(parameters(common_name, None, names)?, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's certificate; Kubernetes takes the common name as the user and
    /// the organization as its group.
    pub fn client(&self, user: &str, group: Option<&str>) -> Result<Certificate, Error> {
        self.issue(parameters(user, group, &[])?, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Result<Certificate, Error> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        Ok(Certificate { certificate_pem: params.signed_by(&key, &self.issuer)?.pem(), key_pem: key.serialize_pem() })
    }
}

/// A key pair for ServiceAccount tokens (P-256): private and public key, as PEM.
pub(crate) fn signing_keys_pem() -> Result<(String, String), Error> {
    let key = KeyPair::generate()?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

fn parameters(common_name: &str, organization: Option<&str>, names: &[&str]) -> Result<CertificateParams, Error> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        subject.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name = subject;
    Ok(params)
}

/// Writes a file that only its owner can read, replacing an old one.
pub(crate) fn write_private(path: &Path, content: &str) -> Result<(), Error> {
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(content.as_bytes())).map_err(Error::file("write", path))
}
