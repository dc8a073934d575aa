//! What the HTTP binding and the JSON format of CloudEvents 1.0 say, case by case.

use http::{HeaderName, HeaderValue};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const MOST: usize = 3;

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        let name: HeaderName = name.parse().expect("a name");
        (name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"))
    };
    pairs.iter().map(pair).fold(HeaderMap::new(), |mut map, (name, value)| {
        map.append(name, value);
        map
    })
}

fn whole() -> Value {
    json!({
        "specversion": "1.0", "id": "A234-1234", "source": "/tenantry/main/pool_crm_1", "type": "io.tenantry.usage.v1",
        "subject": "t_abcdefghijkl", "time": "2026-11-28T09:30:00Z", "data": {"meter": "users", "delta": 1},
    })
}

/// The whole event with these members over it; null takes one away.
fn with(more: &Value) -> Value {
    let mut event = whole();
    let members = event.as_object_mut().expect("an object");
    for (name, value) in more.as_object().expect("an object") {
        members.insert(name.clone(), value.clone());
    }
    event
}

fn structured(body: &str) -> Result<CloudEvent<'static>, EventFault> {
    let headers = headers(&[("content-type", "application/cloudevents+json")]);
    let parsed = parse(&headers, body.as_bytes(), MOST).expect("a request").events.remove(0);
    parsed.map(owned)
}

