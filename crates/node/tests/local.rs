//! What is particular to the local node: what a killed daemon leaves, mounts,
//! hostile trees.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use kina_model::{IdRange, PodId, UserNamespace};
use kina_node::{Error, Node};
use rustix::fs::{Mode, OFlags};
use support::{Place, node};

fn mount(args: &[&str]) {
    assert!(Command::new("mount").args(args).status().unwrap().success(), "mount {args:?}");
}

fn mountinfo(path: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = path.to_str().unwrap();
    table.lines().find(|line| line.split(' ').nth(4) == Some(path)).map(str::to_owned)
}

#[tokio::test]
async fn a_half_made_namespace_is_listed_completed_and_removed() {
    let place = Place::new();
    let pod = PodId::random();
    let name = place.path("netns").join(format!("kina-{pod}"));
    fs::create_dir(place.path("netns")).unwrap();
    // What a daemon leaves that is killed before it binds the namespace.
    fs::write(&name, "").unwrap();
    fs::write(place.path("netns").join("another-daemons"), "").unwrap();
    assert_eq!(place.node.network_namespaces().await.unwrap(), std::slice::from_ref(&pod));
    assert_eq!(place.node.create_network_namespace(&pod, None).await.unwrap(), name);
    assert!(mountinfo(&name).unwrap().contains(" - nsfs "));
    place.node.remove_network_namespace(&pod).await.unwrap();
    assert_eq!(mountinfo(&name), None);
    fs::write(&name, "").unwrap();
    place.node.remove_network_namespace(&pod).await.unwrap();
    assert!(!name.exists());
    assert!(place.node.network_namespaces().await.unwrap().is_empty());
    assert!(place.path("netns/another-daemons").exists());
}

