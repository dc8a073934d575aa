//! A relay and an API with TLS: certificates and authorities are renewed, TLS is switched on, and
//! nothing that was counted is lost.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::serve::Listener;
use devcluster::pki::Authority;
use tenantry::tls::Identity;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    api::{Api, Say},
    ground::{DEAD, PENDING, Place, Relay, count},
};

/// Takes connections with the certificate of the day.
#[derive(Clone)]
struct Secured {
    listener: Arc<TcpListener>,
    acceptor: Arc<Mutex<TlsAcceptor>>,
    /// How many clients didn't trust it.
    refused: watch::Sender<u32>,
}

fn acceptor(authority: &Authority) -> TlsAcceptor {
    let pair = authority.server("api", &["127.0.0.1"]).expect("a certificate");
    let identity = Identity::parse(pair.certificate_pem.as_bytes(), pair.key_pem.as_bytes()).expect("a certificate");
    TlsAcceptor::from(identity.config)
}

impl Secured {
    async fn start(authority: &Authority) -> Self {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.expect("a port"));
        let acceptor = Arc::new(Mutex::new(acceptor(authority)));
        Self { listener, acceptor, refused: watch::Sender::new(0) }
    }

    fn renew(&self, authority: &Authority) {
        *self.acceptor.lock().unwrap_or_else(PoisonError::into_inner) = acceptor(authority);
    }

    fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.listener.local_addr().expect("an address"))
    }

    /// Waits until so many didn't trust it, or spoke no TLS.
    async fn refused(&self, times: u32) {
        self.refused.subscribe().wait_for(|refused| *refused >= times).await.expect("it lives");
    }
}

impl Listener for Secured {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, address) = self.listener.accept().await.expect("a connection");
            let acceptor = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match acceptor.accept(stream).await {
                Ok(stream) => return (stream, address),
                Err(_) => self.refused.send_modify(|refused| *refused += 1),
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Takes connections without TLS, and counts them.
#[derive(Clone)]
struct Unsecured {
    listener: Arc<TcpListener>,
    accepted: watch::Sender<u32>,
}

impl Unsecured {
    async fn start() -> Self {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.expect("a port"));
        Self { listener, accepted: watch::Sender::new(0) }
    }
}

impl Listener for Unsecured {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        let accepted = self.listener.accept().await.expect("a connection");
        self.accepted.send_modify(|accepted| *accepted += 1);
        accepted
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_authority_is_trusted_without_a_restart_and_nothing_is_lost_meanwhile() {
    let (old, new) = (Authority::new("old").expect("made"), Authority::new("new").expect("made"));
    let mut place = Place::new().await;
    let secured = Secured::start(&old).await;
    place.api = Api::serve(secured.url("https"), secured.clone());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.crt");
    let write = |text: &str| std::fs::write(&file, text).expect("a file");
    write(&old.certificate_pem());
    let relay = Relay::start(tenantry::relay::Options { api_ca: Some(file.clone()), ..place.options() }).await;
    let guest = place.database.tenant("acme").await;
    let client = place.database.client(&guest.login).await;
    count(&client, "users", 1).await;
    place.api.arrived(1).await;

    // A new connection, and a file of no use: what it held before is trusted further.
    write("nothing of use");
    place.api.script().next.push_back(Say::Cut);
    count(&client, "users", 1).await;
    place.api.arrived(2).await;

    // Each connection ends now, and the next one is with a certificate that isn't trusted.
    secured.renew(&new);
    place.api.script().always = Some(Say::Cut);
    count(&client, "users", 1).await;
    secured.refused(2).await;
    place.api.script().always = None;
    write(&new.certificate_pem());
    place.api.arrived(3).await;
    place.until("all is acknowledged", PENDING, 0).await;
    place.until("nothing is dead", DEAD, 0).await;
    place.agrees().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_tls_is_switched_on_or_off_events_wait() {
    let authority = Authority::new("ours").expect("made");
    let place = Place::new().await;
    let guest = place.database.tenant("acme").await;
    let client = place.database.client(&guest.login).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.crt");
    std::fs::write(&file, authority.certificate_pem()).expect("a file");
    let options = |api_url: String| tenantry::relay::Options { api_ca: Some(file.clone()), api_url, ..place.options() };

    // What the operator answers to plain HTTP where TLS is on already.
    place.api.script().always = Some(Say::Status(421, None));
    let early = Relay::start(options(place.api.url.clone())).await;
    count(&client, "users", 1).await;
    place.api.until("it tries again and again", |script| script.posts.len() >= 3).await;
    early.stop().await;
    place.api.script().always = None;
    place.until("it waits", PENDING, 1).await;
    place.until("nothing is dead", DEAD, 0).await;

    // TLS to who speaks none yet.
    let secured = Secured::start(&authority).await;
    let other = Api::serve(secured.url("http"), secured.clone());
    let plain = Relay::start(options(other.url.clone())).await;
    secured.refused(2).await;
    plain.stop().await;
    let unsecured = Unsecured::start().await;
    let other =
        Api::serve(format!("https://{}", unsecured.listener.local_addr().expect("an address")), unsecured.clone());
    let late = Relay::start(options(other.url.clone())).await;
    unsecured.accepted.subscribe().wait_for(|accepted| *accepted >= 2).await.expect("it lives");
    late.stop().await;
    count(&client, "users", 1).await;
    place.until("both wait", PENDING, 2).await;
    place.until("nothing is dead", DEAD, 0).await;

    let fitting = Relay::start(options(place.api.url.clone())).await;
    place.api.arrived(2).await;
    place.until("all is acknowledged", PENDING, 0).await;
    place.agrees().await;
    fitting.stop().await;
}
