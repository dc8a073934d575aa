//! Whom relays are to trust as the operator's API: a file that somebody renews, read again and again.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use kube::ResourceExt as _;
use tracing::{info, warn};

use super::world::World;
use crate::tls::Authorities;

/// How often the file is looked at. Kubernetes takes a minute or so to bring a renewed Secret.
const LOOK: Duration = Duration::from_secs(5);

/// The certificates that the API is signed by.
pub(super) struct ApiCa {
    path: PathBuf,
    pem: RwLock<Arc<str>>,
}

impl ApiCa {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it, and the flag that names it.
    pub(super) fn load(path: PathBuf) -> anyhow::Result<Self> {
        let pem = RwLock::new(read(&path).map_err(anyhow::Error::msg)?);
        Ok(Self { path, pem })
    }

    /// The certificates as PEM, and nothing else that the file may have.
    pub(super) fn pem(&self) -> Arc<str> {
        Arc::clone(&self.pem.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the file again; whether it holds others.
    fn look(&self) -> Result<bool, String> {
        let pem = read(&self.path)?;
        if pem == self.pem() {
            return Ok(false);
        }
        *self.pem.write().unwrap_or_else(PoisonError::into_inner) = pem;
        Ok(true)
    }
}

/// Looks at the file again and again, and hands others on to all relays; never ends. What is of no
/// use is said once, and relays keep what they have.
pub(super) async fn keep(world: Arc<World>) {
    let Some(api_ca) = &world.api_ca else { return };
    let mut complaint = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let looked = api_ca.look();
        if looked == Ok(true) {
            info!("the API's CA was renewed: relays are told");
            for server in world.stores.servers.state() {
                world.queues.servers.push(&server.name_any());
            }
        }
        let new = looked.err();
        if let Some(error) = new.as_ref().filter(|_| new != complaint) {
            warn!(error, "the API's new CA is of no use: relays trust the last one further");
        }
        complaint = new;
    }
}

fn read(path: &Path) -> Result<Arc<str>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("--api-ca {} can't be read: {error}", path.display()))?;
    let authorities = Authorities::parse(&pem).map_err(|error| format!("--api-ca {} {error}", path.display()))?;
    Ok(authorities.pem().into())
}
