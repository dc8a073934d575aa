//! `status`: how the tenants are.

use std::collections::BTreeMap;

use clap::Args;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, ResourceExt as _};
use serde::Serialize;

use super::{
    Answer,
    client::{ClientArgs, get, list},
    table::{Table, age, fields},
};
use crate::api::{
    ClosedUsage, ConditionType, Tenant, TenantConflict, TenantDatabase, TenantUsage, find_condition, is_true,
};

/// How many tenants that are not ready are listed, unless all are asked for.
const LISTED: usize = 25;

/// Arguments of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// The Tenant; all of them when left out
    name: Option<String>,
    /// List every tenant that is not ready, however many they are
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

/// What `status` found.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Status {
    All(All),
    One(Box<One>),
}

/// All tenants.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct All {
    tenants: usize,
    ready: usize,
    groups: Vec<Group>,
    not_ready: Vec<Trouble>,
    #[serde(skip)]
    listed: usize,
}

/// The tenants of one tier and plan.
#[derive(Default, Serialize)]
struct Group {
    tier: String,
    plan: String,
    tenants: usize,
    ready: usize,
    /// Somebody has to change something.
    stalled: usize,
    suspended: usize,
    deleting: usize,
}

/// A tenant that is not ready.
#[derive(Serialize)]
struct Trouble {
    name: String,
    /// Stalled, Suspended, Deleting or Waiting.
    state: &'static str,
    reason: String,
    since: Option<Timestamp>,
    message: String,
}

/// One tenant.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct One {
    name: String,
    display_name: Option<String>,
    application: String,
    plan: String,
    plan_revision: Option<String>,
    tier: String,
    state: &'static str,
    pool: Option<String>,
    namespace: Option<String>,
    url: Option<String>,
    id: Option<String>,
    database: Option<TenantDatabase>,
    conflict: Option<TenantConflict>,
    deleting_since: Option<Timestamp>,
    usage: Option<TenantUsage>,
    history: Vec<ClosedUsage>,
    conditions: Vec<Condition>,
}

/// Asks how the tenants are.
pub(super) async fn status(args: &StatusArgs, client: &ClientArgs) -> anyhow::Result<Status> {
    let tenants = Api::<Tenant>::all(client.connect().await?);
    match &args.name {
        Some(name) => Ok(Status::One(Box::new(one(&get(&tenants, name).await?)))),
        None => Ok(Status::All(all(&list(&tenants).await?, if args.all { usize::MAX } else { LISTED }))),
    }
}

/// The state of a tenant in one word.
pub(super) fn state(tenant: &Tenant) -> &'static str {
    let conditions = conditions(tenant);
    if tenant.metadata.deletion_timestamp.is_some() {
        "Deleting"
    } else if is_true(conditions, ConditionType::Ready) {
        "Ready"
    } else if is_true(conditions, ConditionType::Stalled) {
        "Stalled"
    } else if find_condition(conditions, ConditionType::Ready).is_some_and(|ready| ready.reason == "Suspended") {
        "Suspended"
    } else {
        "Waiting"
    }
}

fn conditions(tenant: &Tenant) -> &[Condition] {
    tenant.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
}

fn tier(tenant: &Tenant) -> String {
    let tier = tenant.status.as_ref().and_then(|status| status.tier).or(tenant.spec.tier);
    tier.map(|tier| tier.to_string()).unwrap_or_default()
}

fn all(tenants: &[Tenant], listed: usize) -> All {
    let mut groups: BTreeMap<(String, String), Group> = BTreeMap::new();
    let mut not_ready = Vec::new();
    for tenant in tenants {
        let key = (tier(tenant), tenant.spec.plan.clone());
        let group = groups.entry(key.clone()).or_insert_with(|| Group { tier: key.0, plan: key.1, ..Group::default() });
        group.tenants += 1;
        let state = state(tenant);
        match state {
            "Ready" => group.ready += 1,
            "Stalled" => group.stalled += 1,
            "Suspended" => group.suspended += 1,
            "Deleting" => group.deleting += 1,
            _ => {}
        }
        if state != "Ready" {
            let ready = find_condition(conditions(tenant), ConditionType::Ready);
            not_ready.push(Trouble {
                name: tenant.name_any(),
                state,
                reason: ready.map(|ready| ready.reason.clone()).unwrap_or_default(),
                since: ready.map(|ready| ready.last_transition_time.0),
                message: ready.map_or_else(|| "the operator has not looked at it yet".into(), |it| it.message.clone()),
            });
        }
    }
    let ready = tenants.len() - not_ready.len();
    All { tenants: tenants.len(), ready, groups: groups.into_values().collect(), not_ready, listed }
}

fn one(tenant: &Tenant) -> One {
    let status = tenant.status.clone().unwrap_or_default();
    One {
        name: tenant.name_any(),
        display_name: tenant.spec.display_name.clone(),
        application: tenant.spec.application.clone(),
        plan: tenant.spec.plan.clone(),
        plan_revision: status.plan_revision,
        tier: tier(tenant),
        state: state(tenant),
        pool: status.pool,
        namespace: status.namespace,
        url: status.url,
        id: status.id,
        database: status.database,
        conflict: status.conflict,
        deleting_since: tenant.metadata.deletion_timestamp.as_ref().map(|time| time.0),
        usage: status.usage,
        history: status.history,
        conditions: status.conditions,
    }
}

