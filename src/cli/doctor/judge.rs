//! What a machine's properties mean for kina. Pure: it looks at nothing.

use std::path::PathBuf;

use kina_machine_qemu::Vsock;

use crate::cli::text::bytes;
use crate::elf::Verdict;

/// How good it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Grade {
    /// As it should be.
    Ok,
    /// Something will not work, or not as well.
    Warning,
    /// `kina serve` cannot start, or no pod can run.
    Problem,
}

/// One look at the machine.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Check {
    /// What was looked at.
    pub(super) name: &'static str,
    /// How good it is.
    pub(super) grade: Grade,
    /// What was found.
    pub(super) finding: String,
    /// How to mend it; empty where nothing is to be mended.
    pub(super) remedy: String,
}

pub(super) fn ok(name: &'static str, finding: impl Into<String>) -> Check {
    Check { name, grade: Grade::Ok, finding: finding.into(), remedy: String::new() }
}

pub(super) fn warning(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, grade: Grade::Warning, finding: finding.into(), remedy: remedy.into() }
}

pub(super) fn problem(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, grade: Grade::Problem, finding: finding.into(), remedy: remedy.into() }
}

/// Whether any check keeps `kina serve` from working.
pub(super) fn serves(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.grade != Grade::Problem)
}

/// A kernel's release as numbers: 6.1 of `6.1.0-18-amd64`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|char: char| !char.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The oldest kernel: mount_setattr(2) is of 5.12, EROFS as kina writes it and
/// cgroup.kill of 5.14, and the oldest with long-term care after that is 5.15.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

pub(super) fn kernel(release: &str) -> Check {
    const NAME: &str = "kernel";
    match version(release) {
        Some(version) if version >= OLDEST_KERNEL => ok(NAME, format!("Linux {release}")),
        _ => {
            let (major, minor) = OLDEST_KERNEL;
            problem(
                NAME,
                format!("Linux {release}"),
                format!("install a kernel of version {major}.{minor} or later"),
            )
        }
    }
}

pub(super) fn root(user: u32) -> Check {
    match user {
        0 => ok("user", "root"),
        user => problem("user", format!("user {user}"), "run kina as root: it makes namespaces and mounts"),
    }
}

/// How the kernel can mount layer images.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layers {
    /// It knows EROFS, or its module can be loaded.
    pub(super) erofs: bool,
    /// EROFS_FS_BACKED_BY_FILE, where the kernel's configuration can be read.
    pub(super) file_backed: Option<bool>,
    /// There are loop devices.
    pub(super) loop_devices: bool,
}

pub(super) fn layers(found: Layers, release: &str) -> Check {
    const NAME: &str = "erofs";
    let files = found.file_backed.unwrap_or(version(release) >= Some((6, 12)));
    match (found.erofs, files, found.loop_devices) {
        (false, _, _) => {
            problem(NAME, "unknown to the kernel", "modprobe erofs, or install a kernel with CONFIG_EROFS_FS")
        }
        (true, true, _) if found.file_backed.is_some() => ok(NAME, "yes, and straight from files"),
        (true, true, _) => ok(NAME, "yes; by its age the kernel mounts files without loop devices"),
        (true, false, true) => ok(NAME, "yes, through loop devices"),
        (true, false, false) => problem(
            NAME,
            "yes, but neither from files nor through loop devices",
            "modprobe loop, or install a kernel with CONFIG_EROFS_FS_BACKED_BY_FILE (6.12 or later)",
        ),
    }
}

pub(super) fn overlay(known: bool) -> Check {
    if known {
        ok("overlayfs", "yes")
    } else {
        problem(
            "overlayfs",
            "unknown to the kernel",
            "modprobe overlay, or install a kernel with CONFIG_OVERLAY_FS",
        )
    }
}

/// Magic number of overlayfs as the file system of kina's root.
pub(super) fn upper(kind: &str, root: &str) -> Check {
    const NAME: &str = "root's file system";
    match kind {
        "overlay" => problem(
            NAME,
            format!("{root} is on an overlay, on which no other can stand"),
            "set `root` to a directory on a disk or a tmpfs",
        ),
        "nfs" | "nfs4" | "9p" | "virtiofs" | "fuse" => warning(
            NAME,
            format!("{root} is on {kind}"),
            "set `root` to a directory on a local disk; overlays want extended attributes",
        ),
        "" => warning(NAME, format!("{root}: unknown"), "see that /proc is mounted"),
        kind => ok(NAME, format!("{root} is on {kind}")),
    }
}

