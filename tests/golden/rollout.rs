//! Whose turn it is, and what is kept of a Deployment that has to wait.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};
use tenantry::{
    api::Rollout,
    desired::{
        Kind, Object,
        availability::component_state,
        rollout::{
            ANNOTATION_ROLLOUT, Cause, Decision, Progress, Record, RolloutState, STOPPED, Source, Turns, Unit,
            UnitKind, UnitName, WAITING, cause, decide, held_back, identity, recorded, template_hash,
        },
    },
};

/// A desired Deployment with this image.
fn desired(image: &str, replicas: i64) -> Object {
    let body = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "pool-crm-1", "labels": {"app.kubernetes.io/part-of": "crm"}},
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"name": "crm", "image": image}]}}},
    });
    Object { kind: Kind::Deployment, namespace: Some("pool-crm-1".into()), name: "web".into(), body }
}

/// What the API server has of it once we have applied it.
fn live(object: &Object) -> Value {
    let mut live = object.body.clone();
    live["metadata"]["managedFields"] = json!([{
        "manager": "tenantry", "operation": "Apply",
        "fieldsV1": {"f:metadata": {"f:annotations": {format!("f:{ANNOTATION_ROLLOUT}"): {}}}},
    }]);
    live
}

fn source(application: &str, plan: &str, planned: &str) -> Source {
    Source::new(&desired(application, 1), plan, &desired(planned, 1))
}

#[test]
fn what_was_applied_is_known_from_the_live_object_alone() {
    let object = desired("crm:1", 2);
    let record = Record::new(&object, Some(source("a", "smb", "b")), true);
    let live = live(&recorded(&object, &record));
    assert_eq!(Record::of(&live), Some(record.clone()));
    assert_eq!(record.template, template_hash(&desired("crm:1", 5)), "replicas are not of the template");
    assert_ne!(record.template, template_hash(&desired("crm:2", 2)));
    // Pods know nothing of it: a record that changes restarts none.
    assert_eq!(live["spec"]["template"], object.body["spec"]["template"]);
}

#[test]
fn a_record_that_somebody_else_wrote_is_none() {
    let object = desired("crm:1", 2);
    let mut live = live(&recorded(&object, &Record::new(&object, None, true)));
    live["metadata"]["managedFields"][0]["manager"] = "kubectl-edit".into();
    assert_eq!(Record::of(&live), None);
    assert!(held_back(&object, &live).is_none(), "nobody's word but ours is applied");
}

#[test]
fn who_is_held_back_gets_all_but_the_template() {
    let old = desired("crm:1", 2);
    let record = Record::new(&old, None, true);
    let mut live = live(&recorded(&old, &record));
    live["spec"]["template"]["spec"]["containers"][0]["image"] = "spy:1".into();
    let new = desired("crm:2", 3);
    let held = held_back(&new, &live).expect("the record is ours");
    assert_eq!(held.body["spec"]["template"], old.body["spec"]["template"]);
    assert_eq!(held.body["spec"]["replicas"], 3);
    assert_eq!(held.body["metadata"]["annotations"], live["metadata"]["annotations"]);
    // It is known again without its text: what changes is known to change, and nothing else.
    assert_eq!(identity(&new, &record), identity(&desired("crm:3", 3), &record));
    assert_ne!(identity(&new, &record), identity(&desired("crm:2", 4), &record));
    assert_ne!(identity(&new, &record), identity(&new, &Record { staged: false, ..record.clone() }));
}

#[test]
fn whether_new_pods_last_is_waited_for_in_turns_alone() {
    let waiting = |seconds: i64| {
        let mut object = desired("crm:2", 2);
        object.body["spec"]["minReadySeconds"] = json!(seconds);
        object
    };
    let object = waiting(10);
    let (first, turn) = (Record::new(&object, None, false), Record::new(&object, None, true));
    assert_eq!(recorded(&object, &turn).body["spec"]["minReadySeconds"], 10);
    assert_eq!(recorded(&object, &first).body["spec"].get("minReadySeconds"), None, "a first start");
    // Who is held back keeps what came with its template.
    for (record, expected) in [(&turn, json!(20)), (&first, Value::Null)] {
        let held = held_back(&waiting(20), &live(&recorded(&object, record))).expect("the record is ours");
        assert_eq!(held.body["spec"]["minReadySeconds"], expected);
    }
    // And what nobody would see is no change.
    assert_eq!(identity(&waiting(20), &first), identity(&object, &first));
    assert_ne!(identity(&waiting(20), &turn), identity(&object, &turn));
}

