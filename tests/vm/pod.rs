//! What is asked of the guest, and the layer that it is given.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use kina_guest_api::{GuestClient, v1};
use kina_testkit::{images, vm};

/// How long a machine may take to boot.
pub(crate) const BOOT_PATIENCE: Duration = Duration::from_secs(40);
/// How long anything else may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The pod of the machine.
pub(crate) const POD: &str = "vm-pod";
/// Its one container.
pub(crate) const CONTAINER: &str = "counter";
/// The layer's file in the shared folder.
const LAYER: &str = "layer.erofs";

/// What the container runs: counts aloud until it is told to stop, and says then
/// how far it came. `/count` is the last number that it has said.
const SCRIPT: &str = "\
i=0
while ! test -e /stop; do
  echo line $i
  echo $i > /count
  i=$((i+1))
done
echo end $i";

/// Writes the image of the container's layer into the shared folder; returns the
/// layer's digest.
pub(crate) fn write_layer(share: &Path) -> String {
    write(share, &images::busybox_layer())
}

/// The same with a busybox of the arm64 architecture.
pub(crate) fn write_arm64_layer(share: &Path) -> String {
    let busybox = std::fs::read(vm::arm64_busybox().unwrap()).unwrap();
    write(share, &images::layer_of(&busybox))
}

fn write(share: &Path, layer: &[u8]) -> String {
    let mut image = File::create(share.join(LAYER)).unwrap();
    images::write_erofs(layer, &mut image).unwrap();
    images::digest(layer)
}

pub(crate) fn setup() -> v1::SetupPodRequest {
    let pod: i32 = v1::NamespaceMode::Pod.into();
    v1::SetupPodRequest {
        pod_id: POD.to_owned(),
        hostname: "in-a-machine".to_owned(),
        state_directory: "/run".to_owned(),
        cgroup_path: "/pod".to_owned(),
        network: Some(v1::PodNetwork { kind: Some(v1::pod_network::Kind::Loopback(v1::Empty {})) }),
        ipc: pod,
        pid: v1::NamespaceMode::Container.into(),
        uts: pod,
        ..v1::SetupPodRequest::default()
    }
}

pub(crate) fn container(diff_id: &str) -> v1::CreateContainerRequest {
    let image = format!("{}/{LAYER}", vm::SHARE_IN_GUEST);
    v1::CreateContainerRequest {
        id: CONTAINER.to_owned(),
        rootfs: Some(v1::Rootfs {
            layers: vec![v1::Layer {
                diff_id: diff_id.to_owned(),
                source: Some(v1::layer::Source::Image(image)),
            }],
            readonly: false,
            volumes: Vec::new(),
        }),
        process: Some(v1::Process {
            args: ["/bin/sh", "-c", SCRIPT].map(str::to_owned).to_vec(),
            env: vec!["PATH=/bin".to_owned()],
            cwd: "/".to_owned(),
            user: Some(v1::User { who: Some(v1::user::Who::Uid(0)), ..v1::User::default() }),
            seccomp: Some(v1::Seccomp { profile: Some(v1::seccomp::Profile::RuntimeDefault(v1::Empty {})) }),
            ..v1::Process::default()
        }),
        log: Some(v1::LogTarget { target: Some(v1::log_target::Target::Stream(v1::Empty {})) }),
        ..v1::CreateContainerRequest::default()
    }
}

/// Makes and starts a container.
pub(crate) async fn run(guest: &GuestClient, request: v1::CreateContainerRequest) {
    let id = request.id.clone();
    guest.create_container(request).await.unwrap();
    guest.start_container(v1::StartContainerRequest { id }).await.unwrap();
}

/// What a script prints in a container, which it must not fail in.
pub(crate) async fn exec(guest: &GuestClient, id: &str, script: &str) -> String {
    let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let output = guest.exec_sync(id, args, Some(PATIENCE), 64 << 10).await.unwrap();
    assert_eq!(output.code, 0, "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
