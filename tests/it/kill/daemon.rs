//! The daemon dies at a failpoint.

use std::os::unix::fs::PermissionsExt as _;

use kina::cri::v1;
use kina_model::{ContainerEffect, PodEffect};
use tokio::task::JoinHandle;

use super::kubelet::{Kubelet, Step};
use crate::harness::machine::{self, also_in_apple};
use crate::harness::{Daemon, Options, PATIENCE, script, shell, wait_until};

/// Lives a pod's life with a daemon that dies at a failpoint; whether it did.
async fn live(failpoint: &str, steps: &[Step]) -> bool {
    // Where it matters for what is left, the pod has a network.
    let connected = ["network", "pod-record", "pod-delete"].iter().any(|part| failpoint.contains(part))
        // Apple's machines bring theirs.
        && !machine::is_apple();
    let plugins = connected.then(|| crate::network::bridge(false));
    let options = Options { failpoint: Some(failpoint.to_owned()), plugins, ..Options::default() };
    let mut daemon = Daemon::with(options).await;
    let mut kubelet = Kubelet::of("killed");
    let mut died = false;
    for step in steps {
        let result = kubelet.perform(*step, &daemon.cri()).await;
        let Err(status) = result else { continue };
        assert!(!died, "{failpoint}: {step:?}, long after the restart: {status}");
        daemon.wait_killed().await;
        died = true;
        daemon.start_again(Options::default()).await;
        kubelet.check(*step, &daemon).await;
        let again = kubelet.perform(*step, &daemon.cri()).await;
        again.unwrap_or_else(|status| panic!("{failpoint}: {step:?} again: {status}"));
    }
    // It may die after its last answer.
    if !died && daemon.has_died() {
        daemon.wait_killed().await;
        died = true;
        daemon.start_again(Options::default()).await;
    }
    daemon.leave_nothing().await;
    died
}

/// Both failpoints of an effect, every time that it happens in a pod's life.
async fn every_time(name: &str, times: u32, steps: &[Step]) {
    for time in 1..=times {
        let (before, after) = (format!("before:{name}#{time}"), format!("after:{name}#{time}"));
        let (before_hit, after_hit) = tokio::join!(live(&before, steps), live(&after, steps));
        assert!(before_hit, "{before} was not hit");
        assert!(after_hit, "{after} was not hit");
    }
}

/// A test per effect, with how often it happens in a pod's whole life and in
/// one that a removal ends.
macro_rules! effects {
    ($($test:ident $effect:path: $whole:literal $abrupt:literal;)*) => {
        const TESTED: &[(&str, u32, u32)] = &[$((stringify!($test), $whole, $abrupt)),*];

        fn names() -> Vec<&'static str> {
            vec![$($effect.name()),*]
        }

        $(
            #[tokio::test]
            async fn $test() {
                every_time($effect.name(), $whole, &Step::ALL).await;
            }
        )*
    };
}

effects! {
    pod_record PodEffect::Record: 4 3;
    pod_make_directories PodEffect::MakeDirectories: 1 1;
    pod_create_network PodEffect::CreateNetwork: 1 1;
    pod_attach_network PodEffect::AttachNetwork: 1 1;
    pod_create_machine PodEffect::CreateMachine: 1 1;
    pod_start_machine PodEffect::StartMachine: 1 1;
    pod_handshake PodEffect::Handshake: 1 1;
    pod_setup PodEffect::SetupPod: 1 1;
    pod_stop_machine PodEffect::StopMachine: 1 1;
    pod_destroy_machine PodEffect::DestroyMachine: 1 1;
    pod_detach_network PodEffect::DetachNetwork: 1 1;
    pod_remove_network PodEffect::RemoveNetwork: 1 1;
    pod_release_layers PodEffect::ReleaseLayers: 1 1;
    pod_remove_directories PodEffect::RemoveDirectories: 1 1;
    pod_delete_records PodEffect::DeleteRecords: 1 1;
    container_record ContainerEffect::Record: 8 5;
    container_mount_layers ContainerEffect::MountLayers: 2 2;
    container_guest_create ContainerEffect::GuestCreate: 2 2;
    container_guest_start ContainerEffect::GuestStart: 2 1;
    container_guest_delete ContainerEffect::GuestDelete: 1 0;
    container_release_layers ContainerEffect::ReleaseLayers: 1 0;
    container_remove_files ContainerEffect::RemoveFiles: 1 0;
    container_delete_record ContainerEffect::DeleteRecord: 1 0;
}

