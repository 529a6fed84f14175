//! Whole requests, converted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kina_model::{
    AppArmor, ContainerImage, ContainerPid, ContainerSpec, ContainerState, Digest, Dns, Exit, ExitReason,
    PidMode, Placement, PodId, PodNamespaces, PodSpec, PodState, Process, Ready, RunAs, Running, Seccomp,
    SelinuxOptions, Signal, SpecError, StopCause, User,
};
use proptest::prelude::*;
use prost::Message;

use super::{Kernel, container_listed, container_spec, pod_listed, pod_spec, seccomp_file, v1, views};
use crate::pod::view::{ContainerView, Identity, PodView};

mod containers;
mod shown;

const KERNEL: Kernel = Kernel { recursive_read_only: true };

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn limits() -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_shares: 2,
        memory_limit_in_bytes: 1 << 20,
        oom_score_adj: 10,
        hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
        ..Default::default()
    }
}

#[allow(deprecated, reason = "every field, also the old ones")]
fn pod_request() -> v1::RunPodSandboxRequest {
    v1::RunPodSandboxRequest {
        config: Some(v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "web".into(),
                uid: "u-1".into(),
                namespace: "default".into(),
                attempt: 2,
            }),
            hostname: "web-0".into(),
            log_directory: "/var/log/pods/web".into(),
            dns_config: Some(v1::DnsConfig {
                servers: vec!["10.0.0.10".into(), "fe80::1%eth0".into()],
                searches: vec!["svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            }),
            port_mappings: vec![v1::PortMapping {
                protocol: v1::Protocol::Udp.into(),
                container_port: 53,
                host_port: 0,
                host_ip: "127.0.0.1".into(),
            }],
            labels: map(&[("app", "web")]),
            annotations: map(&[("note", "x")]),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods.slice/./pod1/".into(),
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(v1::NamespaceOption {
                        pid: v1::NamespaceMode::Container.into(),
                        userns_options: Some(v1::UserNamespace {
                            mode: v1::NamespaceMode::Node.into(),
                            ..Default::default()
                        }),
                        ..Default::default()
                    }),
                    selinux_options: Some(v1::SeLinuxOption::default()),
                    run_as_user: Some(v1::Int64Value { value: 1000 }),
                    run_as_group: Some(v1::Int64Value { value: 1000 }),
                    privileged: true,
                    seccomp: Some(v1::SecurityProfile::default()),
                    ..Default::default()
                }),
                sysctls: map(&[("net.core.somaxconn", "1024"), ("kernel.shm_rmid_forced", "1")]),
                overhead: Some(limits()),
                resources: Some(limits()),
            }),
            windows: None,
        }),
        runtime_handler: "shared".into(),
    }
}

fn convert_pod(request: v1::RunPodSandboxRequest) -> Result<PodSpec, SpecError> {
    pod_spec(request, |_| Ok(Placement::Shared))
}

fn pod() -> PodSpec {
    convert_pod(pod_request()).unwrap()
}

fn container_request() -> v1::CreateContainerRequest {
    v1::CreateContainerRequest {
        pod_sandbox_id: "p".into(),
        config: Some(v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "app".into(), attempt: 1 }),
            image: Some(v1::ImageSpec {
                image: "sha256:0".into(),
                annotations: map(&[("i", "1")]),
                user_specified_image: "busybox:1".into(),
                runtime_handler: "vm".into(),
                image_ref: String::new(),
            }),
            command: vec!["sh".into()],
            args: vec!["-c".into(), "true".into()],
            working_dir: "/srv".into(),
            envs: vec![v1::KeyValue { key: "A".into(), value: b"1".to_vec() }],
            mounts: vec![v1::Mount {
                container_path: "/data".into(),
                host_path: "/var/data".into(),
                readonly: true,
                ..Default::default()
            }],
            devices: vec![v1::Device {
                container_path: "/dev/fuse".into(),
                host_path: "/dev/fuse".into(),
                permissions: "rwm".into(),
            }],
            labels: map(&[("c", "app")]),
            annotations: map(&[("d", "e")]),
            log_path: "app/1.log".into(),
            stdin: true,
            stdin_once: true,
            tty: true,
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(limits()),
                security_context: Some(v1::LinuxContainerSecurityContext {
                    capabilities: Some(v1::Capability {
                        add_capabilities: vec!["net_admin".into(), "CAP_SYS_TIME".into()],
                        drop_capabilities: vec!["all".into()],
                        add_ambient_capabilities: vec!["NET_RAW".into()],
                    }),
                    namespace_options: Some(v1::NamespaceOption {
                        pid: v1::NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    run_as_user: Some(v1::Int64Value { value: 1002 }),
                    run_as_group: Some(v1::Int64Value { value: 1003 }),
                    readonly_rootfs: true,
                    supplemental_groups: vec![7],
                    supplemental_groups_policy: v1::SupplementalGroupsPolicy::Strict.into(),
                    no_new_privs: true,
                    masked_paths: vec!["/proc/kcore".into()],
                    readonly_paths: vec!["/proc/sys".into()],
                    seccomp: Some(v1::SecurityProfile::default()),
                    apparmor: Some(v1::SecurityProfile::default()),
                    ..Default::default()
                }),
            }),
            windows: None,
            cdi_devices: Vec::new(),
            stop_signal: v1::Signal::Sigusr1.into(),
        }),
        sandbox_config: pod_request().config,
    }
}

