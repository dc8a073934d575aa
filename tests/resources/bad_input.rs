//! What a CRD can refuse by itself: each fault gets a message that says what to change, and
//! its good neighbour passes. The examples are the starting point of every case.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::ground::{api, apply, client, example};

/// One change to a good object: the field (a JSON pointer), its new value, and what the
/// API server must answer; nothing where it must accept.
type Case = (&'static str, Value, &'static str);

/// The answer for a case that must be accepted.
const GOOD: &str = "";

/// Changes one field; null removes it, and `-` as an index adds an item.
fn with(object: &Value, pointer: &str, value: &Value) -> Value {
    let mut object = object.clone();
    let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer");
    let mut place = &mut object;
    for step in parent.split('/').skip(1) {
        place = match place {
            Value::Array(items) => &mut items[step.parse::<usize>().expect("an index")],
            other => {
                other.as_object_mut().expect("an object").entry(step.replace("~1", "/")).or_insert_with(|| json!({}))
            }
        };
    }
    match (place, value) {
        (Value::Array(items), value) if key == "-" => items.push(value.clone()),
        (Value::Array(items), value) => items[key.parse::<usize>().expect("an index")] = value.clone(),
        (Value::Object(fields), Value::Null) => drop(fields.remove(key)),
        (place, value) => place[key] = value.clone(),
    }
    object
}

