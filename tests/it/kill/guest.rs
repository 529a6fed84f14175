//! The guest dies, alone or together with the daemon.

use std::process::Command;

use kina::cri::v1;
use rustix::process::Signal;

use crate::harness::machine::also_in_apple;
use crate::harness::{Cri, Daemon, end, kill, lives, script, shell, wait_until};

const FOREVER: &str = "trap '' TERM; echo up; while :; do sleep 1; done";

/// Code and reason of a container whose end nobody saw.
const UNSEEN: (i32, &str) = (137, "ContainerStatusUnknown");

/// Kills a guest while a daemon looks: all of the pod ends.
async fn kill_guest(daemon: &Daemon, pod: &str) {
    kill(daemon.place.guest(pod).unwrap(), Signal::KILL);
    wait_until("the end of all processes of the pod", async || daemon.place.processes(pod).is_empty()).await;
}

/// The pod says what happened to it, and frees what it held though nobody has
/// stopped it; its name can be used again after that.
async fn check_ended(daemon: &mut Daemon, pod: &str, containers: &[&str]) {
    let cri = daemon.cri();
    cri.wait_not_ready(pod).await;
    for container in containers {
        let status = cri.wait_exit(container).await;
        assert_eq!(end(&status), UNSEEN, "{status:?}");
        assert!(status.finished_at > 0 && status.message.contains("machine"), "{status:?}");
        cri.exec(container, shell("true"), 5).await.unwrap_err();
        cri.stop(container, 5).await.unwrap();
    }
    assert!(daemon.place.processes(pod).is_empty());
    cri.create(pod, script("late", FOREVER)).await.unwrap_err();
    for container in containers {
        cri.remove(container).await.unwrap();
    }
    cri.stop_pod(pod).await.unwrap();
    cri.remove_pod(pod).await.unwrap();
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn in_an_idle_pod() {
    let mut daemon = Daemon::start().await;
    let pod = daemon.cri().make_pod("p").await;
    kill_guest(&daemon, &pod).await;
    check_ended(&mut daemon, &pod, &[]).await;
}

/// As on a kernel before 6.15, where a guest has to mount what it makes for containers.
#[tokio::test]
async fn what_it_has_mounted_goes_with_its_pod() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.create(&pod, script("one", FOREVER)).await.unwrap();
    let state = daemon.place.config().root.join("pods").join(&pod);
    for place in ["shm", &format!("containers/{one}/images/0")] {
        let place = state.join(place);
        std::fs::create_dir_all(&place).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&place).status().unwrap();
        assert!(mounted.success());
    }
    kill_guest(&daemon, &pod).await;
    check_ended(&mut daemon, &pod, &[&one]).await;
}

#[tokio::test]
async fn while_containers_run() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let created = cri.create(&pod, script("created", FOREVER)).await.unwrap();
    let pid = daemon.place.process(&pod, cri.container_pid(&one).await).unwrap();
    kill_guest(&daemon, &pod).await;
    wait_until("the container's process to end", async || !lives(pid)).await;
    check_ended(&mut daemon, &pod, &[&one, &created]).await;
}

#[tokio::test]
async fn a_seen_end_stays_as_it_was() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let (seven, _) = cri.run_to_end(&pod, script("seven", "exit 7")).await;
    kill_guest(&daemon, &pod).await;
    cri.wait_not_ready(&pod).await;
    assert_eq!(cri.status(&seven.id).await.unwrap(), seven);
    daemon.restart().await;
    assert_eq!(daemon.cri().status(&seven.id).await.unwrap(), seven);
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn during_an_exec() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let exec = tokio::spawn({
        let (cri, one) = (cri.clone(), one.clone());
        async move { cri.exec(&one, shell("echo > /tmp/begun; sleep 1000"), 0).await }
    });
    wait_until("the exec to begin", async || {
        cri.exec(&one, shell("cat /tmp/begun"), 0).await.unwrap().exit_code == 0
    })
    .await;
    kill_guest(&daemon, &pod).await;
    exec.await.unwrap().unwrap_err();
    check_ended(&mut daemon, &pod, &[&one]).await;
}

