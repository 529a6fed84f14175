//! Pods with a user namespace of their own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod support;

use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use kina_guest_api::v1;
use kina_userns::{Mapping, Range, With};
use support::{Guest, Net};

const FOREVER: &str = "sleep 1000";
const UIDS: v1::IdRange = v1::IdRange { inside: 0, outside: 200_000, length: 65536 };
const GIDS: v1::IdRange = v1::IdRange { inside: 0, outside: 300_000, length: 65536 };

fn mappings() -> v1::IdMappings {
    v1::IdMappings { uids: vec![UIDS], gids: vec![GIDS] }
}

fn pod(guest: &Guest) -> v1::SetupPodRequest {
    let sysctls = [
        ("net.ipv4.ip_unprivileged_port_start", "7"),
        // Groups of the pod, not of the machine.
        ("net.ipv4.ping_group_range", "0 1000"),
        ("kernel.shm_rmid_forced", "1"),
    ];
    v1::SetupPodRequest {
        user: Some(mappings()),
        pid: v1::NamespaceMode::Pod.into(),
        sysctls: sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..guest.pod()
    }
}

#[tokio::test]
async fn root_of_a_pod_is_nobody_of_the_machine() {
    let guest = Guest::start().await;
    guest.client.setup_pod(pod(&guest)).await.unwrap();
    let made = guest.create(guest.container("one", FOREVER)).await;
    let pid = guest.start_container("one").await.pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t200000\t200000") && status.contains("Gid:\t300000\t300000"), "{status}");
    assert_eq!((made.uid, made.gid), (0, 0));

    let sh = async |script: &str| guest.exec("one", script).await;
    let map: Vec<String> =
        sh("cat /proc/self/uid_map /proc/1/gid_map").await.split_whitespace().map(str::to_owned).collect();
    assert_eq!(map, ["0", "200000", "65536", "0", "300000", "65536"]);
    assert_eq!(sh("id -u; hostname").await, "0\ntestpod\n");
    // What the image has, what the pod has, and what is made.
    let owners = "busybox stat -c %u:%g / /bin/busybox /etc/hosts /etc/resolv.conf /dev/shm /dev";
    assert_eq!(sh(owners).await, "0:0\n".repeat(6));
    sh("echo x >> /etc/hosts && mkdir /new && busybox chown 7:8 /new && echo x > /bin/new").await;
    sh("echo x > /dev/shm/x && echo x > /dev/null && head -c 1 /dev/urandom > /dev/shm/y").await;
    let upper = guest.state().join("containers/one/upper");
    let new = std::fs::metadata(upper.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (200_007, 300_008));
    assert_eq!(sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await, "7\n");
    assert_eq!(sh("cat /proc/sys/kernel/shm_rmid_forced").await, "1\n");
    assert_eq!(sh("cat /proc/sys/net/ipv4/ping_group_range").await, "0\t1000\n");
    assert_eq!(sh("ls /sys/class/net").await, "lo\n");
    // Nothing of the machine's: a file of its root is nobody's.
    assert_eq!(sh("echo x > /proc/sys/kernel/panic || echo no").await, "no\n");
}

#[tokio::test]
async fn containers_share_the_namespace_and_what_it_owns() {
    let guest = Guest::start().await;
    guest.client.setup_pod(pod(&guest)).await.unwrap();
    let one = guest.run(guest.container("one", FOREVER)).await;
    let two = guest.run(guest.container("two", FOREVER)).await;
    let namespace = |pid: u32, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["user", "net", "ipc", "uts", "pid"] {
        assert_eq!(namespace(one, kind), namespace(two, kind), "{kind}");
        assert_ne!(namespace(one, kind), namespace(std::process::id(), kind), "{kind}");
    }
    let user = std::fs::metadata(format!("/proc/{one}/ns/user")).unwrap().ino();
    for kind in ["net", "ipc", "uts", "pid", "mnt"] {
        let file = std::fs::File::open(format!("/proc/{one}/ns/{kind}")).unwrap();
        let owner = kina_userns::owner(&file).unwrap();
        assert_eq!(rustix::fs::fstat(&owner).unwrap().st_ino, user, "{kind}");
    }
    let seen = guest.exec("one", "ps").await;
    assert_eq!(seen.matches(FOREVER).count(), 2, "{seen}");
    assert!(seen.lines().any(|line| line.contains(" 1 ")), "{seen}");
    // The namespace's first process ends with its pod.
    guest.client.shutdown(std::time::Duration::from_millis(100)).await.unwrap();
    let gone = || !std::path::Path::new(&format!("/proc/{one}")).exists();
    support::wait_until("the containers to end", gone).await;
    support::wait_until("an empty cgroup", || guest.group.processes().unwrap().is_empty()).await;
}

#[tokio::test]
async fn a_user_of_a_pod_has_its_streams_and_no_more() {
    let guest = Guest::start().await;
    guest.client.setup_pod(pod(&guest)).await.unwrap();
    let mut web = guest.container("web", "id; echo seen > /proc/self/fd/1; echo x > /etc/hosts || echo no");
    web.process.as_mut().unwrap().user =
        Some(v1::User { who: Some(v1::user::Who::Name("web".to_owned())), ..v1::User::default() });
    assert_eq!(guest.run_to_end(web).await.code, 0, "{}", guest.output("web"));
    let output = guest.output("web");
    assert!(output.contains("uid=33(web) gid=34(www)") && output.contains("seen\n"), "{output}");
    // What the shell says of it comes by the other stream, before or after.
    assert!(output.lines().any(|line| line == "no"), "{output}");

    let mut far = guest.container("far", "true");
    far.process.as_mut().unwrap().user =
        Some(v1::User { who: Some(v1::user::Who::Uid(70_000)), ..v1::User::default() });
    let refused = guest.client.create_container(far).await.unwrap_err().to_string();
    assert!(refused.contains("process.user: user 70000"), "{refused}");
}

