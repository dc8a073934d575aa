//! A namespace of the operator, and what is in it whatever runs there.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{Namespace, ResourceQuota, ResourceQuotaSpec, ServiceAccount},
        rbac::v1::{RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::json;

use super::{
    Kind, Object, naming,
    pool::{Settings, SharedContent},
    quantity,
};
use crate::api::Quantities;

/// The version of Pod Security that is enforced: the one that templates are checked against
/// here. With `latest`, an upgrade of the cluster could refuse pods that have run for years;
/// `warn` and `audit` say beforehand what the newest version would refuse.
const POD_SECURITY_VERSION: &str = "v1.36";

/// A namespace in the making: its name, and the labels of everything in it.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub namespace: &'a str,
    pub labels: &'a BTreeMap<String, String>,
}

impl Scope<'_> {
    fn metadata(&self, name: &str) -> ObjectMeta {
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
        let account = (settings.operator_service_account.as_str(), settings.operator_namespace.as_str());
        self.binding(naming::NAMESPACE_ROLE, account)
    }

    /// The agent's identity, and its right to read the namespace's Secrets.
    pub(super) fn agent(&self) -> Vec<Object> {
        let account = ServiceAccount {
            metadata: self.metadata(naming::AGENT),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        };
        let account = Object::typed(Kind::ServiceAccount, &account);
        vec![account, self.binding(naming::AGENT, (naming::AGENT, self.namespace))]
    }

    /// Binds a ClusterRole, by a RoleBinding of the same name, to a ServiceAccount.
    fn binding(&self, role: &str, (account, namespace): (&str, &str)) -> Object {
        let binding = RoleBinding {
            metadata: self.metadata(role),
            role_ref: RoleRef {
                api_group: Some("rbac.authorization.k8s.io".to_owned()),
                kind: "ClusterRole".to_owned(),
                name: role.to_owned(),
            },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".to_owned(),
                name: account.to_owned(),
                namespace: Some(namespace.to_owned()),
                api_group: None,
            }]),
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
