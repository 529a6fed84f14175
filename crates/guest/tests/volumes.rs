//! Volumes that the guest keeps for the pod.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod support;

use std::time::Duration;

use kina_guest_api::{Refusal, v1};
use support::Guest;

const FOREVER: &str = "sleep 1000";

fn volume(name: &str) -> v1::PodVolume {
    v1::PodVolume { name: name.to_owned(), mode: 0o1777, ..v1::PodVolume::default() }
}

fn memory(name: &str) -> v1::PodVolume {
    v1::PodVolume { memory: true, memory_bytes: 1 << 20, ..volume(name) }
}

fn at(destination: &str, volume: v1::PodVolume) -> v1::Mount {
    v1::Mount { destination: destination.to_owned(), volume: Some(volume), ..v1::Mount::default() }
}

fn below(sub_path: &str, volume: v1::PodVolume) -> v1::PodVolume {
    v1::PodVolume { sub_path: sub_path.to_owned(), ..volume }
}

fn with(mounts: Vec<v1::Mount>, container: v1::CreateContainerRequest) -> v1::CreateContainerRequest {
    v1::CreateContainerRequest { mounts, ..container }
}

#[tokio::test]
async fn containers_share_volumes_by_name() {
    let guest = Guest::with_pod().await;
    let both = || vec![at("/disk", volume("disk")), at("/memory", memory("memory"))];
    guest.run(with(both(), guest.container("one", FOREVER))).await;
    let read_only = v1::Mount { readonly: true, ..at("/again", volume("disk")) };
    let mounts = [both(), vec![read_only]].concat();
    guest.run(with(mounts, guest.container("two", FOREVER))).await;
    guest.exec("one", "echo d > /disk/file; echo m > /memory/file").await;
    assert_eq!(guest.exec("two", "cat /disk/file /memory/file /again/file").await, "d\nm\nd\n");
    assert_eq!(guest.exec("two", "busybox stat -c %a /disk /memory").await, "1777\n1777\n");
    assert!(guest.exec("two", "echo x 2>&1 > /again/x || true").await.contains("Read-only"));
    let full = "dd if=/dev/zero of=/memory/full bs=1k count=2k 2>&1 || true";
    assert!(guest.exec("one", full).await.contains("No space left"));
    // They outlive containers, and go with the pod.
    guest.kill("one", 9).await;
    guest.wait("one").await;
    guest.delete("one").await;
    assert_eq!(guest.exec("two", "cat /disk/file").await, "d\n");
    guest.client.shutdown(Duration::ZERO).await.unwrap();
    assert_eq!(std::fs::read_dir(guest.state()).unwrap().count(), 0, "{}", guest.journal());
}

#[tokio::test]
async fn a_sub_path_stays_inside_whatever_a_container_plants() {
    let guest = Guest::with_pod().await;
    guest.run(with(vec![at("/v", volume("v"))], guest.container("evil", FOREVER))).await;
    let plant = "busybox ln -s / /v/root; busybox ln -s /proc/1/root /v/proc; \
                 mkdir /v/good; echo content > /v/good/file";
    guest.exec("evil", plant).await;
    for sub_path in ["root", "root/etc", "proc", "proc/etc", "../x", "/etc"] {
        let mounts = vec![at("/m", below(sub_path, volume("v")))];
        let refused = guest.client.create_container(with(mounts, guest.container("c", FOREVER))).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.refusal(), Some(Refusal::Invalid), "{sub_path}: {refused}");
        assert!(refused.to_string().contains("sub_path"), "{sub_path}: {refused}");
    }
    let mounts = vec![
        at("/new", below("made/for/it", volume("v"))),
        at("/file", below("good/file", volume("v"))),
        at("/part", below("part", memory("m"))),
    ];
    guest.run(with(mounts, guest.container("good", FOREVER))).await;
    let script = "cat /file; echo n > /new/file; echo p > /part/file; busybox stat -c %a /new /part";
    assert_eq!(guest.exec("good", script).await, "content\n1777\n1777\n");
    assert_eq!(guest.exec("evil", "cat /v/made/for/it/file").await, "n\n");
}

#[tokio::test]
async fn what_a_volume_cannot_be_is_refused() {
    let guest = Guest::with_pod().await;
    let refused = async |mount: v1::Mount| {
        let container = with(vec![mount], guest.container("c", FOREVER));
        guest.client.create_container(container).await.unwrap_err().to_string()
    };
    let source = v1::Mount { source: "/etc".to_owned(), ..at("/v", volume("v")) };
    assert!(refused(source).await.contains("mounts.volume"));
    let propagation =
        v1::Mount { propagation: v1::MountPropagation::Bidirectional.into(), ..at("/v", volume("v")) };
    assert!(refused(propagation).await.contains("mounts.propagation"));
    assert!(refused(at("/v", volume("../v"))).await.contains("mounts.volume.name"));
}
