//! The demo that the tour goes through, as its own program.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::root;

/// Builds all programs, and returns the command that `make demo` runs.
fn program() -> Command {
    let programs = Path::new(env!("CARGO_BIN_EXE_tenantry")).parent().expect("a folder");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--workspace", "--bins"]).current_dir(root());
    // What cargo tells this test of its package would make build scripts run again (ring's
    // looks at CARGO_MANIFEST_DIR).
    for (name, _) in std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_CRATE_"].iter().any(|prefix| name.starts_with(prefix))
    }) {
        build.env_remove(name);
    }
    if programs.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo").success(), "the programs don't build");
    let mut demo = Command::new(programs.join("devcluster"));
    demo.arg("demo").current_dir(root());
    demo
}

/// A demo that is up; it is ended when the test ends, also when that fails.
pub struct Demo(Child);

impl Demo {
    /// Starts it in a folder, and waits until it says `ready`.
    pub fn start(folder: &Path) -> Self {
        let child = program().arg("--dir").arg(folder).stdout(Stdio::piped()).spawn();
        let mut demo = Self(child.expect("the demo's program"));
        let mut shown = String::new();
        for line in BufReader::new(demo.0.stdout.take().expect("its output")).lines() {
            let line = line.expect("text");
            if line == "ready" {
                return demo;
            }
            shown.push_str(&line);
            shown.push('\n');
        }
        panic!("the demo never became ready:\n{shown}");
    }

    /// Kills the demo alone, and sees that nothing that it started outlives it.
    pub fn killed_leaves_nothing(mut self) {
        let children = children(self.0.id());
        assert!(children.len() >= 9, "cluster, PostgreSQL, operator, agent and CRM are {} programs", children.len());
        self.0.kill().expect("the demo runs");
        self.0.wait().expect("the demo has ended");
        let since = Instant::now();
        while let Some(left) = children.iter().find(|child| child.exists()) {
            assert!(since.elapsed() < Duration::from_secs(30), "{} is still there", left.display());
            thread::yield_now();
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = Command::new("kill").arg(self.0.id().to_string()).status();
            let _ = self.0.wait();
        }
    }
}

/// The folders in /proc of a process's children.
fn children(pid: u32) -> Vec<PathBuf> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let of_thread = |thread: PathBuf| fs::read_to_string(thread.join("children")).unwrap_or_default();
    let all: Vec<String> = threads.map(|thread| of_thread(thread.expect("a thread").path())).collect();
    all.iter().flat_map(|pids| pids.split_whitespace()).map(|pid| Path::new("/proc").join(pid)).collect()
}

#[test]
fn once_tells_why_a_tenant_is_not_ready() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path().join("demo");
    let output =
        program().args(["--once", "--within", "0", "--dir"]).arg(&folder).output().expect("the demo's program");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("not every Tenant is Ready after 0 s"), "{errors}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("\nready\n"));
    assert!(folder.join("log/operator.log").is_file(), "its logs stay");
}

#[test]
fn once_ends_well() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output =
        program().args(["--once", "--dir"]).arg(folder.path().join("demo")).output().expect("the demo's program");
    let (shown, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}{errors}");
    assert!(shown.contains("all 10 Tenants are Ready") && shown.contains("created through the CRM"), "{shown}");
}

/// 50 Tenants of all tiers; users come and go while operator, relay, agent and PostgreSQL are killed.
/// In the end each Tenant's status says what its CRM's own tables hold; the demo fails where not.
#[test]
fn usage_is_exact_after_kills_of_every_part() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = program()
        .args(["--once", "--more-tenants", "40", "--kills", "24", "--dir"])
        .arg(folder.path().join("demo"))
        .output()
        .expect("the demo's program");
    let (shown, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}{errors}");
    assert!(shown.contains("all 50 Tenants are Ready") && shown.contains("24 processes are killed"), "{shown}");
}
