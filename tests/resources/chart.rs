//! The chart: linted, rendered with several settings, taken by the API server.

use std::fs;

use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use super::ground::{attempt, client, ground, output, root};

/// The settings of `charts/tenantry/ci/NAME-values.yaml`.
pub fn settings(name: &str) -> String {
    let path = root().join(format!("charts/tenantry/ci/{name}-values.yaml"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of all of these, the chart's own (`default`) among them.
pub fn all_settings() -> Vec<String> {
    let entries = fs::read_dir(root().join("charts/tenantry/ci")).expect("charts/tenantry/ci");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"));
    names.map(|name| name.strip_suffix("-values.yaml").expect("NAME-values.yaml").to_owned()).collect()
}

/// The chart's objects with these settings, as YAML.
pub fn render(values: &str) -> String {
    let (done, rendered, errors) =
        attempt_render(values, &["monitoring.coreos.com/v1/ServiceMonitor", "monitoring.coreos.com/v1/PrometheusRule"]);
    assert!(done, "helm refuses {values:?}: {errors}");
    rendered
}

/// The same for a cluster that has these kinds besides Kubernetes' own.
fn attempt_render(values: &str, kinds: &[&str]) -> (bool, String, String) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), values).expect("a written file");
    let mut helm = ground().helm();
    helm.args(["template", "tenantry", "--namespace", "tenantry-system", "--kube-version", "1.33.0", "--values"]);
    helm.arg(file.path()).arg(root().join("charts/tenantry"));
    for kind in kinds {
        helm.args(["--api-versions", kind]);
    }
    attempt(&mut helm)
}

/// The objects of the chart with these settings.
pub fn objects(values: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&render(values)).expect("YAML")
}

/// The one object of a kind and name.
fn one<'o>(objects: &'o [Value], kind: &str, name: &str) -> &'o Value {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn count(objects: &[Value], kind: &str) -> usize {
    objects.iter().filter(|object| object["kind"] == kind).count()
}

/// The operator's container.
pub fn container(objects: &[Value]) -> &Value {
    &one(objects, "Deployment", "tenantry")["spec"]["template"]["spec"]["containers"][0]
}

/// A variable of the operator's container.
fn variable(objects: &[Value], name: &str) -> Value {
    let variables = container(objects)["env"].as_array().expect("variables");
    variables.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}"))["value"].clone()
}

#[test]
fn lint_is_strict() {
    output(ground().helm().args(["lint", "--strict"]).arg(root().join("charts/tenantry")));
}

#[test]
fn the_api_server_takes_it_with_any_settings() {
    output(
        ground()
            .kubectl()
            .args(["apply", "--server-side", "-f"])
            .arg(root().join("tests/resources/fixtures/prometheus-operator.yaml")),
    );
    let names = all_settings();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), render(&settings(&name))).expect("a written file");
        // The objects are there already, owned by Helm; the dry run writes over nothing.
        let mut kubectl = ground().kubectl();
        kubectl.args(["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f"]);
        // A definition that was made just now is served a moment later.
        while !attempt(ground().kubectl().args(["get", "servicemonitors,prometheusrules"])).0 {}
        output(kubectl.arg(file.path()));
    }
}

