//! The program `devcluster`: what it prints, how it ends, what it refuses.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

fn devcluster() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_devcluster"));
    command.env_remove("DEVCLUSTER_BIN").env_remove("DEVCLUSTER_KUBECONFIG");
    command
}

fn up(dir: &Path) -> Command {
    let mut command = devcluster();
    command.args(["up", "--dir"]).arg(dir);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fails with a message that holds all of this, and leaves no process.
fn refuses(command: &mut Command, expected: &[&str]) -> String {
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert!(!output.status.success(), "{text}");
    for part in expected {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// A running `devcluster up`, killed on drop.
struct Running {
    child: Child,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut running = Running { child };
        let (tell, told) = mpsc::channel();
        let stdout = running.child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            for line in lines {
                if line == "ready" {
                    // The test may have ended.
                    let _ = tell.send(());
                }
            }
        });
        // The channel closes when the program ends without that line.
        if told.recv_timeout(Duration::from_secs(900)).is_err() {
            panic!("it was never ready: {}", running.end("-KILL").1);
        }
        running
    }

    /// The processes below it.
    fn tree(&self) -> Vec<u32> {
        common::tree(&[self.child.id()])
    }

    /// Sends a signal, waits for the end; whether it was a success, and what was said.
    fn end(&mut self, signal: &str) -> (bool, String) {
        let pid = self.child.id().to_string();
        Command::new("kill").args([signal, &pid]).status().unwrap();
        self.wait()
    }

    fn wait(&mut self) -> (bool, String) {
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut text).unwrap();
        }
        (self.child.wait().unwrap().success(), text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a ground's folder");
    (parent, dir)
}

/// What a user's shell gets from DIR/env.
fn in_shell(dir: &Path, script: &str) -> String {
    let output =
        Command::new("sh").args(["-ec", &format!("set -a; . \"$0/env\"; {script}")]).arg(dir).output().unwrap();
    assert!(output.status.success(), "{script}: {}", stderr(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn up_is_usable_from_a_shell_refuses_a_second_and_ends_by_down() {
    let (_parent, dir) = folder();
    let mut running = Running::start(up(&dir).args(["--nodes", "1", "--audit"]));
    let pids = running.tree();
    assert!(pids.len() > 6, "{pids:?}");

    assert_eq!(in_shell(&dir, "\"$KUBECTL\" get nodes -o name"), "node/node-0");
    assert_eq!(in_shell(&dir, "\"$HELM\" list -q"), "");
    let sql = "select current_user || ' ' || ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let admin = in_shell(&dir, &format!("psql -XAtc \"{sql}\" \"$DATABASE_ADMIN_URL\""));
    assert_eq!(admin, "tenantry_admin true");
    let superuser = in_shell(&dir, "psql -XAtc 'select current_user' \"$DATABASE_SUPERUSER_URL\"");
    assert_eq!(superuser, "postgres");
    for name in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok", "postgres"] {
        assert!(dir.join(format!("log/{name}.log")).is_file(), "{name}");
    }
    assert!(std::fs::metadata(dir.join("audit.log")).unwrap().len() > 0);

    refuses(&mut up(&dir), &["is in use", &running.child.id().to_string(), "down --dir"]);

    let output = devcluster().args(["down", "--dir"]).arg(&dir).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let (success, text) = running.wait();
    assert!(success, "{text}");
    assert!(pids.iter().all(|pid| !common::alive(*pid)));
    assert!(!dir.join("kubeconfig").exists(), "no credentials stay");
    assert!(dir.join("log/etcd.log").exists() && dir.join("audit.log").exists());
    refuses(devcluster().args(["down", "--dir"]).arg(&dir), &["no devcluster runs in"]);
}

#[test]
fn a_part_that_dies_ends_all_and_is_named() {
    let (_parent, dir) = folder();
    let mut running = Running::start(up(&dir).args(["--api-only", "--no-gateway-api"]));
    let pids = running.tree();
    let etcd = pids.iter().find(|pid| {
        let name = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&name).contains("/etcd\0")
    });
    let etcd = etcd.expect("etcd runs").to_string();
    Command::new("kill").args(["-KILL", &etcd]).status().unwrap();
    let (success, text) = running.wait();
    assert!(!success);
    assert!(text.contains("etcd ended (signal 9)"), "{text}");
    common::wait_until_gone(&pids);
}

