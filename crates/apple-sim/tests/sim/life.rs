//! From creation to deletion.

use std::fs;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::place::{Place, processes, sweep_dead, text, wait_until};

#[test]
fn a_container_is_run_listed_stopped_started_again_and_deleted() {
    let place = Place::new();
    place.run("web", &[], "echo first; trap 'exit 0' TERM; sleep 1000 & wait");
    assert_eq!(place.state("web"), "running");
    assert_eq!(place.ok(&["list", "-q"]), "web\n");
    wait_until("a log", || place.ok(&["logs", "web"]) == "first\n");
    let address = place.json(&["inspect", "web"])[0]["status"]["networks"][0]["ipv4Address"].clone();
    assert_eq!(address, "192.168.64.2/24");

    assert_eq!(place.ok(&["start", "web"]), "web\n");
    assert_eq!(place.ok(&["stop", "web"]), "web\n");
    assert_eq!(place.state("web"), "stopped");
    assert_eq!(place.json(&["inspect", "web"])[0]["status"]["networks"], serde_json::json!([]));
    assert_eq!(place.ok(&["list", "-q"]), "");
    assert_eq!(place.ok(&["list", "-a", "-q"]), "web\n");
    assert_eq!(place.ok(&["stop", "web"]), "web\n");

    assert_eq!(place.ok(&["start", "web"]), "web\n");
    let address = place.json(&["inspect", "web"])[0]["status"]["networks"][0]["ipv4Address"].clone();
    assert_eq!(address, "192.168.64.3/24", "the address changes");
    // The log was truncated.
    wait_until("a log", || place.ok(&["logs", "web"]) == "first\n");
    assert!(place.ok(&["logs", "--boot", "web"]).contains("Booting Linux"));

    let (code, message) = place.fails(&["delete", "web"]);
    assert_eq!(code, 1);
    assert_eq!(
        message,
        "Error: internalError: \"failed to delete container\" (cause: \"invalidState: \"container web is running and can not be deleted\"\")"
    );
    assert_eq!(place.ok(&["delete", "-f", "web"]), "web\n");
    assert_eq!(place.ok(&["list", "-a", "-q"]), "");
    assert_eq!(place.processes().len(), 2, "{:?}", place.processes());
}

#[test]
fn what_does_not_exist_has_its_texts() {
    let place = Place::new();
    for (words, expected) in [
        (&["inspect", "x1", "x2"][..], "Error: container not found: x1, x2"),
        (&["exec", "x1", "ls"], "Error: get failed: container x1 not found"),
        (&["start", "x1"], "Error: get failed: container x1 not found"),
        (&["stats", "x1", "--no-stream"], "Error: no such container: x1"),
        (
            &["stop", "x1"],
            "Error: internalError: \"failed to stop container\" (cause: \"notFound: \"container with ID x1 not found\"\")",
        ),
        (
            &["kill", "x1"],
            "Error: internalError: \"failed to kill container\" (cause: \"notFound: \"container with ID x1 not found\"\")",
        ),
        (
            &["delete", "x1"],
            "Error: internalError: \"failed to delete container\" (cause: \"notFound: \"container with ID x1 not found\"\")",
        ),
        (&["stop"], "Error: no containers specified and --all not supplied"),
        (&["stop", "-a", "x1"], "Error: explicitly supplied container IDs conflict with the --all flag"),
        (&["run", "--name", "x", "busybox:1"], "Error: container ID x is not a valid container ID"),
        (
            &["run", "nothing/here:7"],
            "Error: HTTP request to https://registry-1.docker.io/v2/nothing/here/manifests/7 failed with response: 404 Not Found. Reason: Unknown",
        ),
    ] {
        assert_eq!(place.fails(words), (1, expected.to_owned()));
    }
    let (code, message) = place.fails(&["run", "--cpus", "x", "busybox:1"]);
    assert_eq!(code, 64);
    assert_eq!(
        message,
        "Error: The value 'x' is invalid for '--cpus <cpus>'\nHelp:  --cpus <cpus>  The number of CPUs\nUsage: container run [<options>] <image> [<arguments> ...]\n  See 'container run --help' for more information."
    );
}