#[test]
fn five_namespaces_at_a_time_where_nobody_says_and_one_pool() {
    let says = |count: Option<i32>| Rollout { max_unavailable: count, deadline: None, min_ready_seconds: None };
    assert_eq!(UnitKind::Tenant.at_a_time(None), 5);
    assert_eq!(UnitKind::Tenant.at_a_time(Some(&says(None))), 5);
    assert_eq!(UnitKind::Tenant.at_a_time(Some(&says(Some(2)))), 2);
    assert_eq!(UnitKind::Pool.at_a_time(Some(&says(Some(20)))), 1);
}

#[test]
fn what_a_tenants_own_spec_changes_concerns_this_tenant() {
    let old = source("crm:1", "smb", "crm:1 with smb");
    let from = |new: &Source| cause(Some(&old), Some(new));
    assert_eq!(from(&old.clone()), Cause::Own, "its overrides");
    assert_eq!(from(&source("crm:1", "enterprise", "crm:1 with enterprise")), Cause::Own, "its choice of plan");
    assert_eq!(from(&source("crm:1", "smb", "crm:1 with a bigger smb")), Cause::Common, "the Plan itself");
    assert_eq!(from(&source("crm:2", "smb", "crm:2 with smb")), Cause::Common, "the Application");
    assert_eq!(from(&source("crm:2", "enterprise", "crm:2 with enterprise")), Cause::Common, "both");
    assert_eq!(cause(None, Some(&old)), Cause::Common, "who knows");
}

/// The progress of a Deployment of three replicas, at this stage.
fn progress(observed: i64, [replicas, updated, available]: [i64; 3], progressing: (&str, &str)) -> Progress {
    let live = json!({
        "metadata": {"generation": 4, "labels": {}},
        "spec": {"replicas": 3},
        "status": {
            "observedGeneration": observed, "replicas": replicas, "updatedReplicas": updated,
            "availableReplicas": available,
            "conditions": [{
                "type": "Progressing", "status": progressing.0, "reason": progressing.1, "message": "it says why",
            }],
        },
    });
    RolloutState::of(&live).progress
}

#[test]
fn a_rollout_is_as_far_as_kubectl_says() {
    let under_way = ("True", "ReplicaSetUpdated");
    let complete = ("True", "NewReplicaSetAvailable");
    assert_eq!(progress(3, [3, 3, 3], complete), Progress::Unobserved);
    assert_eq!(progress(4, [4, 1, 3], under_way), Progress::Rolling);
    assert_eq!(progress(4, [4, 3, 4], under_way), Progress::Rolling, "an old pod is left");
    assert_eq!(progress(4, [3, 3, 2], under_way), Progress::Rolling);
    assert_eq!(progress(4, [3, 3, 3], under_way), Progress::Complete);
    assert_eq!(progress(4, [3, 3, 1], complete), Progress::Complete, "it lost pods afterwards");
    assert_eq!(progress(4, [2, 2, 2], complete), Progress::Complete, "it is being scaled up");
    assert_eq!(
        progress(4, [4, 1, 3], ("False", "ProgressDeadlineExceeded")),
        Progress::Failed("it says why".to_owned())
    );
}

#[test]
fn a_component_without_replicas_is_at_the_newest_template_at_once() {
    let live = json!({
        "metadata": {"generation": 2, "labels": {}}, "spec": {"replicas": 0},
        "status": {"observedGeneration": 2, "conditions": []},
    });
    let state = component_state("web", Some(&live));
    assert!(state.available && state.is_whole());
    assert_eq!(state.rollout.progress, Progress::Complete);
}

