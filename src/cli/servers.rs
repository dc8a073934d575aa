//! The database servers that a verb asks, as their admin.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Context as _;
use clap::Args;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Api, Client, ResourceExt as _};

use super::client::{explained, list};
use crate::{
    api::DatabaseServer,
    controller::server_config,
    database::{Server, ServerConfig},
};

/// Where the credentials are.
#[derive(Args, Debug)]
pub(super) struct CredentialsArgs {
    /// The operator's namespace, which has the servers' credentials
    #[arg(long, short, env = "TENANTRY_NAMESPACE", default_value = "tenantry-system")]
    pub(super) namespace: String,
}

/// Which servers are asked.
#[derive(Args, Debug)]
pub(super) struct ServersArgs {
    /// On this DatabaseServer alone, and not on all (may be repeated)
    #[arg(long = "server", value_name = "NAME")]
    pub(super) servers: Vec<String>,
    #[command(flatten)]
    pub(super) credentials: CredentialsArgs,
}

/// The DatabaseServers that are asked.
pub(super) async fn chosen(client: &Client, args: &ServersArgs) -> anyhow::Result<Vec<DatabaseServer>> {
    let mut servers = list(&Api::<DatabaseServer>::all(client.clone())).await?;
    for name in &args.servers {
        let known = servers.iter().any(|server| server.name_any() == *name);
        known.then_some(()).with_context(|| format!("there is no DatabaseServer {name}"))?;
    }
    servers.retain(|server| args.servers.is_empty() || args.servers.contains(&server.name_any()));
    Ok(servers)
}

/// This cluster's id: the UID of its namespace kube-system.
pub(super) async fn cluster_id(client: &Client) -> anyhow::Result<String> {
    let system = Api::<Namespace>::all(client.clone()).get_metadata("kube-system").await;
    let system =
        system.map_err(|error| explained(error, "read namespace kube-system, whose UID is this cluster's id"))?;
    Ok(system.metadata.uid.unwrap_or_default())
}

/// A way to a server as its admin; nothing is opened yet.
pub(super) async fn connect(
    client: &Client,
    server: &DatabaseServer,
    args: &CredentialsArgs,
) -> anyhow::Result<Server> {
    Ok(Server::new(config(client, server, &args.namespace).await?)?)
}

async fn config(client: &Client, server: &DatabaseServer, namespace: &str) -> anyhow::Result<ServerConfig> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let ca = server.spec.tls.as_ref().and_then(|tls| tls.ca_secret.as_ref());
    let mut read = BTreeMap::new();
    for name in [Some(&server.spec.admin.credentials_secret), ca].into_iter().flatten().map(|reference| &reference.name)
    {
        let found = secrets
            .get_opt(name)
            .await
            .map_err(|error| explained(error, &format!("read Secret {namespace}/{name}")))?;
        found.map(|secret| read.insert(name.clone(), Arc::new(secret)));
    }
    server_config(server, namespace, |name| read.get(name).cloned()).map_err(anyhow::Error::msg)
}

/// The databases of this cluster on a server, by name.
pub(super) async fn databases(server: &Server, cluster: &str) -> anyhow::Result<Vec<String>> {
    let databases = server.list_databases().await?;
    let ours = databases.into_iter().filter(|it| it.mark.as_ref().is_some_and(|mark| mark.cluster_id == cluster));
    Ok(ours.map(|database| database.name).collect())
}
