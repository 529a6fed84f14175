//! The guest of arm64 machines, which a Mac's are, in an emulated one: it boots as the
//! first process of Debian's arm64 kernel, answers, and runs a confined container.

use std::time::Duration;

use kina_guest_api::v1;
use kina_testkit::vm::{Config, Machine, Prerequisites};

use crate::pod::{self, CONTAINER, POD};

/// Ten seconds where nothing else runs.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
#[ignore = "takes the arm64 guest: `cargo xtask test --only arm64` builds it and runs this"]
async fn vm_a_guest_of_arm64_runs_a_container() {
    let prerequisites = Prerequisites::find_arm64().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().join("share");
    std::fs::create_dir(&share).unwrap();
    let diff_id = pod::write_arm64_layer(&share);

    let config = Config::new(POD, share);
    let mut machine = Machine::boot(&prerequisites, &config).unwrap();
    let guest = machine.guest(BOOT_PATIENCE).await.unwrap_or_else(|error| panic!("{error:?}"));
    eprintln!("the guest answers after {:?}", machine.age());
    let hello = guest.hello();
    assert_eq!((hello.pod_id.as_str(), hello.architecture.as_str()), (POD, "aarch64"));
    let features = hello.features.as_ref().unwrap();
    assert_eq!(features.cgroup_mode(), v1::CgroupMode::V2);
    assert!(features.seccomp && !features.user_namespaces, "{features:?}");

    guest.setup_pod(pod::setup()).await.unwrap();
    let mut request = pod::container(&diff_id);
    request.log = None;
    request.process.as_mut().unwrap().args = ["/bin/sh", "-c", "exec sleep 1000"].map(str::to_owned).to_vec();
    guest.create_container(request).await.unwrap();
    guest.start_container(v1::StartContainerRequest { id: CONTAINER.to_owned() }).await.unwrap();

    // The default profile holds: by arm64's numbers all that a shell does is allowed,
    // and unshare(2), which the kernel would let everybody do, is not.
    let script = "uname -m; hostname; grep Seccomp: /proc/self/status; \
                  unshare -U true 2>&1; exit 42";
    let command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
    let output = guest.exec_sync(CONTAINER, command, Some(PATIENCE), 64 << 10).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("aarch64\nin-a-machine\n"), "{text}");
    assert!(text.contains("Seccomp:\t2\n"), "{text}");
    assert!(text.contains("unshare(0x10000000): Operation not permitted"), "{text}");
    assert_eq!(output.code, 42, "{text}");

    let id = CONTAINER.to_owned();
    let signal = v1::SignalContainerRequest { id, signal: 9, ..v1::SignalContainerRequest::default() };
    guest.signal_container(signal).await.unwrap();
    guest.shutdown(Duration::from_secs(1)).await.unwrap();
    let status = machine.off(PATIENCE).unwrap();
    assert!(status.success(), "{status}");
}
