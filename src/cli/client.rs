//! The cluster that a verb asks: found as kubectl finds it.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;
use kube::{
    Api, Client, Config, Resource,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;

/// How long one call may take: somebody is looking at the screen.
const CALL: Duration = Duration::from_secs(30);
/// How many objects a page of a list has.
const PAGE: u32 = 500;

/// Which cluster is asked.
#[derive(Args, Debug)]
pub(super) struct ClientArgs {
    /// The kubeconfig file; KUBECONFIG, ~/.kube/config or the pod's own account when left out
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; its current one when left out
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl ClientArgs {
    /// A client for that cluster.
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match (&self.kubeconfig, &self.context) {
            (Some(path), _) => {
                let kubeconfig =
                    Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await.context("use the kubeconfig")?
            }
            (None, Some(context)) => {
                Config::from_kubeconfig(&options).await.with_context(|| format!("--context {context}"))?
            }
            (None, None) => Config::infer().await.context("find a cluster: set KUBECONFIG or --kubeconfig")?,
        };
        config.read_timeout = Some(CALL);
        config.connect_timeout = Some(CALL);
        Ok(Client::try_from(config)?)
    }
}

/// Every object of a kind, sorted by name.
pub(super) async fn list<K>(api: &Api<K>) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut params = ListParams::default().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await.map_err(|error| explained(error, &format!("list {}", K::plural(&()))))?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    all.sort_by(|a, b| a.meta().name.cmp(&b.meta().name));
    Ok(all)
}

/// One object of a kind.
pub(super) async fn get<K>(api: &Api<K>, name: &str) -> anyhow::Result<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let kind = K::kind(&());
    let found = api.get_opt(name).await.map_err(|error| explained(error, &format!("read {kind} {name}")))?;
    found.with_context(|| format!("there is no {kind} {name}: kubectl get {} lists them", K::plural(&())))
}

/// A refusal, with what to do where that is known.
pub(super) fn explained(error: kube::Error, what: &str) -> anyhow::Error {
    let hint = match &error {
        kube::Error::Api(status) if status.code == 404 => ": is Tenantry installed in this cluster?",
        kube::Error::Api(status) if status.code == 403 => {
            ": ClusterRole tenantry-viewer allows to look, tenantry-admin to change"
        }
        _ => "",
    };
    anyhow::Error::new(error).context(format!("{what}{hint}"))
}
