//! A container as an OCI runtime specification (`LinuxContainer.swift`, `RuntimeService.swift`).

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kina_launch::defaults;
use oci_spec::runtime::{
    Capability, LinuxCapabilities, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, LinuxResources, Mount,
    PosixRlimitBuilder, PosixRlimitType, Process as SpecProcess, Root, Spec, User as SpecUser,
};

use crate::error::Problem;
use crate::resources::{Configuration, FilesystemKind, Process, User};
use crate::values;

/// What no machine gets even if it asks for all where its kernel is the host's.
const WITHHELD: [Capability; 3] = [Capability::SysTime, Capability::SysModule, Capability::SysRawio];

/// Loop devices that a machine has.
const LOOP_DEVICES: i64 = 64;

/// The specification of a container's first process.
pub(super) fn container(
    configuration: &Configuration,
    rootfs: &Path,
    mounts: Vec<Mount>,
    own_kernel: bool,
) -> Result<Spec, Problem> {
    let mut spec = defaults::spec();
    let capabilities = capabilities(configuration, own_kernel)?;
    spec.set_process(Some(process(&configuration.init_process, &capabilities, rootfs)?));
    spec.set_hostname(Some(hostname(configuration)));
    let mut root = Root::default();
    root.set_readonly(Some(configuration.read_only));
    spec.set_root(Some(root));
    spec.set_mounts(Some(base_mounts(configuration).into_iter().chain(mounts).collect()));
    let Some(linux) = spec.linux_mut() else {
        return Err(Problem::internal("a specification without its Linux part"));
    };
    let mut namespaces = vec![
        LinuxNamespaceType::Cgroup,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Uts,
    ];
    // The machine's own, where it has no kernel of its own.
    namespaces.extend((!own_kernel).then_some(LinuxNamespaceType::Network));
    linux.set_namespaces(Some(defaults::namespaces(&namespaces)));
    let all = |given: &Option<Vec<String>>, otherwise: &[&str]| match given {
        Some(paths) => paths.clone(),
        None => otherwise.iter().map(|path| (*path).to_owned()).collect(),
    };
    linux.set_masked_paths(Some(all(&configuration.masked_paths, &values::MASKED)));
    linux.set_readonly_paths(Some(all(&configuration.readonly_paths, &values::READONLY)));
    linux.set_seccomp(None);
    linux.set_devices(Some(devices()));
    linux.set_resources(Some(resources(configuration)));
    Ok(spec)
}

fn hostname(configuration: &Configuration) -> String {
    let name = configuration.networks.first().map_or(&configuration.id, |network| &network.options.hostname);
    name.split('.').find(|part| !part.is_empty()).unwrap_or(&configuration.id).to_owned()
}

/// A process, with a container's capabilities.
pub(super) fn process(
    process: &Process,
    capabilities: &LinuxCapabilities,
    rootfs: &Path,
) -> Result<SpecProcess, Problem> {
    let mut made = defaults::process();
    let mut words = vec![process.executable.clone()];
    words.extend(process.arguments.iter().cloned());
    made.set_args(Some(words));
    let mut environment = process.environment.clone();
    if !environment.iter().any(|entry| entry.starts_with("PATH=")) {
        environment.push(defaults::PATH.to_owned());
    }
    made.set_env(Some(environment));
    let directory = if process.working_directory.is_empty() { "/" } else { &process.working_directory };
    made.set_cwd(PathBuf::from(directory));
    made.set_terminal(Some(process.terminal));
    made.set_capabilities(Some(capabilities.clone()));
    made.set_user(user(&process.user, &process.supplemental_groups, rootfs)?);
    made.set_rlimits(Some(
        process
            .rlimits
            .iter()
            .map(|limit| {
                let kind = PosixRlimitType::from_str(&limit.limit)
                    .map_err(|_| Problem::invalid(format!("unknown limit {}", limit.limit)))?;
                PosixRlimitBuilder::default()
                    .typ(kind)
                    .soft(limit.soft)
                    .hard(limit.hard)
                    .build()
                    .map_err(|error| Problem::internal(error.to_string()))
            })
            .collect::<Result<_, Problem>>()?,
    ));
    Ok(made)
}