#[test]
fn values_are_checked_after_the_image() {
    let place = Place::new();
    let image_is_missing = |option: &str| {
        let (_, message) = place.fails(&["run", option, "missing:1"]);
        message.contains("404")
    };
    for option in ["--memory=512Mi", "--label=a=b=c", "--publish=0:1", "--shm-size=x", "--network=n,x=1"] {
        assert!(image_is_missing(option), "{option}");
    }
    for option in ["--name=x", "--platform=plan9", "--scheme=gopher"] {
        assert!(!image_is_missing(option), "{option}");
    }
    for (option, expected) in [
        ("--memory=512Mi", "invalid symbol: mi"),
        ("--memory=199M", "minimum memory amount allowed is 200 MiB (got 208666624 bytes)"),
        ("--label=a=b=c", "invalid label format a=b=c"),
        ("--publish=0:1", "invalid publish host port range: 0"),
        ("--network=nowhere", "network nowhere not found"),
        ("--runtime=other", "unable to locate runtime plugin other"),
        ("--kernel=/nowhere/k", "kernel file not found at path /nowhere/k"),
    ] {
        assert_eq!(place.fails(&["run", option, "busybox:1"]), (1, format!("Error: {expected}")), "{option}");
    }
}

#[test]
fn names_are_taken_once() {
    let place = Place::new();
    assert_eq!(place.ok(&["create", "--name", "one", "busybox:1"]), "one\n");
    assert_eq!(place.state("one"), "stopped");
    let taken = place.fails(&["run", "-d", "--name", "one", "busybox:1"]);
    assert_eq!(taken, (1, "Error: container with id one already exists".to_owned()));
    let taken = place.fails(&["create", "--name", "one", "busybox:1"]);
    assert_eq!(taken, (1, "Error: container already exists: one".to_owned()));
}