#[tokio::test]
async fn a_user_namespace_owns_the_network_namespace_and_lasts_with_it() {
    let place = Place::new();
    let pod = PodId::random();
    let range = |outside| IdRange { inside: 0, outside, length: 1000 };
    let user = UserNamespace { uids: range(100_000), gids: range(200_000) };
    let path = place.node.create_network_namespace(&pod, Some(user)).await.unwrap();
    assert_eq!(place.node.create_network_namespace(&pod, Some(user)).await.unwrap(), path);
    let owner = kina_userns::owner(fs::File::open(&path).unwrap()).unwrap();
    let inside = |what: &str| {
        let user = format!("--user=/proc/{}/fd/{}", std::process::id(), owner.as_raw_fd());
        let network = format!("--net={}", path.display());
        let output = Command::new("nsenter").args([&user, &network, "sh", "-c", what]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let map = inside("cat /proc/self/uid_map /proc/self/gid_map");
    assert!(map.split_whitespace().eq(["0", "100000", "1000", "0", "200000", "1000"]), "{map}");
    // Its root may change the network.
    inside("cat /proc/self/net/fib_trie | grep 127.0.0.1 && echo 1 > /proc/sys/net/ipv4/ip_forward");
    place.node.remove_network_namespace(&pod).await.unwrap();
    assert!(place.node.network_namespaces().await.unwrap().is_empty());
    place.node.try_user_namespaces(&place.path("")).await.unwrap();
    assert!(place.node.try_user_namespaces(Path::new("/proc")).await.is_err());
}

#[tokio::test]
async fn namespaces_are_laid_out_as_iproute2_does() {
    let place = Place::new();
    let pods: Vec<PodId> = (0..8).map(|_| PodId::random()).collect();
    let made = pods.iter().map(|pod| place.node.create_network_namespace(pod, None));
    let mut tasks = Vec::new();
    for pod in &pods {
        let (node, pod) = (place.node.clone(), pod.clone());
        tasks.push(tokio::spawn(async move { node.create_network_namespace(&pod, None).await }));
    }
    for (task, made) in tasks.into_iter().zip(made) {
        assert_eq!(task.await.unwrap().unwrap(), made.await.unwrap());
    }
    let directory = mountinfo(&place.path("netns")).unwrap();
    assert!(directory.contains(" shared:"), "{directory}");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for pod in &pods {
        let name = place.path("netns").join(format!("kina-{pod}"));
        let count = table.lines().filter(|line| line.contains(name.to_str().unwrap())).count();
        assert_eq!(count, 1, "one mount each, though made twice at once");
        place.node.remove_network_namespace(pod).await.unwrap();
    }
}

#[tokio::test]
async fn overlays_keep_working_after_their_layer_is_unmounted() {
    let place = Place::new();
    let layer = place.image(&[("hello", b"layer\n"), ("later", &[7; 100_000])]);
    let lower = place.node.mount_layer(&layer).await.unwrap();
    let overlay = place.path("overlay");
    for name in ["overlay", "upper", "work"] {
        fs::create_dir(place.path(name)).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        place.path("upper").display(),
        place.path("work").display()
    );
    mount(&["-t", "overlay", "overlay", "-o", &options, overlay.to_str().unwrap()]);
    // Open inside the layer itself: the plain unmount is refused.
    let open = fs::File::open(lower.join("later")).unwrap();
    place.node.unmount_layer(&layer.diff_id).await.unwrap();
    assert!(!lower.exists());
    assert_eq!(fs::read(overlay.join("later")).unwrap(), [7; 100_000]);
    fs::write(overlay.join("hello"), "changed\n").unwrap();
    drop(open);
    let again = place.node.mount_layer(&layer).await.unwrap();
    assert_eq!(fs::read(again.join("hello")).unwrap(), b"layer\n");
    assert!(Command::new("umount").arg(&overlay).status().unwrap().success());
    place.node.unmount_layer(&layer.diff_id).await.unwrap();
}

#[tokio::test]
async fn another_daemon_adopts_layers_and_clears_what_is_left() {
    let place = Place::new();
    let first = place.image(&[("hello", b"1\n")]);
    let second = place.image(&[("hello", b"2\n")]);
    let mounted = place.node.mount_layer(&first).await.unwrap();
    place.node.mount_layer(&second).await.unwrap();
    // What a daemon leaves that is killed between directory and mount.
    let left = mounted.with_file_name("a".repeat(64));
    fs::create_dir(&left).unwrap();

    let next = node(place.directory.path());
    let mut listed = next.mounted_layers().await.unwrap();
    listed.sort_unstable();
    let mut expected = vec![first.diff_id.clone(), second.diff_id.clone()];
    expected.sort_unstable();
    assert_eq!(listed, expected);
    assert!(!left.exists());
    assert_eq!(next.mount_layer(&first).await.unwrap(), mounted);

    let line = mountinfo(&mounted).unwrap();
    assert!(line.contains(" ro,noatime - erofs "), "neither nosuid nor nodev: {line}");
    let layers = place.path("run/layers");
    assert!(!mountinfo(&layers).unwrap().contains("shared:"));
    next.unmount_layer(&first.diff_id).await.unwrap();
    assert!(mountinfo(&layers).is_some());
    next.unmount_layer(&second.diff_id).await.unwrap();
    assert_eq!(mountinfo(&layers), None, "the last layer takes the directory's own mount with it");
}

#[tokio::test]
async fn a_deep_tree_is_measured_and_removed() {
    const DEPTH: usize = 1000;
    let place = Place::new();
    let tree = place.path("deep");
    // Deeper than a path can be long; made step by step.
    fs::create_dir(&tree).unwrap();
    let mut level = rustix::fs::open(&tree, OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&level, "dddddddd", Mode::RWXU).unwrap();
        level = rustix::fs::openat(&level, "dddddddd", OFlags::PATH, Mode::empty()).unwrap();
    }
    drop(level);
    assert_eq!(place.node.usage(&tree).await.unwrap().used_inodes, 1 + DEPTH as u64);
    place.node.remove_tree(&tree).await.unwrap();
    assert!(!tree.exists());
}

#[tokio::test]
async fn a_mount_inside_stops_a_removal() {
    let place = Place::new();
    let tree = place.path("tree");
    let inside = tree.join("a/mounted");
    fs::create_dir_all(&inside).unwrap();
    let elsewhere = place.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("precious"), "x").unwrap();
    mount(&["--bind", elsewhere.to_str().unwrap(), inside.to_str().unwrap()]);
    // Of the same file system: only the mount tells them apart.
    for path in [&tree, &inside] {
        match place.node.remove_tree(path).await.unwrap_err() {
            Error::MountInside { path } => assert_eq!(path, inside),
            error => panic!("{error:?}"),
        }
    }
    let usage = place.node.usage(&tree).await.unwrap();
    assert_eq!(usage.used_inodes, 2, "what is mounted in a tree is not of the tree");
    assert_eq!(place.node.usage(&inside).await.unwrap().mountpoint, inside);
    assert_eq!(fs::read(elsewhere.join("precious")).unwrap(), b"x");
    assert!(Command::new("umount").arg(&inside).status().unwrap().success());

    let file = tree.join("file");
    fs::write(&file, "").unwrap();
    mount(&["--bind", elsewhere.join("precious").to_str().unwrap(), file.to_str().unwrap()]);
    match place.node.remove_tree(&tree).await.unwrap_err() {
        Error::MountInside { path } => assert_eq!(path, file),
        error => panic!("{error:?}"),
    }
    assert!(Command::new("umount").arg(&file).status().unwrap().success());
    place.node.remove_tree(&tree).await.unwrap();
}

