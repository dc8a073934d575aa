//! What the chart's roles allow, asked of the API server's own authorizer.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::{
    core::v1::{Namespace, Secret},
    rbac::v1::{ClusterRoleBinding, Role, RoleBinding},
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::ground::{client, ground, output, root};

const OPERATOR: &str = "system:serviceaccount:tenantry-system:tenantry";

/// Whether a user may do something, written `verb group/resource[/subresource][:name] [namespace]`;
/// the core group is the empty string.
async fn may(client: &Client, user: &str, what: &str) -> bool {
    let mut words = what.split(' ');
    let verb = words.next().expect("a verb");
    let (resource, name) = match words.next().expect("a resource").split_once(':') {
        Some((resource, name)) => (resource, Some(name.to_owned())),
        None => (what.split(' ').nth(1).expect("a resource"), None),
    };
    let mut parts = resource.splitn(3, '/').map(str::to_owned);
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.to_owned()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: parts.next(),
                resource: parts.next(),
                subresource: parts.next(),
                name,
                namespace: words.next().map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    api.create(&PostParams::default(), &review).await.expect("a review").status.expect("an answer").allowed
}

async fn hold(user: &str, allowed: &[&str], denied: &[&str]) {
    let client = client().await;
    for what in allowed {
        assert!(may(&client, user, what).await, "{user} should be allowed to {what}");
    }
    for what in denied {
        assert!(!may(&client, user, what).await, "{user} must not be allowed to {what}");
    }
}

fn made<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

#[tokio::test]
async fn the_operator_reaches_what_it_needs_and_no_more() {
    hold(
        OPERATOR,
        &[
            "watch tenantry.io/tenants",
            "patch tenantry.io/tenants/status",
            "patch tenantry.io/plans",
            "update tenantry.io/tenants/finalizers",
            "create tenantry.io/pools",
            "create /namespaces",
            "delete /namespaces",
            "create rbac.authorization.k8s.io/rolebindings somewhere",
            "bind rbac.authorization.k8s.io/clusterroles:tenantry-namespace",
            "bind rbac.authorization.k8s.io/clusterroles:tenantry-agent",
            "bind rbac.authorization.k8s.io/clusterroles:tenantry-owner",
            "watch apps/deployments",
            "watch gateway.networking.k8s.io/httproutes",
            "watch networking.k8s.io/ingresses",
            "watch apiextensions.k8s.io/customresourcedefinitions:httproutes.gateway.networking.k8s.io",
            "watch apiextensions.k8s.io/customresourcedefinitions:tenants.tenantry.io",
            "create events.k8s.io/events default",
            "create authentication.k8s.io/tokenreviews",
            "create authorization.k8s.io/subjectaccessreviews",
            "get /secrets tenantry-system",
            "watch /configmaps tenantry-system",
            "create coordination.k8s.io/leases tenantry-system",
            "update coordination.k8s.io/leases:tenantry tenantry-system",
            "create apps/controllerrevisions tenantry-system",
            "watch discovery.k8s.io/endpointslices default",
        ],
        &[
            // Secrets and ConfigMaps of others.
            "list /secrets",
            "get /secrets default",
            "get /secrets kube-system",
            "create /secrets tenantry-system",
            "update coordination.k8s.io/leases:another tenantry-system",
            "update coordination.k8s.io/leases:tenantry kube-system",
            "list /configmaps",
            "create /configmaps default",
            // What users wrote.
            "create tenantry.io/tenants",
            "delete tenantry.io/tenants",
            "delete tenantry.io/plans",
            "delete tenantry.io/pools",
            "create tenantry.io/plans",
            // Workloads where it did not make the namespace.
            "create apps/deployments default",
            "patch apps/deployments kube-system",
            "create /pods default",
            "create /pods/exec default",
            "create networking.k8s.io/networkpolicies default",
            // Rights.
            "create rbac.authorization.k8s.io/roles default",
            "create rbac.authorization.k8s.io/clusterroles",
            "create rbac.authorization.k8s.io/clusterrolebindings",
            "bind rbac.authorization.k8s.io/clusterroles:cluster-admin",
            "escalate rbac.authorization.k8s.io/clusterroles",
            "impersonate /users",
            "create /serviceaccounts/token tenantry-system",
            // The cluster itself.
            "list apiextensions.k8s.io/customresourcedefinitions",
            "delete apiextensions.k8s.io/customresourcedefinitions:tenants.tenantry.io",
            "delete admissionregistration.k8s.io/validatingadmissionpolicies:tenantry-in-use",
            "patch /nodes",
        ],
    )
    .await;
}

