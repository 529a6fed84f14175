//! Launching, by itself. Needs root, control groups and busybox.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(unsafe_code, reason = "the helper runs before main")]

mod common;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use common::*;
use kina_launch::{Created, Error, ExecPlan, Plan, RootFs, Stdio, Warning, defaults};
use oci_spec::runtime::{LinuxIdMappingBuilder, LinuxNamespaceType, Process, Spec};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::Signal;

/// A running container.
struct Running {
    pid: i32,
    pidfd: OwnedFd,
    spec: Spec,
    place: Place,
    stopped: bool,
}

impl Running {
    fn start(spec: Spec) -> Self {
        Self::start_in(Place::new(), spec)
    }

    fn start_in(place: Place, spec: Spec) -> Self {
        let stdio = Stdio::Files { stdin: null(), stdout: null(), stderr: null() };
        let plan =
            Plan { spec: spec.clone(), rootfs: place.rootfs(), stdio, cgroup: Some(place.group.clone()) };
        let Created { pid, pidfd, start, .. } = launcher().create(plan).unwrap();
        start.start().unwrap();
        Self { pid, pidfd, spec, place, stopped: false }
    }

    fn process(&self, script: &str) -> Process {
        let mut spec = self.spec.clone();
        set_args(&mut spec, &["/bin/sh", "-c", script]);
        spec.process().clone().unwrap()
    }

    fn exec_with(&self, process: Process) -> Result<(i32, String), Error> {
        let (stdio, output) = streams();
        let cgroup = Some(self.place.group.clone());
        let plan = ExecPlan { container: &self.spec, process, stdio, cgroup };
        let created = launcher().exec(self.pidfd.as_fd(), plan)?;
        Ok(finish(created, output))
    }

    fn exec(&self, script: &str) -> (i32, String) {
        self.exec_with(self.process(script)).unwrap()
    }

    /// What a namespace of the container is.
    fn namespace(&self, name: &str) -> PathBuf {
        fs::read_link(format!("/proc/{}/ns/{name}", self.pid)).unwrap()
    }

