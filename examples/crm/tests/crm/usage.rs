//! What tenants create, and how it is counted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crm::Limits;
use serde_json::json;

use crate::ground::Saas;
use crate::http::{get, raw, request};

fn user(name: &str) -> serde_json::Value {
    json!({"email": format!("{name}@example.com"), "name": name})
}

#[tokio::test]
async fn each_host_has_its_own_data() {
    let mut saas = Saas::start(Limits::default()).await;
    saas.tenant("acme", "smb").await;
    saas.tenant("bolt", "smb").await;
    let created = saas.post("acme.example.com", "/users", &user("ann")).await.expect(201);
    assert_eq!((&created["email"], &created["id"]), (&json!("ann@example.com"), &json!(1)));
    saas.post("bolt.example.com", "/users", &user("bob")).await.expect(201);

    assert_eq!(
        saas.get("acme.example.org", "/users").await.expect(200),
        json!([created]),
        "a second host, the same tenant"
    );
    assert_eq!(saas.get("bolt.example.com", "/users/1").await.expect(200)["name"], "bob");
    saas.delete("bolt.example.com", "/users/1").await.expect(204);
    saas.get("bolt.example.com", "/users/1").await.expect(404);
    assert_eq!(saas.get("acme.example.com", "/users/1").await.expect(200), created, "a neighbour's id 1 is another's");

    let home = saas.get("acme.example.com", "/").await.expect(200);
    assert_eq!(home["host"], "acme.example.com");
    let usage = home["usage"].as_array().unwrap();
    assert!(usage.iter().any(|meter| meter["meter"] == "users" && meter["value"] == 1), "{home}");
}

