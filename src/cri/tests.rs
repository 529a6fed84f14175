//! Whole requests, converted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kina_model::{
    ContainerImage, ContainerPid, ContainerSpec, ContainerState, Digest, Dns, Exit, ExitReason, PidMode,
    Placement, PodId, PodNamespaces, PodSpec, PodState, Process, Ready, RunAs, Running, Seccomp, Signal,
    SpecError, StopCause, User,
};
use proptest::prelude::*;
use prost::Message;

use super::{Kernel, container_listed, container_spec, pod_listed, pod_spec, seccomp_file, v1, views};
use crate::pod::view::{ContainerView, Identity, PodView};

const KERNEL: Kernel = Kernel { apparmor: false, recursive_read_only: true };

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
    let namespaces = PodNamespaces { host_network: false, host_ipc: false, pid: PidMode::Container };
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

type PodChange = fn(&mut v1::PodSandboxConfig);

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
        (UNSUPPORTED, "config.linux.security_context.namespace_options.userns_options", "hostUsers", |c| {
            let id = v1::IdMapping { host_id: 100_000, container_id: 0, length: 65536 };
            options(c).userns_options = Some(v1::UserNamespace {
                mode: v1::NamespaceMode::Pod.into(),
                uids: vec![id],
                gids: vec![id],
            });
        }),
        (INVALID, "config.linux.security_context.namespace_options.userns_options.mode", "neither", |c| {
            options(c).userns_options.as_mut().unwrap().mode = v1::NamespaceMode::Container.into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.userns_options", "NODE", |c| {
            options(c).userns_options.as_mut().unwrap().uids.push(v1::IdMapping::default());
        }),
        (UNSUPPORTED, "config.linux.security_context.selinux_options", "seLinuxOptions", |c| {
            context(c).selinux_options.as_mut().unwrap().level = "s0".into();
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

#[test]
fn a_container_is_kept_whole() {
    let spec = convert_container(container_request()).unwrap();
    assert_eq!((spec.metadata.name.as_str(), spec.metadata.attempt), ("app", 1));
    assert_eq!((spec.image.as_str(), spec.user_specified_image.as_str()), ("sha256:0", "busybox:1"));
    assert_eq!(spec.image_annotations["i"], "1");
    assert_eq!((spec.command.len(), spec.args.len(), spec.working_dir.as_str()), (1, 2, "/srv"));
    assert_eq!(spec.env, [("A".to_owned(), "1".to_owned())]);
    assert!(spec.mounts[0].readonly);
    assert_eq!(spec.devices[0].permissions, "rwm");
    assert_eq!((spec.labels["c"].as_str(), spec.annotations["d"].as_str()), ("app", "e"));
    assert_eq!(spec.log_path, "app/1.log");
    assert!(spec.stdin && spec.stdin_once && spec.tty);
    assert_eq!(spec.resources.oom_score_adj, Some(10));
    assert_eq!(spec.stop_signal, Signal::from_number(10));
    let security = spec.security;
    assert!(!security.privileged && security.readonly_rootfs && security.no_new_privs);
    assert_eq!(security.add_capabilities, ["NET_ADMIN", "SYS_TIME"]);
    assert_eq!(security.drop_capabilities, ["ALL"]);
    assert_eq!(security.ambient_capabilities, ["NET_RAW"]);
    assert_eq!(security.pid, None);
    assert_eq!((security.user, security.group), (Some(RunAs::Uid(1002)), Some(1003)));
    assert_eq!((security.supplemental_groups, security.strict_groups), (vec![7], true));
    assert_eq!(security.masked_paths, Some(vec!["/proc/kcore".to_owned()]));
    assert_eq!(security.readonly_paths, Some(vec!["/proc/sys".to_owned()]));
    assert_eq!(security.seccomp, Seccomp::RuntimeDefault);
    assert_eq!(security.apparmor_profile, "");
}

#[test]
fn a_container_that_says_little() {
    let mut request = container_request();
    request.sandbox_config = None;
    request.config = Some(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "a".into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: "busybox".into(), ..Default::default() }),
        ..Default::default()
    });
    let spec = convert_container(request).unwrap();
    // The CRI: no seccomp profile is none; lists of paths are meant as they are.
    assert_eq!(spec.security.seccomp, Seccomp::Unconfined);
    assert_eq!(spec.security.masked_paths, Some(Vec::new()));
    assert_eq!(spec.security.pid, None);
    assert_eq!((spec.security.user, spec.stop_signal), (None, None));
    assert_eq!(spec.resources, kina_model::Resources::default());
}

