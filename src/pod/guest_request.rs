//! From the model to the guest protocol.

use std::path::Path;

use kina_guest_api::v1;
use kina_machine::Attachment;
use kina_model::{
    ContainerPid, ContainerSpec, Device, Dns, IdRange, Mount, PidMode, PodId, PodSpec, Process, Propagation,
    Resources, RunAs, Seccomp, Security, SelinuxOptions, User, UserNamespace,
};

use super::apparmor::Confinement;
use crate::cdi::{DeviceKind, DeviceNode, Edits};
use crate::error::Error;

/// Capabilities of a container that asks for nothing: containerd's and
/// Docker's fourteen.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// All capabilities, in the order of their numbers (capabilities(7)).
const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// SetupPod for a pod. `state` is a path as the guest sees it; `network` is
/// `None` for a pod on the node's own. With no `resolver` it is what the guest's own
/// is.
pub(super) fn setup_pod(
    pod: &PodId,
    spec: &PodSpec,
    state: &Path,
    network: Option<Attachment>,
    resolver: Option<&Dns>,
    cgroup: &str,
) -> Result<v1::SetupPodRequest, Error> {
    use v1::pod_network::Kind;
    let kind = match network {
        None => Kind::Host(v1::Empty {}),
        Some(Attachment::Namespace(path)) => Kind::NamespacePath(path.display().to_string()),
        Some(Attachment::Interface(interface)) => {
            let json = serde_json::to_vec(&*interface)
                .map_err(|source| Error::Encode { what: "the pod's network interface", source })?;
            Kind::Interface(json)
        }
        Some(Attachment::Loopback) => Kind::Loopback(v1::Empty {}),
        Some(Attachment::Machine(_)) => Kind::Machine(v1::Empty {}),
    };
    let mode = |host: bool| if host { v1::NamespaceMode::Host } else { v1::NamespaceMode::Pod };
    Ok(v1::SetupPodRequest {
        pod_id: pod.to_string(),
        hostname: spec.hostname.clone(),
        state_directory: state.display().to_string(),
        cgroup_path: cgroup.to_owned(),
        network: Some(v1::PodNetwork { kind: Some(kind) }),
        ipc: mode(spec.namespaces.host_ipc).into(),
        pid: pid_mode(spec.namespaces.pid).into(),
        // The host name of the node's network is the node's, unless the pod names one.
        uts: mode(spec.namespaces.host_network && spec.hostname.is_empty()).into(),
        sysctls: spec.sysctls.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        dns: resolver.map(dns),
        shm_bytes: 0,
        user: spec.namespaces.user.map(id_mappings),
        selinux: spec.selinux.as_ref().map(selinux),
    })
}

/// The mappings of a pod's user namespace.
pub(super) fn id_mappings(user: UserNamespace) -> v1::IdMappings {
    let range = |IdRange { inside, outside, length }| v1::IdRange { inside, outside, length };
    v1::IdMappings { uids: vec![range(user.uids)], gids: vec![range(user.gids)] }
}

fn dns(dns: &Dns) -> v1::Dns {
    v1::Dns { servers: dns.servers.clone(), searches: dns.searches.clone(), options: dns.options.clone() }
}

fn pid_mode(mode: PidMode) -> v1::NamespaceMode {
    match mode {
        PidMode::Pod => v1::NamespaceMode::Pod,
        PidMode::Container => v1::NamespaceMode::Container,
        PidMode::Node => v1::NamespaceMode::Host,
    }
}

/// CreateContainer for a container. `layers` of its image come topmost first.
pub(super) fn create_container(
    id: &str,
    spec: &ContainerSpec,
    process: &Process,
    layers: Vec<v1::Layer>,
    volumes: &[String],
    mounts: Vec<v1::Mount>,
    log: v1::log_target::Target,
) -> v1::CreateContainerRequest {
    let security = &spec.security;
    let (pid, pid_target) = match &security.pid {
        None => (v1::NamespaceMode::Unspecified, String::new()),
        Some(ContainerPid::Mode(mode)) => (pid_mode(*mode), String::new()),
        Some(ContainerPid::Target(target)) => (v1::NamespaceMode::Target, target.clone()),
    };
    let hidden = |own: &Option<Vec<String>>, defaults: &[&str]| match own {
        Some(paths) => paths.clone(),
        None if security.privileged => Vec::new(),
        None => defaults.iter().map(|path| (*path).to_owned()).collect(),
    };
    v1::CreateContainerRequest {
        id: id.to_owned(),
        rootfs: Some(v1::Rootfs { layers, readonly: security.readonly_rootfs, volumes: volumes.to_vec() }),
        process: Some(guest_process(spec, process)),
        mounts,
        devices: spec.devices.iter().map(device).collect(),
        pid: pid.into(),
        pid_target,
        resources: Some(resources(&spec.resources)),
        log: Some(v1::LogTarget { target: Some(log) }),
        privileged: security.privileged,
        masked_paths: hidden(&security.masked_paths, &MASKED_PATHS),
        readonly_paths: hidden(&security.readonly_paths, &READONLY_PATHS),
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        stop_signal: u32::from(process.stop_signal.number()),
        annotations: spec.annotations.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
    }
}

