//! Root file systems and mounts.

use std::path::Path;
use std::process::Command;

use kina::cri::v1::{self, MountPropagation};
use kina_testkit::images::{self, File};

use crate::harness::machine::{also_in_apple, also_in_vm};
use crate::harness::{Daemon, script, wait_until, with_security};

const FOREVER: &str = "sleep 1000";

fn mount(source: &Path, target: &str, change: impl FnOnce(&mut v1::Mount)) -> v1::Mount {
    let mut mount = v1::Mount {
        host_path: source.display().to_string(),
        container_path: target.to_owned(),
        ..v1::Mount::default()
    };
    change(&mut mount);
    mount
}

fn node(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

#[tokio::test]
async fn the_root_is_the_containers_own() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let two = cri.run(&pod, script("two", FOREVER)).await;
    cri.sh(&one, "echo mine > /etc/passwd; rm /bin/yes; mkdir -p /a/b").await;
    assert_eq!(cri.sh(&one, "cat /etc/passwd; ls /bin/yes || true").await, "mine\n");
    assert_eq!(
        cri.sh(&two, "head -n 1 /etc/passwd; ls /bin/yes").await,
        "root:x:0:0:root:/root:/bin/sh\n/bin/yes\n"
    );
    let readonly = with_security(script("readonly", FOREVER), |context| context.readonly_rootfs = true);
    let readonly = cri.run(&pod, readonly).await;
    let attempt = "echo x > /file && exit 1; echo x > /tmp/x && exit 2; rm /bin/yes && exit 3; exit 0";
    cri.sh(&readonly, attempt).await;
    // Shared memory and terminals are no part of it.
    cri.sh(&readonly, "echo x > /dev/shm/x && echo x > /dev/null").await;
    daemon.leave_nothing().await;
}

pub(super) const WITH_VOLUMES: &str = "localhost/with-volumes:it";

/// Busybox with data that is to be volumes.
pub(super) fn with_volumes() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let link = |path| File { path, mode: 0o755, content: b"" };
    let files = [
        File { path: "bin/busybox", mode: 0o755, content: &busybox },
        link("bin/sh"),
        link("bin/cat"),
        link("bin/ls"),
        link("bin/sleep"),
        File { path: "data/seed", mode: 0o644, content: b"from the image\n" },
    ];
    let config = serde_json::json!({ "Volumes": { "/data": {}, "/not/there": {}, "/mounted": {} } });
    images::archive(WITH_VOLUMES, &[&files], config)
}