#[tokio::test]
async fn a_hard_limit_is_an_answer_402_that_says_which() {
    let mut saas = Saas::start(Limits::default()).await;
    saas.limit_users("free", 3).await;
    let id = saas.tenant("acme", "free").await;
    for name in ["a", "b", "c"] {
        saas.post("acme.example.com", "/users", &user(name)).await.expect(201);
    }
    let refused = saas.post("acme.example.com", "/users", &user("d")).await.expect(402);
    assert_eq!(refused["error"], "limit_reached");
    assert_eq!((&refused["meter"], &refused["limit"], &refused["value"]), (&json!("users"), &json!(3), &json!(3)));
    assert!(refused["message"].as_str().is_some_and(|message| message.contains("users")), "{refused}");
    assert_eq!(saas.rows_and_count(&id, "users").await, (3, 3), "what was refused left nothing");

    saas.post("acme.example.com", "/accounts", &json!({"name": "Unlimited"})).await.expect(201);
    saas.delete("acme.example.com", "/users/2").await.expect(204);
    saas.post("acme.example.com", "/users", &user("d")).await.expect(201);
    saas.limit_users("free", 4).await;
    saas.post("acme.example.com", "/users", &user("e")).await.expect(201);
    assert_eq!(saas.rows_and_count(&id, "users").await, (4, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_never_pass_the_limit() {
    let mut saas = Saas::start(Limits::default()).await;
    saas.limit_users("smb", 25).await;
    let id = saas.tenant("acme", "smb").await;
    let address = saas.crm.address;
    let posts: Vec<_> = (0..40)
        .map(|number| {
            let body = user(&format!("u{number}")).to_string();
            tokio::spawn(async move { request(address, "POST", "acme.example.com", "/users", &body).await.status })
        })
        .collect();
    let mut answers = Vec::new();
    for post in posts {
        answers.push(post.await.unwrap());
    }
    let count = |status| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!((count(201), count(402)), (25, 15), "{answers:?}");
    assert_eq!(saas.rows_and_count(&id, "users").await, (25, 25));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn count_and_rows_are_equal_although_sessions_are_killed() {
    let mut saas = Saas::start(Limits::default()).await;
    let id = saas.tenant("acme", "smb").await;
    let address = saas.crm.address;
    let stop = Arc::new(AtomicBool::new(false));
    let killer = {
        let (stop, superuser) = (Arc::clone(&stop), saas.superuser().await);
        tokio::spawn(async move {
            let mut killed = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                // One that is at work, an idle one would be no loss; then a moment for others to get through.
                const KILL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                                    WHERE application_name = 'crm' AND state <> 'idle' LIMIT 1";
                killed += superuser.execute(KILL, &[]).await.expect("the superuser may");
                tokio::time::sleep(Duration::from_millis(killed % 7 * 3)).await;
            }
            killed
        })
    };
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            tokio::spawn(async move {
                let mut created = BTreeSet::new();
                for number in 0..40 {
                    let body = user(&format!("w{writer}n{number}")).to_string();
                    let answer = request(address, "POST", "acme.example.com", "/users", &body).await;
                    match answer.status {
                        201 => {
                            created.insert(answer.json()["id"].as_i64().expect("an id"));
                        }
                        503 => {}
                        _ => panic!("{}\n{}", answer.head, answer.body),
                    }
                }
                created
            })
        })
        .collect();
    let mut created = BTreeSet::new();
    for writer in writers {
        created.extend(writer.await.unwrap());
    }
    stop.store(true, Ordering::Relaxed);
    let killed = killer.await.unwrap();
    let (rows, count) = saas.rows_and_count(&id, "users").await;
    println!("{killed} sessions killed, {} of 240 answered 201, {rows} rows", created.len());
    assert!(killed > 0 && !created.is_empty(), "nothing was put to the test");
    assert_eq!(rows, count, "rows and count");
    assert!(rows >= i64::try_from(created.len()).unwrap(), "what was answered 201 is there");
    let sql = format!("SELECT count(*), sum(delta)::bigint FROM tenantry.outbox WHERE tenant = '{id}'");
    let row = saas.superuser().await.query_one(&sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (rows, rows), "one event for each");
}

#[tokio::test]
async fn opportunities_belong_to_accounts() {
    let mut saas = Saas::start(Limits::default()).await;
    let id = saas.tenant("acme", "smb").await;
    let host = "acme.example.com";
    let orphan = json!({"account_id": 1, "title": "Chairs"});
    assert_eq!(saas.post(host, "/opportunities", &orphan).await.expect(409)["error"], "conflict");
    saas.post(host, "/accounts", &json!({"name": "Globex", "website": "https://globex.example"})).await.expect(201);
    let body =
        json!({"account_id": 1, "title": "Chairs", "amount": "120000000000.10", "currency": "USD", "stage": "won"});
    let created = saas.post(host, "/opportunities", &body).await.expect(201);
    assert_eq!(created["amount"], "120000000000.10", "money keeps every digit");
    let second = saas.post(host, "/opportunities", &json!({"account_id": 1, "title": "Desks"})).await.expect(201);
    assert_eq!((&second["amount"], &second["stage"]), (&json!("0.00"), &json!("open")));

    saas.delete(host, "/accounts/1").await.expect(409);
    assert_eq!(saas.rows_and_count(&id, "accounts").await, (1, 1), "what was refused is not counted");
    let page = saas.get(host, "/opportunities?limit=1").await.expect(200);
    assert_eq!(page, json!([created]));
    let rest = saas.get(host, &format!("/opportunities?after={}", created["id"])).await.expect(200);
    assert_eq!(rest, json!([second]));
    for opportunity in [&created, &second] {
        saas.delete(host, &format!("/opportunities/{}", opportunity["id"])).await.expect(204);
    }
    saas.delete(host, "/accounts/1").await.expect(204);
    assert_eq!(saas.rows_and_count(&id, "accounts").await, (0, 0));
    assert_eq!(saas.rows_and_count(&id, "opportunities").await, (0, 0));
}

#[tokio::test]
async fn bad_input_is_answered_and_changes_nothing() {
    let mut saas = Saas::start(Limits::default()).await;
    let id = saas.tenant("acme", "smb").await;
    let (address, host) = (saas.crm.address, "acme.example.com");
    for (path, body, status) in [
        ("/users", "", 400),
        ("/users", "{", 400),
        ("/users", "[]", 422),
        ("/users", r#"{"email": "a@example.com"}"#, 422),
        ("/users", r#"{"email": "a@example.com", "name": "A", "admin": true}"#, 422),
        ("/users", r#"{"email": "no address", "name": "A"}"#, 422),
        ("/users", r#"{"email": "a@example.com", "name": "  "}"#, 422),
        ("/users", r#"{"email": "a@example.com", "name": "nul \u0000"}"#, 422),
        ("/users", r#"{"email": 5, "name": "A"}"#, 422),
        ("/accounts", r#"{"name": null}"#, 422),
        ("/opportunities", r#"{"account_id": 1, "title": "T", "amount": "1e400"}"#, 422),
        ("/opportunities", r#"{"account_id": 1, "title": "T", "amount": "12,50"}"#, 422),
        ("/opportunities", r#"{"account_id": 99999999999999999999, "title": "T"}"#, 422),
    ] {
        let answer = request(address, "POST", host, path, body).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.body);
        assert!(answer.json()["message"].is_string(), "{}", answer.body);
    }
    let large = json!({"email": "a@example.com", "name": "x".repeat(100_000)});
    saas.post(host, "/users", &large).await.expect(413);
    let plain = format!("POST /users HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}");
    raw(address, plain.as_bytes()).await.expect(415);
    request(address, "PUT", host, "/users", "{}").await.expect(405);
    for path in ["/users/x", "/users/99999999999999999999", "/users?limit=x", "/users?after=1;DROP"] {
        get(address, host, path).await.expect(400);
    }
    saas.delete(host, "/users/1").await.expect(404);
    assert_eq!(saas.rows_and_count(&id, "users").await, (0, 0));
}

#[tokio::test]
async fn what_looks_like_sql_is_data() {
    let mut saas = Saas::start(Limits::default()).await;
    let id = saas.tenant("acme", "smb").await;
    for name in
        ["'; DROP TABLE users; --", "$1", "\\'; SELECT record_usage('users', -1, 'x')", "{{7*7}}", "%s%n", "名前 🙂"]
    {
        let body = json!({"email": format!("{}@example.com", name.len()), "name": name});
        let created = saas.post("acme.example.com", "/users", &body).await.expect(201);
        assert_eq!(created["name"], name);
    }
    let twice = json!({"email": "2@example.com", "name": "Again"});
    let conflict = saas.post("acme.example.com", "/users", &twice).await.expect(409);
    assert!(conflict["message"].as_str().is_some_and(|message| message.contains("email")), "{conflict}");
    assert_eq!(saas.rows_and_count(&id, "users").await, (6, 6));
}

#[tokio::test]
async fn a_tenant_whose_tables_are_not_there_yet_is_asked_to_come_again() {
    let mut saas = Saas::start(Limits::default()).await;
    let (_, login) = saas.tenant_without_tables("acme", "smb").await;
    saas.publish("acme", &login);
    let answer = saas.get("acme.example.com", "/users").await;
    assert_eq!(answer.expect(503)["error"], "unavailable");
    assert!(answer.head.contains("retry-after: "), "{}", answer.head);
}
