//! A door in front of the server that falls shut after a number of messages from the client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

pub(crate) struct Proxy {
    port: u16,
    left: Arc<AtomicUsize>,
    deliver: Arc<AtomicBool>,
    draining: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) async fn start(host: String, port: u16) -> Self {
        Self::start_at("127.0.0.1", host, port).await
    }

    pub(crate) async fn start_at(address: &str, host: String, port: u16) -> Self {
        let listener = TcpListener::bind((address, 0)).await.expect("a free port");
        let own = listener.local_addr().expect("bound").port();
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        let deliver = Arc::new(AtomicBool::new(false));
        let draining = Arc::new(AtomicUsize::new(0));
        let shared = (left.clone(), deliver.clone(), draining.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (host, (left, deliver, draining)) = (host.clone(), shared.clone());
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect((host.as_str(), port)).await {
                        relay(client, server, &left, &deliver, &draining).await;
                    }
                });
            }
        });
        Self { port: own, left, deliver, draining }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Lets so many packets of clients through, then closes every connection that sends one; with
    /// `deliver` the server gets the first of these nevertheless, and nobody its answer.
    pub(crate) fn cut_after(&self, packets: usize, deliver: bool) {
        self.deliver.store(deliver, Ordering::SeqCst);
        self.left.store(packets, Ordering::SeqCst);
    }

    /// Whether the server has ended every session that was cut: what it got of them is done.
    pub(crate) fn is_drained(&self) -> bool {
        self.draining.load(Ordering::SeqCst) == 0
    }
}

async fn relay(client: TcpStream, server: TcpStream, left: &AtomicUsize, deliver: &AtomicBool, draining: &AtomicUsize) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (cut, was_cut) = oneshot::channel::<()>();
    let back = tokio::spawn(async move {
        tokio::select! {
            _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
            _ = was_cut => {}
        }
        drop(to_client);
        tokio::io::copy(&mut from_server, &mut tokio::io::sink()).await.ok();
    });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
        let through = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            usize::MAX => Some(usize::MAX),
            left => left.checked_sub(1),
        });
        if through.is_err() {
            draining.fetch_add(1, Ordering::SeqCst);
            if deliver.swap(false, Ordering::SeqCst) {
                to_server.write_all(&buffer[..length]).await.ok();
            }
            // The server reads to the end of what it got, and ends the session then.
            to_server.shutdown().await.ok();
            cut.send(()).ok();
            back.await.ok();
            draining.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        if to_server.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    back.abort();
}
