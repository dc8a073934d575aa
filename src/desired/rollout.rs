//! Which units may get a changed pod template now. Pure.
//!
//! A unit is a pool, or the namespace of one tenant; all that is decided here follows from
//! the live Deployments, so that it holds over a restart. What was applied last, and why, is
//! kept in an annotation of each Deployment (not of its pods): the [`Record`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Object, availability::ComponentState, naming};
use crate::api::{FIELD_MANAGER, Reason, Rollout};

/// Annotation on a Deployment: the pod template that the operator applied last, and whether
/// it came with a rollout.
pub const ANNOTATION_ROLLOUT: &str = "tenantry.io/rollout";

/// Where in a Deployment its pod template is.
const TEMPLATE: &str = "/spec/template";
/// How long a new pod must be ready before an old one goes, in a Deployment's spec.
const MIN_READY: &str = "minReadySeconds";

/// How many namespaces of tenants get a changed template at a time, where nobody says.
const NAMESPACES_AT_A_TIME: usize = 5;

/// What a tenant's pod template would be without anything of the tenant's own: by it a
/// change of the Application or Plan is told from one that concerns this tenant alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// A hash of the template that the Application alone gives.
    pub application: String,
    /// The Plan's name.
    pub plan: String,
    /// A hash of the template that the Application and this Plan give.
    pub planned: String,
}

impl Source {
    /// The source of one component, from its Deployment as the Application alone would have
    /// it, and as the Application with the Plan of this name would.
    pub fn new(application: &Object, plan: &str, planned: &Object) -> Self {
        let digest = |object: &Object| {
            let text = object.body.pointer(TEMPLATE).map(ToString::to_string).unwrap_or_default();
            HEXLOWER.encode(&Sha256::digest(text)[..8])
        };
        Self { application: digest(application), plan: plan.to_owned(), planned: digest(planned) }
    }
}

/// What was applied last to a Deployment, as its annotation says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// A hash of the template, good within this process.
    pub template: u64,
    /// Where the template came from; nothing for pools, which have nothing of their own.
    pub source: Option<Source>,
    /// Whether the template came by a turn of a rollout to a unit that was well: then others
    /// wait until it is complete, and its failure stops them.
    pub staged: bool,
}

/// The annotation's value.
#[derive(Serialize, Deserialize)]
struct Written {
    template: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    staged: bool,
}

impl Record {
    /// The record of a live Deployment; nothing where there is none, or where somebody else
    /// has written it.
    pub fn of(live: &Value) -> Option<Self> {
        let written = written(live)?;
        Some(Self { template: hash(&written.template), source: written.source, staged: written.staged })
    }

    /// The record of a Deployment that is to be applied.
    pub fn new(object: &Object, source: Option<Source>, staged: bool) -> Self {
        Self { template: template_hash(object), source, staged }
    }
}

fn written(live: &Value) -> Option<Written> {
    let text = live.get("metadata")?.get("annotations")?.get(ANNOTATION_ROLLOUT)?.as_str()?;
    let field = format!("f:{ANNOTATION_ROLLOUT}");
    let is_ours = live["metadata"]["managedFields"].as_array()?.iter().any(|entry| {
        entry["manager"] == FIELD_MANAGER
            && entry["operation"] == "Apply"
            && entry["fieldsV1"]["f:metadata"]["f:annotations"].get(&field).is_some()
    });
    if is_ours { serde_json::from_str(text).ok() } else { None }
}

/// A hash of a Deployment's pod template, good within this process.
pub fn template_hash(object: &Object) -> u64 {
    object.body.pointer(TEMPLATE).map_or(0, hash)
}

fn hash(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    hasher.finish()
}

/// A Deployment with the record of what it is: what is to be applied.
pub fn recorded(object: &Object, record: &Record) -> Object {
    let template = object.body.pointer(TEMPLATE).cloned().unwrap_or_default();
    with_written(object, &Written { template, source: record.source.clone(), staged: record.staged })
}

/// A Deployment that doesn't get its new template yet: all that is desired, with the template
/// that `live` says was applied last. Nothing where that isn't known.
pub fn held_back(object: &Object, live: &Value) -> Option<Object> {
    let written = written(live)?;
    let mut held = object.clone();
    *held.body.pointer_mut(TEMPLATE)? = written.template.clone();
    Some(with_written(&held, &written))
}

/// A Deployment with as many replicas as it has: what is desired of it has a fault, so that a
/// number which is new isn't to be had yet. None run where none are to, and where none did, the
/// number is the desired one.
pub fn as_many(object: &Object, live: i64) -> Object {
    let mut object = object.clone();
    if let Some(replicas) = object.body.pointer_mut("/spec/replicas")
        && *replicas != 0
        && live > 0
    {
        *replicas = live.into();
    }
    object
}