/// In a namespace that it makes, the operator gets its rights from itself; it can hand out
/// nothing but the three roles that are meant for that.
#[tokio::test]
async fn the_operator_gives_itself_rights_in_its_namespaces_alone() {
    let operator = ground().service_account_client("tenantry-system", "tenantry").await.expect("the operator's client");
    let namespaces: Api<Namespace> = Api::all(operator.clone());
    namespaces
        .create(&PostParams::default(), &made(json!({"metadata": {"name": "pool-rights"}})))
        .await
        .expect("a namespace");
    let bindings: Api<RoleBinding> = Api::namespaced(operator.clone(), "pool-rights");
    let binding = |role: &str| -> RoleBinding {
        made(json!({
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "tenantry", "namespace": "tenantry-system"}],
        }))
    };
    for role in ["cluster-admin", "admin", "edit", "tenantry-admin"] {
        let refusal = bindings.create(&PostParams::default(), &binding(role)).await.expect_err("no other role");
        assert!(matches!(&refusal, kube::Error::Api(status) if status.code == 403), "{role}: {refusal}");
    }
    let roles: Api<Role> = Api::namespaced(operator.clone(), "pool-rights");
    let role = made(json!({"metadata": {"name": "own"}, "rules": []}));
    roles.create(&PostParams::default(), &role).await.expect_err("no Role of its own making");

    let secrets: Api<Secret> = Api::namespaced(operator.clone(), "pool-rights");
    let secret: Secret = made(json!({"metadata": {"name": "acme-database"}}));
    secrets.create(&PostParams::default(), &secret).await.expect_err("no rights yet");
    for role in ["tenantry-namespace", "tenantry-agent", "tenantry-owner"] {
        bindings.create(&PostParams::default(), &binding(role)).await.expect("one of the three roles");
    }
    // The authorizer learns of a binding through its own watch.
    let client = client().await;
    while !may(&client, OPERATOR, "create /secrets pool-rights").await {
        tokio::task::yield_now().await;
    }
    secrets.create(&PostParams::default(), &secret).await.expect("rights in this namespace");
    let everything = [
        "/secrets",
        "/configmaps",
        "/serviceaccounts",
        "/services",
        "/resourcequotas",
        "/limitranges",
        "apps/deployments",
        "networking.k8s.io/networkpolicies",
        "networking.k8s.io/ingresses",
        "gateway.networking.k8s.io/httproutes",
        "policy/poddisruptionbudgets",
        "autoscaling/horizontalpodautoscalers",
    ];
    for resource in everything {
        for verb in ["get", "list", "watch", "create", "patch", "update", "delete"] {
            assert!(may(&client, OPERATOR, &format!("{verb} {resource} pool-rights")).await, "{verb} {resource}");
        }
    }
    assert!(may(&client, OPERATOR, "list /pods pool-rights").await);
    for what in
        ["create /pods", "create /pods/exec", "patch apps/deployments/scale", "create rbac.authorization.k8s.io/roles"]
    {
        assert!(!may(&client, OPERATOR, &format!("{what} pool-rights")).await, "{what}");
    }
    namespaces.delete("pool-rights", &DeleteParams::default()).await.expect("its own namespace");
}

