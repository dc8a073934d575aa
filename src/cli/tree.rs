//! `tree`: what a tenant runs by.

use clap::Args;
use futures::{StreamExt as _, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, ListParams},
};
use serde::Serialize;
use serde_json::Value;

use super::{
    Answer,
    client::{ClientArgs, get},
    status::{state, usage_line},
    table::Table,
};
use crate::{
    api::{ConditionType, LABEL_POOL, LABEL_TENANT, Pool, Tenant, find_condition},
    cluster::api_resource,
    desired::{Kind, RouteState, availability::component_state, naming, route_accepted},
};

/// How many kinds are listed at a time.
const CONCURRENCY: usize = 4;

/// Arguments of `tree`.
#[derive(Args, Debug)]
pub struct TreeArgs {
    /// The Tenant
    name: String,
}

/// An object, and what stands below it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node {
    kind: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    /// One or two words; empty where the object being there is all there is to say.
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    children: Vec<Node>,
}

/// What `tree` found.
#[derive(Serialize)]
pub(super) struct Tree {
    tenant: Node,
    /// Kinds that could not be listed, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hidden: Vec<String>,
}

impl Node {
    fn new(kind: &str, name: &str, state: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            name: name.to_owned(),
            namespace: None,
            state: state.to_owned(),
            message: String::new(),
            children: Vec::new(),
        }
    }

    fn of(kind: &str, name: &str, conditions: &[Condition]) -> Self {
        let ready = find_condition(conditions, ConditionType::Ready);
        let is_ready = ready.is_some_and(|ready| ready.status == "True");
        let message = ready.filter(|_| !is_ready).map(|ready| ready.message.clone()).unwrap_or_default();
        Self { message, ..Self::new(kind, name, if is_ready { "Ready" } else { "not Ready" }) }
    }
}

/// Looks at what a tenant runs by.
pub(super) async fn tree(args: &TreeArgs, client: &ClientArgs) -> anyhow::Result<Tree> {
    let client = client.connect().await?;
    let tenant = get(&Api::<Tenant>::all(client.clone()), &args.name).await?;
    let status = tenant.status.clone().unwrap_or_default();
    let mut root = Node { state: state(&tenant).to_owned(), ..Node::of("Tenant", &args.name, &status.conditions) };
    if root.message.is_empty() {
        root.message = status.usage.as_ref().map(usage_line).unwrap_or_default();
    }
    let mut hidden = Vec::new();
    let namespace = match &status.namespace {
        Some(namespace) => {
            Some(in_namespace(&client, namespace, &args.name, status.pool.as_deref(), &mut hidden).await?)
        }
        None => None,
    };
    match &status.pool {
        Some(name) => {
            let mut pool = match Api::<Pool>::all(client.clone()).get_opt(name).await? {
                Some(pool) => {
                    let status = pool.status.unwrap_or_default();
                    let counted = format!("{} of {} tenants", status.tenants, status.capacity);
                    let node = Node::of("Pool", name, &status.conditions);
                    Node { message: if node.message.is_empty() { counted } else { node.message }, ..node }
                }
                None => Node::new("Pool", name, "missing"),
            };
            pool.children.extend(namespace);
            root.children.push(pool);
        }
        None => root.children.extend(namespace),
    }
    if let Some(database) = status.database {
        let mut server = Node::new("DatabaseServer", &database.server, "");
        let mut inner = Node::new("Database", &database.database, "");
        inner.children.push(Node::new("Schema", &database.schema, ""));
        server.children.push(inner);
        root.children.push(server);
    }
    Ok(Tree { tenant: root, hidden })
}

/// A tenant's objects in a namespace; where that is a pool's, also what serves the tenant there.
async fn in_namespace(
    client: &Client,
    namespace: &str,
    tenant: &str,
    pool: Option<&str>,
    hidden: &mut Vec<String>,
) -> anyhow::Result<Node> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &api_resource(Kind::Namespace));
    let state = match api.get_opt(namespace).await {
        Ok(Some(live)) => live.data["status"]["phase"].as_str().unwrap_or_default().to_owned(),
        Ok(None) => return Ok(Node::new(Kind::Namespace.as_str(), namespace, "missing")),
        Err(error) => {
            hidden.push(why(Kind::Namespace, &error));
            String::new()
        }
    };
    let mut node = Node::new(Kind::Namespace.as_str(), namespace, &state);
    let own = format!("{LABEL_TENANT}={tenant}");
    let mut asked: Vec<(Kind, String)> = Kind::ALL
        .into_iter()
        .filter(|kind| kind.namespaced() && *kind != Kind::ControllerRevision)
        .map(|kind| (kind, own.clone()))
        .collect();
    asked.extend(pool.map(|pool| (Kind::Deployment, format!("{LABEL_POOL}={pool},!{LABEL_TENANT}"))));
    let lists = stream::iter(asked).map(async |(kind, selector)| {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &api_resource(kind));
        (kind, api.list(&ListParams::default().labels(&selector)).await)
    });
    let lists: Vec<_> = lists.buffered(CONCURRENCY).collect().await;
    for (kind, list) in lists {
        match list {
            Ok(list) => node.children.extend(list.items.into_iter().map(|object| object_node(kind, object))),
            // A cluster without the Gateway API has none of its objects either.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => hidden.push(why(kind, &error)),
        }
    }
    node.children.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
    Ok(node)
}

fn why(kind: Kind, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => format!("{kind}: you may not list these"),
        other => format!("{kind}: {other}"),
    }
}

fn object_node(kind: Kind, object: DynamicObject) -> Node {
    let (name, namespace) = (object.name_any(), object.namespace());
    let ending = object.metadata.deletion_timestamp.is_some();
    let mut live: Value = serde_json::to_value(object).unwrap_or_default();
    live["kind"] = kind.as_str().into();
    let (state, message) = match kind {
        _ if ending => ("Terminating".to_owned(), String::new()),
        Kind::Deployment => {
            let component = live["metadata"]["labels"][naming::LABEL_COMPONENT].as_str().unwrap_or(&name).to_owned();
            let found = component_state(&component, Some(&live));
            let count = |pointer: &str| live.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
            (format!("{}/{}", count("/status/readyReplicas"), count("/spec/replicas")), found.message)
        }
        Kind::HttpRoute | Kind::Ingress => match route_accepted(&live) {
            RouteState::Accepted => ("Accepted".to_owned(), String::new()),
            RouteState::Pending { message } => ("Pending".to_owned(), message),
            RouteState::Refused { reason, message } => (reason, message),
        },
        _ => (String::new(), String::new()),
    };
    Node { kind: kind.as_str().to_owned(), name, namespace, state, message, children: Vec::new() }
}

impl Answer for Tree {
    fn text(&self, width: Option<usize>) -> String {
        let mut table = Table::new(&["OBJECT", "STATE", "MESSAGE"]);
        rows(&self.tenant, "", "", &mut table);
        let mut text = table.text(width);
        for hidden in &self.hidden {
            text.push_str(&format!("not shown: {hidden}\n"));
        }
        text
    }
}

/// A row for a node and each below it; `first` stands before its own, `rest` before theirs.
fn rows(node: &Node, first: &str, rest: &str, table: &mut Table) {
    table.row([format!("{first}{}/{}", node.kind, node.name), node.state.clone(), node.message.clone()]);
    for (at, child) in node.children.iter().enumerate() {
        let (branch, below) = if at + 1 == node.children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        rows(child, &format!("{rest}{branch}"), &format!("{rest}{below}"), table);
    }
}
