//! `examples/` is what a new user applies first: all of it is taken as it stands.

use std::{collections::BTreeSet, fs};

use super::ground::{documents, ground, output, root, text};

/// The names of the files of a folder that end in `end`.
fn files(folder: &str, end: &str) -> BTreeSet<String> {
    fs::read_dir(root().join(folder))
        .unwrap_or_else(|error| panic!("{folder}: {error}"))
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"))
        .filter(|name| name.ends_with(end))
        .collect()
}

#[test]
fn the_kustomization_names_every_file() {
    let kustomization = documents(&root().join("examples/kustomization.yaml")).remove(0);
    let listed = |pointer: &str| -> BTreeSet<String> {
        let items = kustomization.pointer(pointer).and_then(|value| value.as_array()).expect("a list");
        items.iter().map(|item| item.as_str().expect("a string").to_owned()).collect()
    };
    let mut there = files("examples", ".yaml");
    there.remove("kustomization.yaml");
    assert_eq!(listed("/resources"), there);
    let migrations: BTreeSet<_> =
        files("examples/crm/migrations", ".sql").into_iter().map(|name| format!("crm/migrations/{name}")).collect();
    assert_eq!(listed("/configMapGenerator/0/files"), migrations, "add the file to examples/kustomization.yaml");
}

#[test]
fn the_api_server_takes_them_all() {
    let apply = |more: &[&str]| {
        let mut kubectl = ground().kubectl();
        kubectl.args(["apply", "--server-side", "--validate=strict"]).args(more);
        output(kubectl.arg("-k").arg(root().join("examples")))
    };
    let dry = apply(&["--dry-run=server"]);
    assert_eq!(dry.lines().count(), count_objects(), "{dry}");
    apply(&[]);
    let tenants = output(ground().kubectl().args(["get", "tenants", "-o", "name"]));
    for tenant in documents(&root().join("examples/tenants.yaml")) {
        assert!(tenants.contains(&format!("tenant.tenantry.io/{}\n", text(&tenant, "/metadata/name"))), "{tenants}");
    }
    let mut kubectl = ground().kubectl();
    kubectl.args(["-n", "tenantry-system", "get", "configmap", "crm-migrations", "-o"]);
    let data = output(kubectl.arg("go-template={{range $name, $_ := .data}}{{$name}}{{\"\\n\"}}{{end}}"));
    assert_eq!(data.lines().map(str::to_owned).collect::<BTreeSet<_>>(), files("examples/crm/migrations", ".sql"));
    output(ground().kubectl().args(["delete", "--wait=false", "-k"]).arg(root().join("examples")));
}

/// All objects of the examples, and the ConfigMap that kustomize makes.
fn count_objects() -> usize {
    let mut files = files("examples", ".yaml");
    files.remove("kustomization.yaml");
    files.iter().map(|file| documents(&root().join("examples").join(file)).len()).sum::<usize>() + 1
}

/// What the examples refer to is in the examples.
#[test]
fn names_lead_to_something() {
    let names = |file: &str| -> BTreeSet<String> {
        documents(&root().join("examples").join(file)).iter().map(|object| text(object, "/metadata/name")).collect()
    };
    let (plans, applications, servers) = (names("plans.yaml"), names("application.yaml"), names("server.yaml"));
    for tenant in documents(&root().join("examples/tenants.yaml")) {
        assert!(plans.contains(&text(&tenant, "/spec/plan")), "{tenant}");
        assert!(applications.contains(&text(&tenant, "/spec/application")), "{tenant}");
    }
    let application = documents(&root().join("examples/application.yaml")).remove(0);
    for tier in ["pooled", "bridge", "dedicated"] {
        assert!(servers.contains(&text(&application, &format!("/spec/database/{tier}/servers/0"))));
    }
    let meters: BTreeSet<_> =
        application["spec"]["meters"].as_array().expect("meters").iter().map(|meter| text(meter, "/name")).collect();
    for plan in documents(&root().join("examples/plans.yaml")) {
        for (meter, _) in plan["spec"]["limits"].as_object().into_iter().flatten() {
            assert!(meters.contains(meter), "{plan}");
        }
        if let Some(trial) = plan["spec"].get("trial").and_then(|trial| trial.get("downgradeTo")) {
            assert!(plans.contains(trial.as_str().expect("a name")));
        }
    }
}