/// Cgroup hierarchies as mounted.
#[derive(Clone, Debug, Default)]
pub(super) struct Cgroups {
    /// The unified hierarchy is mounted.
    pub(super) unified: bool,
    /// Some of version 1 are.
    pub(super) legacy: bool,
    /// Controllers of all of them.
    pub(super) controllers: Vec<String>,
    /// Groups can be made.
    pub(super) writable: bool,
}

/// Controllers without which a resource that Kubernetes sets has no effect.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

pub(super) fn cgroups(found: &Cgroups) -> Check {
    const NAME: &str = "cgroups";
    let mode = match (found.unified, found.legacy) {
        (true, false) => "version 2",
        (true, true) => "hybrid: version 1 with a unified hierarchy beside it",
        (false, true) => "version 1",
        (false, false) => {
            let remedy = "mount a cgroup2 file system at /sys/fs/cgroup";
            return problem(NAME, "no hierarchy is mounted", remedy);
        }
    };
    if !found.writable {
        let finding = format!("{mode}, read-only");
        return problem(
            NAME,
            finding,
            "mount the hierarchies for writing; in a container, make it privileged",
        );
    }
    let missing: Vec<&str> =
        CONTROLLERS.into_iter().filter(|name| !found.controllers.iter().any(|one| one == name)).collect();
    if missing.is_empty() {
        return ok(NAME, format!("{mode}; {}", CONTROLLERS.join(", ")));
    }
    let finding = format!("{mode}, without {}", missing.join(", "));
    warning(
        NAME,
        finding,
        "limits of these resources will be refused; enable the controllers on the kernel's command line",
    )
}

/// Namespaces that every pod needs, as named in `/proc/self/ns`.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

pub(super) fn namespaces(found: &[String]) -> Check {
    let missing: Vec<&str> =
        NAMESPACES.into_iter().filter(|name| !found.iter().any(|one| one == name)).collect();
    if missing.is_empty() {
        return ok("namespaces", NAMESPACES.join(", "));
    }
    let finding = format!("without {}", missing.join(", "));
    problem("namespaces", finding, "install a kernel with these namespaces")
}

/// `limit` is `user.max_user_namespaces`, where the kernel has it.
pub(super) fn user_namespaces(limit: Option<u64>) -> Check {
    const NAME: &str = "user namespaces";
    match limit {
        Some(0) => {
            warning(NAME, "switched off", "sysctl user.max_user_namespaces=65536, for pods that ask for them")
        }
        Some(limit) => ok(NAME, format!("up to {limit}")),
        None => warning(
            NAME,
            "unknown to the kernel",
            "install a kernel with CONFIG_USER_NS, for pods that ask for them",
        ),
    }
}

/// `actions` is what `/proc/sys/kernel/seccomp/actions_avail` says.
pub(super) fn seccomp(actions: Option<&str>) -> Check {
    const NAME: &str = "seccomp";
    match actions {
        Some(actions) if actions.split_whitespace().any(|action| action == "errno") => ok(NAME, "filters"),
        _ => problem(
            NAME,
            "no filters",
            "install a kernel with CONFIG_SECCOMP_FILTER; containers get the default profile",
        ),
    }
}

/// Bits of capabilities(7).
const SYS_ADMIN: u32 = 21;
const SYS_RESOURCE: u32 = 24;

/// `effective` is `CapEff` of `/proc/self/status`.
pub(super) fn capabilities(effective: u64) -> Check {
    const NAME: &str = "capabilities";
    let has = |bit: u32| effective >> bit & 1 == 1;
    match (has(SYS_ADMIN), has(SYS_RESOURCE)) {
        (false, _) => problem(NAME, "CAP_SYS_ADMIN is missing", "run kina with full privileges"),
        (true, false) => warning(
            NAME,
            "CAP_SYS_RESOURCE is missing: oom_score_adj cannot be lowered below kina's own",
            "run kina with it, or the kernel may choose pods of high priority when memory runs out",
        ),
        (true, true) => ok(NAME, "CAP_SYS_ADMIN, CAP_SYS_RESOURCE"),
    }
}

