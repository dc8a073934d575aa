//! CloudEvents 1.0 over HTTP, in all three modes of its binding: a batch, one event whole as JSON,
//! one event with its attributes in headers. Pure.
//!
//! Own code, since the SDK for Rust (0.9) compares media types with case, decodes no percent signs,
//! takes bodies of any size, and knows batches only as a client.

mod binary;
mod json;
mod text;
mod time;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use jiff::Timestamp;

pub use time::parse_time;

/// What every media type of an event begins with; that of a batch begins with this and `-batch`.
const EVENT: &str = "application/cloudevents";
/// What every media type of a batch begins with, and therefore is looked for first.
const BATCH: &str = "application/cloudevents-batch";

/// What is said where no mode fits.
const MODES: &str = "send application/cloudevents-batch+json, or application/cloudevents+json, or application/json with \
                     the attributes as ce- headers";

/// How events came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Several as one JSON array.
    Batched,
    /// One as a JSON object.
    Structured,
    /// One with its attributes in headers.
    Binary,
}

/// An event as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudEvent<'a> {
    /// Its id: with its source, what it is known by.
    pub id: Cow<'a, str>,
    /// Where it came from: a URI-reference.
    pub source: Cow<'a, str>,
    /// What kind of event it is.
    pub event_type: Cow<'a, str>,
    /// What it is about.
    pub subject: Option<Cow<'a, str>>,
    /// When it happened.
    pub time: Option<Timestamp>,
    /// Its data: a JSON text, not yet read.
    pub data: Option<Cow<'a, str>>,
}

/// Why an event can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EventFault {
    /// Its id, where that could be read.
    pub id: Option<String>,
    /// What to change.
    pub message: String,
}

/// Why a request can't be read at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// The media type, its charset or its encoding is none that is taken.
    #[error("{0}")]
    Unsupported(String),
    /// The body is no JSON, or no array.
    #[error("{0}")]
    Malformed(String),
    /// There are too many events in it.
    #[error("a batch has at most {0} events: send them in several")]
    TooMany(usize),
}

/// What a request brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// How.
    pub mode: Mode,
    /// Its events; one that can't be read says why, and takes none of the others with it.
    pub events: Vec<Result<CloudEvent<'a>, EventFault>>,
}

/// Reads the events of a request; at most `most` in a batch.
///
/// # Errors
/// When nothing of it can be read.
pub fn parse<'a>(headers: &HeaderMap, body: &'a [u8], most: usize) -> Result<Parsed<'a>, RequestFault> {
    let mode = mode(headers)?;
    let body = std::str::from_utf8(body).map_err(|error| {
        RequestFault::Malformed(format!("the body is no UTF-8 from byte {} on", error.valid_up_to()))
    })?;
    let events = match mode {
        Mode::Batched => json::batch(body, most)?,
        Mode::Structured => vec![json::event(json::document(body)?)],
        Mode::Binary => vec![binary::event(headers, body)],
    };
    Ok(Parsed { mode, events })
}

/// How events come, by the headers alone.
///
/// # Errors
/// When that is none of the three modes.
pub fn mode(headers: &HeaderMap) -> Result<Mode, RequestFault> {
    let unsupported = |message: String| Err(RequestFault::Unsupported(message));
    if let Some(encoding) =
        headers.get(CONTENT_ENCODING).filter(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return unsupported(format!("Content-Encoding {encoding:?}: send the body as it is"));
    }
    let mut given = headers.get_all(CONTENT_TYPE).iter();
    let (Some(first), None) = (given.next(), given.next()) else {
        return unsupported(format!("a request has one Content-Type: {MODES}"));
    };
    let Ok(text) = first.to_str() else {
        return unsupported(format!("Content-Type {first:?} is not plain ASCII: {MODES}"));
    };
    let media = MediaType::read(text);
    if let Some(charset) = media.charset.as_ref().filter(|charset| !is_utf8(charset)) {
        return unsupported(format!("charset {charset}: only UTF-8 is read"));
    }
    let formats = |format: &str, mode: Mode| match media.essence == format {
        true => Ok(mode),
        false => {
            unsupported(format!("Content-Type {:?}: of the event formats only JSON is read, {format}", media.essence))
        }
    };
    if media.essence.starts_with(BATCH) {
        formats("application/cloudevents-batch+json", Mode::Batched)
    } else if media.essence.starts_with(EVENT) {
        formats("application/cloudevents+json", Mode::Structured)
    } else if !headers.keys().any(|name| name.as_str().starts_with(binary::PREFIX)) {
        unsupported(format!("Content-Type {:?} without ce- headers: {MODES}", media.essence))
    } else if !media.is_json() {
        unsupported(format!("Content-Type {:?}: the data of these events is JSON, application/json", media.essence))
    } else {
        Ok(Mode::Binary)
    }
}

