//! `adopt`: after a restore of the cluster, Tenants get the data of the earlier ones of their
//! names.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use clap::Args;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{
    Answer,
    client::{ClientArgs, explained, get, list},
    table::Table,
};
use crate::api::{
    ANNOTATION_ADOPT_CLUSTER, ANNOTATION_RESTORE_FROM, ConflictState, DatabaseServer, Tenant, TenantConflict,
};

/// Who has set an annotation, in its managedFields.
const MANAGER: &str = "kubectl-tenantry";
/// How many Tenants are written at a time.
const CONCURRENCY: usize = 16;

/// Arguments of `adopt`.
#[derive(Args, Debug)]
pub struct AdoptArgs {
    /// The Tenants that get the data that earlier ones of their names left
    #[arg(required_unless_present_any = ["all", "from_cluster"], conflicts_with_all = ["all", "from_cluster"])]
    names: Vec<String>,
    /// Every Tenant that waits for that to be decided
    #[arg(long, conflicts_with = "from_cluster")]
    all: bool,
    /// Take over the databases that another cluster left, by the UID of its namespace
    /// kube-system. Only for a cluster that is gone for good: its operator must never write
    /// again
    #[arg(long, value_name = "ID")]
    from_cluster: Option<String>,
    /// With --from-cluster: on this DatabaseServer alone, and not on all (may be repeated)
    #[arg(long = "server", value_name = "NAME", requires = "from_cluster")]
    servers: Vec<String>,
    /// Only print what would be done
    #[arg(long)]
    dry_run: bool,
}

/// What `adopt` did.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Adopted {
    dry_run: bool,
    items: Vec<Item>,
}

/// What became of one Tenant or DatabaseServer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    kind: &'static str,
    name: String,
    action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<ConflictState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    database: Option<String>,
    note: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Action {
    /// The annotation was set, or would be.
    Adopted,
    /// It stands there already.
    Unchanged,
    /// Nothing is to be decided here.
    Nothing,
    /// A person has to act.
    Skipped,
}

/// Gives Tenants the data of the earlier ones of their names.
pub(super) async fn adopt(args: &AdoptArgs, client: &ClientArgs) -> anyhow::Result<Adopted> {
    let client = client.connect().await?;
    let items = match &args.from_cluster {
        Some(cluster) => from_cluster(&client, cluster, args).await?,
        None => tenants(&client, args).await?,
    };
    Ok(Adopted { dry_run: args.dry_run, items })
}

async fn tenants(client: &Client, args: &AdoptArgs) -> anyhow::Result<Vec<Item>> {
    let api = Api::<Tenant>::all(client.clone());
    let tenants = if args.all {
        let waiting = |tenant: &Tenant| tenant.status.as_ref().is_some_and(|status| status.conflict.is_some());
        list(&api).await?.into_iter().filter(waiting).collect()
    } else {
        let mut tenants = Vec::new();
        for name in args.names.iter().collect::<BTreeSet<_>>() {
            tenants.push(get(&api, name).await?);
        }
        tenants
    };
    let (api, dry_run) = (&api, args.dry_run);
    let done = stream::iter(tenants).map(async |tenant| decide(api, &tenant, dry_run).await);
    let done: Vec<anyhow::Result<Item>> = done.buffered(CONCURRENCY).collect().await;
    done.into_iter().collect()
}

/// Sets the annotation of one Tenant, where that is what decides.
async fn decide(api: &Api<Tenant>, tenant: &Tenant, dry_run: bool) -> anyhow::Result<Item> {
    let mut item = Item {
        kind: "Tenant",
        name: tenant.name_any(),
        action: Action::Nothing,
        from: None,
        state: None,
        database: None,
        note: "no data of an earlier Tenant of this name is in the way".into(),
    };
    let Some(conflict) = tenant.status.as_ref().and_then(|status| status.conflict.as_ref()) else { return Ok(item) };
    item.from = Some(conflict.uid.clone());
    item.state = Some(conflict.state);
    item.database = Some(format!("{}/{}", conflict.server, conflict.database));
    (item.action, item.note) = judge(tenant, conflict);
    if item.action == Action::Adopted && !dry_run {
        annotate(api, tenant, ANNOTATION_RESTORE_FROM, &conflict.uid).await?;
    }
    Ok(item)
}

