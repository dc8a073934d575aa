//! Everything in the namespace of a tenant of tier bridge or dedicated, but its Secret and
//! its route, which every tier has.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    Fault, Kind, Object,
    component::{Files, Workload},
    faults,
    fit::Bounds,
    kept::Kept,
    limit_range,
    namespace::Scope,
    naming::{self, Owner},
    network::{self, Network},
    quota::{self, Counts},
    route::route_kind,
    settings::Settings,
    shared::SharedContent,
    tuning::Tuning,
    workloads::Workloads,
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
    /// What stays as it is, and why.
    pub kept: Kept,
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
            kept: _,
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

/// The objects of a tenant of tier bridge or dedicated. What has a fault stays as it is: by the
/// Application's templates and network peers and the server's peers, for want of a shared
/// object, and by owners, quota or LimitRange in which the pods don't fit
/// ([`effective`](super::effective) tells of these before anything is placed).
pub fn tenant_objects(input: &TenantObjectsInput<'_>) -> TenantObjects {
    let TenantObjectsInput { tenant, plan, application, server, settings, .. } = *input;
    let case = Case {
        tenant,
        plan,
        application,
        tier: input.tier,
        hosts: input.hosts,
        suspended: input.suspended,
        held_replicas: input.held_replicas,
    };
    let frame = Frame::of(tenant, application);
    let scope = frame.scope();
    let mut kept = Kept::default();
    let within = |fault: Fault| fault.within("Application", name_of(&application.metadata));
    let shared = kept.surroundings(scope, application, server, input.shared, within);
    let mut body = case.body(&frame, server);
    for fault in faults::owner_faults(tenant) {
        kept.object(Kind::RoleBinding, naming::OWNER_ROLE, fault);
    }
    let mut room = faults::bounds_faults(plan);
    if body.workloads.faults.is_empty() && room.is_empty() {
        room = case.room_faults(&body);
    }
    kept.room(room, application.spec.components.iter().map(|component| component.name.clone()));
    let faults = std::mem::take(&mut body.workloads.faults);
    kept.templates(faults.into_iter().map(within).collect(), std::mem::take(&mut body.workloads.faulty));
    let stays = |object: &Object| kept.has(object);
    body.network_policies.retain(|policy| !stays(policy));
    body.workloads.autoscalers.retain(|autoscaler| !stays(autoscaler));
    TenantObjects {
        namespace: scope.namespace(),
        operator_binding: scope.operator_binding(settings),
        owners: body.owners.filter(|owners| !stays(owners)),
        quota: body.quota.filter(|quota| !stays(quota)),
        limit_range: body.limit_range.filter(|range| !stays(range)),
        service_account: body.service_account,
        facts: body.facts,
        shared,
        network_policies: body.network_policies,
        services: body.workloads.services,
        disruption_budgets: body.workloads.disruption_budgets,
        autoscalers: body.workloads.autoscalers,
        deployments: body.workloads.deployments,
        network_declared: network::declared(application, server),
        kept,
    }
}

/// What keeps a tenant's pods and objects from fitting into its Plan. The templates' own
/// faults are the Application's, and told there.
pub(super) fn room_faults(
    tenant: &Tenant,
    plan: &Plan,
    application: &Application,
    tier: Tier,
    server: &DatabaseServer,
) -> Vec<Fault> {
    let held_replicas = BTreeMap::new();
    let case = Case { tenant, plan, application, tier, hosts: &[], suspended: false, held_replicas: &held_replicas };
    let body = case.body(&Frame::of(tenant, application), server);
    if body.workloads.faults.is_empty() { case.room_faults(&body) } else { Vec::new() }
}

/// The names that everything of a tenant has.
struct Frame<'a> {
    tenant: &'a str,
    namespace: String,
    labels: BTreeMap<String, String>,
}

