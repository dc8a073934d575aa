//! The gate that changed pod templates go through: one pool and a few tenants' namespaces of
//! an Application at a time, the next when these are whole, none after a failure.
//!
//! Who has a turn is read from the live Deployments; in memory is only who was told to go
//! and hasn't written yet, and who waits.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::{Resource, ResourceExt as _, runtime::reflector::ObjectRef};

use super::{failure::Failure, state::ChildState, world::World};
use crate::{
    api::{Application, ConditionType, Reason, Verdict, find_condition},
    cluster::{self, Applied, Key, Owner, is_ours, template_differs, template_is_touched},
    desired::{
        Kind, Object,
        availability::ComponentState,
        rollout::{
            Cause, Decision, Progress, Record, STOPPED, Source, Turns, Unit, UnitKind, UnitName, WAITING, Wait,
            as_many, cause, decide, held_back, identity, recorded, template_hash,
        },
    },
};

/// Where the templates of a tenant come from, by component; asked only when one changes. A
/// pool has nothing of its own, and so no sources.
pub(super) type Sources<'a> = dyn Fn() -> BTreeMap<String, Source> + Send + Sync + 'a;

/// What of rollouts isn't in the live objects.
#[derive(Default)]
pub(super) struct Rollouts {
    by_application: Mutex<HashMap<String, Rollout>>,
}

/// What is known of one Application's rollouts.
#[derive(Default)]
struct Rollout {
    turns: Turns,
    /// Who waits and wasn't woken.
    waiting: BTreeSet<UnitName>,
}

impl Rollout {
    /// Somebody waits no longer.
    fn forget(&mut self, name: &UnitName) {
        self.waiting.remove(name);
        self.turns.told.remove(name);
    }
}

impl Rollouts {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Rollout>> {
        // Every update is one insertion or removal, so a panic in between leaves nothing half done.
        self.by_application.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a unit waits for, since it last asked.
    fn told(&self, application: &str, name: &UnitName) -> Option<Wait> {
        self.lock().get(application)?.turns.told.get(name).cloned()
    }
}

/// Somebody's turn, until what was applied shows it.
struct Turn<'a> {
    world: &'a Arc<World>,
    application: &'a str,
    name: UnitName,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(rollout) = self.world.rollouts.lock().get_mut(self.application) {
            rollout.turns.begun.remove(&self.name);
        }
        wake(self.world, self.application);
    }
}

/// How a desired Deployment stands to the live one.
enum Change {
    /// Nothing of ours is there: what is made anew needs no turn.
    New,
    /// Its template is the one that was applied last.
    None(Record),
    /// What was applied last isn't known, and the template is the desired one or somebody
    /// else's: to write it is no rollout.
    Unrecorded,
    /// Its template is another than the one that was applied last, if that is known.
    Template(Option<Record>),
    /// What is desired has a fault: it keeps the template that was applied last, and so many
    /// replicas.
    Held(Record, i64),
    /// The same, where nothing is known to have been applied: it is left alone.
    Left,
}

/// Brings the Deployments of a pool or of a tenant's namespace to what is desired; those that
/// may not have their new template yet keep the last one, with all else as desired. `is_new`
/// says that their namespace was made just now, so that nobody else can have any there. Those
/// that are `held` have a fault: they keep template and number of replicas. The results are in
/// the order of the Deployments.
pub(super) async fn apply(
    world: &Arc<World>,
    owner: &Owner,
    deployments: &[Object],
    held: &BTreeSet<String>,
    is_new: bool,
    sources: Option<&Sources<'_>>,
) -> Vec<cluster::Result<Applied>> {
    let Some(application) = deployments.first().map(application_of) else { return Vec::new() };
    let Some(unit) = unit_name(owner) else {
        // Of no Application, and so in nobody's turn.
        let mut results = Vec::with_capacity(deployments.len());
        for object in deployments {
            results.push(world.cluster.apply(object).await);
        }
        return results;
    };
    let mut changes = Vec::with_capacity(deployments.len());
    for object in deployments {
        let is_held = held.contains(&object.name);
        changes.push(if is_held { Ok(examine_held(world, object)) } else { examine(world, object).await });
    }
    let stays = |change: &_| matches!(change, Ok(Change::None(_) | Change::Held(..) | Change::Left));
    let needs_sources = !changes.iter().all(stays);
    let sources = sources.filter(|_| needs_sources).map(|sources| sources()).unwrap_or_default();
    let source = |object: &Object| sources.get(&object.name).cloned();
    let causes = changes.iter().zip(deployments).filter_map(|(change, object)| match change {
        Ok(Change::Template(old)) => {
            Some(cause(old.as_ref().and_then(|old| old.source.as_ref()), source(object).as_ref()))
        }
        _ => None,
    });
    let decision = ask(world, &application, &unit, causes.max());
    let (staged, _turn) = match decision {
        Asked::Unchanged => (None, None),
        Asked::Go { staged, turn } => (Some(staged), turn),
        Asked::Wait => (None, None),
    };
    let mut results = Vec::with_capacity(deployments.len());
    for (object, change) in deployments.iter().zip(changes) {
        let applied = async {
            let record = match (change?, staged) {
                (Change::None(record), _) => record,
                (Change::New | Change::Unrecorded, _) => Record::new(object, source(object), false),
                (Change::Template(_), Some(staged)) => Record::new(object, source(object), staged),
                (Change::Template(Some(record)), None) => return hold_back(world, object, &record).await,
                (Change::Template(None), None) | (Change::Left, _) => return Ok(Applied::Unchanged),
                (Change::Held(record, replicas), _) => {
                    return hold_back(world, &as_many(object, replicas), &record).await;
                }
            };
            let (recorded, identity) = (recorded(object, &record), identity(object, &record));
            if is_new {
                world.cluster.apply_first(&recorded, identity).await
            } else {
                world.cluster.apply_as(&recorded, identity).await
            }
        };
        results.push(applied.await);
    }
    results
}

