//! The metering API of the operator as a process: with the rights that the chart gives it, as
//! leader and as standby, and without the ledger.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use devcluster::Options;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};
use tenantry::metering::ledger::{Ledger, LedgerTenant, MeterDefinition, Placement};

use super::ground::{Ground, create, eventually};

const TENANT: &str = "t_abcdefghijkl";
const PASSWORD: &str = "a password";

/// A ServiceAccount's token for our audience.
async fn token(client: &Client, namespace: &str, name: &str) -> String {
    create(client, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})).await;
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}});
    create(client, &account).await;
    let spec = TokenRequestSpec { audiences: Some(vec!["tenantry".to_owned()]), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let answer = accounts.create_token_request(name, &PostParams::default(), &request).await.expect("a token");
    answer.status.and_then(|status| status.token).expect("a token")
}

/// On which ports the operators of a ground take events, in the order in which they were started.
pub fn ports(ground: &Ground) -> Vec<u16> {
    // Before the first one is started there is no log.
    let log = std::fs::read_to_string(ground.log()).unwrap_or_default();
    let lines = log.lines().filter(|line| line.contains("the API listens"));
    let digits = |line: &str| {
        line.rsplit_once("127.0.0.1:")?.1.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
    };
    lines.filter_map(digits).collect()
}

fn post(port: u16, token: &str, event: &Value) -> Option<(u16, Value)> {
    let body = json!([event]).to_string();
    let more =
        format!("Content-Type: application/cloudevents-batch+json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    ask(port, "POST /v1/events", token, &more)
}

fn usage(port: u16, token: &str) -> Option<(u16, Value)> {
    ask(port, "GET /v1/tenants/acme/usage", token, "\r\n")
}

fn ask(port: u16, what: &str, token: &str, more: &str) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let head = format!("{what} HTTP/1.1\r\nHost: api\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n{more}");
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, serde_json::from_str(body).ok()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_and_standby_take_events_tell_usage_and_need_no_ledger_for_anything_else() {
    let ground = Ground::start(Options::default()).await;
    let reader = token(&ground.client, "billing", "invoicer").await;
    let token = token(&ground.client, "tenantry-relay-main", "relay").await;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "invoicer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "tenantry-viewer"},
        "subjects": [{"kind": "ServiceAccount", "name": "invoicer", "namespace": "billing"}],
    });
    create(&ground.client, &binding).await;
    let postgres = ground.cluster.postgres();
    let url: &'static str = Box::leak(postgres.url("ledger_operator", PASSWORD, "ledger").into_boxed_str());
    let flags = ["--ledger-url", url, "--api-listen", "127.0.0.1:0"];
    let leader = ground.operator(&flags);
    // There is no ledger yet.
    leader.says(200, "ok").await;
    let leads = eventually(async || leader.metric("tenantry_leader").filter(|leads| *leads > 0.0));
    leads.await.expect("it leads");
    assert_eq!(leader.metric("tenantry_ledger_away"), Some(1.0));
    let standby = ground.operator(&[&flags[..], &["--lease-identity", "other"]].concat());
    standby.says(200, "ok").await;
    let event = json!({
        "specversion": "1.0", "id": "e1", "source": "/tenantry/main/pool_crm_1", "type": "io.tenantry.usage.v1",
        "subject": TENANT, "time": jiff::Timestamp::now().to_string(),
        "data": {"meter": "users", "delta": 1, "kind": "Add", "epoch": 1, "sequence": 1, "value": 1},
    });
    let [one, two] = ports(&ground)[..] else { panic!("two ports: {:?}", ports(&ground)) };
    for port in [one, two] {
        let (status, answer) = post(port, &token, &event).expect("an answer");
        assert_eq!((status, answer["reason"].as_str()), (503, Some("LedgerAway")), "{answer}");
        let (status, answer) = usage(port, &reader).expect("an answer");
        assert_eq!((status, answer["reason"].as_str()), (503, Some("LedgerAway")), "{answer}");
    }
    leader.says(200, "ok").await;

    let admin = postgres.admin();
    let output = std::process::Command::new("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", "CREATE DATABASE ledger", &admin.url])
        .output()
        .expect("psql");
    assert!(output.status.success(), "{output:?}");
    let owner = postgres.url(&admin.user, &admin.password, "ledger");
    Ledger::migrate(&owner, "ledger_operator", Some(PASSWORD)).await.expect("tables");
    let ledger = Ledger::new(url, 2).expect("a ledger");
    let tenant = LedgerTenant {
        id: TENANT.into(),
        uid: "uid".into(),
        name: "acme".into(),
        application: "crm".into(),
        plan: "smb".into(),
        namespace: None,
        anchor: "2026-01-01T00:00:00Z".parse().expect("a time"),
        time_zone: "UTC".into(),
    };
    let placement = Placement { tenant: TENANT.into(), server: "main".into(), database: "pool_crm_1".into() };
    let users = MeterDefinition { name: "users".into(), is_total: false, from_api: false };
    ledger.define("crm", &[users]).await.expect("meters");
    ledger.register(&[tenant], &[placement]).await.expect("registered");
    let taken = |port: u16, how: &'static str| {
        let (token, event) = (&token, &event);
        async move { eventually(async || post(port, token, event).filter(|(_, answer)| answer[how] == 1)).await }
    };
    taken(two, "accepted").await.expect("a standby takes events");
    taken(one, "duplicates").await.expect("and the leader knows them");
    // Each of them reads what the other one has taken, with the rights that the chart gives.
    for (operator, port) in [(&leader, one), (&standby, two)] {
        let read = eventually(async || usage(port, &reader).filter(|(status, _)| *status == 200)).await;
        let (_, reading) = read.expect("it is read");
        assert_eq!((&reading["tenant"], &reading["id"]), (&json!("acme"), &json!(TENANT)), "{reading}");
        assert_eq!(reading["usage"]["meters"][0]["current"], 1, "{reading}");
        let (status, answer) = usage(port, &token).expect("an answer");
        assert_eq!((status, answer["reason"].as_str()), (403, Some("Forbidden")), "{answer}");
        assert_eq!(operator.metric("tenantry_access_reviews_total{result=\"failed\"}"), Some(0.0));
        assert!(
            operator.metric("tenantry_ingest_denied_total{reason=\"Forbidden\"}").is_some_and(|denied| denied >= 1.0)
        );
    }
    let back = eventually(async || leader.metric("tenantry_ledger_away").filter(|away| *away == 0.0));
    back.await.expect("the ledger is back");
    assert_eq!(standby.metric("tenantry_leader"), Some(0.0));
    let counted = leader.metric("tenantry_usage_events_total{result=\"duplicate\"}");
    assert_eq!(counted, Some(1.0));
    assert!(leader.metric("tenantry_ingest_requests_total{code=\"503\"}").is_some_and(|requests| requests >= 1.0));
}
