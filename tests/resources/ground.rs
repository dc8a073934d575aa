//! One control plane for all tests of this binary, with the chart installed, and the few
//! verbs that the tests need.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use devcluster::{Devcluster, Options};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::Value;

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The control plane that the tests share; the process's end ends it.
pub fn ground() -> &'static Devcluster {
    static GROUND: OnceLock<Devcluster> = OnceLock::new();
    GROUND.get_or_init(with_chart)
}

/// A control plane with the chart installed. The operator doesn't run: what is tested here
/// is what the API server does alone.
pub fn with_chart() -> Devcluster {
    let ground = Devcluster::start(Options { postgres: false, nodes: 1, ..Options::default() }).expect("a devcluster");
    install(&ground);
    ground
}

/// Installs the chart, or upgrades to it.
pub fn install(ground: &Devcluster) {
    let mut helm = ground.helm();
    helm.args(["upgrade", "--install", "tenantry", "--namespace", "tenantry-system", "--create-namespace"]);
    output(helm.arg("--set").arg("replicas=0").arg(root().join("charts/tenantry")));
    await_policy(ground);
}

/// Waits until the admission policy holds, which the API server learns of by watch: until
/// a probe that is in use can't be deleted.
fn await_policy(ground: &Devcluster) {
    let probe = "{apiVersion: tenantry.io/v1alpha1, kind: Plan, metadata: {name: probe}, spec: {tier: pooled}}";
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), probe).expect("a written file");
    output(ground.kubectl().args(["apply", "--server-side", "-f"]).arg(file.path()));
    let in_use = |tenants: u32| {
        let patch = format!("{{\"status\":{{\"tenants\":{tenants}}}}}");
        let mut kubectl = ground.kubectl();
        output(kubectl.args(["patch", "plan", "probe", "--subresource=status", "--type=merge", "-p", &patch]));
    };
    in_use(1);
    while attempt(ground.kubectl().args(["delete", "plan", "probe", "--dry-run=server"])).0 {}
    in_use(0);
    output(ground.kubectl().args(["delete", "plan", "probe"]));
}

/// The output of a command that must succeed.
pub fn output(command: &mut Command) -> String {
    let (success, stdout, stderr) = attempt(command);
    assert!(success, "{command:?} failed:\n{stdout}{stderr}");
    stdout
}

/// Whether a command succeeded, its output, and its errors.
pub fn attempt(command: &mut Command) -> (bool, String, String) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// A client of the shared control plane with all rights.
pub async fn client() -> Client {
    ground().client().await.expect("a client")
}

/// The API of one of our kinds.
pub fn api(client: Client, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("tenantry.io", "v1alpha1", kind));
    Api::all_with(client, &resource)
}

/// Applies an object of ours as `kubectl apply --server-side` would. `dry` only asks.
pub async fn apply(client: Client, object: &Value, dry: bool) -> kube::Result<DynamicObject> {
    let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
    let mut params = PatchParams::apply("a-user").validation_strict();
    params.dry_run = dry;
    api(client, &kind).patch(&name, &params, &Patch::Apply(object)).await
}

/// The string at a JSON pointer of an object that a test wrote.
pub fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer} in {object}")).to_owned()
}

/// The documents of a YAML file.
pub fn documents(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The object of a kind and name in a file of `examples/`.
pub fn example(file: &str, name: &str) -> Value {
    documents(&root().join("examples").join(file))
        .into_iter()
        .find(|object| text(object, "/metadata/name") == name)
        .unwrap_or_else(|| panic!("no {name} in examples/{file}"))
}
