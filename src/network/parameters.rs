//! What plugins are told about a pod, and what is taken from their answer.

use std::net::IpAddr;

use kina_cni::{Attachment, Capabilities, DnsServers, Network, NetworkResult, PortMapping, Protocol};
use kina_model::{PodId, PodSpec, SpecError};

use super::{AddressPreference, bandwidth};
use crate::pod::context::pod_cgroup;

/// A pod's interface.
pub(crate) const INTERFACE: &str = "eth0";

/// The capability for a pod's annotations; the name is containerd's.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// What ADD, CHECK and DEL of a pod are called with.
///
/// # Errors
/// An annotation that makes no sense.
pub(super) fn attachment(pod: &PodId, spec: &PodSpec, netns: &str) -> Result<Attachment, SpecError> {
    let metadata = &spec.metadata;
    let mut attachment = Attachment::new(pod.as_str(), INTERFACE, netns)
        .with_argument("IgnoreUnknown", "1")
        .with_argument("K8S_POD_NAMESPACE", &metadata.namespace)
        .with_argument("K8S_POD_NAME", &metadata.name)
        .with_argument("K8S_POD_INFRA_CONTAINER_ID", pod.as_str())
        .with_argument("K8S_POD_UID", &metadata.uid);
    attachment.capabilities = capabilities(pod, spec)?;
    Ok(attachment)
}

fn capabilities(pod: &PodId, spec: &PodSpec) -> Result<Capabilities, SpecError> {
    let mut capabilities = Capabilities::new();
    let mappings = port_mappings(spec);
    if !mappings.is_empty() {
        capabilities.port_mappings(&mappings);
    }
    if let Some(limits) = bandwidth::of(&spec.annotations)? {
        capabilities.bandwidth(limits);
    }
    if let Some(dns) = &spec.dns {
        capabilities.dns(&DnsServers {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        });
    }
    capabilities.cgroup_path(&pod_cgroup(&spec.cgroup_parent, pod));
    if !spec.annotations.is_empty() {
        let annotations = spec.annotations.iter().map(|(name, value)| (name.clone(), value.as_str().into()));
        capabilities.insert(ANNOTATIONS, serde_json::Value::Object(annotations.collect()));
    }
    Ok(capabilities)
}

fn port_mappings(spec: &PodSpec) -> Vec<PortMapping> {
    let mapped = spec.port_mappings.iter().filter(|mapping| mapping.host_port != 0);
    mapped
        .map(|mapping| PortMapping {
            host_port: mapping.host_port,
            container_port: mapping.container_port,
            protocol: match mapping.protocol.as_str() {
                "udp" => Protocol::Udp,
                "sctp" => Protocol::Sctp,
                _ => Protocol::Tcp,
            },
            host_ip: mapping.host_ip.parse().ok(),
        })
        .collect()
}

/// Refuses what a pod asks for and the network cannot give. `None` is a pod
/// that gets loopback only.
///
/// # Errors
/// A port of the node, if no plugin can map it.
pub(super) fn check(spec: &PodSpec, network: Option<&Network>) -> Result<(), SpecError> {
    let Some(index) = spec.port_mappings.iter().position(|mapping| mapping.host_port != 0) else {
        return Ok(());
    };
    let reason = match network {
        Some(network) if network.capabilities().contains("portMappings") => return Ok(()),
        Some(network) => format!(
            "needs a plugin with the capability portMappings, and the network {:?} has none; add the plugin portmap to its list, or use the node's network",
            network.name()
        ),
        None => "needs a network plugin, and there is no network configuration; add one, or use the node's network".to_owned(),
    };
    Err(SpecError::unsupported(format!("config.port_mappings[{index}].host_port"), reason))
}

/// The addresses of a pod's interface, the preferred one first.
pub(super) fn addresses(result: &NetworkResult, preference: AddressPreference) -> Vec<IpAddr> {
    let of_pod = |index: Option<usize>| match index {
        // Results of old versions do not say of which interface an address is.
        None => true,
        Some(index) => result
            .interfaces
            .get(index)
            .is_some_and(|interface| interface.name == INTERFACE && interface.sandbox.is_some()),
    };
    let ips = result.ips.iter().filter(|ip| of_pod(ip.interface));
    let mut addresses: Vec<IpAddr> = ips.map(|ip| ip.address.addr()).collect();
    let preferred = match preference {
        AddressPreference::Ipv4 => addresses.iter().position(IpAddr::is_ipv4),
        AddressPreference::Ipv6 => addresses.iter().position(IpAddr::is_ipv6),
        AddressPreference::Cni => None,
    };
    if let Some(index) = preferred {
        addresses[..=index].rotate_right(1);
    }
    addresses
}

#[cfg(test)]
mod tests {
    use kina_cni::SpecVersion;

    use super::*;

    fn result(json: &str) -> NetworkResult {
        NetworkResult::parse(json.as_bytes(), SpecVersion::V1_0_0).unwrap()
    }

    #[test]
    fn the_preferred_address_comes_first() {
        let result = result(
            r#"{"cniVersion": "1.0.0",
                "interfaces": [{"name": "br0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/n"}],
                "ips": [{"address": "fd00::5/64", "interface": 2}, {"address": "10.0.0.1/24", "interface": 0},
                        {"address": "fd01::5/64", "interface": 2}, {"address": "10.0.0.5/24", "interface": 2},
                        {"address": "10.9.9.9/24", "interface": 9}]}"#,
        );
        let addresses = |preference| {
            let addresses = addresses(&result, preference);
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(addresses(AddressPreference::Ipv4), ["10.0.0.5", "fd00::5", "fd01::5"]);
        assert_eq!(addresses(AddressPreference::Ipv6), ["fd00::5", "fd01::5", "10.0.0.5"]);
        assert_eq!(addresses(AddressPreference::Cni), ["fd00::5", "fd01::5", "10.0.0.5"]);
    }

    #[test]
    fn addresses_without_an_interface_are_the_pods() {
        let result = result(r#"{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}]}"#);
        assert_eq!(addresses(&result, AddressPreference::Ipv4).len(), 1);
    }
}
