//! Hosts that are nobody's, and hosts that are no hosts.

use std::os::unix::fs::symlink;

use crm::Limits;

use crate::ground::Crm;
use crate::http::{get, raw};

/// A folder in which each look at any host fails with ELOOP.
fn trap() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    symlink("hosts", dir.path().join("hosts")).expect("a link");
    dir
}

#[tokio::test]
async fn a_host_that_is_no_dns_name_never_reaches_the_file_system() {
    let dir = trap();
    let crm = Crm::serve(dir.path(), Limits::default()).await;
    let sprung = get(crm.address, "acme.example.com", "/users").await;
    assert_eq!(sprung.status, 503, "the trap works: a good host springs it");

    for host in [
        "",
        ".",
        "..",
        "../tenants/acme",
        "..%2ftenants",
        "a/../b",
        "/etc",
        "a\\b",
        "[::1]",
        "[::1]:8080",
        "a b",
        "user@acme",
        "a..b",
        "%61cme.example.com",
        "acme.example.com:x",
        "acme.example.com/..",
        "*.example.com",
    ] {
        for path in ["/", "/users", "/users/1"] {
            let answer = get(crm.address, host, path).await;
            assert_eq!(answer.status, 400, "{host:?} {path}: {}", answer.body);
        }
    }
    for (request, what) in [
        ("GET /users HTTP/1.1\r\nConnection: close\r\n\r\n", "no Host"),
        ("GET /users HTTP/1.1\r\nHost: a.example.com\r\nHost: b.example.com\r\nConnection: close\r\n\r\n", "two Hosts"),
        ("GET http://b.example.com/users HTTP/1.1\r\nHost: a.example.com\r\nConnection: close\r\n\r\n", "two opinions"),
        ("GET /users HTTP/1.1\r\nHost: a\u{e9}.example.com\r\nConnection: close\r\n\r\n", "no ASCII"),
    ] {
        assert_eq!(raw(crm.address, request.as_bytes()).await.status, 400, "{what}");
    }
}

#[tokio::test]
async fn an_unknown_host_is_told_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let crm = Crm::serve(dir.path(), Limits::default()).await;
    let answer = get(crm.address, "Nobody.example.com:80", "/users").await.expect(404);
    assert_eq!(answer["error"], "unknown_host");
    assert_eq!(answer["message"], "no customer is reached by nobody.example.com");
}

#[tokio::test]
async fn the_process_is_healthy_whoever_asks() {
    let dir = trap();
    let crm = Crm::serve(dir.path(), Limits::default()).await;
    assert_eq!(get(crm.address, "10.0.0.7:8080", "/healthz").await.status, 200);
    assert_eq!(get(crm.address, "a.example.com", "/nothing/here").await.expect(404)["error"], "not_found");
}
