//! Who reaches whom.

use std::net::UdpSocket;

use kina::cri::v1;
use serde_json::json;

use super::{GATEWAY, GATEWAY_V6, bridge, ipam};
use crate::harness::machine::{self, also_in_vm};
use crate::harness::{Cri, Daemon, Options, script};

/// Serves its own name over HTTP.
pub(crate) fn server(name: &str) -> v1::ContainerConfig {
    let serve = format!("mkdir /www && echo {name} > /www/name && echo up && exec httpd -f -p 80 -h /www");
    script(name, &serve)
}

async fn on(plugins: serde_json::Value) -> Daemon {
    let daemon = Daemon::with(Options { plugins: Some(plugins), ..Options::default() }).await;
    daemon.wait_network(true).await;
    daemon
}

pub(crate) async fn addresses(cri: &Cri, pod: &str) -> Vec<String> {
    let network = cri.pod_status(pod).await.unwrap().status.unwrap().network.unwrap();
    std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect()
}

/// Asks a server. (Static busybox's wget wants glibc's resolver, which is not there.)
pub(crate) fn get(address: &str, port: u16) -> String {
    format!("printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 5 {address} {port} | busybox tail -n 1")
}

/// Answers every question for an address with 192.0.2.7.
fn name_server(socket: &UdpSocket) {
    let mut buffer = [0; 1500];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        let mut answer = buffer[..length].to_vec();
        // The question ends with its type and class.
        let wants_v4 = answer[length - 4..length] == [0, 1, 0, 1];
        answer[2] |= 0x80;
        answer[3] = 0x80;
        if wants_v4 {
            answer[7] = 1;
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
        }
        drop(socket.send_to(&answer, peer));
    }
}

/// Pods reach each other, the node, its ports and a name server, by both
/// families; also after the daemon was killed.
#[tokio::test]
async fn on_a_bridge() {
    let mut daemon = on(bridge(true)).await;
    let cri = daemon.cri();
    let mut config = cri.pod("one");
    config.port_mappings = vec![v1::PortMapping {
        protocol: v1::Protocol::Tcp.into(),
        container_port: 80,
        host_port: 8080,
        host_ip: String::new(),
    }];
    let one = cri.run_pod(&config).await.unwrap();
    let mut config = cri.pod("two");
    config.dns_config = Some(v1::DnsConfig { servers: vec![GATEWAY.into()], ..v1::DnsConfig::default() });
    config.annotations.insert("kubernetes.io/egress-bandwidth".into(), "50M".into());
    config.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "70M".into());
    let two = cri.run_pod(&config).await.unwrap();
    for (pod, name) in [(&one, "one"), (&two, "two")] {
        let container = cri.run(pod, server(name)).await;
        cri.wait_output(&container, "up").await;
    }
    let ips = addresses(&cri, &one).await;
    assert!(ips.len() == 2 && ips[0].starts_with("10.234.") && ips[1].starts_with("fd42::"), "{ips:?}");
    let client = cri.containers(None).await.into_iter().find(|one| one.pod_sandbox_id == two).unwrap().id;

    let directory = daemon.place.path("www");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("name"), "node\n").unwrap();
    let network = daemon.place.node_network.as_mut().unwrap();
    network.start("/bin/busybox", &["httpd", "-f", "-p", "90", "-h", directory.to_str().unwrap()]);
    let socket = network.enter(|| UdpSocket::bind((GATEWAY, 53)).unwrap()).join().unwrap();
    std::thread::spawn(move || name_server(&socket));

    let check = async |daemon: &Daemon| {
        let cri = daemon.cri();
        let network = daemon.place.node_network.as_ref().unwrap();
        let from_node = |address: &str, port| network.sh(&get(address, port));
        // Pod to pod.
        assert_eq!(cri.sh(&client, &get(&ips[0], 80)).await, "one\n");
        assert_eq!(cri.sh(&client, &get(&ips[1], 80)).await, "one\n");
        // Pod to node, node to pod.
        assert_eq!(cri.sh(&client, &get(GATEWAY, 90)).await, "node\n");
        assert_eq!(cri.sh(&client, &get(GATEWAY_V6, 90)).await, "node\n");
        assert_eq!(from_node(&ips[0], 80), "one\n");
        // The node's port, from the node and from a pod.
        for address in ["127.0.0.1", GATEWAY] {
            assert_eq!(from_node(address, 8080), "one\n");
        }
        assert_eq!(cri.sh(&client, &get(GATEWAY, 8080)).await, "one\n");
        // Names.
        let found = cri.sh(&client, "nslookup -type=a pod.example.").await;
        assert!(found.contains("192.0.2.7"), "{found}");
    };
    check(&daemon).await;
    let limits = |daemon: &Daemon| {
        let shown = daemon.place.node_network.as_ref().unwrap().sh("/sbin/tc qdisc show");
        shown.lines().filter(|line| line.contains("tbf")).map(str::to_owned).collect::<Vec<_>>().join("\n")
    };
    // Out of the pod by a device of the plugin's, into it by its own.
    let limited = limits(&daemon);
    assert!(limited.lines().count() == 2, "{limited}");
    for (device, rate) in [("dev bwp", "rate 50Mbit"), ("dev veth", "rate 70Mbit")] {
        assert!(limited.lines().any(|line| line.contains(device) && line.contains(rate)), "{limited}");
    }
    daemon.restart().await;
    let cri = daemon.cri();
    assert_eq!(addresses(&cri, &one).await, ips);
    check(&daemon).await;

    commands(&daemon, &one, &two).await;

    // The limits go with their pod.
    cri.stop_pod(&two).await.unwrap();
    assert_eq!(limits(&daemon), "");
    // Both names for a stopped pod's address are gone.
    cri.stop_pod(&one).await.unwrap();
    assert_eq!(addresses(&cri, &one).await, [""]);
    assert_eq!(daemon.place.addresses(), [""; 0]);
    let rules = daemon.place.node_network.as_ref().unwrap().sh("iptables -t nat -S; ip6tables -t nat -S");
    assert!(!rules.contains("8080"), "{rules}");
    daemon.leave_nothing().await;
}