fn convert_container(request: v1::CreateContainerRequest) -> Result<ContainerSpec, SpecError> {
    container_spec(request, &pod(), KERNEL, None)
}

#[test]
fn a_pod_is_kept_whole() {
    let mut placed = None;
    let spec = pod_spec(pod_request(), |request| {
        placed = Some((request.handler.to_owned(), request.host_pid, request.privileged));
        Ok(Placement::Shared)
    })
    .unwrap();
    assert_eq!(placed, Some(("shared".to_owned(), false, true)));
    assert_eq!((spec.metadata.name.as_str(), spec.metadata.attempt), ("web", 2));
    assert_eq!(spec.hostname, "web-0");
    assert_eq!(spec.log_directory.as_deref(), Some(Path::new("/var/log/pods/web")));
    assert_eq!(spec.dns.as_ref().unwrap().servers.len(), 2);
    assert_eq!(spec.port_mappings[0].protocol, "udp");
    assert_eq!((spec.port_mappings[0].container_port, spec.port_mappings[0].host_port), (53, 0));
    assert_eq!(spec.labels["app"], "web");
    assert_eq!(spec.annotations["note"], "x");
    assert_eq!(spec.cgroup_parent, "/kubepods.slice/pod1");
    assert_eq!(spec.sysctls.len(), 2);
    let namespaces =
        PodNamespaces { user: None, host_network: false, host_ipc: false, pid: PidMode::Container };
    assert_eq!(spec.namespaces, namespaces);
    assert!(spec.privileged);
    assert_eq!(spec.overhead.as_ref().unwrap().cpu_shares, Some(2));
    assert_eq!(spec.overhead, spec.resources);
    assert_eq!(spec.handler, "shared");
}

#[test]
fn a_pod_that_says_little() {
    let metadata = v1::PodSandboxMetadata { name: "Not_A-Host name".into(), ..Default::default() };
    let config = v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
    let spec = convert_pod(v1::RunPodSandboxRequest { config: Some(config), ..Default::default() }).unwrap();
    assert_eq!(spec.hostname, "pod");
    assert_eq!(spec.dns, None::<Dns>);
    assert_eq!(spec.cgroup_parent, "");
    assert_eq!(spec.log_directory, None);
    assert_eq!(spec.namespaces.pid, PidMode::Pod);
    assert_eq!((spec.overhead, spec.resources), (None, None));
}

#[test]
fn a_pod_that_says_it_otherwise() {
    let ask = |change: PodChange| {
        let mut request = pod_request();
        change(request.config.as_mut().unwrap());
        convert_pod(request).unwrap()
    };
    assert_eq!(ask(|c| c.hostname = "crictl_host".into()).hostname, "crictl_host");
    let mapping = &ask(|c| c.port_mappings[0].container_port = 0).port_mappings[0];
    assert_eq!((mapping.container_port, mapping.host_port), (0, 0));
    let parent = |text: &str| {
        let mut request = pod_request();
        request.config.as_mut().unwrap().linux.as_mut().unwrap().cgroup_parent = text.to_owned();
        convert_pod(request).map(|spec| spec.cgroup_parent)
    };
    for (name, path) in [
        ("kubepods.slice", "/kubepods.slice"),
        ("pod_123-456.slice", "/pod_123.slice/pod_123-456.slice"),
        ("a-b-c.d.slice", "/a.slice/a-b.slice/a-b-c.d.slice"),
    ] {
        assert_eq!(parent(name).unwrap(), path);
    }
    for bad in ["a", "a/b.slice", "-.slice", "a--b.slice", "-a.slice", ".slice"] {
        assert!(parent(bad).unwrap_err().to_string().contains("cgroup_parent"), "{bad}");
    }
}

type PodChange = fn(&mut v1::PodSandboxConfig);

/// One that is fine.
fn user_namespace() -> v1::UserNamespace {
    let ids = v1::IdMapping { host_id: 100_000, container_id: 0, length: 65536 };
    v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: vec![ids], gids: vec![ids] }
}

