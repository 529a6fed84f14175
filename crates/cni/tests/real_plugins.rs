//! The plugins of the CNI project: an interface with an address, a port of the
//! host that leads to it, and nothing left after it.
//!
//! Both the host and the container are fresh network namespaces, each of a
//! thread of its own; they vanish with their threads. `KINA_TEST_CNI_PLUGINS`
//! names the plugins' directory, if not Debian's.

#![cfg(all(feature = "local", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]
#![allow(unsafe_code, reason = "threads leave the process's network namespace")]

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use kina_cni::{
    Attachment, AttachmentId, Check, Cni, LocalHost, Network, Options, PortMapping, Protocol, SpecVersion,
    Status,
};
use serde_json::json;

const LONG: Duration = Duration::from_secs(20);

#[test]
fn bridge_with_a_port_of_the_host() {
    let (container, namespace) = Container::start();
    // The runtime lives on this thread, and so do the processes it starts.
    let host = thread::spawn(move || {
        new_network_namespace();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(attach_and_detach(&namespace, &container));
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

async fn attach_and_detach(namespace: &str, container: &Container) {
    let folder = tempfile::tempdir().unwrap();
    let cni = cni(folder.path());
    let network = cni.negotiate(&network_of(folder.path(), &["bridge", "portmap"])).await.unwrap();
    let mut attachment = Attachment::new("pod1", "eth0", namespace);
    attachment.capabilities.port_mappings(&[PortMapping::new(8080, 80, Protocol::Tcp)]);
    let empty = interfaces();

    let result = cni.add(&network, &attachment).await.unwrap();
    let addresses: Vec<_> = result.addresses_of("eth0").map(|ip| ip.address.to_string()).collect();
    assert_eq!(addresses, ["10.251.0.2/24", "fd00:251::2/64"]);
    let (mac, shown) = container.ask(Question::Interface);
    let interface = result.interfaces.iter().find(|interface| interface.name == "eth0").unwrap();
    assert_eq!(interface.mac.as_deref(), Some(mac.as_str()));
    assert!(shown.contains("10.251.0.2/24") && shown.contains("fd00:251::2/64"), "{shown}");

    // Directly, and by the port of the host.
    for address in ["10.251.0.2:80", "[fd00:251::2]:80", "10.251.0.1:8080", "[fd00:251::1]:8080"] {
        assert_eq!(fetch(address), "hello from the container", "{address}");
    }

    // Without portmap: Debian's 1.1 does not pass its own CHECK.
    let bridge = network_of(folder.path(), &["bridge"]).with_version(network.version()).unwrap();
    assert_eq!(cni.check(&bridge, &attachment).await.unwrap(), Check::Passed);
    // Somebody takes the address away.
    container.ask(Question::Break);
    let broken = cni.check(&bridge, &attachment).await.unwrap_err();
    assert!(broken.to_string().contains("(CHECK)"), "{broken}");

    assert_eq!(reserved(folder.path()), 2);
    cni.del(&network, &attachment).await.unwrap();
    assert_eq!(reserved(folder.path()), 0);
    cni.del(&network, &attachment).await.unwrap();
    assert_eq!(interfaces().len(), empty.len() + 1, "only the bridge stays: {:?}", interfaces());

    // A container of which nobody called DEL.
    cni.add(&network, &attachment).await.unwrap();
    let valid = AttachmentId { container_id: "other".to_owned(), interface: "eth0".to_owned() };
    let collected = cni.gc(&network, &[valid]).await.unwrap();
    assert!(collected.errors.is_empty(), "{:?}", collected.errors);
    assert_eq!(collected.removed, [attachment.id]);
    assert_eq!(reserved(folder.path()), 0);

    let status = cni.status(&network).await.unwrap();
    let knows = network.version() >= SpecVersion::V1_1_0;
    assert_eq!(status, if knows { Status::Ready } else { Status::Unsupported });
}

fn cni(folder: &Path) -> Cni {
    let plugins = std::env::var_os("KINA_TEST_CNI_PLUGINS").unwrap_or("/usr/lib/cni".into());
    let plugins = PathBuf::from(plugins);
    assert!(plugins.join("bridge").exists(), "no plugins in {}: `cargo xtask setup`", plugins.display());
    let options = Options {
        plugin_directories: vec![plugins],
        cache_directory: folder.join("cache"),
        ..Options::default()
    };
    Cni::new(Arc::new(LocalHost), options)
}

fn network_of(folder: &Path, plugins: &[&str]) -> Network {
    let mut list = json!({
        "cniVersion": "0.4.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": folder.join("addresses"),
                    "ranges": [[{"subnet": "10.251.0.0/24"}], [{"subnet": "fd00:251::/64"}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    let all = list["plugins"].as_array_mut().unwrap();
    all.retain(|plugin| plugins.contains(&plugin["type"].as_str().unwrap()));
    Network::from_list(list.to_string().as_bytes()).unwrap()
}

/// How many addresses host-local has given away.
fn reserved(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder.join("addresses/pods")).unwrap();
    let is_address = |name: &str| name.starts_with("10.") || name.starts_with("fd00:");
    names.filter(|name| is_address(name.as_ref().unwrap().file_name().to_str().unwrap())).count()
}

/// The interfaces of this thread's network namespace.
fn interfaces() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = table.lines().filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

fn fetch(address: &str) -> String {
    let start = Instant::now();
    let mut stream = loop {
        match TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_millis(500)) {
            Ok(stream) => break stream,
            // The bridge's IPv6 address becomes usable a moment after the plugin ended.
            Err(error) => assert!(start.elapsed() < LONG, "{address}: {error}"),
        }
        thread::sleep(Duration::from_millis(10));
    };
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn new_network_namespace() {
    // SAFETY: a network namespace holds nothing that Rust relies on: neither
    // files, nor memory, nor the working directory.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
}

/// What `ip` prints in this thread's network namespace.
fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A thread in the container's network namespace, with a server on port 80.
struct Container {
    questions: SyncSender<Question>,
    answers: Receiver<(String, String)>,
}

enum Question {
    /// MAC and addresses of `eth0`.
    Interface,
    /// Take the addresses of `eth0` away.
    Break,
}

impl Container {
    /// With the path of its network namespace.
    fn start() -> (Self, String) {
        let (questions, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        thread::spawn(move || {
            new_network_namespace();
            let thread = rustix::thread::gettid().as_raw_nonzero();
            let namespace = format!("/proc/{}/task/{thread}/ns/net", std::process::id());
            answer.send((namespace, String::new())).unwrap();
            let server = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap();
            // It inherits the namespace.
            thread::spawn(move || {
                for mut stream in server.incoming().flatten() {
                    drop(stream.write_all(b"hello from the container"));
                }
            });
            for question in asked {
                let arguments: &[&str] = match question {
                    Question::Interface => &["-o", "address", "show", "dev", "eth0"],
                    Question::Break => &["address", "flush", "dev", "eth0"],
                };
                let (link, addresses) = (ip(&["-o", "link", "show", "dev", "eth0"]), ip(arguments));
                let mac = link.split_once("link/ether ").unwrap().1.split(' ').next().unwrap();
                drop(answer.send((mac.to_owned(), addresses)));
            }
        });
        let (namespace, _) = answers.recv_timeout(LONG).unwrap();
        (Self { questions, answers }, namespace)
    }

    fn ask(&self, question: Question) -> (String, String) {
        self.questions.send(question).unwrap();
        self.answers.recv_timeout(LONG).unwrap()
    }
}
