//! What users paste for GitOps is what was tested, and the image is what it says.

use std::{collections::BTreeMap, fs, process::Command};

use serde_json::Value;

use super::ground::{documents, output, root};

/// Argo CD's ConfigMap has the one script for each of the five kinds. What the script makes of
/// real objects is tested with the operator.
#[test]
fn argo_cds_config_map_is_the_script() {
    let script = fs::read_to_string(root().join("docs/gitops/health.lua")).expect("the script");
    let patch = documents(&root().join("docs/gitops/argocd-cm.yaml")).remove(0);
    let data: BTreeMap<String, String> = serde_json::from_value(patch["data"].clone()).expect("texts");
    let kinds = ["Application", "DatabaseServer", "Plan", "Pool", "Tenant"];
    let keys = kinds.map(|kind| format!("resource.customizations.health.tenantry.io_{kind}"));
    assert_eq!(data.keys().collect::<Vec<_>>(), keys.iter().collect::<Vec<_>>());
    for (key, text) in &data {
        assert!(*text == script, "{key} in docs/gitops/argocd-cm.yaml is not docs/gitops/health.lua");
    }
}

/// The instructions of a container build file, stage by stage, each on one line.
fn stages() -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("Containerfile")).expect("Containerfile");
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    let mut stages: Vec<Vec<String>> = Vec::new();
    for line in lines.replace("\\\n", " ").lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")) {
        if line.starts_with("FROM ") {
            stages.push(Vec::new());
        }
        if !line.is_empty() {
            stages.last_mut().expect("an instruction after FROM").push(line);
        }
    }
    stages
}

#[test]
fn the_image_is_empty_but_for_the_program_and_never_root() {
    let stages = stages();
    let (image, builders) = stages.split_last().expect("stages");
    let said = |word: &str| -> Vec<_> {
        let start = format!("{word} ");
        image.iter().filter_map(|line| line.strip_prefix(&start)).collect()
    };
    assert_eq!(said("FROM"), ["scratch"]);
    assert_eq!(said("USER"), ["65532:65532"], "as numbers, which a kubelet can check");
    assert_eq!(said("COPY"), ["--from=build /image/tenantry /tenantry"]);
    assert!(said("RUN").is_empty() && said("ADD").is_empty());
    // The agent's probes in pod templates call it by this path.
    assert_eq!(said("ENTRYPOINT"), ["[\"/tenantry\"]"]);
    let sidecar = fs::read_to_string(root().join("src/desired/sidecar.rs")).expect("a source file");
    assert!(sidecar.contains("\"/tenantry\", \"agent\", \"--check\""));
    for stage in builders {
        let from = stage[0].split(' ').nth(1).expect("an image");
        let (_, tag) = from.rsplit_once(':').unwrap_or_else(|| panic!("{from} has no tag"));
        assert!(tag.contains('.') && tag != "latest", "{from} is not pinned");
        assert!(stage.iter().any(|line| line.contains("--locked")), "it builds other versions than Cargo.lock's");
        // Static, and so with an allocator of its own: musl's makes threads wait for each other.
        assert!(stage.iter().any(|line| line.contains("target=\"$(uname -m)-unknown-linux-musl\"")), "it isn't static");
    }
    output(Command::new("grep").args(["--quiet", "--text", "mimalloc", env!("CARGO_BIN_EXE_tenantry")]));
    // It is built with a compiler that the workspace allows.
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let oldest = manifest.split_once("rust-version = \"1.").expect("a version").1.split('"').next().expect("a number");
    let used = stages[0][0].split_once("rust:1.").expect("rust's image").1.split('.').next().expect("a number");
    assert!(used.parse::<u32>().expect("a number") >= oldest.parse().expect("a number"));
}

/// What .dockerignore lets through is enough for cargo to build from, and has no more than
/// sources in it.
#[test]
fn the_build_gets_all_sources_and_nothing_else() {
    let ignore = fs::read_to_string(root().join(".dockerignore")).expect(".dockerignore");
    let mut lines = ignore.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some("*"), "it lists what is let through");
    let context = tempfile::tempdir().expect("a temporary folder");
    for allowed in lines.filter_map(|line| line.strip_prefix('!')) {
        let to = context.path().join(allowed);
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        output(Command::new("cp").arg("-r").arg(root().join(allowed)).arg(&to));
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"]);
    let metadata = output(cargo.current_dir(context.path()));
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    for target in metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .flat_map(|it| it["targets"].as_array().expect("targets"))
    {
        let path = std::path::Path::new(target["src_path"].as_str().expect("a path"));
        assert!(path.is_file(), "{} is not let through", path.display());
    }
    for sources in fs::read_dir(context.path()).expect("a folder") {
        let name = sources.expect("an entry").file_name();
        assert!(!["target", "demo", ".git"].contains(&name.to_str().expect("a plain name")));
    }
    // Of the documents, what the program serves.
    let documents =
        fs::read_dir(context.path().join("docs")).expect("docs").map(|entry| entry.expect("an entry").file_name());
    assert_eq!(documents.collect::<Vec<_>>(), ["openapi.json"]);
}
