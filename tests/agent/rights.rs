//! Which Secrets an agent sees.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tenantry::agent::{self, CheckError, Scope};

use crate::ground::{Agent, CLUSTER, Pool, eventually, folder, listed, names, start};

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

/// Lets ServiceAccount `agent` of the namespace do this with Secrets there, and nothing else anywhere.
async fn grant(pool: &Pool, verbs: &[&str]) {
    let role = Role {
        metadata: named("agent"),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["secrets".into()]),
            verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
            ..PolicyRule::default()
        }]),
    };
    let binding = RoleBinding {
        metadata: named("agent"),
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "Role".into(),
            name: "agent".into(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: "agent".into(),
            namespace: Some(pool.namespace.clone()),
            ..Subject::default()
        }]),
    };
    let (client, parameters) = (&pool.client, PostParams::default());
    Api::namespaced(client.clone(), &pool.namespace).create(&parameters, &role).await.expect("a Role");
    Api::namespaced(client.clone(), &pool.namespace).create(&parameters, &binding).await.expect("a RoleBinding");
}

#[tokio::test]
async fn an_agent_needs_no_more_than_get_list_and_watch_in_its_own_namespace() {
    let (pool, other) = (Pool::new(&CLUSTER).await, Pool::new(&CLUSTER).await);
    let account = ServiceAccount { metadata: named("agent"), ..ServiceAccount::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(pool.client.clone(), &pool.namespace);
    accounts.create(&PostParams::default(), &account).await.expect("a ServiceAccount");
    let kubeconfig = CLUSTER.service_account_kubeconfig(&pool.namespace, "agent").await.expect("a token");
    pool.put("acme", "acme.example.com", "one").await;
    other.put("other", "other.example.com", "one").await;

    let (_temporary, dir) = folder();
    let agent = Agent::start(&kubeconfig, &dir, pool.scope()).await;
    eventually("an agent that may not list", || matches!(agent::check(&dir), Err(CheckError::NotListed)).then_some(()))
        .await;
    grant(&pool, &["get", "list", "watch"]).await;
    listed(&dir).await;
    assert_eq!(names(&dir, "tenants"), ["acme"]);
    pool.put("bolt", "bolt.example.com", "one").await;
    eventually("a tenant seen by the watch", || (names(&dir, "tenants") == ["acme", "bolt"]).then_some(())).await;
    agent.stop().await;

    let (_temporary, dir) = folder();
    let all = Agent::start(&kubeconfig, &dir, Scope::AllNamespaces).await;
    eventually("no leave for all namespaces", || {
        matches!(agent::check(&dir), Err(CheckError::NotListed)).then_some(())
    })
    .await;
    all.stop().await;
    assert_eq!(names(&dir, "tenants"), [""; 0]);
}

#[tokio::test]
async fn one_agent_on_a_host_keeps_the_tenants_of_all_namespaces() {
    // The tenants of other tests would be among them.
    let cluster = tokio::task::spawn_blocking(start).await.expect("no panic");
    let (first, second) = (Pool::new(&cluster).await, Pool::new(&cluster).await);
    first.put("acme", "acme.example.com", "one").await;
    second.put("bolt", "bolt.example.com", "one").await;

    let (_temporary, dir) = folder();
    let agent = Agent::start(cluster.kubeconfig(), &dir, Scope::AllNamespaces).await;
    assert_eq!(listed(&dir).await.tenants, 2);
    assert_eq!(names(&dir, "hosts"), ["acme.example.com", "bolt.example.com"]);

    // The same tenant in another namespace, as while it moves: the older Secret serves until it goes.
    second.put("acme", "acme.example.com", "moved").await;
    eventually("a refused claim", || (agent::check(&dir).ok()?.conflicts == 1).then_some(())).await;
    let served = crate::ground::password(&dir, "acme.example.com");
    let elder = if served.as_deref() == Some("one") { &first } else { &second };
    elder.delete("acme").await;
    eventually("the other takes over", || {
        let now = crate::ground::password(&dir, "acme.example.com")?;
        (Some(&now) != served.as_ref()).then_some(())
    })
    .await;
    agent.stop().await;
}

#[test]
fn every_flag_is_a_variable_too() {
    use clap::{Args as _, Command, FromArgMatches};
    let command = || agent::Args::augment_args(Command::new("agent"));
    let parse = |arguments: &[&str]| {
        let matches = command().try_get_matches_from([&["agent"], arguments].concat())?;
        agent::Args::from_arg_matches(&matches)
    };
    for argument in command().get_arguments() {
        let variable = argument.get_env().expect("a variable").to_string_lossy().into_owned();
        assert!(variable.starts_with("TENANTRY_AGENT_"), "{variable}");
    }
    let args = parse(&["--dir", "/x"]).unwrap();
    assert_eq!((args.namespace, args.all_namespaces, args.check), (None, false, false));
    assert!(parse(&["--namespace", "a", "--all-namespaces"]).is_err());
}
