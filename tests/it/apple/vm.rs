//! Apple's machines once more, with kernels of their own: the simulator's are QEMU's here.

use kina::cri::v1;
use rustix::process::Signal;

use super::FOREVER;
use crate::harness::{Daemon, kill, lives, machine, output, script, shell, wait_until};

async fn daemon() -> Daemon {
    machine::use_apple_with_kernels();
    Daemon::start().await
}

/// A pod's life: its containers and their streams, a volume, the network, and that it outlives
/// the daemon and Apple's service.
#[tokio::test]
async fn a_pod_lives_and_outlives_daemon_and_service() {
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    let data = daemon.place.path("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("file"), "of the node\n").unwrap();
    let pod = cri.make_pod("p").await;
    let address = cri.pod_status(&pod).await.unwrap().status.unwrap().network.unwrap().ip;
    let mut container = script("one", "echo out; echo err >&2; sleep 1000");
    container.mounts = [("/rw", false), ("/ro", true)]
        .map(|(target, readonly)| v1::Mount {
            host_path: data.display().to_string(),
            container_path: target.to_owned(),
            readonly,
            ..v1::Mount::default()
        })
        .into();
    let one = cri.run(&pod, container).await;
    cri.wait_output(&one, "err").await;

    let node = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(cri.sh(&one, "uname -r").await, node);
    assert!(cri.sh(&one, "ip -4 addr").await.contains(&format!("inet {address}/")));
    assert_eq!(
        cri.sh(&one, "cat /rw/file; echo new > /rw/new; rm /ro/file || echo refused").await,
        "of the node\nrefused\n"
    );
    assert_eq!(std::fs::read_to_string(data.join("new")).unwrap(), "new\n");
    // A file that is made on the node later is there.
    std::fs::write(data.join("later"), "later\n").unwrap();
    assert_eq!(cri.sh(&one, "cat /ro/later").await, "later\n");
    let executed = cri.exec(&one, shell("echo o; echo e >&2; exit 3"), 20).await.unwrap();
    assert_eq!((executed.exit_code, &*executed.stdout, &*executed.stderr), (3, &b"o\n"[..], &b"e\n"[..]));

    daemon.kill9().await;
    daemon.start_again(Default::default()).await;
    let cri = daemon.cri();
    assert!(cri.is_ready(&pod).await);
    assert_eq!(cri.sh(&one, "echo adopted").await, "adopted\n");

    let service = machine::service(&daemon.place);
    kill(service, Signal::KILL);
    wait_until("the service's end", async || !lives(service)).await;
    machine::start_service(&daemon.place);
    assert_eq!(cri.sh(&one, "echo still").await, "still\n");
    // What ran before goes on, and what comes is written down.
    let two = cri.run(&pod, script("two", "echo of two; exit 5")).await;
    assert_eq!(cri.wait_exit(&two).await.exit_code, 5);
    let log = cri.status(&two).await.unwrap().log_path;
    assert_eq!(output(&std::fs::read_to_string(log).unwrap()), "of two\n");

    cri.stop(&one, 0).await.unwrap();
    assert_eq!(cri.wait_exit(&one).await.exit_code, 137);
    daemon.leave_nothing().await;
    assert_eq!(machine::simulated_containers(&daemon.place), [""; 0]);
}

#[tokio::test]
async fn a_machine_that_dies_is_noticed() {
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    cri.run(&pod, script("one", FOREVER)).await;
    // QEMU itself, as a crash of Apple's would.
    machine::kill_emulator(&daemon.place, &pod);
    cri.wait_not_ready(&pod).await;
    daemon.leave_nothing().await;
}