/// A user by numbers or by `name|uid[:group|gid]`, looked up in the root file system.
fn user(user: &User, groups: &[u32], rootfs: &Path) -> Result<SpecUser, Problem> {
    let (uid, gid) = match user {
        User::Id { uid, gid } => (*uid, *gid),
        User::Raw { user_string } if user_string.is_empty() => (0, 0),
        User::Raw { user_string } => {
            let (name, group) = match user_string.split_once(':') {
                Some((name, group)) => (name, Some(group)),
                None => (user_string.as_str(), None),
            };
            let entry = lookup(&rootfs.join("etc/passwd"), name);
            let missing = || Problem::invalid(format!("unable to find user {user_string}"));
            let uid = match (&entry, name.parse()) {
                (Some(fields), _) => fields.get(2).and_then(|uid| uid.parse().ok()).ok_or_else(missing)?,
                (None, Ok(uid)) => uid,
                (None, Err(_)) => return Err(missing()),
            };
            let own_group = entry.and_then(|fields| fields.get(3).and_then(|gid| gid.parse().ok()));
            let gid = match group {
                None => own_group.unwrap_or(0),
                Some(group) => match (lookup(&rootfs.join("etc/group"), group), group.parse()) {
                    (Some(fields), _) => {
                        fields.get(2).and_then(|gid| gid.parse().ok()).ok_or_else(missing)?
                    }
                    (None, Ok(gid)) => gid,
                    (None, Err(_)) => return Err(missing()),
                },
            };
            (uid, gid)
        }
    };
    let mut made = SpecUser::default();
    made.set_uid(uid);
    made.set_gid(gid);
    made.set_additional_gids(Some(groups.to_vec()));
    Ok(made)
}

/// The fields of the line about a name or a number.
fn lookup(file: &Path, name: &str) -> Option<Vec<String>> {
    fs::read_to_string(file).ok()?.lines().find_map(|line| {
        let fields: Vec<String> = line.split(':').map(str::to_owned).collect();
        let found = fields.first().is_some_and(|field| field == name)
            || fields.get(2).is_some_and(|number| number == name);
        found.then_some(fields)
    })
}

/// `effectiveCapabilities`: drop all, then what is added, then what is dropped by name.
pub(super) fn capabilities(
    configuration: &Configuration,
    own_kernel: bool,
) -> Result<LinuxCapabilities, Problem> {
    let all = |names: &[String]| names.iter().any(|name| name == "ALL");
    let mut set: HashSet<Capability> = if all(&configuration.cap_drop) {
        HashSet::new()
    } else {
        defaults::CAPABILITIES.into_iter().collect()
    };
    if all(&configuration.cap_add) {
        set = every_capability()?;
    } else {
        for name in &configuration.cap_add {
            set.insert(values::capability(name)?);
        }
    }
    for name in configuration.cap_drop.iter().filter(|name| *name != "ALL") {
        set.remove(&values::capability(name)?);
    }
    set.retain(|capability| own_kernel || !WITHHELD.contains(capability));
    Ok(defaults::capabilities(&set.into_iter().collect::<Vec<_>>()))
}

/// All that this process may have: the kernel knows no others.
fn every_capability() -> Result<HashSet<Capability>, Problem> {
    use Capability::*;
    const NUMBERED: [Capability; 41] = [
        Chown,
        DacOverride,
        DacReadSearch,
        Fowner,
        Fsetid,
        Kill,
        Setgid,
        Setuid,
        Setpcap,
        LinuxImmutable,
        NetBindService,
        NetBroadcast,
        NetAdmin,
        NetRaw,
        IpcLock,
        IpcOwner,
        SysModule,
        SysRawio,
        SysChroot,
        SysPtrace,
        SysPacct,
        SysAdmin,
        SysBoot,
        SysNice,
        SysResource,
        SysTime,
        SysTtyConfig,
        Mknod,
        Lease,
        AuditWrite,
        AuditControl,
        Setfcap,
        MacOverride,
        MacAdmin,
        Syslog,
        WakeAlarm,
        BlockSuspend,
        AuditRead,
        Perfmon,
        Bpf,
        CheckpointRestore,
    ];
    let status = fs::read_to_string("/proc/self/status")?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(u64::MAX);
    let has = |(number, _): &(usize, Capability)| mask >> number & 1 == 1;
    Ok(NUMBERED.into_iter().enumerate().filter(has).map(|(_, capability)| capability).collect())
}