/// What Kubernetes hides by default (`ProcMount: Default`).
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// What Kubernetes makes read-only by default.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn guest_process(spec: &ContainerSpec, process: &Process) -> v1::Process {
    use v1::seccomp::Profile;
    let security = &spec.security;
    let capabilities = capabilities(security);
    let ambient = ambient_capabilities(security);
    let profile = match &security.seccomp {
        _ if security.privileged => Profile::Unconfined(v1::Empty {}),
        Seccomp::Unconfined => Profile::Unconfined(v1::Empty {}),
        Seccomp::RuntimeDefault => Profile::RuntimeDefault(v1::Empty {}),
        Seccomp::Localhost(json) => Profile::Json(json.clone()),
    };
    v1::Process {
        args: process.args.clone(),
        env: process.env.clone(),
        cwd: process.cwd.clone(),
        user: Some(user(security, process)),
        terminal: spec.tty,
        bounding: capabilities.clone(),
        effective: capabilities.clone(),
        // As containerd since CVE-2022-24769: inheritable only what is ambient.
        inheritable: ambient.clone(),
        permitted: capabilities,
        ambient,
        no_new_privileges: security.no_new_privs,
        seccomp: Some(v1::Seccomp { profile: Some(profile) }),
        apparmor_profile: String::new(),
        apparmor_policy: Vec::new(),
        selinux: None,
        oom_score_adj: spec.resources.oom_score_adj,
        rlimits: Vec::new(),
    }
}

fn user(security: &Security, process: &Process) -> v1::User {
    use v1::user::Who;
    let who = match (&security.user, &process.user) {
        (Some(RunAs::Uid(uid)), _) | (None, User::Uid(uid)) => Who::Uid(*uid),
        (Some(RunAs::Name(name)), _) | (None, User::Named(name)) => Who::Name(name.clone()),
    };
    v1::User {
        who: Some(who),
        gid: security.group,
        supplemental_groups: security.supplemental_groups.clone(),
        strict_groups: security.strict_groups,
    }
}

fn full_name(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
}

/// The capabilities that a container has, as containerd and CRI-O read the lists: `ALL`
/// is applied first, in the list to drop last, so that single names refine it; a name
/// that is in both lists is dropped.
fn capabilities(security: &Security) -> Vec<String> {
    if security.privileged {
        return ALL_CAPABILITIES.iter().map(|name| full_name(name)).collect();
    }
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let adds_all = security.add_capabilities.iter().any(is_all);
    let drops_all = security.drop_capabilities.iter().any(is_all);
    let base: &[&str] = match (adds_all, drops_all) {
        (_, true) => &[],
        (true, false) => &ALL_CAPABILITIES,
        (false, false) => &DEFAULT_CAPABILITIES,
    };
    let mut names: Vec<String> = base.iter().map(|name| full_name(name)).collect();
    for name in security.add_capabilities.iter().chain(&security.ambient_capabilities) {
        let name = full_name(name);
        if name != "CAP_ALL" && !names.contains(&name) {
            names.push(name);
        }
    }
    names.retain(|name| !is_dropped(security, name));
    names
}

/// Those of them that a program of another user than root keeps.
fn ambient_capabilities(security: &Security) -> Vec<String> {
    let names = security.ambient_capabilities.iter().map(|name| full_name(name));
    names.filter(|name| security.privileged || !is_dropped(security, name)).collect()
}

/// Whether a capability, by its full name, is in the list to drop.
fn is_dropped(security: &Security, name: &str) -> bool {
    security.drop_capabilities.iter().any(|dropped| full_name(dropped) == name)
}

/// A mount whose source the guest finds at `source`.
#[must_use]
pub(super) fn mount(mount: &Mount, source: &Path) -> v1::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => v1::MountPropagation::Private,
        Propagation::HostToContainer => v1::MountPropagation::HostToContainer,
        Propagation::Bidirectional => v1::MountPropagation::Bidirectional,
    };
    v1::Mount {
        source: source.display().to_string(),
        destination: mount.container_path.clone(),
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation: propagation.into(),
        tmpfs: false,
        tmpfs_bytes: 0,
        options: mount.options.clone(),
        volume: None,
        mapped: mount.mapped.map(id_mappings),
        image: None,
        relabel: mount.relabel,
    }
}

/// A mount of a directory that the guest keeps for the pod.
#[must_use]
pub(super) fn kept_mount(mount: &Mount, volume: v1::PodVolume) -> v1::Mount {
    v1::Mount { volume: Some(volume), ..self::mount(mount, Path::new("")) }
}

