//! Whether everything that is to run fits into a quota, checked before anything is made: the
//! API server would refuse single pods, in the middle of a rollout at the latest.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LimitRangeItem, PodSpec};

use super::{Fault, Kind, Object, quantity::Amount, tuning::Scale, usage};
use crate::api::{Application, Quantities};

/// The reason of a quota that is too small.
const TOO_SMALL: &str = "QuotaTooSmall";

/// How many ReplicaSets one Deployment has at most: those of its history, the one that a
/// rollout replaces, and the new one.
const REPLICA_SETS: u64 = super::component::REVISION_HISTORY as u64 + 2;

/// Resources of a quota that need no `/` in their name.
const STANDARD: [&str; 19] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];

/// Amounts that may have a fraction; everything else is counted.
const FRACTIONAL: [&str; 10] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];

/// What the API server would refuse in a quota.
pub(super) fn name_faults(path: &str, quota: Option<&Quantities>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (name, text) in quota.map(Quantities::strings).unwrap_or_default() {
        let path = format!("{path}.{name}");
        let huge = name.starts_with("hugepages-") || name.starts_with("requests.hugepages-");
        if !name.contains('/') && !STANDARD.contains(&name.as_str()) && !huge {
            let message = format!(
                "Kubernetes knows no quota on {name}: correct the name (requests.cpu, limits.memory, pods and such), \
                 or write count/RESOURCE.GROUP"
            );
            faults.push(Fault::new("InvalidQuota", path, message));
        } else if STANDARD.contains(&name.as_str())
            && !FRACTIONAL.contains(&name.as_str())
            && Amount::parse(&text).is_some_and(|amount| !amount.is_whole())
        {
            faults.push(Fault::new("InvalidQuota", path, format!("{text} is not a whole number: write one")));
        }
    }
    faults
}

/// What the pods of one component need at most.
#[derive(Clone, Debug)]
pub(super) struct Footprint {
    component: String,
    scale: Scale,
    /// What one pod counts for, by the quota's names.
    pod: BTreeMap<String, Amount>,
}

impl Footprint {
    pub(super) fn of(component: &str, scale: Scale, spec: &PodSpec, range: Option<&LimitRangeItem>) -> Self {
        Self { component: component.to_owned(), scale, pod: usage::pod(spec, range) }
    }

    /// The most replicas there are.
    fn replicas(&self) -> u64 {
        let most = match self.scale {
            Scale::Fixed(replicas) => replicas,
            Scale::Auto(autoscaling) => autoscaling.max_replicas,
        };
        u64::try_from(most).unwrap_or(0)
    }

    /// The pods that a rollout makes before it takes old ones away.
    fn surge(&self) -> u64 {
        (self.replicas() * super::component::SURGE_PERCENT).div_ceil(100)
    }

    fn pods(&self) -> u64 {
        self.replicas() + self.surge()
    }

    /// `web 4 x 500m (3 + 1 while a rollout goes on)`.
    fn explain(&self, amount: Amount, counted: bool) -> String {
        let each = if counted { String::new() } else { format!(" x {amount}") };
        let most = if matches!(self.scale, Scale::Auto(_)) { "autoscaled up to " } else { "" };
        format!(
            "{} {}{each} ({most}{} + {} while a rollout goes on)",
            self.component,
            self.pods(),
            self.replicas(),
            self.surge()
        )
    }
}

/// How many objects of each kind a namespace has, beside its pods.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// The objects, and what Kubernetes itself adds to a namespace.
    pub(super) fn of<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Self {
        let mut counts = Self::default();
        for object in objects {
            counts.add(object.kind, 1);
            if object.kind == Kind::Deployment {
                *counts.0.entry("count/replicasets.apps".to_owned()).or_default() += REPLICA_SETS;
            }
        }
        // `kube-root-ca.crt` and `default`.
        counts.add(Kind::ConfigMap, 1);
        counts.add(Kind::ServiceAccount, 1);
        counts
    }

    /// So many more of a kind.
    pub(super) fn add(&mut self, kind: Kind, number: u64) {
        let group = if kind.group().is_empty() { String::new() } else { format!(".{}", kind.group()) };
        *self.0.entry(format!("count/{}{group}", kind.plural())).or_default() += number;
    }

    /// The copies of what an Application shares.
    pub(super) fn add_shared(&mut self, application: &Application) {
        let Some(shared) = &application.spec.shared else { return };
        let number = |names: &Option<Vec<String>>| names.as_ref().map_or(0, |names| names.len() as u64);
        self.add(Kind::Secret, number(&shared.secrets));
        self.add(Kind::ConfigMap, number(&shared.config_maps));
    }

    /// What counts under a name of a quota: `configmaps` is `count/configmaps`.
    fn get(&self, name: &str) -> Option<u64> {
        const OLD_NAMES: [&str; 4] = ["configmaps", "secrets", "services", "resourcequotas"];
        match name {
            _ if OLD_NAMES.contains(&name) => self.0.get(&format!("count/{name}")).copied(),
            _ => self.0.get(name).copied(),
        }
    }
}

/// A fault for each amount of a quota that is too small for what is to run: with what is
/// needed, what there is, and who needs it. `advice` says what else would help.
pub(super) fn shortfalls(
    path: &str,
    quota: Option<&Quantities>,
    footprints: &[Footprint],
    counts: &Counts,
    advice: &str,
) -> Vec<Fault> {
    let quota = quota.map(Quantities::strings).unwrap_or_default();
    let shortfall = |(name, text): (String, String)| {
        let there = Amount::parse(&text)?;
        let users =
            || footprints.iter().filter_map(|it| Some((it, *it.pod.get(&name)?))).filter(|(it, _)| it.pods() > 0);
        let by_pods = users().fold(Amount::ZERO, |sum, (it, amount)| sum.plus(amount.times(it.pods())));
        let needed = by_pods.plus(Amount::whole(counts.get(&name).unwrap_or(0)));
        if needed <= there {
            return None;
        }
        let counted = ["pods", "count/pods"].contains(&name.as_str());
        let who: Vec<String> = users().map(|(it, amount)| it.explain(amount, counted)).collect();
        let who = if who.is_empty() { String::new() } else { format!(": {}", who.join(", ")) };
        let message = format!("{needed} is needed, and the quota is {there}{who}. Raise the quota, {advice}");
        Some(Fault::new(TOO_SMALL, format!("{path}.{name}"), message))
    };
    quota.into_iter().filter_map(shortfall).collect()
}
