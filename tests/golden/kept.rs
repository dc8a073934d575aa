//! What has a fault stays as it is, and nothing else.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tenantry::desired::{
    Kept, Kind, Object, PoolInput, PoolObjects, Settings,
    rollout::{Record, as_many, held_back, identity, recorded},
};

use crate::fixtures::{API_SERVER, Own, application, find, pool, server, settings, shared};

/// Kinds and names of objects.
fn names(objects: &[Object]) -> BTreeSet<(Kind, String)> {
    objects.iter().map(|object| (object.kind, object.name.clone())).collect()
}

fn of_pool(change: impl FnOnce(&mut tenantry::api::Application)) -> PoolObjects {
    let (mut application, settings): (_, Settings) = (application(), settings());
    change(&mut application);
    tenantry::desired::pool_objects(&PoolInput {
        pool: &pool(),
        application: &application,
        server: &server(),
        shared: &shared(),
        settings: &settings,
        api_server: &API_SERVER,
        held_replicas: &Default::default(),
    })
}

/// What of the objects without a fault is missing: it must be what is kept, and no Deployment.
fn assert_kept(good: &[Object], faulty: &[Object], kept: &Kept, expected: &[(Kind, &str)]) {
    let missing: BTreeSet<_> = names(good).difference(&names(faulty)).cloned().collect();
    let expected: BTreeSet<_> = expected.iter().map(|(kind, name)| (*kind, (*name).to_owned())).collect();
    assert_eq!(missing, expected);
    assert!(missing.iter().all(|object| kept.objects.contains(object)), "what is missing would be removed: {kept:?}");
    assert!(!kept.all_faults().is_empty() && !kept.is_none());
    let same = faulty.iter().filter(|object| object.kind != Kind::Deployment);
    for object in same {
        assert_eq!(object.body, *find(good, object.kind, &object.name), "{object} differs");
    }
}

#[test]
fn a_template_that_can_not_be_used_keeps_its_own_pods_alone() {
    let broken = |application: &mut tenantry::api::Application| {
        application.spec.components[1].template.0["spec"]["containers"][0]["image"] = json!("");
    };
    let (good, faulty) = (of_pool(|_| {}), of_pool(broken));
    let kept = faulty.kept.clone();
    assert_eq!(kept.deployments().collect::<Vec<_>>(), ["worker"]);
    let faulty = faulty.into_ordered();
    assert_kept(&good.into_ordered(), &faulty, &kept, &[(Kind::HorizontalPodAutoscaler, "worker")]);
    assert_eq!(find(&faulty, Kind::Deployment, "worker")["spec"]["template"], Value::Null, "there is none");
    let own = Own::bridge();
    let broken = own.clone().with(|own| broken(&mut own.application)).objects_with_faults();
    let kept = broken.kept.clone();
    assert_eq!(kept.deployments().collect::<Vec<_>>(), ["worker"]);
    assert!(kept.faults.is_empty() && kept.template_faults.len() == 1, "{kept:?}");
    assert_kept(&own.ordered(), &broken.into_ordered(), &kept, &[]);
}

#[test]
fn a_quota_that_is_too_small_stays_with_the_number_of_pods() {
    let small = Own::bridge().with(|own| own.plan.spec.quota = serde_json::from_value(json!({"pods": 1})).unwrap());
    let objects = small.objects_with_faults();
    let kept = objects.kept.clone();
    assert_eq!(kept.deployments().collect::<Vec<_>>(), ["api", "worker", "web"]);
    let bounds = [(Kind::ResourceQuota, "tenantry"), (Kind::LimitRange, "tenantry")];
    assert_kept(&Own::bridge().ordered(), &objects.into_ordered(), &kept, &bounds);
    let small = |application: &mut tenantry::api::Application| {
        application.spec.pools.as_mut().unwrap().quota = serde_json::from_value(json!({"pods": 1})).unwrap();
    };
    let objects = of_pool(small);
    let kept = objects.kept.clone();
    let good = of_pool(|_| {}).into_ordered();
    let missing = [(Kind::ResourceQuota, "tenantry"), (Kind::HorizontalPodAutoscaler, "worker")];
    assert_kept(&good, &objects.into_ordered(), &kept, &missing);
}

#[test]
fn peers_owners_and_shared_objects_keep_what_is_made_from_them() {
    let good = Own::dedicated();
    let objects = good.clone().with(|own| {
        own.tenant.spec.owners.as_mut().unwrap()[0].name = "system:masters".into();
        own.application.spec.route.as_mut().unwrap().from = serde_json::from_value(json!([{}])).unwrap();
        own.application.spec.shared.as_mut().unwrap().secrets = Some(vec!["gone".into()]);
        own.server.spec.network = serde_json::from_value(json!({"to": [{}]})).unwrap();
    });
    let objects = objects.objects_with_faults();
    let kept = objects.kept.clone();
    assert!(kept.objects.contains(&(Kind::Secret, "gone".into())), "a copy whose source went: {kept:?}");
    let missing = [
        (Kind::RoleBinding, "tenantry-owner"),
        (Kind::NetworkPolicy, "allow-route"),
        (Kind::NetworkPolicy, "allow-database"),
        // It is no longer shared.
        (Kind::Secret, "registry"),
    ];
    let ordered = objects.into_ordered();
    let absent: BTreeSet<_> = names(&good.ordered()).difference(&names(&ordered)).cloned().collect();
    assert_eq!(absent, missing.iter().map(|(kind, name)| (*kind, (*name).to_owned())).collect());
    assert!(!kept.objects.contains(&(Kind::Secret, "registry".into())));
    assert_eq!(kept.deployments().count(), 0, "pods have no fault");
}

#[test]
fn a_deployment_that_is_held_is_the_one_that_was_applied_last() {
    let own = Own::bridge();
    let object = own.objects().deployments.remove(0);
    let record = Record::new(&object, None, false);
    let mut live = recorded(&object, &record).body;
    live["metadata"]["managedFields"] = json!([{
        "manager": "tenantry", "operation": "Apply",
        "fieldsV1": {"f:metadata": {"f:annotations": {"f:tenantry.io/rollout": {}}}},
    }]);
    let broken = own.with(|own| own.application.spec.components[0].template.0["spec"] = json!({}));
    let faulty = broken.objects_with_faults().deployments.remove(0);
    assert_eq!(held_back(&faulty, &live).unwrap().body, recorded(&object, &record).body);
    assert_eq!(identity(&faulty, &record), identity(&object, &record), "nothing is to be written");

    let replicas = |desired: Value, live: i64| {
        let mut object = object.clone();
        object.body["spec"]["replicas"] = desired;
        as_many(&object, live).body["spec"]["replicas"].clone()
    };
    assert_eq!(replicas(json!(9), 2), 2, "more than fit are not asked for");
    assert_eq!(replicas(json!(0), 2), 0, "suspended");
    assert_eq!(replicas(json!(9), 0), 9, "no longer suspended");
    let mut autoscaled = object.clone();
    autoscaled.body["spec"].as_object_mut().unwrap().remove("replicas");
    assert_eq!(as_many(&autoscaled, 3).body, autoscaled.body, "the autoscaler's");
}
