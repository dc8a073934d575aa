use serde_json::json;

use super::*;

fn key() -> Key {
    Key { kind: Kind::ConfigMap, namespace: Some("pool-a-1".into()), name: "m".into() }
}

fn object(version: u64, pool: &str, value: &str) -> Value {
    json!({
        "metadata": {
            "uid": "u", "resourceVersion": version.to_string(), "labels": {LABEL_POOL: pool},
            "managedFields": [{"manager": "tenantry", "operation": "Apply", "fieldsV1": {}}],
        },
        "data": {"k": value},
    })
}

fn children() -> Children<()> {
    Children::new(|_, _| ())
}

#[test]
fn an_answer_that_is_older_than_the_objects_end_brings_nothing_back() {
    let children = children();
    children.wrote(&key(), 1, &object(5, "a-1", "x"));
    assert_eq!(children.gone(&key(), &object(7, "a-1", "x")), Some(Owner::Pool("a-1".into())));
    children.wrote(&key(), 1, &object(6, "a-1", "x"));
    assert!(matches!(children.observe(&key(), 1), Observed::Absent), "it went after that was written");
    children.wrote(&key(), 1, &object(8, "a-1", "x"));
    assert!(matches!(children.observe(&key(), 1), Observed::InSync));
}

#[test]
fn what_was_written_while_a_list_was_on_its_way_may_be_newer_than_the_list() {
    let children = children();
    children.wrote(&key(), 1, &object(5, "a-1", "x"));
    let asked = children.moment();
    assert!(!children.is_newer(&key(), asked), "the list would have it");
    children.wrote(&key(), 1, &object(6, "a-1", "x"));
    assert!(children.is_newer(&key(), asked));
    children.saw(&key(), &object(7, "a-1", "y"));
    assert!(!children.is_newer(&key(), asked), "a watch has told of it");
}

#[test]
fn whose_an_object_is_stays_whatever_its_labels_say() {
    let children = children();
    children.wrote(&key(), 1, &object(5, "a-1", "x"));
    assert_eq!(children.saw(&key(), &object(6, "b-1", "x")), Some(Owner::Pool("a-1".into())));
    assert!(children.of_owner(&Owner::Pool("b-1".into())).is_empty());
    assert!(matches!(children.observe(&key(), 1), Observed::Changed(_)));
}

fn held(children: &Children<()>) -> usize {
    children.lock().children.values().filter_map(|child| child.whole.as_ref()).map(|whole| whole.len()).sum()
}

#[test]
fn of_an_object_that_is_not_ours_nothing_is_held() {
    let children = children();
    let mut foreign = object(3, "a-1", "x");
    foreign["metadata"]["managedFields"][0]["manager"] = json!("somebody");
    // Whose it would be if it were ours is known, to look again when it goes.
    assert_eq!(children.saw(&key(), &foreign), Some(Owner::Pool("a-1".into())));
    assert_eq!((held(&children), children.is_ours(&key())), (0, Some(false)));
    assert!(matches!(children.observe(&key(), 1), Observed::Foreign));
    assert!(children.whole(&key()).is_none());
}

#[test]
fn what_is_held_of_an_object_of_ours_goes_once_it_was_compared() {
    let children = children();
    let mut live = object(3, "a-1", "x");
    live["status"] = json!({"said": "x".repeat(1_000)});
    let entry = |manager: &str, subresource: Value| {
        let fields = json!({"f:status": {"f:said": {}}});
        json!({"manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-11-01T00:00:00Z",
               "fieldsType": "FieldsV1", "fieldsV1": fields, "subresource": subresource})
    };
    let of_status = [entry("gateway", json!("status")), entry("tenantry", json!("status"))];
    live["metadata"]["managedFields"].as_array_mut().expect("entries").extend(of_status);
    children.saw(&key(), &live);
    let Observed::Changed(whole) = children.observe(&key(), 1) else { panic!("it is to be compared") };
    assert_eq!(whole["status"], Value::Null);
    assert_eq!(whole["data"], live["data"]);
    assert_eq!(
        whole["metadata"]["managedFields"],
        json!([
            {"manager": "tenantry", "operation": "Apply", "fieldsV1": {}},
            {"manager": "tenantry", "operation": "Update", "subresource": "status"},
        ])
    );
    assert!(held(&children) > 0);
    children.verified(&key(), 1, &whole);
    assert_eq!(held(&children), 0);
    assert!(matches!(children.observe(&key(), 1), Observed::InSync));
    assert!(matches!(children.observe(&key(), 2), Observed::Outdated));
}

#[test]
fn an_object_stays_ours_when_somebody_clears_its_managed_fields() {
    let children = children();
    children.wrote(&key(), 1, &object(5, "a-1", "x"));
    let mut cleared = object(6, "a-1", "y");
    cleared["metadata"]["managedFields"] = json!([]);
    assert_eq!(children.saw(&key(), &cleared), Some(Owner::Pool("a-1".into())));
    assert_eq!(children.is_ours(&key()), Some(true));
    assert_eq!(children.of_owner(&Owner::Pool("a-1".into())), [key()]);
    // Another object of that name isn't.
    cleared["metadata"]["uid"] = json!("other");
    children.saw(&key(), &cleared);
    assert_eq!(children.is_ours(&key()), Some(false));
}

#[test]
fn who_was_refused_a_name_is_told_when_it_is_free() {
    let children = children();
    let foreign = json!({"metadata": {"uid": "f", "resourceVersion": "3"}});
    assert_eq!(children.saw(&key(), &foreign), None);
    children.refused(&key(), &object(0, "a-1", "x"));
    assert_eq!(children.gone(&key(), &foreign), Some(Owner::Pool("a-1".into())));
}

#[test]
fn what_went_takes_no_room_for_long() {
    let children = children();
    let key =
        |number: usize| Key { kind: Kind::ConfigMap, namespace: Some("pool-a-1".into()), name: format!("m{number}") };
    let owner = |number: usize| format!("a-{}", number / 2);
    for number in 0..4_000 {
        children.wrote(&key(number), 1, &object(5, &owner(number), "x"));
    }
    for number in 1..4_000 {
        children.gone(&key(number), &object(7, &owner(number), "x"));
    }
    children.tidy();
    let late = object(6, &owner(1), "x");
    children.wrote(&key(1), 1, &late);
    assert!(matches!(children.observe(&key(1), 1), Observed::Absent), "it is remembered for a while");
    {
        let mut maps = children.lock();
        assert!(maps.children.capacity() < 100 && maps.by_owner.capacity() < 100, "only one is left");
        maps.expire(Instant::now() + REMEMBERED + Duration::from_secs(1));
    }
    children.tidy();
    let maps = children.lock();
    assert_eq!((maps.departed.len(), maps.departures.len()), (0, 0));
    assert!(maps.departed.capacity() < 100 && maps.departures.capacity() < 100);
}
