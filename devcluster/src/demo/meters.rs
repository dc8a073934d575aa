//! Whether what a tenant's tables hold and what its status says agree.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use kube::Client;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

use super::traffic::{self, RESOURCES};
use crate::Error;
use crate::plane::boot;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(250);

/// One line of the table: a tenant's meter.
struct Line {
    tenant: String,
    meter: &'static str,
    rows: usize,
    counted: Option<i64>,
    shown: String,
    peak: String,
}

impl Line {
    fn agrees(&self) -> bool {
        self.counted.is_some_and(|counted| usize::try_from(counted) == Ok(self.rows))
    }
}

/// Waits until each meter of each tenant says as many as its CRM has rows; then the table of them.
///
/// # Errors
/// The table, where they still differ when patience is over.
pub(super) async fn agree(client: Client, crm_port: u16, patience: Duration) -> Result<String, Error> {
    let since = Instant::now();
    loop {
        let lines = match look(client.clone(), crm_port).await {
            Ok(lines) => lines,
            // A server that was just killed may not answer yet.
            Err(_) if since.elapsed() < patience => {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        if !lines.is_empty() && lines.iter().all(Line::agrees) {
            return Ok(table(&lines));
        }
        if since.elapsed() > patience {
            return Err(Error::Missing {
                what: format!("CRM and Tenant status don't agree after {} s", patience.as_secs()),
                hint: format!(
                    "log/relay.log and log/operator.log in the demo's folder tell more:\n{}",
                    table(&lines).trim_end()
                ),
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(client: Client, crm_port: u16) -> Result<Vec<Line>, Error> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("tenantry.io", "v1alpha1", "Tenant"));
    let tenants: Api<DynamicObject> = Api::all_with(client, &kind);
    let tenants = tenants.list(&ListParams::default()).await.map_err(boot::failed("list Tenants"))?;
    let mut lines = Vec::new();
    for tenant in tenants {
        let name = tenant.metadata.name.clone().unwrap_or_default();
        let of = name.clone();
        let rows = tokio::task::spawn_blocking(move || traffic::count(crm_port, &of));
        let rows = rows.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let meters = tenant.data["status"]["usage"]["meters"].as_array().cloned().unwrap_or_default();
        for meter in RESOURCES {
            let said = meters.iter().find(|said| said["name"] == meter).unwrap_or(&Value::Null);
            lines.push(Line {
                tenant: name.clone(),
                meter,
                rows: rows[meter],
                counted: said["current"].as_i64(),
                shown: said["display"].as_str().unwrap_or("-").to_owned(),
                peak: said["peak"].as_i64().map_or_else(|| "-".to_owned(), |peak| peak.to_string()),
            });
        }
    }
    Ok(lines)
}

fn table(lines: &[Line]) -> String {
    let mut text = format!("{:<12} {:<14} {:>8} {:>12} {:>6}\n", "TENANT", "METER", "CRM ROWS", "STATUS", "PEAK");
    for line in lines {
        let mark = if line.agrees() { "" } else { "  differs" };
        let _ = writeln!(
            text,
            "{:<12} {:<14} {:>8} {:>12} {:>6}{mark}",
            line.tenant, line.meter, line.rows, line.shown, line.peak
        );
    }
    text
}
