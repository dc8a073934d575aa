//! The API over TLS, as a client sees it that verifies: with the right authority and with others,
//! while certificates are renewed, and beside who says nothing.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use devcluster::pki::{Authority, Certificate};
use rustls::pki_types::ServerName;
use serde_json::json;
use tenantry::{
    tls::Authorities,
    web::{Tls, TlsFiles},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::ground::{BATCH, Ground, Reply, counted, eventually, relay};

/// A folder as the kubelet mounts a Secret: files are links through a link, which is swapped.
struct Mounted {
    folder: tempfile::TempDir,
    version: u32,
}

impl Mounted {
    fn new(pair: &Certificate) -> Self {
        let mut mounted = Self { folder: tempfile::tempdir().expect("a folder"), version: 0 };
        mounted.renew(&pair.certificate_pem, &pair.key_pem);
        for name in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(name), mounted.path(name)).expect("a link");
        }
        mounted
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn renew(&mut self, certificate: &str, key: &str) {
        self.version += 1;
        let version = format!("..{}", self.version);
        fs::create_dir(self.path(&version)).expect("a folder");
        fs::write(self.path(&version).join("tls.crt"), certificate).expect("a file");
        fs::write(self.path(&version).join("tls.key"), key).expect("a file");
        symlink(&version, self.path("..next")).expect("a link");
        fs::rename(self.path("..next"), self.path("..data")).expect("swapped");
    }

    fn files(&self) -> TlsFiles {
        TlsFiles { certificate: self.path("tls.crt"), key: self.path("tls.key") }
    }

    async fn serve(&self) -> Ground {
        Ground::secured(Tls::load(self.files()).expect("a certificate")).await
    }
}

fn pair(authority: &Authority) -> Certificate {
    authority.server("tenantry", &["tenantry.tenantry-system.svc"]).expect("a certificate")
}

/// Connects as somebody who trusts this authority and expects this name.
async fn connect_to(ground: &Ground, authority: &Authority, name: &'static str) -> io::Result<TlsStream<TcpStream>> {
    let trusted = Authorities::parse(authority.certificate_pem().as_bytes()).expect("an authority");
    let connector = TlsConnector::from(Arc::new(trusted.client().expect("TLS")));
    let stream = TcpStream::connect(ground.address).await.expect("a connection");
    connector.connect(ServerName::try_from(name).expect("a name"), stream).await
}

async fn connect(ground: &Ground, authority: &Authority) -> io::Result<TlsStream<TcpStream>> {
    connect_to(ground, authority, "tenantry.tenantry-system.svc").await
}

const DOCUMENT: &[u8] = b"GET /v1/openapi.json HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n";

