//! Whom the relay trusts as the operator's API: the certificates of a file, which somebody renews, or
//! those of the system.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower::{BoxError, Service, ServiceExt as _};

use super::Error;
use crate::tls::{self, Authorities};

/// Who is trusted. The file is read at each new connection, so that a renewed one needs no restart;
/// connections that are open stay.
pub(super) struct Trust {
    file: Option<PathBuf>,
    known: Mutex<Known>,
}

/// What was of use last.
struct Known {
    /// What the file held.
    pem: Vec<u8>,
    config: Arc<ClientConfig>,
    /// What is wrong with the file since, where that was said.
    complaint: Option<String>,
}

impl Trust {
    /// Trusts the certificates of the file, or else, for https alone, those of the system.
    pub(super) fn new(file: Option<PathBuf>, is_https: bool) -> Result<Self, Error> {
        let (pem, config) = match &file {
            Some(path) => {
                let wrong = |error: String| Error::Ca(format!("--api-ca {} {error}", path.display()));
                let pem = std::fs::read(path).map_err(|error| wrong(format!("can't be read: {error}")))?;
                let config = Authorities::parse(&pem).and_then(|authorities| authorities.client()).map_err(wrong)?;
                (pem, config)
            }
            None => (Vec::new(), system(is_https)?),
        };
        let known = Known { pem, config: Arc::new(config), complaint: None };
        Ok(Self { file, known: Mutex::new(known) })
    }

    /// Who is trusted now. Where the file became of no use, it is who was before.
    async fn config(&self) -> Arc<ClientConfig> {
        let Some(path) = &self.file else { return Arc::clone(&self.known().config) };
        let pem = tokio::fs::read(path).await.map_err(|error| format!("can't be read: {error}"));
        let mut known = self.known();
        let renewed = pem.and_then(|pem| match pem == known.pem {
            true => Ok(None),
            false => Ok(Some((Arc::new(Authorities::parse(&pem)?.client()?), pem))),
        });
        match renewed {
            Ok(renewed) => {
                known.complaint = None;
                if let Some((config, pem)) = renewed {
                    tracing::info!(file = %path.display(), "the API's CA was renewed");
                    (known.config, known.pem) = (config, pem);
                }
            }
            Err(error) if known.complaint.as_ref() != Some(&error) => {
                tracing::warn!("--api-ca {} {error}: what it held before is trusted further", path.display());
                known.complaint = Some(error);
            }
            Err(_) => {}
        }
        Arc::clone(&known.config)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn system(is_https: bool) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    if is_https {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(Error::Ca("the system trusts no certificate: name the API's CA with --api-ca".to_owned()));
        }
    }
    tls::client(roots).map_err(Error::Ca)
}

/// Opens connections, with TLS where the URL says https.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) http: HttpConnector,
    pub(super) trust: Arc<Trust>,
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let Self { http, trust } = self.clone();
        Box::pin(async move {
            let config = trust.config().await;
            HttpsConnector::from((http, config)).oneshot(url).await
        })
    }
}