/// What opening a device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// It opens.
    Opens,
    /// It is there and does not.
    Refused,
    /// It is not there.
    Missing,
}

/// `missing` is `None` if there shall be no virtual machines.
pub(super) fn machines(missing: Option<&[String]>) -> Check {
    const NAME: &str = "virtual machines";
    match missing {
        None => ok(NAME, "switched off by machine.qemu.enabled"),
        Some([]) => ok(NAME, "their programs are there; whether a kernel boots the daemon finds out"),
        Some(missing) => warning(
            NAME,
            format!("missing: {}", missing.join(", ")),
            "install QEMU, virtiofsd (the one in Rust) and kina-vsock, or name other places in \
             [machine.qemu]; without them pods with runtime handler \"vm\" are refused",
        ),
    }
}

pub(super) fn kvm(device: Device) -> Check {
    const NAME: &str = "/dev/kvm";
    const LATER: &str = "virtual machines need it; machine.qemu.accelerator = \"tcg\" does without, slowly";
    match device {
        Device::Opens => ok(NAME, "opens; whether it boots a kernel only a boot can tell"),
        Device::Refused => warning(NAME, "is there and does not open", LATER),
        Device::Missing => warning(NAME, "is not there: no hardware virtualisation", LATER),
    }
}

/// `device` is the kernel's, `streams` what is configured.
pub(super) fn vsock(device: Device, streams: Vsock) -> Check {
    const NAME: &str = "vsock";
    match (streams, device) {
        (Vsock::Kina, _) => ok(NAME, "by kina-vsock"),
        (Vsock::Kernel | Vsock::Auto, Device::Opens) => ok(NAME, "/dev/vhost-vsock opens"),
        (Vsock::Auto, Device::Refused | Device::Missing) => {
            ok(NAME, "by kina-vsock: /dev/vhost-vsock does not open")
        }
        (Vsock::Kernel, Device::Refused | Device::Missing) => warning(
            NAME,
            "/dev/vhost-vsock does not open",
            "modprobe vhost_vsock, or set machine.qemu.streams to \"kina\"; without it pods with runtime \
             handler \"vm\" fail",
        ),
    }
}

pub(super) fn tun(device: Device) -> Check {
    const NAME: &str = "/dev/net/tun";
    match device {
        Device::Opens => ok(NAME, "opens"),
        Device::Refused | Device::Missing => {
            warning(NAME, "does not open", "modprobe tun, for the network of virtual machines")
        }
    }
}

/// `program` is where the guest is, and what it is; an error says where it is not.
pub(super) fn guest(program: Result<(PathBuf, Verdict), String>) -> Check {
    const NAME: &str = "guest";
    match program {
        Ok((path, Verdict::Static)) => ok(NAME, format!("{}, static", path.display())),
        Ok((path, Verdict::Dynamic)) => warning(
            NAME,
            format!("{} is linked dynamically", path.display()),
            "install a static one: a virtual machine has no dynamic linker",
        ),
        Ok((path, Verdict::NotElf)) => problem(
            NAME,
            format!("{} is no program for this machine", path.display()),
            "install kina-guest anew",
        ),
        Err(reason) => problem(NAME, reason, "install kina-guest, or set guest.program"),
    }
}

/// Free bytes below which a pull of an ordinary image may fail.
const ENOUGH_DISK: u64 = 5 << 30;
const LITTLE_DISK: u64 = 256 << 20;

pub(super) fn disk(free: u64, root: &str) -> Check {
    let finding = format!("{} free for {root}", bytes(free));
    match free {
        free if free < LITTLE_DISK => problem("disk", finding, "free some space, or set `root` elsewhere"),
        free if free < ENOUGH_DISK => {
            warning("disk", finding, "images are big; free some space, or set `root` elsewhere")
        }
        _ => ok("disk", finding),
    }
}

/// A pod takes the daemon a few descriptors, so this is some hundred pods.
const ENOUGH_FILES: u64 = 4096;

/// `limit` is `RLIMIT_NOFILE`; `None` is no limit.
pub(super) fn open_files(limit: Option<u64>) -> Check {
    match limit {
        Some(limit) if limit < ENOUGH_FILES => warning(
            "open files",
            format!("at most {limit}"),
            format!("ulimit -n {ENOUGH_FILES}, or LimitNOFILE= in the service's unit"),
        ),
        Some(limit) => ok("open files", format!("at most {limit}")),
        None => ok("open files", "no limit"),
    }
}

