//! The same spec through runc and through the launcher shows the same. Needs root, control groups,
//! busybox and runc.
//!
//! Each case is run as a container's first process, and then as an exec in a container of the
//! same spec. What is compared is what a process can see of its own confinement; ids, host paths
//! and numbers of mounts are taken out.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(unsafe_code, reason = "the helper runs before main")]

mod common;

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as Pipes};
use std::sync::atomic::{AtomicU32, Ordering};

use common::*;
use kina_launch::{Created, Error, ExecPlan, Plan, defaults};
use oci_spec::runtime::{
    Capability, LinuxDeviceBuilder, LinuxDeviceType, LinuxIdMappingBuilder, LinuxNamespaceType, LinuxSeccomp,
    LinuxSeccompAction, PosixRlimitBuilder, PosixRlimitType, Process, Spec,
};

/// What every case prints: a section for each thing to compare.
const REPORT: &str = "\
echo '# status'; grep -E '^(Uid|Gid|Groups|Umask|SigIgn|SigBlk|Cap...|NoNewPrivs|Seccomp):' /proc/self/status
echo '# mounts'; cat /proc/self/mountinfo
echo '# cgroup'; cat /proc/self/cgroup
echo '# limits'; cat /proc/self/limits
echo '# oom'; cat /proc/self/oom_score_adj
echo '# env'; env | grep -v '^_=\\|^SHLVL=\\|^OLDPWD=' | sort
echo '# cwd'; pwd
echo '# id'; id
echo '# host'; hostname; cat /proc/sys/kernel/domainname
echo '# dev'; ls -l /dev | sed 's/ [A-Z][a-z][a-z] .*:.. / /' | grep -v ' console$'
echo '# fds'; ls /proc/self/fd | grep -v 3
echo '# session'; sed 's/.*) //' /proc/$$/stat | { read state parent group session rest; test $session = $group; echo leader $?; }
echo '# lo'; cat /sys/class/net/lo/flags 2>&1
echo '# write'; for f in /x /proc/sys/kernel/hostname /sys/x /dev/x /tmp/x; do ( echo > $f ) 2>/dev/null; echo $f $?; done
echo '# devices'; for d in null zero full random urandom tty; do head -c1 /dev/$d >/dev/null 2>&1; echo $d $?; done
mknod /tmp/sda b 8 0 2>/dev/null; echo mknod $?; head -c1 /tmp/sda >/dev/null 2>&1; echo open $?; mknod /tmp/kmsg c 1 11 2>/dev/null; head -c1 /tmp/kmsg >/dev/null 2>&1; echo kmsg $?
echo '# masked'; for f in /proc/kcore /proc/keys /proc/timer_list /sys/firmware /proc/acpi; do ls -d $f 2>/dev/null; head -c1 $f 2>/dev/null | wc -c; ls $f 2>/dev/null | wc -l; done
echo '# calls'; unshare -u true 2>/dev/null; echo unshare $?; mount -t tmpfs none /tmp 2>/dev/null; echo mount $?; hostname other 2>/dev/null; echo sethostname $?; chown 7:7 /tmp 2>/dev/null; echo chown $?; chmod 700 /tmp 2>/dev/null; echo chmod $?
";

