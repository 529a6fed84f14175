//! Many pods leave as much as none.

use futures::StreamExt as _;

use super::bridge;
use crate::harness::{Daemon, Options, wait_until};

const AT_ONCE: usize = 8;

/// `KINA_IT_PODS` for more of them.
#[tokio::test]
async fn addresses_and_links_come_back() {
    let pods: usize = std::env::var("KINA_IT_PODS").map_or(50, |text| text.parse().unwrap());
    let plugins = Some(bridge(true));
    let mut daemon = Daemon::with(Options { plugins, ..Options::default() }).await;
    daemon.wait_network(true).await;
    let cri = daemon.cri();
    let config = |number: usize| {
        let mapping = kina::cri::v1::PortMapping {
            container_port: 80,
            host_port: 10_000 + i32::try_from(number).unwrap(),
            ..Default::default()
        };
        let port_mappings = vec![mapping];
        kina::cri::v1::PodSandboxConfig { port_mappings, ..cri.pod(&format!("p{number}")) }
    };
    // The bridge and the chains for ports are made with the first pods. (Two
    // instances of the plugin portmap that make them at once may make one twice.)
    let first = cri.run_pod(&config(pods)).await.unwrap();
    // The kernel adds routes to the bridge's IPv6 addresses once it has found
    // that nobody else has them; it only looks while the bridge has a pod.
    wait_until("the bridge's addresses", async || {
        daemon.place.node_network.as_ref().unwrap().ip(&["-6", "address", "show", "tentative"]).is_empty()
    })
    .await;
    cri.stop_pod(&first).await.unwrap();
    let state = |daemon: &Daemon| {
        let network = daemon.place.node_network.as_ref().unwrap();
        let rules = network.sh("iptables -t nat -S; ip6tables -t nat -S");
        (daemon.place.addresses(), network.links(), rules, network.routes())
    };
    let before = state(&daemon);
    let begun = std::time::Instant::now();
    let made: Vec<String> = futures::stream::iter(0..pods)
        .map(|number| {
            let (cri, config) = (cri.clone(), config(number));
            async move { cri.run_pod(&config).await.unwrap() }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let (made_in, begun) = (begun.elapsed(), std::time::Instant::now());
    assert_eq!(daemon.place.addresses().len(), 2 * pods);
    let mut ips = std::collections::BTreeSet::new();
    for pod in &made {
        ips.insert(cri.pod_status(pod).await.unwrap().status.unwrap().network.unwrap().ip);
    }
    assert_eq!(ips.len(), pods);
    futures::stream::iter(&made)
        .for_each_concurrent(AT_ONCE, async |pod| {
            cri.stop_pod(pod).await.unwrap();
            cri.remove_pod(pod).await.unwrap();
        })
        .await;
    println!("{pods} pods: made in {made_in:?}, removed in {:?}", begun.elapsed());
    let after = state(&daemon);
    for ((number, line), was) in
        after.2.lines().enumerate().zip(before.2.lines().chain(std::iter::repeat("")))
    {
        assert_eq!(line, was, "rule {number}");
    }
    assert_eq!(after, before);
    daemon.leave_nothing().await;
}