/// A pool of one component, with the version of its template.
#[derive(Clone, Debug)]
struct Model {
    unit: Unit,
    version: u64,
}

fn unit(name: usize, staged: bool, progress: Progress, available: bool) -> Unit {
    let mut state = component_state("web", None);
    (state.available, state.lasting) = (available, available);
    state.rollout.record = Some(Record { template: 0, source: None, staged });
    state.rollout.progress = progress;
    let name = UnitName { kind: UnitKind::Pool, name: format!("crm-{name:02}") };
    Unit { name, components: vec![state] }
}

fn decided(unit: &Unit, others: &[Unit]) -> Decision {
    decide(unit, Cause::Common, others, &Turns::default(), 1)
}

#[test]
fn turns_by_case() {
    let failed = || Progress::Failed("no progress".into());
    let waits = |decision: &Decision, reason: &str| matches!(decision, Decision::Wait(wait) if wait.reason == reason);
    let well = |name| unit(name, true, Progress::Complete, true);
    let go = |staged| Decision::Go { staged };
    // One after the other.
    assert_eq!(decided(&well(1), &[well(2)]), go(true));
    assert!(waits(&decided(&well(1), &[unit(2, true, Progress::Rolling, true)]), WAITING));
    assert!(waits(&decided(&well(1), &[unit(2, true, Progress::Unobserved, true)]), WAITING));
    // None after a failure, also not one that is down, or that somebody has restarted.
    let stopped = [unit(2, true, failed(), true)];
    for waiting in [
        well(1),
        unit(1, true, Progress::Complete, false),
        unit(1, false, Progress::Complete, false),
        unit(1, true, Progress::Rolling, true),
    ] {
        assert!(waits(&decided(&waiting, &stopped), STOPPED), "{waiting:?}");
    }
    // But where it failed, and where two did, another template may heal.
    assert_eq!(decided(&unit(1, true, failed(), true), &stopped), go(true));
    assert_eq!(decided(&unit(1, true, Progress::Rolling, true), &[well(2)]), go(true), "two changes in a row");
    // What was ill before says nothing of the template, and holds nobody up.
    assert_eq!(decided(&unit(1, false, Progress::Complete, false), &[well(2)]), go(false));
    assert_eq!(decided(&unit(1, false, failed(), true), &[well(2)]), go(false));
    assert_eq!(
        decided(&well(1), &[unit(2, false, failed(), false), unit(3, false, Progress::Rolling, false)]),
        go(true)
    );
    // Who went down with the newest template holds the others; who waits for it doesn't.
    let down = unit(2, true, Progress::Complete, false);
    let Decision::Wait(wait) = decided(&well(1), std::slice::from_ref(&down)) else { panic!("it waits") };
    let mut turns = Turns::default();
    turns.told.insert(down.name.clone(), wait);
    assert_eq!(decide(&well(1), Cause::Common, &[down], &turns, 1), go(true));
    // Nor is it whole because it is ready for a moment, between one end and the next.
    let mut relapsing = unit(2, true, Progress::Complete, false);
    relapsing.components[0].available = true;
    assert!(waits(&decided(&well(1), &[relapsing]), WAITING));
    // A tenant's own change goes at once, and gives nobody's turn away.
    assert_eq!(decide(&well(1), Cause::Own, &stopped, &Turns::default(), 1), go(false));
    let turn = unit(1, true, Progress::Rolling, true);
    assert_eq!(decide(&turn, Cause::Own, &stopped, &Turns::default(), 1), go(true));
    // Pools and tenants' namespaces are counted apart.
    let mut tenant = unit(3, true, Progress::Rolling, true);
    tenant.name.kind = UnitKind::Tenant;
    assert_eq!(decided(&well(1), &[tenant]), go(true));
}

/// What happens to a fleet.
#[derive(Clone, Debug)]
enum Event {
    /// The Application gets another template.
    Change,
    /// A unit is looked at, and gets the template where it may.
    Ask(usize),
    /// A unit's rollout comes to an end, well or not.
    End(usize, bool),
    /// A unit goes down, or serves again, without a rollout.
    Serves(usize, bool),
}

