//! What containers share with each other and with the node.

use kina::cri::v1::{self, NamespaceMode};

use crate::harness::machine::{also_in_apple, also_in_vm, is_apple};
use crate::harness::{Cri, Daemon, labels, namespaces, script, with_security};

const FOREVER: &str = "sleep 1000";

/// A namespace of a container, by what `/proc` calls it.
async fn namespace(cri: &Cri, container: &str, kind: &str) -> String {
    cri.sh(container, &format!("readlink /proc/self/ns/{kind}")).await.trim().to_owned()
}

/// The node's.
fn of_node(kind: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

fn options(change: impl FnOnce(&mut v1::NamespaceOption)) -> v1::NamespaceOption {
    let mut options = namespaces();
    change(&mut options);
    options
}

/// A pod with these namespaces.
fn pod_with(cri: &Cri, name: &str, options: v1::NamespaceOption) -> v1::PodSandboxConfig {
    let mut pod = cri.pod(name);
    let context = v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    pod.linux.as_mut().unwrap().security_context = Some(context);
    pod
}

/// A container that asks for these, as the kubelet repeats the pod's.
fn container_with(name: &str, options: v1::NamespaceOption) -> v1::ContainerConfig {
    with_security(script(name, FOREVER), |context| context.namespace_options = Some(options))
}

#[tokio::test]
async fn containers_talk_over_localhost() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("talk").await;
    let serve =
        "echo hello from $HOSTNAME > /tmp/index.html; echo ready; exec httpd -f -p 127.0.0.1:8080 -h /tmp";
    let server = cri.run(&pod, script("server", serve)).await;
    cri.wait_output(&server, "ready").await;
    // It listens a moment later.
    let fetch = "until wget -qO- http://127.0.0.1:8080/; do usleep 20000; done";
    let (status, output) = cri.run_to_end(&pod, script("client", fetch)).await;
    assert_eq!((status.exit_code, output.lines().last()), (0, Some("hello from talk")), "{output}");
    // Another pod has a localhost of its own.
    let other = cri.make_pod("other").await;
    let (status, output) = cri.run_to_end(&other, script("client", "wget -qO- http://127.0.0.1:8080/")).await;
    assert_ne!(status.exit_code, 0, "{output}");
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn process_namespaces_by_option() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    // Each its own.
    let own = options(|_| {});
    let pod = cri.run_pod(&pod_with(&cri, "own", own.clone())).await.unwrap();
    let one = cri.run(&pod, container_with("one", own.clone())).await;
    let two = cri.run(&pod, container_with("two", own)).await;
    let (of_one, of_two) = (namespace(&cri, &one, "pid").await, namespace(&cri, &two, "pid").await);
    assert!(of_one != of_two && of_one != of_node("pid"), "{of_one} {of_two}");
    for kind in ["ipc", "uts", "net"] {
        let shared = namespace(&cri, &one, kind).await;
        assert_eq!(shared, namespace(&cri, &two, kind).await, "{kind}");
        assert_ne!(shared, of_node(kind), "{kind}");
    }
    assert_ne!(namespace(&cri, &one, "mnt").await, namespace(&cri, &two, "mnt").await);
    cri.sh(&one, "echo shared > /dev/shm/file").await;
    assert_eq!(cri.sh(&two, "cat /dev/shm/file").await, "shared\n");
    // A debugger in the first one's.
    let target = options(|options| {
        options.pid = NamespaceMode::Target.into();
        options.target_id = one.clone();
    });
    let debugger = cri.run(&pod, container_with("debugger", target)).await;
    assert_eq!(namespace(&cri, &debugger, "pid").await, of_one);
    assert_eq!(cri.sh(&debugger, "ps -o args | grep -c '^sleep 1000'").await, "2\n");

    // One for those that ask for it, from the first of them on.
    let common = || options(|options| options.pid = NamespaceMode::Pod.into());
    let three = cri.run(&pod, container_with("three", common())).await;
    let four = cri.run(&pod, container_with("four", common())).await;
    let of_three = namespace(&cri, &three, "pid").await;
    assert_eq!(of_three, namespace(&cri, &four, "pid").await);
    assert!(![of_one, of_two, of_node("pid")].contains(&of_three), "{of_three}");
    assert_eq!(cri.sh(&three, "ps -o args | grep -c '^sleep 1000'").await, "2\n");

    // One for all.
    let shared = options(|options| options.pid = NamespaceMode::Pod.into());
    let pod = cri.run_pod(&pod_with(&cri, "shared", shared.clone())).await.unwrap();
    let one = cri.run(&pod, container_with("one", shared.clone())).await;
    let two = cri.run(&pod, container_with("two", shared)).await;
    let of_one = namespace(&cri, &one, "pid").await;
    assert_eq!(of_one, namespace(&cri, &two, "pid").await);
    assert_ne!(of_one, of_node("pid"));
    // Not being the first process, it can end of a signal.
    cri.stop(&one, 30).await.unwrap();
    assert_eq!(cri.wait_exit(&one).await.exit_code, 143);
    cri.sh(&two, "true").await;
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn the_nodes_namespaces() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let node = options(|options| {
        options.network = NamespaceMode::Node.into();
        options.pid = NamespaceMode::Node.into();
        options.ipc = NamespaceMode::Node.into();
    });
    let mut config = pod_with(&cri, "node", node.clone());
    config.hostname = String::new();
    let pod = cri.run_pod(&config).await.unwrap();
    let one = cri.run(&pod, container_with("one", node.clone())).await;
    for kind in ["net", "pid", "ipc", "uts"] {
        assert_eq!(namespace(&cri, &one, kind).await, of_node(kind), "{kind}");
    }
    assert_ne!(namespace(&cri, &one, "mnt").await, of_node("mnt"));
    let status = cri.pod_status(&pod).await.unwrap().status.unwrap();
    assert_eq!(status.linux.unwrap().namespaces.unwrap().options.unwrap().network(), NamespaceMode::Node);
    // The node's processes are not the container's to end: its own end with it.
    let pid = cri.container_pid(&one).await;
    cri.stop(&one, 0).await.unwrap();
    assert_eq!(cri.wait_exit(&one).await.exit_code, 137);
    assert!(!crate::harness::lives(pid));

    // The node's network with a host name of its own.
    let network = options(|options| options.network = NamespaceMode::Node.into());
    let named = cri.run_pod(&pod_with(&cri, "named", network)).await.unwrap();
    let two = cri.run(&named, script("two", FOREVER)).await;
    assert_eq!(namespace(&cri, &two, "net").await, of_node("net"));
    assert_eq!(cri.sh(&two, "hostname; cat /etc/hostname; echo $HOSTNAME").await, "named\nnamed\nnamed\n");
    daemon.leave_nothing().await;
}

