//! A second process that starts a ground and is then killed.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DIR: &str = "DEVCLUSTER_TEST_HELPER_DIR";

/// The folder that the helper process shall use; `None` in an ordinary test run.
pub(crate) fn helper_dir() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

/// Tells the test that all is up, then waits to be killed.
pub(crate) fn helper_report(dir: &Path, pids: &[u32]) {
    let text: Vec<String> = pids.iter().map(ToString::to_string).collect();
    std::fs::write(dir.join("helper-pids"), text.join(" ")).unwrap();
    println!("\nhelper is up");
    // Its end means that the test is gone.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// This test binary once more, running one test.
pub(crate) struct Helper {
    child: Child,
    roots: Vec<u32>,
}

impl Helper {
    pub(crate) fn start(test: &str, dir: &Path) -> Helper {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(DIR, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let up = lines.map_while(Result::ok).any(|line| line == "helper is up");
        assert!(up, "the helper ended: {:?}", child.wait());
        let pids = std::fs::read_to_string(dir.join("helper-pids")).unwrap();
        let roots = pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
        Helper { child, roots }
    }

    /// What the helper started, and what that started.
    pub(crate) fn tree(&self) -> Vec<u32> {
        tree(&self.roots)
    }

    /// The programs that it started itself. Those below come and go.
    pub(crate) fn roots(&self) -> &[u32] {
        &self.roots
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It was killed, unless the test failed before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// These processes and all below them.
pub(crate) fn tree(roots: &[u32]) -> Vec<u32> {
    let mut all = roots.to_owned();
    let mut next = 0;
    while next < all.len() {
        all.extend(children_of(all[next]));
        next += 1;
    }
    all
}

pub(crate) fn wait_until_gone(pids: &[u32]) {
    let start = Instant::now();
    loop {
        let left: Vec<&u32> = pids.iter().filter(|pid| alive(**pid)).collect();
        if left.is_empty() {
            println!("all were gone after {:?}", start.elapsed());
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "still there: {left:?}");
        std::thread::yield_now();
    }
}

/// A process that ended and waits to be reaped by init is gone.
pub(crate) fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields[0] != "Z")
}

fn children_of(parent: u32) -> Vec<u32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| stat(*pid).is_some_and(|fields| fields[1] == parent.to_string()))
        .collect()
}

/// State, parent and so on: the fields behind the name.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(ToOwned::to_owned).collect())
}