#[tokio::test]
async fn mounts_are_mapped_as_they_say() {
    let guest = Guest::start().await;
    guest.client.setup_pod(pod(&guest)).await.unwrap();
    let data = guest.directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(guest.directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(data.join("file"), "").unwrap();
    std::os::unix::fs::chown(data.join("file"), Some(7), Some(8)).unwrap();
    let mount = |destination: &str, mapped: Option<v1::IdMappings>| v1::Mount {
        source: data.display().to_string(),
        destination: destination.to_owned(),
        mapped,
        ..v1::Mount::default()
    };
    let volume =
        v1::PodVolume { name: "cache".to_owned(), mode: 0o2770, uid: 1, gid: 2, ..v1::PodVolume::default() };
    let mut one = guest.container("one", FOREVER);
    one.mounts = vec![
        mount("/mapped", Some(mappings())),
        mount("/plain", None),
        v1::Mount {
            destination: "/kept".to_owned(),
            volume: Some(volume),
            mapped: Some(mappings()),
            ..v1::Mount::default()
        },
    ];
    guest.run(one).await;
    let owners = "busybox stat -c %u:%g /mapped /mapped/file /plain/file /kept";
    assert_eq!(guest.exec("one", owners).await, "0:0\n7:8\n65534:65534\n1:2\n");
    guest.exec("one", "echo x > /mapped/made && ! echo x > /plain/made").await;
    let made = std::fs::metadata(data.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0));

    let mut refused = guest.container("refused", "true");
    refused.mounts =
        vec![v1::Mount { source: "/proc/sys".to_owned(), ..mount("/numbers", Some(mappings())) }];
    guest.create(refused).await;
    let start = v1::StartContainerRequest { id: "refused".to_owned() };
    let error = guest.client.start_container(start).await.unwrap_err().to_string();
    assert!(error.contains("map the ids of \"/proc/sys\""), "{error}");
}

#[tokio::test]
async fn a_privileged_container_is_so_in_its_pod() {
    let guest = Guest::start().await;
    guest.client.setup_pod(pod(&guest)).await.unwrap();
    let mut one = guest.container("one", FOREVER);
    one.privileged = true;
    one.process.as_mut().unwrap().seccomp = None;
    guest.run(one).await;
    guest.exec("one", "mount -t tmpfs none /tmp && echo x > /tmp/x && hostname other").await;
    assert_eq!(guest.exec("one", "echo 1 > /proc/sys/vm/drop_caches || echo no").await, "no\n");
    let mut device = guest.container("device", "ls /dev/nothing && echo x > /dev/nothing && echo fine");
    device.devices = vec![v1::Device {
        source: "/dev/null".to_owned(),
        destination: "/dev/nothing".to_owned(),
        permissions: "rw".to_owned(),
        node: None,
    }];
    assert_eq!(guest.run_to_end(device).await.code, 0, "{}", guest.output("device"));
    assert!(guest.output("device").ends_with("fine\n"));
}

#[tokio::test]
async fn a_network_namespace_brings_its_owner() {
    let range = |range: v1::IdRange| {
        vec![Range { inside: range.inside, outside: range.outside, length: range.length }]
    };
    let mapping = Mapping { uids: range(UIDS), gids: range(GIDS) };
    let made = kina_userns::create(&mapping, With::Network).unwrap();
    let network = made.network.unwrap();
    let by_path =
        |path: String| Some(v1::PodNetwork { kind: Some(v1::pod_network::Kind::NamespacePath(path)) });
    let path = format!("/proc/{}/fd/{}", std::process::id(), network.as_raw_fd());
    let guest = Guest::start().await;
    // That of another pod, or of none.
    let (other, host) = (Net::new(), v1::pod_network::Kind::Host(v1::Empty {}));
    let wrong = v1::SetupPodRequest { network: by_path(other.path()), ..pod(&guest) };
    let refused = guest.client.setup_pod(wrong).await.unwrap_err().to_string();
    assert!(refused.contains("user"), "{refused}");
    let network = Some(v1::PodNetwork { kind: Some(host) });
    let wrong = v1::SetupPodRequest { network, sysctls: [].into(), ..pod(&guest) };
    let refused = guest.client.setup_pod(wrong).await.unwrap_err().to_string();
    assert!(refused.contains("user: the pod has namespaces of the machine"), "{refused}");

    guest.client.setup_pod(v1::SetupPodRequest { network: by_path(path), ..pod(&guest) }).await.unwrap();
    let pid = guest.run(guest.container("one", FOREVER)).await;
    let inode = |path: String| std::fs::metadata(path).unwrap().ino();
    assert_eq!(inode(format!("/proc/{pid}/ns/user")), rustix::fs::fstat(&made.user).unwrap().st_ino);
}
