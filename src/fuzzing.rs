//! Entry points of the fuzz targets.

use std::collections::BTreeMap;

use futures::FutureExt as _;
use kina_model::{Placement, PodSpec, SpecError};
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt as _;

use crate::cri::{self, v1};
use crate::service::Lenient;

/// What a caller may be told of a refusal at most, with its ellipsis.
const TOLD_BYTES: usize = 4096 + '…'.len_utf8();

/// A request as it comes, after a byte that says which and how its pod is placed:
/// it is refused in few words, or becomes a specification that its record gives
/// back and that is not out of proportion.
pub fn request(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    let placement = if kind & 1 == 0 { Placement::Shared } else { Placement::Vm };
    let kernel = cri::Kernel { recursive_read_only: kind & 4 == 0 };
    match (kind >> 3) & 3 {
        0 | 1 => {
            let Ok(request) = v1::RunPodSandboxRequest::decode(bytes) else { return };
            keep(bytes, cri::pod_spec(request, |_| Ok(placement)));
        }
        2 => {
            let Ok(request) = v1::CreateContainerRequest::decode(bytes) else { return };
            let Some(pod) = pod(placement) else { return };
            if let Err(error) = cri::seccomp_file(&request) {
                return told(error);
            }
            keep(bytes, cri::container_spec(request, &pod, kernel, None));
        }
        _ => {
            let Ok(limits) = v1::LinuxContainerResources::decode(bytes) else { return };
            keep(bytes, cri::resources("linux", limits));
        }
    }
}

/// A client's side of a connection, after a byte that says where it is cut: it keeps its
/// length, and what was mended once needs no mending.
pub fn authority(input: &[u8]) {
    let Some((cut, bytes)) = input.split_first() else { return };
    let once = lenient(bytes, usize::from(*cut));
    assert_eq!(once.len(), bytes.len());
    assert_eq!(lenient(&once, 0), once);
}

fn lenient(bytes: &[u8], cut: usize) -> Vec<u8> {
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    let mut read = Vec::new();
    // Bytes in memory are never waited for.
    let end = Lenient::new(first.chain(second)).read_to_end(&mut read).now_or_never();
    assert!(matches!(end, Some(Ok(_))), "{end:?}");
    read
}

/// What a fuzzer starts from: a host's name and a socket's path, each plain and in Huffman's code.
#[must_use]
pub fn authorities() -> Vec<Vec<u8>> {
    let names: [&[u8]; 4] = [
        b"\x41\x09localhost",
        b"\x41\x86\xa0\xe4\x1d\x13\x9d\x09",
        b"\x40\x0a:authority\x07tmp%2Fx",
        b"\x41\x8a\x61\x34\xd6\xc7\x53\x54\x35\xd0\x72\x75",
    ];
    let seed = |name: &[u8]| {
        let block = [b"\x83\x86", name].concat();
        let length = u8::try_from(block.len()).expect("a short name");
        let headers = [&[0, 0, length, 1, 4, 0, 0, 0, 1], &block[..]].concat();
        [b"\x1dPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &b"\0\0\0\x04\0\0\0\0\0"[..], &headers, &headers].concat()
    };
    names.into_iter().map(seed).collect()
}

/// The pod of containers.
fn pod(placement: Placement) -> Option<PodSpec> {
    cri::pod_spec(pod_request(), |_| Ok(placement)).ok()
}

fn keep<T: Serialize + DeserializeOwned + PartialEq>(bytes: &[u8], made: Result<T, SpecError>) {
    let spec = match made {
        Ok(spec) => spec,
        Err(error) => return told(error),
    };
    let record = serde_json::to_vec(&spec).expect("a specification can be recorded");
    assert!(record.len() <= 64 * bytes.len() + (16 << 10), "{} bytes of {}", record.len(), bytes.len());
    let again: T = serde_json::from_slice(&record).expect("a record can be read");
    assert!(again == spec, "{}", record.escape_ascii());
}

fn told(error: SpecError) {
    let status = crate::service::status(&error.into());
    assert!(!status.message().is_empty() && status.message().len() <= TOLD_BYTES);
}

fn pod_request() -> v1::RunPodSandboxRequest {
    v1::RunPodSandboxRequest { config: Some(pod_config()), runtime_handler: "vm".to_owned() }
}

fn pod_config() -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "web".to_owned(),
            uid: "u-1".to_owned(),
            namespace: "default".to_owned(),
            attempt: 2,
        }),
        hostname: "web-0".to_owned(),
        log_directory: "/var/log/pods/web".to_owned(),
        dns_config: Some(v1::DnsConfig {
            servers: vec!["10.0.0.10".to_owned()],
            searches: vec!["svc.cluster.local".to_owned()],
            options: vec!["ndots:5".to_owned()],
        }),
        port_mappings: vec![v1::PortMapping {
            protocol: v1::Protocol::Udp.into(),
            container_port: 53,
            host_port: 5353,
            host_ip: "127.0.0.1".to_owned(),
        }],
        labels: pairs("app", "web"),
        annotations: pairs("note", "x"),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods.slice/pod1".to_owned(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                ..v1::LinuxSandboxSecurityContext::default()
            }),
            sysctls: pairs("net.core.somaxconn", "1024"),
            overhead: Some(limits()),
            resources: Some(limits()),
        }),
        windows: None,
    }
}