fn owned(event: CloudEvent<'_>) -> CloudEvent<'static> {
    let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
    CloudEvent {
        id: own(event.id),
        source: own(event.source),
        event_type: own(event.event_type),
        subject: event.subject.map(own),
        time: event.time,
        data: event.data.map(own),
    }
}

#[test]
fn the_mode_is_told_by_the_media_type_without_case() {
    let batch = Ok(Mode::Batched);
    let one = Ok(Mode::Structured);
    let cases = [
        ("application/cloudevents-batch+json", batch),
        ("Application/CloudEvents-Batch+JSON", batch),
        ("application/cloudevents-batch+json; charset=utf-8", batch),
        ("application/cloudevents-batch+json;charset=\"UTF-8\"", batch),
        ("application/cloudevents+json", one),
        ("APPLICATION/CLOUDEVENTS+JSON ; Charset = UTF8", one),
        ("application/cloudevents+json; profile=x; charset=utf-8", one),
        ("application/cloudevents+json; charset=iso-8859-1", Err("charset iso-8859-1: only UTF-8")),
        ("application/cloudevents-batch+json; charset=UTF-16", Err("charset UTF-16: only UTF-8")),
        ("application/cloudevents+avro", Err("only JSON is read")),
        ("application/cloudevents-batch+protobuf", Err("only JSON is read")),
        ("application/cloudevents", Err("only JSON is read")),
        ("application/json", Err("without ce- headers")),
        ("text/plain", Err("without ce- headers")),
        ("", Err("without ce- headers")),
    ];
    for (media, wanted) in cases {
        match (mode(&headers(&[("content-type", media)])), wanted) {
            (Ok(mode), Ok(wanted)) => assert_eq!(mode, wanted, "{media}"),
            (Err(RequestFault::Unsupported(says)), Err(wanted)) => assert!(says.contains(wanted), "{media}: {says}"),
            (is, wanted) => panic!("{media}: {is:?}, not {wanted:?}"),
        }
    }
    for (pairs, wanted) in [
        (&[("ce-id", "1"), ("content-type", "application/json")][..], Ok(Mode::Binary)),
        (&[("CE-Id", "1"), ("content-type", "application/vnd.x+json; charset=utf-8")], Ok(Mode::Binary)),
        // A batch is a batch, whatever else is there.
        (&[("ce-id", "1"), ("content-type", "application/cloudevents-batch+json")], Ok(Mode::Batched)),
        (
            &[("ce-id", "1"), ("content-type", "application/x-www-form-urlencoded")],
            Err("the data of these events is JSON"),
        ),
        (&[("ce-id", "1")], Err("one Content-Type")),
        (&[("content-type", "application/json"), ("content-type", "text/plain")], Err("one Content-Type")),
        (&[("content-type", "application/cloudevents+json"), ("content-encoding", "gzip")], Err("Content-Encoding")),
        (&[("content-type", "application/cloudevents+json"), ("content-encoding", "Identity")], Ok(Mode::Structured)),
    ] {
        match (mode(&headers(pairs)), wanted) {
            (Ok(mode), Ok(wanted)) => assert_eq!(mode, wanted, "{pairs:?}"),
            (Err(RequestFault::Unsupported(says)), Err(wanted)) => assert!(says.contains(wanted), "{pairs:?}: {says}"),
            (is, wanted) => panic!("{pairs:?}: {is:?}, not {wanted:?}"),
        }
    }
}

#[test]
fn one_event_as_json() {
    let event = structured(&whole().to_string()).expect("an event");
    assert_eq!((&*event.id, &*event.source), ("A234-1234", "/tenantry/main/pool_crm_1"));
    assert_eq!((&*event.event_type, event.subject.as_deref()), ("io.tenantry.usage.v1", Some("t_abcdefghijkl")));
    assert_eq!(event.time, Some("2026-11-28T09:30:00Z".parse().expect("a time")));
    let data: Value = serde_json::from_str(event.data.as_deref().expect("data")).expect("JSON");
    assert_eq!(data, json!({"meter": "users", "delta": 1}));
    for (more, right) in [
        (json!({"id": "with \"quotes\" and ü \u{1F600}"}), true),
        (json!({"subject": null, "time": null, "unsetextension": null}), true),
        (json!({"comexampleextension1": "value", "comexampleothervalue": 5, "sampled": true, "odd": {"a": [1]}}), true),
        (json!({"datacontenttype": "application/json"}), true),
        (json!({"datacontenttype": "Application/Vnd.Example+JSON; charset=utf-8"}), true),
        (json!({"dataschema": "https://example.com/schema#v1"}), true),
        (json!({"time": "2026-11-28T18:30:00+09:00"}), true),
        (json!({"data": "a text"}), true),
        (json!({"data": null, "data_base64": "eyJtZXRlciI6MX0=", "datacontenttype": "application/json"}), false),
        (json!({"datacontenttype": "application/xml", "data": "<a/>"}), false),
        (json!({"datacontenttype": "application/json; charset=latin1"}), false),
        (json!({"dataschema": "no schema"}), false),
    ] {
        let answer = structured(&with(&more).to_string());
        assert_eq!(answer.is_ok(), right, "{more}: {answer:?}");
    }
}

#[test]
fn what_is_wrong_with_an_event_is_named() {
    for (more, says) in [
        (json!({"specversion": null}), "specversion is missing"),
        (json!({"specversion": "0.3"}), "specversion \"0.3\""),
        (json!({"specversion": 1.0}), "specversion is no string"),
        (json!({"id": null}), "id is missing"),
        (json!({"id": ""}), "id is empty"),
        (json!({"id": 7}), "id is no string"),
        (json!({"id": "a\u{0}b"}), "id \"a\\0b\" has characters"),
        (json!({"source": null}), "source is missing"),
        (json!({"source": ""}), "source is empty"),
        (json!({"source": "not a uri"}), "is no URI-reference"),
        (json!({"type": null}), "type is missing"),
        (json!({"type": ""}), "type is empty"),
        (json!({"subject": ""}), "subject is empty"),
        (json!({"subject": ["t_abcdefghijkl"]}), "subject is no string"),
        (json!({"time": "yesterday"}), "time: \"yesterday\" is no time"),
        (json!({"time": 1_795_858_200}), "time is no string"),
        (json!({"eventType": "x"}), "\"eventType\" is no attribute"),
        (json!({"event_type": "x"}), "\"event_type\" is no attribute"),
        (json!({"data_base64": "e30="}), "data and data_base64 are both there"),
    ] {
        let fault = structured(&with(&more).to_string()).expect_err("a fault");
        assert!(fault.message.contains(says), "{more}: {fault}");
        let knows_id = !more.as_object().is_some_and(|more| more.contains_key("id"));
        assert_eq!(fault.id.is_some(), knows_id || says.contains("characters"), "{more}: {fault:?}");
    }
    let twice = whole().to_string().replace("\"subject\":", "\"id\":\"other\",\"subject\":");
    assert!(structured(&twice).expect_err("twice").message.contains("id is there more than once"));
    // As it is written makes no difference to what it is called.
    let escaped = whole().to_string().replace("\"id\":", "\"\\u0069d\":");
    assert_eq!(structured(&escaped).expect("an event").id, "A234-1234");
    for none in ["[]", "1", "\"text\"", "null"] {
        let fault = structured(none).expect_err("no event");
        assert!(fault.message.contains("a JSON object that is an event") && !fault.message.contains("line"), "{fault}");
    }
}

#[test]
fn data_in_base64() {
    let body = |data: &str, media: Value| {
        let mut event = with(&json!({"data_base64": data, "datacontenttype": media}));
        event.as_object_mut().expect("an object").remove("data");
        event.to_string()
    };
    let event = structured(&body("eyJkZWx0YSI6IDF9", json!("application/json"))).expect("an event");
    assert_eq!(event.data.as_deref(), Some("{\"delta\": 1}"));
    for (data, media, says) in [
        ("eyJkZWx0YSI6IDF9", json!(null), "needs datacontenttype"),
        ("eyJkZWx0YSI6IDF9", json!("application/octet-stream"), "needs datacontenttype"),
        ("no base64!", json!("application/json"), "is no Base64"),
        ("//79", json!("application/json"), "no UTF-8"),
    ] {
        let fault = structured(&body(data, media)).expect_err("a fault");
        assert!(fault.message.contains(says), "{data}: {fault}");
    }
}

#[test]
fn a_batch_is_as_good_as_each_of_its_events() {
    let headers = headers(&[("content-type", "application/cloudevents-batch+json; charset=utf-8")]);
    let read = |body: &str| {
        parse(&headers, body.as_bytes(), MOST)
            .map(|parsed| parsed.events.into_iter().map(|event| event.is_ok()).collect())
    };
    let good = whole();
    for (body, wanted) in [
        ("[]".to_owned(), vec![]),
        (" [ ] \n".to_owned(), vec![]),
        (json!([good]).to_string(), vec![true]),
        (json!([good, {"id": ""}, good]).to_string(), vec![true, false, true]),
        (json!([1, good, null]).to_string(), vec![false, true, false]),
    ] {
        assert_eq!(read(&body), Ok(wanted), "{body}");
    }
    assert_eq!(read(&json!([1, 2, 3, 4]).to_string()), Err(RequestFault::TooMany(MOST)));
    for body in ["", "{}", "[1", "[1] 2", "[,]", "null", &whole().to_string()] {
        assert!(matches!(read(body), Err(RequestFault::Malformed(_))), "{body}: {:?}", read(body));
    }
    let answer = parse(&headers, b"[\"\xC0\xA0\"]", MOST).expect_err("no UTF-8");
    assert!(answer.to_string().contains("no UTF-8 from byte 2"), "{answer}");
}

#[test]
fn events_of_64_kib_and_more_are_read() {
    let long = "x".repeat(200 * 1024);
    let event = structured(&with(&json!({"data": {"text": long}})).to_string()).expect("an event");
    assert!(event.data.is_some_and(|data| data.len() > 200 * 1024));
}

fn in_headers(more: &[(&str, &str)], body: &str) -> Result<CloudEvent<'static>, EventFault> {
    let standard = [
        ("content-type", "application/json; charset=utf-8"),
        ("ce-specversion", "1.0"),
        ("ce-type", "io.tenantry.usage.v1"),
        ("ce-source", "/tenantry/main/pool_crm_1"),
        ("ce-id", "1"),
        ("ce-time", "2026-11-28T09:30:00Z"),
    ];
    let mut pairs: Vec<(&str, &str)> =
        standard.into_iter().filter(|(name, _)| !more.iter().any(|(other, _)| other == name)).collect();
    pairs.extend_from_slice(more);
    let headers = headers(&pairs);
    let parsed = parse(&headers, body.as_bytes(), MOST).expect("a request");
    assert_eq!(parsed.mode, Mode::Binary);
    parsed.events.into_iter().next().expect("one").map(owned)
}

