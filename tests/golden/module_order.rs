//! Data flows one way: a module uses only what stands before it.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Each module with the modules that it may use, beside itself.
const ORDER: [(&str, &[&str]); 16] = [
    ("api", &[]),
    ("term", &[]),
    ("tls", &[]),
    ("postgres", &[]),
    ("billing", &[]),
    ("event", &[]),
    ("crds", &["api"]),
    ("desired", &["api"]),
    ("cluster", &["api", "term", "desired"]),
    ("database", &["term", "postgres", "event"]),
    ("metering", &["billing", "desired", "postgres", "event"]),
    ("controller", &["api", "term", "tls", "billing", "event", "desired", "cluster", "database", "metering"]),
    ("relay", &["api", "tls", "event", "desired", "cluster", "database", "metering"]),
    ("agent", &["api", "desired", "cluster", "database"]),
    ("web", &["api", "tls", "billing", "event", "desired", "cluster", "database", "metering", "controller"]),
    ("cli", &["api", "event", "desired", "cluster", "database", "metering", "controller"]),
];

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let nested = |path: PathBuf| match path.is_dir() {
        true => rust_files(&path),
        false if path.extension().is_some_and(|extension| extension == "rs") => vec![path],
        false => Vec::new(),
    };
    entries.flat_map(nested).collect()
}

/// The modules of the crate that a source text names after `crate::`, or in a list after
/// `use crate::{`.
fn used_modules(source: &str) -> Vec<String> {
    let code: String =
        source.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect();
    let name = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => found.push(name(rest)),
            Some(list) => found.extend(top_level_items(list).iter().map(|item| name(item.trim()))),
        }
    }
    found
}

/// The items of a `{…}` list, without those nested in them.
fn top_level_items(list: &str) -> Vec<String> {
    let (mut depth, mut items) = (0_u32, vec![String::new()]);
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(String::new()),
            _ if depth == 0 => items.last_mut().unwrap().push(c),
            _ => {}
        }
    }
    items.retain(|item| !item.trim().is_empty());
    items
}

#[test]
fn a_module_uses_only_what_stands_before_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    for (module, allowed) in ORDER {
        let directory = source.join(module);
        if !directory.is_dir() {
            continue;
        }
        for file in rust_files(&directory) {
            let text = fs::read_to_string(&file).unwrap();
            for used in used_modules(&text) {
                let foreign = ORDER.iter().any(|(name, _)| *name == used) && used != module;
                assert!(
                    !foreign || allowed.contains(&used.as_str()),
                    "{} uses crate::{used}, but {module} may use only {allowed:?}",
                    file.display()
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 10, "only {checked} files were found under {}", source.display());
}

#[test]
fn every_module_of_the_library_has_its_place() {
    let library = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let modules = library.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in modules {
        assert!(ORDER.iter().any(|(name, _)| *name == module), "add module {module} to the order in this test");
    }
}

#[test]
fn the_reader_of_modules_sees_every_way_to_name_one() {
    let source = "use crate::api::Tier;\nuse crate::{desired::{Kind, Object}, cluster};\n// crate::web\nlet x = crate::agent::run();";
    assert_eq!(used_modules(source), ["api", "desired", "cluster", "agent"]);
}
