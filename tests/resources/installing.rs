//! The release over time: installed, installed again, upgraded.

use std::{fs, path::Path};

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
    let definition = older.path().join("files/crds/tenants.tenantry.io.yaml");
    let mut crd: Value = serde_saphyr::from_str(&fs::read_to_string(&definition).expect("a definition")).expect("YAML");
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let fields = crd.pointer_mut(spec).and_then(Value::as_object_mut).expect("fields");
    fields.remove("suspended").expect("a field to do without");
    fs::write(&definition, serde_saphyr::to_string(&crd).expect("YAML")).expect("a written file");
    output(
        ground
            .helm()
            .args(["upgrade", "tenantry", "--namespace", "tenantry-system", "--set", "replicas=0"])
            .arg(older.path()),
    );

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
/// nor changes nor removes one.
#[test]
fn definitions_of_somebody_else_are_left_alone() {
    let ground = with_chart();
    let versions =
        || output(ground.kubectl().args(["get", "crd", "-o", "jsonpath={.items[*].metadata.resourceVersion}"]));
    output(ground.helm().args(["uninstall", "tenantry", "--namespace", "tenantry-system"]));
    let before = versions();
    let mut helm = ground.helm();
    helm.args(["install", "tenantry", "--namespace", "tenantry-system", "--set", "replicas=0,crds.install=false"]);
    output(helm.arg(root().join("charts/tenantry")));
    assert_eq!(versions(), before);
    let (done, _, errors) = attempt(ground.helm().args(["uninstall", "tenantry", "--namespace", "tenantry-system"]));
    assert!(done, "{errors}");
    assert_eq!(versions(), before);
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
