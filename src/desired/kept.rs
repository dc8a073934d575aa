//! What stays as it is, since something is wrong with what is desired of it.

use super::{
    Fault, Kind, Object, faults,
    namespace::Scope,
    naming, network,
    shared::{self, SharedContent},
};
use crate::api::{Application, DatabaseServer};

/// What is wrong with the objects of a namespace, and which of them it concerns: these stay as
/// they are, and all others are looked after as ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// What is wrong, but with pod templates.
    pub faults: Vec<Fault>,
    /// What is wrong with pod templates.
    pub template_faults: Vec<Fault>,
    /// The objects. Those that are there stay, and those that are not are not made; but of a
    /// Deployment nothing stays but its pod template and its number of replicas.
    pub objects: Vec<(Kind, String)>,
}

impl Kept {
    /// Whether all is as it can be.
    pub fn is_none(&self) -> bool {
        self.faults.is_empty() && self.template_faults.is_empty()
    }

    /// Everything that is wrong.
    pub fn all_faults(&self) -> Vec<Fault> {
        [self.faults.as_slice(), &self.template_faults].concat()
    }

    /// The Deployments whose pod templates stay.
    pub fn deployments(&self) -> impl Iterator<Item = &str> {
        self.objects.iter().filter(|(kind, _)| *kind == Kind::Deployment).map(|(_, name)| name.as_str())
    }

    /// Whether an object stays as it is.
    pub(super) fn has(&self, object: &Object) -> bool {
        self.objects.iter().any(|(kind, name)| *kind == object.kind && *name == object.name)
    }

    /// Something is wrong with one object.
    pub(super) fn object(&mut self, kind: Kind, name: &str, fault: Fault) {
        self.faults.push(fault);
        self.objects.push((kind, name.to_owned()));
    }

    /// Something is wrong with the pod templates of these components.
    pub(super) fn templates(&mut self, faults: Vec<Fault>, components: impl IntoIterator<Item = String>) {
        self.template_faults.extend(faults);
        self.pods(components);
    }

    /// Something is wrong with quota or LimitRange, or these components' pods don't fit in.
    pub(super) fn room(&mut self, faults: Vec<Fault>, components: impl IntoIterator<Item = String>) {
        if !faults.is_empty() {
            self.faults.extend(faults);
            self.bounds();
            self.pods(components);
        }
    }

    /// Quota and LimitRange stay.
    pub(super) fn bounds(&mut self) {
        let bounds = [Kind::ResourceQuota, Kind::LimitRange];
        self.objects.extend(bounds.map(|kind| (kind, naming::QUOTA.to_owned())));
    }

    /// What the pods of these components are, and how many there are, stays.
    fn pods(&mut self, components: impl IntoIterator<Item = String>) {
        for component in components {
            self.objects.push((Kind::HorizontalPodAutoscaler, component.clone()));
            self.objects.push((Kind::Deployment, component));
        }
    }

    /// What is wrong with network peers and shared objects, which every namespace of an
    /// Application has. Returns the shared objects with which nothing is. `say` says of a fault
    /// of the Application whose it is.
    pub(super) fn surroundings(
        &mut self,
        scope: Scope<'_>,
        application: &Application,
        server: &DatabaseServer,
        contents: &[SharedContent],
        say: impl Fn(Fault) -> Fault,
    ) -> Vec<Object> {
        for (policy, fault) in faults::peer_faults(application) {
            self.object(Kind::NetworkPolicy, policy, say(fault));
        }
        let mut copies = Vec::new();
        for wanted in shared::wanted(application) {
            match wanted.find(contents) {
                Ok(content) => copies.push(scope.shared(content)),
                Err(fault) => self.object(wanted.kind, wanted.name, say(fault)),
            }
        }
        let name = server.metadata.name.as_deref().unwrap_or_default();
        for fault in faults::server_faults(server) {
            self.object(Kind::NetworkPolicy, network::DATABASE, fault.within("DatabaseServer", name));
        }
        copies
    }
}