/// A media type, without what doesn't matter here.
struct MediaType {
    /// Type and subtype, in lower case.
    essence: String,
    charset: Option<String>,
}

impl MediaType {
    fn read(text: &str) -> Self {
        let mut parts = text.split(';');
        let essence = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
        let charset = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            let is_charset = name.trim().eq_ignore_ascii_case("charset");
            is_charset.then(|| value.trim().trim_matches('"').to_owned())
        });
        Self { essence, charset }
    }

    /// Whether data of it is JSON, as the JSON format of CloudEvents says that.
    fn is_json(&self) -> bool {
        self.essence.split_once('/').is_some_and(|(_, subtype)| subtype == "json" || subtype.ends_with("+json"))
    }
}

fn is_utf8(charset: &str) -> bool {
    ["utf-8", "utf8"].iter().any(|name| charset.eq_ignore_ascii_case(name))
}

/// Attributes as they are collected, each at most once.
#[derive(Default)]
struct Attributes<'a> {
    specversion: Option<Cow<'a, str>>,
    id: Option<Cow<'a, str>>,
    source: Option<Cow<'a, str>>,
    event_type: Option<Cow<'a, str>>,
    subject: Option<Cow<'a, str>>,
    time: Option<Cow<'a, str>>,
    datacontenttype: Option<Cow<'a, str>>,
    dataschema: Option<Cow<'a, str>>,
}

impl<'a> Attributes<'a> {
    /// Where an attribute of this name goes; nowhere for an extension, of which none is used here.
    fn slot(&mut self, name: &str) -> Option<&mut Option<Cow<'a, str>>> {
        Some(match name {
            "specversion" => &mut self.specversion,
            "id" => &mut self.id,
            "source" => &mut self.source,
            "type" => &mut self.event_type,
            "subject" => &mut self.subject,
            "time" => &mut self.time,
            "datacontenttype" => &mut self.datacontenttype,
            "dataschema" => &mut self.dataschema,
            _ => return None,
        })
    }

    /// The event that has these.
    fn event(self, data: Option<Cow<'a, str>>) -> Result<CloudEvent<'a>, EventFault> {
        let given = self.id.clone();
        self.checked(data)
            .map_err(|message| EventFault { id: given.map(Cow::into_owned).filter(|id| !id.is_empty()), message })
    }

    fn checked(self, data: Option<Cow<'a, str>>) -> Result<CloudEvent<'a>, String> {
        let version = required("specversion", self.specversion)?;
        if version != "1.0" {
            return Err(format!("specversion {version:?}: events of version 1.0 are read"));
        }
        let source = required("source", self.source)?;
        for (name, value) in [("source", Some(&source)), ("dataschema", self.dataschema.as_ref())] {
            if let Some(value) = value.filter(|value| value.is_empty() || !text::is_uri_reference(value)) {
                return Err(format!(
                    "{name} {value:?} is no URI-reference: percent-encode what RFC 3986 does not allow"
                ));
            }
        }
        if let Some(subject) = self.subject.as_deref() {
            plain("subject", subject)?;
        }
        Ok(CloudEvent {
            id: required("id", self.id)?,
            source,
            event_type: required("type", self.event_type)?,
            subject: self.subject,
            time: self.time.as_deref().map(parse_time).transpose().map_err(|error| format!("time: {error}"))?,
            data,
        })
    }

    /// Whether data is JSON, as far as that is said.
    fn has_json(&self) -> Option<bool> {
        let media = MediaType::read(self.datacontenttype.as_deref()?);
        Some(media.is_json() && media.charset.as_deref().is_none_or(is_utf8))
    }
}

fn required<'a>(name: &str, value: Option<Cow<'a, str>>) -> Result<Cow<'a, str>, String> {
    let value = value.ok_or_else(|| format!("{name} is missing"))?;
    plain(name, &value)?;
    Ok(value)
}

fn plain(name: &str, value: &str) -> Result<(), String> {
    if value.is_empty() {
        return Err(format!("{name} is empty"));
    }
    match text::has_forbidden(value) {
        true => Err(format!("{name} {value:?} has characters that no attribute may have")),
        false => Ok(()),
    }
}