fn application_of(object: &Object) -> String {
    object.body["metadata"]["labels"][crate::desired::naming::LABEL_PART_OF].as_str().unwrap_or_default().to_owned()
}

async fn examine(world: &World, object: &Object) -> cluster::Result<Change> {
    let key = Key::of(object);
    let children = world.cluster.children();
    let Some(ChildState::Component(state)) = children.state(&key) else { return Ok(Change::New) };
    if let Some(record) = state.rollout.record {
        let same = record.template == template_hash(object);
        return Ok(if same { Change::None(record) } else { Change::Template(Some(record)) });
    }
    let live = match children.whole(&key) {
        Some(live) => Some(live),
        None => world.cluster.read(&key).await?,
    };
    Ok(match live {
        Some(live) if is_ours(&live) => {
            if template_differs(&object.body, &live) && !template_is_touched(&live) {
                Change::Template(None)
            } else {
                Change::Unrecorded
            }
        }
        _ => Change::New,
    })
}

/// The same for one whose template, or whose number of replicas, has a fault. One that is not
/// there is made all the same, if only its number has.
fn examine_held(world: &World, object: &Object) -> Change {
    let has_template = object.body.pointer("/spec/template").is_some_and(|template| !template.is_null());
    match world.cluster.children().state(&Key::of(object)) {
        Some(ChildState::Component(ComponentState { rollout, replicas, .. })) => {
            rollout.record.map_or(Change::Left, |record| Change::Held(record, replicas))
        }
        None if has_template => Change::New,
        _ => Change::Left,
    }
}

/// Applies all of a Deployment but its new template.
async fn hold_back(world: &World, object: &Object, record: &Record) -> cluster::Result<Applied> {
    let (key, identity) = (Key::of(object), identity(object, record));
    let children = world.cluster.children();
    let live = match children.observe(&key, identity) {
        cluster::Observed::InSync => return Ok(Applied::Unchanged),
        cluster::Observed::Changed(live) => Some(live),
        cluster::Observed::Outdated | cluster::Observed::Absent | cluster::Observed::Foreign => {
            world.cluster.read(&key).await?
        }
    };
    match live.and_then(|live| held_back(object, &live)) {
        Some(held) => world.cluster.apply_as(&held, identity).await,
        // It changed just now: the watch tells of it.
        None => Ok(Applied::Unchanged),
    }
}

/// The answer of [`ask`].
enum Asked<'a> {
    Unchanged,
    Go { staged: bool, turn: Option<Turn<'a>> },
    Wait,
}

