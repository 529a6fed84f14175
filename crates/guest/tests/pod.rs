//! What containers share, and the end of a pod.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod support;

use std::time::Duration;

use kina_guest_api::{GuestError, v1};
use support::{Guest, PATIENCE, wait_until};
use tokio_stream::StreamExt;

const FOREVER: &str = "sleep 1000";

#[tokio::test]
async fn containers_share_what_the_pod_says() {
    let guest = Guest::with_pod().await;
    guest.run(guest.container("one", FOREVER)).await;
    guest.run(guest.container("two", FOREVER)).await;
    let namespace = async |id: &str, kind: &str| guest.exec(id, &format!("readlink /proc/1/ns/{kind}")).await;
    for (kind, shared) in [("ipc", true), ("uts", true), ("net", true), ("pid", false), ("mnt", false)] {
        let same = namespace("one", kind).await == namespace("two", kind).await;
        assert_eq!(same, shared, "{kind}");
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(namespace("one", kind).await.trim(), own.to_str().unwrap(), "{kind}");
    }
    guest.exec("one", "echo seen > /dev/shm/file; echo hidden > /tmp/file").await;
    assert_eq!(guest.exec("two", "cat /dev/shm/file; cat /tmp/file 2>/dev/null || true").await, "seen\n");
    assert_eq!(guest.exec("two", "hostname").await, "testpod\n");
}

/// A guest that is built for tests is not static.
fn libraries() -> Vec<v1::Mount> {
    ["/lib", "/lib64", "/usr/lib"]
        .into_iter()
        .filter(|path| std::path::Path::new(path).is_dir())
        .map(|path| v1::Mount {
            source: path.to_owned(),
            destination: path.to_owned(),
            readonly: true,
            ..v1::Mount::default()
        })
        .collect()
}

#[tokio::test]
async fn containers_talk_over_localhost() {
    let guest = Guest::with_pod().await;
    let mut server = guest.container("server", "");
    server.process.as_mut().unwrap().args =
        ["/bin/kina-guest", "demo", "serve", "8080"].map(str::to_owned).to_vec();
    server.mounts = libraries();
    guest.run(server).await;
    guest.wait_for_output("server", "listening").await;
    let mut client = guest.container("client", "");
    client.process.as_mut().unwrap().args =
        ["/bin/kina-guest", "demo", "fetch", "http://127.0.0.1:8080/x"].map(str::to_owned).to_vec();
    client.mounts = libraries();
    assert_eq!(guest.run_to_end(client).await.code, 0, "{}", guest.output("client"));
    assert_eq!(guest.output("client"), "hello 1 from testpod\n");
    guest.wait_for_output("server", "GET /x HTTP/1.1").await;
}

#[tokio::test]
async fn containers_share_a_pid_namespace() {
    let guest = Guest::start().await;
    let pod = v1::SetupPodRequest { pid: v1::NamespaceMode::Pod.into(), ..guest.pod() };
    guest.client.setup_pod(pod).await.unwrap();
    guest.run(guest.container("one", FOREVER)).await;
    guest.run(guest.container("two", FOREVER)).await;
    let seen = guest.exec("two", "ps -o pid,args").await;
    assert_eq!(seen.matches(FOREVER).count(), 2, "{seen}");
    assert!(seen.lines().any(|line| line.contains(" 1 ") && line.contains("kina-guest pause")), "{seen}");
    guest.kill("one", 9).await;
    assert_eq!(guest.wait("one").await.code, 137);
    guest.exec("two", "true").await;

    let mut apart = guest.container("apart", FOREVER);
    apart.pid = v1::NamespaceMode::Container.into();
    guest.run(apart).await;
    assert_eq!(guest.exec("apart", "ps -o args").await.matches(FOREVER).count(), 1);
    let mut debug = guest.container("debug", FOREVER);
    debug.pid = v1::NamespaceMode::Target.into();
    debug.pid_target = "apart".into();
    guest.run(debug).await;
    assert_eq!(guest.exec("apart", "ps -o args").await.matches(FOREVER).count(), 2);
}

#[tokio::test]
async fn shutdown_leaves_nothing() {
    let mut guest = Guest::start().await;
    let pod = v1::SetupPodRequest { pid: v1::NamespaceMode::Pod.into(), ..guest.pod() };
    guest.client.setup_pod(pod).await.unwrap();
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    guest
        .run(
            guest.container(
                "polite",
                "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.02; done",
            ),
        )
        .await;
    guest.run(guest.container("stubborn", "trap '' TERM; echo ready; while :; do sleep 0.02; done")).await;
    guest.create(guest.container("unborn", "true")).await;
    guest.wait_for_output("polite", "ready").await;
    guest.wait_for_output("stubborn", "ready").await;
    guest.client.shutdown(Duration::from_millis(300)).await.unwrap();
    let end = std::time::Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = guest.process.try_wait().unwrap() {
            break status;
        }
        assert!(std::time::Instant::now() < end, "the guest stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(status.success(), "{status}\n{}", guest.journal());
    assert!(guest.output("polite").contains("bye"));
    assert!(guest.group.processes().unwrap().is_empty());
    let left: Vec<_> = guest
        .group
        .directories()
        .flat_map(|group| std::fs::read_dir(group).unwrap())
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().unwrap().is_dir() && entry.file_name() != "guest")
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(std::fs::read_dir(guest.state()).unwrap().count(), 0, "{}", guest.journal());
    assert!(!guest.directory.path().join("guest.sock").exists());
    assert!(!mounts().contains(guest.directory.path().to_str().unwrap()));
}

#[tokio::test]
async fn a_killed_guest_is_noticed_and_leaves_nothing_outside_its_cgroup() {
    let mut guest = Guest::start().await;
    let pod = v1::SetupPodRequest { pid: v1::NamespaceMode::Pod.into(), ..guest.pod() };
    guest.client.setup_pod(pod).await.unwrap();
    guest.run(guest.container("c", FOREVER)).await;
    let mut events = guest.client.events(0).await.unwrap();
    guest.process.kill().unwrap();
    guest.process.wait().unwrap();
    let gone = tokio::time::timeout(Duration::from_secs(5), events.next()).await.unwrap().unwrap();
    assert!(matches!(gone, Err(GuestError::Gone { .. })), "{gone:?}");
    let refused = guest.client.list_containers().await.unwrap_err();
    assert!(matches!(refused, GuestError::Gone { .. }), "{refused:?}");
    guest.group.kill_all(PATIENCE).unwrap();
    wait_until("an empty cgroup", || guest.group.processes().unwrap().is_empty()).await;
    guest.group.delete(PATIENCE).unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(guest.directory.path().to_str().unwrap()));
}
