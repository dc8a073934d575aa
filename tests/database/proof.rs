//! The proof: each privilege that is wrong is named.

use tenantry::database::ErrorClass;

use crate::support::Ground;

#[tokio::test(flavor = "multi_thread")]
async fn proof_names_what_is_wrong() {
    let ground = Ground::new("proof").await;
    let (acme, bolt) = (ground.tenant("acme").await, ground.tenant("bolt").await);
    let superuser = ground.superuser().await;
    let (a, b, db) = (&acme.id, &bolt.id, &ground.database);
    let mut cases = vec![
        (
            format!("GRANT CREATE ON SCHEMA {a} TO {a}_rw"),
            format!("REVOKE CREATE ON SCHEMA {a} FROM {a}_rw"),
            "has CREATE on schema",
        ),
        (
            format!("REVOKE USAGE ON SCHEMA {a} FROM {a}_rw"),
            format!("GRANT USAGE ON SCHEMA {a} TO {a}_rw"),
            "lacks USAGE",
        ),
        (
            format!("GRANT TEMPORARY ON DATABASE {db} TO {a}_app_a"),
            format!("REVOKE TEMPORARY ON DATABASE {db} FROM {a}_app_a"),
            "on the database it has TEMPORARY",
        ),
        (
            format!("GRANT CONNECT ON DATABASE {db} TO PUBLIC"),
            format!("REVOKE CONNECT ON DATABASE {db} FROM PUBLIC"),
            "PUBLIC has CONNECT",
        ),
        (
            format!("GRANT USAGE ON SCHEMA {b} TO {a}_rw"),
            format!("REVOKE USAGE ON SCHEMA {b} FROM {a}_rw"),
            "a privilege on schema t_",
        ),
        (
            "GRANT SELECT ON tenantry.outbox TO PUBLIC".to_owned(),
            "REVOKE SELECT ON tenantry.outbox FROM PUBLIC".to_owned(),
            "tenantry's tables outbox",
        ),
        (
            format!("REVOKE EXECUTE ON FUNCTION tenantry.set_usage FROM {db}_tenants"),
            format!("GRANT EXECUTE ON FUNCTION tenantry.set_usage TO {db}_tenants"),
            "lacks EXECUTE on set_usage",
        ),
        (
            "GRANT EXECUTE ON FUNCTION tenantry.count_usage TO PUBLIC".to_owned(),
            "REVOKE EXECUTE ON FUNCTION tenantry.count_usage FROM PUBLIC".to_owned(),
            "what is inside",
        ),
        (format!("GRANT {b}_owner TO {a}_rw"), format!("REVOKE {b}_owner FROM {a}_rw"), "member of"),
        (format!("ALTER ROLE {a}_app_a BYPASSRLS"), format!("ALTER ROLE {a}_app_a NOBYPASSRLS"), "BYPASSRLS"),
        (
            format!("ALTER ROLE {a}_app_a SET search_path = evil"),
            format!(
                "ALTER ROLE {a}_app_a RESET search_path; ALTER ROLE {a}_app_a IN DATABASE {db} SET search_path = {a}, tenantry"
            ),
            "",
        ),
        (
            format!("ALTER ROLE {a}_app_a IN DATABASE {db} SET search_path = evil"),
            format!("ALTER ROLE {a}_app_a IN DATABASE {db} SET search_path = {a}, tenantry"),
            "search_path",
        ),
        (
            format!("UPDATE tenantry.login SET tenant = tenant, name = 'x' WHERE name = '{a}_app_a'"),
            format!("UPDATE tenantry.login SET name = '{a}_app_a' WHERE name = 'x'"),
            "belongs to no live tenant",
        ),
    ];
    // A privilege that came with PostgreSQL 17: to lock a table, and to rewrite its indexes.
    if ground.server.check().await.expect("looked").version >= 170_000 {
        cases.push((
            format!("GRANT MAINTAIN ON tenantry.outbox TO {a}_rw"),
            format!("REVOKE MAINTAIN ON tenantry.outbox FROM {a}_rw"),
            "tenantry's tables outbox",
        ));
    }
    for (sql, undo, what) in cases {
        superuser.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let proof = ground.server.prove(&acme.login).await;
        superuser.batch_execute(&undo).await.unwrap_or_else(|error| panic!("{undo}: {error:?}"));
        if what.is_empty() {
            // The setting for the database wins: nothing to complain of.
            proof.unwrap_or_else(|error| panic!("{sql}: {error}"));
            continue;
        }
        let error = proof.expect_err(&sql);
        assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
        assert!(error.to_string().contains(what), "{sql}: {error}");
    }
    ground.server.prove(&acme.login).await.expect("all is undone");

    // A tenant may change its own password: the proof says so in a way that code can tell.
    ground
        .client(&acme.login)
        .await
        .batch_execute(&format!("ALTER ROLE {a}_app_a PASSWORD 'mine'"))
        .await
        .expect("its right");
    let error = ground.server.prove(&acme.login).await.expect_err("another password");
    assert_eq!(error.sqlstate(), Some("28P01"), "{error}");
    assert!(!error.to_string().contains(acme.login.password.expose()));
}
