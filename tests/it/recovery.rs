//! What a daemon makes of what another one left.

use kina::cri::v1;
use kina_store::Store;
use rustix::process::Signal;

use crate::harness::machine::{self, also_in_apple, also_in_vm};
use crate::harness::{Daemon, Options, descriptors, end, kill, lives, script, wait_until};

const FOREVER: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done";

/// The store says that its records are of another boot.
async fn pretend_reboot(daemon: &Daemon) {
    let store = Store::open(daemon.place.config().root.join("records.redb")).unwrap();
    assert!(store.meta_get("boot-id").unwrap().is_some());
    store.meta_put("boot-id", "00000000-0000-4000-8000-000000000000").await.unwrap();
}

#[tokio::test]
async fn nobody_notices_a_new_daemon() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let created = cri.create(&pod, script("created", FOREVER)).await.unwrap();
    let (ended, _) = cri.run_to_end(&pod, script("ended", "exit 5")).await;
    let leaving = "until test -e /dev/shm/leave; do sleep 0.05; done; exit 6";
    let leaving = cri.run(&pod, script("leaving", leaving)).await;
    cri.wait_output(&one, "up").await;
    let before = (cri.status(&one).await.unwrap(), cri.status(&created).await.unwrap());
    let pid = cri.container_pid(&one).await;
    let pods = cri.pods(None).await;
    for graceful in [true, false, false] {
        if graceful {
            daemon.stop().await;
        } else {
            daemon.kill9().await;
        }
        assert!(machine::is_vm() || lives(pid));
        daemon.start_again(Options::default()).await;
        let cri = daemon.cri();
        assert_eq!(cri.pods(None).await, pods);
        assert_eq!((cri.status(&one).await.unwrap(), cri.status(&created).await.unwrap()), before);
        assert_eq!(cri.status(&ended.id).await.unwrap(), ended);
        assert_eq!(cri.container_pid(&one).await, pid);
        assert_eq!(cri.sh(&one, "echo here").await, "here\n");
        // A request that is repeated to the new daemon finds the same.
        assert_eq!(cri.run_pod(&cri.pod("p")).await.unwrap(), pod);
        assert_eq!(cri.create(&pod, script("created", FOREVER)).await.unwrap(), created);
    }
    // It ends while no daemon looks, in all likelihood.
    daemon.cri().sh(&one, "(sleep 0.5; touch /dev/shm/leave) > /dev/null 2>&1 &").await;
    daemon.kill9().await;
    daemon.start_again(Options::default()).await;
    let cri = daemon.cri();
    assert_eq!(end(&cri.wait_exit(&leaving).await), (6, "Error"));
    cri.start(&created).await.unwrap();
    cri.stop(&one, 60).await.unwrap();
    assert_eq!(cri.status(&one).await.unwrap().exit_code, 0);
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn a_reboot_ends_all_pods() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let created = cri.create(&pod, script("created", FOREVER)).await.unwrap();
    let (ended, _) = cri.run_to_end(&pod, script("ended", "exit 5")).await;
    let stopped = cri.make_pod("stopped").await;
    cri.stop_pod(&stopped).await.unwrap();
    daemon.kill9().await;
    if machine::is_apple() {
        machine::crash(&daemon.place);
    }
    // As a reboot does; mounts and cgroups stay, which the daemon must not mind.
    wait_until("the end of the pod", async || {
        let processes = daemon.place.processes(&pod);
        processes.iter().for_each(|process| kill(*process, Signal::KILL));
        processes.is_empty()
    })
    .await;
    pretend_reboot(&daemon).await;
    if machine::is_apple() {
        machine::start_service(&daemon.place);
    }
    daemon.start_again(Options::default()).await;
    let cri = daemon.cri();
    for pod in [&pod, &stopped] {
        assert!(!cri.is_ready(pod).await);
    }
    for id in [&one, &created] {
        let status = cri.wait_exit(id).await;
        assert_eq!(end(&status), (137, "ContainerStatusUnknown"));
        assert!(status.message.contains("reboot"), "{status:?}");
    }
    assert_eq!(cri.status(&ended.id).await.unwrap(), ended);
    // Though nobody has stopped it: only its files are left, until it is removed.
    wait_until("what it held to be free", async || {
        let held = daemon.place.traces(Some(daemon.pid()));
        held.iter().all(|trace| matches!(trace, kina::traces::Trace::File(_)))
    })
    .await;
    // The kubelet makes a new sandbox, then removes the old one.
    let mut config = cri.pod("p");
    config.metadata.as_mut().unwrap().attempt = 1;
    let next = cri.run_pod(&config).await.unwrap();
    assert!(cri.is_ready(&next).await);
    // The boot is known now: another restart changes nothing.
    daemon.restart().await;
    assert!(daemon.cri().is_ready(&next).await);
    daemon.leave_nothing().await;
}

/// The records are of another boot but the processes live: they are ended, and
/// not taken for the pods of this boot.
#[tokio::test]
async fn nothing_is_adopted_across_a_reboot() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let pid = daemon.place.process(&pod, cri.container_pid(&one).await).unwrap();
    daemon.kill9().await;
    pretend_reboot(&daemon).await;
    daemon.start_again(Options::default()).await;
    let cri = daemon.cri();
    assert!(!cri.is_ready(&pod).await);
    assert_eq!(cri.wait_exit(&one).await.exit_code, 137);
    wait_until("the end of the process", async || !lives(pid)).await;
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_harms_nothing() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let status = daemon.command(&Options::default()).status().unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(cri.sh(&one, "echo here").await, "here\n");
    // Nor does one with another socket.
    let mut other = daemon.command(&Options::default());
    assert_eq!(other.arg("--socket").arg(daemon.place.path("other")).status().unwrap().code(), Some(1));
    assert!(cri.is_ready(&pod).await);
    daemon.leave_nothing().await;
}