/// Of a container in the node's process namespace nothing stays either, though
/// no namespace takes its children along.
#[tokio::test]
async fn children_in_a_shared_process_namespace_end_with_their_container() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    for (name, mode) in [("node", NamespaceMode::Node), ("pod", NamespaceMode::Pod)] {
        let options = options(|options| options.pid = mode.into());
        let pod = cri.run_pod(&pod_with(&cri, name, options.clone())).await.unwrap();
        let idle = daemon.place.processes(&pod).len();
        let mut container = container_with("parent", options);
        container.command = crate::harness::shell("sleep 1000 & sleep 1000 & echo up; wait");
        let parent = cri.run(&pod, container).await;
        cri.wait_output(&parent, "up").await;
        assert!(daemon.place.processes(&pod).len() >= idle + 3);
        cri.stop(&parent, 0).await.unwrap();
        cri.remove(&parent).await.unwrap();
        crate::harness::wait_until("the end of its children", async || {
            daemon.place.processes(&pod).len() == idle
        })
        .await;
    }
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn sysctls_names_and_resolvers() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let mut config = cri.pod("settings");
    config.linux.as_mut().unwrap().sysctls =
        labels(&[("net.ipv4.ip_unprivileged_port_start", "81"), ("kernel.shm_rmid_forced", "1")]);
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["192.0.2.53".to_owned()],
        searches: vec!["it.example".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    let pod = cri.run_pod(&config).await.unwrap();
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let read = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    assert_eq!(cri.sh(&one, read).await, "81\n1\n");
    let node = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    assert_ne!(node.trim(), "81");
    assert_eq!(cri.sh(&one, "hostname; cat /etc/hostname").await, "settings\nsettings\n");
    let resolver = cri.sh(&one, "cat /etc/resolv.conf").await;
    for line in ["nameserver 192.0.2.53", "search it.example", "options ndots:5"] {
        assert!(resolver.lines().any(|found| found == line), "{resolver}");
    }
    assert!(cri.sh(&one, "cat /etc/hosts").await.contains("localhost"));

    // Who asks for no resolver gets the node's; a machine of Apple's has its own.
    let plain = cri.run_pod(&cri.pod("plain")).await.unwrap();
    let two = cri.run(&plain, script("two", FOREVER)).await;
    let resolver = cri.sh(&two, "cat /etc/resolv.conf").await;
    let servers = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with("nameserver")).map(str::to_owned).collect()
    };
    if !is_apple() {
        assert_eq!(servers(&resolver), servers(&std::fs::read_to_string("/etc/resolv.conf").unwrap()));
    }

    let mut bad = cri.pod("bad");
    bad.linux.as_mut().unwrap().sysctls = labels(&[("kernel.panic", "1")]);
    let refused = cri.run_pod(&bad).await.unwrap_err();
    assert!(refused.message().contains("kernel.panic"), "{refused}");
    for (name, value) in [("net.it.none", "1"), ("net.ipv4.ip_forward", "yes")] {
        bad.linux.as_mut().unwrap().sysctls = labels(&[(name, value)]);
        let refused = cri.run_pod(&bad).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(&name.replace('.', "/")), "{refused}");
    }
    daemon.leave_nothing().await;
}

also_in_vm! {
    containers_talk_over_localhost,
    process_namespaces_by_option,
    sysctls_names_and_resolvers,
}

also_in_apple! {
    containers_talk_over_localhost,
    process_namespaces_by_option,
    sysctls_names_and_resolvers,
}
