//! What a container has if nothing else is said: the defaults that containerd's containers have.
//!
//! The guest builds specs from these. The allow-list of system calls is data of the interface
//! that images expect: containerd's `contrib/seccomp` gives the names and the conditions.

use oci_spec::runtime::{
    Arch, Capability, LinuxCapabilities, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace,
    LinuxNamespaceType, LinuxResources, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall, Mount, Process, Root, Spec,
};

/// The search path of a process whose image and configuration have none.
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The 14 capabilities of an ordinary container.
pub const CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// Paths that are hidden from an unprivileged container.
pub const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];

/// Paths that an unprivileged container can only read.
pub const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Capabilities as the spec wants them: bounding, permitted and effective. Inheritable and ambient
/// are empty.
#[must_use]
pub fn capabilities(set: &[Capability]) -> LinuxCapabilities {
    let set: std::collections::HashSet<Capability> = set.iter().copied().collect();
    let mut capabilities = LinuxCapabilities::default();
    capabilities.set_bounding(Some(set.clone()));
    capabilities.set_permitted(Some(set.clone()));
    capabilities.set_effective(Some(set));
    capabilities.set_inheritable(None);
    capabilities.set_ambient(None);
    capabilities
}

/// Mounts of every container: `/proc`, `/dev` and what is in it, `/sys` (read-only) and the
/// control groups (read-only).
#[must_use]
pub fn mounts() -> Vec<Mount> {
    [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"][..]),
        ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
    .into_iter()
    .map(|(destination, kind, source, options)| mount(destination, kind, source, options))
    .collect()
}

/// One mount of a spec.
#[must_use]
pub fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.into()));
    mount.set_options(Some(options.iter().map(|word| (*word).to_owned()).collect()));
    mount
}

/// Device rules of an unprivileged container: none but the usual devices, which the launcher
/// always allows.
#[must_use]
pub fn device_rules() -> Vec<LinuxDeviceCgroup> {
    let mut deny = LinuxDeviceCgroup::default();
    deny.set_allow(false);
    deny.set_typ(Some(LinuxDeviceType::A));
    deny.set_access(Some("rwm".to_owned()));
    vec![deny]
}

/// New namespaces of the given kinds.
#[must_use]
pub fn namespaces(kinds: &[LinuxNamespaceType]) -> Vec<LinuxNamespace> {
    kinds
        .iter()
        .map(|kind| {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(*kind);
            namespace
        })
        .collect()
}

/// A process with the default confinement, as root in `/`, without arguments.
#[must_use]
pub fn process() -> Process {
    let mut process = Process::default();
    process.set_terminal(Some(false));
    process.set_args(None);
    process.set_env(Some(vec![PATH.to_owned()]));
    process.set_cwd("/".into());
    process.set_capabilities(Some(capabilities(&CAPABILITIES)));
    process.set_no_new_privileges(Some(false));
    process.set_rlimits(None);
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
    process
}

/// A container of an unprivileged pod with every namespace of its own but the user's. The caller
/// sets `process.args`, and replaces what the pod says otherwise.
#[must_use]
pub fn spec() -> Spec {
    let mut spec = Spec::default();
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(device_rules()));
    let strings = |list: &[&str]| Some(list.iter().map(|text| (*text).to_owned()).collect());
    let mut linux = oci_spec::runtime::Linux::default();
    linux.set_namespaces(Some(namespaces(&[
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Cgroup,
    ])));
    linux.set_masked_paths(strings(&MASKED_PATHS));
    linux.set_readonly_paths(strings(&READONLY_PATHS));
    linux.set_resources(Some(resources));
    linux.set_seccomp(Some(seccomp(&CAPABILITIES)));
    linux.set_cgroups_path(None);
    let mut root = Root::default();
    root.set_readonly(Some(false));
    spec.set_root(Some(root));
    spec.set_version("1.2.0".to_owned());
    spec.set_hostname(None);
    spec.set_process(Some(process()));
    spec.set_mounts(Some(mounts()));
    spec.set_linux(Some(linux));
    spec
}

