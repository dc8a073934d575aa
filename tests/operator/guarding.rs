//! What the operator looks after while nobody asks: transactions that are too old, settings
//! and grants that no record knows.

use serde_json::json;
use tokio_postgres::error::SqlState;

use super::{
    ground::{credentials, eventually, ready_tenant},
    steps::{metric, plan, quick},
    verbs::{id, log_in, place, rows, superuser},
};

#[tokio::test]
async fn a_transaction_beyond_the_plans_limit_is_ended_and_no_other_session() {
    let ((_, operator), client) = quick().await;
    plan(&client, "impatient", json!({"database": {"maxTransaction": "1s"}})).await;
    let hasty = ready_tenant(&client, "hasty", json!({"spec": {"plan": "impatient"}})).await;
    let neighbour = ready_tenant(&client, "patient", json!({})).await;
    let login = credentials(&client, &hasty).await;
    let idle = log_in(&login).await.expect("a login");
    let busy = log_in(&login).await.expect("a second login");
    let at_rest = log_in(&login).await.expect("a third login");
    let other = log_in(&credentials(&client, &neighbour).await).await.expect("the neighbour's login");
    let count = || metric(operator, "tenantry_database_sessions_ended_total", "main");
    let ended = count();
    let begin = "BEGIN; SELECT tenantry.record_usage('users', 1, 'a')";
    idle.batch_execute(begin).await.expect("a transaction");
    other.batch_execute(begin).await.expect("a transaction");
    let closed = eventually(async || idle.is_closed().then_some(())).await;
    assert!(closed.is_some(), "a transaction that waits for its client stays open");
    // One that is always at work, which PostgreSQL's own settings would let run on: no statement
    // of it is long, and it never waits for its client.
    busy.batch_execute(begin).await.expect("a transaction");
    let work = async {
        loop {
            if let Err(error) = busy.batch_execute("SELECT pg_sleep(0.1)").await {
                return error;
            }
        }
    };
    let error = work.await;
    assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN), "{error}");
    at_rest.batch_execute("SELECT 1").await.expect("a session without a transaction goes on");
    other.batch_execute("COMMIT").await.expect("a tenant whose plan allows more goes on");
    let users = "SELECT value::text FROM tenantry.my_limits() WHERE meter = 'users'";
    assert_eq!(rows(&at_rest, users).await, ["0"], "nothing of the transactions stays");
    let counted = eventually(async || (count() > ended).then_some(())).await;
    assert!(counted.is_some(), "the metric counts no session that was ended");
}

#[tokio::test]
async fn what_no_record_knows_is_repaired_by_the_next_sweep() {
    let ((ground, _), client) = quick().await;
    let tenant = ready_tenant(&client, "fiddler", json!({})).await;
    let neighbour = ready_tenant(&client, "fiddled", json!({})).await;
    let (database, _) = place(&tenant);
    let root = superuser(ground, &database).await;
    let (id, other) = (id(&tenant), id(&neighbour));
    let state = format!(
        "SELECT concat_ws('; ',
            (SELECT string_agg(setting, ', ' ORDER BY setting) FROM pg_db_role_setting s, unnest(setconfig) AS setting
              WHERE setrole = '{id}_app_a'::regrole),
            (SELECT string_agg(roleid::regrole::text, ', ' ORDER BY 1) FROM pg_auth_members WHERE member = '{other}_app_a'::regrole),
            (SELECT nspacl::text FROM pg_namespace WHERE nspname = '{id}'),
            (SELECT datacl::text FROM pg_database WHERE datname = '{database}'),
            (SELECT proacl::text FROM pg_proc WHERE oid = 'tenantry.my_limits()'::regprocedure))"
    );
    let good = rows(&root, &state).await;
    // What a tenant can do to itself,
    let session = log_in(&credentials(&client, &tenant).await).await.expect("a login");
    session
        .batch_execute(
            "ALTER ROLE CURRENT_USER SET search_path = pg_catalog; ALTER ROLE CURRENT_USER SET statement_timeout = 0",
        )
        .await
        .expect("PostgreSQL lets a role set its own defaults");
    // and what somebody with more rights may have meant well.
    root.batch_execute(&format!(
        "GRANT {id}_rw TO {other}_app_a; GRANT USAGE ON SCHEMA {id} TO PUBLIC; GRANT CONNECT ON DATABASE {database} TO PUBLIC; \
         GRANT EXECUTE ON FUNCTION tenantry.my_limits() TO PUBLIC"
    ))
    .await
    .expect("a superuser's grants");
    let mut last = rows(&root, &state).await;
    let repaired = eventually(async || {
        last = rows(&root, &state).await;
        (last == good).then_some(())
    })
    .await;
    assert!(repaired.is_some(), "is\n{last:#?}\nbut was\n{good:#?}");
}