#[test]
fn standard_settings() {
    let standard = objects("");
    assert_eq!(count(&standard, "CustomResourceDefinition"), 5);
    assert_eq!(count(&standard, "ValidatingAdmissionPolicy"), 5);
    for crd in standard.iter().filter(|object| object["kind"] == "CustomResourceDefinition") {
        assert_eq!(crd["metadata"]["annotations"]["helm.sh/resource-policy"], "keep", "{}", crd["metadata"]["name"]);
    }
    // Pods of pools need it whether the operator is installed or not.
    let agent = one(&standard, "ClusterRole", "tenantry-agent");
    assert_eq!(agent["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    let spec = &one(&standard, "Deployment", "tenantry")["spec"];
    assert_eq!(spec["replicas"], 2);
    assert_eq!(spec["strategy"]["type"], "RollingUpdate");
    let budget = &one(&standard, "PodDisruptionBudget", "tenantry")["spec"];
    assert_eq!(budget["maxUnavailable"], 1);
    assert_eq!(budget["selector"], spec["selector"], "it is about the operator's pods");
    for spread in spec["template"]["spec"]["topologySpreadConstraints"].as_array().expect("two") {
        assert_eq!(spread["labelSelector"], spec["selector"]);
    }
    let grace = spec["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().expect("seconds");
    let help = operator_help();
    let seconds = |flag: &str| -> u64 {
        let (_, default) = help.split_once(&format!("TENANTRY_{flag}=] [default: ")).expect("a flag");
        default.split_once("s]").expect("seconds").0.parse().expect("a number")
    };
    // What is under way, the Lease, and the last answers, one after the other.
    let ending = seconds("SHUTDOWN_GRACE") + seconds("LEASE_RENEW_DEADLINE") + 2;
    assert!(grace > ending, "killed after {grace} s, where an end may take {ending} s");
    for off in ["ServiceMonitor", "PrometheusRule", "NetworkPolicy"] {
        assert_eq!(count(&standard, off), 0, "{off}");
    }
}

#[test]
fn settings_have_their_effect() {
    let bare = objects(&settings("bare"));
    for kind in [
        "CustomResourceDefinition",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "PodDisruptionBudget",
    ] {
        assert_eq!(count(&bare, kind), 0, "{kind}");
    }
    // Without the policy that holds them to restarts, owners may not patch.
    let writes = |objects: &[Value]| {
        one(objects, "ClusterRole", "tenantry-owner")["rules"]
            .to_string()
            .matches("\"deployments\"],\"verbs\":[\"patch\"]")
            .count()
    };
    assert_eq!((writes(&objects("")), writes(&bare)), (1, 0));

    let pinned = objects(&settings("pinned"));
    assert_eq!(container(&pinned)["image"], format!("registry.example.com/t@sha256:{}", "0".repeat(64)));
    assert_eq!(variable(&pinned, "TENANTRY_AGENT_IMAGE"), format!("registry.example.com/a@sha256:{}", "1".repeat(64)));
    assert_eq!(variable(&pinned, "TENANTRY_AGENT_PULL_POLICY"), "Never");
    assert_eq!(variable(&pinned, "TENANTRY_RELAY_IMAGE"), format!("registry.example.com/r@sha256:{}", "2".repeat(64)));
    assert_eq!(
        (variable(&pinned, "TENANTRY_RELAY_PULL_POLICY"), variable(&pinned, "TENANTRY_RELAY_REPLICAS")),
        ("Never".into(), "3".into())
    );
    let resources = variable(&pinned, "TENANTRY_RELAY_RESOURCES");
    let resources: Value = serde_json::from_str(resources.as_str().expect("text")).expect("JSON");
    assert_eq!(resources["limits"]["memory"], "1Gi");

    let watched = objects(&settings("watched"));
    let monitor = one(&watched, "ServiceMonitor", "tenantry");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    let service = one(&watched, "Service", "tenantry");
    for (label, value) in monitor["spec"]["selector"]["matchLabels"].as_object().expect("labels") {
        assert_eq!(service["metadata"]["labels"][label], *value, "the ServiceMonitor finds the Service");
    }
    assert_eq!(monitor["spec"]["endpoints"][0]["port"], service["spec"]["ports"][0]["name"]);
    for rule in one(&watched, "PrometheusRule", "tenantry")["spec"]["groups"][0]["rules"].as_array().expect("rules") {
        assert_eq!(rule["labels"]["team"], "platform");
        let alert = rule["alert"].as_str().expect("a name").to_lowercase();
        assert_eq!(rule["annotations"]["runbook_url"], format!("https://runbooks.example.com/tenantry#{alert}"));
    }
    let condition =
        &one(&watched, "ValidatingAdmissionPolicy", "tenantry-objects")["spec"]["matchConditions"][0]["expression"];
    for exempt in ["aws-load-balancer-controller", "[\"platform\"]"] {
        assert!(condition.as_str().expect("an expression").contains(exempt), "{condition}");
    }
    let relays = "{metrics: {relays: {enabled: true, labels: {release: prometheus}}}}";
    let (done, rendered, errors) = attempt_render(relays, &["monitoring.coreos.com/v1/PodMonitor"]);
    assert!(done, "{errors}");
    let relays: Vec<Value> = serde_saphyr::from_multiple(&rendered).expect("YAML");
    let relays = one(&relays, "PodMonitor", "tenantry-relays");
    assert_eq!(relays["metadata"]["labels"]["release"], "prometheus");
    assert_eq!(relays["spec"]["podMetricsEndpoints"][0]["port"], "http");
    let policy = &one(&watched, "NetworkPolicy", "tenantry")["spec"];
    assert_eq!(
        policy["podSelector"]["matchLabels"],
        one(&watched, "Deployment", "tenantry")["spec"]["selector"]["matchLabels"]
    );
    for rule in policy["egress"].as_array().expect("rules").iter().chain(policy["ingress"].as_array().expect("rules")) {
        let peers = rule["to"].as_array().or(rule["from"].as_array()).expect("peers");
        assert!(!peers.is_empty() && !rule["ports"].as_array().expect("ports").is_empty(), "open to all: {rule}");
    }
}

/// With a ledger the API is served, by the operator's own login; the owner's is known to the
/// container alone that makes the tables.
#[test]
fn a_ledger_opens_the_api() {
    let metered = objects(&settings("metered"));
    let container = container(&metered);
    let from = |container: &Value| -> Vec<(String, String)> {
        let variables = container["env"].as_array().expect("variables").iter();
        let secret = |variable: &Value| {
            let reference = variable.pointer("/valueFrom/secretKeyRef")?;
            assert_eq!(reference["name"], "tenantry-ledger");
            Some((variable["name"].as_str()?.to_owned(), reference["key"].as_str()?.to_owned()))
        };
        variables.filter_map(secret).collect()
    };
    let url = ("TENANTRY_LEDGER_URL".to_owned(), "url".to_owned());
    assert_eq!(from(container), std::slice::from_ref(&url));
    let first = &one(&metered, "Deployment", "tenantry")["spec"]["template"]["spec"]["initContainers"][0];
    assert_eq!((&first["args"], &first["restartPolicy"]), (&json!(["ledger", "migrate", "--stay"]), &json!("Always")));
    assert_eq!(first["securityContext"], container["securityContext"]);
    assert_eq!(from(first), [url, ("TENANTRY_LEDGER_OWNER_URL".to_owned(), "ownerUrl".to_owned())]);
    let ports = container["ports"].as_array().expect("ports");
    let api = ports.iter().find(|port| port["name"] == "api").expect("a port");
    assert!(operator_help().contains(&format!("TENANTRY_API_LISTEN=] [default: 0.0.0.0:{}]", api["containerPort"])));
    let service = one(&metered, "Service", "tenantry")["spec"]["ports"].as_array().expect("ports");
    assert!(service.iter().any(|port| port["targetPort"] == "api" && port["port"] == api["containerPort"]));
    let rules = one(&metered, "NetworkPolicy", "tenantry")["spec"]["ingress"].as_array().expect("rules");
    assert_eq!(rules.len(), 1, "{rules:?}");
    assert_eq!(rules[0]["ports"][0]["port"], "api");
    let labels: Vec<&Value> = rules[0]["from"]
        .as_array()
        .expect("peers")
        .iter()
        .filter_map(|peer| peer.pointer("/namespaceSelector/matchExpressions/0/key"))
        .collect();
    assert_eq!(labels, ["tenantry.io/relay", "tenantry.io/tenant"]);
    let readers = rules[0]["from"].as_array().map(|peers| &peers[2..]).expect("peers");
    let billing = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "billing"}}}]);
    assert_eq!(json!(readers), billing, "those alone that are named");

    let standard = objects("");
    assert!(from(self::container(&standard)).is_empty());
    assert_eq!(one(&standard, "Service", "tenantry")["spec"]["ports"].as_array().expect("ports").len(), 1);
}

