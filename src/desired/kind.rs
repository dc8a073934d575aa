//! The sorts of objects that the operator writes.

/// A sort of object that the operator writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A namespace of a pool or tenant.
    Namespace,
    /// Rights in a namespace.
    RoleBinding,
    /// The identity of the agent's pods.
    ServiceAccount,
    /// A tenant's credentials, or a shared Secret.
    Secret,
    /// A shared ConfigMap.
    ConfigMap,
    /// What a namespace may use at most.
    ResourceQuota,
    /// What a container of a namespace may use.
    LimitRange,
    /// What may connect to what.
    NetworkPolicy,
    /// A component's address.
    Service,
    /// How many pods an eviction may take away.
    PodDisruptionBudget,
    /// How many replicas a component has.
    HorizontalPodAutoscaler,
    /// A component's pods.
    Deployment,
    /// How a tenant is reached through a Gateway.
    HttpRoute,
    /// How a tenant is reached, where there is no Gateway.
    Ingress,
    /// A plan's price as it was.
    ControllerRevision,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Namespace,
        Self::RoleBinding,
        Self::ServiceAccount,
        Self::Secret,
        Self::ConfigMap,
        Self::ResourceQuota,
        Self::LimitRange,
        Self::NetworkPolicy,
        Self::Service,
        Self::PodDisruptionBudget,
        Self::HorizontalPodAutoscaler,
        Self::Deployment,
        Self::HttpRoute,
        Self::Ingress,
        Self::ControllerRevision,
    ];

    /// The API group (empty for the core group), version, kind and plural.
    const fn names(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::Namespace => ("", "v1", "Namespace", "namespaces"),
            Self::RoleBinding => ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"),
            Self::ServiceAccount => ("", "v1", "ServiceAccount", "serviceaccounts"),
            Self::Secret => ("", "v1", "Secret", "secrets"),
            Self::ConfigMap => ("", "v1", "ConfigMap", "configmaps"),
            Self::ResourceQuota => ("", "v1", "ResourceQuota", "resourcequotas"),
            Self::LimitRange => ("", "v1", "LimitRange", "limitranges"),
            Self::NetworkPolicy => ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
            Self::Service => ("", "v1", "Service", "services"),
            Self::PodDisruptionBudget => ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
            Self::HorizontalPodAutoscaler => {
                ("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
            }
            Self::Deployment => ("apps", "v1", "Deployment", "deployments"),
            Self::HttpRoute => ("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
            Self::Ingress => ("networking.k8s.io", "v1", "Ingress", "ingresses"),
            Self::ControllerRevision => ("apps", "v1", "ControllerRevision", "controllerrevisions"),
        }
    }

    /// The API group; empty for the core group.
    pub const fn group(self) -> &'static str {
        self.names().0
    }

    /// The version of the group.
    pub const fn version(self) -> &'static str {
        self.names().1
    }

    /// The kind as it is written in YAML.
    pub const fn as_str(self) -> &'static str {
        self.names().2
    }

    /// The plural, as it stands in a URL.
    pub const fn plural(self) -> &'static str {
        self.names().3
    }

    /// Group and version as they are written in YAML.
    pub fn api_version(self) -> String {
        match self.group() {
            "" => self.version().to_owned(),
            group => format!("{group}/{}", self.version()),
        }
    }

    /// Whether objects of this kind are in a namespace.
    pub const fn namespaced(self) -> bool {
        !matches!(self, Self::Namespace)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}