type ContainerChange = fn(&mut v1::ContainerConfig);

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

fn pid(config: &mut v1::ContainerConfig) -> &mut v1::NamespaceOption {
    security(config).namespace_options.as_mut().unwrap()
}

fn localhost(reference: &str) -> Option<v1::SecurityProfile> {
    let profile_type = v1::security_profile::ProfileType::Localhost.into();
    Some(v1::SecurityProfile { profile_type, localhost_ref: reference.to_owned() })
}

#[test]
#[allow(deprecated, reason = "older kubelets use the old fields")]
fn containers_that_cannot_be_had() {
    const INVALID: bool = false;
    const UNSUPPORTED: bool = true;
    let cases: &[(bool, &str, &str, ContainerChange)] = &[
        (INVALID, "config.metadata", "missing", |c| c.metadata = None),
        (INVALID, "config.metadata.name", "empty", |c| c.metadata.as_mut().unwrap().name.clear()),
        (INVALID, "config.image", "missing", |c| c.image = None),
        (INVALID, "config.image.image", "empty", |c| c.image.as_mut().unwrap().image.clear()),
        (INVALID, "config.command[0]", "NUL", |c| c.command[0].push('\0')),
        (INVALID, "config.args[1]", "NUL", |c| c.args[1].push('\0')),
        (INVALID, "config.working_dir", "absolute", |c| c.working_dir = "srv".into()),
        (INVALID, "config.envs[0].key", "'='", |c| c.envs[0].key = "A=".into()),
        (INVALID, "config.mounts[0].host_path", "absolute", |c| c.mounts[0].host_path = "x".into()),
        (INVALID, "config.devices[0].permissions", "r, w and m", |c| c.devices[0].permissions = "x".into()),
        (INVALID, "config.log_path", "\"..\"", |c| c.log_path = "../../etc/cron.d/x".into()),
        (INVALID, "config.log_path", "relative", |c| c.log_path = "/etc/cron.d/x".into()),
        (INVALID, "config.linux.resources.cpu_quota", "1000", |c| {
            c.linux.as_mut().unwrap().resources.as_mut().unwrap().cpu_quota = 1;
        }),
        (UNSUPPORTED, "config.CDI_devices", "devices", |c| c.cdi_devices.push(Default::default())),
        (UNSUPPORTED, "config.windows", "Linux", |c| {
            c.windows = Some(v1::WindowsContainerConfig {
                resources: Some(Default::default()),
                ..Default::default()
            });
        }),
        (UNSUPPORTED, "config.stop_signal", "value 99", |c| c.stop_signal = 99),
        (INVALID, "config.linux.security_context.capabilities.add_capabilities[1]", "NET_ADMIN", |c| {
            security(c).capabilities.as_mut().unwrap().add_capabilities[1] = "CAP_FLY".into();
        }),
        (INVALID, "config.linux.security_context.capabilities.add_ambient_capabilities[0]", "\"ALL\"", |c| {
            security(c).capabilities.as_mut().unwrap().add_ambient_capabilities[0] = "ALL".into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.pid", "with CONTAINER", |c| {
            pid(c).pid = v1::NamespaceMode::Pod.into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.pid", "RunPodSandbox", |c| {
            pid(c).pid = v1::NamespaceMode::Node.into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.target_id", "missing", |c| {
            pid(c).pid = v1::NamespaceMode::Target.into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.target_id", "not TARGET", |c| {
            pid(c).target_id = "x".into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.network", "RunPodSandbox", |c| {
            pid(c).network = v1::NamespaceMode::Node.into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.ipc", "RunPodSandbox", |c| {
            pid(c).ipc = v1::NamespaceMode::Node.into();
        }),
        (UNSUPPORTED, "config.linux.security_context.namespace_options.network", "POD or NODE", |c| {
            pid(c).network = v1::NamespaceMode::Container.into();
        }),
        (UNSUPPORTED, "config.linux.security_context.namespace_options.userns_options", "hostUsers", |c| {
            pid(c).userns_options = Some(v1::UserNamespace::default());
        }),
        (UNSUPPORTED, "config.linux.security_context.selinux_options", "leave", |c| {
            security(c).selinux_options =
                Some(v1::SeLinuxOption { r#type: "t".into(), ..Default::default() });
        }),
        (INVALID, "config.linux.security_context.run_as_group", "run_as_username", |c| {
            security(c).run_as_user = None;
        }),
        (INVALID, "config.linux.security_context.run_as_username", "only one", |c| {
            security(c).run_as_username = "www-data".into();
        }),
        (INVALID, "config.linux.security_context.run_as_username", "run_as_group", |c| {
            security(c).run_as_user = None;
            security(c).run_as_username = "www-data:www".into();
        }),
        (INVALID, "config.linux.security_context.supplemental_groups[1]", "no id", |c| {
            security(c).supplemental_groups.push(-1);
        }),
        (UNSUPPORTED, "config.linux.security_context.supplemental_groups_policy", "value 2", |c| {
            security(c).supplemental_groups_policy = 2;
        }),
        (INVALID, "config.linux.security_context.masked_paths[0]", "absolute", |c| {
            security(c).masked_paths[0] = "proc".into();
        }),
        (INVALID, "config.linux.security_context.readonly_paths[0]", "\"..\"", |c| {
            security(c).readonly_paths[0] = "/proc/..".into();
        }),
        (UNSUPPORTED, "config.linux.security_context.seccomp.profile_type", "value 5", |c| {
            security(c).seccomp.as_mut().unwrap().profile_type = 5;
        }),
        (INVALID, "config.linux.security_context.seccomp.localhost_ref", "missing", |c| {
            security(c).seccomp = localhost("");
        }),
        (INVALID, "config.linux.security_context.seccomp.localhost_ref", "not Localhost", |c| {
            security(c).seccomp.as_mut().unwrap().localhost_ref = "/a".into();
        }),
        (INVALID, "config.linux.security_context.seccomp.localhost_ref", "not read", |c| {
            security(c).seccomp = localhost("/p.json");
        }),
        (INVALID, "config.linux.security_context.seccomp_profile_path", "runtime/default", |c| {
            security(c).seccomp = None;
            security(c).seccomp_profile_path = "/p.json".into();
        }),
        (INVALID, "config.linux.security_context.apparmor_profile", "runtime/default", |c| {
            security(c).apparmor = None;
            security(c).apparmor_profile = "mine".into();
        }),
        (UNSUPPORTED, "config.linux.security_context.apparmor.localhost_ref", "no AppArmor", |c| {
            security(c).apparmor = localhost("mine");
        }),
        (UNSUPPORTED, "config.linux.security_context.apparmor.localhost_ref", "no AppArmor", |c| {
            security(c).apparmor = None;
            security(c).apparmor_profile = "localhost/mine".into();
        }),
    ];
    for (unsupported, field, reason, change) in cases {
        let mut request = container_request();
        change(request.config.as_mut().unwrap());
        let error = convert_container(request).expect_err(field);
        assert!(error.to_string().starts_with(&format!("{field}: ")), "{field}: {error}");
        assert!(error.to_string().contains(reason), "{reason}: {error}");
        assert_eq!(matches!(error, SpecError::Unsupported { .. }), *unsupported, "{error}");
    }
    let mut other_directory = container_request();
    other_directory.sandbox_config.as_mut().unwrap().log_directory = "/elsewhere".into();
    let error = convert_container(other_directory).unwrap_err().to_string();
    assert!(error.starts_with("sandbox_config.log_directory: "), "{error}");
}

#[test]
fn privileged_containers() {
    let mut request = container_request();
    let context = security(request.config.as_mut().unwrap());
    context.privileged = true;
    context.seccomp = localhost("/p.json");
    assert_eq!(seccomp_file(&request).unwrap(), None);
    let spec = convert_container(request.clone()).unwrap().security;
    assert_eq!(spec.seccomp, Seccomp::Unconfined);
    assert_eq!((spec.masked_paths, spec.readonly_paths), (Some(Vec::new()), Some(Vec::new())));

    let plain = PodSpec { privileged: false, ..pod() };
    let error = container_spec(request, &plain, KERNEL, None).unwrap_err().to_string();
    assert!(error.starts_with("config.linux.security_context.privileged: "), "{error}");
}

#[test]
fn what_a_container_sees_of_other_processes() {
    use v1::NamespaceMode::{Container, Node, Pod, Target};
    for (of_pod, asked, expected) in [
        (PidMode::Pod, Some(Pod), None),
        (PidMode::Node, Some(Pod), None),
        (PidMode::Node, Some(Node), None),
        (PidMode::Node, Some(Container), Some(ContainerPid::Mode(PidMode::Container))),
        (PidMode::Pod, Some(Container), Some(ContainerPid::Mode(PidMode::Container))),
        (PidMode::Container, Some(Container), None),
        (PidMode::Container, Some(Target), Some(ContainerPid::Target("other".into()))),
        (PidMode::Container, None, None),
    ] {
        let mut pod = pod();
        pod.namespaces.pid = of_pod;
        let mut request = container_request();
        security(request.config.as_mut().unwrap()).namespace_options =
            asked.map(|mode| v1::NamespaceOption {
                pid: mode.into(),
                target_id: if mode == Target { "other".into() } else { String::new() },
                ..Default::default()
            });
        let spec = container_spec(request, &pod, KERNEL, None).unwrap();
        assert_eq!(spec.security.pid, expected, "{of_pod:?} {asked:?}");
    }
}

#[test]
#[allow(deprecated, reason = "older kubelets use the old field")]
fn seccomp_profiles() {
    let ask = |profile: Option<v1::SecurityProfile>, old: &str, text: Option<&str>| {
        let mut request = container_request();
        let context = security(request.config.as_mut().unwrap());
        context.seccomp = profile;
        context.seccomp_profile_path = old.to_owned();
        let file = seccomp_file(&request)?;
        let spec = container_spec(request, &pod(), KERNEL, text.map(ToOwned::to_owned))?;
        Ok::<_, SpecError>((file, spec.security.seccomp))
    };
    let file = Some(PathBuf::from("/var/lib/kubelet/p.json"));
    let text = "{\"defaultAction\":\"SCMP_ACT_ALLOW\"}";
    let own = Seccomp::Localhost(text.to_owned());
    for (profile, old, expected) in [
        (None, "", (None, Seccomp::Unconfined)),
        (None, "unconfined", (None, Seccomp::Unconfined)),
        (None, "runtime/default", (None, Seccomp::RuntimeDefault)),
        (None, "docker/default", (None, Seccomp::RuntimeDefault)),
        (None, "localhost//var/lib/kubelet/p.json", (file.clone(), own.clone())),
        (localhost("/var/lib/kubelet/p.json"), "unconfined", (file.clone(), own.clone())),
        (localhost("localhost//var/lib/kubelet/p.json"), "", (file, own)),
    ] {
        assert_eq!(ask(profile.clone(), old, Some(text)).unwrap(), expected, "{profile:?} {old}");
    }
    let relative = ask(localhost("p.json"), "", Some(text)).unwrap_err().to_string();
    assert!(relative.contains("localhost_ref") && relative.contains("absolute"), "{relative}");
    for bad in ["", "[]", "not json"] {
        let error = ask(localhost("/p.json"), "", Some(bad)).unwrap_err().to_string();
        assert!(error.contains("/p.json is no profile"), "{error}");
    }
}

#[test]
fn apparmor_profiles() {
    let kernel = Kernel { apparmor: true, ..KERNEL };
    let ask = |profile: Option<v1::SecurityProfile>| {
        let mut request = container_request();
        security(request.config.as_mut().unwrap()).apparmor = profile;
        container_spec(request, &pod(), kernel, None).map(|spec| spec.security.apparmor_profile)
    };
    assert_eq!(ask(None).unwrap(), "");
    assert_eq!(ask(localhost("localhost/mine")).unwrap(), "mine");
    let error = ask(Some(v1::SecurityProfile::default())).unwrap_err();
    assert!(matches!(&error, SpecError::Unsupported { .. }), "{error}");
    assert!(!Kernel::of(Placement::Vm, true, true).apparmor);
    assert!(Kernel::of(Placement::Shared, true, true).apparmor);
}

fn pod_view(state: PodState) -> PodView {
    PodView {
        id: PodId::random(),
        spec: Arc::new(pod()),
        state,
        created_at: 5,
        machine: "host",
        containers: BTreeMap::new(),
    }
}

fn ready() -> PodState {
    PodState::Ready(Ready {
        network: None,
        addresses: vec!["10.1.0.4".parse().unwrap(), "fd00::4".parse().unwrap()],
        boot_id: "b".into(),
        kernel: "6".into(),
        size: None,
    })
}

fn container_view(state: ContainerState) -> ContainerView {
    let spec = convert_container(container_request()).unwrap();
    ContainerView {
        id: kina_model::ContainerId::random(),
        pod: PodId::random(),
        image: ContainerImage {
            requested: spec.image.clone(),
            user_specified: spec.user_specified_image.clone(),
            annotations: spec.image_annotations.clone(),
            id: Digest::from_sha256([1; 32]),
            reference: "busybox@sha256:2".into(),
        },
        spec: Arc::new(spec),
        process: Process {
            args: vec!["sh".into()],
            env: Vec::new(),
            cwd: "/".into(),
            user: User::Uid(1002),
            stop_signal: Signal::TERM,
        },
        log_path: Some("/var/log/pods/web/app/1.log".into()),
        state,
        created_at: 6,
        identity: Some(Identity { pid: 1, uid: 1002, gid: 1003, supplemental_groups: vec![7] }),
    }
}

fn exited() -> ContainerState {
    ContainerState::Exited(Exit {
        code: 137,
        started_at: 7,
        finished_at: 8,
        reason: ExitReason::OutOfMemory,
        message: "m".into(),
    })
}

#[test]
fn pods_are_shown() {
    let view = pod_view(ready());
    let status = views::pod_status(&view);
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    let network = status.network.unwrap();
    assert_eq!((network.ip.as_str(), network.additional_ips[0].ip.as_str()), ("10.1.0.4", "fd00::4"));
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options.pid(), v1::NamespaceMode::Container);
    assert_eq!(status.metadata, pod_request().config.unwrap().metadata);
    assert_eq!((status.created_at, status.runtime_handler.as_str()), (5, "shared"));
    let listed = views::pod(&view);
    assert_eq!(
        (listed.id, listed.labels, listed.annotations),
        (view.id.to_string(), status.labels, status.annotations)
    );

    for state in
        [PodState::Stopped(StopCause::Asked), PodState::Stopping(StopCause::Asked), PodState::Removing]
    {
        let status = views::pod_status(&pod_view(state));
        assert_eq!(status.state(), v1::PodSandboxState::SandboxNotready);
        assert_eq!(status.network.unwrap().ip, "");
    }
}

#[test]
fn containers_are_shown() {
    let view = container_view(exited());
    let status = views::container_status(&view);
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert_eq!((status.created_at, status.started_at, status.finished_at), (6, 7, 8));
    assert_eq!((status.exit_code, status.reason.as_str(), status.message.as_str()), (137, "OOMKilled", "m"));
    assert_eq!(status.image_id, Digest::from_sha256([1; 32]).to_string());
    assert_eq!(status.image_ref, "busybox@sha256:2");
    assert_eq!(status.log_path, "/var/log/pods/web/app/1.log");
    assert_eq!(status.stop_signal(), v1::Signal::Sigterm);
    assert_eq!(status.resources.clone().unwrap().linux.unwrap(), limits());
    assert_eq!(status.mounts, container_request().config.unwrap().mounts);
    let user = status.user.clone().unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1002, 1003, vec![7]));
    let listed = views::container(&view);
    assert_eq!((listed.image_id, listed.image_ref), (status.image_id, status.image_ref));
    assert_eq!(listed.image.unwrap().user_specified_image, "busybox:1");

    let running =
        views::container_status(&container_view(ContainerState::Running(Running { started_at: 9 })));
    assert_eq!(running.state(), v1::ContainerState::ContainerRunning);
    assert_eq!((running.started_at, running.finished_at, running.reason.as_str()), (9, 0, ""));
    let created = views::container_status(&container_view(ContainerState::Created));
    assert_eq!((created.state(), created.started_at), (v1::ContainerState::ContainerCreated, 0));
}

