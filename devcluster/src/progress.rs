//! What a user sees while something takes its time: a spinner on a terminal, plain
//! lines elsewhere. It is written to standard error itself, so that a build shows
//! under `cargo test` too.

use std::io::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a long phase writes a line where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(20);

/// Whether, and so where, progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is shown.
    Quiet,
    /// Shown on standard error.
    Shown,
}

impl Progress {
    /// One line.
    pub(crate) fn say(self, text: &str) {
        if self == Progress::Shown {
            line(text);
        }
    }

    /// Something that takes a while, until it is dropped.
    pub(crate) fn phase(self, title: &str) -> Phase {
        let bar = ProgressBar::new_spinner();
        let style =
            ProgressStyle::with_template("{spinner} {prefix} ({elapsed}) {wide_msg}").expect("the template is right");
        let shown = self == Progress::Shown;
        let terminal = shown && !bar.is_hidden();
        if terminal {
            bar.set_style(style);
            bar.set_prefix(title.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
        } else if shown {
            line(title);
        }
        Phase {
            title: title.to_owned(),
            start: Instant::now(),
            bar: terminal.then_some(bar),
            last_line: shown.then(|| Mutex::new(Instant::now())),
        }
    }
}

/// A running phase.
pub(crate) struct Phase {
    title: String,
    start: Instant,
    bar: Option<ProgressBar>,
    last_line: Option<Mutex<Instant>>,
}

impl Phase {
    /// What is being done right now.
    pub(crate) fn update(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(detail.to_owned());
        } else if let Some(last) = &self.last_line
            && let Ok(mut last) = last.lock()
            && last.elapsed() >= LINE_EVERY
        {
            *last = Instant::now();
            line(&format!("{}, {} s: {detail}", self.title, self.start.elapsed().as_secs()));
        }
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn line(text: &str) {
    // A closed standard error is no reason to stop.
    let _ = writeln!(std::io::stderr(), "devcluster: {text}");
}