/// The default seccomp profile for a process with the given bounding set. What a capability is
/// for is allowed together with it.
#[must_use]
pub fn seccomp(bounding: &[Capability]) -> LinuxSeccomp {
    let mut syscalls = vec![
        allow(ALWAYS, None),
        // All address families but AF_ALG (38) and AF_VSOCK (40).
        allow(&["socket"], Some((0, 38, None, LinuxSeccompOperator::ScmpCmpLt))),
        allow(&["socket"], Some((0, 39, None, LinuxSeccompOperator::ScmpCmpEq))),
        allow(&["socket"], Some((0, 40, None, LinuxSeccompOperator::ScmpCmpGt))),
        allow(&["process_vm_readv", "process_vm_writev", "ptrace"], None),
    ];
    for domain in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        let equal = LinuxSeccompOperator::ScmpCmpEq;
        syscalls.push(allow(&["personality"], Some((0, domain, None, equal))));
    }
    let architectures = if cfg!(target_arch = "aarch64") {
        syscalls.push(allow(
            &[
                "arm_fadvise64_64",
                "arm_sync_file_range",
                "sync_file_range2",
                "breakpoint",
                "cacheflush",
                "set_tls",
            ],
            None,
        ));
        vec![Arch::ScmpArchArm, Arch::ScmpArchAarch64]
    } else {
        syscalls.push(allow(&["arch_prctl", "modify_ldt"], None));
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    };
    for (capability, names) in WITH_CAPABILITY {
        if bounding.contains(capability) {
            syscalls.push(allow(names, None));
        }
    }
    if !bounding.contains(&Capability::SysAdmin) {
        // New threads and processes, but no new namespaces: CLONE_NEW* must be clear.
        let namespaces = 0x7e02_0000;
        let masked = LinuxSeccompOperator::ScmpCmpMaskedEq;
        syscalls.push(allow(&["clone"], Some((0, namespaces, Some(0), masked))));
        // Its flags are in memory, where a filter cannot look. ENOSYS makes the C library fall
        // back to clone.
        let mut clone3 = allow(&["clone3"], None);
        clone3.set_action(LinuxSeccompAction::ScmpActErrno);
        clone3.set_errno_ret(Some(38));
        syscalls.push(clone3);
    }
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
    profile.set_architectures(Some(architectures));
    profile.set_syscalls(Some(syscalls));
    profile
}

/// Index, value, second value and operator of one condition.
type Condition = (usize, u64, Option<u64>, LinuxSeccompOperator);

fn allow(names: &[&str], condition: Option<Condition>) -> LinuxSyscall {
    let mut call = LinuxSyscall::default();
    call.set_names(names.iter().map(|name| (*name).to_owned()).collect());
    call.set_action(LinuxSeccompAction::ScmpActAllow);
    call.set_args(condition.map(|(index, value, second, op)| {
        let argument = LinuxSeccompArgBuilder::default().index(index).value(value).op(op);
        let argument = match second {
            Some(second) => argument.value_two(second),
            None => argument,
        };
        vec![argument.build().expect("every field of it has a default")]
    }));
    call
}

/// System calls that come with a capability.
const WITH_CAPABILITY: &[(Capability, &[&str])] = &[
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (
        Capability::SysAdmin,
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["delete_module", "init_module", "finit_module"]),
    (Capability::SysPacct, &["acct"]),
    (
        Capability::SysPtrace,
        &["kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace"],
    ),
    (Capability::SysRawio, &["iopl", "ioperm"]),
    (Capability::SysTime, &["settimeofday", "stime", "clock_settime", "clock_settime64"]),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::Syslog, &["syslog"]),
    (Capability::Bpf, &["bpf"]),
    (Capability::Perfmon, &["perf_event_open"]),
];

