//! Tables for people.

use std::io::{IsTerminal as _, stdout};

use jiff::Timestamp;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// The space between two columns.
const GAP: usize = 3;
/// The least that is left of a last column that is cut.
const LEAST: usize = 20;

/// How many columns the terminal has; nothing where the output goes elsewhere.
pub(super) fn terminal_width() -> Option<usize> {
    let set = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let asked = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    if stdout().is_terminal() { set.or_else(asked) } else { None }
}

/// Rows under a heading. Columns that are empty in every row are left out.
#[derive(Debug, Default)]
pub(super) struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(super) fn new(heading: &[&'static str]) -> Self {
        Self { heading: heading.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, which has as many cells as the heading.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| one_line(&cell)).collect());
    }

    /// Whether there are no rows.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text. Where it is wider than `width`, the last column is cut.
    pub(super) fn text(&self, width: Option<usize>) -> String {
        let used: Vec<usize> =
            (0..self.heading.len()).filter(|at| self.rows.iter().any(|row| !row[*at].is_empty())).collect();
        let Some((last, others)) = used.split_last() else { return String::new() };
        let widest = |at: usize| {
            let cells = self.rows.iter().map(|row| row[at].width());
            cells.chain([self.heading[at].width()]).max().unwrap_or(0)
        };
        let before: usize = others.iter().map(|at| widest(*at) + GAP).sum();
        let room = width.map_or(usize::MAX, |width| width.saturating_sub(before).max(LEAST));
        let heading: Vec<String> = self.heading.iter().map(|cell| (*cell).to_owned()).collect();
        let mut text = String::new();
        for row in std::iter::once(&heading).chain(&self.rows) {
            let mut line = String::new();
            for at in others {
                line.push_str(&row[*at]);
                line.push_str(&" ".repeat(widest(*at) - row[*at].width() + GAP));
            }
            line.push_str(&cut(&row[*last], room));
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Names with their values, one below the other; those without a value are left out.
pub(super) fn fields(fields: &[(&str, String)]) -> String {
    let fields: Vec<_> = fields.iter().filter(|(_, value)| !value.is_empty()).collect();
    let widest = fields.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
    let line = |(name, value): &&(&str, String)| {
        format!("{name}{}{}\n", " ".repeat(widest - name.width() + GAP), one_line(value))
    };
    fields.iter().map(line).collect()
}

/// What control characters in a message could do to a terminal is not ours to find out.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// At most `room` columns of a text; an ellipsis stands for the rest.
fn cut(text: &str, room: usize) -> String {
    if text.width() <= room {
        return text.to_owned();
    }
    let mut taken = 0;
    let kept: String = text
        .chars()
        .take_while(|c| {
            taken += c.width().unwrap_or(0);
            taken < room
        })
        .collect();
    kept + "…"
}

/// How long ago something was, as kubectl says it: 12s, 5m, 3h, 40d.
pub(super) fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NAME", "NOTHING", "MESSAGE"]);
        table.row(["acme".into(), String::new(), "everything is as it should be".into()]);
        table.row(["카페".into(), String::new(), "a line\nand another".into()]);
        table
    }

    #[test]
    fn columns_stand_below_each_other_in_any_script() {
        assert_eq!(
            table().text(None),
            "NAME   MESSAGE\nacme   everything is as it should be\n카페   a line and another\n"
        );
    }

    #[test]
    fn a_narrow_terminal_cuts_the_last_column_only() {
        let text = table().text(Some(30));
        assert_eq!(text, "NAME   MESSAGE\nacme   everything is as it sh…\n카페   a line and another\n");
        assert!(text.lines().all(|line| line.width() <= 30), "{text}");
        assert_eq!(
            table().text(Some(3)).lines().nth(1),
            Some("acme   everything is as it…"),
            "some of it is always there"
        );
    }

    #[test]
    fn without_rows_there_is_nothing_to_print() {
        assert_eq!(Table::new(&["NAME"]).text(Some(80)), "");
        assert_eq!(
            fields(&[("One", "1".into()), ("Nothing", String::new()), ("Eleven", "11".into())]),
            "One      1\nEleven   11\n"
        );
    }

    #[test]
    fn ages_are_those_of_kubectl() {
        let now = Timestamp::from_second(1_000_000).expect("a time");
        let ago = |seconds: i64| age(now - jiff::SignedDuration::from_secs(seconds), now);
        assert_eq!([0, 119, 120, 7_199, 7_200, 172_800].map(ago), ["0s", "119s", "2m", "119m", "2h", "2d"]);
        assert_eq!(age(now + jiff::SignedDuration::from_secs(5), now), "0s", "clocks differ");
    }
}
