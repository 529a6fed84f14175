//! What goes wrong on purpose.

use std::fs;
use std::time::Instant;

use super::place::{Place, wait_until};

#[test]
fn without_a_server_commands_say_what_to_type() {
    let place = Place::unstarted();
    let hint = "Ensure container system service has been started with `container system start`.";
    let listed = "Error: internalError: \"failed to list containers\" (cause: \"interrupted: \"XPC connection error: Connection invalid\"\")";
    assert_eq!(place.fails(&["list"]), (1, format!("{listed}\n{hint}")));
    let run = "Error: interrupted: \"XPC connection error: Connection invalid\"";
    assert_eq!(place.fails(&["run", "busybox:1"]), (1, format!("{run}\n{hint}")));
    let versions = place.json(&["system", "version", "--format", "json"]);
    assert_eq!(versions.as_array().unwrap().len(), 1);
    place.ok(&["system", "start", "--disable-kernel-install"]);
    let versions = place.json(&["system", "version", "--format", "json"]);
    let line = versions[1]["version"].as_str().unwrap();
    assert!(line.starts_with("container-apiserver version 1.2.2 (build: release, commit: "), "{line}");
    place.set("traps", "server-down");
    assert_eq!(place.fails(&["list"]), (1, format!("{listed}\n{hint}")));
    let status = place.output(&["system", "status", "--format", "json"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(String::from_utf8(status.stdout).unwrap().contains("\"not running\""));
}

#[test]
fn a_start_without_a_word_about_the_kernel_asks() {
    let place = Place::unstarted();
    let (code, message) = place.fails(&["system", "start"]);
    assert_eq!((code, message.as_str()), (1, "Error: failed to read user input"));
}

#[test]
fn a_server_that_hangs_times_out_in_some_commands() {
    let place = Place::new();
    place.set("patience-percent", "1");
    place.set("traps", "server-hangs");
    assert_eq!(
        place.fails(&["list"]).1,
        "Error: internalError: \"failed to list containers\" (cause: \"internalError: \"XPC timeout for request to com.apple.container.apiserver/containerList\"\")"
            .replace("internalError: \"failed to list containers\"", "failed to list containers")
    );
    // A stop waits for ever.
    let mut stop = place.spawn(&["stop", "x1"]);
    assert_eq!(place.fails(&["list"]).0, 1);
    assert!(stop.try_wait().unwrap().is_none());
    place.set("traps", "");
    assert_eq!(stop.wait().unwrap().code(), Some(1));
}

#[test]
fn boots_wait_for_each_other_and_executions_wait_for_boots() {
    let place = Place::new();
    place.run("web", &[], "sleep 1000");
    place.set("boot-ms", "400");
    let begin = Instant::now();
    let mut boots: Vec<_> = ["a1", "b1"]
        .iter()
        .map(|id| place.spawn(&["run", "-d", "--name", id, "busybox:1", "sleep", "1000"]))
        .collect();
    let mut listed = 0;
    wait_until("both boots", || {
        place.ok(&["list", "-q"]);
        listed += 1;
        boots.iter_mut().all(|boot| boot.try_wait().unwrap().is_some())
    });
    assert!(begin.elapsed().as_millis() >= 800, "one after the other");
    assert!(listed > 2, "lists do not wait");
    place.set("traps", "boot-hangs");
    let mut boot = place.spawn(&["run", "-d", "--name", "c1", "busybox:1", "sleep", "1000"]);
    wait_until("the container", || place.ok(&["list", "-a", "-q"]).contains("c1"));
    let mut exec = place.spawn(&["exec", "web", "true"]);
    place.ok(&["list"]);
    assert!(exec.try_wait().unwrap().is_none() && boot.try_wait().unwrap().is_none());
    place.set("traps", "");
    assert!(boot.wait().unwrap().success() && exec.wait().unwrap().success());
}

#[test]
fn a_create_that_hangs_is_given_up_holds_the_lock_and_is_made_in_the_end() {
    let place = Place::new();
    place.run("web", &[], "sleep 1000");
    place.set("patience-percent", "1");
    place.set("traps", "create-hangs");
    let timeout = "Error: XPC timeout for request to com.apple.container.apiserver/containerCreate";
    let words = ["run", "-d", "--name", "late", "busybox:1", "sleep", "1000"];
    assert_eq!(place.fails(&words), (1, timeout.to_owned()));
    // Its lock is everybody's.
    let mut exec = place.spawn(&["exec", "web", "true"]);
    assert_eq!(place.fails(&["create", "--name", "other", "busybox:1"]), (1, timeout.to_owned()));
    assert!(exec.try_wait().unwrap().is_none());
    assert_eq!(place.ok(&["list", "-a", "-q"]), "web\n", "lists do not wait");
    place.set("traps", "");
    assert!(exec.wait().unwrap().success());
    // Nobody waits for them any more.
    wait_until("the containers", || place.ok(&["list", "-a", "-q"]) == "late\nother\nweb\n");
    assert_eq!(place.state("late"), "stopped");
}

#[test]
fn a_stop_that_hangs_leaves_the_machine_running_until_it_goes_on() {
    let place = Place::new();
    place.run("web", &[], "sleep 1000");
    let pid = place.pid("web");
    place.set("traps", "stop-hangs");
    let mut stop = place.spawn(&["stop", "-t", "0", "web"]);
    // Others go on: this takes far longer than a stop does.
    for id in ["a1", "b1", "c1"] {
        place.run(id, &[], "sleep 1000");
        assert_eq!(place.state("web"), "running");
    }
    assert!(stop.try_wait().unwrap().is_none());
    assert!(fs::exists(format!("/proc/{pid}")).unwrap());
    place.set("traps", "");
    assert!(stop.wait().unwrap().success());
    assert_eq!(place.state("web"), "stopped");
    // What hangs is ended all the same.
    place.set("traps", "stop-hangs");
    let mut stop = place.spawn(&["stop", "-t", "0", "a1"]);
    place.sweep();
    assert_eq!(place.processes(), [""; 0]);
    assert_eq!(stop.wait().unwrap().code(), Some(1));
}

#[test]
fn boots_fail_and_processes_die() {
    let place = Place::new();
    place.set("traps", "boot-fails");
    let (_, message) = place.fails(&["run", "-d", "--name", "web", "busybox:1", "sleep", "1"]);
    assert!(
        message.starts_with("Error: failed to bootstrap container (cause: \"internalError: "),
        "{message}"
    );
    assert_eq!(place.ok(&["list", "-a", "-q"]), "", "what did not boot is deleted");
    place.set("traps", "init-dies");
    place.run("web", &["--rm"], "sleep 1000");
    wait_until("its end", || place.ok(&["list", "-a", "-q"]).is_empty());
    place.set("traps", "");
    let (_, message) = place.fails(&["run", "-d", "--name", "web", "busybox:1", "/no/such"]);
    assert!(message.contains("/no/such"), "{message}");
    place.set("traps", "load-fails");
    assert_eq!(place.fails(&["image", "load", "-i", "/dev/null"]).1, "Error: failed to import image");
}

#[test]
fn executions_and_figures_fail_while_the_machine_runs() {
    let place = Place::new();
    place.set("patience-percent", "1");
    place.run("web", &[], "sleep 1000");
    place.set("traps", "exec-fails,stats-fail");
    assert_eq!(place.fails(&["exec", "web", "true"]).0, 1);
    assert_eq!(place.ok(&["stats", "--format", "json"]), "[]\n");
    assert_eq!(place.state("web"), "running");
}

#[test]
fn there_are_only_so_many_machines() {
    let place = Place::new();
    place.set("machines", "1");
    place.run("one", &[], "sleep 1000");
    let (_, message) = place.fails(&["run", "-d", "busybox:1", "sleep", "1000"]);
    assert!(message.contains("maximum supported number of active virtual machines"), "{message}");
}
