//! Connections of a listener that many may reach: no more than there is room for, and none that
//! says nothing.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tracing::{debug, warn};

/// How many connections are open at most; others wait to be accepted.
const MOST: usize = 1_024;

/// How long a client may take to say what it wants, also on a connection that it keeps.
const HEADERS: Duration = Duration::from_secs(30);

/// How long nothing is accepted after that failed, as where the process has too many files open.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves until `shutdown` is ready, and then until what is under way is answered.
pub(super) async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    let room = Arc::new(Semaphore::new(MOST));
    let graceful = GracefulShutdown::new();
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
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection to the API ended");
            }
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}
