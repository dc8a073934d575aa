//! What the demo shows when all is up: one user made, and how to look around.

use std::path::Path;

use serde_json::{Value, json};

use super::http;
use crate::{Devcluster, Error, text::shell_word};

/// The tenant that the guide speaks of.
const HOST: &str = "acme.crm.example.com";
/// A tenant of each tier.
pub(super) const OF_EACH_TIER: [&str; 3] = ["acme", "gusto", "mega"];

/// A tenant whose plan has few users.
pub(super) const ON_THE_FREE_PLAN: &str = "bolt";

/// Creates a user of a tenant through the CRM; the user's e-mail address.
pub(super) fn create_user(crm_port: u16, tenant: &str) -> Result<String, Error> {
    let (host, email) = (format!("{tenant}.crm.example.com"), format!("ann@{tenant}.example"));
    let body = json!({"email": email, "name": "Ann"}).to_string();
    let user = http::post(crm_port, &host, "/users", &body).and_then(|answer| match answer.status {
        201 => serde_json::from_str::<Value>(&answer.body).map_err(|error| format!("{error}: {}", answer.body)),
        _ => Err(format!("status {}: {}", answer.status, answer.body.trim())),
    });
    match user {
        Ok(user) if user["email"] == email.as_str() => Ok(email),
        Ok(other) => Err(refused(&host, &format!("it answered {other}"))),
        Err(why) => Err(refused(&host, &why)),
    }
}

fn refused(host: &str, why: &str) -> Error {
    Error::Missing {
        what: format!("the CRM created no user for {host}: {why}"),
        hint: "log/crm.log and log/agent.log in the demo's folder tell more".into(),
    }
}

/// How to look around.
pub(super) fn text(ground: &Devcluster, crm_port: u16, overlay: &Path) -> String {
    let word = |path: &Path| shell_word(&path.to_string_lossy());
    let env = word(&ground.dir().join("env"));
    let bin = ground.bin("kubectl");
    let bin = bin.parent().map(word).unwrap_or_default();
    let overlay = word(overlay);
    let crm = format!("http://127.0.0.1:{crm_port}");
    format!(
        "
In another shell:
  export KUBECONFIG={kubeconfig} PATH={bin}:$PATH
  . {env}    # CRM_URL, TENANTRY_METRICS_URL, DATABASE_ADMIN_URL, OPERATOR_PID, RELAY_PID
Acme's CRM, and its usage against the plan's limits:
  curl -H 'Host: {HOST}' {crm}/users
  curl -H 'Host: {HOST}' {crm}/
Try:
  kubectl get tenants -w                      # users come and go
  kubectl get tenantry                        # plans, applications, servers, pools, tenants
  kubectl describe tenant acme
  kubectl get all,resourcequotas,networkpolicies -n tenant-gusto    # tier bridge: a namespace of its own
  kubectl patch tenant bolt --type=merge -p '{{\"spec\":{{\"plan\":\"smb\"}}}}'
  kubectl annotate tenant acme tenantry.io/rotate=$(date +%s) --overwrite
  kubectl delete tenant foxtrot               # comes back: kubectl apply --server-side -k {overlay}
  kill -9 $OPERATOR_PID                       # tenants go on; it is started again
  kill -9 $RELAY_PID                          # usage is late, and none is lost
Logs are in {logs}. Ctrl-C ends everything.
",
        kubeconfig = word(ground.kubeconfig()),
        logs = word(&ground.dir().join("log")),
    )
}
