//! Machines that die: what the caller sees, and that nothing is left.

use std::process::Command;

use rustix::process::Signal;

use crate::harness::{Daemon, Options, end, kill, lives, machine, script, shell, wait_until, with_security};

const FOREVER: &str = "echo up; sleep 1000";

/// The process of a pod whose program has that name.
fn process(daemon: &Daemon, pod: &str, program: &str) -> u32 {
    let named = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        name.split('\0')
            .next()
            .is_some_and(|path| path.rsplit('/').next().is_some_and(|name| name.starts_with(program)))
    };
    let found = daemon.place.processes(pod).into_iter().find(named);
    found.unwrap_or_else(|| panic!("no {program} in {:?}", daemon.place.processes(pod)))
}

/// Each of a machine's processes is killed in turn. The pod fails with a reason
/// that says which; it is removed, and the next one works.
#[tokio::test]
async fn a_killed_part_ends_the_pod_with_the_reason() {
    machine::use_vm();
    let mut daemon = Daemon::start().await;
    for (program, reason) in [("qemu", "killed"), ("virtiofsd", "virtiofsd"), ("kina-vsock", "vsock")] {
        let cri = daemon.cri();
        let pod = cri.make_pod(program).await;
        let one = cri.run(&pod, script("one", FOREVER)).await;
        cri.wait_output(&one, "up").await;
        kill(process(&daemon, &pod, program), Signal::KILL);
        let status = cri.wait_exit(&one).await;
        assert_eq!(end(&status).0, 137, "{program}");
        assert!(status.message.contains(reason), "{program}: {status:?}");
        cri.wait_not_ready(&pod).await;
        wait_until("its processes to end", async || daemon.place.processes(&pod).is_empty()).await;
        cri.exec(&one, shell("true"), 1).await.unwrap_err();
        cri.stop_pod(&pod).await.unwrap();
        cri.remove_pod(&pod).await.unwrap();
        daemon.place.wait_clean(Some(daemon.pid())).await;
    }
    daemon.leave_nothing().await;
}

/// Dumps core, whose program runs beside the guest.
const CRASH: &str = "sh -c 'kill -SEGV $$'";

