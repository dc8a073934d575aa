//! What the controllers have to know of their objects' state.

use data_encoding::BASE64;
use serde_json::Value;

use crate::{
    api::ANNOTATION_ROTATED,
    database::{Password, PasswordDigest},
    desired::{
        Kind, RouteState,
        availability::{ComponentState, component_state},
        naming, route_accepted,
    },
};

/// What is kept of an object beside its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ChildState {
    /// Nothing: the content is all there is.
    Plain,
    /// The login in a tenant's Secret, and which request to rotate it answers.
    Credentials { username: String, digest: PasswordDigest, rotated: Option<String> },
    /// Whether a component serves.
    Component(ComponentState),
    /// What a route's parent says.
    Route(RouteState),
}

/// Picks it from the whole object.
pub(super) fn extract(kind: Kind, object: &Value) -> ChildState {
    match kind {
        Kind::Secret => credentials(object).map_or(ChildState::Plain, |(username, password)| ChildState::Credentials {
            username,
            digest: password.digest(),
            rotated: object["metadata"]["annotations"][ANNOTATION_ROTATED].as_str().map(str::to_owned),
        }),
        Kind::Deployment => {
            let component = object["metadata"]["labels"][naming::LABEL_COMPONENT].as_str().unwrap_or_default();
            ChildState::Component(component_state(component, Some(object)))
        }
        Kind::HttpRoute | Kind::Ingress => ChildState::Route(route_accepted(object)),
        _ => ChildState::Plain,
    }
}

/// The login in a Secret, if it has one.
pub(super) fn credentials(secret: &Value) -> Option<(String, Password)> {
    let text = |key: &str| {
        let bytes = BASE64.decode(secret.get("data")?.get(key)?.as_str()?.as_bytes()).ok()?;
        String::from_utf8(bytes).ok()
    };
    Some((text("username")?, Password::new(text("password")?)))
}