#[test]
fn attributes_in_headers() {
    for (value, id) in [
        ("plain", "plain"),
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("Euro%20%e2%82%ac", "Euro €"),
        ("%41%62", "Ab"),
        ("100%25", "100%"),
        // One round only.
        ("%2541", "%41"),
        ("\"quoted text\"", "quoted text"),
        ("\"with \\\"quotes\\\" and \\\\\"", "with \"quotes\" and \\"),
        ("\"percent%20and quotes\"", "percent and quotes"),
        ("in\"side", "in\"side"),
        ("  around  ", "around"),
        ("ünencoded", "ünencoded"),
    ] {
        assert_eq!(
            in_headers(&[("ce-id", value)], "{}").map(|event| event.id.into_owned()),
            Ok(id.to_owned()),
            "{value}"
        );
    }
    for (name, value, says) in [
        ("ce-id", "%C0%A0", "no UTF-8"),
        ("ce-id", "%FF", "no UTF-8"),
        ("ce-id", "%4", "two hexadecimal digits"),
        ("ce-id", "50% off", "two hexadecimal digits"),
        ("ce-id", "\"open", "closing double quote is missing"),
        ("ce-id", "\"open\\\"", "closing double quote is missing"),
        ("ce-id", "\"a\" b", "follows the closing double quote"),
        ("ce-id", "", "id is empty"),
        ("ce-id", "%00", "characters that no attribute may have"),
        ("ce-source", "not%20a%20uri", "no URI-reference"),
        ("ce-specversion", "0.3", "specversion"),
        ("ce-time", "noon", "time"),
        ("ce-datacontenttype", "application/json", "Content-Type says it"),
    ] {
        let fault = in_headers(&[(name, value)], "{}").expect_err("a fault");
        assert!(fault.message.contains(says), "{name} {value}: {fault}");
    }
    let fault = in_headers(&[("ce-id", "1"), ("ce-id", "1")], "{}").expect_err("twice");
    assert!(fault.message.contains("ce-id is there more than once"), "{fault}");
    let event =
        in_headers(&[("ce-subject", "t_abcdefghijkl"), ("ce-traceparent", "00-x"), ("ce-foo_bar", "%")], "{\"a\":1}");
    let event = event.expect("extensions are no matter");
    assert_eq!((event.subject.as_deref(), event.data.as_deref()), (Some("t_abcdefghijkl"), Some("{\"a\":1}")));
    assert_eq!(in_headers(&[], "").expect("an event").data, None);
}