    fn stop(&mut self) {
        if !std::mem::replace(&mut self.stopped, true) {
            rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL).unwrap();
            wait(&self.pidfd);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

fn with_user_namespace(mut spec: Spec) -> Spec {
    let linux = spec.linux_mut().as_mut().unwrap();
    let map = LinuxIdMappingBuilder::default()
        .container_id(0_u32)
        .host_id(200_000_u32)
        .size(65536_u32)
        .build()
        .unwrap();
    linux.set_uid_mappings(Some(vec![map]));
    linux.set_gid_mappings(Some(vec![map]));
    let user = defaults::namespaces(&[LinuxNamespaceType::User]);
    linux.namespaces_mut().as_mut().unwrap().extend(user);
    spec
}

/// Adds a mount with mappings.
fn map_mount(spec: &mut Spec, kind: &str) {
    let mapped = with_user_namespace(spec.clone());
    let linux = mapped.linux().as_ref().unwrap();
    let mut mount = defaults::mount("/m", kind, "/tmp", &[]);
    mount.set_uid_mappings(linux.uid_mappings().clone());
    mount.set_gid_mappings(linux.gid_mappings().clone());
    spec.mounts_mut().as_mut().unwrap().push(mount);
}

/// The lines of a status file that tell of confinement.
fn confinement(status: &str) -> String {
    const NAMES: [&str; 10] =
        ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    status
        .lines()
        .filter(|line| NAMES.iter().any(|name| line.starts_with(&format!("{name}:"))))
        .map(|line| format!("{line}\n"))
        .collect()
}

const STATUS: &str = "cat /proc/self/status";

#[test]
fn a_container_runs_and_its_exit_code_comes_back() {
    let place = Place::new();
    let (code, output) = run(&place, &shell("echo here; cat /proc/self/status; exit 7")).unwrap();
    assert_eq!(code, 7, "{output}");
    assert!(output.starts_with("here\n"), "{output}");
    assert!(output.contains("Seccomp:\t2\n"), "{output}");
    assert!(output.contains("CapEff:\t00000000a80425fb\n"), "{output}");
}

#[test]
fn an_exec_is_confined_like_its_container() {
    for privileges in [false, true] {
        for user_namespace in [false, true] {
            for uid in [0, 1000] {
                let mut spec = shell("sleep 1000");
                if user_namespace {
                    spec = with_user_namespace(spec);
                }
                let process = spec.process_mut().as_mut().unwrap();
                process.set_no_new_privileges(Some(privileges));
                process.user_mut().set_uid(uid);
                process.user_mut().set_gid(uid);
                process.user_mut().set_additional_gids(Some(vec![5, 6]));
                let running = Running::start(spec);
                let own = fs::read_to_string(format!("/proc/{}/status", running.pid)).unwrap();
                let (code, status) = running.exec(STATUS);
                assert_eq!(code, 0, "{status}");
                let (init, exec) = (confinement(&own), confinement(&status));
                if user_namespace {
                    // The ids of the one were read outside, of the other inside.
                    assert!(init.contains(&format!("Uid:\t{}\t", 200_000 + uid)), "{init}");
                    assert!(exec.contains(&format!("Uid:\t{uid}\t")), "{exec}");
                    let without_ids = |text: &str| {
                        text.lines()
                            .filter(|l| !l.contains("id:\t") && !l.starts_with("Groups"))
                            .map(str::to_owned)
                            .collect::<Vec<_>>()
                    };
                    assert_eq!(without_ids(&init), without_ids(&exec));
                } else {
                    assert_eq!(init, exec);
                }
                assert!(exec.contains("Seccomp:\t2\n"), "{exec}");
                assert!(exec.contains(&format!("NoNewPrivs:\t{}\n", u8::from(privileges))), "{exec}");
                let (_, inside) = running.exec("for n in mnt pid ipc uts net user cgroup; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup");
                for name in ["mnt", "pid", "ipc", "uts", "net", "user", "cgroup"] {
                    let own = running.namespace(name);
                    assert!(inside.contains(own.to_str().unwrap()), "{name}: {inside}");
                }
                // A cgroup namespace: every group is its own root.
                assert!(inside.lines().filter(|l| l.contains(":/")).all(|l| l.ends_with(":/")), "{inside}");
            }
        }
    }
}

#[test]
fn an_exec_cannot_ask_for_more_than_its_container_has() {
    let running = Running::start(shell("sleep 1000"));
    let mut process = running.process("true");
    process.set_capabilities(Some(defaults::capabilities(&[])));
    match running.exec_with(process) {
        Err(Error::Refused { field, .. }) => assert_eq!(field, "process.capabilities"),
        other => panic!("{other:?}"),
    }
    let mut process = running.process("true");
    process.set_no_new_privileges(Some(true));
    assert!(matches!(running.exec_with(process), Err(Error::Refused { .. })));
    let mut process = running.process(STATUS);
    process.set_capabilities(None);
    process.set_no_new_privileges(None);
    let (_, status) = running.exec_with(process).unwrap();
    assert!(status.contains("CapEff:\t00000000a80425fb\n"), "{status}");
}

#[test]
fn an_exec_in_an_ended_container_says_so() {
    let mut running = Running::start(shell("sleep 1000"));
    let process = running.process("true");
    running.stop();
    assert!(matches!(running.exec_with(process), Err(Error::Gone)));
}

#[test]
fn a_user_namespace_has_mapped_ids_devices_and_mounts() {
    let place = Place::new();
    let mut spec = with_user_namespace(shell(
        "cat /proc/self/uid_map; echo x > /dev/null && head -c1 /dev/zero | wc -c; stat -c %t /dev/full; ls -d /sys/fs/cgroup/pids",
    ));
    spec.set_hostname(Some("mapped".to_owned()));
    let (code, output) = run(&place, &spec).unwrap();
    assert_eq!(code, 0, "{output}");
    assert!(
        output.split_whitespace().eq(["0", "200000", "65536", "1", "1", "/sys/fs/cgroup/pids"]),
        "{output}"
    );
}

#[test]
fn a_mapped_mount_shows_its_files_as_the_namespace_has_them() {
    let place = Place::new();
    let source = tempfile::tempdir().unwrap();
    fs::set_permissions(source.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The root is not mapped: nobody in the namespace could make them.
    for name in ["mapped", "plain"] {
        fs::create_dir(place.root().join(name)).unwrap();
    }
    fs::write(source.path().join("of-root"), "").unwrap();
    fs::write(source.path().join("of-seven"), "").unwrap();
    std::os::unix::fs::chown(source.path().join("of-seven"), Some(7), Some(8)).unwrap();
    let mut spec = with_user_namespace(shell(
        "for where in mapped plain; do stat -c '%n %u:%g' /$where/of-root /$where/of-seven; done
         touch /mapped/made && touch /plain/made || true",
    ));
    for name in ["/mapped", "/plain"] {
        let mut mount = defaults::mount(name, "bind", source.path().to_str().unwrap(), &["rbind"]);
        if name == "/mapped" {
            let linux = spec.linux().as_ref().unwrap();
            mount.set_uid_mappings(linux.uid_mappings().clone());
            mount.set_gid_mappings(linux.gid_mappings().clone());
        }
        spec.mounts_mut().as_mut().unwrap().push(mount);
    }
    let (code, output) = run(&place, &spec).unwrap();
    assert_eq!(code, 0, "{output}");
    let expected = "/mapped/of-root 0:0\n/mapped/of-seven 7:8\n\
                    /plain/of-root 65534:65534\n/plain/of-seven 65534:65534\n";
    assert!(output.starts_with(expected), "{output}");
    let made = fs::metadata(source.path().join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0));
}

#[test]
fn a_mount_that_cannot_be_mapped_is_named() {
    let place = Place::new();
    let mut spec = with_user_namespace(shell("true"));
    let mut mount = defaults::mount("/numbers", "bind", "/proc/sys", &["rbind", "ridmap"]);
    let linux = spec.linux().as_ref().unwrap();
    mount.set_uid_mappings(linux.uid_mappings().clone());
    mount.set_gid_mappings(linux.gid_mappings().clone());
    spec.mounts_mut().as_mut().unwrap().push(mount);
    let error = run(&place, &spec).unwrap_err();
    assert!(error.to_string().contains("map the ids of \"/proc/sys\""), "{error}");
}

#[test]
fn places_of_the_root_can_be_written_where_it_cannot() {
    let place = Place::new();
    let mut spec = shell("echo x > /made/here/x && cat /made/here/x; echo x > /made/y; exit 0");
    spec.root_mut().as_mut().unwrap().set_readonly(Some(true));
    let mount = defaults::mount("/made/here", "bind", "rootfs/made/here", &["bind", "rprivate"]);
    spec.mounts_mut().as_mut().unwrap().insert(0, mount);
    let (code, output) = run(&place, &spec).unwrap();
    assert_eq!(code, 0, "{output}");
    assert!(output.starts_with("x\n") && output.contains("Read-only file system"), "{output}");
    // Nothing else is meant by a relative source.
    let mount = defaults::mount("/other", "bind", "elsewhere", &["bind"]);
    spec.mounts_mut().as_mut().unwrap().push(mount);
    match run(&place, &spec) {
        Err(Error::Refused { field, .. }) => assert_eq!(field, "mounts.source"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_terminal_is_the_containers_own() {
    let place = Place::new();
    let mut spec = shell("tty; stty size; test -c /dev/console && echo console; echo done > /dev/tty");
    let process = spec.process_mut().as_mut().unwrap();
    process.set_terminal(Some(true));
    let size = oci_spec::runtime::BoxBuilder::default().height(33_u64).width(101_u64).build().unwrap();
    process.set_console_size(Some(size));
    let plan = Plan {
        spec: spec.clone(),
        rootfs: place.rootfs(),
        stdio: Stdio::Terminal,
        cgroup: Some(place.group.clone()),
    };
    let mut created = launcher().create(plan).unwrap();
    let terminal = created.terminal.take().unwrap();
    let (code, output) = finish(created, terminal);
    let lines: Vec<&str> = output.lines().map(str::trim).collect();
    assert_eq!(code, 0, "{output}");
    assert_eq!(lines, ["/dev/pts/0", "33 101", "console", "done"]);
}

#[test]
fn an_exec_may_have_a_terminal_too() {
    let running = Running::start(shell("sleep 1000"));
    let mut process = running.process("tty; echo done > /dev/tty");
    process.set_terminal(Some(true));
    let cgroup = Some(running.place.group.clone());
    let plan = ExecPlan { container: &running.spec, process, stdio: Stdio::Terminal, cgroup };
    let mut created = launcher().exec(running.pidfd.as_fd(), plan).unwrap();
    let terminal = created.terminal.take().unwrap();
    let (code, output) = finish(created, terminal);
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("/dev/pts/0") && output.contains("done"), "{output}");
}

#[test]
fn a_program_that_cannot_be_executed_is_named() {
    let place = Place::new();
    fs::write(place.root().join("plain"), "x").unwrap();
    fs::write(place.root().join("garbage"), "\x7fnothing").unwrap();
    fs::set_permissions(place.root().join("garbage"), fs::Permissions::from_mode(0o755)).unwrap();
    let attempt = |name: &str, tight: bool| {
        let mut spec = shell("");
        set_args(&mut spec, &[name]);
        if tight {
            // Allows nothing but the execution: no message can be sent any more.
            let mut profile = defaults::seccomp(&[]);
            let mut call = oci_spec::runtime::LinuxSyscall::default();
            call.set_names(vec!["execve".to_owned(), "exit_group".to_owned()]);
            profile.set_syscalls(Some(vec![call]));
            profile.set_default_action(oci_spec::runtime::LinuxSeccompAction::ScmpActKillProcess);
            spec.linux_mut().as_mut().unwrap().set_seccomp(Some(profile));
            spec.process_mut().as_mut().unwrap().set_no_new_privileges(Some(true));
        }
        let (stdio, _output) = streams();
        let cgroup = Some(place.group.clone());
        let plan = Plan { spec, rootfs: place.rootfs(), stdio, cgroup };
        let (error, pidfd) = match launcher().create(plan) {
            Err(error) => (error, None),
            Ok(Created { pidfd, start, .. }) => (start.start().unwrap_err(), Some(pidfd)),
        };
        if let Some(pidfd) = pidfd {
            wait(&pidfd);
        }
        match error {
            Error::Execute { path, source } => (path, source.raw_os_error().unwrap()),
            other => panic!("{name}: {other:?}"),
        }
    };
    assert_eq!(attempt("nothing", false), ("nothing".to_owned(), libc::ENOENT));
    assert_eq!(attempt("/nothing", false), ("/nothing".to_owned(), libc::ENOENT));
    assert_eq!(attempt("/plain", false), ("/plain".to_owned(), libc::EACCES));
    assert_eq!(attempt("/tmp", false), ("/tmp".to_owned(), libc::EACCES));
    assert_eq!(attempt("/garbage", false), ("/garbage".to_owned(), libc::ENOEXEC));
    assert_eq!(attempt("/garbage", true), ("/garbage".to_owned(), libc::ENOEXEC));
}

#[test]
fn a_refused_oom_score_is_a_warning() {
    let place = Place::new();
    let spec = |score: i32| {
        let mut spec = shell("cat /proc/self/oom_score_adj");
        spec.process_mut().as_mut().unwrap().set_oom_score_adj(Some(score));
        spec
    };
    assert_eq!(run(&place, &spec(321)).unwrap(), (0, "321\n".to_owned()));
    let may_lower = fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .is_some_and(|set| u64::from_str_radix(set.trim(), 16).unwrap() & 1 << 24 != 0);
    let (stdio, output) = streams();
    let cgroup = Some(place.group.clone());
    let created =
        launcher().create(Plan { spec: spec(-900), rootfs: place.rootfs(), stdio, cgroup }).unwrap();
    let warned =
        created.warnings.iter().any(|warning| matches!(warning, Warning::OomScoreAdj { wanted: -900, .. }));
    assert_eq!(warned, !may_lower);
    assert_eq!(finish(created, output).0, 0);
}

#[test]
fn a_detached_mount_can_be_the_root() {
    let place = Place::new();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(rustix::fs::CWD, place.root(), flags).unwrap();
    for spec in [shell("ls /bin/busybox"), with_user_namespace(shell("ls /bin/busybox"))] {
        let (stdio, output) = streams();
        let cgroup = Some(place.group.clone());
        let again = open_tree(&mount, "", flags | OpenTreeFlags::AT_EMPTY_PATH);
        let rootfs =
            RootFs::Detached(again.or_else(|_| open_tree(rustix::fs::CWD, place.root(), flags)).unwrap());
        let created = launcher().create(Plan { spec, rootfs, stdio, cgroup }).unwrap();
        assert_eq!(finish(created, output), (0, "/bin/busybox\n".to_owned()));
    }
}

#[test]
fn namespaces_are_joined_by_path() {
    let pod = Running::start(shell("sleep 1000"));
    let mut spec = shell("sleep 1000");
    let names = [
        (LinuxNamespaceType::Pid, "pid"),
        (LinuxNamespaceType::Ipc, "ipc"),
        (LinuxNamespaceType::Uts, "uts"),
        (LinuxNamespaceType::Network, "net"),
    ];
    for namespace in spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap() {
        if let Some((_, name)) = names.iter().find(|(kind, _)| *kind == namespace.typ()) {
            namespace.set_path(Some(format!("/proc/{}/ns/{name}", pod.pid).into()));
        }
    }
    let member = Running::start(spec);
    for (_, name) in names {
        assert_eq!(pod.namespace(name), member.namespace(name), "{name}");
    }
    for name in ["mnt", "cgroup"] {
        assert_ne!(pod.namespace(name), member.namespace(name), "{name}");
    }
    let (_, seen) = member.exec("ps");
    assert_eq!(seen.matches("sleep 1000").count(), 2, "{seen}");
}

#[test]
fn a_joined_user_namespace_owns_what_is_new() {
    let pod = Running::start(with_user_namespace(shell("sleep 1000")));
    let mut spec = with_user_namespace(shell("sleep 1000"));
    for namespace in spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap() {
        let name = match namespace.typ() {
            LinuxNamespaceType::User => "user",
            LinuxNamespaceType::Network => "net",
            _ => continue,
        };
        namespace.set_path(Some(format!("/proc/{}/ns/{name}", pod.pid).into()));
    }
    let member = Running::start(spec);
    assert_eq!(pod.namespace("user"), member.namespace("user"));
    assert_ne!(pod.namespace("pid"), member.namespace("pid"));
    let (code, output) = member.exec("cat /proc/self/uid_map; hostname");
    assert_eq!(code, 0, "{output}");
}

#[test]
fn a_link_in_the_image_does_not_lead_a_mount_out() {
    let place = Place::new();
    let outside = tempfile::tempdir().unwrap();
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("mark"), "").unwrap();
    symlink(outside.path(), place.root().join("out")).unwrap();
    symlink("/proc", place.root().join("hidden")).unwrap();
    let mount = |target: &str| {
        let mut spec = shell("ls /out/deep/mark /out/deep2/mark 2>&1; true");
        let source = source.path().to_str().unwrap();
        let mount = defaults::mount(target, "bind", source, &["rbind", "ro"]);
        spec.mounts_mut().as_mut().unwrap().push(mount);
        spec
    };
    let (_, output) = run(&place, &mount("/out/deep")).unwrap();
    assert!(output.contains("/out/deep/mark\n"), "{output}");
    let (_, output) = run(&place, &mount("/../../out/deep2")).unwrap();
    assert!(output.contains("/out/deep2/mark\n"), "{output}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // Over a process's files, by way of a link.
    assert!(run(&place, &mount("/hidden/self/attr")).is_err());
}

#[test]
fn what_is_not_started_is_killed() {
    let place = Place::new();
    let (stdio, _output) = streams();
    let cgroup = Some(place.group.clone());
    let plan = Plan { spec: shell("true"), rootfs: place.rootfs(), stdio, cgroup };
    let Created { pidfd, start, .. } = launcher().create(plan).unwrap();
    drop(start);
    assert_eq!(wait(&pidfd), 128 + libc::SIGKILL);
    assert!(place.group.processes().unwrap().is_empty());
}

#[test]
fn nothing_but_the_streams_is_open() {
    let place = Place::new();
    // Not close-on-exec, as careless code opens.
    let leak =
        rustix::fs::open("/etc/hostname", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    let (_, output) = run(&place, &shell("ls /proc/$$/fd; true")).unwrap();
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2"]);
    drop(leak);
    let running = Running::start(shell("sleep 1000"));
    let (_, output) = running.exec("ls /proc/$$/fd; true");
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2"]);
}

#[test]
fn refusals_name_the_field() {
    type Change = fn(&mut Spec);
    let table: [(&str, Change); 18] = [
        ("mounts.gidMappings", |spec| {
            map_mount(spec, "bind");
            spec.mounts_mut().as_mut().unwrap().last_mut().unwrap().set_gid_mappings(None);
        }),
        ("mounts.uidMappings", |spec| map_mount(spec, "tmpfs")),
        ("mounts.options", |spec| {
            let mount = defaults::mount("/m", "bind", "/tmp", &["rbind", "idmap"]);
            spec.mounts_mut().as_mut().unwrap().push(mount);
        }),
        ("linux.sysctl", |spec| {
            let sysctl = [("kernel.panic".to_owned(), "1".to_owned())].into();
            spec.linux_mut().as_mut().unwrap().set_sysctl(Some(sysctl));
        }),
        ("linux.namespaces", |spec| {
            let kinds = [LinuxNamespaceType::Mount, LinuxNamespaceType::Mount];
            spec.linux_mut().as_mut().unwrap().set_namespaces(Some(defaults::namespaces(&kinds)));
        }),
        ("linux.namespaces", |spec| {
            let kinds = [LinuxNamespaceType::Mount, LinuxNamespaceType::Time];
            spec.linux_mut().as_mut().unwrap().set_namespaces(Some(defaults::namespaces(&kinds)));
        }),
        ("linux.uidMappings", |spec| {
            let kinds = [LinuxNamespaceType::Mount, LinuxNamespaceType::User];
            spec.linux_mut().as_mut().unwrap().set_namespaces(Some(defaults::namespaces(&kinds)));
        }),
        ("linux.personality", |spec| {
            let personality = oci_spec::runtime::LinuxPersonalityBuilder::default()
                .domain(oci_spec::runtime::LinuxPersonalityDomain::PerLinux32)
                .build()
                .unwrap();
            spec.linux_mut().as_mut().unwrap().set_personality(Some(personality));
        }),
        ("linux.rootfsPropagation", |spec| {
            spec.linux_mut().as_mut().unwrap().set_rootfs_propagation(Some("odd".to_owned()));
        }),
        ("process.args", |spec| set_args(spec, &[])),
        ("process.cwd", |spec| {
            spec.process_mut().as_mut().unwrap().set_cwd("relative".into());
        }),
        ("process.apparmorProfile", |spec| {
            spec.process_mut().as_mut().unwrap().set_apparmor_profile(Some("no-such-profile".to_owned()));
        }),
        ("process.selinuxLabel", |spec| {
            spec.process_mut().as_mut().unwrap().set_selinux_label(Some("a:b:c:d".to_owned()));
        }),
        ("linux.mountLabel", |spec| {
            spec.linux_mut().as_mut().unwrap().set_mount_label(Some("a:b:c:d".to_owned()));
        }),
        ("process.terminal", |spec| {
            spec.process_mut().as_mut().unwrap().set_terminal(Some(true));
        }),
        ("mounts.destination", |spec| {
            let mount = defaults::mount("/proc/self/attr", "tmpfs", "tmpfs", &[]);
            spec.mounts_mut().as_mut().unwrap().push(mount);
        }),
        ("mounts.options", |spec| {
            let mount = defaults::mount("/x", "bind", "/tmp", &["rbind", "idmap"]);
            spec.mounts_mut().as_mut().unwrap().push(mount);
        }),
        ("hostname", |spec| {
            spec.linux_mut()
                .as_mut()
                .unwrap()
                .set_namespaces(Some(defaults::namespaces(&[LinuxNamespaceType::Mount])));
            spec.set_hostname(Some("x".to_owned()));
        }),
    ];
    let place = Place::new();
    for (field, change) in table {
        if field == "process.apparmorProfile" && Path::new("/sys/kernel/security/apparmor").exists() {
            continue;
        }
        let of_selinux = ["process.selinuxLabel", "linux.mountLabel"].contains(&field);
        if of_selinux && Path::new("/sys/fs/selinux/enforce").exists() {
            continue;
        }
        let mut spec = shell("true");
        change(&mut spec);
        match run(&place, &spec) {
            Err(Error::Refused { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
        assert!(!place.group.exists(), "{field}");
    }
}