#[test]
fn a_signal_ends_it_in_order_also_while_it_starts() {
    let (_parent, dir) = folder();
    let mut running = Running::start(up(&dir).args(["--api-only", "--no-gateway-api"]));
    let pids = running.tree();
    let (success, text) = running.end("-INT");
    assert!(success, "{text}");
    assert!(pids.iter().all(|pid| !common::alive(*pid)));

    let mut child = up(&dir).stdout(Stdio::piped()).spawn().unwrap();
    // As soon as the first programs run.
    let mut below = Vec::new();
    while below.len() < 3 {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        below = common::tree(&[child.id()]);
    }
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!said.contains("ready"), "{said}");
    common::wait_until_gone(&below);
    assert!(!dir.join("kubeconfig").exists() && !dir.join("postgres").exists());
}

#[test]
fn what_it_cannot_use_is_refused_with_the_way_out() {
    // A port.
    let (_parent, dir) = folder();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for flag in ["--api-port", "--postgres-port"] {
        refuses(up(&dir).args([flag, &port]), &[&port, "is taken", "choose another port"]);
    }
    // Programs.
    let empty = tempfile::tempdir().unwrap();
    std::fs::write(empty.path().join("kubectl"), "").unwrap();
    let text = refuses(
        up(&dir).env("DEVCLUSTER_BIN", empty.path()),
        &["DEVCLUSTER_BIN", "lacks etcd, kube-apiserver", "helm", "unset DEVCLUSTER_BIN"],
    );
    assert!(!text.contains("kubectl"), "{text}");
    refuses(up(&dir).env("PG_BIN", empty.path()), &["PG_BIN", "initdb"]);
    // A folder that is somebody else's.
    refuses(&mut up(empty.path()), &["is not empty", "kubectl", "nothing was touched"]);
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 1);
    // A cluster that isn't there.
    let config = empty.path().join("config");
    let absent = "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: a, user: a}}]\nclusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: a, user: {}}]\n";
    std::fs::write(&config, absent).unwrap();
    refuses(up(&dir).env("DEVCLUSTER_KUBECONFIG", &config), &["doesn't answer"]);
    // None of these left anything that a next start would stumble over.
    let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "lock" || name == "log"), "{left:?}");
}

#[test]
fn a_full_disk_is_told_before_anything_starts() {
    let (parent, _) = folder();
    // In a mount namespace of its own, so that the mount goes with the program.
    let script = "mount -t tmpfs -o size=64m none \"$0\" && exec \"$1\" up --dir \"$0/ground\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(parent.path())
        .arg(env!("CARGO_BIN_EXE_devcluster"))
        .output()
        .unwrap();
    let text = stderr(&output);
    if text.contains("unshare failed") || text.contains("mount:") {
        eprintln!("not run: mounting a small file system needs root: {text}");
        return;
    }
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("not enough room") && text.contains("512 MiB are needed"), "{text}");
}

#[test]
fn an_existing_cluster_is_used_and_left_running() {
    let (_parent, dir) = folder();
    let mut first = Running::start(up(&dir).args(["--api-only", "--no-gateway-api", "--no-postgres"]));
    let (_other_parent, other) = folder();
    let mut second = Running::start(up(&other).env("DEVCLUSTER_KUBECONFIG", dir.join("kubeconfig")));
    let get = "\"$KUBECTL\" get crd -o name";
    assert!(in_shell(&other, get).contains("httproutes.gateway.networking.k8s.io"));
    assert_eq!(in_shell(&other, "psql -XAtc 'select 1' \"$DATABASE_ADMIN_URL\""), "1");
    let names: Vec<_> = std::fs::read_dir(other.join("log")).unwrap().collect();
    assert_eq!(names.len(), 1, "PostgreSQL and no other program");
    let (success, text) = second.end("-TERM");
    assert!(success, "{text}");
    assert!(in_shell(&dir, get).contains("httproutes"), "the cluster lives on");
    assert!(first.end("-TERM").0);
}
