//! `deadletters`: usage events that were refused for good.

use std::collections::{BTreeMap, HashMap};

use clap::{Args, Subcommand};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use kube::{Client, ResourceExt as _};
use serde::Serialize;
use uuid::Uuid;

use super::{
    Answer, Verb,
    client::ClientArgs,
    servers::{ServersArgs, chosen, cluster_id, connect, databases},
    table::Table,
};
use crate::{
    api::DatabaseServer,
    database::{DeadLetter, Server},
};

/// How many servers are asked at a time.
const CONCURRENCY: usize = 8;

/// How many dead letters of one database are listed: who has more has one cause for all.
const LISTED: u32 = 10_000;

/// What is done with dead letters.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List them, with why each was refused
    List(Verb<ListArgs>),
    /// Let the relay send them again, once what they were refused for is mended
    Redrive(Verb<RedriveArgs>),
}

/// Whose dead letters.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Those of this Tenant alone, by name or id (may be repeated)
    #[arg(long = "tenant", value_name = "NAME")]
    tenants: Vec<String>,
    #[command(flatten)]
    servers: ServersArgs,
}

/// Which dead letters are sent again.
#[derive(Args, Debug)]
pub struct RedriveArgs {
    /// Those with this id (may be repeated)
    #[arg(long = "id", value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<Uuid>,
    /// All of them
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    of: ListArgs,
}

/// What `deadletters` found, or sent again.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeadLetters {
    items: Vec<Item>,
    /// How many are sent again; nothing where they were only listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    redriven: Option<u64>,
    /// What could not be asked: server and why.
    unreachable: BTreeMap<String, String>,
}

/// One dead letter.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    server: String,
    database: String,
    id: Uuid,
    /// The tenant's name, or its id where it has no record any more.
    tenant: String,
    meter: String,
    epoch: i32,
    sequence: i64,
    delta: i64,
    occurred_at: Timestamp,
    dead_at: Timestamp,
    error: String,
}

/// Lists them. Nothing is written.
pub(super) async fn list(args: &ListArgs, client: &ClientArgs) -> anyhow::Result<DeadLetters> {
    each(args, client, None).await
}

/// Has them sent again.
pub(super) async fn redrive(args: &RedriveArgs, client: &ClientArgs) -> anyhow::Result<DeadLetters> {
    each(&args.of, client, Some(&args.ids)).await
}

/// Asks each server for its dead letters. Where ids are given, those are sent again, or all if
/// there are none.
async fn each(args: &ListArgs, client: &ClientArgs, ids: Option<&[Uuid]>) -> anyhow::Result<DeadLetters> {
    let client = client.connect().await?;
    let here = cluster_id(&client).await?;
    let servers = chosen(&client, &args.servers).await?;
    let (client, here) = (&client, here.as_str());
    let asked = stream::iter(servers)
        .map(async |server| (server.name_any(), of_server(client, &server, args, ids, here).await));
    let asked: Vec<_> = asked.buffered(CONCURRENCY).collect().await;
    let mut found = DeadLetters { items: Vec::new(), redriven: ids.map(|_| 0), unreachable: BTreeMap::new() };
    for (server, answer) in asked {
        match answer {
            Ok((items, redriven)) => {
                found.items.extend(items);
                found.redriven = found.redriven.map(|sum| sum + redriven);
            }
            Err(error) => {
                found.unreachable.insert(server, format!("{error:#}"));
            }
        }
    }
    found.items.sort_by_key(|item| (item.dead_at, item.id));
    // Two DatabaseServers may lead to one PostgreSQL.
    found.items.dedup_by_key(|item| item.id);
    Ok(found)
}

/// The dead letters of one server, and how many of them are sent again.
async fn of_server(
    client: &Client,
    server: &DatabaseServer,
    args: &ListArgs,
    ids: Option<&[Uuid]>,
    here: &str,
) -> anyhow::Result<(Vec<Item>, u64)> {
    let name = server.name_any();
    let server = connect(client, server, &args.servers.credentials).await?;
    let (mut items, mut redriven) = (Vec::new(), 0);
    for database in databases(&server, here).await? {
        let found = of_database(&server, &name, &database, args, ids.unwrap_or_default()).await?;
        if ids.is_some() && !found.is_empty() {
            let found: Vec<Uuid> = found.iter().map(|item| item.id).collect();
            redriven += server.redrive(&database, Some(&found)).await?;
        }
        items.extend(found);
    }
    Ok((items, redriven))
}

async fn of_database(
    server: &Server,
    name: &str,
    database: &str,
    args: &ListArgs,
    ids: &[Uuid],
) -> anyhow::Result<Vec<Item>> {
    let letters = server.dead_letters(database, LISTED).await?;
    if letters.is_empty() {
        return Ok(Vec::new());
    }
    let records = server.records(database).await?;
    let names: HashMap<_, _> = records.into_iter().map(|record| (record.id, record.name)).collect();
    let item = |letter: DeadLetter| {
        let tenant = names.get(&letter.tenant).cloned().unwrap_or_else(|| letter.tenant.to_string());
        let is_asked = |asked: &String| *asked == tenant || asked == letter.tenant.as_str();
        let wanted = (args.tenants.is_empty() || args.tenants.iter().any(is_asked))
            && (ids.is_empty() || ids.contains(&letter.id));
        wanted.then(|| Item {
            server: name.to_owned(),
            database: database.to_owned(),
            id: letter.id,
            tenant,
            meter: letter.meter,
            epoch: letter.epoch,
            sequence: letter.sequence,
            delta: letter.delta,
            occurred_at: letter.occurred_at,
            dead_at: letter.dead_at,
            error: letter.error,
        })
    };
    Ok(letters.into_iter().filter_map(item).collect())
}

impl Answer for DeadLetters {
    fn text(&self, width: Option<usize>) -> String {
        let mut table = Table::new(&["ID", "TENANT", "METER", "DELTA", "HAPPENED", "REFUSED", "DATABASE", "ERROR"]);
        let time = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M UTC").to_string();
        for item in &self.items {
            table.row([
                item.id.to_string(),
                item.tenant.clone(),
                item.meter.clone(),
                format!("{:+}", item.delta),
                time(item.occurred_at),
                time(item.dead_at),
                format!("{}/{}", item.server, item.database),
                item.error.clone(),
            ]);
        }
        let mut text = table.text(width);
        match self.redriven {
            Some(redriven) => text.push_str(&format!("{redriven} are sent again.\n")),
            None if self.items.is_empty() && self.unreachable.is_empty() => {
                text.push_str("No usage event was refused.\n")
            }
            None => {}
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
