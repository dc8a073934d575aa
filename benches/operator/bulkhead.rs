//! (h): what a frozen database server takes from tenants of another one.

use std::time::{Duration, Instant};

use anyhow::Result;
use devcluster::{Postgres, PostgresOptions};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tenantry::api::Tenant;

use crate::{
    ground::Ground,
    onboarding::{settle, tenants},
    report::Report,
    tenants::{Watch, create_all, tenant},
};

/// Makes `many` tenants on a second server; then `few` on the first, once as it is and once while
/// the second stands still and each of its tenants wants something of it.
pub async fn measure(ground: &Ground, report: &mut Report, many: usize, few: usize) -> Result<()> {
    let second = tokio::task::spawn_blocking(|| Postgres::start(PostgresOptions::default())).await??;
    ground.server("second", &second).await?;
    let mut application =
        serde_json::to_value(Api::<tenantry::api::Application>::all(ground.client.clone()).get("crm").await?.spec)?;
    application["database"] = json!({"pooled": {"servers": ["second"]}});
    application["route"]["hostTemplate"] = json!("{tenant}.second.example.com");
    let application = json!({
        "apiVersion": "tenantry.io/v1alpha1", "kind": "Application", "metadata": {"name": "second"},
        "spec": application,
    });
    ground.apply(&application).await?;
    ground.await_server("second").await?;
    let watch = Watch::tenants(&ground.client).await?;
    let names: Vec<_> = (0..many).map(|number| format!("cold{number:05}")).collect();
    create_all(&ground.client, names.iter().map(|name| tenant(name, "second", "pooled")).collect()).await?;
    watch.await_holding("cold", many).await?;
    settle(ground, Duration::from_secs(5)).await?;

    let timed = async |prefix: &str| -> Result<f64> {
        let start = Instant::now();
        create_all(&ground.client, tenants("pooled", prefix, few)).await?;
        let end = watch.await_holding(&format!("{prefix}pooled"), few).await?;
        Ok(few as f64 / end.duration_since(start).as_secs_f64())
    };
    // Once without counting, so that pools and connections are there for both.
    timed("lukewarm").await?;
    settle(ground, Duration::from_secs(3)).await?;
    let undisturbed = timed("before").await?;
    settle(ground, Duration::from_secs(3)).await?;
    second.freeze();
    let all = Api::<Tenant>::all(ground.client.clone());
    let rotate = Patch::Merge(json!({"metadata": {"annotations": {"tenantry.io/rotate": "bench"}}}));
    let params = PatchParams::default();
    stream::iter(&names)
        .map(|name| all.patch(name, &params, &rotate))
        .buffer_unordered(16)
        .try_for_each(|_| std::future::ready(Ok(())))
        .await?;
    let beside = timed("beside").await?;
    second.thaw();
    report.add(
        "h",
        &format!("{few} tenants to Ready while another server, with {many} tenants that want it, is frozen"),
        format!("{beside:.1} tenants/s; undisturbed {undisturbed:.1}: {:.2}", beside / undisturbed),
        "0.8 of the undisturbed rate",
    );
    // All of them get what they asked for.
    watch.await_holding("cold", many).await?;
    settle(ground, Duration::from_secs(5)).await?;
    // The server goes with this function: its tenants go first.
    crate::tenants::delete_all(&ground.client, &names).await?;
    watch.await_gone("cold").await
}
