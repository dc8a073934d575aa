//! `ledger resync`: usage events are sent once more, after the ledger was restored.

use std::collections::BTreeMap;

use clap::Args;
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use kube::{Client, ResourceExt as _};
use serde::Serialize;

use super::{
    Answer,
    client::ClientArgs,
    servers::{ServersArgs, chosen, cluster_id, connect, databases},
    table::Table,
};
use crate::api::{self, DatabaseServer};

/// How many servers are asked at a time.
const CONCURRENCY: usize = 8;

/// How many events become due again in one transaction.
const PAGE: u32 = 20_000;

/// Arguments of `ledger resync`.
#[derive(Args, Debug)]
pub struct ResyncArgs {
    /// Since when: somewhat before the backup that the ledger was restored from, such as
    /// 2026-11-28T04:00:00Z, or so long ago, such as 36h. Databases keep 7 days
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Timestamp,
    #[command(flatten)]
    servers: ServersArgs,
}

/// A time, or how long ago it was.
fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let ago = api::Duration::from(text).get().and_then(|ago| Timestamp::now().checked_sub(ago).ok());
    ago.ok_or_else(|| {
        format!("{text:?} is no time: write one such as 2026-11-28T04:00:00Z, or how long ago, such as 36h")
    })
}

/// What `ledger resync` did.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Resynced {
    since: Timestamp,
    items: Vec<Item>,
    /// What could not be asked: server and why.
    unreachable: BTreeMap<String, String>,
}

/// What was done in one database.
#[derive(Serialize)]
struct Item {
    server: String,
    database: String,
    /// How many events are sent once more.
    events: u64,
}

/// Has events sent once more. They wait in the databases again, for the relay, as if they had
/// never been sent: so they take the same way, with the same checks, as any other, and whoever
/// may do this needs no access to the ledger. Those that it has are duplicates there, so that it
/// may be done again and again.
pub(super) async fn resync(args: &ResyncArgs, client: &ClientArgs) -> anyhow::Result<Resynced> {
    let client = client.connect().await?;
    let here = cluster_id(&client).await?;
    let servers = chosen(&client, &args.servers).await?;
    let (client, here) = (&client, here.as_str());
    let asked =
        stream::iter(servers).map(async |server| (server.name_any(), of_server(client, &server, args, here).await));
    let asked: Vec<_> = asked.buffered(CONCURRENCY).collect().await;
    let mut done = Resynced { since: args.since, items: Vec::new(), unreachable: BTreeMap::new() };
    for (server, answer) in asked {
        match answer {
            Ok(items) => done.items.extend(items),
            Err(error) => {
                done.unreachable.insert(server, format!("{error:#}"));
            }
        }
    }
    Ok(done)
}

async fn of_server(
    client: &Client,
    server: &DatabaseServer,
    args: &ResyncArgs,
    here: &str,
) -> anyhow::Result<Vec<Item>> {
    let name = server.name_any();
    let server = connect(client, server, &args.servers.credentials).await?;
    let mut items = Vec::new();
    for database in databases(&server, here).await? {
        let events = server.resend(&database, args.since, PAGE).await?;
        items.push(Item { server: name.clone(), database, events });
    }
    Ok(items)
}

impl Answer for Resynced {
    fn text(&self, width: Option<usize>) -> String {
        let mut table = Table::new(&["SERVER", "DATABASE", "EVENTS"]);
        for item in self.items.iter().filter(|item| item.events > 0) {
            table.row([item.server.clone(), item.database.clone(), item.events.to_string()]);
        }
        let mut text = table.text(width);
        let events: u64 = self.items.iter().map(|item| item.events).sum();
        text.push_str(&format!("{events} events that were sent since {} are sent once more.\n", self.since));
        for (server, why) in &self.unreachable {
            text.push_str(&format!("DatabaseServer {server} could not be asked: {why}\n"));
        }
        text
    }

    fn is_incomplete(&self) -> bool {
        !self.unreachable.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_given_as_such_or_by_how_long_ago_it_was() {
        assert_eq!(since("2026-11-28T04:00:00Z"), "2026-11-28T04:00:00Z".parse().map_err(|_| String::new()));
        let ago = Timestamp::now().duration_since(since("36h").expect("a time")).as_hours();
        assert!((35..=36).contains(&ago), "{ago}");
        for bad in ["", "yesterday", "1h30m", "-1h"] {
            assert!(since(bad).expect_err(bad).contains("36h"), "{bad}");
        }
    }
}