fn context(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxSandboxSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

fn options(config: &mut v1::PodSandboxConfig) -> &mut v1::NamespaceOption {
    context(config).namespace_options.as_mut().unwrap()
}

fn sysctl(config: &mut v1::PodSandboxConfig, name: &str) {
    config.linux.as_mut().unwrap().sysctls.insert(name.to_owned(), "1".to_owned());
}

#[test]
fn pods_that_cannot_be_had() {
    const INVALID: bool = false;
    const UNSUPPORTED: bool = true;
    let cases: &[(bool, &str, &str, PodChange)] = &[
        (INVALID, "config.metadata", "missing", |c| c.metadata = None),
        (INVALID, "config.metadata.name", "empty", |c| c.metadata.as_mut().unwrap().name.clear()),
        (INVALID, "config.metadata.uid", "NUL", |c| c.metadata.as_mut().unwrap().uid.push('\0')),
        (INVALID, "config.hostname", "no host name", |c| c.hostname = "-a".into()),
        (INVALID, "config.hostname", "no host name", |c| c.hostname = "a".repeat(64)),
        (INVALID, "config.hostname", "no host name", |c| c.hostname = "a\nb".into()),
        (INVALID, "config.hostname", "no host name", |c| c.hostname = format!("{}.b.c", "a".repeat(62))),
        (INVALID, "config.log_directory", "absolute", |c| c.log_directory = "logs".into()),
        (INVALID, "config.log_directory", "\"..\"", |c| c.log_directory = "/var/log/../..".into()),
        (INVALID, "config.dns_config.servers[0]", "no IP", |c| {
            c.dns_config.as_mut().unwrap().servers[0] = "dns.local".into();
        }),
        (INVALID, "config.dns_config.servers[1]", "single word", |c| {
            c.dns_config.as_mut().unwrap().servers[1] = "fe80::1%a\nb".into();
        }),
        (INVALID, "config.dns_config.searches[0]", "single word", |c| {
            c.dns_config.as_mut().unwrap().searches[0] = "a\nnameserver 6.6.6.6".into();
        }),
        (INVALID, "config.dns_config.options[0]", "single word", |c| {
            c.dns_config.as_mut().unwrap().options[0] = String::new();
        }),
        (UNSUPPORTED, "config.port_mappings[0].protocol", "value 9", |c| c.port_mappings[0].protocol = 9),
        (INVALID, "config.port_mappings[0].container_port", "from 1", |c| {
            c.port_mappings[0].container_port = 0;
            c.port_mappings[0].host_port = 53;
        }),
        (INVALID, "config.port_mappings[0].host_port", "from 0", |c| c.port_mappings[0].host_port = -1),
        (INVALID, "config.port_mappings[0].host_port", "65535", |c| c.port_mappings[0].host_port = 65536),
        (INVALID, "config.port_mappings[0].host_ip", "no IP", |c| c.port_mappings[0].host_ip = "a".into()),
        (INVALID, "config.annotations[kubernetes.io/egress-bandwidth]", "no quantity", |c| {
            c.annotations.insert("kubernetes.io/egress-bandwidth".into(), "much".into());
        }),
        (INVALID, "config.port_mappings[0].host_port", "make them equal", |c| {
            c.port_mappings[0].host_port = 5353;
            options(c).network = v1::NamespaceMode::Node.into();
            c.linux.as_mut().unwrap().sysctls.clear();
        }),
        (INVALID, "config.linux.cgroup_parent", "absolute", |c| {
            c.linux.as_mut().unwrap().cgroup_parent = "kubepods.slice:cri:x".into();
        }),
        (INVALID, "config.linux.cgroup_parent", "\"..\"", |c| {
            c.linux.as_mut().unwrap().cgroup_parent = "/a/../..".into();
        }),
        (INVALID, "config.linux.sysctls[vm.swappiness]", "namespace", |c| sysctl(c, "vm.swappiness")),
        (INVALID, "config.linux.sysctls[kernel.semaphore]", "namespace", |c| sysctl(c, "kernel.semaphore")),
        (INVALID, "config.linux.sysctls[net/../vm/swappiness]", "no kernel parameter", |c| {
            sysctl(c, "net/../vm/swappiness");
        }),
        (INVALID, "config.linux.sysctls[]", "no kernel parameter", |c| sysctl(c, "")),
        (INVALID, "config.linux.sysctls[net.core.somaxconn]", "network namespace", |c| {
            options(c).network = v1::NamespaceMode::Node.into();
            c.port_mappings.clear();
        }),
        (INVALID, "config.linux.sysctls[kernel.shm_rmid_forced]", "IPC namespace", |c| {
            options(c).ipc = v1::NamespaceMode::Node.into();
        }),
        (INVALID, "config.linux.overhead.cpu_shares", "negative", |c| {
            c.linux.as_mut().unwrap().overhead.as_mut().unwrap().cpu_shares = -1;
        }),
        (INVALID, "config.linux.resources.oom_score_adj", "range", |c| {
            c.linux.as_mut().unwrap().resources.as_mut().unwrap().oom_score_adj = 1 << 40;
        }),
        (UNSUPPORTED, "config.linux.security_context.namespace_options.network", "POD or NODE", |c| {
            options(c).network = v1::NamespaceMode::Container.into();
        }),
        (UNSUPPORTED, "config.linux.security_context.namespace_options.ipc", "POD or NODE", |c| {
            options(c).ipc = v1::NamespaceMode::Target.into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.pid", "TARGET", |c| {
            options(c).pid = v1::NamespaceMode::Target.into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.target_id", "only a container", |c| {
            options(c).target_id = "x".into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.network", "hostUsers", |c| {
            options(c).network = v1::NamespaceMode::Node.into();
            options(c).userns_options = Some(user_namespace());
            c.linux.as_mut().unwrap().sysctls.clear();
            c.port_mappings.clear();
        }),
        (INVALID, "config.linux.security_context.namespace_options.pid", "hostUsers", |c| {
            options(c).pid = v1::NamespaceMode::Node.into();
            options(c).userns_options = Some(user_namespace());
        }),
        (INVALID, "config.linux.security_context.namespace_options.ipc", "hostUsers", |c| {
            options(c).ipc = v1::NamespaceMode::Node.into();
            options(c).userns_options = Some(user_namespace());
        }),
        (
            INVALID,
            "config.linux.security_context.namespace_options.userns_options.uids",
            "exactly one",
            |c| {
                let two = v1::UserNamespace { uids: vec![v1::IdMapping::default(); 2], ..user_namespace() };
                options(c).userns_options = Some(two);
            },
        ),
        (INVALID, "config.linux.security_context.namespace_options.userns_options.mode", "CONTAINER", |c| {
            options(c).userns_options.as_mut().unwrap().mode = v1::NamespaceMode::Container.into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.userns_options", "NODE", |c| {
            options(c).userns_options.as_mut().unwrap().uids.push(v1::IdMapping::default());
        }),
        (INVALID, "config.linux.security_context.selinux_options.level", "s0:c1,c2", |c| {
            context(c).selinux_options.as_mut().unwrap().level = "s0\n".into();
        }),
        (INVALID, "config.linux.security_context.run_as_group", "run_as_user", |c| {
            context(c).run_as_user = None;
        }),
        (INVALID, "config.linux.security_context.run_as_user", "-5", |c| {
            context(c).run_as_user = Some(v1::Int64Value { value: -5 });
        }),
        (INVALID, "config.linux.security_context.supplemental_groups[0]", "no id", |c| {
            context(c).supplemental_groups.push(i64::MAX);
        }),
        (UNSUPPORTED, "config.windows", "Linux", |c| {
            c.windows = Some(v1::WindowsPodSandboxConfig { security_context: Some(Default::default()) });
        }),
    ];
    for (unsupported, field, reason, change) in cases {
        let mut request = pod_request();
        change(request.config.as_mut().unwrap());
        let error = convert_pod(request).expect_err(field);
        assert!(error.to_string().starts_with(&format!("{field}: ")), "{field}: {error}");
        assert!(error.to_string().contains(reason), "{reason}: {error}");
        assert_eq!(matches!(error, SpecError::Unsupported { .. }), *unsupported, "{error}");
    }
    assert!(
        convert_pod(v1::RunPodSandboxRequest::default()).unwrap_err().to_string().starts_with("config: ")
    );
}

#[test]
fn placement_has_its_say() {
    let refuse = SpecError::unsupported("runtime_handler", "no");
    assert_eq!(pod_spec(pod_request(), |_| Err(refuse.clone())).unwrap_err(), refuse);
}

/// A valid message's bytes, some of them changed: most of what is left decodes
/// to messages that no caller would write.
fn damaged(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12);
    changes.prop_map(move |changes| {
        let mut bytes = bytes.clone();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn no_request_makes_a_conversion_panic(
        pod_bytes in damaged(pod_request().encode_to_vec()),
        container_bytes in damaged(container_request().encode_to_vec()),
    ) {
        if let Ok(request) = v1::RunPodSandboxRequest::decode(&*pod_bytes)
            && let Ok(spec) = convert_pod(request)
        {
            prop_assert!(!spec.metadata.name.is_empty());
            prop_assert!(spec.log_directory.is_none_or(|path| path.is_absolute()));
        }
        if let Ok(request) = v1::CreateContainerRequest::decode(&*container_bytes) {
            let _ = seccomp_file(&request);
            if let Ok(spec) = convert_container(request) {
                let paths = spec.mounts.iter().filter_map(|mount| mount.source.host_path());
                prop_assert!(paths.into_iter().all(|path| path.is_absolute()));
                prop_assert!(!spec.log_path.contains("../"));
            }
        }
    }
}