async fn hold(base: &Value, cases: &[Case]) {
    let client = client().await;
    apply(client.clone(), base, true).await.expect("the example itself is good");
    let mut wrong = Vec::new();
    for (pointer, value, says) in cases {
        let answer = apply(client.clone(), &with(base, pointer, value), true).await;
        let case = format!("{pointer} = {value}");
        match answer {
            Ok(_) if says.is_empty() => {}
            Ok(_) => wrong.push(format!("{case}: accepted, should say: {says}")),
            Err(error) if says.is_empty() => wrong.push(format!("{case}: should be accepted, but: {error}")),
            Err(error) if error.to_string().contains(says) => {}
            Err(error) => wrong.push(format!("{case}: should say: {says}\n  but says: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const TENANT_NAME: &str = "a Tenant's name has at most 40 characters: lower-case letters, digits and '-', beginning with a letter, ending with a letter or digit, and not beginning with xn--";
const KUBERNETES_NAME: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters";
const HOST: &str = "a host is a DNS name in lower case with at least one dot, such as crm.acme.example; no wildcard, port, scheme or address";
const MONEY: &str = "write an amount as a decimal number of 0 or more in quotes, such as \"300000\" or \"12.50\"";
const PERCENT: &str = "write a percentage between \"0\" and \"100\" as a decimal number in quotes";
const DURATION: &str = "write a duration as a whole number and one unit of ms, s, m, h or d, such as 30s, 24h or 30d";
const SIZE: &str = "write a size as a whole number and one unit of Ki, Mi, Gi or Ti, such as 512Mi";
const QUANTITY: &str = "write a Kubernetes quantity of 0 or more, such as 500m, 2, 512Mi or 10Gi";
const METER: &str =
    "a meter's name has at most 40 characters: lower-case letters, digits and '_', beginning with a letter";
const GRACE: &str = "policy Grace needs days (how long) and percent (how far) beyond max";

#[tokio::test]
async fn a_tenants_names_and_hosts() {
    let tenant = example("tenants.yaml", "acme");
    let hosts = |count: usize| json!((0..count).map(|number| format!("h{number}.acme.example")).collect::<Vec<_>>());
    let long_label = format!("{}.example", "a".repeat(64));
    hold(
        &tenant,
        &[
            ("/metadata/name", json!("a".repeat(40)), GOOD),
            ("/metadata/name", json!("a"), GOOD),
            ("/metadata/name", json!("acme-2"), GOOD),
            ("/metadata/name", json!("a".repeat(41)), TENANT_NAME),
            ("/metadata/name", json!("4acme"), TENANT_NAME),
            ("/metadata/name", json!("acme.eu"), TENANT_NAME),
            ("/metadata/name", json!("xn--acme"), TENANT_NAME),
            ("/metadata/name", json!("Acme"), KUBERNETES_NAME),
            ("/metadata/name", json!("acme_eu"), KUBERNETES_NAME),
            ("/metadata/name", json!("acme-"), KUBERNETES_NAME),
            ("/spec/hosts", hosts(15), GOOD),
            ("/spec/hosts", hosts(16), "spec.hosts: Too many: 16: must have at most 15 items"),
            ("/spec/hosts", json!(["1and1.acme.example"]), GOOD),
            ("/spec/hosts", json!(["crm.acme.xn--p1ai"]), GOOD),
            ("/spec/hosts", json!(["a.example", "a.example"]), "duplicate entries for key"),
            ("/spec/hosts", json!(["CRM.acme.example"]), HOST),
            ("/spec/hosts", json!(["*.acme.example"]), HOST),
            ("/spec/hosts", json!(["acme"]), HOST),
            ("/spec/hosts", json!(["acme.example:8080"]), HOST),
            ("/spec/hosts", json!(["https://acme.example"]), HOST),
            ("/spec/hosts", json!(["acme.example."]), HOST),
            ("/spec/hosts", json!(["10.1.2.3"]), HOST),
            ("/spec/hosts", json!(["::1"]), HOST),
            ("/spec/hosts", json!(["../../etc/passwd"]), HOST),
            ("/spec/hosts", json!(["-a.example"]), HOST),
            ("/spec/hosts", json!([""]), HOST),
            ("/spec/hosts", json!([long_label]), HOST),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_tenants_other_fields() {
    let tenant = example("tenants.yaml", "delta");
    let owner = |name: &str| json!([{"kind": "User", "name": name}]);
    hold(
        &tenant,
        &[
            ("/spec/plan", Value::Null, "spec.plan: Required value"),
            ("/spec/plan", json!(""), "spec.plan: Invalid value"),
            ("/spec/application", Value::Null, "spec.application: Required value"),
            ("/spec/tier", json!("shared"), "spec.tier: Unsupported value: \"shared\": supported values: \"pooled\", \"bridge\", \"dedicated\""),
            ("/spec/deletionPolicy", json!("Keep"), "supported values: \"Retain\", \"Delete\""),
            ("/spec/owners", owner("ann@acme.example"), GOOD),
            ("/spec/owners", owner("system:admin"), "an owner can't be one of Kubernetes' own identities (system:…): name a user or group of your identity provider"),
            ("/spec/owners", json!([{"kind": "ServiceAccount", "name": "ci"}]), "supported values: \"User\", \"Group\""),
            ("/spec/owner", owner("ann"), ".spec.owner: field not declared in schema"),
            ("/spec/billing/discount", json!("12.5"), GOOD),
            ("/spec/billing/discount", json!("100"), GOOD),
            ("/spec/billing/discount", json!("100.5"), PERCENT),
            ("/spec/billing/discount", json!("-5"), PERCENT),
            ("/spec/billing/discount", json!(5), ".spec.billing.discount: expected string"),
            ("/spec/billing/minimum", json!("0"), GOOD),
            ("/spec/billing/minimum", json!("-1"), MONEY),
            ("/spec/billing/priceOverride", json!("a lot"), MONEY),
            ("/spec/billing/timeZone", json!("Asia Seoul"), "timeZone is an IANA name, such as Asia/Seoul"),
            ("/spec/billing/start", json!("tomorrow"), "spec.billing.start: Invalid value: \"tomorrow\": spec.billing.start in body must be of type date-time"),
            ("/spec/billing/cycle", json!("Weekly"), "supported values: \"Monthly\", \"Annual\""),
            ("/spec/billing/standing", json!("Late"), "supported values: \"Current\", \"PastDue\", \"Unpaid\""),
            ("/spec/billing/term/months", json!(0), "should be greater than or equal to 1"),
            ("/spec/overrides", json!([{"component": "web", "replicas": 2}]), GOOD),
            ("/spec/overrides", json!([{"component": "web"}, {"component": "web"}]), "duplicate entries for key [component=\"web\"]"),
            ("/spec/overrides", json!([{"component": "web", "resources": {"limits": {"memory": "lots"}}}]), QUANTITY),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_plans_price_and_limits() {
    let plan = example("plans.yaml", "smb");
    hold(
        &plan,
        &[
            ("/metadata/name", json!("smb.2026"), "a Plan's name has at most 63 characters"),
            ("/spec/price/base", json!("0"), GOOD),
            ("/spec/price/base", json!("12.50"), GOOD),
            ("/spec/price/base", json!("-1"), MONEY),
            ("/spec/price/base", json!("1e3"), MONEY),
            ("/spec/price/base", json!("12,50"), MONEY),
            ("/spec/price/base", json!("0.00001"), MONEY),
            ("/spec/price/base", json!(""), MONEY),
            ("/spec/price/base", json!("NaN"), MONEY),
            ("/spec/price/base", json!(60000), ".spec.price.base: expected string"),
            ("/spec/price/perUnit/0/amount", json!("-1"), MONEY),
            ("/spec/price/perUnit/0/included", json!(-1), "should be greater than or equal to 0"),
            ("/spec/price/perUnit", json!([{"meter": "users", "amount": "1"}, {"meter": "users", "amount": "2"}]), "duplicate entries for key [meter=\"users\"]"),
            ("/spec/price/currency", json!("USD"), GOOD),
            ("/spec/price/currency", json!("krw"), "write the currency as its ISO 4217 code of three capital letters, such as KRW, USD or EUR"),
            ("/spec/price/currency", json!("₩"), "ISO 4217"),
            ("/spec/price/currency", Value::Null, "spec.price.currency: Required value"),
            ("/spec/price/annualDiscountPercent", json!("100.5"), PERCENT),
            ("/spec/price/annualDiscountPercent", json!("12.5"), GOOD),
            ("/spec/limits/users", json!({"max": 50}), "a limit needs a policy: set it to Hard (refuse), Soft (only report) or Grace (refuse after days, or beyond percent)"),
            ("/spec/limits/users", json!({"max": 0, "policy": "Hard"}), GOOD),
            ("/spec/limits/users", json!({"max": -1, "policy": "Hard"}), "should be greater than or equal to 0"),
            ("/spec/limits/users", json!({"max": 5, "policy": "Strict"}), "supported values: \"Hard\", \"Soft\", \"Grace\""),
            ("/spec/limits/users", json!({"policy": "Hard"}), "spec.limits.users.max: Required value"),
            ("/spec/limits/users", json!({"max": 5, "policy": "Hard", "days": 3}), "days and percent are for policy Grace alone: remove them, or set policy to Grace"),
            ("/spec/limits/users", json!({"max": 5, "policy": "Grace"}), GRACE),
            ("/spec/limits/users", json!({"max": 5, "policy": "Grace", "days": 3}), GRACE),
            ("/spec/limits/users", json!({"max": 5, "policy": "Grace", "days": 3, "percent": 10}), GOOD),
            ("/spec/limits/Users", json!({"max": 5, "policy": "Hard"}), METER),
            ("/spec/limits/api-calls", json!({"max": 5, "policy": "Hard"}), METER),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_plans_other_fields() {
    let plan = example("plans.yaml", "smb");
    hold(
        &plan,
        &[
            ("/spec/tier", json!("dedicated"), "tier is not among allowedTiers: add it there, or choose one of them"),
            ("/spec/tier", json!("bridge"), GOOD),
            (
                "/spec/allowedTiers",
                json!(["pooled", "silo"]),
                "supported values: \"pooled\", \"bridge\", \"dedicated\"",
            ),
            (
                "/spec/trial",
                json!({"days": 14, "onEnd": "Downgrade"}),
                "trial.onEnd Downgrade needs trial.downgradeTo: name the Plan to move to",
            ),
            (
                "/spec/trial",
                json!({"days": 14, "onEnd": "Convert", "downgradeTo": "free"}),
                "trial.downgradeTo is for trial.onEnd Downgrade alone: remove it, or set onEnd to Downgrade",
            ),
            ("/spec/trial", json!({"days": 0, "onEnd": "Convert"}), "should be greater than or equal to 1"),
            ("/spec/proration", json!("Hour"), "supported values: \"Second\", \"Day\", \"None\""),
            ("/spec/retention", json!("90d"), GOOD),
            ("/spec/retention", json!("90"), DURATION),
            ("/spec/retention", json!("-1d"), DURATION),
            ("/spec/retention", json!("1h30m"), DURATION),
            ("/spec/retention", json!("P30D"), DURATION),
            ("/spec/database/statementTimeout", json!("soon"), DURATION),
            ("/spec/database/maxTransaction", json!("60s"), GOOD),
            ("/spec/database/maxTransaction", json!("1.5s"), DURATION),
            ("/spec/database/tempFileLimit", json!("1GB"), SIZE),
            ("/spec/database/tempFileLimit", json!("0Mi"), SIZE),
            ("/spec/database/connectionLimit", json!(0), "should be greater than or equal to 1"),
            ("/spec/quota", json!({"pods": 20, "requests.cpu": "500m", "requests.memory": "1.5Gi"}), GOOD),
            ("/spec/quota", json!({"requests.cpu": "lots"}), QUANTITY),
            ("/spec/quota", json!({"requests.cpu": "-1"}), QUANTITY),
            ("/spec/quota", json!({"pods": -1}), QUANTITY),
            ("/spec/quota", json!({"requests.memory": "8 GB"}), QUANTITY),
            ("/spec/limitRange/max", json!({"memory": "huge"}), QUANTITY),
            ("/spec/components/web", json!({"replicas": -1}), "should be greater than or equal to 0"),
        ],
    )
    .await;
}

#[tokio::test]
async fn an_application() {
    let application = example("application.yaml", "crm");
    let component = |name: &str| json!([{"name": name, "port": 8080, "template": {"spec": {"containers": []}}}]);
    let component_name = "a component's name has at most 20 characters";
    let route = "a route needs either parentRefs (Gateway API) or ingressClassName (Ingress), not both";
    let template = "hostTemplate is {tenant} followed by a domain in lower case, such as {tenant}.crm.example.com";
    let serves = "route.component must name a component that has a port";
    hold(
        &application,
        &[
            ("/metadata/name", json!("a".repeat(34)), GOOD),
            ("/metadata/name", json!("a".repeat(35)), "an Application's name has at most 34 characters"),
            ("/spec/components", json!([]), "spec.components: Invalid value"),
            ("/spec/components", component("web"), GOOD),
            ("/spec/components", component("Web"), component_name),
            ("/spec/components", component("w3-"), component_name),
            (
                "/spec/components/0/name",
                json!("w".repeat(21)),
                "spec.components[0].name: Too long: may not be more than 20",
            ),
            (
                "/spec/components",
                json!([component("web")[0], component("web")[0]]),
                "duplicate entries for key [name=\"web\"]",
            ),
            ("/spec/components/0/port", json!(0), "should be greater than or equal to 1"),
            ("/spec/components/0/port", json!(65536), "should be less than or equal to 65535"),
            ("/spec/components/0/port", Value::Null, serves),
            ("/spec/components/0/template", Value::Null, "spec.components[0].template: Required value"),
            (
                "/spec/components/0/autoscaling",
                json!({"pooled": {"minReplicas": 2, "maxReplicas": 9, "targetCpuPercent": 70}}),
                GOOD,
            ),
            (
                "/spec/components/0/autoscaling",
                json!({"pooled": {"minReplicas": 3, "maxReplicas": 2, "targetCpuPercent": 70}}),
                "autoscaling.minReplicas must not be above maxReplicas",
            ),
            ("/spec/route/component", json!("api"), serves),
            ("/spec/route/hostTemplate", json!("{tenant}.eu.example.com"), GOOD),
            ("/spec/route/hostTemplate", json!("crm.example.com"), template),
            ("/spec/route/hostTemplate", json!("{tenant}-crm.example.com"), template),
            ("/spec/route/hostTemplate", json!("{tenant}.CRM.example.com"), template),
            ("/spec/route/hostTemplate", json!("*.{tenant}.example.com"), template),
            ("/spec/route/ingressClassName", json!("nginx"), route),
            ("/spec/route/parentRefs", Value::Null, route),
            ("/spec/route/parentRefs", json!([]), route),
            ("/spec/meters/0/name", json!("Users"), METER),
            ("/spec/meters/0/kind", json!("Gauge"), "supported values: \"Level\", \"Total\""),
            ("/spec/meters/0/name", json!("accounts"), "duplicate entries for key [name=\"accounts\"]"),
            (
                "/spec/migrations/job",
                json!({"image": "crm:1"}),
                "migrations are either sql (ConfigMaps) or a job (an image with its own migrator), not both",
            ),
            ("/spec/migrations/sql", Value::Null, "migrations are either sql"),
            ("/spec/database/pooled/servers", json!([]), "spec.database.pooled.servers: Invalid value"),
            ("/spec/pools/maxTenants", json!(0), "should be greater than or equal to 1"),
            ("/spec/pools/quota", json!({"pods": "some"}), QUANTITY),
            ("/spec/rollout/deadline", json!("10 minutes"), DURATION),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_server_and_a_pool() {
    let server = example("server.yaml", "main");
    hold(
        &server,
        &[
            ("/metadata/name", json!("main.eu"), "a DatabaseServer's name has at most 63 characters"),
            ("/spec/admin/host", json!(""), "spec.admin.host: Invalid value"),
            ("/spec/admin/port", json!(70000), "should be less than or equal to 65535"),
            ("/spec/admin/credentialsSecret", Value::Null, "spec.admin.credentialsSecret: Required value"),
            ("/spec/tls/mode", json!("Prefer"), "supported values: \"VerifyFull\", \"Disable\""),
            ("/spec/accepts", json!(["pooled", "dedicated"]), GOOD),
            ("/spec/accepts", json!([]), "spec.accepts: Invalid value"),
            ("/spec/accepts", json!(["silo"]), "supported values: \"pooled\", \"bridge\", \"dedicated\""),
            ("/spec/network/to", json!([]), "spec.network.to: Invalid value"),
            ("/spec/capacity/schemasPerDatabase", json!(0), "should be greater than or equal to 1"),
        ],
    )
    .await;
    let pool = json!({
        "apiVersion": "tenantry.io/v1alpha1", "kind": "Pool", "metadata": {"name": "crm-1"},
        "spec": {"application": "crm", "server": "main", "maxTenants": 500},
    });
    hold(
        &pool,
        &[
            ("/metadata/name", json!("p".repeat(41)), "a Pool's name has at most 40 characters"),
            ("/metadata/name", json!("1st"), "a Pool's name has at most 40 characters"),
            ("/metadata/name", json!("xn--crm"), "a Pool's name has at most 40 characters"),
            ("/spec/maxTenants", json!(-1), "should be greater than or equal to 0"),
            ("/spec/server", Value::Null, "spec.server: Required value"),
        ],
    )
    .await;
}

/// Writes a status, as the operator does.
async fn status(client: &kube::Client, object: &Value, status: Value) {
    let name = object["metadata"]["name"].as_str().expect("a name");
    let api = api(client.clone(), object["kind"].as_str().expect("a kind"));
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(name, &PatchParams::default(), &patch).await.expect("a good status");
}

#[tokio::test]
async fn what_can_never_change() {
    let client = client().await;
    let named = |object: &Value, name: &str| with(object, "/metadata/name", &json!(name));
    let tenant = named(&example("tenants.yaml", "delta"), "unchanging");
    let tenant = with(&tenant, "/spec/billing/start", &json!("2026-11-01T00:00:00Z"));
    let application = named(&example("application.yaml", "crm"), "unchanging");
    let pool = json!({
        "apiVersion": "tenantry.io/v1alpha1", "kind": "Pool", "metadata": {"name": "unchanging"},
        "spec": {"application": "crm", "server": "main"},
    });
    let meter = "kind and source of a meter can't be changed, since past counts would lose their meaning: declare a meter of another name";
    let start = "billing.start can't be changed once it is set: every period is counted from it";
    let zone = "billing.timeZone can't be changed once it is set: every period ends in it";
    let known = "(status.meters has all that tenants were counted by): declare a meter of another name";
    let cell = "application and server of a Pool can't be changed: make another Pool";
    let cases: &[(&Value, Case)] = &[
        (
            &tenant,
            (
                "/spec/application",
                json!("erp"),
                "application can't be changed, since the data is that application's: make another Tenant",
            ),
        ),
        (&tenant, ("/spec/billing/start", json!("2026-12-01T00:00:00Z"), start)),
        (&tenant, ("/spec/billing/start", Value::Null, start)),
        (&tenant, ("/spec/billing", Value::Null, start)),
        (&tenant, ("/spec/billing/timeZone", json!("Europe/Rome"), zone)),
        (&tenant, ("/spec/billing/discount", json!("6"), GOOD)),
        (&tenant, ("/spec/plan", json!("free"), GOOD)),
        (&application, ("/spec/meters/0/kind", json!("Total"), meter)),
        (&application, ("/spec/meters/0/source", json!("API"), meter)),
        (&application, ("/spec/meters/0/unit", json!("seat"), GOOD)),
        (&application, ("/spec/meters/-", json!({"name": "mails", "kind": "Level"}), known)),
        (&application, ("/spec/meters/-", json!({"name": "mails", "kind": "Total", "source": "API"}), known)),
        (&application, ("/spec/meters/-", json!({"name": "mails", "kind": "Total"}), GOOD)),
        (&application, ("/spec/meters/-", json!({"name": "letters", "kind": "Level"}), GOOD)),
        (&pool, ("/spec/application", json!("erp"), cell)),
        (&pool, ("/spec/server", json!("other"), cell)),
        (&pool, ("/spec/maxTenants", json!(7), GOOD)),
    ];
    for object in [&tenant, &application, &pool] {
        apply(client.clone(), object, false).await.expect("the first version is good");
    }
    // A meter that was there once, and that tenants were counted by.
    let known = json!({"meters": [{"name": "mails", "kind": "Total", "source": "Database"}]});
    status(&client, &application, known).await;
    for (object, (pointer, value, says)) in cases {
        let answer = apply(client.clone(), &with(object, pointer, value), true).await;
        match answer {
            Ok(_) => assert!(says.is_empty(), "{pointer} = {value} was accepted"),
            Err(error) => assert!(
                !says.is_empty() && error.to_string().contains(says),
                "{pointer} = {value} should say: {says}\nbut says: {error}"
            ),
        }
    }

    // Where it isn't in effect, which the operator says, it can be corrected.
    for reason in ["UnknownTimeZone", "PeriodsFixed"] {
        let stalled = json!({"type": "Stalled", "status": "True", "reason": reason, "message": "", "lastTransitionTime": "2026-11-22T10:00:00Z"});
        status(&client, &tenant, json!({"conditions": [stalled]})).await;
        for (pointer, value) in [
            ("/spec/billing/start", json!("2026-12-01T00:00:00Z")),
            ("/spec/billing/timeZone", json!("Europe/Rome")),
            ("/spec/billing", Value::Null),
        ] {
            apply(client.clone(), &with(&tenant, pointer, &value), true).await.expect("a correction");
        }
    }

    // What was never set may still be set, once.
    let fresh = named(&example("tenants.yaml", "echo"), "not-yet-set");
    apply(client.clone(), &fresh, false).await.expect("a Tenant without billing");
    let set = with(&fresh, "/spec/billing/start", &json!("2026-11-01T00:00:00Z"));
    apply(client.clone(), &set, false).await.expect("billing.start may be set later");
    apply(client.clone(), &fresh, true).await.expect_err("but not be taken away again");

    for (kind, name) in
        [("Tenant", "unchanging"), ("Tenant", "not-yet-set"), ("Application", "unchanging"), ("Pool", "unchanging")]
    {
        api(client.clone(), kind).delete(name, &kube::api::DeleteParams::default()).await.expect("removed again");
    }
}