/// As the binding says that a header is written.
fn encoded(text: &str) -> String {
    let plain = |c: char| ('\u{21}'..='\u{7e}').contains(&c) && !"\"%".contains(c);
    let percent = |c: char| c.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    text.chars().map(|c| if plain(c) { c.to_string() } else { percent(c) }).collect()
}

fn attribute() -> impl Strategy<Value = String> {
    "[^\\p{C}]{1,40}".prop_filter("no noncharacter", |text| !text::has_forbidden(text))
}

fn any_event() -> impl Strategy<Value = CloudEvent<'static>> {
    let micros = -60_000_000_000_000_000_i64..250_000_000_000_000_000;
    let source = "(/[a-z0-9._~%][a-z0-9]{0,8}){1,4}".prop_map(|source| source.replace('%', "%20"));
    let time = proptest::option::of(micros.prop_map(|micros| Timestamp::from_microsecond(micros).expect("a time")));
    let data = proptest::option::of("[ -~]{0,40}".prop_map(|text| json!({"text": text}).to_string()));
    (attribute(), source, attribute(), proptest::option::of(attribute()), time, data).prop_map(
        |(id, source, event_type, subject, time, data)| CloudEvent {
            id: id.into(),
            source: source.into(),
            event_type: event_type.into(),
            subject: subject.map(Into::into),
            time,
            data: data.map(Into::into),
        },
    )
}

fn json_of(event: &CloudEvent<'_>) -> Value {
    let mut members = json!({"specversion": "1.0", "id": event.id, "source": event.source, "type": event.event_type});
    if let Some(subject) = &event.subject {
        members["subject"] = json!(subject);
    }
    if let Some(time) = event.time {
        members["time"] = json!(time.to_string());
    }
    if let Some(data) = &event.data {
        members["data"] = serde_json::from_str(data).expect("JSON");
    }
    members
}

proptest! {
    #[test]
    fn whatever_comes_is_answered(
        media in prop_oneof!["application/cloudevents(-batch)?\\+json", "application/json", "[ -~]{0,60}"],
        pairs in proptest::collection::vec(("ce-[a-z]{1,12}", "[ -~]{0,30}"), 0..6),
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            "[\\[\\]{}\",:0-9a-z \\\\]{0,200}".prop_map(String::into_bytes),
        ],
    ) {
        let mut all = vec![("content-type", media.as_str())];
        all.extend(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let _ = parse(&headers(&all), &body, MOST);
    }

    #[test]
    fn every_event_comes_through_all_modes(event in any_event()) {
        let value = json_of(&event);
        prop_assert_eq!(&structured(&value.to_string()).expect("an event"), &event);
        let batch = json!([value, value]).to_string();
        let media = headers(&[("content-type", "application/cloudevents-batch+json")]);
        for one in parse(&media, batch.as_bytes(), MOST).expect("a batch").events {
            prop_assert_eq!(&one.expect("an event"), &event);
        }
        let time = event.time.map(|time| time.to_string());
        let mut pairs = vec![("content-type".to_owned(), "application/json".to_owned())];
        for (name, value) in [
            ("ce-specversion", Some("1.0")), ("ce-id", Some(&*event.id)), ("ce-source", Some(&*event.source)),
            ("ce-type", Some(&*event.event_type)), ("ce-subject", event.subject.as_deref()), ("ce-time", time.as_deref()),
        ] {
            pairs.extend(value.map(|value| (name.to_owned(), encoded(value))));
        }
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let parsed = parse(&headers(&pairs), event.data.as_deref().unwrap_or_default().as_bytes(), MOST).expect("a request");
        prop_assert_eq!(parsed.events[0].as_ref().expect("an event"), &event);
    }

    #[test]
    fn every_time_is_read_as_it_was_written(seconds in -62_000_000_000_i64..250_000_000_000, micros in 0..1_000_000_i32, minutes in -1439..1440_i32) {
        let moment = Timestamp::new(seconds, micros * 1_000).expect("a time");
        let offset = jiff::tz::Offset::from_seconds(minutes * 60).expect("an offset");
        let local = offset.to_datetime(moment);
        let sign = if minutes < 0 { '-' } else { '+' };
        let text = format!("{local:.6}{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60);
        prop_assert_eq!(parse_time(&text).expect("a time"), moment);
    }
}
