//! On which kind of machine a pod runs.

use kina_model::{Placement, SpecError};
use serde::{Deserialize, Serialize};

/// What decides it.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlacementRequest<'a> {
    /// The runtime handler as the caller wrote it.
    pub handler: &'a str,
    /// It wants the node's network.
    pub host_network: bool,
    /// It wants the node's processes.
    pub host_pid: bool,
    /// It wants the node's IPC.
    pub host_ipc: bool,
    /// It wants privileged containers.
    pub privileged: bool,
}

/// The administrator's part in it, for pods that name no handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementPolicy {
    /// Whether a privileged pod may run on the node's kernel.
    pub privileged_on_node: bool,
    /// Whether pods run on the node's kernel where no virtual machine can.
    pub shared_without_vm: bool,
}

impl Default for PlacementPolicy {
    fn default() -> Self {
        Self { privileged_on_node: false, shared_without_vm: true }
    }
}

/// Places a pod. An explicit `vm` is never downgraded, an explicit `shared`
/// runs on the node's kernel; only an empty handler is placed by rule. `vm` says
/// why no virtual machine can run here.
///
/// # Errors
/// When the handler is unknown or not available here, or when the pod asks for
/// what its handler cannot give.
pub fn place(
    request: &PlacementRequest<'_>,
    policy: PlacementPolicy,
    vm: Result<(), &str>,
    shared_available: bool,
) -> Result<Placement, SpecError> {
    let host_namespaces = request.host_network || request.host_pid || request.host_ipc;
    let refuse = |reason: &str| Err(SpecError::unsupported("runtime_handler", reason));
    match (request.handler, vm) {
        ("vm", Err(why)) => refuse(&format!("\"vm\" is not available on this node: {why}")),
        ("vm", Ok(())) if host_namespaces => Err(SpecError::unsupported(
            "config.linux.security_context.namespace_options",
            "a pod in a virtual machine cannot have the node's namespaces; use runtime handler \"shared\"",
        )),
        ("vm", Ok(())) => Ok(Placement::Vm),
        ("shared", _) if !shared_available => refuse("\"shared\" is not available on this node"),
        ("shared", _) => Ok(Placement::Shared),
        ("", _) if host_namespaces && shared_available => Ok(Placement::Shared),
        ("", _) if host_namespaces => {
            refuse("the pod wants the node's namespaces, and \"shared\" is not available on this node")
        }
        ("", _) if request.privileged && policy.privileged_on_node && shared_available => {
            Ok(Placement::Shared)
        }
        ("", Ok(())) => Ok(Placement::Vm),
        ("", Err(_)) if policy.shared_without_vm && shared_available => Ok(Placement::Shared),
        ("", Err(why)) => refuse(&format!(
            "no virtual machine can run on this node ({why}), and the configuration \
             (placement.shared_without_vm) keeps pods off its kernel"
        )),
        (other, _) => Err(unknown("runtime_handler", other)),
    }
}

/// Refuses a handler at `field` that kina does not know, whether it is available here or not.
///
/// # Errors
/// The one that [`place`] has for it.
pub fn known(field: &str, handler: &str) -> Result<(), SpecError> {
    match handler {
        "" | "vm" | "shared" => Ok(()),
        other => Err(unknown(field, other)),
    }
}

fn unknown(field: &str, handler: &str) -> SpecError {
    let reason = format!("{handler:?} is unknown; kina knows \"vm\", \"shared\" and the empty handler");
    SpecError::invalid(field, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_table() {
        use Placement::{Shared, Vm};
        let policy = PlacementPolicy::default();
        let strict = PlacementPolicy { shared_without_vm: false, ..policy };
        let trusting = PlacementPolicy { privileged_on_node: true, ..policy };
        // handler, host network, privileged, policy, VMs, placement
        for (handler, host_network, privileged, policy, vm, expected) in [
            ("vm", false, false, policy, true, Some(Vm)),
            ("vm", false, true, trusting, true, Some(Vm)),
            ("vm", true, false, policy, true, None),
            ("vm", false, false, policy, false, None),
            ("shared", false, false, policy, true, Some(Shared)),
            ("shared", true, true, policy, false, Some(Shared)),
            ("", true, false, policy, true, Some(Shared)),
            ("", false, true, policy, true, Some(Vm)),
            ("", false, true, trusting, true, Some(Shared)),
            ("", false, false, policy, true, Some(Vm)),
            ("", false, false, policy, false, Some(Shared)),
            ("", false, false, strict, false, None),
            ("runc", false, false, policy, true, None),
        ] {
            let request =
                PlacementRequest { handler, host_network, privileged, ..PlacementRequest::default() };
            let available = if vm { Ok(()) } else { Err("no QEMU") };
            let placed = place(&request, policy, available, true);
            assert_eq!(known("runtime_handler", handler).is_ok(), handler != "runc");
            assert_eq!(placed.as_ref().ok(), expected.as_ref(), "{request:?} {placed:?}");
            if let (Err(error), false) = (placed, vm) {
                assert!(error.to_string().contains("no QEMU"), "{error}");
            }
        }
    }
}