/// `files` are network configurations in `directory`.
pub(super) fn cni(files: &[String], directory: &str) -> Check {
    if files.is_empty() {
        return warning(
            "CNI",
            format!("no configuration in {directory}"),
            "install a network plugin's, or set network.config_directory; until then pods have loopback only \
             and the kubelet starts none but those of the node's network (docs/network.md)",
        );
    }
    ok("CNI", format!("{} in {directory}", files.join(", ")))
}

/// Who is at the daemon's socket.
#[derive(Clone, Debug)]
pub(super) enum Daemon {
    /// kina, of this version.
    Answers(String),
    /// Somebody who does not know kina's interface.
    Stranger(String),
    /// Nobody.
    Absent,
}

pub(super) fn daemon(found: &Daemon, socket: &str) -> Check {
    const NAME: &str = "daemon";
    match found {
        Daemon::Answers(version) => ok(NAME, format!("kina {version} answers on {socket}")),
        Daemon::Stranger(reason) => problem(
            NAME,
            format!("something else answers on {socket}: {reason}"),
            "stop it, or set another `socket`",
        ),
        Daemon::Absent => warning(NAME, format!("none answers on {socket}"), "start one: kina serve"),
    }
}

pub(super) fn configuration(error: Option<&str>, file: &str) -> Check {
    match error {
        None => ok("configuration", file),
        Some(error) => problem("configuration", error, "mend it; `kina config default` shows every key"),
    }
}

/// `problems` are those of hosts.toml files and certificates; a registry with
/// one is not pulled from, the others are.
pub(super) fn registries(problems: &[String]) -> Check {
    const NAME: &str = "registries";
    if problems.is_empty() {
        return ok(NAME, "every hosts.toml and certificate can be used");
    }
    warning(NAME, problems.join("; "), "mend them (docs/registries.md); it counts from the next pull on")
}

