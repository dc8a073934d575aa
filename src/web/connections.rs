//! Connections of a listener that many may reach: no more than there is room for, and none that
//! says nothing; with TLS or without.

use std::{io, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::{
    rt::{Read, Write},
    server::conn::http1,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::{debug, warn};

use super::tls::Tls;

/// How many connections are open at most; others wait to be accepted.
const MOST: usize = 1_024;

/// How long a client may take to say what it wants, also on a connection that it keeps.
const HEADERS: Duration = Duration::from_secs(30);

/// How long a client may take for the handshake of TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long nothing is accepted after that failed, as where the process has too many files open.
const PAUSE: Duration = Duration::from_millis(200);

/// What is served where.
#[derive(Clone)]
pub(super) struct Service {
    /// What is answered.
    pub(super) router: Router,
    /// TLS, where it is on.
    pub(super) tls: Option<Arc<Tls>>,
    /// What is answered to who comes without TLS where it is on.
    pub(super) without_tls: Router,
}

/// Serves until `shutdown` is ready, and then until what is under way is answered.
pub(super) async fn serve(listener: TcpListener, service: Service, shutdown: impl Future<Output = ()>) {
    let room = Arc::new(Semaphore::new(MOST));
    let graceful = GracefulShutdown::new();
    let (ending, _) = watch::channel(());
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = async {
            // An error means that it was closed, which nobody does.
            let place = Arc::clone(&room).acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut shutdown => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a connection to the API can't be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (service, watcher, ending) = (service.clone(), graceful.watcher(), ending.subscribe());
        // A handshake is the connection's own: it keeps nobody from being accepted.
        tokio::spawn(async move {
            if let Err(error) = serve_one(stream, service, watcher, ending).await {
                debug!(error, "a connection to the API ended");
            }
            drop(place);
        });
    }
    drop((listener, ending));
    graceful.shutdown().await;
}

/// Serves one connection to its end. A handshake ends with the server, since nothing was asked yet.
async fn serve_one(
    stream: TcpStream,
    service: Service,
    watcher: Watcher,
    mut ending: watch::Receiver<()>,
) -> Result<(), String> {
    let Some(tls) = &service.tls else { return answer(TokioIo::new(stream), service.router, watcher).await };
    let opened = tokio::select! {
        opened = tokio::time::timeout(HANDSHAKE, open(stream, tls.acceptor())) => opened,
        _ = ending.changed() => return Ok(()),
    };
    match opened {
        Ok(Ok(Opened::Tls(stream))) => answer(TokioIo::new(stream), service.router, watcher).await,
        Ok(Ok(Opened::Plain(stream))) => answer(TokioIo::new(stream), service.without_tls, watcher).await,
        Ok(Err(error)) => Err(format!("the handshake failed: {error}")),
        Err(_) => Err(format!("no handshake within {HANDSHAKE:?}")),
    }
}

async fn answer(stream: impl Read + Write + Unpin + 'static, router: Router, watcher: Watcher) -> Result<(), String> {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .serve_connection(stream, TowerToHyperService::new(router));
    watcher.watch(connection).await.map_err(|error| error.to_string())
}

/// How somebody came.
enum Opened {
    Tls(Box<TlsStream<TcpStream>>),
    Plain(TcpStream),
}

/// Opens a connection. Whoever speaks plain HTTP begins with a method's capital letter, and a
/// handshake with the byte 22: he is told, rather than left with an alert that he can't read.
async fn open(stream: TcpStream, acceptor: TlsAcceptor) -> io::Result<Opened> {
    let mut first = [0];
    let seen = stream.peek(&mut first).await?;
    if seen == 1 && first[0].is_ascii_uppercase() {
        return Ok(Opened::Plain(stream));
    }
    Ok(Opened::Tls(Box::new(acceptor.accept(stream).await?)))
}