fn judge(tenant: &Tenant, conflict: &TenantConflict) -> (Action, String) {
    let skipped = |note: String| (Action::Skipped, note);
    if tenant.metadata.deletion_timestamp.is_some() {
        return skipped("the Tenant is being deleted".into());
    }
    if let Some(cluster) = &conflict.cluster {
        return skipped(format!("belongs to cluster {cluster}: see --from-cluster"));
    }
    if conflict.application != tenant.spec.application {
        return skipped(format!(
            "is data of Application {}: a Tenant of that one has to take it",
            conflict.application
        ));
    }
    if tenant.annotations().get(ANNOTATION_RESTORE_FROM) == Some(&conflict.uid) {
        return (Action::Unchanged, "asked for already; the operator is to act".into());
    }
    (Action::Adopted, String::new())
}

/// Asks for the databases of another cluster, on every DatabaseServer or on those named.
async fn from_cluster(client: &Client, cluster: &str, args: &AdoptArgs) -> anyhow::Result<Vec<Item>> {
    let system = Api::<Namespace>::all(client.clone()).get_metadata("kube-system").await;
    let system =
        system.map_err(|error| explained(error, "read namespace kube-system, whose UID is this cluster's id"))?;
    if system.metadata.uid.as_deref() == Some(cluster) {
        bail!("{cluster} is this cluster's own id: give the id of the one that is gone");
    }
    let api = Api::<DatabaseServer>::all(client.clone());
    let mut servers = list(&api).await?;
    for name in &args.servers {
        servers
            .iter()
            .find(|server| server.name_any() == *name)
            .with_context(|| format!("there is no DatabaseServer {name}"))?;
    }
    servers.retain(|server| args.servers.is_empty() || args.servers.contains(&server.name_any()));
    let mut items = Vec::new();
    for server in servers {
        let set = server.annotations().get(ANNOTATION_ADOPT_CLUSTER).is_some_and(|id| id == cluster);
        let honoured = server.status.as_ref().and_then(|status| status.adopted_cluster.as_deref()) == Some(cluster);
        let (action, note) = match (set, honoured) {
            (true, true) => (Action::Unchanged, "taken over already"),
            (true, false) => (Action::Unchanged, "asked for already; the operator is to act"),
            (false, _) => (Action::Adopted, "then: tenantry adopt --all"),
        };
        if action == Action::Adopted && !args.dry_run {
            annotate(&api, &server, ANNOTATION_ADOPT_CLUSTER, cluster).await?;
        }
        items.push(Item {
            kind: "DatabaseServer",
            name: server.name_any(),
            action,
            from: Some(cluster.to_owned()),
            state: None,
            database: None,
            note: note.into(),
        });
    }
    Ok(items)
}

async fn annotate<K>(api: &Api<K>, object: &K, annotation: &str, value: &str) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let name = object.name_any();
    // The UID keeps it from reaching another object that took the name in the meantime.
    let patch = Patch::Merge(json!({"metadata": {"uid": object.meta().uid, "annotations": {annotation: value}}}));
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    api.patch(&name, &params, &patch)
        .await
        .map(drop)
        .map_err(|error| explained(error, &format!("annotate {} {name}", K::kind(&()))))
}

impl Answer for Adopted {
    fn text(&self, width: Option<usize>) -> String {
        if self.items.is_empty() {
            return "No Tenant waits for data of an earlier one: there is nothing to adopt.\n".to_owned();
        }
        let mut table = Table::new(&["KIND", "NAME", "ACTION", "FROM", "STATE", "DATABASE", "NOTE"]);
        for item in &self.items {
            let action = match item.action {
                Action::Adopted if self.dry_run => "would adopt",
                Action::Adopted => "adopted",
                Action::Unchanged => "unchanged",
                Action::Nothing => "nothing to do",
                Action::Skipped => "skipped",
            };
            table.row([
                item.kind.to_owned(),
                item.name.clone(),
                action.to_owned(),
                item.from.clone().unwrap_or_default(),
                item.state.map(|state| format!("{state:?}")).unwrap_or_default(),
                item.database.clone().unwrap_or_default(),
                item.note.clone(),
            ]);
        }
        table.text(width)
    }

    fn is_incomplete(&self) -> bool {
        self.items.iter().any(|item| item.action == Action::Skipped)
    }
}
