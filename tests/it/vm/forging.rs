//! What the root of a guest sends in another pod's name.

use crate::harness::{Cri, Daemon, Options, machine, script, wait_until, with_security};
use crate::network::connect::{addresses, get, server};
use crate::network::{GATEWAY, bridge};

/// A pod whose container is root of its machine's network.
async fn privileged(cri: &Cri, name: &str) -> (String, String) {
    let mut config = cri.pod(name);
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let pod = cri.run_pod(&config).await.unwrap();
    let root = with_security(script("root", "sleep 1000"), |context| context.privileged = true);
    let container = cri.run(&pod, root).await;
    (pod, container)
}

/// Pod a takes pod b's address: the node's next connection to b ends up in a where
/// machines may forge, and else in b, whatever a's root does.
#[tokio::test]
async fn the_root_of_a_guest_cannot_be_another_pod() {
    machine::use_vm();
    let options = || Options { plugins: Some(bridge(false)), ..Options::default() };
    let mut daemon = Daemon::with(options()).await;
    for forging in [true, false] {
        daemon.stop().await;
        daemon.place.set_machine(|machine| machine.qemu.allow_forged_addresses = forging);
        daemon.start_again(options()).await;
        daemon.wait_network(true).await;
        let cri = daemon.cri();
        let ((_, root), other) = tokio::join!(privileged(&cri, "a"), cri.make_pod("b"));
        let b = cri.run(&other, server("b")).await;
        cri.wait_output(&b, "up").await;
        let ip = addresses(&cri, &other).await.remove(0);
        let network = daemon.place.node_network.as_ref().unwrap();
        let ask = || network.sh(&format!("{{ {}; }} || true", get(&ip, 80)));
        let known = || network.ip(&["neighbour", "show", ip.as_str()]);
        wait_until("pod b's server", async || ask() == "b\n").await;
        println!("forging {forging}: the node asks {ip}, which is pod b; it knows {}", known().trim());

        // Its own address answers before and after.
        assert!(cri.sh(&root, &format!("ping -c 1 -W 5 {GATEWAY}")).await.contains("1 packets received"));
        let take = format!(
            "mkdir -p /www && echo a > /www/name && busybox httpd -p 80 -h /www; \
             ip addr add {ip}/24 dev eth0 && \
             {{ arping -U -c 3 -w 3 -I eth0 {ip}; arping -A -c 3 -w 3 -I eth0 {ip}; \
             ping -c 1 -W 2 -I {ip} {GATEWAY}; true; }} 2>&1"
        );
        let said = cri.sh(&root, &take).await;
        println!("pod a takes the address:\n{said}");
        println!("the node knows {} and is answered by {:?}", known().trim(), ask());
        assert_eq!(ask(), if forging { "a\n" } else { "b\n" });

        // The card's address, too.
        let theirs = cri.sh(&b, "cat /sys/class/net/eth0/address").await;
        let pose = format!(
            "ip addr del {ip}/24 dev eth0; ip link set eth0 address {} && \
             {{ ping -c 2 -W 2 {GATEWAY}; true; }}",
            theirs.trim()
        );
        let said = cri.sh(&root, &pose).await;
        println!("pod a takes the card's address:\n{said}");
        let ports = network.sh("/sbin/bridge fdb show");
        let ports: Vec<&str> = ports.lines().filter(|line| line.starts_with(theirs.trim())).collect();
        println!("the bridge knows {ports:?}");
        if !forging {
            assert!(!said.contains("1 packets received"), "{said}");
            assert_eq!(ask(), "b\n");
        }
        for pod in cri.pods(None).await {
            cri.stop_pod(&pod.id).await.unwrap();
            cri.remove_pod(&pod.id).await.unwrap();
        }
    }
    daemon.leave_nothing().await;
}