/// What an image says is data can be written where the root cannot, and is the container's own.
#[tokio::test]
async fn volumes_of_the_image() {
    let mut daemon = Daemon::start().await;
    daemon.import(&with_volumes()).await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let mounted = daemon.place.path("data");
    std::fs::create_dir(&mounted).unwrap();
    std::fs::write(mounted.join("file"), "of the node\n").unwrap();
    for readonly in [false, true] {
        let name = if readonly { "readonly" } else { "writable" };
        let mut container =
            with_security(script(name, FOREVER), |context| context.readonly_rootfs = readonly);
        container.image.as_mut().unwrap().image = WITH_VOLUMES.to_owned();
        container.mounts = vec![mount(&mounted, "/mounted", |_| ())];
        let id = cri.run(&pod, container).await;
        let write =
            "cat /data/seed /mounted/file && echo own > /data/own && echo own > /not/there/own && ls /data";
        assert_eq!(cri.sh(&id, write).await, "from the image\nof the node\nown\nseed\n");
        let attempt = "echo x > /bin/x || echo refused";
        assert_eq!(cri.sh(&id, attempt).await, if readonly { "refused\n" } else { "" });
    }
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn files_and_directories_of_the_node() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let data = daemon.place.path("data");
    std::fs::create_dir_all(data.join("inner")).unwrap();
    std::fs::write(data.join("file"), "from the node\n").unwrap();
    let inner = data.join("inner");
    node("mount", &["-t", "tmpfs", "none", inner.to_str().unwrap()]);
    let pod = cri.make_pod("p").await;
    let mut container = script("one", FOREVER);
    container.mounts = vec![
        mount(&data, "/rw", |_| ()),
        mount(&data, "/ro", |mount| mount.readonly = true),
        mount(&data, "/deep", |mount| {
            mount.readonly = true;
            mount.recursive_read_only = true;
        }),
        mount(&data.join("file"), "/etc/from-node", |mount| mount.readonly = true),
    ];
    let one = cri.run(&pod, container).await;
    assert_eq!(cri.sh(&one, "cat /etc/from-node; echo back > /rw/back").await, "from the node\n");
    assert_eq!(std::fs::read_to_string(data.join("back")).unwrap(), "back\n");
    cri.sh(
        &one,
        "echo x > /ro/x && exit 1; echo x > /deep/x && exit 2; echo x > /etc/from-node && exit 3; exit 0",
    )
    .await;
    // Read-only is the mount alone, unless asked for recursively.
    cri.sh(&one, "echo x > /rw/inner/x && rm /ro/inner/x").await;
    cri.sh(&one, "echo x > /deep/inner/x && exit 1; exit 0").await;
    let mounts = cri.status(&one).await.unwrap().mounts;
    assert_eq!(mounts.len(), 4);
    assert!(mounts.iter().any(|mount| mount.container_path == "/deep" && mount.recursive_read_only));

    let mut missing = script("missing", FOREVER);
    missing.mounts = vec![mount(&data.join("no-such-file"), "/x", |_| ())];
    let refused = cri.create(&pod, missing).await.unwrap_err();
    assert!(refused.message().contains("no-such-file"), "{refused}");
    assert!(refused.message().starts_with("config.mounts[0].host_path: "), "{refused}");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");

    // A way with turns in it leads where its text says.
    let mut winding = script("winding", FOREVER);
    winding.mounts = vec![mount(&data, "/no/such/../../place/of/files", |_| ())];
    let winding = cri.run(&pod, winding).await;
    assert_eq!(cri.sh(&winding, "cat /place/of/files/file").await, "from the node\n");
    daemon.leave_nothing().await;
}

