//! What the kubelet mounts, seen in a machine.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use kina::cri::v1;
use tonic::Code;

use crate::harness::{Daemon, machine, script, wait_until};

const FOREVER: &str = "sleep 1000";

fn mount(source: &Path, target: &str, readonly: bool) -> v1::Mount {
    v1::Mount {
        host_path: source.display().to_string(),
        container_path: target.to_owned(),
        readonly,
        ..v1::Mount::default()
    }
}

/// The kubelet's directory of a pod.
fn of_kubelet(daemon: &Daemon, pod: &str) -> PathBuf {
    daemon.place.path("kubelet/pods").join(format!("uid-of-{pod}"))
}

/// Publishes a volume's files as the kubelet does: a directory with a time in
/// its name, and a symlink to it that is replaced at once.
fn publish(volume: &Path, version: &str, files: &[(&str, &str)]) {
    let directory = volume.join(format!("..{version}"));
    fs::create_dir_all(&directory).unwrap();
    for (name, content) in files {
        fs::write(directory.join(name), content).unwrap();
        let link = volume.join(name);
        if !link.is_symlink() {
            symlink(Path::new("..data").join(name), link).unwrap();
        }
    }
    let next = volume.join("..data_tmp");
    symlink(format!("..{version}"), &next).unwrap();
    fs::rename(next, volume.join("..data")).unwrap();
}

#[tokio::test]
async fn configuration_is_seen_as_it_changes() {
    machine::use_vm();
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let kubelet = of_kubelet(&daemon, "p");
    let volume = kubelet.join("volumes/kubernetes.io~configmap/settings");
    publish(&volume, "2026_01", &[("colour", "red\n"), ("size", "1\n")]);
    let hosts = kubelet.join("etc-hosts");
    fs::write(&hosts, "192.0.2.1 from-kubelet\n").unwrap();
    let message = kubelet.join("containers/one/0");
    fs::create_dir_all(message.parent().unwrap()).unwrap();
    fs::write(&message, "").unwrap();

    let pod = cri.make_pod("p").await;
    let mut one = script("one", FOREVER);
    one.mounts = vec![
        mount(&volume, "/settings", true),
        mount(&hosts, "/etc/hosts", false),
        mount(&message, "/dev/termination-log", false),
    ];
    let one = cri.run(&pod, one).await;
    assert_eq!(
        cri.sh(&one, "cat /settings/colour /settings/size /etc/hosts").await,
        "red\n1\n192.0.2.1 from-kubelet\n"
    );
    cri.sh(&one, "echo x > /settings/new 2>/dev/null && exit 1; echo because > /dev/termination-log").await;
    assert_eq!(fs::read_to_string(&message).unwrap(), "because\n");
    publish(&volume, "2026_02", &[("colour", "blue\n"), ("size", "2\n")]);
    fs::remove_dir_all(volume.join("..2026_01")).unwrap();
    wait_until("the new settings", async || {
        let seen = cri.sh(&one, "cat /settings/colour /settings/size 2>/dev/null; true").await;
        // Never a mixture.
        assert!(["red\n1\n", "blue\n2\n", "", "red\n", "1\n"].contains(&seen.as_str()), "{seen}");
        seen == "blue\n2\n"
    })
    .await;
    cri.stop_pod(&pod).await.unwrap();
    // The kubelet can take its volumes away.
    fs::remove_dir_all(&kubelet).unwrap();
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn an_empty_directory_stays_inside() {
    machine::use_vm();
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let volumes = of_kubelet(&daemon, "p").join("volumes/kubernetes.io~empty-dir");
    let (disk, memory) = (volumes.join("scratch"), volumes.join("fast"));
    for volume in [&disk, &memory] {
        fs::create_dir_all(volume).unwrap();
        fs::set_permissions(volume, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m,mode=0777", "none"]).arg(&memory).status();
    assert!(mounted.unwrap().success());

    let pod = cri.make_pod("p").await;
    let with = |name: &str| {
        let mut container = script(name, FOREVER);
        container.mounts = vec![mount(&disk, "/scratch", false), mount(&memory, "/fast", false)];
        container
    };
    let one = cri.run(&pod, with("one")).await;
    let two = cri.run(&pod, with("two")).await;
    cri.sh(&one, "echo from one > /scratch/file; echo fast > /fast/file; stat -c %a /scratch").await;
    assert_eq!(
        cri.sh(&two, "cat /scratch/file /fast/file; stat -c %a /scratch").await,
        "from one\nfast\n777\n"
    );
    let kinds =
        cri.sh(&one, "stat -f -c %T /scratch /fast; df -m /fast | tail -n 1 | awk '{print $2}'").await;
    assert_eq!(kinds, "ext2/ext3\ntmpfs\n8\n");
    // Nothing of it is on the node.
    for volume in [&disk, &memory] {
        assert_eq!(fs::read_dir(volume).unwrap().count(), 0);
    }
    // It outlives a container, not the pod.
    cri.stop(&one, 0).await.unwrap();
    cri.remove(&one).await.unwrap();
    let again = cri.run(&pod, with("again")).await;
    assert_eq!(cri.sh(&again, "cat /scratch/file").await, "from one\n");
    daemon.leave_nothing().await;
}

/// What a machine may not be shown is refused by name, and nothing is made.
#[tokio::test]
async fn what_is_not_shown() {
    machine::use_vm();
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let inside = daemon.place.path("shared");
    fs::create_dir_all(&inside).unwrap();
    let leads_out = inside.join("out");
    symlink("/etc", &leads_out).unwrap();
    for (number, path) in [Path::new("/etc"), &leads_out, Path::new("/dev/null")].into_iter().enumerate() {
        let mut container = script(&format!("c{number}"), FOREVER);
        container.mounts = vec![mount(path, "/x", true)];
        let refused = cri.create(&pod, container).await.unwrap_err();
        assert_ne!(refused.code(), Code::Internal, "{refused}");
        assert!(refused.message().contains(path.to_str().unwrap()), "{refused}");
    }
    assert_eq!(cri.containers(None).await, []);
    daemon.leave_nothing().await;
}

/// What the node mounts later below a volume comes into the machine.
#[tokio::test]
async fn later_mounts_are_seen() {
    machine::use_vm();
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let shared = daemon.place.path("shared");
    let inner = shared.join("inner");
    fs::create_dir_all(&inner).unwrap();
    for arguments in [["--bind", "shared", "shared"].as_slice(), &["--make-shared", "shared"]] {
        let status = Command::new("mount").args(arguments).current_dir(shared.parent().unwrap()).status();
        assert!(status.unwrap().success());
    }
    let pod = cri.make_pod("p").await;
    let mut one = script("one", FOREVER);
    one.mounts = vec![mount(&shared, "/shared", false)];
    one.mounts[0].propagation = v1::MountPropagation::PropagationHostToContainer.into();
    let one = cri.run(&pod, one).await;
    assert_eq!(cri.sh(&one, "ls /shared/inner").await, "");
    let status = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&inner).status().unwrap();
    assert!(status.success());
    fs::write(inner.join("seen"), "").unwrap();
    wait_until("the new mount", async || cri.sh(&one, "ls /shared/inner").await == "seen\n").await;
    daemon.leave_nothing().await;
}
