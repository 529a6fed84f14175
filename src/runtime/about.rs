//! What the daemon tells of itself, of pods and of containers, and what the kubelet tells it.

use kina_machine::NetworkAttachment;
use kina_model::{Placement, PodState, SpecError};
use serde_json::json;

use super::Runtime;
use crate::error::Error;
use crate::placement::PlacementRequest;
use crate::pod::view::{ContainerView, PodView};

/// A runtime handler that pods may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handler {
    /// Its name; empty is the default.
    pub name: &'static str,
    /// Whether its mounts can be read-only recursively.
    pub recursive_read_only: bool,
    /// Whether its pods can have user namespaces.
    pub user_namespaces: bool,
}

/// Whether something works, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// It works.
    pub ready: bool,
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// The conditions that CRI knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Pods can be made.
    pub runtime: Condition,
    /// Pods get a network.
    pub network: Condition,
}

impl Runtime {
    /// The runtime handlers of this node.
    #[must_use]
    pub fn handlers(&self) -> Vec<Handler> {
        let context = &self.inner.context;
        let named = [Placement::Vm, Placement::Shared]
            .into_iter()
            .filter(|placement| context.driver(*placement).is_some());
        let names = std::iter::once("").chain(named.map(Placement::handler));
        names
            .map(|name| {
                let wish = PlacementRequest { handler: name, ..PlacementRequest::default() };
                let placement = self.place(&wish).ok();
                Handler {
                    name,
                    // mount_setattr(2) is as old as the oldest kernel that kina runs on.
                    recursive_read_only: true,
                    user_namespaces: placement
                        .is_some_and(|placement| context.user_namespaces.offered(placement)),
                }
            })
            .collect()
    }

    /// Whether pods can be made, and whether they get a network.
    #[must_use]
    pub fn conditions(&self) -> Conditions {
        let guest = &self.inner.config.guest_program;
        let context = &self.inner.context;
        let runtime = if context.shared.is_none() {
            let unavailable = context.vm.as_ref().err();
            Condition {
                ready: unavailable.is_none(),
                reason: unavailable.map(|_| "NoMachines".to_owned()).unwrap_or_default(),
                message: unavailable.cloned().unwrap_or_default(),
            }
        } else if guest.is_file() {
            Condition { ready: true, reason: String::new(), message: String::new() }
        } else {
            Condition {
                ready: false,
                reason: "GuestProgramMissing".to_owned(),
                message: format!("{} is not there; see guest.program in the configuration", guest.display()),
            }
        };
        let state = context.network.state();
        // Pods with a network of their machine's own wait for no plugin.
        let own = context
            .vm
            .as_ref()
            .is_ok_and(|driver| driver.capabilities().network == NetworkAttachment::Machine);
        let ready = state.is_ready() || own;
        let network = Condition {
            ready,
            reason: if ready { String::new() } else { "NetworkPluginNotReady".to_owned() },
            message: match own {
                true => "pods in virtual machines have their machine's own network".to_owned(),
                false => state.message(&self.inner.config.network),
            },
        };
        Conditions { runtime, network }
    }

    /// About the daemon, for the verbose status.
    #[must_use]
    pub fn info(&self) -> serde_json::Value {
        let config = &self.inner.config;
        let context = &self.inner.context;
        let machines: Vec<&str> =
            context.vm.iter().chain(&context.shared).map(|driver| driver.name()).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "bootId": self.inner.boot_id,
            "root": config.paths.root,
            "run": config.paths.run,
            "guestProgram": config.guest_program,
            "cgroupParent": config.cgroup_parent,
            "placement": config.placement,
            "machines": machines,
            "vm": {
                "driver": context.vm.as_ref().ok().map(|driver| driver.name()),
                "unavailable": context.vm.as_ref().err(),
            },
            "network": context.network.info(),
            "pods": self.inner.registry.pods().len(),
        })
    }

    /// About a pod, for its verbose status.
    #[must_use]
    pub fn pod_info(&self, pod: &PodView) -> serde_json::Value {
        let ready = match &pod.state {
            PodState::Ready(ready) => Some(ready),
            PodState::Starting
            | PodState::Stopping(_)
            | PodState::StopFailed { .. }
            | PodState::Stopped(_)
            | PodState::Removing
            | PodState::Removed => None,
        };
        // The node's own has no name, and a machine's is inside of it.
        let namespace = ready.and_then(|ready| ready.network.as_ref()).filter(|_| {
            let driver = self.inner.context.driver(pod.spec.placement);
            driver.is_some_and(|driver| driver.capabilities().network != NetworkAttachment::Machine)
        });
        json!({
            "machine": pod.machine,
            "placement": pod.spec.placement,
            "state": pod.state,
            "bootId": ready.map(|ready| &ready.boot_id),
            "kernel": ready.map(|ready| &ready.kernel),
            "machineSize": ready.and_then(|ready| ready.size),
            "network": ready.and_then(|ready| ready.network.as_ref()),
            "networkNamespace": namespace.map(|_| self.inner.context.node.network_namespace(&pod.id)),
            "addresses": ready.map(|ready| &ready.addresses),
            "cgroup": crate::pod::context::pod_cgroup(&pod.spec.cgroup_parent, &pod.id),
            "spec": &*pod.spec,
        })
    }

    /// About a container, for its verbose status.
    #[must_use]
    pub fn container_info(&self, container: &ContainerView) -> serde_json::Value {
        json!({
            "sandboxID": container.pod,
            "pid": container.identity.as_ref().map(|identity| identity.pid),
            "state": container.state,
            "process": { "args": container.process.args, "cwd": container.process.cwd, "user": container.process.user },
            "image": container.image,
            "identity": container.identity,
        })
    }

    /// Takes the pod network's range from the kubelet, and does nothing with
    /// it: network plugins have it from their configuration or from the cluster.
    ///
    /// # Errors
    /// When it is not a list of CIDR ranges.
    pub fn set_pod_cidr(&self, cidr: &str) -> Result<(), Error> {
        for range in cidr.split(',').filter(|range| !range.is_empty()) {
            let valid = range.split_once('/').is_some_and(|(address, length)| {
                let bits = match address.parse() {
                    Ok(std::net::IpAddr::V4(_)) => 32,
                    Ok(std::net::IpAddr::V6(_)) => 128,
                    Err(_) => return false,
                };
                length.parse::<u8>().is_ok_and(|length| length <= bits)
            });
            if !valid {
                let reason = format!("{range:?} is not an address range such as 10.244.0.0/24");
                return Err(SpecError::invalid("runtime_config.network_config.pod_cidr", reason).into());
            }
        }
        tracing::info!(cidr, "the kubelet named the pods' address range");
        Ok(())
    }
}
