//! What the API server was asked, by whom: its audit log, read and counted.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Error;

/// The audit log of a ground that was started with `audit: true`.
#[derive(Clone, Debug)]
pub struct AuditLog {
    path: PathBuf,
}

/// A place in the log: a test takes one, acts, and then reads what came after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditMark(u64);

/// One call, when it was answered (a watch: when it began).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// Who called: `admin`, `system:serviceaccount:NAMESPACE:NAME` and so on.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// The resource in plural, with its subresource: `tenants`, `tenants/status`. Empty
    /// for paths such as `/readyz`.
    pub resource: String,
    /// The resource's API group; empty for the core one.
    pub group: String,
    /// The object's namespace, or empty.
    pub namespace: String,
    /// The object's name, or empty.
    pub name: String,
    /// The path and query of the request.
    pub uri: String,
    /// The HTTP status code of the answer.
    pub code: u16,
}

/// Calls by user, verb and resource.
pub type AuditCounts = BTreeMap<(String, String, String), usize>;

impl AuditEvent {
    /// Whether the call changes something, whatever its outcome.
    pub fn is_write(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
    }
}

impl AuditLog {
    pub(crate) fn new(path: PathBuf) -> AuditLog {
        AuditLog { path }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The end of the log as it is now. The API server writes a call down just after
    /// answering it; so a call that was answered this instant may come after the mark.
    pub fn mark(&self) -> Result<AuditMark, Error> {
        match std::fs::metadata(&self.path) {
            Ok(metadata) => Ok(AuditMark(metadata.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(AuditMark(0)),
            Err(error) => Err(Error::file("read", &self.path)(error)),
        }
    }

    /// The calls since a mark (`AuditMark::default()`: all), in the log's order. A watch
    /// is one call.
    pub fn events(&self, since: AuditMark) -> Result<Vec<AuditEvent>, Error> {
        let failed = |error| Error::file("read", &self.path)(error);
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        file.seek(SeekFrom::Start(since.0)).map_err(failed)?;
        let mut reader = BufReader::new(file);
        let mut events = Vec::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line).map_err(failed)?;
            // A line without its end is still being written.
            if length == 0 || line.last() != Some(&b'\n') {
                return Ok(events);
            }
            // The first line after a mark may be the rest of one.
            if let Ok(record) = serde_json::from_slice::<Record>(&line) {
                events.extend(record.event());
            }
        }
    }

    /// The calls since a mark, counted.
    pub fn counts(&self, since: AuditMark) -> Result<AuditCounts, Error> {
        let mut counts = AuditCounts::new();
        for event in self.events(since)? {
            let key = (event.user, event.verb, event.resource);
            *counts.entry(key).or_default() += 1;
        }
        Ok(counts)
    }

    /// How many calls of one user since a mark are of this verb and resource.
    pub fn count(&self, since: AuditMark, user: &str, verb: &str, resource: &str) -> Result<usize, Error> {
        let key = (user.to_owned(), verb.to_owned(), resource.to_owned());
        Ok(self.counts(since)?.remove(&key).unwrap_or_default())
    }
}

/// A line of the log; what isn't needed is left out.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    stage: String,
    verb: String,
    #[serde(rename = "requestURI", default)]
    uri: String,
    user: User,
    #[serde(default)]
    object_ref: ObjectRef,
    #[serde(default)]
    response_status: ResponseStatus,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
    api_group: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ResponseStatus {
    code: u16,
}

impl Record {
    /// A watch is logged when it begins and when it ends, every other call once.
    fn event(self) -> Option<AuditEvent> {
        let counts = match self.stage.as_str() {
            "ResponseStarted" => true,
            "ResponseComplete" => self.verb != "watch" || self.response_status.code >= 400,
            "Panic" => true,
            _ => false,
        };
        let mut resource = self.object_ref.resource;
        if !self.object_ref.subresource.is_empty() {
            resource = format!("{resource}/{}", self.object_ref.subresource);
        }
        counts.then_some(AuditEvent {
            user: self.user.username,
            verb: self.verb,
            resource,
            group: self.object_ref.api_group,
            namespace: self.object_ref.namespace,
            name: self.object_ref.name,
            uri: self.uri,
            code: self.response_status.code,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn line(stage: &str, verb: &str, code: u16) -> String {
        format!(
            r#"{{"kind":"Event","stage":"{stage}","verb":"{verb}","requestURI":"/x","user":{{"username":"u"}},"objectRef":{{"resource":"tenants","subresource":"status","name":"a"}},"responseStatus":{{"code":{code}}}}}"#
        )
    }

    #[test]
    fn a_watch_is_one_call_and_half_a_line_is_none() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let log = AuditLog::new(file.path().to_owned());
        writeln!(file, "{}", line("ResponseComplete", "patch", 200)).expect("written");
        let mark = log.mark().expect("a mark");
        for text in [
            line("ResponseStarted", "watch", 200),
            line("ResponseComplete", "watch", 200),
            line("ResponseComplete", "watch", 410),
            line("ResponseComplete", "get", 404),
        ] {
            writeln!(file, "{text}").expect("written");
        }
        write!(file, "{}", line("ResponseComplete", "get", 200)).expect("written");
        let counted = |verb| log.count(mark, "u", verb, "tenants/status").expect("counted");
        assert_eq!((counted("patch"), counted("watch"), counted("get")), (0, 2, 1));
        let all = log.events(AuditMark::default()).expect("read");
        assert_eq!(all.iter().filter(|event| event.is_write()).count(), 1);
    }
}
