//! The operator's container, run on this machine as the chart renders it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use devcluster::pki::Authority;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    chart::{all_settings, container, objects, settings},
    ground::{ground, output},
};

/// Where the Secret of the API's certificate is mounted.
const CERTIFICATE: &str = "/etc/tenantry/api";

/// A folder with what such a Secret holds.
fn certificate() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let authority = Authority::new("tests").expect("an authority");
    let pair = authority.server("tenantry", &["tenantry.tenantry-system.svc"]).expect("a certificate");
    for (name, content) in [
        ("tls.crt", pair.certificate_pem.as_str()),
        ("tls.key", &pair.key_pem),
        ("ca.crt", &authority.certificate_pem()),
    ] {
        fs::write(folder.path().join(name), content).expect("a file");
    }
    folder
}

/// What the container runs, with the program of this build for the image's, and a folder for what is
/// mounted.
fn command(container: &Value, certificate: &Path) -> Command {
    assert!(container.get("command").is_none(), "the image's entry point is the program itself");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenantry"));
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    command.args(container["args"].as_array().expect("arguments").iter().map(|it| it.as_str().expect("a text")));
    for variable in container["env"].as_array().expect("variables") {
        let value = match variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str) {
            None if variable.pointer("/valueFrom/secretKeyRef/key").is_some_and(|key| key == "url") => {
                "postgres://tenantry:secret@127.0.0.1:1/ledger?sslmode=disable"
            }
            None => variable["value"].as_str().expect("a value"),
            Some("metadata.namespace") => "tenantry-system",
            Some("metadata.name") => "tenantry-5d4f8-abcde",
            Some(other) => panic!("what is {other}?"),
        };
        let value = value.replace(CERTIFICATE, &certificate.to_string_lossy());
        command.env(variable["name"].as_str().expect("a name"), value);
    }
    command
}

/// With any settings the program understands its command line and variables: it comes as far as
/// to look for a cluster.
#[test]
fn the_program_understands_what_the_chart_tells_it() {
    let certificate = certificate();
    for name in all_settings() {
        let mut command = command(container(&objects(&settings(&name))), certificate.path());
        let ended = command
            .env("TENANTRY_LISTEN", "127.0.0.1:0")
            .env("TENANTRY_API_LISTEN", "127.0.0.1:0")
            .env("KUBECONFIG", "/nowhere")
            .output();
        let errors = String::from_utf8_lossy(&ended.expect("the program").stderr).into_owned();
        assert!(errors.contains("find a cluster"), "{name}: {errors}");
    }
}

/// A running container; ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The status that a probe gets, and what is said beside.
fn probe(container: &Value, which: &str, port: u16) -> Option<(u16, String)> {
    let probe = &container[which]["httpGet"];
    assert_eq!(probe["port"], container["ports"][0]["name"], "{which}");
    let path = probe["path"].as_str().expect("a path");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// The files that a process has open for writing.
fn written(pid: u32) -> Vec<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").map(|entry| entry.expect("an entry"));
    open.filter_map(|entry| {
        let file = fs::read_link(entry.path()).ok()?.to_str()?.to_owned();
        let number = entry.file_name().into_string().ok()?;
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim().to_owned();
        let is_writable = u32::from_str_radix(&flags, 8).expect("a number") & 0o3 != 0;
        (is_writable && file.starts_with('/') && !file.starts_with("/dev/")).then_some(file)
    })
    .collect()
}

/// It starts with the rights that the chart gives it, both probes succeed, and it writes no file.
/// Somebody else leads, so that it changes nothing.
#[tokio::test]
async fn its_probes_succeed_where_the_chart_says() {
    let lease = "{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: tenantry, namespace: tenantry-system}, \
                 spec: {holderIdentity: somebody, leaseDurationSeconds: 86400, leaseTransitions: 1}}";
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), lease).expect("a written file");
    output(ground().kubectl().args(["apply", "--server-side", "-f"]).arg(file.path()));

    let account = ground().service_account_kubeconfig("tenantry-system", "tenantry").await.expect("a kubeconfig");
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port();
    let objects = objects("");
    let container = container(&objects);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    let certificate = certificate();
    let mut command = command(container, certificate.path());
    command.env("KUBECONFIG", account).env("TENANTRY_LISTEN", format!("127.0.0.1:{port}")).stderr(Stdio::null());
    let mut running = Running(command.spawn().expect("the program"));
    let ready = loop {
        let ended = running.0.try_wait().expect("a child");
        assert!(ended.is_none(), "it ended by itself: {ended:?}");
        match probe(container, "readinessProbe", port) {
            Some((200, body)) => break body,
            _ => tokio::task::yield_now().await,
        }
    };
    assert!(ready.contains("standing by"), "{ready}");
    assert_eq!(probe(container, "livenessProbe", port).map(|(status, _)| status), Some(200));
    // Those that this process has open were handed down.
    let handed_down = written(std::process::id());
    let written: Vec<_> = written(running.0.id()).into_iter().filter(|file| !handed_down.contains(file)).collect();
    assert_eq!(written, Vec::<String>::new());
}