impl Answer for Status {
    fn text(&self, width: Option<usize>) -> String {
        match self {
            Self::All(all) => all.text(width),
            Self::One(one) => one.text(width),
        }
    }
}

impl All {
    fn text(&self, width: Option<usize>) -> String {
        if self.tenants == 0 {
            return "There are no Tenants.\n".to_owned();
        }
        // A column without a number in it is left out.
        let number = |number: usize| if number == 0 { String::new() } else { number.to_string() };
        let mut groups = Table::new(&["TIER", "PLAN", "TENANTS", "READY", "STALLED", "SUSPENDED", "DELETING"]);
        for group in &self.groups {
            let known = |text: &str| if text.is_empty() { "?".to_owned() } else { text.to_owned() };
            groups.row([
                known(&group.tier),
                known(&group.plan),
                group.tenants.to_string(),
                group.ready.to_string(),
                number(group.stalled),
                number(group.suspended),
                number(group.deleting),
            ]);
        }
        let mut text = groups.text(width);
        text.push_str(&format!("\n{} of {} Tenants are Ready.\n", self.ready, self.tenants));
        let now = Timestamp::now();
        let mut troubles = Table::new(&["NAME", "STATE", "REASON", "SINCE", "MESSAGE"]);
        for trouble in self.not_ready.iter().take(self.listed) {
            let since = trouble.since.map(|since| age(since, now)).unwrap_or_default();
            let Trouble { name, state, reason, message, .. } = trouble;
            troubles.row([name.clone(), (*state).to_owned(), reason.clone(), since, message.clone()]);
        }
        if !troubles.is_empty() {
            text.push('\n');
            text.push_str(&troubles.text(width));
        }
        if self.not_ready.len() > self.listed {
            text.push_str(&format!("… and {} more: --all lists them\n", self.not_ready.len() - self.listed));
        }
        text
    }
}

impl One {
    fn text(&self, width: Option<usize>) -> String {
        let now = Timestamp::now();
        let named = self.display_name.as_ref().map(|display| format!(" ({display})")).unwrap_or_default();
        let revision = self.plan_revision.as_ref().map(|revision| format!(", revision {revision}")).unwrap_or_default();
        let state = match self.deleting_since {
            Some(since) => format!("Deleting since {}", age(since, now)),
            None => self.state.to_owned(),
        };
        let database = self.database.as_ref();
        let secret = database.and_then(|database| database.secret_ref.as_ref());
        let mut text = fields(&[
            ("Tenant", format!("{}{named}", self.name)),
            ("State", state),
            ("Application", self.application.clone()),
            ("Plan", format!("{}{revision}", self.plan)),
            ("Tier", self.tier.clone()),
            ("Pool", self.pool.clone().unwrap_or_default()),
            ("Namespace", self.namespace.clone().unwrap_or_default()),
            ("URL", self.url.clone().unwrap_or_default()),
            (
                "Database",
                database.map_or_else(String::new, |it| format!("{}/{}, schema {}", it.server, it.database, it.schema)),
            ),
            ("Secret", secret.map_or_else(String::new, |secret| format!("{}/{}", secret.namespace, secret.name))),
            ("Conflict", self.conflict.as_ref().map(conflict_text).unwrap_or_default()),
        ]);
        if let Some(usage) = &self.usage {
            text.push('\n');
            text.push_str(&usage_text(usage, now, width));
        }
        let mut conditions = Table::new(&["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"]);
        for condition in &self.conditions {
            conditions.row([
                condition.type_.clone(),
                condition.status.clone(),
                condition.reason.clone(),
                age(condition.last_transition_time.0, now),
                condition.message.clone(),
            ]);
        }
        if !conditions.is_empty() {
            text.push('\n');
            text.push_str(&conditions.text(width));
        }
        text
    }
}

/// What a tenant uses, in one word for each meter.
pub(super) fn usage_line(usage: &TenantUsage) -> String {
    let meters: Vec<_> = usage.meters.iter().map(|meter| format!("{} {}", meter.name, meter.display)).collect();
    meters.join(", ")
}

fn usage_text(usage: &TenantUsage, now: Timestamp, width: Option<usize>) -> String {
    let mut table = Table::new(&["METER", "USED", "PEAK", "AVERAGE", "COMPLETE"]);
    for meter in &usage.meters {
        table.row([
            meter.name.clone(),
            meter.display.clone(),
            meter.peak.map(|peak| peak.to_string()).unwrap_or_default(),
            meter.average.clone().unwrap_or_default(),
            if meter.complete { "yes" } else { "no" }.to_owned(),
        ]);
    }
    let (period, as_of) = (&usage.period, age(usage.as_of.0, now));
    let from_to = format!("In the period from {} to {}, as of {as_of} ago:\n", period.start.0, period.end.0);
    from_to + &table.text(width)
}

/// A conflict in one line.
fn conflict_text(conflict: &TenantConflict) -> String {
    let kept = conflict.drop_after.as_ref().map(|until| format!(", kept until {}", until.0)).unwrap_or_default();
    let cluster = conflict.cluster.as_ref().map(|id| format!(", of cluster {id}")).unwrap_or_default();
    format!("{}/{} has data of UID {}{kept}{cluster}", conflict.server, conflict.database, conflict.uid)
}