/// With a certificate the API serves TLS, whose files are mounted as a folder, so that they are renewed.
#[test]
fn a_certificate_secures_the_api() {
    let secured = objects(&settings("secured"));
    let container = container(&secured);
    let folder = "/etc/tenantry/api";
    for (name, file) in
        [("TENANTRY_API_TLS_CERT", "tls.crt"), ("TENANTRY_API_TLS_KEY", "tls.key"), ("TENANTRY_API_CA", "ca.crt")]
    {
        assert_eq!(variable(&secured, name), format!("{folder}/{file}"));
    }
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    let mount = mounts.iter().find(|mount| mount["mountPath"] == folder).expect("a mount");
    assert_eq!((mount.get("subPath"), &mount["readOnly"]), (None, &json!(true)));
    let pod = &one(&secured, "Deployment", "tenantry")["spec"]["template"]["spec"];
    let volume = pod["volumes"].as_array().expect("volumes").iter().find(|volume| volume["name"] == mount["name"]);
    assert_eq!(volume.expect("a volume")["secret"]["secretName"], "tenantry-api-tls");
    // The one that makes the ledger's tables has no use for it.
    assert_eq!(pod["initContainers"][0]["volumeMounts"].as_array().expect("mounts").len(), 1);
    let names = |objects: &[Value]| self::container(objects)["env"].to_string();
    assert!(!names(&objects(&settings("metered"))).contains("TENANTRY_API_"), "off unless it is asked for");
    for (values, says) in [("secured", "https://tenantry.tenantry-system.svc:8081"), ("metered", "http://tenantry.")] {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), settings(values)).expect("a written file");
        let mut helm = ground().helm();
        helm.args(["install", "tenantry", "--namespace", "tenantry-system", "--dry-run=client", "--values"]);
        let notes = output(helm.arg(file.path()).arg(root().join("charts/tenantry")));
        assert!(notes.contains(&format!("The metering API is at {says}")), "{notes}");
    }
}

