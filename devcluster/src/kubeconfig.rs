//! Kubeconfig files: written for the users of a ground, read for its clients.

use std::path::Path;

use serde_json::{Value, json};

use crate::Error;
use crate::pki::{Authority, Certificate, write_private};

/// A user's kubeconfig, with everything in the file itself.
pub(crate) fn for_certificate(server: &str, authority: &Authority, user: &Certificate) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "devcluster", "cluster": {
            "server": server,
            "certificate-authority-data": base64(&authority.certificate_pem()),
        }}],
        "users": [{"name": "user", "user": {
            "client-certificate-data": base64(&user.certificate_pem),
            "client-key-data": base64(&user.key_pem),
        }}],
        "contexts": [{"name": "devcluster", "context": {"cluster": "devcluster", "user": "user"}}],
        "current-context": "devcluster",
    })
}

/// The same cluster for somebody with a token.
pub(crate) fn with_token(mut config: Value, path: &Path, token: &str) -> Result<Value, Error> {
    let wrong = || Error::Kubeconfig { path: path.to_owned(), reason: "it has no current context".into() };
    let name = config["current-context"].as_str().ok_or_else(wrong)?.to_owned();
    let contexts = config["contexts"].as_array().ok_or_else(wrong)?;
    let context = contexts.iter().find(|context| context["name"] == name.as_str());
    let mut context = context.ok_or_else(wrong)?.clone();
    context["context"]["user"] = json!("service-account");
    config["contexts"] = json!([context]);
    config["users"] = json!([{"name": "service-account", "user": {"token": token}}]);
    Ok(config)
}

pub(crate) fn write(path: &Path, config: &Value) -> Result<(), Error> {
    let text = serde_saphyr::to_string(config).map_err(|error| unusable(path, &error))?;
    write_private(path, &text)
}

pub(crate) fn read(path: &Path) -> Result<Value, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    serde_saphyr::from_str(&text).map_err(|error| unusable(path, &error))
}

/// A client for the current context of a kubeconfig.
pub(crate) async fn client(path: &Path) -> Result<kube::Client, Error> {
    let kubeconfig = kube::config::Kubeconfig::read_from(path).map_err(|error| unusable(path, &error))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
        .await
        .map_err(|error| unusable(path, &error))?;
    kube::Client::try_from(config).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Kubeconfig { path: path.to_owned(), reason: error.to_string() }
}

fn base64(text: &str) -> String {
    data_encoding::BASE64.encode(text.as_bytes())
}
