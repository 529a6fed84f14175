//! Trying a pod's network from within, and saying where it fails.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use kina_model::{Dns, Placement, PodId, PodSpec, SpecError};
use kina_node::{NetworkProbe, Node, ProbeKind, ProbeStep};

use super::Network;
use crate::error::Error;

/// How long one answer is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The port of name servers.
const DNS_PORT: u16 = 53;

/// Most name servers that a resolver asks (`MAXNS` of resolv.h).
const NAME_SERVERS: usize = 3;

/// Whom to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrialTarget {
    /// The address.
    pub address: IpAddr,
    /// A TCP port.
    pub port: Option<u16>,
}

/// What came of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// What was tried from the pod, in order.
    pub steps: Vec<ProbeStep>,
    /// What was tried from the node, if the pod does not reach its target.
    pub from_node: Vec<ProbeStep>,
    /// Where it fails; `None` if all is well.
    pub failure: Option<String>,
}

impl Network {
    /// Tries from within a pod to reach a target, if there is one, and its name
    /// servers with a question for `name`.
    ///
    /// # Errors
    /// When the pod's namespace cannot be entered, or is in a machine of its own.
    pub async fn try_out(
        &self,
        pod: &PodId,
        spec: &PodSpec,
        target: Option<TrialTarget>,
        name: &str,
    ) -> Result<Trial, Error> {
        if spec.placement == Placement::Vm {
            // What is sent in the namespace on the node does not come from the machine.
            return Err(SpecError::unsupported(
                "from",
                format!(
                    "pod {pod} runs in a virtual machine, into which the node does not reach; \
                         try from a container of it, or from a pod with runtime handler \"shared\""
                ),
            )
            .into());
        }
        let node = &self.inner.node;
        let whence = (!spec.namespaces.host_network).then_some(pod);
        let mut probe = NetworkProbe {
            target: target.map(|target| target.address),
            port: target.and_then(|target| target.port),
            name_servers: self.name_servers(spec).await,
            name: name.to_owned(),
            patience: PATIENCE,
        };
        let steps = node.probe_network(whence, &probe).await?;
        let unreached =
            [ProbeKind::Echo, ProbeKind::Tcp].iter().any(|kind| good(&steps, *kind) == Some(false));
        let from_node = if unreached && whence.is_some() {
            probe.name_servers.clear();
            node.probe_network(None, &probe).await?
        } else {
            Vec::new()
        };
        let failure = failure(&steps, &from_node);
        Ok(Trial { steps, from_node, failure })
    }

    /// Those of the pod, or else of the node.
    async fn name_servers(&self, spec: &PodSpec) -> Vec<SocketAddr> {
        let servers = match &spec.dns {
            Some(dns) => dns.servers.clone(),
            None => node_dns(&*self.inner.node).await.servers,
        };
        let addresses = servers.iter().filter_map(|server| server.parse::<IpAddr>().ok());
        addresses.take(NAME_SERVERS).map(|address| SocketAddr::new(address, DNS_PORT)).collect()
    }
}

/// What the node's resolver asks; nothing if it has no file that says so.
pub(crate) async fn node_dns(node: &dyn Node) -> Dns {
    let file = node.read_file(Path::new("/etc/resolv.conf"), 64 << 10).await;
    Dns::read(&String::from_utf8_lossy(&file.unwrap_or_default()))
}

fn good(steps: &[ProbeStep], kind: ProbeKind) -> Option<bool> {
    steps.iter().find(|step| step.kind == kind).map(|step| step.good)
}

/// Where it fails.
fn failure(steps: &[ProbeStep], from_node: &[ProbeStep]) -> Option<String> {
    let bad = |kind| steps.iter().find(|step| step.kind == kind && !step.good).map(|step| &step.detail);
    if let Some(reason) = bad(ProbeKind::Interface) {
        return Some(format!("the pod has no interface to reach others by: {reason}"));
    }
    if let Some(reason) = bad(ProbeKind::Route) {
        return Some(format!("the pod has no route {reason}"));
    }
    let (echo, tcp) = (good(steps, ProbeKind::Echo), good(steps, ProbeKind::Tcp));
    // A target that takes connections is reached, whatever it thinks of echoes.
    let reached = tcp.or(echo).unwrap_or(true);
    if !reached {
        let node_reaches =
            good(from_node, ProbeKind::Tcp).or(good(from_node, ProbeKind::Echo)).unwrap_or(false);
        let reason = bad(ProbeKind::Tcp).or(bad(ProbeKind::Echo)).cloned().unwrap_or_default();
        let place = match (echo, bad(ProbeKind::Gateway)) {
            (Some(true), _) => "the target is there but does not take the connection",
            (_, Some(_)) if !node_reaches => {
                "neither the pod's router nor the target answers: the pod's link to the node, or a rule on the node, is at fault"
            }
            _ if node_reaches => {
                "the node reaches the target and the pod does not: a network policy, address translation or a missing way back is at fault"
            }
            _ => {
                "neither the pod nor the node reaches the target: it, or the network behind the node, is at fault"
            }
        };
        return Some(format!("{place} ({reason})"));
    }
    bad(ProbeKind::NameServer).map(|reason| format!("a name server does not answer: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(steps: &[(ProbeKind, bool)]) -> Vec<ProbeStep> {
        let step = |(kind, good): &(ProbeKind, bool)| ProbeStep {
            kind: *kind,
            good: *good,
            detail: format!("{} says", kind.name()),
            took: None,
            bytes: None,
        };
        steps.iter().map(step).collect()
    }

    #[test]
    fn the_place_of_a_failure_is_named() {
        use ProbeKind::{Echo, Gateway, Interface, NameServer, Route, Tcp};
        for (from_pod, from_node, expected) in [
            (&[(Interface, true), (Route, true), (Echo, true)][..], &[][..], None),
            (&[(Interface, false)], &[], Some("no interface")),
            (&[(Route, false)], &[], Some("no route")),
            (&[(Echo, false), (Tcp, true)], &[], None),
            (&[(Echo, true), (Tcp, false)], &[(Tcp, true)], Some("does not take the connection (tcp says)")),
            (&[(Gateway, false), (Echo, false)], &[(Echo, false)], Some("link to the node")),
            (&[(Gateway, true), (Echo, false)], &[(Echo, true)], Some("policy")),
            (&[(Gateway, true), (Echo, false)], &[(Echo, false)], Some("neither the pod nor the node")),
            (&[(Echo, true), (NameServer, false)], &[], Some("name server")),
        ] {
            let found = failure(&steps(from_pod), &steps(from_node));
            match (&found, expected) {
                (None, None) => {}
                (Some(found), Some(expected)) => assert!(found.contains(expected), "{found}"),
                _ => panic!("{from_pod:?}: {found:?}, not {expected:?}"),
            }
        }
    }
}