async fn ask(mut stream: TlsStream<TcpStream>, request: &[u8]) -> Reply {
    stream.write_all(request).await.expect("written");
    Reply::read(&mut stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_trusts_the_authority_is_served_and_others_send_nothing() {
    let authority = Authority::new("ours").expect("an authority");
    let ground = Mounted::new(&pair(&authority)).serve().await;
    let (token, tenant) = (relay("main").await, ground.tenant(&["main"], None).await);
    let body = json!([counted("main", &tenant, 1, 1, 1)]).to_string();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Type: {BATCH}\r\n\
         Authorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let stream = connect(&ground, &authority).await.expect("trusted");
    ask(stream, head.as_bytes()).await.took(200, 1, 0, 0);
    assert!(ground.metric("api_certificate_expiry_timestamp_seconds") > 4e9, "rcgen's end in a far year");

    let namesake = Authority::new("ours").expect("an authority");
    let error = connect(&ground, &namesake).await.expect_err("another's").to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
    let error = connect_to(&ground, &authority, "elsewhere").await.expect_err("another name").to_string();
    assert!(error.contains("not valid for name"), "{error}");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_with_the_other_scheme_is_told_and_never_refused_for_good() {
    let authority = Authority::new("ours").expect("an authority");
    let ground = Mounted::new(&pair(&authority)).serve().await;
    let token = relay("main").await;
    let reply = ground.post(Some(&token), BATCH, &[], "[]").await;
    // A relay gives up what is answered 400, 413 or 422, and keeps the rest.
    reply.problem(421, "PlainHttp");
    assert!(reply.body.contains("https://"), "{reply:?}");
    ground.usage(None, "acme").await.problem(421, "PlainHttp");
    assert_eq!(ground.metric("ingest_requests_total{code=\"421\"}"), 2.0);
    ground.stop().await;

    let plain = Ground::new().await;
    connect(&plain, &authority).await.expect_err("it speaks no TLS");
    assert_eq!(plain.metric("api_certificate_expiry_timestamp_seconds"), 0.0);
    plain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_never() {
    let (old, new) = (Authority::new("old").expect("made"), Authority::new("new").expect("made"));
    let (first, second) = (pair(&old), pair(&new));
    let mut mounted = Mounted::new(&first);
    let ground = mounted.serve().await;
    let mut open = connect(&ground, &old).await.expect("trusted");
    // The key of another: neither half is served.
    mounted.renew(&second.certificate_pem, &first.key_pem);
    let failures = || ground.metric("api_certificate_failures_total");
    eventually(async || (failures() > 0.0).then_some(())).await.expect("it is counted");
    ask(connect(&ground, &old).await.expect("still served"), DOCUMENT).await;
    connect(&ground, &new).await.expect_err("not served");

    mounted.renew(&second.certificate_pem, &second.key_pem);
    let renewed = eventually(async || connect(&ground, &new).await.ok()).await.expect("served by and by");
    assert_eq!(ask(renewed, DOCUMENT).await.status, 200);
    connect(&ground, &old).await.expect_err("the old one is served no longer");
    // Who is connected stays so.
    open.write_all(DOCUMENT).await.expect("written");
    assert_eq!(Reply::read(&mut open).await.status, 200);

    fs::remove_file(mounted.path("..data")).expect("removed");
    let before = failures();
    eventually(async || (failures() > before).then_some(())).await.expect("it is counted");
    ask(connect(&ground, &new).await.expect("still served"), DOCUMENT).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_ends_a_handshake_holds_nobody_up_and_is_sent_away() {
    let authority = Authority::new("ours").expect("an authority");
    let ground = Mounted::new(&pair(&authority)).serve().await;
    let mut slow = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(ground.address).await.expect("a connection");
        // Half of them begin one.
        if number % 2 == 0 {
            stream.write_all(&[22, 3, 1]).await.expect("written");
        }
        slow.push(stream);
    }
    let stream = connect(&ground, &authority).await.expect("served");
    assert_eq!(ask(stream, DOCUMENT).await.status, 200);
    for mut stream in slow.drain(..20) {
        // The end, or that it was cut: no answer in any case.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "{rest:?}");
    }
    // Nor does it keep the API from ending.
    let late = TcpStream::connect(ground.address).await.expect("a connection");
    ground.stop().await;
    drop(late);
}

#[test]
fn files_of_no_use_are_refused_with_the_flag_that_names_them() {
    let authority = Authority::new("ours").expect("an authority");
    let (one, other) = (pair(&authority), pair(&authority));
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("a file");
        path
    };
    let (certificate, key) = (file("tls.crt", &one.certificate_pem), file("tls.key", &one.key_pem));
    let (foreign, garbage) = (file("other.key", &other.key_pem), file("garbage", "nothing of use\n"));
    let missing = folder.path().join("missing");
    let refused = |certificate: &Path, key: &Path| {
        let files = TlsFiles { certificate: certificate.to_owned(), key: key.to_owned() };
        Tls::load(files).map(drop).expect_err("of no use").to_string()
    };
    for (certificate, key, says) in [
        (&missing, &key, format!("--api-tls-cert {}: can't be read", missing.display())),
        (&garbage, &key, format!("--api-tls-cert {} holds no certificate", garbage.display())),
        (&key, &key, format!("--api-tls-cert {} holds no certificate", key.display())),
        (&certificate, &missing, format!("--api-tls-key {}: can't be read", missing.display())),
        (&certificate, &garbage, format!("--api-tls-key {} holds no private key", garbage.display())),
        (&certificate, &foreign, format!("--api-tls-key {} is not the key of that certificate", foreign.display())),
    ] {
        let error = refused(certificate, key);
        assert!(error.starts_with(&says), "{error}");
    }

    let ran = |flags: &[&Path]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenantry"));
        command.args(["operator", "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0", "--ledger-url"]);
        command.arg("postgres://nobody:none@127.0.0.1:9/ledger?sslmode=disable").args(flags);
        let output = command.env("KUBECONFIG", "/nonexistent").output().expect("the program starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let flag = Path::new;
    let (done, text) = ran(&[flag("--api-tls-cert"), &certificate]);
    assert!(!done && text.contains("--api-tls-key <FILE>"), "{text}");
    let (done, text) = ran(&[flag("--api-tls-key"), &key]);
    assert!(!done && text.contains("--api-tls-cert <FILE>"), "{text}");
    let (done, text) = ran(&[flag("--api-tls-cert"), &certificate, flag("--api-tls-key"), &foreign]);
    assert!(!done && text.contains("is not the key of that certificate"), "{text}");
}
