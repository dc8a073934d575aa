//! A namespace of the operator, and what is in it whatever runs there.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{
            ConfigMap, LimitRange, LimitRangeItem, LimitRangeSpec, Namespace, ResourceQuota, ResourceQuotaSpec,
            ServiceAccount,
        },
        rbac::v1::{RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::json;

use super::{Kind, Object, naming, quantity, settings::Settings, shared::SharedContent};
use crate::api::{OwnerKind, Quantities};

/// The version of Pod Security that is enforced: the one that templates are checked against
/// here. With `latest`, an upgrade of the cluster could refuse pods that have run for years;
/// `warn` and `audit` say beforehand what the newest version would refuse.
const POD_SECURITY_VERSION: &str = "v1.36";

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// A namespace in the making: its name, and the labels of everything in it.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub namespace: &'a str,
    pub labels: &'a BTreeMap<String, String>,
}

impl Scope<'_> {
    pub(super) fn metadata(&self, name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.to_owned()),
            labels: Some(self.labels.clone()),
            ..ObjectMeta::default()
        }
    }

    /// The namespace itself, held to Pod Security `restricted`.
    pub(super) fn namespace(&self) -> Object {
        let mut labels = self.labels.clone();
        for (mode, version) in [("enforce", POD_SECURITY_VERSION), ("audit", "latest"), ("warn", "latest")] {
            labels.insert(format!("pod-security.kubernetes.io/{mode}"), "restricted".to_owned());
            labels.insert(format!("pod-security.kubernetes.io/{mode}-version"), version.to_owned());
        }
        let metadata =
            ObjectMeta { name: Some(self.namespace.to_owned()), labels: Some(labels), ..ObjectMeta::default() };
        Object::typed(Kind::Namespace, &Namespace { metadata, ..Namespace::default() })
    }

    /// The operator's rights in the namespace; it has none on Secrets anywhere else.
    pub(super) fn operator_binding(&self, settings: &Settings) -> Object {
        let account = service_account(&settings.operator_service_account, &settings.operator_namespace);
        self.binding(naming::NAMESPACE_ROLE, vec![account])
    }

    /// The agent's identity, and its right to read the namespace's Secrets.
    pub(super) fn agent(&self) -> Vec<Object> {
        let subject = service_account(naming::AGENT, self.namespace);
        vec![self.account(naming::AGENT), self.binding(naming::AGENT, vec![subject])]
    }

    /// The relay's identity, and its right to read the namespace's Secrets: the agent's.
    pub(super) fn relay(&self) -> Vec<Object> {
        let subject = service_account(naming::RELAY, self.namespace);
        vec![self.account(naming::RELAY), self.binding(naming::AGENT, vec![subject])]
    }

    /// The identity of a tenant's pods. Nothing is bound to it, so that a token, should a
    /// template ask for one, says who the pod is and opens nothing.
    pub(super) fn service_account(&self) -> Object {
        self.account(naming::WORKLOAD_ACCOUNT)
    }

    /// The rights of a tenant's own people in its namespace; none without people.
    pub(super) fn owners(&self, owners: &[crate::api::Owner]) -> Option<Object> {
        let subject = |owner: &crate::api::Owner| Subject {
            api_group: Some(RBAC_GROUP.to_owned()),
            kind: match owner.kind {
                OwnerKind::User => "User".to_owned(),
                OwnerKind::Group => "Group".to_owned(),
            },
            name: owner.name.clone(),
            namespace: None,
        };
        let subjects: Vec<Subject> = owners.iter().map(subject).collect();
        (!subjects.is_empty()).then(|| self.binding(naming::OWNER_ROLE, subjects))
    }

    /// What a tenant's pods are told as they start. It stands apart from the pod template, so
    /// that a change of plan restarts nothing.
    pub(super) fn facts(&self, plan: &str, hosts: &[String]) -> Object {
        let facts = ConfigMap {
            metadata: self.metadata(naming::FACTS),
            data: Some(BTreeMap::from([
                ("plan".to_owned(), plan.to_owned()),
                ("host".to_owned(), hosts.first().cloned().unwrap_or_default()),
            ])),
            ..ConfigMap::default()
        };
        Object::typed(Kind::ConfigMap, &facts)
    }

    fn account(&self, name: &str) -> Object {
        let account = ServiceAccount {
            metadata: self.metadata(name),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        };
        Object::typed(Kind::ServiceAccount, &account)
    }

    /// Binds a ClusterRole, by a RoleBinding of the same name.
    fn binding(&self, role: &str, subjects: Vec<Subject>) -> Object {
        let binding = RoleBinding {
            metadata: self.metadata(role),
            role_ref: RoleRef {
                api_group: Some(RBAC_GROUP.to_owned()),
                kind: "ClusterRole".to_owned(),
                name: role.to_owned(),
            },
            subjects: Some(subjects),
        };
        Object::typed(Kind::RoleBinding, &binding)
    }

    /// What the namespace may use at most; none without amounts.
    pub(super) fn quota(&self, amounts: Option<&Quantities>) -> Option<Object> {
        let hard = quantity::typed(amounts)?;
        let quota = ResourceQuota {
            metadata: self.metadata(naming::QUOTA),
            spec: Some(ResourceQuotaSpec { hard: Some(hard), ..ResourceQuotaSpec::default() }),
            status: None,
        };
        Some(Object::typed(Kind::ResourceQuota, &quota))
    }

    /// What a container may use, and gets where it says nothing.
    pub(super) fn limit_range(&self, item: LimitRangeItem) -> Object {
        let range =
            LimitRange { metadata: self.metadata(naming::QUOTA), spec: Some(LimitRangeSpec { limits: vec![item] }) };
        Object::typed(Kind::LimitRange, &range)
    }

    /// A copy of a shared Secret or ConfigMap.
    pub(super) fn shared(&self, content: &SharedContent) -> Object {
        let body = json!({
            "metadata": self.metadata(&content.name),
            "type": content.type_,
            "data": content.data,
            "binaryData": content.binary_data,
        });
        Object::untyped(content.kind, body)
    }
}

/// The operator's rights in a namespace of its own, for when nothing else there is wanted any
/// more: to look at what others have there takes these rights.
pub fn operator_binding(namespace: &str, labels: &BTreeMap<String, String>, settings: &Settings) -> Object {
    Scope { namespace, labels }.operator_binding(settings)
}

fn service_account(name: &str, namespace: &str) -> Subject {
    Subject {
        api_group: None,
        kind: "ServiceAccount".to_owned(),
        name: name.to_owned(),
        namespace: Some(namespace.to_owned()),
    }
}