/// A volume on what holds the pod's files and memory does not hide them.
#[tokio::test]
async fn the_pods_files_are_in_every_container() {
    const READ: &str = "cat /etc/own /etc/hostname && grep -c 192.0.2.53 /etc/resolv.conf && \
                        grep -c localhost /etc/hosts";
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let (etc, hosts) = (daemon.place.path("data/etc"), daemon.place.path("data/hosts"));
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(etc.join("own"), "of the volume\n").unwrap();
    std::fs::write(etc.join("hosts"), "of the volume\n").unwrap();
    std::fs::write(&hosts, "of the caller\n").unwrap();
    let mut pod = cri.pod("files");
    let servers = vec!["192.0.2.53".to_owned()];
    pod.dns_config = Some(v1::DnsConfig { servers, ..v1::DnsConfig::default() });
    let pod = cri.run_pod(&pod).await.unwrap();

    // What has no place there can have none in a volume that cannot be written.
    let mut readonly = script("readonly", FOREVER);
    readonly.mounts = vec![mount(&etc, "/etc", |mount| mount.readonly = true)];
    let readonly = cri.run(&pod, readonly).await;
    let seen = "cat /etc/own; grep -c localhost /etc/hosts; ls /etc";
    assert_eq!(cri.sh(&readonly, seen).await, "of the volume\n2\nhosts\nown\n");

    let mut writable = script("writable", FOREVER);
    writable.mounts = vec![mount(&etc, "/etc", |_| ())];
    let writable = cri.run(&pod, writable).await;
    assert_eq!(cri.sh(&writable, READ).await, "of the volume\nfiles\n1\n2\n");
    cri.sh(&writable, "echo more >> /etc/hosts; echo back > /etc/back").await;
    assert_eq!(std::fs::read_to_string(etc.join("hosts")).unwrap(), "of the volume\n");
    assert_eq!(std::fs::read_to_string(etc.join("hostname")).unwrap(), "");
    assert_eq!(std::fs::read_to_string(etc.join("back")).unwrap(), "back\n");

    // The caller's own stand in for ours, in whatever order it names them.
    let mut own = script("own", FOREVER);
    own.mounts = vec![mount(&hosts, "/etc/hosts", |_| ()), mount(&etc, "/etc", |_| ())];
    let own = cri.run(&pod, own).await;
    assert_eq!(cri.sh(&own, "cat /etc/hosts /etc/hostname").await, "of the caller\nfiles\n");
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn propagation() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let shared = daemon.place.path("shared");
    for name in ["host", "container"] {
        std::fs::create_dir_all(shared.join(name)).unwrap();
    }
    let path = shared.to_str().unwrap();
    node("mount", &["--bind", path, path]);
    node("mount", &["--make-shared", path]);
    let pod = cri
        .run_pod(&{
            let mut pod = cri.pod("p");
            let context = v1::LinuxSandboxSecurityContext { privileged: true, ..Default::default() };
            pod.linux.as_mut().unwrap().security_context = Some(context);
            pod
        })
        .await
        .unwrap();
    let with = |name: &str, propagation: MountPropagation, privileged: bool| {
        let mut container = with_security(script(name, FOREVER), |context| context.privileged = privileged);
        container.mounts = vec![mount(&shared, "/shared", |mount| mount.propagation = propagation.into())];
        container
    };
    // What a container shows the node has nothing of ours over it.
    let mut etc = with("etc", MountPropagation::PropagationBidirectional, true);
    etc.mounts[0].container_path = "/etc".to_owned();
    let etc = cri.run(&pod, etc).await;
    assert_eq!(cri.sh(&etc, "ls /etc").await, "container\nhost\n");
    let mut dev = with("dev", MountPropagation::PropagationPrivate, true);
    dev.mounts[0] = mount(Path::new("/dev"), "/dev", |_| ());
    let dev = cri.run(&pod, dev).await;
    cri.sh(&dev, "echo shared > /dev/shm/kina-it").await;
    assert_eq!(cri.sh(&etc, "cat /dev/shm/kina-it").await, "shared\n");
    assert!(!Path::new("/dev/shm/kina-it").exists());
    let private = cri.run(&pod, with("private", MountPropagation::PropagationPrivate, false)).await;
    let slave = cri.run(&pod, with("slave", MountPropagation::PropagationHostToContainer, false)).await;
    let both = cri.run(&pod, with("both", MountPropagation::PropagationBidirectional, true)).await;

    node("mount", &["-t", "tmpfs", "none", shared.join("host").to_str().unwrap()]);
    std::fs::write(shared.join("host/seen"), "").unwrap();
    for (id, expected) in [(&private, ""), (&slave, "seen\n"), (&both, "seen\n")] {
        assert_eq!(cri.sh(id, "ls /shared/host").await, expected);
    }
    cri.sh(&both, "mount -t tmpfs none /shared/container && touch /shared/container/seen").await;
    assert!(shared.join("container/seen").exists());
    assert_eq!(cri.sh(&slave, "ls /shared/container").await, "seen\n");
    assert_eq!(cri.sh(&private, "ls /shared/container").await, "");
    cri.sh(&both, "umount /shared/container").await;
    wait_until("the mount to go", async || !shared.join("container/seen").exists()).await;
    daemon.leave_nothing().await;
}

also_in_vm! {
    the_root_is_the_containers_own,
    volumes_of_the_image,
    the_pods_files_are_in_every_container,
    files_and_directories_of_the_node,
}

also_in_apple! {
    the_root_is_the_containers_own,
    the_pods_files_are_in_every_container,
    files_and_directories_of_the_node,
}
