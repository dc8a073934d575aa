//! Events as JSON: one, or an array of them.

use std::{borrow::Cow, fmt};

use data_encoding::BASE64;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{Attributes, CloudEvent, EventFault, RequestFault, text};

/// A body that is one JSON text.
pub(super) fn document(body: &str) -> Result<&RawValue, RequestFault> {
    serde_json::from_str(body).map_err(|error| RequestFault::Malformed(format!("the body is no JSON: {error}")))
}

/// The events of an array; each may be no event at all.
pub(super) fn batch(body: &str, most: usize) -> Result<Vec<Result<CloudEvent<'_>, EventFault>>, RequestFault> {
    let mut reader = serde_json::Deserializer::from_str(body);
    let items = reader.deserialize_seq(Items { most }).and_then(|items| reader.end().map(|()| items));
    match items {
        Ok(Some(items)) => Ok(items.into_iter().map(event).collect()),
        Ok(None) => Err(RequestFault::TooMany(most)),
        Err(error) => Err(RequestFault::Malformed(format!("the body is no JSON array of events: {error}"))),
    }
}

/// Takes the items of an array as they are: what is wrong with one is no matter of the others.
struct Items {
    most: usize,
}

impl<'a> Visitor<'a> for Items {
    /// Nothing where there are too many.
    type Value = Option<Vec<&'a RawValue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of events")
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut sequence: S) -> Result<Self::Value, S::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            if items.len() == self.most {
                while sequence.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(None);
            }
            items.push(item);
        }
        Ok(Some(items))
    }
}

/// An event from its JSON text.
pub(super) fn event(text: &RawValue) -> Result<CloudEvent<'_>, EventFault> {
    let members: Members = serde_json::from_str(text.get()).map_err(|error| {
        // The place is one in the event and not in the body: it would lead astray.
        let text = error.to_string();
        let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message).to_owned();
        EventFault { id: None, message }
    })?;
    let Members { attributes, mut fault, data, base64 } = members;
    let says_json = attributes.has_json();
    let data = match (data, base64) {
        (Some(_), Some(_)) => {
            fault.get_or_insert_with(|| "data and data_base64 are both there: send one of them".to_owned());
            None
        }
        (None, Some(text)) if says_json == Some(true) => match decoded(text) {
            Ok(data) => Some(Cow::Owned(data)),
            Err(message) => {
                fault.get_or_insert(message);
                None
            }
        },
        (None, Some(_)) => {
            fault.get_or_insert_with(|| {
                "data_base64 needs datacontenttype application/json, without which nothing is known of it".to_owned()
            });
            None
        }
        (Some(_), None) if says_json == Some(false) => {
            fault.get_or_insert_with(|| {
                "datacontenttype: the data of these events is JSON, application/json".to_owned()
            });
            None
        }
        (data, None) => data.map(|data| Cow::Borrowed(data.get())),
    };
    match fault {
        Some(message) => {
            let id = attributes.id.map(Cow::into_owned).filter(|id| !id.is_empty());
            Err(EventFault { id, message })
        }
        None => attributes.event(data),
    }
}

fn decoded(text: &RawValue) -> Result<String, String> {
    let text: Cow<'_, str> = string(text).ok_or("data_base64 is no string")?;
    let bytes = BASE64.decode(text.as_bytes()).map_err(|error| format!("data_base64 is no Base64: {error}"))?;
    String::from_utf8(bytes).map_err(|_| "data_base64 holds no UTF-8".to_owned())
}

/// A JSON string's text.
fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    // One without escapes is taken from where it is.
    let borrowed = serde_json::from_str::<&str>(value.get()).map(Cow::Borrowed);
    borrowed.or_else(|_| serde_json::from_str::<String>(value.get()).map(Cow::Owned)).ok()
}

/// The members of a JSON object that is an event, and the first thing that is wrong with them.
#[derive(Default)]
struct Members<'a> {
    attributes: Attributes<'a>,
    fault: Option<String>,
    data: Option<&'a RawValue>,
    base64: Option<&'a RawValue>,
}

impl<'a> Members<'a> {
    fn take(&mut self, name: &str, value: &'a RawValue) -> Result<(), String> {
        let twice = || Err(format!("{name} is there more than once"));
        match name {
            // An explicit null is data too, and then none that can be read.
            "data" => return self.data.replace(value).map_or(Ok(()), |_| twice()),
            _ if value.get() == "null" => return Ok(()),
            "data_base64" => return self.base64.replace(value).map_or(Ok(()), |_| twice()),
            _ => {}
        }
        match self.attributes.slot(name) {
            Some(slot) if slot.is_some() => twice(),
            Some(slot) => {
                let text = string(value).ok_or_else(|| format!("{name} is no string"))?;
                *slot = Some(text);
                Ok(())
            }
            None if !text::is_attribute_name(name) => Err(format!(
                "{name:?} is no attribute: their names are lower-case letters and digits; what happened stands in data"
            )),
            None => Ok(()),
        }
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'a> Visitor<'a> for MembersVisitor {
    type Value = Members<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object that is an event")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut members = Members::default();
        while let Some(key) = map.next_key::<&'a RawValue>()? {
            let value = map.next_value::<&'a RawValue>()?;
            let name = string(key).ok_or_else(|| M::Error::custom("a member's name can't be read"))?;
            if let Err(message) = members.take(&name, value) {
                members.fault.get_or_insert(message);
            }
        }
        Ok(members)
    }
}
