//! Operations that were cut off go on where they were.

use jiff::Timestamp;
use tenantry::database::{DropOutcome, ErrorClass, Server, ServerConfig, TenantSpec, TenantState};

use crate::lifecycle::{quick, roles_and_schemas};
use crate::proxy::Proxy;
use crate::support::{Ground, config, settings, shared_server, until};

#[tokio::test(flavor = "multi_thread")]
async fn making_a_tenant_again_resumes() {
    let ground = Ground::new("life").await;
    let spec = ground.tenant_spec("acme");
    let (_, lost) = ground.server.create_tenant(&ground.database, &spec).await.expect("made");
    // The operator dies before the Secret is written.
    let (record, issued) = ground.server.create_tenant(&ground.database, &spec).await.expect("resumed");
    assert_eq!(issued.slot, lost.slot, "the pending login, again");
    assert_ne!(issued.password, lost.password);
    assert!(record.login_of(&issued.username, &issued.password.digest()).is_some());
    assert!(record.login_of(&lost.username, &lost.password.digest()).is_none());
    ground.client(&ground.credentials(&spec.id, &issued)).await;
}

/// The operator is cut off before each message that it sends, or before the answer, and tried
/// again: every operation ends where it would have ended, and leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn cut_off_at_any_point_everything_resumes() {
    for deliver in [false, true] {
        let postgres = shared_server();
        let proxy = Proxy::start(postgres.host().to_owned(), postgres.port()).await;
        let ground = Ground::new("cut").await;
        let through =
            Server::new(ServerConfig { port: proxy.port(), ..quick(config(postgres)) }).expect("a good configuration");
        let mut cuts = 0;
        let mut allowed = 0;
        loop {
            let spec = ground.tenant_spec(&format!("cut{allowed}"));
            proxy.cut_after(allowed, deliver);
            let result = whole_life(&through, &ground.database, &spec).await;
            proxy.cut_after(usize::MAX, false);
            match &result {
                Ok(outcome) => assert_eq!(*outcome, DropOutcome::Gone),
                Err(error) => assert_eq!(error.class(), ErrorClass::Transient, "{error}"),
            }
            until("the server is done with what it was sent", async || proxy.is_drained()).await;
            finish(&ground, &spec).await;
            if result.is_ok() {
                break;
            }
            cuts += 1;
            allowed += 1;
            until("the breaker lets one through", async || through.check().await.is_ok()).await;
        }
        println!("cut off {cuts} times on the way through a tenant's life");
        assert!(cuts >= 15, "the cuts reached every step: {cuts}");
    }
}

async fn whole_life(server: &Server, database: &str, spec: &TenantSpec) -> tenantry::database::Result<DropOutcome> {
    let (_, issued) = server.create_tenant(database, spec).await?;
    server.login_published(database, &spec.id, issued.slot).await?;
    server.apply_settings(database, &spec.id, &settings("other")).await?;
    server.retain(database, &spec.id, Timestamp::now()).await?;
    server.restore(database, &spec.id, &spec.name, "taken-back").await?;
    server.drop_tenant(database, &spec.id).await
}

/// Goes on from whatever was reached, as the next leader would, to the end.
async fn finish(ground: &Ground, spec: &TenantSpec) {
    let record = ground.server.record(&ground.database, &spec.id).await.expect("readable");
    match record.map(|record| (record.state, record.uid == spec.uid)) {
        None => assert!(roles_and_schemas(ground, &spec.id).await.is_empty(), "half a tenant"),
        Some((TenantState::Live, true)) => {
            let (_, issued) = ground.server.create_tenant(&ground.database, spec).await.expect("resumed");
            ground.server.login_published(&ground.database, &spec.id, issued.slot).await.expect("published");
            ground.server.prove(&ground.credentials(&spec.id, &issued)).await.expect("proven");
        }
        Some((TenantState::Retained { .. }, _)) => {
            ground.server.restore(&ground.database, &spec.id, &spec.name, "back").await.expect("restored");
        }
        Some(_) => {}
    }
    assert_eq!(ground.server.drop_tenant(&ground.database, &spec.id).await.expect("dropped"), DropOutcome::Gone);
    assert!(roles_and_schemas(ground, &spec.id).await.is_empty(), "something is left of {}", spec.name);
}
