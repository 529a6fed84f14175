//! Where pods can have user namespaces: on the node's kernel if it does what they need,
//! in virtual machines if the kernel of one has been found to. That is kept for as long
//! as machines boot the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kina_machine::{Driver, NetworkAttachment};
use kina_model::{Placement, PodSpec, SpecError};
use kina_node::Node;
use kina_store::Store;

use crate::error::chain;
use crate::pod::context::Paths;

/// Where the store keeps what machines boot ([`Capabilities::boot_files`]) that can have
/// them.
///
/// [`Capabilities::boot_files`]: kina_machine::Capabilities::boot_files
const ABLE: &str = "user_namespaces";

/// What has been found out.
#[derive(Debug)]
pub struct UserNamespaces {
    /// Why there are none on the node's kernel, if so.
    node: Result<(), String>,
    /// Whether the last machine with a kernel of its own that was made can have them.
    machines: AtomicBool,
    store: Store,
}

impl UserNamespaces {
    /// Tries them on the node. Of virtual machines is known what one has said to this
    /// daemon or an earlier one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn of(
        node: &Arc<dyn Node>,
        paths: &Paths,
        vm: Option<&dyn Driver>,
        store: &Store,
    ) -> Result<Self, kina_store::Error> {
        let tried = node.try_user_namespaces(&paths.root).await;
        let boots = vm.and_then(|driver| driver.capabilities().boot_files.clone());
        let able = boots.is_some() && store.meta_get(ABLE)? == boots;
        let node = tried.map_err(|error| chain(&error));
        Ok(Self { node, machines: AtomicBool::new(able), store: store.clone() })
    }

    /// Takes what a machine has said that was just made, and keeps it if it is new.
    pub async fn learn(&self, driver: &dyn Driver, able: bool) {
        let capabilities = driver.capabilities();
        let able = able && capabilities.network != NetworkAttachment::Machine;
        let known = self.machines.swap(able, Ordering::Relaxed);
        let Some(boots) = capabilities.boot_files.as_deref().filter(|_| known != able) else {
            return;
        };
        if let Err(error) = self.store.meta_put(ABLE, if able { boots } else { "" }).await {
            tracing::warn!(
                error = chain(&error),
                "what machines can do is not kept; the next daemon asks again"
            );
        }
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