#[test]
fn filters_narrow_together() {
    let pod = pod_view(ready());
    let id = pod.id.as_str();
    let state = |state: v1::PodSandboxState| Some(v1::PodSandboxStateValue { state: state.into() });
    let ready = || state(v1::PodSandboxState::SandboxReady);
    for (id, state, labels, expected) in [
        ("", None, map(&[]), true),
        (id, None, map(&[]), true),
        (&id[..6], ready(), map(&[("app", "web")]), true),
        ("nothing", ready(), map(&[("app", "web")]), false),
        (id, state(v1::PodSandboxState::SandboxNotready), map(&[]), false),
        (id, ready(), map(&[("app", "db")]), false),
        ("", None, map(&[("app", "web"), ("tier", "1")]), false),
    ] {
        let filter = v1::PodSandboxFilter { id: id.to_owned(), state, label_selector: labels };
        assert_eq!(pod_listed(&pod, Some(&filter)), expected, "{filter:?}");
    }
    assert!(pod_listed(&pod, None));

    let container = container_view(exited());
    let (id, pod_id) = (container.id.as_str(), container.pod.as_str());
    let state = |state: v1::ContainerState| Some(v1::ContainerStateValue { state: state.into() });
    let exited = || state(v1::ContainerState::ContainerExited);
    for (id, state, pod_sandbox_id, labels, expected) in [
        ("", None, "", map(&[]), true),
        (&id[..4], exited(), &pod_id[..4], map(&[("c", "app")]), true),
        (id, exited(), "other", map(&[]), false),
        ("other", None, pod_id, map(&[]), false),
        (id, state(v1::ContainerState::ContainerRunning), pod_id, map(&[]), false),
        (id, exited(), pod_id, map(&[("c", "x")]), false),
    ] {
        let filter = v1::ContainerFilter {
            id: id.to_owned(),
            state,
            pod_sandbox_id: pod_sandbox_id.to_owned(),
            label_selector: labels,
        };
        assert_eq!(container_listed(&container, Some(&filter)), expected, "{filter:?}");
    }
    assert!(container_listed(&container, None));
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
                prop_assert!(spec.mounts.iter().all(|mount| mount.host_path.is_absolute()));
                prop_assert!(!spec.log_path.contains("../"));
            }
        }
    }
}