fn with_written(object: &Object, written: &Written) -> Object {
    let mut object = object.clone();
    wait_in_turns_alone(&mut object.body, written.staged);
    let text = serde_json::to_string(written).expect("a record is JSON");
    object.body["metadata"]["annotations"][ANNOTATION_ROLLOUT] = text.into();
    object
}

/// Whether new pods last is waited for where others come after them. What comes up for the
/// first time, or changes by itself, counts as soon as it is ready.
fn wait_in_turns_alone(body: &mut Value, staged: bool) {
    if !staged && let Some(spec) = body.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove(MIN_READY);
    }
}

/// A hash of the Deployment that [`recorded`] and [`held_back`] give, which can be had
/// without the text of the template that was applied last.
pub fn identity(object: &Object, record: &Record) -> u64 {
    let mut rest = object.body.clone();
    if let Some(template) = rest.pointer_mut(TEMPLATE) {
        *template = Value::Null;
    }
    wait_in_turns_alone(&mut rest, record.staged);
    hash(&json!([rest, record.template, record.source, record.staged]))
}

/// How far the rollout of a Deployment is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The Deployment controller hasn't looked at the newest spec yet.
    Unobserved,
    /// Every pod is of the newest template, and they were all ready for as long as
    /// `rollout.minReadySeconds` says.
    Complete,
    /// Old pods are being replaced.
    Rolling,
    /// It made no progress for as long as the Application's `rollout.deadline` says; with what
    /// the Deployment says of it.
    Failed(String),
}

/// What a Deployment says of its rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutState {
    /// The Application.
    pub application: String,
    /// What was applied last.
    pub record: Option<Record>,
    /// How far it is.
    pub progress: Progress,
}

impl RolloutState {
    /// From a live Deployment.
    pub fn of(live: &Value) -> Self {
        let application = live["metadata"]["labels"][naming::LABEL_PART_OF].as_str().unwrap_or_default();
        Self { application: application.to_owned(), record: Record::of(live), progress: progress(live) }
    }

    /// Of a Deployment that is not there.
    pub fn absent() -> Self {
        Self { application: String::new(), record: None, progress: Progress::Complete }
    }
}

/// As `kubectl rollout status` decides it. Once complete, a Deployment that loses pods, or
/// gets more from an autoscaler, is not in a rollout.
fn progress(live: &Value) -> Progress {
    let (spec, status) = (&live["spec"], &live["status"]);
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    if number("observedGeneration") < live["metadata"]["generation"].as_i64().unwrap_or(0) {
        return Progress::Unobserved;
    }
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let progressing = conditions.iter().find(|condition| condition["type"] == "Progressing");
    if let Some(condition) = progressing.filter(|condition| condition["status"] == "False") {
        return Progress::Failed(condition["message"].as_str().unwrap_or_default().to_owned());
    }
    let wanted = spec["replicas"].as_i64().unwrap_or(1);
    let (replicas, updated, available) = (number("replicas"), number("updatedReplicas"), number("availableReplicas"));
    let was_complete = progressing.is_some_and(|condition| condition["reason"] == "NewReplicaSetAvailable");
    let all_new = replicas == updated;
    if all_new && (was_complete || (updated >= wanted && available >= wanted)) {
        Progress::Complete
    } else {
        Progress::Rolling
    }
}

/// The two sorts of units: a changed template reaches so many of each at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnitKind {
    /// A pool.
    Pool,
    /// The namespace of a tenant.
    Tenant,
}

impl UnitKind {
    /// How many units of this sort may have a turn at a time, by what the Application says.
    pub fn at_a_time(self, rollout: Option<&Rollout>) -> usize {
        let asked = || usize::try_from(rollout?.max_unavailable?).ok();
        match self {
            Self::Pool => 1,
            Self::Tenant => asked().unwrap_or(NAMESPACES_AT_A_TIME),
        }
    }
}

/// The name of a unit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName {
    /// Its sort.
    pub kind: UnitKind,
    /// The Pool's or Tenant's name.
    pub name: String,
}

impl fmt::Display for UnitName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            UnitKind::Pool => "Pool",
            UnitKind::Tenant => "Tenant",
        };
        write!(formatter, "{kind} {}", self.name)
    }
}

/// A pool or a tenant's namespace, with its live Deployments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: UnitName,
    /// Its Deployments.
    pub components: Vec<ComponentState>,
}

impl Unit {
    /// Whether a template that came by turn is on its way through this unit, or failed there.
    fn is_under_way(&self) -> bool {
        self.components.iter().any(|state| state.is_staged() && state.rollout.progress != Progress::Complete)
    }