fn container_config() -> v1::ContainerConfig {
    let profile = v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::Localhost.into(),
        localhost_ref: "/etc/profile.json".to_owned(),
    };
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "app".to_owned(), attempt: 1 }),
        image: Some(v1::ImageSpec { image: "sha256:0".to_owned(), ..v1::ImageSpec::default() }),
        command: vec!["sh".to_owned()],
        args: vec!["-c".to_owned()],
        working_dir: "/srv".to_owned(),
        envs: vec![v1::KeyValue { key: "A".to_owned(), value: b"1".to_vec() }],
        mounts: vec![v1::Mount {
            container_path: "/data".to_owned(),
            host_path: "/var/data".to_owned(),
            readonly: true,
            recursive_read_only: true,
            ..v1::Mount::default()
        }],
        devices: vec![v1::Device {
            container_path: "/dev/fuse".to_owned(),
            host_path: "/dev/fuse".to_owned(),
            permissions: "rwm".to_owned(),
        }],
        labels: pairs("c", "app"),
        log_path: "app/1.log".to_owned(),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(limits()),
            security_context: Some(v1::LinuxContainerSecurityContext {
                capabilities: Some(v1::Capability {
                    add_capabilities: vec!["net_admin".to_owned()],
                    drop_capabilities: vec!["ALL".to_owned()],
                    add_ambient_capabilities: vec!["NET_RAW".to_owned()],
                }),
                namespace_options: Some(namespaces()),
                run_as_user: Some(v1::Int64Value { value: 1002 }),
                supplemental_groups: vec![7],
                masked_paths: vec!["/proc/kcore".to_owned()],
                readonly_paths: vec!["/proc/sys".to_owned()],
                seccomp: Some(profile.clone()),
                apparmor: Some(profile),
                ..v1::LinuxContainerSecurityContext::default()
            }),
        }),
        stop_signal: v1::Signal::Sigusr1.into(),
        ..v1::ContainerConfig::default()
    }
}

fn namespaces() -> v1::NamespaceOption {
    v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..v1::NamespaceOption::default() }
}

fn limits() -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 2,
        memory_limit_in_bytes: 1 << 20,
        oom_score_adj: 10,
        cpuset_cpus: "0-1,3".to_owned(),
        hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 }],
        unified: pairs("memory.high", "max"),
        ..v1::LinuxContainerResources::default()
    }
}

fn pairs(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

/// What a fuzzer starts from.
#[must_use]
pub fn requests() -> Vec<Vec<u8>> {
    let seed = |kind: u8, message: Vec<u8>| [vec![kind], message].concat();
    let container = |sandbox_config| v1::CreateContainerRequest {
        pod_sandbox_id: "p".to_owned(),
        config: Some(container_config()),
        sandbox_config,
    };
    let mut little = pod_request();
    little.config = Some(v1::PodSandboxConfig { metadata: pod_config().metadata, ..Default::default() });
    vec![
        seed(0, pod_request().encode_to_vec()),
        seed(1, pod_request().encode_to_vec()),
        seed(8, little.encode_to_vec()),
        seed(16, container(None).encode_to_vec()),
        seed(23, container(Some(pod_config())).encode_to_vec()),
        seed(24, limits().encode_to_vec()),
        seed(0, Vec::new()),
    ]
}

/// What requests are made of.
pub const WORDS: &[&str] = &[
    "shared",
    "vm",
    "ALL",
    "CAP_",
    "net.ipv4.",
    "kernel.shm",
    "/proc/",
    "../",
    "localhost/",
    "unconfined",
    "runtime/default",
    "rwm",
    "rslave",
    "127.0.0.1",
    "::1",
    "1GB",
    "0-3,7",
    "memory.max",
];