/// On a Mac: `release` is of the whole system, for example `25.0.0` of Darwin.
pub(super) fn darwin(release: &str, architecture: &str) -> Check {
    const NAME: &str = "system";
    // Darwin 25 is macOS 26.
    let recent = version(release).is_some_and(|(major, _)| major >= 25);
    if recent && architecture == "aarch64" {
        return ok(NAME, format!("Darwin {release}, {architecture}"));
    }
    problem(
        NAME,
        format!("Darwin {release}, {architecture}"),
        "a Mac with Apple silicon and macOS 26 or later is needed",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use Grade::{Ok as Good, Problem, Warning};

    #[test]
    fn kernels() {
        for (release, grade) in [
            ("6.1.0-18-cloud-amd64", Good),
            ("5.15.0", Good),
            ("5.10.0-28-amd64", Problem),
            ("4.19.0", Problem),
            ("7.0-rc1", Good),
            ("unknown", Problem),
        ] {
            assert_eq!(kernel(release).grade, grade, "{release}");
        }
    }

    #[test]
    fn streams_of_machines() {
        for (streams, device, grade) in [
            (Vsock::Kina, Device::Missing, Good),
            (Vsock::Auto, Device::Refused, Good),
            (Vsock::Kernel, Device::Opens, Good),
            (Vsock::Kernel, Device::Refused, Warning),
        ] {
            assert_eq!(vsock(device, streams).grade, grade, "{streams:?} {device:?}");
        }
    }

    #[test]
    fn registry_files() {
        assert_eq!(registries(&[]).grade, Good);
        let check = registries(&["/c/a/hosts.toml:3: x".to_owned(), "/c/b/ca.crt y".to_owned()]);
        assert_eq!(check.grade, Warning);
        assert_eq!(check.finding, "/c/a/hosts.toml:3: x; /c/b/ca.crt y");
    }

    #[test]
    fn layer_mounts() {
        for (erofs, file_backed, loop_devices, release, grade) in [
            (true, Some(true), false, "6.12.0", Good),
            (true, Some(false), true, "6.12.0", Good),
            (true, Some(false), false, "6.12.0", Problem),
            (true, None, false, "6.12.0", Good),
            (true, None, false, "6.1.0", Problem),
            (true, None, true, "6.1.0", Good),
            (false, Some(true), true, "6.12.0", Problem),
        ] {
            let found = Layers { erofs, file_backed, loop_devices };
            assert_eq!(layers(found, release).grade, grade, "{found:?} {release}");
        }
        assert_eq!(upper("ext4", "/r").grade, Good);
        assert_eq!(upper("overlay", "/r").grade, Problem);
        assert_eq!(upper("nfs", "/r").grade, Warning);
        assert_eq!(overlay(false).grade, Problem);
    }

    #[test]
    fn cgroup_hierarchies() {
        let all: Vec<String> = CONTROLLERS.iter().map(|name| (*name).to_owned()).collect();
        for (unified, legacy, controllers, writable, grade, word) in [
            (true, false, all.clone(), true, Good, "version 2"),
            (true, true, all.clone(), true, Good, "hybrid"),
            (false, true, all[1..].to_vec(), true, Warning, "without cpu"),
            (true, false, all.clone(), false, Problem, "read-only"),
            (false, false, all, true, Problem, "no hierarchy"),
        ] {
            let check = cgroups(&Cgroups { unified, legacy, controllers, writable });
            assert_eq!(check.grade, grade);
            assert!(check.finding.contains(word), "{}", check.finding);
        }
    }

    #[test]
    fn privileges() {
        assert_eq!(root(0).grade, Good);
        assert_eq!(root(1000).grade, Problem);
        assert_eq!(capabilities(u64::MAX).grade, Good);
        assert_eq!(capabilities(!(1 << SYS_RESOURCE)).grade, Warning);
        assert_eq!(capabilities(0).grade, Problem);
        assert_eq!(seccomp(Some("kill_process errno log allow")).grade, Good);
        assert_eq!(seccomp(Some("kill_process")).grade, Problem);
        assert_eq!(seccomp(None).grade, Problem);
        assert_eq!(user_namespaces(Some(0)).grade, Warning);
        assert_eq!(user_namespaces(Some(1)).grade, Good);
        assert_eq!(namespaces(&NAMESPACES.map(str::to_owned)).grade, Good);
        assert!(namespaces(&["net".to_owned()]).finding.contains("pid"));
    }

    #[test]
    fn what_kina_needs_beside_the_kernel() {
        let path = PathBuf::from("/kina-guest");
        assert_eq!(guest(Ok((path.clone(), Verdict::Static))).grade, Good);
        assert_eq!(guest(Ok((path.clone(), Verdict::Dynamic))).grade, Warning);
        assert_eq!(guest(Ok((path, Verdict::NotElf))).grade, Problem);
        assert_eq!(guest(Err("nowhere".to_owned())).grade, Problem);
        assert_eq!(disk(1 << 20, "/r").grade, Problem);
        assert_eq!(disk(1 << 30, "/r").grade, Warning);
        assert_eq!(disk(1 << 40, "/r").grade, Good);
        assert_eq!(open_files(Some(1024)).grade, Warning);
        assert_eq!(open_files(None).grade, Good);
        assert_eq!(daemon(&Daemon::Absent, "/s").grade, Warning);
        assert_eq!(daemon(&Daemon::Stranger("no".to_owned()), "/s").grade, Problem);
        assert_eq!(darwin("25.1.0", "aarch64").grade, Good);
        assert_eq!(darwin("24.0.0", "aarch64").grade, Problem);
    }

    #[test]
    fn virtual_machines_are_no_condition() {
        assert_eq!(machines(None).grade, Good);
        assert_eq!(machines(Some(&[])).grade, Good);
        let check = machines(Some(&["/usr/libexec/virtiofsd".to_owned()]));
        assert_eq!(check.grade, Warning);
        assert!(serves(&[check]));
        for device in [Device::Opens, Device::Refused, Device::Missing] {
            assert!(serves(&[kvm(device), vsock(device, Vsock::Kernel), tun(device), cni(&[], "/d")]));
        }
        assert!(!serves(&[overlay(false)]));
    }

    #[test]
    fn whatever_is_not_good_can_be_mended() {
        for check in
            [root(1), kvm(Device::Missing), disk(0, "/"), capabilities(0), cni(&[], "/d"), kernel("1.0")]
        {
            assert!(check.grade != Good && !check.remedy.is_empty(), "{check:?}");
        }
    }
}
