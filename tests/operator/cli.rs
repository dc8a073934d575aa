//! The user's verbs, on a real cluster: what they print, for people and for programs.

use std::{os::unix::fs::symlink, process::Command};

use serde_json::{Value, json};

use super::{
    ground::{Ground, NAMESPACE, create, delete_tenant, eventually, ready_tenant},
    steps::calm,
    verbs::{application, id, of, ours, patch},
};

/// What a run of the program came to.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Its output, as a program reads it.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs the program as an administrator of the cluster.
pub fn tenantry(ground: &Ground, args: &[&str]) -> Ran {
    run(Command::new(env!("CARGO_BIN_EXE_tenantry")).args(args).env("KUBECONFIG", ground.cluster.kubeconfig()))
}

fn run(command: &mut Command) -> Ran {
    let output = command.env_remove("TENANTRY_OUTPUT").output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran {
        code: output.status.code().expect("it ends by itself"),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

/// Times, ids and UIDs differ from run to run.
fn steady(text: &str) -> String {
    let word = |word: &str| {
        let digits = word.chars().filter(char::is_ascii_digit).count();
        let is_age = word.len() > 1
            && word.ends_with(['s', 'm', 'h', 'd'])
            && word[..word.len() - 1].bytes().all(|byte| byte.is_ascii_digit());
        let is_uid = word.len() == 36 && word.matches('-').count() == 4;
        let is_id = (word.len() == 14 && word.starts_with("t_")) || (word.len() == 16 && word.starts_with("d_t_"));
        let is_revision = word
            .rsplit_once('-')
            .is_some_and(|(_, hash)| hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()));
        let is_date = digits == 8 && word.matches('-').count() == 2;
        let is_time = digits == 4 && word.len() == 5 && word.contains(':');
        match word {
            _ if is_age => "AGE",
            _ if is_uid => "UID",
            _ if is_id => "ID",
            _ if is_revision => "REVISION",
            _ if is_date => "DATE",
            _ if is_time => "TIME",
            _ => word,
        }
        .to_owned()
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.lines().map(|text| line(text) + "\n").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verbs_say_what_is() {
    let ((ground, _), client) = calm().await;
    application(&client, "shown", json!({"migrations": null})).await;
    let named = |name: &str| of("shown", json!({"spec": {"displayName": name}}));
    let shown = ready_tenant(&client, "shown-a", named("쇼운 주식회사")).await;
    ready_tenant(&client, "shown-b", named("To Go")).await;
    delete_tenant(&client, "shown-b").await;
    patch(&client, &ours("Tenant", "shown-a"), &json!({"spec": {"suspended": true}})).await;
    super::verbs::await_condition(&client, &ours("Tenant", "shown-a"), "Ready", "False", "suspended").await;

    let one = tenantry(ground, &["status", "shown-a"]);
    insta::assert_snapshot!("status_of_one", steady(&one.stdout));
    // The pool's count and the replicas come a moment later.
    let tree = eventually(async || {
        let tree = tenantry(ground, &["tree", "shown-a"]);
        (tree.stdout.contains(" 2/2") && tree.stdout.contains(" 1 of 500 tenants")).then_some(tree)
    });
    let tree = tree.await.unwrap_or_else(|| tenantry(ground, &["tree", "shown-a"]));
    insta::assert_snapshot!("tree", tree.stdout.replace(&id(&shown), "t_aaaaaaaaaaaa"));
    let retained = tenantry(ground, &["retained", "shown-b"]);
    // Another test's DatabaseServer may be the same PostgreSQL; either may be named.
    insta::assert_snapshot!("retained", steady(&retained.stdout).replace("counted/", "main/"));
    assert_eq!((one.code, tree.code, retained.code), (0, 0, 0), "{one:?} {tree:?} {retained:?}");

    let all = tenantry(ground, &["status", "--output", "json"]).json();
    let mine =
        all["notReady"].as_array().expect("a list").iter().find(|it| it["name"] == "shown-a").expect("it is not ready");
    assert_eq!((&mine["state"], &mine["reason"]), (&json!("Suspended"), &json!("Suspended")));
    let text = tenantry(ground, &["status", "--all"]).stdout;
    assert!(text.contains("TIER") && text.contains("Tenants are Ready") && text.contains("shown-a"), "{text}");
    // Two trees of one tenant, one for programs.
    let tree = tenantry(ground, &["tree", "shown-a", "-o", "json"]).json();
    assert_eq!(tree["tenant"]["children"][0]["kind"], "Pool");

    let unknown = tenantry(ground, &["status", "nobody-of-this-name"]);
    assert_eq!(
        (unknown.code, unknown.stderr.as_str()),
        (1, "error: there is no Tenant nobody-of-this-name: kubectl get tenants lists them\n")
    );
    let nothing = tenantry(ground, &["adopt"]);
    assert_eq!(nothing.code, 2, "{nothing:?}");
    let none = tenantry(ground, &["adopt", "shown-a"]);
    assert!(none.code == 0 && none.stdout.contains("nothing to do"), "{none:?}");
}

/// What the chart's roles give is enough for the verbs that documentation says it is for.
#[tokio::test(flavor = "multi_thread")]
async fn roles_of_the_chart_are_enough() {
    let ((ground, _), client) = calm().await;
    let binding = |kind: &str, name: &str, role: (&str, &str)| {
        let mut binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role.0, "name": role.1},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "peter"}],
        });
        if kind == "RoleBinding" {
            binding["metadata"]["namespace"] = NAMESPACE.into();
        }
        binding
    };
    create(&client, &binding("ClusterRoleBinding", "peter", ("ClusterRole", "tenantry-admin"))).await;
    let peter = tempfile::NamedTempFile::new().expect("a temporary file");
    let config = std::fs::read_to_string(ground.cluster.kubeconfig()).expect("a kubeconfig");
    let mut config: Value = serde_saphyr::from_str(&config).expect("YAML");
    config["users"][0]["user"]["as"] = "peter".into();
    std::fs::write(peter.path(), config.to_string()).expect("a written file");
    let peters =
        |args: &[&str]| run(Command::new(env!("CARGO_BIN_EXE_tenantry")).args(args).env("KUBECONFIG", peter.path()));

    let another = "00000000-0000-4000-8000-000000000000";
    let adopt = || peters(&["adopt", "--from-cluster", another, "--dry-run"]);
    // Aggregated rules reach the authorizer by and by.
    let adopted = eventually(async || Some(adopt()).filter(|ran| ran.code == 0)).await.unwrap_or_else(adopt);
    assert!(adopted.code == 0 && adopted.stdout.contains("would adopt"), "{adopted:?}");
    let retained = peters(&["retained"]);
    assert!(retained.code == 3 && retained.stdout.contains("read Secret tenantry-system/main-admin"), "{retained:?}");

    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "server-logins", "namespace": NAMESPACE},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}],
    });
    create(&client, &role).await;
    create(&client, &binding("RoleBinding", "server-logins", ("Role", "server-logins"))).await;
    let retained = || peters(&["retained"]);
    let all = eventually(async || Some(retained()).filter(|ran| ran.code == 0)).await.unwrap_or_else(retained);
    assert_eq!(all.code, 0, "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_finds_it_as_a_plugin_and_hands_its_cluster_over() {
    let ((ground, _), client) = calm().await;
    application(&client, "plugged", json!({"migrations": null})).await;
    ready_tenant(&client, "plugged-a", of("plugged", json!({}))).await;
    let folder = tempfile::tempdir().expect("a folder");
    symlink(env!("CARGO_BIN_EXE_tenantry"), folder.path().join("kubectl-tenantry")).expect("a link");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").expect("PATH"));
    let run_as = |args: &[&str]| run(ground.cluster.kubectl().args(args).env("PATH", &path).env_remove("KUBECONFIG"));
    let kubeconfig = ground.cluster.kubeconfig().to_str().expect("a path");
    let found = run_as(&["tenantry", "status", "plugged-a", "--kubeconfig", kubeconfig, "-o", "json"]);
    assert_eq!((found.code, &found.json()["state"]), (0, &json!("Ready")), "{found:?}");
    let wrong = run_as(&["tenantry", "status", "--kubeconfig", kubeconfig, "--context", "nowhere"]);
    assert!(wrong.code == 1 && wrong.stderr.starts_with("error: ") && wrong.stderr.contains("nowhere"), "{wrong:?}");
    let help = run_as(&["tenantry", "--help"]);
    assert!(help.stdout.contains("Usage: kubectl tenantry") && !help.stdout.contains("operator  "), "{help:?}");
}