#[tokio::test]
async fn agents_owners_and_people() {
    let client = client().await;
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    let subject = |user: &str| json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]);
    let role = |name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
    for (user, name) in [("vera", "tenantry-viewer"), ("edith", "tenantry-tenant-editor"), ("ada", "tenantry-admin")] {
        let binding =
            json!({"metadata": {"name": format!("test-{user}")}, "roleRef": role(name), "subjects": subject(user)});
        bindings.create(&PostParams::default(), &made(binding)).await.expect("a binding");
    }
    let namespaced: Api<RoleBinding> = Api::namespaced(client.clone(), "default");
    for (user, name) in [("olga", "tenantry-owner"), ("agent", "tenantry-agent")] {
        let binding =
            json!({"metadata": {"name": format!("test-{user}")}, "roleRef": role(name), "subjects": subject(user)});
        namespaced.create(&PostParams::default(), &made(binding)).await.expect("a binding");
    }
    // Bindings reach the authorizer by watch, aggregated rules by their controller.
    for (user, what) in [
        ("vera", "get tenantry.io/pools"),
        ("edith", "delete tenantry.io/tenants"),
        ("edith", "get tenantry.io/plans"),
        ("ada", "delete tenantry.io/plans"),
        ("ada", "delete tenantry.io/tenants"),
        ("ada", "get tenantry.io/tenants"),
        ("olga", "get /pods default"),
        ("agent", "get /secrets default"),
    ] {
        while !may(&client, user, what).await {
            tokio::task::yield_now().await;
        }
    }
    hold(
        "vera",
        &["list tenantry.io/tenants", "get /namespaces:kube-system"],
        &["create tenantry.io/tenants", "get /secrets default", "get /namespaces:default", "list /namespaces"],
    )
    .await;
    hold(
        "edith",
        &["create tenantry.io/tenants", "patch tenantry.io/tenants", "list tenantry.io/applications"],
        &[
            "patch tenantry.io/plans",
            "patch tenantry.io/tenants/status",
            "delete tenantry.io/pools",
            "get /secrets default",
        ],
    )
    .await;
    hold(
        "ada",
        &["create tenantry.io/plans", "patch tenantry.io/databaseservers", "delete tenantry.io/pools"],
        &["patch tenantry.io/tenants/status", "get /secrets tenantry-system"],
    )
    .await;
    hold(
        "olga",
        &[
            "get /pods/log default",
            "list apps/deployments default",
            "patch apps/deployments default",
            "create /configmaps default",
        ],
        &[
            "get /secrets default",
            "create /pods/exec default",
            "create /pods default",
            "delete /pods default",
            "patch networking.k8s.io/networkpolicies default",
            "patch gateway.networking.k8s.io/httproutes default",
            "patch /services default",
            "create rbac.authorization.k8s.io/rolebindings default",
            "get rbac.authorization.k8s.io/rolebindings default",
            "create apps/deployments default",
            "delete apps/deployments default",
            "patch apps/deployments/scale default",
            "create networking.k8s.io/ingresses default",
            "create /serviceaccounts/token default",
            "impersonate /serviceaccounts default",
            "patch /resourcequotas default",
            "get /pods kube-system",
        ],
    )
    .await;
    hold("agent", &["watch /secrets default"], &["list /secrets", "patch /secrets default", "get /configmaps default"])
        .await;

    for user in ["vera", "edith", "ada"] {
        bindings.delete(&format!("test-{user}"), &DeleteParams::default()).await.expect("removed");
    }
    for user in ["olga", "agent"] {
        namespaced.delete(&format!("test-{user}"), &DeleteParams::default()).await.expect("removed");
    }
}

/// No wildcard anywhere; nothing that is bound in the whole cluster names Secrets or ConfigMaps.
#[test]
fn no_role_has_a_wildcard() {
    let rendered = output(ground().helm().args(["template", "tenantry"]).arg(root().join("charts/tenantry")));
    let objects: Vec<Value> = serde_saphyr::from_multiple(&rendered).expect("YAML");
    let roles: Vec<_> =
        objects.iter().filter(|object| matches!(object["kind"].as_str(), Some("ClusterRole" | "Role"))).collect();
    assert!(roles.len() >= 8, "{} roles", roles.len());
    for role in &roles {
        for rule in role["rules"].as_array().into_iter().flatten() {
            assert!(!rule.to_string().contains("\"*\""), "a wildcard in {}: {rule}", role["metadata"]["name"]);
            let wide = role["kind"] == "ClusterRole"
                && !["tenantry-namespace", "tenantry-agent", "tenantry-owner"]
                    .contains(&role["metadata"]["name"].as_str().expect("a name"));
            let secret = rule["resources"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|resource| matches!(resource.as_str(), Some("secrets" | "configmaps")));
            assert!(
                !(wide && secret),
                "{} reaches Secrets or ConfigMaps of the whole cluster",
                role["metadata"]["name"]
            );
        }
    }
    let bound: Vec<_> = objects
        .iter()
        .filter(|object| object["kind"] == "ClusterRoleBinding")
        .map(|object| object["roleRef"]["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(bound, ["tenantry"], "the only role that the chart binds in the whole cluster");
}