impl<'a> Frame<'a> {
    fn of(tenant: &'a Tenant, application: &Application) -> Self {
        let tenant = name_of(&tenant.metadata);
        let owner = Owner::Tenant { name: tenant, pool: None };
        let labels = naming::labels(name_of(&application.metadata), owner);
        Self { tenant, namespace: naming::tenant_namespace(tenant), labels }
    }

    fn scope(&self) -> Scope<'_> {
        Scope { namespace: &self.namespace, labels: &self.labels }
    }
}

/// What decides how much a tenant needs.
#[derive(Clone, Copy)]
struct Case<'a> {
    tenant: &'a Tenant,
    plan: &'a Plan,
    application: &'a Application,
    tier: Tier,
    hosts: &'a [String],
    suspended: bool,
    held_replicas: &'a BTreeMap<String, i32>,
}

/// Everything of a tenant that is made from its case alone.
struct Body {
    owners: Option<Object>,
    quota: Option<Object>,
    limit_range: Option<Object>,
    service_account: Object,
    facts: Object,
    network_policies: Vec<Object>,
    workloads: Workloads,
}

impl Body {
    fn objects(&self) -> impl Iterator<Item = &Object> {
        let Self { owners, quota, limit_range, service_account, facts, network_policies, workloads } = self;
        let optional = owners.iter().chain(quota).chain(limit_range);
        optional.chain([service_account, facts]).chain(network_policies).chain(workloads.objects())
    }
}

impl Case<'_> {
    fn body(&self, frame: &Frame<'_>, server: &DatabaseServer) -> Body {
        let Self { tenant, plan, application, hosts, .. } = *self;
        let (scope, tenant_name) = (frame.scope(), frame.tenant);
        let range = plan.spec.limit_range.as_ref().and_then(limit_range::item);
        let bounds = Bounds { quota: plan.spec.quota.as_ref(), range: range.as_ref(), plan: name_of(&plan.metadata) };
        let components = application.spec.components.iter().enumerate().map(|(index, component)| Workload {
            component,
            path: format!("spec.components[{index}]"),
            tier: self.tier,
            application: name_of(&application.metadata),
            owner: Owner::Tenant { name: tenant_name, pool: None },
            namespace: &frame.namespace,
            files: Files::Mounted { tenant: tenant_name, hosts },
            tuning: Tuning::of(&component.name, plan, tenant),
            suspended: self.suspended,
            deadline_seconds: faults::rollout_seconds(application),
            min_ready_seconds: faults::min_ready_seconds(application),
            quota: None,
            bounds,
            held_replicas: self.held_replicas.get(&component.name).copied(),
        });
        let workloads = Workloads::of(components);
        let network = Network {
            namespace: &frame.namespace,
            labels: &frame.labels,
            instance: tenant_name,
            application,
            server,
            api_server: &[],
        };
        Body {
            owners: scope.owners(tenant.spec.owners.as_deref().unwrap_or_default()),
            quota: scope.quota(plan.spec.quota.as_ref()),
            limit_range: range.map(|range| scope.limit_range(range)),
            service_account: scope.service_account(),
            facts: scope.facts(&tenant.spec.plan, hosts),
            network_policies: network.policies(),
            workloads,
        }
    }

    /// What keeps the pods and objects from fitting into the Plan.
    fn room_faults(&self, body: &Body) -> Vec<Fault> {
        let mut counts = Counts::of(body.objects());
        counts.add(Kind::RoleBinding, 1);
        counts.add(Kind::Secret, 1);
        counts.add_shared(self.application);
        if let Some(route) = &self.application.spec.route {
            counts.add(route_kind(route), 1);
        }
        let path = format!("Plan {}: spec.quota", name_of(&self.plan.metadata));
        let advice = "or lower replicas or requests";
        let quota = self.plan.spec.quota.as_ref();
        let faults = quota::shortfalls(&path, quota, &body.workloads.footprints, &counts, advice);
        [body.workloads.unfit.clone(), faults].concat()
    }
}

fn name_of(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}
