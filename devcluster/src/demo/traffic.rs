//! Users that come and go: what customers' people do all day, through the CRM's own HTTP API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::http;
use crate::Error;

/// What is made and removed, by its path in the CRM, which is also the meter that counts it.
pub(super) const RESOURCES: [&str; 3] = ["users", "accounts", "opportunities"];

/// How many things the CRM lists at a time.
const PAGE: usize = 1000;
/// How long somebody waits, who works for a tenant all day.
const PAUSE: Duration = Duration::from_millis(400);

/// What came of a while of work.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Things that were made.
    pub(super) made: usize,
    /// Things that were removed.
    pub(super) removed: usize,
    /// What a hard limit refused.
    pub(super) refused: usize,
}

impl Tally {
    /// Adds what somebody else did.
    pub(super) fn add(&mut self, other: Self) {
        self.made += other.made;
        self.removed += other.removed;
        self.refused += other.refused;
    }
}

/// Somebody who works with the CRM of several tenants.
pub(super) struct Worker {
    crm_port: u16,
    tenants: Vec<String>,
    random: StdRng,
    number: u64,
}

impl Worker {
    /// A worker whose choices are the same for the same seed.
    pub(super) fn new(crm_port: u16, tenants: &[String], seed: u64) -> Self {
        Self { crm_port, tenants: tenants.to_vec(), random: StdRng::seed_from_u64(seed), number: seed << 32 }
    }

    /// Does so many things, one after the other.
    pub(super) fn work(&mut self, times: usize) -> Result<Tally, Error> {
        let mut tally = Tally::default();
        for _ in 0..times {
            self.step(&mut tally)?;
        }
        Ok(tally)
    }

    /// Hires until the plan's hard limit refuses one more; the refusal.
    pub(super) fn fill(&mut self, tenant: &str, at_most: usize) -> Result<Value, Error> {
        for _ in 0..at_most {
            let answer = self.create(tenant, "users")?;
            if answer.status == 402 {
                return serde_json::from_str(&answer.body).map_err(|error| strange(tenant, &error.to_string()));
            }
        }
        Err(strange(tenant, &format!("{at_most} more users were not refused, although its plan has a hard limit")))
    }

    fn step(&mut self, tally: &mut Tally) -> Result<(), Error> {
        let tenant = self.tenants.choose(&mut self.random).expect("there are tenants").clone();
        let resource = *RESOURCES.choose(&mut self.random).expect("there are resources");
        // More come than go.
        if self.random.random_ratio(2, 5) {
            // Nothing hangs on a user; an account may have opportunities.
            let resource = if resource == "accounts" { "users" } else { resource };
            let there = list(self.crm_port, &tenant, resource)?;
            if let Some(id) = there.choose(&mut self.random) {
                let gone = http::delete(self.crm_port, &host(&tenant), &format!("/{resource}/{id}"));
                match gone.map_err(|why| strange(&tenant, &why))?.status {
                    204 | 404 => tally.removed += 1,
                    status => return Err(strange(&tenant, &format!("DELETE /{resource}/{id}: status {status}"))),
                }
            }
            return Ok(());
        }
        match self.create(&tenant, resource)?.status {
            402 => tally.refused += 1,
            _ => tally.made += 1,
        }
        Ok(())
    }

    fn create(&mut self, tenant: &str, resource: &str) -> Result<http::Answer, Error> {
        self.number += 1;
        let number = self.number;
        let body = match resource {
            "users" => json!({"email": format!("user-{number}@{tenant}.example"), "name": format!("User {number}")}),
            "accounts" => json!({"name": format!("Account {number}")}),
            _ => match list(self.crm_port, tenant, "accounts")?.choose(&mut self.random) {
                Some(account) => json!({"account_id": account, "title": format!("Deal {number}")}),
                None => return self.create(tenant, "accounts"),
            },
        };
        let path = format!("/{resource}");
        let answer = http::post(self.crm_port, &host(tenant), &path, &body.to_string());
        let answer = answer.map_err(|why| strange(tenant, &why))?;
        match answer.status {
            201 | 402 => Ok(answer),
            status => Err(strange(tenant, &format!("POST {path}: status {status}: {}", answer.body.trim()))),
        }
    }
}

/// Somebody who works until this is dropped.
pub(super) struct Business {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Business {
    /// Begins. What fails is tried again: databases and operators may be ended meanwhile.
    pub(super) fn start(mut worker: Worker) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let _ = worker.work(1);
                std::thread::sleep(PAUSE);
            }
        });
        Self { ended, thread: Some(thread) }
    }
}

impl Drop for Business {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How many there are of each resource of a tenant: the rows of its own tables, as its CRM lists them.
pub(super) fn count(crm_port: u16, tenant: &str) -> Result<BTreeMap<&'static str, usize>, Error> {
    RESOURCES.into_iter().map(|resource| Ok((resource, list(crm_port, tenant, resource)?.len()))).collect()
}

/// The ids of all that a tenant has of a resource.
fn list(crm_port: u16, tenant: &str, resource: &str) -> Result<Vec<i64>, Error> {
    let mut ids: Vec<i64> = Vec::new();
    loop {
        let after = ids.last().copied().unwrap_or(0);
        let page = http::get(crm_port, &host(tenant), &format!("/{resource}?after={after}&limit={PAGE}"));
        let page = page.map_err(|why| strange(tenant, &why))?;
        let rows: Vec<Value> = match page.status {
            200 => serde_json::from_str(&page.body).map_err(|error| strange(tenant, &error.to_string()))?,
            status => return Err(strange(tenant, &format!("GET /{resource}: status {status}"))),
        };
        ids.extend(rows.iter().filter_map(|row| row["id"].as_i64()));
        if rows.len() < PAGE {
            return Ok(ids);
        }
    }
}

fn host(tenant: &str) -> String {
    format!("{tenant}.crm.example.com")
}

fn strange(tenant: &str, why: &str) -> Error {
    Error::Missing {
        what: format!("the CRM of {tenant} doesn't do its work: {why}"),
        hint: "log/crm.log and log/agent.log in the demo's folder tell more".into(),
    }
}
