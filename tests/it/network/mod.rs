//! Pods in a network of real plugins (Debian's containernetworking-plugins), in
//! a network namespace that stands for the node.

pub(crate) mod connect;
mod kill;
mod macvlan;
mod many;
mod misbehaving;
mod status;

use serde_json::{Value, json};

use crate::harness::BRIDGE;

/// The pods' subnets, and their gateway: the bridge.
pub(crate) const GATEWAY: &str = "10.234.0.1";
pub(crate) const GATEWAY_V6: &str = "fd42::1";

/// Addresses of both families.
pub(crate) fn ipam() -> Value {
    json!({
        "type": "host-local",
        "ranges": [[{"subnet": "10.234.0.0/16"}], [{"subnet": "fd42::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    })
}

/// Pods on a bridge; with ports of the node and limits, if wanted.
pub(crate) fn bridge(whole: bool) -> Value {
    let mut plugins = json!([
        {"type": "bridge", "bridge": BRIDGE, "isGateway": true, "hairpinMode": true, "ipam": ipam()},
    ]);
    if whole {
        let more = [
            json!({"type": "portmap", "capabilities": {"portMappings": true}}),
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        ];
        plugins.as_array_mut().unwrap().extend(more);
    }
    plugins
}
