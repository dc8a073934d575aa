//! Usage over TLS: the operator gives its relays the API's CA, and what is counted while TLS is
//! switched on, or the CA is renewed, arrives.

use std::{fs, path::Path};

use devcluster::pki::Authority;
use serde_json::{Value, json};

use super::{
    super::{
        ground::{credentials, eventually, ready_tenant},
        ingest::ports,
        relays::{Program, token},
        verbs::{log_in, named, of, place, read, rows, superuser},
    },
    ledger::{Metered, counting},
    shows,
};

/// Writes the files as a Secret of the operator's namespace would be renewed.
fn renew(folder: &Path, authority: &Authority) {
    let pair = authority.server("tenantry", &["127.0.0.1"]).expect("a certificate");
    for (name, text) in
        [("tls.crt", pair.certificate_pem), ("tls.key", pair.key_pem), ("ca.crt", authority.certificate_pem())]
    {
        fs::write(folder.join(name), text).expect("a file");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_get_the_apis_ca_and_what_is_counted_while_it_changes_arrives() {
    let (old, new) = (Authority::new("old").expect("made"), Authority::new("new").expect("made"));
    let folder = tempfile::tempdir().expect("a folder");
    renew(folder.path(), &old);
    let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
    let (certificate, key, ca) = (path("tls.crt"), path("tls.key"), path("ca.crt"));
    let flags = ["--usage-interval", "10ms", "--api-tls-cert", &certificate, "--api-tls-key", &key, "--api-ca", &ca];
    let metered = Metered::start(&flags).await;
    let client = metered.ground.client.clone();
    let in_relay =
        |api_version: &str, kind: &str, name: &str| named(api_version, kind, Some("tenantry-relay-main"), name);
    let (map, deployment) = (in_relay("v1", "ConfigMap", "api-ca"), in_relay("apps/v1", "Deployment", "relay"));
    let given = async |authority: &Authority| -> Value {
        let wanted = json!(authority.certificate_pem().replace("\r\n", "\n"));
        let found = eventually(async || {
            read(&client, &map).await.map(|map| map["data"]["ca.crt"].clone()).filter(|found| *found == wanted)
        });
        found.await.expect("the ConfigMap has the CA")
    };
    let first = given(&old).await;
    let relay = async || eventually(async || read(&client, &deployment).await).await.expect("a relay");
    let before = relay().await;
    let url = json!({"name": "TENANTRY_RELAY_API_URL", "value": "https://tenantry.tenantry-system.svc:8081"});
    let pod = &before["spec"]["template"]["spec"];
    assert!(pod["containers"][0]["env"].as_array().expect("variables").contains(&url), "{pod}");

    counting(&client, "secured").await;
    let tenant = ready_tenant(&client, "secured", of("secured", json!({"spec": {"plan": "secured"}}))).await;
    let session = log_in(&credentials(&client, &tenant).await).await.expect("a login");
    let counts = async || session.batch_execute("SELECT record_usage('users', 1, 'x')").await.expect("counted");
    let [port] = ports(&metered.ground)[..] else { panic!("one port") };
    let token = token(&client, "main").await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mounted = file.path().to_str().expect("a path");
    let fill = |content: &Value| fs::write(file.path(), content.as_str().expect("text")).expect("a file");

    // A relay that doesn't know of TLS yet: its events wait.
    counts().await;
    let plain = Program::start(&metered.ground, "main", &format!("http://127.0.0.1:{port}"), &token).await;
    let misdirected = eventually(async || {
        metered.operator.metric("tenantry_ingest_requests_total{code=\"421\"}").filter(|times| *times >= 2.0)
    });
    misdirected.await.expect("it tries again");
    drop(plain);
    let root = superuser(&metered.ground, &place(&tenant).0).await;
    let settled = "SELECT event_id::text FROM tenantry.outbox WHERE acked_at IS NOT NULL OR dead_at IS NOT NULL";
    assert!(rows(&root, settled).await.is_empty(), "it waits");

    fill(&first);
    let url = format!("https://127.0.0.1:{port}");
    let _relay = Program::with(&metered.ground, "main", &url, &token, &["--api-ca", mounted]).await;
    shows(&client, "secured", "users", "1/10").await;

    renew(folder.path(), &new);
    fill(&given(&new).await);
    counts().await;
    shows(&client, "secured", "users", "2/10").await;
    assert_eq!(relay().await["metadata"]["generation"], before["metadata"]["generation"], "no relay is restarted");
}
