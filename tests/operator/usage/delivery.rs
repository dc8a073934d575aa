//! What is said while usage doesn't arrive, by a real relay and two operators, of which the one
//! that leads changes; and that it is said no longer when usage arrives again.

use devcluster::{AuditMark, Options, Postgres, PostgresOptions};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, Client};
use serde_json::json;
use tenantry::{
    api::{DatabaseServer, Tenant},
    metering::{
        event::{DeadEvents, OutboxReport},
        ledger::Ledger,
    },
};

use super::{
    super::{
        cli::tenantry,
        dedicated::dedicated,
        ground::{
            Ground, OPERATOR, Operator, await_tenant, condition, credentials, delete_tenant, eventually, ready_tenant,
        },
        ingest::ports,
        relays::{Program, token},
        steps::reconciles,
        verbs::{await_condition, id, log_in, of, ours, place, rows, superuser, superuser_of},
    },
    ledger::{counting, ledger_on, operator},
    says, shows,
};

/// What takes minutes takes seconds. A relay that lives reports every second.
const FLAGS: [&str; 16] = [
    "--usage-interval",
    "10ms",
    "--health-interval",
    "1s",
    "--usage-silent-after",
    "10s",
    "--usage-wait-after",
    "3s",
    "--usage-gap-after",
    "2s",
    "--ledger-away-after",
    "2s",
    "--lease-duration",
    "60s",
    "--lease-renew-deadline",
    "50s",
];

/// The tenant that is looked at, and the server that it is on.
struct Case {
    ground: Ground,
    postgres: Postgres,
    url: String,
    client: Client,
    tenant: Tenant,
    token: String,
}

impl Case {
    /// Starts an operator under a name; with it the URL of its API.
    async fn operator(&self, name: &str) -> (Operator, String) {
        started(&self.ground, &self.url, name).await
    }

    async fn relay(&self, api: &str) -> Program {
        Program::start(&self.ground, "main", api, &self.token).await
    }

    async fn runs(&self, statement: &str) {
        let session = log_in(&credentials(&self.client, &self.tenant).await).await.expect("a login");
        session.batch_execute(statement).await.expect("counted");
    }

    /// Waits until a condition of the tenant says this, as "status reason"; nothing for none.
    async fn tenant_says(&self, kind: &str, wanted: Option<&str>) -> Tenant {
        await_tenant(&self.client, "watched", &format!("{kind} {wanted:?}"), |tenant| {
            says(tenant, kind).as_deref() == wanted
        })
        .await
    }

    async fn server_says(&self, status: &str, text: &str) {
        await_condition(&self.client, &ours("DatabaseServer", "main"), "UsageDelivered", status, text).await;
    }

    async fn all_is_well(&self) {
        self.server_says("True", "gets into the ledger").await;
        self.tenant_says("MeteringDegraded", None).await;
        self.tenant_says("UsageComplete", Some("True Complete")).await;
    }

    /// The conditions about usage of the tenant and of its server, with the times of their
    /// transitions: had one changed and changed back, they would differ.
    async fn said(&self) -> Vec<Condition> {
        let server = Api::<DatabaseServer>::all(self.client.clone()).get("main").await.expect("a server");
        let tenant = Api::<Tenant>::all(self.client.clone()).get("watched").await.expect("a Tenant");
        let of_server = server.status.expect("a status").conditions;
        let of_tenant = tenant.status.expect("a status").conditions;
        let kinds = ["WithinLimits", "UsageComplete", "UsageReconciled", "MeteringDegraded"];
        let delivered = condition(&of_server, "UsageDelivered").cloned();
        delivered.into_iter().chain(of_tenant.into_iter().filter(|it| kinds.contains(&it.type_.as_str()))).collect()
    }

    /// The operators' writes of the tenant since a mark.
    fn written(&self, since: AuditMark) -> Vec<devcluster::AuditEvent> {
        let events = self.ground.cluster.audit().events(since).expect("events");
        events.into_iter().filter(|it| it.user == OPERATOR && it.is_write() && it.name == "watched").collect()
    }
}

async fn started(ground: &Ground, url: &str, name: &str) -> (Operator, String) {
    let before = ports(ground).len();
    let operator = operator(ground, url, &[&["--lease-identity", name][..], &FLAGS[..]].concat());
    let port = eventually(async || ports(ground).get(before).copied()).await.expect("its API listens");
    (operator, format!("http://127.0.0.1:{port}"))
}