/// What a cluster lacks, or a policy needs, is said before anything is installed.
#[test]
fn what_is_missing_is_named() {
    for (values, kinds, says) in [
        (
            "{metrics: {serviceMonitor: {enabled: true}}}",
            &[][..],
            "metrics.serviceMonitor needs the CustomResourceDefinitions of the Prometheus operator",
        ),
        (
            "{metrics: {rules: {enabled: true}}}",
            &["monitoring.coreos.com/v1/ServiceMonitor"][..],
            "metrics.rules needs the CustomResourceDefinitions",
        ),
        (
            "{networkPolicy: {enabled: true, apiServer: [{ipBlock: {cidr: 192.0.2.1/32}}]}}",
            &[],
            "networkPolicy.databases is empty: name the peers",
        ),
        (
            "{networkPolicy: {enabled: true, databases: [{ipBlock: {cidr: 192.0.2.1/32}}]}}",
            &[],
            "networkPolicy.apiServer is empty: name the API server's own addresses",
        ),
        (
            "{api: {tls: {secretName: tenantry-api-tls}}}",
            &[],
            "api.tls.secretName is of no use without ledger.secretName",
        ),
    ] {
        let (done, _, errors) = attempt_render(values, kinds);
        assert!(!done && errors.contains(says), "{values}: {errors}");
    }
}

