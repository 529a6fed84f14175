//! Whole outputs of three releases, against the files in `golden`: as they were looked at once,
//! character by character. The same files are held to the fields of the Swift sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kina_apple_sim::images::Variant;
use kina_apple_sim::resources::{
    Attachment, AttachmentConfiguration, AttachmentOptions, Configuration, Descriptor, Dns, Filesystem,
    FilesystemKind, ImageDescription, Network, NetworkConfiguration, NetworkStatus, Platform, Process,
    PublishedPort, PublishedSocket, ROLE, Resources, Rlimit, Snapshot, State, User,
};
use kina_apple_sim::settings::Release;
use kina_apple_sim::{shape, swift_json};
use serde_json::{Value, json};

use super::shape::{check, table};

const RELEASES: [Release; 3] = [Release::V0_12_3, Release::V1_0_0, Release::V1_2_2];

/// 8 August 2026, 1:00:00.25.
const MADE: f64 = 1_786_150_800.25;

fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|word| (*word).to_owned()).collect()
}

fn image() -> ImageDescription {
    ImageDescription {
        reference: "ghcr.io/x/guest:1".to_owned(),
        descriptor: Descriptor {
            media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
            digest: format!("sha256:{}", "1a".repeat(32)),
            size: 856,
            annotations: None,
            platform: None,
        },
    }
}

fn platform() -> Platform {
    Platform { os: "linux".to_owned(), architecture: "arm64".to_owned(), variant: Some("v8".to_owned()) }
}

fn variant() -> Variant {
    Variant {
        platform: platform(),
        digest: format!("sha256:{}", "2b".repeat(32)),
        size: 4_194_304,
        config: json!({
            "created": "2026-08-07T10:00:00.123456789Z",
            "architecture": "arm64",
            "os": "linux",
            "config": { "Entrypoint": ["/kina-guest"], "Env": ["PATH=/bin"], "Labels": { "creationDate": "1" } },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", "3c".repeat(32))] },
            "history": [{ "created": "2026-08-07T10:00:00Z", "created_by": "xtask", "empty_layer": false }],
        }),
    }
}

fn running() -> Snapshot {
    let attachment = |network: &str, variant: Option<&str>| Attachment {
        network: network.to_owned(),
        hostname: "p1".to_owned(),
        ipv4_address: "192.168.64.3/24".to_owned(),
        ipv4_gateway: "192.168.64.1".to_owned(),
        ipv6_address: Some("fd12:3456:789a:40:f001:2ff:fe03:405/64".to_owned()),
        mac_address: Some("f2:01:02:03:04:05".to_owned()),
        mtu: Some(1280),
        variant: variant.map(str::to_owned),
    };
    let wanted = |network: &str, mac: Option<&str>| AttachmentConfiguration {
        network: network.to_owned(),
        options: AttachmentOptions {
            hostname: "p1".to_owned(),
            mac_address: mac.map(str::to_owned),
            mtu: Some(1280),
        },
    };
    let mount = |kind, source: &str, destination: &str, options: &[&str]| Filesystem {
        kind,
        source: source.to_owned(),
        destination: destination.to_owned(),
        options: words(options),
    };
    let volume = FilesystemKind::Volume {
        name: "data".to_owned(),
        format: "ext4".to_owned(),
        cache: json!({ "on": {} }),
        sync: json!({ "fsync": {} }),
    };
    let configuration = Configuration {
        id: "p1".to_owned(),
        image: image(),
        mounts: vec![
            mount(FilesystemKind::Virtiofs {}, "/Users/a/layers", "/layers", &["ro"]),
            mount(FilesystemKind::Tmpfs {}, "tmpfs", "/t", &[]),
            mount(volume, "/Users/a/volumes/data/volume.img", "/d", &[]),
        ],
        published_ports: vec![PublishedPort {
            host_address: "127.0.0.1".to_owned(),
            host_port: 8080,
            container_port: 80,
            proto: "tcp".to_owned(),
            count: 2,
        }],
        published_sockets: vec![PublishedSocket {
            container_path: "/a.sock".to_owned(),
            host_path: "/Users/a/k/p1.sock".to_owned(),
        }],
        labels: BTreeMap::from([("creationDate".to_owned(), "a/\"b\"\n\u{e9}".to_owned())]),
        sysctls: BTreeMap::new(),
        networks: vec![wanted("default", Some("f2:01:02:03:04:05")), wanted("back", None)],
        dns: Some(Dns {
            nameservers: words(&["1.1.1.1"]),
            domain: Some("example.org".to_owned()),
            search_domains: Vec::new(),
            options: words(&["ndots:2"]),
        }),
        rosetta: false,
        init_process: Process {
            executable: "/kina-guest".to_owned(),
            arguments: words(&["machine", "--socket=/a.sock"]),
            environment: words(&["PATH=/bin"]),
            working_directory: "/".to_owned(),
            terminal: false,
            user: User::Id { uid: 0, gid: 0 },
            supplemental_groups: vec![7],
            rlimits: vec![Rlimit { limit: "RLIMIT_NOFILE".to_owned(), soft: 100, hard: 200 }],
        },
        platform: platform(),
        resources: Resources { cpus: 4, memory_in_bytes: 1 << 30, cpu_overhead: 1 },
        runtime_handler: "container-runtime-linux".to_owned(),
        virtualization: false,
        ssh: false,
        read_only: false,
        use_init: false,
        cap_add: words(&["ALL"]),
        cap_drop: Vec::new(),
        shm_size: Some(1 << 20),
        stop_signal: Some("SIGTERM".to_owned()),
        masked_paths: Some(Vec::new()),
        readonly_paths: Some(Vec::new()),
        creation_date: MADE,
    };
    Snapshot {
        configuration,
        status: State::Running,
        networks: vec![attachment("default", Some("reserved")), attachment("back", None)],
        started_date: Some(MADE + 1.0),
    }
}

