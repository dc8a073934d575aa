//! The container beside the operator that makes the ledger's tables.

use std::process::{Child, Command, Stdio};

use devcluster::{Postgres, PostgresOptions};
use tenantry::metering::ledger::Ledger;

use super::ground::eventually;

/// A running program; ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_a_ledger_that_is_away_and_ends_when_it_is_asked() {
    let postgres = Postgres::start(PostgresOptions::default()).expect("PostgreSQL starts");
    super::ground::create(&postgres, "ledger", "template1").await;
    let admin = postgres.admin();
    let url = postgres.url("tenantry_ledger", "a password", "ledger");
    postgres.stop();
    let migrate = |stay: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenantry"));
        command.args(["ledger", "migrate"]).args(stay).stdin(Stdio::null()).stderr(Stdio::null());
        command.env("TENANTRY_LEDGER_URL", &url);
        command.env("TENANTRY_LEDGER_OWNER_URL", postgres.url(&admin.user, &admin.password, "ledger"));
        Running(command.spawn().expect("the program"))
    };
    assert_eq!(migrate(&[]).0.wait().expect("an end").code(), Some(1), "without --stay it says so at once");
    let mut staying = migrate(&["--stay"]);
    postgres.start_again().expect("it starts");
    let ledger = Ledger::new(&url, 1).expect("a ledger");
    eventually(async || ledger.check().await.ok()).await.expect("the tables are made");
    assert_eq!(staying.0.try_wait().expect("a child"), None, "it stays");
    let kill = Command::new("kill").args(["-TERM", &staying.0.id().to_string()]).status().expect("kill");
    assert!(kill.success());
    let ended = eventually(async || staying.0.try_wait().expect("a child")).await;
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
}
