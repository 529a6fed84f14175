//! Looks a spec over before anything is made, and turns it into the helper's order.

mod devices;
mod mounts;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use kina_cgroup::{Group, Resources};
use oci_spec::runtime::{
    Linux, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, PosixRlimit, PosixRlimitType, Process, Spec,
};

use devices::{always_allowed, devices};
use mounts::mount_order;

use crate::capabilities;
use crate::error::{Error, Operation};
use crate::mounts::options;
use crate::order::{InitOrder, MountKind, MountOrder, Order, ProcessOrder, Task, Warning};
use crate::plan::{ExecPlan, RootFs, Stdio};
use crate::seccomp::{Filter, compile};

/// What a spec comes to.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) order: Order,
    pub(crate) filter: Option<Filter>,
    pub(crate) resources: Option<Resources>,
    pub(crate) rlimits: Vec<PosixRlimit>,
    /// User and group ids of a new user namespace.
    pub(crate) mappings: Option<(Vec<LinuxIdMapping>, Vec<LinuxIdMapping>)>,
    pub(crate) warnings: Vec<Warning>,
}

/// Errors if a field is set that is not supported.
macro_rules! refuse {
    ($($value:expr => $field:literal),+ $(,)?) => {
        $(if $value {
            return Err(Error::refused($field, "not supported"));
        })+
    };
}

fn given<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}

pub(crate) fn init(
    spec: &Spec,
    rootfs: &RootFs,
    stdio: &Stdio,
    cgroup: Option<&Group>,
) -> Result<Checked, Error> {
    let linux = linux(spec)?;
    let process = process_of(spec)?;
    refuse_unsupported(spec, linux)?;
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    check_namespaces(namespaces)?;
    let kind = |wanted: LinuxNamespaceType| namespaces.iter().find(|ns| ns.typ() == wanted);
    let user = kind(LinuxNamespaceType::User);
    let mappings = mappings(linux, user)?;

    let has_uts = kind(LinuxNamespaceType::Uts).is_some();
    let hostname = spec.hostname().clone().filter(|name| !name.is_empty());
    let domainname = spec.domainname().clone().filter(|name| !name.is_empty());
    if !has_uts && hostname.is_some() {
        return Err(Error::refused("hostname", "needs a UTS namespace"));
    }
    if !has_uts && domainname.is_some() {
        return Err(Error::refused("domainname", "needs a UTS namespace"));
    }
    let sysctl = sysctls(linux, namespaces)?;
    let propagation = match linux.rootfs_propagation().as_deref().unwrap_or_default() {
        "" => None,
        word => Some(options::propagation(word).ok_or_else(|| {
            let reason = format!("{word:?} is not a propagation");
            Error::refused("linux.rootfsPropagation", &reason)
        })?),
    };
    let mut new_namespaces = 0;
    let mut new_cgroup_namespace = false;
    let mut join = Vec::new();
    for namespace in namespaces {
        let flag = namespace.typ() as u64;
        match namespace.path() {
            Some(path) => join.push((path.clone(), u32::try_from(flag).unwrap_or(0))),
            None if namespace.typ() == LinuxNamespaceType::Cgroup => new_cgroup_namespace = true,
            None => new_namespaces |= flag,
        }
    }
    let label = linux.mount_label().as_deref().filter(|label| !label.is_empty());
    if label.is_some() && !has_selinux() {
        return Err(Error::refused("linux.mountLabel", NO_SELINUX));
    }
    let mounts: Vec<MountOrder> = spec
        .mounts()
        .iter()
        .flatten()
        .map(|mount| mount_order(mount, cgroup, user.is_some() && !new_cgroup_namespace, label))
        .collect::<Result<_, _>>()?;
    let fill_dev =
        spec.mounts().iter().flatten().zip(&mounts).any(|(_, order)| {
            order.target == Path::new("/dev") && !matches!(order.kind, MountKind::Bind { .. })
        });
    let resources = match (linux.resources(), cgroup) {
        (None, _) => None,
        (Some(resources), Some(_)) => {
            let mut resources = crate::resources(resources)?;
            if !resources.devices.is_empty() {
                resources.devices.extend(always_allowed());
            }
            Some(resources)
        }
        (Some(resources), None) => {
            let wanted = crate::resources(resources)?;
            let device_rules_only = Resources { devices: wanted.devices.clone(), ..Resources::default() };
            if wanted != device_rules_only || !wanted.devices.is_empty() {
                return Err(Error::refused("linux.resources", "needs a control group"));
            }
            None
        }
    };
    let mut warnings = Vec::new();
    let (filter, order_process) = confinement(linux, process, stdio, user.is_some(), &mut warnings)?;
    let task = Task::Init(Box::new(InitOrder {
        new_namespaces,
        new_cgroup_namespace,
        join,
        root: match rootfs {
            RootFs::Path(path) => Some(path.clone()),
            RootFs::Detached(_) => None,
        },
        readonly_root: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        propagation,
        mounts,
        fill_dev,
        devices: devices(linux, fill_dev)?,
        masked: paths(linux.masked_paths(), "linux.maskedPaths")?,
        readonly: paths(linux.readonly_paths(), "linux.readonlyPaths")?,
        sysctl,
        hostname,
        domainname,
    }));
    Ok(Checked {
        order: order(task, order_process, &filter, process, cgroup),
        filter,
        resources,
        rlimits: process.rlimits().clone().unwrap_or_default(),
        mappings,
        warnings,
    })
}