/// One that was made and never started, with as little as can be said.
fn idle() -> Snapshot {
    let mut idle = running();
    idle.status = State::Stopped;
    idle.networks = Vec::new();
    idle.started_date = None;
    let configuration = &mut idle.configuration;
    configuration.id = "p2".to_owned();
    configuration.mounts = Vec::new();
    configuration.published_ports = Vec::new();
    configuration.published_sockets = Vec::new();
    configuration.labels = BTreeMap::new();
    configuration.networks = Vec::new();
    configuration.dns = None;
    configuration.init_process.user = User::Raw { user_string: "root".to_owned() };
    configuration.init_process.rlimits = Vec::new();
    (configuration.shm_size, configuration.stop_signal) = (None, None);
    (configuration.masked_paths, configuration.readonly_paths) = (None, None);
    idle
}

fn networks() -> [Network; 2] {
    let network = |name: &str, third: u8, builtin: bool| Network {
        id: name.to_owned(),
        configuration: NetworkConfiguration {
            name: name.to_owned(),
            creation_date: MADE,
            mode: if builtin { "nat" } else { "hostOnly" }.to_owned(),
            ipv4_subnet: (!builtin).then(|| format!("192.168.{third}.0/24")),
            ipv6_subnet: None,
            labels: builtin.then(|| (ROLE.0.to_owned(), ROLE.1.to_owned())).into_iter().collect(),
            plugin: "container-network-vmnet".to_owned(),
            options: (!builtin).then(|| ("variant".to_owned(), "reserved".to_owned())).into_iter().collect(),
        },
        status: NetworkStatus {
            ipv4_subnet: format!("192.168.{third}.0/24"),
            ipv4_gateway: format!("192.168.{third}.1"),
            ipv6_subnet: builtin.then(|| "fd12:3456:789a:40::/64".to_owned()),
        },
    };
    [network("back", 65, false), network("default", 64, true)]
}

/// The name of each file, the type of what it holds, and what that is.
fn outputs(release: Release) -> Vec<(&'static str, &'static str, String)> {
    let old = release < Release::V1_0_0;
    let containers: Value = [running(), idle()].iter().map(|one| shape::container(one, release)).collect();
    let networks: Value = networks().iter().map(|one| shape::network(one, release)).collect();
    let listed = json!([shape::listed_image(&image(), &[variant()], release)]);
    let inspected = json!([shape::image(&image(), &[variant()], release)]);
    let (root, logs) = ("/Users/a/Library/Application Support/com.apple.container/", "/var/log/container");
    let status = shape::status(root, "/usr/local/", Some(logs), release);
    vec![
        ("list", "Container", swift_json::compact(&containers)),
        ("inspect", "Container", shape::inspected(&containers, release)),
        ("image-list", if old { "ListedImage" } else { "Image" }, swift_json::compact(&listed)),
        ("image-inspect", "Image", shape::inspected(&inspected, release)),
        ("network-list", "Network", swift_json::compact(&networks)),
        ("system-status", "SystemStatus", swift_json::compact(&status)),
        (
            "system-status-unregistered",
            "SystemStatus",
            swift_json::compact(&shape::no_status("unregistered")),
        ),
        ("system-version", "Version", swift_json::compact(&shape::versions(true, release))),
    ]
}

#[test]
fn whole_outputs_are_those_of_the_files() {
    let table = table();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    for release in RELEASES {
        for (name, kind, output) in outputs(release) {
            check(&table, release.number(), kind, &serde_json::from_str(&output).unwrap());
            let file = golden.join(release.number()).join(format!("{name}.json"));
            let output = format!("{output}\n");
            if std::env::var_os("KINA_UPDATE_DOCS").is_some() {
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(&file, output).unwrap();
                continue;
            }
            let wanted = fs::read_to_string(&file).unwrap_or_default();
            assert!(
                output == wanted,
                "{} is not what the simulator prints; run this test with KINA_UPDATE_DOCS=1 and read the difference:\n{output}",
                file.display()
            );
        }
    }
}
