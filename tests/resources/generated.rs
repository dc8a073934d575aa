//! Files that are generated equal what the program generates.

use std::{collections::BTreeSet, fs, process::Command};

use super::ground::{output, root};

fn tenantry() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tenantry"))
}

#[test]
fn crds_are_what_the_program_writes() {
    let fresh = tempfile::tempdir().expect("a temporary folder");
    output(tenantry().arg("crds").arg("--dir").arg(fresh.path()));
    let names = |dir: &std::path::Path| -> BTreeSet<String> {
        fs::read_dir(dir)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"))
            .collect()
    };
    let kept = root().join("crds");
    assert_eq!(names(&kept), names(fresh.path()), "crds/ has other files than `tenantry crds` writes: run `make crds`");
    for name in names(&kept) {
        let read = |dir: &std::path::Path| fs::read_to_string(dir.join(&name)).expect("a readable file");
        assert!(read(&kept) == read(fresh.path()), "crds/{name} is out of date: run `make crds`");
        let size = read(&kept).len();
        assert!(size < 100 * 1024, "crds/{name} has {size} bytes; a definition must stay below 100 KB");
    }
}

#[test]
fn the_printed_definitions_are_the_files() {
    let printed = output(tenantry().arg("crds"));
    for entry in fs::read_dir(root().join("crds")).expect("crds/") {
        let file = fs::read_to_string(entry.expect("an entry").path()).expect("a readable file");
        assert!(printed.contains(&file));
    }
    assert_eq!(printed.matches("\n---\n").count(), 4, "five documents");
}

#[test]
fn the_reference_is_what_the_program_prints() {
    let fresh = output(tenantry().arg("crds").arg("--reference"));
    let kept = fs::read_to_string(root().join("docs/api.md")).expect("docs/api.md");
    assert!(kept == fresh, "docs/api.md is out of date: run `make crds`");
}

#[test]
fn the_reference_names_every_field_and_rule() {
    let reference = fs::read_to_string(root().join("docs/api.md")).expect("docs/api.md");
    for part in [
        "| `spec.limits{}.max` | integer, required, 0 to 9000000000000000 |",
        "| `spec.hosts[]` | string, at most 253 characters |",
        "| `spec.route.requireAccepted` | boolean, default `true` |",
        "a limit needs a policy",
        "- Rule: application can't be changed",
        "| `spec.network.to[].ipBlock.cidr` | string, required |",
    ] {
        assert!(reference.contains(part), "docs/api.md lacks {part}");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_explained() {
    let (success, _, errors) = super::ground::attempt(tenantry().args(["crds", "--dir", "/proc/nowhere"]));
    assert!(!success);
    assert!(errors.contains("/proc/nowhere") && errors.contains("--dir"), "{errors}");
}
