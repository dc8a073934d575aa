//! The chart: linted, rendered with several settings, taken by the API server.

use std::{fs, io::Write as _, process::Stdio};

use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use super::ground::{attempt, client, ground, install, output, root};

/// Settings that a user may choose; the empty ones are the chart's own.
const VALUES: &[&str] = &[
    "",
    "{replicas: 0, crds: {install: false}, admissionPolicies: {enabled: false}}",
    "{image: {repository: registry.example.com/t, digest: 'sha256:0000000000000000000000000000000000000000000000000000000000000000'}, imagePullSecrets: [{name: pull}]}",
    "{operator: {args: [--help], logLevel: debug, env: [{name: HTTPS_PROXY, value: 'http://proxy:3128'}]}, priorityClassName: system-cluster-critical}",
    "{nodeSelector: {pool: system}, tolerations: [{key: system, operator: Exists}], affinity: {}, podLabels: {team: platform}, podAnnotations: {a: b}, serviceAccount: {annotations: {a: b}}}",
];

/// The chart's objects with these settings, as YAML.
pub fn render(values: &str) -> String {
    let mut helm = ground().helm();
    helm.args(["template", "tenantry", "--namespace", "tenantry-system", "--kube-version", "1.33.0", "--values", "-"]);
    let mut helm = helm
        .arg(root().join("charts/tenantry"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("helm");
    helm.stdin.take().expect("its input").write_all(values.as_bytes()).expect("values");
    let rendered = helm.wait_with_output().expect("helm's output");
    assert!(rendered.status.success(), "helm refuses {values:?}");
    String::from_utf8(rendered.stdout).expect("text")
}

#[test]
fn lint_is_strict() {
    output(ground().helm().args(["lint", "--strict"]).arg(root().join("charts/tenantry")));
}

#[test]
fn the_api_server_takes_it_with_any_settings() {
    for values in VALUES {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), render(values)).expect("a written file");
        // The objects are there already, owned by Helm; the dry run writes over nothing.
        let mut kubectl = ground().kubectl();
        kubectl.args(["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f"]);
        output(kubectl.arg(file.path()));
    }
}

#[test]
fn settings_have_their_effect() {
    let objects = |values: &str| -> Vec<Value> { serde_saphyr::from_multiple(&render(values)).expect("YAML") };
    let kinds = |objects: &[Value], kind: &str| objects.iter().filter(|object| object["kind"] == kind).count();
    let standard = objects(VALUES[0]);
    assert_eq!(kinds(&standard, "CustomResourceDefinition"), 5);
    assert_eq!(kinds(&standard, "ValidatingAdmissionPolicy"), 5);
    for crd in standard.iter().filter(|object| object["kind"] == "CustomResourceDefinition") {
        assert_eq!(crd["metadata"]["annotations"]["helm.sh/resource-policy"], "keep", "{}", crd["metadata"]["name"]);
    }
    let bare = objects(VALUES[1]);
    assert_eq!(kinds(&bare, "CustomResourceDefinition"), 0);
    assert_eq!(kinds(&bare, "ValidatingAdmissionPolicy"), 0);
    let pinned = objects(VALUES[2]);
    let deployment = pinned.iter().find(|object| object["kind"] == "Deployment").expect("a Deployment");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let image = format!("registry.example.com/t@sha256:{}", "0".repeat(64));
    assert_eq!(container["image"], image);
    let agent =
        container["env"].as_array().expect("variables").iter().find(|one| one["name"] == "TENANTRY_AGENT_IMAGE");
    assert_eq!(agent.expect("the agent's image")["value"], image, "agents run the operator's own version");
}

/// The Deployment sets no variable that the program doesn't know, and the probes' port is
/// the one that it listens on.
#[test]
fn its_variables_are_the_programs() {
    let help = output(std::process::Command::new(env!("CARGO_BIN_EXE_tenantry")).args(["operator", "--help"]));
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&render("")).expect("YAML");
    let deployment = objects.iter().find(|object| object["kind"] == "Deployment").expect("a Deployment");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    for variable in container["env"].as_array().expect("variables") {
        let name = variable["name"].as_str().expect("a name");
        assert!(help.contains(&format!("[env: {name}=")), "tenantry operator knows no {name}");
    }
    assert_eq!(container["ports"][0]["containerPort"], 8080);
    assert!(help.contains("TENANTRY_LISTEN=] [default: 0.0.0.0:8080]"), "{help}");
}

#[test]
fn wrong_settings_are_refused() {
    for (set, says) in [
        ("replicas=-1", "replicas"),
        ("replicas=2", "replicas"),
        ("replicas=many", "replicas"),
        ("replica=2", "replica"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.digest=latest", "digest"),
        ("crds.install=perhaps", "install"),
    ] {
        let mut helm = ground().helm();
        let (success, _, errors) =
            attempt(helm.args(["template", "tenantry", "--set", set]).arg(root().join("charts/tenantry")));
        assert!(!success && errors.contains(says), "{set}: {errors}");
    }
    let mut helm = ground().helm();
    let old = helm.args(["template", "tenantry", "--kube-version", "1.32.9"]).arg(root().join("charts/tenantry"));
    let (success, _, errors) = attempt(old);
    assert!(!success && errors.contains("1.33"), "{errors}");
}

#[test]
fn its_package_has_the_definitions() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    output(ground().helm().arg("package").arg(root().join("charts/tenantry")).arg("-d").arg(folder.path()));
    let package = fs::read_dir(folder.path()).expect("a folder").next().expect("a package").expect("a file").path();
    let rendered = output(ground().helm().args(["template", "tenantry"]).arg(package));
    assert_eq!(rendered.matches("\nkind: CustomResourceDefinition").count(), 5);
}

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

/// The operator's pod is admitted where Pod Security is at its strictest.
#[tokio::test]
async fn the_operators_pod_is_restricted() {
    let client = client().await;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
    let strict = json!({"metadata": {
        "name": "strict", "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
    }});
    let strict = serde_json::from_value(strict).expect("a namespace");
    namespaces.create(&PostParams::default(), &strict).await.expect("a namespace");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&render("")).expect("YAML");
    let deployment = objects.iter().find(|object| object["kind"] == "Deployment").expect("a Deployment");
    let mut pod = deployment["spec"]["template"].clone();
    pod["metadata"]["name"] = json!("operator");
    pod["spec"]["serviceAccountName"] = json!("default");
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client.clone(), "strict");
    while accounts.get_opt("default").await.expect("an answer").is_none() {
        tokio::task::yield_now().await;
    }
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client, "strict");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    pods.create(&dry, &serde_json::from_value(pod.clone()).expect("a pod")).await.expect("an admitted pod");
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
    let loose = pods.create(&dry, &serde_json::from_value(pod).expect("a pod")).await;
    loose.expect_err("the check itself works");
}
