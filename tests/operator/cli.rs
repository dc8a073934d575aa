//! The user's verbs, on a real cluster: what they print, for people and for programs.

use std::process::Command;

use serde_json::Value;

use super::ground::Ground;

/// What a run of the program came to.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Its output, as a program reads it.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs the program as an administrator of the cluster.
pub fn tenantry(ground: &Ground, args: &[&str]) -> Ran {
    run(Command::new(env!("CARGO_BIN_EXE_tenantry")).args(args).env("KUBECONFIG", ground.cluster.kubeconfig()))
}

fn run(command: &mut Command) -> Ran {
    let output = command.env_remove("TENANTRY_OUTPUT").output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran {
        code: output.status.code().expect("it ends by itself"),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}