/// An upgrade of the operator changes no pod template of an application: of all that it is
/// told, nothing that goes into one follows its version.
#[test]
fn an_upgrade_of_the_operator_changes_no_pod_template() {
    let version = |version: &str| -> Vec<Value> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut helm = ground().helm();
        helm.args(["package", "--version", version, "--app-version", version, "-d"]).arg(folder.path());
        output(helm.arg(root().join("charts/tenantry")));
        let package = folder.path().join(format!("tenantry-{version}.tgz"));
        serde_saphyr::from_multiple(&output(ground().helm().args(["template", "tenantry"]).arg(package))).expect("YAML")
    };
    let (old, new) = (version("0.1.0"), version("0.2.0"));
    let image = |objects: &[Value]| container(objects)["image"].as_str().expect("an image").to_owned();
    assert_ne!(image(&old), image(&new), "the operator itself is upgraded");
    for name in ["TENANTRY_AGENT_IMAGE", "TENANTRY_AGENT_PULL_POLICY"] {
        assert_eq!(variable(&old, name), variable(&new, name), "{name}");
    }
    // The operator's own default is the chart's, so that it runs the same agents outside of a cluster.
    let agent = variable(&new, "TENANTRY_AGENT_IMAGE");
    let default = format!("TENANTRY_AGENT_IMAGE=] [default: {}]", agent.as_str().expect("an image"));
    assert!(
        operator_help().contains(&default),
        "the agent's image in values.yaml and in settings.rs differ: {default}"
    );
    // Its version is known to the program for --version and for its metrics, and to nothing that makes objects.
    for folder in ["src/api", "src/desired", "src/cluster"] {
        for file in files(&root().join(folder)) {
            let text = fs::read_to_string(&file).expect("a source file");
            assert!(
                !text.contains("CARGO_PKG_VERSION"),
                "{} makes objects that depend on the operator's version",
                file.display()
            );
        }
    }
    let settings = fs::read_to_string(root().join("src/controller/settings.rs")).expect("a source file");
    assert!(!settings.contains("CARGO_PKG_VERSION"), "a flag's default depends on the operator's version");
}

fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The help of `tenantry operator`, on one line.
fn operator_help() -> String {
    let help = output(std::process::Command::new(env!("CARGO_BIN_EXE_tenantry")).args(["operator", "--help"]));
    help.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every setting is explained in the chart's README.
#[test]
fn every_setting_is_documented() {
    let read = |file: &str| fs::read_to_string(root().join("charts/tenantry").join(file)).expect("a file of the chart");
    let values: Value = serde_saphyr::from_str(&read("values.yaml")).expect("YAML");
    let readme = read("README.md");
    let mut paths = Vec::new();
    leaves("", &values, &mut paths);
    assert!(paths.len() > 30, "{paths:?}");
    let missing: Vec<_> = paths.iter().filter(|path| !readme.contains(&format!("| `{path}` |"))).collect();
    assert!(missing.is_empty(), "charts/tenantry/README.md lacks {missing:?}");
    let rows = readme.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, paths.len(), "it explains a setting that there isn't");
}

fn leaves(path: &str, value: &Value, paths: &mut Vec<String>) {
    let Some(map) = value.as_object().filter(|map| !map.is_empty()) else { return paths.push(path.to_owned()) };
    for (key, value) in map {
        leaves(&if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, paths);
    }
}

/// The Deployment sets no variable that the program doesn't know, and the probes' port is
/// the one that it listens on.
#[test]
fn its_variables_are_the_programs() {
    let help = operator_help();
    for settings in all_settings().iter().map(|name| settings(name)) {
        for variable in container(&objects(&settings))["env"].as_array().expect("variables") {
            let name = variable["name"].as_str().expect("a name");
            // The value of a secret one is not shown.
            let known = ["=", "]"].iter().any(|end| help.contains(&format!("[env: {name}{end}")));
            assert!(known, "tenantry operator knows no {name}");
        }
    }
    let objects = objects("");
    let container = container(&objects);
    assert_eq!(container["ports"][0]["containerPort"], 8080);
    assert!(help.contains("TENANTRY_LISTEN=] [default: 0.0.0.0:8080]"), "{help}");
}

#[test]
fn wrong_settings_are_refused() {
    for (set, says) in [
        ("replicas=-1", "replicas"),
        ("replicas=many", "replicas"),
        ("replica=2", "replica"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.digest=latest", "digest"),
        ("crds.install=perhaps", "install"),
        ("ledger.secretName=postgres://u:p@host/ledger", "secretName"),
        ("api.tls.secretName=/etc/tls", "secretName"),
        ("agent.image.tag=", "tag"),
        ("metrics.rules.runbook=docs", "runbook"),
        ("networkPolicy.databasePorts[0]=0", "databasePorts"),
        ("networkPolicy.databases[0].cidr=192.0.2.1/32", "databases"),
        ("admissionPolicies.closed[0].apiGroups[0]=traefik.io", "resources"),
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
    let mut pod = one(&objects(""), "Deployment", "tenantry")["spec"]["template"].clone();
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
