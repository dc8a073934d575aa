//! docs/openapi.json is what the API serves and does.

use std::collections::BTreeSet;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tenantry::{
    api::{ClosedMeterUsage, ClosedUsage, MeterUsage, TenantUsage, UsagePeriod},
    metering::{
        event::{Answer, DeadEvents, Folded, MARK_TYPE, Mark, OUTBOX_TYPE, OutboxReport, Refusal, USAGE_TYPE, Usage},
        judge::Reason,
    },
    web::{OPENAPI, Problem, ReadingCondition, UsageReading},
};

use super::ground::{BATCH, Ground, ONE, ago, relay, settings, workload};

fn document() -> Value {
    serde_json::from_str(OPENAPI).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_served_to_everybody() {
    let ground = Ground::new().await;
    let request = "GET /v1/openapi.json HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n";
    let reply = ground.raw(request.as_bytes()).await;
    assert_eq!((reply.status, reply.json()), (200, document()));
    assert!(reply.head.contains("content-type: application/json"), "{reply:?}");
    let kept = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json")).expect("a file");
    assert_eq!(reply.body, kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn its_examples_are_taken() {
    let ground = Ground::new().await;
    let namespace = "tenant-documented";
    let (token, own) = (relay("main").await, workload(namespace).await);
    ground.tenant(&["main"], Some(namespace)).await;
    ground.register("t_abcdefghijkl", &["main"], None).await;
    let content = &document()["paths"]["/v1/events"]["post"]["requestBody"]["content"];
    let today = |event: &Value| super::ground::with(event.clone(), "/time", json!(ago(60).to_string()));
    let batch = &content[BATCH]["examples"]["relay"]["value"];
    let events: Vec<Value> = batch.as_array().expect("a batch").iter().map(today).collect();
    let all: BTreeSet<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(all, BTreeSet::from([USAGE_TYPE, MARK_TYPE, OUTBOX_TYPE]));
    ground.batch(&token, &events).await.took(200, 3, 0, 0);
    let one = today(&content[ONE]["examples"]["workload"]["value"]);
    ground.post(Some(&own), ONE, &[], &one.to_string()).await.took(200, 1, 0, 0);
    let time = ago(60).to_string();
    let parameters = document()["paths"]["/v1/events"]["post"]["parameters"].clone();
    let value = |name: &str| match name {
        "ce-specversion" => "1.0",
        "ce-id" => "in-headers",
        "ce-source" => "/exporter",
        "ce-type" => USAGE_TYPE,
        "ce-time" => &time,
        _ => "",
    };
    let names: Vec<String> = parameters
        .as_array()
        .expect("parameters")
        .iter()
        .filter_map(|one| one["name"].as_str().map(str::to_owned))
        .collect();
    let headers: Vec<(&str, &str)> =
        names.iter().map(|name| (name.as_str(), value(name))).filter(|(_, value)| !value.is_empty()).collect();
    let data = content["application/json"]["examples"]["workload"]["value"].to_string();
    ground.post(Some(&own), "application/json", &headers, &data).await.took(200, 1, 0, 0);
}

/// The names of a schema's properties, and of those that are required.
fn schema(name: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let schema = document()["components"]["schemas"][name].clone();
    let required =
        schema["required"].as_array().expect("required").iter().filter_map(|name| name.as_str().map(str::to_owned));
    (schema["properties"].as_object().expect("properties").keys().cloned().collect(), required.collect())
}

/// Whether a schema has just the fields that a type reads and writes; `full` has them all.
fn same<T: Serialize + DeserializeOwned>(name: &str, full: &Value) {
    let (properties, required) = schema(name);
    let read = |value: &Value| serde_json::from_value::<T>(value.clone());
    let written = serde_json::to_value(read(full).expect(name)).expect("JSON");
    assert_eq!(written.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>(), properties, "{name}");
    let mut least = full.clone();
    least.as_object_mut().expect("an object").retain(|field, _| required.contains(field));
    read(&least).unwrap_or_else(|error| panic!("{name} needs more than is required: {error}"));
    for field in &required {
        let mut less = least.clone();
        less.as_object_mut().expect("an object").remove(field);
        assert!(read(&less).is_err(), "{name} needs no {field}");
    }
    let mut more = full.clone();
    more["anotherField"] = json!(1);
    let closed = document()["components"]["schemas"][name]["additionalProperties"] == json!(false);
    assert_eq!(read(&more).is_err(), closed, "{name}");
}

#[test]
fn its_schemas_are_the_types() {
    let time = "2026-11-28T09:30:00Z";
    let folded = json!({"firstSequence": 1, "firstAt": time, "low": 1, "high": 2, "moment": "-3"});
    let dead = json!({"tenant": "t_abcdefghijkl", "events": 2});
    same::<Folded>("Folded", &folded);
    same::<DeadEvents>("DeadEvents", &dead);
    same::<Usage>(
        "Usage",
        &json!({
            "meter": "users", "delta": 1, "kind": "Add", "epoch": 1, "sequence": 2, "value": 2, "subject": "5f",
            "reason": "why", "actor": "jane", "periodStart": time, "folded": folded,
        }),
    );
    same::<Mark>("Mark", &json!({"meter": "users", "epoch": 1, "sequence": 0, "value": 0}));
    same::<OutboxReport>("OutboxReport", &json!({"waiting": 1, "oldest": time, "dead": [dead]}));
    let refusal = json!({"index": 0, "id": "e1", "reason": "BadData", "message": "what"});
    same::<Refusal>("Refusal", &refusal);
    same::<Problem>("Problem", &json!({"reason": "TooLarge", "message": "what"}));
    let meter = json!({"name": "users", "current": 2, "peak": 3, "average": "2.50", "limit": 5, "display": "2", "complete": true});
    let closed = json!({"name": "users", "closing": 2, "peak": 3, "average": "2.50", "used": 4, "adjusted": -1});
    let closed_period = json!({"start": time, "end": time, "estimated": true, "meters": [closed]});
    let usage = json!({"asOf": time, "period": {"start": time, "end": time}, "meters": [meter]});
    let condition = json!({"type": "UsageComplete", "status": "True", "reason": "Complete", "message": "what"});
    same::<MeterUsage>("MeterUsage", &meter);
    same::<ClosedMeterUsage>("ClosedMeterUsage", &closed);
    same::<ClosedUsage>("ClosedUsage", &closed_period);
    same::<UsagePeriod>("UsagePeriod", &usage["period"]);
    same::<TenantUsage>("TenantUsage", &usage);
    same::<ReadingCondition>("ReadingCondition", &condition);
    same::<UsageReading>(
        "UsageReading",
        &json!({
            "tenant": "acme", "id": "t_abcdefghijkl", "goneAt": time, "usage": usage, "history": [closed_period],
            "conditions": [condition],
        }),
    );
    // What is answered always has all of it.
    let (properties, required) = schema("Answer");
    let answer = serde_json::to_value(Answer::default()).expect("JSON");
    assert_eq!(properties, answer.as_object().expect("an object").keys().cloned().collect());
    assert_eq!(properties, required);
    let reasons = &document()["components"]["schemas"]["Refusal"]["properties"]["reason"]["enum"];
    assert_eq!(*reasons, json!(Reason::ALL.map(Reason::as_str)));
    let kinds = &document()["components"]["schemas"]["Usage"]["properties"]["kind"]["enum"];
    for kind in kinds.as_array().expect("kinds") {
        let mut usage = json!({"meter": "users", "delta": 1, "epoch": 1, "sequence": 2, "value": 2});
        usage["kind"] = kind.clone();
        serde_json::from_value::<Usage>(usage).unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
}

#[test]
fn its_limits_are_the_standard_ones() {
    let content = &document()["paths"]["/v1/events"]["post"]["requestBody"]["content"];
    assert_eq!(content[BATCH]["schema"]["maxItems"], json!(settings().events));
    let text = document()["paths"]["/v1/events"]["post"]["description"].as_str().expect("a text").to_owned();
    assert!(text.contains("at most 5,000 events") && settings().events == 5_000);
    assert!(text.contains("at most 4 MiB") && settings().body == 4 * 1024 * 1024);
}

#[test]
fn every_reference_leads_somewhere() {
    let document = document();
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
    assert_eq!(document["openapi"], "3.1.0");
}
