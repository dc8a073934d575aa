//! From started programs to a cluster that is ready for use.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use kube::runtime::conditions::{is_crd_established, is_created};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client};
use serde_json::json;

use super::{ControlPlane, Ports, Setting};
use crate::process::{Process, tail};
use crate::{Error, kubeconfig};

/// The annotation of the nodes that kwok plays.
pub(super) const NODE_ANNOTATION: (&str, &str) = ("kwok.x-k8s.io/node", "fake");
/// For machines much slower than those where a start takes seconds.
const READY_WITHIN: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Waits for the API server, starts its clients, and sets the cluster up. Runs on a
/// thread and runtime of its own: the caller may be inside a runtime or not.
pub(super) fn run(setting: &Setting<'_>, mut plane: ControlPlane, ports: &Ports) -> Result<ControlPlane, Error> {
    blocking(async {
        let client = kubeconfig::client(&setting.dir.join("kubeconfig")).await?;
        unless_dead(&plane.all(), "the API server", answers(&client, "/readyz")).await?;
        plane.processes.extend(setting.start_clients(ports)?);
        let set_up = async {
            let gateway_api = async {
                if setting.options.gateway_api {
                    install_definitions(&client, &setting.programs.gateway_api()).await?;
                }
                Ok(())
            };
            if setting.options.api_only {
                return gateway_api.await;
            }
            tokio::try_join!(
                gateway_api,
                nodes(&client, setting.options.nodes),
                default_service_account(&client),
                healthy(setting, ports.controller_manager.number(), "/healthz"),
                healthy(setting, ports.scheduler.number(), "/readyz"),
            )
            .map(drop)
        };
        unless_dead(&plane.all(), "the cluster", set_up).await
    })?;
    Ok(plane)
}

/// Runs a future to its end on a new thread, so that it may be called from anywhere.
pub(crate) fn blocking<T: Send>(future: impl Future<Output = Result<T, Error>> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|source| Error::Missing {
                        what: format!("no asynchronous runtime can be made: {source}"),
                        hint: "raise the limit of open files (ulimit -n)".into(),
                    })?
                    .block_on(future)
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Waits for `work`, but not when a program ends meanwhile, and not for ever.
pub(crate) async fn unless_dead<T>(
    processes: &[&Process],
    what: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::select! {
        done = work => done,
        error = death(processes) => Err(error),
        () = tokio::time::sleep(READY_WITHIN) => {
            // The last that was started is the one that was waited for.
            let log = processes.last().map(|process| process.log_path().to_owned()).unwrap_or_default();
            Err(Error::NotReady {
                program: what.to_owned(),
                state: "no answer, or not yet set up".into(),
                after: READY_WITHIN,
                tail: tail(&log, 12),
                log,
            })
        }
    }
}

/// Waits until one of the programs ends.
async fn death(processes: &[&Process]) -> Error {
    loop {
        for process in processes {
            if let Some(status) = process.wait(Duration::ZERO) {
                return process.died(status);
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until a path of the API server (or of another program) answers with success.
pub(crate) async fn answers(client: &Client, path: &str) -> Result<(), Error> {
    loop {
        let request = http::Request::get(path).body(Vec::new()).expect("the path is a valid one");
        if client.request_text(request).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until one of the API server's clients is healthy.
async fn healthy(setting: &Setting<'_>, port: u16, path: &str) -> Result<(), Error> {
    let url = format!("https://127.0.0.1:{port}");
    let mut config = kube::Config::new(url.parse().expect("the URL is a valid one"));
    config.root_cert = Some(vec![setting.authority.certificate_der()]);
    let client = Client::try_from(config).map_err(failed("make a client"))?;
    answers(&client, path).await
}

/// Applies every object of the YAML files in a folder; returns when all custom
/// resource definitions among them are established.
pub(crate) async fn install_definitions(client: &Client, folder: &Path) -> Result<(), Error> {
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let path = entry.map_err(Error::file("read", folder))?.path();
        let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        let documents: Vec<DynamicObject> = serde_saphyr::from_multiple(&text).map_err(|error| Error::Missing {
            what: format!("{} is not what was expected: {error}", path.display()),
            hint: "remove the cache folder that it is in, so that it is made again".into(),
        })?;
        objects.extend(documents);
    }
    try_join_all(objects.into_iter().map(|object| apply(client, object))).await?;
    Ok(())
}

async fn apply(client: &Client, object: DynamicObject) -> Result<(), Error> {
    let name = object.metadata.name.clone().unwrap_or_default();
    let types = object.types.clone().unwrap_or_default();
    let (group, version) = types.api_version.split_once('/').unwrap_or(("", "v1"));
    let kind = GroupVersionKind::gvk(group, version, &types.kind);
    // All that these files hold is cluster-scoped.
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    let action = format!("apply {} {name}", types.kind);
    let parameters = PatchParams::apply("devcluster");
    api.patch(&name, &parameters, &Patch::Apply(&object)).await.map_err(failed(&action))?;
    if types == TypeMeta::resource::<CustomResourceDefinition>() {
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        until(definitions, &name, is_crd_established()).await?;
    }
    Ok(())
}

/// Makes the nodes, and waits until pods can be scheduled on all of them.
async fn nodes(client: &Client, count: u32) -> Result<(), Error> {
    try_join_all((0..count).map(|index| node(client, index))).await?;
    Ok(())
}

async fn node(client: &Client, index: u32) -> Result<(), Error> {
    let name = format!("node-{index}");
    let room = json!({"cpu": "32", "memory": "256Gi", "pods": "500", "ephemeral-storage": "1Ti"});
    let node: Node = serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "annotations": {NODE_ANNOTATION.0: NODE_ANNOTATION.1},
            "labels": {
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
            },
        },
        "status": {"allocatable": room, "capacity": room},
    }))
    .expect("this is a node");
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&PostParams::default(), &node).await.map_err(failed(&format!("create Node {name}")))?;
    until(nodes, &name, |node: Option<&Node>| node.is_some_and(takes_pods)).await
}

fn takes_pods(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let tainted = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        && tainted.is_none_or(Vec::is_empty)
}

/// Its appearance shows that the controllers work, and pods need it.
async fn default_service_account(client: &Client) -> Result<(), Error> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    until(accounts, "default", is_created()).await
}

async fn until<K>(api: Api<K>, name: &str, condition: impl Condition<K>) -> Result<(), Error>
where
    K: kube::Resource + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
{
    await_condition(api, name, condition).await.map(drop).map_err(|error| Error::NotReady {
        program: name.to_owned(),
        state: error.to_string(),
        after: Duration::ZERO,
        log: "".into(),
        tail: String::new(),
    })
}

pub(crate) fn failed(action: &str) -> impl FnOnce(kube::Error) -> Error {
    let action = format!("can't {action}");
    move |source| Error::Kubernetes { action, source: Box::new(source) }
}
