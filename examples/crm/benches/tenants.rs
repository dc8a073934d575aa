//! A thousand tenants on a server with `max_connections = 100`: requests per second, their times, sessions and memory.
//!
//! `cargo bench -p crm [-- TENANTS]`. Each request goes to a tenant at random, which is the worst case: hardly one finds
//! a connection that waits for it.

#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/crm/ground.rs"]
mod ground;
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/crm/http.rs"]
mod http;

use std::time::{Duration, Instant};

use crm::Limits;

use ground::{Crm, Server, agent};

/// Requests under way at once.
const CLIENTS: usize = 64;
/// Requests of each client.
const REQUESTS: usize = 60;

fn main() {
    let tenants = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(measure(tenants));
}

async fn measure(tenants: usize) {
    let server = Server::start(&[("max_connections", "100")]).await;
    let dir = tempfile::tempdir().expect("a folder");
    let mut keeper = agent(dir.path());
    let names: Vec<String> = (0..tenants).map(|number| format!("t{number}")).collect();
    for batch in names.chunks(50) {
        server.plain_tenants(&mut keeper, batch).await;
    }
    let crm = Crm::serve(dir.path(), Limits { wait_for: Duration::from_secs(30), ..Limits::default() }).await;
    let address = crm.address;

    let start = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let names = names.clone();
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(REQUESTS);
                for _ in 0..REQUESTS {
                    let host = format!("{}.example.com", names[rand::random_range(0..names.len())]);
                    let start = Instant::now();
                    http::get(address, &host, "/users").await.expect(200);
                    times.push(start.elapsed());
                }
                times
            })
        })
        .collect();
    let mut most = 0;
    while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
        most = most.max(server.sessions().await.iter().map(|(_, count)| count).sum::<i64>());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = start.elapsed();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.expect("each request is answered 200"));
    }
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("tenants            {tenants}");
    println!("requests           {} in {took:.1?}, none failed", times.len());
    println!("a request          {:.1?} (median), {:.1?} (99 of 100)", at(50), at(99));
    println!("sessions at once   {most} of 100");
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    if let Some(line) = status.lines().find(|line| line.starts_with("VmHWM")) {
        println!("resident at most   {}, this program with the CRM in it", line.trim_start_matches("VmHWM:").trim());
    }
}
