//! The program, as a pod or a person starts it.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tenantry::agent;

use crate::ground::{CLUSTER, Pool, eventually, folder, listed, names, password};

fn tenantry() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenantry"));
    command.env("KUBECONFIG", CLUSTER.kubeconfig()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn check(dir: &Path) -> Output {
    tenantry().args(["agent", "--check", "--dir"]).arg(dir).output().expect("the program is there")
}

/// A running agent, ended by SIGKILL at the latest.
struct Program(Child);

impl Program {
    fn start(pool: &Pool, dir: &Path) -> Self {
        let mut command = tenantry();
        command.args(["agent", "--namespace", &pool.namespace]).env("TENANTRY_AGENT_DIR", dir);
        Self(command.spawn().expect("the program is there"))
    }

    /// Sends a signal and waits for the end; returns the exit code, none if the signal ended it.
    async fn end(mut self, signal: &str) -> Option<i32> {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().expect("kill is there");
        assert!(sent.success());
        eventually("the program ends", || self.0.try_wait().expect("it is ours")).await.code()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_startup_probe_holds_the_application_back_until_the_files_are_there() {
    let pool = Pool::new(&CLUSTER).await;
    pool.put("acme", "acme.example.com", "one").await;
    let (_temporary, dir) = folder();
    let early = check(&dir);
    assert!(!early.status.success());
    let reason = String::from_utf8_lossy(&early.stderr).into_owned();
    assert!(reason.contains("--dir"), "it says what to look at: {reason}");

    let program = Program::start(&pool, &dir);
    eventually("a probe that passes", || check(&dir).status.success().then_some(())).await;
    assert_eq!(password(&dir, "acme.example.com").as_deref(), Some("one"));
    assert_eq!(program.end("-TERM").await, Some(0), "SIGTERM is the usual end");
    assert_eq!(password(&dir, "acme.example.com").as_deref(), Some("one"), "the files outlive the agent");
    assert!(!check(&dir).status.success());
}

#[tokio::test]
async fn an_agent_that_was_killed_is_followed_by_another() {
    let pool = Pool::new(&CLUSTER).await;
    pool.put("acme", "acme.example.com", "one").await;
    let (_temporary, dir) = folder();
    let killed = Program::start(&pool, &dir);
    listed(&dir).await;

    let mut second = Program::start(&pool, &dir);
    let status = eventually("a second agent gives up", || second.0.try_wait().expect("it is ours")).await;
    assert!(!status.success(), "two agents would undo each other's work");
    assert_eq!(killed.end("-KILL").await, None);
    assert!(agent::check(&dir).is_err(), "its last word counts no more");

    pool.delete("acme").await;
    pool.put("bolt", "bolt.example.com", "one").await;
    let third = Program::start(&pool, &dir);
    listed(&dir).await;
    assert_eq!(names(&dir, "tenants"), ["bolt"]);
    assert_eq!(third.end("-TERM").await, Some(0));
}
