use jiff::Timestamp;
use tokio::sync::oneshot;

use super::*;
use crate::database::{Password, ServerConfig, TenantState, Timeouts, Tls};

fn connected() -> Connected {
    let config = ServerConfig {
        host: "localhost".into(),
        port: 1,
        database: "postgres".into(),
        user: "admin".into(),
        password: Password::new("none"),
        tls: Tls::Disable,
        endpoint: None,
        connections: 1,
        timeouts: Timeouts::default(),
    };
    let info = ServerInfo {
        version: 180_000,
        max_connections: 100,
        sets_temp_file_limit: true,
        open_databases: Vec::new(),
        advice: Vec::new(),
    };
    Connected::new(Server::new(config).expect("a good configuration"), 0, info, None, "disable")
}

fn record(state: TenantState) -> TenantRecord {
    TenantRecord {
        id: TenantId::from_uid("uid"),
        name: "acme".into(),
        uid: "uid".into(),
        cluster_id: "here".into(),
        application: "crm".into(),
        state,
        schema: "t_acme".into(),
        settings: TenantSettings {
            plan: "smb".into(),
            plan_revision: "1".into(),
            suspended: false,
            connection_limit: 1,
            temp_file_limit: None,
            statement_timeout: None,
            max_transaction: None,
            period_anchor: Timestamp::UNIX_EPOCH,
            time_zone: "UTC".into(),
        },
        logins: Vec::new(),
        migrations: [].into(),
    }
}

#[tokio::test]
async fn a_copy_that_was_read_before_a_change_is_not_taken_in_after_it() {
    let connected = connected();
    let (live, retained) = (record(TenantState::Live), record(TenantState::Retained { drop_after: Timestamp::MAX }));
    let id = live.id.clone();
    let in_database = Mutex::new(live.clone());
    let copy = || in_database.lock().expect("no panic").clone();
    let (read, was_read) = oneshot::channel();
    let (answer, answered) = oneshot::channel::<()>();
    // Maintenance reads the record, and its answer takes long.
    let slow = connected.take_in("crm", &id, async {
        let copy = copy();
        read.send(()).expect("somebody waits");
        answered.await.expect("an answer");
        Ok(Some(copy))
    });
    // The tenant's deletion changes it meanwhile, and reads it anew.
    let quick = async {
        was_read.await.expect("it was read");
        *in_database.lock().expect("no panic") = retained.clone();
        let reading = connected.take_in("crm", &id, async { Ok(Some(copy())) });
        let mut reading = std::pin::pin!(reading);
        // It gets as far as it can before the old answer comes.
        assert!(futures::poll!(&mut reading).is_pending());
        answer.send(()).expect("somebody waits");
        reading.await
    };
    let (slow, quick) = tokio::join!(slow, quick);
    assert_eq!(slow.expect("read").as_deref(), Some(&live));
    assert_eq!(quick.expect("read").as_deref(), Some(&retained));
    assert_eq!(connected.record("crm", &id).as_deref(), Some(&retained));
    connected.take_in("crm", &id, async { Ok(None) }).await.expect("read");
    assert_eq!(connected.record("crm", &id), None);
}

#[test]
fn what_is_on_a_server_is_not_judged_while_one_database_after_the_other_is_read() {
    let databases = Databases::default();
    assert!(!databases.is_being_read("main"), "it never answered");
    let loading = databases.begin("main", connected());
    assert!(databases.is_being_read("main"));
    assert!(!databases.is_being_read("other"));
    let late = Instant::now() + READING;
    assert!(!loading.is_under_way(late), "it has stopped to answer in the midst of it");
    loading.progressed();
    assert!(loading.is_under_way(late - Duration::from_millis(1)), "one more was read");
    databases.insert("main", Arc::clone(&loading.connected));
    assert!(!databases.is_being_read("main"), "all were");
}