#[tokio::test]
async fn a_bind_mount_leads_back_to_where_it_is_from() {
    let place = Place::new();
    let root = fs::canonicalize(place.directory.path()).unwrap();
    let (sub, bound) = (root.join("volume/sub"), root.join("bound"));
    fs::create_dir_all(&sub).unwrap();
    fs::create_dir(&bound).unwrap();
    assert_eq!(place.node.inspect_path(&bound).await.unwrap().aliases, Vec::<PathBuf>::new());
    mount(&["--bind", sub.to_str().unwrap(), bound.to_str().unwrap()]);
    let facts = place.node.inspect_path(&bound).await;
    assert!(Command::new("umount").arg(&bound).status().unwrap().success());
    let facts = facts.unwrap();
    assert_eq!(facts.mount.mountpoint, bound);
    assert!(facts.aliases.contains(&sub), "{facts:?}");
}

#[tokio::test]
async fn a_listening_guest_is_dialled() {
    let place = Place::new();
    let socket = place.path("socket");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let (dialled, accepted) = tokio::join!(place.node.dial(&socket), listener.accept());
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap().0);
    assert_eq!(dialled.peer_cred().unwrap().pid(), accepted.peer_cred().unwrap().pid());
    drop(listener);
    let error = place.node.dial(&socket).await.unwrap_err();
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::ConnectionRefused));
}

#[tokio::test]
async fn effects_are_quick() {
    const ROUNDS: usize = 30;
    let place = Place::new();
    let layer = place.image(&[("hello", b"layer\n")]);
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let pod = PodId::random();
        let begin = Instant::now();
        place.node.create_network_namespace(&pod, None).await.unwrap();
        times[0].push(begin.elapsed());
        let begin = Instant::now();
        place.node.remove_network_namespace(&pod).await.unwrap();
        times[1].push(begin.elapsed());
        let begin = Instant::now();
        place.node.mount_layer(&layer).await.unwrap();
        times[2].push(begin.elapsed());
        place.node.unmount_layer(&layer.diff_id).await.unwrap();
    }
    let medians = times.map(|mut times| {
        times.sort_unstable();
        times[ROUNDS / 2]
    });
    println!("medians of {ROUNDS}: namespace made, removed, layer mounted: {medians:?}");
    // Far above the goals: fails on a wait that should not be there.
    assert!(medians.iter().all(|time| time.as_millis() < 100), "{medians:?}");
}