/// A mount of an image's files; `layers` come topmost first.
#[must_use]
pub(super) fn image_mount(mount: &Mount, layers: Vec<v1::Layer>) -> v1::Mount {
    let sub_path = mount.source.image().map(|image| image.sub_path.clone()).unwrap_or_default();
    let image = Some(v1::ImageVolume { layers, sub_path });
    // Its layers are mapped by the pod's user namespace already.
    v1::Mount { image, mapped: None, ..self::mount(mount, Path::new("")) }
}

fn device(device: &Device) -> v1::Device {
    v1::Device {
        source: device.host_path.display().to_string(),
        destination: device.container_path.clone(),
        permissions: device.permissions.clone(),
        node: None,
    }
}

/// Gives a container what devices bring along.
pub(super) fn edit(request: &mut v1::CreateContainerRequest, edits: &Edits) {
    let Edits { env, devices, mounts, groups } = edits;
    if let Some(process) = &mut request.process {
        process.env.extend(env.iter().cloned());
        if let Some(user) = &mut process.user {
            user.supplemental_groups.extend(groups);
        }
    }
    request.devices.extend(devices.iter().map(device_node));
    let of_node = mounts.iter().filter_map(|mount| Some(self::mount(mount, mount.source.host_path()?)));
    request.mounts.extend(of_node);
}

fn selinux(options: &SelinuxOptions) -> v1::SelinuxOptions {
    let SelinuxOptions { user, role, kind, level } = options.clone();
    v1::SelinuxOptions { user, role, r#type: kind, level }
}

/// Confines a container's process.
pub(super) fn confine(request: &mut v1::CreateContainerRequest, confinement: &Confinement) {
    if let Some(process) = &mut request.process {
        process.apparmor_profile.clone_from(&confinement.profile);
        process.apparmor_policy.clone_from(&confinement.policy);
        process.selinux = confinement.selinux.as_ref().map(selinux);
    }
}

fn device_node(device: &DeviceNode) -> v1::Device {
    let number = match device.kind {
        DeviceKind::OfNode { .. } => None,
        DeviceKind::Number { block, major, minor } => Some(v1::DeviceNumber { block, major, minor }),
    };
    let node = v1::DeviceNode { number, mode: device.mode, uid: device.uid, gid: device.gid };
    v1::Device {
        source: device.host_path.display().to_string(),
        destination: device.container_path.display().to_string(),
        permissions: device.permissions.clone(),
        node: Some(node),
    }
}

/// Limits.
pub(super) fn resources(resources: &Resources) -> v1::Resources {
    v1::Resources {
        cpu_shares: resources.cpu_shares,
        cpu_quota_micros: resources.cpu_quota_micros,
        cpu_period_micros: resources.cpu_period_micros,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        memory_limit_bytes: resources.memory_limit_bytes,
        memory_swap_limit_bytes: resources.memory_swap_limit_bytes,
        pids_limit: resources.pids_limit,
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| v1::HugepageLimit { page_size: page_size.clone(), limit_bytes: *limit })
            .collect(),
        unified: resources.unified.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(add: &[&str], drop: &[&str]) -> Vec<String> {
        let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        capabilities(&Security {
            add_capabilities: strings(add),
            drop_capabilities: strings(drop),
            ..Security::default()
        })
    }

    #[test]
    fn capabilities_by_request() {
        assert_eq!(with(&[], &[]).len(), 14);
        assert_eq!(with(&["NET_ADMIN"], &[]).len(), 15);
        assert_eq!(with(&["net_admin", "CAP_NET_ADMIN"], &[]).len(), 15);
        assert_eq!(with(&[], &["CHOWN", "cap_kill"]).len(), 12);
        assert_eq!(with(&["ALL"], &["SYS_ADMIN"]).len(), 40);
        assert_eq!(with(&["SYS_TIME"], &["ALL"]), ["CAP_SYS_TIME"]);
        assert_eq!(with(&["ALL", "SYS_TIME"], &["all"]), ["CAP_SYS_TIME"]);
        assert_eq!(with(&["ALL"], &["ALL"]), [""; 0]);
        assert_eq!(with(&["CHOWN", "SYS_TIME"], &["ALL", "chown"]), ["CAP_SYS_TIME"]);
        let privileged = Security { privileged: true, ..Security::default() };
        assert_eq!(capabilities(&privileged).len(), 41);
    }

    #[test]
    fn ambient_capabilities_are_held_too() {
        let security = Security { ambient_capabilities: vec!["NET_ADMIN".into()], ..Security::default() };
        assert!(capabilities(&security).contains(&"CAP_NET_ADMIN".to_owned()));
        assert_eq!(ambient_capabilities(&security), ["CAP_NET_ADMIN"]);
        // What is dropped is dropped from all sets.
        let dropped = Security { drop_capabilities: vec!["net_admin".into()], ..security };
        assert!(!capabilities(&dropped).contains(&"CAP_NET_ADMIN".to_owned()));
        assert_eq!(ambient_capabilities(&dropped), [""; 0]);
    }
}