/// The effects that end a pod, when nobody has stopped it before.
#[tokio::test]
async fn removed_while_ready() {
    for effect in [
        PodEffect::StopMachine,
        PodEffect::DestroyMachine,
        PodEffect::DetachNetwork,
        PodEffect::RemoveNetwork,
        PodEffect::ReleaseLayers,
        PodEffect::RemoveDirectories,
        PodEffect::DeleteRecords,
    ] {
        every_time(effect.name(), 1, &Step::ABRUPT).await;
    }
}

/// The tests above miss no failpoint and no time that one is passed.
#[tokio::test]
async fn no_failpoint_is_missed() {
    let names = names();
    for failpoint in kina::failpoint::all() {
        let (_, name) = failpoint.split_once(':').unwrap();
        // Has a test of its own.
        assert!(names.contains(&name) || name == PodEffect::CancelStart.name(), "{failpoint} is not tested");
    }
    for (steps, whole) in [(&Step::ALL[..], true), (&Step::ABRUPT[..], false)] {
        let mut daemon = Daemon::start().await;
        let mut kubelet = Kubelet::of("killed");
        for step in steps {
            kubelet.perform(*step, &daemon.cri()).await.unwrap();
        }
        daemon.leave_nothing().await;
        let log = std::fs::read_to_string(daemon.place.path("daemon.log")).unwrap();
        for ((test, in_whole, in_abrupt), name) in TESTED.iter().zip(&names) {
            let done = format!(" effect=\"{name}\"");
            let times = log.lines().filter(|line| line.contains(&done)).count();
            let expected = if whole { in_whole } else { in_abrupt };
            assert_eq!(times, *expected as usize, "{test}");
        }
    }
}