/// Takes out what differs by nature: numbers of mounts and devices, host paths, device options.
fn normalise(text: &str, place: &Place) -> Vec<String> {
    let host = place.bundle().to_str().unwrap().to_owned();
    let mut section = String::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("# ") {
            section = name.to_owned();
        }
        lines.push(match section.as_str() {
            "mounts" if !line.starts_with('#') => {
                let (left, right) = line.split_once(" - ").unwrap();
                let left: Vec<&str> = left.split(' ').collect();
                let right: Vec<&str> = right.split(' ').collect();
                let root = left[3].replace(&host, "<place>");
                // runc leaves the directory of the v1 hierarchies writable although the spec has
                // it read-only; ours is what the spec says. And it calls one source otherwise.
                let attributes = match left[4] {
                    "/sys/fs/cgroup" => left[5].replacen("ro,", "rw,", 1),
                    _ => left[5].to_owned(),
                };
                let source = if right[0] == "cgroup" { "cgroup" } else { right[1] };
                // Whether the super block is read-only as well is not a container's business: the
                // mount is what it sees.
                let options = right[2].replacen("ro", "rw", 1);
                // runc changes the mode of the directory instead: `stat` sees the same.
                let options = options.replace(",mode=755", "");
                let propagation = left[6..].iter().map(|tag| tag.split(':').next().unwrap());
                let propagation: Vec<&str> = propagation.collect();
                format!(
                    "{section}: {root} {} {attributes} {propagation:?} {} {source} {options}",
                    left[4], right[0]
                )
            }
            "cgroup" if line.contains("/kina-") => {
                format!("{section}: {}<group>", line.split("kina-").next().unwrap())
            }
            // runc hands on what its caller ignores of the C library's own signals.
            "status" => format!(
                "{section}: {}",
                line.replace("SigIgn:\t0000000080000000", "SigIgn:\t0000000000000000")
            ),
            // runc is not yet in the group root of a user namespace when it makes this one.
            "dev" if line.ends_with(" mqueue") => {
                format!(
                    "{section}: {}",
                    line.replace(" 65534 ", " ")
                        .replace(" 0 ", " ")
                        .split_whitespace()
                        .collect::<Vec<_>>()
                        .join(" ")
                )
            }
            "dev" => format!("{section}: {}", line.split_whitespace().collect::<Vec<_>>().join(" ")),
            _ => format!("{section}: {line}"),
        });
    }
    // In which order mounts are listed depends on the order of the masks only.
    lines.sort();
    lines
}

/// Exit code and normalised output, or that it was refused.
type Outcome = Result<(i32, Vec<String>), String>;

fn ours(spec: &Spec, exec: Option<&Process>) -> Outcome {
    let place = Place::new();
    let (stdio, output) = streams();
    let plan = Plan { spec: spec.clone(), rootfs: place.rootfs(), stdio, cgroup: Some(place.group.clone()) };
    let chain = |error: Error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    };
    let created = launcher().create(plan).map_err(chain)?;
    let Created { pidfd, start, .. } = created;
    if let Err(error) = start.start() {
        wait(&pidfd);
        return Err(chain(error));
    }
    let Some(process) = exec else {
        let text = read_all(output);
        let code = wait(&pidfd);
        return Ok((code, normalise(&text, &place)));
    };
    let (stdio, output) = streams();
    let plan =
        ExecPlan { container: spec, process: process.clone(), stdio, cgroup: Some(place.group.clone()) };
    let result = launcher().exec(pidfd.as_fd(), plan).and_then(|created| {
        let Created { pidfd, start, .. } = created;
        let started = start.start();
        let text = if started.is_ok() { read_all(output) } else { String::new() };
        let code = wait(&pidfd);
        started.map(|()| (code, normalise(&text, &place)))
    });
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    wait(&pidfd);
    result.map_err(chain)
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A container of runc's, deleted whatever happens. Its state and log lie in its bundle: runc
/// leaves its usual place behind.
struct Runc(PathBuf, String);

impl Runc {
    fn command(&self, words: &[&str]) -> Command {
        let Self(bundle, id) = self;
        let mut command = Command::new("runc");
        command.arg("--root").arg(bundle.join("state")).arg("--log").arg(bundle.join("log"));
        command.args(words).arg(id).stdin(Pipes::null());
        command
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        self.command(&["delete", "--force"]).stderr(Pipes::null()).status().unwrap();
    }
}