pub(crate) fn exec(plan: &ExecPlan<'_>, container: BorrowedFd<'_>) -> Result<Checked, Error> {
    let linux = linux(plan.container)?;
    let own = process_of(plan.container)?;
    let process = confined_as(&plan.process, own)?;
    let (namespaces, user_namespace) = namespaces_of(container)?;
    let mut warnings = Vec::new();
    let (filter, order_process) = confinement(linux, &process, &plan.stdio, user_namespace, &mut warnings)?;
    Ok(Checked {
        order: order(Task::Exec { namespaces }, order_process, &filter, &process, plan.cgroup.as_ref()),
        filter,
        resources: None,
        rlimits: process.rlimits().clone().unwrap_or_default(),
        mappings: None,
        warnings,
    })
}

fn order(
    task: Task,
    process: ProcessOrder,
    filter: &Option<Filter>,
    spec: &Process,
    cgroup: Option<&Group>,
) -> Order {
    let unified = cgroup.and_then(Group::unified_directory);
    let files = cgroup.map(Group::entry_files).unwrap_or_default();
    let is_unified = |file: &PathBuf| unified.as_ref().is_some_and(|directory| file.starts_with(directory));
    let (unified_file, cgroup_files): (Vec<_>, Vec<_>) = files.into_iter().partition(is_unified);
    Order {
        task,
        cgroup_files,
        unified_file: unified_file.into_iter().next(),
        oom_score_adj: spec.oom_score_adj(),
        process,
        seccomp_length: filter.as_ref().map(|filter| filter.code.len()),
        seccomp_flags: filter.as_ref().map_or(0, |filter| filter.flags),
    }
}

fn linux(spec: &Spec) -> Result<&Linux, Error> {
    spec.linux().as_ref().ok_or_else(|| Error::refused("linux", "missing"))
}

fn process_of(spec: &Spec) -> Result<&Process, Error> {
    spec.process().as_ref().ok_or_else(|| Error::refused("process", "missing"))
}

fn refuse_unsupported(spec: &Spec, linux: &Linux) -> Result<(), Error> {
    if let Some(hooks) = spec.hooks() {
        #[allow(deprecated, reason = "a spec may still have them")]
        let prestart = given(hooks.prestart());
        refuse! {
            prestart => "hooks.prestart",
            given(hooks.create_runtime()) => "hooks.createRuntime",
            given(hooks.create_container()) => "hooks.createContainer",
            given(hooks.start_container()) => "hooks.startContainer",
            given(hooks.poststart()) => "hooks.poststart",
            given(hooks.poststop()) => "hooks.poststop",
        }
    }
    refuse! {
        spec.solaris().is_some() => "solaris",
        spec.windows().is_some() => "windows",
        spec.vm().is_some() => "vm",
        spec.zos().is_some() => "zos",
        linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) => "linux.netDevices",
        linux.intel_rdt().is_some() => "linux.intelRdt",
        linux.memory_policy().is_some() => "linux.memoryPolicy",
        linux.personality().is_some() => "linux.personality",
        linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) => "linux.timeOffsets",
    }
    Ok(())
}

fn check_namespaces(namespaces: &[LinuxNamespace]) -> Result<(), Error> {
    const FIELD: &str = "linux.namespaces";
    for (index, namespace) in namespaces.iter().enumerate() {
        let kind = namespace.typ();
        if namespaces[..index].iter().any(|other| other.typ() == kind) {
            return Err(Error::refused(FIELD, &format!("{kind} is given twice")));
        }
        if kind == LinuxNamespaceType::Time {
            return Err(Error::refused(FIELD, "time is not supported"));
        }
        if namespace.path().as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(Error::refused(FIELD, &format!("the path of {kind} is not absolute")));
        }
    }
    let mount = namespaces.iter().find(|ns| ns.typ() == LinuxNamespaceType::Mount);
    if mount.is_none_or(|mount| mount.path().is_some()) {
        return Err(Error::refused(FIELD, "a new mount namespace is needed"));
    }
    Ok(())
}

