//! JSON without what the API server would drop.

use serde_json::Value;

/// Maps that mean something when they are empty: "everything", or "this sort, with its
/// defaults".
const MEANINGFUL_EMPTY: [&str; 8] = [
    "podSelector",
    "namespaceSelector",
    "labelSelector",
    "selector",
    "emptyDir",
    "downwardAPI",
    "projected",
    "preference",
];

/// Takes out nulls, and lists and maps that are empty and mean nothing.
pub(super) fn clean(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| {
                clean(value);
                match value {
                    Value::Null => false,
                    Value::Array(items) => !items.is_empty(),
                    Value::Object(fields) => !fields.is_empty() || MEANINGFUL_EMPTY.contains(&key.as_str()),
                    _ => true,
                }
            });
        }
        Value::Array(items) => items.iter_mut().for_each(clean),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_means_nothing_goes_and_what_means_something_stays() {
        let mut value = json!({
            "a": null, "b": [], "c": {}, "d": {"e": {"f": []}}, "g": [{}, {"h": null}], "i": "", "j": 0, "k": false,
            "podSelector": {}, "emptyDir": {"medium": null},
        });
        clean(&mut value);
        assert_eq!(value, json!({"g": [{}, {}], "i": "", "j": 0, "k": false, "podSelector": {}, "emptyDir": {}}));
    }
}
