//! The README, walked through as it is written: its commands are run in one shell beside a
//! demo, and what it says they print is what they print.

mod demo;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use demo::Demo;

/// A block of commands, and the lines that they must print, in this order.
struct Stop {
    commands: String,
    prints: Vec<String>,
}

/// Printed between the output of two blocks.
const MARK: &str = "--- next stop of the tour ---";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The `sh` blocks of a text, each with the `text` block that must follow it.
fn stops(text: &str) -> Vec<Stop> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((language.to_owned(), body.join("\n")));
        }
    }
    let mut stops = Vec::new();
    for (index, (language, commands)) in blocks.iter().enumerate() {
        if language != "sh" {
            continue;
        }
        let (next, prints) = blocks.get(index + 1).unwrap_or_else(|| panic!("what does this print?\n{commands}"));
        assert_eq!(next, "text", "what does this print?\n{commands}");
        stops.push(Stop { commands: commands.clone(), prints: prints.lines().map(str::to_owned).collect() });
    }
    stops
}

/// Whether a printed line is what the README says; `…` there stands for any text.
fn matches(said: &str, printed: &str) -> bool {
    let (said, printed) = (said.trim_end(), printed.trim_end());
    let Some((first, rest)) = said.split_once('…') else { return said == printed };
    let (middle, last) = rest.rsplit_once('…').unwrap_or(("", rest));
    let between = printed.strip_prefix(first).and_then(|printed| printed.strip_suffix(last));
    let found = |printed: &str| {
        middle
            .split('…')
            .try_fold(printed.to_owned(), |rest, part| rest.find(part).map(|at| rest[at + part.len()..].to_owned()))
    };
    between.and_then(found).is_some()
}

#[test]
fn the_readme_does_what_it_says() {
    let stops = stops(&fs::read_to_string(root().join("README.md")).expect("README.md"));
    assert!(stops.len() >= 5, "the tour has {} stops", stops.len());

    // The reader's folder: a clone in which `make demo` runs.
    let clone = tempfile::tempdir().expect("a temporary folder");
    symlink(root().join("examples"), clone.path().join("examples")).expect("a link");
    let demo = Demo::start(&clone.path().join("demo"));

    let mut script = String::from("exec 2>&1\n");
    for stop in &stops {
        script.push_str(&stop.commands);
        script.push_str(&format!("\necho '{MARK}'\n"));
    }
    let output = Command::new("bash").arg("-c").arg(&script).current_dir(clone.path()).output().expect("bash");
    demo.killed_leaves_nothing();
    let output = String::from_utf8_lossy(&output.stdout);
    let mut printed = output.split(MARK);
    for Stop { commands, prints } in &stops {
        let printed = printed.next().expect("one output for each stop");
        let mut lines = printed.lines();
        for said in prints {
            assert!(
                lines.any(|line| matches(said, line)),
                "the README says that\n\n{commands}\n\nprints the line\n\n{said}\n\nbut it prints\n\n{printed}"
            );
        }
    }
}

/// The pages that people read: the README and the chart's and the CRM's, and all of docs/.
fn pages() -> Vec<PathBuf> {
    let mut pages =
        ["README.md", "charts/tenantry/README.md", "examples/crm/README.md"].map(|file| root().join(file)).to_vec();
    let docs = fs::read_dir(root().join("docs")).expect("docs/").map(|entry| entry.expect("an entry").path());
    pages.extend(docs.filter(|path| path.extension().is_some_and(|end| end == "md")));
    pages
}

/// The text of a page without its blocks of code.
fn prose(page: &Path) -> String {
    let text = fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    text.split("```").step_by(2).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &Path) -> Vec<String> {
    let prose = prose(page);
    let headings = prose.lines().filter_map(|line| line.strip_prefix('#'));
    let anchor = |heading: &str| -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        text.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect()
    };
    headings.map(anchor).collect()
}

/// Files are there, and sections too.
#[test]
fn links_lead_somewhere() {
    let (pages, mut sections) = (pages(), 0);
    assert!(pages.len() >= 8, "{pages:?}");
    for page in &pages {
        let prose = prose(page);
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (path, section) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.clone() } else { page.parent().expect("a folder").join(path) };
            let link = format!("{} links to {link}", page.display());
            assert!(target.exists(), "{link}, which isn't there");
            if !section.is_empty() {
                sections += 1;
                assert!(anchors(&target).contains(&section.to_owned()), "{link}, a section that isn't there");
            }
        }
    }
    assert!(sections > 30, "links to {sections} sections");
}

#[test]
fn lines_are_compared_with_gaps() {
    assert!(matches("a…c", "a b c"));
    assert!(matches("a…", "a b c"));
    assert!(matches("…c", "a b c"));
    assert!(matches("a", "a  "));
    assert!(!matches("a", "a b"));
    assert!(!matches("a…c", "a b d"));
    assert!(!matches("b", "a b"));
    assert!(matches("a…c", "a c c"));
    assert!(!matches("a…c", "a c d"));
    assert!(matches("a…b…d", "a x b y d"));
    assert!(!matches("a…d…b…", "a x b y d"));
}
