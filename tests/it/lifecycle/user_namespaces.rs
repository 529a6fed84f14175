//! Pods with user namespaces (hostUsers: false).

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use kina::cri::v1;
use tonic::Code;

use super::mounts::{WITH_VOLUMES, with_volumes};
use crate::harness::machine::{self, also_in_vm};
use crate::harness::{Cri, Daemon, script, with_security};

const FOREVER: &str = "sleep 1000";

fn ids() -> Vec<v1::IdMapping> {
    vec![v1::IdMapping { host_id: 200_000, container_id: 0, length: 65536 }]
}

pub(super) fn options() -> v1::NamespaceOption {
    v1::NamespaceOption {
        pid: v1::NamespaceMode::Container.into(),
        userns_options: Some(v1::UserNamespace {
            mode: v1::NamespaceMode::Pod.into(),
            uids: ids(),
            gids: ids(),
        }),
        ..v1::NamespaceOption::default()
    }
}

pub(super) fn pod(cri: &Cri, options: v1::NamespaceOption) -> v1::PodSandboxConfig {
    let mut pod = cri.pod("p");
    pod.linux.as_mut().unwrap().security_context = Some(v1::LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        ..v1::LinuxSandboxSecurityContext::default()
    });
    pod
}

pub(super) fn mapped(container: v1::ContainerConfig) -> v1::ContainerConfig {
    with_security(container, |context| context.namespace_options = Some(options()))
}

#[tokio::test]
async fn a_pod_has_users_of_its_own() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let data = daemon.place.path("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(data.join("file"), "from the node\n").unwrap();
    chown(data.join("file"), Some(7), Some(8)).unwrap();

    let pod = cri.run_pod(&pod(&cri, options())).await.unwrap();
    let status = cri.pod_status(&pod).await.unwrap().status.unwrap();
    let said = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(said.userns_options, options().userns_options);

    let mut config = mapped(script("one", FOREVER));
    config.mounts = vec![v1::Mount {
        host_path: data.display().to_string(),
        container_path: "/data".to_owned(),
        uid_mappings: ids(),
        gid_mappings: ids(),
        ..v1::Mount::default()
    }];
    let mounts = config.mounts.clone();
    let one = cri.run(&pod, config).await;
    let map = cri.sh(&one, "cat /proc/self/uid_map /proc/1/gid_map").await;
    let map: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(map, ["0", "200000", "65536", "0", "200000", "65536"]);
    let owners = "busybox stat -c %u:%g / /bin/busybox /etc/hosts /dev/shm /data /data/file";
    assert_eq!(cri.sh(&one, owners).await, "0:0\n0:0\n0:0\n0:0\n0:0\n7:8\n");
    cri.sh(&one, "cat /data/file && echo back > /data/back && busybox chown 9:10 /data/back").await;
    let back = std::fs::metadata(data.join("back")).unwrap();
    assert_eq!((back.uid(), back.gid()), (9, 10));
    cri.sh(&one, "echo x >> /etc/hosts && echo x > /bin/x && echo x > /dev/shm/x && echo x > /dev/null")
        .await;
    // Root of the pod is not root of its kernel.
    assert_eq!(cri.sh(&one, "echo 1 > /proc/sys/kernel/panic || echo no").await, "no\n");
    assert_eq!(cri.status(&one).await.unwrap().mounts, mounts);

    let user = with_security(mapped(script("two", "id -u && echo seen > /proc/self/fd/1")), |context| {
        context.run_as_user = Some(v1::Int64Value { value: 1000 });
    });
    let (ended, output) = cri.run_to_end(&pod, user).await;
    assert_eq!((ended.exit_code, output.as_str()), (0, "1000\nseen\n"));
    if !machine::is_vm() {
        let pid = cri.container_pid(&one).await;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("Uid:\t200000\t"), "{status}");
    }
    daemon.leave_nothing().await;
}

/// What an image says is data belongs to the pod's own root, and the pod's processes see each
/// other where they ask for it.
#[tokio::test]
async fn volumes_of_the_image_and_common_processes() {
    let mut daemon = Daemon::start().await;
    daemon.import(&with_volumes()).await;
    let cri = daemon.cri();
    let pod = cri.run_pod(&pod(&cri, options())).await.unwrap();
    for readonly in [false, true] {
        let name = if readonly { "readonly" } else { "writable" };
        let mut container =
            with_security(mapped(script(name, FOREVER)), |context| context.readonly_rootfs = readonly);
        container.image.as_mut().unwrap().image = WITH_VOLUMES.to_owned();
        let id = cri.run(&pod, container).await;
        let write = "cat /data/seed; echo own > /data/own && echo own > /not/there/own && \
                     busybox chown 7:8 /data/seed && busybox stat -c %u:%g /data /data/seed /not/there/own";
        assert_eq!(cri.sh(&id, write).await, "from the image\n0:0\n7:8\n0:0\n", "{name}");
    }
    let common = |name: &str| {
        with_security(mapped(script(name, FOREVER)), |context| {
            context.namespace_options.as_mut().unwrap().pid = v1::NamespaceMode::Pod.into();
        })
    };
    let one = cri.run(&pod, common("one")).await;
    cri.run(&pod, common("two")).await;
    assert_eq!(cri.sh(&one, "ps -o args | grep -c '^sleep 1000'").await, "2\n");
    assert_eq!(cri.sh(&one, "busybox stat -c %u /proc/1").await, "0\n");
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn pods_in_user_namespaces_are_offered_and_checked() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    type Change = fn(&mut v1::NamespaceOption);
    let cases: [(&str, Change); 4] = [
        (".network", |options| options.network = v1::NamespaceMode::Node.into()),
        (".userns_options.uids", |options| options.userns_options.as_mut().unwrap().uids.clear()),
        (".userns_options.mode", |options| {
            options.userns_options.as_mut().unwrap().mode = v1::NamespaceMode::Container.into();
        }),
        (".userns_options.mode", |options| {
            options.userns_options.as_mut().unwrap().mode = v1::NamespaceMode::Target.into();
        }),
    ];
    for (field, change) in cases {
        let mut options = options();
        change(&mut options);
        let refused = cri.run_pod(&pod(&cri, options)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(&format!("namespace_options{field}: ")), "{refused}");
    }
    assert!(cri.pods(None).await.is_empty());

    let plain = cri.make_pod("plain").await;
    let refused = cri.create(&plain, mapped(script("c", FOREVER))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("userns_options: "), "{refused}");
    // By now a machine has been seen, if pods have one.
    let request = v1::StatusRequest { verbose: false };
    let status = cri.client.runtime.clone().status(request).await.unwrap().into_inner();
    let handler = machine::handler();
    let known = status.runtime_handlers.iter().find(|known| known.name == handler).unwrap();
    assert!(known.features.unwrap().user_namespaces, "{known:?}");
    daemon.leave_nothing().await;
}

also_in_vm! {
    a_pod_has_users_of_its_own,
    volumes_of_the_image_and_common_processes,
    pods_in_user_namespaces_are_offered_and_checked,
}