fn runcs(spec: &Spec, exec: Option<&Process>) -> Outcome {
    let place = Place::new();
    let id = format!("kina-oracle-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let mut spec = spec.clone();
    spec.root_mut().as_mut().unwrap().set_path("root".into());
    spec.linux_mut().as_mut().unwrap().set_cgroups_path(Some(format!("/{id}").into()));
    fs::write(place.bundle().join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    let runc = Runc(place.bundle().to_owned(), id);
    let bundle = place.bundle().to_str().unwrap();
    let refused = || {
        let log = fs::read_to_string(place.bundle().join("log")).unwrap_or_default();
        log.lines().find(|line| line.contains("level=error")).map(str::to_owned)
    };
    // A pipe as ours: what the process sees of its streams is the same.
    let outcome = |mut command: Command| {
        let output = command.output().expect("these tests need runc: apt-get install -y runc");
        let text = String::from_utf8_lossy(&output.stdout);
        refused().map_or_else(|| Ok((output.status.code().unwrap_or(-1), normalise(&text, &place))), Err)
    };
    let Some(exec) = exec else {
        return outcome(runc.command(&["run", "--bundle", bundle]));
    };
    let mut command = runc.command(&["run", "--detach", "--bundle", bundle]);
    // Into a file: the container that stays must not hold a pipe open.
    let out = File::create(place.bundle().join("out")).unwrap();
    command.stdout(out.try_clone().unwrap()).stderr(out);
    command.status().expect("these tests need runc: apt-get install -y runc");
    if let Some(error) = refused() {
        return Err(error);
    }
    let process = place.bundle().join("process.json");
    fs::write(&process, serde_json::to_vec(exec).unwrap()).unwrap();
    outcome(runc.command(&["exec", "--process", process.to_str().unwrap()]))
}

/// What was printed by one and not by the other.
fn difference(ours: &[String], theirs: &[String]) -> Vec<String> {
    let (a, b): (HashSet<_>, HashSet<_>) = (ours.iter().collect(), theirs.iter().collect());
    let only = |mark: char, from: &HashSet<&String>, other: &HashSet<&String>| {
        let mut lines: Vec<String> = from.difference(other).map(|line| format!("{mark} {line}")).collect();
        lines.sort();
        lines
    };
    let mut lines = only('+', &a, &b);
    lines.extend(only('-', &b, &a));
    lines
}

fn compare(name: &str, ours: Outcome, theirs: Outcome, failures: &mut Vec<String>) {
    match (ours, theirs) {
        (Ok((code, lines)), Ok((expected, theirs))) => {
            let lines = difference(&lines, &theirs);
            if code != expected || !lines.is_empty() {
                failures.push(format!("{name}: code {code}, runc {expected}\n  {}", lines.join("\n  ")));
            }
        }
        (Err(_), Err(_)) => {}
        (Err(error), Ok(_)) => failures.push(format!("{name}: only the launcher refuses: {error}")),
        (Ok((code, _)), Err(error)) => {
            failures.push(format!("{name}: ends with {code}, runc refuses: {error}"));
        }
    }
}

struct Case {
    name: &'static str,
    change: fn(&mut Spec),
    /// Some cases cannot keep a container running, or are about its first process only.
    exec: bool,
}

const fn case(name: &'static str, change: fn(&mut Spec)) -> Case {
    Case { name, change, exec: true }
}

const fn once(name: &'static str, change: fn(&mut Spec)) -> Case {
    Case { name, change, exec: false }
}

fn process(spec: &mut Spec) -> &mut Process {
    spec.process_mut().as_mut().unwrap()
}

fn linux(spec: &mut Spec) -> &mut oci_spec::runtime::Linux {
    spec.linux_mut().as_mut().unwrap()
}

fn add_mount(spec: &mut Spec, target: &str, kind: &str, source: &str, options: &[&str]) {
    let mount = defaults::mount(target, kind, source, options);
    spec.mounts_mut().as_mut().unwrap().push(mount);
}

fn without(spec: &mut Spec, kind: LinuxNamespaceType) {
    linux(spec).namespaces_mut().as_mut().unwrap().retain(|namespace| namespace.typ() != kind);
}

fn set_user(spec: &mut Spec, uid: u32, gid: u32, groups: &[u32]) {
    let user = process(spec).user_mut();
    user.set_uid(uid);
    user.set_gid(gid);
    user.set_additional_gids(Some(groups.to_vec()));
}

fn set_capabilities(spec: &mut Spec, set: &[Capability]) {
    process(spec).set_capabilities(Some(defaults::capabilities(set)));
    linux(spec).set_seccomp(Some(defaults::seccomp(set)));
}

/// All that this machine can give: it may lack some.
fn privileged(spec: &mut Spec) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    let bounding = u64::from_str_radix(bounding.trim(), 16).unwrap();
    let all = [Capability::SysAdmin, Capability::NetAdmin, Capability::SysPtrace, Capability::SysModule];
    let mut set = defaults::CAPABILITIES.to_vec();
    set.extend(all);
    assert_ne!(bounding & 1 << 21, 0, "this test needs CAP_SYS_ADMIN");
    process(spec).set_capabilities(Some(defaults::capabilities(&set)));
    linux(spec).set_seccomp(None);
    linux(spec).set_masked_paths(None);
    linux(spec).set_readonly_paths(None);
}

fn rlimit(kind: PosixRlimitType, soft: u64, hard: u64) -> oci_spec::runtime::PosixRlimit {
    PosixRlimitBuilder::default().typ(kind).soft(soft).hard(hard).build().unwrap()
}

fn map_ids(spec: &mut Spec) {
    let map = LinuxIdMappingBuilder::default()
        .container_id(0_u32)
        .host_id(300_000_u32)
        .size(65536_u32)
        .build()
        .unwrap();
    linux(spec).set_uid_mappings(Some(vec![map]));
    linux(spec).set_gid_mappings(Some(vec![map]));
    let user = defaults::namespaces(&[LinuxNamespaceType::User]);
    linux(spec).namespaces_mut().as_mut().unwrap().extend(user);
    // runc 1.1 refuses to mount v1 groups in a user namespace as it does otherwise.
    spec.mounts_mut().as_mut().unwrap().retain(|mount| mount.typ().as_deref() != Some("cgroup"));
}

fn profile(action: LinuxSeccompAction, names: &[&str], default: LinuxSeccompAction) -> LinuxSeccomp {
    let mut profile = defaults::seccomp(&[]);
    let mut call = oci_spec::runtime::LinuxSyscall::default();
    call.set_names(names.iter().map(|name| (*name).to_owned()).collect());
    call.set_action(action);
    profile.set_syscalls(Some(vec![call]));
    profile.set_default_action(default);
    profile
}

const CASES: &[Case] = &[
    case("defaults", |_| {}),
    case("no new privileges", |spec| {
        process(spec).set_no_new_privileges(Some(true));
    }),
    case("no capabilities", |spec| set_capabilities(spec, &[])),
    case("one capability", |spec| set_capabilities(spec, &[Capability::NetBindService])),
    case("no capabilities field", |spec| {
        process(spec).set_capabilities(None);
    }),
    case("privileged", privileged),
    case("privileged with its profile", |spec| {
        privileged(spec);
        linux(spec).set_seccomp(Some(defaults::seccomp(&[Capability::SysAdmin])));
    }),
    case("a user", |spec| set_user(spec, 1000, 1000, &[])),
    case("a user with groups", |spec| set_user(spec, 1000, 100, &[7, 5, 1000])),
    case("root with groups", |spec| set_user(spec, 0, 0, &[10, 20])),
    case("an unknown user", |spec| set_user(spec, 4242, 4242, &[])),
    case("a user without new privileges", |spec| {
        set_user(spec, 1000, 1000, &[]);
        process(spec).set_no_new_privileges(Some(true));
    }),
    case("ambient capabilities", |spec| {
        set_user(spec, 1000, 1000, &[]);
        let set: HashSet<_> = [Capability::Chown, Capability::NetBindService].into();
        let capabilities = process(spec).capabilities().clone();
        let mut capabilities = capabilities.unwrap();
        capabilities.set_inheritable(Some(set.clone()));
        capabilities.set_ambient(Some(set));
        process(spec).set_capabilities(Some(capabilities));
    }),
    case("inheritable capabilities", |spec| {
        let mut capabilities = defaults::capabilities(&defaults::CAPABILITIES);
        capabilities.set_inheritable(Some([Capability::Chown].into()));
        process(spec).set_capabilities(Some(capabilities));
    }),
    case("effective less than permitted", |spec| {
        let mut capabilities = defaults::capabilities(&defaults::CAPABILITIES);
        capabilities.set_effective(Some([Capability::Chown].into()));
        process(spec).set_capabilities(Some(capabilities));
    }),
    // runc 1.1 does not set the umask of an exec.
    once("a umask", |spec| {
        process(spec).user_mut().set_umask(Some(0o077));
    }),
    case("a working directory that is there", |spec| {
        process(spec).set_cwd("/etc".into());
    }),
    case("a working directory that is not", |spec| {
        process(spec).set_cwd("/a/b/c".into());
    }),
    case("a working directory with dots", |spec| {
        process(spec).set_cwd("/etc/../tmp".into());
    }),
    case("an environment", |spec| {
        process(spec).set_env(Some(vec!["PATH=/bin".into(), "A=1".into(), "A=2".into(), "B=x=y".into()]));
    }),
    case("a home of its own", |spec| {
        process(spec).set_env(Some(vec!["PATH=/bin".into(), "HOME=/elsewhere".into()]));
    }),
    case("a limit", |spec| {
        let limits =
            vec![rlimit(PosixRlimitType::RlimitCore, 0, 0), rlimit(PosixRlimitType::RlimitNproc, 500, 600)];
        process(spec).set_rlimits(Some(limits));
    }),
    // runc 1.1 gives an exec the hard limit of descriptors as its soft limit.
    once("limits", |spec| {
        let limits = vec![
            rlimit(PosixRlimitType::RlimitNofile, 100, 200),
            rlimit(PosixRlimitType::RlimitCore, 0, 0),
            rlimit(PosixRlimitType::RlimitNproc, 500, 500),
            rlimit(PosixRlimitType::RlimitStack, 1 << 20, 1 << 23),
        ];
        process(spec).set_rlimits(Some(limits));
    }),
    case("an OOM score", |spec| {
        process(spec).set_oom_score_adj(Some(500));
    }),
    case("no seccomp", |spec| {
        linux(spec).set_seccomp(None);
    }),
    case("seccomp that allows all but some", |spec| {
        let (errno, allow) = (LinuxSeccompAction::ScmpActErrno, LinuxSeccompAction::ScmpActAllow);
        linux(spec).set_seccomp(Some(profile(
            errno,
            &["chmod", "fchmodat", "mkdir", "mknod", "mknodat"],
            allow,
        )));
    }),
    case("seccomp with an error number", |spec| {
        let (errno, allow) = (LinuxSeccompAction::ScmpActErrno, LinuxSeccompAction::ScmpActAllow);
        let mut profile = profile(errno, &["chmod"], allow);
        let mut calls = profile.syscalls().clone().unwrap();
        calls[0].set_errno_ret(Some(2));
        profile.set_syscalls(Some(calls));
        process(spec).set_no_new_privileges(Some(true));
        linux(spec).set_seccomp(Some(profile));
    }),
    once("seccomp that kills", |spec| {
        let (kill, allow) = (LinuxSeccompAction::ScmpActKillProcess, LinuxSeccompAction::ScmpActAllow);
        linux(spec).set_seccomp(Some(profile(kill, &["sethostname"], allow)));
        process(spec).set_no_new_privileges(Some(true));
        set_args(spec, &["/bin/hostname", "x"]);
    }),
    case("nothing masked", |spec| {
        linux(spec).set_masked_paths(None);
        linux(spec).set_readonly_paths(None);
    }),
    case("masked paths of the image", |spec| {
        linux(spec).set_masked_paths(Some(vec!["/etc".into(), "/bin/echo".into(), "/nothing".into()]));
        linux(spec).set_readonly_paths(Some(vec!["/tmp".into(), "/home".into(), "/nothing".into()]));
    }),
    case("a read-only root", |spec| {
        spec.root_mut().as_mut().unwrap().set_readonly(Some(true));
    }),
    case("a bind mount", |spec| add_mount(spec, "/data", "bind", "/etc/apt", &["rbind", "rprivate", "ro"])),
    case("a bind mount with attributes", |spec| {
        add_mount(spec, "/data", "bind", "/etc/apt", &["bind", "nosuid", "nodev", "noexec"]);
    }),
    case("a file bind mount", |spec| {
        add_mount(spec, "/etc/resolv.conf", "bind", "/etc/hostname", &["rbind", "rprivate", "rw"]);
    }),
    case("a bind mount deep down", |spec| {
        add_mount(spec, "/a/b/c/d", "bind", "/etc/apt", &["rbind", "rslave"]);
    }),
    case("a shared mount", |spec| {
        add_mount(spec, "/data", "bind", "/etc/apt", &["bind", "shared"]);
    }),
    case("a tmpfs", |spec| {
        add_mount(spec, "/scratch", "tmpfs", "tmpfs", &["nosuid", "noatime", "size=1m", "mode=700"]);
    }),
    case("a tmpfs over the image", |spec| add_mount(spec, "/home", "tmpfs", "tmpfs", &["nodev"])),
    case("a read-only tmpfs", |spec| add_mount(spec, "/scratch", "tmpfs", "tmpfs", &["ro"])),
    case("writable groups", |spec| {
        let mounts = spec.mounts_mut().as_mut().unwrap();
        mounts.retain(|mount| mount.typ().as_deref() != Some("cgroup"));
        add_mount(
            spec,
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "rw"],
        );
    }),
    case("no cgroup namespace", |spec| {
        without(spec, LinuxNamespaceType::Cgroup);
        let mounts = spec.mounts_mut().as_mut().unwrap();
        mounts.retain(|mount| mount.typ().as_deref() != Some("cgroup"));
    }),
    case("no cgroup mount", |spec| {
        let mounts = spec.mounts_mut().as_mut().unwrap();
        mounts.retain(|mount| mount.typ().as_deref() != Some("cgroup"));
    }),
    case("a host name", |spec| {
        spec.set_hostname(Some("some-pod-0".to_owned()));
        spec.set_domainname(None);
    }),
    case("kernel parameters", |spec| {
        let sysctl = [
            ("net.ipv4.ip_forward".to_owned(), "1".to_owned()),
            ("kernel.shmmax".to_owned(), "65536".to_owned()),
        ];
        linux(spec).set_sysctl(Some(sysctl.into()));
    }),
    case("the host's network", |spec| {
        without(spec, LinuxNamespaceType::Network);
        spec.mounts_mut().as_mut().unwrap().retain(|mount| mount.destination() != Path::new("/sys"));
        let mounts = spec.mounts_mut().as_mut().unwrap();
        mounts.retain(|mount| mount.typ().as_deref() != Some("cgroup"));
        add_mount(spec, "/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]);
    }),
    case("the host's IPC", |spec| without(spec, LinuxNamespaceType::Ipc)),
    case("a device", |spec| {
        let device = LinuxDeviceBuilder::default()
            .path("/dev/fuse")
            .typ(LinuxDeviceType::C)
            .major(10)
            .minor(229)
            .file_mode(0o660_u32)
            .uid(5_u32)
            .gid(6_u32)
            .build()
            .unwrap();
        linux(spec).set_devices(Some(vec![device]));
    }),
    case("a device elsewhere", |spec| {
        let device = LinuxDeviceBuilder::default()
            .path("/dev/sub/dir/zero2")
            .typ(LinuxDeviceType::C)
            .major(1)
            .minor(5)
            .file_mode(0o600_u32)
            .build()
            .unwrap();
        linux(spec).set_devices(Some(vec![device]));
    }),
    case("all devices allowed", |spec| {
        let mut rules = defaults::device_rules();
        rules[0].set_allow(true);
        linux(spec).resources_mut().as_mut().unwrap().set_devices(Some(rules));
    }),
    case("a slave root", |spec| {
        linux(spec).set_rootfs_propagation(Some("rslave".to_owned()));
    }),
    case("a private root", |spec| {
        linux(spec).set_rootfs_propagation(Some("rprivate".to_owned()));
    }),
    case("a user namespace", map_ids),
    case("a user of a user namespace", |spec| {
        map_ids(spec);
        set_user(spec, 1000, 1000, &[7]);
    }),
    // What both refuse.
    once("a program that is not there", |spec| set_args(spec, &["nothing"])),
    once("a program that cannot be executed", |spec| set_args(spec, &["/etc/passwd"])),
    once("a directory as program", |spec| set_args(spec, &["/etc"])),
    once("no program", |spec| set_args(spec, &[])),
    once("a parameter of the host", |spec| {
        linux(spec).set_sysctl(Some([("kernel.panic".to_owned(), "9".to_owned())].into()));
    }),
    once("a network parameter in the host's network", |spec| {
        without(spec, LinuxNamespaceType::Network);
        linux(spec).set_sysctl(Some([("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into()));
    }),
    once("a host name without its namespace", |spec| {
        without(spec, LinuxNamespaceType::Uts);
        spec.set_hostname(Some("x".to_owned()));
    }),
    once("a missing source", |spec| add_mount(spec, "/x", "bind", "/does/not/exist", &["rbind"])),
    once("an unknown file system", |spec| add_mount(spec, "/x", "nofs", "nofs", &[])),
    once("an unknown option", |spec| add_mount(spec, "/x", "tmpfs", "tmpfs", &["nonsense=1"])),
    once("a working directory that is a file", |spec| {
        process(spec).set_cwd("/etc/passwd".into());
    }),
    once("a namespace path that is none", |spec| {
        for namespace in linux(spec).namespaces_mut().as_mut().unwrap() {
            if namespace.typ() == LinuxNamespaceType::Network {
                namespace.set_path(Some("/etc/passwd".into()));
            }
        }
    }),
    once("soft above hard", |spec| {
        process(spec).set_rlimits(Some(vec![rlimit(PosixRlimitType::RlimitNofile, 20, 10)]));
    }),
    once("an exit code", |spec| set_args(spec, &["/bin/sh", "-c", "exit 42"])),
    once("a signal", |spec| set_args(spec, &["/bin/sh", "-c", "kill -9 $$; exit 3"])),
];

#[test]
fn a_first_process_is_as_runcs() {
    let mut failures = Vec::new();
    for case in CASES {
        let mut spec = shell(REPORT);
        (case.change)(&mut spec);
        compare(case.name, ours(&spec, None), runcs(&spec, None), &mut failures);
    }
    println!("{} specs as first process", CASES.len());
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), CASES.len(), failures.join("\n"));
}

#[test]
fn an_exec_is_as_runcs() {
    let mut failures = Vec::new();
    let cases: Vec<&Case> = CASES.iter().filter(|case| case.exec).collect();
    for case in &cases {
        let mut spec = shell(REPORT);
        (case.change)(&mut spec);
        let process = spec.process().clone().unwrap();
        set_args(&mut spec, &["/bin/sleep", "1000"]);
        compare(case.name, ours(&spec, Some(&process)), runcs(&spec, Some(&process)), &mut failures);
    }
    println!("{} specs as exec", cases.len());
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}