/// `defaultMounts`, but for `/dev`: the host's devtmpfs is one for all of the kernel, so that a
/// machine gets a tmpfs with the devices that it may use.
fn base_mounts(configuration: &Configuration) -> Vec<Mount> {
    let plain = ["nosuid", "noexec", "nodev"];
    let size = format!("size={}", configuration.shm_size.unwrap_or(64 << 20));
    let shm: Vec<&str> = plain.into_iter().chain(["mode=1777", size.as_str()]).collect();
    vec![
        defaults::mount("/proc", "proc", "proc", &[]),
        defaults::mount("/sys", "sysfs", "sysfs", &plain),
        defaults::mount("/dev", "tmpfs", "tmpfs", &["nosuid", "mode=755"]),
        defaults::mount("/dev/mqueue", "mqueue", "mqueue", &plain),
        defaults::mount("/dev/shm", "tmpfs", "tmpfs", &shm),
        defaults::mount("/sys/fs/cgroup", "cgroup", "cgroup", &plain),
        defaults::mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "gid=5", "mode=0620", "ptmxmode=0666"],
        ),
    ]
}

/// The devices that Apple's kernels provide and the simulator's host can.
fn devices() -> Vec<LinuxDevice> {
    let device = |path: String, kind, major, minor| {
        let mut device = LinuxDevice::default();
        device.set_path(path.into());
        device.set_typ(kind);
        device.set_major(major);
        device.set_minor(minor);
        device.set_file_mode(Some(0o660));
        device
    };
    let mut devices = vec![
        device("/dev/kmsg".to_owned(), LinuxDeviceType::C, 1, 11),
        device("/dev/fuse".to_owned(), LinuxDeviceType::C, 10, 229),
        device("/dev/net/tun".to_owned(), LinuxDeviceType::C, 10, 200),
        device("/dev/loop-control".to_owned(), LinuxDeviceType::C, 10, 237),
    ];
    devices.extend(
        (0..LOOP_DEVICES).map(|minor| device(format!("/dev/loop{minor}"), LinuxDeviceType::B, 7, minor)),
    );
    devices
}

/// `memory.max` and the quota of CPU time; nothing else is limited.
fn resources(configuration: &Configuration) -> LinuxResources {
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    let mut memory = oci_spec::runtime::LinuxMemory::default();
    memory.set_limit(i64::try_from(configuration.resources.memory_in_bytes).ok());
    resources.set_memory(Some(memory));
    let mut cpu = oci_spec::runtime::LinuxCpu::default();
    cpu.set_period(Some(100_000));
    cpu.set_quota(Some(configuration.resources.cpus.saturating_mul(100_000)));
    resources.set_cpu(Some(cpu));
    resources
}

/// A container's own mounts. `staged` are the sockets of the host that the guest reaches.
pub(super) fn mounts(configuration: &Configuration, staged: &[(PathBuf, String)]) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = configuration
        .mounts
        .iter()
        .filter(|mount| !is_socket(&mount.source))
        .map(|mount| {
            let words: Vec<&str> = mount.options.iter().map(String::as_str).collect();
            match &mount.kind {
                FilesystemKind::Tmpfs {} => defaults::mount(&mount.destination, "tmpfs", "tmpfs", &words),
                FilesystemKind::Virtiofs {} | FilesystemKind::Volume { .. } => {
                    let mut options = vec!["rbind"];
                    // One share per source: what is said of it last holds for all of its mounts.
                    let shared = configuration.mounts.iter().rfind(|other| other.source == mount.source);
                    let readonly = |options: &[String]| options.iter().any(|word| word == "ro");
                    if readonly(&mount.options) || shared.is_some_and(|last| readonly(&last.options)) {
                        options.push("ro");
                    }
                    defaults::mount(&mount.destination, "bind", &mount.source, &options)
                }
            }
        })
        .collect();
    mounts.extend(staged.iter().map(|(source, destination)| {
        defaults::mount(destination, "bind", &source.to_string_lossy(), &["bind"])
    }));
    mounts
}

/// Whether a mount is of a socket.
pub(super) fn is_socket(path: &str) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}
