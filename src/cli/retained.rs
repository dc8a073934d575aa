//! `retained`: what deleted tenants left in the databases.

use std::collections::{BTreeMap, HashSet};

use clap::Args;
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use kube::{Api, Client, ResourceExt as _};
use serde::Serialize;

use super::{
    Answer,
    client::{ClientArgs, list},
    servers::{CredentialsArgs, cluster_id, connect},
    table::Table,
};
use crate::{
    api::{DatabaseServer, Tenant},
    database::{TenantRecord, TenantState},
};

/// How many servers are asked at a time.
const CONCURRENCY: usize = 8;

/// Arguments of `retained`.
#[derive(Args, Debug)]
pub struct RetainedArgs {
    /// The Tenants' names; all when left out
    names: Vec<String>,
    #[command(flatten)]
    credentials: CredentialsArgs,
    /// Also what other clusters have on these servers
    #[arg(long)]
    all_clusters: bool,
}

/// What `retained` found.
#[derive(Serialize)]
pub(super) struct Retained {
    items: Vec<Item>,
    /// What could not be asked: server and why.
    unreachable: BTreeMap<String, String>,
}

/// What a tenant left.
#[derive(PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    tenant: String,
    application: String,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    drop_after: Option<Timestamp>,
    /// Usage events that nobody has acknowledged yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    unsent: Option<u64>,
    server: String,
    database: String,
    schema: String,
    uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
enum State {
    /// Deleted and kept.
    Retained,
    /// In use as far as the record knows, but its Tenant is not there.
    Lost,
    /// In use by another cluster.
    Live,
    /// Being dropped.
    Dropping,
    /// Dropped; the record waits for usage events to be acknowledged.
    Dropped,
}

/// Asks the servers what deleted tenants left. Nothing is written.
pub(super) async fn retained(args: &RetainedArgs, client: &ClientArgs) -> anyhow::Result<Retained> {
    let client = client.connect().await?;
    let here = cluster_id(&client).await?;
    let servers = list(&Api::<DatabaseServer>::all(client.clone())).await?;
    let live: HashSet<String> =
        list(&Api::<Tenant>::all(client.clone())).await?.into_iter().filter_map(|tenant| tenant.metadata.uid).collect();
    let (client, here) = (&client, here.as_str());
    let asked = stream::iter(servers).map(async |server| {
        let found = ask(client, &server, args, here).await;
        (server.name_any(), found)
    });
    let asked: Vec<_> = asked.buffer_unordered(CONCURRENCY).collect().await;
    let mut found = Retained { items: Vec::new(), unreachable: BTreeMap::new() };
    for (server, records) in asked {
        match records {
            Ok(records) => {
                let items =
                    records.into_iter().filter_map(|(database, record)| item(&server, database, record, here, &live));
                found.items.extend(items);
            }
            Err(error) => {
                found.unreachable.insert(server, format!("{error:#}"));
            }
        }
    }
    if !args.names.is_empty() {
        found.items.retain(|item| args.names.contains(&item.tenant));
    }
    found.items.sort();
    // Two DatabaseServers may lead to one PostgreSQL: what is kept is kept once.
    found.items.dedup_by(|a, b| (&a.schema, &a.database, &a.uid) == (&b.schema, &b.database, &b.uid));
    Ok(found)
}

/// The records of a server, each with its database.
async fn ask(
    client: &Client,
    server: &DatabaseServer,
    args: &RetainedArgs,
    here: &str,
) -> anyhow::Result<Vec<(String, TenantRecord)>> {
    let server = connect(client, server, &args.credentials).await?;
    let mut records = Vec::new();
    for database in server.list_databases().await? {
        let Some(mark) = &database.mark else { continue };
        if args.all_clusters || mark.cluster_id == here {
            let found = server.records(&database.name).await?;
            records.extend(found.into_iter().map(|record| (database.name.clone(), record)));
        }
    }
    Ok(records)
}

fn item(server: &str, database: String, record: TenantRecord, here: &str, live: &HashSet<String>) -> Option<Item> {
    let foreign = record.cluster_id != here;
    let (state, drop_after, unsent) = match record.state {
        TenantState::Live if foreign => (State::Live, None, None),
        TenantState::Live if live.contains(&record.uid) => return None,
        TenantState::Live => (State::Lost, None, None),
        TenantState::Retained { drop_after } => (State::Retained, Some(drop_after), None),
        TenantState::Dropping => (State::Dropping, None, None),
        TenantState::Dropped { unsent } => (State::Dropped, None, Some(unsent)),
    };
    Some(Item {
        tenant: record.name,
        application: record.application,
        state,
        drop_after,
        unsent,
        server: server.to_owned(),
        database,
        schema: record.schema,
        uid: record.uid,
        cluster: foreign.then_some(record.cluster_id),
    })
}

impl Answer for Retained {
    fn text(&self, width: Option<usize>) -> String {
        let mut table =
            Table::new(&["TENANT", "APPLICATION", "STATE", "UNTIL", "DATABASE", "SCHEMA", "UID", "CLUSTER"]);
        for item in &self.items {
            let until = match (item.drop_after, item.unsent) {
                (Some(until), _) => until.strftime("%Y-%m-%d %H:%M UTC").to_string(),
                (None, Some(unsent)) => format!("{unsent} events are sent"),
                (None, None) => String::new(),
            };
            table.row([
                item.tenant.clone(),
                item.application.clone(),
                format!("{:?}", item.state),
                until,
                format!("{}/{}", item.server, item.database),
                item.schema.clone(),
                item.uid.clone(),
                item.cluster.clone().unwrap_or_default(),
            ]);
        }
        let mut text = table.text(width);
        if self.items.is_empty() && self.unreachable.is_empty() {
            text.push_str("Nothing is kept of deleted Tenants.\n");
        }
        for (server, why) in &self.unreachable {
            text.push_str(&format!("DatabaseServer {server} could not be asked: {why}\n"));
        }
        text
    }

    fn is_incomplete(&self) -> bool {
        !self.unreachable.is_empty()
    }
}
