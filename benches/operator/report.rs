//! The figures, as a table: on the terminal, and in docs/performance.md.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use devcluster::AuditEvent;

use crate::ground::{OPERATOR, root, run};

const BEGIN: &str = "<!-- written by `make bench ARGS=--write`: begin -->";
const END: &str = "<!-- written by `make bench ARGS=--write`: end -->";

/// What was measured.
#[derive(Default)]
pub struct Report {
    rows: Vec<[String; 4]>,
}

impl Report {
    /// Adds a figure, and says it at once. Without a goal it is there to be known.
    pub fn add(&mut self, letter: &str, what: &str, figure: impl Into<String>, goal: &str) {
        let figure = figure.into();
        println!("{letter} | {what} | {figure} | {goal}");
        self.rows.push([letter.into(), what.into(), figure, goal.into()]);
    }

    /// All figures as a table in Markdown.
    pub fn table(&self) -> String {
        let mut text = String::from("| | What | Measured | Goal |\n|---|---|---|---|\n");
        for row in &self.rows {
            text.push_str(&format!("| {} |\n", row.join(" | ")));
        }
        text
    }

    /// Puts the table and what it was measured on into docs/performance.md.
    pub fn write(&self, command: &str) -> Result<()> {
        let path = root().join("docs/performance.md");
        let text = fs::read_to_string(&path)?;
        let (before, rest) = text.split_once(BEGIN).context("docs/performance.md lost the place of its table")?;
        let (_, after) = rest.split_once(END).context("docs/performance.md lost the end of its table")?;
        let table = format!("{BEGIN}\n{}\n{}{END}", circumstances(command)?, self.table());
        fs::write(&path, format!("{before}{table}{after}"))?;
        Ok(())
    }
}

/// Machine, date, versions, load.
pub fn circumstances(command: &str) -> Result<String> {
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC");
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let models = || cpuinfo.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = models().next().map_or("an unknown processor", |(_, model)| model);
    let memory = fs::read_to_string("/proc/meminfo")?;
    let total = memory.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / (1024 * 1024);
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split_whitespace().next().unwrap_or_default();
    let kernel = run(Command::new("uname").arg("-sr"))?;
    let rustc = run(Command::new("rustc").arg("--version"))?;
    let commit = Command::new("git").args(["-C"]).arg(root()).args(["describe", "--always", "--dirty"]).output();
    let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    Ok(format!(
        "{date}, commit {commit}: {} × {model}, {total} GiB, {}, {}; load before the run {load}; `{command}`.\n",
        models().count().max(1),
        kernel.trim(),
        rustc.trim(),
    ))
}

/// The operator's calls by verb and resource; watches apart, and what holds the lease.
pub fn calls(events: &[AuditEvent]) -> BTreeMap<String, usize> {
    let mut calls = BTreeMap::new();
    let counts = |event: &&AuditEvent| event.user == OPERATOR && event.verb != "watch" && event.resource != "leases";
    for event in events.iter().filter(counts) {
        *calls.entry(format!("{} {}", event.verb, event.resource)).or_default() += 1;
    }
    calls
}

/// How many calls hold the lease.
pub fn of_lease(events: &[AuditEvent]) -> usize {
    events.iter().filter(|event| event.user == OPERATOR && event.resource == "leases").count()
}

/// How many of them write, and how many read.
pub fn writes_and_reads(calls: &BTreeMap<String, usize>) -> (usize, usize) {
    let reads = calls.iter().filter(|(call, _)| call.starts_with("get ") || call.starts_with("list "));
    let reads: usize = reads.map(|(_, count)| count).sum();
    (calls.values().sum::<usize>() - reads, reads)
}

/// Calls as a list, the most frequent first, each divided by `per`.
pub fn listed(calls: &BTreeMap<String, usize>, per: usize) -> String {
    let mut calls: Vec<_> = calls.iter().collect();
    calls.sort_by(|a, b| b.1.cmp(a.1));
    let share = |count: usize| {
        let share = count as f64 / per.max(1) as f64;
        if share.fract() == 0.0 { format!("{share:.0}") } else { format!("{share:.2}") }
    };
    let shown: Vec<_> = calls.iter().map(|(call, count)| format!("{call} {}", share(**count))).collect();
    if shown.is_empty() { "none".into() } else { shown.join(", ") }
}

/// The value below which this share of the values lies.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len().max(1)) - 1;
    values.get(at).copied().unwrap_or(f64::NAN)
}

/// Whether the file that the table goes to is there.
pub fn check() -> Result<()> {
    let path: &Path = &root().join("docs/performance.md");
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    anyhow::ensure!(text.contains(BEGIN) && text.contains(END), "{} has no place for the table", path.display());
    Ok(())
}