/// Restarts leave nothing open, neither in the daemon nor in the guest.
#[tokio::test]
async fn restarts_hold_nothing() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let guest = daemon.place.guest(&pod).unwrap();
    daemon.restart().await;
    daemon.cri().sh(&one, "true").await;
    let (of_daemon, of_guest) = (descriptors(daemon.pid()), descriptors(guest));
    for _ in 0..5 {
        daemon.restart().await;
        daemon.cri().sh(&one, "true").await;
    }
    wait_until("the guest to close what was the old daemons'", async || descriptors(guest) <= of_guest).await;
    wait_until("as many descriptors as at first", async || descriptors(daemon.pid()) <= of_daemon).await;
    daemon.leave_nothing().await;
}

/// A stopped pod has given back its layers, also to the next daemon.
#[tokio::test]
async fn a_stopped_pod_holds_no_layer() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let (stopped, running) = (cri.make_pod("stopped").await, cri.make_pod("running").await);
    let of_stopped = cri.run(&stopped, script("one", FOREVER)).await;
    let of_running = cri.run(&running, script("one", FOREVER)).await;
    cri.stop_pod(&stopped).await.unwrap();
    daemon.restart().await;
    let cri = daemon.cri();
    cri.sh(&of_running, "cat /bin/yes > /dev/null").await;
    cri.stop_pod(&running).await.unwrap();
    wait_until("no layer to be mounted", async || {
        let held = daemon.place.traces(Some(daemon.pid()));
        !held.iter().any(|trace| matches!(trace, kina::traces::Trace::Mount(_)))
    })
    .await;
    assert_eq!(cri.status(&of_stopped).await.unwrap().exit_code, 137);
    daemon.leave_nothing().await;
}

/// The files of a pod without a record, as after a lost store.
#[tokio::test]
async fn what_no_record_explains_is_removed() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    cri.run(&pod, script("one", FOREVER)).await;
    daemon.kill9().await;
    let store = Store::open(daemon.place.config().root.join("records.redb")).unwrap();
    store.table::<kina::pod::record::PodRecord>().delete(&pod).await.unwrap();
    drop(store);
    daemon.start_again(Options::default()).await;
    let cri = daemon.cri();
    assert_eq!(cri.pods(None).await, []);
    assert_eq!(cri.containers(None).await, []);
    daemon.place.wait_clean(Some(daemon.pid())).await;
    daemon.leave_nothing().await;
}

/// Somebody removes the daemon's directories while pods run, as far as mounts in them
/// let him: the drivers' records of machines are gone, too.
#[tokio::test]
async fn what_is_left_of_removed_directories_is_removed() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    cri.run(&pod, script("one", FOREVER)).await;
    assert_ne!(daemon.place.processes(&pod), [0; 0]);
    daemon.kill9().await;
    let config = daemon.place.config();
    let mut remove = std::process::Command::new("rm");
    remove.arg("-rf").args([&config.root, &config.run.join("pods")]).stderr(std::process::Stdio::null());
    remove.status().unwrap();
    daemon.start_again(Options::default()).await;
    let cri = daemon.cri();
    assert_eq!(cri.pods(None).await, []);
    daemon.place.wait_clean(Some(daemon.pid())).await;
    assert_eq!(daemon.place.pod_directories(), [""; 0]);
    daemon.leave_nothing().await;
}

/// The kernel knows mounts by where they really are.
#[tokio::test]
async fn the_run_directory_may_be_reached_by_a_symbolic_link() {
    let mut daemon = Daemon::start().await;
    daemon.stop().await;
    let run = daemon.place.config().run.clone();
    let real = run.with_file_name("real");
    std::fs::rename(&run, &real).unwrap();
    std::os::unix::fs::symlink(&real, &run).unwrap();
    daemon.start_again(Options::default()).await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    cri.sh(&one, "true").await;
    daemon.leave_nothing().await;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(real.to_str().unwrap()), "{mounts}");
}

#[tokio::test]
async fn a_guest_outlives_daemons_that_never_came_up() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let before = cri.status(&one).await.unwrap();
    daemon.kill9().await;
    // Killed at any moment of their start.
    for micros in [0, 2_000, 10_000, 20_000, 40_000, 80_000] {
        let mut child = daemon.command(&Options::default()).spawn().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_micros(micros);
        while std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    daemon.start_again(Options::default()).await;
    assert_eq!(daemon.cri().status(&one).await.unwrap(), before);
    assert_eq!(before.state(), v1::ContainerState::ContainerRunning);
    daemon.leave_nothing().await;
}

also_in_vm! {
    nobody_notices_a_new_daemon,
    a_reboot_ends_all_pods,
    a_second_daemon_is_refused_and_harms_nothing,
    what_no_record_explains_is_removed,
    what_is_left_of_removed_directories_is_removed,
    the_run_directory_may_be_reached_by_a_symbolic_link,
}

also_in_apple! {
    nobody_notices_a_new_daemon,
    a_reboot_ends_all_pods,
    nothing_is_adopted_across_a_reboot,
    a_second_daemon_is_refused_and_harms_nothing,
    restarts_hold_nothing,
    what_no_record_explains_is_removed,
    what_is_left_of_removed_directories_is_removed,
    a_guest_outlives_daemons_that_never_came_up,
}
