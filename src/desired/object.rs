//! One desired object.

use std::fmt;

use k8s_openapi::{Metadata, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Kind, clean};

/// One object as it should be.
#[derive(Clone, PartialEq)]
pub struct Object {
    /// What sort of object it is.
    pub kind: Kind,
    /// Where it is; nothing for cluster-scoped kinds.
    pub namespace: Option<String>,
    /// What it is called.
    pub name: String,
    /// The whole object with apiVersion, kind and metadata: what server-side apply is given.
    /// It has no null, and no empty list or map but those that mean something, since the API
    /// server drops these and would see a change each time.
    pub body: Value,
}

impl Object {
    /// An object of a type that Kubernetes itself has.
    pub(super) fn typed<T>(kind: Kind, object: &T) -> Self
    where
        T: Serialize + Metadata<Ty = ObjectMeta>,
    {
        let body = serde_json::to_value(object).expect("Kubernetes' own types are JSON");
        Self::untyped(kind, body)
    }

    /// An object of any type; `body` has everything but apiVersion and kind.
    pub(super) fn untyped(kind: Kind, mut body: Value) -> Self {
        body["apiVersion"] = json!(kind.api_version());
        body["kind"] = json!(kind.as_str());
        clean::clean(&mut body);
        let text = |field: &str| body["metadata"][field].as_str().map(str::to_owned);
        let name = text("name").expect("every builder names its object");
        Self { kind, namespace: text("namespace"), name, body }
    }
}

/// Prints what the object is, never what is in it: it may be a Secret.
impl fmt::Debug for Object {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(formatter, "{} {namespace}/{}", self.kind, self.name),
            None => write!(formatter, "{} {}", self.kind, self.name),
        }
    }
}
