//! Everything in the namespace of a tenant of tier bridge or dedicated, but its Secret and
//! its route, which every tier has.

use std::collections::BTreeMap;

use super::{
    Fault, Object,
    component::{Files, Workload},
    faults,
    namespace::Scope,
    naming::{self, Owner},
    network::{self, Network},
    settings::Settings,
    shared::{SharedContent, shared_objects},
    tuning::Tuning,
};
use crate::api::{Application, DatabaseServer, Plan, Tenant, Tier};

/// What a tenant's objects are made from.
#[derive(Clone, Copy)]
pub struct TenantObjectsInput<'a> {
    /// The tenant.
    pub tenant: &'a Tenant,
    /// Its plan.
    pub plan: &'a Plan,
    /// The application that it uses.
    pub application: &'a Application,
    /// The server that has its data.
    pub server: &'a DatabaseServer,
    /// The tier in effect: bridge or dedicated.
    pub tier: Tier,
    /// The hosts that are the tenant's, as `hosts::HostIndex` grants them.
    pub hosts: &'a [String],
    /// The contents of the Application's `shared` objects.
    pub shared: &'a [SharedContent],
    /// What holds for the operator as a whole.
    pub settings: &'a Settings,
    /// Whether no pod shall run, since the tenant is suspended.
    pub suspended: bool,
    /// As [`PoolInput::held_replicas`](super::PoolInput::held_replicas).
    pub held_replicas: &'a BTreeMap<String, i32>,
}

/// The objects of a tenant's namespace, by sort.
#[derive(Clone, Debug)]
pub struct TenantObjects {
    /// The namespace.
    pub namespace: Object,
    /// The operator's rights in it.
    pub operator_binding: Object,
    /// The rights of the tenant's own people; none without `spec.owners`.
    pub owners: Option<Object>,
    /// What the namespace may use; none where the plan has no quota.
    pub quota: Option<Object>,
    /// What a container may use; none where the plan has no limitRange.
    pub limit_range: Option<Object>,
    /// The identity of all pods, without a right or a token.
    pub service_account: Object,
    /// What pods are told of the tenant: a ConfigMap.
    pub facts: Object,
    /// Copies of the Application's shared objects.
    pub shared: Vec<Object>,
    /// What may connect to what.
    pub network_policies: Vec<Object>,
    /// The components' addresses.
    pub services: Vec<Object>,
    /// How many pods an eviction may take away.
    pub disruption_budgets: Vec<Object>,
    /// How many replicas there are.
    pub autoscalers: Vec<Object>,
    /// The components' pods. They mount the tenant's Secret, which must be there before.
    pub deployments: Vec<Object>,
    /// Whether the way to the database is declared; else no pod reaches it until
    /// DatabaseServer `spec.network.to` is set.
    pub network_declared: bool,
}

impl TenantObjects {
    /// The objects in the order in which they are applied: what others need comes first,
    /// and Deployments last, since a pod starts with what is there.
    pub fn into_ordered(self) -> Vec<Object> {
        // Without `..`: a field that is added is either applied or named here.
        let Self {
            namespace,
            operator_binding,
            owners,
            quota,
            limit_range,
            service_account,
            facts,
            shared,
            network_policies,
            services,
            disruption_budgets,
            autoscalers,
            deployments,
            network_declared: _,
        } = self;
        [namespace, operator_binding]
            .into_iter()
            .chain(owners)
            .chain(quota)
            .chain(limit_range)
            .chain([service_account, facts])
            .chain(shared)
            .chain(network_policies)
            .chain(services)
            .chain(disruption_budgets)
            .chain(autoscalers)
            .chain(deployments)
            .collect()
    }
}

/// The objects of a tenant of tier bridge or dedicated, whose spec [`effective`](super::effective)
/// found to be without fault.
///
/// # Errors
/// The faults of the Application's templates and network peers and of the server's peers,
/// shared objects that are not there, and a quota or LimitRange that the pods don't fit in.
pub fn tenant_objects(input: &TenantObjectsInput<'_>) -> Result<TenantObjects, Vec<Fault>> {
    let TenantObjectsInput { tenant, plan, application, server, settings, .. } = *input;
    let tenant_name = tenant.metadata.name.as_deref().unwrap_or_default();
    let application_name = application.metadata.name.as_deref().unwrap_or_default();
    let namespace = naming::tenant_namespace(tenant_name);
    let owner = Owner::Tenant { name: tenant_name, pool: None };
    let labels = naming::labels(application_name, owner);
    let scope = Scope { namespace: &namespace, labels: &labels };

    let mut faults = faults::peer_faults(application);
    faults.extend(faults::shared_faults(application));
    let server_name = server.metadata.name.as_deref().unwrap_or_default();
    faults.extend(faults::server_faults(server).into_iter().map(|fault| fault.within("DatabaseServer", server_name)));
    let shared = shared_objects(scope, application, input.shared, &mut faults);

    let (mut services, mut disruption_budgets) = (Vec::new(), Vec::new());
    let (mut autoscalers, mut deployments) = (Vec::new(), Vec::new());
    for (index, component) in application.spec.components.iter().enumerate() {
        let workload = Workload {
            component,
            path: &format!("spec.components[{index}]"),
            tier: input.tier,
            application: application_name,
            owner,
            namespace: &namespace,
            files: Files::Mounted { tenant: tenant_name, hosts: input.hosts },
            tuning: Tuning::of(&component.name, plan, tenant),
            suspended: input.suspended,
            deadline_seconds: faults::rollout_seconds(application),
            quota: None,
            held_replicas: input.held_replicas.get(&component.name).copied(),
        };
        match workload.objects() {
            Ok(objects) => {
                services.extend(objects.service);
                disruption_budgets.extend(objects.disruption_budget);
                autoscalers.extend(objects.autoscaler);
                deployments.push(objects.deployment);
            }
            Err(found) => {
                faults.extend(found.into_iter().map(|fault| fault.within("Application", application_name)));
            }
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let network =
        Network { namespace: &namespace, labels: &labels, instance: tenant_name, application, server, api_server: &[] };
    Ok(TenantObjects {
        namespace: scope.namespace(),
        operator_binding: scope.operator_binding(settings),
        owners: scope.owners(tenant.spec.owners.as_deref().unwrap_or_default()),
        quota: scope.quota(plan.spec.quota.as_ref()),
        limit_range: scope.limit_range(plan.spec.limit_range.as_ref()),
        service_account: scope.service_account(),
        facts: scope.facts(&tenant.spec.plan, input.hosts),
        shared,
        network_policies: network.policies(),
        services,
        disruption_budgets,
        autoscalers,
        deployments,
        network_declared: network::declared(application, server),
    })
}