type Mappings = (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>);

fn mappings(linux: &Linux, user: Option<&LinuxNamespace>) -> Result<Option<Mappings>, Error> {
    let uids = linux.uid_mappings().clone().unwrap_or_default();
    let gids = linux.gid_mappings().clone().unwrap_or_default();
    match user {
        None if uids.is_empty() && gids.is_empty() => Ok(None),
        None => Err(Error::refused("linux.uidMappings", "needs a user namespace")),
        // What is joined is mapped already.
        Some(user) if user.path().is_some() => Ok(None),
        Some(_) if uids.is_empty() => {
            Err(Error::refused("linux.uidMappings", "a user namespace needs mappings"))
        }
        Some(_) if gids.is_empty() => {
            Err(Error::refused("linux.gidMappings", "a user namespace needs mappings"))
        }
        Some(_) => Ok(Some((uids, gids))),
    }
}

/// Only parameters that belong to a namespace of the container may be set.
fn sysctls(linux: &Linux, namespaces: &[LinuxNamespace]) -> Result<Vec<(String, String)>, Error> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let has = |kind: LinuxNamespaceType| namespaces.iter().any(|ns| ns.typ() == kind);
    let mut found = Vec::new();
    for (given, value) in linux.sysctl().iter().flatten() {
        // sysctl(8) takes slashes as separators too, and then leaves dots alone.
        let path = match given.find(['.', '/']).map(|at| &given[at..=at]) {
            Some("/") => given.clone(),
            _ => given
                .chars()
                .map(|c| {
                    if c == '.' {
                        '/'
                    } else if c == '/' {
                        '.'
                    } else {
                        c
                    }
                })
                .collect(),
        };
        let dotted = path.replace('/', ".");
        let needs = if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            Some(LinuxNamespaceType::Ipc)
        } else if dotted.starts_with("net.") {
            Some(LinuxNamespaceType::Network)
        } else if dotted == "kernel.domainname" {
            Some(LinuxNamespaceType::Uts)
        } else if dotted == "kernel.hostname" {
            let reason = "kernel.hostname: use hostname";
            return Err(Error::refused("linux.sysctl", reason));
        } else {
            None
        };
        let plain = Path::new(&path).components().all(|part| matches!(part, Component::Normal(_)));
        if !needs.is_some_and(has) || !plain {
            let reason = format!("{given} is not in a namespace of the container");
            return Err(Error::refused("linux.sysctl", &reason));
        }
        found.push((path, value.clone()));
    }
    Ok(found)
}

fn paths(list: &Option<Vec<String>>, field: &'static str) -> Result<Vec<PathBuf>, Error> {
    list.iter()
        .flatten()
        .map(|path| {
            clean(Path::new(path)).ok_or_else(|| Error::refused(field, &format!("{path:?} is not absolute")))
        })
        .collect()
}

/// An absolute path without `.` and `..`, resolved lexically as within a root.
fn clean(path: &Path) -> Option<PathBuf> {
    if !path.is_absolute() {
        return None;
    }
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(clean)
}

const NO_SELINUX: &str = "the kernel has no SELinux";

fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// What both tasks need of the process, and its seccomp filter.
fn confinement(
    linux: &Linux,
    process: &Process,
    stdio: &Stdio,
    user_namespace: bool,
    warnings: &mut Vec<Warning>,
) -> Result<(Option<Filter>, ProcessOrder), Error> {
    refuse! {
        process.command_line().is_some() => "process.commandLine",
        process.user().username().is_some() => "process.user.username",
        process.io_priority().is_some() => "process.ioPriority",
        process.scheduler().is_some() => "process.scheduler",
        process.exec_cpu_affinity().is_some() => "process.execCPUAffinity",
    }
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(Error::refused("process.args", "empty"));
    }
    let env = process.env().clone().unwrap_or_default();
    if args.iter().chain(&env).any(|text| text.contains('\0')) {
        return Err(Error::refused("process.args", "a NUL is in it, or in process.env"));
    }
    if let Some(entry) = env.iter().find(|entry| entry.find('=').unwrap_or(0) == 0) {
        return Err(Error::refused("process.env", &format!("{entry:?} is not NAME=VALUE")));
    }
    if !process.cwd().is_absolute() {
        return Err(Error::refused("process.cwd", "not absolute"));
    }
    let wants_terminal = process.terminal().unwrap_or(false);
    let terminal = match (wants_terminal, stdio) {
        (true, Stdio::Terminal) => {
            let size = process.console_size().unwrap_or_default();
            let cells = |cells: u64| u16::try_from(cells).unwrap_or(u16::MAX);
            Some((cells(size.height()), cells(size.width())))
        }
        (false, Stdio::Files { .. }) => None,
        _ => {
            let reason = "does not agree with the standard streams given";
            return Err(Error::refused("process.terminal", reason));
        }
    };
    let label = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
    let apparmor = label(process.apparmor_profile());
    let enabled = "/sys/module/apparmor/parameters/enabled";
    let apparmor = match apparmor {
        Some(profile) if std::fs::read(enabled).is_ok_and(|on| on.starts_with(b"Y")) => Some(profile),
        // Without AppArmor everything is unconfined by it.
        Some(profile) if profile == "unconfined" => None,
        Some(_) => {
            let reason = "the kernel has no AppArmor";
            return Err(Error::refused("process.apparmorProfile", reason));
        }
        None => None,
    };
    let selinux = label(process.selinux_label());
    if selinux.is_some() && !has_selinux() {
        return Err(Error::refused("process.selinuxLabel", NO_SELINUX));
    }
    let filter = linux.seccomp().as_ref().map(compile).transpose()?;
    let available = capabilities::available(user_namespace)
        .map_err(|error| Error::setup(Operation::Capabilities, error))?;
    let user = process.user();
    Ok((
        filter,
        ProcessOrder {
            args,
            env,
            cwd: process.cwd().clone(),
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask().unwrap_or(0o022),
            capabilities: process
                .capabilities()
                .as_ref()
                .map(|sets| capabilities::sets(sets, available, warnings))
                .unwrap_or_default(),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            terminal,
            apparmor,
            selinux,
            user_namespace,
        },
    ))
}

