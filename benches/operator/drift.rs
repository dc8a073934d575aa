//! (f): how fast what somebody changed by hand is as it was, among ten thousand tenants.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
    runtime::{WatchStreamExt as _, watcher},
};
use rand::seq::IndexedRandom as _;
use serde_json::json;
use tenantry::api::Tenant;

use crate::{
    ground::{Ground, PATIENCE},
    onboarding::settle,
    report::{Report, quantile},
    tenants::count,
};

/// Measures each kind of damage on `samples` random tenants, one after the other.
pub async fn measure(ground: &Ground, report: &mut Report, samples: usize) -> Result<()> {
    let size = count(&ground.client).await?;
    let tenants = Api::<Tenant>::all(ground.client.clone()).list(&ListParams::default()).await?;
    let ready: Vec<_> = tenants
        .items
        .into_iter()
        .filter(|tenant| tenant.status.as_ref().is_some_and(|it| it.database.is_some()))
        .collect();
    let mut all = Vec::new();
    for damage in [Damage::EditRoute, Damage::DeleteRoute, Damage::EditSecret, Damage::DeleteSecret] {
        let mut times = Vec::new();
        for _ in 0..samples {
            let tenant = ready.choose(&mut rand::rng()).context("there are tenants")?;
            times.push(damage.repaired(ground, tenant).await?.as_secs_f64());
        }
        all.extend_from_slice(&times);
        report.add(
            "f",
            &format!("{} of a random one of {size} tenants, until repaired ({samples} times)", damage.name()),
            format!("p50 {:.3} s, p99 {:.3} s", quantile(&mut times, 0.5), quantile(&mut times, 0.99)),
            "",
        );
    }
    report.add(
        "f",
        "all of these",
        format!("p50 {:.3} s, p99 {:.3} s", quantile(&mut all, 0.5), quantile(&mut all, 0.99)),
        "1 s",
    );
    settle(ground, Duration::from_secs(3)).await
}

#[derive(Clone, Copy)]
enum Damage {
    EditRoute,
    DeleteRoute,
    EditSecret,
    DeleteSecret,
}

impl Damage {
    fn name(self) -> &'static str {
        match self {
            Self::EditRoute => "a route edited",
            Self::DeleteRoute => "a route deleted",
            Self::EditSecret => "a Secret edited (the login is replaced)",
            Self::DeleteSecret => "a Secret deleted (the login is replaced)",
        }
    }

    /// Does the damage, and waits until a watch shows that it is repaired; the time from before
    /// the call that does it.
    async fn repaired(self, ground: &Ground, tenant: &Tenant) -> Result<Duration> {
        let name = tenant.metadata.name.clone().unwrap_or_default();
        let status = tenant.status.clone().unwrap_or_default();
        let namespace = status.namespace.context("a tenant has a namespace")?;
        let client = ground.client.clone();
        let by_name = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let edit = PatchParams::apply("a-person").force();
        match self {
            Self::EditRoute | Self::DeleteRoute => {
                let kind =
                    ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute"));
                let routes: Api<DynamicObject> = Api::namespaced_with(client, &namespace, &kind);
                let before = routes.get(&name).await?;
                let (uid, spec) = (before.metadata.uid.clone(), before.data["spec"].clone());
                let mut changes = watcher(routes.clone(), by_name(&name)).applied_objects().boxed();
                // The watch stands when it has told what there is.
                changes.next().await.context("the watch ended")??;
                let start = Instant::now();
                if matches!(self, Self::EditRoute) {
                    let patch = json!({"spec": {"hostnames": ["spy.example.com"]}});
                    routes.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                } else {
                    routes.delete(&name, &DeleteParams::default()).await?;
                }
                let deleted = matches!(self, Self::DeleteRoute);
                let mut damaged = deleted;
                until(&mut changes, |route| {
                    let whole = route.data["spec"] == spec && (route.metadata.uid != uid || !deleted);
                    damaged |= !whole;
                    whole && damaged
                })
                .await?;
                Ok(start.elapsed())
            }
            Self::EditSecret | Self::DeleteSecret => {
                let reference = status.database.and_then(|database| database.secret_ref).context("a Secret")?;
                let secrets = Api::<Secret>::namespaced(client, &namespace);
                let before = secrets.get(&reference.name).await?;
                let password = before.data.as_ref().and_then(|data| data.get("password")).cloned();
                let spoilt = k8s_openapi::ByteString(b"spoilt".to_vec());
                let mut changes = watcher(secrets.clone(), by_name(&reference.name)).applied_objects().boxed();
                changes.next().await.context("the watch ended")??;
                let start = Instant::now();
                if matches!(self, Self::EditSecret) {
                    let patch = json!({
                        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": reference.name},
                        "data": {"password": spoilt},
                    });
                    secrets.patch(&reference.name, &edit, &Patch::Apply(patch)).await?;
                } else {
                    secrets.delete(&reference.name, &DeleteParams::default()).await?;
                }
                until(&mut changes, |secret| {
                    let now = secret.data.as_ref().and_then(|data| data.get("password"));
                    now.is_some() && now != password.as_ref() && now != Some(&spoilt)
                })
                .await?;
                Ok(start.elapsed())
            }
        }
    }
}

async fn until<K>(
    changes: &mut (impl futures::Stream<Item = Result<K, watcher::Error>> + Unpin),
    mut repaired: impl FnMut(&K) -> bool,
) -> Result<()> {
    let waiting = async {
        loop {
            if repaired(&changes.next().await.context("the watch ended")??) {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.context("waited in vain for a repair")?
}