/// `kina network`, for programs.
async fn command(daemon: &Daemon, arguments: &[&str]) -> std::process::Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kina"));
    command.arg("network").arg("--socket").arg(daemon.place.socket()).arg("--json");
    command.args(arguments).output().await.unwrap()
}

/// What `kina network` prints for programs; whether it succeeded.
async fn kina(daemon: &Daemon, arguments: &[&str]) -> (bool, serde_json::Value) {
    let output = command(daemon, arguments).await;
    let value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{arguments:?}: {output:?}"));
    (output.status.success(), value)
}

/// `kina network`, with two pods of which the second serves port 80.
async fn commands(daemon: &Daemon, one: &str, two: &str) {
    daemon.wait_network(true).await;
    // The CHECK of Debian's portmap looks for the ports' IPv4 rules among the
    // IPv6 ones. The other plugins find what they have made.
    let (good, checked) = kina(daemon, &["check", two]).await;
    assert!(good && checked["outcome"] == "passed", "{checked}");
    let refused = command(daemon, &["check", one]).await;
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("plugin portmap (CHECK)"), "{said}");
    let (good, listed) = kina(daemon, &["ls"]).await;
    assert!(good && listed["files"][0]["plugins"][0]["path"] == "/usr/lib/cni/bridge", "{listed}");
    let (good, status) = kina(daemon, &["status"]).await;
    assert!(good && status["network"] == "pods" && status["attachments"] == 2, "{status}");
    assert!(kina(daemon, &["gc"]).await.0);

    if machine::is_vm() {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kina"));
        command.arg("network").arg("--socket").arg(daemon.place.socket());
        let output = command.args(["test", "--from", two, "--to", one]).output().await.unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains("runs in a virtual machine"), "{error}");
        return;
    }
    let (good, trial) = kina(daemon, &["test", "--from", two, "--to", &format!("{one}:80")]).await;
    assert!(good, "{trial}");
    let step = |trial: &serde_json::Value, kind: &str| {
        trial["steps"].as_array().unwrap().iter().find(|step| step["kind"] == kind).cloned().unwrap()
    };
    for kind in ["interface", "route", "echo", "tcp", "path-mtu", "dns"] {
        assert_eq!(step(&trial, kind)["good"], true, "{trial}");
    }
    assert_eq!(step(&trial, "path-mtu")["bytes"], 1500, "{trial}");
    assert!(step(&trial, "echo")["micros"].as_u64().unwrap() > 0, "{trial}");
    // Nobody there, and nobody listening.
    let (good, trial) = kina(daemon, &["test", "--from", two, "--to", "10.234.255.1"]).await;
    assert!(!good && trial["failure"].as_str().unwrap().contains("neither the pod nor the node"), "{trial}");
    let (good, trial) = kina(daemon, &["test", "--from", two, "--to", &format!("{one}:81")]).await;
    assert!(!good && trial["failure"].as_str().unwrap().contains("does not take the connection"), "{trial}");
    let (good, trial) = kina(daemon, &["test", "--from", two, "--to", GATEWAY_V6]).await;
    assert!(good, "{trial}");
}

/// Point to point, each pod with a link of its own.
#[tokio::test]
async fn point_to_point() {
    let mut daemon = on(json!([{"type": "ptp", "ipMasq": false, "ipam": ipam()}])).await;
    let cri = daemon.cri();
    let (one, two) = (cri.make_pod("one").await, cri.make_pod("two").await);
    let served = cri.run(&one, server("one")).await;
    cri.wait_output(&served, "up").await;
    let client = cri.run(&two, script("client", "sleep 1000")).await;
    let ips = addresses(&cri, &one).await;
    assert_eq!(cri.sh(&client, &get(&ips[0], 80)).await, "one\n");
    assert_eq!(daemon.place.node_network.as_ref().unwrap().links().len(), 2);
    let (good, checked) = kina(&daemon, &["check", &one]).await;
    assert!(good && checked["outcome"] == "passed" && checked["network"] == "pods", "{checked}");
    daemon.leave_nothing().await;
}

/// What a pod may not ask for is refused by name, and nothing is made.
#[tokio::test]
async fn refusals() {
    let mut daemon = on(bridge(false)).await;
    let cri = daemon.cri();
    let mut config = cri.pod("p");
    config.port_mappings =
        vec![v1::PortMapping { container_port: 80, host_port: 8080, ..v1::PortMapping::default() }];
    let status = cri.run_pod(&config).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    assert!(status.message().contains("host_port") && status.message().contains("\"pods\""), "{status}");
    let mut config = cri.pod("p");
    config.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "fast".into());
    let status = cri.run_pod(&config).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("kubernetes.io/ingress-bandwidth"), "{status}");
    assert_eq!(cri.pods(None).await, []);
    daemon.leave_nothing().await;
}

also_in_vm! {
    on_a_bridge,
    point_to_point,
}