/// System calls that every container has.
#[rustfmt::skip]
const ALWAYS: &[&str] = &[
    "accept", "accept4", "access", "adjtimex", "alarm", "bind", "brk", "cachestat", "capget",
    "capset", "chdir", "chmod", "chown", "chown32", "clock_adjtime", "clock_adjtime64",
    "clock_getres", "clock_getres_time64", "clock_gettime", "clock_gettime64", "clock_nanosleep",
    "clock_nanosleep_time64", "close", "close_range", "connect", "copy_file_range", "creat",
    "dup", "dup2", "dup3", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old",
    "epoll_pwait", "epoll_pwait2", "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2",
    "execve", "execveat", "exit", "exit_group", "faccessat", "faccessat2", "fadvise64",
    "fadvise64_64", "fallocate", "fanotify_mark", "fchdir", "fchmod", "fchmodat", "fchmodat2",
    "fchown", "fchown32", "fchownat", "fcntl", "fcntl64", "fdatasync", "fgetxattr", "flistxattr",
    "flock", "fork", "fremovexattr", "fsetxattr", "fstat", "fstat64", "fstatat64", "fstatfs",
    "fstatfs64", "fsync", "ftruncate", "ftruncate64", "futex", "futex_requeue", "futex_time64",
    "futex_wait", "futex_waitv", "futex_wake", "futimesat", "getcpu", "getcwd", "getdents",
    "getdents64", "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32",
    "getgroups", "getgroups32", "getitimer", "getpeername", "getpgid", "getpgrp", "getpid",
    "getppid", "getpriority", "getrandom", "getresgid", "getresgid32", "getresuid",
    "getresuid32", "getrlimit", "get_robust_list", "getrusage", "getsid", "getsockname",
    "getsockopt", "get_thread_area", "gettid", "gettimeofday", "getuid", "getuid32", "getxattr",
    "getxattrat", "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch",
    "io_cancel", "ioctl", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64",
    "ioprio_get", "ioprio_set", "io_setup", "io_submit", "ipc", "kill", "landlock_add_rule",
    "landlock_create_ruleset", "landlock_restrict_self", "lchown", "lchown32", "lgetxattr",
    "link", "linkat", "listen", "listmount", "listxattr", "listxattrat", "llistxattr", "_llseek",
    "lremovexattr", "lseek", "lsetxattr", "lsm_get_self_attr", "lsm_list_modules",
    "lsm_set_self_attr", "lstat", "lstat64", "madvise", "membarrier", "memfd_create",
    "memfd_secret", "mincore", "mkdir", "mkdirat", "mknod", "mknodat", "mlock", "mlock2",
    "mlockall", "map_shadow_stack", "mmap", "mmap2", "mprotect", "mq_getsetattr", "mq_notify",
    "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
    "mq_timedsend_time64", "mq_unlink", "mremap", "mseal", "msgctl", "msgget", "msgrcv",
    "msgsnd", "msync", "munlock", "munlockall", "munmap", "name_to_handle_at", "nanosleep",
    "newfstatat", "_newselect", "open", "openat", "openat2", "pause", "pidfd_open",
    "pidfd_send_signal", "pipe", "pipe2", "pkey_alloc", "pkey_free", "pkey_mprotect", "poll",
    "ppoll", "ppoll_time64", "prctl", "pread64", "preadv", "preadv2", "prlimit64",
    "process_mrelease", "pselect6", "pselect6_time64", "pwrite64", "pwritev", "pwritev2", "read",
    "readahead", "readlink", "readlinkat", "readv", "recv", "recvfrom", "recvmmsg",
    "recvmmsg_time64", "recvmsg", "remap_file_pages", "removexattr", "removexattrat", "rename",
    "renameat", "renameat2", "restart_syscall", "rmdir", "rseq", "rt_sigaction", "rt_sigpending",
    "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
    "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "sched_getaffinity", "sched_getattr",
    "sched_getparam", "sched_get_priority_max", "sched_get_priority_min", "sched_getscheduler",
    "sched_rr_get_interval", "sched_rr_get_interval_time64", "sched_setaffinity",
    "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp", "select",
    "semctl", "semget", "semop", "semtimedop", "semtimedop_time64", "send", "sendfile",
    "sendfile64", "sendmmsg", "sendmsg", "sendto", "setfsgid", "setfsgid32", "setfsuid",
    "setfsuid32", "setgid", "setgid32", "setgroups", "setgroups32", "setitimer", "setpgid",
    "setpriority", "setregid", "setregid32", "setresgid", "setresgid32", "setresuid",
    "setresuid32", "setreuid", "setreuid32", "setrlimit", "set_robust_list", "setsid",
    "setsockopt", "set_thread_area", "set_tid_address", "setuid", "setuid32", "setxattr",
    "setxattrat", "shmat", "shmctl", "shmdt", "shmget", "shutdown", "sigaltstack", "signalfd",
    "signalfd4", "sigprocmask", "sigreturn", "socketcall", "socketpair", "splice", "stat",
    "stat64", "statfs", "statfs64", "statmount", "statx", "symlink", "symlinkat", "sync",
    "sync_file_range", "syncfs", "sysinfo", "tee", "tgkill", "time", "timer_create",
    "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64", "timer_settime",
    "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64",
    "timerfd_settime", "timerfd_settime64", "times", "tkill", "truncate", "truncate64",
    "ugetrlimit", "umask", "uname", "unlink", "unlinkat", "uretprobe", "utime", "utimensat",
    "utimensat_time64", "utimes", "vfork", "vmsplice", "wait4", "waitid", "waitpid", "write",
    "writev",
];
