//! What holds for the operator as a whole.

use crate::api::Resources;

/// What holds for the operator as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The operator's namespace.
    pub operator_namespace: String,
    /// The operator's ServiceAccount in it.
    pub operator_service_account: String,
    /// The image of the agent: the operator's own.
    pub agent_image: String,
    /// When the agent's image is pulled; Kubernetes' default when left out.
    pub agent_pull_policy: Option<String>,
    /// The agent's requests and limits; sized by the pool's capacity when left out. Give it
    /// a CPU request, without which no autoscaler can measure its pods.
    pub agent_resources: Option<Resources>,
}