fn event(units: usize) -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => Just(Event::Change),
        6 => (0..units).prop_map(Event::Ask),
        3 => (0..units, prop::bool::weighted(0.8)).prop_map(|(unit, well)| Event::End(unit, well)),
        1 => (0..units, any::<bool>()).prop_map(|(unit, serves)| Event::Serves(unit, serves)),
    ]
}

struct Fleet {
    models: Vec<Model>,
    turns: Turns,
    newest: u64,
    limit: usize,
}

impl Fleet {
    fn ask(&mut self, index: usize) {
        let model = &self.models[index];
        let name = model.unit.name.clone();
        if model.version == self.newest {
            self.turns.told.remove(&name);
            return;
        }
        let others: Vec<Unit> =
            self.models.iter().filter(|other| other.unit.name != name).map(|other| other.unit.clone()).collect();
        let was_well = !model.unit.is_ill() && model.unit.failed().is_none();
        let stopped = others.iter().any(|other| other.failed().is_some());
        match decide(&model.unit, Cause::Common, &others, &self.turns, self.limit) {
            Decision::Go { staged } => {
                assert_eq!(staged, !model.unit.is_ill());
                if was_well {
                    assert!(!stopped, "a template that failed reaches nobody who is well");
                    let taken = others.iter().filter(|other| is_staged_rolling(other)).count();
                    assert!(taken < self.limit, "{taken} others have a turn");
                }
                self.turns.told.remove(&name);
                let model = &mut self.models[index];
                model.version = self.newest;
                let state = &mut model.unit.components[0];
                state.rollout.record = Some(Record { template: self.newest, source: None, staged });
                state.rollout.progress = Progress::Rolling;
            }
            Decision::Wait(wait) => {
                self.turns.told.insert(name, wait);
            }
        }
    }

    fn happens(&mut self, event: &Event) {
        match *event {
            Event::Change => self.newest += 1,
            Event::Ask(index) => self.ask(index),
            Event::End(index, well) => {
                let state = &mut self.models[index].unit.components[0];
                if state.rollout.progress != Progress::Complete {
                    state.rollout.progress =
                        if well { Progress::Complete } else { Progress::Failed("it failed".into()) };
                    state.lasting |= well;
                }
            }
            Event::Serves(index, serves) => self.models[index].unit.components[0].lasting = serves,
        }
    }
}

fn is_staged_rolling(unit: &Unit) -> bool {
    unit.is_rolling()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever happened before: with a template that works, everybody gets it in the end;
    /// and on the way there, no more than may are in a rollout, and none after a failure.
    #[test]
    fn a_template_that_works_reaches_everybody(
        limit in 1_usize..4,
        count in 1_usize..9,
        down in prop::collection::vec(any::<bool>(), 9),
        events in prop::collection::vec(event(9), 0..120),
    ) {
        let models = (0..count).map(|index| Model {
            unit: unit(index, index % 2 == 0, Progress::Complete, !down[index]),
            version: 0,
        });
        let mut fleet = Fleet { models: models.collect(), turns: Turns::default(), newest: 0, limit };
        for event in &events {
            let index = match *event {
                Event::Ask(index) | Event::End(index, _) | Event::Serves(index, _) => index,
                Event::Change => 0,
            };
            if index < count {
                fleet.happens(event);
            }
        }
        fleet.happens(&Event::Change);
        let mut rounds = 0;
        while fleet.models.iter().any(|model| model.version != fleet.newest) {
            rounds += 1;
            prop_assert!(rounds <= 3 * count + 3, "{:?}", fleet.models);
            for index in 0..count {
                fleet.ask(index);
            }
            for index in 0..count {
                if fleet.models[index].version == fleet.newest {
                    fleet.happens(&Event::End(index, true));
                    fleet.happens(&Event::Serves(index, true));
                }
            }
        }
        let versions: BTreeSet<_> = fleet.models.iter().map(|model| model.version).collect();
        prop_assert_eq!(versions.len(), 1);
    }
}
