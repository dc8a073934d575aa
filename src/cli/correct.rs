//! `correct`: what a tenant counted, set right by a person.

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{Api, Client, api::PostParams};
use serde::Serialize;

use super::{
    Answer,
    client::{ClientArgs, explained, get},
    servers::{CredentialsArgs, connect},
};
use crate::{
    api::{DatabaseServer, Tenant},
    database::TenantId,
};

/// The longest reason that is kept, in characters: as long as `set_usage` takes it.
const LONGEST: usize = 200;

/// Arguments of `correct`.
#[derive(Args, Debug)]
pub struct CorrectArgs {
    /// The Tenant
    tenant: String,
    /// The meter, one that is counted in the database
    meter: String,
    /// By how much its value is to change, such as 3 or -2
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    by: i64,
    /// Why; it is kept in the ledger with your name: keep customers' data out of it
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    credentials: CredentialsArgs,
}

/// What `correct` did.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Corrected {
    tenant: String,
    meter: String,
    by: i64,
    value: i64,
    reason: String,
    actor: String,
}

/// Changes what the tenant's database counts: the correction gets into the ledger and the status
/// by the same way as what the application counts, so that all of them agree.
pub(super) async fn correct(args: &CorrectArgs, client: &ClientArgs) -> anyhow::Result<Corrected> {
    let CorrectArgs { tenant: name, meter, by, reason, credentials } = args;
    ensure!(*by != 0, "--by 0 changes nothing: say by how much, such as 3 or -2");
    ensure!(!reason.trim().is_empty(), "--reason is empty: say why, so that others understand the ledger later");
    let length = reason.chars().count();
    ensure!(length <= LONGEST, "--reason has {length} characters: at most {LONGEST} are kept");
    let client = client.connect().await?;
    let tenant = get(&Api::<Tenant>::all(client.clone()), name).await?;
    let status = tenant.status.unwrap_or_default();
    let (Some(database), Some(id)) = (status.database, status.id) else {
        bail!("Tenant {name} has no place yet, so that nothing was counted for it: kubectl tenantry status {name}");
    };
    let id: TenantId = id.parse()?;
    let actor = actor(&client).await?;
    let server = get(&Api::<DatabaseServer>::all(client.clone()), &database.server).await?;
    let server = connect(&client, &server, credentials).await?;
    let record = server.record(&database.database, &id).await?;
    let record = record.with_context(|| format!("database {} has no record of Tenant {name}", database.database))?;
    // A status that a backup tool brought back may name somebody else's place.
    ensure!(
        tenant.metadata.uid.as_ref() == Some(&record.uid),
        "what database {} has is of another Tenant (UID {}): see kubectl tenantry status {name}",
        database.database,
        record.uid
    );
    let value = server.correct_usage(&database.database, &id, meter, *by, reason, &actor).await?;
    Ok(Corrected { tenant: name.clone(), meter: meter.clone(), by: *by, value, reason: reason.clone(), actor })
}

/// Who asks, as the cluster's authentication knows them.
async fn actor(client: &Client) -> anyhow::Result<String> {
    let review = Api::<SelfSubjectReview>::all(client.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .map_err(|error| explained(error, "ask the cluster who you are"))?;
    let user = review.status.and_then(|status| status.user_info).and_then(|user| user.username);
    user.filter(|user| !user.is_empty()).context("the cluster doesn't say who you are")
}

impl Answer for Corrected {
    fn text(&self, _: Option<usize>) -> String {
        let Self { tenant, meter, by, value, actor, .. } = self;
        format!("{meter} of Tenant {tenant} is {value} now ({by:+}, by {actor}).\n")
    }
}