/// Calls that a guest has not answered when it dies. It is frozen first, so
/// that the call is under way for certain.
async fn unanswered(name: &str, call: impl AsyncFnOnce(Cri, String, String) -> bool) {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod(name).await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let guest = daemon.place.guest(&pod).unwrap();
    kill(guest, Signal::STOP);
    let log = daemon.place.path("daemon.log");
    let begun = std::fs::metadata(&log).unwrap().len();
    let call = call(cri.clone(), pod.clone(), one.clone());
    let killer = async {
        // The daemon logs every effect before it asks the guest.
        wait_until("the call to arrive", async || std::fs::metadata(&log).unwrap().len() > begun).await;
        kill(guest, Signal::KILL);
    };
    let (succeeded, ()) = tokio::join!(call, killer);
    // A stop has what it wanted; nothing else can succeed.
    assert_eq!(succeeded, name == "stop");
    wait_until("the end of all processes of the pod", async || daemon.place.processes(&pod).is_empty()).await;
    wait_until("the container that was not made to be gone", async || cri.containers(None).await.len() == 1)
        .await;
    check_ended(&mut daemon, &pod, &[&one]).await;
}

#[tokio::test]
async fn during_a_create() {
    unanswered("create", async |cri, pod, _| cri.create(&pod, script("two", FOREVER)).await.is_ok()).await;
}

#[tokio::test]
async fn during_a_stop() {
    unanswered("stop", async |cri, _, one| cri.stop(&one, 30).await.is_ok()).await;
}

/// The guest dies while its launcher makes a container: the launcher's
/// processes go with it.
#[tokio::test]
async fn while_a_container_is_half_made() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    for round in 0..5 {
        let pod = cri.make_pod(&format!("p{round}")).await;
        let guest = daemon.place.guest(&pod).unwrap();
        let making = tokio::spawn({
            let (cri, pod) = (cri.clone(), pod.clone());
            async move { cri.create(&pod, script("one", FOREVER)).await }
        });
        let watched = daemon.place.config().cgroup_parent.clone();
        let watched = std::path::PathBuf::from(format!("/sys/fs/cgroup/memory{watched}/kina-{pod}"));
        // Its cgroup is the first that is seen of a container.
        let half_made = move || {
            let entries = std::fs::read_dir(&watched).into_iter().flatten().flatten();
            entries.filter(|entry| entry.path().is_dir() && entry.file_name() != "guest").count() > 0
        };
        tokio::task::spawn_blocking(move || {
            let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
            while !half_made() && !making.is_finished() && std::time::Instant::now() < deadline {
                std::thread::yield_now();
            }
            kill(guest, Signal::KILL);
            making
        })
        .await
        .unwrap()
        .await
        .unwrap()
        .ok();
        cri.wait_not_ready(&pod).await;
        cri.stop_pod(&pod).await.unwrap();
        assert!(daemon.place.processes(&pod).is_empty());
        cri.remove_pod(&pod).await.unwrap();
        daemon.place.wait_clean(Some(daemon.pid())).await;
    }
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn together_with_the_daemon() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let created = cri.create(&pod, script("created", FOREVER)).await.unwrap();
    let pid = daemon.place.process(&pod, cri.container_pid(&one).await).unwrap();
    daemon.kill9().await;
    let guest = daemon.place.guest(&pod).unwrap();
    kill(guest, Signal::KILL);
    wait_until("the guest's end", async || !lives(guest)).await;
    daemon.start_again(crate::harness::Options::default()).await;
    daemon.cri().wait_not_ready(&pod).await;
    wait_until("the container's process to end", async || !lives(pid)).await;
    daemon.cri().stop_pod(&pod).await.unwrap();
    check_ended(&mut daemon, &pod, &[&one, &created]).await;
}

/// The daemon comes back to a guest that lives but does not answer: it is dead
/// for all purposes.
#[tokio::test]
async fn frozen_while_the_daemon_was_away() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    daemon.kill9().await;
    kill(daemon.place.guest(&pod).unwrap(), Signal::STOP);
    daemon.start_again(crate::harness::Options::default()).await;
    let cri = daemon.cri();
    cri.wait_not_ready(&pod).await;
    assert_eq!(end(&cri.wait_exit(&one).await), UNSEEN);
    let pods = cri.pods(None).await;
    assert_eq!(pods[0].state(), v1::PodSandboxState::SandboxNotready);
    daemon.leave_nothing().await;
}

also_in_apple! {
    in_an_idle_pod,
    while_containers_run,
    a_seen_end_stays_as_it_was,
    during_an_exec,
    during_a_create,
    during_a_stop,
    together_with_the_daemon,
    frozen_while_the_daemon_was_away,
}
