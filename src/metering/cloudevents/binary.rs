//! One event with its attributes in headers.

use std::borrow::Cow;

use http::HeaderMap;

use super::{Attributes, CloudEvent, EventFault};

/// What the header of an attribute begins with.
pub(super) const PREFIX: &str = "ce-";

pub(super) fn event<'a>(headers: &HeaderMap, body: &'a str) -> Result<CloudEvent<'a>, EventFault> {
    let mut attributes = Attributes::default();
    let mut fault = None;
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(PREFIX) else { continue };
        if name == "datacontenttype" {
            fault = Some("ce-datacontenttype must not be there: Content-Type says it".to_owned());
            continue;
        }
        let Some(slot) = attributes.slot(name) else { continue };
        if slot.is_some() {
            fault = Some(format!("header ce-{name} is there more than once"));
            continue;
        }
        match decoded(value.as_bytes()) {
            Ok(value) => *slot = Some(Cow::Owned(value)),
            Err(error) => fault = Some(format!("header ce-{name}: {error}")),
        }
    }
    if let Some(message) = fault {
        return Err(EventFault { id: attributes.id.map(Cow::into_owned), message });
    }
    attributes.event((!body.is_empty()).then_some(Cow::Borrowed(body)))
}

/// The value of an attribute from that of its header: unquoted first, then percent-decoded once.
fn decoded(value: &[u8]) -> Result<String, &'static str> {
    let mut decoded = Vec::with_capacity(value.len());
    let unquoted = unquoted(value)?;
    let mut bytes = unquoted.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits = [bytes.next(), bytes.next()].map(|digit| char::from(digit.unwrap_or_default()).to_digit(16));
        let [Some(high), Some(low)] = digits else {
            return Err("a % is not followed by two hexadecimal digits: write %25 for the sign itself");
        };
        decoded.push(u8::try_from(high * 16 + low).unwrap_or_default());
    }
    String::from_utf8(decoded).map_err(|_| "it is no UTF-8 once it is percent-decoded")
}

/// A value without its double quotes, as an earlier version of the binding wrote them.
fn unquoted(value: &[u8]) -> Result<Cow<'_, [u8]>, &'static str> {
    let value = value.trim_ascii();
    let Some(quoted) = value.strip_prefix(b"\"") else { return Ok(Cow::Borrowed(value)) };
    let mut bytes = quoted.iter().copied();
    let mut unquoted = Vec::with_capacity(quoted.len());
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' if bytes.len() == 0 => return Ok(Cow::Owned(unquoted)),
            b'"' => return Err("something follows the closing double quote"),
            b'\\' => unquoted.extend(bytes.next()),
            byte => unquoted.push(byte),
        }
    }
    Err("the closing double quote is missing")
}