async fn leads(operator: &Operator) {
    let leads = eventually(async || (operator.metric("tenantry_leader") == Some(1.0)).then_some(())).await;
    assert!(leads.is_some(), "it does not lead");
    operator.says(200, "leading").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_arrive_is_said_through_changes_of_leader_and_no_longer_when_it_arrives() {
    let ground = Ground::start(Options { audit: true, ..Options::default() }).await;
    let postgres = tokio::task::spawn_blocking(|| Postgres::start(PostgresOptions::default()));
    let postgres = postgres.await.expect("a thread").expect("a server of its own");
    let url = ledger_on(&postgres).await;
    let (first, _) = started(&ground, &url, "first").await;
    leads(&first).await;
    let (second, api) = started(&ground, &url, "second").await;
    ground.examples().await;
    let client = ground.client.clone();
    await_condition(&client, &ours("DatabaseServer", "main"), "RelayReady", "True", "").await;
    counting(&client, "watched").await;
    let tenant = ready_tenant(&client, "watched", of("watched", json!({"spec": {"plan": "watched"}}))).await;
    let token = token(&client, "main").await;
    let case = Case { ground, postgres, url, client, tenant, token };
    let relay = case.relay(&api).await;
    case.runs("SELECT record_usage('users', 3, 'a')").await;
    shows(&case.client, "watched", "users", "3/10").await;
    case.all_is_well().await;

    let second = a_relay_that_stops(&case, first, second, relay).await;
    let relay = a_gap(&case, &api).await;
    an_api_that_takes_nothing(&case).await;
    a_drift(&case, &second).await;
    drop(relay);
    a_ledger_that_is_away(&case, second).await;
}

/// The relay stops; then the leader changes, and the new one says the same.
async fn a_relay_that_stops(case: &Case, first: Operator, second: Operator, relay: Program) -> Operator {
    // Another database on the same server, whose relay the test itself is.
    let spec = dedicated("watched", json!({"spec": {"deletionPolicy": "Delete"}}));
    let other = ready_tenant(&case.client, "other", spec).await;
    drop(relay);
    case.server_says("False", "the relay has said nothing of").await;
    case.tenant_says("MeteringDegraded", Some("True RelaySilent")).await;
    case.tenant_says("UsageComplete", Some("False RelaySilent")).await;
    let undelivered = "tenantry_usage_undelivered{server=\"main\"}";
    assert_eq!(first.metric(undelivered), Some(1.0));

    let before = case.said().await;
    let mark = case.ground.cluster.audit().mark().expect("a mark");
    first.signal("TERM");
    leads(&second).await;
    // It has heard what the relays said last when it has heard this.
    let (ledger, database) = (Ledger::new(&case.url, 2).expect("a ledger"), place(&other).0);
    let dead = vec![DeadEvents { tenant: id(&other), events: 2 }];
    let report = OutboxReport { waiting: 0, oldest: None, dead };
    let tenants = Api::<Tenant>::all(case.client.clone());
    let heard = eventually(async || {
        ledger.report("main", &database, &report).await.expect("taken");
        let other = tenants.get("other").await.expect("a Tenant");
        (says(&other, "MeteringDegraded").as_deref() == Some("True DeadLetters")).then_some(())
    });
    assert!(heard.await.is_some(), "the new leader hears nothing");
    assert_eq!(second.metric(undelivered), Some(1.0));
    let written = case.written(mark);
    assert!(written.is_empty(), "{written:#?}");
    // The other database has been heard of meanwhile.
    let since = |all: &[Condition]| -> Vec<_> {
        all.iter().map(|it| (it.type_.clone(), it.reason.clone(), it.last_transition_time.clone())).collect()
    };
    assert_eq!(since(&case.said().await), since(&before));
    delete_tenant(&case.client, "other").await;
    second
}

/// An event gets lost on its way; the relay is back, and knows of it.
async fn a_gap(case: &Case, api: &str) -> Program {
    for _ in 0..3 {
        case.runs("SELECT record_usage('users', 1, 'b')").await;
    }
    let root = superuser(&case.ground, &place(&case.tenant).0).await;
    let lost = "UPDATE tenantry.outbox SET acked_at = clock_timestamp() WHERE acked_at IS NULL AND sequence = 3";
    assert_eq!(root.execute(lost, &[]).await.expect("lost"), 1);
    let relay = case.relay(api).await;
    let tenant = case.tenant_says("UsageComplete", Some("False EventsMissing")).await;
    let conditions = &tenant.status.as_ref().expect("a status").conditions;
    let message = &condition(conditions, "UsageComplete").expect("it is there").message;
    assert!(message.contains("users: event 3 of epoch 1 are missing since"), "{message}");
    case.server_says("True", "gets into the ledger").await;
    case.tenant_says("MeteringDegraded", None).await;
    // It arrives later.
    let ran = tenantry(&case.ground, &["ledger", "resync", "--since", "1h"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    shows(&case.client, "watched", "users", "6/10").await;
    case.all_is_well().await;
    relay
}

/// The API refuses events, and takes what the relay says of itself.
async fn an_api_that_takes_nothing(case: &Case) {
    let ledger = superuser_of(&case.postgres, "ledger").await;
    let each = "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'ledger'::regnamespace AND proname = 'ingest'";
    let function = rows(&ledger, each).await.remove(0);
    ledger.batch_execute(&format!("REVOKE EXECUTE ON FUNCTION {function} FROM ledger")).await.expect("revoked");
    case.runs("SELECT record_usage('users', 1, 'c')").await;
    case.server_says("False", "at least 1 event of database").await;
    case.tenant_says("MeteringDegraded", Some("True EventsWait")).await;
    ledger.batch_execute(&format!("GRANT EXECUTE ON FUNCTION {function} TO ledger")).await.expect("granted");
    shows(&case.client, "watched", "users", "7/10").await;
    case.all_is_well().await;
}

/// The application recounts, and was wrong; then it agrees.
async fn a_drift(case: &Case, leader: &Operator) {
    let drift = "tenantry_usage_drift{application=\"watched\",meter=\"users\"}";
    assert_eq!(leader.metric(drift), None, "it never recounted");
    case.runs("SELECT set_usage('users', 1, 'reconcile')").await;
    let tenant = case.tenant_says("UsageReconciled", Some("False Drift")).await;
    let conditions = &tenant.status.as_ref().expect("a status").conditions;
    let message = &condition(conditions, "UsageReconciled").expect("it is there").message;
    assert!(message.contains("users: -6 on "), "{message}");
    assert_eq!(leader.metric(drift), Some(6.0));
    shows(&case.client, "watched", "users", "1/10").await;
    // A few are none: somebody counts while others change.
    case.runs("SELECT set_usage('users', 3, 'reconcile')").await;
    case.tenant_says("UsageReconciled", Some("True Reconciled")).await;
    assert_eq!(leader.metric(drift), Some(2.0));
    case.runs("SELECT set_usage('users', 3, 'reconcile')").await;
    let agrees = eventually(async || leader.metric(drift).is_none_or(|drift| drift == 0.0).then_some(()));
    assert!(agrees.await.is_some(), "the drift stays {:?}", leader.metric(drift));
    case.tenant_says("UsageReconciled", Some("True Reconciled")).await;
}

/// The ledger is away for long, and the leader changes meanwhile.
async fn a_ledger_that_is_away(case: &Case, second: Operator) {
    case.postgres.stop();
    let unknown = "the ledger is away since";
    case.server_says("Unknown", unknown).await;
    case.tenant_says("MeteringDegraded", Some("True LedgerAway")).await;
    let before = case.said().await;
    let mark = case.ground.cluster.audit().mark().expect("a mark");
    let said = || std::fs::read_to_string(case.ground.log()).expect("a log").matches("Tenants say so").count();
    let times = said();
    let (third, api) = case.operator("third").await;
    second.signal("TERM");
    leads(&third).await;
    let again = eventually(async || (said() > times).then_some(())).await;
    assert!(again.is_some(), "the new leader doesn't find out");
    let looks = || reconciles(&third, "DatabaseServer");
    let looked = looks();
    let more = eventually(async || (looks() >= looked + 3).then_some(()));
    assert!(more.await.is_some(), "it doesn't look at its servers");
    assert_eq!(case.said().await, before);
    let written = case.written(mark);
    assert!(written.is_empty(), "{written:#?}");

    // It is back, and so is a relay: what was counted meanwhile arrives.
    case.runs("SELECT record_usage('users', 2, 'd')").await;
    case.postgres.start_again().expect("the ledger is back");
    let _relay = case.relay(&api).await;
    shows(&case.client, "watched", "users", "5/10").await;
    case.all_is_well().await;
}
