//! Pods whose machine has a network of its own: no plugin sees them. What a
//! plugin would do and the machine's network cannot is refused.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kina_machine::{PortProtocol, PublishedPort};
use kina_model::{PodSpec, PortMapping, SpecError};

use super::bandwidth;

/// The most ports of the node that lead to one machine (Apple's `container`).
const PORTS_LIMIT: usize = 64;

/// The lowest port that can be led anywhere (likewise).
const LEAST_PORT: u16 = 2;

/// Refuses what a pod asks for and a machine's own network cannot give.
///
/// # Errors
/// The field that asks for it.
pub(crate) fn check(spec: &PodSpec) -> Result<(), SpecError> {
    if spec.namespaces.user.is_some() {
        let reason = "a pod with a machine's own network cannot have a user namespace, which would have to own \
             that network; set hostUsers to true";
        let field = "config.linux.security_context.namespace_options.userns_options";
        return Err(SpecError::unsupported(field, reason));
    }
    let mapped = mapped(spec);
    if mapped.len() > PORTS_LIMIT {
        let reason = format!("{} ports of the node lead to the pod, and {PORTS_LIMIT} can", mapped.len());
        return Err(SpecError::unsupported("config.port_mappings", reason));
    }
    let mut taken = BTreeSet::new();
    for (index, mapping) in mapped {
        let field = |name: &str| format!("config.port_mappings[{index}].{name}");
        let Some(protocol) = protocol(mapping) else {
            let reason = "a machine's own network leads TCP and UDP to it, and no SCTP";
            return Err(SpecError::unsupported(field("protocol"), reason));
        };
        if protocol == PortProtocol::Udp && address(mapping).is_some_and(|address| address.is_ipv6()) {
            let reason = "a machine's own network leads no UDP from an address of IPv6 to it; \
                 give an address of IPv4, or none";
            return Err(SpecError::unsupported(field("host_ip"), reason));
        }
        if !taken.insert((mapping.host_port, &mapping.protocol)) {
            let reason = "another mapping has this port, and a machine's own network does not tell \
                 ports by their addresses";
            return Err(SpecError::unsupported(field("host_port"), reason));
        }
        for (name, port) in [("host_port", mapping.host_port), ("container_port", mapping.container_port)] {
            if port < LEAST_PORT {
                let reason = format!("a machine's own network leads no port below {LEAST_PORT} to it");
                return Err(SpecError::unsupported(field(name), reason));
            }
        }
    }
    if bandwidth::of(&spec.annotations)?.is_some() {
        let reason = "a machine's own network has no limits of bandwidth; remove the annotations \
             kubernetes.io/ingress-bandwidth and kubernetes.io/egress-bandwidth";
        return Err(SpecError::unsupported("config.annotations", reason));
    }
    Ok(())
}

/// Ports of the node that lead to the pod's machine.
pub(crate) fn ports(spec: &PodSpec) -> Vec<PublishedPort> {
    let published = mapped(spec).into_iter().filter_map(|(_, mapping)| {
        let (node, machine) = (mapping.host_port, mapping.container_port);
        Some(PublishedPort { address: address(mapping), node, machine, protocol: protocol(mapping)? })
    });
    published.collect()
}

fn mapped(spec: &PodSpec) -> Vec<(usize, &PortMapping)> {
    spec.port_mappings.iter().enumerate().filter(|(_, mapping)| mapping.host_port != 0).collect()
}

/// The address of the node that it is at, if not all are meant.
fn address(mapping: &PortMapping) -> Option<IpAddr> {
    mapping.host_ip.parse().ok().filter(|address: &IpAddr| !address.is_unspecified())
}

fn protocol(mapping: &PortMapping) -> Option<PortProtocol> {
    match mapping.protocol.as_str() {
        "tcp" => Some(PortProtocol::Tcp),
        "udp" => Some(PortProtocol::Udp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use kina_model::{IdRange, Placement, UserNamespace};

    use super::*;

    fn mapping(protocol: &str, host_port: u16, host_ip: &str) -> PortMapping {
        PortMapping { protocol: protocol.into(), container_port: 80, host_port, host_ip: host_ip.into() }
    }

    fn spec(port_mappings: Vec<PortMapping>) -> PodSpec {
        let spec = kina_testkit::spec::pod("p");
        PodSpec { port_mappings, handler: "vm".into(), placement: Placement::Vm, ..spec }
    }

    #[test]
    fn ports_of_the_node_lead_to_the_machine() {
        let spec = spec(vec![
            mapping("tcp", 8080, ""),
            mapping("sctp", 0, ""),
            mapping("udp", 53, "127.0.0.1"),
            mapping("tcp", 81, "0.0.0.0"),
        ]);
        check(&spec).unwrap();
        let ports = ports(&spec);
        let found: Vec<_> = ports.iter().map(|port| (port.address, port.node, port.protocol)).collect();
        assert_eq!(
            found,
            [
                (None, 8080, PortProtocol::Tcp),
                (Some([127, 0, 0, 1].into()), 53, PortProtocol::Udp),
                (None, 81, PortProtocol::Tcp),
            ]
        );
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_name() {
        let refused = |spec: &PodSpec| check(spec).unwrap_err().to_string();
        let error = refused(&spec(vec![mapping("tcp", 0, ""), mapping("sctp", 7, "")]));
        assert!(error.starts_with("config.port_mappings[1].protocol: "), "{error}");
        let error = refused(&spec(vec![mapping("tcp", 1, "")]));
        assert!(error.starts_with("config.port_mappings[0].host_port: "), "{error}");
        let error = refused(&spec(vec![mapping("tcp", 53, "::1"), mapping("udp", 53, "::1")]));
        assert!(error.starts_with("config.port_mappings[1].host_ip: ") && error.contains("IPv6"), "{error}");
        let twice = ["127.0.0.1", "127.0.0.2"].map(|address| mapping("tcp", 80, address));
        let error = refused(&spec(twice.to_vec()));
        assert!(error.starts_with("config.port_mappings[1].host_port: another mapping"), "{error}");
        let many = (0..65).map(|number| mapping("tcp", 1000 + number, "")).collect();
        assert!(refused(&spec(many)).starts_with("config.port_mappings: 65 ports"));
        let mut limited = spec(Vec::new());
        limited.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "1M".into());
        assert!(refused(&limited).starts_with("config.annotations: "));
        let mut mapped = spec(Vec::new());
        let range = IdRange { inside: 0, outside: 100_000, length: 65536 };
        mapped.namespaces.user = Some(UserNamespace { uids: range, gids: range });
        let error = refused(&mapped);
        assert!(error.contains("userns_options: ") && error.contains("hostUsers"), "{error}");
    }
}