fn ask<'a>(world: &'a Arc<World>, application: &'a str, name: &UnitName, cause: Option<Cause>) -> Asked<'a> {
    let mut all = world.rollouts.lock();
    let Some(cause) = cause else {
        if let Some(rollout) = all.get_mut(application) {
            rollout.forget(name);
        }
        return Asked::Unchanged;
    };
    // Under the lock: nobody else's turn begins between the look and the decision.
    let (own, others): (Vec<_>, Vec<_>) = units(world, application).into_iter().partition(|unit| unit.name == *name);
    let unit = own.into_iter().next().unwrap_or_else(|| Unit { name: name.clone(), components: Vec::new() });
    let rollout = all.entry(application.to_owned()).or_default();
    match decide(&unit, cause, &others, &rollout.turns, limit(world, application, name.kind)) {
        Decision::Go { staged } => {
            rollout.forget(name);
            let turn = staged.then(|| {
                rollout.turns.begun.insert(name.clone());
                Turn { world, application, name: name.clone() }
            });
            Asked::Go { staged, turn }
        }
        Decision::Wait(wait) => {
            rollout.waiting.insert(name.clone());
            rollout.turns.told.insert(name.clone(), wait);
            Asked::Wait
        }
    }
}

fn limit(world: &World, application: &str, kind: UnitKind) -> usize {
    let application = world.application(application);
    kind.at_a_time(application.as_ref().and_then(|application| application.spec.rollout.as_ref()))
}

/// The name of an owner's unit; none of a relay's, which takes part in no Application's rollout.
fn unit_name(owner: &Owner) -> Option<UnitName> {
    match owner {
        Owner::Pool(name) => Some(UnitName { kind: UnitKind::Pool, name: name.clone() }),
        Owner::Tenant(name) => Some(UnitName { kind: UnitKind::Tenant, name: name.clone() }),
        Owner::Server(_) => None,
    }
}

/// The units of an Application that take part in its rollouts. One that is paused or being
/// deleted doesn't: nobody waits for it.
fn units(world: &World, application: &str) -> Vec<Unit> {
    let mut found: BTreeMap<UnitName, Vec<ComponentState>> = BTreeMap::new();
    for (_, owner, state) in world.cluster.children().states(Kind::Deployment) {
        if let ChildState::Component(state) = state
            && state.rollout.application == application
            && let Some(name) = unit_name(&owner)
        {
            found.entry(name).or_default().push(state);
        }
    }
    let units = found.into_iter().filter(|(name, _)| takes_part(world, name));
    units.map(|(name, components)| Unit { name, components }).collect()
}

fn takes_part(world: &World, name: &UnitName) -> bool {
    fn is_active<K: Resource>(object: Option<Arc<K>>) -> bool {
        object.is_some_and(|object| object.meta().deletion_timestamp.is_none() && !super::is_paused(&*object))
    }
    match name.kind {
        UnitKind::Pool => is_active(world.pool(&name.name)),
        UnitKind::Tenant => is_active(world.stores.tenants.get(&ObjectRef::new(&name.name))),
    }
}

/// A Deployment changed, or whether a unit takes part: if a turn is free now, the next units
/// that wait for one are looked at.
pub(super) fn stir(world: &World) {
    let waiting: Vec<_> = {
        let all = world.rollouts.lock();
        all.iter()
            .filter(|(_, rollout)| !rollout.waiting.is_empty())
            .map(|(application, _)| application.clone())
            .collect()
    };
    for application in waiting {
        wake(world, &application);
    }
}

/// Looks at as many of those that wait as turns are free, and at those who don't know yet
/// that the rollout has stopped, or goes on. Those that are down come first.
fn wake(world: &World, application: &str) {
    let mut all = world.rollouts.lock();
    let Some(rollout) = all.get_mut(application).filter(|rollout| !rollout.waiting.is_empty()) else { return };
    let units = units(world, application);
    let is_stopped = units.iter().any(|unit| unit.failed().is_some());
    let told = &rollout.turns.told;
    let is_stale = |name: &&UnitName| told.get(*name).is_some_and(|wait| (wait.reason == STOPPED) != is_stopped);
    let mut next: BTreeSet<UnitName> = rollout.waiting.iter().filter(is_stale).cloned().collect();
    if !is_stopped {
        let ill: BTreeSet<_> = units.iter().filter(|unit| unit.is_ill()).map(|unit| &unit.name).collect();
        for kind in [UnitKind::Pool, UnitKind::Tenant] {
            let free = limit(world, application, kind).saturating_sub(rollout.turns.taken(kind, &units).len());
            let mut candidates: Vec<_> = rollout.waiting.iter().filter(|name| name.kind == kind).collect();
            candidates.sort_by_key(|name| !ill.contains(name));
            next.extend(candidates.into_iter().take(free).cloned());
        }
    }
    for name in next {
        rollout.waiting.remove(&name);
        match name.kind {
            UnitKind::Pool => world.queues.pools.push(&name.name),
            UnitKind::Tenant => world.queues.tenants.push(&name.name),
        }
    }
}