/// The process of an exec with its container's confinement, which it may repeat but not change.
fn confined_as(process: &Process, own: &Process) -> Result<Process, Error> {
    fn same<T: PartialEq>(field: &'static str, asked: &Option<T>, own: &Option<T>) -> Result<(), Error> {
        if asked.is_some() && asked != own {
            return Err(Error::refused(field, "an exec is confined like its container"));
        }
        Ok(())
    }
    same("process.capabilities", process.capabilities(), own.capabilities())?;
    same("process.apparmorProfile", process.apparmor_profile(), own.apparmor_profile())?;
    same("process.selinuxLabel", process.selinux_label(), own.selinux_label())?;
    same("process.rlimits", process.rlimits(), own.rlimits())?;
    same("process.oomScoreAdj", &process.oom_score_adj(), &own.oom_score_adj())?;
    let wants = process.no_new_privileges();
    same("process.noNewPrivileges", &wants, &Some(own.no_new_privileges().unwrap_or(false)))?;
    let mut confined = process.clone();
    confined.set_capabilities(own.capabilities().clone());
    confined.set_apparmor_profile(own.apparmor_profile().clone());
    confined.set_selinux_label(own.selinux_label().clone());
    confined.set_rlimits(own.rlimits().clone());
    confined.set_oom_score_adj(own.oom_score_adj());
    confined.set_no_new_privileges(own.no_new_privileges());
    Ok(confined)
}

/// The namespaces in which a container differs from this process, as `CLONE_NEW*`, and whether its
/// user namespace is one of them.
fn namespaces_of(container: BorrowedFd<'_>) -> Result<(u32, bool), Error> {
    let failed = |error: std::io::Error| Error::setup(Operation::JoinContainer, error);
    let number = container.as_fd().as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).map_err(failed)?;
    let pid = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .and_then(|pid| pid.trim().parse::<i32>().ok())
        .filter(|pid| *pid > 0)
        .ok_or(Error::Gone)?;
    let mut flags = 0;
    for (name, kind) in [
        ("mnt", LinuxNamespaceType::Mount),
        ("cgroup", LinuxNamespaceType::Cgroup),
        ("uts", LinuxNamespaceType::Uts),
        ("ipc", LinuxNamespaceType::Ipc),
        ("user", LinuxNamespaceType::User),
        ("pid", LinuxNamespaceType::Pid),
        ("net", LinuxNamespaceType::Network),
    ] {
        let identity = |pid: &str| {
            std::fs::metadata(format!("/proc/{pid}/ns/{name}")).map(|meta| (meta.st_dev(), meta.st_ino()))
        };
        let theirs = identity(&pid.to_string()).map_err(|_| Error::Gone)?;
        if theirs != identity("self").map_err(failed)? {
            flags |= kind as u32;
        }
    }
    // The number may have passed to another process meanwhile: the pidfd knows.
    if crate::wire::wait_readable(container, std::time::Instant::now()).map_err(failed)? {
        return Err(Error::Gone);
    }
    Ok((flags, flags & LinuxNamespaceType::User as u32 != 0))
}

/// The number of a resource limit.
pub(crate) fn resource(kind: PosixRlimitType) -> libc::__rlimit_resource_t {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}