    /// Whether some component doesn't serve, or has only just begun to.
    fn is_down(&self) -> bool {
        self.components.iter().any(|state| !state.lasting)
    }

    /// Whether a template that came by turn was everywhere in this unit, and now it is down.
    fn went_down(&self) -> bool {
        self.components.iter().any(|state| state.is_staged() && !state.lasting)
    }

    /// Why the rollout ends at this unit: a template that came by turn failed.
    pub fn failed(&self) -> Option<String> {
        self.components.iter().filter(|state| state.is_staged()).find_map(|state| match &state.rollout.progress {
            Progress::Failed(message) => Some(format!("component {}: {message}", state.component)),
            _ => None,
        })
    }

    /// Whether a template that came by turn is on its way through this unit.
    pub fn is_rolling(&self) -> bool {
        self.components.iter().any(|state| state.is_staged() && state.rollout.progress == Progress::Rolling)
    }

    /// Whether the unit is down, or doesn't get on, by something other than a template that is
    /// on its way to all: that the next template fails there as well says nothing of it.
    pub fn is_ill(&self) -> bool {
        let stuck =
            |state: &ComponentState| !state.is_staged() && matches!(state.rollout.progress, Progress::Failed(_));
        !self.is_under_way() && (self.is_down() || self.components.iter().any(stuck))
    }
}

impl ComponentState {
    fn is_staged(&self) -> bool {
        self.rollout.record.as_ref().is_some_and(|record| record.staged)
    }
}

/// Whom a change of a template concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// One tenant alone: its overrides, its hosts, its change of plan.
    Own,
    /// All: the Application, a Plan, the operator's settings.
    Common,
}

/// Whom a change concerns, by where the old template came from and where the new one does.
pub fn cause(old: Option<&Source>, new: Option<&Source>) -> Cause {
    match (old, new) {
        (Some(old), Some(new))
            if old.application == new.application && (old.plan != new.plan || old.planned == new.planned) =>
        {
            Cause::Own
        }
        _ => Cause::Common,
    }
}

/// What a unit waits for that may not have its new template yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// [`WAITING`] for a turn, or [`STOPPED`].
    pub reason: Reason,
    /// What is waited for, and what to do where somebody has to do something.
    pub message: String,
}

/// Reason: other units come first.
pub const WAITING: Reason = "WaitingForTurn";
/// Reason: the rollout failed at another unit.
pub const STOPPED: Reason = "RolloutStopped";

/// Whether a unit may get its changed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Now; it counts as a turn of the rollout where `staged`.
    Go {
        /// What [`Record::staged`] is to be.
        staged: bool,
    },
    /// Not yet.
    Wait(Wait),
}

/// What of the turns isn't in the live objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// Who was told to go, and doesn't show it yet.
    pub begun: BTreeSet<UnitName>,
    /// What each that waits was told.
    pub told: BTreeMap<UnitName, Wait>,
}

impl Turns {
    /// Whether others have to wait for this unit. One that went down holds nobody up where it
    /// waits for a template itself.
    fn has(&self, unit: &Unit) -> bool {
        unit.is_under_way()
            || self.begun.contains(&unit.name)
            || (unit.went_down() && !self.told.contains_key(&unit.name))
    }

    /// The units of a sort that have a turn now.
    pub fn taken<'a>(&self, kind: UnitKind, units: &'a [Unit]) -> Vec<&'a UnitName> {
        units.iter().filter(|unit| unit.name.kind == kind && self.has(unit)).map(|unit| &unit.name).collect()
    }
}

/// Whether `unit` may get a changed template, where at most `limit` of its sort may have a
/// turn at a time. `others` are the other units of the Application that take part.
pub fn decide(unit: &Unit, cause: Cause, others: &[Unit], turns: &Turns, limit: usize) -> Decision {
    if cause == Cause::Own {
        return Decision::Go { staged: unit.is_under_way() };
    }
    // Where a template failed, another one can only heal.
    if unit.failed().is_some() {
        return Decision::Go { staged: true };
    }
    if let Some((name, why)) = others.iter().find_map(|other| Some((&other.name, other.failed()?))) {
        let message = format!(
            "the rollout stopped at {name}: {why}; it goes on when {name} is whole, or with a template that heals it"
        );
        return Decision::Wait(Wait { reason: STOPPED, message });
    }
    if turns.taken(unit.name.kind, others).len() < limit {
        return Decision::Go { staged: !unit.is_ill() };
    }
    // Without a name: it would change with each turn of the others.
    let message = "the changed template comes after others; condition RolledOut of the Application says where it is";
    Decision::Wait(Wait { reason: WAITING, message: message.to_owned() })
}
