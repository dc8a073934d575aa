//! A new password under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crm::Limits;
use serde_json::json;
use tenantry::database::{Overlap, OverlapTimes};

use crate::ground::{DATABASE, Saas, eventually};
use crate::http::request;

/// Clients that read and write until they are stopped; each failed request is a panic.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(saas: &Saas, methods: &'static [&'static str]) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let address = saas.crm.address;
        let clients = (0..4)
            .map(|client| {
                let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
                tokio::spawn(async move {
                    for number in 0_u64.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        for method in methods {
                            let body = match *method {
                                "POST" => {
                                    json!({"email": format!("{client}.{number}@example.com"), "name": "N"}).to_string()
                                }
                                _ => String::new(),
                            };
                            let answer = request(address, method, "acme.example.com", "/users?limit=5", &body).await;
                            assert!(answer.status < 300, "{method}: {}\n{}", answer.head, answer.body);
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        Self { stop, served, clients }
    }

    /// Waits until that many more requests have been served.
    async fn serve(&self, more: u64) {
        let goal = self.served.load(Ordering::Relaxed) + more;
        eventually("requests that are served", async || {
            let failed = self.clients.iter().any(tokio::task::JoinHandle::is_finished);
            (failed || self.served.load(Ordering::Relaxed) >= goal).then_some(())
        })
        .await;
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("each request was answered well");
        }
        self.served.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_the_password_changes() {
    let mut saas = Saas::start(Limits::default()).await;
    let id = saas.tenant("acme", "smb").await;
    let load = Load::start(&saas, &["POST", "GET"]);
    let times = OverlapTimes { quiet: Duration::from_millis(200), max: Duration::from_secs(60) };
    let start = Instant::now();
    for _ in 0..3 {
        load.serve(40).await;
        let login = saas.operator.issue_login(DATABASE, &id, Overlap::Respect).await.expect("a login");
        load.serve(20).await;
        saas.publish("acme", &login);
        saas.operator.login_published(DATABASE, &id, login.slot).await.expect("published");
        // The old login ends by itself: nobody is cut, as its connections are given up after their work.
        eventually("the old login closes", async || {
            let closed =
                saas.operator.close_logins(DATABASE, Some(&id), times, Overlap::Respect).await.expect("a look");
            (closed.closing == 0).then_some(())
        })
        .await;
        let sessions = saas.server.sessions().await;
        assert!(sessions.iter().all(|(user, _)| *user == login.username), "{sessions:?} after {}", login.username);
    }
    let served = load.stop().await;
    println!("three rotations in {:?}, {served} requests, none failed", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_is_cut_at_once_costs_readers_nothing() {
    let mut saas = Saas::start(Limits::default()).await;
    let id = saas.tenant("acme", "smb").await;
    let load = Load::start(&saas, &["GET"]);
    for _ in 0..3 {
        load.serve(40).await;
        let login = saas.operator.issue_login(DATABASE, &id, Overlap::Cut).await.expect("a login");
        saas.publish("acme", &login);
        saas.operator.login_published(DATABASE, &id, login.slot).await.expect("published");
        let times = OverlapTimes::default();
        saas.operator.close_logins(DATABASE, Some(&id), times, Overlap::Cut).await.expect("a leak is closed at once");
        load.serve(20).await;
    }
    load.stop().await;
}
