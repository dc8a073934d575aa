//! The API's certificate: two files that somebody else renews, read again and again.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::{
    metering::counts::Counts,
    tls::{Identity, Unusable},
};

/// How often the files are looked at. Kubernetes takes a minute or so to bring a renewed Secret.
const LOOK: Duration = Duration::from_secs(5);

/// The files of the API's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What the files held.
struct Read {
    identity: Identity,
    /// SHA-256 of both: the key is kept nowhere else than in the identity.
    digest: [u8; 32],
}

/// TLS for the API, by files that are read again when they change.
pub struct Tls {
    files: TlsFiles,
    read: RwLock<Read>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with which of them, and the flag that names it.
    pub fn load(files: TlsFiles) -> anyhow::Result<Self> {
        let read = read(&files, &contents(&files).map_err(anyhow::Error::msg)?).map_err(anyhow::Error::msg)?;
        Ok(Self { files, read: RwLock::new(read) })
    }

    /// What takes a connection now.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let read = self.read.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&read.identity.config))
    }

    /// Looks at the files again and again; never ends. What is of no use is said once, and the last
    /// certificate that was is served further.
    pub(super) async fn keep(&self, counts: &Counts) {
        self.tell(counts);
        let mut complaint = None;
        loop {
            tokio::time::sleep(LOOK).await;
            match self.look() {
                Ok(true) => {
                    complaint = None;
                    self.tell(counts);
                }
                Ok(false) => complaint = None,
                Err(error) => {
                    counts.certificate_failed();
                    if complaint.as_ref() != Some(&error) {
                        warn!(error, "the API's new certificate is of no use: the last one is served further");
                        complaint = Some(error);
                    }
                }
            }
        }
    }

    /// Reads the files again; whether they hold something new.
    fn look(&self) -> Result<bool, String> {
        let contents = contents(&self.files)?;
        if digest(&contents) == self.read.read().unwrap_or_else(PoisonError::into_inner).digest {
            return Ok(false);
        }
        let read = read(&self.files, &contents)?;
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(true)
    }

    /// Says which certificate is served from now on.
    fn tell(&self, counts: &Counts) {
        let expires = self.read.read().unwrap_or_else(PoisonError::into_inner).identity.expires;
        counts.certificate_expires(expires);
        let until = Timestamp::from_second(expires).map_or_else(|_| expires.to_string(), |until| until.to_string());
        match expires < Timestamp::now().as_second() {
            true => warn!(until, "the API's certificate has expired: nobody trusts it until it is renewed"),
            false => info!(until, "the API serves TLS"),
        }
    }
}

/// What the two files hold. They are small, and on the node's own disk or in its memory.
fn contents(files: &TlsFiles) -> Result<(Vec<u8>, Vec<u8>), String> {
    let read = |flag: &str, path: &Path| {
        std::fs::read(path).map_err(|error| format!("{flag} {}: can't be read: {error}", path.display()))
    };
    Ok((read("--api-tls-cert", &files.certificate)?, read("--api-tls-key", &files.key)?))
}

fn digest((certificate, key): &(Vec<u8>, Vec<u8>)) -> [u8; 32] {
    Sha256::new()
        .chain_update(certificate.len().to_be_bytes())
        .chain_update(certificate)
        .chain_update(key)
        .finalize()
        .into()
}

fn read(files: &TlsFiles, contents: &(Vec<u8>, Vec<u8>)) -> Result<Read, String> {
    let identity = Identity::parse(&contents.0, &contents.1).map_err(|unusable| match unusable {
        Unusable::Certificate(why) => format!("--api-tls-cert {} {why}", files.certificate.display()),
        Unusable::Key(why) => {
            format!("--api-tls-key {} {why} (--api-tls-cert {})", files.key.display(), files.certificate.display())
        }
    })?;
    Ok(Read { identity, digest: digest(contents) })
}