/// What that program does: `guest` kills the guest's process, `first` the machine's first
/// one, which no signal kills: its code is overwritten, and the guest's end wakes it.
const KILL: &str = "#!/bin/sh
B=/proc/$1/root/bin/busybox
if test $2 = first; then
    range=$($B grep r-xp /proc/1/maps | $B head -n 1 | $B cut -d ' ' -f 1)
    first=$((0x${range%-*} / 4096)); last=$((0x${range#*-} / 4096))
    $B dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$first count=$((last - first)) conv=notrunc
fi
$B kill -9 $($B grep -la serve /proc/[0-9]*/cmdline | $B cut -d / -f 3)
";

/// Whatever dies inside takes the machine along, and the pod says what it was. Nothing in
/// a container can see the machine's own processes; a privileged one gets at them through
/// the kernel, which runs a program of its choice for a core dump.
#[tokio::test]
async fn a_guest_that_dies_takes_its_machine_along() {
    machine::use_vm();
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    for (what, deed, reason) in [
        ("guest", CRASH, "its guest has ended: signal: 9 (SIGKILL)"),
        ("first", CRASH, "its kernel panicked: Attempted to kill init! exitcode=0x0000000"),
        ("kernel", "echo c > /proc/sysrq-trigger", "its kernel panicked: sysrq triggered crash"),
    ] {
        let mut config = cri.pod(what);
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
        let pod = cri.run_pod(&config).await.unwrap();
        let root = with_security(script("root", FOREVER), |context| context.privileged = true);
        let root = cri.run(&pod, root).await;
        let pattern = format!("|/proc/%P/root/bin/busybox sh /proc/%P/root/kill %P {what}");
        let prepare =
            format!("cat > /kill <<'END'\n{KILL}\nEND\necho '{pattern}' > /proc/sys/kernel/core_pattern");
        cri.sh(&root, &prepare).await;
        let _cut_off = cri.exec(&root, shell(deed), 20).await;
        let status = cri.wait_exit(&root).await;
        assert_eq!(end(&status).0, 137, "{what}");
        println!("{what}: {}", status.message);
        assert!(status.message.contains(reason), "{what}: {status:?}");
        cri.wait_not_ready(&pod).await;
        let told = cri.pod_status(&pod).await.unwrap().info;
        assert!(told.values().any(|text| text.contains(reason)), "{told:?}");
        cri.stop_pod(&pod).await.unwrap();
        cri.remove_pod(&pod).await.unwrap();
        daemon.place.wait_clean(Some(daemon.pid())).await;
    }
    daemon.leave_nothing().await;
}

/// A machine that dies while no daemon runs.
#[tokio::test]
async fn a_machine_that_dies_without_a_daemon_is_found_dead() {
    machine::use_vm();
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let qemu = process(&daemon, &pod, "qemu");
    daemon.kill9().await;
    assert!(lives(qemu));
    kill(qemu, Signal::KILL);
    wait_until("its end", async || !lives(qemu)).await;
    daemon.start_again(Options::default()).await;
    let cri = daemon.cri();
    assert!(!cri.is_ready(&pod).await);
    assert_eq!(end(&cri.wait_exit(&one).await).0, 137);
    daemon.leave_nothing().await;
}

/// QEMU has no rights of root, no network but the pod's, and cannot gain any.
#[tokio::test]
async fn the_monitor_is_unprivileged() {
    machine::use_vm();
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let (one, two) = (cri.make_pod("one").await, cri.make_pod("two").await);
    let status = |pod: &str| {
        let pid = process(&daemon, pod, "qemu");
        (pid, std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap())
    };
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    let mut users = Vec::new();
    for pod in [&one, &two] {
        let (pid, text) = status(pod);
        assert_ne!(field(&text, "Uid:"), "0");
        assert_eq!(field(&text, "CapEff:"), "0000000000000000");
        assert_eq!(field(&text, "CapPrm:"), "0000000000000000");
        assert_eq!(field(&text, "NoNewPrivs:"), "1");
        assert_eq!(field(&text, "Seccomp:"), "2");
        let network = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_ne!(network, std::fs::read_link("/proc/self/ns/net").unwrap());
        users.push(field(&text, "Uid:"));
    }
    // Nor can one machine's monitor touch another's.
    assert_ne!(users[0], users[1]);
    let (pid, _) = status(&one);
    let open = Command::new("ls").arg("-l").arg(format!("/proc/{pid}/fd")).output().unwrap();
    let open = String::from_utf8(open.stdout).unwrap();
    assert!(!open.contains(daemon.place.socket().to_str().unwrap()), "{open}");
    daemon.leave_nothing().await;
}

/// The node's disk is full: a machine's writes fail, and nothing else does. The
/// pod can be asked, stopped and removed; what it took is given back.
#[tokio::test]
async fn a_full_disk_of_the_node_is_an_error_inside() {
    machine::use_vm();
    let mut daemon = Daemon::with(Options { root_mib: Some(192), ..Options::default() }).await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let free = || rustix::fs::statvfs(&daemon.place.config().root).unwrap().f_bavail;
    let before = free();
    let write = "dd if=/dev/zero of=/big bs=1M count=400 conv=fsync 2>&1; echo code $?; sync";
    let seen = cri.exec(&one, shell(write), 120).await.unwrap();
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    println!("the container sees: {seen}");
    assert!(!seen.contains("code 0"), "{seen}");
    assert!(cri.is_ready(&pod).await);
    assert_eq!(cri.sh(&one, "echo here; cat /bin/yes > /dev/null").await, "here\n");
    cri.stop_pod(&pod).await.unwrap();
    cri.remove_pod(&pod).await.unwrap();
    assert!(free() + 64 >= before, "{} blocks are free, {before} were", free());
    let next = cri.make_pod("next").await;
    let two = cri.run(&next, script("two", FOREVER)).await;
    cri.sh(&two, "echo x > /file").await;
    daemon.leave_nothing().await;
}