#[test]
fn a_command_waits_for_its_process_and_has_its_exit_code() {
    let place = Place::new();
    let output = place.output(&[
        "run",
        "--rm",
        "--name",
        "once",
        "busybox:1",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((output.stdout, output.stderr), (b"out\n".to_vec(), b"err\n".to_vec()));
    wait_until("its removal", || place.ok(&["list", "-a", "-q"]).is_empty());
}

#[test]
fn a_process_is_executed_with_its_streams() {
    let place = Place::new();
    place.run("web", &["-e", "A=1", "-w", "/tmp"], "sleep 1000");
    let output = place.output(&["exec", "web", "sh", "-c", "echo $A $(pwd) $(id -u); exit 3"]);
    assert_eq!((output.status.code(), output.stdout), (Some(3), b"1 /tmp 0\n".to_vec()));
    let mut child = place.command(&["exec", "-i", "-u", "alice", "web", "sh", "-c", "id -u; cat"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"1000\nthrough");
    assert_eq!(place.ok(&["exec", "-d", "web", "touch", "/tmp/made"]), "web\n");
    wait_until("a file", || place.rootfs("web").join("tmp/made").exists());
    place.ok(&["stop", "-t", "0", "web"]);
    assert_eq!(place.fails(&["exec", "web", "ls"]), (1, "Error: container web is not running".to_owned()));
}

#[test]
fn the_confinement_is_what_the_options_say() {
    let place = Place::new();
    let share = place.path("share");
    fs::create_dir(&share).unwrap();
    fs::write(share.join("file"), "shared").unwrap();
    let look = "cat /in/file; touch /in/new 2>/dev/null && echo written; grep CapEff /proc/self/status; \
                (echo 0 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null && echo writable; ls /proc/keys | wc -c; cat /proc/keys | head -c1";
    let looked = |options: &[&str]| {
        let mut words = vec!["run", "--rm"];
        words.extend(options);
        words.extend(["busybox:1", "sh", "-c", look]);
        place.ok(&words)
    };
    let shared = format!("{}:/in", text(&share));
    let plain = looked(&["-v", &format!("{shared}:ro")]);
    assert!(plain.starts_with("shared") && plain.contains("00000000a80425fb"), "{plain}");
    assert!(!plain.contains("writ"), "{plain}");
    let free =
        looked(&["-v", &shared, "--cap-add", "ALL", "--masked-path", "NONE", "--read-only-path", "NONE"]);
    assert!(free.contains("written\n") && free.contains("writable\n"), "{free}");
    assert!(!free.contains("00000000a80425fb"), "{free}");
    assert!(share.join("new").exists());
    let dropped = looked(&["-v", &shared, "--cap-drop", "ALL", "--cap-add", "KILL"]);
    assert!(dropped.contains("0000000000000020"), "{dropped}");

    let read_only = place.output(&[
        "run",
        "--rm",
        "--read-only",
        "--tmpfs",
        "/t",
        "busybox:1",
        "sh",
        "-c",
        "touch /t/a && touch /a",
    ]);
    assert!(!read_only.status.success());
    assert!(String::from_utf8_lossy(&read_only.stderr).contains("Read-only"), "{read_only:?}");
}

#[test]
fn killing_and_the_end_of_the_first_process_stop_the_machine() {
    let place = Place::new();
    place.run("web", &[], "sleep 1000");
    assert_eq!(place.ok(&["kill", "web"]), "web\n");
    assert_eq!(place.state("web"), "stopped");
    let (_, message) = place.fails(&["kill", "web"]);
    assert!(message.contains("no runtime client exists: container is stopped"), "{message}");
    place.run("short", &[], "trap 'exit 0' TERM; sleep 1000 & wait");
    place.ok(&["kill", "-s", "TERM", "short"]);
    wait_until("its end", || place.state("short") == "stopped");
}

#[test]
fn figures_are_those_of_the_machine() {
    let place = Place::new();
    place.set("patience-percent", "1");
    place.run("web", &["-m", "256M"], "sleep 1000");
    let figures = place.json(&["stats", "--format", "json", "web"]);
    assert_eq!(figures[0]["id"], "web");
    assert_eq!(figures[0]["memoryLimitBytes"], 256 << 20);
    assert_eq!(figures[0]["numProcesses"], 1);
    assert!(figures[0]["networkRxBytes"].is_u64());
}

#[test]
fn a_terminal_is_one() {
    let place = Place::new();
    place.run("web", &[], "sleep 1000");
    let seen = place.ok(&["exec", "-t", "web", "sh", "-c", "test -t 1 && readlink /proc/self/fd/1"]);
    assert_eq!(seen, "/dev/pts/0\r\n");
    let seen = place.ok(&["run", "-t", "--rm", "busybox:1", "sh", "-c", "test -t 0 && echo terminal"]);
    assert_eq!(seen, "terminal\r\n");
}

#[test]
fn logs_have_an_end_and_go_on() {
    let place = Place::new();
    place.run("web", &[], "for i in 1 2 3 4; do echo line $i; done; sleep 1000");
    wait_until("the lines", || place.ok(&["logs", "web"]).lines().count() == 4);
    assert_eq!(place.ok(&["logs", "-n", "2", "web"]), "line 3\nline 4\n");
    let mut following = place.spawn(&["logs", "-f", "web"]);
    let mut lines = std::io::BufReader::new(following.stdout.take().unwrap()).lines();
    assert_eq!(lines.by_ref().take(4).last().unwrap().unwrap(), "line 4");
    place.ok(&["exec", "web", "sh", "-c", "echo more > /proc/1/fd/1"]);
    assert_eq!(lines.next().unwrap().unwrap(), "more");
    following.kill().unwrap();
    following.wait().unwrap();
}

#[test]
fn a_boot_that_fails_leaves_no_socket() {
    let place = Place::new();
    let host = place.path("s");
    let option = format!("--publish-socket={}:/a.sock", text(&host));
    let words = ["run", "-d", "--name", "web", &option, "-u", "nobody-here", "busybox:1", "sleep", "1000"];
    let (_, message) = place.fails(&words);
    assert!(message.contains("unable to find user nobody-here"), "{message}");
    assert!(!host.exists());
    place.run("web", &[&option], "sleep 1000");
}

#[test]
fn a_reader_that_does_not_read_does_not_keep_a_machine() {
    let place = Place::new();
    // More than its pipe holds, and less than all pipes on the way do.
    let script = "head -c 100000 /dev/zero";
    let mut run = place.spawn(&["run", "--name", "web", "busybox:1", "sh", "-c", script]);
    wait_until("its end", || {
        let listed = place.json(&["list", "-a", "--format", "json"]);
        listed[0]["status"]["startedDate"].is_string() && listed[0]["status"]["state"] == "stopped"
    });
    run.kill().unwrap();
    run.wait().unwrap();
}

#[test]
fn links_of_a_root_lead_nowhere_else() {
    let place = Place::new();
    let outside = place.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("hosts"), "untouched").unwrap();
    place.ok(&["create", "--name", "web", "busybox:1", "sleep", "1000"]);
    let etc = place.rootfs("web").join("etc");
    fs::remove_dir_all(&etc).unwrap();
    std::os::unix::fs::symlink(&outside, &etc).unwrap();
    assert_eq!(place.fails(&["start", "web"]).0, 1);
    let inside = place.rootfs("web").join(outside.strip_prefix("/").unwrap());
    fs::create_dir_all(&inside).unwrap();
    place.ok(&["start", "web"]);
    assert!(inside.join("resolv.conf").exists());
    assert_eq!(fs::read_to_string(outside.join("hosts")).unwrap(), "untouched");
}

#[test]
fn the_environment_is_not_kept() {
    let place = Place::new();
    let output = place
        .command(&["simulator", "set", "machines", "7"])
        .env("CONTAINER_SIM_TRAPS", "boot-fails")
        .env("CONTAINER_SIM_VERSION", "1.0.0")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let settings = place.json(&["simulator", "show"]);
    assert_eq!((&settings["machines"], &settings["version"]), (&7.into(), &"1.2.2".into()));
    assert_eq!(settings["traps"], serde_json::json!([]));
}

/// Control groups of a simulator, in every hierarchy.
fn groups(root: &Path) -> Vec<String> {
    let prefix = kina_apple_sim::place::Place::new(root).group_prefix();
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
    hierarchies
        .chain(["/sys/fs/cgroup".into()])
        .filter_map(|hierarchy| fs::read_dir(hierarchy).ok())
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(&prefix[1..]))
        .collect()
}

#[test]
fn stopping_the_services_leaves_nothing() {
    let place = Place::new();
    place.run("web", &[], "sleep 1000");
    place.run("other", &[], "sleep 1000");
    place.ok(&["kill", "web"]);
    assert!(!groups(&place.root()).is_empty());
    let other = place.pid("other");
    place.ok(&["stop", "-t", "0", "other"]);
    place.ok(&["start", "web"]);
    place.ok(&["exec", "-d", "web", "sleep", "1000"]);
    let first = place.pid("web");
    place.ok(&["kill", "-s", "KILL", "web"]);
    place.ok(&["system", "stop"]);
    assert_eq!(place.processes(), [""; 0]);
    assert_eq!(groups(&place.root()), [""; 0]);
    for pid in [other, first] {
        wait_until("its end", || !fs::exists(format!("/proc/{pid}")).unwrap());
    }
    let status = place.output(&["system", "status", "--format", "json"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(String::from_utf8(status.stdout).unwrap().contains("\"unregistered\""));
    place.sweep();
    assert!(!place.root().exists());
}

#[test]
fn a_sweep_ends_what_nobody_knows_of() {
    let place = Place::new();
    let host = place.path("s");
    place.run("web", &[&format!("--publish-socket={}:/a.sock", text(&host))], "sleep 1000");
    let pid = place.pid("web");
    // Killed after it started them and before it wrote that.
    for record in ["apiserver/pid", "network/pid", "containers/web/helper.pid", "containers/web/guard.pid"] {
        fs::remove_file(place.root().join(record)).unwrap();
    }
    assert_eq!(place.processes().len(), 3, "{:?}", place.processes());
    assert!(host.exists());
    place.sweep();
    assert_eq!(place.processes(), [""; 0]);
    assert_eq!(groups(&place.root()), [""; 0]);
    assert!(!host.exists() && !place.root().exists());
    wait_until("its end", || !fs::exists(format!("/proc/{pid}")).unwrap());
    // A later command makes nothing again.
    assert_eq!(place.fails(&["list"]).0, 1);
    assert_eq!(place.fails(&["simulator", "netns"]).0, 1);
    assert!(!place.root().exists());
}

/// Runs itself once more, with a machine, and kills that.
#[test]
#[allow(clippy::print_stdout, reason = "the parent reads it")]
fn nothing_stays_of_a_killed_test() {
    const CHILD: &str = "KINA_TEST_TO_BE_KILLED";
    const MARK: &str = "place: ";
    if std::env::var_os(CHILD).is_some() {
        let place = Place::new();
        place.run("web", &[], "sleep 1000");
        println!("\n{MARK}{}", text(&place.path("")));
        loop {
            std::thread::park();
        }
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let child = child.args(["--exact", "life::nothing_stays_of_a_killed_test", "--nocapture"]);
    let mut child = child.env(CHILD, "1").stdout(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let directory = lines.map(Result::unwrap).find_map(|line| Some(line.strip_prefix(MARK)?.to_owned()));
    let directory = PathBuf::from(directory.unwrap());
    let root = directory.join("root");
    sweep_dead();
    assert_eq!(processes(&root).len(), 3, "a living test's simulator was swept: {:?}", processes(&root));
    child.kill().unwrap();
    child.wait().unwrap();
    // Another test that begins now may do it too.
    wait_until("the sweep", || {
        sweep_dead();
        !directory.exists()
    });
    assert_eq!(processes(&root), [""; 0]);
    assert_eq!(groups(&root), [""; 0]);
}
