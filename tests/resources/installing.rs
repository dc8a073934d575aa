//! The release over time: installed, installed again, upgraded.

use std::{fs, path::Path};

use devcluster::Devcluster;
use serde_json::{Value, json};

use super::ground::{api, apply, attempt, example, ground, install, output, root, with_chart};

#[test]
fn installing_twice_changes_nothing() {
    let versions = |kinds: &str, version: &str| {
        let mut kubectl = ground().kubectl();
        kubectl.args(["get", kinds, "-l", "app.kubernetes.io/part-of=tenantry", "-o"]);
        let line = format!("{{.metadata.name}} {{.metadata.{version}}}{{'\\n'}}");
        output(kubectl.arg(format!("jsonpath={{range .items[*]}}{line}{{end}}")))
    };
    // The API server dates a policy anew when it is applied the second time, unchanged.
    let all = || {
        let policies = versions("validatingadmissionpolicy,validatingadmissionpolicybinding", "generation");
        versions("crd,clusterrole,clusterrolebinding", "resourceVersion") + &policies
    };
    let before = all();
    assert_eq!(before.lines().count(), 5 + 9 + 1 + 10, "{before}");
    install(ground());
    assert_eq!(all(), before);
}

/// `helm upgrade` brings the definitions up to date, which Helm's own folder `crds/` would not:
/// a field that a definition lacked is there, and objects keep what they have.
#[tokio::test]
async fn an_upgrade_changes_the_definitions() {
    let ground = with_chart();
    let client = ground.client().await.expect("a client");
    let older = tempfile::tempdir().expect("a temporary folder");
    copy(&root().join("charts/tenantry"), older.path());
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    change_definition(older.path(), spec, |fields| {
        fields.remove("suspended").expect("a field to do without");
    });
    upgrade(&ground, older.path(), &[]).expect("an upgrade");

    let mut tenant = example("tenants.yaml", "acme");
    apply(client.clone(), &tenant, false).await.expect("a Tenant of the older version");
    tenant["spec"]["suspended"] = json!(true);
    let suspend = async || apply(client.clone(), &tenant, false).await;
    // The API server takes a definition up a moment after it is written.
    loop {
        match suspend().await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break assert!(error.to_string().contains("suspended"), "{error}"),
        }
    }
    install(&ground);
    while suspend().await.is_err() {
        tokio::task::yield_now().await;
    }
    let kept = api(client, "Tenant").get("acme").await.expect("the Tenant");
    assert_eq!(kept.data["spec"]["suspended"], true);
    assert_eq!(kept.data["spec"]["hosts"], tenant["spec"]["hosts"]);
}

/// With `crds.install: false` the definitions are somebody else's: the release neither makes
/// nor changes nor removes one; nor does it where it made them itself and they are taken from it.
#[test]
fn definitions_of_somebody_else_are_left_alone() {
    let ground = with_chart();
    let versions = || {
        let mut kubectl = ground.kubectl();
        kubectl.args(["get", "crd", "-l", "app.kubernetes.io/part-of=tenantry", "-o"]);
        output(kubectl.arg("jsonpath={.items[*].metadata.resourceVersion}"))
    };
    let before = versions();
    assert_eq!(before.split(' ').count(), 5, "{before}");
    upgrade(&ground, &root().join("charts/tenantry"), &["--set", "crds.install=false"]).expect("an upgrade");
    assert_eq!(versions(), before, "the release gives them up, and they stay");
    output(ground.helm().args(["uninstall", "tenantry", "--namespace", "tenantry-system"]));
    assert_eq!(versions(), before);
    let mut helm = ground.helm();
    helm.args(["install", "tenantry", "--namespace", "tenantry-system", "--set", "replicas=0,crds.install=false"]);
    output(helm.arg(root().join("charts/tenantry")));
    assert_eq!(versions(), before);
    let (done, _, errors) = attempt(ground.helm().args(["uninstall", "tenantry", "--namespace", "tenantry-system"]));
    assert!(done, "{errors}");
    assert_eq!(versions(), before);
}

/// What a person changed or took by force, an upgrade doesn't take back without being told to:
/// of a role, and of a definition that was put right with kubectl.
#[test]
fn what_was_taken_by_force_comes_back_by_force() {
    let ground = with_chart();
    let chart = root().join("charts/tenantry");
    let verbs = || {
        let mut kubectl = ground.kubectl();
        output(kubectl.args(["get", "clusterrole", "tenantry-agent", "-o", "jsonpath={.rules[0].verbs}"]))
    };
    let before = verbs();
    let less = r#"[{"op": "replace", "path": "/rules/0/verbs", "value": ["get"]}]"#;
    output(ground.kubectl().args(["patch", "clusterrole", "tenantry-agent", "--type=json", "-p", less]));
    let refused = upgrade(&ground, &chart, &[]).expect_err("the role is somebody else's");
    assert!(refused.contains("conflict"), "{refused}");
    upgrade(&ground, &chart, &["--force-conflicts"]).expect("an upgrade");
    assert_eq!(verbs(), before);

    // As /readyz and the alert say.
    let crds = root().join("crds");
    let kubectl =
        |more: &[&str]| attempt(ground.kubectl().args(["apply", "--server-side"]).args(more).arg("-f").arg(&crds));
    assert!(kubectl(&["--force-conflicts"]).0);
    let newer = tempfile::tempdir().expect("a temporary folder");
    copy(&chart, newer.path());
    let version = "/spec/versions/0";
    let describe = |schema: &mut serde_json::Map<String, Value>| {
        schema["schema"]["openAPIV3Schema"]["description"] = json!("as a later version says it");
    };
    change_definition(newer.path(), version, describe);
    let refused = upgrade(&ground, newer.path(), &[]).expect_err("the definition is kubectl's");
    assert!(refused.contains("conflict") && refused.contains("kubectl"), "{refused}");
    upgrade(&ground, newer.path(), &["--force-conflicts"]).expect("an upgrade");
    let (done, _, errors) = kubectl(&[]);
    assert!(!done && errors.contains("--force-conflicts"), "what Helm installed is Helm's: {errors}");
}

/// `helm upgrade` to a chart; or what helm says against it.
fn upgrade(ground: &Devcluster, chart: &Path, more: &[&str]) -> Result<(), String> {
    let mut helm = ground.helm();
    helm.args(["upgrade", "tenantry", "--namespace", "tenantry-system", "--set", "replicas=0"]).args(more);
    let (done, _, errors) = attempt(helm.arg(chart));
    done.then_some(()).ok_or(errors)
}

/// Changes a part of the definition of Tenant in a copy of the chart.
fn change_definition(chart: &Path, part: &str, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let file = chart.join("files/crds/tenants.tenantry.io.yaml");
    let mut crd: Value = serde_saphyr::from_str(&fs::read_to_string(&file).expect("a definition")).expect("YAML");
    change(crd.pointer_mut(part).and_then(Value::as_object_mut).expect("a map"));
    fs::write(&file, serde_saphyr::to_string(&crd).expect("YAML")).expect("a written file");
}

/// Copies a folder; what links lead to is copied as well.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let (from, name) = entry.map(|entry| (entry.path(), entry.file_name())).expect("an entry");
        if from.is_dir() {
            copy(&from, &to.join(name))
        } else {
            fs::copy(&from, to.join(name)).map(drop).expect("a copy")
        }
    }
}