/// What condition `RolledOut` of a pool or tenant says; nothing while the Deployment
/// controller hasn't looked at the newest specs: then the condition stays as it was.
pub(super) fn verdict(
    world: &World,
    owner: &Owner,
    application: &str,
    components: &[ComponentState],
) -> Option<Verdict> {
    let no = |reason: Reason, message: String| Some(Verdict::no(ConditionType::RolledOut, reason, message));
    let told = unit_name(owner).and_then(|unit| world.rollouts.told(application, &unit));
    let mut states = components.iter().map(|state| (&state.component, &state.rollout.progress));
    if let Some(failed) = states.clone().find_map(|(component, progress)| match progress {
        Progress::Failed(message) => Some(format!("component {component}: {message}")),
        _ => None,
    }) {
        return no("RolloutFailed", failed);
    }
    if let Some(wait) = told {
        return no(wait.reason, wait.message);
    }
    if states.clone().any(|(_, progress)| *progress == Progress::Unobserved) {
        return None;
    }
    if let Some((component, _)) = states.find(|(_, progress)| **progress == Progress::Rolling) {
        return no("Rolling", format!("component {component}: its pods are being replaced"));
    }
    Some(Verdict::yes(ConditionType::RolledOut, "RolledOut", "every component runs with the newest template"))
}

/// Whether it says that somebody else comes first.
pub(super) fn is_waiting(verdict: &Verdict) -> bool {
    [WAITING, STOPPED].contains(&verdict.reason)
}

/// Whether all units of an Application have its newest templates, or where it is at; units
/// that wait are looked at where they can go on.
pub(super) fn review(world: &World, application: &Application) -> Result<(), Failure> {
    let name = application.name_any();
    wake(world, &name);
    let units = units(world, &name);
    if let Some((unit, why)) = units.iter().find_map(|unit| Some((&unit.name, unit.failed()?))) {
        let why = said(world, unit).unwrap_or(why);
        return Err(Failure::permanent(
            STOPPED,
            format!(
                "the rollout stopped at {unit}: {why}. Nothing else gets the template until {unit} is whole, spec.components changes, or {unit} is paused or deleted"
            ),
        ));
    }
    let mut rolling = units.iter().filter(|unit| unit.is_rolling()).map(|unit| (&unit.name, said(world, &unit.name)));
    let troubled = rolling.clone().find(|(_, why)| why.is_some());
    match (troubled.or_else(|| rolling.next()), first_waiting(world, &name)) {
        (Some((unit, why)), _) => {
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            Err(Failure::waiting("Rolling", format!("a changed template has come to {unit}{why}")))
        }
        (None, Some(unit)) => {
            Err(Failure::waiting("Rolling", format!("a changed template has not come to {unit} yet")))
        }
        (None, None) => Ok(()),
    }
}

/// What the status of a unit whose rollout failed says of it: it knows what its pods say.
fn said(world: &World, name: &UnitName) -> Option<String> {
    let conditions = match name.kind {
        UnitKind::Pool => world.pool(&name.name)?.status.clone()?.conditions,
        UnitKind::Tenant => world.stores.tenants.get(&ObjectRef::new(&name.name))?.status.clone()?.conditions,
    };
    let condition = find_condition(&conditions, ConditionType::RolledOut)?;
    let is_its_own = condition.status == "False" && ![WAITING, STOPPED, "Rolling"].contains(&condition.reason.as_str());
    is_its_own.then(|| condition.message.clone())
}

/// The first unit whose status says that it waits for its turn.
fn first_waiting(world: &World, application: &str) -> Option<UnitName> {
    let waits = |conditions: &[_]| {
        find_condition(conditions, ConditionType::RolledOut)
            .is_some_and(|condition| [WAITING, STOPPED].contains(&condition.reason.as_str()))
    };
    let pools = world.stores.pools.state().into_iter().filter(|pool| {
        pool.spec.application == application && pool.status.as_ref().is_some_and(|status| waits(&status.conditions))
    });
    let tenants = world.stores.tenants.state().into_iter().filter(|tenant| {
        tenant.spec.application == application && tenant.status.as_ref().is_some_and(|status| waits(&status.conditions))
    });
    let pools = pools.map(|pool| UnitName { kind: UnitKind::Pool, name: pool.name_any() });
    let tenants = tenants.map(|tenant| UnitName { kind: UnitKind::Tenant, name: tenant.name_any() });
    pools.chain(tenants).filter(|name| takes_part(world, name)).min()
}
