//! The API server is away; the volume is full.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use tenantry::agent;

use crate::ground::{Agent, CLUSTER, Pool, config, eventually, folder, listed, names, password, secret, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_serve_on_without_the_api_server_and_catch_up_when_it_is_back() {
    let cluster = tokio::task::spawn_blocking(start).await.expect("no panic");
    let pool = Pool::new(&cluster).await;
    pool.put("acme", "acme.example.com", "one").await;
    pool.put("goes", "goes.example.com", "one").await;
    let (_temporary, dir) = folder();
    let agent = Agent::start(cluster.kubeconfig(), &dir, pool.scope()).await;
    listed(&dir).await;

    cluster.program("kube-apiserver").kill();
    agent.stop().await;
    // An agent that starts now finds nobody to ask. What is there stays, and serves.
    let agent = Agent::start(cluster.kubeconfig(), &dir, pool.scope()).await;
    eventually("a new agent", || matches!(agent::check(&dir), Err(agent::CheckError::NotListed)).then_some(())).await;
    let away = Instant::now();
    while away.elapsed() < Duration::from_secs(2) {
        assert_eq!(password(&dir, "acme.example.com").as_deref(), Some("one"));
        assert_eq!(password(&dir, "goes.example.com").as_deref(), Some("one"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(agent.is_running());

    cluster.program("kube-apiserver").start_again().expect("it starts again");
    cluster.await_api().await.expect("it answers");
    let back = Instant::now();
    pool.delete("goes").await;
    pool.put("comes", "comes.example.com", "one").await;
    eventually("the state of now", || (names(&dir, "tenants") == ["acme", "comes"]).then_some(())).await;
    println!("caught up {:?} after the API server was back", back.elapsed());

    // And once more under a watch that is open.
    cluster.program("kube-apiserver").kill();
    cluster.program("kube-apiserver").start_again().expect("it starts again");
    cluster.await_api().await.expect("it answers");
    pool.put("acme", "acme.example.com", "two").await;
    eventually("a change after the watch broke", || (password(&dir, "acme.example.com")? == "two").then_some(())).await;
    agent.stop().await;
}

/// A memory volume of its own, as an emptyDir with `medium: Memory` is.
struct Volume(PathBuf);

impl Volume {
    /// None where this account may not mount.
    fn mount(path: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir(path).expect("a folder");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(path).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(path.to_owned()))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: whatever a failed test left open doesn't keep it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_volume_serves_the_old_set_and_is_made_good_when_there_is_room() {
    let (_temporary, dir) = folder();
    let Some(_volume) = Volume::mount(&dir, "256k") else {
        println!("skipped: this account may not mount a tmpfs");
        return;
    };
    let pool = Pool::new(&CLUSTER).await;
    let padded = |tenant: &str, password: &str| {
        let mut secret = secret(tenant, &format!("{tenant}.example.com"), password);
        // Nobody else's, so that it shares its room with nobody.
        let padding = format!("{tenant}{password}").repeat(100 * 1024).into_bytes()[..100 * 1024].to_vec();
        secret.data.get_or_insert_default().insert("padding".into(), ByteString(padding));
        secret
    };
    pool.put_object(&padded("large", "one")).await;
    pool.put_object(&padded("other", "one")).await;
    let scope = pool.scope();
    // What is replaced goes at once here, so that room is made by what is deleted alone.
    let options = agent::Options { dir: dir.clone(), scope, linger: Duration::ZERO };
    let agent = Agent::start_with(config(CLUSTER.kubeconfig()).await, options);
    assert_eq!(listed(&dir).await.tenants, 2);

    pool.put_object(&padded("large", "two")).await;
    eventually("a set that finds no room", || (agent::check(&dir).ok()?.unwritten == 1).then_some(())).await;
    assert_eq!(password(&dir, "large.example.com").as_deref(), Some("one"), "the old set serves");
    pool.delete("other").await;
    eventually("room", || (password(&dir, "large.example.com")? == "two").then_some(())).await;
    eventually("nothing behind", || (agent::check(&dir).ok()?.unwritten == 0).then_some(())).await;
    assert_eq!(names(&dir, "tenants"), ["large"]);
    eventually("one folder", || (names(&dir, ".versions").len() == 1).then_some(())).await;
    agent.stop().await;
}