/// A guest that never answers, so that the start goes on until it is cancelled.
fn silent_guest(daemon: &Daemon) -> std::path::PathBuf {
    let path = daemon.place.path("silent-guest");
    std::fs::write(&path, "#!/bin/sh\nexec sleep 10000\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A pod is stopped or removed while it starts, and the daemon dies of it.
async fn cancelled_start(failpoint: &str, remove: bool) {
    let mut daemon = Daemon::start().await;
    daemon.stop().await;
    let mut options = Options { failpoint: Some(failpoint.to_owned()), ..Options::default() };
    if machine::is_apple() {
        machine::set_traps(&daemon.place, &["boot-hangs"]);
    } else {
        options.guest = Some(silent_guest(&daemon));
    }
    daemon.start_again(options).await;
    let cri = daemon.cri();
    let config = cri.pod("killed");
    let starter = tokio::spawn({
        let (cri, config) = (cri.clone(), config.clone());
        async move { cri.run_pod(&config).await }
    });
    let mut pod = String::new();
    wait_until("the machine to be started", async || {
        pod = daemon.place.pod_directories().into_iter().next().unwrap_or_default();
        if machine::is_apple() {
            return !machine::simulated_containers(&daemon.place).is_empty();
        }
        daemon.place.guest(&pod).is_some()
    })
    .await;
    let stopped = if remove { cri.remove_pod(&pod).await } else { cri.stop_pod(&pod).await };
    assert!(stopped.is_err(), "{failpoint} was not hit");
    daemon.wait_killed().await;
    assert!(starter.await.unwrap().is_err());

    if machine::is_apple() {
        machine::set_traps(&daemon.place, &[]);
    }
    daemon.start_again(Options::default()).await;
    let cri = daemon.cri();
    for pod in cri.pods(None).await {
        assert_eq!(pod.state(), v1::PodSandboxState::SandboxNotready);
    }
    cri.stop_pod(&pod).await.unwrap();
    cri.remove_pod(&pod).await.unwrap();
    assert_eq!(cri.pods(None).await, []);
    daemon.place.wait_clean(Some(daemon.pid())).await;
    let again = cri.run_pod(&config).await.unwrap();
    assert!(cri.is_ready(&again).await);
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn pod_cancel_start() {
    for failpoint in ["before:pod-cancel-start", "after:pod-cancel-start", "before:pod-record#2"] {
        tokio::join!(cancelled_start(failpoint, false), cancelled_start(failpoint, true));
    }
}

/// The start fails, and the daemon dies while it cleans up.
#[tokio::test]
async fn a_failed_start() {
    for failpoint in ["before:pod-record#2", "after:pod-destroy-machine", "before:pod-delete-records"] {
        let mut daemon = Daemon::start().await;
        daemon.stop().await;
        let mut options = Options { failpoint: Some(failpoint.to_owned()), ..Options::default() };
        if machine::is_apple() {
            machine::set_traps(&daemon.place, &["boot-fails"]);
        } else {
            options.guest = Some(daemon.place.path("no-guest"));
        }
        daemon.start_again(options).await;
        let config = daemon.cri().pod("killed");
        daemon.cri().run_pod(&config).await.unwrap_err();
        daemon.wait_killed().await;
        if machine::is_apple() {
            machine::set_traps(&daemon.place, &[]);
        }
        daemon.start_again(Options::default()).await;
        let cri = daemon.cri();
        wait_until("the failed pod to be gone", async || cri.pods(None).await.is_empty()).await;
        daemon.place.wait_clean(Some(daemon.pid())).await;
        cri.run_pod(&config).await.unwrap();
        daemon.leave_nothing().await;
    }
}

/// Pods that live at the same time, each seen to by a caller of its own, while
/// the daemon dies again and again.
#[tokio::test]
async fn at_any_moment() {
    const PODS: usize = 4;
    const KILLS: u64 = 12;
    let mut daemon = Daemon::start().await;
    let (current, watched) = tokio::sync::watch::channel(daemon.cri());
    let lives = (0..PODS).map(|number| {
        let mut watched = watched.clone();
        tokio::spawn(async move {
            for life in 0..2 {
                let mut kubelet = Kubelet::of(&format!("p{number}-{life}"));
                for step in Step::ALL {
                    let mut failures = Vec::new();
                    loop {
                        let cri = watched.borrow_and_update().clone();
                        let Err(status) = kubelet.perform(step, &cri).await else { break };
                        failures.push(status);
                        // Every failure is that of a daemon which is no more.
                        let next = tokio::time::timeout(PATIENCE, watched.changed()).await;
                        next.unwrap_or_else(|_| panic!("p{number}: {step:?}: {failures:?}")).unwrap();
                    }
                }
            }
        })
    });
    let lives: Vec<_> = lives.collect();
    let log = daemon.place.path("daemon.log");
    let said = || std::fs::metadata(&log).unwrap().len();
    for kill in 1..=KILLS {
        // Further on each time; a whole life says about a hundred times as much.
        let enough = said() + 900 * kill;
        wait_until("progress", async || said() >= enough || lives.iter().all(JoinHandle::is_finished)).await;
        daemon.kill9().await;
        daemon.start_again(Options::default()).await;
        current.send(daemon.cri()).unwrap();
    }
    for life in lives {
        life.await.unwrap();
    }
    assert_eq!(daemon.cri().pods(None).await, []);
    drop((current, watched));
    daemon.leave_nothing().await;
}

/// A stop that waits for a container when the daemon dies; the next daemon is
/// asked again.
#[tokio::test]
async fn during_a_grace_period() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let hears = "trap 'echo heard' TERM; echo up; while :; do sleep 0.05; done";
    let one = cri.run(&pod, script("one", hears)).await;
    cri.wait_output(&one, "up").await;
    let stop = tokio::spawn({
        let (cri, one) = (cri.clone(), one.clone());
        async move { cri.stop(&one, 600).await }
    });
    cri.wait_output(&one, "heard").await;
    daemon.kill9().await;
    stop.await.unwrap().unwrap_err();
    daemon.start_again(Options::default()).await;
    let cri = daemon.cri();
    assert_eq!(cri.status(&one).await.unwrap().state(), v1::ContainerState::ContainerRunning);
    cri.stop(&one, 1).await.unwrap();
    assert_eq!(cri.status(&one).await.unwrap().exit_code, 137);
    daemon.leave_nothing().await;
}

/// A command whose daemon dies has nobody left to hear its answer: it ends.
#[tokio::test]
async fn during_an_exec() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", "sleep 1000")).await;
    let idle = daemon.place.processes(&pod).len();
    let exec = tokio::spawn({
        let (cri, one) = (cri.clone(), one.clone());
        async move { cri.exec(&one, shell("trap '' TERM; echo > /tmp/begun; sleep 999"), 0).await }
    });
    wait_until("the command to run", async || {
        cri.exec(&one, shell("cat /tmp/begun"), 0).await.unwrap().exit_code == 0
    })
    .await;
    daemon.kill9().await;
    exec.await.unwrap().unwrap_err();
    wait_until("the end of the command", async || daemon.place.processes(&pod).len() == idle).await;
    daemon.start_again(Options::default()).await;
    daemon.cri().sh(&one, "true").await;
    daemon.leave_nothing().await;
}

// Those that are the driver's; `KINA_IT_HANDLER=apple` goes through all of them.
also_in_apple! {
    pod_create_machine,
    pod_start_machine,
    pod_handshake,
    pod_stop_machine,
    pod_destroy_machine,
    pod_cancel_start,
    a_failed_start,
    at_any_moment,
    during_a_grace_period,
}
