//! Who used the processors: says what a rate is made of, also on a machine that others use too.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result};

use crate::ground::{Ground, Operator};

/// Processor time so far, by program.
pub struct Usage(BTreeMap<String, Duration>);

impl Usage {
    /// Of the control plane, PostgreSQL, this process and the operator.
    pub fn now(ground: &Ground, operator: Option<&Operator>) -> Result<Self> {
        let mut programs = vec![("bench".to_owned(), std::process::id())];
        programs.extend(operator.map(|operator| ("operator".to_owned(), operator.pid())));
        programs.extend(ground.cluster.processes().filter_map(|one| Some((one.name().to_owned(), one.pid()?))));
        let mut usage = BTreeMap::new();
        for (name, pid) in programs {
            let mut time = time_of(pid)?;
            if name == "postgres" {
                // Each connection has a process of its own; those that ended are their parent's.
                for child in children_of(pid) {
                    time += time_of(child).unwrap_or_default();
                }
            }
            usage.insert(name, time);
        }
        Ok(Self(usage))
    }

    /// Milliseconds per tenant since then: of all, and by program with the greatest first.
    pub fn since(&self, before: &Self, tenants: usize) -> (f64, String) {
        let spent = self.0.iter().map(|(name, now)| {
            let spent = now.saturating_sub(before.0.get(name).copied().unwrap_or_default());
            (name, spent.as_secs_f64() * 1e3 / tenants as f64)
        });
        let mut spent: Vec<_> = spent.collect();
        spent.sort_by(|a, b| b.1.total_cmp(&a.1));
        let shown: Vec<_> = spent.iter().map(|(name, time)| format!("{name} {time:.1}")).collect();
        (spent.iter().map(|(_, time)| time).sum(), shown.join(", "))
    }
}

/// What a process has used, with its children that have ended.
pub fn time_of(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').context("no such field")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    // Fields 14 to 17 of proc(5), in hundredths of a second. Of this process, without the
    // children, which are the programs that are counted by themselves.
    let last = if pid == std::process::id() { 13 } else { 15 };
    let ticks = fields[11..last].iter().map(|field| field.parse::<u64>()).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

fn children_of(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}
