//! Pods with interfaces of their own on one of the node's.

use serde_json::json;

use super::connect::{addresses, get, server};
use super::{GATEWAY, ipam};
use crate::harness::{Daemon, Options, script};

/// The node's interface, and who is at the other end of its cable.
const PARENT: &str = "up0";
const OUTSIDE: &str = "up1";

/// Pods reach each other and what lies beyond the node's interface. (The node
/// itself cannot be reached by that interface: so is macvlan.)
#[tokio::test]
async fn on_an_interface_of_the_node() {
    let plugins = json!([{"type": "macvlan", "master": PARENT, "mode": "bridge", "ipam": ipam()}]);
    let mut daemon = Daemon::with(Options { plugins: Some(plugins), ..Options::default() }).await;
    let network = daemon.place.node_network.as_ref().unwrap();
    network.ip(&["link", "add", PARENT, "type", "veth", "peer", "name", OUTSIDE]);
    network.ip(&["link", "set", PARENT, "up"]);
    network.ip(&["address", "add", &format!("{GATEWAY}/16"), "dev", OUTSIDE]);
    network.ip(&["link", "set", OUTSIDE, "up"]);
    daemon.wait_network(true).await;
    let cri = daemon.cri();
    let (one, two) = (cri.make_pod("one").await, cri.make_pod("two").await);
    let served = cri.run(&one, server("one")).await;
    cri.wait_output(&served, "up").await;
    let client = cri.run(&two, script("client", "sleep 1000")).await;
    let ips = addresses(&cri, &one).await;
    assert!(ips.len() == 2 && ips[0].starts_with("10.234.") && ips[1].starts_with("fd42::"), "{ips:?}");
    for ip in &ips {
        assert_eq!(cri.sh(&client, &get(ip, 80)).await, "one\n");
    }
    let network = daemon.place.node_network.as_ref().unwrap();
    assert_eq!(network.sh(&get(&ips[0], 80)), "one\n");
    // Nothing of the pods is among the node's interfaces.
    assert_eq!(network.links(), [PARENT, OUTSIDE]);

    daemon.restart().await;
    let cri = daemon.cri();
    assert_eq!(addresses(&cri, &one).await, ips);
    assert_eq!(cri.sh(&client, &get(&ips[0], 80)).await, "one\n");
    for pod in [one, two] {
        cri.stop_pod(&pod).await.unwrap();
        cri.remove_pod(&pod).await.unwrap();
    }
    let network = daemon.place.node_network.as_ref().unwrap();
    assert_eq!(network.links(), [PARENT, OUTSIDE]);
    network.ip(&["link", "delete", PARENT]);
    daemon.leave_nothing().await;
}
