//! Where pods can have user namespaces: on the node's kernel if it does what they need,
//! in virtual machines if the kernel of one has been found to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kina_model::{Placement, PodSpec, SpecError};
use kina_node::Node;

use crate::error::chain;
use crate::pod::context::Paths;

/// What has been found out.
#[derive(Debug)]
pub struct UserNamespaces {
    /// Why there are none on the node's kernel, if so.
    node: Result<(), String>,
    /// Whether the last machine with a kernel of its own that answered can have them. All
    /// have the same kernel, but for those that an earlier configuration made.
    machines: AtomicBool,
}

impl UserNamespaces {
    /// Tries them on the node. Virtual machines are asked when one is there.
    pub async fn of(node: &Arc<dyn Node>, paths: &Paths) -> Self {
        let tried = node.try_user_namespaces(&paths.root).await;
        Self { node: tried.map_err(|error| chain(&error)), machines: AtomicBool::new(false) }
    }

    /// Takes what a machine with a kernel of its own has said.
    pub fn learn(&self, able: bool) {
        self.machines.store(able, Ordering::Relaxed);
    }

    /// Whether pods with that placement are known to be able to have one.
    #[must_use]
    pub fn offered(&self, placement: Placement) -> bool {
        match placement {
            Placement::Shared => self.node.is_ok(),
            Placement::Vm => self.machines.load(Ordering::Relaxed),
        }
    }

    /// Refuses a pod that wants a user namespace where there can be none. A virtual
    /// machine says so itself.
    ///
    /// # Errors
    /// [`SpecError::Unsupported`].
    pub fn admit(&self, spec: &PodSpec) -> Result<(), SpecError> {
        match (spec.placement, &self.node) {
            (Placement::Shared, Err(why)) if spec.namespaces.user.is_some() => Err(SpecError::unsupported(
                "config.linux.security_context.namespace_options.userns_options",
                format!("this node cannot have user namespaces for pods: {why}; set hostUsers to true"),
            )),
            (Placement::Shared | Placement::Vm, _) => Ok(()),
        }
    }
}
